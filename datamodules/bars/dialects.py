"""How a bar file writes its rows: separator, decimal sign, header, and which column is what.

A dialect is found from the first 64 KiB and then demanded of every row; what leaves room for doubt is refused with the
option that settles it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from datamodules.bars.errors import NAMED_LINES, shown
from datamodules.bars.options import EVERY, ReaderOptions
from datamodules.bars.source import BarSource
from datamodules.bars.times import is_clock, is_time, looks_compact

MOST_SYMBOLS = 30  # told by name
SEPARATORS = ("\t", ";", "|", ",")  # in this order: a decimal comma also splits every row alike
SEPARATOR_NAMES = {"\t": "tab", ";": "semicolon", "|": "pipe", ",": "comma"}
PRICES = ("open", "high", "low", "close")
VOLUMES = ("volume", "tick_volume")
NUMBERS = (*PRICES, *VOLUMES, "spread", "quote_volume", "adjusted_close")

# names after case-folding and leaving out everything but a to z and digits: Clôture is clture
_NAMES: dict[str, tuple[str, ...]] = {
    "open": ("open", "o", "openprice", "bidopen", "otwarcie"),  # Polish: Stooq's
    "high": ("high", "h", "highprice", "max", "bidhigh", "najwyzszy"),
    "low": ("low", "l", "lowprice", "min", "bidlow", "najnizszy"),
    "close": ("close", "c", "closeprice", "last", "closelast", "bidclose", "zamkniecie"),
    "volume": ("volume", "vol", "realvolume", "v", "wolumen"),
    "tick_volume": ("tickvolume", "tickvol"),
    "spread": ("spread",),
    "quote_volume": ("volumeusd", "volumeusdt", "quotevolume", "quoteassetvolume"),
    "symbol": ("symbol", "ticker", "tic", "instrument", "pair", "ric"),
}
_CLOSE_ONLY_NAMES = ("close", "price", "value", "settle", "settlement", "adjclose")  # of the one price there is
_NOT_READ = ("closetime", "ignore", "openint")  # numbers that are no news at the close of a bar
_OTHER_SYMBOL = "-"  # instead of the name of a column that belongs to another symbol
_TIME_NAMES = (  # the first that the file has is used
    *("unix", "epoch", "unixtimestamp", "timestamp", "timestampms", "ts"),
    *("datetime", "opentime", "gmttime", "time", "localtime", "dateandtime", "date", "day", "data", "observationdate"),
)
_ZONE_IN_NAME = re.compile(r"(?P<name>.*\w) *\((?P<zone>[\w/+:-]+)\)")  # Dukascopy's Time (EET)
_ORDINARY_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:[,' ]\d{3})+(?:\.\d+)?", re.ASCII)
_MAYBE_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+", re.ASCII)
_HEADERLESS = {  # number of fields after the time -> roles
    4: PRICES,
    5: (*PRICES, "volume"),
    7: (*PRICES, "tick_volume", "volume", "spread"),
}
# Binance's public klines, which have a header for futures and none for spot
_KLINES: tuple[str, ...] = ("open_time", *PRICES, "volume", "close_time", "quote_volume", "count")
_KLINES += ("taker_buy_volume", "taker_buy_quote_volume", "ignore")


_HIST_DATA = "HistData or NinjaTrader"
# Stands for a separator inside quotes: no part of a number, so that the field is refused, and no space either, which
# would be stripped off a field's ends ("\x1f" is one to Python).
QUOTED_SEPARATOR = "\x01"


@dataclass(frozen=True)
class Dialect:
    """What a row looks like.

    Attributes:
        columns: role -> field number; roles are time, clock (time of day, when apart), open, high, low, close, volume,
            tick_volume, spread, quote_volume, adjusted_close (when asked for), symbol.
        further: name -> field number of the other columns of numbers, which features may use.
        names: of the columns; empty where there is no header and the order alone tells.
        header: the names stand in the file.
        width: fields per row, an empty one after a trailing separator included.
        first_row: line number of the first row of data.
        first_time: the text of the first time stamp.
    """

    separator: str
    decimal: str
    thousands: str | None
    style: str
    columns: dict[str, int]
    names: tuple[str, ...]
    width: int
    first_row: int
    first_time: str
    epoch: bool
    header: bool
    further: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())

    @property
    def parsed_decimal(self) -> str:
        """The decimal sign once quotes are off: a comma that also separates has become a point by then."""
        return "." if self.decimal == self.separator else self.decimal

    def unquoted(self, data: bytes) -> bytes:
        """Take the quotes off whole fields; a separator inside them must not split the field."""
        if b'"' not in data:
            return data
        separator = self.separator.encode()
        instead = b"." if self.decimal == self.separator else QUOTED_SEPARATOR.encode()

        def content(match: re.Match[bytes]) -> bytes:
            inside: bytes = match[2]
            if self.thousands is not None and self.thousands == self.separator:
                inside = inside.replace(separator, b"")
            return match[1] + inside.replace(separator, instead)

        return re.sub(_quoted_field(self.separator).encode(), content, data, flags=re.MULTILINE)


def find_dialect(sample: bytes, source: BarSource, options: ReaderOptions) -> Dialect:
    """Return the dialect of the file that begins with `sample` (whole lines). Raises BarFileError.

    Options that are not None are taken as they are; the rest is detected.
    """
    lines = [(i, line) for i, line in enumerate(sample.decode().split("\n"), 1) if line.strip()]
    if not lines:
        raise source.refuse("the file is empty (blank lines only)", "Export the bars again.")
    least = 2 if options.close_only else 5
    separator = options.separator or _find_separator([line for _, line in lines], least, source)
    rows, notes = _one_header([(number, _fields(line, separator)) for number, line in lines], options.symbol, source)
    several = bool(notes)
    number, first = rows[0]
    has_header = _is_header(first, options)
    data = rows[1:] if has_header else rows
    if not data:
        raise source.refuse("a header, but no row of data", "Export the bars again.", number)
    width = Counter(len(fields) for _, fields in data).most_common(1)[0][0]
    good = [(n, fields) for n, fields in data if len(fields) == width]
    typical = good[0][1]
    further: dict[str, int] = {}
    names: tuple[str, ...] = ()
    if has_header:
        names = _header_names(first, width, typical, number, source)
    elif len(first) != width:
        raise source.refuse(
            f"{len(first)} fields, but the rows after it have {width}",
            "Line 1 must be the header or the first bar; delete what stands above the bars.",
            number,
        )
    elif _are_klines(typical):
        names = _KLINES
    if names:
        columns, style, more = _columns_of(names, [fields for _, fields in good], number, source, options)
        further, left_out = _further_columns(names, columns, [fields for _, fields in good])
        notes += [*more, *left_out]
        style = style if has_header else "Binance klines, no header"
    else:
        columns, style = _headerless([fields for _, fields in good], number, source, options)
    if style == _HIST_DATA and options.timezone is None:
        raise source.refuse(
            "no header and times as YYYYMMDD hhmmss, or volumes that are all 0: HistData, whose times are EST without "
            "summer time, or NinjaTrader, whose times are UTC at the end of each bar",
            "Pass --timezone EST for HistData, --timezone UTC --stamp close for NinjaTrader.",
        )
    found = f"found {', '.join(map(repr, names)) or 'no header'}"
    if options.symbol is not None and "symbol" not in columns and not several:
        raise source.refuse(
            f"symbol {options.symbol!r} is asked for, and no column holds symbols; {found}",
            "Leave --symbol out, or name the column symbol.",
        )
    if options.adjusted and "adjusted_close" not in columns:
        raise source.refuse(
            f"adjusted prices are asked for, and there is no column Adj Close; {found}",
            "Leave --adjusted out if the prices are adjusted already (yfinance: unless auto_adjust=False).",
        )
    prices = [fields[columns[role]].removeprefix("$") for _, fields in good for role in PRICES if role in columns]
    decimal = options.decimal or _find_decimal(prices, separator, options.thousands, source)
    if decimal == options.thousands:
        raise source.refuse(f"decimal and thousands are both {decimal!r}", "They must differ.")
    first_time = typical[columns["time"]] + (" " + typical[columns["clock"]] if "clock" in columns else "")
    epoch = options.date_format is None and "clock" not in columns and _is_epoch(typical[columns["time"]])
    return Dialect(
        separator,
        decimal,
        options.thousands,
        style,
        columns,
        names,
        width,
        data[0][0],
        first_time,
        epoch,
        has_header,
        further,
        tuple(notes),
    )


def choose_symbol(found: Collection[str], asked: Sequence[str] | str | None, source: BarSource) -> str:
    """Return the symbol to read; of `EVERY` the first.

    Raises:
        BarFileError: it is not among those of the file, or none was named.
    """
    if asked == EVERY:
        return min(found)
    if isinstance(asked, str) and asked in found:
        return asked
    if asked is None and len(found) == 1:
        return next(iter(found))
    listed = ", ".join(shown(name) for name in sorted(found)[:MOST_SYMBOLS])
    listed += ", ..." if len(found) > MOST_SYMBOLS else ""
    what = f"the file holds {len(found)} symbols: {listed}"
    raise source.refuse(
        what if asked is None else f"there is no symbol {shown(repr(asked))}; {what}",
        "Pass --symbol NAME (--data.symbol NAME for a training) for one of them.",
    )


def _one_header(
    rows: list[tuple[int, list[str]]], asked: Sequence[str] | str | None, source: BarSource
) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Make one line of yfinance's header of three (price, ticker, name of the index), and a note of what it held.

    Columns of another symbol than the one that is read lose their names.
    """
    if len(rows) < 4 or {_plain(fields[0]) for _, fields in rows[:2]} != {"price", "ticker"}:
        return rows, []
    (number, first), (_, second), (_, third) = rows[:3]
    prices, symbols = (first, second) if _plain(first[0]) == "price" else (second, first)
    if len(prices) != len(symbols) or any(third[1:]):
        return rows, []
    known = set(symbols[1:])
    chosen = choose_symbol(known, asked, source)
    names = [price if symbol == chosen else _OTHER_SYMBOL for price, symbol in zip(prices, symbols, strict=True)]
    names[0] = third[0] or "Date"
    return [(number, names), *rows[3:]], [symbol_note(known, chosen)]


