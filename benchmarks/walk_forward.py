"""How long one fold of 100,000 timesteps takes, evaluation included, and the whole walk-forward of a bar file.

    python -m benchmarks.walk_forward --data bars.csv             # all folds, every recipe of RECIPES
    python -m benchmarks.walk_forward --data bars.csv --recipes zero_shot
    python -m benchmarks.walk_forward --data bars.csv --folds 5   # a look

The command is the user's own, `lit-ppo walk-forward`, in its own process; the seconds of a fold are those of its ledger
(data, fit, validation, test, checkpoint), the total is the wall time of the command, report included. A fold is
compared with the first user's recipe by the ratio of benchmarks/results/vs_peers.json, if that is there. The screen of
the features is off: in most folds of real bars no feature passes it, and such a fold trains nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, provenance, read, write
from lit_ppo.scoring.fills import read_fills
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.scoring.replay import replay
from lit_ppo.scoring.significance import draws_for, sharpe_interval
from lit_ppo.store.results import load_run

ROOT = Path(__file__).parents[1]
TRAINED = ["--config", "scratch", "--model.screen_features", "false"]
RECIPES = {
    "zero_shot": ["--config", "zero_shot"],
    "scratch": TRAINED,
    "aggressive": [*TRAINED[:2], "--config", "configs/profiles/aggressive.yaml", *TRAINED[2:]],
}
DEFAULT_FILE = ROOT / ".." / "shared" / "data" / "XAUUSDm_15min_exness_2022-11_2025-05.csv.gz"


def run(data: Path, recipe: list[str], folds: int | None) -> dict[str, Any]:
    """One walk-forward in a process of its own."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "lit_ppo", "walk-forward", *recipe]
        command += ["--data.path", str(data), "--results", results, "--data.cache", "false"]
        if folds is not None:
            command += ["--data.fold_limit", str(folds)]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        (ledger,) = Path(results).glob("*/folds.json")
        records = json.loads(ledger.read_text(encoding="utf-8"))["folds"]
        out_of_sample = outcome(ledger.parent)
    of_folds = [sum(record["seconds"].values()) for record in records]
    stages = sorted({stage for record in records for stage in record["seconds"]})
    return {
        "arguments": recipe,
        "folds": len(records),
        "total_s": round(seconds, 1),
        "fold_s": {"median": statistics.median(of_folds), "min": min(of_folds), "max": max(of_folds)},
        "stages_s": {
            stage: round(statistics.median(record["seconds"].get(stage, 0.0) for record in records), 3)
            for stage in stages
        },
        "timesteps": sum(record["timesteps"] for record in records),
        "steps_per_s": round(sum(record["timesteps"] for record in records) / seconds, 1),
        "out_of_sample": out_of_sample,
    }


def outcome(folder: Path) -> dict[str, Any]:
    """What the stitched test decisions earned, beside buy and hold on the same bars."""
    found = load_run(folder)
    rows, bars_per_year = found.out_of_sample, found.record["data"]["bars_per_year"]
    net = rows["net_return"].to_numpy()
    metrics = trading_metrics(net, rows["position"].to_numpy(), bars_per_year)
    fills = read_fills(folder, [record.index for record in found.folds])
    hold = replay(np.ones(len(net)), fills, restart=False)
    interval = sharpe_interval(net, bars_per_year, draws=draws_for(net)) if net.std() > 0 else None
    return {
        "bars": len(net),
        "trades": len(found.trades),
        "return_pct": round(metrics["return_pct"], 2),
        "sharpe_annual": None if interval is None else [round(x, 2) for x in interval[:3]],
        "buy_and_hold_return_pct": round(
            trading_metrics(hold.net_return, hold.position, bars_per_year)["return_pct"], 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="bar file; default: the first user's, where it is at hand")
    parser.add_argument("--folds", type=int, default=None, help="only the first so many")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES), help="one run each")
    parser.add_argument("--out", type=Path, default=RESULTS / "walk_forward.json")
    arguments = parser.parse_args()
    data = arguments.data or DEFAULT_FILE
    if not data.is_file():
        print(f"left out: there is no bar file {data}; name one with --data")
        return
    record = read(arguments.out) or {"what": "lit-ppo walk-forward, wall time"}
    for name in arguments.recipes:
        result = run(data.resolve(), RECIPES[name], arguments.folds)
        print(name, result, flush=True)
        record.setdefault("runs", {})[name] = result
        record |= {"file": data.name, **provenance()}
        write(arguments.out, record)


if __name__ == "__main__":
    main()
