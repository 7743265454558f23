"""Train a fold's candidates side by side, each in a process of its own.

A process is started once for the run (a start costs some seconds), reads the same bars, and trains with the same code
on one thread, so that the result is the one of training in turn. How many there are is bounded by cores and memory.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from lit_ppo import interrupts
from lit_ppo.folds.candidates import Trained, candidate_path
from lit_ppo.folds.machine_load import available_memory, usable_cores

SHARE_OF_MEMORY = 0.5  # of what is available that further processes may take together


@dataclass(frozen=True)
class Job:
    """What a process needs to build the run's loop.

    Attributes:
        config: the run's merged configuration, YAML.
        allowed_modules: that `--allow-module` named.
        datamodule_class: what `data.*` configures.
        root, seed: of the run's folder.
        threads: torch threads in each process.
    """

    config: str
    allowed_modules: tuple[str, ...]
    datamodule_class: type
    root: str
    seed: int
    threads: int


def number_of_processes(candidates: int, asked: int | None, each_bytes: int | None = None) -> tuple[int, str]:
    """Return how many processes train side by side, and what bounded them.

    Args:
        candidates: of a fold; more processes have nothing to do.
        asked: by the user; None: as many as cores.
        each_bytes: memory that one takes; default: what this process, which holds the same bars and code, takes now.

    Raises:
        ValueError: fewer than one was asked for.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"candidate_processes is a number of processes >= 1, or null for one a core; got {asked}")
    each = each_bytes or psutil.Process().memory_info().rss
    by_memory = int(SHARE_OF_MEMORY * available_memory() / each)
    bounds = {"candidates": candidates, "cores" if asked is None else "candidate_processes": asked or usable_cores()}
    bounds["memory"] = max(by_memory, 1)
    name = min(bounds, key=lambda key: bounds[key])
    return bounds[name], name


class CandidateProcesses:
    """The processes of one run; a context manager, which ends them.

    Args:
        job: what they build.
        count: how many.
    """

    def __init__(self, job: Job, count: int) -> None:
        self.job, self.count = job, count
        self._started: dict[Connection, Any] = {}

    def __enter__(self) -> CandidateProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in self._started.items():
            connection.close()
            process.join(5)
            if process.is_alive():
                process.kill()
        self._started = {}

    def train(self, fold: int, numbers: Sequence[int]) -> None:
        """Train candidates of a fold; what they gave lies in their folders.

        Raises:
            Interrupted: a signal came; every process has saved what it did.
            RuntimeError: a candidate failed, or its process died.
        """
        directory = Path(self.job.root) / str(self.job.seed) / f"fold_{fold:03d}"
        waiting = [number for number in numbers if Trained.read(candidate_path(directory, number)) is None]
        idle, busy = self._idle(len(waiting)), dict[Connection, int]()
        failures: list[str] = []
        told = False
        while busy or (waiting and not told and not failures):
            while idle and waiting and not told and not failures:
                connection = idle.pop()
                busy[connection] = waiting.pop(0)
                connection.send((fold, busy[connection]))
            for ready in wait(list(busy), timeout=0.1):
                assert isinstance(ready, Connection)
                number = busy.pop(ready)
                failure = self._answer(ready, fold, number)
                failures += [failure] if failure else []
                idle.append(ready)
            if interrupts.requested() and not told:
                told = True
                for connection in busy:
                    self._started[connection].terminate()  # it saves, as this process would
        interrupts.raise_if_requested()
        if failures:
            raise RuntimeError("; ".join(failures))

    def _idle(self, needed: int) -> list[Connection]:
        """Return the connections of the processes that there are, after starting as many as can be of use."""
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        while len(self._started) < min(needed, self.count):
            own, other = context.Pipe()
            process = context.Process(target=work, args=(other, self.job), daemon=True)
            process.start()
            other.close()
            self._started[own] = process
        return list(self._started)

    def _answer(self, connection: Connection, fold: int, number: int) -> str:
        """What went wrong with a candidate; empty if nothing did."""
        try:
            answer = connection.recv()
        except EOFError:
            process = self._started[connection]
            process.join(5)
            answer = (
                f"its process ended with exit code {process.exitcode}. If memory ran out, lower --candidate_processes"
            )
        return f"Candidate {number} of fold {fold}: {answer}" if answer else ""


def work(connection: Connection, job: Job) -> None:
    """What a process does: build the run's loop, train what it is told to, until the connection closes."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    interrupts.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent passes it on, once
    loop = None
    while True:
        try:
            fold, number = connection.recv()
        except EOFError:
            return
        try:
            loop = loop or _make_loop(job)
            path = candidate_path(loop.folder.fold_path(fold), number)
            path.mkdir(exist_ok=True)
            with open(path / "output.txt", "a") as output:  # two progress lines at once cannot be read
                sys.stdout = output
                loop.train_candidate(fold, number)
            answer = ""
        except interrupts.Interrupted:
            answer = "interrupted"
        except Exception as error:  # reported by the parent, which decides
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        finally:
            sys.stdout = sys.__stdout__
        connection.send(answer)


def _make_loop(job: Job) -> Any:
    import torch

    from lit_ppo.commands.lightning_cli import LitPPOCLI
    from lit_ppo.commands.walk_forward import make_loop
    from lit_ppo.store.results import RunFolder

    torch.set_num_threads(job.threads)
    # The parent has said what there is to say, once.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    allowed = [part for name in job.allowed_modules for part in ("--allow-module", name)]
    cli = LitPPOCLI("walk-forward", ["--config", job.config, *allowed], job.datamodule_class)
    cli.datamodule.setup("fit")
    return make_loop(cli, RunFolder(job.root, job.seed))


def _leave_with_parent() -> None:
    """A parent that was killed can start its run again: nobody else may then be writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
