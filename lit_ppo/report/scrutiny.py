"""What a quant looks for besides the headline: rolling Sharpe, drawdowns, sides, trades, days, alpha and beta. numpy.

All of them describe the run; the verdict rests on none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lit_ppo.market.books import Trades
from lit_ppo.report.breakdown import Group, group_by
from lit_ppo.scoring.performance import (
    equity_curve,
    max_drawdown,
    profit_factor,
    sharpe_annual,
    sortino_annual,
    win_rate,
)
from lit_ppo.store.results import FoldRecord

Floats = NDArray[np.float64]
DAY = 86_400 * 10**9  # nanoseconds
LEAST_DAYS = 20  # below, a figure by day is noise
YEARLY_WINDOWS = 4  # the rolling window is a quarter of a year, or of the test where that is shorter


def rolling_sharpe(net_returns: Floats, bars_per_year: float) -> tuple[int, Floats]:
    """Annual Sharpe ratio over the last `window` bars, a quarter of a year (of a shorter test: of the test).

    Returns:
        window, and [D]: nan before the first full window, and where nothing moved.
    """
    count = len(net_returns)
    window = max(2, round(min(bars_per_year, count) / YEARLY_WINDOWS))
    found = np.full(count, math.nan)
    if count < window:
        return window, found
    moved = net_returns - net_returns.mean()  # sums of small numbers keep their digits
    sums, squares = (np.concatenate(([0.0], np.cumsum(x))) for x in (moved, moved**2))
    mean = (sums[window:] - sums[:-window]) / window
    variance = ((squares[window:] - squares[:-window]) / window - mean**2) * window / (window - 1)
    flat = variance <= 1e-9 * moved.var()
    ratio = (mean + net_returns.mean()) / np.sqrt(np.where(flat, 1.0, variance))
    found[window - 1 :] = np.where(flat, math.nan, ratio * math.sqrt(bars_per_year))
    return window, found


class Fall(NamedTuple):
    """One drawdown: rows of the last high, the lowest bar and the bar that reached the high again (None: not yet)."""

    depth_pct: float
    high: int
    low: int
    recovered: int | None


def worst_drawdowns(net_returns: Floats, count: int = 5) -> list[Fall]:
    """The `count` deepest falls that do not overlap, deepest first. The high of row -1 is the start."""
    equity = np.concatenate(([1.0], equity_curve(net_returns)))
    high = np.maximum.accumulate(equity)
    below = np.concatenate(([False], equity[1:] < high[1:], [False]))
    starts = np.flatnonzero(below[1:] & ~below[:-1])  # the row of `equity` that is the high
    ends = np.flatnonzero(~below[1:] & below[:-1])  # the last row below it, counted the same way
    falls = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        low = start + 1 + int(equity[start + 1 : end + 1].argmin())
        recovered = end if end < len(net_returns) else None
        falls.append(Fall(100 * (1 - float(equity[low] / equity[start])), start - 1, low - 1, recovered))
    return sorted(falls, key=lambda fall: -fall.depth_pct)[:count]


class Side(NamedTuple):
    """The trades of one side, and the decisions that held it."""

    label: str
    bars: Group | None
    trades: int
    win_rate: float
    profit_factor: float
    mean_pct: float
    mean_bars: float


def sides(positions: Floats, net_returns: Floats, trades: Trades, bars_per_year: float) -> list[Side]:
    """Long against short. Costs of going flat belong to the trade, and to no side's bars."""
    found = []
    for sign, label in ((1, "long"), (-1, "short")):
        bars = group_by(np.sign(positions).astype(np.int64), {sign: label}, net_returns, bars_per_year)
        own = trades.side == sign
        results, held = trades.result[own], trades.bars_held[own]
        mean = 100 * float(results.mean()) if len(results) else math.nan
        length = float(held.mean()) if len(held) else math.nan
        figures = (win_rate(results), profit_factor(results), mean, length)
        found.append(Side(label, bars[0] if bars else None, len(results), *figures))
    return found


