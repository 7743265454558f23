"""The rows of a bar file as arrays of numbers, block by block, with the line number of each."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.bars.checks import FIX_ROWS
from datamodules.bars.dialects import (
    NUMBERS,
    PRICES,
    QUOTED_SEPARATOR,
    VOLUMES,
    Dialect,
    choose_symbol,
    find_dialect,
)
from datamodules.bars.errors import ProblemBook, shown
from datamodules.bars.options import EVERY, ReaderOptions
from datamodules.bars.source import BarSource, Block
from datamodules.bars.times import EpochTimes, FormatTimes, TextTimes, TimeColumn, strptime_format

# pandas 3.1 reads every decimal as the nearest float and warns about the option; older ones need it for that
_EXACT = {} if tuple(int(x) for x in pd.__version__.split(".")[:2]) >= (3, 1) else {"float_precision": "round_trip"}

_THOUSANDS_TO = {"K": 3, "M": 6, "B": 9}  # suffix of a volume -> power of ten


@dataclass
class Rows:
    """All rows of the file that have the right number of fields, in file order.

    Attributes:
        columns: role, or name of a further column -> [N] float64 (NaN where the text is no number).
        time: [N] int64 nanoseconds since 1970; the wall clock when not `aware`.
        lines: [N] int64 line numbers.
        bad: [N] bool, rows with a field that cannot be read.
        rows_read: N and the rows with a wrong number of fields.
        last_field: text of the last field of a last line without line end.
        symbols: what the column of symbols holds, of all rows.
    """

    dialect: Dialect
    columns: dict[str, np.ndarray]
    time: np.ndarray
    lines: np.ndarray
    bad: np.ndarray
    rows_read: int
    aware: bool
    time_format: str
    last_field: str
    symbols: tuple[str, ...] = ()


def read_rows(source: BarSource, book: ProblemBook, options: ReaderOptions) -> Rows:
    """Parse the whole file; what cannot be read goes into `book`."""
    blocks = source.blocks()
    first = next(blocks, None)
    if first is None:  # a byte order mark and nothing else
        raise source.refuse("the file is empty (no text in it)", "Export the bars again.")
    dialect = find_dialect(first.data, source, options)
    times = _time_column(dialect, source, options.date_format)
    places = {role: dialect.columns[role] for role in NUMBERS if role in dialect.columns} | dialect.further
    parts: dict[str, list[np.ndarray]] = {name: [] for name in places}
    lines_parts: list[np.ndarray] = []
    bad_parts: list[np.ndarray] = []
    wrong_width = 0
    symbols: set[str] = set()
    block: Block | None = first
    while block is not None:
        # asking for the next block tells whether this one holds the end of the file
        following = next(blocks, None)
        book.cut_line = source.cut_line
        data, lines, wrong = _even_rows(block, dialect, book)
        wrong_width += wrong
        if "symbol" in dialect.columns:
            data, lines = _of_symbol(data, lines, dialect, symbols, options.symbol)
        if len(lines):
            numbers, bad = _parse(data, lines, dialect, times, book, places)
            for name in places:
                parts[name].append(numbers[name])
            lines_parts.append(lines)
            bad_parts.append(bad)
        block = following
    if symbols:
        choose_symbol(symbols, options.symbol, source)
    if not lines_parts:
        raise source.refuse("no row of data that can be read", "Export the bars again.")
    time, bad_time, defect = times.finish()
    lines, bad = np.concatenate(lines_parts), np.concatenate(bad_parts)
    if defect == "ambiguous":
        day_first, month_first = (strptime_format(dialect.first_time, first) for first in (True, False))
        book.add_file(
            "day or month",
            f"times like {dialect.first_time!r} may have day or month first, and no row settles it",
            f"Pass --date_format {day_first!r} if the day is first, {month_first!r} if the month is.",
        )
    elif defect is not None:
        book.add_file("times", defect, "Give the column of times its name, or pass --date_format.")
    late = np.flatnonzero(bad_time & ~bad)
    book.add(
        "time",
        lines[late],
        lambda i: (
            f"time {_time_text(_line(source, int(lines[late[i]])), dialect)} is no {times.description} "
            "between 1970 and 2100"
        ),
        FIX_ROWS,
    )
    columns = {name: np.concatenate(parts.pop(name)) for name in places}
    if options.close_only:  # read.py makes prices of them once the rows are in order
        columns |= dict.fromkeys(("open", "high", "low"), columns["close"])
    last_field = dialect.unquoted(source.last_line).decode().split(dialect.separator)[-1].strip()
    return Rows(
        dialect,
        columns,
        time,
        lines,
        bad | bad_time,
        len(lines) + wrong_width,
        times.aware,
        times.description,
        last_field,
        tuple(sorted(symbols)),
    )


def _of_symbol(
    data: bytes, lines: np.ndarray, dialect: Dialect, found: set[str], asked: Sequence[str] | str | None
) -> tuple[bytes, np.ndarray]:
    """Add the symbols of the rows to `found`; return the rows of the one that is asked for, of all where none is."""
    place, separator = dialect.columns["symbol"], dialect.separator.encode()
    rows = data.splitlines(keepends=True)
    symbols = [row.split(separator)[place].strip().decode() for row in rows]
    found.update(symbols)
    if asked is None or asked == EVERY:
        return data, lines
    keep = [i for i, symbol in enumerate(symbols) if symbol == asked]
    return b"".join(rows[i] for i in keep), lines[keep]


def _time_column(dialect: Dialect, source: BarSource, date_format: str | None) -> TimeColumn:
    if date_format is not None:
        try:
            pd.to_datetime(pd.Series(["x"]), format=date_format, errors="coerce", utc=True)
        except ValueError as error:
            raise source.refuse(f"--date_format {date_format!r} is not valid ({error})", "See strptime.") from error
        return FormatTimes(date_format)
    if dialect.epoch:
        return EpochTimes()
    try:
        return TextTimes(dialect.first_time)
    except ValueError as error:
        raise source.refuse(
            f"{error}", "Pass --date_format, for example '%d %b %Y %H:%M'.", dialect.first_row
        ) from error


def _even_rows(block: Block, dialect: Dialect, book: ProblemBook) -> tuple[bytes, np.ndarray, int]:
    """Return the rows of the block that have the right number of fields, their line numbers, and how many have not."""
    data = dialect.unquoted(block.data)
    letters = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(letters == 10)
    starts = np.concatenate([[0], ends[:-1] + 1])
    separators = np.flatnonzero(letters == ord(dialect.separator))
    fields = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
    lines = block.first_line + np.arange(len(ends))
    blank = ends == starts
    blank[: max(0, dialect.first_row - block.first_line)] = True  # the header
    wrong = np.flatnonzero((fields != dialect.width) & ~blank)
    if len(wrong):
        spaces = np.array([not data[starts[i] : ends[i]].strip() for i in wrong], dtype=bool)
        blank[wrong[spaces]] = True
        wrong = wrong[~spaces]
        book.add(
            "number of fields",
            lines[wrong],
            lambda i: (
                f"{fields[wrong[i]]} fields instead of {dialect.width}: "
                f"{_excerpt(data[starts[wrong[i]] : ends[wrong[i]]])}"
            ),
            FIX_ROWS,
        )
    keep = np.flatnonzero(~blank)
    keep = keep[~np.isin(keep, wrong)] if len(wrong) else keep
    if len(keep) == 0:
        return b"", lines[:0], len(wrong)
    if keep[-1] - keep[0] + 1 == len(keep):
        data = data[starts[keep[0]] : ends[keep[-1]] + 1]
    else:
        data = b"".join([data[starts[i] : ends[i] + 1] for i in keep])
    return data, lines[keep], len(wrong)


def _parse(
    data: bytes, lines: np.ndarray, dialect: Dialect, times: TimeColumn, book: ProblemBook, places: dict[str, int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    columns = {role: place for role, place in dialect.columns.items() if role != "symbol"}
    decimal = dialect.parsed_decimal
    grouped = dialect.thousands is not None and dialect.thousands != dialect.separator
    as_text: list[int] = [] if dialect.epoch else [columns[role] for role in ("time", "clock") if role in columns]
    if grouped:  # the C parser would take 1,2,3.5 for 123.5: group by group it is checked below
        as_text += places.values()
    table = pd.read_csv(
        io.BytesIO(data),
        sep=dialect.separator,
        header=None,
        names=range(dialect.width),
        index_col=False,
        usecols=sorted({*columns.values(), *places.values()}),
        dtype=dict.fromkeys(as_text, object),
        decimal=decimal,
        quoting=csv.QUOTE_NONE,
        skipinitialspace=True,
        skip_blank_lines=False,
        low_memory=False,
        **_EXACT,
    )
    if len(table) != len(lines):
        raise RuntimeError(f"{len(lines)} lines became {len(table)} rows")  # our mistake: each line is one row

    def field(row: int, role: str) -> str:
        line = data.split(b"\n", row + 1)[row]
        text = line.split(dialect.separator.encode())[columns[role]].strip().decode()[:40]
        return shown(repr(text.replace(QUOTED_SEPARATOR, dialect.separator)))

    def no_number(role: str, rows: np.ndarray) -> Callable[[int], str]:
        return lambda i: f"{role} is {field(int(rows[i]), role)}, not a number"

    bad = np.zeros(len(lines), dtype=bool)
    numbers: dict[str, np.ndarray] = {}
    form = _number_form(decimal, dialect.thousands if grouped else None)
    for role, place in places.items():
        numbers[role] = _to_numbers(table[place], form, decimal, dialect.thousands, role)
        if role in dialect.further:  # a hole there is no wrong price; who uses the column decides
            continue
        rows = np.flatnonzero(np.isnan(numbers[role]))
        bad[rows] = True
        book.add(f"{role} no number", lines[rows], no_number(role, rows), FIX_ROWS)
    stamps = table[columns["time"]].to_numpy()
    if "clock" in columns:
        stamps = np.array([f"{d} {t}" for d, t in zip(stamps, table[columns["clock"]], strict=True)], dtype=object)
    rows = np.flatnonzero(times.add(stamps))
    bad[rows] = True
    expected = f"like the first one, {dialect.first_time!r}"
    if isinstance(times, FormatTimes):
        expected = "as --date_format says"

    def no_time(i: int) -> str:
        text = " ".join(field(int(rows[i]), role) for role in ("time", "clock") if role in columns)
        return f"time {text} is not written {expected} ({times.description})"

    remedy = "All times must have one form, with or without offset alike. " + FIX_ROWS
    book.add("time", lines[rows], no_time, remedy)
    return numbers, bad


def _number_form(decimal: str, thousands: str | None) -> re.Pattern[str]:
    whole = r"\d+" if thousands is None else rf"(?:\d+|\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+)"
    point = re.escape(decimal)
    return re.compile(rf"[+-]?(?:{whole}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def _to_numbers(column: pd.Series, form: re.Pattern[str], decimal: str, thousands: str | None, role: str) -> np.ndarray:
    """Return [n] float64, NaN where the text is no finite number.

    A price may begin with a dollar sign (Nasdaq.com), a volume end with K, M or B (Investing.com).
    """
    if column.dtype.kind in "iuf":
        values = column.to_numpy(np.float64)
        return np.where(np.isfinite(values), values, np.nan)
    numbers = np.full(len(column), np.nan)
    for i, value in enumerate(column):
        text, power = str(value).strip(), 0  # True is no number: the form refuses it
        if role in PRICES:
            text = text.removeprefix("$")
        elif role in VOLUMES and text[-1:] in _THOUSANDS_TO:
            text, power = text[:-1], _THOUSANDS_TO[text[-1]]
        if form.fullmatch(text):
            if thousands is not None:
                text = text.replace(thousands, "")
            text = text.replace(decimal, ".")
            number = float(f"{text}e{power}" if power else text)  # not times 1e3: 100.14K is 100140
            numbers[i] = number if np.isfinite(number) else np.nan
    return numbers


def _excerpt(line: bytes) -> str:
    text = line.decode().strip()
    return shown(repr(text if len(text) <= 60 else text[:57] + "..."))


def _time_text(line: bytes, dialect: Dialect) -> str:
    fields = dialect.unquoted(line).decode().split(dialect.separator)
    used = [fields[dialect.columns[role]].strip() for role in ("time", "clock") if role in dialect.columns]
    return shown(repr(" ".join(used)[:40]))


def _line(source: BarSource, number: int) -> bytes:
    """Return one line, by reading the file again: only refusals need it."""
    for block in BarSource(source.path).blocks():
        count = block.data.count(b"\n")
        if number < block.first_line + count:
            return block.data.split(b"\n")[number - block.first_line]
    return b""