def symbol_note(known: Collection[str], chosen: str) -> str:
    """Say which of the file's symbols is read."""
    return f"{len(known)} symbols, of which {chosen!r} is read" if len(known) > 1 else f"symbol {chosen!r}"


def _fields(line: str, separator: str) -> list[str]:
    """Split one line of the sample; quotes keep a separator inside a field."""
    if '"' in line:
        line = re.sub(
            _quoted_field(separator), lambda match: match[1] + match[2].replace(separator, QUOTED_SEPARATOR), line
        )
    return [part.replace(QUOTED_SEPARATOR, separator).strip() for part in line.split(separator)]


def _quoted_field(separator: str) -> str:
    """Return the pattern of a field that is quoted from end to end; a quote inside a field is left and refused."""
    at = re.escape(separator)
    return rf'(^|{at}) *"([^"\n]*)" *(?={at}|$)'


def _find_separator(lines: Sequence[str], least: int, source: BarSource) -> str:
    counts = {}
    sample = lines[:200]
    for separator in SEPARATORS:
        widths = Counter(len(_fields(line, separator)) for line in sample)
        width, agreeing = widths.most_common(1)[0]
        if width >= least and agreeing >= 0.8 * len(sample):
            return separator
        counts[SEPARATOR_NAMES[separator]] = width
    found = ", ".join(f"{name} {width}" for name, width in counts.items())
    raise source.refuse(
        f"no separator splits the lines into the same {least} or more fields (fields by separator: {found}); "
        f"it begins with {shown(repr(lines[0][:60]))}",
        "Give a table of bars (time, open, high, low, close), or pass --separator. Closes alone need --close_only; "
        "ticks must be made bars first.",
        1,
    )


