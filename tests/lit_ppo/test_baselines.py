import numpy as np
import pytest

from lit_ppo.market.baselines import (
    SHORTEST,
    SPEEDS,
    always_short,
    buy_and_hold,
    flat,
    last_year,
    matched_turnover,
    percentile_among,
    sma_cross,
    trend,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def agent_path(num_decisions: int = 500) -> np.ndarray:
    """Positions that are kept for 10 bars on average."""
    draws = generator(1)
    changes = np.cumsum(draws.random(num_decisions) < 0.1)
    return draws.integers(-1, 2, num_decisions)[changes].astype(np.float64)


def turnover(positions: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(positions, axis=-1)).sum(-1)


def test_the_constant_traders_never_change_their_position():
    assert flat(3).tolist() == [0.0, 0.0, 0.0]
    assert buy_and_hold(3, size=0.5).tolist() == [0.5, 0.5, 0.5]
    assert always_short(2).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(("fast", "slow"), [(1, 2), (3, 10), (20, 100)])
def test_sma_cross_equals_the_plain_means(fast, slow):
    close = 2000 * np.exp(0.001 * np.cumsum(generator().standard_normal(300)))
    expected = np.zeros(300)
    for t in range(slow - 1, 300):
        expected[t] = np.sign(close[t - fast + 1 : t + 1].mean() - close[t - slow + 1 : t + 1].mean())
    np.testing.assert_array_equal(sma_cross(close, fast, slow), expected)


def test_sma_cross_does_not_see_later_bars():
    close = 100 + np.cumsum(generator().standard_normal(200))
    changed = close.copy()
    changed[150:] *= 2
    np.testing.assert_array_equal(sma_cross(close, 5, 20)[:150], sma_cross(changed, 5, 20)[:150])


def test_sma_cross_stays_flat_on_a_price_that_does_not_move():
    assert not sma_cross(np.full(50, 1234.567), 3, 10).any()
    assert not sma_cross(np.arange(5.0), 3, 10).any()  # shorter than its window


def test_sma_cross_refuses_windows_in_the_wrong_order():
    with pytest.raises(ValueError, match="fast 10 and slow 10"):
        sma_cross(np.arange(50.0), 10, 10)


def test_the_last_year_is_half_long_and_half_its_sign():
    close = 100 * np.exp(0.01 * np.cumsum(generator().standard_normal(400)))
    found = last_year(close, bars_per_year=150.4)
    for t in range(400):
        window = min(t, 150)
        sign = np.sign(close[t] - close[t - window]) if window >= SHORTEST else 0.0
        assert found[t] == 0.5 + 0.5 * sign
    assert set(found[150:]) == {0.0, 1.0}
    with pytest.raises(ValueError, match="bars_per_year >= 1"):
        last_year(close, 0.0)


def test_the_trend_is_the_plain_mean_over_its_speeds():
    close = 100 * np.exp(0.01 * np.cumsum(generator().standard_normal(1200) + 0.02))
    found = trend(close)
    returns = np.diff(np.log(close), prepend=np.log(close[0]))
    for t in (*range(0, 1200, 37), 1199):
        weights = (1 - 1 / SHORTEST) ** np.arange(t, -1, -1)
        sigma = np.sqrt((weights * returns[: t + 1] ** 2).sum() / weights.sum())
        terms = [np.clip(np.log(close[t] / close[t - h]) / (sigma * h**0.5), -1, 1) for h in SPEEDS if h <= t]
        expected = np.mean(terms) if terms else 0.0
        assert abs(found[t] - expected) <= 0.125 + 1e-9
        assert (4 * found[t]) % 1 == 0
    assert np.abs(found).max() <= 1.0
    steady = trend(np.exp(0.001 * np.arange(1200.0)))
    assert not steady[: SPEEDS[0]].any()
    assert (steady[SPEEDS[0] :] == 1.0).all()


@pytest.mark.parametrize("rule", [trend, lambda close: last_year(close, 150.0)])
def test_what_follows_prices_does_not_see_later_bars_nor_moves_on_a_price_that_does_not(rule):
    close = 100 * np.exp(0.01 * np.cumsum(generator().standard_normal(400)))
    changed = close.copy()
    changed[300:] *= 2
    np.testing.assert_array_equal(rule(close)[:300], rule(changed)[:300])
    assert (rule(close)[300:] != rule(changed)[300:]).any()
    assert len(set(rule(np.full(400, 1234.567)))) == 1
    assert len(rule(np.array([5.0]))) == 1


def test_a_baseline_names_the_row_of_a_number_that_is_missing():
    with pytest.raises(ValueError, match="close has nan at row 1"):
        trend([1.0, np.nan])


def test_random_traders_have_the_exposure_of_the_agent_exactly():
    agent = agent_path()
    for path in matched_turnover(agent, 50, generator()):
        np.testing.assert_array_equal(np.sort(path), np.sort(agent))


def test_random_traders_have_the_turnover_of_the_agent_but_for_the_ends():
    agent = agent_path()
    drawn = turnover(matched_turnover(agent, 200, generator()))
    assert np.abs(drawn - turnover(agent)).max() <= 2.0  # one reversal, -1 to +1


def test_random_traders_differ_from_each_other_and_are_repeatable():
    agent = agent_path()
    first = matched_turnover(agent, 100, generator(5))
    assert len(np.unique(first, axis=0)) == 100
    np.testing.assert_array_equal(first, matched_turnover(agent, 100, generator(5)))
    assert (first != matched_turnover(agent, 100, generator(6))).any()


def test_random_traders_forget_the_times_of_the_agent():
    agent = agent_path(2000)
    drawn = matched_turnover(agent, 400, generator())
    # Every bar holds every position about as often: the share of longs at each bar is the agent's exposure.
    share = (drawn == 1).mean(0)
    assert np.abs(share - (agent == 1).mean()).max() < 5 * np.sqrt(0.25 / 400)


def test_a_trader_who_never_changes_draws_itself_and_stands_in_the_middle():
    drawn = matched_turnover(buy_and_hold(10), 20, generator())
    assert (drawn == 1).all()
    assert percentile_among(1.0, drawn.mean(1)).percentile == 50.0


def test_timing_skill_shows_as_a_high_percentile():
    draws = generator(3)
    returns = draws.standard_normal(2000)
    agent = np.sign(returns + 3 * draws.standard_normal(2000))  # foresees a little
    others = (matched_turnover(agent, 200, draws) * returns).sum(1)
    rank = percentile_among(float((agent * returns).sum()), others)
    assert rank.percentile > 97
    assert rank.p_value < 0.03


def test_the_p_value_is_never_zero():
    rank = percentile_among(10.0, [1.0, 2.0, 3.0])
    assert rank == (100.0, 0.25, 3)
