"""Several instruments as one account: equal risk by past volatility, one calendar, every instrument's own costs.

    exposure_i(t) = position_i(t) * w_i(day of t),   w_i(d) = RISK / (sigma_i(d) * instruments live on d)

A portfolio's calendar is the UTC days on which any instrument has a test decision; a day's return is the sum of what
the exposures of its decisions earn and pay, a change of weight included, as fraction of the equity before it.
sigma_i(d) is made of returns that were known at the first decision of day d. numpy and pandas; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_ppo.market.baselines import Percentile, percentile_among
from lit_ppo.market.costs import net_return
from lit_ppo.scoring.fills import FillTable, read_fills
from lit_ppo.scoring.replay import baseline_positions, delayed, held_before, log_growth, random_paths
from lit_ppo.store.results import Run

Floats = NDArray[np.float64]
Days = NDArray[np.int64]

DAY = 86_400 * 10**9  # nanoseconds
YEAR = 365.25  # days
RISK = 0.01  # standard deviation a day of one unit of position, times the number of instruments
MEMORY = 35  # days of the exponential volatility
LONG_MEMORY = 500  # days; half of this volatility is the least: a quiet month is no licence for a huge position
LEAST_DAYS = 20  # returns that a volatility needs: an instrument joins after them
KNOWN = 2  # days: the return of a decision ends at the fill of the next one, which may lie in the day after it
ABSENT = 5  # days of the calendar without a bar after which an instrument counts no more
RANDOM_DRAWS = 1_000
TRADERS = ("agent", "long", "trend", "long_trend", "later", "no_costs", "double_costs")
_PORTION = 2_000_000  # numbers drawn at a time


@dataclass(frozen=True)
class Leg:
    """One instrument's run.

    Attributes:
        name: of the instrument.
        fills: its D test decisions.
        position: [D] the agent's, after each decision.
        bars_per_year: of its own calendar.
    """

    name: str
    fills: FillTable
    position: Floats
    bars_per_year: float

    @cached_property
    def day(self) -> Days:
        """[D] UTC day of each decision bar's open, days since 1970."""
        return self.fills.time // DAY


def read_leg(name: str, run: Run) -> Leg:
    """One instrument from the folder of its run.

    Raises:
        ValueError: no fold is finished, or files of two runs are mixed.
        FileNotFoundError: a finished fold without test_bars.npz.
    """
    done = sorted(record.index for record in run.folds if record.status == "done")
    fills, rows = read_fills(run.path, done), run.out_of_sample
    if not np.array_equal(fills.time, rows["time"].to_numpy("datetime64[ns]").astype(np.int64)):
        raise ValueError(
            f"The fills of {run.path} (test_bars.npz) are not those of its out_of_sample.csv: files of two runs are "
            "mixed. Run the walk-forward again with --overwrite"
        )
    return Leg(name, fills, rows["position"].to_numpy(np.float64), run.bars_per_year)


def calendar(legs: Sequence[Leg]) -> Days:
    """[N] every UTC day on which any instrument has a test decision, days since 1970."""
    return np.unique(np.concatenate([leg.day for leg in legs]))


def past_volatility(day: Days, price_return: Floats) -> tuple[Days, Floats]:
    """An instrument's own days [M], and the volatility a day that was known at each one's first decision.

    sigma^2 = max(exponential mean of squares over MEMORY days, a quarter of that over LONG_MEMORY days); nan before
    LEAST_DAYS returns are known, and where the price never moved.

    Args:
        day: [D] of each decision, days since 1970.
        price_return: [D] of one unit held.
    """
    own, rows = np.unique(day, return_inverse=True)
    squares = pd.Series(np.square(np.bincount(rows, price_return)))
    fast, slow = (squares.ewm(alpha=1 / days, min_periods=LEAST_DAYS).mean() for days in (MEMORY, LONG_MEMORY))
    variance = np.maximum(fast, slow / 4).shift(KNOWN).to_numpy(np.float64)
    return own, np.sqrt(np.where(variance > 0, variance, np.nan))


def risk_weights(legs: Sequence[Leg], day: Days) -> Floats:
    """[N, K] notional of one unit of position as fraction of equity, on each day of the calendar; 0 where not live.

    An instrument is live from its first known volatility on, until it has had no bar for ABSENT days of the calendar.
    """
    sigma = np.full((len(day), len(legs)), np.nan)
    for column, leg in enumerate(legs):
        own, known = past_volatility(leg.day, leg.fills.price_return)
        sigma[np.searchsorted(day, own), column] = known
    sigma = pd.DataFrame(sigma).ffill(limit=ABSENT).to_numpy(np.float64)
    live = np.isfinite(sigma)
    return np.where(live, RISK / np.where(live, sigma, 1.0) / np.maximum(live.sum(axis=1, keepdims=True), 1), 0.0)


def earned(fills: FillTable, exposure: Floats, *, restart: bool = True) -> Floats:
    """[..., D] net return of exposures [..., D] as fraction of equity, every change of exposure paid.

    Args:
        fills: D test decisions of one instrument.
        exposure: notional as fraction of equity after each decision.
        restart: every fold starts flat, as the agent does; False: one account that goes through all of them.
    """
    held = held_before(exposure, fills.fold if restart else np.zeros_like(fills.fold))
    costs = (fills.turnover_cost, fills.carry_long, fills.carry_short)
    net: Floats = net_return(held, exposure, fills.price_return, *costs)
    return net


