"""A made-up run folder, written through the product's own files: for tests and screenshots of the report, no training.

The prices are a random walk with the costs of gold; the "agent" holds random positions and, with probability `skill`,
sees the coming stretch. Nothing here says anything about a market.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lit_ppo.market.books import account, trades
from lit_ppo.scoring.fills import FillTable, write_fills
from lit_ppo.store.files import utc_cells
from lit_ppo.store.results import FoldRecord, RunFolder, run_record

BAR = 900 * 10**9  # 15 minutes, nanoseconds
START = np.datetime64("2023-01-02T00:00", "ns").astype(np.int64)
BARS_PER_YEAR = 23_600.0
SCREEN = {
    "passed": ["log_return"],
    "score": {"log_return": 5.2, "hour_sin": 1.1},
    "threshold": {"log_return": 3.0, "hour_sin": 3.6},
}


def trading_times(bars: int) -> np.ndarray:
    """[bars] open times of 15-minute bars without weekends."""
    every = START + BAR * np.arange(int(bars * 1.6) + 700)
    weekday = (every // 86_400_000_000_000 + 3) % 7
    return every[weekday < 5][:bars]


def positions_with_skill(price_return: np.ndarray, skill: float, generator: np.random.Generator) -> np.ndarray:
    """Positions held for 24 bars: with probability `skill` on the right side of the coming stretch, else at random."""
    position = np.zeros(len(price_return))
    for start in range(0, len(position), 24):
        ahead = np.sign(price_return[start : start + 24].sum())
        position[start : start + 24] = ahead if generator.random() < skill else generator.integers(-1, 2)
    return position


def make_run(
    root: str | Path,
    *,
    seed: int = 42,
    folds: int = 8,
    test_bars: int = 500,
    skill: float = 0.0,
    name: str = "XAUUSDm_15min.csv",
    fills: bool = True,
    config: dict[str, Any] | None = None,
    stop_reason: str = "budget",
    noise: int = 0,
) -> Path:
    """Write a run of `folds` test segments and return its folder.

    Args:
        root: results directory.
        seed: of the run, and of its decisions.
        folds, test_bars: size.
        skill: see `positions_with_skill`; 0 is luck only, 0.3 a strong edge.
        name: of the bar file, as run.json has it.
        fills: write test_bars.npz.
        config: more configuration entries.
        stop_reason: of every fold.
        noise: seed of the prices; runs to compare share it.
    """
    bars = folds * test_bars
    prices = np.random.default_rng(noise)
    price_return = prices.standard_t(4, bars) * 4e-4
    price = 1800 * np.cumprod(1 + np.concatenate(([0.0], price_return)))[:-1]
    time = trading_times(bars)
    cost, carry = 0.1 / price, np.where((time // 3_600_000_000_000) % 24 == 22, 2e-5, 0.0)
    carry[np.diff(time, prepend=time[0] - BAR) == 0] = 0.0
    generator = np.random.default_rng(seed)
    position = positions_with_skill(price_return, skill, generator)
    run = RunFolder(root, seed)
    run.begin(overwrite=True)
    settings = {
        "seed_everything": seed,
        "model": {"positions": [-1.0, 0.0, 1.0], "estimator": "counterfactual", "hidden_size": 32},
        "data": {"path": f"/home/someone/secret place/{name}", "train_size": 2000, "test_size": test_bars},
    }
    run.write_config(yaml.safe_dump(settings | (config or {}), sort_keys=False))
    days = [str(t)[:10] for t in time[[0, -1]].astype("datetime64[ns]")]
    data = {"path": name, "sha256": "0" * 64, "rows": bars + 2500, "range": days, "bars_per_year": BARS_PER_YEAR}
    money = {"initial_balance": 10_000.0, "balance_per_lot": 180_000.0}
    run.write_run(
        run_record(seed=seed, data=data, command=["lit-ppo", "walk-forward", f"--data.path={name}"], money=money)
    )
    for fold in range(folds):
        rows = slice(fold * test_bars, (fold + 1) * test_bars)
        columns = (price[rows], price_return[rows], cost[rows], carry[rows], -0.2 * carry[rows])
        ledger = account(
            position[rows],
            time=time[rows],
            price_return=columns[1],
            turnover_cost=columns[2],
            carry_long=columns[3],
            carry_short=columns[4],
        )
        if fills:
            write_fills(run.fold_path(fold), FillTable(time[rows], np.full(test_bars, fold), *columns))
        run.append_out_of_sample(fold, ledger)
        run.append_trades(fold, trades(ledger, columns[0]))
        (run.fold_path(fold) / "metrics.jsonl").write_text("".join(_training_lines(generator)))
        start = fold * test_bars
        bars_of = {
            "train": [start, start + 2000],
            "validation": [start + 2002, start + 2500],
            "test": [start + 2502, start + 2502 + test_bars],
        }
        # The bars before the first test are not made: as many days before it as they would take.
        times = {
            role: utc_cells(time[0] + BAR * (np.array([first, stop - 1]) - 2502))
            for role, (first, stop) in bars_of.items()
        }
        run.record_fold(
            FoldRecord(
                fold,
                "done",
                bars=bars_of,
                timesteps=int(100_000 * 0.95**fold),
                seconds={"data": 0.1, "rollout": 1.2, "update": 1.9, "validation": 0.2, "test": 0.1},
                scores={"validation/score": float(generator.normal(0.01, 0.02))},
                stop_reason=stop_reason,
                details={"times": times, "screen": SCREEN} | (_warm_start(fold - 1) if fold else {}),
            )
        )
    summary = {
        "optimization_completed": True,
        "total_speedup_achieved": 3.4,
        "total_timesteps_saved": 161_000,
        "early_stops": 2,
        "warm_starts": folds - 1,
        "avg_iteration_time_minutes": 0.06,
        "estimated_time_saved_hours": 0.1,
    }
    run.file("optimization_summary.json").write_text(json.dumps(summary))
    run.update_run(status="done")
    return run.path


def _warm_start(fold: int) -> dict[str, Any]:
    return {"warm_start": {"fold": fold}, "optimisations": {"warm_start": {"fold": fold}}}


def _training_lines(generator: np.random.Generator) -> list[str]:
    lines = []
    level = generator.normal(0, 0.1)
    for step in range(40):
        share = step / 40
        noise = generator.normal(0, 0.02, 6)
        lines.append(
            json.dumps(
                {
                    "train/entropy": 1.1 * (1 - 0.7 * share) + noise[0],
                    "train/approx_kl": 0.01 * (1 - share) + abs(noise[1]) / 10,
                    "train/explained_variance": 0.5 * share + noise[2],
                    "train/turnover_per_bar": 0.1 * (1 - share) + abs(noise[3]),
                    "train/exposure": 0.4 + 0.3 * share + level + noise[4],
                    "validation/score": 0.02 * share + level / 5 + noise[5],
                    "time/steps_per_s": 60_000 + 1e5 * noise[0],
                    "time/timesteps": 2500.0 * (step + 1),
                }
            )
            + "\n"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="results directory to write into")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--test_bars", type=int, default=500)
    parser.add_argument("--skill", type=float, default=0.0)
    arguments = parser.parse_args()
    print(make_run(**vars(arguments)))


if __name__ == "__main__":
    main()
