"""The prior: a declared distribution over markets, drawn fresh without end (docs/prior.md).

    market k of seed s -> noise (tails, volatility that clusters, sessions) + edges (kinds, sizes, begin and end)
        -> core features, prices, costs -> stretches for the learner

A market is a function of (seed, k) alone, so that a training resumes bit for bit without keeping one. No real bar was
used to make this, to choose its numbers, or to train on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter

from datamodules.features.core import NAMES, PARITY, START_BARS, core_features, core_volatility, hurdle_feature
from datamodules.planted import regime_mean
from lit_ppo.market.stretches import MarketStretches
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.seeding import derive_seed

FloatArray = NDArray[np.float64]
Range = tuple[float, float]

KINDS = ("regime", "trend", "season", "drift")
UNIT = 0.01  # of a reward: one volatility is a return of 1 %
FEATURES = (*(f"core_{name}" for name in NAMES), "core_hurdle")
FEATURE_PARITY = (*PARITY, 1)
MONDAY = 4 * 86_400  # 1970-01-05
DAY = 86_400


@dataclass(frozen=True)
class Prior:
    """The distribution. A range is drawn from log-uniformly, unless its meaning says otherwise.

    Attributes:
        bars: length of a market.
        bar_seconds: lengths of a bar, equally likely.
        nothing: probability that there is no edge at all.
        kinds: weights of regime, trend (momentum and reversion), season and drift.
        several: probabilities of two and of three kinds at once, of the markets with an edge.
        switching: probability that a kind is active in parts of the market only.
        regime, regime_flip: size in volatilities a bar, flips a bar.
        trend, trend_bars: size; bars of the average that is followed (or faded, as likely).
        season: size of a wave of one turn a day, or two (one in four), at any phase.
        drift: size.
        plain: probability of normal noise of constant volatility.
        degrees_of_freedom: of the noise's t distribution otherwise.
        clustering: standard deviation of the log volatility (uniform).
        clustering_bars: its memory.
        day_pattern: amplitude of the log volatility's daily wave (uniform).
        jumps: probability a bar of a jump of 3 to 8 volatilities (uniform).
        cost: of changing the position by one, in volatilities.
        hurdle: charge per bar held, in volatilities; the policy is told.
    """

    bars: Range = (500, 50_000)
    bar_seconds: Sequence[int] = (60, 300, 900, 900, 1800, 3600, 14_400, 86_400)
    nothing: float = 0.25
    kinds: Sequence[float] = (0.4, 0.25, 0.2, 0.15)
    several: tuple[float, float] = (0.25, 0.05)
    switching: float = 0.3
    regime: Range = (0.03, 0.5)
    regime_flip: Range = (0.002, 0.05)
    trend: Range = (0.02, 0.3)
    trend_bars: Range = (2, 60)
    season: Range = (0.02, 0.25)
    drift: Range = (0.005, 0.12)
    plain: float = 0.3
    degrees_of_freedom: Range = (3, 30)
    clustering: Range = (0.1, 0.7)
    clustering_bars: Range = (20, 2_000)
    day_pattern: Range = (0.0, 0.6)
    jumps: Range = (0.0, 0.003)
    cost: Range = (0.005, 0.4)
    hurdle: Range = (0.0003, 0.006)

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        for name in ("bars", "regime", "regime_flip", "trend", "trend_bars", "season", "drift", "cost", "hurdle"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"prior.{name} is a range 0 < low <= high, got {low} to {high}")
        for name in ("nothing", "switching", "plain"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"prior.{name} is a probability, got {getattr(self, name)}")
        if len(self.kinds) != len(KINDS) or min(self.kinds) < 0 or not sum(self.kinds):
            raise ValueError(f"prior.kinds are weights of {', '.join(KINDS)}, got {self.kinds}")
        if self.degrees_of_freedom[0] <= 2:
            raise ValueError(f"prior.degrees_of_freedom must be above 2, for a variance, got {self.degrees_of_freedom}")
        if self.bars[0] < 2 * START_BARS:
            raise ValueError(f"prior.bars must be at least {2 * START_BARS}, got {self.bars[0]}")


@dataclass(frozen=True)
class Edge:
    """One edge of a market: what it is, its size in volatilities a bar, and its parameters by name."""

    kind: str
    size: float
    parameters: dict[str, float] = field(default_factory=dict)
    switches: bool = False


@dataclass(frozen=True)
class PriorMarket:
    """One market, [N] each.

    Attributes:
        log_return: of the closes.
        seconds: open time of each bar, since 1970 UTC.
        bar_seconds: length of a bar.
        cost: of changing the position by one, fraction of notional.
        sigma: volatility of each bar known before it, of the noise alone.
        moves: what bar t's return is on average, given all that was drawn for it, in sigma; the rest is noise.
        known: what can be known of each move before its bar, in sigma, edge by edge; called where it takes a filter.
        hurdle: charge per bar held, volatilities.
        edges: what there is to find.
    """

    log_return: FloatArray
    seconds: NDArray[np.int64]
    bar_seconds: int
    cost: FloatArray
    sigma: FloatArray
    moves: FloatArray
    known: tuple[FloatArray | Callable[[], FloatArray], ...]
    hurdle: float
    edges: tuple[Edge, ...]

    @cached_property
    def forecast(self) -> FloatArray:
        """What can be known at the close of bar t of the move of bar t + 1, in sigma; the last one 0."""
        known = np.zeros(len(self.moves))
        for part in self.known:
            known += part() if callable(part) else part
        return np.append(known[1:], 0.0)

    def features(self, wanted: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """[N, F] float32: the core features and the hurdle; of rows that are not `wanted` [N], anything."""
        features = core_features(self.log_return, self.seconds, self.bar_seconds, self.cost, wanted, room=1)
        features[slice(None) if wanted is None else wanted, -1] = hurdle_feature(self.hurdle)
        return features


def draw_market(prior: Prior, seed: int, index: int) -> PriorMarket:
    """Market `index` of `seed`."""
    g, length = _begin(prior, seed, index)
    bar_seconds = int(g.choice(np.asarray(prior.bar_seconds)))
    seconds = _calendar(g, length, bar_seconds)
    edges = draw_edges(prior, g)
    hurdle, cost = _log_uniform(g, prior.hurdle), _log_uniform(g, prior.cost)
    return make_market(prior, g, seconds, bar_seconds, edges, cost, hurdle)


def _begin(prior: Prior, seed: int, index: int) -> tuple[np.random.Generator, int]:
    """The generator of a market, and its first draw: the market's length."""
    g = np.random.default_rng(derive_seed(seed, index, "market"))
    return g, int(_log_uniform(g, prior.bars))


