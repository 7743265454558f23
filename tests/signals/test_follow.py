"""`lit-ppo predict --follow`, `--data -` and `--ckpt prior`: bars as they come, and a policy that needs no run."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lit_ppo
from datamodules.bars.read import read_bars
from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main
from lit_ppo.commands import signals as signals_command
from lit_ppo.signals.follow import LineError, check_line, columns_of, whole_lines
from tests.signals.test_signals import part, predict, whole, written  # noqa: F401  a fixture among them


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    """330 bars: 30 decisions of the prior trader."""
    return SyntheticMarket(num_bars=330, seed=3, kind="regime", q=0.05, mu=0.1, cost=0.02).write(
        tmp_path_factory.mktemp("bars") / "bars.csv"
    )


def prior(data: Path | str, home: Path, *more: str) -> int:
    files = ["--output", str(home / "signals.csv"), "--state", str(home / "signals.state")]
    return main(["predict", "--ckpt", "prior", "--data", str(data), *files, *more])


def pipe_in(monkeypatch, pieces: list[str]) -> None:
    """Standard input that gives these pieces, and then ends."""
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))

    def send() -> None:
        with suppress(BrokenPipeError), os.fdopen(write, "w") as out:  # its reader may have refused it
            for piece in pieces:
                out.write(piece)
                out.flush()
                time.sleep(0.02)

    threading.Thread(target=send, daemon=True).start()


def told(capsys) -> tuple[list[dict], str]:
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def follow(run, data: Path, home: Path, steps) -> int:
    """Follow while `steps`, a generator function's pauses, are gone through; end with SIGTERM."""

    def write() -> None:
        try:
            for rows in steps():
                deadline = time.monotonic() + 60
                output = home / "signals.csv"
                while time.monotonic() < deadline and not (
                    output.exists() and output.read_bytes().count(b"\n") == rows + 1
                ):
                    time.sleep(0.01)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    writer = threading.Timer(0.2, write)
    writer.start()
    try:
        return run(data, home, "--follow")
    finally:
        writer.join()


def test_the_prior_trader_decides_on_any_file_in_pieces_as_at_once_and_as_from_python(bars, tmp_path, capsys):
    (tmp_path / "pieces").mkdir()
    assert prior(bars, tmp_path) == 0
    assert "30 new decisions" in capsys.readouterr().out
    for stop in (120, 305, 306, 330):  # its running features carry their state from the first bar on
        assert prior(part(bars, 0, stop, tmp_path), tmp_path / "pieces") == 0
    assert prior(part(bars, 320, 330, tmp_path), tmp_path / "pieces") == 0  # a window that moves along
    assert written(tmp_path / "pieces") == written(tmp_path)
    table = pd.read_csv(tmp_path / "signals.csv")
    assert not table["seen_in_training"].any()
    decided = lit_ppo.load_policy("prior").decide(bars)
    assert decided["position"].tolist() == table["position"].tolist()
    np.testing.assert_allclose(decided["probability"], table["probability"], atol=1e-6)
    bold = lit_ppo.load_policy("prior", hurdle=0.0003, spread="0bp").decide(bars)
    assert not np.allclose(bold["probability"], decided["probability"])


def test_what_does_not_belong_to_the_prior_trader_or_its_state_is_refused(bars, tmp_path, capsys):
    assert prior(bars, tmp_path) == 0
    before = written(tmp_path)
    assert prior(bars, tmp_path, "--hurdle", "0.004") == 2
    assert "hurdle 0.002" in capsys.readouterr().err
    assert prior(bars, tmp_path, "--hurdle", "0") == 2
    assert prior(bars, tmp_path, "--fold", "1") == 2
    assert main(["predict", "--ckpt", str(tmp_path), "--data", str(bars), "--spread", "0.2"]) == 2
    assert "--spread belongs to --ckpt prior" in capsys.readouterr().err
    assert written(tmp_path) == before


