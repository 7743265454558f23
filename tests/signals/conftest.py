"""One tiny run for all tests of signals and export, and bars that it has never seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main

LIVELY = {"kind": "regime", "q": 0.05, "mu": 0.8, "cost": 0.02}
TRAINING = (
    "--model.num_envs 16 --model.num_steps 32 --model.total_timesteps 10000 --model.hold_bias 0.5 --seed 7 "
    "--model.num_networks 2 "
    "--model.screen_features false --data.train_size 800 --data.validation_size 100 --data.test_size 100 "
    "--data.step_size 100 --data.fold_limit 2 --data.warmup_bars 30 --data.cache false --trainer.accelerator cpu "
    "--trainer.logger false"
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished walk-forward of two folds; tests write next to it, never into it."""
    home = tmp_path_factory.mktemp("run")
    SyntheticMarket(num_bars=1300, seed=1, **LIVELY).write(home / "bars.csv")
    arguments = ["walk-forward", "--data.path", str(home / "bars.csv"), "--results", str(home / "results")]
    assert main([*arguments, *TRAINING.split()]) == 0
    return home / "results" / "7"


@pytest.fixture(scope="session")
def new_bars(tmp_path_factory) -> Path:
    """450 bars of the same kind of market."""
    return SyntheticMarket(num_bars=450, seed=2, **LIVELY).write(tmp_path_factory.mktemp("new") / "new.csv")
