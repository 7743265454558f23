"""Several instruments as one account."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from lit_ppo.scoring.fills import FillTable
from lit_ppo.scoring.portfolio import DAY, Leg, calendar, combine, past_volatility, rank_among_random, risk_weights
from lit_ppo.scoring.significance import alpha_over

COST = 1e-3


def leg(name, first, count, move, position=1.0, cost=COST, seed=None) -> Leg:
    """`count` daily bars from day `first` on, whose returns are +move, -move, +move, ... or drawn with `seed`."""
    returns = move * np.where(np.arange(count) % 2, -1.0, 1.0)
    if seed is not None:
        returns = move * np.random.default_rng(seed).standard_normal(count)
    zeros, price = np.zeros(count), 100 * np.cumprod(np.append(1.0, 1 + returns[:-1]))
    time = (first + np.arange(count)) * DAY
    fills = FillTable(time, zeros.astype(np.int64), price, returns, np.full(count, cost), zeros, zeros)
    return Leg(name, fills, np.broadcast_to(np.float64(position), count).copy(), 365.25)


def test_a_portfolio_is_the_hand_computed_one_while_an_instrument_joins_late_and_another_ends():
    # Volatility of a: 1 % a day, one unit of risk. b moves 4 %, so a unit of it is a quarter of the notional.
    portfolio = combine([leg("a", 0, 60, 0.01), leg("b", 25, 80, 0.04)])
    # 20 returns, known 2 days later: a joins at the decision of day 21 (returns of days 0 to 19), b of day 25 + 21.
    assert portfolio.day.tolist() == list(range(21, 105))
    weights = np.zeros((84, 2))
    weights[:25, 0] = 1.0  # a alone
    weights[25:44, 0] = 0.5  # both: days 46 to 64; a ends on day 59, and counts for 5 days more
    weights[25:44, 1] = 0.125
    weights[44:, 1] = 0.25  # b alone
    np.testing.assert_allclose(portfolio.weights, weights, atol=1e-12)
    returns = [0.01 * (1 if day % 2 == 0 else -1) for day in range(21, 60)]
    ours = [sum(w * r for w, r in zip(weights[row, :1], [returns[row]], strict=True)) for row in range(39)]
    ours[0] -= COST * 1.0  # a is entered
    ours[25] -= COST * 0.5  # and halved when b joins
    np.testing.assert_allclose(portfolio.returns["agent"][:39, 0], ours, atol=1e-12)
    other = [0.04 * (1 if (day - 25) % 2 == 0 else -1) for day in range(46, 105)]
    theirs = [w * r for w, r in zip(weights[25:, 1], other, strict=True)]
    theirs[0] -= COST * 0.125
    theirs[19] -= COST * 0.125
    np.testing.assert_allclose(portfolio.returns["agent"][25:, 1], theirs, atol=1e-12)
    assert not portfolio.returns["agent"][39:, 0].any()
    np.testing.assert_allclose(portfolio.net(), portfolio.returns["agent"].sum(axis=1))
    np.testing.assert_allclose(portfolio.returns["long"], portfolio.returns["agent"])  # it was long throughout
    np.testing.assert_allclose(portfolio.exposure[:39, 0], weights[:39, 0])
    assert portfolio.share_of_risk().sum() == pytest.approx(1)
    assert portfolio.days_per_year == pytest.approx(365.25)


def test_a_weight_is_known_before_the_day_that_it_is_for():
    calm = leg("a", 0, 80, 0.01, seed=1)
    fills = calm.fills
    for last in (40, 41, 60):
        changed = fills.price_return.copy()
        changed[last:] *= 7
        args = (fills.turnover_cost, fills.carry_long, fills.carry_short)
        wild = Leg("a", FillTable(fills.time, fills.fold, fills.fill_price, changed, *args), calm.position, 365.25)
        then, now = (risk_weights([one], calendar([one])) for one in (calm, wild))
        # The return of decision `last` ends at the fill of the next decision: known from decision last + 2 on.
        np.testing.assert_array_equal(then[: last + 2], now[: last + 2])
        assert then[last + 2] > now[last + 2]


def test_a_month_without_moves_is_no_licence_for_a_huge_position_and_a_dead_price_has_no_weight():
    returns = np.concatenate([np.tile([0.01, -0.01], 100), np.zeros(500)])
    days, sigma = past_volatility(np.arange(700), returns)
    assert len(days) == 700
    assert sigma[201] == pytest.approx(0.01)
    assert sigma[600] > 0.002  # the volatility of 35 days is 3e-5 by then
    assert np.isnan(past_volatility(np.arange(50), np.zeros(50))[1]).all()
    with pytest.raises(ValueError, match=r"at least 20 test days, known 2 days later; the longest of a, b has 15"):
        combine([leg("a", 0, 15, 0.01), leg("b", 0, 5, 0.01)])


def test_bars_of_an_hour_meet_those_of_a_day_on_one_calendar():
    daily, count = leg("a", 0, 40, 0.01), 40 * 24
    hourly = leg("b", 0, count, 0.01, seed=2)
    fills = hourly.fills
    time = np.arange(count) * DAY // 24
    args = (fills.price_return, fills.turnover_cost, fills.carry_long, fills.carry_short)
    hours = Leg("b", FillTable(time, fills.fold, fills.fill_price, *args), hourly.position, 24 * 365.25)
    portfolio = combine([daily, hours])
    assert portfolio.day.tolist() == list(range(21, 40))
    earned = portfolio.weights[5, 1] * fills.price_return[26 * 24 : 27 * 24].sum()
    turnover = abs(portfolio.weights[5, 1] - portfolio.weights[4, 1])
    assert portfolio.returns["agent"][5, 1] == pytest.approx(earned - COST * turnover, abs=1e-12)


def test_the_rank_of_a_trader_with_foresight_is_the_best_and_of_one_who_never_changes_a_tie():
    legs = [leg(name, 0, 200, 0.01, seed=seed) for seed, name in enumerate("ab")]
    sighted = [Leg(one.name, one.fills, np.sign(one.fills.price_return), 365.25) for one in legs]
    assert rank_among_random(sighted, combine(sighted), seed=0, draws=100).percentile == 100
    for one in legs:
        one.position[-1] = 0.0  # as the agent's last decision of a fold is
    assert rank_among_random(legs, combine(legs), seed=0, draws=100).percentile == 50


def test_alpha_is_that_of_statsmodels_with_newey_west_errors():
    generator = np.random.default_rng(0)
    factors = 0.01 * generator.standard_normal((400, 2))
    noise = np.convolve(0.01 * generator.standard_normal(404), np.ones(5) / 5, "valid")
    returns = 0.001 + factors @ [0.5, -0.3] + noise
    found = alpha_over(returns, *factors.T)
    assert found.lags == 5
    fit = sm.OLS(returns, sm.add_constant(factors)).fit(
        cov_type="HAC", cov_kwds={"maxlags": 5, "use_correction": False}
    )
    np.testing.assert_allclose([found.alpha, *found.betas], fit.params, rtol=1e-9)
    assert found.t == pytest.approx(fit.tvalues[0], rel=1e-9)
    assert np.isnan(alpha_over(factors[:, 0], factors[:, 0]).t)  # nothing is left to explain
