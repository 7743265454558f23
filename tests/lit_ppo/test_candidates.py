"""Several candidates a fold: the best by validation is kept, every one is counted, no loser's test bars are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_ppo.cli import main
from lit_ppo.folds.candidates import Trained, best, overfitting_probability, overlays_of, validation_returns
from lit_ppo.store.results import load_run
from tests.lit_ppo.test_walk_forward import CONFIG

TINY = yaml.safe_load(CONFIG)
TINY["data"]["fold_limit"] = 2


def trained(number: int, score: float, time=(1, 2), net_returns=(0.0, 0.1)) -> Trained:
    return Trained(number, {}, score, 10, 0.1, "budget", {}, list(time), list(net_returns))


@pytest.fixture
def run(tmp_path):
    def call(*arguments: str, name: str = "results", config: dict = TINY) -> tuple[int, Path]:
        code = main(["walk-forward", "--config", yaml.safe_dump(config), "--results", str(tmp_path / name), *arguments])
        return code, tmp_path / name / "7"

    return call


def test_the_best_by_validation_is_kept_and_every_candidate_is_a_trial(run):
    code, folder = run("--parallel_candidates", "3")
    assert code == 0
    for record in load_run(folder).folds:
        scores = [one["score"] for one in record.details["candidates"]]
        assert len(scores) == 3
        assert record.trials == 3
        assert record.details["candidate"] == scores.index(max(scores))
        assert record.scores["validation/score"] == pytest.approx(max(scores), abs=1e-12)
        assert record.timesteps == sum(one["timesteps"] for one in record.details["candidates"])
        assert (folder / f"fold_{record.index:03d}" / "selected.ckpt").is_file()
    times, returns = validation_returns(folder)
    assert returns.shape == (200, 3)
    assert (np.diff(times) > 0).all()


def test_the_first_candidate_is_what_a_fold_trains_without_a_choice(run):
    _, alone = run(name="alone")
    _, several = run("--parallel_candidates", "2", name="several")
    alone_score = load_run(alone).folds[0].scores["validation/score"]
    assert load_run(several).folds[0].details["candidates"][0]["score"] == alone_score


def test_test_bars_are_read_once_a_fold_whatever_the_number_of_candidates(run, monkeypatch):
    from datamodules.walk_forward import WalkForwardDataModule

    asked = []
    segment = WalkForwardDataModule.test_segment

    def spy(self, index):
        asked.append(index)
        return segment(self, index)

    monkeypatch.setattr(WalkForwardDataModule, "test_segment", spy)
    run("--parallel_candidates", "3")
    assert asked == [0, 1]


def test_overlays_make_candidates_of_other_settings(run):
    overlays = json.dumps([{}, {"total_timesteps": 128, "hidden_size": 6}])
    _, folder = run("--candidates", overlays)
    first, second = load_run(folder).folds[0].details["candidates"]
    assert (first["timesteps"], second["timesteps"]) == (256, 128)
    assert second["overlay"] == {"total_timesteps": 128, "hidden_size": 6}


@pytest.mark.parametrize(
    ("number", "overlays", "message"),
    [
        (0, None, "number of candidates"),
        (3, [{}, {}], "disagree"),
        (1, [{"hiden_size": 4}], "did you mean 'hidden_size'"),
    ],
)
def test_candidates_that_cannot_be_meant_are_refused(number, overlays, message):
    with pytest.raises(ValueError, match=message):
        overlays_of(number, overlays)


def test_a_candidate_without_a_score_is_never_the_best():
    assert best([trained(0, float("nan")), trained(1, -2.0), trained(2, -2.0)]).number == 1
    with pytest.raises(FloatingPointError, match="None of the 1 candidates"):
        best([trained(0, float("nan"))])


def test_a_bar_that_validates_in_two_folds_counts_in_the_first(tmp_path):
    for fold, time in enumerate(([1, 2, 3], [3, 4])):
        for number in range(2):
            directory = tmp_path / f"fold_{fold:03d}" / f"candidate_{number}"
            directory.mkdir(parents=True)
            trained(number, 1.0, time, [10 * fold + number] * len(time)).write(directory)
    time, returns = validation_returns(tmp_path)
    assert time.tolist() == [1, 2, 3, 4]
    assert returns.tolist() == [[0, 1]] * 3 + [[10, 11]]
    assert overfitting_probability(tmp_path) == (None, "4 validation bars are too few: 64 are needed")


def test_the_probability_of_overfitting_needs_candidates_that_differ(tmp_path):
    assert overfitting_probability(tmp_path) == (None, "there were no candidates to choose between")
    generator = np.random.default_rng(0)
    time = list(range(320))
    lucky, flat = generator.normal(0, 1e-3, 320).tolist(), [0.0] * 320

    def write(*returns: list[float]) -> None:
        for number, one in enumerate(returns):
            directory = tmp_path / f"fold_000/candidate_{number}"
            directory.mkdir(parents=True, exist_ok=True)
            trained(number, 1.0, time, one).write(directory)

    write(flat, flat)
    assert overfitting_probability(tmp_path) == (None, "the candidates traded alike, so nothing was chosen")
    write(flat, lucky)
    probability, why = overfitting_probability(tmp_path)
    assert 0.0 <= probability <= 1.0
    assert why == ""
    write([0.001 + x for x in lucky], lucky)  # one is better in every half
    assert overfitting_probability(tmp_path) == (0.0, "")


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"activation": {"class_path": "torch.nn.ReLU"}}, r"candidates\[1\]\.activation must be text, found"),
        ({"hidden_size": [[[[8]]]]}, r"candidates\[1\]\.hidden_size must be a whole number, found"),
        ({"hidden_size": True}, r"candidates\[1\]\.hidden_size must be a whole number, found True"),
        ({"policy_layers": [8, "x"]}, r"candidates\[1\]\.policy_layers\[1\] must be a whole number, found 'x'"),
        ({"gamma": "high"}, r"candidates\[1\]\.gamma must be a finite number, found 'high'"),
        ({"gamma": float("nan")}, r"candidates\[1\]\.gamma must be a finite number, found nan"),
        ({"estimator": "magic"}, r"candidates\[1\]\.estimator must be 'counterfactual' or 'sampled', found 'magic'"),
    ],
)
def test_a_value_that_a_candidate_cannot_have_is_named_with_its_key(overlay, message):
    with pytest.raises(ValueError, match=message):
        overlays_of(1, [{"hidden_size": 4, "gamma": 1, "policy_layers": (8,), "target_kl": None}, overlay])


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        ([{}, {"activation": {"class_path": "torch.nn.ReLU"}}], "candidates[1].activation must be text"),
        ([{}, {"activation": "magic"}], "candidates[1]: `activation` must be one of"),
        ([{}, {"num_minibatches": 3}], "candidates[1]: "),
    ],
)
def test_a_candidate_that_cannot_be_built_ends_the_command_before_anything_is_written(run, capsys, overlays, message):
    code, folder = run("--candidates", json.dumps(overlays))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def test_a_candidate_nested_without_end_is_refused(run, capsys):
    for levels in (40, 800):
        assert run(f"--candidates=[{{hidden_size: {'[' * levels}{']' * levels}}}]")[0] == 2
        assert "nested" in capsys.readouterr().err
