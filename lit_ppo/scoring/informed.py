"""The trader who knows a planted edge, and what share of its result an agent found. numpy only.

The trader is told at each close what can be known of the next bar's move (`datamodules.planted`), holds -1, 0 or +1 and
pays the same fills, spreads and swap as the agent. Its two thresholds are the best in hindsight on the same rows: not
the dynamic programme's optimum, and a yardstick that is hard to beat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_ppo.market.costs import net_return
from lit_ppo.scoring.performance import exposure, sharpe_annual, turnover_per_bar

FloatArray = NDArray[np.float64]

ENTRIES = 16  # quantiles of |forecast| tried as the threshold of entry, besides 0
EXITS = np.linspace(-1.0, 1.0, 9)  # shares of the entry threshold tried as the threshold of exit
BISECTIONS = 16
FIRST_EDGE, LARGEST_EDGE = 0.02, 0.5  # sizes m: where the search begins, and the largest that it tries


@dataclass(frozen=True)
class Informed:
    """The informed trader on D decisions.

    Attributes:
        positions: [D] -1, 0 or +1.
        net_return: [D] after costs, fraction of notional.
        sharpe_annual: of `net_return`; 0 where it never trades.
        exposure: share of bars with a position.
        turnover: mean change of position a bar.
        enter, exit: thresholds of |forecast| and of forecast in the position's direction; inf: never trades.
    """

    positions: FloatArray
    net_return: FloatArray
    sharpe_annual: float
    exposure: float
    turnover: float
    enter: float
    exit: float


def hysteresis(forecast: ArrayLike, enter: float, leave: float) -> FloatArray:
    """Positions [D]: long above `enter` until the forecast falls below `leave`, short likewise; starts flat.

    Args:
        forecast: [D] of the next move, in whatever unit the thresholds are.
        enter: >= 0.
        leave: in [-enter, enter]; -enter holds a position until the other side is entered.
    """
    forecast = np.asarray(forecast, dtype=np.float64)
    if not (enter >= 0 and -enter <= leave <= enter):
        raise ValueError(f"hysteresis needs enter >= 0 and leave within +-enter, got {enter} and {leave}")
    return _latched(forecast > enter, forecast < leave) - _latched(-forecast > enter, -forecast < leave)


def _latched(on: NDArray[np.bool_], off: NDArray[np.bool_]) -> FloatArray:
    """[D] 1.0 from an `on` to the next `off`, else 0.0."""
    last = np.maximum.accumulate(np.where(on | off, np.arange(len(on)), -1))  # the last event so far
    return np.where(last >= 0, on[last], False).astype(np.float64)


def informed_trader(
    forecast: ArrayLike,
    *,
    price_return: ArrayLike,
    turnover_cost: ArrayLike,
    carry_long: ArrayLike,
    carry_short: ArrayLike,
    bars_per_year: float,
) -> Informed:
    """Trade on what can be known, with the thresholds that earn most on these very rows; flat where none earns.

    Args:
        forecast: [D] what is known at each decision bar of the next bar's move.
        price_return, turnover_cost, carry_long, carry_short: [D], as in `lit_ppo.market.tensors.MarketTensors`.
        bars_per_year: for the annual Sharpe ratio.

    Raises:
        ValueError: shapes differ, D is 0, or a number is not finite.
    """
    given = {
        "forecast": forecast,
        "price_return": price_return,
        "turnover_cost": turnover_cost,
        "carry_long": carry_long,
        "carry_short": carry_short,
    }
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in given.items()}
    known = arrays.pop("forecast")
    shapes = {name: values.shape for name, values in arrays.items()}
    if known.ndim != 1 or not len(known) or set(shapes.values()) != {known.shape}:
        raise ValueError(f"informed_trader needs [D] arrays of one length, D >= 1; forecast is {known.shape}, {shapes}")
    for name, values in ({"forecast": known} | arrays).items():
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise ValueError(f"informed_trader needs finite numbers, but {name}[{row}] is {values[row]}")

    def trade(positions: FloatArray) -> FloatArray:
        net: FloatArray = net_return(np.append(0.0, positions[:-1]), positions, **arrays)
        return net

    best, thresholds = 0.0, (math.inf, math.inf)
    positions = np.zeros(len(known))
    for enter in np.unique(np.append(0.0, np.quantile(np.abs(known), np.linspace(0, 0.98, ENTRIES)))):
        for leave in np.unique(EXITS * enter):
            candidate = hysteresis(known, enter, leave)
            earned = float(trade(candidate).sum())
            if earned > best:
                best, thresholds, positions = earned, (float(enter), float(leave)), candidate
    net = trade(positions)
    traded = bool(positions.any())
    return Informed(
        positions,
        net,
        sharpe_annual(net, bars_per_year) if traded else 0.0,
        exposure(positions),
        turnover_per_bar(positions),
        *thresholds,
    )


def share_found(agent_net: ArrayLike, informed_net: ArrayLike) -> float:
    """What the agent earned, as a share of what the informed trader earned on the same rows.

    Args:
        agent_net, informed_net: [D] net returns of the same decisions.

    Raises:
        ValueError: shapes differ, or the informed trader earned nothing, so there is no share of it.
    """
    agent, informed = (np.asarray(x, dtype=np.float64) for x in (agent_net, informed_net))
    if agent.shape != informed.shape or agent.ndim != 1:
        raise ValueError(f"share_found needs the same rows of both, [D]; got {agent.shape} and {informed.shape}")
    if not informed.sum() > 0:
        raise ValueError(f"the informed trader earned {informed.sum():g} on these rows: there is no share of it")
    return float(agent.sum() / informed.sum())


def size_edge(sharpe_of: Callable[[float], float], wanted: float, tolerance: float = 0.05) -> float:
    """The size m of an edge whose informed trader has the annual Sharpe ratio `wanted`, by bisection.

    Sizes are doubled until one is enough; then every other step is a straight line's guess, for above the size that
    pays its costs the ratio is nearly one.

    Args:
        sharpe_of: size -> informed annual Sharpe, always of the same noise and draws, so that it rises with the size.
        wanted: annual Sharpe ratio, above 0.
        tolerance: of the Sharpe ratio. Where it jumps over `wanted`, the size of the jump is returned.

    Raises:
        ValueError: even `LARGEST_EDGE` does not reach it.
    """
    if not wanted > 0:
        raise ValueError(f"size_edge needs a Sharpe ratio above 0, got {wanted}")
    low, below, high = 0.0, 0.0, FIRST_EDGE
    while (above := sharpe_of(high)) < wanted:
        if high >= LARGEST_EDGE:
            raise ValueError(
                f"an edge of size {LARGEST_EDGE} has an informed annual Sharpe of {above:.2f}, below the wanted "
                f"{wanted}; ask for a smaller one, or lower the costs"
            )
        low, below, high = high, above, min(2 * high, LARGEST_EDGE)
    if above - wanted <= tolerance:
        return high
    middle = high
    for step in range(BISECTIONS):
        share = (wanted - below) / (above - below) if step % 2 == 0 else 0.5
        middle = low + (high - low) * min(max(share, 0.02), 0.98)
        found = sharpe_of(middle)
        if abs(found - wanted) <= tolerance:
            break
        if found < wanted:
            low, below = middle, found
        else:
            high, above = middle, found
    return middle
