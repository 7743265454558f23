"""Would it have found an edge? Known edges on the noise of real bar files, and the share that the default recipe finds.

    python -m benchmarks.planted --data a.csv b.csv   # the battery: every kind, size and window; many hours on one core
    python -m benchmarks.planted --quick              # four cells, windows of 24,000 bars, one file, one seed: minutes
    python -m benchmarks.planted --kinds season null --windows 24000 --seeds 1
    python -m benchmarks.planted --fresh              # forget what is there, after a change of the code

One recipe, untouched, for every cell: configs/walk_forward.yaml with the window's sizes, or the one of `--config`. What
is measured, and how, is that of `lit-ppo power` (`lit_ppo.lab.power`, docs/power.md), here over every fold of the file.
Sizes are named by the informed annual Sharpe on all of the file's rows; the quick cells by m. Results are kept per cell
in benchmarks/results/planted.json, with the commit.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, provenance, read, write
from datamodules.bars.read import read_bars
from datamodules.planted import KINDS
from datamodules.planted_data import plant_in, planted_data
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.commands.lightning_cli import LitPPOCLI
from lit_ppo.commands.power import EdgeMaker, subject_of
from lit_ppo.lab.power import SHARPES, Sizes, Subject, measure
from lit_ppo.store.provenance import code_state

PATH = RESULTS / "planted.json"
DATA = Path(__file__).parents[2] / "shared" / "data"
DEFAULT_FILES = (
    DATA / "XAUUSDm_15min_exness_2022-11_2025-05.csv.gz",
    DATA / "XAUUSD_15min_mt4_2016-09_2019-08.csv.gz",  # has no spread: --spread is taken
)
RECIPE, SCRATCH = "walk_forward", "scratch"
QUICK = (("momentum", 0.1), ("drift", 0.05), ("season", 0.1), ("null", 0.0))  # kind, m


@dataclass(frozen=True)
class Window:
    """Sizes of a walk-forward, bars; `timesteps` a fold for a training from scratch (`model.max_passes` ends earlier).

    `expand`: train keeps all earlier bars, and `train` is what the first fold has.
    """

    train: int
    validation: int
    test: int
    timesteps: int
    expand: bool = False

    def flags(self, recipe: str) -> list[str]:
        sizes = {"train": self.train, "validation": self.validation, "test": self.test, "step": self.test}
        named = [f"--data.{name}_size={size}" for name, size in sizes.items()]
        named.append(f"--data.expand_train={str(self.expand).lower()}")
        # Another recipe's budget is its own: it may train little, or nothing.
        return [*named, f"--model.total_timesteps={self.timesteps}"] if recipe == SCRATCH else named


WINDOWS = {
    "2000": Window(2_000, 500, 500, 100_000),
    "24000": Window(24_000, 3_000, 10_000, 1_000_000),
    "expanding": Window(2_000, 500, 5_000, 1_000_000, expand=True),
}


@dataclass(frozen=True)
class Cell:
    """One run of the battery. `sharpe`: informed, that sizes the edge; None: `size` does."""

    file: str
    kind: str
    window: str
    seed: int
    sharpe: float | None = None
    size: float | None = None
    recipe: str = RECIPE

    @property
    def name(self) -> str:
        named = f"m {self.size:g}" if self.sharpe is None else f"sharpe {self.sharpe:g}"
        text = f"{self.file} | {self.kind} | {named} | {self.window} bars | seed {self.seed}"
        return text if self.recipe == RECIPE else f"{text} | {self.recipe}"


@dataclass
class Ground:
    """A bar file under one recipe and window, ready to be planted in."""

    subject: Subject
    sizes: Sizes

    @classmethod
    def of(cls, path: Path, window: Window, recipe: str, spread: float) -> Ground:
        arguments = [f"--config={recipe}", f"--data.path={path}", "--data.cache=false", *window.flags(recipe)]
        if "spread" not in read_bars(path).frame:
            arguments.append(f"--data.costs.spread={spread}")
        cli = LitPPOCLI("power", arguments, WalkForwardDataModule)
        subject = subject_of(cli, EdgeMaker(KINDS, plant_in, planted_data))
        return cls(subject, Sizes(subject, 0))

    def run(self, cell: Cell) -> dict[str, Any]:
        """Plant, walk forward over every fold, compare."""
        size = self.sizes.of(cell.kind, cell.sharpe) if cell.sharpe is not None else float(cell.size or 0.0)
        found = measure(self.subject, cell.kind, size, cell.seed, range(len(self.subject.data.folds)))
        found["folds"] = len(found["folds"])
        return {**asdict(cell), **found, "commit": code_state()}


def line(cell: Cell, result: dict[str, Any]) -> str:
    shares = [result["share"], result["share_realised"]]
    found, real = ("   -   " if share is None else f"{100 * share:5.1f} %" for share in shares)
    return (
        f"{cell.name:90s} m {result['m']:.4f}  found {found} ({real} with the noise)  Sharpe "
        f"{result['sharpe_annual']:+6.2f} of {result['informed_sharpe']:5.2f}  t {result['t']:+.1f}  exposure "
        f"{result['exposure']:.2f}  {result['seconds']:.0f} s"
    )


def cells_of(arguments: argparse.Namespace, files: list[Path]) -> list[Cell]:
    """Every run asked for."""
    if arguments.quick:
        quick = [(kind, size) for kind, size in QUICK if kind in arguments.kinds]
        return [Cell(files[0].name, kind, "24000", 0, size=size, recipe=arguments.config) for kind, size in quick]
    cells: list[Cell] = []
    for file in files:
        for window in arguments.windows:
            for kind in arguments.kinds:
                for seed in range(arguments.seeds):
                    sizes = [(None, 0.0)] if kind == "null" else [(sharpe, None) for sharpe in arguments.sharpes]
                    cells += [Cell(file.name, kind, window, seed, *size, arguments.config) for size in sizes]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=list(DEFAULT_FILES), help="bar files, for their noise")
    parser.add_argument("--spread", type=float, default=0.2, help="price units, for a file without spreads")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--sharpes", type=float, nargs="+", default=list(SHARPES), help="of the informed trader")
    parser.add_argument("--windows", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--seeds", type=int, default=3, help="each its own mirror, edge and agent")
    parser.add_argument("--config", default=RECIPE, help="recipe that is measured, by its name or its path")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} in windows of 24,000 bars, one seed")
    parser.add_argument("--fresh", action="store_true", help="run the cells again that are already in the results")
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
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
    grounds: dict[tuple[str, str], Ground] = {}
    for cell in todo:
        if (cell.file, cell.window) not in grounds:
            path = next(path for path in there if path.name == cell.file)
            grounds[cell.file, cell.window] = Ground.of(path, WINDOWS[cell.window], cell.recipe, arguments.spread)
        result = grounds[cell.file, cell.window].run(cell)
        print(line(cell, result), flush=True)
        record["cells"][cell.name] = result
        record["windows"] = {name: asdict(window) for name, window in WINDOWS.items()}
        record.update(provenance())
        write(arguments.out, record)


if __name__ == "__main__":
    main()
