"""What trading costs, defined once: training, evaluation, baselines and report all use these lines.

numpy and pandas only; the reader of a bar file must not need torch.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from lit_ppo.argument_types import allowed_class

FILLS = ("next_open", "next_close", "same_close")
NANOSECONDS_PER_DAY = 86_400 * 10**9
NEW_YORK = ZoneInfo("America/New_York")
DEFAULT_HURDLE = 0.002  # of the prior trader: volatilities a bar that a position must earn to be held, docs/prior.md


_SHARE = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+) *(?P<unit>bps?|%)", re.ASCII)


def share_of(text: str) -> float:
    """Return 1.5bp as 0.00015 and 0.02% as 0.0002.

    Raises:
        ValueError: neither of them.
    """
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no share like 1.5bp or 0.02%")
    return float(found["number"]) / (100 if found["unit"] == "%" else 10_000)


class CostModel(ABC):
    """A cost of one's own: subclass it as a dataclass, whose fields are what a configuration sets and a run records.

    @dataclass(frozen=True)
    class Impact(CostModel):
        share: float = 0.1

        def turnover_cost(self, frame, price, point):
            return self.share * (frame["high"] - frame["low"]).to_numpy() / price
    """

    @abstractmethod
    def turnover_cost(self, frame: pd.DataFrame, price: np.ndarray, point: float) -> np.ndarray:
        """What a fill in each bar costs on top of `Costs`: [N], fraction of notional per unit of position changed.

        Args:
            frame: bars in time order: time, open, high, low, close, volume, spread in points where there is one, and
                the file's further columns. Row t may use rows up to t and none after it: `lit-ppo audit` looks.
            price: [N] price of a fill in that bar (its open, or its close).
            point: price units per point.
        """


@dataclass(frozen=True)
class Costs:
    """The costs of an account. Rates are fractions of notional: 0.0001 is one basis point, also written 1bp or 0.01%.

    Attributes:
        spread: "file" takes each bar's own spread (points times point size); a number is in price units (0.2 = $0.20);
            1.5bp or 0.02% is a share of the price. It is the whole distance of bid and ask: half of it is paid per
            unit of position changed, so a round trip pays it once.
        commission_rate: per unit of position changed, e.g. 0.00002.
        slippage_rate: per unit of position changed: how much worse than the quote a fill is.
        swap_long_rate, swap_short_rate: per unit of position and night held; positive is paid, negative is earned.
        triple_swap_weekday: Monday is 0. That night counts three times and the nights of Saturday and Sunday not at all
            (a broker's way to charge seven nights a week in five). None charges every night once, as for crypto.
        rollover_hour: hour of the day, UTC, at which a night is charged to whoever holds a position. None: 17:00 in New
            York, when gold and currencies roll over: 21:00 UTC in US summer time, 22:00 in winter.
        model: a `CostModel` of one's own, added to spread, commission and slippage.
    """

    spread: float | str = "file"
    commission_rate: float | str = 0.0
    slippage_rate: float | str = 0.0
    swap_long_rate: float = 0.0
    swap_short_rate: float = 0.0
    triple_swap_weekday: int | None = 2
    rollover_hour: int | None = None
    model: CostModel | None = None

    def __post_init__(self) -> None:
        if self.spread != "file":
            share = isinstance(self.spread, str)
            try:
                spread = share_of(self.spread) if isinstance(self.spread, str) else self.spread
            except ValueError:
                spread = math.nan
            if not (math.isfinite(spread) and spread >= 0 and (spread < 1 or not share)):
                raise ValueError(
                    "costs.spread is 'file' (the bars' own), a number >= 0 in price units, or a share of the price "
                    f"like 1.5bp or 0.02%; got {self.spread!r}"
                )
        for name in ("commission_rate", "slippage_rate"):
            rate = getattr(self, name)
            if isinstance(rate, str):
                try:
                    rate = share_of(rate)
                except ValueError as error:
                    raise ValueError(f"costs.{name}: {error}") from None
                object.__setattr__(self, name, rate)
            if not 0 <= rate < 1:
                raise ValueError(f"costs.{name} is a fraction of notional in [0, 1), or 1bp, or 0.01%; got {rate}")
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
        if self.model is not None and not (isinstance(self.model, CostModel) and is_dataclass(self.model)):
            raise ValueError(
                "costs.model must be a dataclass derived from lit_ppo.market.costs.CostModel, so that a run can record "
                f"it; got {self.model!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and dicts; the model as class_path and init_args."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"model": None if self.model is None else model_entry(self.model)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], allow_modules: Sequence[str] = ()) -> Costs:
        """Build it from what `to_dict` gave.

        Args:
            entry: with or without a model.
            allow_modules: modules that the model may be imported from.

        Raises:
            ValueError: a model of a module that is not allowed, or that is none.
        """
        model = entry.get("model")
        return cls(**{**entry, "model": None if model is None else _load_model(model, allow_modules)})


def model_entry(model: CostModel) -> dict[str, Any]:
    """A cost model as a configuration names it."""
    if not is_dataclass(model) or isinstance(model, type):
        raise ValueError(f"A cost model must be a dataclass, so that config.yaml can repeat the run; got {model!r}")
    return {"class_path": f"{type(model).__module__}.{type(model).__qualname__}", "init_args": asdict(model)}


def _load_model(entry: Mapping[str, Any], allow_modules: Sequence[str]) -> CostModel:
    return allowed_class(entry["class_path"], CostModel, "costs.model", allow_modules)(**entry["init_args"])


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


def fill_arrays(
    frame: pd.DataFrame, costs: Costs, fill: str, point: float, source: str = "the bar file", possible: bool = True
) -> FillArrays:
    """Price every possible decision of a bar file.

        rho_t   = P_{t+1} / P_t - 1                                     P_t: fill price of decision t
        kappa_t = spread_t / 2 / P_t + commission_rate + slippage_rate + model_t  of the bar in which t is filled
        carry_t = swap rate * nights charged in (time of fill t, time of fill t+1]

    Args:
        frame: bars in time order: time (datetime64 UTC), open, close, and spread in points for `costs.spread = "file"`.
        costs: the account's costs.
        fill: next_open (open of bar t+1), next_close (close of bar t+1) or same_close (close of bar t).
        point: size of one point in price units; turns the spread column into price units.
        source: name of the file, for error messages.
        possible: refuse costs below 0; False for the look-ahead audit, whose bars have lows above highs on purpose.

    Returns:
        Arrays of the frame's length. `next_*` fills leave the last row of fill_price and turnover_cost NaN, and the
        last two rows of the others; `same_close` leaves none and one.

    Raises:
        ValueError: unknown fill, `costs.spread` is "file" and the frame has no spread column, or a cost model that
            gives another number of values, or one below 0.
    """
    delay = fill_delay(fill)
    price = frame["open" if fill == "next_open" else "close"].to_numpy(np.float64)
    time = bar_times(frame)
    if fill != "next_open":
        time = time + bar_interval(time)
    rate = cost_rate(frame, costs, price, point, source, possible)
    nights = np.diff(nights_charged(time, costs)).astype(np.float64)
    return FillArrays(
        fill_price=_shift(price, delay),
        price_return=_shift(price[1:] / price[:-1] - 1, delay, len(price)),
        turnover_cost=_shift(rate, delay),
        carry_long=_shift(costs.swap_long_rate * nights, delay, len(price)),
        carry_short=_shift(costs.swap_short_rate * nights, delay, len(price)),
    )


def cost_rate(
    frame: pd.DataFrame,
    costs: Costs,
    price: np.ndarray,
    point: float,
    source: str = "the bar file",
    possible: bool = True,
) -> np.ndarray:
    """What a change of position by one costs [N] at `price` [N], fraction of notional; arguments as `fill_arrays`.

    Raises:
        ValueError: `costs.spread` is "file" and the frame has no spread column; a model's costs are no costs.
    """
    if costs.spread == "file":
        if "spread" not in frame:
            raise ValueError(
                f"costs.spread is 'file', but {source} has no spread column. "
                "Give it in price units or as a share of the price: --data.costs.spread 0.2, or 1.5bp (0 for none)"
            )
        spread = frame["spread"].to_numpy(np.float64) * point
    elif isinstance(costs.spread, str):
        spread = share_of(costs.spread) * price
    else:
        spread = np.full(len(price), float(costs.spread))
    rate = spread / 2 / price + float(costs.commission_rate) + float(costs.slippage_rate)
    if costs.model is not None:
        rate = rate + _model_costs(costs.model, frame, price, point, possible)
    return rate


def known_cost(
    frame: pd.DataFrame, costs: Costs, point: float, source: str = "the bar file", possible: bool = True
) -> np.ndarray:
    """What a change of position by one costs at each bar's close [N], fraction of notional: a policy may see it."""
    return cost_rate(frame, costs, frame["close"].to_numpy(np.float64), point, source, possible)


def _model_costs(model: CostModel, frame: pd.DataFrame, price: np.ndarray, point: float, possible: bool) -> np.ndarray:
    name = type(model).__name__
    costs = np.asarray(model.turnover_cost(frame.copy(), price.copy(), point), dtype=np.float64)
    if costs.shape != price.shape:
        raise ValueError(f"Cost model {name} must give one cost per bar, {len(price)}, got {costs.shape}")
    below = np.flatnonzero(costs < 0)
    if below.size and possible:
        raise ValueError(
            f"Cost model {name} gives {costs[below[0]]} at bar {below[0]} ({frame['time'].iloc[below[0]]}), and "
            f"{below.size} costs below 0 in all. A cost is a fraction of notional >= 0; correct turnover_cost"
        )
    return costs


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
