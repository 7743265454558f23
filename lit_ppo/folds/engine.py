"""Who trains the folds: this process (the default), or long-lived Ray actors here or on a cluster.

    loop (sent once) + number of a fold + the files that its folder holds already
        -> a worker trains, selects and tests it in a folder of its own
        -> the folder's files and a `FoldWork`, which the driver writes down in the order of the folds

A worker shares no disk with the driver and writes nothing of the run: the driver's ledger of folds is the one truth,
and what it says does not depend on how many workers there were or which of them died. A fold whose worker is lost is
done again; a run that is stopped keeps what every worker had saved.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import psutil
import torch

from lit_ppo import interrupts
from lit_ppo.market.books import Ledger
from lit_ppo.market.tensors import Fold
from lit_ppo.module import quiet_lightning
from lit_ppo.scoring.fills import FillTable
from lit_ppo.store.atomic import TEMPORARY_SUFFIX, atomic_write, own_folder
from lit_ppo.store.checkpoints import MANIFEST
from lit_ppo.store.provenance import package_versions, source_sha256
from lit_ppo.store.results import FoldRecord, RunFolder

START_SECONDS = 600.0  # without a single worker, before the run gives up
START_ATTEMPTS = 3  # Ray gives itself 30 s, which a busy machine may not do in
MOST_DEATHS = 3  # workers that one fold may cost
POLL_SECONDS = 0.5
Files = dict[str, bytes]  # by path inside the run's folder


@dataclass
class FoldWork:
    """A fold that is trained, selected and tested, and not yet in the ledger.

    Attributes:
        record: for the ledger, but for what depends on the folds before.
        ledger: books of its test decisions.
        probability: [D] what the policy gave the position of each.
        fills: what any position would have earned on them.
    """

    record: FoldRecord
    ledger: Ledger
    probability: np.ndarray
    fills: FillTable


class Loop(Protocol):
    """What an engine asks of `WalkForward`; it can be pickled."""

    folder: RunFolder
    seed: int
    monitor: Any
    chained: bool

    def begin(self, fold: Fold) -> None:
        """Tell the ledger that a fold is being trained."""
        ...

    def work(self, fold: Fold) -> FoldWork:
        """Train, select and test a fold in `folder`."""
        ...

    def to_send(self, workers: int) -> Any:
        """What a worker needs of it, one of so many."""
        ...


class Engine(Protocol):
    """Turns folds into work that is done."""

    def results(self, loop: Any, folds: Sequence[Fold]) -> Iterator[FoldWork]:
        """Give the work of every fold, in their order.

        Raises:
            Interrupted: a signal came; what can be resumed lies in the run's folder.
            Exception: what a fold raised, once the folds before it are given.
        """
        ...

    def kept(self) -> contextlib.AbstractContextManager[None]:
        """Keep what takes long to start from one call of `results` to the next."""
        ...


class InProcess:
    """One fold after the other, here."""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """See `Engine`."""
        yield

    def results(self, loop: Loop, folds: Sequence[Fold]) -> Iterator[FoldWork]:
        """See `Engine`."""
        for fold in folds:
            interrupts.raise_if_requested()
            loop.begin(fold)
            yield loop.work(fold)


@dataclass
class Returned:
    """What a worker gives back for a fold.

    Attributes:
        files: of the fold's folder, whatever happened.
        there: where the worker had the run's folder.
        work: None if the fold was stopped or failed.
        error: None unless it failed.
    """

    files: Files
    there: str
    work: FoldWork | None = None
    error: Exception | None = None


class Worker:
    """The remote half: trains the folds that it is given, one at a time. Ray makes an actor of it.

    Args:
        loop: of the driver, with its bars; its folder and displays stay there.
        threads: of torch.
        live: the driver has a display, and asks for `progress`.
        number: of the loop, of those that the workers are given one after the other.
    """

    def __init__(self, loop: Any, threads: int, live: bool, number: int = 0) -> None:
        quiet_lightning()
        self.loop, self.threads, self.live, self.said = loop, threads, live, ""
        self.number, self._alone = number, threading.Lock()

    def take(self, loop: Any, number: int, live: bool = False) -> None:
        """From here on train the folds of another loop; a `stop` that was meant for an earlier one is forgotten."""
        with self._alone:
            self.loop, self.number, self.live = loop, number, live
            interrupts.withdraw()

    def ready(self) -> dict[str, Any]:
        """Where this is, and with which code."""
        return {"host": socket.gethostname(), "pid": os.getpid(), **_code()}

    def train(self, index: int, files: Files, earlier: Sequence[Files]) -> Returned:
        """Bring fold `index` as far as it goes.

        Args:
            index: of the fold.
            files: what the run's folder holds of it, and the ledger.
            earlier: what folds before it have left, where they matter.
        """
        torch.set_num_threads(self.threads)  # of this thread: Ray chooses which one runs a call
        with tempfile.TemporaryDirectory(prefix="lit-ppo-worker-", ignore_cleanup_errors=True) as directory:
            folder = RunFolder(directory, self.loop.seed)
            for part in (files, *earlier):
                for name, content in part.items():
                    path = folder.path / inside(name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    atomic_write(path, content)
            loop = dataclasses.replace(self.loop, folder=folder, monitor=_Said(self, self.live))
            work, error = None, None
            try:
                work = loop.work(loop.datamodule.folds[index])
            except interrupts.Interrupted:
                pass
            except Exception as raised:  # whatever it is, it is the driver's to tell
                error = _portable(raised)
            return Returned(fold_files(folder, index), str(folder.path), work, error)

    def progress(self) -> str:
        """What the training says of itself."""
        return self.said

    def stop(self, signal_number: int, number: int = 0) -> None:
        """Save after this PPO iteration and return, as after a signal; `number`: of the loop that is meant."""
        with self._alone:
            if number == self.number:
                interrupts.request(signal_number)


@dataclass
class _Said:
    """A `Monitor` for the module's eyes: keeps the line for whoever asks."""

    worker: Worker
    live: bool

    def show(self, text: str) -> None:
        self.worker.said = text


