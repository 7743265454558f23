"""The market as a registered gymnasium environment."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from lit_ppo.envs.gymnasium_market import MARKET_ID
from lit_ppo.envs.gymnasium_vector import GymnasiumVectorEnv, make_environments
from lit_ppo.envs.market import MarketEnv
from lit_ppo.market.tensors import MarketTensors

ALL_ACCOUNT = ("position", "unrealised", "holding_time")


@pytest.fixture(scope="module")
def market() -> MarketTensors:
    rng = np.random.default_rng(0)
    price = 100 * np.exp(np.cumsum(1e-3 * rng.standard_t(4, 201)))
    price_return = torch.tensor(price[1:] / price[:-1] - 1)
    features = torch.tensor(rng.normal(size=(200, 3)), dtype=torch.float32)
    features[:, 2] = 1.0  # a constant feature
    return MarketTensors(
        features=features,
        price_return=price_return,
        turnover_cost=torch.full((200,), 1e-4, dtype=torch.float64),
        carry_long=torch.tensor(1e-5 * rng.normal(size=200)),
        carry_short=torch.tensor(1e-5 * rng.normal(size=200)),
        fill_price=torch.tensor(price[:-1]),
        time=torch.arange(200),
        first_bar=0,
        warmup=20,
        reward_scale=float(price_return.std()),
        bars_per_year=24_000.0,
        feature_names=("a", "b", "c"),
        feature_parity=(0, 0, 0),
    )


@pytest.mark.parametrize("account_features", [("position",), ALL_ACCOUNT])
def test_the_environment_passes_gymnasiums_checker_without_a_warning(market, account_features):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            MARKET_ID, market=market, episode_bars=30, random_position=True, account_features=account_features
        )
        check_env(env.unwrapped)


def test_gymnasium_market_equals_the_batched_one(market):
    env = gymnasium.make(MARKET_ID, market=market, account_features=ALL_ACCOUNT)
    batched = MarketEnv(market, generator=torch.Generator(), random_start=False, account_features=ALL_ACCOUNT)
    observation, info = env.reset(seed=0, options={"row": 20})
    assert info["row"] == 20
    np.testing.assert_array_equal(observation, batched.reset()[0].numpy())
    rng = np.random.default_rng(1)
    truncated = False
    while not truncated:
        action = int(rng.integers(3))
        observation, reward, terminated, truncated, info = env.step(action)
        step = batched.step(torch.tensor([action]))
        np.testing.assert_array_equal(observation, step.final_observations[0].numpy())
        assert np.float32(reward) == step.rewards.item()
        assert not terminated
        assert truncated == bool(step.truncated[0])
        if not truncated:
            assert info["equity"] == pytest.approx(batched.account.log_equity.exp().item(), rel=1e-12)
    assert info["row"] == 199


def test_starts_are_drawn_from_every_possible_bar(market):
    env = gymnasium.make(MARKET_ID, market=market, episode_bars=176)
    rows = {env.reset(seed=seed)[1]["row"] for seed in range(60)}
    assert rows == {20, 21, 22, 23}  # the last window is 23..198, and looks at 199
    with pytest.raises(ValueError, match="bars 20 to 23, not at 24"):
        env.reset(options={"row": 24})


def test_features_that_are_not_finite_are_refused(market):
    features = market.features.clone()
    features[5, 0] = torch.nan
    broken = MarketTensors(**{**vars(market), "features": features})
    with pytest.raises(ValueError, match="1 values are not"):
        gymnasium.make(MARKET_ID, market=broken)


def test_a_vector_of_gymnasium_markets_resumes_bit_for_bit(market):
    def make() -> GymnasiumVectorEnv:
        envs = make_environments(MARKET_ID, 2, market=market, episode_bars=15, account_features=ALL_ACCOUNT)
        return GymnasiumVectorEnv(envs, seed=3)

    env, generator = make(), torch.Generator().manual_seed(0)
    env.reset()
    for _ in range(20):
        env.step(torch.randint(3, (2,), generator=generator))
    resumed = make()
    resumed.load_state_dict(env.state_dict())
    for _ in range(40):
        actions = torch.randint(3, (2,), generator=generator)
        for one, other in zip(env.step(actions), resumed.step(actions), strict=True):
            assert torch.equal(one, other)


def test_an_environment_in_another_ones_state_observes_what_it_does(market):
    one, other = (gymnasium.make(MARKET_ID, market=market, account_features=ALL_ACCOUNT).unwrapped for _ in range(2))
    one.reset(seed=0)
    for _ in range(9):
        expected = one.step(2)[0]
    assert (expected[3:] != 0).all()  # position, unrealised, holding time
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(np.asarray(other.account_market.observe(), dtype=np.float32), expected)
