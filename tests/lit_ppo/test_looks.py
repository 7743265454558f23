"""The ledger of looks: what was seen counts, whatever became of the run's folder."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from benchmarks import report_demo as demo
from lit_ppo.report.analysis import analyse
from lit_ppo.store.looks import NAME, configurations_seen, looks, note_look
from lit_ppo.store.results import load_run
from lit_ppo.store.run_lock import alone_in


def look_of(path: Path) -> None:
    run = load_run(path)
    note_look(path.parent, path.name, run.config, run.record, run.folds)


@pytest.fixture
def run(tmp_path) -> Path:
    return demo.make_run(tmp_path / "results", seed=1, folds=2, test_bars=300)


def reseeded(run: Path, seed: int) -> Path:
    other = run.parent / str(seed)
    shutil.copytree(run, other)
    record = other / "run.json"
    record.write_text(record.read_text().replace('"seed": 1,', f'"seed": {seed},'))
    return other


def test_a_run_that_was_deleted_is_still_a_trial(run):
    other = reseeded(run, 2)
    look_of(other)
    assert analyse(run).evidence.trials == 2
    shutil.rmtree(other)
    assert analyse(run).evidence.trials == 2
    (run.parent / NAME).unlink()
    assert analyse(run).evidence.trials == 1


def test_who_makes_the_same_run_again_looks_at_nothing_new(run):
    look_of(run)
    look_of(run)
    (look,) = looks(run.parent)
    assert look["run"] == "1"
    assert analyse(run).evidence.trials == 1


def test_two_runs_that_end_at_once_write_one_after_the_other(run):
    with alone_in(run.parent):
        writer = threading.Thread(target=look_of, args=(run,))
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert not (run.parent / NAME).exists()
    writer.join()
    assert len(looks(run.parent)) == 1


def test_other_bars_and_other_rows_are_not_counted(run):
    look_of(run)
    (look,) = looks(run.parent)
    start, stop = look["test"]
    assert configurations_seen(run.parent, look["bars"], (stop - 1, stop + 50)) == {look["configuration"]}
    assert not configurations_seen(run.parent, look["bars"], (stop, stop + 50))
    assert not configurations_seen(run.parent, "0" * 63 + "1", (start, stop))


def test_a_line_that_a_kill_cut_is_written_over_and_a_damaged_one_is_told(run):
    other = reseeded(run, 2)
    look_of(run)
    path = run.parent / NAME
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    look_of(other)
    assert [look["run"] for look in looks(run.parent)] == ["1", "2"]
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(ValueError, match="line 1"):
        look_of(other)
    with pytest.warns(UserWarning, match="not counted"):
        assert analyse(run).evidence.trials == 2  # the other's folder is there


def test_a_ledger_that_is_a_link_is_refused(run, tmp_path):
    (run.parent / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        look_of(run)
    assert not (tmp_path / "elsewhere").exists()
