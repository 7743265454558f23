"""The Python front door: the same runs as the command line, DataFrames in and out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import lit_ppo
from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main

SMALL = {"total_timesteps": 1_024, "num_envs": 8, "num_steps": 32, "burn_in": 8, "num_networks": 1}
SIZES = {"train_size": 400, "validation_size": 100, "test_size": 100, "step_size": 100, "fold_limit": 2}
SIZES |= {"warmup_bars": 50, "cache": False}
FILES = ("out_of_sample.csv", "trades.csv")


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return SyntheticMarket(kind="regime", num_bars=1_200, seed=3).bars().frame


@pytest.fixture(scope="module")
def run(bars, tmp_path_factory) -> lit_ppo.Run:
    return lit_ppo.walk_forward(
        bars, model=SMALL, costs={"spread": 0.01}, results=tmp_path_factory.mktemp("python"), seed=7, **SIZES
    )


def test_importing_the_package_loads_neither_torch_nor_pandas():
    code = "import sys, lit_ppo; print({'torch', 'lightning', 'pandas'} & set(sys.modules), lit_ppo.Recipe.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() Recipe"


def test_a_run_from_python_and_one_from_the_command_line_are_the_same_bytes(run, tmp_path):
    (path,) = (run.path.parent / "bars").glob("*.csv")
    flags = [f"--model.{name}={value}" for name, value in SMALL.items()]
    flags += [f"--data.{name}={value}" for name, value in SIZES.items()]
    flags += ["--seed=7", f"--data.path={path}", "--data.costs.spread=0.01", f"--results={tmp_path}"]
    assert main(["walk-forward", "--config", "walk_forward", *flags]) == 0
    for name in FILES:
        assert (tmp_path / "7" / name).read_bytes() == (run.path / name).read_bytes()


def test_a_run_has_its_decisions_trades_folds_and_verdict(run):
    decisions = run.decisions
    assert list(decisions)[:4] == ["time", "fold", "position", "price"]
    assert len(decisions) == 200
    assert set(decisions["fold"]) == {0, 1}
    np.testing.assert_allclose(decisions["equity"], (1 + decisions["net_return"]).cumprod(), rtol=1e-12)
    assert run.folds["status"].tolist() == ["done", "done"]
    assert run.verdict.sentence
    assert run.report().is_file()
    assert lit_ppo.load_run(run.path).decisions.equals(decisions)


@pytest.mark.filterwarnings("ignore:.*new decisions.*are on bars no later")
def test_a_policy_decides_on_a_frame_and_a_file_alike_and_never_on_later_bars(run, bars, tmp_path):
    policy = lit_ppo.load_policy(run)
    whole = policy.decide(bars)
    assert set(whole["position"]) <= {-1.0, 0.0, 1.0}
    assert len(whole) > 1_000
    bars.to_csv(tmp_path / "bars.csv", index=False)
    pd.testing.assert_frame_equal(policy.decide(tmp_path / "bars.csv"), whole)
    pd.testing.assert_frame_equal(policy.decide(bars[:600]), whole[: len(whole) - len(bars) + 600])


def test_a_frame_without_prices_or_a_setting_that_no_recipe_can_hold_is_refused_before_any_work(bars, tmp_path):
    with pytest.raises(ValueError, match="close not found"):
        lit_ppo.walk_forward(bars.drop(columns="close"), results=tmp_path)
    with pytest.raises(ValueError, match=r"model\.learning_rate must be made of numbers"):
        lit_ppo.walk_forward(bars, model={"learning_rate": object()}, results=tmp_path)
    with pytest.raises(TypeError, match="got list"):
        lit_ppo.walk_forward([1, 2, 3], results=tmp_path)  # type: ignore[arg-type]
    assert not any(tmp_path.glob("*/run.json"))
