"""The clipped objective against hand-computed values."""

import math

import pytest
import torch

from lit_ppo.nets.policy import SampledOutputs
from lit_ppo.ppo.losses import ppo_loss
from lit_ppo.ppo.rollout import AllActionRollout, SampledRollout


def loss_of(ratio, advantage, **changes):
    log_prob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    zero = torch.zeros(1, 1)
    given = {
        "values": zero,
        "value_targets": zero,
        "entropies": zero,
        "clip_value": None,
    } | changes
    loss = ppo_loss(
        SampledOutputs(log_prob, given["entropies"], given["values"]),
        SampledRollout(None, None, zero, torch.full((1, 1), advantage), zero, given["value_targets"]),
        clip_coef=0.2,
        vf_coef=0.5,
        ent_coef=0.01,
        clip_value=given["clip_value"],
    )
    loss.total.backward()
    return loss, log_prob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "has_gradient"),
    [(1.5, 1.0, 1.2, False), (1.5, -1.0, -1.5, True), (0.5, 1.0, 0.5, True), (0.5, -1.0, -0.8, False)],
)
def test_the_four_cases_of_clipping(ratio, advantage, surrogate, has_gradient):
    loss, gradient = loss_of(ratio, advantage)
    assert loss.policy.item() == pytest.approx(-surrogate, abs=1e-6)
    assert (gradient != 0) == has_gradient
    assert loss.clip_fraction.item() == 1.0


def test_inside_the_clip_range_nothing_is_clipped():
    loss, gradient = loss_of(1.1, 2.0)
    assert loss.policy.item() == pytest.approx(-2.2, abs=1e-6)
    assert gradient == pytest.approx(-2.2, abs=1e-5)
    assert loss.clip_fraction.item() == 0.0
    assert loss.approx_kl.item() == pytest.approx(1.1 - 1 - math.log(1.1), abs=1e-6)


def test_value_clipping_counts_the_larger_error():
    changes = {"values": torch.full((1, 1), 3.0), "value_targets": torch.full((1, 1), 3.0)}
    free, _ = loss_of(1.0, 0.0, **changes)
    clipped, _ = loss_of(1.0, 0.0, clip_value=0.2, **changes)
    assert free.value.item() == 0.0
    assert clipped.value.item() == pytest.approx((0.2 - 3.0) ** 2, rel=1e-5)


def test_entropy_lowers_the_loss_and_value_error_raises_it():
    base, _ = loss_of(1.0, 0.0)
    entropic, _ = loss_of(1.0, 0.0, entropies=torch.ones(1, 1))
    wrong, _ = loss_of(1.0, 0.0, value_targets=torch.full((1, 1), 2.0))
    assert entropic.total.item() == pytest.approx(base.total.item() - 0.01)
    assert wrong.total.item() == pytest.approx(base.total.item() + 0.5 * 4.0)


def test_all_actions_with_their_probabilities_as_weights_equal_the_expected_sampled_loss():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(1, 1, 1, 3, generator=generator).log_softmax(-1)
    new = torch.randn(1, 1, 1, 3, generator=generator).log_softmax(-1)
    advantages = torch.randn(1, 1, 1, 3, generator=generator)
    zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    coefficients = {"clip_coef": 0.2, "vf_coef": 0.0, "ent_coef": 0.0}

    def policy_loss(new, old, advantages, weights):
        rollout = AllActionRollout(None, old, advantages, weights, zero, zero, one)
        return ppo_loss(SampledOutputs(new, zero, zero), rollout, **coefficients).policy

    exact = policy_loss(new, old, advantages, old.exp())
    expected = sum(
        old.exp()[0, 0, 0, a] * policy_loss(new[..., a], old[..., a], advantages[..., a], one) for a in range(3)
    )
    torch.testing.assert_close(exact, expected)
