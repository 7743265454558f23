"""The market environment against its scalar twin, its windows, its books, its resume."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_ppo.envs.market import MarketEnv
from lit_ppo.envs.scalar_market import ScalarMarket
from lit_ppo.market.books import account
from lit_ppo.market.costs import FILLS, Costs, fill_arrays
from lit_ppo.market.rewards import RUIN_RETURN, log_reward, sampled_rewards
from lit_ppo.market.tensors import MarketTensors

ALL_ACCOUNT = ("position", "unrealised", "holding_time")
COSTS = Costs(commission_rate=2e-5, slippage_rate=1e-5, swap_long_rate=7e-5, swap_short_rate=-3e-5)


def gold_like_bars(size: int, seed: int = 0) -> pd.DataFrame:
    """15-minute bars around 2000 with heavy tails, a spread column in points of 0.001 and weekend gaps."""
    rng = np.random.default_rng(seed)
    close = 2000 * np.exp(np.cumsum(6e-4 * rng.standard_t(3, size)))
    time = pd.date_range("2024-01-01 23:00", periods=2 * size, freq="15min", tz="UTC")
    return pd.DataFrame(
        {
            "time": time[time.day_of_week < 5][:size],
            "open": np.round(np.roll(close, 1) + rng.normal(0, 0.1, size), 3),
            "close": np.round(close, 3),
            "spread": rng.integers(100, 400, size),
        }
    )


def market_of(frame: pd.DataFrame, fill: str = "next_open", warmup: int = 0, costs: Costs = COSTS) -> MarketTensors:
    """Tensors of all bars whose fills lie in the file; two features: the past return and a counter of bars."""
    arrays = fill_arrays(frame, costs, fill, point=0.001)
    known = np.isfinite(np.stack(arrays)).all(0)
    past = np.log(frame["close"]).diff().fillna(0.0).to_numpy()
    features = np.stack([past / past.std(), np.arange(len(frame)) / 100], axis=1)[known].astype(np.float32)
    columns = {name: torch.tensor(values[known]) for name, values in arrays._asdict().items()}
    return MarketTensors(
        features=torch.tensor(features),
        **columns,
        time=torch.tensor(frame["time"].to_numpy("datetime64[ns]").astype(np.int64)[known]),
        first_bar=0,
        warmup=warmup,
        reward_scale=float(columns["price_return"].std()),
        bars_per_year=24_000.0,
        feature_names=("past_return", "bar"),
        feature_parity=(-1, 1),
    )


def tiny_market(size: int = 12, warmup: int = 2, price_return: list[float] | None = None) -> MarketTensors:
    zeros = torch.zeros(size, dtype=torch.float64)
    return MarketTensors(
        features=torch.arange(size, dtype=torch.float32).unsqueeze(1),  # an observation tells its row
        price_return=zeros if price_return is None else torch.tensor(price_return, dtype=torch.float64),
        turnover_cost=zeros + 1e-4,
        carry_long=zeros,
        carry_short=zeros,
        fill_price=zeros + 100,
        time=torch.arange(size),
        first_bar=0,
        warmup=warmup,
        reward_scale=1e-3,
        bars_per_year=1.0,
        feature_names=("row",),
        feature_parity=(0,),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_as_scalar(market: MarketTensors, env: MarketEnv, steps: int) -> int:
    """Step `env` and one scalar twin per account; returns how many windows ended."""
    positions = env.positions
    assert positions is not None
    observations = env.reset()
    twins = [ScalarMarket(market, positions, env.episode_bars, env.account_features) for _ in range(env.num_envs)]

    def start(b: int) -> list[float]:
        return twins[b].reset(int(env.rows[b]), positions[int(env.account.held[b])])

    expected = torch.tensor([start(b) for b in range(env.num_envs)])
    torch.testing.assert_close(observations, expected, rtol=0, atol=0)
    draw, ended = generator(99), 0
    for _ in range(steps):
        held, actions = env.account.held, torch.randint(len(positions), (env.num_envs,), generator=draw)
        actions = torch.where(torch.rand(env.num_envs, generator=draw) < 0.6, held, actions)
        _, net_returns = sampled_rewards(market, env.rows, env.account.positions, held, actions)
        step = env.step(actions)
        rows = [twin.step(int(action)) for twin, action in zip(twins, actions, strict=True)]
        finals, rewards, terminated, truncated = (list(column) for column in zip(*rows, strict=True))
        assert net_returns.tolist() == [twin.net_return for twin in twins]  # float64
        assert step.final_observations.tolist() == torch.tensor(finals).tolist()
        assert step.rewards.tolist() == torch.tensor(rewards).tolist()
        assert step.terminated.tolist() == terminated
        assert step.truncated.tolist() == truncated
        for b in range(env.num_envs):
            if terminated[b] or truncated[b]:
                ended += 1
                finals[b] = start(b)
        assert step.observations.tolist() == torch.tensor(finals).tolist()
    return ended


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("account_features", [("position",), ALL_ACCOUNT])
def test_batched_market_equals_its_scalar_twin_bit_for_bit(fill, account_features):
    market = market_of(gold_like_bars(700), fill, warmup=30)
    env = MarketEnv(
        market,
        (-1.0, -0.3, 0.0, 0.7, 2.0),
        5,
        generator=generator(),
        episode_bars=90,
        random_position=True,
        account_features=account_features,
    )
    assert (market.carry_long > 0).any()
    assert (market.carry_short < 0).any()
    assert assert_same_as_scalar(market, env, steps=400) > 10


def test_batched_market_equals_its_scalar_twin_on_real_gold(bar_file):
    frame = pd.read_csv(bar_file("XAUUSDm_15min_exness_2022-11_2025-05.csv.gz"), nrows=3000)
    frame["time"] = pd.to_datetime(frame["time"], utc=True)
    market = market_of(frame, warmup=200)
    env = MarketEnv(market, num_envs=4, generator=generator(), episode_bars=500, account_features=ALL_ACCOUNT)
    assert assert_same_as_scalar(market, env, steps=1200) >= 8


def test_ruin_terminates_and_equals_the_scalar_twin():
    market = market_of(gold_like_bars(300))
    market.price_return[::17] = -0.97  # ruins the long, enriches the short
    market.price_return[5::23] = 1.5  # ruins the short beyond everything it has
    env = MarketEnv(market, num_envs=4, generator=generator(), episode_bars=60, account_features=ALL_ACCOUNT)
    assert_same_as_scalar(market, env, steps=200)
    env = MarketEnv(market, num_envs=1, generator=generator(), random_start=False)
    env.reset()
    step = env.step(torch.tensor([2]))
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]
    assert step.rewards.item() == pytest.approx(np.log1p(RUIN_RETURN) / market.reward_scale)
    assert step.final_observations[0, :2].tolist() == market.features[1].tolist()
    assert step.observations[0].tolist() == [*market.features[0].tolist(), 0.0]  # a fresh flat account


def test_ruin_in_the_last_bar_of_a_window_terminates_and_does_not_truncate():
    market = tiny_market(size=4, warmup=0, price_return=[0.0, 0.0, -0.97, 0.0])
    env = MarketEnv(market, num_envs=2, generator=generator(), random_start=False)
    env.reset()
    for _ in range(3):
        step = env.step(torch.tensor([2, 1]))  # long and flat
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]


def test_a_window_visits_every_bar_in_order_and_only_looks_at_the_last():
    market = tiny_market(size=12, warmup=2)
    env = MarketEnv(market, num_envs=2, generator=generator(), random_start=False)
    observations = env.reset()
    seen = []
    for _ in range(2 * env.episode_bars):
        seen.append(observations[0, 0].item())
        step = env.step(torch.tensor([2, 1]))
        observations = step.observations
        if seen[-1] == 10:
            assert step.truncated.all()
            assert step.final_observations.tolist() == [[11, 1], [11, 0]]
        else:
            assert not step.truncated.any()
            assert torch.equal(step.final_observations, step.observations)
    assert seen == [*range(2, 11)] * 2
    assert not step.terminated.any()


def test_random_starts_and_positions_reach_every_place_and_nothing_else():
    market = tiny_market(size=12, warmup=2)
    env = MarketEnv(market, num_envs=300, generator=generator(), episode_bars=4, random_position=True)
    observations = env.reset()
    assert set(observations[:, 0].tolist()) == set(range(2, 8))  # the last window is 7..10, and looks at 11
    assert set(observations[:, env.hold_column].tolist()) == {-1.0, 0.0, 1.0}
    flat = MarketEnv(market, num_envs=300, generator=generator(), episode_bars=4).reset()
    assert set(flat[:, 1].tolist()) == {0.0}


def test_equity_change_of_an_account_is_that_of_the_books():
    market = market_of(gold_like_bars(400), warmup=10)
    env = MarketEnv(market, num_envs=1, generator=generator(), random_start=False)
    env.reset()
    actions = torch.randint(3, (env.episode_bars,), generator=generator(1))
    log_equity = 0.0
    for action in actions:
        log_equity += env.step(action.unsqueeze(0)).rewards.double().item() * market.reward_scale
    names = ("time", "price_return", "turnover_cost", "carry_long", "carry_short")
    arrays = {name: market.decisions(name)[:-1].numpy() for name in names}
    ledger = account(np.array([-1.0, 0.0, 1.0])[actions], **arrays)
    assert log_equity == pytest.approx(np.log(ledger.equity[-1]), abs=1e-6)


def test_a_resumed_market_equals_the_uninterrupted_one_bit_for_bit():
    market = market_of(gold_like_bars(300))
    market.price_return[::40] = -0.97

    def make(seed: int) -> MarketEnv:
        return MarketEnv(
            market,
            num_envs=6,
            generator=generator(seed),
            episode_bars=25,
            random_position=True,
            account_features=ALL_ACCOUNT,
        )

    env, draw = make(0), generator(5)
    env.reset()
    for _ in range(40):
        env.step(torch.randint(3, (6,), generator=draw))
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    resumed = make(1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for t in range(80):
        actions = torch.randint(3, (6,), generator=draw) if t else env.account.held  # holding shows the holding time
        for one, other in zip(env.step(actions), resumed.step(actions), strict=True):
            assert torch.equal(one, other)


def test_an_older_state_is_refused_only_where_unrealised_is_seen():
    env = MarketEnv(tiny_market(), num_envs=2, generator=generator(), account_features=ALL_ACCOUNT)
    env.reset()
    older = {name: value for name, value in env.state_dict().items() if name != "known_log_equity"}
    with pytest.raises(ValueError, match="looked one fill ahead"):
        env.load_state_dict(older)
    MarketEnv(tiny_market(), num_envs=2, generator=generator()).load_state_dict(older)


def test_the_unrealised_result_ends_at_the_last_fill_before_the_decisions_own():
    """Long for three bars, then flat: each price return is seen one bar after it was earned."""
    market = tiny_market(price_return=[0, 0, 1e-3, 2e-3, 4e-3, 8e-3, 0, 0, 0, 0, 0, 0])
    env = MarketEnv(market, generator=generator(), random_start=False, account_features=ALL_ACCOUNT)
    seen = [env.reset()]
    seen += [env.step(torch.tensor([action])).observations for action in (2, 2, 2, 1, 1)]
    entry, first, second = np.log1p([1e-3 - 1e-4, 2e-3, 4e-3])  # the entry pays the turnover cost
    expected = [0, 0, entry, entry + first, 0, np.log1p(-1e-4)]
    assert torch.cat(seen)[:, 2].tolist() == pytest.approx(np.array(expected) / 1e-2, rel=1e-5)
    assert torch.cat(seen)[:, 3].tolist() == pytest.approx(np.log1p([0, 1, 2, 3, 1, 2]) / 5)
    assert env.account.log_equity.item() == pytest.approx(entry + first + second + np.log1p(-1e-4), rel=1e-9)


def test_the_saved_state_does_not_change_while_the_market_goes_on():
    env = MarketEnv(tiny_market(), num_envs=2, generator=generator())
    env.reset()
    state = env.state_dict()
    before = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    for _ in range(5):
        env.step(torch.tensor([0, 2]))
    assert all(torch.equal(state[name], value) for name, value in before.items())


class NoHostSync(TorchDispatchMode):
    """Fails on every operation that would wait for a GPU: reading a number, shapes that depend on data."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.forbidden), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device():
    env = MarketEnv(
        tiny_market(), num_envs=3, generator=generator(), random_position=True, account_features=ALL_ACCOUNT
    )
    with NoHostSync():
        env.reset()
        for _ in range(25):
            env.step(torch.tensor([0, 1, 2]))