def _plain(name: str) -> str:
    if zoned := _ZONE_IN_NAME.fullmatch(name):
        plain = _plain(zoned["name"])
        if plain in _TIME_NAMES:
            return plain
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _role(name: str) -> str | None:
    plain = _plain(name)
    return next((role for role, known in _NAMES.items() if plain in known), None)


def _is_number(text: str) -> bool:
    return any(form.fullmatch(text) for form in (_ORDINARY_NUMBER, _COMMA_NUMBER, _GROUPED))


def _is_header(fields: Sequence[str], options: ReaderOptions) -> bool:
    """A header names at least two columns we know, or has no number at all."""
    known = sum(_role(name) is not None or _plain(name) in _TIME_NAMES for name in fields)
    numbers = sum(_is_number(text) for text in fields)
    return known >= 2 or (numbers == 0 and not any(is_time(text) for text in fields))


def _header_names(fields: list[str], width: int, typical: list[str], number: int, source: BarSource) -> tuple[str, ...]:
    names = [name.removeprefix("<").removesuffix(">").strip() for name in fields]
    if len(names) == width + 1 and names[-1] == "":
        names.pop()
    if len(names) == width - 1 and typical[-1] == "":
        names.append("")
    if len(names) != width:
        if len(names) < 4:  # too few for bars: a title or an address that some exchanges put first
            raise source.refuse(
                f"{shown(repr(fields[0][:60]))} is neither a header nor a bar (the rows have {width} fields)",
                "Delete what stands above the header.",
                number,
            )
        raise source.refuse(
            f"the header has {len(names)} names, the rows have {width} fields",
            "Give header and rows the same columns; quote numbers that hold the separator.",
            number,
        )
    ours = [_plain(name) for name in names if _role(name) or _plain(name) in _TIME_NAMES]
    twice = [name for name, count in Counter(ours).items() if count > 1]
    if twice:
        raise source.refuse(
            f"the column {', '.join(repr(name) for name in twice)} appears more than once",
            "Delete or rename the one that is not meant.",
            number,
        )
    return tuple(names)


