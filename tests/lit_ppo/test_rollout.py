"""Rollouts: the policy that collected them gives every action the probability that was stored."""

import pytest
import torch
from torch.nn import functional

from lit_ppo.envs.market import MarketEnv
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.ppo.rollout import StepwiseCollector, collect_counterfactual, collect_sampled, draw_stretches
from lit_ppo.seeding import make_generator
from tests.lit_ppo.markets import market_tensors

ACCOUNT = ("position", "unrealised", "holding_time")


def stretches_of(policy, market, num_steps=32, burn_in=8, mirror=True, dropout=0.5, seed=0):
    return draw_stretches(policy, market, 4, num_steps, burn_in, mirror, dropout, make_generator(seed))


def assert_every_ratio_is_one(policy, rollout):
    outputs = rollout.evaluate(policy)
    torch.testing.assert_close(outputs.log_probs, rollout.log_probs, rtol=0, atol=2e-6)
    torch.testing.assert_close(outputs.values, rollout.values, rtol=0, atol=2e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("num_networks", [1, 2])
@pytest.mark.parametrize("shared_encoder", [True, False])
def test_before_the_first_update_every_ratio_is_one_at_the_heads(num_layers, num_networks, shared_encoder):
    market = market_tensors()
    options = {"num_layers": num_layers, "num_networks": num_networks, "shared_encoder": shared_encoder}
    policy = MarketPolicy(3, generator=make_generator(0), **options)
    stretches = stretches_of(policy, market)
    assert_every_ratio_is_one(policy, collect_counterfactual(policy, market, stretches, 0.99, 0.95))
    rollout = collect_sampled(policy, market, stretches, ("position",), 0.99, 0.95, make_generator(1))
    assert_every_ratio_is_one(policy, rollout)
    assert_every_ratio_is_one(policy, rollout.select(torch.tensor([0, 2])) if num_networks == 1 else rollout)
    seeing = MarketPolicy(3, num_account=2, generator=make_generator(0), **options)
    assert_every_ratio_is_one(
        seeing, collect_sampled(seeing, market, stretches_of(seeing, market), ACCOUNT, 0.99, 0.95, make_generator(1))
    )


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("shared_encoder", [True, False])
def test_before_the_first_update_every_ratio_is_one_at_the_encoder(num_layers, shared_encoder):
    env = MarketEnv(  # windows of 20 bars: several resets inside one rollout
        market_tensors(), num_envs=4, episode_bars=20, account_features=ACCOUNT, generator=make_generator(0)
    )
    policy = ObservationPolicy(
        env.observation_size,
        env.num_actions,
        hold_column=env.hold_column,
        num_layers=num_layers,
        shared_encoder=shared_encoder,
        generator=make_generator(1),
    )
    collector = StepwiseCollector(env, policy)
    for _ in range(2):  # the second rollout starts with a carried state
        rollout = collector.collect(64, 0.99, 0.95, make_generator(2))
        assert rollout.seen.episode_starts.any()
        assert_every_ratio_is_one(policy, rollout)
    assert rollout.seen.initial_state.policy.hidden.abs().max() > 0


def test_a_shifted_reset_mask_is_noticed():
    env = MarketEnv(market_tensors(), num_envs=4, episode_bars=20, generator=make_generator(0))
    policy = ObservationPolicy(env.observation_size, 3, hold_column=env.hold_column, generator=make_generator(1))
    rollout = StepwiseCollector(env, policy).collect(64, 0.99, 0.95, make_generator(2))
    shifted = rollout.seen._replace(episode_starts=rollout.seen.episode_starts.roll(1, 0))
    assert (policy.sampled(shifted, rollout.actions).log_probs - rollout.log_probs).abs().max() > 1e-5


def test_one_long_rollout_is_two_short_ones():
    def collector():
        env = MarketEnv(market_tensors(), num_envs=3, episode_bars=25, generator=make_generator(0))
        policy = ObservationPolicy(env.observation_size, 3, hold_column=env.hold_column, generator=make_generator(1))
        return StepwiseCollector(env, policy)

    long = collector().collect(48, 0.99, 0.95, make_generator(2))
    short, generator = collector(), make_generator(2)
    halves = [short.collect(24, 0.99, 0.95, generator) for _ in range(2)]
    for name in ("observations", "episode_starts"):
        joined = torch.cat([getattr(half.seen, name) for half in halves])
        assert torch.equal(joined, getattr(long.seen, name)), name
    assert torch.equal(torch.cat([half.actions for half in halves]), long.actions)
    for name in ("log_probs", "values"):  # computed for all steps of a rollout at once: equal but for rounding
        torch.testing.assert_close(torch.cat([getattr(half, name) for half in halves]), getattr(long, name))


@pytest.mark.parametrize("shared_encoder", [True, False])
def test_value_targets_are_those_of_a_critic_that_goes_step_by_step(shared_encoder):
    def collector():
        env = MarketEnv(market_tensors(), num_envs=3, episode_bars=7, generator=make_generator(0))
        policy = ObservationPolicy(
            env.observation_size,
            3,
            hold_column=env.hold_column,
            shared_encoder=shared_encoder,
            generator=make_generator(1),
        )
        return StepwiseCollector(env, policy)

    fast, slow = collector(), collector()
    generator, again = make_generator(2), make_generator(2)
    state = slow.policy.initial_state(3)
    observations, starts = slow.env.reset(), torch.ones(3, dtype=torch.bool)
    for _ in range(2):  # the second rollout starts with a carried state
        rollout = fast.collect(20, 0.99, 0.0, generator)
        for t in range(20):
            state = state.reset_where(starts)
            actions, _, _, state = slow.policy.act(observations, state, again)
            critic = state.critic if state.critic is not None else state.policy
            if state.critic is not None:
                hidden, critic = slow.policy.run_critic(observations.unsqueeze(0), critic)
                state = state._replace(critic=critic)
                torch.testing.assert_close(rollout.values[t], slow.policy.values(hidden[0]))
            transition = slow.env.step(actions)
            assert torch.equal(rollout.seen.observations[t], observations)
            following = slow.policy.values(
                slow.policy.run_critic(transition.final_observations.unsqueeze(0), critic)[0][0]
            )
            one_step = transition.rewards + 0.99 * torch.where(transition.terminated, 0.0, following)
            torch.testing.assert_close(rollout.value_targets[t], one_step)  # gae_lambda 0
            observations, starts = transition.observations, transition.terminated | transition.truncated


def test_a_collector_goes_on_from_its_state_as_if_never_interrupted():
    def collector():
        env = MarketEnv(market_tensors(), num_envs=3, episode_bars=25, generator=make_generator(0))
        policy = ObservationPolicy(env.observation_size, 3, hold_column=env.hold_column, generator=make_generator(1))
        return StepwiseCollector(env, policy)

    first, generator = collector(), make_generator(2)
    first.collect(24, 0.99, 0.95, generator)
    state, drawn = first.state_dict(), generator.get_state()
    expected = first.collect(24, 0.99, 0.95, generator)
    second = collector()
    second.load_state_dict(state)
    generator.set_state(drawn)
    resumed = second.collect(24, 0.99, 0.95, generator)
    assert torch.equal(resumed.seen.observations, expected.seen.observations)
    assert torch.equal(resumed.log_probs, expected.log_probs)


def test_a_stretch_is_consecutive_bars_and_its_memory_starts_before_it():
    market = market_tensors()
    policy = MarketPolicy(3, generator=make_generator(0))
    stretches = stretches_of(policy, market, mirror=False, dropout=0.0)
    assert stretches.features.shape == (8 + 32 + 1, 4, 3)
    assert torch.equal(stretches.rows.diff(dim=0), torch.ones(31, 4, dtype=torch.int64))
    assert torch.equal(stretches.features[8:-1], market.features[stretches.rows])
    rollout = collect_counterfactual(policy, market, stretches, 0.99, 0.95)
    one = stretches.rows[0, 1]
    _, state = policy.encode(market.features[one - 8 : one].unsqueeze(1), policy.initial_state(1))
    torch.testing.assert_close(rollout.seen.initial_state.policy.hidden[:, 1], state.policy.hidden[:, 0])


def test_a_mirrored_stretch_swaps_long_and_short():
    market = market_tensors()
    policy = MarketPolicy(3, generator=make_generator(0))
    policy.set_inputs(torch.ones(3), torch.tensor([-1.0, 1.0, -1.0]), True)
    plain = stretches_of(policy, market, mirror=False, dropout=0.0)
    mirrored = plain._replace(mirror=torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    rewards = [collect_counterfactual(policy, market, s, 0.0, 0.0).value_targets for s in (plain, mirrored)]
    assert not torch.equal(rewards[0][:, 0], rewards[1][:, 0])
    assert torch.equal(rewards[0][:, 1], rewards[1][:, 1])
    drawn = stretches_of(policy, market, mirror=True, dropout=0.0)
    turned = drawn.mirror < 0
    assert 0 < turned.sum() < 4
    original = market.features[drawn.rows]
    expected = torch.where(turned[None, :, None], original * policy.mirror_sign, original)
    assert torch.equal(drawn.features[8:-1], expected)


def test_dropout_hides_the_same_outputs_for_a_whole_sequence():
    policy = MarketPolicy(3, num_networks=2, generator=make_generator(0))
    mask = stretches_of(policy, market_tensors(), dropout=0.5).hidden_mask
    assert mask.shape == (1, 8, 16)
    assert set(mask.unique().tolist()) == {0.0, 2.0}


def test_a_market_shorter_than_one_stretch_is_refused():
    policy = MarketPolicy(3, generator=make_generator(0))
    with pytest.raises(ValueError, match=r"41 bars, but the train segment has 30"):
        stretches_of(policy, market_tensors(num_bars=30))


def test_sampled_and_counterfactual_gradients_agree_in_expectation():
    """The sampled policy gradient, averaged over many draws, is the counterfactual one under its occupancy."""
    market = market_tensors(num_bars=60)
    policy = MarketPolicy(3, hidden_size=4, policy_layers=(4,), value_layers=(4,), generator=make_generator(0))
    stretches = stretches_of(policy, market, num_steps=8, burn_in=4, mirror=False, dropout=0.0)

    def gradient(log_probs, weights):
        policy.zero_grad()
        (weights * log_probs).sum().backward()
        return torch.cat([p.grad.flatten() for p in policy.networks[0].policy_head.parameters()])

    exact = collect_counterfactual(policy, market, stretches, 0.9, 0.9)
    # undo the uniform half of d': the pure policy gradient weighs with the occupancy alone
    occupancy = 2 * exact.state_weights - 1 / 3
    probs = exact.log_probs.exp()
    weights = occupancy.unsqueeze(-1) * probs * exact.advantages
    expected = gradient(exact.evaluate(policy).log_probs, weights)
    copies = 6000  # of each stretch, each traded by its own account
    many = stretches._replace(features=stretches.features.repeat(1, copies, 1), rows=stretches.rows.repeat(1, copies))
    rollout = collect_sampled(policy, market, many, ("position",), 0.9, 0.9, make_generator(3))
    sampled = gradient(rollout.evaluate(policy).log_probs, rollout.advantages / copies)
    assert functional.cosine_similarity(sampled, expected, dim=0) > 0.97
    assert 0.9 < sampled.norm() / expected.norm() < 1.1
