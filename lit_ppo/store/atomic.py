"""Files that are whole or absent: every file a resume reads is written here.

    temporary file in the SAME directory -> flush -> fsync -> os.replace -> fsync of the directory

Every file of the product that is written is opened here, and no symbolic link is followed: a link in the place of a
file that is replaced whole is replaced, one in the place of a file that grows or of a folder is refused. A test lists
every call that could write, and finds them here alone.

A kill at any moment leaves the old file or the new one, never a torn one. The system's temp directory is not used: a
rename across filesystems is a copy. Nothing but the standard library is imported: the light commands write with it too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

TEMPORARY_SUFFIX = ".lit-ppo-tmp"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# A fault-injection test sets LIT_PPO_FAILPOINT="STAGE[@FILE NAME ENDING][:NTH]": the process kills itself (SIGKILL)
# when it reaches that stage for the NTH time, e.g. "after_fsync@manifest.json:2". Read once, so unset costs nothing.
_FAILPOINT = os.environ.get("LIT_PPO_FAILPOINT")
_reached = 0


def failpoint(stage: str, name: str = "") -> None:
    """Die here if the environment variable LIT_PPO_FAILPOINT asks for it (fault-injection tests only)."""
    if _FAILPOINT is None:
        return
    global _reached
    where, _, nth = _FAILPOINT.partition(":")
    wanted, _, ending = where.partition("@")
    if stage == wanted and name.endswith(ending):
        _reached += 1
        if _reached == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def room_for(target: Path, size: int) -> Iterator[None]:
    """Make "no space left" name the file, the bytes needed and the bytes free.

    Raises:
        OSError: with that message; any other one as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shutil.disk_usage(target.parent).free
        raise OSError(
            error.errno,
            f"No room to write {target}: {size} bytes needed, {free} free on its disk. What was there before is "
            "untouched. Free some space or choose another directory",
        ) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte: the system may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_link(path: Path) -> Path:
    """Return `path` unless it is a symbolic link: what is written there would land outside the run's folder.

    Raises:
        ValueError: it is one; names it and where it leads.
    """
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link (to {os.readlink(path)}); a run writes only inside its own folder. Remove the "
            "link"
        )
    return path


def own_folder(path: Path) -> Path:
    """Make a folder inside a run, with its parents, unless it is there; a symbolic link is refused.

    Raises:
        ValueError: it is a link.
    """
    refuse_link(path).mkdir(parents=True, exist_ok=True)
    return path


def open_own(path: Path) -> FileIO:
    """Open a file inside a run to read and write without buffer, at its start; made if absent, never cut.

    Every file that grows is opened here; one that is replaced whole goes through `atomic_write`.

    Raises:
        ValueError: the file is a symbolic link, or no regular file.
        OSError: it cannot be opened.
    """
    refuse_link(path)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO would hang
    file = FileIO(str(path), "r+", opener=lambda name, _: os.open(name, flags, 0o644))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is no regular file, and a run cannot write to it. Remove it")
    return file


def open_new(path: Path) -> int:
    """Make a file that was not there, and return its descriptor, to write.

    Raises:
        FileExistsError: something of that name is there, be it a link that leads nowhere.
        OSError: it cannot be made.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` so that a reader, or a kill, sees the old content or the new one.

    Raises:
        OSError: the directory is missing, not writable, or full; names the file, the bytes needed and the bytes free.
            The old file is untouched and no temporary file is left.
    """
    target = Path(path)
    if isinstance(data, str):
        data = data.encode()
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    failpoint("before_write", target.name)
    try:
        with room_for(target, len(data)):
            descriptor = open_new(temporary)
            try:
                if _FAILPOINT is None:
                    write_all(descriptor, data)
                else:
                    half = len(data) // 2
                    write_all(descriptor, data[:half])
                    failpoint("mid_write", target.name)
                    write_all(descriptor, data[half:])
                failpoint("after_write", target.name)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            failpoint("after_fsync", target.name)
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)
    failpoint("after_replace", target.name)


def remove_temporaries(directory: str | os.PathLike[str]) -> list[Path]:
    """Remove what killed writers left in `directory`; only its owner may call this. Returns what was removed."""
    found = sorted(Path(directory).glob(f".*{TEMPORARY_SUFFIX}"))
    for path in found:
        path.unlink(missing_ok=True)
    return found


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