def _columns_of(
    names: tuple[str, ...], rows: list[list[str]], number: int, source: BarSource, options: ReaderOptions
) -> tuple[dict[str, int], str, list[str]]:
    """Map roles to field numbers by name; prefers the columns that need no guess."""
    notes: list[str] = []
    columns: dict[str, int] = {}
    plain = [_plain(name) for name in names]
    for role, known in _NAMES.items():
        found = [plain.index(name) for name in known if name in plain]
        if found:
            columns[role] = found[0]
    needed: tuple[str, ...] = PRICES
    if options.close_only:
        if present := [role for role in ("open", "high", "low") if role in columns]:
            raise source.refuse(
                f"closes alone are asked for, and there is {', '.join(present)}", "Leave --close_only out."
            )
        needed = ("close",)
        if closes := [name for name in _CLOSE_ONLY_NAMES if name in plain]:
            columns["close"] = plain.index(closes[0])
    elif "close" not in columns and "price" in plain and {"open", "high", "low"} <= columns.keys():
        columns["close"] = plain.index("price")  # Investing.com
        notes.append(f"closes are read from {names[columns['close']]!r}")
    for role in VOLUMES:
        if role in columns and all(row[columns[role]] in ("", "-") for row in rows):
            notes.append(f"{names[columns.pop(role)]!r} is empty: left out")
    times = [plain.index(name) for name in _TIME_NAMES if name in plain]
    typical = rows[0]
    unnamed = [i for i, name in enumerate(plain) if (name == "" and names[i] == "") or name.startswith("unnamed")]
    if not times:
        times = [i for i in unnamed if is_time(typical[i])][:1]
        if times:
            notes.append("the column without name holds the times")
    missing = [role for role in needed if role not in columns]
    if missing or not times:
        wanted = missing + ([] if times else ["time"])
        hints = {
            role: difflib.get_close_matches(role, [p for p in plain if p], n=2, cutoff=0.5)
            for role in wanted
            if role != "time"
        }
        near = "; ".join(f"{role}: nearest {', '.join(map(repr, hint))}" for role, hint in hints.items() if hint)
        remedy = "Rename the columns to time, open, high, low, close, volume, spread."
        if "close" in columns and len(missing) == 3:
            remedy += " If the closes are all there is, pass --close_only."
        if any("bid" in p for p in plain) and any("ask" in p for p in plain):
            remedy = "Ticks (bid and ask quotes) must be made bars first."
        raise source.refuse(
            f"no column {', '.join(wanted)}; found {', '.join(map(repr, names))}{' (' + near + ')' if near else ''}",
            remedy,
            number,
        )
    clock = next((i for i in times if plain[i] == "time" and all(is_clock(row[i]) for row in rows[:NAMED_LINES])), None)
    date = next((i for i in times if plain[i] in ("date", "day", "datetime")), None)
    if clock is not None and date is not None:
        columns["time"], columns["clock"] = date, clock
        used = {date, clock}
    else:
        columns["time"] = times[0]
        used = {times[0]}
    others = [names[i] for i in times if i not in used]
    if others:
        notes.append(f"time is read from {names[columns['time']]!r}; {', '.join(map(repr, others))} left out")
    adjusted = next((i for i, name in enumerate(plain) if name.startswith(("adjclose", "adjustedclose"))), None)
    if options.adjusted and adjusted is not None:
        columns["adjusted_close"] = adjusted
    elif adjusted is not None and adjusted != columns["close"]:
        notes.append(
            "prices are unadjusted (Adj Close left out): a split or dividend shows as a price jump; --adjusted takes it"
        )
    dropped = [i for i in unnamed if i not in columns.values() and not (i == len(names) - 1 and typical[i] == "")]
    if dropped:
        notes.append(f"unnamed column(s) {', '.join(str(i + 1) for i in dropped)} left out")
    text = names[columns["time"]]
    style = "MetaTrader 5 export" if "tickvol" in plain and "clock" in columns else "table with header"
    zoned = _ZONE_IN_NAME.fullmatch(text)
    if zoned and options.timezone is None and zoned["zone"].upper() not in ("UTC", "GMT"):
        raise source.refuse(
            f"the column {text!r} holds times of another zone than UTC", f"Pass --timezone {zoned['zone']}.", number
        )
    if options.date_format is None and not _is_epoch(typical[columns["time"]]) and "clock" not in columns:
        sample = next((row[columns["time"]] for row in rows if is_time(row[columns["time"]])), None)
        if sample is None:
            _unknown_time(typical[columns["time"]], f"column {text!r}", number + 1, source)
    return columns, style, notes


