"""The data card tells what was read and decided, and `lit-ppo data` never fails with a traceback."""

from __future__ import annotations

import hashlib
import json

import pytest

from datamodules.bars.read import read_bars
from lit_ppo.cli import main


@pytest.fixture
def data(capsys):
    """What `lit-ppo data` says of a file, on either stream, and its exit code."""

    def run(*arguments):
        code = main(["data", *map(str, arguments)])
        said = capsys.readouterr()
        return said.out + said.err, code

    return run


@pytest.fixture
def path(bar_frame, tmp_path):
    path = tmp_path / "bars.csv"
    bar_frame().to_csv(path, index=False)
    return path


def test_the_card_names_everything_that_was_decided(path, data):
    text, code = data(path)
    assert code == 0
    for part in (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        "encoding     utf-8",
        "separator    comma",
        "time format  YYYY-MM-DD hh:mm:ss",
        "time zone    UTC",
        "60 read, 60 kept; dropped: none",
        "2023-03-14 22:00:00 to 2023-03-15 12:45:00 UTC",
        "15 min",
        "0.001 (from quotes of 3 decimals)",
        "spread       median",
        "taken for UTC",
        "less than two weeks",
    ):
        assert part in text


def test_a_line_of_the_card_fits_a_terminal(path):
    assert max(map(len, read_bars(path).card.text().split("note: ")[0].splitlines())) <= 80


def test_the_card_becomes_json_and_back(path):
    card = read_bars(path).card.to_dict()
    assert json.loads(json.dumps(card)) == card


def test_the_card_names_the_point_in_price_units_of_the_spread(path):
    assert "points = 0." in read_bars(path).card.spread
    assert read_bars(path, point=0.01).card.spread.split(",")[0].endswith(f"{_median(path) * 0.01:g}")


def _median(path) -> float:
    return float(read_bars(path).frame["spread"].median())


def test_names_of_the_file_cannot_steer_a_terminal(bar_frame, tmp_path, data):
    path = tmp_path / "\x1b]0;owned\x07\nbars.csv"
    frame = bar_frame().rename(columns={"volume": "Volume\x1b[31m"}).rename(columns={"Volume\x1b[31m": "vo\x1blume"})
    frame.to_csv(path, index=False)
    good, code = data(path)
    assert code == 0
    path.write_text("time;\x1b[31mopen;high;low;cl\x1bose;a\n2020-01-01;1;1;1;1;1\n")
    bad, code = data(path)
    assert code == 2
    for text in (good, bad):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert r"\x1b" in text


def test_an_unusable_file_is_refused_with_all_problems_and_exit_code_two(path, data):
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(",", ",x", 1)
    lines[9] = lines[9] + ",1"
    path.write_text("\n".join(lines) + "\n")
    text, code = data(path)
    assert code == 2
    assert f"{path}: line 5: open is 'x" in text
    assert f"{path}: line 10: 8 fields instead of 7" in text


def test_the_flags_of_the_reader_are_obeyed(path, data):
    text, code = data(path, "--point=0.01", "--timezone=Asia/Tokyo")
    assert code == 0
    assert "0.01 (given)" in text
    assert "time zone    Asia/Tokyo" in text
    assert data(path, "--timezone=nowhere") == (
        f"lit-ppo data: {path}: 'nowhere' is no time zone. "
        "Give an IANA name (Europe/Berlin, EST), +02:00, or America/New_York+7.\n",
        2,
    )
