"""How a bar file is to be read: one object for the reader, the datamodule's `data.*` keys and the commands' flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.bars.errors import BarFileError, Problem
from datamodules.bars.times import Zone

EVERY = "*"  # as `symbol`: each of the file's


@dataclass(frozen=True)
class ReaderOptions:
    """What the file itself does not tell, or not surely enough. None detects it, or refuses where it cannot be told.

    Args:
        point: price units per point of spread; None reads it off the quotes' digits (3 digits: 0.001).
        timezone: zone of times without offset: IANA name, "+02:00", or "America/New_York+7" (the clock of many
            brokers). None is UTC. Epoch times are taken for wall clocks of this zone when it is given.
        date_format: strptime format of the times, where they are ambiguous.
        separator: between columns, one character.
        decimal: decimal mark, "." or ",".
        thousands: mark that groups thousands; None refuses numbers with one.
        drop_bad_rows: leave out rows that cannot be right, up to 0.1 % of the file, instead of refusing it.
        sort: sort a file that is neither ascending nor descending by time.
        symbol: which instrument of a file that holds several; a list of them, or "*" for all, runs each
            (`lit-ppo walk-forward`).
        stamp: which end of its bar a time names: open, or close as NinjaTrader and TradeStation write it.
        adjusted: prices times adjusted close / close: without the jumps of splits and dividends.
        close_only: the file holds closes and nothing else of the price; open is the close before, high and low the
            larger and the smaller of the two.
    """

    point: float | None = None
    timezone: str | None = None
    date_format: str | None = None
    separator: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    drop_bad_rows: bool = False
    sort: bool = False
    symbol: list[str] | str | None = None
    stamp: Literal["open", "close"] = "open"
    adjusted: bool = False
    close_only: bool = False

    def check(self, path: str | Path) -> None:
        """Refuse what no file can be read with.

        Raises:
            BarFileError: names the option, of the reading of `path`.
        """
        if self.point is not None and not (math.isfinite(self.point) and self.point > 0):
            raise _refused(path, f"point is {self.point!r}", "Give price units per point, above 0, as 0.001.")
        for name in ("separator", "decimal", "thousands"):
            value = getattr(self, name)
            if value is not None and (len(value) != 1 or not value.isascii() or value.isalnum() or value in '\n\r"'):
                raise _refused(path, f"{name} is {value!r}", "Give one character that is no letter or digit.")
        if self.separator is not None and self.separator in ".+-: ":
            raise _refused(path, f"separator is {self.separator!r}", "Numbers and times hold this character.")
        if self.decimal not in (None, ".", ","):
            raise _refused(path, f"decimal is {self.decimal!r}", "Give '.' or ','.")
        if self.symbol == EVERY or not (self.symbol is None or isinstance(self.symbol, str)):
            what = f"symbol {self.symbol!r} asks for several instruments, and one is read at a time"
            raise _refused(path, what, "Name one; lit-ppo walk-forward runs each of several.")
        if self.stamp not in ("open", "close"):
            raise _refused(
                path, f"stamp is {self.stamp!r}", "Give open or close: the end of its bar that a time names."
            )

    def zone(self, path: str | Path) -> Zone | None:
        """The zone of times without offset; None for UTC."""
        if self.timezone is None or self.timezone.upper() in ("UTC", "GMT", "Z"):
            return None
        try:
            return Zone(self.timezone)
        except ValueError as error:
            remedy = "Give an IANA name (Europe/Berlin, EST), +02:00, or America/New_York+7."
            raise _refused(path, str(error), remedy) from error


def _refused(path: str | Path, what: str, remedy: str) -> BarFileError:
    return BarFileError(path, [Problem(what, remedy)])
