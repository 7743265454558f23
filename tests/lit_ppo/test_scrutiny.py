"""The figures beside the headline, against slow oracles on small numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_ppo.market.books import account, trades
from lit_ppo.report import plotly_figures
from lit_ppo.report.scrutiny import (
    DAY,
    Fall,
    against_market,
    by_day,
    daily,
    rolling_sharpe,
    selection,
    sides,
    worst_drawdowns,
)
from lit_ppo.scoring.performance import max_drawdown, sharpe_annual
from lit_ppo.store.results import FoldRecord

HOUR = DAY // 24
NET = np.random.default_rng(0).normal(1e-4, 1e-3, 2400)
TIME = np.arange(2400) * HOUR


def test_the_rolling_sharpe_is_that_of_each_window():
    net = NET.copy()
    net[600:1000] = 0.0  # flat for longer than a window
    window, found = rolling_sharpe(net, bars_per_year=1200.0)
    assert window == 300
    assert np.isnan(found[: window - 1]).all()
    expected = [sharpe_annual(net[stop - window : stop], 1200.0) for stop in range(window, len(net) + 1)]
    np.testing.assert_allclose(found[window - 1 :], expected, rtol=1e-6, equal_nan=True)
    assert np.isnan(found[900:1000]).all()
    drawn = plotly_figures.rolling(TIME, found)["data"][0]
    assert drawn["y"].count(None) == drawn["x"].count(None) == 1  # the flat stretch is no line


def test_falls_are_found_with_their_high_low_and_recovery():
    net = np.array([0.1, -0.5, 0.2, 2.0, -0.1, 0.5, 0.0, -0.2, 0.1])
    assert worst_drawdowns(net) == [
        Fall(pytest.approx(50.0), 0, 1, 3),
        Fall(pytest.approx(20.0), 6, 7, None),
        Fall(pytest.approx(10.0), 3, 4, 5),
    ]
    assert worst_drawdowns(np.array([-0.1, 0.0])) == [Fall(pytest.approx(10.0), -1, 0, None)]
    assert worst_drawdowns(np.zeros(3)) == []
    assert worst_drawdowns(NET, 1)[0].depth_pct == pytest.approx(100 * max_drawdown(NET))
    assert len(worst_drawdowns(NET)) == 5


def test_days_compound_their_bars_and_few_days_say_nothing():
    days = by_day(TIME, NET)
    assert len(days) == 100
    assert days[3] == pytest.approx(np.prod(1 + NET[72:96]) - 1)
    found = daily(TIME, NET, bars_per_year=6000.0)
    assert found is not None
    assert found.per_year == pytest.approx(250)
    assert found.sharpe_annual == pytest.approx(sharpe_annual(days, 250.0))
    assert daily(TIME[:72], NET[:72], 6000.0) is None
    assert daily(np.arange(30) * DAY, np.zeros(30), 250.0) is not None  # nothing earned is a figure too


def test_alpha_and_beta_are_those_that_were_planted_and_the_error_covers_them():
    generator = np.random.default_rng(1)
    hold = generator.normal(0, 0.01, 1000)
    net = 0.0004 + 0.3 * hold + generator.normal(0, 0.002, 1000)
    time = np.arange(1000) * DAY
    found = against_market(time, net, hold, 250.0)
    assert found is not None
    assert abs(found.beta - 0.3) < 3 * found.beta_error < 0.05
    assert abs(found.alpha_pct - 10) < 3 * found.alpha_error < 8
    # Where the rest has one variance, White's error is the usual one.
    assert found.beta_error == pytest.approx(0.002 / 0.01 / math.sqrt(1000), rel=0.15)
    assert against_market(time, net, np.zeros(1000), 250.0) is None


def test_sides_share_the_bars_and_the_trades():
    position = np.repeat([1.0, 0.0, -1.0, 1.0, 0.0], 10)
    zero = np.zeros(50)
    moved = np.random.default_rng(2).normal(0, 0.01, 50)
    costs = {"turnover_cost": zero + 1e-4, "carry_long": zero, "carry_short": zero}
    books = account(position, time=TIME[:50], price_return=moved, **costs)
    long, short = sides(position, books.net_return, trades(books, np.ones(50)), 1000.0)
    assert (long.label, long.trades, short.label, short.trades) == ("long", 2, "short", 1)
    assert long.bars is not None
    assert long.bars.sum_pct == pytest.approx(100 * books.net_return[position == 1].sum())
    assert (long.mean_bars, short.mean_bars) == (10, 10)


def test_selection_predicts_where_the_scores_rise_together():
    def folds(test):
        return [FoldRecord(i, "done", scores={"validation/score": i / 10, "test/score": x}) for i, x in enumerate(test)]

    found = selection(folds([0.0, 0.1, 0.2, 0.3, 0.4]))
    assert found is not None
    assert (found.rank_correlation, found.folds) == (pytest.approx(1.0), [0, 1, 2, 3, 4])
    assert selection(folds([0.0, 0.1, 0.2, 0.3])) is None
    assert selection(folds([0.0] * 5)) is None
    assert selection(folds([0.0, 1.0, None, 0.5, 0.2])) is None  # four pairs


def test_a_hole_in_the_calendar_is_no_line_and_a_weekend_of_a_long_test_is_one():
    time = np.concatenate((np.arange(100), 150 + np.arange(100))) * HOUR
    time[50:] += 2 * HOUR  # a break shorter than four bars
    curve = np.linspace(1, 2, 200)
    figure = plotly_figures.equity(time, [("ours", "agent", curve)], np.zeros(200), [])
    ours, depth = figure["data"]
    assert [i for i, y in enumerate(ours["y"]) if y is None] == [100]
    assert [i for i, x in enumerate(depth["x"]) if x is None] == [100]
    assert len(ours["x"]) == len(ours["y"]) == 201
