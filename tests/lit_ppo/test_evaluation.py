"""Evaluation: the whole segment at once equals bar by bar, changes nothing and pays its costs."""

import dataclasses

import numpy as np
import pytest
import torch

from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.scoring.evaluation import _votes, evaluate, evaluate_bar_by_bar
from lit_ppo.seeding import make_generator
from tests.lit_ppo.markets import market_tensors

ACCOUNT = ("position", "unrealised", "holding_time")


def decision_table(policy, market):
    """[D, P] the position taken next on each decision bar, for every held position."""
    with torch.no_grad():
        return _votes(policy, market).argmax(-1)


def lively(policy):
    """Without the hold bias and with larger heads an untrained policy trades all the time."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "head" in name:
                parameter.mul_(30.0 if "output" in name or "policy_head" in name else 1.0)
            if name.endswith("hold_bias"):
                parameter.zero_()
    return policy


def symmetric(policy):
    policy.set_inputs(torch.ones(3), torch.tensor([-1.0, 1.0, -1.0]), True)
    return policy


@pytest.mark.parametrize(
    "policy",
    [
        symmetric(lively(MarketPolicy(3, num_networks=2, generator=make_generator(5)))),
        symmetric(lively(MarketPolicy(3, num_account=2, num_networks=2, generator=make_generator(6)))),
        lively(MarketPolicy(3, num_networks=3, generator=make_generator(0))),
        lively(MarketPolicy(3, num_layers=2, shared_encoder=False, generator=make_generator(1))),
        lively(MarketPolicy(3, num_account=2, num_networks=2, generator=make_generator(2))),
        lively(ObservationPolicy(6, 3, hold_column=3, generator=make_generator(3))),
    ],
    ids=["mirrored", "mirrored-account", "networks", "layers", "account", "encoder"],
)
def test_one_whole_sequence_call_equals_bar_by_bar_stepping(policy):
    market = market_tensors(num_bars=400, warmup=50)
    features = ACCOUNT if getattr(policy, "num_account", 2) else ("position",)
    fast = evaluate(policy, market, features)
    slow = evaluate_bar_by_bar(policy, market, features)
    assert len(set(fast.actions.tolist())) == 3, "the policy must trade for this test to mean anything"
    assert np.array_equal(fast.actions, slow.actions)
    assert np.array_equal(fast.ledger.equity, slow.ledger.equity)
    assert fast.score == slow.score


def test_a_mirrored_policy_does_the_opposite_in_the_opposite_market():
    policy = symmetric(lively(MarketPolicy(3, num_networks=2, generator=make_generator(5))))
    market = market_tensors(num_bars=300)
    upside_down = dataclasses.replace(market, features=market.features * policy.mirror_sign)
    assert np.array_equal(evaluate(policy, market).positions, -evaluate(policy, upside_down).positions)


def test_a_long_segment_is_encoded_in_chunks_without_a_seam(monkeypatch):
    policy = lively(MarketPolicy(3, generator=make_generator(0)))
    market = market_tensors(num_bars=500, warmup=20)
    whole = decision_table(policy, market)
    monkeypatch.setattr("lit_ppo.scoring.evaluation.CHUNK", 64)
    assert torch.equal(decision_table(policy, market), whole)


def test_warm_up_bars_see_no_decision_but_are_remembered():
    policy = lively(MarketPolicy(3, generator=make_generator(4)))
    warm, cold = market_tensors(num_bars=300, warmup=100), market_tensors(num_bars=300)
    assert len(evaluate(policy, warm).actions) == 200
    assert torch.equal(decision_table(policy, warm), decision_table(policy, cold)[100:])


def test_the_future_does_not_reach_a_decision():
    policy = lively(MarketPolicy(3, generator=make_generator(0)))
    market = market_tensors(num_bars=200)
    before = decision_table(policy, market)
    market.features[120:] = torch.nan
    assert torch.equal(decision_table(policy, market)[:120], before[:120])


def test_evaluation_draws_nothing_and_leaves_the_policy_alone():
    policy = MarketPolicy(3, generator=make_generator(0))
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(policy, market_tensors())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_score_is_the_mean_log_return_in_train_standard_deviations():
    policy = lively(MarketPolicy(3, generator=make_generator(0)))
    market = market_tensors()
    result = evaluate(policy, market)
    expected = np.log1p(result.ledger.net_return).mean() / market.reward_scale
    assert result.score == pytest.approx(expected, rel=1e-5)
    assert result.metrics["return_pct"] == pytest.approx(100 * (result.ledger.equity[-1] - 1))


def test_closing_at_the_end_is_paid_for():
    policy = lively(MarketPolicy(3, generator=make_generator(0)))
    market = market_tensors()
    closed = evaluate(policy, market, close_at_end=True)
    assert closed.positions[-1] == 0.0
