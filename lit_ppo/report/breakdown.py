"""When the result was earned: by year, month, hour, weekday, volatility, and without the best trades. numpy only."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.scoring.performance import sharpe_annual

Floats = NDArray[np.float64]
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
VOLATILITY_BARS = 96  # trailing bars of the volatility that a decision is sorted by


class Group(NamedTuple):
    """The decisions of one hour, weekday, ...

    Attributes:
        label: "Monday".
        bars: number of decisions.
        sum_pct: sum of their net returns, percent of notional; the groups of one split add up to the whole.
        per_bar_pct: mean, percent.
        error_pct: standard error of that mean, percent; nan for fewer than two bars.
        sharpe_annual: per bar * sqrt(bars_per_year), as if every bar were like these.
    """

    label: str
    bars: int
    sum_pct: float
    per_bar_pct: float
    error_pct: float
    sharpe_annual: float


def group_by(
    labels: NDArray[np.int64], names: dict[int, str], net_returns: Floats, bars_per_year: float
) -> list[Group]:
    """Split the decisions by label [D]; groups in the order of `names`, empty ones left out."""
    groups = []
    for label, name in names.items():
        net = net_returns[labels == label]
        if len(net):
            error = 100 * float(net.std(ddof=1)) / math.sqrt(len(net)) if len(net) > 1 else math.nan
            sums = (100 * float(net.sum()), 100 * float(net.mean()), error)
            groups.append(Group(name, len(net), *sums, sharpe_annual(net, bars_per_year)))
    return groups


def years(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """[D] nanoseconds since 1970 UTC -> calendar year."""
    return time.astype("datetime64[ns]").astype("datetime64[Y]").astype(np.int64) + 1970


def months(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """[D] -> 1 to 12."""
    return time.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64) % 12 + 1


def hours(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """[D] -> hour of the day, UTC."""
    return time // 3_600_000_000_000 % 24


def weekdays(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """[D] -> Monday 0 to Sunday 6, UTC; 1970-01-01 was a Thursday."""
    return (time // 86_400_000_000_000 + 3) % 7


def volatility_thirds(price_return: Floats, bars: int = VOLATILITY_BARS) -> NDArray[np.int64]:
    """[D] -> 0 calm, 1 middle, 2 wild, by the root mean square of the last `bars` price returns before the decision.

    -1 for the first bars + 1 decisions. The borders are those of the whole test: they sort results and decide nothing.
    """
    size = len(price_return)
    thirds = np.full(size, -1, dtype=np.int64)
    if size <= bars + 1:
        return thirds
    squares = np.concatenate(([0.0], np.cumsum(price_return**2)))
    # rho_{t-1} ends at fill t, after decision t: the newest return known at decision t is rho_{t-2}.
    level = np.sqrt(np.maximum(squares[bars : size - 1] - squares[: size - 1 - bars], 0.0))
    thirds[bars + 1 :] = np.searchsorted(np.quantile(level, [1 / 3, 2 / 3]), level, side="right")
    return thirds


def splits(
    time: NDArray[np.int64], net_returns: Floats, price_return: Floats | None, bars_per_year: float
) -> dict[str, list[Group]]:
    """Every split of the report, by its name. `price_return` None: no split by volatility."""

    def by(labels: NDArray[np.int64], names: dict[int, str]) -> list[Group]:
        return group_by(labels, names, net_returns, bars_per_year)

    month_names = dict(enumerate(MONTHS, start=1))
    found = {
        "year": by(years(time), {int(year): str(year) for year in np.unique(years(time))}),
        "month of the year": by(months(time), month_names),
        "weekday": by(weekdays(time), dict(enumerate(WEEKDAYS))),
        "hour (UTC)": by(hours(time), {hour: f"{hour:02d}" for hour in range(24)}),
    }
    if price_return is not None:
        names = {0: "calm third", 1: "middle third", 2: "wild third"}
        found["volatility"] = by(volatility_thirds(price_return), names)
    return found


class Month(NamedTuple):
    """Compounded net return of one calendar month, percent."""

    year: int
    month: int
    return_pct: float


def monthly(time: NDArray[np.int64], net_returns: Floats) -> list[Month]:
    """Compounded return of every month that has a decision."""
    number = years(time) * 12 + months(time) - 1
    found = []
    for value in np.unique(number):
        growth = float(np.prod(1.0 + net_returns[number == value]))
        found.append(Month(int(value) // 12, int(value) % 12 + 1, 100 * (growth - 1)))
    return found


class WithoutBest(NamedTuple):
    """What the best trades contributed: compounded trade results, percent; `all_pct` is the run's return."""

    removed: int
    all_pct: float
    best_pct: float
    rest_pct: float


def without_best(results: Floats, count: int = 10) -> WithoutBest:
    """Compound all trades [R], the `count` best ones, and the rest."""
    ordered = np.sort(results)[::-1]
    with np.errstate(over="ignore"):
        every, best, rest = (100 * (float(np.prod(1.0 + x)) - 1.0) for x in (ordered, ordered[:count], ordered[count:]))
    return WithoutBest(min(count, len(results)), every, best, rest)
