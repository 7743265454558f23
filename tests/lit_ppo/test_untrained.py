"""A fold in which no feature passes the screen: it trains nothing, ends with a test result, and is told everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.synthetic import SyntheticMarket
from lit_ppo import load_policy
from lit_ppo.cli import main
from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.screening import screen_line
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, policy_inputs
from lit_ppo.report.untraded import reason, screened
from lit_ppo.store.checkpoints import SELECTED
from lit_ppo.store.results import NOT_TRAINED, FoldRecord, load_run
from tests.lit_ppo.markets import market_tensors

CONFIG = """
seed_everything: 3
model: {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, total_timesteps: 256}
data:
  synthetic: {kind: random_walk, num_bars: 760, seed: 4}
  train_size: 300
  validation_size: 100
  test_size: 100
  step_size: 100
  warmup_bars: 20
  fold_limit: 2
  cache: false
trainer:
  accelerator: cpu
  callbacks: [callbacks.ValidationSelection, callbacks.TrainingCheckpoint, callbacks.MetricsLog, callbacks.WarmStart]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("blind")
    (root / "config.yaml").write_text(CONFIG)
    assert main(["walk-forward", "--config", str(root / "config.yaml"), "--results", str(root / "results")]) == 0
    return root / "results" / "3"


def test_a_fold_that_sees_nothing_trains_nothing_and_still_has_its_weights_and_its_test_result(run):
    found = load_run(run)
    for fold in found.folds:
        assert (fold.status, fold.timesteps, fold.stop_reason) == ("done", 0, NOT_TRAINED)
        assert fold.details["screen"]["passed"] == []
        assert set(fold.details["screen"]["score"]) == set(fold.details["screen"]["threshold"])
        assert (run / f"fold_{fold.index:03d}" / SELECTED).is_file()
    assert len(found.out_of_sample) == 200
    assert not found.out_of_sample["position"].any()


def test_a_finished_run_of_such_folds_resumes_to_nothing(run):
    before = (run / "folds.json").read_bytes()
    config = run.parents[1] / "config.yaml"
    assert main(["walk-forward", "--config", str(config), "--results", str(run.parent), "--resume"]) == 0
    assert (run / "folds.json").read_bytes() == before


def test_tensorboard_has_what_the_screen_found(run):
    events = EventAccumulator(str(run / "fold_000"))
    events.Reload()
    screen = load_run(run).folds[0].details["screen"]
    (passed,) = events.Scalars("screen/passed")
    (best,) = events.Scalars("screen/best_score")
    assert passed.value == 0
    assert min(abs(best.value - score) for score in screen["score"].values()) < 1e-5


def test_predict_from_such_a_fold_stays_flat_and_says_that_it_was_not_trained(run, tmp_path, capsys):
    bars = SyntheticMarket(num_bars=80, seed=9, kind="random_walk").write(tmp_path / "bars.csv")
    capsys.readouterr()
    files = ["--data", str(bars), "--output", str(tmp_path / "signals.csv")]
    assert main(["predict", "--ckpt", str(run), *files]) == 0
    assert f"warning: fold 1 was {NOT_TRAINED}" in capsys.readouterr().err
    _, *rows = (tmp_path / "signals.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["0.0"] * (80 - 24 - 20)
    with pytest.warns(UserWarning, match=NOT_TRAINED):
        decided = load_policy(run).decide(bars)
    assert not decided["position"].any()


def test_candidates_that_see_nothing_are_not_trained_either_and_the_fold_has_its_test_result(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(CONFIG)
    flags = ["--config", str(tmp_path / "config.yaml"), "--data.fold_limit", "1", "--results", str(tmp_path / "r")]
    assert main(["walk-forward", *flags, "--candidates", "[{}, {hidden_size: 6}]"]) == 0
    (fold,) = load_run(tmp_path / "r" / "3").folds
    assert (fold.status, fold.timesteps, fold.stop_reason, fold.trials) == ("done", 0, NOT_TRAINED, 2)
    assert [one["stop_reason"] for one in fold.details["candidates"]] == [NOT_TRAINED] * 2
    assert fold.details["candidate"] == 0
    assert fold.details["screen"]["passed"] == []
    told = " ".join(capsys.readouterr().out.split())
    assert "not trained: 0 of 5 features pass" in told
    assert "In the only fold no feature passed the screen" in told
    assert "2 candidates a fold" in told
    assert not load_run(tmp_path / "r" / "3").out_of_sample["position"].any()


def test_terminal_and_page_say_why_and_what_to_try(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert main(["walk-forward", "--config", str(tmp_path / "config.yaml"), "--results", str(tmp_path / "r")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "not trained: 0 of 5 features pass (best: " in told
    assert "It never traded: there is nothing to judge. In all 2 folds no feature passed the screen" in told
    assert "model.screen_features: false" in told
    page = (tmp_path / "r/3/report.html").read_text()
    assert "It never traded: there is nothing to judge. In all 2 folds" in page
    assert "What to try" in page
    assert "the prior trader, which no window has to teach: --config walk_forward" in page
    assert "The screen of the features over the folds" in page
    assert 'id="equity"' not in page
    assert "Plotly" not in page.partition("<script")[0]
    assert len(page) < 200_000


def test_without_the_mirror_a_policy_that_sees_nothing_may_still_learn_a_side():
    market = market_tensors(num_bars=400, seed=1, mean=0.0)
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(market.features.shape, generator=rng)
    market = dataclasses.replace(market, features=noise)
    blind = {}
    for mirror in (True, False):
        recipe = Recipe(num_envs=4, num_steps=16, burn_in=4, hidden_size=4, total_timesteps=64, mirror=mirror)
        policy = build_policy(recipe, policy_inputs(market), 0)
        learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)
        learner.attach(market)
        assert learner.screen is not None
        assert not learner.screen.gain.any()
        blind[mirror] = learner.sees_nothing
        assert learner.finished == mirror  # both shells ask this: neither trains on nothing
    assert blind == {True: True, False: False}


def test_the_reason_counts_the_folds_in_which_nothing_passed():
    def fold(index: int, *passed: str) -> FoldRecord:
        screen = {
            "passed": list(passed),
            "score": {"a": 4.0 if passed else 1.0, "b": 0.5},
            "threshold": {"a": 3, "b": 3},
        }
        why = "budget" if passed else NOT_TRAINED
        return FoldRecord(index, status="done", stop_reason=why, details={"screen": screen})

    assert "In 1 of 2 folds no feature passed" in reason([fold(0), fold(1, "a")])
    assert "In all 2 folds no feature passed" in reason([fold(0), fold(1)])
    assert reason([FoldRecord(0, status="done")]).startswith("The policy was trained in every fold")
    trained_blind = dataclasses.replace(fold(0), stop_reason="budget")  # without the mirror: a constant side is learnt
    assert reason([trained_blind]).startswith("The policy was trained in every fold")
    best = screened([fold(0), fold(1, "a")])[0]
    assert (best.name, best.passed, best.folds) == ("a", 1, 2)
    assert best.score == np.median([1.0, 4.0])
    assert screen_line(fold(3).details["screen"]) == "0 of 2 features pass (best: a 1.0, needs 3.0)"