@dataclass
class RayWorkers:
    """Long-lived Ray actors, one fold each at a time.

    Args:
        workers: how many; 0: as many as the cluster has cores.
        cluster: address of a Ray cluster; None: on this machine, for this run.
        threads: of torch, in each.

    Raises:
        RuntimeError: Ray is not installed, or no worker came up.
        ValueError: the numbers cannot be meant, or a worker has other code.
    """

    workers: int
    cluster: str | None = None
    threads: int = 1
    _ray: Any = field(default=None, init=False)
    _kept: contextlib.ExitStack | None = field(default=None, init=False)  # what ends with `kept`
    _pool: Any = field(default=None, init=False)  # of the call before, where they are kept
    _count: int = field(default=0, init=False)  # workers there may be; 0: Ray is not connected

    def __post_init__(self) -> None:
        if self.workers < 0 or (self.workers == 0 and self.cluster is None):
            raise ValueError(f"workers is a number of processes >= 1, got {self.workers}")
        self._ray = _import_ray()

    def results(self, loop: Loop, folds: Sequence[Fold]) -> Iterator[FoldWork]:
        """See `Engine`."""
        if not folds:
            return
        try:
            with contextlib.nullcontext() if self._kept is not None else self.kept():
                if not self._count:
                    assert self._kept is not None
                    self._count = self._kept.enter_context(self._connected())
                if loop.chained:
                    print("Ray: each fold begins from earlier ones, so one worker trains them in turn", flush=True)
                workers = 1 if loop.chained else min(self._count, len(folds))
                if self._pool is None:
                    self._pool = _Pool(self._ray, loop, workers, self.threads)
                else:
                    self._pool.take(loop, workers)
                try:
                    yield from self._pool.results(folds)
                finally:
                    self._pool.stop()
        except self._ray.exceptions.RayError as error:  # what no new worker cures
            raise RuntimeError(
                f"Ray failed ({type(error).__name__}): {error} If its object store and the disk behind it are full, "
                "make room where Ray keeps its files (/tmp/ray, or RAY_TMPDIR). --resume goes on from here"
            ) from error

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """See `Engine`; Ray starts when the first fold asks for it, and ends here."""
        with contextlib.ExitStack() as self._kept:
            try:
                yield
            finally:
                if self._pool is not None:
                    self._pool.close()
                self._pool, self._kept, self._count = None, None, 0

    @contextlib.contextmanager
    def _connected(self) -> Iterator[int]:
        """A Ray to work with, and how many workers it is to have."""
        ray, own = self._ray, not self._ray.is_initialized()
        if own:
            self._start()
        try:
            interrupts.take_over()  # Ray has put its own SIGTERM handler
            cores = int(ray.cluster_resources().get("CPU", 0)) // self.threads
            if self.workers > cores:
                raise ValueError(
                    f"--workers {self.workers} with {self.threads} threads each, and the cluster has "
                    f"{cores * self.threads} cores: ask for {cores} at most"
                )
            yield self.workers or cores
        finally:
            if own:
                ray.shutdown()
            interrupts.take_over()

    def _start(self) -> None:
        options: dict[str, Any] = {"address": self.cluster or "local", "log_to_driver": True, "logging_level": "ERROR"}
        if self.cluster is None:
            print("Ray: starting on this machine, which takes some 10 s", flush=True)
            options |= {"num_cpus": self.workers * self.threads, "include_dashboard": False}
            options |= {"_node_ip_address": "127.0.0.1"}  # nobody else's: who reaches Ray's ports can run code
        else:
            print(f"Ray: connecting to {self.cluster}", flush=True)
        before = _rays_processes().keys()
        for attempt in range(START_ATTEMPTS):
            try:
                self._ray.init(**options)
                return
            except Exception as error:  # Ray raises that very class where it comes up too slowly
                if self.cluster is not None:
                    raise ValueError(
                        f"--cluster {self.cluster}: there is no Ray cluster that can be reached ({error}). `ray start "
                        "--head` starts one, `ray status` shows it"
                    ) from error
                self._ray.shutdown()
                for pid, process in _rays_processes().items():  # Ray forgets those of a start that came to nothing
                    if pid not in before:
                        with contextlib.suppress(psutil.Error):
                            process.kill()
                if attempt == START_ATTEMPTS - 1:
                    raise RuntimeError(
                        f"Ray did not start on this machine: {error} Nothing is lost: give the machine less to do and "
                        "start again, or leave --workers out"
                    ) from error
                print("Ray: not up in time; once more", flush=True)
                interrupts.raise_if_requested()


