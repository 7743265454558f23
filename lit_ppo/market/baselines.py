"""Traders that need no learning: what an agent must beat on the same bars, fills and costs. numpy only.

Each gives a position per decision bar [D], decided at that bar's close from bars up to it, like the agent's own. Run
them through `books.account` with the arrays that the agent was charged with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
SPEEDS = (16, 64, 256, 1024)  # bars, of `trend`
SHORTEST = 100  # bars: the least window of `last_year`, and the memory of the volatility of `trend`


def flat(num_decisions: int) -> FloatArray:
    """Never trade: [D] zeros."""
    return np.zeros(num_decisions)


def buy_and_hold(num_decisions: int, size: float = 1.0) -> FloatArray:
    """Long from the first decision on: [D]. `size` is the exposure, +1 of notional in every report."""
    return np.full(num_decisions, size)


def always_short(num_decisions: int, size: float = 1.0) -> FloatArray:
    """Short from the first decision on: [D]."""
    return np.full(num_decisions, -size)


def sma_cross(close: ArrayLike, fast: int = 20, slow: int = 100, size: float = 1.0) -> FloatArray:
    """Long while the mean of the last `fast` closes is above that of the last `slow`, short below; flat before.

    Args:
        close: [N] closes of the decision bars and of at least `slow` - 1 bars before the first one.
        fast, slow: bars, fast < slow.
        size: position held.

    Returns:
        [N], one per close; the first slow - 1 are 0. The caller keeps the decision bars.
    """
    if not 1 <= fast < slow:
        raise ValueError(f"sma_cross needs 1 <= fast < slow bars, got fast {fast} and slow {slow}")
    prices = _finite("close", close)
    if len(prices) < slow:
        return np.zeros(len(prices))
    # Sums of deviations: a running sum of raw prices would lose digits over a long file.
    total = np.concatenate(([0.0], np.cumsum(prices - prices[0])))
    fast_mean = (total[slow:] - total[slow - fast : -fast]) / fast
    slow_mean = (total[slow:] - total[:-slow]) / slow
    gap = fast_mean - slow_mean
    # Equal means (a flat price) must not become a trade by rounding.
    gap[np.abs(gap) <= 1e-12 * np.abs(prices[slow - 1 :])] = 0.0
    return np.concatenate((np.zeros(slow - 1), size * np.sign(gap)))


def last_year(close: ArrayLike, bars_per_year: float, size: float = 1.0) -> FloatArray:
    """Half long, half the sign of the last year's return: long after a year that rose, flat after one that fell.

    Before a year of closes is there the window is all there is, from `SHORTEST` bars on; before that only the long
    half is held.

    Args:
        close: [N] closes, each known at its decision.
        bars_per_year: bars of the window.
        size: exposure of both halves together.

    Returns:
        [N].
    """
    if not bars_per_year >= 1:
        raise ValueError(f"last_year needs bars_per_year >= 1, got {bars_per_year}")
    prices = _finite("close", close)
    rows = np.arange(len(prices))
    window = np.minimum(rows, round(bars_per_year))
    signs = np.where(window >= SHORTEST, np.sign(prices - prices[rows - window]), 0.0)
    return size * (1.0 + signs) / 2


def trend(close: ArrayLike, size: float = 1.0) -> FloatArray:
    """Follow the trend at several speeds, each measured in volatilities: mean over h of r_h / (sigma sqrt(h)).

    r_h is the log return of the last h of `SPEEDS` bars, each term counts within +-1, and sigma^2 is the exponential
    mean (rate 1 / SHORTEST) of the squared returns so far. Speeds that do not fit yet are left out. The position moves
    in quarters, so that it does not pay for every twitch.

    Args:
        close: [N] closes > 0, each known at its decision.
        size: the largest position.

    Returns:
        [N], one per close; the first min(SPEEDS) are 0.
    """
    logs = np.log(_finite("close", close))
    squares = np.square(np.diff(logs, prepend=logs[:1]))
    rate, weight, mean, variances = 1 / SHORTEST, 0.0, 0.0, []
    for square in squares.tolist():  # floats: 10 ms for 57,072 bars
        weight += rate * (1.0 - weight)
        mean += rate * (square - mean)
        variances.append(mean / weight)
    sigma = np.sqrt(np.array(variances))
    total, fitting = np.zeros(len(logs)), np.zeros(len(logs))
    for span in (span for span in SPEEDS if span < len(logs)):
        moved = logs[span:] - logs[:-span]
        scale = sigma[span:] * span**0.5
        total[span:] += np.clip(np.divide(moved, scale, out=np.zeros_like(moved), where=scale > 0), -1.0, 1.0)
        fitting[span:] += 1
    return size * np.round(4 * total / np.maximum(fitting, 1)) / 4


def matched_turnover(positions: ArrayLike, draws: int, generator: np.random.Generator) -> FloatArray:
    """Random traders with the agent's own habits: same exposures, holding times and turnover, at random times.

    The agent's path is cut into runs of one position. Each draw keeps the order of the positions, deals the lengths
    anew among the runs of the same position, and turns the path round by a random number of bars. So the exposure is
    exactly the agent's, and the turnover too but for the two ends. An agent that never changes its mind draws itself.

    Args:
        positions: [D] of the agent.
        draws: number of random traders. They need draws * D * 8 bytes; ask in portions (same generator) for more.
        generator: the only source of randomness.

    Returns:
        [draws, D].
    """
    path = _finite("positions", positions)
    if draws < 1 or path.ndim != 1 or not len(path):
        raise ValueError(
            f"matched_turnover needs positions [D], D >= 1, and draws >= 1; got shape {path.shape} and draws {draws}"
        )
    starts = np.flatnonzero(np.concatenate(([True], path[1:] != path[:-1])))
    lengths = np.diff(starts, append=len(path))
    values = path[starts]
    dealt = np.tile(lengths, (draws, 1))  # [draws, runs]
    for value in np.unique(values):
        runs = np.flatnonzero(values == value)
        dealt[:, runs] = generator.permuted(dealt[:, runs], axis=1)
    paths = np.repeat(np.tile(values, draws), dealt.ravel()).reshape(draws, len(path))
    turned = np.empty_like(paths)
    for to, whole, offset in zip(turned, paths, generator.integers(len(path), size=draws).tolist(), strict=True):
        to[: len(path) - offset], to[len(path) - offset :] = whole[offset:], whole[:offset]
    return turned


class Percentile(NamedTuple):
    """Where a result stands among random ones.

    Attributes:
        percentile: share of random results below it, ties counted half; 0 to 100.
        p_value: (1 + number of random results at least as good) / (1 + draws): never 0.
        draws: number of random results.
    """

    percentile: float
    p_value: float
    draws: int


def percentile_among(result: float, random_results: ArrayLike) -> Percentile:
    """Rank a result among those of `matched_turnover` traders [draws]; larger is better."""
    others = _finite("random_results", random_results)
    if not len(others) or not np.isfinite(result):
        raise ValueError(f"percentile_among needs a finite result and at least one random one, got {result}, {others}")
    below, equal = int((others < result).sum()), int((others == result).sum())
    share = (below + equal / 2) / len(others)
    return Percentile(100 * share, (1 + len(others) - below) / (1 + len(others)), len(others))


def _finite(name: str, values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"a baseline needs finite numbers; {name} has {array.ravel()[bad[0]]} at row {bad[0]}")
    return array
