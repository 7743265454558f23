"""The figures of a path of returns, against plain loops and hand-made paths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lit_ppo.scoring import performance
from lit_ppo.scoring.performance import trading_metrics

pytestmark = pytest.mark.filterwarnings("error")
BARS_PER_YEAR = 23_000.0
KEYS = [
    *("return_pct", "sharpe_annual", "sortino_annual", "max_drawdown_pct", "max_drawdown_bars", "calmar"),
    *("profit_factor", "win_rate", "turnover_per_bar", "exposure", "holding_bars", "cost_pct", "trades"),
]


def random_path(seed, bars=400):
    generator = np.random.default_rng(seed)
    positions = np.repeat(generator.choice([-1.0, 0.0, 0.5, 1.0], size=bars // 4), 4)
    return generator.normal(0.0001, 0.01, size=bars) * (positions != 0), positions


def drawdown_oracle(net_returns):
    equity, high, depth, longest, below = 1.0, 1.0, 0.0, 0, 0
    for n in net_returns:
        equity *= 1 + n
        high = max(high, equity)
        depth = max(depth, 1 - equity / high)
        below = below + 1 if equity < high else 0
        longest = max(longest, below)
    return depth, longest


def trades_oracle(net_returns, positions):
    """The list of [result, bars] of a path, one bar at a time."""
    trades, held = [], 0.0
    for n, position in zip(net_returns, positions, strict=True):
        if position != 0 and position * held <= 0:
            trades.append([1.0, 0])
        if trades:
            trades[-1][0] *= 1 + n
            trades[-1][1] += position != 0
        held = position
    return [[growth - 1, bars] for growth, bars in trades]


@pytest.mark.parametrize("seed", range(5))
def test_figures_match_a_plain_loop_over_the_bars(seed):
    n, p = random_path(seed)
    costs = np.abs(np.diff(p, prepend=0.0)) * 0.0002
    figures = trading_metrics(n, p, BARS_PER_YEAR, costs=costs)
    depth, longest = drawdown_oracle(n)
    trades = trades_oracle(n, p)
    growth = math.prod(1 + x for x in n)
    mean = sum(n) / len(n)
    std = math.sqrt(sum((x - mean) ** 2 for x in n) / (len(n) - 1))
    downside = math.sqrt(sum(min(x, 0.0) ** 2 for x in n) / len(n))
    expected = {
        "return_pct": 100 * (growth - 1),
        "sharpe_annual": mean / std * math.sqrt(BARS_PER_YEAR),
        "sortino_annual": mean / downside * math.sqrt(BARS_PER_YEAR),
        "max_drawdown_pct": 100 * depth,
        "max_drawdown_bars": longest,
        "calmar": (growth ** (BARS_PER_YEAR / len(n)) - 1) / depth,
        "profit_factor": sum(r for r, _ in trades if r > 0) / -sum(r for r, _ in trades if r < 0),
        "win_rate": sum(r > 0 for r, _ in trades) / len(trades),
        "turnover_per_bar": sum(abs(a - b) for a, b in zip(p, [0.0, *p[:-1]], strict=True)) / len(p),
        "exposure": sum(abs(x) for x in p) / len(p),
        "holding_bars": sum(bars for _, bars in trades) / len(trades),
        "cost_pct": 100 * sum(costs),
        "trades": len(trades),
    }
    assert list(figures) == KEYS
    assert figures == pytest.approx(expected, rel=1e-9)


def test_the_exit_cost_belongs_to_the_trade_it_closes_and_a_change_of_size_opens_none():
    trips = performance.round_trips([0.0, 0.1, 0.2, -0.01, 0.0, -0.3, 0.05], [0.0, 0.5, 1.0, 0.0, 0.0, -1.0, 1.0])
    assert trips.results.tolist() == pytest.approx([1.1 * 1.2 * 0.99 - 1, -0.3, 0.05])
    assert trips.bars.tolist() == [2, 1, 1]


def test_without_bars_counts_are_zero_and_ratios_nan():
    figures = trading_metrics([], [], BARS_PER_YEAR, costs=[])
    zeros = {k for k, v in figures.items() if v == 0}
    assert zeros == {
        "return_pct", "max_drawdown_pct", "max_drawdown_bars", "turnover_per_bar", "exposure", "cost_pct", "trades"
    }  # fmt: skip
    assert all(math.isnan(v) for k, v in figures.items() if k not in zeros)


def test_never_trading_has_no_ratio_and_no_cost_given_is_not_zero_cost():
    figures = trading_metrics(np.zeros(50), np.zeros(50), BARS_PER_YEAR)
    assert figures["return_pct"] == figures["trades"] == figures["max_drawdown_bars"] == 0
    for key in ("sharpe_annual", "sortino_annual", "calmar", "profit_factor", "win_rate", "holding_bars", "cost_pct"):
        assert math.isnan(figures[key]), key


@pytest.mark.parametrize("level", [0.1, 0.001, -0.003])
def test_equal_returns_have_no_sharpe_whatever_their_rounding(level):
    assert math.isnan(performance.sharpe_annual(np.full(1000, level), BARS_PER_YEAR))


def test_ruin_leaves_nothing_for_good():
    figures = trading_metrics([0.1, -1.5, 0.5, 0.5], np.ones(4), BARS_PER_YEAR)
    assert (figures["return_pct"], figures["max_drawdown_pct"], figures["max_drawdown_bars"]) == (-100.0, 100.0, 3.0)
    assert figures["calmar"] == -1.0


def test_growth_beyond_float64_keeps_a_finite_drawdown():
    returns = np.full(60_000, 0.04)
    returns[30_000:30_010] = -0.01
    figures = trading_metrics(returns, np.ones(60_000), BARS_PER_YEAR)
    assert figures["return_pct"] == math.inf
    assert figures["max_drawdown_pct"] == pytest.approx(100 * (1 - 0.99**10))
    assert math.isnan(figures["calmar"])


def test_annual_figures_use_the_bars_of_the_files_own_year():
    n, p = random_path(0)
    quarter, whole = trading_metrics(n, p, 1000.0), trading_metrics(n, p, 4000.0)
    assert whole["sharpe_annual"] == pytest.approx(2 * quarter["sharpe_annual"])
    assert whole["sortino_annual"] == pytest.approx(2 * quarter["sortino_annual"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [1.0, 1.0], 100.0), "got 2 for 1 returns"),
        (([0.1, math.nan], [1.0, 1.0], 100.0), "1 numbers that are not finite"),
        (([[0.1]], [1.0], 100.0), r"shape \(1, 1\)"),
        (([0.1], [1.0], 0.0), "bars_per_year > 0"),
    ],
)
def test_wrong_series_are_refused_with_the_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        trading_metrics(*arguments)


def test_no_fall_is_zero_and_not_minus_zero():
    assert math.copysign(1.0, performance.max_drawdown(np.zeros(5))) == 1.0
    assert math.copysign(1.0, trading_metrics(np.zeros(5), np.zeros(5), 100.0)["max_drawdown_pct"]) == 1.0
