"""One process at a time in a run's folder: it holds the system's lock on `results/<seed>/.lock`, which names the owner.

The system drops the lock with its process, however that ends: what a kill leaves behind is a file that nobody holds,
and the next run takes it over. The lock of another host may not be seen from here, so the file of one stands until
somebody deletes it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from filelock import FileLock, Timeout

from lit_ppo.store.atomic import open_own, write_all

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


class RunLockedError(RuntimeError):
    """Another process runs in this folder."""


class Owner(NamedTuple):
    """Who holds a lock, for the reader."""

    pid: int
    host: str
    since: str  # ISO 8601, UTC


class RunLock:
    """Hold a run's folder: `with RunLock(folder.path): ...`.

    Raises:
        RunLockedError: on entering, if another process holds it; names that process, its host and since when.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / LOCK_NAME
        self._held = FileLock(self.path, timeout=0)

    def acquire(self) -> None:
        """Take the lock, or raise."""
        if self._held.is_locked:
            raise RuntimeError(f"{self.path} is held by this object already; release it first")
        if self.path.is_symlink():
            raise RunLockedError(f"{self.path} is a symbolic link, not a lock. Remove it")
        here = socket.gethostname()
        try:
            self._held.acquire()
        except Timeout:
            raise self._refusal(self._owner()) from None
        owner = self._owner()
        if owner is not None and owner.host != here:
            self._held.release()
            raise self._refusal(owner)
        me = Owner(os.getpid(), here, datetime.now(UTC).isoformat(timespec="seconds"))
        with open_own(self.path) as file:
            file.truncate()
            write_all(file.fileno(), json.dumps(me._asdict()).encode())
            os.fsync(file.fileno())

    def release(self) -> None:
        """Give the lock back, and remove its file."""
        if self._held.is_locked:
            self.path.unlink(missing_ok=True)  # while it is held: who opened it meanwhile sees that it is gone
            self._held.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _owner(self) -> Owner | None:
        """The owner that the file names; None where a kill or a power cut left one that names none."""
        try:
            return Owner(**json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _refusal(self, owner: Owner | None) -> RunLockedError:
        who = "another process" if owner is None else f"process {owner.pid} on {owner.host} since {owner.since}"
        return RunLockedError(
            f"{self.path.parent} is in use by {who}. Wait for it or choose another --seed or --results directory; if "
            f"that process is surely gone, delete {self.path}"
        )


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Wait until no other process is in here with this directory; the system drops the lock with its process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