@dataclass(eq=False)
class _Hand:
    """One worker as the driver sees it."""

    actor: Any
    name: str = ""  # host and process, once it is ready
    fold: Fold | None = None


class _Pool:
    """Feeds workers and takes what they return. Nothing of it is remembered but in the run's folder."""

    def __init__(self, ray: Any, loop: Loop, workers: int, threads: int) -> None:
        self.ray, self.loop, self.workers, self.threads = ray, loop, 0, threads
        self.sent = ray.put(loop.to_send(workers))
        self.live = loop.monitor is not None and loop.monitor.live
        self.manned = time.monotonic()  # until when somebody was there to work
        self.waiting: deque[Fold] = deque()
        self.idle: list[_Hand] = []
        self.busy: dict[Any, _Hand] = {}  # by the reference of what is awaited
        self.returned: dict[int, Returned] = {}
        self.deaths: Counter[int] = Counter()
        self.chain: dict[int, Files] = {}  # what earlier folds have left
        self.number = 0  # of the loop, of those that the workers were given
        self.came = 0  # workers that have come up
        self._have(workers)

    def results(self, folds: Sequence[Fold]) -> Iterator[FoldWork]:
        self.waiting.extend(folds)
        for fold in folds:
            while fold.index not in self.returned:
                self._feed(fold)
                self._wait()
                interrupts.raise_if_requested()
            done = self.returned.pop(fold.index)
            if done.error is not None:
                raise _as_of_here(done.error, done.there, str(self.loop.folder.path))
            assert done.work is not None
            if not self.loop.chained:
                self._feed(fold)  # before the driver is busy writing
            yield done.work

    def take(self, loop: Loop, workers: int) -> None:
        """Give the workers another loop, which wants so many at least; nobody is at work."""
        wanted = max(workers, self.workers)
        self.loop, self.sent, self.number = loop, self.ray.put(loop.to_send(wanted)), self.number + 1
        self.live = loop.monitor is not None and loop.monitor.live
        self.deaths, self.chain = Counter(), {}
        everyone = (*self.idle, *self.busy.values())
        asked = {hand.actor.take.remote(self.sent, self.number, self.live): hand for hand in everyone}
        for reference, hand in asked.items():
            try:
                self.ray.get(reference)
            except self.ray.exceptions.RayError as error:  # it died since
                self.idle = [one for one in self.idle if one is not hand]
                self.busy = {key: one for key, one in self.busy.items() if one is not hand}
                self._lost(hand, error)
        self._have(wanted)

    def stop(self) -> None:
        """Let every worker save, and keep its files."""
        for hand in self._at_work().values():
            hand.actor.stop.remote(interrupts.received() or signal.SIGTERM, self.number)
        while at_work := self._at_work():
            self._wait(at_work)
        self.waiting.clear()
        self.returned.clear()

    def close(self) -> None:
        """End every worker."""
        for hand in (*self.idle, *self.busy.values()):
            self.ray.kill(hand.actor)
        self.idle, self.busy = [], {}

    def _at_work(self) -> dict[Any, _Hand]:
        return {reference: hand for reference, hand in self.busy.items() if hand.fold is not None}

    def _have(self, workers: int) -> None:
        """Hire the workers that are missing."""
        self.started = time.monotonic()
        for _ in range(workers - self.workers):
            self._hire()
        self.workers = max(workers, self.workers)

    def _hire(self) -> None:
        actor = self.ray.remote(Worker).options(num_cpus=self.threads, max_concurrency=2)
        hand = _Hand(actor.remote(self.sent, self.threads, self.live, self.number))
        self.busy[hand.actor.ready.remote()] = hand

    def _feed(self, next_in_order: Fold) -> None:
        # In a chain the folds before must be in the ledger first.
        while self.idle and self.waiting and (not self.loop.chained or self.waiting[0] is next_in_order):
            hand, fold = self.idle.pop(), self.waiting.popleft()
            self.loop.begin(fold)
            files = fold_files(self.loop.folder, fold.index) | _ledger(self.loop.folder)
            earlier = self._left_by_earlier(fold) if self.loop.chained else []
            hand.fold = fold
            self.busy[hand.actor.train.remote(fold.index, files, earlier)] = hand

    def _left_by_earlier(self, fold: Fold) -> list[Files]:
        """What a fold may take from the ones before it: every file but the rolling checkpoints."""
        for record in self.loop.folder.folds():
            if record.index < fold.index and record.index not in self.chain and record.status == "done":
                files = fold_files(self.loop.folder, record.index)
                self.chain[record.index] = {name: x for name, x in files.items() if "/checkpoint-" not in name}
        return [self.chain[index] for index in sorted(self.chain) if index < fold.index]

    def _wait(self, awaited: Mapping[Any, _Hand] | None = None) -> None:
        """Take what has come back; `awaited`: the last ones, whose loss is none."""
        references, errors = list(awaited or self.busy), self.ray.exceptions
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
        for reference in ready:
            hand = self.busy.pop(reference)
            try:
                found = self.ray.get(reference)
            except errors.RayTaskError as error:  # of our own code: it would fail again
                raise error.cause if isinstance(error.cause, Exception) else error from error
            except errors.RayError as error:  # its process, its node or its answer is gone
                if awaited is None:
                    self._lost(hand, error)
                continue
            if hand.fold is None:
                self._introduce(hand, found)
            else:
                write_files(self.loop.folder, hand.fold.index, found.files)
                if found.work is not None or found.error is not None:
                    self.returned[hand.fold.index] = found
                else:  # stopped
                    self.waiting.appendleft(hand.fold)
                hand.fold = None
            self.idle.append(hand)
        if self.idle or self._at_work():
            self.manned = time.monotonic()
        elif time.monotonic() - self.manned > START_SECONDS:
            raise RuntimeError(
                f"For {START_SECONDS:.0f} s no worker has come up; `ray status` says what the cluster waits for. "
                "--resume goes on from here"
            )
        self._show()

    def _introduce(self, hand: _Hand, found: dict[str, Any]) -> None:
        hand.name = f"process {found.pop('pid')} on {found.pop('host')}"
        if other := [name for name, value in _code().items() if found[name] != value]:
            raise ValueError(
                f"The worker {hand.name} differs from this machine in {', '.join(other)}: its folds would not be this "
                f"run's. Install the same lit-ppo and packages there ({[found[name] for name in other]})"
            )
        self.came += 1
        if self.came == self.workers:
            seconds = time.monotonic() - self.started
            threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
            print(f"Ray: workers ready after {seconds:.1f} s: {self.workers}, with {threads} each", flush=True)

    def _lost(self, hand: _Hand, error: Exception) -> None:
        key, what = -1, f"a worker could not start ({error})"
        if hand.fold is not None:
            key = hand.fold.index
            what = f"fold {key} lost its worker, {hand.name} ({type(error).__name__})"
        self.deaths[key] += 1
        if self.deaths[key] >= MOST_DEATHS:
            raise RuntimeError(
                f"{what}, {MOST_DEATHS} times now. If memory ran out, use fewer --workers or a smaller "
                "model.num_envs; --resume goes on from here"
            )
        if hand.fold is not None:
            print(f"Ray: {what}; it is done again", flush=True)
            self.waiting.appendleft(hand.fold)
        self._hire()

    def _show(self) -> None:
        if not self.live:
            return
        hands = list(self._at_work().values())
        asked = [hand.actor.progress.remote() for hand in hands]
        came, _ = self.ray.wait(asked, num_returns=len(asked), timeout=POLL_SECONDS) if asked else ([], [])
        lines = []
        for hand, reference in zip(hands, asked, strict=True):
            text = ""
            if reference in came:
                with contextlib.suppress(self.ray.exceptions.RayError):  # its loss shows where its fold is awaited
                    text = self.ray.get(reference)
            lines.append(text or f"fold {hand.fold.index if hand.fold else ''}: starting")
        self.loop.monitor.show("\n".join(lines))


