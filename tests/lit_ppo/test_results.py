"""A run's folder: contained, exact, and the same bytes after any interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_ppo.market import books as accounting
from lit_ppo.store import files, results
from lit_ppo.store.results import DECISION_COLUMNS, OUT_OF_SAMPLE_COLUMNS, FoldRecord, RunFolder, load_run, run_record

pytestmark = pytest.mark.filterwarnings("error")
ROOT = Path(__file__).parents[2]
BAR = 900 * 1_000_000_000  # 15 minutes, ns
START = 1_704_153_600 * 1_000_000_000  # 2024-01-02T00:00:00Z


def ledger_of(fold, bars=50):
    """A fold's books and fill prices, drawn from the fold's number."""
    generator = np.random.default_rng(fold)
    positions = np.repeat(generator.choice([-1.0, 0.0, 1.0], size=bars // 5), 5)
    ledger = accounting.account(
        positions,
        time=START + BAR * (fold * bars + np.arange(bars)),
        price_return=generator.normal(0.0, 0.01, size=bars),
        turnover_cost=np.full(bars, 0.0001),
        carry_long=np.zeros(bars),
        carry_short=np.zeros(bars),
    )
    return ledger, 2000.0 + generator.normal(size=bars)


def write_folds(folder, folds):
    for fold in folds:
        ledger, prices = ledger_of(fold)
        folder.append_out_of_sample(fold, ledger)
        folder.append_trades(fold, accounting.trades(ledger, prices))
        folder.record_fold(FoldRecord(fold, "done", bars={"test": [fold * 50, fold * 50 + 50]}))


def digest(folder):
    names = ("out_of_sample.csv", "trades.csv", "folds.json")
    return {name: hashlib.sha256((folder.path / name).read_bytes()).hexdigest() for name in names}


def test_probabilities_are_kept_unless_the_file_began_without_them(tmp_path):
    folder, older = RunFolder(tmp_path, 1), RunFolder(tmp_path, 2)
    for one in (folder, older):
        one.write_run(run_record(seed=one.seed, data={}, command=[]))
    write_folds(older, [0])
    probability = np.linspace(0.4, 1.0, 50)
    for one, fold in ((folder, 0), (older, 1)):
        one.append_out_of_sample(fold, ledger_of(fold)[0], probability)
        one.record_fold(FoldRecord(fold, "done"))
    rows = load_run(folder.path).out_of_sample
    assert tuple(rows.columns) == DECISION_COLUMNS
    assert rows["probability"].tolist() == probability.tolist()
    rows = load_run(older.path).out_of_sample
    assert tuple(rows.columns) == OUT_OF_SAMPLE_COLUMNS
    assert rows["net_return"][50:].tolist() == ledger_of(1)[0].net_return.tolist()
    whole = (folder.path / "out_of_sample.csv").read_text()
    (folder.path / "out_of_sample.csv").write_text(whole.replace("0.4,", "1.4,", 1))
    with pytest.raises(ValueError, match=r"probability is .*1\.4.* in line 2"):
        load_run(folder.path)


def test_out_of_sample_rows_are_exact_and_equity_goes_on_across_folds(tmp_path):
    folder = RunFolder(tmp_path, 42)
    folder.write_run(run_record(seed=42, data={}, command=[]))
    write_folds(folder, [0, 1, 2])
    lines = (tmp_path / "42" / "out_of_sample.csv").read_text().splitlines()
    assert lines[0] == "time,fold,position,gross_return,cost,net_return,equity"
    assert lines[1].startswith("2024-01-02T00:00:00Z,0,")
    assert len(lines) == 151
    rows = load_run(tmp_path / "42").out_of_sample
    assert tuple(rows.columns) == OUT_OF_SAMPLE_COLUMNS
    expected = accounting.stitch([ledger_of(fold)[0] for fold in range(3)])
    for name in ("position", "gross_return", "cost", "net_return", "equity"):
        assert rows[name].tolist() == getattr(expected, name).tolist()  # to the last bit
    assert rows["time"].astype("int64").tolist() == expected.time.tolist()
    assert str(rows["time"].dtype) == "datetime64[ns, UTC]"
    assert rows["fold"].tolist() == [0] * 50 + [1] * 50 + [2] * 50


def test_trades_are_read_back_as_the_books_had_them(tmp_path):
    folder = RunFolder(tmp_path, 0)
    folder.write_run({})
    write_folds(folder, [0])
    rows = load_run(folder.path).trades
    expected = accounting.trades(*ledger_of(0))
    assert rows["result"].tolist() == expected.result.tolist()
    assert rows["entry_price"].tolist() == expected.entry_price.tolist()
    assert rows["side"].tolist() == ["long" if side > 0 else "short" for side in expected.side]
    assert rows["closed"].tolist() == expected.closed.tolist()
    assert rows["exit_time"].astype("int64").tolist() == expected.exit_time.tolist()


@pytest.mark.parametrize("cut", [0, 1, 0.02, 0.4, 0.7, 0.999])
def test_a_fold_written_again_after_any_interruption_leaves_the_same_bytes(tmp_path, cut):
    whole, interrupted = RunFolder(tmp_path / "a", 1), RunFolder(tmp_path / "b", 1)
    write_folds(whole, [0, 1, 2])
    write_folds(interrupted, [0, 1])
    kept = {name: (interrupted.path / name).stat().st_size for name in ("out_of_sample.csv", "trades.csv")}
    write_folds(interrupted, [2])
    for name, first in kept.items():  # cut anywhere within what fold 2 wrote
        path = interrupted.path / name
        path.write_bytes(path.read_bytes()[: first + int(cut * (path.stat().st_size - first))])
    write_folds(interrupted, [2])
    assert digest(interrupted) == digest(whole)


def test_a_header_cut_short_is_written_again(tmp_path):
    folder = RunFolder(tmp_path, 1)
    (folder.path / "out_of_sample.csv").write_bytes(b"time,fo")
    folder.append_out_of_sample(0, ledger_of(0)[0])
    whole = RunFolder(tmp_path, 2)
    whole.append_out_of_sample(0, ledger_of(0)[0])
    assert (folder.path / "out_of_sample.csv").read_bytes() == (whole.path / "out_of_sample.csv").read_bytes()


def test_killed_in_the_middle_of_an_append_and_resumed_equals_uninterrupted(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests/lit_ppo', '.']; import test_results as t;"
        f"t.write_folds(t.RunFolder({str(tmp_path)!r}, 1), [0, 1])"
    )
    environment = os.environ | {"LIT_PPO_FAILPOINT": "mid_append@out_of_sample.csv:2"}
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = RunFolder(tmp_path, 1)
    folder.write_run({})
    assert [fold.index for fold in folder.folds()] == [0]
    torn = load_run(folder.path)
    assert torn.out_of_sample["fold"].unique().tolist() == [0]  # half of fold 1 does not count
    assert torn.rows_left_out > 0
    write_folds(folder, [1])
    whole = RunFolder(tmp_path, 2)
    write_folds(whole, [0, 1])
    assert digest(folder) == digest(whole)


def test_an_earlier_fold_after_a_later_one_is_refused_and_nothing_is_lost(tmp_path):
    folder = RunFolder(tmp_path, 1)
    write_folds(folder, [0, 1, 2])
    before = digest(folder)
    with pytest.raises(ValueError, match="holds fold 2 already, so fold 1"):
        folder.append_out_of_sample(1, ledger_of(1)[0])
    assert digest(folder) == before


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x00\x01\n"])
def test_a_foreign_file_in_the_place_of_ours_is_refused(tmp_path, content):
    folder = RunFolder(tmp_path, 1)
    (folder.path / "out_of_sample.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"out_of_sample\.csv has the header"):
        folder.append_out_of_sample(0, ledger_of(0)[0])


def test_a_damaged_row_is_named(tmp_path):
    folder = RunFolder(tmp_path, 1)
    write_folds(folder, [0])
    with open(folder.path / "out_of_sample.csv", "ab") as file:
        file.write(b"\x00\x00\x00\n")
    with pytest.raises(ValueError, match="damaged: the row at byte"):
        folder.append_out_of_sample(1, ledger_of(1)[0])


def test_a_ruined_account_stays_at_zero_in_later_folds(tmp_path):
    folder = RunFolder(tmp_path, 1)
    times = START + BAR * np.arange(2)
    series = {"turnover_cost": np.zeros(2), "carry_long": np.zeros(2), "carry_short": np.zeros(2)}
    ruined = accounting.account(np.array([-1.0, -1.0]), time=times, price_return=np.array([1.5, 0.1]), **series)
    assert folder.append_out_of_sample(0, ruined) == 0.0
    assert folder.append_out_of_sample(1, ledger_of(1)[0]) == 0.0


def test_the_ledger_replaces_a_fold_and_keeps_the_order(tmp_path):
    folder = RunFolder(tmp_path, 1)
    assert folder.folds() == []
    folder.record_fold(FoldRecord(1))
    folder.record_fold(FoldRecord(0, "done", scores={"test/sharpe_annual": math.nan}))
    done = FoldRecord(
        1,
        "done",
        bars={"train": [0, 100], "validation": [102, 150], "test": [152, 200]},
        timesteps=4096,
        seconds={"rollout": 1.5},
        scores={"validation/score": np.float64(0.25)},
        stop_reason="budget",
        trials=3,
    )
    assert not folder.is_done(1)
    folder.record_fold(done)
    first, second = folder.folds()
    assert (first.index, first.scores) == (0, {"test/sharpe_annual": None})  # nan is not JSON
    assert second == done
    assert folder.is_done(1)
    with pytest.raises(ValueError, match="must be running, done or failed"):
        FoldRecord(0, "finished")


def test_the_ledger_is_read_once_and_its_bytes_are_those_of_the_whole(tmp_path, monkeypatch):
    reads = []
    read = results.read_folds
    monkeypatch.setattr(results, "read_folds", lambda folder: reads.append(folder) or read(folder))
    folder = RunFolder(tmp_path, 1)
    text = {"why": 'a "quoted"\nline \u2028', "none": None, "empty": [], "nested": [[1, 2.5], {"x": np.float64("nan")}]}
    for index in (2, 0, 1):
        folder.record_fold(FoldRecord(index))
        folder.record_fold(FoldRecord(index, "done", seconds={"fit": 0.1}, details={"text": text}))
        assert folder.is_done(index)
    written = folder.file("folds.json").read_bytes()
    assert len(reads) == 1  # before the first record there is no file
    whole = {"schema": 1, "folds": [dataclasses.asdict(fold) for fold in read(folder.path)]}
    assert written == results.json_bytes(whole)
    assert folder.folds() == read(folder.path)
    RunFolder(tmp_path, 1).record_fold(FoldRecord(3))  # another owner, later: the file is another one
    assert [fold.index for fold in folder.folds()] == [0, 1, 2, 3]
    folder.record_fold(FoldRecord(4))
    assert RunFolder(tmp_path, 1).folds() == folder.folds()


def test_the_record_of_a_run_names_no_directory_and_no_host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = run_record(
        seed=3,
        data={"path": "/home/somebody/secret/gold.csv", "sha256": "ab", "rows": np.int64(10)},
        command=["/opt/x/bin/lit-ppo", "walk-forward", "--data.path=/home/somebody/secret/gold.csv", "--results", "r"],
    )
    folder = RunFolder("results", 3)
    folder.write_run(record)
    text = (tmp_path / "results" / "3" / "run.json").read_text()
    for private in ("somebody", "/opt/x", os.uname().nodename, str(tmp_path)):
        assert private not in text
    read = folder.read_run()
    assert read["command"] == ["lit-ppo", "walk-forward", "--data.path=gold.csv", "--results", "r"]
    assert read["data"] == {"path": "gold.csv", "sha256": "ab", "rows": 10}
    assert (read["seed"], read["seeds"], read["status"], read["schema"]) == (3, [3], "running", 1)
    folder.update_run(status="done")
    assert folder.read_run() == read | {"status": "done"}


def test_the_previous_folds_equity_goes_on_from_fold_to_fold_and_a_repeated_append_replaces_the_first(tmp_path):
    folder = RunFolder(tmp_path, 1)
    folder.write_run({})
    time = START + BAR * np.arange(4)
    folder.append_baselines(0, time[:2], np.zeros(2))
    folder.append_baselines(1, time[2:], np.array([0.5, 9.0]))
    folder.append_baselines(1, time[2:], np.array([0.5, -0.1]))
    for fold, status in ((0, "done"), (1, "done")):
        folder.record_fold(FoldRecord(fold, status=status))
    table = load_run(folder.path).baseline_equity
    assert table.columns.tolist() == ["time", "fold", "previous_fold"]
    np.testing.assert_allclose(table["previous_fold"], [1.0, 1.0, 1.5, 1.35])
    folder.record_fold(FoldRecord(1, status="running"))
    assert len(load_run(folder.path).baseline_equity) == 2


@pytest.mark.parametrize("seed", ["../../x", "1", 1.0, -1, True, None, "/etc"])
def test_only_a_whole_number_names_a_runs_folder(tmp_path, seed):
    with pytest.raises(ValueError, match="a whole number >= 0"):
        RunFolder(tmp_path / "results", seed)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "name",
    ["../../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 300, "CON", "nul.txt", "a․b", "a\n"],
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="needs a name of 1 to 64"):
        RunFolder(tmp_path, 1).file(name)


def test_symbolic_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim.csv").write_text("precious\n")
    results = tmp_path / "results"
    results.mkdir()
    (results / "7").symlink_to(outside)
    with pytest.raises(ValueError, match="is a link or a file"):
        RunFolder(results, 7)
    folder = RunFolder(results, 8)
    (folder.path / "fold_000").symlink_to(outside)
    with pytest.raises(ValueError, match="symbolic link"):
        folder.fold_path(0)
    (folder.path / "out_of_sample.csv").symlink_to(outside / "new.csv")
    with pytest.raises(ValueError, match="is a symbolic link"):
        folder.append_out_of_sample(0, ledger_of(0)[0])
    assert [path.name for path in outside.iterdir()] == ["victim.csv"]


def test_a_run_that_is_there_is_neither_mixed_with_nor_deleted_unasked(tmp_path):
    folder = RunFolder(tmp_path, 1)
    assert folder.begin() is False
    assert folder.begin(resume=True) is False
    folder.write_run({})
    write_folds(folder, [0])
    (folder.fold_path(0) / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    (folder.path / "notes.txt").write_text("mine")
    assert load_run(folder.path).metrics(0) == [{"step": 1}]
    assert load_run(folder.path).metrics(5) == []
    with pytest.raises(FileExistsError, match="--resume"):
        folder.begin()
    with pytest.raises(ValueError, match="give one of them"):
        folder.begin(resume=True, overwrite=True)
    assert folder.begin(resume=True) is True
    assert folder.folds() != []
    assert folder.begin(overwrite=True) is False
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_to_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"cannot write to .*choose another --results"):
        RunFolder(tmp_path / "file" / "results", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write to read-only folders")
def test_a_read_only_folder_is_found_before_training(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="cannot write to"):
        RunFolder(tmp_path, 1)


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path)
    folder = RunFolder(tmp_path, 1)
    folder.write_run({})
    empty = load_run(folder.path)
    assert (len(empty.out_of_sample), len(empty.trades), empty.folds, empty.config) == (0, 0, [], "")
    (folder.path / "folds.json").write_text(json.dumps({"folds": [{"index": 0, "colour": "red"}]}))
    with pytest.raises(ValueError, match=r"folds\.json is not a ledger of schema 1"):
        load_run(folder.path)
    (folder.path / "folds.json").write_text("{")
    with pytest.raises(ValueError, match=r"folds\.json is not JSON"):
        load_run(folder.path)


def test_a_record_may_hold_plain_values_only():
    assert json.loads(files.json_bytes({"a": (1, np.int64(2)), "b": math.inf, "c": np.array([0.5])})) == {
        "a": [1, 2],
        "b": None,
        "c": [0.5],
    }
    with pytest.raises(TypeError, match="numbers, text, lists and dicts only"):
        files.json_bytes({"a": object()})


def test_reading_results_needs_no_torch():
    code = "import sys, lit_ppo.store.results; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
