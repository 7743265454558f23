"""A real bar file whose direction is erased and replaced by a known edge (docs/oracles.md, "Planted edges").

    bars -> mirror each bar at random -> volatility sigma_t -> close moves by e_t sigma_t -> prices, rounded -> bars

What real noise is made of stays: sizes, tails, volatility clusters, breaks, spreads in points, volume. What can be
earned on the result is what was planted, and `Planted.forecast` is all that can be known of it in advance: see
`lit_ppo.scoring.informed`.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.bars.checks import quote_digits
from datamodules.bars.dialects import PRICES
from datamodules.bars.read import Bars
from lit_ppo.store.atomic import atomic_write

SingleKind = Literal["regime", "momentum", "reversion", "season", "drift", "column"]
EdgeKind = Literal[SingleKind, "two", "fading", "null"]
FloatArray = NDArray[np.float64]

SINGLE_KINDS, KINDS = get_args(SingleKind), get_args(EdgeKind)
PARTS_OF = {"two": ("momentum", "season"), "fading": ("momentum",), "null": ()}  # unless `Edge.parts` says otherwise

VOLATILITY_BARS = 100
START_BARS = 500  # whose variance is the volatility's start value
LARGEST_SQUARE = 25.0  # sigma^2; a weekend's gap must not blind the volatility for a day
FLIP = 0.01  # probability a bar that the regime changes
LARGEST_Z = 4.0  # of what the belief filter takes for evidence
TREND_BARS = {"momentum": 20, "reversion": 5}
TREND_SIGN = {"momentum": 1.0, "reversion": -1.0}
LARGEST_TREND = 2.0  # standard deviations
SEASON_START = 7.0  # hour of the day, UTC, at which the season turns from falling to rising
PERSISTENCE = 0.95  # of the column, a bar
EDGE_COLUMN = "planted_signal"
NANOSECONDS_PER_HOUR = 3600 * 10**9


@dataclass(frozen=True)
class Edge:
    """What is planted. e_t is the move of bar t's close in current volatilities, known before the bar.

        regime     m s_t, s = +-1 flips with probability .01 a bar and is hidden
        momentum   m x_t, x: exponential average (20 bars) of past z in its own standard deviations, within +-2
        reversion  -m x_t, 5 bars
        season     m sin(2 pi (hour - 7) / 24), hour of the bar's open, UTC
        drift      m
        column     m times the column `planted_signal` of bar t-1, an AR(1) process (.95) of variance 1
        two        the sum of the two `parts`, each of size m
        fading     the one of `parts` up to the middle of the file, then 0
        null       0

    Attributes:
        kind: see above.
        size: m, volatilities of a bar, >= 0; a null has none.
        parts: kinds that two (default momentum and season) and fading (momentum) are made of; () is the default.
    """

    kind: EdgeKind
    size: float = 0.0
    parts: tuple[SingleKind, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an edge's kind is one of {', '.join(KINDS)}; got {self.kind!r}")
        if not (math.isfinite(self.size) and 0 <= self.size < 1):
            raise ValueError(f"an edge's size is in [0, 1) volatilities of a bar, got {self.size}")
        if self.kind == "null" and self.size:
            raise ValueError(f"a null has no edge: its size must be 0, got {self.size}")
        wanted = {"two": 2, "fading": 1}.get(self.kind, 0)
        unknown = [part for part in self.parts if part not in SINGLE_KINDS]
        if self.parts and (len(self.parts) != wanted or unknown or len(set(self.parts)) != wanted):
            raise ValueError(
                f"an edge of kind {self.kind!r} has {wanted} different parts of {', '.join(SINGLE_KINDS)}; "
                f"got {self.parts!r}"
            )

    @property
    def single_kinds(self) -> tuple[str, ...]:
        """The kinds whose sum it is."""
        return self.parts or PARTS_OF.get(self.kind, (self.kind,))


@dataclass(frozen=True)
class Planted:
    """A bar file with a known edge.

    Attributes:
        bars: prices rounded as the file's; a `column` edge adds its column. Row t is row t of the noise file.
        edge: what was planted.
        moves: [N] e_t, what the close of bar t moved by, in sigma_t.
        forecast: [N] what can be known at the close of bar t of e_{t+1}: e_{t+1} itself, with the belief's mean in
            the place of a hidden regime. The last row, which no bar follows, is 0.
        sigma: [N] volatility of a bar's log return, known before the bar.
    """

    bars: Bars
    edge: Edge
    moves: FloatArray
    forecast: FloatArray
    sigma: FloatArray

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the bars as a CSV file (gzipped if it ends in .gz) that the bar reader takes like any other."""
        return write_bars(self.bars, path)


