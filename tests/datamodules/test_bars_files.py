"""Files as the world's sources write them, a few lines of each: read as the bars they hold, or refused with the remedy.

The lines follow each source's own layout (names, order, formats of numbers and times); the prices are made up.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from datamodules.bars.read import BarFileError, Bars, read_bars

OPEN = [10.5, 11.0, 10.25, 11.5]
HIGH = [11.5, 11.25, 12.0, 12.5]
LOW = [10.0, 10.0, 10.25, 11.0]
CLOSE = [11.0, 10.25, 11.5, 12.25]
VOLUME = [100, 250, 175, 90]


def lines(row: str, times: list[str], head: str = "", **more: list[Any]) -> str:
    """Write a row for each bar; `row` names its fields: t, o, h, l, c, v and those of `more`."""
    named = {"t": times, "o": OPEN, "h": HIGH, "l": LOW, "c": CLOSE, "v": VOLUME, **more}
    rows = [row.format(**{key: values[i] for key, values in named.items()}) for i in range(len(times))]
    return head + "\n".join(rows) + "\n"


DAYS = ["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"]
MINUTES = [f"2024-01-02 14:3{i}" for i in range(4)]
MS = [1704205800000 + 60_000 * i for i in range(4)]  # 14:30
ISO = [f"2024-01-02T09:3{i}:00-05:00" for i in range(4)]
YFINANCE = "Price,Close,High,Low,Open,Volume\nTicker,AAPL,AAPL,AAPL,AAPL,AAPL\n"
TWO = "Price,Close,Close,High,High,Low,Low,Open,Open,Volume,Volume\nTicker" + ",AAPL,MSFT" * 5 + "\nDate,,,,,,,,,,\n"
BY_TICKER = "Ticker,MSFT,MSFT,MSFT,MSFT,MSFT,AAPL,AAPL,AAPL,AAPL,AAPL\n"
BY_TICKER += "Price" + ",Open,High,Low,Close,Volume" * 2 + "\nDate,,,,,,,,,,\n"


NEW_YORK_DAYS = ["01/16/2024", "01/17/2024", "01/18/2024", "01/19/2024"]
SHORT_VOLUMES = ["0.10K", "250", "0.000175M", "0.00000009B"]
INVESTING = '"Date","Price","Open","High","Low","Vol.","Change %"\n'


class Source(NamedTuple):
    text: str
    first: str = "2024-01-02 14:30"
    options: dict[str, Any] = {}  # noqa: RUF012
    further: tuple[str, ...] = ()
    volume: bool = True


KLINES = "{t},{o},{h},{l},{c},{v},{end},1900.5,7,60.5,1000.25,0"
END = {"end": [t + 59_999 for t in MS]}
FURTHER = ("count", "taker_buy_volume", "taker_buy_quote_volume")
STOOQ = "<TICKER>,<PER>,<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>,<OPENINT>\n"
PLOT = "time,open,high,low,close,Volume,Plot,Plot,Basis\n"

READ: dict[str, Source] = {
    "yfinance, one ticker": Source(lines("{t},{c},{h},{l},{o},{v}", DAYS, YFINANCE + "Date,,,,,\n"), DAYS[0]),
    "yfinance, minutes": Source(
        lines("{t}:00+00:00,{c},{h},{l},{o},{v}", MINUTES, YFINANCE + "Datetime,,,,,\n"), MINUTES[0]
    ),
    "yfinance, one of two tickers": Source(
        lines("{t},{c},1,{h},1,{l},1,{o},1,{v},1", DAYS, TWO), DAYS[0], {"symbol": "AAPL"}
    ),
    "yfinance, by ticker": Source(
        lines("{t},1,1,1,1,1,{o},{h},{l},{c},{v}", DAYS, BY_TICKER), DAYS[0], {"symbol": "AAPL"}
    ),
    "Binance spot, milliseconds": Source(lines(KLINES, MS, **END), further=FURTHER),
    "Binance spot, microseconds": Source(
        lines(KLINES, [1000 * t for t in MS], end=[1000 * t + 59_999_999 for t in MS]), further=FURTHER
    ),
    "Binance spot, milliseconds and then microseconds": Source(
        lines(KLINES, [*MS[:2], 1000 * MS[2], 1000 * MS[3]], **END), further=FURTHER
    ),
    "Binance futures": Source(
        lines(
            KLINES,
            MS,
            "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
            "taker_buy_quote_volume,ignore\n",
            **END,
        ),
        further=FURTHER,
    ),
    "Stooq, daily": Source(lines("{t},{o},{h},{l},{c},{v}", DAYS, "Date,Open,High,Low,Close,Volume\n"), DAYS[0]),
    "Stooq, Polish": Source(
        lines("{t},{o},{h},{l},{c},{v}", DAYS, "Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie,Wolumen\n"), DAYS[0]
    ),
    "Stooq, ascii minutes": Source(
        lines("AAPL.US,5,20240102,{t},{o},{h},{l},{c},{v},0", ["143000", "143500", "144000", "144500"], STOOQ),
        further=("PER",),
    ),
    "Dukascopy, GMT": Source(
        lines(
            "13.01.2024 {t}:00.000,{o},{h},{l},{c},{v}", ["14:30", "14:31", "14:32", "14:33"], "Gmt time,Open,High,"
        ).replace("Gmt time,Open,High,", "Gmt time,Open,High,Low,Close,Volume\n"),
        "2024-01-13 14:30",
    ),
    "Dukascopy, JForex in its own zone": Source(
        lines(
            "2024.01.02 {t}:00,{o},{h},{l},{c},{v}",
            ["16:30", "16:31", "16:32", "16:33"],
            "Time (EET),Open,High,Low,Close,Volume \n",
        ),
        options={"timezone": "EET"},
    ),
    "Dukascopy, node": Source(lines("{t},{o},{h},{l},{c},{v}", MS, "timestamp,open,high,low,close,volume\n")),
    "TradingView, epoch and two plots": Source(
        lines("{t},{o},{h},{l},{c},{v},NaN,1,2.5", [t // 1000 for t in MS], PLOT), further=("Basis",)
    ),
    "TradingView, ISO": Source(lines("{t},{o},{h},{l},{c}", ISO, "time,open,high,low,close\n"), volume=False),
    "Nasdaq.com": Source(
        lines("{t},${c},{v},${o},${h},${l}", NEW_YORK_DAYS, "Date,Close/Last,Volume,Open,High,Low\n"), "2024-01-16"
    ),
    "Investing.com": Source(
        lines('"{t}","{c}","{o}","{h}","{l}","{k}","-0.50%"', NEW_YORK_DAYS, INVESTING, k=SHORT_VOLUMES), "2024-01-16"
    ),
    "Investing.com, without volume": Source(
        lines('"{t}","{c}","{o}","{h}","{l}","","1.50%"', NEW_YORK_DAYS, INVESTING), "2024-01-16", volume=False
    ),
    "NinjaTrader": Source(
        lines("20240102 {t};{o};{h};{l};{c};{v}", ["143100", "143200", "143300", "143400"]),
        options={"timezone": "UTC", "stamp": "close"},
    ),
    "HistData, generic": Source(
        lines("20240102 {t};{o};{h};{l};{c};0", ["093000", "093100", "093200", "093300"]),
        options={"timezone": "EST"},
        volume=False,
    ),
    "HistData, for MetaTrader": Source(
        lines("2024.01.02,{t},{o},{h},{l},{c},0", ["09:30", "09:31", "09:32", "09:33"]),
        options={"timezone": "EST"},
        volume=False,
    ),
    "one of several symbols": Source(
        lines("{t},AAPL,{o},{h},{l},{c},{v}\n{t},MSFT,-1,x,1,1,1", DAYS, "date,ticker,open,high,low,close,volume\n"),
        DAYS[0],
        {"symbol": "AAPL"},
    ),
}


def read(directory: Path, text: str, **options: Any) -> Bars:
    path = directory / "bars.csv"
    path.write_text(text)
    return read_bars(path, **options)


@pytest.mark.parametrize("name", READ)
def test_a_source_s_own_file_reads_as_the_bars_it_holds(name, tmp_path):
    source = READ[name]
    bars = read(tmp_path, source.text, **source.options)
    assert list(bars.frame.columns) == ["time", "open", "high", "low", "close", "volume", *source.further]
    assert bars.frame["time"].iloc[0] == pd.Timestamp(source.first, tz="UTC")
    for column, values in (("open", OPEN), ("high", HIGH), ("low", LOW), ("close", CLOSE)):
        assert bars.frame[column].tolist() == values
    assert bars.frame["volume"].tolist() == (VOLUME if source.volume else [0] * 4)
    assert bars.bar_seconds == (86_400 if len(source.first) == 10 else 300 if "PER" in source.further else 60)


def test_grouped_thousands_of_a_file_from_new_to_old(tmp_path):
    text = INVESTING + (
        '"01/19/2024","2,029.30","2,023.15","2,039.75","2,021.20","171.29K","0.38%"\n'
        '"01/18/2024","2,021.60","2,009.60","2,025.60","2,006.40","1.14M","0.75%"\n'
        '"01/17/2024","$2,006.50","2,032.30","2,035.40","2,004.60","203.03K","-1.17%"\n'
    )
    with pytest.raises(BarFileError, match="Pass --thousands ','"):
        read(tmp_path, text)
    bars = read(tmp_path, text, thousands=",")
    assert bars.frame["close"].tolist() == [2006.5, 2021.6, 2029.3]
    assert bars.frame["volume"].tolist() == [203030, 1140000, 171290]
    assert any("new to old" in note for note in bars.card.notes)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "yfinance, two tickers": (
        lines("{t},{c},1,{h},1,{l},1,{o},1,{v},1", DAYS, TWO), {}, "2 symbols: AAPL, MSFT.*--data.symbol NAME"
    ),
    "several symbols": (
        lines("{t},B,{o},{h},{l},{c}\n{t},A,{o},{h},{l},{c}", DAYS, "date,symbol,open,high,low,close\n"),
        {}, "2 symbols: A, B.*--symbol NAME",
    ),
    "a symbol that is not there": (
        lines("{t},B,{o},{h},{l},{c}", DAYS, "date,symbol,open,high,low,close\n"),
        {"symbol": "C"}, "no symbol 'C'; the file holds 1 symbols: B",
    ),
    "a symbol of a file without any": (
        lines("{t},{o},{h},{l},{c}", DAYS, "date,open,high,low,close\n"), {"symbol": "C"}, "no column holds symbols"
    ),
    "NinjaTrader without zone": (
        lines("20240102 {t};{o};{h};{l};{c};{v}", ["143100", "143200", "143300", "143400"]),
        {}, "--timezone UTC --stamp close",
    ),
    "HistData for MetaTrader without zone": (
        lines("2024.01.02,{t},{o},{h},{l},{c},0", ["09:30", "09:31", "09:32", "09:33"]), {}, "--timezone EST"
    ),
    "JForex without zone": (
        lines("{t},{o},{h},{l},{c}", MINUTES, "Time (EET),Open,High,Low,Close\n"), {}, "--timezone EET"
    ),
    "ticks": (
        lines("{t},{h},{l},{o},{c}", MINUTES, "timestamp,askPrice,bidPrice,askVolume,bidVolume\n"),
        {}, "made bars first",
    ),
    "ticks without header": (lines("{t},{c},{c},0", MINUTES), {}, "ticks must be made bars first"),
    "closes without the flag": (lines("{t},{c}", DAYS, "Date,Close\n"), {}, "--close_only"),
    "closes and volume without the flag": (
        lines("{t},{c},{v},1,1", DAYS, "Date,Close,Volume,a,b\n"), {}, "no column open, high, low.*--close_only"
    ),
    "whole bars with the flag": (
        lines("{t},{o},{h},{l},{c}", DAYS, "date,open,high,low,close\n"), {"close_only": True}, "Leave --close_only out"
    ),
    "adjusted without such a column": (
        lines("{t},{o},{h},{l},{c}", DAYS, "date,open,high,low,close\n"), {"adjusted": True}, "no column Adj Close"
    ),
    "stamp": (lines("{t},{o},{h},{l},{c}", DAYS), {"stamp": "end"}, "stamp is 'end'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_in_doubt_is_refused_with_the_option_that_settles_it(name, tmp_path):
    text, options, told = REFUSED[name]
    with pytest.raises(BarFileError, match=told):
        read(tmp_path, text, **options)


def test_the_adjusted_close_scales_every_price_and_the_spread(tmp_path):
    text = lines(
        "{t},{o},{h},{l},{c},{a},{v},20",
        DAYS,
        "Date,Open,High,Low,Close,Adj Close,Volume,Spread\n",
        a=[5.5, 10.25, 11.5, 12.25],
    )
    plain, adjusted = read(tmp_path, text), read(tmp_path, text, adjusted=True)
    assert plain.frame["open"].tolist() == OPEN
    assert any("--adjusted" in note for note in plain.card.notes)
    for column, values in (("open", OPEN), ("high", HIGH), ("low", LOW), ("close", CLOSE), ("spread", [20] * 4)):
        assert adjusted.frame[column].tolist() == [values[0] / 2, *values[1:]]
    assert adjusted.frame["volume"].tolist() == VOLUME
    assert adjusted.point == plain.point  # of the quotes as they stand in the file


def test_an_adjusted_close_that_is_no_price_is_refused(tmp_path):
    text = lines("{t},{o},{h},{l},{c},{a}", DAYS, "Date,Open,High,Low,Close,Adj Close\n", a=[1, 0, 1, 1])
    with pytest.raises(BarFileError, match=r"line 3: adjusted_close 0\.0 is not above 0"):
        read(tmp_path, text, adjusted=True)


@pytest.mark.parametrize("head", ["Date,Close,Volume\n", "date,Price,volume\n"])
def test_closes_alone_become_bars_that_open_at_the_close_before(head, tmp_path):
    bars = read(tmp_path, lines("{t},{c},{v}", DAYS, head), close_only=True)
    assert bars.frame["open"].tolist() == CLOSE[:3]
    assert bars.frame["close"].tolist() == CLOSE[1:]
    assert bars.frame["high"].tolist() == [11.0, 11.5, 12.25]
    assert bars.frame["low"].tolist() == [10.25, 10.25, 11.5]
    assert bars.frame["volume"].tolist() == VOLUME[1:]
    assert bars.card.dropped == {"first row, which has no close before it": 1}
    assert any("closes alone" in note for note in bars.card.notes)


def test_closes_without_header_and_of_one_symbol_among_several(tmp_path):
    assert read(tmp_path, lines("{t};{c}", DAYS), close_only=True).frame["close"].tolist() == CLOSE[1:]
    text = lines("{t},B,1.5,3\n{t},A,{c},3", DAYS, "time,symbol,close,spread\n")
    bars = read(tmp_path, text, close_only=True, symbol="A")
    assert (bars.frame["close"].tolist(), bars.frame["spread"].tolist()) == (CLOSE[1:], [3] * 3)
    assert "2 symbols, of which 'A' is read" in bars.card.notes


def test_a_close_that_is_no_price_is_told_once(tmp_path):
    with pytest.raises(BarFileError) as refused:
        read(tmp_path, lines("{t},{c}", DAYS).replace("10.25", "-1"), close_only=True)
    assert len(refused.value.problems) == 1


def frame_of(zone: str | None = "UTC") -> pd.DataFrame:
    time = pd.date_range("2024-01-02 14:30", periods=4, freq="min", tz=zone)
    return pd.DataFrame({"Open": OPEN, "High": HIGH, "Low": LOW, "Close": CLOSE, "Volume": VOLUME}, index=time)


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_tables_of_pandas_read_as_the_bars_they_hold(kind, tmp_path):
    pytest.importorskip("pyarrow")
    frame = frame_of("UTC").rename_axis("Date").reset_index()
    frame["Close"] = frame["Close"].astype("float32")  # its shortest decimals, not float32's tail
    frame["venue"] = pd.Categorical(["a", "b", "a", "b"])
    path = tmp_path / f"bars.{kind}"
    getattr(frame, f"to_{kind}")(path)
    bars = read_bars(path)
    assert bars.frame["time"].tolist() == frame["Date"].tolist()
    assert bars.frame[["open", "high", "low", "close", "volume"]].to_numpy().tolist() == [
        list(row) for row in zip(OPEN, HIGH, LOW, CLOSE, VOLUME, strict=True)
    ]
    assert bars.card.dialect["encoding"] == kind.capitalize()
    assert "column(s) of text left out: 'venue'" in bars.card.notes


@pytest.mark.parametrize("index", [None, "Date"])
def test_an_index_of_times_and_a_zone_of_its_own_are_read(index, tmp_path):
    pytest.importorskip("pyarrow")
    frame = frame_of("America/New_York").rename_axis(index)
    frame.to_parquet(tmp_path / "bars.parquet")
    assert read_bars(tmp_path / "bars.parquet").frame["time"].tolist() == frame.index.tz_convert("UTC").tolist()


def test_two_levels_of_names_as_yfinance_gives_them(tmp_path):
    pytest.importorskip("pyarrow")
    frame = frame_of().rename_axis("Datetime")
    both = pd.concat({"AAPL": frame, "MSFT": frame + 1}, axis=1).swaplevel(axis=1)
    both.to_parquet(tmp_path / "bars.parquet")
    with pytest.raises(BarFileError, match="2 symbols: AAPL, MSFT"):
        read_bars(tmp_path / "bars.parquet")
    assert read_bars(tmp_path / "bars.parquet", symbol="MSFT").frame["close"].tolist() == [c + 1 for c in CLOSE]


def test_a_table_longer_than_its_first_piece_keeps_every_row_and_digit(tmp_path, bar_frame):
    pytest.importorskip("pyarrow")
    frame = bar_frame(rows=1600)
    frame[["open", "high", "low", "close"]] *= 1 / 3
    frame.to_parquet(tmp_path / "bars.parquet", row_group_size=700)
    bars = read_bars(tmp_path / "bars.parquet", point=0.001)
    np.testing.assert_array_equal(bars.frame.drop(columns="time"), frame.drop(columns="time"))
    frame.loc[1200, "close"] = -1.0
    frame.to_parquet(tmp_path / "bars.parquet")
    with pytest.raises(BarFileError, match=r"line 1202: close -1\.0"):  # the header is line 1
        read_bars(tmp_path / "bars.parquet")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + bytes(100), b"ARROW1" + bytes(100), b"FEA1" + bytes(10)])
def test_a_damaged_table_is_refused(content, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "bars.parquet").write_bytes(content)
    with pytest.raises(BarFileError, match=r"(Parquet|Feather) file"):
        read_bars(tmp_path / "bars.parquet")


def test_a_table_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "bars.parquet").write_bytes(b"PAR1" + bytes(100))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BarFileError, match=r"pip install 'lit-ppo\[parquet\]'"):
        read_bars(tmp_path / "bars.parquet")
