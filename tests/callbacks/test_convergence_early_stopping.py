"""Convergence early stopping puts the best weights back and leaves a record; the rule itself is in test_callbacks."""

from __future__ import annotations

import json
import math

import torch

from callbacks import ConvergenceEarlyStopping, MetricsLog, TrainingCheckpoint, ValidationSelection
from lit_ppo.scoring.evaluation import evaluate
from tests.callbacks.test_callbacks import validated
from tests.integration.shells import fitted, same, small_data, weights

LEARNS = {"hold_bias": 0.0, "total_timesteps": 640}


def stopping() -> ConvergenceEarlyStopping:
    return ConvergenceEarlyStopping(3, convergence_threshold=1e9, min_progress=0.0, wait_for_change=False)


def test_an_early_stopped_training_ends_with_its_best_weights(tmp_path):
    module = fitted(tmp_path, [stopping(), MetricsLog()], **LEARNS)
    scores = [json.loads(line)["validation/score"] for line in (tmp_path / "metrics.jsonl").open()]
    assert len(scores) == 4
    best = max(range(4), key=lambda k: (scores[k], k))
    assert module.notes.selection == {"score": scores[best], "timesteps": 64 * (best + 1)}
    assert math.isclose(evaluate(module.policy, small_data().fold_data(0).validation).score, scores[best])


def test_a_score_that_has_never_moved_is_no_convergence():
    scores = (0.0, 0.0, 0.0, 0.0, 0.2, 0.2, 0.2)

    def stops(wait_for_change: bool) -> list[bool]:
        callback = ConvergenceEarlyStopping(2, smoothing=0.0, min_progress=0.0, wait_for_change=wait_for_change)
        return [validated(callback, score).should_stop for score in scores]

    assert stops(False) == [False, False, True, True, False, False, True]
    assert stops(True) == [False, False, False, False, False, False, True]


def test_the_record_says_why_with_the_history(tmp_path):
    record = fitted(tmp_path, [stopping()], **LEARNS).notes.optimisations["convergence_early_stopping"]
    assert record["stopped"]
    assert record["did"].startswith("early stopping: validation/score within")
    assert record["timesteps_saved"] == 640 - 256
    assert len(record["history"]) == 4


def test_a_training_that_is_not_stopped_keeps_its_last_weights(tmp_path):
    patient = ConvergenceEarlyStopping(patience=99)
    module = fitted(tmp_path / "a", [patient], **LEARNS)
    assert same(weights(module), weights(fitted(tmp_path / "b", **LEARNS)))
    assert module.notes.optimisations["convergence_early_stopping"]["did"] == "never stopped"
    assert module.notes.selection == {}


def test_a_selecting_callback_has_the_say_in_either_order(tmp_path):
    chosen = [
        fitted(tmp_path / name, callbacks, **LEARNS)
        for name, callbacks in (
            ("a", [ValidationSelection(min_progress=0.3), stopping()]),
            ("b", [stopping(), ValidationSelection(min_progress=0.3)]),
        )
    ]
    assert chosen[0].notes.selection == chosen[1].notes.selection
    assert same(*map(weights, chosen))


def test_a_stop_that_is_resumed_gives_the_same_weights_and_record(tmp_path):
    def callbacks():
        return [stopping(), TrainingCheckpoint(None, 1)]

    whole = fitted(tmp_path / "whole", callbacks(), **LEARNS)
    fitted(tmp_path / "cut", callbacks(), trainer_settings={"max_epochs": 2}, **LEARNS)
    resumed = fitted(tmp_path / "cut", callbacks(), ckpt_path=tmp_path / "cut", **LEARNS)
    finished = fitted(tmp_path / "cut", callbacks(), ckpt_path=tmp_path / "cut", **LEARNS)
    for module in (resumed, finished):
        assert same(weights(whole), weights(module))
        assert whole.notes.optimisations == module.notes.optimisations
    assert all(torch.isfinite(value).all() for value in weights(whole).values())
