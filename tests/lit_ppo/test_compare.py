"""Comparing runs: paired on the same bars, honest about luck; and the index of all runs."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lit_ppo.report.compare import _difference, _read, _run_row, compare, flatten, setting_differences, text_table
from lit_ppo.report.run_index import FILE_NAME, history, update
from lit_ppo.report.tables import Cell, Row
from lit_ppo.scoring.fills import read_fills, write_fills
from lit_ppo.store.looks import note_look
from lit_ppo.store.results import load_run

ROOT = Path(__file__).parents[2]


def load(name: str) -> Any:
    """Import a script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load("report_demo")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for seed, skill in ((1, 0.0), (2, 0.0), (3, 0.6)):
        demo.make_run(root, seed=seed, folds=4, test_bars=400, skill=skill)
    return root


@pytest.mark.slow
def test_skill_is_better_than_luck_and_luck_cannot_be_told_from_luck(results: Path) -> None:
    lucky, other, skilled = (_read(results / name) for name in "123")
    assert _difference(lucky, skilled).mean.low > 0
    interval = _difference(lucky, other).mean
    assert interval.low < 0 < interval.high
    text = compare([results / name for name in "123"])
    assert "cannot be told apart" in text
    assert "better" in text


def test_a_difference_is_paired_on_the_bars_that_both_decided_on(results: Path, tmp_path: Path) -> None:
    longer = demo.make_run(tmp_path, seed=5, folds=6, test_bars=400)
    short, long = _read(results / "1"), _read(longer)
    found = _difference(short, long)
    assert found.bars == 1600
    pair = long.net_return[:1600] - short.net_return
    assert found.mean.estimate == pytest.approx(pair.mean() * short.bars_per_year, abs=1e-12)


def test_runs_without_a_common_bar_are_not_paired(results: Path) -> None:
    one = _read(results / "1")
    shifted = type(one)(**one.__dict__ | {"time": one.time + 1})
    found = _difference(one, shifted)
    assert found.bars == 0
    assert np.isnan(found.mean.estimate)


def test_only_what_differs_is_listed(results: Path) -> None:
    entries = [_read(results / name) for name in "12"]
    assert setting_differences(entries) == {"seed_everything": [1, 2]}
    assert "Only the seed differs. Over 2 seeds" in compare([results / "1", results / "2"])


def test_a_changed_setting_is_named_and_forbids_pooling(results: Path, tmp_path: Path) -> None:
    other = demo.make_run(tmp_path, seed=2, folds=4, test_bars=400, config={"model": {"gamma": 0.9}})
    text = compare([results / "1", other])
    assert "model.gamma" in text
    assert "not set" in text
    assert "Only the seed differs" not in text


def test_nested_settings_are_flattened_and_lose_their_directories() -> None:
    settings = yaml.safe_load("model: {gamma: 0.9, positions: [-1, 0, 1]}\ndata: {path: /home/x/bars.csv}")
    assert flatten(settings) == {"model.gamma": 0.9, "model.positions": [-1, 0, 1], "data.path": "bars.csv"}


def test_runs_of_the_same_name_are_numbered(results: Path, tmp_path: Path) -> None:
    text = compare([results / "1", demo.make_run(tmp_path, seed=1, folds=4, test_bars=400)])
    assert "1: 1" in text
    assert "2: 1" in text


def test_fewer_than_two_runs_or_no_run_are_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more"):
        compare([results / "1"])
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        compare([results / "1", tmp_path])


def test_the_text_has_80_columns_whatever_the_number_of_runs(results: Path, tmp_path: Path) -> None:
    callbacks = [{"class_path": f"callbacks.{name}"} for name in ("ValidationSelection", "TrainingCheckpoint")]
    runs = [
        demo.make_run(tmp_path / "a_long_name", seed=seed, folds=2, test_bars=300, config={"trainer": {"callbacks": x}})
        for seed, x in ((5, callbacks), (6, callbacks[:1]), (7, None))
    ]
    text = compare(runs)
    assert max(map(len, text.splitlines())) <= 80
    assert "ValidationSelection" in text
    assert all(word in text for word in ("Sharpe", "Timesteps/s", "Says"))
    assert max(map(len, history(tmp_path).splitlines())) <= 80


def test_columns_that_do_not_fit_go_on_below_with_the_labels_again() -> None:
    rows = [Row(name, [Cell("1" * 8)] * 3) for name in ("first", "second")]
    assert text_table(["", "a name of words", "b", "c"], rows, width=26).splitlines() == [
        "          a name",
        "        of words         b",
        *("first   11111111  11111111", "second  11111111  11111111", "", "               c"),
        *("first   11111111", "second  11111111"),
    ]


