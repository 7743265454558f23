"""Folds in this process and in Ray actors: the same bytes; what a worker may write; what is refused before work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import cloudpickle as pickle
import pytest
import yaml

from lit_ppo import interrupts
from lit_ppo.cli import main
from lit_ppo.folds import engine
from lit_ppo.folds.engine import FoldWork, RayWorkers, fold_files, write_files
from lit_ppo.folds.loop import NotSent, WalkForward
from lit_ppo.interrupts import Interrupted
from lit_ppo.market.tensors import BarRange, Fold
from lit_ppo.module import LitPPO
from lit_ppo.store.checkpoints import CheckpointStore
from lit_ppo.store.results import FoldRecord, RunFolder, load_run
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
    RayWorkers(2)._start()
    yield ray
    ray.shutdown()


def test_workers_give_the_bytes_of_this_process_and_stay_out_of_the_configuration(ray, walk, here, capfd):
    code, folder = walk("--workers", "2", results="workers")
    assert code == 0
    assert "workers ready after" in capfd.readouterr().out
    assert_same_run(here, folder)
    assert not {"workers", "cluster"} & yaml.safe_load((folder / "config.yaml").read_text()).keys()
    assert json.loads((folder / "run.json").read_text())["threads"] == 1


class LostError(Exception):
    """What Ray raises when an actor has died."""


class TaskError(LostError):
    """What Ray raises when an actor's method has raised."""


class Reference:
    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self.name, self.call, self.done = name, call, False
        self.value: object = None
        self.error: Exception | None = None

    def run(self) -> None:
        if not self.done:
            self.done = True
            try:
                self.value = self.call()
            except Exception as error:
                self.error = error


class Actor:
    def __init__(self, ray: PretendedRay, worker: engine.Worker) -> None:
        self.ray, self.worker = ray, worker

    def __getattr__(self, name: str) -> SimpleNamespace:
        def remote(*arguments: object) -> Reference:
            def call() -> object:
                if name == "train" and self.ray.deaths.get(arguments[0], 0):
                    self.ray.deaths[arguments[0]] -= 1
                    raise LostError
                if name == "take":
                    return self.worker.take(pickle.loads(arguments[0]), *arguments[1:])
                return pickle.loads(pickle.dumps(getattr(self.worker, name)(*arguments)))

            return Reference(name, call) if name != "stop" else self.ray.stops.append(arguments[0])

        return SimpleNamespace(remote=remote)


class PretendedRay:
    """What the engine uses of Ray, in this process: the fold that was asked for last comes first.

    Attributes:
        deaths: how many workers each fold ends.
        stops: signals that workers were told of.
        starts: "init" and "shutdown", as they came; at first there is one that runs.
    """

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=TaskError)

    def __init__(self, cores: int = 8) -> None:
        self.cores, self.deaths, self.stops, self.starts = cores, {}, [], []
        self.killed: list[Actor] = []

    def is_initialized(self) -> bool:
        return not self.starts or self.starts[-1] == "init"

    def init(self, **_: object) -> None:
        self.starts.append("init")

    def shutdown(self) -> None:
        self.starts.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cores)}

    def put(self, value: object) -> bytes:
        return pickle.dumps(value)

    def remote(self, made: type[engine.Worker]) -> SimpleNamespace:
        def remote(sent: bytes, *arguments: object) -> Actor:
            return Actor(self, made(pickle.loads(sent), *arguments))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))

    def wait(self, references: list[Reference], num_returns: int, timeout: float):
        at_once = [reference for reference in references if reference.name != "train"]
        for reference in at_once or references[-1:] * (timeout > 0):
            reference.run()
        done = [reference for reference in references if reference.done]
        return done[:num_returns], []

    def get(self, reference: Reference) -> object:
        reference.run()
        if reference.error is not None:
            raise reference.error
        return reference.value

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


@pytest.fixture
def pretended(monkeypatch) -> PretendedRay:
    found = PretendedRay()
    monkeypatch.setattr(engine, "_import_ray", lambda: found)
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """The run of this process."""
    directory = tmp_path_factory.mktemp("here")
    (directory / "config.yaml").write_text(CONFIG)
    assert main(["walk-forward", "--config", str(directory / "config.yaml"), "--results", str(directory)]) == 0
    return directory / str(SEED)


