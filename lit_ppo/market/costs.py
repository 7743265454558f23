"""What trading costs, defined once: training, evaluation, baselines and report all use these lines.

numpy and pandas only; the reader of a bar file must not need torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

FILLS = ("next_open", "next_close", "same_close")
NANOSECONDS_PER_DAY = 86_400 * 10**9
NEW_YORK = ZoneInfo("America/New_York")


@dataclass(frozen=True)
class Costs:
    """The costs of an account. Rates are fractions of notional: 0.0001 is one basis point.

    Attributes:
        spread: "file" takes each bar's own spread (points times point size); a number is in price units (0.2 = $0.20).
            Half of it is paid per unit of position changed, so a round trip pays it once.
        commission_rate: per unit of position changed, e.g. 0.00002.
        slippage_rate: per unit of position changed: how much worse than the quote a fill is.
        swap_long_rate, swap_short_rate: per unit of position and night held; positive is paid, negative is earned.
        triple_swap_weekday: Monday is 0. That night counts three times and the nights of Saturday and Sunday not at all
            (a broker's way to charge seven nights a week in five). None charges every night once, as for crypto.
        rollover_hour: hour of the day, UTC, at which a night is charged to whoever holds a position. None: 17:00 in New
            York, when gold and currencies roll over: 21:00 UTC in US summer time, 22:00 in winter.
    """

    spread: float | Literal["file"] = "file"
    commission_rate: float = 0.0
    slippage_rate: float = 0.0
    swap_long_rate: float = 0.0
    swap_short_rate: float = 0.0
    triple_swap_weekday: int | None = 2
    rollover_hour: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.spread, str):
            if self.spread != "file":
                raise ValueError(f"costs.spread must be 'file' or a number in price units, got {self.spread!r}")
        elif not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"costs.spread must be 'file' or a number >= 0 in price units, got {self.spread}")
        for name in ("commission_rate", "slippage_rate"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(f"costs.{name} is a fraction of notional in [0, 1), got {rate}")
        for name in ("swap_long_rate", "swap_short_rate"):
            rate = getattr(self, name)
            if not -1 < rate < 1:
                raise ValueError(f"costs.{name} is a fraction of notional per night in (-1, 1), got {rate}")
        if self.triple_swap_weekday is not None and self.triple_swap_weekday not in range(5):
            raise ValueError(
                f"costs.triple_swap_weekday is Monday 0 to Friday 4, or null for every night once, "
                f"got {self.triple_swap_weekday}"
            )
        if self.rollover_hour is not None and self.rollover_hour not in range(24):
            raise ValueError(
                f"costs.rollover_hour is an hour of the day, 0 to 23 UTC, or null for 17:00 in New York, "
                f"got {self.rollover_hour}"
            )


class FillArrays(NamedTuple):
    """What each decision costs and earns, float64 [N] each. A value whose fill lies beyond the file is NaN.

    Attributes:
        fill_price: price at which decision t is executed, price units.
        price_return: rho_t = fill price of t+1 / fill price of t - 1.
        turnover_cost: kappa_t, fraction of notional per unit of position changed at fill t.
        carry_long, carry_short: swap per unit of long / short position from fill t to fill t+1; positive is paid.
    """

    fill_price: np.ndarray
    price_return: np.ndarray
    turnover_cost: np.ndarray
    carry_long: np.ndarray
    carry_short: np.ndarray


def fill_delay(fill: str) -> int:
    """Bars between the close a decision is made at and the bar it is executed in: 0 for same_close, else 1."""
    if fill not in FILLS:
        raise ValueError(f"`fill` must be one of {', '.join(FILLS)}, got {fill!r}")
    return 0 if fill == "same_close" else 1


def fill_arrays(frame: pd.DataFrame, costs: Costs, fill: str, point: float, source: str = "the bar file") -> FillArrays:
    """Price every possible decision of a bar file.

        rho_t   = P_{t+1} / P_t - 1                                     P_t: fill price of decision t
        kappa_t = spread_t / 2 / P_t + commission_rate + slippage_rate  spread_t: of the bar in which t is filled
        carry_t = swap rate * nights charged in (time of fill t, time of fill t+1]

    Args:
        frame: bars in time order: time (datetime64 UTC), open, close, and spread in points for `costs.spread = "file"`.
        costs: the account's costs.
        fill: next_open (open of bar t+1), next_close (close of bar t+1) or same_close (close of bar t).
        point: size of one point in price units; turns the spread column into price units.
        source: name of the file, for error messages.

    Returns:
        Arrays of the frame's length. `next_*` fills leave the last row of fill_price and turnover_cost NaN, and the
        last two rows of the others; `same_close` leaves none and one.

    Raises:
        ValueError: unknown fill, or `costs.spread` is "file" and the frame has no spread column.
    """
    delay = fill_delay(fill)
    price = frame["open" if fill == "next_open" else "close"].to_numpy(np.float64)
    time = bar_times(frame)
    if fill != "next_open":
        time = time + bar_interval(time)
    rate = spread_of(frame, costs, point, source) / 2 / price + costs.commission_rate + costs.slippage_rate
    nights = np.diff(nights_charged(time, costs)).astype(np.float64)
    return FillArrays(
        fill_price=_shift(price, delay),
        price_return=_shift(price[1:] / price[:-1] - 1, delay, len(price)),
        turnover_cost=_shift(rate, delay),
        carry_long=_shift(costs.swap_long_rate * nights, delay, len(price)),
        carry_short=_shift(costs.swap_short_rate * nights, delay, len(price)),
    )


def spread_of(frame: pd.DataFrame, costs: Costs, point: float, source: str = "the bar file") -> np.ndarray:
    """Spread [N] of each bar, price units.

    Raises:
        ValueError: `costs.spread` is "file" and the frame has no spread column.
    """
    if costs.spread != "file":
        return np.full(len(frame), float(costs.spread))
    if "spread" not in frame:
        raise ValueError(
            f"costs.spread is 'file', but {source} has no spread column. "
            f"Give the spread in price units, for example --data.costs.spread 0.2 (0 for none)"
        )
    return frame["spread"].to_numpy(np.float64) * point


def known_cost(frame: pd.DataFrame, costs: Costs, point: float, source: str = "the bar file") -> np.ndarray:
    """What a change of position by one costs at each bar's close [N], fraction of notional: a policy may see it."""
    price = frame["close"].to_numpy(np.float64)
    return spread_of(frame, costs, point, source) / 2 / price + costs.commission_rate + costs.slippage_rate


def net_return(
    held: Any, following: Any, price_return: Any, turnover_cost: Any, carry_long: Any, carry_short: Any
) -> Any:
    """n_t(p, a) = a * rho_t - kappa_t * |a - p| - carry_t(a): position p is held before, a after decision t.

    carry_t(a) = max(a, 0) * carry_long + max(-a, 0) * carry_short. Operators and `abs` only, so that the same line
    serves floats, numpy arrays and torch tensors, which broadcast against each other. Fraction of notional.
    """
    long, short = (abs(following) + following) / 2, (abs(following) - following) / 2
    carry = long * carry_long + short * carry_short
    return following * price_return - turnover_cost * abs(following - held) - carry


def bar_times(frame: pd.DataFrame) -> np.ndarray:
    """Open times [N] int64, nanoseconds since 1970 UTC, whatever unit the column keeps them in."""
    return frame["time"].to_numpy("datetime64[ns]").astype(np.int64)


def bar_interval(time: np.ndarray) -> int:
    """Length of one bar in nanoseconds: the most frequent distance of two bars, the shorter one where two tie."""
    if len(time) < 2:
        return 0
    distances, counts = np.unique(np.diff(time), return_counts=True)
    return int(distances[counts.argmax()])


def nights_charged(time: np.ndarray, costs: Costs) -> np.ndarray:
    """Nights charged from a fixed Monday long past up to and including `time` [N] (nanoseconds UTC): int64 [N].

    The difference of two values is the number of nights in between. A night belongs to the day that it ends: with
    rollover at 22:00 the night of Wednesday is charged on Wednesday 22:00, with rollover at 0:00 on Thursday 0:00,
    and with None on Wednesday 17:00 in New York.
    """
    if costs.triple_swap_weekday is None:
        weights = np.ones(7, dtype=np.int64)
    else:
        weights = np.array([1, 1, 1, 1, 1, 0, 0], dtype=np.int64)
        weights[costs.triple_swap_weekday] = 3
    if costs.rollover_hour is None:
        local = pd.DatetimeIndex(time.astype("datetime64[ns]")).tz_localize("UTC").tz_convert(NEW_YORK)
        time = local.tz_localize(None).to_numpy("datetime64[ns]").astype(np.int64)  # the wall clock's
        shift = 17 * 3600 * 10**9
    else:
        shift = costs.rollover_hour * 3600 * 10**9 if costs.rollover_hour else NANOSECONDS_PER_DAY
    # Days since Monday 1969-12-29 whose rollover is reached: 1970-01-01 was a Thursday.
    day = (time - shift) // NANOSECONDS_PER_DAY + 3
    through = np.cumsum(weights)  # nights charged from a Monday through each day of its week
    return day // 7 * through[-1] + through[day % 7]


def _shift(values: np.ndarray, delay: int, length: int | None = None) -> np.ndarray:
    """values[t + delay] for every t, NaN where that lies beyond them."""
    shifted = np.full(length or len(values), np.nan)
    kept = values[delay:]
    shifted[: len(kept)] = kept
    return shifted
