"""The real files read as their README says, defects included. Skipped where the files are absent."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from datamodules.bars.read import BarFileError, read_bars

GOLD = "XAUUSDm_15min_exness_2022-11_2025-05.csv.gz"
FILES = {  # name: rows, first, last, point, bar_seconds, bars per year (rounded to 100)
    GOLD: (57_072, "2022-11-29 10:45", "2025-05-01 12:30", 0.001, 900, 23_600),
    "XAUUSDm_15min_exness_2022-07_2025-04.csv.gz": (64_999, "2022-07-05 07:15", "2025-04-04 03:45", 0.001, 900, 23_600),
    "XAUUSDm_15min_exness_2023-01_2025-08_mt5cols.csv.gz": (
        *(61_574, "2023-01-02 23:00", "2025-08-11 13:45", 0.001, 900, 23_600),
    ),
    "XAUUSDm_15min_semicolon_tz_2024-01_2025-08.csv.gz": (
        *(39_217, "2024-01-01 23:00", "2025-08-28 09:45", 0.001, 900, 23_700),
    ),
    "XAUUSD_15min_mt4_2016-09_2019-08.csv.gz": (65_000, "2016-09-28 09:30", "2019-08-08 05:15", 0.01, 900, 22_700),
    "XAUUSD_15min_mt5epoch_2024q1.csv": (5_864, "2024-01-02 01:00", "2024-04-01 23:45", 0.01, 900, 23_500),
    "EURUSD_60min_dukascopy_ask_2017.csv": (6_225, "2017-01-01 22:00", "2017-12-29 21:00", 1e-5, 3600, 6_300),
    "BTCUSD_60min_desc_2018-05_2022-03.csv.gz": (33_259, "2018-05-15 06:00", "2022-03-01 00:00", 0.01, 3600, 8_800),
    "GOOGL_1d_2009-05_2018-08.csv": (2_335, "2009-05-22", "2018-08-29", 1e-6, 86_400, 300),
}


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_reads_with_its_rows_range_point_and_calendar(name, bar_file):
    bars = read_bars(bar_file(name))
    first, last = (str(bars.frame["time"].iloc[i].tz_localize(None)) for i in (0, -1))
    rows, from_, to, point, seconds, per_year = FILES[name]
    assert (len(bars), bars.bar_seconds, round(bars.bars_per_year, -2)) == (rows, seconds, per_year)
    assert bars.point == pytest.approx(point, rel=1e-12)
    assert first.startswith(from_)
    assert last.startswith(to)
    assert np.isfinite(bars.frame.drop(columns="time").to_numpy()).all()


def test_the_file_of_two_resolutions_is_refused_with_the_row_where_the_spacing_changes(bar_file):
    with pytest.raises(BarFileError) as refused:
        read_bars(bar_file("XAUUSDm_60min_exness_2018-06_2025-04_mixedres.csv.gz"))
    for part in ("line 948:", "row 947", "2021-07-16 13:00", "rows 1-946", "lines 2-947", "1 day apart", "1 h"):
        assert part in str(refused.value)


def test_the_median_gold_spread_is_twenty_cents(bar_file):
    bars = read_bars(bar_file(GOLD))
    assert np.median(bars.frame["spread"]) * bars.point == pytest.approx(0.20)


def test_the_swapped_volumes_of_the_exchange_are_told(bar_file):
    card = read_bars(bar_file("BTCUSD_60min_desc_2018-05_2022-03.csv.gz")).card
    assert any(re.search(r"20143 rows .* 2020-10-12 08:00", warning) for warning in card.warnings)
    assert any("reversed" in note for note in card.notes)


def test_reading_bars_imports_neither_torch_nor_lightning():
    code = "import sys, datamodules.bars.read, datamodules.bars.data_card\n"
    code += "print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
