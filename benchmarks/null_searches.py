"""Searches on markets without an edge: how often does one end with a deflated Sharpe ratio above 0.95?

    python -m benchmarks.null_searches                     # 100 searches of 30 trials: hours; goes on where it stopped
    python -m benchmarks.null_searches --searches 5 --trials 6 --output null.json

Each is `lit-ppo search` on a random walk of its own with fat tails and no drift: small agents that are made to trade
(no screen of features, no bias to hold, costs of a fortieth of a bar's volatility), the best of the trials by Sharpe
ratio on validation, tested once behind it. `selection_gap` is what choosing adds by itself: best validation minus test,
annual Sharpe, mean over the searches. At most 5 of 100 may end above 0.95; `upper` is the 95 % bound of the true share.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from benchmarks.common import RESULTS, provenance, read, write
from lit_ppo.cli import main as lit_ppo
from lit_ppo.commands.search import kept_trials
from lit_ppo.report.analysis import analyse

CONVINCING = 0.95
TRIALS = 30
SPACE: dict[str, Any] = {
    "space": {
        "model.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
        "model.gamma": [0.5, 0.9, 0.99],
        "model.ent_coef": {"low": 0.0001, "high": 0.03, "log": True},
        "model.hidden_size": [2, 8],
        "data.features": [[{"name": "log_return"}], [{"name": "log_return"}, {"name": "log_return", "bars": 12}]],
    },
    "folds": 2,
}


def recipe(seed: int) -> dict[str, Any]:
    """Small agents on one null market."""
    market = {"kind": "random_walk", "num_bars": 2400, "seed": seed, "noise": "student_t", "dof": 4, "cost": 0.025}
    market |= {"bar_seconds": 86_400, "scale": 0.01}  # days: a position is a bet a day, enough of them for a ratio
    model = {"total_timesteps": 1024, "num_envs": 4, "num_steps": 64, "burn_in": 8, "num_networks": 1}
    model |= {"screen_features": False, "hold_bias": 0.0, "update_epochs": 2, "mirror": False}
    sizes = {"train_size": 400, "validation_size": 250, "test_size": 250, "step_size": 250, "warmup_bars": 30}
    return {
        "seed_everything": seed,
        "model": model,
        "data": {"synthetic": market, "features": SPACE["space"]["data.features"][0], "cache": False, **sizes},
        "trainer": {"accelerator": "cpu", "devices": 1, "logger": False, "callbacks": []},
    }


def run(seed: int, trials: int) -> dict[str, Any]:
    """One search, and what the one test of its best setting said."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for name, content in (("recipe", recipe(seed)), ("space", SPACE)):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        arguments = ["--config", str(folder / "recipe.yaml"), "--space", str(folder / "space.yaml")]
        with contextlib.redirect_stdout(io.StringIO()):
            code = lit_ppo(["search", *arguments, "--trials", str(trials), "--results", str(folder / "results")])
        if code:
            raise SystemExit(f"lit-ppo search ended with {code} on the market of seed {seed}")
        tried = kept_trials(folder / "results/search")
        tested = analyse(folder / f"results/{seed}")
    done = [trial["value"] for trial in tried if trial["state"] == "COMPLETE"]
    evidence = tested.evidence
    return {
        "seed": seed,
        "trials": len(tried),
        "stopped": sum(trial["state"] == "PRUNED" for trial in tried),
        "best_validation_sharpe": round(max(done), 3),
        "test_sharpe": None if np.isnan(tested.metrics["sharpe_annual"]) else round(tested.metrics["sharpe_annual"], 3),
        "test_bars": len(tested.net_return),
        "deflated": None if np.isnan(evidence.deflated) else round(evidence.deflated, 4),
        "counted_trials": evidence.trials,
        "verdict": tested.verdict.kind,
        "seconds": round(time.perf_counter() - started, 1),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over the searches so far."""
    above = sum((row["deflated"] or 0.0) > CONVINCING for row in rows)
    gaps = [row["best_validation_sharpe"] - row["test_sharpe"] for row in rows if row["test_sharpe"] is not None]
    return {
        "searches": len(rows),
        "above_0.95": above,
        "upper": round(float(stats.beta.ppf(0.95, above + 1, len(rows) - above)) if above < len(rows) else 1.0, 3),
        "called_an_edge": sum(row["verdict"] == "edge" for row in rows),
        "judged": sum(row["deflated"] is not None for row in rows),  # who hardly trades has no ratio
        "selection_gap": round(float(np.mean(gaps)), 3) if gaps else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=100)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--output", type=Path, default=RESULTS / "null_searches.json")
    options = parser.parse_args()
    before = read(options.output)
    rows = before["rows"] if before.get("trials") == options.trials else []
    for seed in range(len(rows), options.searches):
        rows.append(run(seed, options.trials))
        found = summary(rows)
        write(options.output, {"trials": options.trials, "summary": found, "rows": rows, **provenance()})
        print(f"search {seed}: {rows[-1]}", flush=True)
    print(summary(rows))


if __name__ == "__main__":
    main()
