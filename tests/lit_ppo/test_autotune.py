"""The probe of a machine: what it tries, what it may change, and that it says so."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from lit_ppo.cli import main
from lit_ppo.commands import walk_forward as walk_forward_command
from lit_ppo.folds import autotune as module
from lit_ppo.folds.autotune import Setting, autotune, batches, steps_per_second, stored_choice, thread_counts
from lit_ppo.recipe import Recipe
from tests.lit_ppo.markets import market_tensors
from tests.lit_ppo.test_walk_forward import CONFIG

RECIPE = Recipe(num_envs=4, num_steps=16, burn_in=4, hidden_size=4, num_minibatches=2, total_timesteps=4096)


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)


def test_batches_keep_their_size_and_a_fold_keeps_some_iterations():
    assert batches(RECIPE) == [(4, 2), (8, 4), (16, 8)]
    assert batches(Recipe(**{**RECIPE.to_dict(), "total_timesteps": 1024})) == [(4, 2), (8, 4)]
    assert [thread_counts(cores) for cores in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


def test_the_faster_setting_is_chosen_and_what_changes_results_is_told(cores, tmp_path):
    threads = torch.get_num_threads()

    def measure(recipe, market, seconds):
        return 1000.0 * recipe.num_envs * (2 if torch.get_num_threads() == 1 else 1)

    choice = autotune(RECIPE, None, threads=2, measure=measure)
    assert choice.configured == Setting(2, 4, 2)
    assert choice.chosen == Setting(1, 16, 8)
    assert torch.get_num_threads() == threads
    told = "\n".join(choice.lines())
    assert "threads 2 -> 1" in told
    assert "num_envs and num_minibatches CHANGE RESULTS" in told
    choice.write(tmp_path)
    assert stored_choice(tmp_path) == {"threads": 1, "num_envs": 16, "num_minibatches": 8}
    assert len(json.loads((tmp_path / "autotune.json").read_text())["tried"]) == 4


def test_a_small_gain_changes_nothing(cores):
    choice = autotune(RECIPE, None, threads=1, measure=lambda recipe, market, seconds: 1000.0 + recipe.num_envs)
    assert choice.changes == {}
    assert "nothing tried is 10% faster" in choice.lines()[0]


def test_the_probe_keeps_to_its_time(cores):
    asked = []

    def measure(recipe, market, seconds):
        asked.append(seconds)
        return 1.0

    autotune(RECIPE, None, threads=1, seconds=20.0, measure=measure)
    assert sum(asked) == pytest.approx(20.0)


def test_training_is_timed():
    assert steps_per_second(RECIPE, market_tensors(400), 0.05) > 0


def test_the_choice_is_in_config_yaml_and_a_resume_takes_it_from_there(cores, tmp_path, monkeypatch, capsys):
    config = yaml.safe_load(CONFIG)
    config["model"]["total_timesteps"] = 1024
    fast = {"measure": lambda recipe, market, seconds: float(recipe.num_envs)}
    monkeypatch.setattr(walk_forward_command, "autotune", lambda *given: autotune(*given, **fast))
    given = ["walk-forward", "--config", yaml.safe_dump(config), "--results", str(tmp_path), "--threads", "1"]
    assert main([*given, "--autotune", "--data.fold_limit", "1"]) == 0
    stored = yaml.safe_load((tmp_path / "7" / "config.yaml").read_text())
    assert (stored["model"]["num_envs"], stored["model"]["num_minibatches"]) == (8, 4)
    assert (stored["threads"], stored["autotune"]) == (1, False)
    assert main([*given, "--resume", "--data.fold_limit", "2"]) == 0
    assert "autotune: as when the run began" in capsys.readouterr().out
