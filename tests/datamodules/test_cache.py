"""The disk cache: never wrong, never in the way."""

from __future__ import annotations

import multiprocessing
import os
import stat
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

from datamodules import cache as module
from datamodules.cache import FeatureCache, cache_directory, clear, encode_entry, info, load_entry, prune

KEY = "a" * 64


def matrix(seed: int = 0, rows: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def never() -> np.ndarray:
    raise AssertionError("this entry should come from the cache")


def entry(tmp_path, key: str = KEY):
    return cache_directory(tmp_path) / f"{key}.safetensors"


def test_the_second_time_is_a_counted_hit_equal_to_the_computed_matrix(tmp_path):
    cache = FeatureCache(tmp_path)
    first = cache.get(KEY, matrix)
    second = cache.get(KEY, never)
    np.testing.assert_array_equal(first, matrix())
    np.testing.assert_array_equal(second, matrix())
    assert (cache.statistics.misses, cache.statistics.hits) == (1, 1)
    fresh = FeatureCache(tmp_path)
    np.testing.assert_array_equal(fresh.get(KEY, never), matrix())
    assert (fresh.statistics.misses, fresh.statistics.hits) == (0, 1)


def test_seconds_saved_are_the_computing_time_less_the_loading_time(tmp_path):
    cache = FeatureCache(tmp_path)
    entry(tmp_path).write_bytes(encode_entry(KEY, matrix(), seconds=1000.0))
    cache.get(KEY, never)
    assert 900 < cache.statistics.seconds_saved < 1000


def test_a_hit_is_memory_mapped_and_read_only(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, matrix)
    values = cache.get(KEY, never)
    assert isinstance(values, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1.0


def test_an_entry_is_a_valid_safetensors_file(tmp_path):
    FeatureCache(tmp_path).get(KEY, matrix)
    np.testing.assert_array_equal(load_file(entry(tmp_path))["features"], matrix())


def test_a_mapped_matrix_outlives_its_file(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, matrix)
    values = cache.get(KEY, never)
    clear(tmp_path)
    np.testing.assert_array_equal(values, matrix())


def test_another_key_is_another_entry(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, matrix)
    np.testing.assert_array_equal(cache.get("b" * 64, lambda: matrix(1)), matrix(1))
    assert info(tmp_path).entries == 2


def test_an_empty_matrix_is_kept_too(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, lambda: matrix(rows=0))
    assert cache.get(KEY, never).shape == (0, 4)


def test_one_flipped_bit_anywhere_is_noticed_and_the_entry_rebuilt(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, matrix)
    good = entry(tmp_path).read_bytes()
    places = [*range(8), *range(8, len(good), 11)]
    unnoticed = []
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        entry(tmp_path).write_bytes(bad)
        try:
            values, _ = load_entry(entry(tmp_path), KEY)
        except module.CorruptEntryError:
            continue
        # What remains may only be a time, or a blank of the header's padding: never another matrix.
        np.testing.assert_array_equal(values, matrix())
        unnoticed.append(place)
    assert len(unnoticed) < 5
    entry(tmp_path).write_bytes(good[:-100] + b"\xff" + good[-99:])
    with pytest.warns(UserWarning, match="computed anew: its content does not match") as caught:
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
    assert len(caught) == 1
    assert cache.statistics.rebuilt == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cache.get(KEY, never), matrix())


@pytest.mark.parametrize("length", [0, 5, 8, 60, 400])
def test_a_truncated_entry_is_rebuilt(tmp_path, length):
    cache = FeatureCache(tmp_path)
    cache.get(KEY, matrix)
    entry(tmp_path).write_bytes(entry(tmp_path).read_bytes()[:length])
    with pytest.warns(UserWarning, match="computed anew"):
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
    assert entry(tmp_path).read_bytes()[8:9] == b"{"


def test_an_entry_of_another_key_or_layout_is_rebuilt(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    entry(tmp_path).write_bytes(encode_entry("b" * 64, matrix(1), 0.0))
    with pytest.warns(UserWarning, match="does not describe this entry"):
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
    monkeypatch.setattr(module, "SCHEMA", "0")
    entry(tmp_path).write_bytes(encode_entry(KEY, matrix(1), 0.0))
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="does not describe this entry"):
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())


