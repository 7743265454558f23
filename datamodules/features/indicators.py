"""The features a bar file can be turned into: each a small causal function with its warm-up and its parity.

Prices enter as logarithms, into TA-Lib too. A price mirrored in the logarithm (up becomes down, an equal factor) then
turns every feature into its exact negative (parity -1: returns, RSI, MACD) or leaves it (+1: volatility, ADX, time of
day); the learner may mirror a market with them. 0 marks a feature for which neither holds.

TA-Lib's functions run once through the bars in order, so a later end of the file changes no value. An earlier start
does, for as long as the warm-up says: a sliding window forgets at its length, an exponential average after
`_decay` bars, when what is left of its start is below 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import talib

from datamodules.features import core
from lit_ppo.market.costs import DEFAULT_HURDLE

SESSIONS = {  # local time zone, first and last hour of the day's trade; the zones move with daylight saving time
    "tokyo": ("Asia/Tokyo", 9, 15),
    "london": ("Europe/London", 8, 16),
    "new_york": ("America/New_York", 8, 17),
}


@dataclass(frozen=True)
class BarArrays:
    """The columns of a bar file as the indicators take them; all float64 [N] but `time`.

    `cost`: what a change of position by one costs at each bar's close, fraction of notional; None: not known here.
    """

    frame: pd.DataFrame
    bar_seconds: float
    cost: np.ndarray | None = None
    _columns: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def log(self, name: str) -> np.ndarray:
        """Natural logarithm of open, high, low or close."""
        if name not in self._columns:
            self._columns[name] = np.log(self.frame[name].to_numpy(np.float64))
        return self._columns[name]

    @cached_property
    def typical(self) -> np.ndarray:
        """Mean of log high, log low and log close."""
        return (self.log("high") + self.log("low") + self.log("close")) / 3

    @cached_property
    def volume(self) -> np.ndarray:
        return self.frame["volume"].to_numpy(np.float64)

    @cached_property
    def time(self) -> pd.DatetimeIndex:
        return pd.DatetimeIndex(self.frame["time"])

    @cached_property
    def core(self) -> np.ndarray:
        """[N, F] float32, columns `core.NAMES`.

        Raises:
            ValueError: nobody said what trading costs.
        """
        if self.cost is None:
            raise ValueError("The core features include the cost of a trade, and no costs were given with these bars")
        close = self.log("close")
        seconds = self.time.to_numpy("datetime64[s]").astype(np.int64)
        return core.core_features(np.diff(close, prepend=close[:1]), seconds, self.bar_seconds, self.cost)


@dataclass(frozen=True)
class Indicator:
    """One entry of the registry: what computes a feature, the bars it needs first, and its parity.

    A feature that is free of scale enters the policy as it is; others are scaled with the statistics of train. A
    running one carries its state from the first bar of the file, and sees what trading costs.
    """

    function: Callable[..., np.ndarray]
    warmup: Callable[..., int]
    parity: int
    scale_free: bool = False
    running: bool = False


REGISTRY: dict[str, Indicator] = {}


def indicator(parity: int, warmup: Callable[..., int]) -> Callable[[Callable[..., np.ndarray]], Callable]:
    """Register a function of (BarArrays, **parameters) under its name. `warmup` takes the parameters it needs."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        REGISTRY[function.__name__] = Indicator(function, warmup, parity)
        return function

    return register


def _none(**_: Any) -> int:
    return 0


def _decay(alpha: float) -> int:
    """Bars until (1 - alpha)^bars < 1e-8: what an exponential average still knows of its start."""
    return math.ceil(math.log(1e-8) / math.log1p(-alpha)) if alpha < 1 else 1


def _wilder(period: int) -> int:
    return period + _decay(1 / period)


def _ema(period: int) -> int:
    return period + _decay(2 / (period + 1))


def _lag(values: np.ndarray, bars: int) -> np.ndarray:
    """values[t - bars], NaN before the start."""
    lagged = np.full(len(values), np.nan)
    lagged[bars:] = values[: max(len(values) - bars, 0)]
    return lagged


