"""What must hold of bars, and what is told about them: one row, its neighbours, the calendar, the quotes.

All functions work on numpy arrays in time order. Checks put what they find into a `ProblemBook`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from datamodules.bars.dialects import PRICES
from datamodules.bars.errors import Problem, ProblemBook, shown
from datamodules.bars.times import DAY, SECOND

TOLERANCE = 1e-9  # relative; a high below the close by less is rounding of the writer
YEAR = 365.25 * DAY  # nanoseconds
FIX_ROWS = "Fix the rows or pass --drop_bad_rows (at most 0.1 % of the rows)."
MOST_DIGITS = 8


def when(time: int | np.integer) -> str:
    """Return a time in nanoseconds as text, in UTC, without empty fractions."""
    text = str(np.datetime64(int(time), "ns")).replace("T", " ")
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(nanoseconds: float) -> str:
    """Return 900 s as "15 min", 3,600 s as "1 h", 86,400 s as "1 day"."""
    seconds = nanoseconds / SECOND
    if seconds >= 86_400 and (seconds / 86_400).is_integer():
        return "1 day" if seconds == 86_400 else f"{seconds / 86_400:g} days"
    if seconds >= 7200 or seconds == 3600:
        return f"{seconds / 3600:.4g} h"
    return f"{seconds / 60:.4g} min" if seconds >= 60 else f"{seconds:g} s"


def check_rows(columns: dict[str, np.ndarray], lines: np.ndarray, usable: np.ndarray, book: ProblemBook) -> np.ndarray:
    """Check every row by itself; return [N] bool, True where something is wrong.

    Args:
        columns: role -> [N] float64.
        lines: [N] line numbers.
        usable: [N] bool, rows whose fields are all numbers.
        book: where the problems go.
    """
    bad = np.zeros(len(lines), dtype=bool)
    o, h, l, c = (columns[role] for role in PRICES)

    def found(kind: str, wrong: np.ndarray, what: str, *values: np.ndarray, remedy: str = FIX_ROWS) -> None:
        rows = np.flatnonzero(wrong & usable)
        bad[rows] = True
        book.add(kind, lines[rows], lambda i: what.format(*(repr(float(x[rows[i]])) for x in values)), remedy)

    for role in (*PRICES, "adjusted_close"):
        x = columns.get(role)
        if x is None or (x is c and role != "close"):  # closes alone stand for all four: say it once
            continue
        found(
            f"{role} not positive",
            x <= 0,
            role + " {} is not above 0: a log return is not defined (prices below 0, as oil in April 2020, are real, "
            "but cannot be traded here)",
            x,
        )
    positive = (o > 0) & (h > 0) & (l > 0) & (c > 0)
    for kind, wrong, what, values in (
        ("high < low", h < l * (1 - TOLERANCE), "high {} < low {}", (h, l)),
        ("high < open", h < o * (1 - TOLERANCE), "high {} < open {}", (h, o)),
        ("high < close", h < c * (1 - TOLERANCE), "high {} < close {}", (h, c)),
        ("low > open", l > o * (1 + TOLERANCE), "low {} > open {}", (l, o)),
        ("low > close", l > c * (1 + TOLERANCE), "low {} > close {}", (l, c)),
    ):
        found(kind, wrong & positive, what, *values)
    for role in ("volume", "tick_volume", "spread"):
        if role in columns:
            found(f"{role} below 0", columns[role] < 0, role + " {} is below 0", columns[role])
    return bad


def check_order(
    time: np.ndarray, columns: dict[str, np.ndarray], lines: np.ndarray, naive: bool, book: ProblemBook
) -> np.ndarray:
    """Check that times rise; return [N] bool, True where a row repeats the one before it exactly.

    `naive`: the times carry no offset and no zone was given, so a clock change may be the reason.
    """
    steps = np.diff(time)
    bar = _usual_step(steps)
    back = np.flatnonzero(steps < 0) + 1
    same = np.flatnonzero(steps == 0) + 1
    differs = np.zeros(len(same), dtype=bool)
    for x in columns.values():
        differs |= ~_equal(x[same], x[same - 1])
    repeated = np.zeros(len(time), dtype=bool)
    repeated[same[~differs]] = True
    different = same[differs]
    jumps = np.concatenate([back, different])
    clock_changed = naive and bar > 0 and len(jumps) and bool((steps[jumps - 1] == bar - 3600 * SECOND).all())
    remedy = (
        "An hour that repeats is the end of summer time: pass --timezone ZONE, for example --timezone Europe/Berlin."
    )
    if not clock_changed:
        remedy = "Sort the file, or pass --sort."
    book.add("time goes back", lines[back], lambda i: _goes_back(time, back[i]), remedy)
    if not clock_changed:
        remedy = "Keep the right one; two bars of one time are never merged."
    book.add(
        "time twice, rows differ",
        lines[different],
        lambda i: _differs(time, columns, lines, different[i]),
        remedy,
    )
    return repeated


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal numbers, or a hole in both: further columns may have holes."""
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _goes_back(time: np.ndarray, row: int) -> str:
    return f"time {when(time[row])} after {when(time[row - 1])}"


