"""C9, C10: processes that share a cache or a results directory."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
import warnings

import numpy as np
import pytest

from datamodules.cache import FeatureCache, cache_directory
from tests.faults.harness import SEED, assert_same_run, command, new_process


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(5000, 8)).astype(np.float32)


def use_cache(directory, turns: int, failures) -> None:
    """One of several processes that read and write two entries."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(turns):
            seed = turn % 2
            cache = FeatureCache(directory, max_bytes=200_000)  # room for one: each one's writing removes the other's
            values = cache.get(str(seed) * 64, lambda seed=seed: matrix(seed))
            if not np.array_equal(values, matrix(seed)):
                failures.put("torn read")
    failures.put("done")


@pytest.mark.slow
def test_eight_processes_race_for_a_cache_while_others_are_killed_in_it(tmp_path, record_property):
    context = multiprocessing.get_context("fork")
    failures, dice, kills = context.Queue(), random.Random(0), 0
    writers = [context.Process(target=use_cache, args=(tmp_path, 100, failures)) for _ in range(8)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        victim = context.Process(target=use_cache, args=(tmp_path, 10**6, context.Queue()))
        victim.start()
        time.sleep(dice.uniform(0.01, 0.3))
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
        kills += 1
    assert [failures.get(timeout=10) for _ in writers] == ["done"] * 8
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert kills > 0
    for seed in (0, 1):
        np.testing.assert_array_equal(
            FeatureCache(tmp_path).get(str(seed) * 64, lambda s=seed: matrix(s)), matrix(seed)
        )
    assert len(list(cache_directory(tmp_path).glob("*.safetensors"))) <= 2
    record_property("cache reads raced", 800)
    record_property("kills survived", kills)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_and_the_first_one_is_not_disturbed(launch, whole, tmp_path):
    pid = launch.start(*command())
    folder = tmp_path / "results" / str(SEED)
    while not (folder / "folds.json").is_file():
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    try:
        for flags in ([], ["--resume"], ["--overwrite"]):
            second = new_process(tmp_path, *command(*flags))
            output = second.communicate(timeout=200)[0]
            assert second.returncode == 2, output
            assert f"is in use by process {pid} on {socket.gethostname()} since 20" in output
            assert "Traceback" not in output
    finally:
        os.kill(pid, signal.SIGCONT)
    ended = launch.end()
    assert ended.code == 0, ended.output
    assert_same_run(whole, folder)
