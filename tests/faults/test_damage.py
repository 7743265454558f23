"""C5-C8: cut files, flipped bits, lost manifests, spoilt caches: seen, said once, and stepped over."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.cache import cache_directory
from lit_ppo.store.checkpoints import MANIFEST, CheckpointError, CheckpointStore
from tests.faults.harness import SEED, assert_same_run, command


@pytest.fixture
def cut(launch, tmp_path) -> Path:
    """A run that was killed in its second fold; returns that fold's folder, with two checkpoints in it."""
    ended = launch(*command(), environment={"LIT_PPO_FAILPOINT": "after_replace@manifest.json:9"})
    assert ended.code == -9, ended.output
    fold = tmp_path / "results" / str(SEED) / "fold_001"
    assert len(list(fold.glob("checkpoint-*.ckpt"))) >= 2
    return fold


def newest(fold: Path) -> Path:
    return fold / CheckpointStore(fold).entries()[-1]["file"]


def test_a_run_whose_newest_checkpoint_is_cut_and_whose_manifest_is_lost_goes_on_from_the_one_before(
    launch, whole, cut, record_property
):
    path = newest(cut)
    path.write_bytes(path.read_bytes()[:1000])
    (cut / MANIFEST).unlink()
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    assert ended.output.count("stepped back to") == 1
    assert_same_run(whole, cut.parent, numbers=False)
    record_property("damaged files survived", 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_with_any_cut_checkpoint_or_manifest_resumes_to_the_uninterrupted_result(
    launch, whole, cut, tmp_path, record_property
):
    def cut_to(share: float):
        def damage(fold: Path) -> None:
            path = newest(fold)
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

        return damage

    def write_manifest(text: str):
        return lambda fold: (fold / MANIFEST).write_text(text)

    damages = [cut_to(share) for share in (0.0, 0.01, 0.3, 0.9, 0.999)]
    damages += [write_manifest(text) for text in ("", "{", '{"schema": 1, "entries": [{"file": "gone.ckpt"}]}')]
    damages += [lambda fold: newest(fold).unlink(), lambda fold: (fold / MANIFEST).unlink()]
    saved = tmp_path / "saved"
    shutil.copytree(cut.parent, saved)
    for damage in damages:
        shutil.rmtree(cut.parent)
        shutil.copytree(saved, cut.parent)
        damage(cut)
        ended = launch(*command("--resume"))
        assert ended.code == 0, ended.output
        assert_same_run(whole, cut.parent, numbers=False)
    record_property("damaged files survived", len(damages))


def places(data: bytes, count: int) -> list[int]:
    """Bytes of a checkpoint to flip: in every entry's header and content, in the directory at its end, and anywhere."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        found = [entry.header_offset + 10 for entry in entries]
        found += [entry.header_offset + 30 + len(entry.filename) + entry.file_size // 2 for entry in entries]
    found += [len(data) - 10, len(data) - 40, 0, len(data) - 1]
    generator = np.random.default_rng(0)
    return [place for place in [*found, *generator.integers(len(data), size=count).tolist()] if place < len(data)]


def test_no_flipped_bit_in_any_entry_of_a_real_checkpoint_is_loaded(whole, tmp_path, record_property):
    fold = tmp_path / "fold"
    shutil.copytree(whole / "fold_001", fold)
    path = newest_rolling(fold)
    data = path.read_bytes()
    flipped = 0
    for place in places(data, 200):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << (place % 8)
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match="its hash differs"):
            CheckpointStore(fold).load(path.name)
        flipped += 1
    with pytest.warns(UserWarning, match="stepped back"):
        found = CheckpointStore(fold).load_newest()
    assert found is not None
    assert found[1] != path
    assert flipped >= 200
    record_property("bits flipped", flipped)


def newest_rolling(fold: Path) -> Path:
    return fold / [entry for entry in CheckpointStore(fold).entries() if entry["kind"] == "rolling"][-1]["file"]


def test_no_flipped_bit_in_chosen_weights_is_loaded_even_without_a_manifest(whole, tmp_path, record_property):
    """The name of `selected.ckpt` carries no hash; without the manifest, the archive's own checksums remain."""
    fold = tmp_path / "fold"
    shutil.copytree(whole / "fold_001", fold)
    (fold / MANIFEST).unlink()
    path = fold / "selected.ckpt"
    data = path.read_bytes()
    good = CheckpointStore(fold).load("selected.ckpt")["state_dict"]
    refused = 0
    tried = places(data, 200)
    for place in tried:
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << (place % 8)
        path.write_bytes(spoilt)
        try:
            found = CheckpointStore(fold).load("selected.ckpt")["state_dict"]
        except CheckpointError:
            refused += 1
            continue
        # What may change unnoticed is a date or a blank of the archive: never a number.
        assert all(torch.equal(good[name], found[name]) for name in good)
    assert refused > len(tried) // 2
    record_property("bits flipped", len(tried))


def test_a_run_with_a_spoilt_cache_computes_anew_and_gives_the_same(launch, whole, tmp_path, record_property):
    cached = command("--overwrite", "--data.cache", "true", "--data.cache_dir", str(tmp_path / "cache"))
    assert launch(*cached).code == 0
    assert_same_run(whole, tmp_path / "results" / str(SEED))
    (entry,) = cache_directory(tmp_path / "cache").glob("*.safetensors")
    data = entry.read_bytes()
    flipped = data[:-100] + bytes([data[-100] ^ 4]) + data[-99:]
    for spoilt in (flipped, data[:500]):
        entry.write_bytes(spoilt)
        ended = launch(*cached)
        assert ended.code == 0, ended.output
        assert ended.output.count("is computed anew") == 1
        assert_same_run(whole, tmp_path / "results" / str(SEED))
        assert entry.read_bytes()[-200:] == data[-200:]
    record_property("damaged files survived", 2)
