"""The old scripts' command line: every flag changes the configuration or the result, and the scripts run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main as lit_ppo_main
from lit_ppo.compat import drop_in
from lit_ppo.compat.drop_in import PROFILES, configuration, main, make_parser
from lit_ppo.store.results import load_run

REPOSITORY = Path(__file__).parents[2]
DOCUMENTED = ["--device", "--seed", "--initial_balance", "--initial_window", "--validation_size", "--step_size"]
DOCUMENTED += ["--balance_per_lot", "--random_start", "--total_timesteps", "--min_timesteps", "--learning_rate"]
DOCUMENTED += ["--final_learning_rate", "--eval_freq", "--point_value", "--min_lots", "--max_lots", "--contract_size"]
DOCUMENTED += ["--adaptive_timesteps", "--warm_start", "--early_stopping_patience", "--convergence_threshold"]
DOCUMENTED += ["--progressive_training", "--cache_environments", "--parallel_candidates", "--use_original_training"]
DOCUMENTED += ["--benchmark_mode", "--optimization_profile", "--results_dir", "--iterations", "--data_path"]
DOCUMENTED += ["--print_config"]
BOOLEAN = ["random_start", "adaptive_timesteps", "warm_start", "progressive_training", "cache_environments"]
BOOLEAN += ["use_original_training", "benchmark_mode"]


def config_of(*flags: str, profile: str = "balanced") -> dict[str, Any]:
    options = make_parser("script", profile).parse_args(["--data_path", "bars.csv", *flags])
    return configuration(options, profile)


def callbacks_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        entry["class_path"].removeprefix("callbacks."): entry.get("init_args", {})
        for entry in config["trainer"]["callbacks"]
    }


def value_of(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def test_every_documented_flag_is_known_and_every_boolean_has_a_no_form():
    known = {flag for action in make_parser("script", "balanced")._actions for flag in action.option_strings}
    assert set(DOCUMENTED) <= known
    assert {f"--no-{name}" for name in BOOLEAN} <= known


@pytest.mark.parametrize(
    ("flag", "value", "key", "expected"),
    [
        ("--seed", "7", "seed_everything", 7),
        ("--results_dir", "elsewhere", "results", "elsewhere"),
        ("--iterations", "3", "data.fold_limit", 3),
        ("--initial_balance", "500", "money.initial_balance", 500.0),
        ("--balance_per_lot", "250", "money.balance_per_lot", 25_000.0),  # the old flag is for each 0.01 lot
        ("--min_lots", "0.02", "money.min_lots", 0.02),
        ("--max_lots", "3", "money.max_lots", 3.0),
        ("--contract_size", "10", "money.contract_size", 10.0),
        ("--point_value", "0.01", "data.point", 0.01),
        ("--initial_window", "1500", "data.train_size", 1200),  # a fifth of the window is validation
        ("--initial_window", "1500", "data.validation_size", 300),
        ("--validation_size", "300", "data.validation_size", 300),
        ("--validation_size", "300", "data.train_size", 2200),
        ("--validation_size", "0.1", "data.validation_size", 250),
        ("--step_size", "250", "data.step_size", 250),
        ("--step_size", "250", "data.test_size", 250),
        ("--total_timesteps", "70000", "model.total_timesteps", 70_000),
        ("--learning_rate", "0.002", "model.learning_rate", 0.002),
        ("--final_learning_rate", "0.001", "model.final_learning_rate", 0.001),
        ("--parallel_candidates", "3", "parallel_candidates", 3),
        ("--device", "cuda:1", "trainer.accelerator", "gpu"),
        ("--device", "cuda:1", "trainer.devices", [1]),
        ("--device", "auto", "trainer.accelerator", "auto"),
    ],
)
def test_a_value_goes_to_its_key(flag, value, key, expected):
    assert value_of(config_of(flag, value), key) == expected
    assert config_of(flag, value) != config_of()


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        ("--random_start", "model.random_start", True),
        ("--no-random_start", "model.random_start", False),
        ("--cache_environments", "data.cache", True),
        ("--no-cache_environments", "data.cache", False),
        ("--strict", "strict", True),
        ("--no-strict", "strict", False),
    ],
)
def test_a_switch_goes_to_its_key(flag, key, value):
    assert value_of(config_of(flag), key) is value


@pytest.mark.parametrize(
    ("flag", "callback"),
    [
        ("adaptive_timesteps", "AdaptiveTimesteps"),
        ("warm_start", "WarmStart"),
        ("progressive_training", "ProgressiveHyperparameters"),
    ],
)
def test_a_switch_of_an_optimisation_brings_its_callback_in_and_out(flag, callback):
    assert callback in callbacks_of(config_of())
    assert callback not in callbacks_of(config_of(f"--no-{flag}"))
    assert callback not in callbacks_of(config_of(profile="original"))
    assert callback in callbacks_of(config_of(f"--{flag}", profile="original"))


@pytest.mark.parametrize("profile", ["conservative", "balanced", "aggressive", "ultra_fast"])
def test_a_profiles_least_budget_bends_to_a_smaller_one_that_was_typed_and_a_typed_one_does_not(profile):
    def least(*flags: str) -> int:
        return callbacks_of(config_of(*flags, "--optimization_profile", profile))["AdaptiveTimesteps"]["min_timesteps"]

    assert least("--total_timesteps", "2048") == 2048
    assert least("--total_timesteps", "70000") == least()
    assert least("--total_timesteps", "2048", "--min_timesteps", "4096") == 4096  # refused by the callback


def test_a_value_of_an_optimisation_sets_it_and_switches_it_on():
    for profile in PROFILES:
        found = callbacks_of(
            config_of(
                *("--min_timesteps", "123", "--early_stopping_patience", "9", "--convergence_threshold", "0.25"),
                profile=profile,
            )
        )
        assert found["AdaptiveTimesteps"]["min_timesteps"] == 123
        assert found["ConvergenceEarlyStopping"]["patience"] == 9
        assert found["ConvergenceEarlyStopping"]["convergence_threshold"] == 0.25


def test_no_patience_turns_early_stopping_off():
    assert "ConvergenceEarlyStopping" not in callbacks_of(config_of("--early_stopping_patience", "0"))


def test_eval_freq_bounds_the_schedule_or_is_the_distance_itself():
    assert callbacks_of(config_of("--eval_freq", "5000"))["EvaluationSchedule"]["longest"] == 5000
    plain = config_of("--eval_freq", "5120", profile="original")
    assert plain["trainer"]["check_val_every_n_epoch"] == 10  # iterations of 2 x 256 bars
    rare = config_of("--eval_freq", "10000000", profile="original")
    assert rare["trainer"]["check_val_every_n_epoch"] == 196  # once, at the end


def test_profiles_and_the_original_training():
    budgets = {"conservative": (75_000, 25_000, 5), "aggressive": (30_000, 10_000, 2)}
    for name, (base, least, patience) in budgets.items():
        config = config_of("--optimization_profile", name)
        found = callbacks_of(config)
        assert config["model"]["total_timesteps"] == base
        assert found["AdaptiveTimesteps"]["min_timesteps"] == least
        assert found["ConvergenceEarlyStopping"]["patience"] == patience
    original = config_of("--use_original_training")
    assert original == config_of("--optimization_profile", "original") == config_of(profile="original")
    assert original["model"]["total_timesteps"] == 100_000
    assert callbacks_of(original).keys() == {
        *("ValidationSelection", "TrainingCheckpoint", "MetricsLog", "RunProgress"),
    }
    assert config_of("--no-use_original_training", profile="original") == config_of()


def test_the_complete_original_recipe_is_the_overlay_over_the_default_one():
    recipes = ("scratch", "profiles/original")
    parts = [yaml.safe_load((REPOSITORY / f"configs/{name}.yaml").read_text()) for name in recipes]
    whole = yaml.safe_load((REPOSITORY / "configs/original.yaml").read_text())
    assert drop_in.overlay(*parts) == whole


@pytest.mark.parametrize(
    "flags",
    [
        ["--min_timesteps", "9", "--no-adaptive_timesteps"],
        ["--early_stopping_patience", "0", "--convergence_threshold", "1"],
        ["--use_original_training", "--optimization_profile", "balanced"],
        ["--no-use_original_training", "--optimization_profile", "original"],
        ["--device", "tpu"],
        ["--validation_size", "2500"],
        ["--device", "cpu:1"],
        ["--unknown"],
        ["--seed", "x"],
    ],
)
def test_contradictions_and_unknown_values_end_with_2_and_a_message(flags, capsys):
    assert main("train_ppo.py", "balanced", ["--data_path", "bars.csv", *flags]) == 2
    assert "train_ppo.py:" in capsys.readouterr().err


@pytest.mark.parametrize("profile", PROFILES)
def test_the_printed_configuration_is_what_the_overlays_give(profile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--data_path", "bars.csv", "--optimization_profile", profile, "--print_config"]
    assert main("train_ppo.py", "balanced", flags) == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    overlays = ["--config", str(REPOSITORY / "configs/scratch.yaml")]
    overlays += ["--config", str(REPOSITORY / f"configs/profiles/{profile}.yaml")]
    rest = ["--data.path", "bars.csv", "--results", "results", "--money", "{}", "--print_config"]
    assert lit_ppo_main(["walk-forward", *overlays, *rest]) == 0
    by_hand = yaml.safe_load(capsys.readouterr().out)
    assert lit_ppo_main(["walk-forward", "--config", "printed.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == by_hand


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "bars.csv"
    SyntheticMarket(num_bars=900, seed=2).write(path)
    return path


SMALL = ["--initial_window", "400", "--validation_size", "100", "--step_size", "100", "--total_timesteps", "4096"]


@pytest.mark.slow
def test_the_lots_drive_the_account_of_evaluation(bars, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--data_path",
        str(bars),
        *SMALL,
        "--min_timesteps",
        "4096",
        "--iterations",
        "1",
        "--no-cache_environments",
    ]
    money = {}
    for name, more in {
        "base": [],
        "initial_balance": ["--initial_balance", "777"],
        "balance_per_lot": ["--balance_per_lot", "2500"],  # a fifth of the lots
        "min_lots": ["--min_lots", "50"],
        "max_lots": ["--max_lots", "0.05"],
        "contract_size": ["--contract_size", "1"],
    }.items():
        # A policy that has learnt little may never trade: the widest grid and no liking for what it holds.
        monkeypatch.setattr(
            drop_in, "lit_ppo_main", lambda arguments: lit_ppo_main([*arguments, "--model.hold_bias", "-3"])
        )
        assert main("train_ppo.py", "balanced", [*flags, *more, "--results_dir", name]) == 0
        money[name] = pd.read_csv(tmp_path / name / "42/money.csv")
        summary = json.loads((tmp_path / name / "42/folds.json").read_text())["folds"][0]["details"]["money"]
        assert summary["balance"] == money[name]["balance"].iloc[-1]
    assert money["base"]["lots"].abs().max() > 0
    assert money["initial_balance"]["balance"].iloc[0] < 1000
    assert money["min_lots"]["lots"].abs().max() >= 50
    assert money["max_lots"]["lots"].abs().max() == 0.05
    for name in ("balance_per_lot", "contract_size"):
        assert not money["base"]["balance"].equals(money[name]["balance"])
    assert "Account: " in capsys.readouterr().out


# Both in one process: what they import takes longer than what they do. Each finds its packages by its own folder.
RUN_SCRIPTS = """
import json, os, runpy, sys
for script, folder, *flags in json.loads(sys.argv[1]):
    os.makedirs(folder)
    os.chdir(folder)
    sys.argv, sys.path[0] = [script, *flags], os.path.dirname(script)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as leave:
        print("ended with", leave.code)
