"""One reader for the bar files people have: MetaTrader, HistData, Dukascopy, exchange and broker exports, Parquet.

    bytes -> bar_source (lines) -> dialects (columns) -> bar_rows (numbers) -> bar_checks -> Bars with a data card

Where meaning is in doubt the file is refused, with the option that settles it; only what loses nothing is repaired, and
the card says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.bars.checks import (
    calendar_of,
    check_length,
    check_order,
    check_rows,
    check_spacing,
    last_bar_is_unfinished,
    oddities,
    quote_digits,
    when,
)
from datamodules.bars.data_card import DataCard, make_card
from datamodules.bars.dialects import PRICES, symbol_note
from datamodules.bars.errors import BarFileError, Problem, ProblemBook
from datamodules.bars.options import ReaderOptions
from datamodules.bars.rows import Rows, read_rows
from datamodules.bars.source import BarSource
from datamodules.bars.times import SECOND, Zone

__all__ = ["BarFileError", "Bars", "read_bars"]

MOST_BAD_ROWS = 0.001  # share of the rows that --drop_bad_rows may leave out


@dataclass(frozen=True)
class Bars:
    """Checked bars in time order.

    Attributes:
        frame: time (datetime64[ns, UTC], open time of the bar), open, high, low, close, volume and, when the file has
            one, spread in points; then every other column of numbers under the file's own name; float64. Only these
            further columns may have holes (NaN), and the card warns of them.
        point: price units per point.
        bar_seconds: length of one bar.
        bars_per_year: bars per calendar year, from the file's own calendar.
        sha256: of the bytes on disk.
        path: the file.
        card: what was read and decided.
        has_volume: False when the file has no volume; the column is 0 then and features of it should be off.
    """

    frame: pd.DataFrame
    point: float
    bar_seconds: int
    bars_per_year: float
    sha256: str
    path: Path
    card: DataCard
    has_volume: bool = True

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def session_breaks(self) -> np.ndarray:
        """[N] bool, True where the step from the bar before is longer than one bar (break, weekend, gap)."""
        time = self.frame["time"].to_numpy("datetime64[ns]").astype(np.int64)
        return np.concatenate([[False], np.diff(time) > self.bar_seconds * SECOND])


def read_bars(path: str | Path, **options: Any) -> Bars:
    """Read and check a bar file of any supported dialect (docs/data.md lists them).

    Args:
        path: CSV or other separated text, plain or gzip (name ending in .gz), Parquet or Feather.
        options: the fields of `ReaderOptions`.

    Raises:
        BarFileError: the file or an option cannot be used; names every problem with line numbers and remedy.
    """
    reader = ReaderOptions(**options)
    reader.check(path)
    zone = reader.zone(path)
    source = BarSource(path)
    row_book, order_book = ProblemBook(), ProblemBook()
    notes: list[str] = []
    dropped: dict[str, int] = {}
    rows = read_rows(source, row_book, reader)
    order_book.cut_line = row_book.cut_line
    if zone is not None and rows.aware:
        order_book.add_file("zone", "the times carry their own offset from UTC", "Leave --timezone out.")
    bad = rows.bad | check_rows(rows.columns, rows.lines, ~rows.bad, row_book)
    too_many = _settle_bad_rows(rows, bad, row_book, dropped, reader.drop_bad_rows)
    order = np.flatnonzero(~bad)
    file_defects = [problem for problem in row_book.problems if problem.count == 0]
    time = rows.time
    if len(order) > 1 and not file_defects:
        time, order, keep = _in_order(rows, order, zone, reader.sort, order_book, notes, dropped)
        order = order[keep]
    problems = [*too_many, *file_defects, *order_book.problems]
    if not order_book.problems and not file_defects:
        if reader.stamp == "close" and len(order) > 1:
            notes.append("the times name the end of each bar; its open time is one bar earlier")
            time = time - calendar_of(time[order]).bar
        order = _without_last(rows, time, order, source, row_book, order_book, notes, dropped)
        check_spacing(time[order], rows.lines[order], order_book)
        problems += order_book.problems
        short = check_length(len(order), int(rows.lines[-1]))
        if short is not None and not problems:
            problems.append(short)
    if problems:
        raise BarFileError(source.path, problems)
    return _bars(source, rows, time[order], order, reader, zone, notes, dropped)


def _settle_bad_rows(
    rows: Rows, bad: np.ndarray, book: ProblemBook, dropped: dict[str, int], drop_bad_rows: bool
) -> list[Problem]:
    """Return the problems of single rows, or none when they may be left out."""
    problems = [problem for problem in book.problems if problem.count]
    wrong_width = rows.rows_read - len(rows.lines)
    cut = book.cut_row_left_out
    count = int(bad.sum()) + wrong_width - int(cut)
    if cut:
        dropped["cut last line"] = 1
    if not problems or not drop_bad_rows:
        return problems
    if count > MOST_BAD_ROWS * rows.rows_read:
        remedy = "That many are no slips; fix the file."
        share = f"{count} of {rows.rows_read} rows are bad, more than the 0.1 % that may be dropped"
        return [Problem(share, remedy), *problems]
    dropped["bad rows"] = count
    return []


def _in_order(
    rows: Rows,
    order: np.ndarray,
    zone: Zone | None,
    sort: bool,
    book: ProblemBook,
    notes: list[str],
    dropped: dict[str, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return UTC times of all rows, the good rows in time order, and which of these to keep (repeated ones go)."""
    time = rows.time
    steps = np.diff(time[order])
    if (steps < 0).sum() > (steps > 0).sum():
        order = order[::-1]
        notes.append(f"the file runs from new to old; its {len(order)} rows were reversed")
    if zone is not None:
        wall = time[order]
        utc, never, unknown = zone.to_utc(wall)
        remedy = "The file is in another zone: pass the right --timezone, or --timezone UTC."
        never_rows, unknown_rows = order[never], order[unknown]
        book.add(
            "time that never was",
            rows.lines[never_rows],
            lambda i: f"time {when(rows.time[never_rows[i]])} does not exist in {zone.name!r} (the clocks go forward)",
            remedy,
        )
        book.add(
            "time that was twice",
            rows.lines[unknown_rows],
            lambda i: (
                f"time {when(rows.time[unknown_rows[i]])} was twice in {zone.name!r} (the clocks go back), and the "
                "rows do not tell which"
            ),
            remedy,
        )
        time = time.copy()
        time[order] = utc
    steps = np.diff(time[order])
    if sort and (steps < 0).any():
        notes.append(f"{int((steps < 0).sum())} rows were out of order; sorted by time")
        order = order[np.argsort(time[order], kind="stable")]
    told = {role: x[order] for role, x in rows.columns.items()}
    repeated = check_order(time[order], told, rows.lines[order], zone is None and not rows.aware, book)
    if repeated.any():
        dropped["repeated rows (equal in every column)"] = int(repeated.sum())
    return time, order, ~repeated