class LogBars(NamedTuple):
    """Bars relative to the close before, log units, [N] each; the first bar relative to its own open."""

    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray


def plant(bars: Bars, edge: Edge, generator: np.random.Generator) -> Planted:
    """Erase the direction of `bars` and plant `edge`.

        z_t = c_t / sigma_t + e_t,   c: mirrored log return of the close,   close_t = close_{t-1} exp(sigma_t z_t)

    Momentum and reversion follow the z that the file shows, planted moves included.

    Args:
        bars: real ones; their spreads (points), volume and further columns stay as they are.
        edge: its kind and size.
        generator: of the mirror, then of what the edge draws: one seed gives the same noise to every edge.

    Raises:
        ValueError: no volatility to measure the edge in, or prices that no longer fit the file's digits.
    """
    noise = mirrored(relative(bars.frame), generator)
    sigma = volatility(noise.close)
    exogenous, column = _exogenous(bars.frame["time"], edge, generator)  # by kind [N]
    gate = np.ones(len(sigma))
    if edge.kind == "fading":
        gate[len(gate) // 2 :] = 0.0
    still = noise.close / sigma  # [N] z without an edge
    moves = gate * np.sum([np.zeros(len(sigma)), *exogenous.values()], axis=0)
    trends = [kind for kind in edge.single_kinds if kind in TREND_BARS]
    if trends:
        moves = _with_trend(still, moves, gate, trends, edge.size)
    known = moves
    if "regime" in exogenous:  # the regime is hidden: its mean, given what the file shows of it
        hidden = gate * exogenous["regime"]
        known = moves - hidden + gate * regime_mean(still + hidden, edge.size)
    shift = moves * sigma
    close = noise.close + shift
    moved = LogBars(noise.open, np.maximum(noise.high, close), np.minimum(noise.low, close), close)
    # High and low reach as far as they did, and further where the moved close asks for it.
    frame = rebuilt(bars, moved)
    if column is not None:
        frame[EDGE_COLUMN] = column
    digest = hashlib.sha256(np.ascontiguousarray(frame.drop(columns="time").to_numpy(np.float64)).tobytes()).hexdigest()
    note = f"direction erased; planted: {edge}"
    made = replace(
        bars,
        frame=frame,
        sha256=digest,
        path=Path(f"{bars.path.name.split('.')[0]}_{edge.kind}_{edge.size:g}.csv"),
        card=replace(bars.card, notes=(*bars.card.notes, note)),
    )
    return Planted(made, edge, moves, np.append(known[1:], 0.0), sigma)


def relative(frame: pd.DataFrame) -> LogBars:
    """Log open, high, low and close of every bar relative to the close before it."""
    logs = [np.log(frame[role].to_numpy(np.float64)) for role in PRICES]
    before = np.concatenate([logs[0][:1], logs[3][:-1]])
    return LogBars(*(x - before for x in logs))


def mirrored(bars: LogBars, generator: np.random.Generator) -> LogBars:
    """Turn each bar upside down with probability 1/2: (o, h, l, c) -> (-o, -l, -h, -c)."""
    down = generator.random(len(bars.close)) < 0.5
    return LogBars(
        np.where(down, -bars.open, bars.open),
        np.where(down, -bars.low, bars.high),
        np.where(down, -bars.high, bars.low),
        np.where(down, -bars.close, bars.close),
    )


def volatility(returns: FloatArray) -> FloatArray:
    """Volatility [N] of each bar's log return [N], from the bars before it.

        sigma_{t+1}^2 = sigma_t^2 + (min(r_t^2, 25 sigma_t^2) - sigma_t^2) / 100,   starts at the variance of 500 bars

    Raises:
        ValueError: the first bars do not move.
    """
    start = float(np.var(returns[:START_BARS]))
    if not start > 0:
        raise ValueError(f"the first {START_BARS} bars do not move: there is no volatility to measure an edge in")
    squares, variance, rate = np.square(returns).tolist(), start, 1 / VOLATILITY_BARS
    variances = []
    for square in squares:  # floats: 10 ms for 57,072 bars
        variances.append(variance)
        variance += rate * (min(square, LARGEST_SQUARE * variance) - variance)
    return np.sqrt(np.array(variances))


def regime_mean(z: FloatArray, size: float, flip: float = FLIP) -> FloatArray:
    """Mean [N] of m s_t before bar t, given z [N] of the bars before it: the Bayes filter for normal noise.

        log odds(s_t | z_1..t-1) = logit(b (1 - q) + (1 - b) q),   log odds(b) = log odds(s_{t-1} | ...) + 2 m z_{t-1}

    z counts within +-4, for real noise has tails that a normal filter would take for certainty.
    """
    keep = 1 - 2 * flip
    evidence = (size * np.clip(z, -LARGEST_Z, LARGEST_Z)).tolist()  # half log odds: b = (1 + tanh(m z)) / 2
    half, means = 0.0, []
    for seen in evidence:
        mean = keep * math.tanh(half)
        means.append(mean)
        half = math.atanh(mean) + seen
    return size * np.array(means)


def write_bars(bars: Bars, path: str | os.PathLike[str]) -> Path:
    """Write bars as a CSV file (gzipped if it ends in .gz) with the columns they have."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = bars.frame if bars.has_volume else bars.frame.drop(columns="volume")
    whole = {
        name: np.int64
        for name in frame.columns
        if name != "time" and name not in PRICES and (np.mod(frame[name].to_numpy(), 1) == 0).all()
    }
    text = frame.astype(whole).to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ", lineterminator="\n")
    data = text.encode()
    atomic_write(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)  # same bytes each time
    return path


def _exogenous(
    time: pd.Series, edge: Edge, generator: np.random.Generator
) -> tuple[dict[str, FloatArray], FloatArray | None]:
    """Moves [N] by kind of what does not depend on the bars; and the column [N] whose value of bar t-1 moves bar t."""
    length = len(time)
    made: dict[str, FloatArray] = {}
    column: FloatArray | None = None
    for kind in edge.single_kinds:
        if kind == "drift":
            made[kind] = np.full(length, edge.size)
        elif kind == "season":
            hours = time.to_numpy("datetime64[ns]").astype(np.int64) / NANOSECONDS_PER_HOUR % 24
            made[kind] = edge.size * np.sin(2 * np.pi * (hours - SEASON_START) / 24)
        elif kind == "regime":
            first = 1.0 if generator.random() < 0.5 else -1.0
            flips = np.where(generator.random(length) < FLIP, -1.0, 1.0)
            made[kind] = edge.size * first * np.multiply.accumulate(flips)
        elif kind == "column":
            column = _autoregressive(generator.standard_normal(length))
            made[kind] = edge.size * np.append(0.0, column[:-1])
    return made, column


def _autoregressive(noise: FloatArray) -> FloatArray:
    """AR(1) process of variance 1 [N] from normal draws [N]."""
    scale, value, values = math.sqrt(1 - PERSISTENCE**2), float(noise[0]), []
    for drawn in noise.tolist():
        values.append(value)
        value = PERSISTENCE * value + scale * drawn
    return np.array(values)


def _with_trend(still: FloatArray, moves: FloatArray, gate: FloatArray, trends: list[str], size: float) -> FloatArray:
    """Moves [N] with momentum and reversion added to `moves`; they follow z = still + moves, bar after bar."""
    total, observed = moves.tolist(), still.tolist()
    rates = [1 / TREND_BARS[kind] for kind in trends]
    # In standard deviations of the average under the null: of independent z
    spreads = [float(still.std()) * math.sqrt(rate / (2 - rate)) for rate in rates]
    signs = [TREND_SIGN[kind] * size for kind in trends]
    averages = [0.0] * len(trends)
    for t, (z, open_) in enumerate(zip(observed, gate.tolist(), strict=True)):
        for average, spread, sign in zip(averages, spreads, signs, strict=True):
            total[t] += open_ * sign * min(max(average / spread, -LARGEST_TREND), LARGEST_TREND)
        z += total[t]
        for k, rate in enumerate(rates):
            averages[k] += rate * (z - averages[k])
    return np.array(total)


def rebuilt(bars: Bars, logs: LogBars) -> pd.DataFrame:
    """The file's frame with prices from log bars, rounded to the file's digits."""
    frame = bars.frame.copy()
    digits, _ = quote_digits([bars.frame[role].to_numpy() for role in PRICES])
    closes = math.log(float(bars.frame["open"].iloc[0])) + np.cumsum(logs.close)
    before = np.concatenate([[math.log(float(bars.frame["open"].iloc[0]))], closes[:-1]])
    for role, values in zip(PRICES, logs, strict=True):
        price = np.exp(before + values)
        frame[role] = price if digits is None else np.round(price, digits)
    if not (np.isfinite(frame[list(PRICES)].to_numpy()).all() and (frame["low"] > 0).all()):
        row = int(np.flatnonzero(~(frame["low"].to_numpy() > 0) | ~np.isfinite(frame["high"].to_numpy()))[0])
        raise ValueError(
            f"{bars.path.name}: with this edge the price at bar {row} leaves what {digits} digits can write; "
            "plant a smaller edge, draw another seed, or take fewer bars"
        )
    return frame
