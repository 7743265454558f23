"""The data card: what was read from a bar file, as text for people and as a dict for `run.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from textwrap import TextWrapper
from typing import Any

import numpy as np

from datamodules.bars.checks import Calendar, duration, when
from datamodules.bars.dialects import PRICES, SEPARATOR_NAMES
from datamodules.bars.errors import shown
from datamodules.bars.rows import Rows
from datamodules.bars.source import BarSource
from datamodules.bars.tables import SIGNATURES
from datamodules.bars.times import SECOND, Zone


@dataclass(frozen=True)
class DataCard:
    """Everything a reader decided about a file, so that the decision can be checked and repeated.

    Attributes:
        name, sha256, size_bytes: of the file; the hash is that of the bytes on disk.
        dialect: encoding, compression, separator, decimal, thousands, header, style, time format, time zone.
        columns: what each column of ours was read from (the file's own name, or its field number).
        rows_read, rows_kept, dropped: rows of data; dropped is reason -> rows.
        first, last: open time of the first and last bar, UTC.
        bar_seconds, bars_per_year: length of a bar in seconds; bars per calendar year, from the file's own calendar.
        gaps, missing_bars, longest_gap: steps longer than one bar, bars they skip, the longest with its time.
        steps: the most frequent steps between bars and how often each occurs.
        point, point_source: size of one point in price units, and whether it was given or read off the quotes.
        spread: median, 99 % and largest spread in points and price units; "none" when the file has no spread.
        notes: what was decided or repaired; warnings: what looks odd but may be true.
    """

    name: str
    sha256: str
    size_bytes: int
    dialect: dict[str, str]
    columns: dict[str, str]
    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    first: str
    last: str
    bar: str
    bar_seconds: int
    bars_per_year: float
    gaps: int
    missing_bars: int
    longest_gap: str
    steps: tuple[str, ...]
    point: float
    point_source: str
    spread: str
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        card = asdict(self)
        return card | {name: list(card[name]) for name in ("steps", "notes", "warnings")}

    def text(self) -> str:
        """Return the card as plain text; foreign names are escaped."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none"
        rows = [
            ("file", f"{shown(self.name)} ({self.size_bytes:,} bytes)"),
            ("sha256", self.sha256),
            *((name, shown(value)) for name, value in self.dialect.items()),
            ("columns", ", ".join(f"{shown(role)} <- {shown(name)}" for role, name in self.columns.items())),
            ("rows", f"{self.rows_read:,} read, {self.rows_kept:,} kept; dropped: {dropped}"),
            ("range", f"{self.first} to {self.last} UTC (open times)"),
            ("bar", f"{self.bar}; {self.bars_per_year:,.0f} bars per year by the file's own calendar"),
            ("gaps", f"{self.gaps:,} ({self.missing_bars:,} bars of time, not filled); longest {self.longest_gap}"),
            ("steps", ", ".join(self.steps)),
            ("point", f"{self.point:g} ({self.point_source})"),
            ("spread", self.spread),
        ]
        width = max(len(name) for name, _ in rows)
        wrapped = TextWrapper(80, subsequent_indent=" " * (width + 2), break_long_words=False, break_on_hyphens=False)
        lines = [line for name, value in rows for line in wrapped.wrap(f"{name:<{width}}  {value}")]
        lines += [f"note: {shown(note)}" for note in self.notes]
        lines += [f"warning: {shown(warning)}" for warning in self.warnings]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def make_card(
    source: BarSource,
    rows: Rows,
    calendar: Calendar,
    time: np.ndarray,
    point: float,
    point_source: str,
    spread: np.ndarray | None,
    volume_role: str | None,
    zone: Zone | None,
    notes: list[str],
    warnings: list[str],
    dropped: dict[str, int],
) -> DataCard:
    """Word the card of checked bars; `spread` in points, `volume_role` the role that volume was read from."""
    dialect = rows.dialect
    names = dialect.names or tuple(f"field {i + 1}" for i in range(dialect.width))
    used = {"time": "time", "clock": "clock"} | {role: role for role in PRICES} | {"spread": "spread"}
    used |= {"volume": volume_role} if volume_role is not None else {}
    spread_text = "none"
    if spread is not None:
        sizes = (("median", np.median(spread)), ("99 %", np.quantile(spread, 0.99)), ("largest", spread.max()))
        spread_text = ", ".join(f"{name} {size:g} points = {size * point:g}" for name, size in sizes)
    text = {  # a table has none of these
        "compression": source.compression,
        "separator": SEPARATOR_NAMES.get(dialect.separator, dialect.separator),
        "decimal": dialect.decimal,
        "thousands": dialect.thousands or "none",
        "header": "yes" if dialect.header else "no",
    }
    longest = f"{duration(calendar.longest_gap)} from {when(calendar.longest_gap_from)}" if calendar.gaps else "none"
    return DataCard(
        name=source.path.name,
        sha256=source.sha256,
        size_bytes=source.size,
        dialect={
            "style": dialect.style,
            "encoding": source.encoding,
            **({} if source.encoding in SIGNATURES.values() else text),
            "time format": rows.time_format,
            "time zone": "offset of each row" if rows.aware else zone.name if zone is not None else "UTC",
        },
        columns={ours: names[dialect.columns[role]] for ours, role in used.items() if role in dialect.columns}
        | {name: name for name in dialect.further},
        rows_read=rows.rows_read,
        rows_kept=len(time),
        dropped=dropped,
        first=when(time[0]),
        last=when(time[-1]),
        bar=duration(calendar.bar),
        bar_seconds=calendar.bar // SECOND,
        bars_per_year=calendar.bars_per_year,
        gaps=calendar.gaps,
        missing_bars=calendar.missing_bars,
        longest_gap=longest,
        steps=tuple(f"{duration(step)} x {count:,}" for step, count in calendar.top_steps),
        point=point,
        point_source=point_source,
        spread=spread_text,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )
