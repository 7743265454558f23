"""The ledger of looks: what was seen counts, whatever became of the run's folder."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import report_demo as demo
from lit_ppo.report import tables
from lit_ppo.report.analysis import analyse, trials_seen
from lit_ppo.scoring.significance import clusters
from lit_ppo.store.looks import NAME, configurations_seen, looks, note_look, returns_of, side_by_side
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
    assert set(configurations_seen(run.parent, look["bars"], (stop - 1, stop + 50))) == {look["configuration"]}
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


def test_the_ledger_keeps_what_was_earned_so_that_trials_of_one_kind_are_known_without_their_folders(run):
    """Of a run, its copy with one decision in ten other, and a run that has nothing to do with them: two kinds."""
    look_of(run)
    near, far = reseeded(run, 2), reseeded(run, 3)
    table = pd.read_csv(run / "out_of_sample.csv")
    generator = np.random.default_rng(0)
    for other, share in ((near, 0.1), (far, 1.0)):
        changed = generator.random(len(table)) < share
        found = table.assign(net_return=table.net_return.where(~changed, generator.normal(0, 1e-3, len(table))))
        found.assign(equity=(1 + found.net_return).cumprod()).to_csv(other / "out_of_sample.csv", index=False)
        look_of(other)
        shutil.rmtree(other)
    trials = trials_seen(load_run(run))
    assert (trials.number, trials.kinds) == (3, 2)
    text = " ".join(str(row) for row in tables.evidence(analyse(run)))
    assert "2 of the 3 are of a kind of their own" in text
    lines = [{key: value for key, value in look.items() if key != "returns"} for look in looks(run.parent)]
    (run.parent / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))  # of an older release
    assert trials_seen(load_run(run)) == (3, 3)


def test_sums_are_few_and_meet_those_of_a_longer_test():
    hour = 3_600 * 10**9
    long = returns_of(np.arange(2000) * hour // 2 + 10 * hour, np.ones(2000))
    short = returns_of(np.arange(100) * hour + 500 * hour, np.full(100, 0.5))
    assert (long["hours"], short["hours"]) == (2, 1)
    assert len(long["sums"]) <= 512
    assert sum(long["sums"]) == 2000
    both = side_by_side([long, short])
    assert both.shape == (50, 2)
    np.testing.assert_allclose(both, [[4.0, 1.0]] * 50)
    assert len(side_by_side([long, returns_of(np.array([9000 * hour]), np.ones(1))])) == 0


def test_trials_are_grouped_by_what_they_earned_together():
    generator = np.random.default_rng(1)
    base = generator.normal(size=(300, 3))
    noise = generator.normal(size=(300, 9)) * 0.3
    assert clusters(np.repeat(base, 3, axis=1) + noise) == 3
    assert clusters(base) == 3
    assert clusters(base[:, :1]) == 1
    assert clusters(np.column_stack([base[:, :1], -base[:, :1]])) == 2
    assert clusters(np.column_stack([base, np.zeros((300, 2))])) == 4  # two that never traded are one
    assert clusters(np.zeros((300, 2))) == 1
