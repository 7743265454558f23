"""What must be refused is refused, with file, line, evidence and remedy; what is repaired is counted."""

from __future__ import annotations

import gzip
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from datamodules.bars import source
from datamodules.bars.read import BarFileError, read_bars
from datamodules.bars.source import BarSource

HEADER = "time,open,high,low,close,volume,spread"


@pytest.fixture(scope="module")
def text(bar_frame) -> str:
    """Return 60 bars of 15 minutes from 2023-03-14 22:00; bar n (0-based) is line n + 2."""
    return bar_frame().to_csv(index=False)


def edit(line: int, field: int, value: str) -> Callable[[str], str]:
    """Return a change of one field; `line` counts from 1, the header is line 1."""

    def change(text: str) -> str:
        lines = text.splitlines()
        fields = lines[line - 1].split(",")
        fields[field] = value
        lines[line - 1] = ",".join(fields)
        return "\n".join(lines) + "\n"

    return change


def times(form: Callable[[pd.Timestamp], str], start: str | None = None, freq: str = "15min") -> Callable[[str], str]:
    """Return a change of every time to `form(time)`."""

    def change(text: str) -> str:
        head, *rows = text.splitlines()
        first = pd.Timestamp(start or rows[0].split(",")[0])
        index = pd.date_range(first, periods=len(rows), freq=freq)
        changed = [",".join([form(t), *row.split(",")[1:]]) for t, row in zip(index, rows, strict=True)]
        return "\n".join([head, *changed]) + "\n"

    return change


def swap(first: int, second: int) -> Callable[[str], str]:
    def change(text: str) -> str:
        lines = text.splitlines()
        lines[first - 1], lines[second - 1] = lines[second - 1], lines[first - 1]
        return "\n".join(lines) + "\n"

    return change


def insert(line: int, content: str) -> Callable[[str], str]:
    return lambda text: "\n".join([*text.splitlines()[: line - 1], content, *text.splitlines()[line - 1 :]]) + "\n"


def header(names: str) -> Callable[[str], str]:
    return lambda text: text.replace(HEADER, names)


def repeated_autumn_hour(text: str) -> str:
    """Berlin's wall clock over the end of summer time, 01:00 UTC on 29 October 2023."""
    local = pd.date_range("2023-10-28 20:00", periods=60, freq="15min", tz="UTC").tz_convert("Europe/Berlin")
    head, *rows = text.splitlines()
    changed = [",".join([f"{t:%Y-%m-%d %H:%M}", *row.split(",")[1:]]) for t, row in zip(local, rows, strict=True)]
    return "\n".join([head, *changed]) + "\n"


def mixed_resolution(first: str, second: str, rows: int) -> Callable[[str], str]:
    def change(text: str) -> str:
        head, *lines = text.splitlines()
        early = pd.date_range("2023-01-02", periods=rows, freq=first)
        late = pd.date_range(early[-1] + pd.Timedelta(second), periods=len(lines) - rows, freq=second)
        changed = [",".join([str(t), *row.split(",")[1:]]) for t, row in zip([*early, *late], lines, strict=True)]
        return "\n".join([head, *changed]) + "\n"

    return change


class Case(NamedTuple):
    change: Callable[[str], str]
    told: tuple[str, ...]  # all of these are in the message
    options: Mapping[str, Any] = MappingProxyType({})


