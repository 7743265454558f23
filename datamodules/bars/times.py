"""Time stamps of a bar file as nanoseconds since 1970 UTC.

A column of times is collected block by block and understood as a whole: whether 01.02.2024 means February or January
is settled by any other row of the file, and epoch numbers must all have one unit.
"""

from __future__ import annotations

import re
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd

SECOND = 1_000_000_000  # nanoseconds
DAY = 86_400 * SECOND
LATEST = 4_102_444_800  # seconds: 2100-01-01; earlier than 1970 or later than this is no bar of ours
_EPOCH_UNITS = (("s", SECOND), ("ms", 1_000_000), ("us", 1_000), ("ns", 1))

_YEAR_FIRST = r"(?P<year>\d{4})(?P<sep>[-./])(?P<first>\d{1,2})(?P=sep)(?P<second>\d{1,2})"
_YEAR_LAST = r"(?P<first>\d{1,2})(?P<sep>[-./])(?P<second>\d{1,2})(?P=sep)(?P<year>\d{4})"
_COMPACT = r"(?P<year>\d{4})(?P<first>\d{2})(?P<second>\d{2})"
_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<sec>\d{2})(?:[.,](?P<frac>\d{1,9}))?)?"
_COMPACT_CLOCK = r"(?P<hour>\d{2})(?P<minute>\d{2})(?P<sec>\d{2})?"
_HALF = r"(?: ?(?P<half>[AaPp][Mm]))?"
_ZONE = r" ?(?P<zone>Z|(?:UTC|GMT)?(?P<sign>[+-])(?P<zone_hour>\d{2})(?::?(?P<zone_minute>\d{2}))?|UTC|GMT)"
_NUMBERS = ("year", "first", "second", "hour", "minute", "sec", "frac", "zone_hour", "zone_minute")


class TimeColumn(Protocol):
    """Collects the times of a file; `finish` gives nanoseconds and the rows that are no time."""

    description: str
    aware: bool  # the times carry their own offset from UTC

    def add(self, values: np.ndarray) -> np.ndarray:
        """Take the next rows; return [n] bool, True where a row cannot be a time."""

    def finish(self) -> tuple[np.ndarray, np.ndarray, str | None]:
        """Return [N] int64 nanoseconds (wall clock when not `aware`), [N] bool bad rows, and a file-wide defect."""


