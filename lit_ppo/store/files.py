"""Names, cells and rows of the files in a run's folder: what keeps them inside it, exact, and safe to open.

Standard library, numpy and yaml only: the light commands read with it.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lit_ppo.store.atomic import (
    TEMPORARY_SUFFIX,
    failpoint,
    open_new,
    open_own,
    refuse_link,
    room_for,
    sync_directory,
    write_all,
)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10)}


def check_name(name: str) -> str:
    """Return `name` if it is safe as one part of a path on every system.

    Raises:
        ValueError: not 1 to 64 of `A-Za-z0-9._-`, or `.`, `..`, or a device name of Windows such as `con` or `nul.txt`.
    """
    if not _NAME.fullmatch(name) or name in {".", ".."} or name.split(".")[0].lower() in _DEVICES:
        raise ValueError(
            f"A file of a run needs a name of 1 to 64 letters, digits, '.', '_' or '-', not a device name; got {name!r}"
        )
    return name


# The safe loader lets out whatever a wrong scalar of a tagged type raises: `!!timestamp x` an AttributeError.
_YAML_ERRORS = (yaml.YAMLError, UnicodeError, ValueError, KeyError, AttributeError, TypeError, OverflowError)
MOST_VALUES = 100_000  # of a YAML file with its aliases written out; the largest of ours has a few hundred
MOST_LEVELS = 30  # of lists and mappings in each other; ours have about ten


def read_yaml(text: str | bytes, source: str) -> Any:
    """Read YAML with a bound on what its aliases make of it.

    Args:
        text: UTF-8, if bytes.
        source: what it was read from, for the message.

    Raises:
        ValueError: it is no YAML, or more than `check_expansion` allows.
    """
    try:
        content = yaml.safe_load(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deep to be read") from error
    except _YAML_ERRORS as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    check_expansion(content, source)
    try:
        json.dumps(content, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{source} holds half a surrogate pair, which is no text: {error}") from error
    return content


def check_expansion(content: Any, source: str) -> None:
    """Check that what YAML gave stays small where it is copied: an alias repeats a part without writing it.

    Args:
        content: lists, mappings and plain values; parts may be shared.
        source: what it was read from, for the message.

    Raises:
        ValueError: with its aliases written out it has more than `MOST_VALUES` values or is deeper than `MOST_LEVELS`,
            or it holds itself.
    """
    if _extent(content, {})[0] > MOST_VALUES:
        raise ValueError(
            f"{source} has more than {MOST_VALUES:,} values once its YAML aliases (*name) are written out, or holds "
            "itself. Write out what is meant"
        )
    check_levels(content, source)


def check_levels(content: Any, source: str) -> None:
    """Check that lists and mappings are at most `MOST_LEVELS` deep in each other.

    Raises:
        ValueError: they are deeper, or one holds itself.
    """
    if _extent(content, {})[1] > MOST_LEVELS:
        raise ValueError(f"{source} is nested more than {MOST_LEVELS} levels deep; does it hold itself?")


def _extent(content: Any, counts: dict[int, tuple[float, float]], inside: int = 0) -> tuple[float, float]:
    """Number of values, each shared part counted once for each use, and levels; both infinite where it holds itself.

    `counts` has those of the parts by identity.
    """
    if not isinstance(content, (Mapping, list, tuple, set)):
        return 1, 0
    if id(content) not in counts:
        if inside > 10 * MOST_LEVELS:  # before Python's own stack ends; a long chain of aliases is found below
            return 1, inside
        counts[id(content)] = (math.inf, math.inf)
        parts = [*content, *content.values()] if isinstance(content, Mapping) else content
        values, levels = 1.0, 0.0
        for part in parts:
            more, deeper = _extent(part, counts, inside + 1)
            values, levels = values + more, max(levels, deeper)
        counts[id(content)] = (values, levels + 1)
    return counts[id(content)]


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as a run may record it: as given if relative, else from the working directory, else its name.

    Records and reports travel; the directories and the user name of the machine they were made on do not.
    """
    given = Path(path)
    if given.is_absolute():
        here = Path.cwd()
        given = given.relative_to(here) if given.is_relative_to(here) else Path(given.name)
    return given.as_posix()


