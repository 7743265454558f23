"""C4, C12: no room, no permission: said with path and bytes, nothing lost, and the run goes on when there is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lit_ppo.store.checkpoints import CheckpointStore
from tests.faults.harness import SEED, assert_same_run, command, leftovers

NO_CAPABILITIES = ("tests.faults.injected:no_capabilities",) if os.geteuid() == 0 else ()


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a file system of so many bytes, or changes its size; needs to be root."""
    place = tmp_path / "results"
    place.mkdir()
    mounted = []

    def mount(size: int) -> None:
        option = f"remount,size={size}" if mounted else f"size={size}"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(size)

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_the_run_with_path_and_bytes_and_with_room_it_goes_on(
    launch, whole, small_disk, record_property
):
    small_disk(400_000)  # room for two checkpoints, not for three
    ended = launch(*command())
    assert ended.code == 1, ended.output
    assert "No room to write" in ended.output
    assert "bytes needed" in ended.output
    assert str(launch.directory) in ended.output
    assert "Traceback" not in ended.output
    folder = launch.directory / "results" / str(SEED)
    assert CheckpointStore(folder / "fold_000").load_newest() is not None
    assert not [name for name in leftovers(folder) if name != ".lock"]
    small_disk(20_000_000)
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    assert_same_run(whole, folder)
    record_property("full disks survived", 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_disk_that_fills_up_at_any_point_of_a_run_loses_nothing(launch, whole, small_disk, record_property):
    full = 0
    small_disk(20_000_000)
    for size in range(12_000, 1_000_000, 40_000):
        small_disk(20_000_000)
        launch(*command("--overwrite", "--data.fold_limit", "1"))
        for path in (launch.directory / "results" / str(SEED)).rglob("*"):
            if path.is_file():
                path.unlink()
        small_disk(size)
        ended = launch(*command("--resume"))
        if ended.code == 0:
            break
        full += 1
        assert ended.code == 1, ended.output
        assert "No room to write" in ended.output, (size, ended.output)
        small_disk(20_000_000)
        ended = launch(*command("--resume"))
        assert ended.code == 0, ended.output
        assert_same_run(whole, launch.directory / "results" / str(SEED))
    record_property("full disks survived", full)


def test_a_limit_on_the_size_of_files_is_told_like_a_full_disk(launch, whole, record_property):
    ended = launch(*command(), faults=["tests.faults.injected:small_files_only"])
    assert ended.code == 1, ended.output
    assert "No room to write" in ended.output
    assert ".ckpt" in ended.output
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    assert_same_run(whole, launch.directory / "results" / str(SEED))
    record_property("full disks survived", 1)


def test_a_read_only_results_directory_is_an_error_before_training(launch, tmp_path):
    (tmp_path / "results").mkdir(mode=0o555)
    ended = launch(*command(), faults=NO_CAPABILITIES)
    assert ended.code == 1, ended.output
    assert f"cannot write to {tmp_path / 'results' / str(SEED)} (Permission denied)" in ended.output
    assert "choose another --results" in ended.output
    assert "Traceback" not in ended.output
    assert list((tmp_path / "results").iterdir()) == []


def test_a_read_only_fold_directory_ends_the_run_and_is_not_swallowed(launch, tmp_path):
    assert launch(*command(), environment={"LIT_PPO_FAILPOINT": "after_replace@.ckpt:2"}).code == -9
    fold = tmp_path / "results" / str(SEED) / "fold_000"
    fold.chmod(0o555)
    try:
        ended = launch(*command("--resume"), faults=NO_CAPABILITIES)
    finally:
        fold.chmod(0o755)
    assert ended.code == 1, ended.output
    assert "Permission denied" in ended.output
    assert "fold_000" in ended.output


def test_a_read_only_cache_is_warned_about_and_the_run_goes_on_without_it(launch, whole, tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o555)
    ended = launch(*command("--data.cache", "true", "--data.cache_dir", str(cache)), faults=NO_CAPABILITIES)
    assert ended.code == 0, ended.output
    assert ended.output.count("going on without it") == 1
    assert_same_run(whole, tmp_path / "results" / str(SEED))
