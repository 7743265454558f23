"""A checkpoint is whole or it is not there: kills, cuts, flipped bits, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_ppo.store import atomic
from lit_ppo.store.atomic import TEMPORARY_SUFFIX, atomic_write
from lit_ppo.store.checkpoint_io import AtomicCheckpointIO
from lit_ppo.store.checkpoints import (
    MANIFEST,
    CheckpointError,
    CheckpointStore,
    load_checkpoint,
)


def state(number: int) -> dict:
    weights = torch.full((50,), float(number))
    return {"state_dict": {"weights": weights}, "list": [1, 2.5, "x", None], "lit_ppo": {"timesteps": number}}


def numbers(directory: Path) -> list[float]:
    """What is loaded: the number of the newest whole checkpoint."""
    found = CheckpointStore(directory).load_newest()
    return [] if found is None else found[0]["state_dict"]["weights"].unique().tolist()


def filled(directory: Path, count: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory)
    for number in range(1, count + 1):
        store.save(state(number))
    return store


def test_the_newest_of_two_kept_checkpoints_is_loaded_in_order_of_sequence_not_of_time(tmp_path):
    store = filled(tmp_path, 4)
    entries = store.entries()
    assert [(entry["sequence"], entry["timesteps"]) for entry in entries] == [(3, 3), (4, 4)]
    os.utime(tmp_path / entries[0]["file"], (2e9, 2e9))  # the older one is "from the future"
    assert numbers(tmp_path) == [4.0]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == sorted(entry["file"] for entry in entries)


def test_a_directory_that_never_held_a_checkpoint_gives_none(tmp_path):
    assert CheckpointStore(tmp_path / "absent").load_newest() is None
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_stepped_over_with_one_warning(tmp_path, share):
    newest = tmp_path / filled(tmp_path).entries()[-1]["file"]
    data = newest.read_bytes()
    newest.write_bytes(data[: int(len(data) * share)])
    with pytest.warns(UserWarning, match="stepped back") as warned:
        assert numbers(tmp_path) == [2.0]
    assert len(warned) == 1


def test_no_flipped_bit_is_ever_loaded(tmp_path):
    newest = tmp_path / filled(tmp_path).entries()[-1]["file"]
    data = newest.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(len(data), size=100).tolist():
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        newest.write_bytes(flipped)
        with pytest.warns(UserWarning, match="hash differs"):
            assert numbers(tmp_path) == [2.0]


@pytest.mark.parametrize("content", [None, "", "{", '{"schema": 1}', '{"schema": 1, "entries": [{"file": "x"}]}', "[]"])
def test_a_lost_or_damaged_manifest_is_rebuilt_from_the_names(tmp_path, content, recwarn):
    filled(tmp_path)
    if content is None:
        (tmp_path / MANIFEST).unlink()
    else:
        (tmp_path / MANIFEST).write_text(content)
    assert numbers(tmp_path) == [3.0]
    CheckpointStore(tmp_path).save(state(4))
    assert [entry["sequence"] for entry in CheckpointStore(tmp_path).entries()] == [3, 4]


def test_a_manifest_that_names_a_missing_file_steps_back(tmp_path):
    (tmp_path / filled(tmp_path).entries()[-1]["file"]).unlink()
    with pytest.warns(UserWarning, match="stepped back"):
        assert numbers(tmp_path) == [2.0]


def test_when_no_checkpoint_is_whole_the_run_stops_instead_of_starting_over(tmp_path):
    for entry in filled(tmp_path).entries():
        (tmp_path / entry["file"]).write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 2 checkpoints"):
        numbers(tmp_path)


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_kept(tmp_path):
    store = filled(tmp_path)
    (tmp_path / store.entries()[-1]["file"]).write_bytes(b"torn")
    store.save(state(4))
    (tmp_path / store.entries()[-1]["file"]).write_bytes(b"torn too")
    with pytest.warns(UserWarning, match="stepped back"):
        assert numbers(tmp_path) == [2.0]


def test_a_newer_schema_says_which_version_is_needed(tmp_path):
    filled(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text()) | {"schema": 99}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="newer lit-ppo"):
        numbers(tmp_path)


def test_a_manifest_cannot_point_outside_its_directory(tmp_path):
    inside = tmp_path / "run"
    store = filled(inside)
    (tmp_path / "outside.ckpt").write_bytes(store.save(state(9), "named.ckpt").read_bytes())
    content = json.loads((inside / MANIFEST).read_text())
    content["entries"][-1]["file"] = "../outside.ckpt"
    (inside / MANIFEST).write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="outside the directory"):
        assert numbers(inside) == [3.0]


def test_a_linked_checkpoint_is_not_followed(tmp_path):
    store = filled(tmp_path)
    newest = tmp_path / store.entries()[-1]["file"]
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="it is a link"):
        assert numbers(tmp_path) == [2.0]


@pytest.mark.parametrize("url", ["http://host/x.ckpt", "s3://bucket/x.ckpt", "hf://model", "file:/x.ckpt"])
def test_urls_are_refused(url):
    with pytest.raises(ValueError, match="local files"):
        load_checkpoint(url)
    with pytest.raises(ValueError, match="local files"):
        AtomicCheckpointIO().save_checkpoint(state(1), url)


@pytest.mark.parametrize("foreign", [np.float64(1.0), {1, 2}, object(), torch.device("cpu"), Path("x")])
def test_what_weights_only_cannot_load_is_refused_before_anything_is_written(tmp_path, foreign):
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\[0\]"):
        CheckpointStore(tmp_path).save({"callbacks": [foreign]})
    assert list(tmp_path.iterdir()) == []


def test_loading_without_weights_only_is_refused(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint(state(1), tmp_path / "named.ckpt")
    with pytest.raises(ValueError, match="weights_only=True only"):
        io.load_checkpoint(tmp_path / "named.ckpt", weights_only=False)
    assert io.load_checkpoint(tmp_path / "named.ckpt")["list"] == [1, 2.5, "x", None]


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be loaded: it holds more than tensors") as refused:
        load_checkpoint(tmp_path / "evil.ckpt")
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_named_checkpoints_are_not_pruned_and_do_not_count_as_newest(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(7), "selected.ckpt")
    filled(tmp_path)
    assert store.load("selected.ckpt")["lit_ppo"] == {"timesteps": 7}
    assert numbers(tmp_path) == [3.0]


# 3 saves = 6 atomic writes (checkpoint, manifest, ...); the fifth writes checkpoint 3, the sixth its manifest.
KILLS = [(f"{stage}:{nth}", 2.0 if nth == 5 else 3.0) for nth in (5, 6) for stage in ("before_write", "mid_write")]
KILLS += [(f"after_fsync:{nth}", 2.0 if nth == 5 else 3.0) for nth in (5, 6)]
KILLS += [
    ("after_replace:5", 3.0),
    ("after_replace:6", 3.0),
    ("during_prune:1", 3.0),
    ("mid_write@manifest.json:1", 1.0),
]


@pytest.mark.parametrize(("where", "expected"), KILLS)
def test_a_kill_at_any_stage_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch, where, expected):
    monkeypatch.setattr(atomic, "_FAILPOINT", where)
    child = os.fork()
    if child == 0:
        filled(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert numbers(tmp_path) == [expected]
    CheckpointStore(tmp_path).clean()
    assert not list(tmp_path.glob(f".*{TEMPORARY_SUFFIX}"))
    assert len(list(tmp_path.glob("*.ckpt"))) <= 2


def test_a_full_disk_leaves_the_old_file_and_names_path_and_bytes(tmp_path, monkeypatch):
    target = tmp_path / "file"
    atomic_write(target, b"old")

    def no_room(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "write", no_room)
    with pytest.raises(OSError, match=r"No room to write .*file: 12 bytes needed, \d+ free"):
        atomic_write(target, b"much too big")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_cannot_be_written_is_an_error_and_not_a_shrug(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(OSError, match="file"):
        CheckpointStore(tmp_path / "file").save(state(1))