"""


def test_the_scripts_run_from_anywhere(bars, tmp_path):
    flags = ["--data_path", str(bars), *SMALL, "--min_timesteps", "4096", "--iterations", "2"]
    flags += ["--results_dir", "out", "--seed", "3", "--no-cache_environments"]
    more = {"train_ppo.py": ["--no-use_original_training"], "train_ppo_optimized.py": []}
    asked = [[str(REPOSITORY / name), str(tmp_path / name), *flags, *added] for name, added in more.items()]
    command = [sys.executable, "-c", RUN_SCRIPTS, json.dumps(asked)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, rest = done.stdout.split("ended with 0\n")
    assert rest == "", done.stderr
    for name, printed in zip(more, (first, second), strict=True):
        assert "Adaptive timesteps: 4,096 (saved 0)" in printed
        folder = tmp_path / name / "out/3"
        assert [fold.status for fold in load_run(folder).folds] == ["done", "done"]
        names = ("out_of_sample.csv", "money.csv", "optimization_summary.json", "training_state.json", "report.html")
        assert all((folder / file).is_file() for file in names)
        assert str(tmp_path) not in (folder / "run.json").read_text()


def test_benchmark_mode_is_lit_ppo_benchmark(monkeypatch):
    called: list[list[str]] = []

    def benchmark(arguments: list[str]) -> int:
        called.append([*arguments, Path(arguments[2]).read_text()])
        return 5

    monkeypatch.setattr(drop_in, "lit_ppo_main", benchmark)
    flags = ["--data_path", "bars.csv", "--results_dir", "out", "--iterations", "2", "--benchmark_mode"]
    assert main("train_ppo.py", "original", flags) == 5
    ((command, config, _, output, directory, text),) = called
    assert (command, config, output, directory) == ("benchmark", "--config", "--output", "out")
    assert yaml.safe_load(text)["data"]["fold_limit"] == 2
    assert "estimator" not in yaml.safe_load(text)["model"]  # the original recipe is timed by the benchmark itself


@pytest.mark.slow
def test_the_original_recipe_runs(bars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--initial_window", "1300", "--validation_size", "100", "--step_size", "100", "--total_timesteps", "512"]
    market = tmp_path / "bars.csv"
    SyntheticMarket(num_bars=1800, seed=2).write(market)
    assert main("train_ppo.py", "original", ["--data_path", str(market), *flags, "--iterations", "1"]) == 0
    assert load_run(tmp_path / "results/42").folds[0].timesteps == 512
