"""Folds in this process and in Ray actors: the same bytes; what a worker may write; what is refused before work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from lit_ppo.cli import main
from lit_ppo.folds import engine
from lit_ppo.folds.engine import RayWorkers, fold_files, write_files
from lit_ppo.folds.loop import NotSent
from lit_ppo.interrupts import Interrupted
from lit_ppo.store.checkpoints import CheckpointStore
from lit_ppo.store.results import RunFolder
from tests.faults.harness import CONFIG, SEED, assert_same_run, command


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """Return a function that runs the walk-forward here and gives exit code and run folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)

    def call(*arguments: str, results: str = "results") -> tuple[int, Path]:
        return main(command(*arguments, results=results)), tmp_path / results / str(SEED)

    return call


@pytest.fixture(scope="module")
def ray() -> Iterator[object]:
    """A small cluster on this machine, which every run of this file uses."""
    ray = pytest.importorskip("ray")
    engine._import_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_workers_give_the_bytes_of_this_process_and_stay_out_of_the_configuration(ray, walk, capfd):
    assert walk(results="here")[0] == 0
    code, folder = walk("--workers", "2", results="workers")
    assert code == 0
    assert "workers ready after" in capfd.readouterr().out
    assert_same_run(folder.parents[1] / "here" / str(SEED), folder)
    assert not {"workers", "cluster"} & yaml.safe_load((folder / "config.yaml").read_text()).keys()
    assert json.loads((folder / "run.json").read_text())["threads"] == 1


def test_more_workers_than_the_cluster_has_cores_are_refused(ray, walk, capsys):
    assert walk("--workers", "3")[0] == 2
    assert "--workers 3 with 1 threads each, and the cluster has 2 cores" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_remedy_before_anything_is_written(walk, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, folder = walk("--workers", "2")
    assert code == 1
    assert "pip install lit-ppo[ray]" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "-1"), "workers is a number of processes >= 1, got -1"),
        (("--workers", "2", "--trainer.accelerator", "gpu"), "train on the CPU, and trainer.accelerator is 'gpu'"),
    ],
)
def test_workers_that_cannot_be_meant_are_refused(walk, capsys, arguments, message):
    assert walk(*arguments)[0] == 2
    assert message in capsys.readouterr().err


def test_a_folders_files_are_replaced_whole_and_what_is_gone_goes(tmp_path):
    folder = RunFolder(tmp_path, 1)
    (folder.fold_path(2) / "old").write_text("gone")
    (folder.fold_path(2) / "kept").write_text("before")
    (folder.fold_path(3) / "other").write_text("of another fold")
    (folder.fold_path(2) / "link").symlink_to(folder.fold_path(3) / "other")
    given = {"fold_002/kept": b"after", "fold_002/candidate_0/a.ckpt": b"deep", "fold_002/manifest.json": b"{}"}
    (folder.fold_path(2) / "link").unlink()
    write_files(folder, 2, given)
    assert fold_files(folder, 2) == given
    assert fold_files(folder, 3) == {"fold_003/other": b"of another fold"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "fold_002/../../x", "fold_003/x", "run.json", ""])
def test_a_worker_writes_into_its_own_fold_only(tmp_path, name):
    folder = RunFolder(tmp_path / "results", 1)
    with pytest.raises(ValueError, match="named the file"):
        write_files(folder, 2, {name: b"x"})
    assert list(tmp_path.rglob("x")) == []


def test_a_kill_while_a_fold_is_written_down_leaves_a_checkpoint_to_resume_from(tmp_path, monkeypatch):
    there, here = RunFolder(tmp_path / "there", 1), RunFolder(tmp_path / "here", 1)
    store = CheckpointStore(there.fold_path(0))
    store.save({"step": 1})
    store.save({"step": 2})
    write_files(here, 0, fold_files(there, 0))
    store.save({"step": 3})
    store.save({"step": 4})
    files = fold_files(there, 0)
    for reached in range(4):  # two checkpoints and the manifest are new
        written = []

        def dying(path, data, reached=reached, written=written):
            if len(written) == reached:
                raise KeyboardInterrupt
            written.append(path)
            Path(path).write_bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr(engine, "atomic_write", dying)
            with pytest.raises(KeyboardInterrupt) if reached < 3 else nullcontext():
                write_files(here, 0, files)
        newest = CheckpointStore(here.fold_path(0)).load_newest()
        assert newest is not None
        assert newest[0]["step"] >= 2
    assert newest[0]["step"] == 4


def test_an_error_that_cannot_travel_is_told_by_its_name():
    assert isinstance(engine._portable(ValueError("x")), ValueError)
    assert str(engine._portable(Interrupted(15))).startswith("Interrupted: Stopped by SIGTERM")


def test_an_error_names_the_runs_folder_and_not_the_workers():
    found = engine._as_of_here(RuntimeError("look at /tmp/w/7/fold_000"), "/tmp/w/7", "results/7")
    assert str(found) == "look at results/7/fold_000"


def test_earlier_folds_that_no_worker_has_are_an_error_and_not_an_empty_list():
    with pytest.raises(RuntimeError, match="reads_earlier_folds = True"):
        list(NotSent())


def test_the_number_of_workers_is_given_or_the_clusters():
    with pytest.raises(ValueError, match="got 0"):
        RayWorkers(0)