def _ratio(numerator: np.ndarray, denominator: np.ndarray, empty: float) -> np.ndarray:
    """numerator / denominator, `empty` where the denominator is 0 (a market that did not move)."""
    still = denominator == 0
    return np.where(still, empty, numerator / np.where(still, 1.0, denominator))


# Returns and trend


@indicator(parity=-1, warmup=lambda bars=1: bars)
def log_return(data: BarArrays, bars: int = 1) -> np.ndarray:
    """log(close_t / close_{t - bars})."""
    return data.log("close") - _lag(data.log("close"), bars)


@indicator(parity=-1, warmup=lambda period=10: period)
def roc(data: BarArrays, period: int = 10) -> np.ndarray:
    """Rate of change per bar: log(close_t / close_{t - period}) / period, TA-Lib MOM of log prices."""
    return talib.MOM(data.log("close"), period) / period


@indicator(parity=-1, warmup=lambda period=20: period - 1)
def sma_trend(data: BarArrays, period: int = 20) -> np.ndarray:
    """Log close minus its simple moving average."""
    return data.log("close") - _mean(data.log("close"), period)


@indicator(parity=-1, warmup=lambda fast=12, slow=26: _ema(max(fast, slow)))
def macd(data: BarArrays, fast: int = 12, slow: int = 26) -> np.ndarray:
    """Exponential average of log close over `fast` bars minus that over `slow` bars."""
    return talib.EMA(data.log("close"), fast) - talib.EMA(data.log("close"), slow)


@indicator(parity=-1, warmup=lambda fast=12, slow=26, signal=9: _ema(max(fast, slow, signal)) + 4 * signal)
def macd_histogram(data: BarArrays, fast: int = 12, slow: int = 26, signal: int = 9) -> np.ndarray:
    """MACD minus its own exponential average over `signal` bars."""
    line = macd(data, fast, slow)
    return line - talib.EMA(line, signal)


@indicator(parity=-1, warmup=lambda period=96: period - 1)
def vwap_distance(data: BarArrays, period: int = 96) -> np.ndarray:
    """Log close minus the volume-weighted mean log price of the last `period` bars (unweighted if nothing traded).

    A sliding window, not a day that starts anew: the daily break moves by an hour with US daylight saving time.
    """
    traded = _sum((data.volume > 0).astype(np.float64), period) > 0  # counts are exact, sums of floats are not
    weighted = _ratio(_sum(data.volume * data.typical, period), _sum(data.volume, period), 0.0)
    return data.log("close") - np.where(traded, weighted, _mean(data.typical, period))


# Oscillators


@indicator(parity=-1, warmup=lambda period=14: _wilder(period))
def rsi(data: BarArrays, period: int = 14) -> np.ndarray:
    """(RSI - 50) / 50 of log close, within +-1: TA-Lib's CMO, which is that and 0 where nothing moved."""
    return talib.CMO(data.log("close"), period) / 100


@indicator(parity=-1, warmup=lambda period=14, smooth=3: period + smooth - 2)
def stochastic_k(data: BarArrays, period: int = 14, smooth: int = 3) -> np.ndarray:
    """Place of log close in the range of `period` bars, within +-1, averaged over `smooth` bars (slow %K)."""
    return _mean(_place_in_range(data, period), smooth)


@indicator(parity=-1, warmup=lambda period=14, smooth=3, signal=3: period + smooth + signal - 3)
def stochastic_d(data: BarArrays, period: int = 14, smooth: int = 3, signal: int = 3) -> np.ndarray:
    """Mean of `stochastic_k` over `signal` bars."""
    return _mean(stochastic_k(data, period, smooth), signal)


@indicator(parity=-1, warmup=lambda period=14: period - 1)
def williams_r(data: BarArrays, period: int = 14) -> np.ndarray:
    """(Williams %R + 50) / 50: place of log close in the range of `period` bars, within +-1."""
    return _place_in_range(data, period)


@indicator(parity=-1, warmup=lambda period=20: period - 1)
def cci(data: BarArrays, period: int = 20) -> np.ndarray:
    """Commodity channel index of log prices / 100."""
    return talib.CCI(data.log("high"), data.log("low"), data.log("close"), period) / 100


