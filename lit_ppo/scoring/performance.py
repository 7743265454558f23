"""What a sequence of net returns was worth: the figures of one fold, one baseline or a whole stitched run.

numpy only, float64. `scoring.metrics` wraps the same functions for torchmetrics, `docs/metrics.md` lists the keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_ppo.market.books import compound_by_trip, trip_of_bar

Floats = NDArray[np.float64]


class RoundTrips(NamedTuple):
    """The K trades of a position path, in time order."""

    results: Floats  # [K] net returns from entry to exit, compounded; -1 is ruin
    bars: NDArray[np.integer]  # [K] bars during which the position was open


def equity_curve(net_returns: ArrayLike) -> Floats:
    """Return [D] equity after each bar, from 1 before the first; inf beyond float64.

    A loss of everything (n <= -1) leaves 0 for good.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        equity = np.cumprod(np.maximum(1.0 + _series(net_returns, "net_returns"), 0.0))
    return np.nan_to_num(equity, nan=0.0, posinf=np.inf)  # inf * 0: ruined after all


def _log_equity(n: Floats) -> Floats:
    # A perfect trader of a synthetic market overflows float64 within a year, and a ratio of two infinities is no
    # drawdown: drawdown and growth are therefore measured in logarithms.
    with np.errstate(divide="ignore"):
        return np.cumsum(np.log1p(np.maximum(n, -1.0)))


def sharpe_per_bar(net_returns: ArrayLike) -> float:
    """Mean / standard deviation (sample, n - 1) of [D] net returns; nan for fewer than two or all-equal returns."""
    n = _series(net_returns, "net_returns")
    if len(n) < 2 or n.min() == n.max():  # equal numbers can have a std of 1e-19 after rounding, so compare them
        return math.nan
    return float(n.mean() / n.std(ddof=1))


def sharpe_annual(net_returns: ArrayLike, bars_per_year: float) -> float:
    """Sharpe ratio per bar * sqrt(bars_per_year). The risk-free rate is 0: positions are financed by the carry."""
    return sharpe_per_bar(net_returns) * math.sqrt(bars_per_year)


def sortino_annual(net_returns: ArrayLike, bars_per_year: float) -> float:
    """Mean / sqrt(mean(min(n, 0)^2)) * sqrt(bars_per_year); nan without returns or without a losing bar."""
    n = _series(net_returns, "net_returns")
    downside = math.sqrt(np.mean(np.minimum(n, 0.0) ** 2)) if len(n) else 0.0
    return float(n.mean()) / downside * math.sqrt(bars_per_year) if downside > 0 else math.nan


def drawdown(net_returns: ArrayLike) -> tuple[Floats, int]:
    """Return the [D] drawdown 1 - equity / highest equity so far, and the longest stretch below a high, in bars."""
    log_equity = _log_equity(_series(net_returns, "net_returns"))
    highs = np.maximum(np.maximum.accumulate(log_equity), 0.0)  # the starting capital counts as a high
    below = 0.0 - np.expm1(log_equity - highs)  # a plain minus would make -0.0 of no fall
    bars = np.arange(1, len(below) + 1)
    last_high = np.maximum.accumulate(np.where(below > 0, 0, bars)) if len(below) else bars
    return below, int((bars - last_high).max(initial=0))


def max_drawdown(net_returns: ArrayLike) -> float:
    """Deepest drawdown as a fraction of the highest equity before it, in [0, 1]; 0 without returns."""
    return float(drawdown(net_returns)[0].max(initial=0.0))


def calmar(net_returns: ArrayLike, bars_per_year: float) -> float:
    """Compound growth per year / deepest drawdown.

    nan where the ratio says nothing: no returns, no drawdown, or growth per year beyond float64 (a short stretch).
    """
    n = _series(net_returns, "net_returns")
    deepest = max_drawdown(n)
    if deepest == 0:
        return math.nan
    log_growth = float(_log_equity(n)[-1]) * bars_per_year / len(n)
    return math.expm1(log_growth) / deepest if log_growth < 700 else math.nan


def round_trips(net_returns: ArrayLike, positions: ArrayLike) -> RoundTrips:
    """Split a path into trades as trades.csv does: from leaving flat (or changing side) to flat (or the other side).

    Changing the size on one side stays one trade. The bar that closes to flat earns only its exit cost, which belongs
    to the trade it closes; a reversal's cost belongs to the trade it opens.

    Args:
        net_returns: [D] net return between fill t and fill t+1, fraction of notional.
        positions: [D] position after decision t; the path starts flat.
    """
    n, p = _same_length(net_returns, positions)
    trip = trip_of_bar(p, np.concatenate([[0.0], p[:-1]]) if len(p) else p)
    results = compound_by_trip(n, trip)
    bars = np.bincount(trip[(trip >= 0) & (p != 0)], minlength=len(results))
    return RoundTrips(results, bars)


