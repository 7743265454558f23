"""The Fabric shell is the Lightning shell without Lightning's trainer: equal weights, equal resume."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric

from lit_ppo.checkpoints import load_checkpoint
from lit_ppo.fabric_trainer import FabricTrainer
from lit_ppo.recipe import Recipe, load_policy
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