def _further_columns(
    names: tuple[str, ...], columns: dict[str, int], rows: list[list[str]]
) -> tuple[dict[str, int], list[str]]:
    """Return the columns that are none of ours but hold numbers, and notes about those that are left out."""
    ours = {plain for known in _NAMES.values() for plain in known} | set(_TIME_NAMES)
    further: dict[str, int] = {}
    text: list[str] = []
    twice: list[str] = []
    known = [_plain(name) for name in names]
    for i, (name, plain) in enumerate(zip(names, known, strict=True)):
        adjusted = plain.startswith(("adjclose", "adjustedclose"))
        if i in columns.values() or plain in ours or plain == "" or plain.startswith("unnamed") or adjusted:
            continue
        if plain in _NOT_READ:
            continue
        values = [row[i] for row in rows if row[i]]
        numbers = sum(_is_number(value) for value in values)
        if known.count(plain) > 1:
            twice.append(name)
        elif values and 2 * numbers > len(values):
            further[name] = i
        else:
            text.append(name)
    left_out = (("column(s) of text", text), ("columns of the same name", list(dict.fromkeys(twice))))
    return further, [f"{what} left out: {', '.join(map(repr, those))}" for what, those in left_out if those]


def _are_klines(fields: Sequence[str]) -> bool:
    """Whether a row without header is one of Binance's: the seventh field is the time at which the bar ends."""
    times = [fields[i] for i in (0, 6)] if len(fields) == len(_KLINES) else []
    return bool(times) and all(_is_epoch(text) for text in times) and float(times[0]) < float(times[1])


