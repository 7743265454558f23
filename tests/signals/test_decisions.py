"""One step of a policy, in torch and in ONNX, decides what the evaluation of the whole segment does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lit_ppo.nets.committee import Committee
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.scoring.evaluation import _Trader, evaluate
from lit_ppo.seeding import make_generator
from lit_ppo.signals.decisions import DecisionStep
from lit_ppo.signals.export import PolicyGraph, to_onnx
from tests.lit_ppo.markets import market_tensors

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra: pip install 'lit-ppo[export]'")

ACCOUNT = ("position", "unrealised", "holding_time")
ALONE = ("position",)
SCALER = {"mean": [0.5, -1.0, 3.0], "std": [2.0, 0.3, 1e-3], "clip": 10.0}


def lively(policy):
    """Without the hold bias and with larger heads an untrained policy trades all the time."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "head" in name:
                parameter.mul_(30.0 if "output" in name or "policy_head" in name else 1.0)
            if name.endswith("hold_bias"):
                parameter.fill_(0.1)
    return policy


def mirrored(policy):
    policy.set_inputs(torch.tensor([0.9, 1.0, 0.5]), torch.tensor([-1.0, 1.0, -1.0]), True)
    return policy


CASES = {
    "mirrored": (lambda g: mirrored(MarketPolicy(3, num_networks=2, generator=g)), ALONE),
    "mirrored, account": (lambda g: mirrored(MarketPolicy(3, num_account=2, num_networks=2, generator=g)), ACCOUNT),
    "one network, five positions": (lambda g: MarketPolicy(3, (-1, -0.5, 0, 0.5, 1), generator=g), ALONE),
    "two layers, own critic": (lambda g: MarketPolicy(3, num_layers=2, shared_encoder=False, generator=g), ALONE),
    "memoryless": (lambda g: MarketPolicy(3, encoder="memoryless", generator=g), ALONE),
    "gru": (lambda g: mirrored(MarketPolicy(3, encoder="gru", num_networks=2, num_layers=2, generator=g)), ALONE),
    "gru at the encoder": (lambda g: ObservationPolicy(4, 3, hold_column=3, encoder="gru", generator=g), ALONE),
    "encoder": (lambda g: ObservationPolicy(4, 3, hold_column=3, num_layers=2, generator=g), ALONE),
    "encoder, account": (lambda g: ObservationPolicy(6, 3, hold_column=3, generator=g), ACCOUNT),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    make, account_features = request.param
    return lively(make(make_generator(0))), account_features


def run(decide, policy, market, account_features):
    """Trade through `decide(features, held, account, state) -> (votes, action, state)`; returns votes and actions."""
    trader = _Trader(policy, market, account_features)
    state, votes, actions = DecisionStep(policy).initial_state(), [], []
    for row, features in enumerate(market.features):
        account = trader.account
        votes_now, action, state = decide(features, account.held, account.features(account_features), state)
        votes.append(votes_now)
        if row >= market.warmup:
            actions.append(int(trader.take(action)))
    return torch.stack(votes), np.array(actions)


def by_step(policy):
    step = DecisionStep(policy)

    def decide(features, held, account, state):
        with torch.no_grad():
            decision = step(features, held, account, *state)
        return decision.votes, decision.action, decision.memory

    return decide


def test_a_step_at_a_time_decides_what_the_whole_segment_does(case):
    policy, account_features = case
    market = market_tensors(num_bars=400, warmup=50)
    found = evaluate(policy, market, account_features)
    votes, actions = run(by_step(policy), policy, market, account_features)
    whole = found.actions
    assert np.count_nonzero(np.diff(whole)) >= 10, "the policy must trade for this test to mean anything"
    assert np.array_equal(actions, whole)
    probabilities = (votes[market.warmup :] / Committee(policy).size).softmax(-1).numpy()
    np.testing.assert_allclose(found.probability, probabilities[np.arange(len(whole)), whole], atol=1e-3)
    closed = evaluate(policy, market, account_features, close_at_end=True).probability
    np.testing.assert_allclose(closed[-1], probabilities[-1, policy.flat_index], atol=1e-3)


def test_onnx_gives_the_same_actions_and_logits_from_raw_features(case):
    policy, account_features = case
    graph = PolicyGraph(DecisionStep(policy), SCALER).eval()
    session = onnxruntime.InferenceSession(
        to_onnx(graph, len(account_features) - 1), providers=["CPUExecutionProvider"]
    )
    raw = market_tensors(num_bars=400, warmup=40)
    mean, std = (torch.tensor(SCALER[name], dtype=torch.float64) for name in ("mean", "std"))
    raw = dataclasses.replace(raw, features=(raw.features.double() * std + mean).float())
    scaled = ((raw.features.double() - mean) / std).clamp(-10, 10).float()
    market = dataclasses.replace(raw, features=scaled)
    rows, memory = iter(raw.features), graph.step.initial_state()._asdict()

    def by_onnx(features, held, account, state):
        names = ("features", "held", *memory, "account")
        values = (next(rows), held, *state, account)
        inputs = {name: value.numpy() for name, value in zip(names, values, strict=True) if value is not None}
        found = {name: torch.from_numpy(x) for name, x in zip(graph.outputs, session.run(None, inputs), strict=True)}
        assert found["position"] == policy.positions[found["action"]].float()
        torch.testing.assert_close(found["probabilities"].sum(), torch.tensor(1.0))
        return found["votes"], found["action"], tuple(found[f"next_{name}"] for name in memory)

    votes, actions = run(by_onnx, policy, market, account_features)
    expected, _ = run(by_step(policy), policy, market, account_features)
    torch.testing.assert_close(votes, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(actions, evaluate(policy, market, account_features).actions)


def test_votes_of_a_step_are_the_sum_that_evaluation_decides_by():
    policy = lively(mirrored(MarketPolicy(3, num_networks=2, generator=make_generator(6))))
    features, held = torch.randn(3, generator=make_generator(1)), torch.tensor([2])
    step = DecisionStep(policy)
    with torch.no_grad():
        decision = step(features, held, None, *step.initial_state())
        encoded, _ = policy.encode(
            torch.stack([features, features * policy.mirror_sign] * 2)[None], policy.initial_state(4)
        )
        table = Committee(policy).votes(encoded.policy[0])
    torch.testing.assert_close(decision.votes, table[2])
    torch.testing.assert_close(decision.probabilities, (table[2] / 4).softmax(-1))