class Daily(NamedTuple):
    """Net returns compounded within each UTC day, and the figures they give; percent where it says so."""

    days: int
    per_year: float
    sharpe_annual: float
    sortino_annual: float
    volatility_pct: float
    max_drawdown_pct: float
    best_pct: float
    worst_pct: float
    positive: float


def by_day(time: NDArray[np.int64], net_returns: Floats) -> Floats:
    """[days] compounded net return of each UTC day that has a decision."""
    starts = np.flatnonzero(np.diff(time // DAY, prepend=-1))
    return np.multiply.reduceat(1.0 + net_returns, starts) - 1.0


def daily(time: NDArray[np.int64], net_returns: Floats, bars_per_year: float) -> Daily | None:
    """Figures of the returns by day; None for fewer than `LEAST_DAYS`. They hold where bars depend on each other."""
    found = by_day(time, net_returns)
    if len(found) < LEAST_DAYS:
        return None
    per_year = bars_per_year * len(found) / len(net_returns)
    return Daily(
        days=len(found),
        per_year=per_year,
        sharpe_annual=sharpe_annual(found, per_year),
        sortino_annual=sortino_annual(found, per_year),
        volatility_pct=100 * float(found.std(ddof=1)) * math.sqrt(per_year),
        max_drawdown_pct=100 * max_drawdown(found),
        best_pct=100 * float(found.max()),
        worst_pct=100 * float(found.min()),
        positive=float((found > 0).mean()),
    )


class Regression(NamedTuple):
    """Daily returns = alpha + beta * buy and hold's + rest; errors are standard errors (White's, of any variance)."""

    alpha_pct: float  # a year
    alpha_error: float
    beta: float
    beta_error: float
    correlation: float


def against_market(time: NDArray[np.int64], net: Floats, hold: Floats, bars_per_year: float) -> Regression | None:
    """Alpha and beta to buy and hold by least squares on days; None for fewer than `LEAST_DAYS` or a market at rest.

    Source: White 1980 (HC1) for the errors.
    """
    ours, theirs = by_day(time, net), by_day(time, hold)
    count = len(ours)
    if count < LEAST_DAYS or theirs.std() == 0 or ours.std() == 0:
        return None
    per_year = bars_per_year * count / len(net)
    x = np.column_stack((np.ones(count), theirs))
    inverse = np.linalg.inv(x.T @ x)
    alpha, beta = inverse @ (x.T @ ours)
    rest = ours - x @ np.array([alpha, beta])
    covariance = inverse @ (x.T * rest**2) @ x @ inverse * count / (count - 2)
    errors = np.sqrt(np.diag(covariance))
    correlation = float(np.corrcoef(ours, theirs)[0, 1])
    scale = 100 * per_year
    return Regression(float(alpha) * scale, float(errors[0]) * scale, float(beta), float(errors[1]), correlation)


class Selection(NamedTuple):
    """Validation against test, fold by fold: does the figure that chooses say anything about the one that counts?"""

    folds: list[int]
    validation: list[float]
    test: list[float]
    rank_correlation: float
    p_value: float


def selection(folds: Sequence[FoldRecord]) -> Selection | None:
    """Scores of the finished folds and their rank correlation; None for fewer than five, or where all are equal."""
    done = [
        (fold.index, fold.scores.get("validation/score"), fold.scores.get("test/score"))
        for fold in folds
        if fold.status == "done"
    ]
    rows = [(index, v, t) for index, v, t in done if v is not None and t is not None]
    if len(rows) < 5:
        return None
    indices, validation, test = (list(column) for column in zip(*rows, strict=True))
    if len(set(validation)) == 1 or len(set(test)) == 1:
        return None
    found = stats.spearmanr(validation, test)
    return Selection(indices, validation, test, float(found.statistic), float(found.pvalue))
