"""Markets made by a formula, as ordinary bar files: their best possible result is known (docs/oracles.md).

One *unit* is the standard deviation of a bar's noise (sigma = 1). A market is drawn in units; the file holds prices
in which one unit is a log return of `scale`. What an agent earns per bar, divided by `scale`, compares with the
optimum of `lit_ppo.oracles.optima`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter

from datamodules.bars.checks import calendar_of, duration, oddities, when
from datamodules.bars.data_card import DataCard
from datamodules.bars.read import Bars
from lit_ppo.store.atomic import atomic_write

Kind = Literal["regime", "predictor", "random_walk"]
NuisanceKind = Literal["iid", "random_walk", "lagged", "noisy", "mixed"]
FloatArray = NDArray[np.float64]

# The main case of ORACLES for each kind. A parameter that a kind does not list is refused, not ignored.
MAIN_PARAMETERS: dict[str, dict[str, Any]] = {
    "regime": {"q": 0.01, "mu": 0.2, "cost": 0.1, "noise": "normal", "dof": None},
    "predictor": {"rho": 0.9, "beta": 0.1, "cost": 0.3},
    "random_walk": {"cost": 0.1, "noise": "normal", "dof": None},
}
PARAMETER_NAMES = tuple(dict.fromkeys(name for known in MAIN_PARAMETERS.values() for name in known))
NUISANCE_KINDS = ("iid", "random_walk", "lagged", "noisy")
SIGNAL_COLUMN = "signal"

START_PRICE = 1000.0
# Six digits: rounding a price costs 1e-5 units at the default scale, and a spread is a whole number of points.
PRICE_DIGITS = 6
POINT = 10.0**-PRICE_DIGITS
START_TIME = np.datetime64("1971-01-04T00:00:00", "ns")  # a Monday, so early that a million quarter hours are past
END_TIME = np.datetime64("2100-01-01T00:00:00", "ns")  # the bar reader takes later times for mistakes


class Draw(NamedTuple):
    """A market in units, float64 [N] each.

    Attributes:
        returns: r_t, log return of bar t in units (close of t-1 to close of t).
        signal: "predictor" only: p_t, seen at the close of bar t; equals r_{t+1}, what the next interval earns.
        regime: "regime" only: hidden s_t = +-1, the sign of r_t's mean.
    """

    returns: FloatArray
    signal: FloatArray | None
    regime: FloatArray | None


@dataclass(frozen=True)
class SyntheticMarket:
    """A market with a known optimum.

        regime       s_t = +-1 flips with probability q before each bar; r_t = mu s_t + noise_t. s is hidden.
        predictor    p_{t+1} = rho p_t + beta eps_{t+1} is a column of the file; r_{t+1} = p_t, no noise.
        random_walk  r_t = noise_t: nothing to learn.

    The open of bar t+1 is the close of bar t, so a `next_open` fill of decision t trades at the close that was seen,
    and one unit of position earns r_{t+1} units until the next fill. Changing the position by one unit costs `cost`
    units: the file's spread is 2 * cost * scale * open.

    Attributes:
        kind: see above.
        num_bars: length of the file. A longer market of the same seed starts with the same bars.
        seed: of numpy's PCG64; the same seed gives the same file.
        q, mu: regime: flip probability per bar; mean in units.
        rho, beta: predictor: persistence per bar; innovation in units.
        cost: units per unit of position changed.
        noise, dof: "normal", or "student_t" with `dof` degrees of freedom divided by its standard deviation.
            None, here and above: the main case of ORACLES; a parameter that the kind does not have must stay None.
        scale: log return of one unit. The larger, the more log(1 + n) differs from n: by scale / 2 units per bar held.
        nuisances: number of useless extra columns nuisance_00, nuisance_01, ...
        nuisance_kind: iid (normal), random_walk, lagged (column k repeats the observed series of k + 1 bars before),
            noisy (observed series plus as much noise again), or mixed (the four in turn). The observed series is the
            signal of a predictor, else the return.
        bar_seconds: distance of two bars; the market never closes.
    """

    kind: Kind = "regime"
    num_bars: int = 20_000
    seed: int = 0
    q: float | None = None
    mu: float | None = None
    rho: float | None = None
    beta: float | None = None
    cost: float | None = None
    noise: Literal["normal", "student_t"] | None = None
    dof: float | None = None
    scale: float = 1e-4
    nuisances: int = 0
    nuisance_kind: NuisanceKind = "iid"
    bar_seconds: int = 900

    def __post_init__(self) -> None:
        if self.kind not in MAIN_PARAMETERS:
            raise ValueError(f"synthetic.kind must be one of {', '.join(MAIN_PARAMETERS)}, got {self.kind!r}")
        known = MAIN_PARAMETERS[self.kind]
        foreign = [name for name in PARAMETER_NAMES if name not in known and getattr(self, name) is not None]
        if foreign:
            raise ValueError(
                f"a synthetic market of kind {self.kind!r} has the parameters {', '.join(known)}; "
                f"remove {', '.join(foreign)}"
            )
        if self.nuisance_kind not in (*NUISANCE_KINDS, "mixed"):
            raise ValueError(
                f"synthetic.nuisance_kind must be one of {', '.join(NUISANCE_KINDS)}, mixed; got {self.nuisance_kind!r}"
            )
        values = self.parameters
        if values.get("noise", "normal") not in ("normal", "student_t"):
            raise ValueError(f"synthetic.noise must be normal or student_t, got {values['noise']!r}")
        if (values.get("noise") == "student_t") != (values.get("dof") is not None):
            raise ValueError(
                f"synthetic.dof belongs to noise student_t, and student_t needs it; "
                f"got noise {values['noise']!r} and dof {values['dof']}"
            )
        self._require("num_bars", self.num_bars, self.num_bars >= 3, ">= 3")
        self._require("seed", self.seed, self.seed >= 0, ">= 0")
        self._require("nuisances", self.nuisances, 0 <= self.nuisances <= 1000, "in [0, 1000]")
        self._require("scale", self.scale, 0 < self.scale <= 0.01, "in (0, 0.01]")
        self._require("bar_seconds", self.bar_seconds, self.bar_seconds >= 1, ">= 1")
        for name, low, high in (("q", 0, 0.5), ("mu", 0, 10), ("rho", 0, 1), ("beta", 0, 10), ("cost", 0, 10)):
            if name in values:
                inside = low <= values[name] < high if name in ("rho", "cost", "mu") else low < values[name] <= high
                self._require(name, values[name], inside, f"between {low} and {high}")
        if values.get("dof") is not None:
            self._require("dof", values["dof"], values["dof"] > 2, "> 2, or the noise has no variance")

    @staticmethod
    def _require(name: str, value: float, holds: bool, condition: str) -> None:
        if not holds:
            raise ValueError(f"synthetic.{name} must be {condition}, got {value}")

    @property
    def parameters(self) -> dict[str, Any]:
        """The kind's own parameters, main values filled in: the arguments of `lit_ppo.oracles.optima.solve`."""
        given = {name: getattr(self, name) for name in MAIN_PARAMETERS[self.kind]}
        return {name: MAIN_PARAMETERS[self.kind][name] if v is None else v for name, v in given.items()}

    def draw(self) -> Draw:
        """Draw the market in units."""
        n, values = self.num_bars, self.parameters
        if self.kind == "predictor":
            rho, beta = values["rho"], values["beta"]
            shocks = self._generator("signal").standard_normal(n + 1)
            before = shocks[0] * beta / np.sqrt(1 - rho**2)  # p_{-1}, from the stationary distribution
            filtered, _ = lfilter([1.0], [1.0, -rho], beta * shocks[1:], zi=[rho * before])
            signal = filtered.astype(np.float64)
            return Draw(np.append(before, signal[:-1]), signal, None)
        noise = self._noise(n, values)
        if self.kind == "random_walk":
            return Draw(noise, None, None)
        flips = self._generator("regime").random(n)
        switched = flips < values["q"]
        switched[0] = flips[0] < 0.5  # either regime at the start
        regime = (1 - 2 * (np.cumsum(switched) & 1)).astype(np.float64)
        return Draw(values["mu"] * regime + noise, None, regime)

    def frame(self) -> pd.DataFrame:
        """Bars as a table: time (UTC), open, high, low, close, volume, spread in points, then the extra columns."""
        most = int((END_TIME - START_TIME) // np.timedelta64(self.bar_seconds, "s"))
        if self.num_bars > most:
            raise ValueError(
                f"synthetic.num_bars is {self.num_bars}; only {most} bars of {self.bar_seconds} seconds fit between "
                f"{START_TIME} and {END_TIME}; ask for fewer or make synthetic.bar_seconds smaller"
            )
        draw = self.draw()
        close = np.round(START_PRICE * np.exp(self.scale * np.cumsum(draw.returns)), PRICE_DIGITS)
        open_ = np.concatenate(([START_PRICE], close[:-1]))
        time = START_TIME + np.arange(self.num_bars) * np.timedelta64(self.bar_seconds, "s")
        columns: dict[str, Any] = {
            "time": pd.DatetimeIndex(time, tz="UTC").as_unit("ns"),
            "open": open_,
            "high": np.maximum(open_, close),
            "low": np.minimum(open_, close),
            "close": close,
            "volume": self._generator("volume").integers(100, 1000, self.num_bars).astype(np.float64),
            # Half of it over the open is cost * scale: what costs.fill_arrays charges a next_open fill.
            "spread": np.round(2 * self.parameters["cost"] * self.scale * open_ / POINT),
        }
        if draw.signal is not None:
            columns[SIGNAL_COLUMN] = np.round(draw.signal, PRICE_DIGITS)
        observed = draw.returns if draw.signal is None else draw.signal
        for k in range(self.nuisances):
            columns[f"nuisance_{k:02d}"] = np.round(self._nuisance(k, observed), PRICE_DIGITS)
        return pd.DataFrame(columns)

    def bars(self) -> Bars:
        """Build the bars that `read_bars` gives for the written file, without writing it.

        Their sha256 is that of the columns in memory; `path` names the market, there is no such file.
        """
        frame = self.frame()
        columns = {name: frame[name].to_numpy(np.float64) for name in frame.columns if name != "time"}
        digest = hashlib.sha256(repr((list(columns), self.bar_seconds)).encode())
        for values in columns.values():
            digest.update(values.tobytes())
        time = frame["time"].to_numpy("datetime64[ns]").astype(np.int64)
        calendar = calendar_of(time)
        spread = float(np.median(columns["spread"]))
        card = DataCard(
            name=f"synthetic {self.kind}, seed {self.seed}",
            sha256=digest.hexdigest(),
            size_bytes=sum(values.nbytes for values in columns.values()),
            dialect={"style": "made by a formula", "time zone": "UTC"},
            columns={name: name for name in frame.columns},
            rows_read=len(frame),
            rows_kept=len(frame),
            dropped={},
            first=when(time[0]),
            last=when(time[-1]),
            bar=duration(calendar.bar),
            bar_seconds=self.bar_seconds,
            bars_per_year=calendar.bars_per_year,
            gaps=calendar.gaps,
            missing_bars=calendar.missing_bars,
            longest_gap="none",
            steps=tuple(f"{duration(step)} x {count:,}" for step, count in calendar.top_steps),
            point=POINT,
            point_source="given",
            spread=f"median {spread:g} points = {spread * POINT:g}",
            notes=(f"parameters: {self.parameters}",),
            warnings=tuple(oddities(time, columns, POINT)),
        )
        path = Path(f"synthetic_{self.kind}_{self.seed}.csv")
        return Bars(frame, POINT, self.bar_seconds, calendar.bars_per_year, card.sha256, path, card)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the market as a CSV file (gzipped if it ends in .gz) that the bar reader takes like any other."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = self.frame()
        for name in ("volume", "spread"):
            frame[name] = frame[name].astype(np.int64)
        text = frame.to_csv(
            index=False, float_format=f"%.{PRICE_DIGITS}f", date_format="%Y-%m-%dT%H:%M:%SZ", lineterminator="\n"
        )
        data = text.encode()
        atomic_write(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)  # same bytes each time
        return path

    def _noise(self, n: int, values: dict[str, Any]) -> FloatArray:
        generator = self._generator("noise")
        if values["noise"] == "normal":
            return generator.standard_normal(n)
        dof = values["dof"]
        return generator.standard_t(dof, n) * np.sqrt((dof - 2) / dof)

    def _nuisance(self, k: int, observed: FloatArray) -> FloatArray:
        """Column k [N]; causal: row t knows bars <= t only."""
        kind = NUISANCE_KINDS[k % len(NUISANCE_KINDS)] if self.nuisance_kind == "mixed" else self.nuisance_kind
        if kind == "lagged":
            return np.concatenate((np.zeros(k + 1), observed))[: len(observed)]
        own = self._generator("nuisance", k).standard_normal(len(observed))
        if kind == "iid":
            return own
        if kind == "random_walk":
            return np.cumsum(own)
        return observed + own * self._observed_std

    @property
    def _observed_std(self) -> float:
        """Stationary standard deviation of the observed series, in units."""
        values = self.parameters
        if self.kind == "predictor":
            return float(values["beta"] / np.sqrt(1 - values["rho"] ** 2))
        return float(np.sqrt(1 + values.get("mu", 0.0) ** 2))

    def _generator(self, purpose: str, index: int = 0) -> np.random.Generator:
        """One stream for each purpose, so that asking for more of one leaves the others as they are."""
        key = [self.seed, index, *purpose.encode()]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
