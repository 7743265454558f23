"""Would it have found an edge? Known edges on the noise of real bar files, and the share that the default recipe finds.

    python -m benchmarks.planted --data a.csv b.csv   # the battery: every kind, size and window; many hours on one core
    python -m benchmarks.planted --quick              # four cells, windows of 24,000 bars, one file, one seed: minutes
    python -m benchmarks.planted --kinds season null --windows 24000 --seeds 1
    python -m benchmarks.planted --fresh              # forget what is there, after a change of the code

One recipe, untouched, for every cell: configs/walk_forward.yaml with the window's sizes. Each run is the user's own
command, `lit-ppo walk-forward`, on a planted file; its stitched test decisions are compared with the informed trader's
(`lit_ppo.oracles.informed`) on the same rows and costs. Sizes are named by the informed annual Sharpe on all of the
file's rows; the quick cells by m. Results are kept per cell in benchmarks/results/planted.json, with the commit.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import RESULTS, provenance, read, write
from datamodules.bars.read import Bars, read_bars
from datamodules.features.compute import load_features
from datamodules.planted import EDGE_COLUMN, KINDS, Edge, Planted, plant
from lit_ppo.market.costs import Costs, FillArrays, bar_times, fill_arrays
from lit_ppo.oracles.informed import Informed, informed_trader, share_found, size_edge
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.store.provenance import code_state
from lit_ppo.store.results import load_run

PATH = RESULTS / "planted.json"
ROOT = Path(__file__).parents[1]
DATA = ROOT / ".." / "shared" / "data"
DEFAULT_FILES = (
    DATA / "XAUUSDm_15min_exness_2022-11_2025-05.csv.gz",
    DATA / "XAUUSD_15min_mt4_2016-09_2019-08.csv.gz",  # has no spread: --spread is taken
)
FILL = "next_open"
SHARPES = (1.5, 3.0, 6.0, 10.0)
QUICK = (("momentum", 0.1), ("drift", 0.05), ("season", 0.1), ("null", 0.0))  # kind, m


@dataclass(frozen=True)
class Window:
    """Sizes of a walk-forward, bars; `timesteps` a fold (a large window ends earlier, by `model.max_passes`)."""

    train: int
    validation: int
    test: int
    timesteps: int

    @property
    def flags(self) -> list[str]:
        sizes = {"train": self.train, "validation": self.validation, "test": self.test, "step": self.test}
        named = [x for name, size in sizes.items() for x in (f"--data.{name}_size", str(size))]
        return [*named, "--model.total_timesteps", str(self.timesteps)]


WINDOWS = {2000: Window(2000, 500, 500, 100_000), 24_000: Window(24_000, 3000, 10_000, 1_000_000)}


@dataclass(frozen=True)
class Cell:
    """One run of the battery. `sharpe`: informed, that sizes the edge; None: `size` does."""

    file: str
    kind: str
    window: int
    seed: int
    sharpe: float | None = None
    size: float | None = None

    @property
    def name(self) -> str:
        named = f"m {self.size:g}" if self.sharpe is None else f"sharpe {self.sharpe:g}"
        return f"{self.file} | {self.kind} | {named} | {self.window} bars | seed {self.seed}"


class Noise:
    """A bar file to plant in, and what trading it costs."""

    def __init__(self, path: Path, spread: float) -> None:
        self.bars: Bars = read_bars(path)
        self.costs = Costs() if "spread" in self.bars.frame else Costs(spread=spread)

    def plant(self, kind: str, size: float, seed: int) -> Planted:
        return plant(self.bars, Edge(kind, size), np.random.default_rng(seed))  # type: ignore[arg-type]

    def fills(self, planted: Planted) -> FillArrays:
        return fill_arrays(planted.bars.frame, self.costs, FILL, self.bars.point)

    def informed(self, planted: Planted, rows: np.ndarray | slice) -> Informed:
        """The informed trader on these rows of the file."""
        fills = self.fills(planted)._asdict()
        del fills["fill_price"]
        arrays = {name: values[rows] for name, values in fills.items()}
        return informed_trader(planted.forecast[rows], bars_per_year=self.bars.bars_per_year, **arrays)

    def size_of(self, cell: Cell) -> float:
        """The edge's m."""
        if cell.sharpe is None:
            return float(cell.size or 0.0)
        rows = slice(0, len(self.bars) - 2)

        def sharpe_of(size: float) -> float:
            return self.informed(self.plant(cell.kind, size, cell.seed), rows).sharpe_annual

        return size_edge(sharpe_of, cell.sharpe)


