"""Other decisions on the same test bars: baselines, random traders, dearer costs, later execution. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_ppo.market import baselines
from lit_ppo.market.baselines import Percentile, percentile_among
from lit_ppo.market.books import Ledger, account, stitch
from lit_ppo.market.costs import net_return
from lit_ppo.scoring.fills import FillTable

Floats = NDArray[np.float64]
RANDOM_DRAWS = 1_000
NEIGHBOURS = 12  # folds of similar volatility among which the paths of random traders change places
# Draws are made in portions of about this many numbers, so that memory stays small whatever the length of the run.
_PORTION = 2_000_000
_IN_CACHE = 60_000  # numbers of an array that stay in a processor's cache while its neighbours are computed


def fold_starts(fold: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows at which a new fold begins, the first row included."""
    return np.flatnonzero(np.concatenate(([True], fold[1:] != fold[:-1])))


def held_before(positions: Floats, fold: NDArray[np.int64]) -> Floats:
    """[..., D] position held before each decision, when every fold starts flat."""
    held = np.zeros_like(positions)
    held[..., 1:] = positions[..., :-1]
    held[..., fold_starts(fold)] = 0.0
    return held


def replay(positions: Floats, fills: FillTable, *, restart: bool = True) -> Ledger:
    """Books of positions [D] on the test bars.

    Args:
        positions: [D] decided at each bar.
        fills: D test bars.
        restart: every fold starts flat, as the agent does; False: one account that goes through all of them.
    """
    starts = fold_starts(fills.fold).tolist() if restart else [0]
    ledgers = [
        account(
            positions[part],
            time=fills.time[part],
            price_return=fills.price_return[part],
            turnover_cost=fills.turnover_cost[part],
            carry_long=fills.carry_long[part],
            carry_short=fills.carry_short[part],
        )
        for part in (slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(fills)], strict=True))
    ]
    return stitch(ledgers)


def closed_at_fold_ends(positions: Floats, fold: NDArray[np.int64]) -> Floats:
    """[..., D] the same positions, flat from the last decision of every fold on: everybody pays that exit."""
    closed = positions.copy()
    closed[..., np.append(fold_starts(fold)[1:], len(fold)) - 1] = 0.0
    return closed


def delayed(positions: Floats, fold: NDArray[np.int64], bars: int = 1) -> Floats:
    """The same decisions executed `bars` later; flat until the first of a fold arrives.

    The last bar of a fold still closes it: a fold has no bar after its close, so an exit that is late there is executed
    with the fold's own, and is paid.
    """
    late = positions
    for _ in range(bars):
        late = held_before(late, fold)
    return closed_at_fold_ends(late, fold)


def baseline_positions(fills: FillTable, bars_per_year: float) -> dict[str, Floats]:
    """Positions [D] of the traders that need no learning, by name, at exposure 1 of notional.

    Whatever positions the agent may take: the same market gives the same figures on terminal, page and comparison.

    What follows prices sees the last fill before the decision (the close may not be on disk): known at the decision
    under every fill rule.
    """
    known = np.concatenate((fills.fill_price[:1], fills.fill_price[:-1]))
    return {
        "flat": baselines.flat(len(fills)),
        "buy_and_hold": baselines.buy_and_hold(len(fills)),
        "always_short": baselines.always_short(len(fills)),
        "sma_cross": baselines.sma_cross(known),
        "last_year": baselines.last_year(known, bars_per_year),
        "trend": baselines.trend(known),
    }


@dataclass(frozen=True)
class RandomTraders:
    """What random traders with the agent's own exposures, holding times and turnover earned.

    Attributes:
        log_growth: [draws] log of the final equity.
        rank: where the agent stands among them.
    """

    log_growth: Floats
    rank: Percentile


def log_growth(net_returns: Floats) -> Floats:
    """[..., D] -> [...] log of the final equity; a ruined account counts as a loss of 1 - 1e-12."""
    total: Floats = np.log(np.maximum(1.0 + net_returns, 1e-12)).sum(axis=-1)
    return total


def random_traders(positions: Floats, fills: FillTable, seed: int, draws: int = RANDOM_DRAWS) -> RandomTraders:
    """Replay `draws` random traders of matched turnover and rank the agent among them.

    Args:
        positions: [D] of the agent.
        fills: D test bars.
        seed: of the draws.
        draws: number of random traders.
    """
    generator = np.random.default_rng(seed)
    portion = max(1, min(draws, _PORTION // len(fills)))
    together = max(1, _IN_CACHE // len(fills))
    growth = np.concatenate(
        [
            log_growth(_net(paths[start : start + together], fills))
            for first in range(0, draws, portion)
            for paths in [random_paths(positions, fills, min(portion, draws - first), generator)]
            for start in range(0, len(paths), together)
        ]
    )
    own = float(log_growth(_net(closed_at_fold_ends(positions, fills.fold), fills)))
    # Equal paths are summed in another order: what differs by rounding is a tie.
    growth[np.isclose(growth, own, rtol=0.0, atol=1e-12)] = own
    return RandomTraders(growth, percentile_among(own, growth))


def random_paths(positions: Floats, fills: FillTable, draws: int, generator: np.random.Generator) -> Floats:
    """[draws, D] positions of random traders with the agent's own exposures, holding times and turnover.

    What the agent did in one fold is done in another: an agent that enters after a rise would stand below any trader
    whose entries are moved within the same bars, because that one has the rise too, and one that enters after a fall
    above. The folds change places among some `NEIGHBOURS` of similar volatility, so that the risk stays alike; then
    each is dealt anew and turned round by itself. The last decision of a fold closes the position for all of them and
    for the agent: nobody crosses a fold's border, and everybody pays the exit there. A single fold stays where it is,
    with that bias.

    Args:
        positions: [D] of the agent.
        fills: D test bars.
        draws: number of random traders.
        generator: the only source of randomness.
    """
    starts = fold_starts(fills.fold)
    sizes = np.diff(starts, append=len(fills)) - 1  # decisions before the one that closes
    parts = [slice(start, start + size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    wildness = [float(np.square(fills.price_return[part]).mean()) if part.stop > part.start else 0.0 for part in parts]
    goes_to = np.empty((draws, len(parts)), dtype=np.int64)
    for group in np.array_split(np.argsort(wildness, kind="stable"), max(1, len(parts) // NEIGHBOURS)):
        order = generator.permuted(np.tile(group, (draws, 1)), axis=1)
        np.put_along_axis(goes_to, order, np.roll(order, 1, axis=1), axis=1)  # one circle: none stays at home
    paths = np.zeros((draws, len(fills)))
    for own, part in enumerate(parts):
        if not np.any(positions[part]):
            continue
        dealt = baselines.matched_turnover(positions[part], draws, generator)
        for path, its_own, other in zip(paths, dealt, goes_to[:, own].tolist(), strict=True):
            room = path[parts[other]]
            # Where it is shorter it begins again.
            room[:] = its_own if len(its_own) == len(room) else np.resize(its_own, len(room))
    return paths


def _net(paths: Floats, fills: FillTable) -> Floats:
    held = held_before(paths, fills.fold)
    net: Floats = net_return(held, paths, fills.price_return, fills.turnover_cost, fills.carry_long, fills.carry_short)
    return net
