"""Every recipe in configs/ runs as it stands, with a short budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo import fabric_trainer
from lit_ppo.cli import main
from lit_ppo.ppo.config import PPOConfig
from lit_ppo.store.results import load_run

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = ["--model.total_timesteps", "4096", "--data.cache", "false"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    SyntheticMarket(num_bars=4200, seed=2).write(tmp_path / "bars.csv")
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart.yaml", "scratch.yaml"])
def test_walk_forward_recipes_end_with_an_out_of_sample_file(here, name):
    data = ["--data.path", "bars.csv"] if name == "scratch.yaml" else []
    assert main(["walk-forward", "--config", str(CONFIGS / name), *SHORT, "--data.fold_limit", "1", *data]) == 0
    folder = here / "results/42"
    run = load_run(folder)
    (fold,) = run.folds
    assert len(run.out_of_sample) == fold.bars["test"][1] - fold.bars["test"][0]
    assert (folder / "fold_000/metrics.jsonl").read_text().count("\n") == fold.timesteps // 4096
    assert list((folder / "fold_000").glob("events.out.tfevents.*"))


def test_the_fit_recipe_runs(here):
    assert main(["fit", "--config", str(CONFIGS / "fit.yaml"), *SHORT]) == 0
    assert (here / "results/fit/selected.ckpt").is_file()


def test_the_fabric_recipe_runs(here, capsys):
    arguments = ["--config", str(CONFIGS / "fabric.yaml"), *SHORT, "--accelerator", "cpu", "--devices", "1"]
    assert fabric_trainer.main(WalkForwardDataModule, arguments) == 0
    assert "test/score" in capsys.readouterr().out
    assert (here / "results/fabric/selected.ckpt").is_file()


def test_fabric_exits_with_2_and_a_message_for_a_mistake(here, capsys):
    arguments = ["--config", str(CONFIGS / "fabric.yaml"), *SHORT, "--accelerator", "cpu", "--devices", "1", "--resume"]
    assert fabric_trainer.main(WalkForwardDataModule, arguments) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def test_the_default_sizes_are_the_first_users():
    recipe = yaml.safe_load((CONFIGS / "scratch.yaml").read_text())
    data = WalkForwardDataModule(path="unread.csv")
    for name in ("train_size", "validation_size", "test_size", "step_size"):
        assert recipe["data"][name] == getattr(data.split, name)
    assert recipe["model"]["total_timesteps"] == 100_000


def test_the_default_for_a_users_bars_is_the_prior_trader():
    default, zero_shot = (
        yaml.safe_load((CONFIGS / name).read_text()) for name in ("walk_forward.yaml", "zero_shot.yaml")
    )
    assert default == zero_shot
    scratch = yaml.safe_load((CONFIGS / "scratch.yaml").read_text())
    for name in ("train_size", "validation_size", "test_size", "step_size", "fill", "costs"):
        assert default["data"][name] == scratch["data"][name]


def test_the_quickstart_uses_the_budget_that_it_states():
    settings = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    stated, bars = settings["model"]["total_timesteps"], settings["data"]["train_size"]
    assert stated <= PPOConfig().max_passes * (2_000 * bars) ** 0.5  # else a training ends before it


def test_every_callback_of_a_recipe_can_be_deleted(here):
    recipe = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    recipe["trainer"]["callbacks"] = []
    (here / "bare.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["walk-forward", "--config", "bare.yaml", *SHORT, "--data.fold_limit", "1"]) == 0
    assert not list(here.rglob("metrics.jsonl"))
