"""`walk-forward --seeds N`: several runs, pooled into one result."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_ppo import interrupts
from lit_ppo.cli import main
from lit_ppo.folds.loop import WalkForward
from lit_ppo.module import LitPPO
from lit_ppo.report.analysis import analyse
from lit_ppo.report.build import write_report
from lit_ppo.scoring.pooling import pool, pooled_text, read_pooled
from lit_ppo.scoring.significance import interquartile_mean
from lit_ppo.store.results import load_run
from tests.lit_ppo.test_walk_forward import CONFIG

TRADING = ("--model.hold_bias", "-3", "--model.screen_features", "false", "--data.fold_limit", "2")


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """Return a function that calls walk-forward in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)

    def call(*arguments: str, results: str = "results") -> int:
        return main(["walk-forward", "--config", "config.yaml", "--results", results, *TRADING, *arguments])

    return call


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[Path, str]:
    """Results of the seeds 7 to 9, made once, and what that printed."""
    home, printed = tmp_path_factory.mktemp("three"), io.StringIO()
    (home / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(home)
        code = main(["walk-forward", "--config", "config.yaml", "--results", "results", *TRADING, "--seeds", "3"])
    assert code == 0
    return home / "results", printed.getvalue()


@pytest.fixture
def die_in(monkeypatch):
    """Return a function that makes the training of one seed's fold 1 raise an error."""
    work = WalkForward.work

    def patch(seed: int, error: Exception) -> None:
        def dying(self, fold):
            if (self.seed, fold.index) == (seed, 1):
                raise error
            return work(self, fold)

        monkeypatch.setattr(WalkForward, "work", dying)

    yield patch
    monkeypatch.setattr(WalkForward, "work", work)


def outcome(folder: Path) -> bytes:
    return (folder / "out_of_sample.csv").read_bytes()


def test_every_seed_is_its_own_run_and_all_are_pooled_by_the_interquartile_mean(walk, three):
    root, printed = three
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["7", "8", "9"]
    record = json.loads((root / "pooled.json").read_text())
    assert (record["seeds"], record["pooled"], record["failed"], record["folds"]) == ([7, 8, 9], [7, 8, 9], {}, 2)
    assert record["trials"] == 6
    runs = [load_run(root / str(seed)) for seed in (7, 8, 9)]
    scores = np.array([[fold.scores["test/sharpe_annual"] or 0.0 for fold in run.folds] for run in runs])
    found = record["interquartile_mean"]["sharpe_annual"]
    assert found["estimate"] == pytest.approx(interquartile_mean(scores))
    assert found["low"] <= found["estimate"] <= found["high"]
    assert found["estimate"] < scores.max()
    assert len({outcome(run.path) for run in runs}) == 3
    for text in ("seed 8 (2 of 3)", "Interquartile mean over seeds and folds", "3 seeds, 2 folds", "pooled.json"):
        assert text in printed
    assert walk("--seed", "8", results="alone") == 0  # a seed's run does not know of the others
    assert outcome(Path("alone/8")) == outcome(root / "8")
    assert (root / "8/config.yaml").read_text().replace("results: results", "") == (
        Path("alone/8/config.yaml").read_text().replace("results: alone", "")
    )


def test_every_seed_counts_as_a_trial_in_every_run_and_more_seeds_count_later_too(walk):
    one_fold = ("--data.fold_limit", "1")
    assert walk("--seeds", "2", *one_fold) == 0
    assert [analyse(f"results/{seed}").evidence.trials for seed in (7, 8)] == [2, 2]
    before = outcome(Path("results/7"))
    assert walk("--seeds", "3", "--resume", *one_fold) == 0
    assert [analyse(f"results/{seed}").evidence.trials for seed in (7, 8, 9)] == [3, 3, 3]
    assert json.loads(Path("results/pooled.json").read_text())["trials"] == 3
    assert outcome(Path("results/7")) == before


@pytest.mark.slow
def test_a_failed_seed_is_said_left_out_and_gives_exit_code_1_and_a_resume_completes_it(walk, die_in, capsys):
    die_in(8, FloatingPointError("the loss is nan"))
    assert walk("--seeds", "3") == 1
    told = capsys.readouterr()
    assert "seed 8 failed: the loss is nan" in told.err
    assert "Left out, because they failed: seed 8" in told.out
    record = json.loads(Path("results/pooled.json").read_text())
    assert (record["pooled"], record["failed"]) == ([7, 9], {"8": "the loss is nan"})
    assert load_run("results/7").record["seeds"] == [7, 8, 9]  # it was tried
    die_in(-1, RuntimeError("no seed has this number"))
    assert walk("--seeds", "3", "--resume") == 0
    assert walk("--seed", "8", results="alone") == 0
    assert outcome(Path("results/8")) == outcome(Path("alone/8"))
    assert json.loads(Path("results/pooled.json").read_text())["pooled"] == [7, 8, 9]


def test_when_every_seed_fails_nothing_is_pooled(walk, monkeypatch, capsys):
    def failing(self, batch, batch_idx):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(LitPPO, "training_step", failing)
    assert walk("--seeds", "2") == 1
    assert capsys.readouterr().err.count("failed: the loss is nan") == 2
    assert not Path("results/pooled.json").exists()


def test_a_signal_stops_all_seeds_with_its_code(walk, die_in):
    die_in(7, interrupts.Interrupted(15))
    assert walk("--seeds", "2") == 143
    assert not Path("results/8").exists()


def test_runs_that_are_there_are_refused_before_any_seed_begins(walk, three, capsys):
    shutil.copytree(three[0] / "8", "results/8")
    assert walk("--seeds", "2") == 2
    assert "holds runs of the seeds 8 already" in capsys.readouterr().err
    assert not Path("results/7").exists()


@pytest.mark.parametrize("wrong", ["0", "-1"])
def test_a_number_of_seeds_below_one_is_refused(walk, wrong, capsys):
    assert walk(f"--seeds={wrong}") == 2
    assert "a number of runs >= 1 is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_shows_the_pooled_result_and_ignores_one_of_an_earlier_run(walk):
    assert walk("--seeds", "2") == 0
    page = Path("results/7/report.html").read_text()
    for text in ("Pooled over seeds and folds", "seed 7", "seed 8", "2 seeds, 2 folds"):
        assert text in page
    assert walk("--overwrite", "--model.total_timesteps", "128") == 0
    assert read_pooled(load_run("results/7")) is None
    write_report("results/7")
    assert "Pooled over seeds and folds" not in Path("results/7/report.html").read_text()


def test_runs_of_different_folds_are_not_pooled(walk, three):
    shutil.copytree(three[0] / "7", "results/7")
    assert walk("--seed", "8", "--data.fold_limit", "1") == 0
    with pytest.raises(ValueError, match=r"Seed 8 has 1 finished folds and seed 7 has 2"):
        pool("results", [7, 8], {})


def test_one_seed_that_is_left_has_no_interval(walk, three):
    shutil.copytree(three[0] / "7", "results/7")
    record = pool("results", [7, 8], {8: "no memory"})
    assert record["interquartile_mean"]["return_pct"]["low"] is None
    assert "an interval needs two seeds" in pooled_text(record)


def test_seeds_that_never_traded_are_said_to_be_flat(walk):
    assert walk("--seeds", "2", "--model.hold_bias", "50", "--data.fold_limit", "1") == 0
    assert "2 seeds, 1 fold: " in pooled_text(json.loads(Path("results/pooled.json").read_text()))
    assert "no seed traded" in Path("results/7/report.html").read_text()