def _without_last(
    rows: Rows,
    time: np.ndarray,
    order: np.ndarray,
    source: BarSource,
    row_book: ProblemBook,
    order_book: ProblemBook,
    notes: list[str],
    dropped: dict[str, int],
) -> np.ndarray:
    """Leave out a last line that was cut while it was written, and a last bar that is still running."""
    if source.cut_line is not None:
        order = _without_cut_line(rows, order, source.cut_line, order_book.cut_row_left_out, notes, dropped)
    reason = last_bar_is_unfinished(time[order], source.modified)
    if reason is not None:
        notes.append(f"the last bar is unfinished and was left out: {reason}")
        dropped["unfinished last bar"] = 1
        order = order[:-1]
    return order


def _without_cut_line(
    rows: Rows, order: np.ndarray, cut_line: int, out_of_order: bool, notes: list[str], dropped: dict[str, int]
) -> np.ndarray:
    last_role = next((role for role, i in rows.dialect.columns.items() if i == rows.dialect.width - 1), None)
    there = rows.lines[order] == cut_line
    if not there.any():
        if "cut last line" in dropped:
            notes.append(f"line {cut_line}, the last, ends in the middle and was left out")
        return order
    short_price = False
    if last_role in PRICES:
        digits, _ = quote_digits([rows.columns[role][order[~there]] for role in PRICES])
        text, decimal = rows.last_field, rows.dialect.parsed_decimal
        found = len(text.rsplit(decimal, 1)[1]) if decimal in text else 0
        short_price = digits is not None and found < digits
    if out_of_order or short_price:
        dropped["cut last line"] = 1
        notes.append(f"line {cut_line}, the last, has no line end and looks cut ({rows.last_field!r}); it was left out")
        return order[~there]
    notes.append(f"line {cut_line}, the last, has no line end; it was taken for complete")
    return order


