"""Every way in which bars are written reads back as the same bars."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.bars.read import Bars, read_bars


class Written(NamedTuple):
    """A file's content, the options it needs, and what it does not hold."""

    content: bytes
    options: Mapping[str, Any] = MappingProxyType({})
    volume: bool = True
    spread: bool = True
    name: str = "bars.csv"


def table(
    frame: pd.DataFrame,
    time: Callable[[pd.Timestamp], str] = str,
    header: str | None = "time,open,high,low,close,volume,spread",
    row: str = "{t},{o},{h},{l},{c},{v},{s}",
    end: str = "\n",
    number: Callable[[str], str] = lambda text: text,
    digits: int = 3,
) -> str:
    lines = [] if header is None else [header]
    for bar in frame.itertuples():
        prices = {
            key: number(f"{value:.{digits}f}")
            for key, value in zip("ohlc", (bar.open, bar.high, bar.low, bar.close), strict=True)
        }
        lines.append(row.format(t=time(bar.time), v=f"{bar.volume:.0f}", s=f"{bar.spread:.0f}", **prices))
    return end.join(lines) + end


def epoch(unit: int) -> Callable[[pd.DataFrame], Written]:
    return lambda frame: Written(table(frame, lambda t: str(t.value // unit)).encode())


def strf(form: str, **more: Any) -> Callable[[pd.DataFrame], Written]:
    return lambda frame: Written(table(frame, lambda t: t.strftime(form), **more).encode())


def coded(encoding: str, mark: bytes = b"") -> Callable[[pd.DataFrame], Written]:
    return lambda frame: Written(mark + table(frame).encode(encoding))


def metatrader5(frame: pd.DataFrame) -> Written:
    header = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    row = "{t}\t{o}\t{h}\t{l}\t{c}\t{v}\t0\t{s}"
    return Written(table(frame, lambda t: t.strftime("%Y.%m.%d\t%H:%M:%S"), header, row, end="\r\n").encode())


def metatrader4(frame: pd.DataFrame) -> Written:
    text = table(frame, lambda t: t.strftime("%Y.%m.%d,%H:%M"), None, "{t},{o},{h},{l},{c},{v}")
    return Written(text.encode(), spread=False)


def hist_data(frame: pd.DataFrame) -> Written:
    """Times are EST (UTC-5), all year."""
    eastern = frame.assign(time=frame["time"] - pd.Timedelta(hours=5))
    text = table(eastern, lambda t: t.strftime("%Y%m%d %H%M%S"), None, "{t};{o};{h};{l};{c};{v}")
    return Written(text.encode(), {"timezone": "EST"}, spread=False)


def decimal_comma(frame: pd.DataFrame) -> Written:
    text = table(
        frame,
        header="Date;open;high;low;close;volume;spread",
        row="{t};{o};{h};{l};{c};{v};{s}",
        number=lambda x: x.replace(".", ","),
    )
    return Written(text.encode())


def quoted_decimal_comma(frame: pd.DataFrame) -> Written:
    row = '"{t}","{o}","{h}","{l}","{c}","{v}","{s}"'
    return Written(table(frame, row=row, number=lambda x: x.replace(".", ",")).encode())


def thousands(separator: str, row: str) -> Callable[[pd.DataFrame], Written]:
    def write(frame: pd.DataFrame) -> Written:
        header = "time,open,high,low,close,volume,spread".replace(",", separator)
        text = table(frame, header=header, row=row, number=lambda x: f"{float(x):,.3f}")
        return Written(text.encode(), {"thousands": ","})

    return write


def new_york_plus_seven(frame: pd.DataFrame) -> Written:
    utc = frame["time"].dt.tz_localize("UTC").dt.tz_convert("America/New_York").dt.tz_localize(None)
    return Written(table(frame.assign(time=utc + pd.Timedelta(hours=7))).encode(), {"timezone": "America/New_York+7"})


def zone_name(frame: pd.DataFrame) -> Written:
    local = frame["time"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo").dt.tz_localize(None)
    return Written(table(frame.assign(time=local)).encode(), {"timezone": "Asia/Tokyo"})


def offset(frame: pd.DataFrame) -> Written:
    return Written(table(frame, lambda t: t.tz_localize("UTC").tz_convert("Etc/GMT-2").isoformat()).encode())


def half_days(frame: pd.DataFrame) -> Written:
    return Written(table(frame, lambda t: f"{t.month}/{t.day}/{t.year} {t.strftime('%I:%M:%S %p')}").encode())


def unpadded(frame: pd.DataFrame) -> Written:
    return Written(table(frame, lambda t: f"{t.day}.{t.month}.{t.year} {t.hour}:{t.minute:02}").encode())


def exchange(frame: pd.DataFrame) -> Written:
    """Unix seconds, date and symbol; newest first."""
    text = table(
        frame.iloc[::-1],
        lambda t: f"{t.value // 10**9},{t},XAU/USD",
        "unix,date,symbol,open,high,low,close,Volume USD,Adj Close,volume,spread",
        "{t},{o},{h},{l},{c},1,{c},{v},{s}",
    )
    return Written(text.encode())


def indexed(frame: pd.DataFrame) -> Written:
    return Written(frame.to_csv().encode())


def time_index(frame: pd.DataFrame) -> Written:
    return Written(frame.set_index("time").rename_axis(None).to_csv().encode())


def without_volume(frame: pd.DataFrame) -> Written:
    text = table(frame, header="Datetime;Open;High;Low;Close", row="{t};{o};{h};{l};{c}")
    return Written(text.encode(), volume=False, spread=False)


def with_repeats(frame: pd.DataFrame) -> Written:
    lines = table(frame).splitlines(keepends=True)
    return Written("".join([*lines[:3], lines[2], *lines[3:]]).encode())


def shuffled(frame: pd.DataFrame) -> Written:
    return Written(table(frame.sample(frac=1, random_state=0)).encode(), {"sort": True})


DIALECTS: dict[str, Callable[[pd.DataFrame], Written]] = {
    "ISO, comma": lambda frame: Written(table(frame).encode()),
    "ISO with T": strf("%Y-%m-%dT%H:%M:%S"),
    "ISO with Z": strf("%Y-%m-%dT%H:%M:%SZ"),
    "ISO with milliseconds and Z": strf("%Y-%m-%dT%H:%M:%S.000Z"),
    "ISO with offset": offset,
    "GMT offset, Dukascopy local time": strf("%d.%m.%Y %H:%M:%S.000 GMT+0000"),
    "day first, dots, milliseconds": strf("%d.%m.%Y %H:%M:%S.000"),
    "day first, given": lambda frame: strf("%d/%m/%Y %H:%M")(frame)._replace(options={"date_format": "%d/%m/%Y %H:%M"}),
    "month names, given": lambda frame: strf("%d %b %Y %H:%M")(frame)._replace(
        options={"date_format": "%d %b %Y %H:%M"}
    ),
    "month first, AM and PM": half_days,
    "day first, not padded": unpadded,
    "compact": strf("%Y%m%d%H%M%S"),
    "compact with blank": strf("%Y%m%d %H:%M"),
    "slashes, year first": strf("%Y/%m/%d %H:%M"),
    "epoch s": epoch(10**9),
    "epoch ms": epoch(10**6),
    "epoch us": epoch(10**3),
    "epoch ns": epoch(1),
    "epoch s as decimals": lambda frame: Written(table(frame, lambda t: f"{t.value // 10**9}.0").encode()),
    "MetaTrader 5": metatrader5,
    "MetaTrader 5, UTF-16": lambda frame: Written(
        b"\xff\xfe" + metatrader5(frame).content.decode().encode("utf-16-le")
    ),
    "MetaTrader 4": metatrader4,
    "HistData": hist_data,
    "semicolon, decimal comma": decimal_comma,
    "comma, quoted decimal comma": quoted_decimal_comma,
    "thousands, quoted": thousands(",", '{t},"{o}","{h}","{l}","{c}",{v},{s}'),
    "thousands, semicolon": thousands(";", "{t};{o};{h};{l};{c};{v};{s}"),
    "pipe": lambda frame: Written(table(frame).replace(",", "|").encode()),
    "tab": lambda frame: Written(table(frame).replace(",", "\t").encode()),
    "UTF-8 with mark": coded("utf-8", b"\xef\xbb\xbf"),
    "UTF-16 LE with mark": coded("utf-16-le", b"\xff\xfe"),
    "UTF-16 BE with mark": coded("utf-16-be", b"\xfe\xff"),
    "UTF-16 LE": coded("utf-16-le"),
    "UTF-16 BE": coded("utf-16-be"),
    "gzip": lambda frame: Written(gzip.compress(table(frame).encode()), name="bars.csv.gz"),
    "gzip, UTF-16": lambda frame: Written(gzip.compress(table(frame).encode("utf-16")), name="bars.csv.gz"),
    "CRLF": lambda frame: Written(table(frame, end="\r\n").encode()),
    "CR": lambda frame: Written(table(frame, end="\r").encode()),
    "blank lines": lambda frame: Written(("\n\n" + table(frame, end="\n\n  \n")).encode()),
    "no last line end": lambda frame: Written(table(frame).rstrip("\n").encode()),
    "quotes": lambda frame: Written(table(frame, row='"{t}","{o}","{h}","{l}","{c}","{v}","{s}"').encode()),
    "blanks": lambda frame: Written(table(frame, row=" {t} , {o} ,{h} , {l},  {c},{v} , {s} ").encode()),
    "trailing separator": lambda frame: Written(table(frame, end=",\n").encode()),
    "trailing separator without header's": lambda frame: Written(
        table(frame, row="{t},{o},{h},{l},{c},{v},{s},").encode()
    ),
    "descending": lambda frame: Written(table(frame.iloc[::-1]).encode()),
    "exchange": exchange,
    "index column": indexed,
    "times as index": time_index,
    "no volume": without_volume,
    "repeated rows": with_repeats,
    "shuffled, sorted on request": shuffled,
    "zone": zone_name,
    "New York plus seven": new_york_plus_seven,
}


def read(directory: Path, written: Written, **options: Any) -> Bars:
    path = directory / written.name
    path.write_bytes(written.content)
    return read_bars(path, **written.options, **options)


def assert_same(bars: Bars, frame: pd.DataFrame, written: Written) -> None:
    got = bars.frame
    assert list(got.columns) == ["time", "open", "high", "low", "close", "volume"] + ["spread"] * written.spread
    assert str(got["time"].dtype) == "datetime64[ns, UTC]"
    assert (got["time"].dt.tz_localize(None).to_numpy() == frame["time"].to_numpy()).all()
    for name in ("open", "high", "low", "close"):
        np.testing.assert_allclose(got[name], frame[name], rtol=1e-12, atol=0)
    np.testing.assert_array_equal(got["volume"], frame["volume"] if written.volume else 0 * frame["volume"])
    assert bars.has_volume == written.volume
    if written.spread:
        np.testing.assert_array_equal(got["spread"], frame["spread"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_dialect_reads_as_the_same_bars(dialect, tmp_path, bar_frame):
    frame = bar_frame()
    written = DIALECTS[dialect](frame)
    bars = read(tmp_path, written)
    assert_same(bars, frame, written)
    assert bars.point == 0.001
    assert bars.bar_seconds == 900


@st.composite
def valid_frames(draw: st.DrawFn) -> pd.DataFrame:
    """Bars of up to three decimals, which is what the dialects above write."""
    rows = draw(st.integers(12, 40))
    digits = draw(st.integers(0, 3))
    minutes = draw(st.sampled_from([1, 5, 15, 60, 240, 1440]))
    # from the 13th on, so that a dialect with the year last says which number is the day
    start = pd.Timestamp(draw(st.integers(1990, 2022)), draw(st.integers(1, 12)), draw(st.integers(13, 25)))
    steps = np.ones(rows, dtype=np.int64)
    steps[draw(st.integers(1, rows - 1))] = draw(st.integers(1, 200))  # a weekend, at most one
    unit = 10.0**digits
    ticks = st.lists(st.integers(1001, 9_000_000), min_size=rows, max_size=rows)
    opened, close = np.array(draw(ticks)), np.array(draw(ticks))
    wick = st.lists(st.integers(0, 1000), min_size=rows, max_size=rows)
    high, low = np.maximum(opened, close) + draw(wick), np.minimum(opened, close) - draw(wick)
    counts = st.lists(st.integers(0, 10**9), min_size=rows, max_size=rows)
    frame = pd.DataFrame({"time": (start + pd.to_timedelta(np.cumsum(steps) * minutes, unit="min")).as_unit("ns")})
    for name, x in (("open", opened), ("high", high), ("low", low), ("close", close)):
        frame[name] = x / unit
    frame["volume"] = np.array(draw(counts), dtype=float)
    frame["volume"] += float(frame["volume"].sum() == 0)
    frame["spread"] = np.array(draw(counts), dtype=float)
    return frame


# thousands is written with three decimals, the zones have hours that the clock skips: both have their own tests
PLAIN = sorted(set(DIALECTS) - {"thousands, quoted", "thousands, semicolon", "zone", "New York plus seven"})


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(made=valid_frames(), dialect=st.sampled_from(PLAIN))
def test_any_valid_bars_written_in_any_dialect_read_back_equal(made, dialect, tmp_path):
    written = DIALECTS[dialect](made)
    if "decimal comma" in dialect:  # below 1,000 and with three decimals, 123,456 could be either: must be said
        written = written._replace(options={"decimal": ","})
    assert_same(read(tmp_path, written), made, written)


@pytest.mark.parametrize(("digits", "point"), [(0, 1.0), (2, 0.01), (3, 0.001), (5, 0.00001)])
def test_the_point_is_read_off_the_quotes_and_can_be_given(digits, point, tmp_path, bar_frame):
    frame = bar_frame(digits=digits)
    written = Written(table(frame, digits=digits).encode())
    bars = read(tmp_path, written)
    assert bars.point == pytest.approx(point, rel=1e-12)
    assert f"{digits} decimals" in bars.card.point_source
    given = read(tmp_path, written, point=0.1)
    assert given.point == 0.1
    assert given.card.point_source == "given"


def test_a_repeated_autumn_hour_is_told_apart_by_its_order(tmp_path, bar_frame):
    frame = bar_frame(rows=40, start="2023-10-28 22:00")  # Berlin goes back at 01:00 UTC on the 29th
    local = frame["time"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin").dt.tz_localize(None)
    written = Written(table(frame.assign(time=local)).encode(), {"timezone": "Europe/Berlin"})
    assert_same(read(tmp_path, written), frame, written)
    reverse = Written(table(frame.assign(time=local).iloc[::-1]).encode(), {"timezone": "Europe/Berlin"})
    assert_same(read(tmp_path, reverse), frame, reverse)


def test_an_hourly_repeated_hour_is_told_apart_too(tmp_path, bar_frame):
    frame = bar_frame(rows=40, start="2023-10-28 12:00", minutes=60)
    local = frame["time"].dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin").dt.tz_localize(None)
    written = Written(table(frame.assign(time=local)).encode(), {"timezone": "Europe/Berlin"})
    assert_same(read(tmp_path, written), frame, written)


def test_bars_per_year_does_not_shrink_by_a_hole_in_the_file(tmp_path, bar_frame):
    frame = bar_frame(rows=8766, minutes=60, start="2020-01-01")  # one year round the clock
    whole = read(tmp_path, Written(table(frame).encode()))
    assert whole.bars_per_year == pytest.approx(8766, rel=1e-3)
    hole = frame.copy()
    hole.loc[4000:, "time"] += pd.Timedelta(days=200)
    assert read(tmp_path, Written(table(hole).encode())).bars_per_year == pytest.approx(8766, rel=0.03)


def test_further_columns_of_numbers_are_kept_under_their_names(tmp_path, bar_frame):
    frame = bar_frame()
    frame["Funding rate"] = np.arange(60) / 8
    frame["holes"] = np.where(np.arange(60) % 7 == 0, np.nan, 1.5)
    frame["venue"] = "LBMA"
    path = tmp_path / "bars.csv"
    frame.to_csv(path, index=False)
    bars = read_bars(path)
    assert list(bars.frame.columns) == [*frame.columns[:7], "Funding rate", "holes"]
    np.testing.assert_array_equal(bars.frame[["Funding rate", "holes"]], frame[["Funding rate", "holes"]])
    assert "column 'holes' has 9 cells that are no numbers; they are NaN" in bars.card.warnings
    assert "column(s) of text left out: 'venue'" in bars.card.notes


def test_session_breaks_mark_the_first_bar_after_a_gap(tmp_path, bar_frame):
    frame = bar_frame()
    frame.loc[20:, "time"] += pd.Timedelta(hours=49)
    bars = read(tmp_path, Written(table(frame).encode()))
    assert np.flatnonzero(bars.session_breaks).tolist() == [20]
    assert (bars.card.gaps, bars.card.missing_bars) == (1, 196)
