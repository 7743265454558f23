"""The two policies: shapes, hold bias, networks side by side, refusals."""

import pytest
import torch

from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.seeding import make_generator


def market_policy(seed=0, **options):
    return MarketPolicy(3, generator=make_generator(seed, purpose="weights"), **options)


def test_at_the_start_every_held_position_is_kept_with_the_hold_bias():
    policy = market_policy(hold_bias=3.0)
    features = torch.randn(5, 2, 3, generator=make_generator(1))
    encoded, _ = policy.encode(features, policy.initial_state(2))
    logits = policy.logits(encoded.policy)  # [T, S, P, P]
    assert logits.shape == (5, 2, 3, 3)
    assert torch.equal(logits.argmax(-1), torch.arange(3).expand(5, 2, 3))
    keep = logits.softmax(-1).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(keep, torch.full_like(keep, 20.0855 / 22.0855), rtol=0, atol=0.02)
    without = market_policy(hold_bias=0.0)
    encoded, _ = without.encode(features, without.initial_state(2))
    assert without.logits(encoded.policy).softmax(-1).max() < 0.4


def test_one_row_of_all_positions_is_what_the_held_one_gets():
    policy = market_policy(num_account=2)
    hidden = torch.randn(6, 4, 16, generator=make_generator(2))
    held = torch.tensor([0, 1, 2, 1]).expand(6, 4)
    account = torch.randn(6, 4, 2, generator=make_generator(3))
    assert policy.logits(hidden, held, account).shape == (6, 4, 3)
    plain = market_policy()
    rows = plain.logits(hidden).gather(-2, held[..., None, None].expand(6, 4, 1, 3)).squeeze(-2)
    torch.testing.assert_close(plain.logits(hidden, held), rows)
    torch.testing.assert_close(
        plain.values(hidden, held), plain.values(hidden).gather(-1, held.unsqueeze(-1)).squeeze(-1)
    )


def test_networks_side_by_side_are_the_networks_alone():
    policy = market_policy(num_networks=3, shared_encoder=False)
    features = torch.randn(7, 2, 3, generator=make_generator(4))
    encoded, _ = policy.encode(features.repeat(1, 3, 1), policy.initial_state(6))
    logits, values = policy.logits(encoded.policy), policy.values(encoded.critic)
    for index, network in enumerate(policy.networks):
        alone, _ = network.encoder(features, network.encoder.initial_state(2))
        own = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(logits[:, own], network.logits(alone.policy))
        torch.testing.assert_close(values[:, own], network.values(alone.critic))
    assert not torch.allclose(logits[:, :2], logits[:, 2:4])


def test_weights_come_from_the_given_generator_alone():
    torch.manual_seed(1)
    first = market_policy(seed=5)
    torch.manual_seed(2)
    second = market_policy(seed=5)
    third = market_policy(seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.networks[0].encoder.policy.weight_ih[0], third.networks[0].encoder.policy.weight_ih[0])
    state = torch.get_rng_state()
    ObservationPolicy(4, 2, generator=make_generator(0))
    assert torch.equal(state, torch.get_rng_state())


def test_without_memory_the_past_does_not_matter():
    features = torch.randn(9, 1, 3, generator=make_generator(6))
    other_past = features.clone()
    other_past[:8] = 0.0
    for encoder, equal in (("memoryless", True), ("lstm", False), ("gru", False)):
        policy = market_policy(encoder=encoder)
        last = [policy.encode(x, policy.initial_state(1))[0].policy[-1] for x in (features, other_past)]
        assert torch.equal(*last) == equal


def test_chrono_units_remember_for_spread_times():
    policy = market_policy(init="chrono")
    lstm = policy.networks[0].encoder.policy
    forget = lstm.bias[0][16:32].sigmoid()
    memory = 1 / (1 - forget)  # bars
    torch.testing.assert_close(memory[[0, -1]], torch.tensor([1.5, 200.0]), rtol=1e-3, atol=0)


def test_the_hold_bias_of_an_observation_policy_follows_the_held_exposure():
    policy = ObservationPolicy(4, 3, hold_column=3, generator=make_generator(7))
    observations = torch.zeros(3, 4)
    observations[:, 3] = torch.tensor([-1.0, 0.0, 1.0])
    actions, *_ = policy.act(observations, policy.initial_state(3))
    assert actions.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": (0.0, 1.0, 0.5)}, "must rise"),
        ({"positions": (1.0, 2.0)}, "contain 0"),
        ({"hidden_size": 0}, "hidden_size >= 1"),
        ({"activation": "swish"}, "one of"),
        ({"policy_layers": ()}, "at least one hidden layer"),
        ({"num_networks": 0}, "at least one network"),
    ],
)
def test_unusable_policies_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        market_policy(**options)


def test_an_action_space_must_be_discrete_or_continuous():
    with pytest.raises(ValueError, match="either num_actions or action_size"):
        ObservationPolicy(4, 2, action_size=1)
    with pytest.raises(ValueError, match="as many actions"):
        ObservationPolicy(4, 2, hold_column=3)
