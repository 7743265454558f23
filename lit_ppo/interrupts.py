"""Ctrl-C, SIGTERM, a closed terminal: finish the PPO iteration, save, leave with the signal's code; twice: at once.

Lightning turns SIGTERM into exit code 0 and Ctrl-C into 1; a scheduler then takes a killed run for a finished one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_installed: list[int] = []  # the signals that are ours
RESUMES, NOTHING_KEPT = "everything is saved; --resume goes on from here", "nothing is kept"
LAST = "everything is saved; --ckpt_path last goes on from here"
WAYS_ON = {"walk-forward": RESUMES, "search": RESUMES, "fit": LAST, "pretrain": LAST}  # by command
_way_on = [RESUMES]  # what the message says; of the command that has installed
_received: list[int] = []  # signal numbers of this process, which is what a signal is sent to


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop and has saved what a resume needs.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}; {_way_on[0]}")
        self.exit_code = 128 + number


def _handle(number: int, frame: FrameType | None) -> None:
    if _received:
        os._exit(128 + number)  # every file is whole or absent at any moment, so leaving at once is safe
    _received.append(number)
    name = signal.Signals(number).name
    message = f"\n{name}: stopping after this PPO iteration; once more to leave at once.\n"
    with contextlib.suppress(OSError):  # the terminal may be gone: that is what SIGHUP says
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())


def install(way_on: str = RESUMES) -> None:
    """Take these signals over for this process (main thread, by the command line only); `way_on`: what to do after."""
    _received.clear()
    _way_on[:] = [way_on]
    _installed[:] = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # `nohup` means it
    take_over()


def take_over() -> None:
    """Take back the signals that `install` took, where a library has put its own handlers since."""
    for number in _installed:
        signal.signal(number, _handle)


def requested() -> bool:
    """Whether this process was asked to stop."""
    return bool(_received)


def received() -> int:
    """Number of the signal that asked this process to stop; 0: none."""
    return _received[0] if _received else 0


def request(number: int) -> None:
    """Ask this process to stop as signal `number` would: for a worker whose driver got it."""
    _received.append(number)


def withdraw() -> None:
    """Forget a request: for a worker that goes on with other work."""
    _received.clear()


def raise_if_requested() -> None:
    """Stop here, between two stages.

    Raises:
        Interrupted: a signal came.
    """
    if _received:
        raise Interrupted(_received[0])


class StopOnSignal(Checkpoint):
    """Leave the training after the PPO iteration in which a signal came, once every other callback has saved.

    Reads `pl_module.stop_requested` (agreed on by all ranks). A `Checkpoint`, because Lightning calls those last; the
    command line puts it behind all others.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has put its own SIGTERM handler before ours by now. It ends the process in the middle of an
        # iteration, unsaved and with another exit code, depending on when the signal comes.
        if _installed:
            take_over()
            trainer._signal_connector.received_sigterm = False  # what came meanwhile, we have seen too

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.stop_requested:
            # Another rank may have got the signal: the scheduler's SIGTERM is then the likelier one.
            raise Interrupted(_received[0] if _received else signal.SIGTERM)