def draw_edges(prior: Prior, g: np.random.Generator) -> tuple[Edge, ...]:
    """None, one, two or three edges."""
    if g.random() < prior.nothing:
        return ()
    weights = np.asarray(prior.kinds, dtype=np.float64) / sum(prior.kinds)
    two, three = prior.several
    drawn = g.random()
    count = 3 if drawn < three else 2 if drawn < two + three else 1
    chosen = g.choice(len(KINDS), size=min(count, int((weights > 0).sum())), replace=False, p=weights)
    return tuple(_edge(prior, g, KINDS[kind]) for kind in chosen)


def _edge(prior: Prior, g: np.random.Generator, kind: str) -> Edge:
    size = _log_uniform(g, getattr(prior, kind))
    parameters: dict[str, float] = {}
    if kind == "regime":
        parameters["flip"] = _log_uniform(g, prior.regime_flip)
    elif kind == "trend":
        parameters = {"bars": _log_uniform(g, prior.trend_bars), "sign": float(g.choice([-1.0, 1.0]))}
    elif kind == "season":
        parameters = {"turns": float(g.choice([1, 1, 1, 2])), "phase": g.uniform(0, 2 * math.pi)}
    else:
        parameters["sign"] = float(g.choice([-1.0, 1.0]))
    return Edge(kind, size, parameters, bool(g.random() < prior.switching))


