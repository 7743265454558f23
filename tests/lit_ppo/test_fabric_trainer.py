"""The Fabric shell is the Lightning shell without Lightning's trainer: equal weights, equal resume."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from lightning.fabric import Fabric

from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.fabric_trainer import FabricTrainer, main
from lit_ppo.recipe import Recipe, load_policy
from lit_ppo.store.checkpoints import load_checkpoint
from tests.integration.shells import ENCODER, HEADS_SAMPLED, SMALL, fitted, same, small_data, weights

KINDS = {"counterfactual": {}, "sampled": HEADS_SAMPLED, "encoder": ENCODER}


def fabric_trainer(directory=None, precision=None, **recipe) -> FabricTrainer:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    return FabricTrainer(fabric, Recipe(**{**SMALL, **recipe}), small_data().fold_data(0).train, 5, directory)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_lightning_and_fabric_give_equal_weights_after_three_iterations(tmp_path, kind, precision):
    recipe = {"total_timesteps": 3 * 64, **KINDS[kind]}
    module = fitted(tmp_path, trainer_settings={"precision": precision}, **recipe)
    trainer = fabric_trainer(precision=precision, **recipe)
    metrics = [trainer.iterate() for _ in range(3)]
    assert trainer.learner.finished
    assert same(weights(module), trainer.policy.state_dict())
    for name in ("train/loss", "train/approx_kl", "train/gradient_norm"):
        assert module.metrics[name] == metrics[-1][name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_fabric_training_equals_the_uninterrupted_one(tmp_path, kind):
    whole = fabric_trainer(tmp_path / "whole", **KINDS[kind])
    cut = fabric_trainer(tmp_path / "cut", **KINDS[kind])
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        cut.iterate()
    cut.save()
    cut.iterate()  # lost with the kill
    resumed = fabric_trainer(tmp_path / "cut", **KINDS[kind])
    assert resumed.resume()
    for _ in range(2):
        resumed.iterate()
    assert same(whole.policy.state_dict(), resumed.policy.state_dict())
    assert not fabric_trainer(tmp_path / "empty").resume()


def command(directory, *more: str) -> list[str]:
    sizes = ["--data.train_size", "300", "--data.validation_size", "100", "--data.test_size", "100"]
    sizes += ["--data.step_size", "100", "--data.warmup_bars", "20", "--data.cache", "false"]
    market = ["--data.synthetic.kind", "regime", "--data.synthetic.num_bars", "760", "--data.synthetic.seed", "3"]
    small = [f"--model.{name}={json.dumps(value)}" for name, value in SMALL.items()]
    devices = ["--accelerator", "cpu", "--devices", "1", "--save_every", "1", "--model.total_timesteps", "640"]
    return [*market, *sizes, *small, *devices, "--directory", str(directory), *more]


def selected(directory) -> dict[str, torch.Tensor]:
    return load_checkpoint(directory / "selected.ckpt")["state_dict"]


def test_a_resumed_run_chooses_among_all_its_weights_as_the_uninterrupted_one_does(tmp_path, monkeypatch, capsys):
    scores = iter([0.0, 0.3, 0.9, 0.2, *[0.1] * 6, -0.2])  # ten iterations, the third is best; the test

    def scored(trainer, market, original=FabricTrainer.evaluate, **options):
        return replace(original(trainer, market, **options), score=next(scores))

    monkeypatch.setattr(FabricTrainer, "evaluate", scored)
    assert main(WalkForwardDataModule, command(tmp_path / "whole")) == 0
    scores = iter([0.0, 0.3, 0.9, 0.2])  # then it ends: as if killed
    with pytest.raises(StopIteration):
        main(WalkForwardDataModule, command(tmp_path / "cut"))
    scores = iter([*[0.1] * 6, -0.2])
    assert main(WalkForwardDataModule, command(tmp_path / "cut", "--resume")) == 0
    assert same(selected(tmp_path / "whole"), selected(tmp_path / "cut"))
    before = (tmp_path / "cut" / "selected.ckpt").stat()
    assert main(WalkForwardDataModule, command(tmp_path / "cut", "--resume")) == 0  # finished: nothing is evaluated
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "cut" / "selected.ckpt").stat() == before


def test_a_fabric_training_goes_on_with_a_larger_budget(tmp_path, capsys):
    first = fabric_trainer(tmp_path, total_timesteps=64)
    first.iterate()
    first.save()
    longer = fabric_trainer(tmp_path, total_timesteps=128)
    assert longer.resume()
    assert "budget of 128 timesteps, was 64" in capsys.readouterr().out
    assert longer.iterate()["train/learning_rate"] == pytest.approx(1e-2 * 0.5)
    assert longer.learner.finished
    longer.save()
    with pytest.raises(ValueError, match="total_timesteps was 128 and is 64"):
        fabric_trainer(tmp_path, total_timesteps=64).resume()


def test_a_resume_with_other_settings_is_refused(tmp_path):
    fabric_trainer(tmp_path).save()
    with pytest.raises(ValueError, match=r"model\.gamma was 0\.995 and is 0\.9"):
        fabric_trainer(tmp_path, gamma=0.9).resume()


def test_the_checkpoints_of_both_shells_give_the_policy_back(tmp_path):
    trainer = fabric_trainer(tmp_path)
    trainer.iterate()
    trainer.save("selected.ckpt")
    policy, recipe = load_policy(load_checkpoint(tmp_path / "selected.ckpt"))
    assert same(policy.state_dict(), trainer.policy.state_dict())
    assert recipe.to_dict() == trainer.recipe.to_dict()
    module = fitted(tmp_path / "lightning")
    module.trainer.save_checkpoint(tmp_path / "lightning.ckpt", weights_only=True)
    policy, _ = load_policy(torch.load(tmp_path / "lightning.ckpt", weights_only=True))
    assert same(policy.state_dict(), weights(module))