REFUSED: dict[str, Case] = {
    "price empty": Case(edit(12, 4, ""), ("line 12:", "close is ''", "--drop_bad_rows")),
    "price null": Case(edit(12, 1, "null"), ("line 12:", "open is 'null'")),
    "price dash": Case(edit(12, 1, "-"), ("line 12:", "open is '-'")),
    "price nan": Case(edit(12, 2, "NaN"), ("line 12:", "high is 'NaN'")),
    "price infinite": Case(edit(12, 2, "inf"), ("line 12:", "high is 'inf'")),
    "price overflows": Case(edit(12, 2, "1e999"), ("line 12:", "high is '1e999'")),
    "price true": Case(edit(12, 2, "True"), ("line 12:", "high is 'True'")),
    "price with underscore": Case(edit(12, 2, "1_900.0"), ("line 12:", "high is '1_900.0'")),
    "price of two points": Case(edit(12, 2, "1.900.0"), ("line 12:", "high is '1.900.0'")),
    "price in hexadecimal": Case(edit(12, 2, "0x800"), ("line 12:", "high is '0x800'")),
    "price with terminal escape": Case(edit(12, 2, "\x1b[31m1"), ("line 12:", r"\x1b[31m1")),
    "price with a quote inside": Case(edit(12, 2, '18"00"'), ("line 12:", "high is")),
    "price zero": Case(edit(12, 3, "0"), ("line 12:", "low 0.0 is not above 0", "log return")),
    "price negative": Case(edit(12, 3, "-37.6"), ("line 12:", "low -37.6 is not above 0", "oil")),
    "high below close": Case(edit(12, 2, "1.5"), ("line 12:", "high 1.5 < close", "high 1.5 < low")),
    "low above open": Case(edit(12, 3, "9999"), ("line 12:", "low 9999.0 > open")),
    "volume no number": Case(edit(12, 5, "n/a"), ("line 12:", "volume is 'n/a'")),
    "volume negative": Case(edit(12, 5, "-1"), ("line 12:", "volume -1.0 is below 0")),
    "spread negative": Case(edit(12, 6, "-1"), ("line 12:", "spread -1.0 is below 0")),
    "field missing": Case(insert(12, "2023-03-15 00:30:00,1800,1801"), ("line 12:", "3 fields instead of 7")),
    "field too many": Case(edit(12, 6, "200,17"), ("line 12:", "8 fields instead of 7")),
    "header in the middle": Case(insert(12, HEADER), ("line 12:", "not a number")),
    "time no time": Case(edit(12, 0, "yesterday"), ("line 12:", "time 'yesterday'", "2023-03-14 22:00:00")),
    "30 February": Case(edit(12, 0, "2023-02-30 00:30:00"), ("line 12:", "'2023-02-30 00:30:00'")),
    "25 o'clock": Case(edit(12, 0, "2023-03-15 25:30:00"), ("line 12:", "'2023-03-15 25:30:00'")),
    "before 1970": Case(edit(2, 0, "1969-03-14 22:00:00"), ("line 2:", "1970 and 2100")),
    "after 2100": Case(edit(61, 0, "2123-03-14 22:00:00"), ("line 61:", "1970 and 2100")),
    "naive and aware": Case(edit(12, 0, "2023-03-15 00:30:00Z"), ("line 12:", "with or without offset alike")),
    "day or month": Case(
        times(lambda t: t.strftime("%d/%m/%Y %H:%M"), "2023-02-01"),
        ("day or month", "--date_format '%d/%m/%Y %H:%M'", "'%m/%d/%Y %H:%M' if the month is"),
    ),
    "day and month": Case(
        lambda text: edit(12, 0, "04/14/2023 00:30")(times(lambda t: t.strftime("%d/%m/%Y %H:%M"), "2023-03-14")(text)),
        ("line 12:", "DD/MM/YYYY"),
    ),
    "epoch of two units": Case(
        lambda text: edit(12, 0, "1678840200000")(times(lambda t: str(t.value // 10**9))(text)),
        ("line 12:", "epoch s", "'1678840200000'"),
    ),
    "epoch too late": Case(times(lambda t: "4102444800000000001"), ("1970", "2100")),
    "epoch negative": Case(
        lambda text: edit(12, 0, "-5")(times(lambda t: str(t.value // 10**9))(text)), ("line 12:", "time '-5'")
    ),
    "row numbers as times": Case(
        lambda text: "\n".join([HEADER, *(f"{i},1,1,1,1,1,1" for i in range(20))]), ("row numbers",)
    ),
    "time twice": Case(edit(13, 0, "2023-03-15 00:30:00"), ("line 13:", "also that of line 12", "another open")),
    "unsorted": Case(swap(12, 20), ("line 13:", "time 2023-03-15 00:45:00 after 2023-03-15 02:30:00", "--sort")),
    "clock change": Case(repeated_autumn_hour, ("--timezone Europe/Berlin", "summer time")),
    "wrong zone, hour that never was": Case(
        times(str, "2023-03-26 00:00"),
        ("line 10:", "02:00:00 does not exist in 'Europe/Berlin'"),
        {"timezone": "Europe/Berlin"},
    ),
    "hour that was twice and comes once": Case(
        times(str, "2023-10-29 00:00"),
        ("line 10:", "02:00:00 was twice in 'Europe/Berlin'"),
        {"timezone": "Europe/Berlin"},
    ),
    "zone for aware times": Case(times(lambda t: f"{t}Z"), ("own offset", "--timezone"), {"timezone": "Europe/Berlin"}),
    "daily, then hourly": Case(mixed_resolution("1D", "1h", 25), ("line 26:", "row 25", "1 day apart", "1 h")),
    "hourly, then daily": Case(mixed_resolution("1h", "1D", 40), ("spacing of the bars changes", "1 h apart", "1 day")),
    "hourly, then quarters": Case(mixed_resolution("1h", "15min", 40), ("spacing of the bars changes", "15 min")),
    "no usual step": Case(
        times(lambda t: str(t + pd.Timedelta(seconds=t.minute * 7 % 13))), ("multiples of the most",)
    ),
    "no close": Case(header("time,open,high,low,clsoe,volume,spread"), ("no column close", "'clsoe'", "nearest")),
    "no time": Case(header("when,open,high,low,close,volume,spread"), ("no column time", "'when'")),
    "column twice": Case(header("time,open,high,low,close,close,spread"), ("'close' appears more than once",)),
    "header too short": Case(header("time,open,high,low,close,volume"), ("6 names", "7 fields")),
    "text above the header": Case(lambda text: "Gold, 15 minutes\n" + text, ("line 1: 'Gold'", "neither a header")),
    "another date format": Case(str, ("line 2:", "as --date_format says"), {"date_format": "%d.%m.%Y %H:%M"}),
    "no date format": Case(str, ("--date_format '%Q' is not valid",), {"date_format": "%Q"}),
    "thousands": Case(
        lambda text: re.sub(r"(?<=[,])1(\d{3}\.\d+)", r"1'\1", text).replace(",", ";").replace("'", ","),
        ("groups thousands", "--thousands"),
    ),
    "comma of two meanings": Case(
        lambda text: "\n".join(
            [HEADER.replace(",", ";"), *(f"2023-01-{d:02};1,234;1,235;1,233;1,234;1;1" for d in range(1, 9))]
        ),
        ("1.234 or 1234", "--decimal"),
    ),
    "decimal point among commas": Case(
        lambda text: re.sub(
            r"(?m)^(2023-03-15 00:30:00;[^;]*;)(\d+),", r"\1\2.", text.replace(",", ";").replace(".", ",")
        ),
        ("line 12:", "high is"),
    ),
    "no header, unknown layout": Case(
        lambda text: re.sub(r"(?m)$", ",7,8,9", text.split("\n", 1)[1].strip()) + "\n", ("no header", "header line")
    ),
    "HistData without zone": Case(
        lambda text: "".join(f"20230314 22{m:02}00;1;1;1;1;0\n" for m in range(30)), ("HistData", "--timezone EST")
    ),
    "header only": Case(lambda text: HEADER + "\n", ("no row of data",)),
    "blank": Case(lambda text: "\n \n\n", ("empty",)),
    "two bars": Case(lambda text: "\n".join(text.split("\n")[:3]) + "\n", ("3 are the least", "longer file")),
    "web page": Case(lambda text: "<!DOCTYPE html><html><body>404</body></html>", ("web page",)),
    "JSON": Case(lambda text: '{"bars": []}', ("JSON",)),
    "prose": Case(lambda text: "It was a dark and stormy night.\n" * 20, ("separator",)),
    "point zero": Case(str, ("point is 0",), {"point": 0}),
    "zone unknown": Case(str, ("'Mars/Olympus'", "IANA"), {"timezone": "Mars/Olympus"}),
    "separator of two characters": Case(str, ("separator is ', '",), {"separator": ", "}),
    "decimal odd": Case(str, ("decimal is '#'",), {"decimal": "#"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_in_doubt_is_refused_with_line_evidence_and_remedy(name, text, tmp_path):
    case = REFUSED[name]
    path = tmp_path / "bars.csv"
    path.write_text(case.change(text))
    with pytest.raises(BarFileError) as refused:
        read_bars(path, **case.options)
    message = str(refused.value)
    assert str(path) in message
    for part in case.told:
        assert part in message
    assert "\x1b" not in message


BYTES: dict[str, tuple[Callable[[str], bytes], str, tuple[str, ...]]] = {
    "empty": (lambda text: b"", "bars.csv", ("empty (0 bytes)",)),
    "a byte order mark alone": (lambda text: b"\xff\xfe", "bars.csv", ("empty (no text in it)",)),
    "gzip without its name": (lambda text: gzip.compress(text.encode()), "bars.csv", ("gzip", ".csv.gz")),
    "name of gzip without gzip": (str.encode, "bars.csv.gz", ("not gzip", "Rename")),
    "gzip cut": (lambda text: gzip.compress(text.encode())[:-40], "bars.csv.gz", ("gzip stream is damaged",)),
    "gzip bit flip": (
        lambda text: (lambda b: b[:200] + bytes([b[200] ^ 8]) + b[201:])(gzip.compress(text.encode())),
        *("bars.csv.gz", ("",)),
    ),
    "zip": (lambda text: b"PK\x03\x04" + bytes(100), "bars.csv", ("zip archive", "Unpack")),
    "Parquet": (lambda text: b"PAR1" + bytes(100), "bars.csv", ("Parquet",)),
    "binary": (lambda text: bytes(range(256)) * 20, "bars.csv", ("binary",)),
    "UTF-32": (lambda text: text.encode("utf-32"), "bars.csv", ("UTF-32", "UTF-8")),
    "latin-1": (lambda text: text.replace("spread", "spréad").encode("latin-1"), "bars.csv", ("line 1:", "0xe9")),
    "latin-1 below": (lambda text: (text + "é").encode("latin-1"), "bars.csv", ("line 62:", "0xe9")),
    "NUL inside": (lambda text: text.encode()[:900] + b"\0" + text.encode()[901:], "bars.csv", ("NUL",)),
    "UTF-16 of odd length": (lambda text: text.encode("utf-16")[:-1], "bars.csv", ("UTF-16",)),
    "one endless line": (lambda text: b"1" * 200_000, "bars.csv", ("separator",)),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_text_are_refused_by_what_they_look_like(name, text, tmp_path):
    make, file_name, told = BYTES[name]
    path = tmp_path / file_name
    path.write_bytes(make(text))
    with pytest.raises(BarFileError) as refused:
        read_bars(path)
    for part in (str(path), *told):
        assert part in str(refused.value)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, told in (
        (tmp_path, "a directory"),
        (tmp_path / "fifo", "a FIFO"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "loop", "cannot be read"),
        (tmp_path / "absent.csv", "no such file"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(BarFileError, match=told):
            read_bars(path)


def test_a_file_without_rights_is_refused(text, tmp_path, monkeypatch):
    path = tmp_path / "bars.csv"
    path.write_text(text)
    path.chmod(0)
    if os.geteuid() == 0:  # root may read it all the same

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BarFileError, match=r"Permission denied.*rights"):
        read_bars(path)


def test_a_file_that_changes_while_it_is_read_is_refused(text, tmp_path, monkeypatch):
    path = tmp_path / "bars.csv"
    path.write_text(text)
    blocks = BarSource.blocks

    def appended_meanwhile(source):
        for block in blocks(source):
            with path.open("a") as file:
                file.write("2023-03-15 13:00:00,1800,1801,1799,1800,1,1\n")
            yield block

    monkeypatch.setattr(BarSource, "blocks", appended_meanwhile)
    with pytest.raises(BarFileError, match="changed while it was read"):
        read_bars(path)


def test_every_problem_is_told_and_not_only_the_first(text, tmp_path):
    path = tmp_path / "bars.csv"
    broken = edit(5, 4, "x")(edit(9, 2, "1")(edit(30, 0, "2023-03-14 22:00:00")(edit(20, 3, "-3")(text))))
    path.write_text(broken)
    with pytest.raises(BarFileError) as refused:
        read_bars(path)
    for part in ("close is 'x'", "high 1.0 < ", "line 30: time 2023-03-14 22:00:00 after", "low -3.0 is not above 0"):
        assert part in str(refused.value)


def test_a_problem_of_many_rows_names_the_first_five_and_the_count(text, tmp_path):
    path = tmp_path / "bars.csv"
    lines = text.splitlines()
    path.write_text("\n".join([lines[0], *(re.sub(r",[^,]*$", ",-1", line) for line in lines[1:])]) + "\n")
    with pytest.raises(BarFileError, match=r"line 2: spread -1.0 is below 0 \(60 such rows: 2, 3, 4, 5, 6, \.\.\.\)"):
        read_bars(path)


def test_bad_rows_are_dropped_on_request_up_to_a_thousandth(bar_frame, tmp_path):
    frame = bar_frame(rows=2000)
    text = frame.to_csv(index=False)
    path = tmp_path / "bars.csv"
    path.write_text(edit(700, 1, "-")(insert(500, "garbage")(text)))
    bars = read_bars(path, drop_bad_rows=True)
    assert (bars.card.rows_read, len(bars), bars.card.dropped) == (2001, 1999, {"bad rows": 2})
    kept = frame.drop(index=697).reset_index(drop=True)
    np.testing.assert_array_equal(bars.frame[["open", "close"]], kept[["open", "close"]])
    path.write_text(edit(701, 1, "-")(edit(702, 2, "1")(path.read_text())))
    with pytest.raises(BarFileError, match=r"4 of 2001 rows are bad, more than the 0\.1 %"):
        read_bars(path, drop_bad_rows=True)


@pytest.mark.parametrize("left", [3, 20, 26, 33, 40, 44, 47])
def test_a_last_line_cut_while_written_is_left_out_with_a_note(left, bar_frame, tmp_path):
    frame = bar_frame()
    frame[["open", "high", "low", "close"]] += 0.0004  # four decimals in every quote, so that a cut one shows
    text = frame.drop(columns=["volume", "spread"]).to_csv(index=False)
    head, last = text.rstrip("\n").rsplit("\n", 1)
    path = tmp_path / "bars.csv"
    path.write_text(head + "\n" + last[:left])
    bars = read_bars(path)
    assert len(bars) == len(frame) - 1
    assert bars.card.dropped == {"cut last line": 1}
    assert any("line 61" in note for note in bars.card.notes)


def test_the_bar_that_ran_when_the_file_was_written_is_left_out(text, tmp_path):
    path = tmp_path / "bars.csv"
    path.write_text(text)
    last = pd.Timestamp("2023-03-15 12:45", tz="UTC").timestamp()
    os.utime(path, (last + 300, last + 300))  # five minutes into the last bar
    bars = read_bars(path)
    assert (len(bars), bars.card.dropped) == (59, {"unfinished last bar": 1})
    os.utime(path, (last + 900, last + 900))
    assert len(read_bars(path)) == 60


def test_a_quote_off_the_grid_at_the_end_is_left_out(text, tmp_path):
    path = tmp_path / "bars.csv"
    path.write_text(edit(61, 0, "2023-03-15 12:37:12")(text))
    bars = read_bars(path)
    assert (len(bars), bars.card.dropped) == (59, {"unfinished last bar": 1})


def test_odd_but_possible_bars_are_read_with_a_warning(text, tmp_path):
    path = tmp_path / "bars.csv"
    lines = text.splitlines()
    jump = [re.sub(r"(?<=,)1(\d{3}\.)", r"4\1", line) for line in lines[31:]]
    flat = [line.split(",")[0] + ",1800,1800,1800,1800,0,0.5" for line in lines[11:21]]
    path.write_text("\n".join([*lines[:11], *flat, *lines[21:31], *jump]) + "\n")
    warnings = " | ".join(read_bars(path).card.warnings)
    assert re.search(r"price jump.* above 50 %, largest 1\d\d % at 2023-03-15 05:30", warnings)
    assert "10 flat bars (open = high = low = close), longest run 10 at 2023-03-15 00:30" in warnings
    assert "10 bars of volume 0" in warnings
    assert "spread has decimals" in warnings


def test_quotes_without_usable_digits_need_the_point_for_their_spread(bar_frame, tmp_path):
    frame = bar_frame()
    frame[["open", "high", "low", "close"]] *= 1.0 + 1e-12 * 12345.678
    path = tmp_path / "bars.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(BarFileError, match="more than 8 decimals"):
        read_bars(path)
    assert read_bars(path, point=0.001).point == 0.001


def test_a_spread_below_one_point_is_no_spread_in_points(bar_frame, tmp_path):
    """In price units it would be read as a cost of next to nothing."""
    path = tmp_path / "bars.csv"
    bar_frame().assign(spread=0.2).to_csv(path, index=False)
    with pytest.raises(BarFileError, match=r"its median is 0\.2 of them: no market has less than one") as refused:
        read_bars(path)
    assert "pass --point 1" in str(refused.value)
    assert read_bars(path, point=1.0).card.spread.startswith("median 0.2 points = 0.2")


def test_the_mode_bits_of_the_file_stay_as_they_are(text, tmp_path):
    path = tmp_path / "bars.csv"
    path.write_text(text)
    path.chmod(0o440)
    read_bars(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o440


@pytest.mark.parametrize("field", ['",1793.514"', '"1793.514,"'])
def test_a_separator_inside_quotes_makes_a_price_no_number_wherever_it_stands(field, text, tmp_path):
    path = tmp_path / "bars.csv"
    lines = text.splitlines()
    cells = lines[5].split(",")
    cells[2] = field
    lines[5] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shown = re.escape(field.strip('"'))
    with pytest.raises(BarFileError, match=rf"line 6: high is '{shown}', not a number"):
        read_bars(path)


def test_a_gzip_that_unpacks_to_far_more_than_bars_do_is_refused_early(tmp_path):
    path = tmp_path / "bomb.csv.gz"
    block = gzip.compress(b"2024-01-02T00:15:00Z,1,1,1,1,1,1\n" * (1 << 16), 6)
    path.write_bytes(block * 60)  # members in a row: 120 MiB of text
    read = []
    with pytest.raises(BarFileError, match=r"bytes of the gzip unpack to .* bars are read up to 100 times"):
        read.extend(len(found.data) for found in BarSource(path).blocks())
    assert sum(read) <= source.SMALL_BYTES + 2 * source.BLOCK_BYTES


def test_the_bounds_on_lines_and_bytes_are_generous_and_said(tmp_path, text, monkeypatch):
    assert source.MOST_LINES >= 10_000_000
    assert source.MOST_BYTES >= 10_000_000 * 100
    path = tmp_path / "bars.csv"
    path.write_text(text)
    monkeypatch.setattr(source, "MOST_LINES", 30)
    with pytest.raises(BarFileError, match=r"files are read up to 30 lines"):
        list(BarSource(path, block_bytes=1000).blocks())
    monkeypatch.setattr(source, "MOST_LINES", 100)
    monkeypatch.setattr(source, "MOST_BYTES", 2000)
    with pytest.raises(BarFileError, match=r"bytes, and files are read up to 100 lines and 2,000 bytes"):
        list(BarSource(path, block_bytes=1000).blocks())
