"""Damaged files: only BarFileError ever escapes, and no price is accepted that the file does not hold."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from datamodules.bars.read import BarFileError, Bars, read_bars

PRICES = ["open", "high", "low", "close"]
NASTY = (
    *(
        b"",
        b"-",
        b"null",
        b"NaN",
        b"inf",
        b"-inf",
        b"1e999",
        b"0",
        b"-1",
        b"1_0",
        b"0x10",
        b"True",
        b"1,5",
        b'"',
        b'""',
        b"\t",
    ),
    *(
        b";",
        b",",
        b"|",
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"<html>",
        b"PK\x03\x04",
        b"\x1f\x8b",
    ),
    *(
        b"\x1a",
        b"\x1b[31m",
        b"\xe2\x80\xa8",
        b"\xd9\xa1",
        b"1e5",
        b"+",
        b" ",
        b"'",
        b"#",
        b"00:00",
        b"2023-02-30",
        b"99999999999999999999",
    ),
)


OPTIONS: tuple[dict[str, Any], ...] = (
    *({}, {}, {}, {}, {"drop_bad_rows": True}, {"sort": True}, {"timezone": "Europe/Berlin"}, {"point": 0.01}),
    *(
        {"separator": ";"},
        {"separator": ","},
        {"decimal": "."},
        {"thousands": "'"},
        {"date_format": "%Y-%m-%d %H:%M:%S"},
    ),
)


class Base(NamedTuple):
    """A clean file, and how a slow and plain reader finds the prices in one of its lines."""

    content: bytes
    separator: str
    first_price: int
    decimal: str = "."
    encoding: str = "utf-8"
    name: str = "bars.csv"


@pytest.fixture(scope="module")
def bases(bar_frame) -> list[Base]:
    frame = bar_frame(rows=30)
    plain = frame.to_csv(index=False)
    german = plain.replace(",", ";").replace(".", ",")
    seconds = frame.assign(time=frame["time"].astype("datetime64[s]").astype("int64")).to_csv(index=False)
    dotted = frame.assign(time=frame["time"].dt.strftime("%d.%m.%Y %H:%M")).to_csv(index=False, lineterminator="\r\n")
    aware = frame.assign(time=frame["time"].dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"))
    metatrader = aware.assign(time=frame["time"].dt.strftime("%Y.%m.%d\t%H:%M"))
    tabs = "\n".join("\t".join(str(x) for x in row) for row in metatrader.itertuples(index=False)) + "\n"
    tabs = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<SPREAD>\n" + tabs
    return [
        Base(plain.encode(), ",", 1),
        Base(plain.replace(",", "|").encode(), "|", 1),
        Base(german.encode(), ";", 1, ","),
        Base(seconds.encode(), ",", 1),
        Base(dotted.encode(), ",", 1),
        Base(aware.to_csv(index=False).encode(), ",", 1),
        Base(tabs.encode(), "\t", 2),
        Base(tabs.encode("utf-16"), "\t", 2, encoding="utf-16"),
        Base(gzip.compress(plain.encode(), mtime=0), ",", 1, encoding="gzip", name="bars.csv.gz"),
        Base("".join(f'"{line}"\n' for line in plain.replace(",", '","').splitlines()).encode(), ",", 1),
    ]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one to three defects."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(content) + 1)
        to = min(len(content), at + rng.choice((1, 1, 2, 8, 60, 400)))
        kind = rng.randrange(9)
        if kind == 0 and content:  # one bit
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + content[to:]
        elif kind == 2:
            content = content[:at] + content[at:to] * 2 + content[to:]
        elif kind == 3:
            content = content[:at] + rng.choice(NASTY) + content[at:]
        elif kind == 4:
            content = content[:at] + rng.choice(NASTY) + content[to:]
        elif kind == 5:
            content = content[:at]
        elif kind == 6:
            content = content[:at] + bytes([rng.choice(b"0123456789.,:;-eE+ \t")]) + content[at + 1 :]
        else:  # lines change places, twice or gone
            lines = content.split(b"\n")
            i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
            if kind == 7:
                lines[i], lines[j] = lines[j], lines[i]
            else:
                lines[i : i + rng.randrange(2)] = [lines[j]]
            content = b"\n".join(lines)
    return content


def prices_in(content: bytes, base: Base, thousands: str | None = None) -> Counter[tuple[float, ...]]:
    """Read every line that can be read, slowly and plainly, with no idea of dialects."""
    encoding = base.encoding
    if encoding == "gzip":
        content, encoding = gzip.decompress(content), "utf-8"
    text = content.decode(encoding, errors="replace").replace("\r", "\n")
    found: Counter[tuple[float, ...]] = Counter()
    for line in text.split("\n"):
        fields = [field.strip().strip('"').strip() for field in line.split(base.separator)]
        try:
            four = fields[base.first_price : base.first_price + 4]
            found[tuple(float(field.replace(thousands or "", "").replace(base.decimal, ".")) for field in four)] += 1
        except ValueError:
            continue
    return found


def wrong(bars: Bars, content: bytes, base: Base, thousands: str | None = None) -> str | None:
    """Return what is wrong with accepted bars, or None."""
    x = bars.frame[PRICES].to_numpy()
    stamps = bars.frame["time"].to_numpy("datetime64[ns]").astype(np.int64)
    if not (np.isfinite(x).all() and (x > 0).all()):
        return "a price that is no positive number"
    if (x[:, 1] < x.max(axis=1) * (1 - 1e-9)).any() or (x[:, 2] > x.min(axis=1) * (1 + 1e-9)).any():
        return "high and low do not hold open and close"
    if (np.diff(stamps) <= 0).any():
        return "times that do not rise"
    unknown = Counter(map(tuple, x.tolist())) - prices_in(content, base, thousands)
    if unknown:
        return f"prices that the file does not hold: {list(unknown)[:3]}"
    lost = bars.card.rows_read - len(bars) - sum(bars.card.dropped.values())
    return f"{lost} rows lost without a word" if lost else None


def campaign(bases: list[Base], directory: Path, seed: int, go_on: Callable[[int], bool]) -> tuple[int, int]:
    """Try mutated files until `go_on` says no; return how many were tried and how many accepted."""
    rng = random.Random(seed)
    tried = accepted = 0
    while go_on(tried):
        base = bases[tried % len(bases)]
        content = mutate(base.content, rng)
        path = directory / base.name
        path.write_bytes(content)
        options = rng.choice(OPTIONS)
        try:
            bars = read_bars(path, **options)
        except BarFileError as error:
            message = str(error)
            assert str(path) in message, content
            assert "\x1b" not in message, content
        except Exception as error:
            raise AssertionError(f"{error!r} escaped, options {options}, content {content!r}") from error
        else:
            accepted += 1
            defect = wrong(bars, content, base, options.get("thousands"))
            assert defect is None, f"{defect}; options {options}, content {content!r}"
        tried += 1
    return tried, accepted


def test_damaged_files_raise_only_our_error_and_never_pass_a_wrong_price(bases, tmp_path, record_property):
    tried, accepted = campaign(bases, tmp_path, seed=0, go_on=lambda tried: tried < 700)
    record_property("damaged files tried", tried)
    record_property("of these read", accepted)
    assert 0.05 < accepted / tried < 0.95  # both outcomes are exercised


def test_the_clean_files_of_the_campaign_are_accepted(bases, tmp_path):
    for base in bases:
        path = tmp_path / base.name
        path.write_bytes(base.content)
        bars = read_bars(path)
        assert len(bars) == 30
        assert wrong(bars, base.content, base) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_damaged_files_or_ten_minutes_of_them(bases, tmp_path, record_property):
    end = time.monotonic() + 600

    def go_on(tried: int) -> bool:  # on a busy machine ten minutes are few files
        return tried < 1_000_000 and (time.monotonic() < end or tried <= 10_000)

    tried, accepted = campaign(bases, tmp_path, 1, go_on)
    record_property("damaged files tried", tried)
    record_property("of these read", accepted)
    assert tried > 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_million_rows_need_at_most_six_times_their_numbers(tmp_path, record_property):
    """Ten million one-minute bars; six numbers of 8 bytes each are 480 MB, so the peak is at most 2.9 GB."""
    path = tmp_path / "bars.csv"
    rows, block = 10_000_000, 500_000
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("time,open,high,low,close,volume\n")
        for first in range(0, rows, block):
            times = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(first, first + block), unit="min")
            price = np.round(rng.uniform(1800, 1900, block), 3)
            frame = pd.DataFrame({"time": times, "open": price, "high": price + 1, "low": price - 1, "close": price})
            frame["volume"] = rng.integers(1, 5000, block)
            frame.to_csv(file, header=False, index=False, float_format="%.3f")
    code = (
        "import resource, sys; from datamodules.bars.read import read_bars; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; bars = read_bars(sys.argv[1]); "
        "print(len(bars), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, kibibytes = done.stdout.split()
    record_property("MiB of peak memory above the interpreter's", int(kibibytes) // 1024)
    assert int(count) == rows
    assert int(kibibytes) * 1024 <= 6 * rows * 6 * 8