def test_the_least_recently_used_entries_go_first(tmp_path):
    size = len(encode_entry(KEY, matrix(), 0.123))
    cache = FeatureCache(tmp_path, max_bytes=7 * size // 2)
    for age, key in enumerate("abc"):
        cache.get(key * 64, matrix)
        os.utime(entry(tmp_path, key * 64), (1000 + age, 1000 + age))
    cache.get("a" * 64, never)  # used now: b is the oldest
    cache.get("d" * 64, matrix)
    assert sorted(path.name[0] for path in cache_directory(tmp_path).glob("*.safetensors")) == ["a", "c", "d"]
    assert info(tmp_path).bytes <= cache.max_bytes


def test_an_entry_larger_than_the_bound_is_not_stored_and_said(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=100)
    with pytest.warns(UserWarning, match="exceeds data.cache_max_bytes 100"):
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
    assert info(tmp_path).entries == 0
    with pytest.raises(ValueError, match="cache_max_bytes must be >= 1"):
        FeatureCache(tmp_path, max_bytes=0)


def test_clear_and_prune_tell_what_they_did_and_leave_other_files_alone(tmp_path):
    cache = FeatureCache(tmp_path)
    for key in "abc":
        cache.get(key * 64, matrix)
    other = cache.directory / "notes.txt"
    other.write_text("mine")
    old = cache.directory / ".x.0.lit-ppo-tmp"
    young = cache.directory / ".y.0.lit-ppo-tmp"
    old.write_text("")
    young.write_text("")
    os.utime(old, (1000, 1000))
    size = info(tmp_path).bytes // 3
    assert prune(cache.directory, size).entries == 1
    assert clear(tmp_path).entries == 1
    assert info(tmp_path) == module.CacheInfo(str(cache.directory), 0, 0)
    assert sorted(path.name for path in cache.directory.iterdir()) == [".y.0.lit-ppo-tmp", "notes.txt"]
    assert clear(tmp_path / "absent").entries == 0


def test_the_directory_is_private_and_made_so_if_it_was_not(tmp_path):
    directory = FeatureCache(tmp_path).directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    directory.chmod(0o755)
    FeatureCache(tmp_path)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_default_directory_is_the_users_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "lit-ppo" / "features"
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_directory() == tmp_path / "home" / ".cache" / "lit-ppo" / "features"


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    FeatureCache(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match=r"belongs to user id .* --data\.cache_dir"):
        FeatureCache(tmp_path)


def test_a_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="is a link or a file"):
        FeatureCache(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only directory")
def test_a_read_only_directory_is_warned_about_once_and_worked_around(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.directory.chmod(0o500)
    try:
        with pytest.warns(UserWarning, match="cannot be written .* going on without it"):
            np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
    finally:
        cache.directory.chmod(0o700)


def test_a_directory_that_cannot_be_written_is_warned_about_once_and_worked_around(tmp_path, monkeypatch):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "atomic_write", refuse)
    cache = FeatureCache(tmp_path)
    with pytest.warns(UserWarning, match="cannot be written .* going on without it"):
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())


def test_a_cache_home_that_cannot_be_made_is_warned_about_and_worked_around(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.warns(UserWarning, match="cannot be written"):
        cache = FeatureCache(tmp_path / "file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(cache.get(KEY, matrix), matrix())


def race(directory, start, failures) -> None:
    """One of several writers and readers of the same two keys."""
    start.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(25):
            seed = turn % 2
            cache = FeatureCache(directory)
            if turn % 5 == 4:
                clear(directory)
            values = cache.get(str(seed) * 64, lambda seed=seed: matrix(seed, rows=2000))
            if not np.array_equal(values, matrix(seed, rows=2000)):
                failures.put("torn read")
    failures.put("done")


def test_eight_racing_writers_leave_valid_entries_and_read_no_torn_one(tmp_path):
    context = multiprocessing.get_context("fork")
    start, failures = context.Event(), context.Queue()
    writers = [context.Process(target=race, args=(tmp_path, start, failures)) for _ in range(8)]
    for writer in writers:
        writer.start()
    start.set()
    assert [failures.get(timeout=60) for _ in writers] == ["done"] * 8
    for writer in writers:
        writer.join(10)
        assert writer.exitcode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (0, 1):
            values = FeatureCache(tmp_path).get(str(seed) * 64, lambda seed=seed: matrix(seed, rows=2000))
            np.testing.assert_array_equal(values, matrix(seed, rows=2000))
    assert not list(cache_directory(tmp_path).glob(".*"))
