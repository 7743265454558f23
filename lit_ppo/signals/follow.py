"""Bars as they come: a file that grows, or lines on standard input, as small files for the bar reader.

A line counts once it has its end. What is read is a copy in a folder of our own, so that a line that is written
meanwhile is seen whole or not at all.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_ppo.signals.live import HEADER, Columns
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import shown_path, utc_cells

POLL_SECONDS = 0.02
LEAST_ROWS = 3  # that the reader makes bars of
PRICES = ("open", "high", "low", "close")
BINARY = (".gz", ".parquet", ".feather")
_ENDS = {codecs.BOM_UTF16_LE: b"\n\0", codecs.BOM_UTF16_BE: b"\0\n"}
_CHUNK = 1 << 20
MOST_OF_A_LINE = 1 << 16  # bytes; a bar with all its columns has some hundred


class LineError(ValueError):
    """A line is no bar."""


def whole_lines(path: Path, folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield a copy of the file's whole lines, with how many there are, at the start and after every change; for ever.

    Args:
        path: text that another program writes to, or replaces.
        folder: for the copy, which is written over by the next one.

    Raises:
        FileNotFoundError: there is no such file at the start. Later its writer may be replacing it.
        ValueError: a kind of file that does not grow by lines.
    """
    if path.suffix in BINARY:
        raise ValueError(f"--follow reads text that grows by lines, and {shown_path(path)} is {path.suffix}. Give CSV")
    if not path.is_file():
        raise FileNotFoundError(f"--data {shown_path(path)}: there is no such file. Start its writer first, or name it")
    before: tuple[int, int, int] | None = None
    length: int | None = None
    copy = folder / path.name
    while True:
        try:
            found = path.stat()  # before the content: a copy is never younger than its time says
            now: tuple[int, int, int] | None = (found.st_ino, found.st_size, found.st_mtime_ns)
            content = path.read_bytes() if now != before else None
        except FileNotFoundError:
            now, content = before, None
        if content is not None:
            end = _ENDS.get(content[:2], b"\n")
            cut = content.rfind(end) + len(end) if end in content else 0
            half_only = before is not None and now is not None and now[0] == before[0] and cut == length
            if not half_only or cut == len(content):
                atomic_write(copy, content[:cut])
                os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))  # the reader knows a running bar by it
                yield copy, content.count(end)
            before, length = now, cut
        time.sleep(POLL_SECONDS)


def lines_of(descriptor: int) -> Iterator[list[str]]:
    """Yield the lines that have come, as soon as they have; the end of the last one may be missing: it is left out."""
    rest = b""
    while chunk := os.read(descriptor, _CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MOST_OF_A_LINE:
            raise ValueError(
                f"--data -: a line of more than {MOST_OF_A_LINE:,} bytes is no bar, and was not waited for"
            )
        if rows := [row for line in whole if (row := line.decode("utf-8", "replace").strip())]:
            yield rows


def columns_of(header: str) -> list[str]:
    """Names of the columns of lines.

    Raises:
        ValueError: the line names no bars.
    """
    names = [name.strip() for name in header.lower().split(",")]
    if names[0] != "time" or not set(PRICES) <= set(names):
        raise ValueError(
            "--data - reads comma-separated lines, the first of them their names: time,open,high,low,close and, where "
            f"there are any, volume, spread and others; got {header[:80]!r}"
        )
    return names


def check_line(names: Sequence[str], row: str) -> None:
    """Check that a line alone may be a bar.

    Raises:
        LineError: it is none; says why, and that it was left out.
    """
    cells = [cell.strip() for cell in row.split(",")]
    problem = ""
    if _time(row) is None:
        problem = f"{cells[0][:40]!r} is no time like 2025-05-01T12:15:00Z (open time of the bar, UTC)"
    elif len(cells) != len(names):
        problem = f"the line of {cells[0]} has {len(cells)} cells and not {len(names)}"
    else:
        values = dict(zip(names, cells, strict=True))
        wrong = [name for name in PRICES if not _is_price(values[name])]
        problem = f"{wrong[0]} of {cells[0]} is {values[wrong[0]][:40]!r}, no price" if wrong else ""
    if problem:
        raise LineError(f"--data -: {problem}; the line was left out")


def bar_window(names: Sequence[str], rows: Sequence[str], known: Columns, path: Path) -> None:
    """Write a bar file of new rows, after the last known bars that lie before them.

    Args:
        names: of the rows' columns: those of `known` once there are any, `time` first.
        rows: new bars, or known ones again, each of which `check_line` takes; times are open times, UTC.
        known: bars seen so far.
        path: written over.

    Raises:
        ValueError: columns that cannot be meant.
    """
    before: list[str] = []
    if len(known["time"]):
        if unknown := sorted(set(names) - known.keys()):
            raise ValueError(f"--data -: the bars seen so far have no column {', '.join(unknown)}. Leave it out")
        first = min(time for row in rows if (time := _time(row)) is not None)
        stop = int(np.searchsorted(known["time"], first))
        span = slice(max(0, stop - LEAST_ROWS), stop)
        cells = [utc_cells(known["time"][span]), *([repr(x) for x in known[n][span].tolist()] for n in names[1:])]
        before = [",".join(row) for row in zip(*cells, strict=True)]
    atomic_write(path, "\n".join([",".join(names), *before, *rows, ""]))
    os.utime(path, (4e9, 4e9))  # a line is a closed bar, whatever the clocks say


def _time(row: str) -> int | None:
    """Open time of a line, nanoseconds since 1970 UTC; None: it has none."""
    try:
        moment = np.datetime64(row.partition(",")[0].strip().removesuffix("Z"), "ns")
    except (ValueError, OverflowError):
        return None
    return None if np.isnat(moment) else int(moment.astype(np.int64))  # an empty cell is no time


def _is_price(cell: str) -> bool:
    try:
        return 0 < float(cell) < math.inf
    except ValueError:
        return False


def json_lines(rows: Sequence[str], closes: Sequence[float]) -> Iterator[str]:
    """Rows of the CSV as one JSON object a line, with the close that the decision was made at."""
    names = HEADER.split(",")
    for row, close in zip(rows, closes, strict=True):
        at, held, change, chance, seen = row.split(",")
        values: list[Any] = [at, float(held), float(change), float(chance), seen == "true"]
        yield json.dumps({**dict(zip(names, values, strict=True)), "close": close})