def test_lines_on_standard_input_give_the_files_and_one_json_line_a_decision(bars, tmp_path, monkeypatch, capsys):
    (tmp_path / "whole").mkdir()
    (tmp_path / "lines").mkdir()
    assert prior(bars, tmp_path / "whole") == 0
    capsys.readouterr()
    header, *rows = bars.read_text().splitlines(keepends=True)
    point = ("--point", repr(read_bars(bars).point))
    pipe_in(monkeypatch, [header, *rows[:2], "".join(rows[2:315]), rows[315][:9]])  # its writer dies within a line
    assert prior("-", tmp_path / "lines", *point) == 0
    first, _ = told(capsys)
    assert len(first) == 15
    pipe_in(monkeypatch, [header, *rows[312:320], rows[320][:20], rows[320][20:], "".join(rows[321:])])
    assert prior("-", tmp_path / "lines", *point) == 0
    second, err = told(capsys)
    assert "rewritten" not in err
    assert written(tmp_path / "lines") == written(tmp_path / "whole")
    table = pd.read_csv(tmp_path / "whole" / "signals.csv")
    assert [line["time"] for line in first + second] == table["time"].tolist()
    assert [line["position"] for line in first + second] == table["position"].tolist()
    assert second[-1]["close"] == float(rows[-1].split(",")[4])


def test_a_bad_line_is_left_out_and_the_lines_that_came_with_it_count(bars, tmp_path, monkeypatch, capsys):
    (tmp_path / "whole").mkdir()
    assert prior(bars, tmp_path / "whole") == 0
    header, *rows = bars.read_text().splitlines(keepends=True)
    cells = rows[320].rstrip("\n").split(",")
    upside_down = ",".join([*cells[:2], cells[3], repr(2 * float(cells[2])), *cells[4:]]) + "\n"  # high below low
    pieces = [header, "".join([*rows[:315], "garbage\n"]), "".join([*rows[315:320], upside_down, *rows[320:]])]
    capsys.readouterr()
    pipe_in(monkeypatch, [*pieces[:2], "\x00,1\n"])
    assert prior("-", tmp_path, "--point", repr(read_bars(bars).point)) == 0
    assert told(capsys)[1].count("the line was left out") == 2
    pipe_in(monkeypatch, [header, pieces[2]])
    assert prior("-", tmp_path, "--point", repr(read_bars(bars).point)) == 0
    assert "left out" in told(capsys)[1]
    assert written(tmp_path) == written(tmp_path / "whole")


def test_a_line_without_an_end_is_refused(bars, tmp_path, monkeypatch, capsys):
    pipe_in(monkeypatch, ["time,open,high,low,close\n", "1" * 200_000])
    assert prior("-", tmp_path) == 2
    assert "a line of more than 65,536 bytes" in capsys.readouterr().err


def test_a_growing_file_is_followed_through_half_lines_and_a_rewritten_bar_until_sigterm(bars, tmp_path, capsys):
    header, *rows = bars.read_text().splitlines(keepends=True)
    data = tmp_path / "live.csv"
    data.write_text("".join([header, *rows[:305]]))
    cells = rows[305].split(",")
    rewritten = ",".join([*cells[:5], str(int(cells[5]) + 1), *cells[6:]])

    def steps():
        yield 5
        with data.open("a") as out:
            out.write(rows[305][:30])  # half a line
            out.flush()
            time.sleep(0.1)
            assert (tmp_path / "signals.csv").read_bytes().count(b"\n") == 6
            out.write(rows[305][30:])
        yield 6
        data.write_text("".join([header, *rows[:305], rewritten]))
        time.sleep(0.2)
        yield 6
        data.write_text("".join([header, *rows[:305], rewritten, *rows[306:]]))
        yield 30

    assert follow(prior, data, tmp_path, steps) == 143
    lines, err = told(capsys)
    assert len(lines) == 30 == len({line["time"] for line in lines})
    assert err.count("was rewritten after it was decided on") == 1
    (tmp_path / "whole").mkdir()
    assert prior(bars, tmp_path / "whole") == 0
    assert (tmp_path / "signals.csv").read_bytes() == (tmp_path / "whole" / "signals.csv").read_bytes()
    assert prior(data, tmp_path) == 0  # the state remembers which bar it was, and goes on
    assert "0 new decisions" in capsys.readouterr().out


