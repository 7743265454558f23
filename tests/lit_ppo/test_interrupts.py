"""Ctrl-C and SIGTERM: saved, right exit code, resumable; twice: gone at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from lit_ppo import interrupts
from lit_ppo.cli import main
from lit_ppo.module import LitPPO
from lit_ppo.store.checkpoints import load_checkpoint
from lit_ppo.store.results import load_run
from tests.lit_ppo.test_walk_forward import CONFIG, bytes_of, final_weights

SELDOM = CONFIG.replace("every_n_iterations: 1", "every_seconds: 1000")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folder of an uninterrupted run."""
    home = tmp_path_factory.mktemp("whole")
    (home / "config.yaml").write_text(SELDOM)
    assert main(["walk-forward", "--config", str(home / "config.yaml"), "--results", str(home)]) == 0
    return home / "7"


@pytest.fixture(autouse=True)
def handlers():
    """Give pytest its handlers back."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interrupts._received.clear()


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """A shell starts background jobs with SIGINT ignored, and what is ignored we leave alone: not here."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def signalled(monkeypatch):
    """Return a function that makes the process send itself a signal in an iteration of a fold."""

    def send(number: int, fold: int = 1, iteration: int = 2) -> None:
        original = LitPPO.training_step

        def step(self, batch, batch_idx):
            if (self.fold[0], self.iteration + 1) == (fold, iteration):
                os.kill(os.getpid(), number)
            return original(self, batch, batch_idx)

        monkeypatch.setattr(LitPPO, "training_step", step)

    return send


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_leaves_with_its_exit_code_and_the_resume_equals_the_uninterrupted_run(
    tmp_path, monkeypatch, signalled, whole, capsys, number, code
):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(SELDOM)
    command = ["walk-forward", "--config", "config.yaml"]
    with monkeypatch.context():
        signalled(number)
        assert main([*command, "--results", "cut"]) == code
    assert "--resume goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    run = load_run("cut/7")
    assert run.record["status"] == "interrupted"
    assert [fold.status for fold in run.folds] == ["done", "running"]
    assert load_checkpoint("cut/7/fold_001")["lit_ppo"]["iteration"] == 2  # saved by the signal: no save was due
    assert main([*command, "--results", "cut", "--resume"]) == 0
    assert bytes_of(whole) == bytes_of(Path("cut/7"))
    for one, other in zip(final_weights(whole), final_weights(Path("cut/7")), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_fit_leaves_with_the_signals_exit_code_without_any_callback(tmp_path, monkeypatch, signalled):
    monkeypatch.chdir(tmp_path)
    config = CONFIG.partition("  callbacks:")[0]
    Path("config.yaml").write_text(config)
    signalled(signal.SIGTERM, fold=0)
    assert main(["fit", "--config", "config.yaml"]) == 143


def test_a_second_signal_leaves_at_once(capfd):
    child = os.fork()
    if child == 0:
        interrupts.install()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(0)
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert time.monotonic() - started < 10


def test_between_stages_a_signal_is_noticed():
    interrupts.install()
    interrupts.raise_if_requested()
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.requested()
    with pytest.raises(interrupts.Interrupted) as stopped:
        interrupts.raise_if_requested()
    assert stopped.value.exit_code == 130
