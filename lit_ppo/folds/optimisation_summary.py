"""What the optimisations of a run did, cost and saved: optimization_summary.json and training_state.json.

The names of the old script's keys are kept; their values are measured. Two figures are told apart:

    did_less   planned timesteps / visited timesteps of the same folds
    speed-up   (seconds + seconds saved) / seconds, against the same recipe without its optimisations on this machine:
               timesteps saved at this run's own pace, plus what each optimisation says it saved, minus what it cost

A speed-up against another recipe is `lit-ppo benchmark`'s affair. No torch is imported to read or write the files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import json_bytes
from lit_ppo.store.results import NOT_TRAINED, FoldRecord, RunFolder
from lit_ppo.store.schema import Count, Seconds

SUMMARY, STATE = "optimization_summary.json", "training_state.json"
BASELINE = "the same recipe without its optimisations, at this run's measured pace"
COUNTED = ("early_stops", "warm_starts", "evaluations_left_out")  # keys of the old script, there without any too
LEFT_OUT = 3  # exit code: done, but an optimisation failed in some fold and was left out


class Measured(TypedDict, total=False):
    """`measured` of the summary, over its finished folds."""

    folds: Count
    seconds: Seconds
    timesteps_planned: Count
    timesteps: Count
    steps_per_s: float | None


class Failure(TypedDict):
    """An optimisation that failed in a fold and was left out."""

    fold: int
    optimisation: str
    reason: str


class Summary(TypedDict, total=False):
    """What of optimization_summary.json is shown; the rest is for other programs."""

    total_speedup_achieved: float | None
    speedup_baseline: str
    did_less: float | None
    early_stops: Count
    warm_starts: Count
    evaluations_left_out: Count
    estimated_time_saved_hours: float
    measured: Measured
    failed: list[Failure]
    cache: dict[str, Any]


def note_fold(record: FoldRecord, module: Any, seen: Sequence[int]) -> None:
    """Put into the ledger what a fold's optimisations did.

    Args:
        record: of the fold.
        module: its `LitPPO`, after `fit`.
        seen: [start, stop) bars that training and selection have read.
    """
    steps = module.recipe.steps_per_iteration
    budget = (
        module.recipe.total_timesteps
        if module.learner is None
        else module.learner.within_passes(module.recipe.total_timesteps)
    )
    record.details |= {
        "planned_timesteps": math.ceil(budget / steps) * steps,
        "visited_timesteps": module.timesteps,
        "seen": list(seen),
        "optimisations": {name: dict(entry) for name, entry in module.notes.optimisations.items()},
        **module.notes.details,
    }


def bars_seen(row_accesses: Mapping[str, Sequence[int]]) -> list[int]:
    """[start, stop) of everything that was read for a fold but its test bars, prices of its last rewards included."""
    read = [rows for role, rows in row_accesses.items() if not role.startswith("test")]
    return [min(rows[0] for rows in read), max(rows[1] for rows in read)]


def summarise(folds: Sequence[FoldRecord], num_folds: int, cache: Mapping[str, Any]) -> dict[str, Any]:
    """Return what optimization_summary.json holds.

    Args:
        folds: the ledger.
        num_folds: folds of the whole run.
        cache: `get_optimization_info()` of the datamodule.
    """
    done = [record for record in folds if record.status == "done"]
    rows = [_fold(record) for record in done]
    seconds = sum(row["seconds"] for row in rows)
    saved = sum(row["seconds_saved"] for row in rows)
    planned, visited = (sum(row[name] for row in rows) for name in ("timesteps_planned", "timesteps"))
    completed = len(done) == num_folds
    return {
        "optimization_completed": completed,
        "total_speedup_achieved": (seconds + saved) / seconds if seconds else None,
        "speedup_baseline": BASELINE,
        "did_less": planned / visited if visited else None,
        "total_timesteps_saved": planned - visited,
        **_counts(rows),
        "avg_iteration_time_minutes": seconds / 60 / len(rows) if rows else None,
        "estimated_time_saved_hours": saved / 3600,
        "completion_timestamp": datetime.now(UTC).isoformat(timespec="seconds") if completed else None,
        "measured": {
            "folds": len(done),
            "seconds": seconds,
            "timesteps_planned": planned,
            "timesteps": visited,
            "steps_per_s": visited / seconds if seconds else None,
        },
        "failed": _failures(rows),
        "cache": dict(cache),
        "folds": rows,
    }


def _fold(record: FoldRecord) -> dict[str, Any]:
    details, optimisations = record.details, record.details.get("optimisations", {})
    visited = details.get("visited_timesteps", record.timesteps)
    # A fold that sees nothing has nothing to train: what it left out is no saving.
    planned = visited if record.stop_reason == NOT_TRAINED else details.get("planned_timesteps", visited)
    training = sum(record.seconds.get(stage, 0.0) for stage in ("fit", "candidates"))
    pace = training / record.timesteps if record.timesteps else 0.0  # seconds a timestep
    own = sum(entry.get("seconds_saved", 0.0) - entry.get("cost_seconds", 0.0) for entry in optimisations.values())
    return {
        "fold": record.index,
        "timesteps_planned": planned,
        "timesteps": visited,
        "timesteps_saved": planned - visited,
        "seconds": sum(record.seconds.values()),
        "seconds_saved": (planned - visited) * pace + own,
        "stop_reason": record.stop_reason,
        "optimisations": optimisations,
    }


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What the optimisations counted, over all folds."""
    total = Counter(dict.fromkeys(COUNTED, 0))
    for row in rows:
        for entry in row["optimisations"].values():
            total.update(entry.get("counts", {}))
    return dict(total)


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"fold": row["fold"], "optimisation": name, "reason": entry["failed"]}
        for row in rows
        for name, entry in row["optimisations"].items()
        if "failed" in entry
    ]