def test_a_kill_between_state_and_output_loses_no_line(bars, tmp_path, monkeypatch, capsys):
    header, *rows = bars.read_text().splitlines(keepends=True)
    with monkeypatch.context() as patch:
        patch.setattr(signals_command, "json_lines", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prior(part(bars, 0, 303, tmp_path), tmp_path, "--follow") == 130
    pipe_in(monkeypatch, [header, *rows[303:305]])
    assert prior("-", tmp_path, "--point", repr(read_bars(bars).point)) == 0
    lines, _ = told(capsys)
    assert len(lines) == 5


def test_a_run_is_followed_as_well(run_folder, new_bars, whole, tmp_path, monkeypatch, capsys):  # noqa: F811
    def run(data, home, *more):
        return predict(run_folder, data, home, *more)

    def steps():
        yield 396

    assert follow(run, new_bars, tmp_path, steps) == 143
    assert written(tmp_path) == whole
    assert len(told(capsys)[0]) == 396


def test_a_copy_of_the_whole_lines_comes_at_the_start_and_after_each_of_them(tmp_path):
    data, copies = tmp_path / "bars.csv", tmp_path / "copies"
    copies.mkdir()
    data.write_bytes(b"a\nb\nhal")
    found = whole_lines(data, copies)
    path, count = next(found)
    assert (path.read_bytes(), count) == (b"a\nb\n", 2)
    with data.open("ab") as out:
        out.write(b"f\n")
    path, count = next(found)
    assert path.read_bytes() == b"a\nb\nhalf\n"
    with pytest.raises(ValueError, match="Give CSV"):
        next(whole_lines(tmp_path / "bars.parquet", copies))
    with pytest.raises(FileNotFoundError):
        next(whole_lines(tmp_path / "none.csv", copies))


@pytest.mark.parametrize("header", ["open,high,low,close", "time,close", ""])
def test_lines_without_their_names_are_refused(header):
    with pytest.raises(ValueError, match="the first of them their names"):
        columns_of(header)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("garbage", "'garbage' is no time"),
        (",1,1,1,1", "'' is no time"),
        ("NaT,1,1,1,1", "'NaT' is no time"),
        ("2025-13-01,1,1,1,1", "is no time"),
        ("2025-01-01T00:00:00Z,1,1,1", "has 4 cells and not 5"),
        ("2025-01-01T00:00:00Z,1,1,1,1,1", "has 6 cells and not 5"),
        ("2025-01-01T00:00:00Z,1,x,1,1", "high of 2025-01-01T00:00:00Z is 'x', no price"),
        ("2025-01-01T00:00:00Z,nan,1,1,1", "open .* is 'nan', no price"),
        ("2025-01-01T00:00:00Z,1,1,-1,1", "low .* is '-1', no price"),
        ("2025-01-01T00:00:00Z,1,1,1,1e999", "close .* is '1e999', no price"),
    ],
)
def test_a_line_that_is_no_bar_is_named_and_left_out(row, message):
    with pytest.raises(LineError, match=f"{message}.*; the line was left out"):
        check_line(columns_of("Time, open,high,low,close"), row)
    check_line(columns_of("time,open,high,low,close"), "2025-01-01 00:15,1,2,1,1.5")


def test_the_paper_account_takes_each_line_once():
    trade = runpy.run_path(str(Path(__file__).parents[2] / "docs/examples/paper_trading.py"))["trade"]
    lines = [
        json.dumps({"time": f"2025-01-0{day}T00:00:00Z", "position": position, "close": close})
        for day, position, close in ((1, 1.0, 100.0), (2, -1.0, 110.0), (2, -1.0, 110.0), (3, 0.0, 99.0))
    ]
    assert [equity for _, _, equity in trade(lines)] == pytest.approx([1.0, 1.1, 1.21])


def test_bars_without_a_spread_are_refused_with_the_flag_that_names_one(bars, tmp_path, capsys):
    pd.read_csv(bars).drop(columns="spread").to_csv(tmp_path / "bare.csv", index=False)
    assert prior(tmp_path / "bare.csv", tmp_path) == 2
    message = capsys.readouterr().err
    assert "have no spread column" in message
    assert "--spread 1.5bp" in message
    assert prior(tmp_path / "bare.csv", tmp_path, "--spread", "1.5bp") == 0