def _bars(
    source: BarSource,
    rows: Rows,
    time: np.ndarray,
    order: np.ndarray,
    reader: ReaderOptions,
    zone: Zone | None,
    notes: list[str],
    dropped: dict[str, int],
) -> Bars:
    everything = len(order) == len(rows.lines) and bool((order == np.arange(len(order))).all())
    columns = {
        role: rows.columns.pop(role) if everything else rows.columns.pop(role)[order] for role in list(rows.columns)
    }
    warnings: list[str] = []
    volume_role = _choose_volume(columns, notes, warnings)
    prices = [columns[role] for role in PRICES]
    point, point_source = _point(prices, columns.get("spread"), reader.point, source, warnings)
    if reader.adjusted:
        _adjust(columns, notes)
    if reader.close_only:
        time = _open_at_the_close_before(time, columns, notes, dropped)
    if rows.symbols:
        notes.append(symbol_note(rows.symbols, reader.symbol if isinstance(reader.symbol, str) else rows.symbols[0]))
    calendar = calendar_of(time)
    if volume_role is not None:
        columns["volume"] = columns[volume_role]
    warnings += oddities(time, columns, point)
    notes = [*rows.dialect.notes, *notes]
    if not rows.aware and zone is None:
        notes.append(
            "epoch times count in UTC; pass --timezone if these are a wall clock's"
            if rows.dialect.epoch
            else "the times carry no offset and are taken for UTC; pass --timezone if they are local"
        )
    if time[-1] - time[0] < 14 * 86_400 * SECOND:
        notes.append("less than two weeks of bars: the number of bars per year is rough")
    volume = columns["volume"] if volume_role is not None else np.zeros(len(time))
    data: dict[str, object] = {"time": pd.DatetimeIndex(time.view("datetime64[ns]"), tz="UTC")}
    data |= {role: columns[role] for role in PRICES} | {"volume": volume}
    spread = columns.get("spread")
    if spread is not None:
        data["spread"] = spread
    for name in rows.dialect.further:
        data[name] = columns[name]
        holes = int(np.isnan(columns[name]).sum())
        if holes:
            warnings.append(f"column {name!r} has {holes} cells that are no numbers; they are NaN")
    card = make_card(
        source, rows, calendar, time, point, point_source, spread, volume_role, zone, notes, warnings, dropped
    )
    frame = pd.DataFrame(data, copy=False)
    seconds = calendar.bar // SECOND
    has_volume = volume_role is not None
    return Bars(frame, point, seconds, calendar.bars_per_year, source.sha256, source.path, card, has_volume)


def _adjust(columns: dict[str, np.ndarray], notes: list[str]) -> None:
    """Scale prices and spread by adjusted close / close, bar by bar."""
    factor = columns.pop("adjusted_close") / columns["close"]
    for role in (*PRICES, "spread"):
        if role in columns:
            columns[role] = columns[role] * factor
    notes.append(
        "prices (and spread) times Adj Close / Close: levels depend on later dividends and splits, returns not"
    )


def _open_at_the_close_before(
    time: np.ndarray, columns: dict[str, np.ndarray], notes: list[str], dropped: dict[str, int]
) -> np.ndarray:
    """Make bars of closes; return the times of the rows that are left: the first has no close before it."""
    close = columns["close"]
    columns["open"] = np.concatenate([close[:1], close[:-1]])
    columns["high"], columns["low"] = np.maximum(columns["open"], close), np.minimum(columns["open"], close)
    columns |= {name: x[1:] for name, x in columns.items()}
    dropped["first row, which has no close before it"] = 1
    notes.append("closes alone: open is the close before, high and low are the larger and the smaller of the two")
    return time[1:]


def _choose_volume(columns: dict[str, np.ndarray], notes: list[str], warnings: list[str]) -> str | None:
    if "volume" in columns and (columns["volume"].any() or "tick_volume" not in columns):
        return "volume"
    if "tick_volume" in columns:
        if "volume" in columns:
            notes.append("the real volume is 0 in every row; volume is the tick volume")
        return "tick_volume"
    warnings.append("no volume: the column is 0 and features of volume should be off")
    return None


def _point(
    prices: list[np.ndarray],
    spread: np.ndarray | None,
    point: float | None,
    source: BarSource,
    warnings: list[str],
) -> tuple[float, str]:
    if point is not None:
        return float(point), "given"
    digits, more = quote_digits(prices)
    if digits is None:
        if spread is not None and spread.any():
            what = "the quotes have more than 8 decimals, so the point in which the spread is counted cannot be told"
            raise BarFileError(source.path, [Problem(what, "Pass --point, for example 0.00001.")])
        warnings.append("the quotes have more than 8 decimals: the point size is a guess")
        return 1e-8, "a guess; pass --point"
    if more:
        warnings.append(f"{more} quotes have more than {digits} decimals")
    quoted = np.zeros(0) if spread is None else spread[spread > 0]
    if len(quoted) and np.median(quoted) < 1:
        what = (
            f"the spread is taken to be in points of {10.0**-digits:g}, for the quotes have {digits} decimals, and its "
            f"median is {np.median(quoted):g} of them: no market has less than one"
        )
        raise BarFileError(source.path, [Problem(what, "If it is in price units, pass --point 1.")])
    return 10.0**-digits, f"from quotes of {digits} decimals"