def test_runs_on_different_data_are_not_mixed(results: Path, tmp_path: Path) -> None:
    """Same times, other prices: nothing is paired, no speed compared. Another file with the same prices is paired."""
    one = _read(results / "1")
    folders = [tmp_path / name / "1" for name in ("grown", "other")]
    for folder in folders:
        shutil.copytree(results / "2", folder)
        record = json.loads((folder / "run.json").read_text())
        record["data"]["sha256"] = "f" * 64
        (folder / "run.json").write_text(json.dumps(record))
    for fold in range(4):
        fills = read_fills(folders[1], [fold])
        write_fills(folders[1] / f"fold_{fold:03d}", replace(fills, fill_price=2 * fills.fill_price))
    grown, other = (_difference(one, _read(folder)) for folder in folders)
    assert grown.note == "another file with the same prices"
    assert math.isfinite(grown.mean.estimate)
    assert other.note == "other prices at these times: not paired"
    assert math.isnan(other.mean.estimate)
    text = compare([results / "1", folders[1]])
    assert f"On another bar file than {one.label}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert [cell.text for cell in _run_row(_read(folders[1]), one).cells[-2:]] == ["–", "–"]


def test_a_run_that_trained_nothing_has_no_speed(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "2", tmp_path / "2")
    ledger = json.loads((tmp_path / "2/folds.json").read_text())
    for fold in ledger["folds"]:
        fold["timesteps"] = 0
    (tmp_path / "2/folds.json").write_text(json.dumps(ledger))
    cells = [cell.text for cell in _run_row(_read(tmp_path / "2"), _read(results / "1")).cells]
    assert (cells[7], *cells[9:]) == ("0", "–", "–", "–")


def test_terminal_control_characters_are_shown_not_sent() -> None:
    assert "\x1b" not in text_table(["", "b"], [Row("\x1b[31mred", [Cell("x\ny")])])


def test_the_index_reads_a_run_once_and_again_when_it_changed(results: Path, tmp_path: Path, monkeypatch: Any) -> None:
    root = tmp_path / "results"
    shutil.copytree(results, root, ignore=shutil.ignore_patterns("*.html", FILE_NAME))
    read: list[str] = []
    original = sys.modules["lit_ppo.report.run_index"].load_run
    monkeypatch.setattr("lit_ppo.report.run_index.load_run", lambda path: (read.append(path.name), original(path))[1])
    rows, damaged = update(root)
    assert damaged == {}
    assert [row["folder"] for row in rows] == ["1", "2", "3"]
    assert sorted(read) == ["1", "2", "3"]
    read.clear()
    assert update(root) == (rows, {})
    assert read == []
    config = root / "2" / "config.yaml"
    config.write_text(config.read_text() + "extra: 1\n")
    update(root)
    assert read == ["2"]


def test_the_index_has_the_numbers_of_the_run_and_keeps_deleted_runs(results: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(results, root)
    rows = {row["folder"]: row for row in update(root)[0]}
    entry = _read(root / "3")
    assert rows["3"]["return_pct"] == pytest.approx(entry.metrics["return_pct"])
    assert rows["3"]["timesteps"] == entry.timesteps
    shutil.rmtree(root / "1")
    text = history(root)
    assert "folder gone" in text
    assert text.count(", bars ") == 1  # one heading: the same bars
    assert max(map(len, text.splitlines())) <= 80


def test_the_history_is_grouped_by_bars_and_says_how_often_their_test_was_looked_at(
    results: Path, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    shutil.copytree(results, root, ignore=shutil.ignore_patterns(FILE_NAME))
    for name, sha256 in (("1", "a" * 64), ("2", "b" * 64), ("3", "a" * 64)):
        run = json.loads((root / name / "run.json").read_text())
        run["data"] |= {"sha256": sha256, "path": f"{sha256[0]}.csv"}
        run["data"].pop("bars_sha256", None)
        (root / name / "run.json").write_text(json.dumps(run))
        note_look(root, name, name, run, load_run(root / name).folds)
    shutil.rmtree(root / "3")  # before it was ever listed
    first, second = history(root, tmp_path / "page.html").split("\n\n\n")
    said = " ".join(first.split())
    assert said.startswith("a.csv, bars aaaaaaaaaa: 2 configurations")
    assert "read its test bars, last 3, 20" in said
    assert " ".join(second.split()).startswith("b.csv, bars bbbbbbbbbb: 1 configuration read its test bars, last 2, 20")
    assert [text.split("\n\n")[0].splitlines()[-1].split()[0] for text in (first, second)] == ["1", "2"]
    page = (tmp_path / "page.html").read_text()
    assert page.count('<section id="runs-bars') == 2
    assert "cannot be ranked" in page


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely, and long enough" * 50)
    with pytest.raises(ValueError, match="not an index of runs"):
        update(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a directory of runs"):
        update(tmp_path / "nowhere")


def test_history_of_an_empty_directory_says_so(tmp_path: Path) -> None:
    assert history(tmp_path) == f"No run under {tmp_path.name} yet."


def test_comparing_and_indexing_need_no_torch(results: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lit_ppo.report.compare import compare; from lit_ppo.report.run_index import history; "
        "compare(sys.argv[1:3], html_path=sys.argv[4]); history(sys.argv[3], html_path=sys.argv[5]); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    pages = [str(tmp_path / name) for name in ("compare.html", "history.html")]
    command = [sys.executable, "-c", code, str(results / "1"), str(results / "2"), str(results), *pages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in pages:
        assert "default-src" in Path(page).read_text(encoding="utf-8")