def _differs(time: np.ndarray, columns: dict[str, np.ndarray], lines: np.ndarray, row: int) -> str:
    role = next(name for name, x in columns.items() if not _equal(x[row], x[row - 1]))
    x = columns[role]
    return (
        f"time {when(time[row])} is also that of line {lines[row - 1]}, with another {shown(role)} "
        f"({float(x[row - 1])!r} and {float(x[row])!r})"
    )


class Calendar(NamedTuple):
    """When the bars are. Times in nanoseconds; a gap is a step longer than one bar."""

    bar: int
    bars_per_year: float
    gaps: int
    missing_bars: int
    longest_gap: int
    longest_gap_from: int
    top_steps: tuple[tuple[int, int], ...]  # (step, count), most frequent first


def _usual_step(steps: np.ndarray) -> int:
    positive = steps[steps > 0]
    if len(positive) == 0:
        return 0
    values, counts = np.unique(positive, return_counts=True)
    return int(values[counts.argmax()])


def calendar_of(time: np.ndarray) -> Calendar:
    """Describe the calendar of strictly rising times.

    bars_per_year = N / years, where years is the time from the first open to the last close, less what is beyond a
    week in each gap: weekends and holidays belong to the year, half a year missing from the file does not.
    """
    steps = np.diff(time)
    values, counts = np.unique(steps, return_counts=True)
    bar = int(values[counts.argmax()])
    gaps = np.flatnonzero(steps > bar)
    longest = int(steps.argmax())
    allowed = max(7 * DAY, 3 * bar)
    elapsed = float(time[-1] - time[0] + bar) - float((steps[steps > allowed] - allowed).sum())
    order = np.argsort(-counts, kind="stable")[:5]
    return Calendar(
        bar,
        len(time) / (elapsed / YEAR),
        len(gaps),
        int((steps[gaps] // bar - 1).sum()),
        int(steps[longest]) if len(gaps) else 0,
        int(time[longest]) if len(gaps) else 0,
        tuple((int(values[i]), int(counts[i])) for i in order),
    )


def check_spacing(time: np.ndarray, lines: np.ndarray, book: ProblemBook) -> None:
    """Refuse a file whose bars have more than one length.

    Daily rows before hourly ones are multiples of an hour, as weekends are; what gives them away is a long run of rows
    without a single step of one bar, all on a coarser grid (or a run of shorter steps).
    """
    steps = np.diff(time)
    if len(steps) < 2:
        return
    bar = _usual_step(steps)
    for sign, other in ((1, steps >= 2 * bar), (-1, steps < bar)):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], other, [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2)[np.argsort(edges[::2] - edges[1::2], kind="stable")][:100]:
            at_edge = start == 0 or stop == len(steps)
            if stop - start < (10 if at_edge or sign < 0 else 20):
                continue
            run = steps[start:stop]
            length = _usual_step(run)
            if (run == length).mean() >= 0.5 and (run % length == 0).mean() >= 0.95:
                _add_change(time, lines, int(start), int(stop), length, bar, book)
                return
    on_grid = float((steps % bar == 0).mean())
    if on_grid < 0.95:
        values, counts = np.unique(steps, return_counts=True)
        top = ", ".join(f"{duration(values[i])} x {counts[i]}" for i in np.argsort(-counts, kind="stable")[:5])
        row = int(np.flatnonzero(steps % bar)[0]) + 1
        book.add(
            "no usual step",
            lines[row : row + 1],
            lambda _: (
                f"only {100 * on_grid:.1f} % of the steps are multiples of the most frequent one, {duration(bar)} "
                f"(steps: {top}); the first that is not ends here, at {when(time[row])}"
            ),
            "Give bars of one resolution.",
        )


def _add_change(
    time: np.ndarray, lines: np.ndarray, start: int, stop: int, length: int, bar: int, book: ProblemBook
) -> None:
    """Steps start..stop-1 are of `length`, the others of `bar`: name the row where the spacing changes."""
    before, after = (length, bar) if start == 0 else (bar, length)
    following = stop if start == 0 else start + 1  # row of the first bar of the second part
    last = following - 1
    named = np.array([lines[following]])
    book.add(
        "spacing changes",
        named,
        lambda _: (
            f"the spacing of the bars changes at row {following + 1}, {when(time[following])}: rows 1-{last + 1} "
            f"(lines {lines[0]}-{lines[last]}, {when(time[0])} to {when(time[last])}) are {duration(before)} apart, "
            f"the rows after them {duration(after)}"
        ),
        "Keep the bars of one resolution and delete the others.",
    )


def last_bar_is_unfinished(time: np.ndarray, modified: float) -> str | None:
    """Return why the last bar cannot be a whole one, or None.

    Either its time is off the grid (a quote of the running bar, as some web exports append) or the file was written
    while the bar was still running.
    """
    if len(time) < 4:
        return None
    steps = np.diff(time)
    bar = _usual_step(steps[:-1])
    if steps[-1] < bar and (steps[:-1] >= bar).all():
        return f"its time {when(time[-1])} is only {duration(steps[-1])} after the bar before it"
    written = int(modified * SECOND)
    if time[-1] <= written < time[-1] + bar:
        return (
            f"the file was written at {when(written // SECOND * SECOND)} UTC, before the bar of {when(time[-1])} ended"
        )
    return None


def quote_digits(prices: list[np.ndarray]) -> tuple[int | None, int]:
    """Return the decimals that 99.9 % of the quotes need (None: more than 8), and the number of quotes with more."""
    rows = len(prices[0])
    for digits in range(MOST_DIGITS + 1):
        more = sum(int((np.rint(x * 10.0**digits) / 10.0**digits != x).sum()) for x in prices)
        if more <= 0.001 * rows * len(prices):
            return digits, more
    return None, rows * len(prices)


def oddities(time: np.ndarray, columns: dict[str, np.ndarray], point: float) -> list[str]:
    """Return warnings about what is possible in a market but often is a defect: jumps, flat and volumeless runs."""
    o, h, l, c = (columns[role] for role in PRICES)
    told: list[str] = []
    change = np.maximum(np.abs(c[1:] / c[:-1] - 1), np.abs(o[1:] / c[:-1] - 1))
    jumps = np.flatnonzero(change > 0.5) + 1
    if len(jumps):
        worst = int(jumps[change[jumps - 1].argmax()])
        told.append(
            f"{len(jumps)} price jump(s) above 50 %, largest {100 * change[worst - 1]:.0f} % at {when(time[worst])} "
            "(a split, another contract, or a wrong row?)"
        )
    flat = (o == h) & (h == l) & (l == c)
    if flat.any():
        length, start = _longest_run(flat)
        told.append(
            f"{int(flat.sum())} flat bars (open = high = low = close), longest run {length} at {when(time[start])}"
        )
    volume = columns.get("volume")
    if volume is not None and (volume > 0).any() and (volume == 0).any():
        length, start = _longest_run(volume == 0)
        told.append(f"{int((volume == 0).sum())} bars of volume 0, longest run {length} at {when(time[start])}")
    quote = columns.get("quote_volume")
    if volume is not None and quote is not None:
        # volume in coins times the price is the volume in dollars: above a price of 1 it cannot be the larger one
        swapped = np.flatnonzero((volume > quote) & (quote > 0) & (c > 2))
        if len(swapped):
            told.append(
                f"{len(swapped)} rows from {when(time[swapped[0]])} to {when(time[swapped[-1]])} have volume and quote "
                "volume the other way round; volume is read as written, so do not rely on it"
            )
    spread = columns.get("spread")
    if spread is not None:
        if (spread != np.rint(spread)).any():
            told.append("the spread has decimals: it is read as points; if it is in price units, pass --point 1")
        share = float(np.median(spread * point / c))
        if share > 0.005:
            told.append(f"the median spread is {100 * share:.2f} % of the price: is the point size {point:g} right?")
        if (spread == 0).any():
            told.append(f"{int((spread == 0).sum())} bars have spread 0, which no broker offers for long")
    return told


def _longest_run(mask: np.ndarray) -> tuple[int, int]:
    """Return length and first row of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).reshape(-1, 2)
    lengths = edges[:, 1] - edges[:, 0]
    longest = int(lengths.argmax())
    return int(lengths[longest]), int(edges[longest, 0])


def check_length(rows: int, last_line: int) -> Problem | None:
    """Three bars are the least that have a spacing at all; what a fold needs is the splitter's business."""
    if rows >= 3:
        return None
    return Problem(f"{rows} bar(s) up to line {last_line}; 3 are the least", "Give a longer file.")