def make_market(
    prior: Prior,
    g: np.random.Generator,
    seconds: NDArray[np.int64],
    bar_seconds: int,
    edges: tuple[Edge, ...],
    cost: float,
    hurdle: float,
) -> PriorMarket:
    """Noise of the prior with these edges; `cost` in volatilities."""
    noise = _noise(prior, g, seconds)
    sigma = core_volatility(noise)
    sigma[:2] = sigma[2]
    still = noise / sigma
    length = len(noise)
    moves = np.zeros(length)
    known: list[FloatArray | Callable[[], FloatArray]] = []
    trends: list[tuple[FloatArray, float]] = []
    for edge in edges:
        gate = _gate(g, length) if edge.switches else np.ones(length)
        if edge.kind == "trend":
            trends.append((gate * edge.size * edge.parameters["sign"], edge.parameters["bars"]))
            continue
        if edge.kind == "drift":
            move = np.full(length, edge.size * edge.parameters["sign"])
        elif edge.kind == "season":
            angle = seconds % DAY * (2 * math.pi / DAY)
            move = edge.size * np.sin(edge.parameters["turns"] * angle + edge.parameters["phase"])
            if bar_seconds >= DAY:
                move[:] = 0.0
        else:
            flip = edge.parameters["flip"]
            signs = np.where(g.random(length) < flip, -1.0, 1.0)
            hidden = edge.size * g.choice([-1.0, 1.0]) * np.multiply.accumulate(signs)
            moves += gate * hidden
            known.append(partial(_believed, gate, still + hidden, edge.size, flip))
            continue
        moves += gate * move
        known.append(gate * move)
    for scale, bars in trends:
        added = np.empty(length)
        _follow(still, moves, scale, bars, added)
        moves = moves + added
        known.append(added)
    rate = cost * float(np.median(sigma)) * np.exp(0.2 * g.standard_normal(length))
    return PriorMarket(
        log_return=noise + sigma * moves,
        seconds=seconds,
        bar_seconds=bar_seconds,
        cost=rate,
        sigma=sigma,
        moves=moves,
        known=tuple(known),
        hurdle=hurdle,
        edges=edges,
    )


def _believed(gate: FloatArray, seen: FloatArray, size: float, flip: float) -> FloatArray:
    return gate * regime_mean(seen, size, flip)


@numba.njit(cache=True, nogil=True)
def _follow(still, moves, scale, bars, added):  # type: ignore[no-untyped-def]
    """Moves that follow (or fade) the average of what the market shows, these moves included."""
    rate = 1.0 / bars
    spread = math.sqrt(rate / (2.0 - rate))
    average = 0.0
    for t in range(len(still)):
        x = min(max(average / spread, -2.0), 2.0)
        added[t] = scale[t] * x
        average += rate * (still[t] + moves[t] + added[t] - average)


