"""When validation happens: often early and after change, rarely on a plateau, never to the training's harm."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import EvaluationSchedule, MetricsLog, TrainingCheckpoint, ValidationSelection
from lit_ppo.trainee import TrainingNotes
from tests.integration.shells import fitted, same, weights


def validated_after(callback: EvaluationSchedule, scores: list[float], steps: int = 100) -> list[int]:
    """Iterations that validation followed, when iteration k (from 1) would score scores[k - 1]."""
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn=TrainerFn.FITTING), callback_metrics={}, current_epoch=0
    )
    learner = SimpleNamespace(ent_coef=0.0, clip_coef=0.2, update_epochs=4)
    module = SimpleNamespace(total_timesteps=steps * len(scores), notes=TrainingNotes(), learner=learner)
    followed = []
    for epoch, score in enumerate(scores):
        module.iteration, module.timesteps, module.progress = epoch, epoch * steps, epoch / len(scores)
        trainer.current_epoch = epoch
        callback.on_train_batch_start(trainer, module, None, 0)
        module.iteration, module.timesteps = epoch + 1, (epoch + 1) * steps
        if (epoch + 1) % trainer.check_val_every_n_epoch == 0:
            followed.append(epoch + 1)
            trainer.callback_metrics = {"validation/score": torch.tensor(score)}
            callback.on_validation_start(trainer, module)
            callback.on_validation_end(trainer, module)
        callback.on_train_epoch_end(trainer, module)
    return followed


def test_on_a_plateau_the_distance_doubles_up_to_the_longest_and_the_last_iteration_counts():
    schedule = EvaluationSchedule(longest=400, early_share=0.0, change=0.01)
    assert validated_after(schedule, [0.5] * 20) == [1, 2, 3, 5, 9, 13, 17, 20]
    assert (schedule.validations, schedule.skipped) == (8, 12)


def test_while_the_score_moves_every_iteration_is_validated():
    scores = [0.1 * k for k in range(12)]
    assert validated_after(EvaluationSchedule(longest=400, early_share=0.0), scores) == list(range(1, 13))


def test_after_a_change_it_is_often_again():
    scores = [0.5] * 6 + [0.9] * 9
    assert validated_after(EvaluationSchedule(longest=400, early_share=0.0), scores) == [1, 2, 3, 5, 9, 10, 11, 13, 15]


def test_early_every_iteration_is_validated():
    followed = validated_after(EvaluationSchedule(longest=1000, early_share=0.5), [0.5] * 20)
    assert followed[:10] == list(range(1, 11))
    assert len(followed) < 20


def test_a_score_that_is_no_number_is_no_plateau():
    assert validated_after(EvaluationSchedule(early_share=0.0), [float("nan")] * 5) == [1, 2, 3, 4, 5]


def validations(directory) -> list[bool]:
    return ["validation/score" in json.loads(line) for line in (directory / "metrics.jsonl").open()]


def test_the_training_is_the_same_with_and_without(tmp_path):
    schedule = EvaluationSchedule(early_share=0.0, change=1e9)
    scheduled = fitted(tmp_path / "a", [schedule, MetricsLog()], total_timesteps=640)
    every = fitted(tmp_path / "b", [MetricsLog()], total_timesteps=640)
    assert same(weights(scheduled), weights(every))
    assert validations(tmp_path / "a") == [True, True, True, False, True, False, False, False, True, True]
    assert validations(tmp_path / "b") == [True] * 10
    record = scheduled.notes.optimisations["evaluation_schedule"]
    assert (record["validations"], record["skipped"]) == (6, 4)
    assert every.notes.optimisations == {}


def test_a_changed_coefficient_is_looked_at_at_once(tmp_path):
    from callbacks import Phase, ProgressiveHyperparameters

    phases = ProgressiveHyperparameters([Phase("a", 0.35), Phase("b", 1.0, ent_coef=2.0)])
    schedule = EvaluationSchedule(early_share=0.0, change=1e9)
    fitted(tmp_path, [schedule, phases, MetricsLog()], total_timesteps=640)
    assert validations(tmp_path)[:5] == [True, True, True, False, True]


def test_a_resumed_schedule_goes_on_where_it_was(tmp_path):
    def callbacks():
        schedule = EvaluationSchedule(early_share=0.0, change=1e9)
        return [ValidationSelection(), schedule, MetricsLog(), TrainingCheckpoint(None, 1)]

    whole = fitted(tmp_path / "whole", callbacks(), total_timesteps=640)
    for stop in (4, 6):
        path = tmp_path / f"cut-{stop}"
        fitted(path, callbacks(), total_timesteps=640, trainer_settings={"max_epochs": stop})
        resumed = fitted(path, callbacks(), total_timesteps=640, ckpt_path=path)
        assert same(weights(whole), weights(resumed))
        assert (path / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
        assert resumed.notes.optimisations["evaluation_schedule"]["skipped"] == 4


def test_values_out_of_range_are_refused():
    for wrong in ({"longest": 0}, {"early_share": 2.0}, {"change": -1.0}):
        with pytest.raises(ValueError, match="EvaluationSchedule needs"):
            EvaluationSchedule(**wrong)
