"""Each callback: what it does, that it is off when deleted, that it resumes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import ConvergenceEarlyStopping, MetricsLog, RunProgress, TrainingCheckpoint, ValidationSelection
from lit_ppo.scoring.evaluation import evaluate
from lit_ppo.store.checkpoints import CheckpointStore, load_checkpoint
from lit_ppo.trainee import TrainingNotes
from tests.integration.shells import fitted, same, small_data, weights


def validated(callback: pl.Callback, score: float, progress: float = 1.0, policy=None) -> SimpleNamespace:
    """Call `on_validation_end` with a score; returns the trainer."""
    trainer = SimpleNamespace(
        sanity_checking=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        callback_metrics={"validation/score": torch.tensor(score)},
        should_stop=False,
    )
    policy = policy or torch.nn.Linear(1, 1)
    module = SimpleNamespace(
        progress=progress, timesteps=int(100 * progress), policy=policy, notes=TrainingNotes(), validation={}
    )
    callback.on_validation_end(trainer, module)
    trainer.reason = module.notes.stop_reason
    return trainer


# ValidationSelection


def test_selection_puts_the_best_weights_back_and_deleting_it_leaves_the_last(tmp_path):
    restless = {"hold_bias": -2.0, "learning_rate": 0.1, "screen_features": False, "total_timesteps": 512, "seed": 8}
    chosen = fitted(tmp_path / "a", [ValidationSelection(), MetricsLog()], **restless)
    last = fitted(tmp_path / "b", [], **restless)
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").open()]
    assert chosen.notes.selection["score"] == pytest.approx(max(line["validation/score"] for line in lines), rel=1e-6)
    assert evaluate(chosen.policy, small_data().fold_data(0).validation).score == pytest.approx(
        chosen.notes.selection["score"]
    )
    assert chosen.notes.selection["timesteps"] < 512
    assert last.notes.selection == {}
    assert not same(weights(chosen), weights(last))


def test_a_score_that_is_no_number_is_never_best_and_of_equals_the_later_wins():
    selection, policy = ValidationSelection(), torch.nn.Linear(1, 1)
    for score, progress in ((math.nan, 0.1), (0.0, 0.2), (0.0, 0.3), (-1.0, 0.4), (math.nan, 0.5)):
        validated(selection, score, progress, policy)
    assert (selection.score, selection.timesteps) == (0.0, 30)


def test_selection_waits_for_min_progress():
    selection, policy = ValidationSelection(min_progress=0.5), torch.nn.Linear(1, 1)
    validated(selection, 9.0, 0.4, policy)
    assert selection.weights == {}
    validated(selection, 1.0, 0.5, policy)
    assert selection.score == 1.0


def test_selection_refuses_a_metric_that_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match="validation/profit"):
        fitted(tmp_path, [ValidationSelection(monitor="validation/profit")])
    with pytest.raises(ValueError, match="min_progress"):
        ValidationSelection(min_progress=1.0)


# ConvergenceEarlyStopping


def test_convergence_stops_after_patience_validations_without_improvement():
    stopping = ConvergenceEarlyStopping(patience=2, convergence_threshold=0.1, smoothing=0.0)
    stops = [validated(stopping, score).should_stop for score in (0.0, 1.0, 1.05, 1.2, 1.2, 1.2)]
    assert stops == [False, False, False, False, False, True]
    assert stopping.history == pytest.approx([0.0, 1.0, 1.05, 1.2, 1.2, 1.2])


def test_convergence_compares_the_smoothed_score():
    stopping = ConvergenceEarlyStopping(patience=9, smoothing=0.5)
    for score in (1.0, 0.0, 1.0):
        validated(stopping, score)
    assert stopping.history == pytest.approx([1.0, 0.5, 0.75])


def test_convergence_never_stops_before_min_progress():
    stopping = ConvergenceEarlyStopping(patience=1, smoothing=0.0, min_progress=0.5, wait_for_change=False)
    assert [validated(stopping, 0.0, progress).should_stop for progress in (0.1, 0.3, 0.6)] == [False, False, True]


def test_a_resumed_convergence_goes_on_where_it_was():
    first, whole = ConvergenceEarlyStopping(patience=3), ConvergenceEarlyStopping(patience=3)
    scores = (0.5, 0.2, 0.1, 0.0, 0.0)
    for score in scores[:3]:
        validated(first, score)
    resumed = ConvergenceEarlyStopping(patience=3)
    resumed.load_state_dict(first.state_dict())
    ends = [validated(whole, score).should_stop for score in scores]
    assert [validated(resumed, score).should_stop for score in scores[3:]] == ends[3:]
    assert True in ends
    assert (resumed.history, resumed.best, resumed.wait) == (whole.history, whole.best, whole.wait)


def test_convergence_ends_the_training_early_and_says_why(tmp_path):
    stopping = ConvergenceEarlyStopping(1, convergence_threshold=1e9, min_progress=0.3, wait_for_change=False)
    module = fitted(tmp_path, [stopping])
    assert module.timesteps < module.total_timesteps
    assert module.notes.stop_reason.startswith("early stopping: validation/score")
    assert fitted(tmp_path / "off").timesteps == module.total_timesteps


def test_convergence_refuses_values_out_of_range():
    for wrong in ({"patience": 0}, {"smoothing": 1.0}, {"convergence_threshold": -1}, {"min_progress": 2}):
        with pytest.raises(ValueError, match="ConvergenceEarlyStopping needs"):
            ConvergenceEarlyStopping(**wrong)


# TrainingCheckpoint


def test_checkpoints_come_by_count_and_at_the_end(tmp_path):
    fitted(tmp_path / "count", [TrainingCheckpoint(None, 3)])
    sequence = [entry["iteration"] for entry in CheckpointStore(tmp_path / "count").entries()]
    assert sequence == [3, 4]
    fitted(tmp_path / "end", [TrainingCheckpoint(1e9)])
    assert [entry["iteration"] for entry in CheckpointStore(tmp_path / "end").entries()] == [4]
    fitted(tmp_path / "time", [TrainingCheckpoint(1e-9)])
    assert [entry["iteration"] for entry in CheckpointStore(tmp_path / "time").entries()] == [1, 2, 3, 4]


def test_without_the_checkpoint_callback_nothing_is_written(tmp_path):
    fitted(tmp_path / "off")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_checkpoints_go_where_they_are_told(tmp_path):
    fitted(tmp_path / "run", [TrainingCheckpoint(directory=str(tmp_path / "elsewhere"))])
    assert load_checkpoint(tmp_path / "elsewhere")["lit_ppo"] == {"timesteps": 256, "iteration": 4}


def test_lightnings_own_writer_is_refused(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", callbacks=[TrainingCheckpoint()], logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="AtomicCheckpointIO"):
        trainer.callbacks[-1].setup(trainer, pl.LightningModule(), "fit")
    for wrong in ({"every_seconds": 0}, {"every_n_iterations": -1}):
        with pytest.raises(ValueError, match="> 0 or null"):
            TrainingCheckpoint(**wrong)


# MetricsLog


def test_one_line_for_each_iteration_with_durations_apart(tmp_path):
    fitted(tmp_path, [MetricsLog()])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    times = [json.loads(line) for line in (tmp_path / "timing.jsonl").open()]
    assert [line["timesteps"] for line in lines] == [line["timesteps"] for line in times] == [64, 128, 192, 256]
    assert {"train/approx_kl", "train/gradient_norm", "validation/score", "validation/sharpe_annual"} <= lines[0].keys()
    assert not any(name.startswith("time/") for name in lines[0])
    assert {"time/rollout_s", "time/update_s", "time/steps_per_s"} <= times[0].keys()


def test_without_validation_the_line_has_none(tmp_path):
    fitted(tmp_path, [MetricsLog()], trainer_settings={"check_val_every_n_epoch": 2})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert ["validation/score" in line for line in lines] == [False, True, False, True]


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path):
    fitted(tmp_path, [MetricsLog(), TrainingCheckpoint(None, 1)])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="has 3 whole lines, but the checkpoint was written when it had 4"):
        fitted(tmp_path, [MetricsLog()], ckpt_path=tmp_path)


# RunProgress


def test_progress_prints_plain_lines_without_a_terminal(tmp_path, capsys):
    fitted(tmp_path, [RunProgress(every_seconds=1e-9)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    # The first iteration compiles: a pace taken from it would promise hours.
    assert lines[0].startswith("64 / 256 timesteps, validation score")
    assert "steps/s" in lines[1]
    assert lines[-1].startswith("256 / 256 timesteps,")
    assert "steps/s, 0:00:00 left, validation score" in lines[-1]


def test_progress_draws_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    progress = RunProgress()
    fitted(tmp_path, [progress])
    assert "validation score" in capsys.readouterr().out
    assert progress._bar is None


def test_the_display_changes_no_weight(tmp_path):
    assert same(weights(fitted(tmp_path / "a", [RunProgress()])), weights(fitted(tmp_path / "b")))