def test_step_before_reset_and_unusable_arguments_are_refused():
    market = tiny_market()
    with pytest.raises(RuntimeError, match="before"):
        MarketEnv(market, generator=generator()).step(torch.tensor([0]))
    with pytest.raises(ValueError, match="An episode of 10 bars and the bar after it need 11"):
        MarketEnv(market, generator=generator(), episode_bars=10)
    with pytest.raises(ValueError, match="contain 0"):
        MarketEnv(market, (-1.0, 1.0), generator=generator())
    with pytest.raises(ValueError, match="contain `position`"):
        MarketEnv(market, generator=generator(), account_features=("unrealised",))
    with pytest.raises(ValueError, match="num_envs >= 1, got 0"):
        MarketEnv(market, num_envs=0, generator=generator())
    state = MarketEnv(market, num_envs=2, generator=generator()).state_dict()
    with pytest.raises(ValueError, match="2 environments"):
        MarketEnv(market, num_envs=3, generator=generator()).load_state_dict(state)


def test_the_reward_has_the_risk_aversion_that_was_asked_for():
    scale, moves = 1e-3, np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    net = torch.from_numpy(moves * scale)
    np.testing.assert_allclose(log_reward(net, scale), np.log1p(moves * scale) / scale, rtol=1e-6)
    averse = log_reward(net, scale, risk_aversion=0.04)
    np.testing.assert_allclose(averse, np.log1p(0.04 * moves) / 0.04, rtol=1e-6)
    np.testing.assert_allclose(averse, moves - 0.04 * moves**2 / 2, atol=0.02)  # what the setting's docstring says
    assert torch.isfinite(log_reward(torch.tensor([-0.9], dtype=torch.float64), scale, 0.04)).all()