class EpochTimes:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970, told apart by magnitude.

    All rows have one unit, but for milliseconds that become microseconds (or back, from new to old) once.
    """

    aware = False  # some exports store the server's wall clock as if it were UTC

    def __init__(self) -> None:
        self.description = "epoch of a time between 1970 and 2100"
        self._parts: list[np.ndarray] = []
        self._bad: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind not in "iu":
            numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(np.float64)
            bad = ~np.isfinite(numbers) | (np.abs(numbers) >= 2.0**53)
            numbers = np.where(bad, 0.0, numbers)
            bad |= numbers != np.rint(numbers)
            whole = np.where(bad, 0.0, numbers).astype(np.int64)
            exact = [isinstance(v, str) and v.strip().isascii() and v.strip().isdigit() for v in values]
            for i in np.flatnonzero(bad & np.array(exact, dtype=bool)):  # nanoseconds exceed 2**53: keep every digit
                number = int(values[i])
                if number <= LATEST * SECOND:
                    whole[i], bad[i] = number, False
        else:
            bad = (values < 0) | (values > LATEST * SECOND)
            whole = np.where(bad, 0, values).astype(np.int64)
        bad |= whole < 0
        self._parts.append(whole)
        self._bad.append(bad)
        return bad

    def finish(self) -> tuple[np.ndarray, np.ndarray, str | None]:
        numbers, bad = np.concatenate(self._parts), np.concatenate(self._bad)
        good = numbers[~bad]
        if len(good) == 0:
            return numbers, bad, None
        limits = np.array([LATEST * (SECOND // factor) for _, factor in _EPOCH_UNITS], dtype=np.int64)
        units = np.searchsorted(limits, numbers, side="left")
        counts = np.bincount(units[~bad], minlength=4)
        unit = int(counts.argmax())
        used, switches = np.flatnonzero(counts).tolist(), int((np.diff(units[~bad]) != 0).sum())
        if used == [1, 2] and switches == 1 and counts[1:3].min() > 1:
            # Binance since 2025: years glued together hold one after the other
            self.description = "epoch ms and us"
            factors = np.array([factor for _, factor in _EPOCH_UNITS])
            return np.where(bad, 0, numbers) * factors[np.where(bad, 0, units)], bad, None
        bad |= units != unit  # another unit, or outside 1970-2100
        if good[0] in (0, 1) and len(good) > 1 and (np.diff(good) == 1).all():
            return numbers, bad, f"the times count {good[0]}, {good[0] + 1}, ... like row numbers"
        name, factor = _EPOCH_UNITS[unit]
        self.description = f"epoch {name}"
        return np.where(bad, 0, numbers) * factor, bad, None


class FormatTimes:
    """Times in the format that the user gave, as `strptime` writes it."""

    def __init__(self, date_format: str) -> None:
        self.description = date_format
        self.aware = "%z" in date_format or "%Z" in date_format
        self._format = date_format
        self._parts: list[np.ndarray] = []
        self._bad: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> np.ndarray:
        texts = pd.Series([str(v).strip() for v in values], dtype=object)
        # utc=True reads a naive time as if it were UTC, which is the wall clock we want
        times = pd.to_datetime(texts, format=self._format, errors="coerce", utc=True)
        bad = times.isna().to_numpy()
        stamps = times.dt.tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64)
        bad = bad | (stamps < 0) | (stamps > LATEST * SECOND)
        self._parts.append(np.where(bad, 0, stamps))
        self._bad.append(bad)
        return bad

    def finish(self) -> tuple[np.ndarray, np.ndarray, str | None]:
        return np.concatenate(self._parts), np.concatenate(self._bad), None


class TextTimes:
    """Dates as YYYY-MM-DD, YYYY.MM.DD, YYYYMMDD or with the year last, with or without clock and offset.

    The first row decides the form; a row of another form is bad. With the year last, the order of day and month is
    settled by the rows of the whole file, and is a defect of the file when no row settles it.
    """

    def __init__(self, first: str) -> None:
        self._regex, self.description, self._year_last = _recognise(first)
        self.aware = "zone" in self._regex.groupindex
        self._dates: list[np.ndarray] = []  # year * 10000 + first * 100 + second
        self._clocks: list[np.ndarray] = []  # nanoseconds since midnight UTC
        self._bad: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> np.ndarray:
        fields, bad = _same_layout(values, self._regex) or _row_by_row(values, self._regex)
        hour = fields["hour"]
        half = fields.get("half")
        if half is not None:
            bad = bad | ((half > 0) & ((hour < 1) | (hour > 12)))
            hour = np.where(half == 0, hour, hour % 12 + np.where(half == 2, 12, 0))
        bad = bad | (hour > 23) | (fields["minute"] > 59) | (fields["sec"] > 59)
        offset = fields["sign"] * (fields["zone_hour"] * 60 + fields["zone_minute"])
        bad = bad | (np.abs(offset) > 18 * 60)
        clock = ((hour * 60 + fields["minute"] - offset) * 60 + fields["sec"]) * SECOND + fields["frac"]
        self._dates.append((fields["year"] * 10_000 + fields["first"] * 100 + fields["second"]).astype(np.int32))
        self._clocks.append(clock)
        self._bad.append(bad)
        return bad

    def finish(self) -> tuple[np.ndarray, np.ndarray, str | None]:
        dates, clocks, bad = (np.concatenate(parts) for parts in (self._dates, self._clocks, self._bad))
        self._dates, self._clocks, self._bad = [], [], []
        year, month, day = dates // 10_000, dates // 100 % 100, dates % 100
        if self._year_last:
            first_is_day, second_is_day = month[~bad] > 12, day[~bad] > 12
            if first_is_day.any() and second_is_day.any():
                # a few rows of the other order are bad rows, found below; both in number is a file of two parts
                day_first = bool(first_is_day.sum() >= second_is_day.sum())
            elif not first_is_day.any() and not second_is_day.any():
                return clocks, bad, "ambiguous"
            else:
                day_first = bool(first_is_day.any())
            order = ("DD", "MM") if day_first else ("MM", "DD")
            self.description = self.description.replace("??", order[0], 1).replace("??", order[1], 1)
            if day_first:
                month, day = day, month
        bad |= (month < 1) | (month > 12) | (day < 1) | (year < 1970) | (year > 2099)
        month, year = np.where(bad, 1, month), np.where(bad, 1970, year)
        months = (year - 1970) * 12 + month - 1
        days = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) + np.where(bad, 0, day - 1)
        bad |= days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) != months  # 30 February
        stamps = days * DAY + clocks
        bad |= (stamps < 0) | (stamps > LATEST * SECOND)
        return np.where(bad, 0, stamps), bad, None


def looks_compact(text: str) -> bool:
    """True for YYYYMMDD, YYYYMMDDhhmm and YYYYMMDDhhmmss, which are digits but no epoch."""
    if not (text.isascii() and text.isdigit()) or len(text) not in (8, 12, 14):
        return False
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    clock = [int(text[i : i + 2]) for i in range(8, len(text), 2)]
    limits = (24, 60, 60)
    in_range = all(part < limit for part, limit in zip(clock, limits, strict=False))
    return 1970 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31 and in_range


def is_time(text: str) -> bool:
    """True when `text` is a date, with or without a clock, in one of the forms that need no --date_format."""
    try:
        _recognise(text)
    except ValueError:
        return False
    return True


def is_clock(text: str) -> bool:
    """True for a time of day alone: 09:30, 09:30:00, 0930, 093000."""
    return any(re.fullmatch(clock + _HALF, text, re.ASCII) for clock in (_CLOCK, _COMPACT_CLOCK))


def _recognise(text: str) -> tuple[re.Pattern[str], str, bool]:
    """Return the pattern of all times written like `text`, its description, and whether the year is last."""
    text = text.strip()
    for date, name in ((_YEAR_FIRST, "YYYY{0}MM{0}DD"), (_YEAR_LAST, "??{0}??{0}YYYY"), (_COMPACT, "YYYYMMDD")):
        gap = "(?:T| +)?" if date is _COMPACT else "(?:T| +)"
        for clock, clock_name in (("", ""), (_CLOCK, " hh:mm"), (_COMPACT_CLOCK, " hhmm")):
            for zone, zone_name in (("", ""), (_ZONE, " with offset")):
                if zone and not clock:
                    continue
                half = _HALF if clock else ""
                pattern = re.compile(rf"{date}{gap if clock else ''}{clock}{half}{zone}", re.ASCII)
                match = pattern.fullmatch(text)
                if match:
                    sep = match.groupdict().get("sep") or ""
                    seconds = (":ss" if ":" in clock_name else "ss") if match.groupdict().get("sec") else ""
                    return pattern, name.format(sep) + clock_name + seconds + zone_name, date is _YEAR_LAST
    raise ValueError(f"{text!r} is no time stamp in a known form")


def strptime_format(text: str, day_first: bool) -> str:
    """How `strptime` writes a time like `text`, whose year is last and whose day and month cannot be told apart."""
    text = text.strip()
    match = _recognise(text)[0].fullmatch(text)
    assert match is not None
    codes = {"first": "%d" if day_first else "%m", "second": "%m" if day_first else "%d", "year": "%Y"}
    codes |= {"hour": "%I" if match.groupdict().get("half") else "%H", "minute": "%M", "sec": "%S", "frac": "%f"}
    codes |= {"half": "%p", "zone": "%z"}
    found = sorted((match.span(name), code) for name, code in codes.items() if match.groupdict().get(name))
    for (start, stop), code in reversed(found):
        text = text[:start] + code + text[stop:]
    return text


def _empty_fields(n: int) -> dict[str, np.ndarray]:
    return {name: np.zeros(n, dtype=np.int64) for name in (*_NUMBERS, "sign")}


def _same_layout(values: np.ndarray, regex: re.Pattern[str]) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Read times that are all written exactly like the first one, digit for digit; None when they are not.

    About thirty times faster than row by row, and true of nearly every file.
    """
    first = values[0]
    if not isinstance(first, str) or not first.isascii():
        return None
    match = regex.fullmatch(first)
    if match is None:
        return None
    try:
        texts = np.array(values, dtype="S")
    except (UnicodeEncodeError, ValueError):
        return None
    width = texts.dtype.itemsize
    if width != len(first):
        return None
    letters = texts.view(np.uint8).reshape(len(values), width)
    groups = {name: match.span(name) for name in _NUMBERS if name in regex.groupindex and match.group(name)}
    inside = {i for start, stop in groups.values() for i in range(start, stop)}
    for i in range(width):
        column = letters[:, i]
        if i in inside:
            if column.min() < 48 or column.max() > 57:
                return None
        elif not (column == ord(first[i])).all():
            return None
    fields = _empty_fields(len(values))
    for name, (start, stop) in groups.items():
        for i in range(start, stop):
            fields[name] *= 10
            fields[name] += letters[:, i]
            fields[name] -= 48
        if name == "frac":
            fields[name] *= 10 ** (9 - (stop - start))
    names = match.groupdict()
    if names.get("sign"):
        fields["sign"] += -1 if names["sign"] == "-" else 1
    if names.get("half"):
        fields["half"] = np.full(len(values), 2 if names["half"].lower() == "pm" else 1)
    return fields, np.zeros(len(values), dtype=bool)