def statuses(folder: Path) -> list[str]:
    return [fold.status for fold in load_run(folder).folds]


def test_folds_that_come_back_in_any_order_are_written_in_theirs(pretended, walk, here, capsys):
    code, folder = walk("--workers", "3")
    assert code == 0
    assert_same_run(here, folder)
    assert "workers ready after" in capsys.readouterr().out
    assert len(pretended.killed) == 3


def test_a_lost_worker_costs_its_fold_again_and_no_byte(pretended, walk, here, capsys):
    pretended.deaths = {0: 2, 1: 1}
    code, folder = walk("--workers", "2")
    assert code == 0
    assert_same_run(here, folder)
    assert capsys.readouterr().out.count("it is done again") == 3


def test_a_fold_that_ends_every_worker_ends_the_run_and_the_rest_is_kept(pretended, walk, here, capsys):
    pretended.deaths = {1: 3}
    code, folder = walk("--workers", "1")
    assert code == 1
    assert "fold 1 lost its worker" in (told := capsys.readouterr().err)
    assert "3 times now" in told
    assert statuses(folder) == ["done", "running"]
    assert walk("--workers", "2", "--resume")[0] == 0
    assert_same_run(here, folder)


def test_an_object_store_without_room_ends_the_run_with_its_words_and_it_goes_on_later(
    pretended, walk, here, monkeypatch, capsys
):
    def full(value):
        raise LostError("Failed to put object: the local disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(pretended, "put", full)
        code, folder = walk("--workers", "2")
    assert code == 1
    told = capsys.readouterr().err
    assert "Ray failed (LostError): Failed to put object: the local disk is full." in told
    assert "--resume goes on from here" in told
    assert walk("--workers", "2", "--resume")[0] == 0
    assert_same_run(here, folder)


def test_a_fold_that_raises_ends_the_run_with_its_error_after_the_folds_before_it(
    pretended, walk, here, monkeypatch, capsys
):
    fit = WalkForward._fit

    def broken(self, module, directory):
        if module.fold[0] == 1 and not (Path("mended")).exists():
            raise RuntimeError(f"broken in {directory}")
        return fit(self, module, directory)

    monkeypatch.setattr(WalkForward, "_fit", broken)
    code, folder = walk("--workers", "3")
    assert code == 1
    assert f"broken in {folder / 'fold_001'}" in capsys.readouterr().err
    assert statuses(folder) == ["done", "running", "running"]
    assert (folder / "fold_002/selected.ckpt").is_file()  # it was done, and is kept for the resume
    Path("mended").touch()
    assert walk("--resume")[0] == 0
    assert_same_run(here, folder)


def test_a_signal_ends_the_run_once_workers_have_brought_what_they_saved(pretended, walk, here, monkeypatch, capsys):
    steps = []
    step = LitPPO.training_step

    def interrupted(self, batch, batch_idx):
        steps.append(self.fold[0])
        if len(steps) == 6:
            interrupts.request(signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitPPO, "training_step", interrupted)
    monkeypatch.setattr(interrupts, "_installed", [])
    code, folder = walk("--workers", "2")
    assert code == 143
    assert "everything is saved; --resume goes on from here" in capsys.readouterr().err
    assert pretended.stops == [signal.SIGTERM]
    assert list(folder.glob("fold_*/checkpoint-000002-*.ckpt"))
    assert walk("--workers", "2", "--resume")[0] == 0
    assert_same_run(here, folder)


def test_folds_that_begin_from_earlier_ones_are_one_chain(pretended, walk, capsys):
    warm = ("--trainer.callbacks+=callbacks.WarmStart", "--trainer.callbacks.optimizer=true")
    warm += ("--data.test_size=110", "--data.step_size=110")  # a fold sees no bar that its source has validated on
    assert walk(*warm, results="here")[0] == 0
    code, folder = walk(*warm, "--workers", "2", results="workers")
    assert code == 0
    assert "one worker trains them in turn" in capsys.readouterr().out
    assert "fold" in load_run(folder).folds[1].details["optimisations"]["warm_start"]
    assert_same_run(folder.parents[1] / "here" / str(SEED), folder)


@dataclass
class Named:
    """A loop whose folds come back with its name."""

    name: str
    folder: RunFolder
    datamodule: object
    seed: int = 1
    monitor: object = None
    chained: bool = False

    def begin(self, fold: Fold) -> None:
        pass

    def work(self, fold: Fold) -> FoldWork:
        return FoldWork(FoldRecord(fold.index, stop_reason=self.name), None, None, None)

    def to_send(self, workers: int) -> Named:
        return self


def test_workers_that_are_kept_go_from_one_loop_to_the_next_whether_or_not_the_first_was_finished(pretended, tmp_path):
    folds = [Fold(index, BarRange(0, 1), BarRange(1, 2), BarRange(2, 3)) for index in range(5)]
    pretended.shutdown()
    workers, found = RayWorkers(2), []
    with workers.kept():
        assert pretended.starts == ["shutdown"]  # nobody has asked for a fold
        for name, given, wanted in (("first", 1, 1), ("second", 5, 5), ("third", 5, 2)):
            loop = Named(name, RunFolder(tmp_path / name, 1), SimpleNamespace(folds=folds))
            with closing(workers.results(loop, folds[:given])) as results:
                found.append([(x.record.index, x.record.stop_reason) for x in islice(results, wanted)])
        assert pretended.killed == []
        assert pretended.starts == ["shutdown", "init"]
    assert found == [[(index, name) for index in range(n)] for name, n in (("first", 1), ("second", 5), ("third", 2))]
    assert len(pretended.killed) == 2  # one of them hired for the second
    assert pretended.starts == ["shutdown", "init", "shutdown"]


def test_a_worker_forgets_a_stop_that_was_meant_for_an_earlier_loop(monkeypatch):
    monkeypatch.setattr(interrupts, "_received", [])
    worker = engine.Worker("first", 1, False)
    worker.stop(signal.SIGTERM, 0)
    assert interrupts.requested()
    worker.take("second", 1)
    assert not interrupts.requested()
    worker.stop(signal.SIGTERM, 0)  # late
    assert not interrupts.requested()
    worker.stop(signal.SIGTERM, 1)
    assert interrupts.requested()


def test_a_worker_with_other_code_is_refused(pretended, walk, monkeypatch, capsys):
    codes = iter([{"code": "other", "versions": {}}, {"code": "ours", "versions": {}}])
    monkeypatch.setattr(engine, "_code", lambda: next(codes))
    assert walk("--workers", "1")[0] == 2
    assert "differs from this machine in code" in capsys.readouterr().err


def test_more_workers_than_the_cluster_has_cores_are_refused(pretended, walk, capsys):
    pretended.cores = 2
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
    there = RunFolder(tmp_path / "there", 1)
    store = CheckpointStore(there.fold_path(0))
    store.save({"step": 1})
    store.save({"step": 2})
    early = fold_files(there, 0)
    store.save({"step": 3})
    store.save({"step": 4})
    late = fold_files(there, 0)
    newest = []
    for reached in range(4):  # two checkpoints and the manifest are new
        here, written = RunFolder(tmp_path / f"here_{reached}", 1), []
        write_files(here, 0, early)

        def dying(path, data, reached=reached, written=written):
            if len(written) == reached:
                raise KeyboardInterrupt
            written.append(path)
            Path(path).write_bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr(engine, "atomic_write", dying)
            with pytest.raises(KeyboardInterrupt) if reached < 3 else nullcontext():
                write_files(here, 0, late)
        newest.append(CheckpointStore(here.fold_path(0)).load_newest()[0]["step"])
    assert newest == [2, 3, 4, 4]
    assert fold_files(here, 0) == late


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


def test_a_ray_that_does_not_start_is_told_without_a_traceback(walk, monkeypatch, capsys):
    ray = pytest.importorskip("ray")

    started = []

    def fail(**options):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "/ray/gcs_server"]))
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    code, folder = walk("--workers", "2")
    assert code == 1
    assert "Ray did not start on this machine: The current node timed out" in capsys.readouterr().err
    assert len(started) == engine.START_ATTEMPTS
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGKILL] * engine.START_ATTEMPTS
    assert walk("--cluster", "10.0.0.1:6379", "--resume")[0] == 2
    assert "--cluster 10.0.0.1:6379: there is no Ray cluster" in capsys.readouterr().err
    started[-1].kill()  # with a cluster it is not ours
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
