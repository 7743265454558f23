"""Several seeds of one walk-forward as one result: RESULTS/pooled.json, a table, a section of the page. No torch.

Never the best seed: the interquartile mean over all seeds and folds, with an interval from a bootstrap that resamples
seeds within each fold (Agarwal et al. 2021, arXiv:2108.13264). That interval says how much the seed matters; the
market's own luck is the same for every seed, and stands in the evidence of each run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from lit_ppo.oracles.optima import fraction_of_optimum
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.scoring.significance import interquartile_mean, interquartile_mean_interval
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import json_bytes
from lit_ppo.store.results import Run, RunFolder, load_run
from lit_ppo.store.schema import Count, read_json

FILE_NAME = "pooled.json"
SCHEMA = 1
CONFIDENCE = 0.95
# Figures of a fold that are pooled: key -> (label, digits).
POOLED = {
    "return_pct": ("Return of a fold, %", 3),
    "sharpe_annual": ("Annual Sharpe ratio of a fold", 2),
    "max_drawdown_pct": ("Maximum drawdown of a fold, %", 3),
    "of_optimum_pct": ("Share of the optimum, %", 1),
}
STITCHED = ("return_pct", "sharpe_annual", "max_drawdown_pct", "turnover_per_bar", "cost_pct")


class Estimate(TypedDict):
    """An interquartile mean and its interval; one seed has none."""

    estimate: float
    low: float | None
    high: float | None


class _Seed(TypedDict):
    seed: Count
    out_of_sample_sha256: str
    return_pct: float
    sharpe_annual: float | None
    max_drawdown_pct: float
    cost_pct: float
    trades: Count


class Seed(_Seed, total=False):
    """One seed's stitched figures."""

    of_optimum_pct: float


class _Means(TypedDict):
    sharpe_annual: Estimate


class Means(_Means, total=False):
    """Interquartile means, by the keys of `POOLED`."""

    return_pct: Estimate
    max_drawdown_pct: Estimate
    of_optimum_pct: Estimate


class Pooled(TypedDict):
    """pooled.json."""

    pooled: list[Count]
    failed: dict[str, str]
    folds: Count
    by_seed: list[Seed]
    interquartile_mean: Means


def pool(root: str | Path, seeds: Sequence[int], failed: Mapping[int, str]) -> dict[str, Any]:
    """Pool the runs `root`/<seed>, write `root`/pooled.json, and count all seeds as trials in every run.json.

    Args:
        root: the results directory.
        seeds: that were asked for.
        failed: why a seed has no result, by seed; these are left out, and counted.

    Returns:
        What pooled.json holds.

    Raises:
        ValueError: no seed has a result, or their folds differ.
    """
    root = Path(root)
    runs = {seed: load_run(root / str(seed)) for seed in seeds if seed not in failed}
    if not runs:
        raise ValueError(f"None of the seeds {list(seeds)} has a result in {root}, so there is nothing to pool")
    tables = {seed: _by_fold(run) for seed, run in runs.items()}
    folds = {seed: sorted(table) for seed, table in tables.items()}
    first = next(iter(folds))
    for seed, found in folds.items():
        if found != folds[first]:
            raise ValueError(
                f"Seed {seed} has {len(found)} finished folds and seed {first} has {len(folds[first])}: they cannot be "
                "pooled. Resume all of them with the same data.fold_limit"
            )
    trials = sum(record.trials for run in runs.values() for record in run.folds)
    record = {
        "schema": SCHEMA,
        "seeds": list(seeds),
        "pooled": list(runs),
        "failed": {str(seed): why for seed, why in failed.items()},
        "folds": len(folds[first]),
        "trials": trials,
        "by_seed": [_of_seed(seed, run, tables[seed]) for seed, run in runs.items()],
        "interquartile_mean": {
            key: _mean([[table[fold][key] for fold in folds[first]] for table in tables.values()])
            for key in POOLED
            if all(key in row for table in tables.values() for row in table.values())
        },
        "confidence": CONFIDENCE,
    }
    atomic_write(root / FILE_NAME, json_bytes(record))
    for seed, run in runs.items():
        if run.record.get("seeds") != list(seeds):  # a later call has added seeds
            RunFolder(root, seed).update_run(seeds=list(seeds))
    return record