def _headerless(
    rows: list[list[str]], number: int, source: BarSource, options: ReaderOptions
) -> tuple[dict[str, int], str]:
    typical, date_given = rows[0], options.date_format is not None
    fields = typical[:-1] if typical[-1] == "" else typical
    joined = len(fields) > 1 and is_clock(fields[1]) and (is_time(fields[0]) or date_given)
    after = 2 if joined else 1
    roles = ("close",) if options.close_only else _HEADERLESS.get(len(fields) - after)
    if not (is_time(fields[0]) or _is_epoch(fields[0]) or date_given):
        _unknown_time(fields[0], "the first field", number, source)
    fits = roles is not None and len(roles) == len(fields) - after
    if roles is None or not fits or not all(_is_number(text) for text in fields[after:]):
        layout = "time, close" if options.close_only else "time, open, high, low, close[, volume], or MetaTrader's"
        raise source.refuse(
            f"no header, and {len(fields)} fields like {', '.join(repr(text) for text in fields[:8])} fit no layout "
            f"({layout})",
            "Add a header line that names the columns.",
            number,
        )
    columns = {"time": 0} | ({"clock": 1} if joined else {})
    columns |= {role: after + i for i, role in enumerate(roles)}
    unstated = "volume" in columns and all(row[columns["volume"]] == "0" for row in rows)
    if re.fullmatch(r"\d{8} \d{6}", fields[0]) or (joined and len(roles) == 5 and unstated):
        return columns, _HIST_DATA
    return columns, "MetaTrader 4, no header" if joined else "no header"


def _is_epoch(text: str) -> bool:
    return _ORDINARY_NUMBER.fullmatch(text) is not None and not looks_compact(text) and not re.match("[-+.]", text)


def _unknown_time(text: str, where: str, line: int, source: BarSource) -> NoReturn:
    raise source.refuse(
        f"{where} holds {shown(repr(text[:40]))}, which is no time stamp in a known form",
        "Pass --date_format, for example '%d %b %Y %H:%M'.",
        line,
    )


def _find_decimal(prices: Sequence[str], separator: str, thousands: str | None, source: BarSource) -> str:
    """Return "." or ","; a comma that could group thousands as well is refused."""
    with_comma = [text for text in prices if "," in text]
    if not with_comma or thousands == ",":
        return "."
    grouped = [text for text in with_comma if _GROUPED.fullmatch(text) and ("." in text or text.count(",") > 1)]
    if grouped:
        raise source.refuse(
            f"the price {grouped[0]!r} groups thousands with a comma", "Pass --thousands ',' or export plain numbers."
        )
    plain_commas = [text for text in with_comma if _COMMA_NUMBER.fullmatch(text)]
    if plain_commas and all(_MAYBE_GROUPED.fullmatch(text) for text in plain_commas):
        raise source.refuse(
            f"the price {plain_commas[0]!r} may be {plain_commas[0].replace(',', '.')} or "
            f"{plain_commas[0].replace(',', '')}",
            "Pass --decimal ',' or --thousands ','.",
        )
    return "," if 2 * len(plain_commas) > len(prices) else "."
