"""The fused loops over all positions, and the vector tanh, say what torch says."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import lit_ppo.ppo.advantages as advantages_module
from lit_ppo.nets.kernels.activations import Tanh
from lit_ppo.nets.policy import AllActionOutputs, SampledOutputs
from lit_ppo.ppo.advantages import counterfactual_advantage
from lit_ppo.ppo.losses import PPOLoss, ppo_loss
from lit_ppo.ppo.rollout import AllActionRollout

pytest.importorskip("numba", reason="the fused kernels need numba")

COEFFICIENTS = {"clip_coef": 0.2, "vf_coef": 0.1, "ent_coef": 0.05}


def draw(steps: int, sequences: int, positions: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """One minibatch whose ratios lie on both sides of the clip range."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers)

    grid = (steps, sequences, positions, positions)
    logits = normal(*grid)
    return {
        "logits": logits.requires_grad_(),
        "old_log_probs": functional.log_softmax(logits.detach() + 0.3 * normal(*grid), -1),
        "advantages": normal(*grid),
        "weights": torch.rand(grid, generator=numbers),
        "values": normal(*grid[:3]).requires_grad_(),
        "value_targets": normal(*grid[:3]),
        "state_weights": torch.rand(grid[:3], generator=numbers),
    }


def objects(batch: dict[str, torch.Tensor]) -> tuple[AllActionOutputs, AllActionRollout]:
    names = ("old_log_probs", "advantages", "weights", "values", "value_targets", "state_weights")
    rollout = AllActionRollout(None, *(batch[name].detach() for name in names))
    return AllActionOutputs(batch["logits"], batch["values"]), rollout


def plain_loss(batch: dict[str, torch.Tensor]) -> PPOLoss:
    outputs, rollout = objects(batch)
    return ppo_loss(SampledOutputs(outputs.log_probs, outputs.entropies, outputs.values), rollout, **COEFFICIENTS)


def fused_loss(batch: dict[str, torch.Tensor], **changes: float) -> PPOLoss:
    found = ppo_loss(*objects(batch), **{**COEFFICIENTS, **changes})
    assert "CounterfactualLoss" in found.total.grad_fn.name(), "this is to be about the fused form"
    return found


@pytest.mark.parametrize("shape", [(7, 5, 3), (3, 3, 2), (4, 3, 5), (3, 16, 21)])
def test_the_fused_loss_and_its_gradient_are_those_of_ppo_loss(shape):
    batch = draw(*shape)
    learned = (batch["logits"], batch["values"])
    plain, fused = plain_loss(batch), fused_loss(batch)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
    assert 0 < float(plain.clip_fraction) < 1, "the draw must reach both sides of the clip"
    gradients = torch.autograd.grad(3 * fused.total, learned)
    for ours, theirs in zip(gradients, torch.autograd.grad(3 * plain.total, learned), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_each_clipped_side_stops_its_gradient():
    batch = draw(1, 1, 2)
    batch["old_log_probs"] = functional.log_softmax(batch["logits"].detach(), -1) - 1.0  # every ratio is e
    batch["advantages"] = torch.ones_like(batch["advantages"])  # already raised beyond 1 + clip: no more
    raised = fused_loss(batch, ent_coef=0.0)
    (gradient,) = torch.autograd.grad(raised.total, batch["logits"])
    assert not gradient.any()
    batch["advantages"] = -batch["advantages"]  # raised though worse: must come down
    lowered = fused_loss(batch, ent_coef=0.0)
    assert float(lowered.policy) == pytest.approx(math.e, rel=1e-5)
    (gradient,) = torch.autograd.grad(lowered.total, batch["logits"])
    assert gradient.abs().sum() > 0


def test_a_logit_that_is_not_finite_makes_the_fused_loss_not_finite():
    for bad in (math.nan, math.inf):
        batch = draw(2, 3, 3)
        with torch.no_grad():
            batch["logits"][1, 2, 0, 1] = bad
        assert not torch.isfinite(fused_loss(batch).total)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.97, 1.0])
def test_the_fused_advantages_are_those_of_the_torch_loop(monkeypatch, gae_lambda):
    numbers = torch.Generator().manual_seed(1)
    rewards = torch.randn(9, 4, 3, 3, generator=numbers)
    probs = torch.rand(9, 4, 3, 3, generator=numbers).softmax(-1)
    values = torch.randn(10, 4, 3, generator=numbers)
    first = torch.rand(4, 3, generator=numbers).softmax(-1)
    fused = counterfactual_advantage(rewards, probs, values, first, 0.99, gae_lambda)
    monkeypatch.setattr(advantages_module, "fused_on_cpu", lambda *tensors: False)
    plain = counterfactual_advantage(rewards, probs, values, first, 0.99, gae_lambda)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_tanh_is_torchs_and_does_not_depend_on_where_a_number_lies():
    inputs = torch.cat([torch.linspace(-20, 20, 1001), torch.tensor([0.0, -0.0, 1e-8, 100.0, -100.0])])
    inputs.requires_grad_()
    outputs = Tanh()(inputs)
    torch.testing.assert_close(outputs, torch.tanh(inputs), rtol=0, atol=3e-7)
    for offset in (1, 3, 17):
        assert torch.equal(Tanh()(inputs[offset:]), outputs[offset:])
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(gradient, 1 - torch.tanh(inputs).square(), rtol=0, atol=1e-6)
    assert Tanh()(torch.tensor([math.nan])).isnan().all()