def read_pooled(run: Run) -> dict[str, Any] | None:
    """pooled.json beside a run, if the run is in it as it lies there now."""
    path = run.path.parent / FILE_NAME
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path, Pooled, "Delete it, or run walk-forward --seeds again")
    own = next((row for row in record["by_seed"] if row["seed"] == run.record.get("seed")), None)
    return record if own is not None and own["out_of_sample_sha256"] == _hash(run) else None


def pooled_text(record: Mapping[str, Any]) -> str:
    """What the seeds say together, in one paragraph of plain words."""
    sharpe, count = record["interquartile_mean"]["sharpe_annual"], len(record["pooled"])
    words = f"{count} seed{'s' * (count > 1)}, {record['folds']} fold{'s' * (record['folds'] > 1)}: "
    words += f"the interquartile mean of a fold's annual Sharpe ratio is {sharpe['estimate']:+.2f}"
    if not any(row["trades"] for row in record["by_seed"]):
        words += ": no seed traded."
    elif sharpe["low"] is None:
        words += "; an interval needs two seeds."
    else:
        words += f" ({100 * CONFIDENCE:.0f} % interval {sharpe['low']:+.2f} to {sharpe['high']:+.2f}). "
        if sharpe["low"] > 0:
            words += "The seeds agree that it is above 0."
        elif sharpe["high"] < 0:
            words += "The seeds agree that it is below 0."
        else:
            words += "The seeds do not agree that it differs from 0."
        words += " This says how much the seed matters; the market's luck is the same for all of them."
    if record["failed"]:
        words += f" Left out, because they failed: seed {', '.join(record['failed'])}."
    return words.replace("-", "−")


def _by_fold(run: Run) -> dict[int, dict[str, float]]:
    """Figures of every finished fold; a fold that never traded has no Sharpe ratio, and earned nothing."""
    table: dict[int, dict[str, float]] = {}
    for record in run.folds:
        if record.status != "done":
            continue
        figures = {key: float(record.scores.get(f"test/{key}") or 0.0) for key in POOLED if key != "of_optimum_pct"}
        net = run.out_of_sample.loc[run.out_of_sample["fold"] == record.index, "net_return"].to_numpy(np.float64)
        table[record.index] = figures | _of_optimum(run, net)
    return table


def _of_optimum(run: Run, net: np.ndarray) -> dict[str, float]:
    oracle = run.record.get("oracle")
    if not oracle or not oracle["optimum_per_bar"] > 0:
        return {}
    return {"of_optimum_pct": 100 * fraction_of_optimum(float(net.mean()), oracle["optimum_per_bar"], oracle["scale"])}


def _of_seed(seed: int, run: Run, table: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """One seed's stitched figures."""
    rows = run.out_of_sample
    net, position, cost = (rows[name].to_numpy(np.float64) for name in ("net_return", "position", "cost"))
    figures = trading_metrics(net, position, run.bars_per_year, costs=cost)
    return {
        "seed": seed,
        "out_of_sample_sha256": _hash(run),
        **{name: figures[name] for name in STITCHED},
        "trades": len(run.trades),
        **_of_optimum(run, net),
        "timesteps": sum(record.timesteps for record in run.folds),
        "trials": sum(record.trials for record in run.folds),
    }


def _mean(scores: list[list[float]]) -> dict[str, float | None]:
    """[seeds, folds] -> interquartile mean and its interval; one seed has none."""
    if len(scores) < 2:
        return {"estimate": interquartile_mean(scores), "low": None, "high": None}
    found = interquartile_mean_interval(scores, confidence=CONFIDENCE)
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def _hash(run: Run) -> str:
    return hashlib.sha256((run.path / "out_of_sample.csv").read_bytes()).hexdigest()
