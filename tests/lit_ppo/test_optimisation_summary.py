"""The old script's files, from the ledger: what was measured, what is estimated, what is told apart."""

from __future__ import annotations

import json

import pytest

from lit_ppo.folds.optimisation_summary import bars_seen, exit_code, summarise, summary_lines, write_summary
from lit_ppo.store.results import NOT_TRAINED, FoldRecord, RunFolder

OLD_KEYS = {"optimization_completed", "total_speedup_achieved", "total_timesteps_saved", "early_stops", "warm_starts"}
OLD_KEYS |= {"avg_iteration_time_minutes", "estimated_time_saved_hours", "completion_timestamp", "measured"}


def fold(index: int, planned: int, visited: int, seconds: float, **optimisations) -> FoldRecord:
    details = {"planned_timesteps": planned, "visited_timesteps": visited, "optimisations": optimisations}
    return FoldRecord(index, "done", timesteps=visited, seconds={"fit": seconds, "test": 1.0}, details=details)


FOLDS = [
    fold(0, 1000, 1000, 9.0, warm_start={"did": "new weights", "cost_seconds": 0.5}),
    fold(
        *(1, 1000, 400, 4.0),
        warm_start={"did": "weights of fold 0", "fold": 0, "cost_seconds": 0.5, "counts": {"warm_starts": 1}},
        convergence_early_stopping={"did": "early stopping", "stopped": True, "counts": {"early_stops": 1}},
        evaluation_schedule={"did": "x", "seconds_saved": 2.0, "counts": {"evaluations_left_out": 7, "own": 2}},
    ),
]


def test_every_key_of_the_old_summary_is_there_with_measured_values():
    summary = summarise(FOLDS, 2, {"hits": 1})
    assert summary.keys() >= OLD_KEYS
    assert summary["optimization_completed"] is True
    assert summary["total_timesteps_saved"] == 600
    assert (summary["early_stops"], summary["warm_starts"], summary["evaluations_left_out"]) == (1, 1, 7)
    assert summary["own"] == 2  # of a callback that nobody here knows
    assert "1 early stops, 1 warm starts, 7 evaluations left out, 2 own; " in summary_lines(summary)[0]
    assert summary["avg_iteration_time_minutes"] == pytest.approx(15 / 60 / 2)
    saved = 600 * 4.0 / 400 + 2.0 - 0.5 - 0.5  # at the pace of the fold, plus what was said, minus costs
    assert summary["estimated_time_saved_hours"] == pytest.approx(saved / 3600)
    assert summary["total_speedup_achieved"] == pytest.approx((15 + saved) / 15)
    assert summary["did_less"] == pytest.approx(2000 / 1400)
    assert summary["completion_timestamp"]
    assert summary["cache"] == {"hits": 1}


def test_every_fold_says_what_each_optimisation_did_cost_and_saved():
    rows = summarise(FOLDS, 2, {})["folds"]
    assert [row["fold"] for row in rows] == [0, 1]
    assert rows[1]["timesteps_saved"] == 600
    assert rows[1]["optimisations"]["warm_start"]["cost_seconds"] == 0.5
    assert rows[0]["seconds_saved"] == pytest.approx(-0.5)


def test_an_unfinished_run_claims_nothing():
    summary = summarise([FOLDS[0], FoldRecord(1)], 2, {})
    assert summary["optimization_completed"] is False
    assert summary["completion_timestamp"] is None
    empty = summarise([], 2, {})
    assert empty["total_speedup_achieved"] is None
    assert empty["avg_iteration_time_minutes"] is None


def test_a_fold_that_saw_nothing_saved_nothing():
    blind = fold(0, 1000, 0, 0.1)
    blind.stop_reason = NOT_TRAINED
    summary = summarise([blind, FOLDS[1]], 2, {})
    assert (summary["total_timesteps_saved"], summary["measured"]["timesteps_planned"]) == (600, 1000)
    assert summarise([blind], 1, {})["did_less"] is None
    blind.details["optimisations"] = {"warm_start": {}}
    assert summary_lines(summarise([blind], 1, {})) == []  # nothing was done, so not "as fast" either


def test_a_run_without_optimisations_saved_nothing_and_says_nothing():
    summary = summarise([fold(0, 1000, 1000, 9.0)], 1, {})
    assert summary["total_speedup_achieved"] == 1.0
    assert summary["total_timesteps_saved"] == 0
    assert summary_lines(summary) == []
    assert exit_code(summary) == 0


def test_failures_are_listed_told_and_decide_the_exit_code():
    summary = summarise([fold(k, 10, 10, 1.0, warm_start={"failed": "OSError: gone"}) for k in (0, 1)], 2, {})
    assert [entry["fold"] for entry in summary["failed"]] == [0, 1]
    assert summary_lines(summary)[-1] == "LEFT OUT after an error: warm_start in fold 0, 1 (OSError: gone)."
    assert exit_code(summary) == 3


def test_both_files_are_written(tmp_path):
    folder = RunFolder(tmp_path, 3)
    for record in FOLDS:
        folder.record_fold(record)
    write_summary(folder, 2, {})
    assert json.loads((folder.path / "optimization_summary.json").read_text())["total_timesteps_saved"] == 600
    state = json.loads((folder.path / "training_state.json").read_text())
    assert (state["status"], state["completed_iterations"], state["total_iterations"]) == ("done", 2, 2)
    assert state["last_iteration"] == 1


def test_bars_seen_are_all_but_the_test_bars():
    rows = {
        "train": (10, 50),
        "validation": (52, 60),
        "validation_fills": (53, 62),
        "test": (64, 70),
        "test_fills": (65, 72),
    }
    assert bars_seen(rows) == [10, 62]