def _row_by_row(values: np.ndarray, regex: re.Pattern[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    fields, bad = _empty_fields(len(values)), np.zeros(len(values), dtype=bool)
    fields["half"] = np.zeros(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        match = regex.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            bad[row] = True
            continue
        for name, text in match.groupdict().items():
            if text is None:
                continue
            if name == "frac":
                fields["frac"][row] = int(text.ljust(9, "0"))
            elif name == "sign":
                fields["sign"][row] = -1 if text == "-" else 1
            elif name == "half":
                fields["half"][row] = 2 if text.lower() == "pm" else 1
            elif name in fields:
                fields[name][row] = int(text)
    return fields, bad


class Zone:
    """A time zone by IANA name (`Europe/Berlin`), fixed offset (`+02:00`) or zone and hours (`America/New_York+7`).

    The last form is the clock of many brokers: New York plus seven hours, so that the trading day ends at midnight.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._shift = 0
        fixed = re.fullmatch(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?(\d{2}))?", name)
        shifted = re.fullmatch(r"([A-Za-z_]+(?:/[A-Za-z_]+)*)([+-]\d{1,2})", name)
        zone = name
        if fixed:
            minutes = int(fixed[2]) * 60 + int(fixed[3] or 0)
            self._shift, zone = (-1 if fixed[1] == "-" else 1) * minutes * 60 * SECOND, "UTC"
        elif shifted and not name.startswith("Etc/"):
            zone, self._shift = shifted[1], int(shifted[2]) * 3600 * SECOND
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no time zone") from error

    def to_utc(self, wall: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return UTC nanoseconds, rows whose wall clock never was, and rows that could be either of two hours.

        In the hour that the clocks repeat in autumn, rows are summer time until the clock jumps back, winter time
        after that; when it never jumps back, nothing tells the two apart.
        """
        shifted = wall - self._shift
        index = pd.DatetimeIndex(shifted.astype("datetime64[ns]"))
        summer = index.tz_localize(self._zone, ambiguous=np.ones(len(wall), dtype=bool), nonexistent="NaT")
        winter = index.tz_localize(self._zone, ambiguous=np.zeros(len(wall), dtype=bool), nonexistent="NaT")
        never = np.asarray(summer.isna())
        first, second = (x.as_unit("ns").asi8 for x in (summer, winter))
        twice = (first != second) & ~never
        utc, unknown = first.copy(), np.zeros(len(wall), dtype=bool)
        rows = np.flatnonzero(twice)
        if len(rows):
            for run in np.split(rows, np.flatnonzero(np.diff(wall[rows]) > DAY) + 1):  # one autumn each
                steps = np.diff(wall[run])
                back = np.flatnonzero(steps < 0 if (steps < 0).any() else steps == 0)  # 0: bars of one hour
                hour_only_once = len(back) == 0
                unknown[run] = hour_only_once
                if not hour_only_once:
                    later = run[back[0] + 1 :]
                    utc[later] = second[later]
        return utc, never, unknown
