"""One process at a time in a run's folder: `results/<seed>/.lock` names the owner.

A kill leaves the file behind. The next run takes it over when the owner is certainly gone: this host was started anew
since, or on this host no process has the owner's number and start time. An owner on another host cannot be looked at,
so its lock stands until somebody deletes the file.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from lit_ppo.store.atomic import open_new, sync_directory, write_all

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


class RunLockedError(RuntimeError):
    """Another process runs in this folder."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    pid: int
    host: str
    boot_id: str  # changes when the host starts; empty where the system does not tell
    process_start: str  # clock ticks after the host's start; a number that is used again differs in it
    since: str  # ISO 8601, UTC; for the reader only, never compared
    token: str  # tells two locks of one process apart


class RunLock:
    """Hold a run's folder: `with RunLock(folder.path): ...`.

    Raises:
        RunLockedError: on entering, if another process holds it; names that process, its host and since when.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / LOCK_NAME
        self._owner: Owner | None = None

    def acquire(self) -> None:
        """Take the lock, or raise."""
        if self._owner is not None:
            raise RuntimeError(f"{self.path} is held by this object already; release it first")
        me = Owner(
            pid=os.getpid(),
            host=socket.gethostname(),
            boot_id=_boot_id(),
            process_start=_process_start(os.getpid()) or "",
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=uuid.uuid4().hex,
        )
        with alone_in(self.path.parent):
            if os.path.lexists(self.path):
                owner = _read(self.path)
                if owner is not None and not _is_gone(owner):
                    raise RunLockedError(
                        f"{self.path.parent} is in use by process {owner.pid} on {owner.host} since {owner.since}. "
                        "Wait for it or choose another --seed or --results directory; if that process is surely gone, "
                        f"delete {self.path}"
                    )
                self.path.unlink()
            descriptor = open_new(self.path)
            try:
                write_all(descriptor, json.dumps(asdict(me)).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_directory(self.path.parent)
        self._owner = me

    def release(self) -> None:
        """Give the lock back; a lock that somebody else took meanwhile stays."""
        if self._owner is None:
            return
        with alone_in(self.path.parent):
            if os.path.lexists(self.path) and _read(self.path) == self._owner:
                self.path.unlink()
        self._owner = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    # Looking at a stale lock and replacing it are two steps; without this, two runs could both see it and the slower
    # one delete the faster one's new lock. The system drops this short lock with its process, so it is never stale.
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> Owner | None:
    """The owner a lock names; None where a kill or a power cut left a file that names none."""
    if path.is_symlink():
        raise RunLockedError(f"{path} is a symbolic link, not a lock. Remove it")
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None


def _is_gone(owner: Owner) -> bool:
    if owner.host != socket.gethostname():
        return False
    boot_id = _boot_id()
    if owner.boot_id and boot_id and owner.boot_id != boot_id:
        return True
    start = _process_start(owner.pid)
    if start is None:
        return not _is_alive(owner.pid)
    return bool(owner.process_start) and start != owner.process_start


def _is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill(pid, 0) would end it there; the message tells the user what to delete
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process: alive
        return True
    return True


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _process_start(pid: int) -> str | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such file system or process; "dead" for a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()  # the name in brackets may hold spaces and brackets itself
    return "dead" if after_name[0] in "ZX" else after_name[19]  # a zombie only waits for its parent to look at it