def write_summary(folder: RunFolder, num_folds: int, cache: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files from the ledger; returns the summary."""
    ledger = folder.folds()
    summary = summarise(ledger, num_folds, cache)
    last = ledger[-1] if ledger else None
    state = {
        "status": "done" if summary["optimization_completed"] else "running",
        "seed": folder.seed,
        "completed_iterations": summary["measured"]["folds"],
        "total_iterations": num_folds,
        "last_iteration": None if last is None else last.index,
        "last_scores": {} if last is None else last.scores,
        "total_timesteps": summary["measured"]["timesteps"],
        "total_timesteps_saved": summary["total_timesteps_saved"],
        "training_seconds": summary["measured"]["seconds"],
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic_write(folder.file(SUMMARY), json_bytes(summary))
    atomic_write(folder.file(STATE), json_bytes(state))
    return summary


def work_in_words(did_less: float | None) -> str:
    """How much work was done: "2x less work", "as much work", "2.5x more work"; a ratio below 1 is no "less"."""
    if did_less is None or not math.isfinite(did_less) or did_less <= 0:
        return "work not comparable"
    if abs(did_less - 1) < 0.05:
        return "as much work"
    return f"{times(did_less)} less work" if did_less > 1 else f"{times(1 / did_less)} more work"


def pace_in_words(did_it_faster: float | None) -> str:
    """How fast it was done: "3x faster", "as fast", "2x slower"."""
    if did_it_faster is None or not math.isfinite(did_it_faster) or did_it_faster <= 0:
        return "pace not comparable"
    if abs(did_it_faster - 1) < 0.05:
        return "as fast"
    return f"{times(did_it_faster)} faster" if did_it_faster > 1 else f"{times(1 / did_it_faster)} slower"


def times(value: float) -> str:
    """A ratio as text: 13.9x."""
    return "n/a" if not math.isfinite(value) else f"{value:.3g}x" if value < 100 else f"{value:,.0f}x"


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """What the table at the end says about optimisations; nothing where there were none, or nothing was trained."""
    if not any(row["optimisations"] for row in summary["folds"]):
        return []
    measured, counts = summary["measured"], _counts(summary["folds"])
    counted = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    line = (
        f"Optimisations: {measured['timesteps']:,} of {measured['timesteps_planned']:,} timesteps "
        f"({work_in_words(summary['did_less'])}), {counted}; "
        f"{pace_in_words(summary['total_speedup_achieved'])}, against {summary['speedup_baseline']} (estimated)."
    )
    lines = [line] if measured["timesteps"] else []
    for name in dict.fromkeys(failure["optimisation"] for failure in summary["failed"]):
        found = [failure for failure in summary["failed"] if failure["optimisation"] == name]
        folds = ", ".join(str(failure["fold"]) for failure in found)
        lines.append(f"LEFT OUT after an error: {name} in fold {folds} ({found[0]['reason']}).")
    return lines


def exit_code(summary: Mapping[str, Any]) -> int:
    """0, or `LEFT_OUT`."""
    return LEFT_OUT if summary["failed"] else 0