def make_writable(directory: Path, whose: str, other: str) -> None:
    """Make a folder, and try to write there, before any training.

    Args:
        directory: made if absent.
        whose: "run", for the message.
        other: what is to be chosen instead.

    Raises:
        OSError: it cannot be made or written to.
    """
    probe = directory / f".write-test-{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.close(open_new(probe))
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"The {whose} cannot write to {directory} ({error.strerror}). Make it writable or choose another {other}",
        ) from error


def utc_cells(time: NDArray[np.int64]) -> list[str]:
    """[N] nanoseconds since 1970 -> 2024-01-02T00:15:00Z (ISO 8601, UTC); with a fraction only where it matters."""
    moments = time.astype("datetime64[ns]")
    whole = not (time % 1_000_000_000).any()
    texts = np.datetime_as_string(moments, unit="s") if whole else np.datetime_as_string(moments, unit="ns")
    return [f"{text}Z" for text in texts.tolist()]


def json_bytes(record: Any) -> bytes:
    """Serialise to strict JSON, one key a line: nan and infinities become null, numpy numbers plain ones."""
    return (json.dumps(_plain(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A run's record holds numbers, text, lists and dicts only, got {type(value).__name__}: {value!r}")


class FoldCsv:
    """A CSV file that grows by whole folds, in order, and can be grown again after a kill.

    One column is `fold`, with no quoted cell before it. Appending fold k removes what an interrupted attempt at fold k
    left, half a line included, so that a resumed run and an uninterrupted one write the same bytes.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.header = (",".join(columns) + "\n").encode()
        self._fold_column = list(columns).index("fold")

    def before(self, fold: int) -> tuple[int, list[str] | None]:
        """Return the byte at which fold `fold` begins, and the cells of the row before it (None: there is none).

        Raises:
            ValueError: the file is not ours, is damaged, or holds a later fold.
        """
        data = refuse_link(self.path).read_bytes() if self.path.exists() else b""
        if not data.startswith(self.header):
            if self.header.startswith(data):  # killed while the header was written
                return 0, None
            first = data.partition(b"\n")[0][:200]
            raise ValueError(f"{self.path} has the header {first!r}, expected {self.header.strip()!r}")
        end = data.rfind(b"\n") + 1
        while end > len(self.header):
            start = data.rfind(b"\n", 0, end - 1) + 1
            cells = data[start : end - 1].decode().split(",")
            try:
                found = int(cells[self._fold_column])
            except (ValueError, IndexError) as error:
                raise ValueError(
                    f"{self.path} is damaged: the row at byte {start} names no fold. Start again with --overwrite"
                ) from error
            if found > fold:
                raise ValueError(
                    f"{self.path} holds fold {found} already, so fold {fold} cannot come after it: folds are written "
                    "in order. Start the run again with --overwrite"
                )
            if found < fold:
                return end, cells
            end = start
        return len(self.header), None

    def append(self, fold: int, rows: Sequence[str]) -> None:
        """Replace what the file holds of fold `fold` by `rows` (lines without their ends), and sync it to the disk."""
        end, _ = self.before(fold)
        data = "".join(f"{row}\n" for row in rows).encode()
        if end == 0:
            data = self.header + data
        with room_for(self.path, len(data)), open_own(self.path) as file:
            file.truncate(end)
            file.seek(end)
            half = len(data) // 2
            write_all(file.fileno(), data[:half])
            failpoint("mid_append", self.path.name)
            write_all(file.fileno(), data[half:])
            os.fsync(file.fileno())
        if end == 0:
            sync_directory(self.path.parent)