@indicator(parity=1, warmup=lambda period=14: _wilder(period) + 5 * period)  # smoothed twice at the same pace
def adx(data: BarArrays, period: int = 14) -> np.ndarray:
    """Average directional index of log prices / 100: how steady the trend is, whichever way it goes."""
    return talib.ADX(data.log("high"), data.log("low"), data.log("close"), period) / 100


@indicator(parity=-1, warmup=lambda period=14: _wilder(period))
def directional(data: BarArrays, period: int = 14) -> np.ndarray:
    """(+DI - -DI) / 100 of log prices: which way the trend goes."""
    prices = data.log("high"), data.log("low"), data.log("close")
    return (talib.PLUS_DI(*prices, period) - talib.MINUS_DI(*prices, period)) / 100


# Volatility and the shape of a bar


@indicator(parity=1, warmup=lambda period=20: period)
def volatility(data: BarArrays, period: int = 20) -> np.ndarray:
    """Root mean square of the last `period` log returns."""
    return np.sqrt(np.maximum(_mean(np.square(log_return(data)), period), 0.0))


@indicator(parity=1, warmup=lambda period=14: _wilder(period))
def atr(data: BarArrays, period: int = 14) -> np.ndarray:
    """Average true range of log prices: the ATR as a fraction of the price."""
    return talib.ATR(data.log("high"), data.log("low"), data.log("close"), period)


@indicator(parity=1, warmup=lambda fast=7, slow=28: _wilder(max(fast, slow)))
def atr_ratio(data: BarArrays, fast: int = 7, slow: int = 28) -> np.ndarray:
    """Log of the average true range over `fast` bars relative to that over `slow` bars; 0 where nothing moved."""
    short, long = atr(data, fast), atr(data, slow)
    still = (short <= 0) | (long <= 0)
    return np.where(still, 0.0, np.log(np.where(still, 1.0, short) / np.where(still, 1.0, long)))


@indicator(parity=-1, warmup=_none)
def body(data: BarArrays) -> np.ndarray:
    """log(close / open) of the bar."""
    return data.log("close") - data.log("open")


@indicator(parity=1, warmup=_none)
def bar_range(data: BarArrays) -> np.ndarray:
    """log(high / low) of the bar."""
    return data.log("high") - data.log("low")


@indicator(parity=0, warmup=_none)
def upper_wick(data: BarArrays) -> np.ndarray:
    """log(high / max(open, close)). A mirror makes it `lower_wick`; `wick_balance` and `wick_total` have a parity."""
    return data.log("high") - np.maximum(data.log("open"), data.log("close"))


@indicator(parity=0, warmup=_none)
def lower_wick(data: BarArrays) -> np.ndarray:
    """log(min(open, close) / low)."""
    return np.minimum(data.log("open"), data.log("close")) - data.log("low")


@indicator(parity=-1, warmup=_none)
def wick_balance(data: BarArrays) -> np.ndarray:
    """Upper wick minus lower wick."""
    return upper_wick(data) - lower_wick(data)


@indicator(parity=1, warmup=_none)
def wick_total(data: BarArrays) -> np.ndarray:
    """Upper wick plus lower wick."""
    return upper_wick(data) + lower_wick(data)


@indicator(parity=0, warmup=_none)
def round_number_distance(data: BarArrays, step: float | None = None) -> np.ndarray:
    """Distance of close from the nearest multiple of `step`, in steps, within +-0.5.

    `step` is in price units; without it, the power of ten that is 0.1 to 1 % of the price: $10 for gold at $2,000.
    """
    close = data.frame["close"].to_numpy(np.float64)
    steps = close / (step if step is not None else 10.0 ** (np.floor(np.log10(close)) - 2))
    return steps - np.round(steps)


# Volume


@indicator(parity=1, warmup=lambda period=20: period - 1)
def volume_change(data: BarArrays, period: int = 20) -> np.ndarray:
    """log(1 + volume) minus its mean over the last `period` bars."""
    return np.log1p(data.volume) - _mean(np.log1p(data.volume), period)