def profit_factor(results: ArrayLike) -> float:
    """Sum of the winning trades / sum of the losing ones [K]; nan without a losing trade."""
    r = _series(results, "results")
    losses = -r[r < 0].sum()
    return float(r[r > 0].sum() / losses) if losses > 0 else math.nan


def win_rate(results: ArrayLike) -> float:
    """Share of trades [K] with a result above 0, in [0, 1]; nan without trades."""
    r = _series(results, "results")
    return float(np.mean(r > 0)) if len(r) else math.nan


def turnover_per_bar(positions: ArrayLike) -> float:
    """Mean of abs(position t - position t-1) over [D] positions from a flat start; 0 without bars."""
    p = _series(positions, "positions")
    return float(np.abs(np.diff(p, prepend=0.0)).mean()) if len(p) else 0.0


def exposure(positions: ArrayLike) -> float:
    """Mean of abs(position) over [D] positions; 0 without bars."""
    p = _series(positions, "positions")
    return float(np.abs(p).mean()) if len(p) else 0.0


def trading_metrics(
    net_returns: ArrayLike,
    positions: ArrayLike,
    bars_per_year: float,
    costs: ArrayLike | None = None,
) -> dict[str, float]:
    """Every figure of one evaluated segment, or of stitched segments.

    Args:
        net_returns: [D] net return between fill t and fill t+1, fraction of notional.
        positions: [D] position after decision t; the first is entered from flat.
        bars_per_year: of the file's own calendar; annual = per bar * sqrt(bars_per_year).
        costs: [D] cost of bar t, fraction of notional, >= 0; without it `cost_pct` is nan.

    Returns:
        return_pct: last equity - 1, percent.
        sharpe_annual, sortino_annual: nan when all bars earn the same / when no bar loses.
        max_drawdown_pct, max_drawdown_bars: depth, percent of the high; longest stretch below a high, bars.
        calmar: compound growth per year / depth; nan without drawdown.
        profit_factor, win_rate, holding_bars: over round trips; nan without a losing trade / without trades.
        turnover_per_bar, exposure: position units per bar; mean absolute position.
        cost_pct: sum of the costs, percent of notional.
        trades: number of round trips.
        Without returns the counts, return and drawdown are 0 and every ratio is nan.

    Raises:
        ValueError: lengths differ, or a return, position or cost is not finite.
    """
    n, p = _same_length(net_returns, positions)
    if not (math.isfinite(bars_per_year) and bars_per_year > 0):
        raise ValueError(f"trading_metrics needs bars_per_year > 0 (bars of the file's calendar), got {bars_per_year}")
    trips = round_trips(n, p)
    results = trips.results
    equity = equity_curve(n)
    below, longest = drawdown(n)
    cost = math.nan
    if costs is not None:
        cost = 100.0 * float(_same_length(n, costs, "costs")[1].sum())
    return {
        "return_pct": 100.0 * (float(equity[-1]) - 1.0) if len(n) else 0.0,
        "sharpe_annual": sharpe_annual(n, bars_per_year),
        "sortino_annual": sortino_annual(n, bars_per_year),
        "max_drawdown_pct": 100.0 * float(below.max(initial=0.0)),
        "max_drawdown_bars": float(longest),
        "calmar": calmar(n, bars_per_year),
        "profit_factor": profit_factor(results),
        "win_rate": win_rate(results),
        "turnover_per_bar": turnover_per_bar(p),
        "exposure": exposure(p),
        "holding_bars": float(trips.bars.mean()) if len(trips.bars) else math.nan,
        "cost_pct": cost,
        "trades": float(len(results)),
    }


def _series(values: ArrayLike, name: str) -> Floats:
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or not np.isfinite(series).all():
        bad = "" if series.ndim != 1 else f" with {int((~np.isfinite(series)).sum())} numbers that are not finite"
        raise ValueError(
            f"performance figures need `{name}` as one finite number per bar, got shape {series.shape}{bad}"
        )
    return series


def _same_length(net_returns: ArrayLike, other: ArrayLike, name: str = "positions") -> tuple[Floats, Floats]:
    n, o = _series(net_returns, "net_returns"), _series(other, name)
    if len(n) != len(o):
        raise ValueError(f"performance figures need one of `{name}` per net return, got {len(o)} for {len(n)} returns")
    return n, o