@dataclass(frozen=True)
class Portfolio:
    """What K instruments earned together on N days.

    Attributes:
        names: [K].
        day: [N] days since 1970, from the first on which an instrument was live.
        weights: [N, K] see `risk_weights`.
        returns: by trader, [N, K] net returns of each instrument as fraction of the portfolio's equity: `agent`,
            `long`, `trend` (sign of the last year), `long_trend` (mean of both), and the agent one bar `later`, with
            `no_costs` and with `double_costs`.
        exposure: [N, K] the agent's mean notional of the day, as fraction of equity, signed.
    """

    names: tuple[str, ...]
    day: Days
    weights: Floats
    returns: Mapping[str, Floats]
    exposure: Floats

    @property
    def days_per_year(self) -> float:
        """Days of the calendar in a year."""
        return len(self.day) / max((self.day[-1] - self.day[0] + 1) / YEAR, 1 / YEAR)

    def net(self, trader: str = "agent") -> Floats:
        """[N] net return of a trader's whole portfolio."""
        total: Floats = self.returns[trader].sum(axis=1)
        return total

    @property
    def live(self) -> NDArray[np.int64]:
        """[N] instruments that count."""
        count: NDArray[np.int64] = (self.weights > 0).sum(axis=1)
        return count

    def alone(self, trader: str, instrument: int) -> Floats:
        """[M] net returns of one instrument at `RISK` a day, on the days on which it counts."""
        rows = self.weights[:, instrument] > 0
        alone: Floats = self.returns[trader][rows, instrument] * self.live[rows]
        return alone

    def share_of_risk(self) -> Floats:
        """[K] covariance of an instrument's result with the portfolio's / variance of the portfolio's: sums to 1."""
        moved = self.net() - self.net().mean()
        variance = float(np.mean(moved**2))
        if variance == 0:
            return np.full(len(self.names), np.nan)
        share: Floats = (self.returns["agent"] * moved[:, None]).mean(axis=0) / variance
        return share

    def correlations(self) -> Floats:
        """[K, K] of the instruments' results, each pair on the days on which both count; nan where there are none."""
        results = pd.DataFrame(np.where(self.weights > 0, self.returns["agent"], np.nan))
        return results.corr(min_periods=LEAST_DAYS).to_numpy(np.float64)


def combine(legs: Sequence[Leg]) -> Portfolio:
    """Put instruments together.

    Raises:
        ValueError: none has enough test days for a volatility.
    """
    day = calendar(legs)
    weights = risk_weights(legs, day)
    if not weights.any():
        longest = max(len(np.unique(leg.day)) for leg in legs)
        raise ValueError(
            f"A portfolio weighs each instrument by its volatility over at least {LEAST_DAYS} test days, known "
            f"{KNOWN} days later; the longest of {', '.join(leg.name for leg in legs)} has {longest}. Test on more bars"
        )

    exposure = np.zeros_like(weights)
    returns = {name: np.zeros_like(weights) for name in TRADERS}
    for column, leg in enumerate(legs):
        rows = np.searchsorted(day, leg.day)
        sized, bars = weights[rows, column], np.maximum(np.bincount(rows, minlength=len(day)), 1)
        exposure[:, column] = np.bincount(rows, leg.position * sized, len(day)) / bars
        rules = baseline_positions(leg.fills, leg.bars_per_year)
        year = rules["last_year"]  # half long, half the sign of the last year
        own, late = leg.position * sized, delayed(leg.position, leg.fills.fold) * sized
        net = {
            "agent": earned(leg.fills, own),
            "long": earned(leg.fills, rules["buy_and_hold"] * sized, restart=False),
            "trend": earned(leg.fills, (2 * year - 1) * sized, restart=False),
            "long_trend": earned(leg.fills, year * sized, restart=False),
            "later": earned(leg.fills, late),
            "no_costs": earned(leg.fills.scaled_costs(0.0), own),
            "double_costs": earned(leg.fills.scaled_costs(2.0), own),
        }
        for name in TRADERS:
            returns[name][:, column] = np.bincount(rows, net[name], len(day))
    first = slice(int(np.argmax(weights.any(axis=1))), None)
    found = {name: table[first] for name, table in returns.items()}
    return Portfolio(tuple(leg.name for leg in legs), day[first], weights[first], found, exposure[first])


def rank_among_random(legs: Sequence[Leg], portfolio: Portfolio, seed: int, draws: int = RANDOM_DRAWS) -> Percentile:
    """Where the agent stands among portfolios of random traders, each of an instrument's own turnover and exposure.

    Args:
        legs: of the portfolio.
        portfolio: what `combine` made of them.
        seed: of the draws.
        draws: number of random portfolios.
    """
    generator = np.random.default_rng(seed)
    day, count = portfolio.day, len(portfolio.day)
    portion = max(1, min(draws, _PORTION // max(count, *(len(leg.fills) for leg in legs))))
    results = []
    for first in range(0, draws, portion):
        total = np.zeros((min(portion, draws - first), count))
        for column, leg in enumerate(legs):
            bars = np.flatnonzero(leg.day >= day[0])  # none was live before
            paths = random_paths(leg.position, leg.fills, len(total), generator)
            weights = np.zeros(len(leg.fills))
            weights[bars] = portfolio.weights[np.searchsorted(day, leg.day[bars]), column]
            net = earned(leg.fills, paths * weights)[:, bars]
            starts = np.flatnonzero(np.diff(leg.day[bars], prepend=-1))
            if len(bars):
                total[:, np.searchsorted(day, leg.day[bars][starts])] += np.add.reduceat(net, starts, axis=1)
        results.append(log_growth(total))
    growth, own = np.concatenate(results), float(log_growth(portfolio.net()))
    growth[np.isclose(growth, own, rtol=0.0, atol=1e-12)] = own
    return percentile_among(own, growth)