# Time


@indicator(parity=1, warmup=_none)
def hour_sin(data: BarArrays) -> np.ndarray:
    """Sine of the bar's open time on the 24-hour circle, UTC."""
    return np.sin(_turn(data.time))


@indicator(parity=1, warmup=_none)
def hour_cos(data: BarArrays) -> np.ndarray:
    """Cosine of the bar's open time on the 24-hour circle, UTC."""
    return np.cos(_turn(data.time))


@indicator(parity=1, warmup=_none)
def weekday_sin(data: BarArrays) -> np.ndarray:
    """Sine of the weekday on a circle of seven days, UTC."""
    return np.sin(data.time.day_of_week.to_numpy(np.float64) * (2 * np.pi / 7))


@indicator(parity=1, warmup=_none)
def weekday_cos(data: BarArrays) -> np.ndarray:
    """Cosine of the weekday on a circle of seven days, UTC."""
    return np.cos(data.time.day_of_week.to_numpy(np.float64) * (2 * np.pi / 7))


@indicator(parity=1, warmup=_none)
def session(data: BarArrays, market: str = "london") -> np.ndarray:
    """1 while `market` (tokyo, london, new_york) trades by its own local clock, else 0."""
    if market not in SESSIONS:
        raise ValueError(f"session knows the markets {', '.join(SESSIONS)}, got {market!r}")
    zone, first, last = SESSIONS[market]
    hour = data.time.tz_convert(zone).hour.to_numpy()
    return ((hour >= first) & (hour < last)).astype(np.float64)


@indicator(parity=1, warmup=lambda: 1)
def session_break(data: BarArrays) -> np.ndarray:
    """1 on the first bar after a gap (daily break, weekend, missing bars), else 0.

    Returns are not treated specially there: the gap is part of what a position earns. This tells the policy about it.
    """
    seconds = data.time.to_numpy("datetime64[ns]").astype(np.int64) / 1e9
    flags = (np.diff(seconds, prepend=np.nan) > 1.5 * data.bar_seconds).astype(np.float64)
    flags[:1] = np.nan
    return flags


def _turn(time: pd.DatetimeIndex) -> np.ndarray:
    """Share of the day gone at `time`, in radians."""
    nanoseconds = time.to_numpy("datetime64[ns]").astype(np.int64) % (86_400 * 10**9)
    return nanoseconds * (2 * np.pi / (86_400 * 10**9))


def _mean(values: np.ndarray, period: int) -> np.ndarray:
    """Mean of the last `period` values (TA-Lib keeps a leading NaN apart); a period of 1 is the values themselves."""
    return values if period == 1 else talib.SMA(values, period)


def _sum(values: np.ndarray, period: int) -> np.ndarray:
    return values if period == 1 else talib.SUM(values, period)


def _place_in_range(data: BarArrays, period: int) -> np.ndarray:
    """-1 where log close is the lowest low of `period` bars, +1 where it is the highest high, 0 if nothing moved."""
    high, low = talib.MAX(data.log("high"), period), talib.MIN(data.log("low"), period)
    return _ratio(2 * data.log("close") - high - low, high - low, 0.0)


# The core: what the prior trader sees (`datamodules.features.core`)


def _core(column: int) -> Callable[[BarArrays], np.ndarray]:
    def of_core(data: BarArrays) -> np.ndarray:
        return data.core[:, column]

    return of_core


for _column, (_name, _parity) in enumerate(zip(core.NAMES, core.PARITY, strict=True)):
    REGISTRY[f"core_{_name}"] = Indicator(
        _core(_column), lambda: core.START_BARS, _parity, scale_free=True, running=True
    )


def core_hurdle(data: BarArrays, value: float = DEFAULT_HURDLE) -> np.ndarray:
    """What a position must earn on average to be held, in volatilities per bar: the prior trader's caution."""
    return np.full(len(data.frame), core.hurdle_feature(value))


REGISTRY["core_hurdle"] = Indicator(core_hurdle, _none, 1, scale_free=True)
