"""Weights to start from: read, refused, fitted to more features, and used without training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lit_ppo
from datamodules.features.compute import load_features
from datamodules.prior import FEATURE_PARITY, FEATURES
from datamodules.synthetic import SyntheticMarket
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.recipe import Recipe, build_policy
from lit_ppo.seeding import make_generator
from lit_ppo.store.prior_weights import NETWORK, PriorWeights
from lit_ppo.store.results import PRIOR_DECIDES

SHAPE = {"hidden_size": 8, "num_layers": 1, "shared_encoder": True, "policy_layers": [8], "value_layers": [8]}
SHAPE |= {"activation": "tanh", "encoder": "lstm", "positions": [-1.0, 0.0, 1.0]}


@pytest.fixture
def weights(tmp_path):
    assert set(NETWORK) <= SHAPE.keys()
    policy = MarketPolicy(
        len(FEATURES), hidden_size=8, policy_layers=(8,), value_layers=(8,), hold_bias=1.0, generator=make_generator(4)
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)  # lively: decisions that differ
    policy.set_inputs(torch.ones(len(FEATURES)), torch.tensor(FEATURE_PARITY, dtype=torch.float32), True)
    made = PriorWeights(policy.state_dict(), FEATURES, SHAPE, {"real_bars_seen": 0})
    path = tmp_path / "prior.safetensors"
    made.write(path)
    return path


def test_a_file_comes_back_as_it_was_written(weights):
    read = PriorWeights.read(weights)
    assert read.features == FEATURES
    assert read.card == {"real_bars_seen": 0}
    policy = build_policy(Recipe(start=str(weights)), {"feature_names": list(FEATURES)}, seed=1)
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, read.tensors[name], rtol=0, atol=0)


def test_further_features_enter_with_weight_zero(weights):
    names = ["mine", *FEATURES]
    plain = build_policy(Recipe(start=str(weights)), {"feature_names": list(FEATURES)}, seed=1)
    more = build_policy(Recipe(start=str(weights)), {"feature_names": names}, seed=1)
    inputs = torch.randn(5, 2, len(FEATURES), generator=make_generator(1))
    extra = torch.cat([torch.full((5, 2, 1), 9.0), inputs], -1)
    one, _ = plain.encode(inputs, plain.initial_state(2))
    two, _ = more.encode(extra, more.initial_state(2))
    torch.testing.assert_close(one.policy, two.policy)


def test_a_hurdle_of_ones_own_is_the_same_input(weights):
    entries = [{"name": name} for name in FEATURES[:-1]] + [{"name": "core_hurdle", "value": 0.004}]
    names = [spec.label for spec in load_features(entries)]
    assert names[-1] == "core_hurdle_0.004"
    policy = build_policy(Recipe(start=str(weights)), {"feature_names": names}, seed=1)
    torch.testing.assert_close(policy.state_dict(), PriorWeights.read(weights).tensors, rtol=0, atol=0)


def test_what_cannot_be_started_from_is_refused(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        Recipe(start=str(tmp_path / "none.safetensors"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        Recipe(start=str(damaged))
    with pytest.raises(ValueError, match=r"model\.hidden_size is 32"):
        Recipe(start=str(weights), hidden_size=32)
    with pytest.raises(ValueError, match=r"model\.encoder is 'gru', but .* Leave model\.encoder out, or start"):
        Recipe(start="prior", encoder="gru")
    with pytest.raises(ValueError, match=r"data\.features lacks core_bars_seen"):
        build_policy(Recipe(start=str(weights)), {"feature_names": list(FEATURES[:-2])}, 0)
    with pytest.raises(ValueError, match="total_timesteps=0"):
        Recipe(total_timesteps=0)


def test_a_walk_forward_trains_nothing_and_its_policy_goes_on(weights, tmp_path):
    bars = SyntheticMarket(num_bars=1_400, seed=2, mu=0.3).bars().frame
    run = lit_ppo.walk_forward(
        bars,
        config="zero_shot",
        model={"start": str(weights)},
        results=tmp_path / "results",
        train_size=400,
        validation_size=200,
        test_size=200,
        step_size=200,
        cache=False,
        fold_limit=2,
    )
    folds = run.folds
    assert (folds["timesteps"] == 0).all()
    assert (folds["stop_reason"] == PRIOR_DECIDES).all()
    again = lit_ppo.load_policy(run).decide(bars)
    test = run.decisions
    own = again.set_index("time").loc[test["time"], "position"].to_numpy()
    # A fold's memory is warmed up over 200 bars, and starts flat; that of `decide` began at the first bar.
    assert np.mean(own == test["position"].to_numpy()) > 0.8
