"""C1-C3: killed at any moment (SIGKILL), once or again and again, and resumed: the files of an uninterrupted run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from lit_ppo.store.checkpoints import CheckpointStore
from lit_ppo.store.results import load_run
from tests.faults.harness import FOLDS, SEED, Launcher, assert_same_run, command, new_process

# One for each failpoint, in the order in which a run reaches them: all can hit one run, one after the other.
FAILPOINTS = (
    "before_write@config.yaml",
    "mid_write@run.json",
    "after_write@folds.json",
    "after_fsync@.ckpt:2",
    "during_prune@.ckpt:1",
    "after_replace@manifest.json:2",
    "mid_append@out_of_sample.csv",
    "mid_append@baselines.csv:2",
)
# Every file of a run at every stage that its writer has.
WRITTEN = ("config.yaml", "run.json", "folds.json", ".ckpt", "manifest.json", "selected.ckpt", "test_bars.npz")
STAGES = ("before_write", "mid_write", "after_write", "after_fsync", "after_replace")
EVERY_FAILPOINT = (
    *(f"{stage}@{file}:{1 if file in ('config.yaml', 'run.json') else 2}" for file in WRITTEN for stage in STAGES),
    *("during_prune@.ckpt:1", "during_prune@.ckpt:4", "mid_write@report.html", "after_fsync@run.json:2"),
    *("mid_append@out_of_sample.csv", "mid_append@out_of_sample.csv:3", "mid_append@trades.csv:2"),
    "mid_append@baselines.csv:2",
)


def resume_to_the_end(launch: Launcher) -> Path:
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    return launch.directory / "results" / str(SEED)


def folds_done(launch: Launcher) -> int:
    """How far a killed run came."""
    folder = launch.directory / "results" / str(SEED)
    if not (folder / "run.json").is_file():
        return 0
    return sum(fold.status == "done" for fold in load_run(folder).folds)


def kill_at_random(launch: Launcher, dice: random.Random, *arguments: str) -> bool:
    """Kill a run at a random moment; returns whether it was still running."""
    ended = launch.killed(dice.uniform(0.05, 1.0) * launch.whole_run_seconds, *command(*arguments))
    assert ended.code in (0, -signal.SIGKILL), ended.output
    return ended.code != 0


def test_killed_at_every_failpoint_one_after_the_other_equals_uninterrupted(launch, whole, record_property):
    for failpoint in FAILPOINTS:
        ended = launch(*command("--resume"), environment={"LIT_PPO_FAILPOINT": failpoint})
        assert ended.code == -signal.SIGKILL, f"{failpoint} was not reached: {ended.output}"
    assert_same_run(whole, resume_to_the_end(launch))
    record_property("kills survived", len(FAILPOINTS))
    record_property("failpoints", len(FAILPOINTS))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_three_times_at_random_also_while_resuming_equals_uninterrupted(launch, whole, seed, record_property):
    dice, killed = random.Random(seed), 0
    while killed < 3:
        if kill_at_random(launch, dice, "--resume"):
            killed += 1
        else:  # it was quicker than the kill, and is whole
            assert_same_run(whole, launch.directory / "results" / str(SEED))
            shutil.rmtree(launch.directory / "results")
    assert_same_run(whole, resume_to_the_end(launch))
    record_property("kills survived", killed)


def test_killed_between_two_folds_equals_uninterrupted(launch, whole, record_property):
    # The ledger's 4th write says that fold 1 is done, the 5th that fold 2 has begun.
    ended = launch(*command(), environment={"LIT_PPO_FAILPOINT": "after_replace@folds.json:4"})
    assert (ended.code, folds_done(launch)) == (-signal.SIGKILL, 2)
    ended = launch(*command("--resume"), environment={"LIT_PPO_FAILPOINT": "before_write@folds.json:1"})
    assert (ended.code, folds_done(launch)) == (-signal.SIGKILL, 2)
    assert_same_run(whole, resume_to_the_end(launch))
    record_property("kills survived", 2)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second filesystem at /dev/shm")
@pytest.mark.parametrize("where", ["temporary directory", pytest.param("results", marks=pytest.mark.slow)])
def test_another_filesystem_for_temporary_files_changes_nothing(launch, whole, where, tmp_path, record_property):
    other = Path("/dev/shm") / f"lit-ppo-test-{os.getpid()}"
    other.mkdir(mode=0o700)
    try:
        if os.stat(other).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("/dev/shm is on the filesystem of the tests' own directory")
        environment = {"TMPDIR": str(other)}
        if where == "results":
            (tmp_path / "results").symlink_to(other)
            environment = {"TMPDIR": str(tmp_path)}
        kill = {**environment, "LIT_PPO_FAILPOINT": "mid_write@.ckpt:6"}
        assert launch(*command(), environment=kill).code == -signal.SIGKILL
        ended = launch(*command("--resume"), environment=environment)
        assert ended.code == 0, ended.output
        assert_same_run(whole, (tmp_path / "results").resolve() / str(SEED))
        if where == "temporary directory":
            assert list(other.iterdir()) == []
        record_property("kills survived", 1)
    finally:
        shutil.rmtree(other)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_each_failpoint_of_each_file_equals_uninterrupted(launch, whole, record_property):
    for failpoint in EVERY_FAILPOINT:
        ended = launch(*command("--overwrite"), environment={"LIT_PPO_FAILPOINT": failpoint})
        assert ended.code == -signal.SIGKILL, f"{failpoint} was not reached: {ended.output}"
        assert_same_run(whole, resume_to_the_end(launch))
    record_property("kills survived", len(EVERY_FAILPOINT))
    record_property("failpoints", len(EVERY_FAILPOINT))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_fresh_processes_killed_at_random_equal_uninterrupted(launch, whole, tmp_path, record_property):
    """Nothing is shared with another run here, and the clock decides: imports and waiting for the disk are hit too."""
    started = time.monotonic()
    process = new_process(tmp_path, *command(results="timed"))
    assert process.wait() == 0, process.stdout.read() if process.stdout else ""
    seconds = time.monotonic() - started
    dice, killed = random.Random(20), 0
    while killed < 20:
        process = new_process(tmp_path, *command("--overwrite"))
        time.sleep(dice.uniform(0.2, 0.95) * seconds)
        process.kill()
        output = process.communicate()[0]
        assert process.returncode in (0, -signal.SIGKILL), output
        killed += process.returncode != 0
        process = new_process(tmp_path, *command("--resume"))
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert_same_run(whole, tmp_path / "results" / str(SEED))
    record_property("kills survived", killed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(200, 210))
def test_twenty_runs_killed_at_random_equal_uninterrupted(launch, whole, seed, record_property):
    dice, killed, by_folds = random.Random(seed), 0, [0] * (FOLDS + 1)
    while killed < 20:
        shutil.rmtree(launch.directory / "results", ignore_errors=True)
        if kill_at_random(launch, dice):
            killed += 1
            by_folds[folds_done(launch)] += 1
        assert_same_run(whole, resume_to_the_end(launch))
    record_property("kills survived", killed)
    for folds, count in enumerate(by_folds):
        record_property(f"of these with {folds} of {FOLDS} folds done", count)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_runs_killed_again_and_again_equal_uninterrupted(launch, whole, record_property):
    """Each run is killed up to five times: the kills of its resumes are part of it."""
    dice, killed = random.Random(5), 0
    for _ in range(20):
        first = ["--overwrite"]
        for _ in range(5):
            killed += kill_at_random(launch, dice, *first)
            first = ["--resume"]
        assert_same_run(whole, resume_to_the_end(launch))
    record_property("kills survived", killed)


def test_after_a_kill_two_checkpoints_are_left_and_one_of_them_is_whole(launch):
    launch(*command(), environment={"LIT_PPO_FAILPOINT": "during_prune@.ckpt:1"})
    directory = launch.directory / "results" / str(SEED) / "fold_000"
    assert len(list(directory.glob("checkpoint-*.ckpt"))) == 3  # two kept, and the one that was to go
    found = CheckpointStore(directory).load_newest()
    assert found is not None
    assert found[0]["lit_ppo"]["iteration"] == 3