def inside(name: str) -> PurePosixPath:
    """Return a relative path that stays inside the folder that it is put into.

    Raises:
        ValueError: it would not.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"A worker named the file {name!r}, which does not lie inside the run's folder")
    return path


def fold_files(folder: RunFolder, index: int) -> Files:
    """Every regular file of a fold's folder, temporary ones left out."""
    return {
        path.relative_to(folder.path).as_posix(): path.read_bytes()
        for path in sorted(folder.fold_path(index).rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.name.endswith(TEMPORARY_SUFFIX)
    }


def write_files(folder: RunFolder, index: int, files: Mapping[str, bytes]) -> None:
    """Make a fold's folder hold these files and no other; a kill on the way leaves what can be resumed.

    Checkpoints come before the manifests that list them, and what is gone goes last.
    """
    before = fold_files(folder, index)
    for name in sorted(files, key=lambda name: (name.endswith(MANIFEST), name)):
        path = folder.path / inside(name)
        if path.relative_to(folder.path).parts[0] != folder.fold_path(index).name:
            raise ValueError(f"A worker of fold {index} named the file {name!r} of another folder")
        if before.get(name) != files[name]:
            for parent in reversed(path.relative_to(folder.path).parents[:-1]):
                own_folder(folder.path / parent)
            atomic_write(path, files[name])
    for name in before.keys() - files.keys():
        (folder.path / name).unlink()


def _ledger(folder: RunFolder) -> Files:
    path = folder.file("folds.json")
    return {path.name: path.read_bytes()} if path.is_file() else {}


def _rays_processes() -> dict[int, psutil.Process]:
    """Ray's own among the descendants of this process, by number."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("/ray/" in word or word.startswith("ray::") for word in process.cmdline()):
                found[process.pid] = process
    return found


def _code() -> dict[str, Any]:
    return {"code": source_sha256(), "versions": package_versions()}


def _portable(error: Exception) -> Exception:
    """The error as another process can read it."""
    plain = all(value is None or isinstance(value, str | int | float) for value in vars(error).values())
    try:
        if plain and type(copy.copy(error)) is type(error):  # made again of its arguments, as the other process will
            return error
    except Exception:  # a class may refuse in any way
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _as_of_here(error: Exception, there: str, here: str) -> Exception:
    """The error with the worker's folder, which is gone, called by the name of the run's own."""
    error.args = tuple(part.replace(there, here) if isinstance(part, str) else part for part in error.args)
    return error


def _import_ray() -> Any:
    # Before Ray is imported: it would fold equal lines of several workers into one, and count its users.
    for name, value in (("RAY_DEDUP_LOGS", "0"), ("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_COLOR_PREFIX", "0")):
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RuntimeError(
            "--workers and --cluster need Ray, which is not installed: pip install lit-ppo[ray]. Without them the "
            "folds are trained in this process"
        ) from error
    return ray
