"""`lit-ppo benchmark`: its rows, its statistics, and one tiny run from flags to JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from lit_ppo.cli import main
from lit_ppo.commands import benchmark as benchmark_command
from lit_ppo.commands.benchmark import paired_interval, results
from lit_ppo.folds.monitor import read_baseline
from lit_ppo.lab.benchmark_variants import BUDGET, FAST_EVALUATION, OPTIMISATIONS, Variant, as_configured, variants
from tests.lit_ppo.test_untrained import CONFIG as BLIND
from tests.lit_ppo.test_walk_forward import CONFIG

NAMES = [optimisation.name for optimisation in OPTIMISATIONS]


def test_the_ablation_adds_one_at_a_time_and_leaves_one_out_at_a_time():
    rows = variants(ablation=True)
    assert [len(row.names) for row in rows[: len(NAMES) + 1]] == list(range(len(NAMES) + 1))
    left_out = [set(NAMES) - set(row.names) for row in rows[len(NAMES) + 1 :]]
    assert left_out == [{name} for name in NAMES[:-1]]  # all but the last is the row before "all"
    assert len({row.names for row in rows}) == len(rows) == len({row.slug for row in rows})
    assert [row.names for row in variants(ablation=False)] == [(), tuple(NAMES)]
    assert all(FAST_EVALUATION in row.names for row in variants(ablation=True, fast=True))
    assert [row.names for row in variants(ablation=False, fast=True)] == [(FAST_EVALUATION,), tuple(NAMES)]


def test_a_row_switches_on_its_own_optimisations_only():
    on = yaml.safe_load(Variant("", ("warm start", "early stopping")).overlay(4096))
    callbacks = [entry["class_path"] for entry in on["trainer"]["callbacks"]]
    assert callbacks == ["callbacks.ValidationSelection", "callbacks.WarmStart", "callbacks.ConvergenceEarlyStopping"]
    assert on["model"]["total_timesteps"] == BUDGET
    assert yaml.safe_load(Variant("", ("adaptive timesteps",)).overlay(512))["model"]["total_timesteps"] == 50_000


def test_a_recipe_with_its_own_optimisations_keeps_their_values():
    callbacks = [
        {"class_path": "callbacks.AdaptiveTimesteps", "init_args": {"min_timesteps": 7}},
        {"class_path": "callbacks.MetricsLog", "init_args": {}},
    ]
    own = as_configured({"callbacks": callbacks}, 30_000)
    assert [optimisation.name for optimisation in own] == NAMES
    on = yaml.safe_load(Variant("", ("adaptive timesteps", "warm start")).overlay(512, own))
    assert on["model"]["total_timesteps"] == 30_000
    assert on["trainer"]["callbacks"][1] == callbacks[0]
    assert on["trainer"]["callbacks"][2]["class_path"] == "callbacks.WarmStart"


def entries(seconds: float, timesteps: int, score: float) -> list[dict]:
    one = {"seconds": seconds, "cpu_seconds": seconds, "timesteps": timesteps, "test_score": score}
    return [{**one, "seed": seed, "fold": fold} for fold in range(3) for seed in range(2)]


def test_time_is_told_apart_from_timesteps():
    rows = variants(ablation=False)
    found = results(rows, {rows[0]: entries(20.0, 100_000, 0.1), rows[1]: entries(2.0, 50_000, 0.3)}, [])
    optimised = found["variants"][1]
    assert (optimised["time_ratio"], optimised["did_less"], optimised["did_it_faster"]) == pytest.approx((10, 2, 5))
    assert optimised["test_score_difference"]["estimate"] == pytest.approx(0.2)
    assert found["baseline"]["seconds"] == 20
    assert "original" not in found


def test_a_whole_fold_of_the_original_is_labelled_extrapolated():
    rows = variants(ablation=False)
    timed = {"timed_timesteps": 512, "training_s_per_timestep": 0.02, "extrapolated_s_per_fold": 2000.0}
    found = results(rows, {row: entries(2.0, 50_000, 0.1) for row in rows}, [timed])
    assert "extrapolated from 512" in found["original"]["label"]
    assert found["original"]["extrapolated_time_ratio"] == 1000
    assert "extrapolated" in found["baseline"]["name"]


def test_the_interval_of_a_paired_difference_covers_the_truth_at_its_rate():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        fold, noise = draw.normal(size=(1, 30)), draw.normal(size=(2, 30))
        interval = paired_interval(0.5 + fold + noise, draws=400)
        covered += interval.low <= 0.5 <= interval.high
    assert covered >= 85


def test_an_interval_of_equal_runs_is_zero():
    assert paired_interval(np.zeros((2, 4)))[:3] == (0.0, 0.0, 0.0)


def test_from_flags_to_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_ppo.lab.benchmark_variants.BUDGET", 128)
    rows = [Variant("base", ()), Variant("stopping", ("early stopping", "fast evaluation"))]
    monkeypatch.setattr(benchmark_command, "variants", lambda ablation, fast: rows)
    given = ["--config", CONFIG, "--data.fold_limit", "2", "--results", str(tmp_path / "runs"), "--seeds", "2"]
    code = main(["benchmark", *given, "--output", str(tmp_path), "--name", "tiny", "--original_timesteps", "0"])
    assert code == 0
    result = json.loads((tmp_path / "tiny.json").read_text())
    base, stopping = result["variants"]
    assert [(run["fold"], run["seed"]) for run in base["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # Evaluation bar by bar, or of the whole sequence, gives the same; patience 3 outlasts two iterations.
    assert [run["test_score"] for run in base["runs"]] == [run["test_score"] for run in stopping["runs"]]
    assert result["folds"] == [0, 1]
    assert result["optimum_per_bar"]["noise_deviations"] == pytest.approx(0.11103, abs=1e-4)
    assert read_baseline(tmp_path / "tiny.json").timesteps == BUDGET
    table = capsys.readouterr().out
    assert "difference" in table
    assert "95 % interval" in table


def test_folds_in_which_no_feature_passes_are_told_and_not_divided_by(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_ppo.lab.benchmark_variants.BUDGET", 128)
    given = ["--config", BLIND, "--data.fold_limit", "1", "--results", str(tmp_path / "runs"), "--seeds", "1"]
    assert main(["benchmark", *given, "--output", str(tmp_path), "--original_timesteps", "0"]) == 2
    assert "no feature passed the screen" in capsys.readouterr().err
    assert not (tmp_path / "benchmark.json").exists()


def test_wrong_flags_are_refused(capsys):
    assert main(["benchmark", "--seeds", "0"]) == 2
    assert "--seeds >= 1" in capsys.readouterr().err
