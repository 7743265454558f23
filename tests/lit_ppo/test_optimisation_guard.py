"""An optimisation that raises is left out of its fold, said once and recorded; strict makes it fatal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from callbacks import ProgressiveHyperparameters
from lit_ppo.cli import main
from lit_ppo.folds import optimisation_guard
from lit_ppo.folds.optimisation_guard import is_strict
from lit_ppo.module import LitPPO
from lit_ppo.store.checkpoints import load_checkpoint
from lit_ppo.trainee import TrainingNotes

CONFIG = """
seed_everything: 7
model: {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, total_timesteps: 192, hold_bias: 0.0,
  screen_features: false}
data:
  synthetic: {kind: regime, num_bars: 660, seed: 3}
  train_size: 300
  validation_size: 100
  test_size: 100
  step_size: 100
  warmup_bars: 20
  cache: false
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    - callbacks.ValidationSelection
    - {class_path: callbacks.TrainingCheckpoint, init_args: {every_n_iterations: 1}}
"""
FAILS_IN_SETUP = {"class_path": "callbacks.AdaptiveTimesteps", "init_args": {"min_timesteps": 10_000}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs two folds with further callbacks and gives exit code and run folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)

    def call(results: str, callbacks: list[Any], *more: str) -> tuple[int, Path]:
        config = yaml.safe_load(CONFIG)
        config["trainer"]["callbacks"] += callbacks
        (tmp_path / f"{results}.yaml").write_text(yaml.safe_dump(config))
        code = main(["walk-forward", "--config", f"{results}.yaml", "--results", results, *more])
        return code, tmp_path / results / "7"

    return call


def same_weights(one: Path, other: Path) -> bool:
    states = [load_checkpoint(path / "fold_001/selected.ckpt")["state_dict"] for path in (one, other)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_fold_goes_on_without_it_and_everything_says_so(run, capsys):
    code, folder = run("broken", [FAILS_IN_SETUP])
    printed = capsys.readouterr().out
    assert code == 3
    reason = "ValueError: AdaptiveTimesteps.min_timesteps 10,000 is more than model.total_timesteps 192"
    assert printed.count("The optimisation adaptive_timesteps failed in fold 0 and is left out of it") == 1
    assert reason in printed
    assert "LEFT OUT after an error: adaptive_timesteps in fold 0, 1" in printed
    summary = json.loads((folder / "optimization_summary.json").read_text())
    assert [(row["fold"], row["optimisation"]) for row in summary["failed"]] == [
        (0, "adaptive_timesteps"),
        (1, "adaptive_timesteps"),
    ]
    assert all(row["reason"].startswith(reason) for row in summary["failed"])
    assert same_weights(folder, run("plain", [])[1])


def test_one_that_fails_in_the_middle_leaves_no_trace_in_the_coefficients(run, monkeypatch, capsys):
    def fails(self, trainer, pl_module):
        raise RuntimeError("no phase")

    seen: list[float] = []
    original = LitPPO.training_step

    def spy(self, batch, batch_idx):
        seen.append(self.learner.ent_coef)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LitPPO, "training_step", spy)
    monkeypatch.setattr(ProgressiveHyperparameters, "on_train_epoch_end", fails)
    code, _ = run("broken", ["callbacks.ProgressiveHyperparameters"], "--data.fold_limit", "1")
    assert code == 3
    assert seen == pytest.approx([0.01, 0.005, 0.005])
    assert capsys.readouterr().out.count("failed in fold 0") == 1


def test_a_resumed_fold_stays_without_it_and_the_exit_code_stays(run, monkeypatch):
    original = LitPPO.training_step

    class Killed(BaseException):
        pass

    def die(self, batch, batch_idx):
        if self.fold[0] == 1 and self.iteration == 2:
            raise Killed
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LitPPO, "training_step", die)
        with pytest.raises(Killed):
            run("broken", [FAILS_IN_SETUP])
    code, folder = run("broken", [FAILS_IN_SETUP], "--resume")
    assert code == 3
    assert len(json.loads((folder / "optimization_summary.json").read_text())["failed"]) == 2
    assert run("broken", [FAILS_IN_SETUP], "--resume")[0] == 3  # a finished run says it again
    assert same_weights(folder, run("plain", [])[1])


def test_strict_makes_it_fatal(run, capsys):
    assert run("broken", [FAILS_IN_SETUP], "--strict", "true")[0] == 2
    assert "min_timesteps 10,000 is more than" in capsys.readouterr().err


def test_strict_is_the_default_of_a_ci_job(run, monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert run("broken", [FAILS_IN_SETUP])[0] == 2
    assert run("lenient", [FAILS_IN_SETUP], "--strict", "false")[0] == 3


@pytest.mark.parametrize(
    ("value", "strict"), [("true", True), ("1", True), ("false", False), ("0", False), ("", False)]
)
def test_what_the_environment_means(monkeypatch, value, strict):
    monkeypatch.setenv("CI", value)
    assert is_strict(None) is strict
    assert is_strict(True)
    assert not is_strict(False)


def test_a_callback_that_is_no_optimisation_stays_fatal(run):
    wrong = {"class_path": "callbacks.ValidationSelection", "init_args": {"monitor": "validation/profit"}}
    assert run("broken", [wrong])[0] == 1


def test_a_signal_is_no_failure():
    from types import SimpleNamespace

    from lit_ppo.interrupts import Interrupted

    class Stops(ProgressiveHyperparameters):
        def on_train_epoch_start(self, trainer, pl_module):
            raise Interrupted(15)

    callback = Stops()
    optimisation_guard.guard([callback])
    with pytest.raises(Interrupted):
        callback.on_train_epoch_start(None, SimpleNamespace(notes=TrainingNotes()))