def _log_uniform(g: np.random.Generator, bounds: Range) -> float:
    return math.exp(g.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _calendar(g: np.random.Generator, length: int, bar_seconds: int) -> NDArray[np.int64]:
    """Open times of bars: every hour of every day, five days a week with a daily break, or a day session."""
    kind = g.choice(["always", "week", "session"], p=[0.2, 0.5, 0.3])
    first = MONDAY + DAY * int(g.integers(0, 15_000))
    if bar_seconds >= DAY or kind == "always":
        days = 7 if kind == "always" else 5
        if bar_seconds >= DAY:
            index = np.arange(length)
            return first + (index // days * 7 + index % days) * DAY
        return first + np.arange(length) * bar_seconds
    opening, hours = (0, 23) if kind == "week" else (int(g.integers(0, 24)), int(g.integers(6, 11)))
    of_day = np.arange(max(hours * 3600 // bar_seconds, 1)) * bar_seconds + opening * 3600
    index = np.arange(length)
    day = index // len(of_day)
    return first + (day // 5 * 7 + day % 5) * DAY + of_day[index % len(of_day)]


def _noise(prior: Prior, g: np.random.Generator, seconds: NDArray[np.int64]) -> FloatArray:
    """Log returns [N] without direction."""
    length = len(seconds)
    base = _log_uniform(g, (1e-4, 1e-2))
    if g.random() < prior.plain:
        return base * g.standard_normal(length)
    dof = _log_uniform(g, prior.degrees_of_freedom)
    shocks = g.standard_t(dof, length) / math.sqrt(dof / (dof - 2))
    deviation = g.uniform(*prior.clustering)
    keep = math.exp(-1 / _log_uniform(g, prior.clustering_bars))
    driver = g.standard_normal(length) * deviation * math.sqrt(1 - keep**2)
    driver[0] = g.standard_normal() * deviation
    log_volatility = lfilter([1.0], [1.0, -keep], driver)
    pattern = g.uniform(*prior.day_pattern) * np.cos(seconds % DAY * (2 * math.pi / DAY) + g.uniform(0, 2 * math.pi))
    jump = np.where(g.random(length) < g.uniform(*prior.jumps), g.uniform(3, 8, length), 1.0)
    return base * np.exp(log_volatility + pattern) * shocks * jump


def _gate(g: np.random.Generator, length: int) -> FloatArray:
    """1 in parts of the market, 0 in others: one to four borders at random."""
    borders = np.sort(g.integers(0, length, size=int(g.integers(1, 5))))
    gate = (np.searchsorted(borders, np.arange(length), side="right") + int(g.integers(2))) % 2
    return gate.astype(np.float64)


@dataclass(frozen=True)
class _Drawn:
    """A market as the learner reads it: [N] each, features [N, F] float32.

    A position earns the mean of the coming bar's return, which the drawing knows, in the place of the return itself.
    The noise of a bar is independent of all before it, so that the gradient's mean is the same, and its variance is
    hundreds of times smaller (Rao and Blackwell). The policy still sees nothing but the past.
    """

    features: NDArray[np.float32]
    price_return: FloatArray  # UNIT times the mean of the coming bar's return, in current volatilities
    turnover_cost: FloatArray  # UNIT times the cost in current volatilities
    carry: float

    @classmethod
    def of(cls, market: PriorMarket, wanted: NDArray[np.bool_]) -> _Drawn:
        sigma = core_volatility(market.log_return)
        sigma = np.append(sigma[1:], sigma[-1])
        mean = np.append((market.moves * market.sigma)[1:], 0.0) / np.maximum(sigma, 1e-12)
        return cls(
            market.features(wanted),
            UNIT * np.clip(mean, -1.0, 1.0),
            UNIT * np.minimum(market.cost / np.maximum(sigma, 1e-12), 5.0),
            UNIT * market.hurdle,
        )


class _Plan(NamedTuple):
    """What one iteration reads: bars of context, and market and first decision of each stretch."""

    burn_in: int
    markets: list[int]
    starts: list[int]


class PriorStream:
    """Stretches of markets of the prior, other ones in every iteration: a `lit_ppo.market.stretches.MarketStream`.

    A ring of the newest `ring` markets is kept; every iteration draws `fresh` new ones in the place of the oldest, on
    torch's threads. Features are found for the rows that some iteration will read, for those are known in advance.

    Args:
        prior: the distribution.
        seed: of markets and stretches; every rank has its own.
        ring, fresh: number of markets.
        contexts: bars of context without gradient, one of them an iteration; with `context_weights`.
    """

    feature_names, feature_parity = FEATURES, FEATURE_PARITY

    def __init__(
        self,
        prior: Prior,
        seed: int,
        ring: int = 256,
        fresh: int = 10,
        contexts: Sequence[int] = (64, 256, 1_000),
        context_weights: Sequence[float] = (0.6, 0.3, 0.1),
        device: torch.device | str = "cpu",
    ) -> None:
        if ring < fresh or fresh < 1:
            raise ValueError(f"a ring of {ring} markets cannot take {fresh} fresh ones an iteration")
        self.prior, self.seed, self.size, self.fresh = prior, seed, ring, fresh
        self.contexts, self.weights = tuple(contexts), np.asarray(context_weights) / sum(context_weights)
        self.device = torch.device(device)
        self._shape = (0, 0)  # sequences and steps of what follows
        self._ring: dict[int, _Drawn] = {}
        self._plans: dict[int, _Plan] = {}
        self._lengths: dict[int, int] = {}

    def of_rank(self, rank: int) -> PriorStream:
        if rank == 0:
            return self
        other = derive_seed(self.seed, rank, "rank")
        return PriorStream(self.prior, other, self.size, self.fresh, self.contexts, self.weights.tolist(), self.device)

    def to(self, device: torch.device | str) -> PriorStream:
        if torch.device(device) == self.device:
            return self
        return PriorStream(self.prior, self.seed, self.size, self.fresh, self.contexts, self.weights.tolist(), device)

    def _length(self, index: int) -> int:
        if index not in self._lengths:
            self._lengths[index] = _begin(self.prior, self.seed, index)[1]
        return self._lengths[index]

    def _plan(self, iteration: int) -> _Plan:
        """A function of (seed, iteration), and of the shape."""
        if iteration not in self._plans:
            num_sequences, num_steps = self._shape
            g = np.random.default_rng(derive_seed(self.seed, iteration, "stretches"))
            burn_in = int(self.contexts[g.choice(len(self.contexts), p=self.weights)])
            if num_sequences <= self.size:
                chosen = g.permutation(self.size)[:num_sequences]
            else:
                chosen = g.integers(self.size, size=num_sequences)
            markets = (iteration * self.fresh + chosen).tolist()
            lasts = [self._length(index) - START_BARS - num_steps - 1 for index in markets]
            starts = [START_BARS + int(g.integers(max(last, 1))) for last in lasts]
            self._plans[iteration] = _Plan(burn_in, markets, starts)
        return self._plans[iteration]

    def _draw(self, index: int) -> _Drawn:
        """Market `index`, with the features that any iteration of its life reads."""
        wanted = np.zeros(self._length(index), dtype=np.bool_)
        for iteration in range(max(0, (index - self.size) // self.fresh + 1), index // self.fresh + 1):
            plan = self._plans[iteration]
            for market, start in zip(plan.markets, plan.starts, strict=True):
                if market == index:
                    wanted[max(start - plan.burn_in, 0) : start + self._shape[1] + 1] = True
        return _Drawn.of(draw_market(self.prior, self.seed, index), wanted)

    def _fill(self, iteration: int, num_sequences: int, num_steps: int) -> _Plan:
        """Make ready what an iteration reads; returns its plan."""
        first, last = iteration * self.fresh, iteration * self.fresh + self.size - 1
        life = range(max(0, (first - self.size) // self.fresh + 1), last // self.fresh + 1)  # of all these markets
        if self._shape != (num_sequences, num_steps):
            self._shape = num_sequences, num_steps
            self._plans.clear()
            self._ring.clear()
        for kept, needed in ((self._ring, range(first, last + 1)), (self._plans, life)):
            for old in [key for key in kept if key not in needed]:
                del kept[old]  # type: ignore[attr-defined]
        for ahead in life:
            self._plan(ahead)
        self._lengths = {index: length for index, length in self._lengths.items() if index >= life[0] * self.fresh}
        plan = self._plans[iteration]
        missing = sorted(set(plan.markets) - set(self._ring), key=self._length, reverse=True)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the longest first, so that all end together
            self._ring.update(zip(missing, pool.map(self._draw, missing), strict=True))
        return plan

    def draw(self, iteration: int, num_sequences: int, num_steps: int) -> tuple[MarketTensors, MarketStretches]:
        """The stretches of one iteration, a function of (seed, iteration)."""
        burn_in, markets, starts = self._fill(iteration, num_sequences, num_steps)
        needed = burn_in + num_steps + 1
        features = np.zeros((needed, num_sequences, len(FEATURES)), dtype=np.float32)
        columns = {name: np.zeros((num_steps, num_sequences)) for name in ("price_return", "turnover_cost", "carry")}
        for s, (index, start) in enumerate(zip(markets, starts, strict=True)):
            market = self._ring[index]
            begin = max(start - burn_in, 0)
            seen_of_it = market.features[begin : start + num_steps + 1]
            features[needed - len(seen_of_it) :, s] = seen_of_it
            own = slice(start, start + num_steps)
            columns["price_return"][:, s] = market.price_return[own]
            columns["turnover_cost"][:, s] = market.turnover_cost[own]
            columns["carry"][:, s] = market.carry
        flat = {name: torch.from_numpy(values.reshape(-1)).to(self.device) for name, values in columns.items()}
        seen = torch.from_numpy(features).to(self.device)
        count = num_steps * num_sequences
        tensors = MarketTensors(
            features=seen[burn_in:-1].reshape(count, -1),
            price_return=flat["price_return"],
            turnover_cost=flat["turnover_cost"],
            carry_long=flat["carry"],
            carry_short=flat["carry"],
            fill_price=torch.ones(count, dtype=torch.float64, device=self.device),
            time=torch.zeros(count, dtype=torch.int64, device=self.device),
            first_bar=0,
            warmup=0,
            reward_scale=UNIT,
            bars_per_year=1.0,
            feature_names=FEATURES,
            feature_parity=FEATURE_PARITY,
        )
        rows = torch.arange(count, device=self.device).view(num_steps, num_sequences)
        return tensors, MarketStretches(seen, rows, None, None, burn_in)
