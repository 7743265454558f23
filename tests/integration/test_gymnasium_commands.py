"""`lit-ppo fit` and `test` in gymnasium environments: recipes, resume, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from callbacks import MetricsLog, TrainingCheckpoint, ValidationSelection
from datamodules.gymnasium_data import GymnasiumDataModule
from lit_ppo.cli import main
from lit_ppo.commands.data_choice import asks_for_environment
from lit_ppo.module import LitPPO
from lit_ppo.recipe import load_policy
from lit_ppo.store.checkpoints import load_checkpoint
from tests.integration.shells import same, small_trainer, weights

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"estimator": "sampled", "account_at": "encoder", "num_envs": 4, "num_steps": 16, "num_minibatches": 2}
SMALL |= {"update_epochs": 2, "hidden_size": 8, "total_timesteps": 4 * 64, "normalise_advantages": "standard"}
TASKS = {"CartPole-v1": [1, 3], "Pendulum-v1": [2], "masked_task.Doors": []}
EXAMPLES = Path(__file__).parents[2] / "docs/examples"
# Iterations of a few steps: the network and everything else are the recipe's own.
SHORT = ["--model.num_envs", "2", "--model.num_steps", "16", "--model.total_timesteps", "64", "--model.num_minibatches"]
SHORT += ["1", "--model.update_epochs", "1", "--data.validation_episodes", "2", "--data.test_episodes", "2"]
SHORT += ["--trainer.check_val_every_n_epoch", "1"]


def data(env_id: str) -> GymnasiumDataModule:
    options = {"validation_episodes": 2, "test_episodes": 2, "allow_modules": ["masked_task"]}
    return GymnasiumDataModule(env_id, TASKS[env_id], **options)


def everything() -> list[pl.Callback]:
    return [ValidationSelection(), MetricsLog(), TrainingCheckpoint(None, 1)]


def fitted(directory: Path, env_id: str, callbacks: list[pl.Callback], resume: bool = False) -> LitPPO:
    module = LitPPO(seed=5, **SMALL)
    trainer = small_trainer(directory, callbacks)
    trainer.fit(module, datamodule=data(env_id), ckpt_path=directory if resume else None)
    return module


class Stop(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if pl_module.iteration == 2:
            raise KeyError("killed")


@pytest.mark.parametrize("env_id", TASKS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, env_id):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    whole = fitted(tmp_path / "whole", env_id, everything())
    with pytest.raises(KeyError):
        fitted(tmp_path / "cut", env_id, [*everything(), Stop()])
    resumed = fitted(tmp_path / "cut", env_id, everything(), resume=True)
    assert same(weights(whole), weights(resumed))
    assert whole.notes.selection == resumed.notes.selection
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
    one, other = (load_checkpoint(tmp_path / name)["learner"]["ranks"][0]["collector"] for name in ("whole", "cut"))
    assert torch.equal(one["observations"], other["observations"])
    assert json.dumps(one["env"], sort_keys=True, default=repr) == json.dumps(
        other["env"], sort_keys=True, default=repr
    )


def test_the_chosen_weights_come_with_the_statistics_they_were_trained_with(tmp_path):
    module = fitted(tmp_path, "CartPole-v1", everything())
    policy, _ = load_policy(load_checkpoint(tmp_path))
    assert module.learner is not None
    env = module.learner.state_dict()["collector"]["env"]["observations"]
    torch.testing.assert_close(policy.observation_mean, env["mean"])
    torch.testing.assert_close(policy.observation_variance, env["squares"] / env["count"])


def test_without_memory_is_another_training(tmp_path):
    module = LitPPO(seed=5, **SMALL, encoder="memoryless")
    small_trainer(tmp_path / "control").fit(module, datamodule=data("CartPole-v1"))
    assert not same(weights(module), weights(fitted(tmp_path / "memory", "CartPole-v1", [])))


needs_popgym = pytest.mark.skipif(find_spec("popgym") is None, reason='needs pip install "lit-ppo[popgym]"')


@pytest.mark.parametrize("name", ["cartpole_novel", "pendulum_novel", pytest.param("popgym", marks=needs_popgym)])
def test_the_recipe_trains_and_its_checkpoint_is_tested(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), *SHORT]
    if name == "popgym":
        arguments += ["--allow-module", "popgym"]
    assert main(["fit", *arguments]) == 0
    folder = tmp_path / "results" / name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["timesteps"] for line in lines] == [32, 64]
    assert all("validation/score" in line for line in lines)
    assert (folder / "selected.ckpt").is_file()
    for command in ("test", "validate"):
        assert main([command, *arguments]) == 0
        assert f"{command.removesuffix('e')}" in capsys.readouterr().out
    assert main(["predict", *arguments]) == 2
    assert "has none" in capsys.readouterr().err


def test_another_environment_than_the_checkpoints_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(CONFIGS / "cartpole_novel.yaml"), *SHORT]
    assert main(["fit", *arguments]) == 0
    assert main(["test", *arguments, "--data.normalise_observations", "false"]) == 2
    assert "data.normalise_observations was True and is False" in capsys.readouterr().err


def test_a_task_of_ones_own_is_found_in_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "masked_task", raising=False)
    for name in ("masked_task.py", "masked_task.yaml"):
        shutil.copyfile(EXAMPLES / name, tmp_path / name)
    arguments = ["--config", "masked_task.yaml", *SHORT]
    assert main(["fit", *arguments]) == 2
    assert "--allow-module masked_task" in capsys.readouterr().err
    assert main(["fit", *arguments, "--allow-module", "masked_task"]) == 0
    assert main(["test", *arguments, "--allow-module", "masked_task", "--data.training_wrappers", "null"]) == 2
    assert "data.training_wrappers was" in capsys.readouterr().err
    wrapper = "--data.wrappers=[masked_task.Doors]"
    assert main(["fit", *arguments, "--allow-module", "masked_task", wrapper]) == 2
    assert "data.wrappers: masked_task.Doors is no Wrapper" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["walk-forward", "--data.env_id", "CartPole-v1"], "use lit-ppo fit"),
        (["fit", "--data.env_id", "CartPole-v1"], "set model.account_at: encoder"),
        (["fit", "--data.env_id=CartPole-v1", "--data.path=bars.csv"], "data.path"),
        (["fit", "--data.env_id", "somewhere:Maze-v0"], "--allow-module somewhere"),
        (["fit", "--data.env_id", "CartPole-v1", "--data.test_episodes", "0"], "data.test_episodes"),
        (["fit", "--data.env_id", "os.path"], "--allow-module os"),
        (["fit", "--data.env_id", "CartPole-v1", "--data.wrappers=[os.system]"], "--allow-module os"),
        (["fit", "--data.env_id", "CartPole-v1", "--data.wrappers=[{path: x}]"], "a wrapper is a class path"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_module_of_environments_can_be_allowed():
    task = GymnasiumDataModule("somewhere.inner:Maze-v0", allow_modules=["somewhere"]).task
    assert task.env_id == "somewhere.inner:Maze-v0"
    with pytest.raises(ValueError, match="--allow-module somewhere_else"):
        GymnasiumDataModule("somewhere_else:Maze-v0", allow_modules=["somewhere"])


def test_the_data_keys_say_whether_an_environment_is_meant(tmp_path):
    (tmp_path / "env.yaml").write_text("data:\n  env_id: CartPole-v1\n")
    (tmp_path / "bars.yaml").write_text("data:\n  path: bars.csv\n")
    (tmp_path / "broken.yaml").write_text("data: [")
    env, bars, broken = (str(tmp_path / f"{name}.yaml") for name in ("env", "bars", "broken"))
    assert asks_for_environment(["--config", bars, "--config", env])
    assert asks_for_environment([f"-c={env}"])
    assert asks_for_environment(["--data.env_id", "Pendulum-v1"])
    assert not asks_for_environment(["--config", bars, "--config", broken, "--config", "absent.yaml", "--config"])
