"""C11, C13: signals end a run in order, and no clock of the wall decides anything."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lit_ppo.store.checkpoints import CheckpointStore, load_checkpoint
from tests.faults.harness import SEED, assert_same_run, command

SLOW = ["tests.faults.injected:slow_iterations"]


def wait_for_checkpoint(folder) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoint-*.ckpt")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), pytest.param("SIGHUP", 129, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_leaves_with_its_code_and_the_resume_equals_uninterrupted(launch, whole, name, code):
    folder = launch.directory / "results" / str(SEED)
    pid = launch.start(*command())
    wait_for_checkpoint(folder / "fold_000")
    os.kill(pid, getattr(signal, name))
    ended = launch.end()
    assert ended.code == code, ended.output
    assert f"Stopped by {name}; everything is saved; --resume goes on from here" in ended.output
    assert "Traceback" not in ended.output
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    assert_same_run(whole, folder)


def test_a_second_signal_leaves_at_once_with_every_file_whole(launch, whole):
    folder = launch.directory / "results" / str(SEED)
    pid = launch.start(*command(), faults=SLOW)
    wait_for_checkpoint(folder / "fold_000")  # the second iteration begins, and takes three seconds
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(pid, signal.SIGINT)
    started = time.monotonic()
    ended = launch.end()
    assert ended.code == 130, ended.output
    assert time.monotonic() - started < 2
    assert "goes on from here" not in ended.output  # it did not reach the orderly end
    assert load_checkpoint(folder / "fold_000")["lit_ppo"]["iteration"] == 1
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    assert_same_run(whole, folder)


def test_a_wall_clock_that_goes_back_or_leaps_changes_nothing(launch, whole):
    """Killed in the year to come, gone on with an hour earlier at each look, and at last in another time zone."""
    kill = {"LIT_PPO_FAILPOINT": "after_replace@manifest.json:4", "TZ": "America/New_York"}
    assert launch(*command(), environment=kill, faults=["tests.faults.injected:clock_leaps"]).code == -9
    kill = {"LIT_PPO_FAILPOINT": "after_replace@manifest.json:6", "TZ": "Pacific/Auckland"}
    assert launch(*command("--resume"), environment=kill, faults=["tests.faults.injected:clock_goes_back"]).code == -9
    ended = launch(*command("--resume"), faults=["tests.faults.injected:clock_goes_back"])
    assert ended.code == 0, ended.output
    assert_same_run(whole, launch.directory / "results" / str(SEED))


@pytest.mark.slow
def test_a_checkpoint_file_from_the_future_is_not_taken_for_the_newest(launch, whole):
    kill = {"LIT_PPO_FAILPOINT": "after_replace@manifest.json:3"}
    assert launch(*command(), environment=kill).code == -9
    folder = launch.directory / "results" / str(SEED)
    first, *_, last = CheckpointStore(folder / "fold_000").entries()
    os.utime(folder / "fold_000" / first["file"], (4e9, 4e9))
    os.utime(folder / "fold_000" / last["file"], (0, 0))
    found = CheckpointStore(folder / "fold_000").load_newest()
    assert found is not None
    assert found[1].name == last["file"]
    assert launch(*command("--resume")).code == 0
    assert_same_run(whole, folder)