def run_cell(cell: Cell, noise: Noise) -> dict[str, Any]:
    """Plant, walk forward, compare."""
    size = noise.size_of(cell)
    planted = noise.plant(cell.kind, size, cell.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = planted.write(Path(folder) / "planted.csv")
        command = [sys.executable, "-m", "lit_ppo", "walk-forward", "--config", "configs/walk_forward.yaml"]
        command += ["--data.path", str(path), "--results", folder, "--data.cache", "false", "--data.fill", FILL]
        command += ["--seed_everything", str(cell.seed), *WINDOWS[cell.window].flags]
        if noise.costs.spread != "file":
            command += ["--data.costs.spread", str(noise.costs.spread)]
        if EDGE_COLUMN in planted.bars.frame:  # the user's column comes on top of the default features
            entries = [{"column": EDGE_COLUMN, "parity": -1}, *(dict(spec.entry) for spec in load_features("default"))]
            (Path(folder) / "features.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
            command += ["--data.features", f"{folder}/features.yaml"]
        started = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{cell.name}: {done.stderr[-2000:]}")
        (ledger,) = Path(folder).glob("*/folds.json")
        decided = load_run(ledger.parent).out_of_sample
    times = decided["time"].to_numpy("datetime64[ns]").astype(np.int64)
    rows = np.searchsorted(bar_times(planted.bars.frame), times)
    informed = noise.informed(planted, rows)
    net = decided["net_return"].to_numpy()
    agent = trading_metrics(net, decided["position"].to_numpy(), noise.bars.bars_per_year)
    sharpe = agent["sharpe_annual"] if math.isfinite(agent["sharpe_annual"]) else 0.0  # never traded
    return {
        **asdict(cell),
        "m": size,
        "test_bars": len(net),
        "folds": int(decided["fold"].nunique()),
        "share": share_found(net, informed.net_return) if informed.net_return.sum() > 0 else None,
        "informed_sharpe": informed.sharpe_annual,
        "informed_exposure": informed.exposure,
        "informed_turnover": informed.turnover,
        "thresholds": [x if math.isfinite(x) else None for x in (informed.enter, informed.exit)],
        "sharpe_annual": sharpe,
        "t": sharpe / math.sqrt(noise.bars.bars_per_year) * math.sqrt(len(net)),
        "cost_in_sharpe": _in_sharpe(decided["cost"].to_numpy(), net, noise.bars.bars_per_year),
        "exposure": float(np.abs(decided["position"]).mean()),
        "seconds": round(seconds, 1),
        "commit": code_state(),
    }


def _in_sharpe(cost: np.ndarray, net: np.ndarray, bars_per_year: float) -> float:
    """Annual Sharpe ratio that the costs took."""
    return float(cost.mean() / net.std() * math.sqrt(bars_per_year)) if net.std() > 0 else 0.0


def line(cell: Cell, result: dict[str, Any]) -> str:
    share = "   -   " if result["share"] is None else f"{100 * result['share']:5.1f} %"
    return (
        f"{cell.name:90s} m {result['m']:.4f}  found {share}  Sharpe {result['sharpe_annual']:+6.2f} of "
        f"{result['informed_sharpe']:5.2f}  t {result['t']:+.1f}  exposure {result['exposure']:.2f}  "
        f"{result['seconds']:.0f} s"
    )


def cells_of(arguments: argparse.Namespace, files: list[Path]) -> list[Cell]:
    """Every run asked for."""
    if arguments.quick:
        return [Cell(files[0].name, kind, 24_000, 0, size=size) for kind, size in QUICK if kind in arguments.kinds]
    cells = []
    for file in files:
        for window in arguments.windows:
            for kind in arguments.kinds:
                for seed in range(arguments.seeds):
                    if kind == "null":
                        cells.append(Cell(file.name, kind, window, seed, size=0.0))
                    else:
                        cells += [Cell(file.name, kind, window, seed, sharpe=sharpe) for sharpe in arguments.sharpes]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=list(DEFAULT_FILES), help="bar files, for their noise")
    parser.add_argument("--spread", type=float, default=0.2, help="price units, for a file without spreads")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--sharpes", type=float, nargs="+", default=list(SHARPES), help="of the informed trader")
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--seeds", type=int, default=3, help="each its own mirror, edge and agent")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} in windows of 24,000 bars, one seed")
    parser.add_argument("--fresh", action="store_true", help="run the cells again that are already in the results")
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    there = [path for path in arguments.data if path.is_file()]
    for path in arguments.data:
        if path not in there:
            print(f"left out: there is no bar file {path}; name one with --data")
    if not there:
        return
    record = read(arguments.out) or {"what": "share of a planted edge found by the default recipe", "cells": {}}
    cells = cells_of(arguments, there)
    todo = [cell for cell in cells if arguments.fresh or cell.name not in record["cells"]]
    print(f"{len(todo)} runs to do, {len(cells) - len(todo)} done", flush=True)
    noises: dict[str, Noise] = {}
    for cell in todo:
        if cell.file not in noises:
            path = next(path for path in there if path.name == cell.file)
            noises[cell.file] = Noise(path, arguments.spread)
        result = run_cell(cell, noises[cell.file])
        print(line(cell, result), flush=True)
        record["cells"][cell.name] = result
        record["windows"] = {str(size): asdict(window) for size, window in WINDOWS.items()}
        record.update(provenance())
        write(arguments.out, record)


if __name__ == "__main__":
    main()
