"""Weights to start from: read, refused, fitted to more features, and used without training."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save

import lit_ppo
from datamodules.features.compute import load_features
from datamodules.prior import FEATURE_PARITY, FEATURES
from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main
from lit_ppo.module import LitPPO
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.recipe import Recipe, build_policy
from lit_ppo.seeding import make_generator
from lit_ppo.store.checkpoints import SELECTED
from lit_ppo.store.prior_weights import NETWORK, PriorWeights
from lit_ppo.store.results import PRIOR_DECIDES, load_run

SHAPE = {"hidden_size": 8, "num_layers": 1, "shared_encoder": True, "policy_layers": [8], "value_layers": [8]}
SHAPE |= {"activation": "tanh", "encoder": "lstm", "positions": [-1.0, 0.0, 1.0]}


@pytest.fixture
def weights(tmp_path):
    return lively_weights(tmp_path / "prior.safetensors", seed=4)


def lively_weights(path, seed):
    assert set(NETWORK) <= SHAPE.keys()
    start = make_generator(seed)
    policy = MarketPolicy(
        len(FEATURES), hidden_size=8, policy_layers=(8,), value_layers=(8,), hold_bias=1.0, generator=start
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)  # lively: decisions that differ
    policy.set_inputs(torch.ones(len(FEATURES)), torch.tensor(FEATURE_PARITY, dtype=torch.float32), True)
    PriorWeights(policy.state_dict(), FEATURES, SHAPE, {"real_bars_seen": 0}).write(path)
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


HOSTILE = {
    "features is text": ({"features": "core"}, "features must be a list"),
    "features are numbers": ({"features": [1]}, r"features\[0\] must be text"),
    "network is a list": ({"network": []}, "network must be an object"),
    "no card": ({"card": None}, "card must be an object"),
    "a width of text": ({"network": SHAPE | {"hidden_size": "8"}}, "network.hidden_size must be a whole number"),
    "a width that fills memory": ({"network": SHAPE | {"hidden_size": 10**9}}, "network.hidden_size must be"),
    "an activation of its own": ({"network": SHAPE | {"activation": "os.system"}}, "activation"),
    "another setting": ({"network": SHAPE | {"gamma": 2.0, "total_timesteps": 10**9}}, "gamma, total_timesteps"),
    "a method": ({"network": SHAPE | {"to_dict": 1}}, "to_dict"),
    "another width": ({"network": SHAPE | {"hidden_size": 9}}, "not of its network"),
    "other positions": ({"network": SHAPE | {"positions": [-9.0, 0.0, 9.0]}}, "speaks of positions"),
    "fewer features": ({"features": list(FEATURES[:3])}, "for other than 3 features"),
    "too deep": ({"card": json.loads("[" * 40 + "]" * 40)}, "levels deep"),
}
SPOILT = {
    "not a number": (lambda x: torch.full_like(x, torch.nan), "finite numbers"),
    "infinite": (lambda x: torch.full_like(x, torch.inf), "finite numbers"),
    "whole numbers": (lambda x: x.to(torch.int64), "finite numbers"),
    "flat": (lambda x: x.flatten(), "for other than|not of its network"),
}


def start_from(path):
    return build_policy(Recipe(start=str(path)), {"feature_names": list(FEATURES)}, seed=1)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_description_that_cannot_be_meant_is_refused(weights, tmp_path, name):
    change, message = HOSTILE[name]
    described = {"features": list(FEATURES), "network": SHAPE, "card": {}} | change
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(save(PriorWeights.read(weights).tensors, {"lit_ppo_prior": json.dumps(described)}))
    with pytest.raises(ValueError, match=message):
        start_from(path)


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_tensors_are_refused(weights, tmp_path, name):
    spoil, message = SPOILT[name]
    read = PriorWeights.read(weights)
    key = next(key for key in read.tensors if key.endswith("weight_ih.0"))
    path = tmp_path / "hostile.safetensors"
    dataclasses.replace(read, tensors=read.tensors | {key: spoil(read.tensors[key])}).write(path)
    with pytest.raises(ValueError, match=message):
        start_from(path)


def test_a_tensor_too_many_or_too_few_is_refused(weights, tmp_path):
    read = PriorWeights.read(weights)
    for tensors in ({}, read.tensors | {"more": torch.zeros(1)}):
        path = tmp_path / "hostile.safetensors"
        dataclasses.replace(read, tensors=tensors).write(path)
        with pytest.raises(ValueError, match="not of its network"):
            start_from(path)


@pytest.mark.filterwarnings("ignore:.*new decisions.*are on bars no later")
def test_a_walk_forward_trains_nothing_and_its_policy_goes_on_without_the_file_it_began_from(weights, tmp_path, capsys):
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

    began_with, tensors = weights.read_bytes(), PriorWeights.read(weights).tensors
    weights.unlink()  # a checkpoint is whole without what it began from
    pd.testing.assert_frame_equal(lit_ppo.load_policy(run).decide(bars), again)
    loaded = LitPPO.load_from_checkpoint(run.path / "fold_001" / SELECTED)
    torch.testing.assert_close(loaded.policy.state_dict(), tensors, rtol=0, atol=0)
    files = ["--data", str(next((tmp_path / "results/bars").iterdir())), "--output", str(tmp_path / "signals.csv")]
    assert main(["predict", "--ckpt", str(run.path), *files]) == 0
    resume = ["walk-forward", "--config", str(run.path / "config.yaml"), "--results", str(tmp_path / "results")]
    resume += ["--resume", "--data.fold_limit", "3"]
    capsys.readouterr()
    assert main(resume) == 2
    assert "To resume what began from this file, put it back (run.json has its sha256)" in capsys.readouterr().err
    lively_weights(weights, seed=5)
    assert main(resume) == 2
    assert "the sha256 of the weights at model.start was" in capsys.readouterr().err
    weights.write_bytes(began_with)
    assert main(resume) == 0
    assert [fold.status for fold in load_run(run.path).folds] == ["done"] * 3


def test_settings_of_another_network_than_the_weights_are_refused_even_where_they_are_complete(weights):
    whole = {**Recipe(start=str(weights)).to_dict(), "hidden_size": 32}
    with pytest.raises(ValueError, match=r"model\.hidden_size is 32"):
        build_policy(Recipe(**whole), {"feature_names": list(FEATURES)}, 0)
