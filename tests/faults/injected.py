"""Faults that a test switches on inside a run's process, by name: see `Launcher.start`."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import time
from pathlib import Path

import torch

from lit_ppo.commands import walk_forward as walk_forward_command
from lit_ppo.module import LitPPO
from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.losses import PPOLoss
from lit_ppo.ppo.rollout import Rollout
from lit_ppo.store import results

NAN_UPDATE = 20  # minibatch updates: 8 an iteration, so this is in the third iteration of the first fold


def no_capabilities() -> None:
    """Root may write into read-only directories by a capability; without it, mode bits count as for any user."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice 32 bits
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def small_files_only() -> None:
    """A checkpoint has 120,000 bytes and is refused; everything before the first one fits."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def clock_goes_back() -> None:
    """The wall clock loses an hour at every look at it."""
    _change_clock(-3600.0)


def clock_leaps() -> None:
    """The wall clock gains a year at every look at it."""
    _change_clock(365 * 86400.0)


def _change_clock(seconds: float) -> None:
    looks, clock = itertools.count(1), time.time
    time.time = lambda: clock() + next(looks) % 100 * seconds


def slow_iterations() -> None:
    """A PPO iteration takes three seconds: time for a second signal."""
    step = LitPPO.training_step

    def slow(self, batch, batch_idx):
        for _ in range(300):
            time.sleep(0.01)
        return step(self, batch, batch_idx)

    LitPPO.training_step = slow  # type: ignore[method-assign]


def nan_loss() -> None:
    """The loss of one update is no number."""
    _spoil_loss(lambda loss: loss._replace(total=loss.total * float("nan")))


def nan_gradient() -> None:
    """The loss is a number, its gradient is not: the square root of zero."""
    _spoil_loss(lambda loss: loss._replace(total=loss.total + (loss.total * 0).sqrt()))


def _spoil_loss(spoil) -> None:
    updates, original = itertools.count(1), Learner.loss

    def loss(self, minibatch: Rollout, pieces: int = 1) -> PPOLoss:
        found = original(self, minibatch, pieces)
        return spoil(found) if next(updates) == NAN_UPDATE else found

    Learner.loss = loss  # type: ignore[method-assign]


def infinite_observation() -> None:
    """One feature of one bar of a rollout is infinite."""
    _spoil_rollout("observations")


def nan_advantage() -> None:
    """A reward that is no number makes its advantage none."""
    _spoil_rollout("advantages")


def _spoil_rollout(name: str) -> None:
    rollouts, original = itertools.count(1), Learner.collect

    def collect(self) -> Rollout:
        rollout = original(self)
        if next(rollouts) == 3:
            part = rollout.seen if name == "observations" else rollout
            values = getattr(part, name).clone()
            values.view(-1)[len(values.view(-1)) // 2] = float("inf") if name == "observations" else float("nan")
            spoilt = part._replace(**{name: values})
            return rollout._replace(seen=spoilt) if name == "observations" else spoilt
        return rollout

    Learner.collect = collect  # type: ignore[method-assign]


def host_memory_ends() -> None:
    """In the third iteration the process may have no more memory than it has; the next tensor does not fit."""
    rollouts, original = itertools.count(1), Learner.collect

    def collect(self) -> Rollout:
        if next(rollouts) == 3:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            bytes_now = pages * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (bytes_now, bytes_now))
            torch.zeros(2**30)
        return original(self)

    Learner.collect = collect  # type: ignore[method-assign]


def device_memory_ends() -> None:
    """In the third iteration the device says what CUDA says."""
    _raise_in_third_rollout(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."))


def python_memory_ends() -> None:
    """In the third iteration Python itself finds no memory."""
    _raise_in_third_rollout(MemoryError())


def _raise_in_third_rollout(error: BaseException) -> None:
    rollouts, original = itertools.count(1), Learner.collect

    def collect(self) -> Rollout:
        if next(rollouts) == 3:
            raise error
        return original(self)

    Learner.collect = collect  # type: ignore[method-assign]


def other_code() -> None:
    """A line of ours was changed."""
    walk_forward_command.source_sha256 = lambda: "0123456789abcdef" * 4


def other_machine() -> None:
    """The run goes on with another processor."""
    here = results.machine()
    results.machine = lambda: {**here, "cpu": "another processor"}
