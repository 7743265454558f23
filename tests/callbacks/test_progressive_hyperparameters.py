"""Phases: what they set, that it takes effect and is logged, resume, off-switch."""

from __future__ import annotations

import json

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import MetricsLog, Phase, ProgressiveHyperparameters, TrainingCheckpoint
from callbacks.progressive_hyperparameters import PHASES
from tests.integration.shells import fitted, same, weights

TWO = [Phase("first", 0.5, ent_coef=3.0, update_epochs=2.0), Phase("last", 1.0, learning_rate=0.5, clip_coef=0.25)]


def lines(directory) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").open()]


def test_each_phase_sets_its_coefficients_from_its_first_iteration_on(tmp_path):
    fitted(tmp_path / "plain", [MetricsLog()], final_learning_rate=1e-2)
    module = fitted(tmp_path / "phases", [ProgressiveHyperparameters(TWO), MetricsLog()], final_learning_rate=1e-2)
    plain, phases = lines(tmp_path / "plain"), lines(tmp_path / "phases")

    def factors(name: str) -> list[float]:
        return [phase[name] / base[name] for phase, base in zip(phases, plain, strict=True)]

    assert factors("train/ent_coef") == pytest.approx([3, 3, 1, 1])
    assert factors("train/epochs") == pytest.approx([2, 2, 1, 1])
    assert factors("train/clip_coef") == pytest.approx([1, 1, 0.25, 0.25])
    assert factors("train/learning_rate") == pytest.approx([1, 1, 0.5, 0.5])
    assert module.notes.optimisations["progressive_hyperparameters"]["phases"] == {"first": 0, "last": 128}
    assert module.notes.optimisations["progressive_hyperparameters"]["epochs_saved"] == -4


@pytest.mark.parametrize("name", ["learning_rate", "ent_coef", "clip_coef", "update_epochs"])
def test_every_coefficient_of_a_phase_changes_what_is_learnt(tmp_path, name):
    factor = {"clip_coef": 1e-4, "ent_coef": 20.0}.get(name, 2.0)
    changed = fitted(tmp_path, [ProgressiveHyperparameters([Phase("only", 1.0, **{name: factor})])])
    assert not same(weights(fitted(tmp_path)), weights(changed))


def test_deleted_or_with_factors_of_one_nothing_changes(tmp_path):
    assert same(weights(fitted(tmp_path)), weights(fitted(tmp_path, [ProgressiveHyperparameters([Phase("all", 1.0)])])))


def test_the_change_is_in_tensorboard(tmp_path):
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    fitted(tmp_path, [ProgressiveHyperparameters(TWO)], trainer_settings={"logger": logger})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("train/ent_coef", "train/clip_coef", "train/epochs", "train/learning_rate"):
        values = [event.value for event in events.Scalars(name)]
        assert len(values) == 4
        assert values[0] != values[-1]


def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path):
    def callbacks():
        return [ProgressiveHyperparameters(TWO), TrainingCheckpoint(None, 1)]

    whole = fitted(tmp_path / "whole", callbacks())
    fitted(tmp_path / "cut", callbacks(), trainer_settings={"max_epochs": 1})
    resumed = fitted(tmp_path / "cut", callbacks(), ckpt_path=tmp_path / "cut")
    assert same(weights(whole), weights(resumed))
    one, other = (module.notes.optimisations["progressive_hyperparameters"] for module in (whole, resumed))
    assert one["phases"] == other["phases"]
    assert one["epochs_saved"] == other["epochs_saved"]


def test_the_default_phases_explore_balance_and_fine_tune():
    callback = ProgressiveHyperparameters()
    assert [callback.phase(progress).name for progress in (0.0, 0.29, 0.3, 0.7, 1.0)] == [
        *("explore", "explore", "balance"),
        *("fine-tune", "fine-tune"),
    ]
    assert callback.phases == list(PHASES)


def test_phases_that_do_not_rise_to_one_are_refused():
    for ends in ([], [0.5], [0.5, 0.5, 1.0], [0.7, 0.3]):
        with pytest.raises(ValueError, match="rising shares"):
            ProgressiveHyperparameters([Phase(str(end), end) for end in ends])
    for wrong in ({"until": 0.0}, {"until": 1.1}, {"learning_rate": 0.0}, {"ent_coef": -1.0}):
        with pytest.raises(ValueError, match="Phase 'x' needs"):
            Phase("x", **{"until": 1.0, **wrong})
