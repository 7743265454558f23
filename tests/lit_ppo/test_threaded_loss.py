"""Sequences shared out over threads give the loss and the gradient of all of them together."""

from __future__ import annotations

import pytest
import torch

from datamodules.prior import Prior, PriorStream
from lit_ppo.nets.policy import ObservationPolicy
from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.threaded_loss import count_pieces, loss_in_threads, share_threads
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, experience, policy_inputs
from tests.lit_ppo.markets import market_tensors

RECIPE = Recipe(
    estimator="sampled",
    account_at="encoder",
    num_envs=16,
    num_steps=8,
    num_minibatches=2,
    update_epochs=2,
    total_timesteps=512,
    hidden_size=32,
    episode_bars=40,
    clip_value=0.2,
)


PRETRAINING = Recipe(
    num_envs=16,
    num_steps=24,
    num_minibatches=2,
    num_networks=1,
    hidden_size=16,
    total_timesteps=3 * 384,
    screen_features=False,
    mirror=True,
    hidden_dropout=0.0,
    pull_to_start=0.0,
    max_passes=None,
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def learner(recipe: Recipe = RECIPE) -> Learner:
    markets = PriorStream(Prior(bars=(400, 600)), 1, 16, 2, (16,), (1.0,))
    source = experience(recipe, market_tensors(num_bars=300, seed=3) if recipe is RECIPE else markets, 7)
    policy = build_policy(recipe, policy_inputs(source), 7)
    found = Learner(policy, build_optimizer(policy, recipe), recipe, seed=7)
    found.attach(source)
    return found


@pytest.mark.parametrize(("threads", "sequences", "pieces"), [(2, 8, 2), (2, 7, 1), (8, 16, 4), (3, 12, 3), (1, 64, 1)])
def test_pieces_are_equal_no_more_than_threads_and_not_thin(threads, sequences, pieces, two_threads):
    torch.set_num_threads(threads)
    assert count_pieces(sequences) == pieces


@pytest.mark.parametrize(("recipe", "pieces"), [(RECIPE, 2), (RECIPE, 4), (PRETRAINING, 2)])
def test_loss_and_gradient_are_those_of_the_whole_minibatch(recipe, pieces, two_threads):
    own = learner(recipe)
    minibatch = next(own.minibatches(own.normalise(own.collect())))
    parameters = list(own.policy.parameters())
    whole, shared = own.loss(minibatch), own.loss(minibatch, pieces)
    for ours, theirs in zip(shared, whole, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-7)
    gradients = torch.autograd.grad(2 * shared.total, parameters)
    for ours, theirs in zip(gradients, torch.autograd.grad(2 * whole.total, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("recipe", [RECIPE, PRETRAINING])
def test_training_on_two_threads_is_that_on_one_but_for_rounding_and_repeats_bit_for_bit(recipe, two_threads):
    def weights(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        own = learner(recipe)
        while not own.finished:
            own.iterate()
        assert torch.get_num_threads() == threads
        return torch.nn.utils.parameters_to_vector(own.policy.parameters()).detach()

    two = weights(2)
    assert torch.equal(two, weights(2))
    torch.testing.assert_close(two, weights(1), rtol=0, atol=2e-3)


def test_a_rollout_of_a_stream_is_the_same_on_two_threads(two_threads):
    own = learner(PRETRAINING)
    two = own.collect()
    torch.set_num_threads(1)
    one = own.collect()
    assert torch.equal(one.seen.observations, two.seen.observations)
    for name in ("log_probs", "advantages", "weights", "values", "value_targets", "state_weights"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.seen.initial_state, two.seen.initial_state, rtol=1e-5, atol=1e-6)


def test_an_error_of_any_thread_is_raised_here(two_threads):
    own = learner()
    minibatch = next(own.minibatches(own.normalise(own.collect())))
    seen = []

    def broken(part):
        seen.append(part)
        if torch.equal(part.actions, minibatch.actions[:, 4:]):
            raise FloatingPointError("of the second piece")
        return own.loss(part)

    with share_threads(2), pytest.raises(FloatingPointError, match="of the second piece"):
        loss_in_threads(broken, minibatch, 2, list(own.policy.parameters()))
    assert len(seen) == 2
    assert torch.get_num_threads() == 2


def test_small_networks_and_autocast_stay_on_one_thread(two_threads):
    own = learner()
    rollout = own.normalise(own.collect())
    assert isinstance(own.policy, ObservationPolicy)
    assert own._pieces(rollout) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own._pieces(rollout) == 1
    torch.set_num_threads(1)  # what `suitable_threads` gives a small network
    assert own._pieces(rollout) == 1
