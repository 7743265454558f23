"""New bars as the policy of a checkpoint sees them: its own features, scaler and kind of bars.

What a checkpoint keeps of its data (`WalkForwardDataModule.state_dict`) is enough; the bars it was trained on are not
needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.bars.options import ReaderOptions
from datamodules.bars.read import read_bars
from datamodules.features.compute import (
    FeatureSpec,
    compute_features,
    features_key,
    load_features,
    sees_costs,
    warmup_bars,
)
from datamodules.features.scaling import CLIP, Scaler
from lit_ppo.market.costs import Costs, FillArrays, bar_times, fill_arrays, known_cost

READER_OPTIONS = tuple(option.name for option in fields(ReaderOptions))


@dataclass(frozen=True)
class Feed:
    """The way from a bar file to the inputs of one checkpoint's policy.

    Attributes:
        specs: its features.
        scaler: fitted on the train bars of its fold.
        bar_seconds, point: of the bars it was trained on; new ones must have the same. 0: a policy for any bars, which
            is `settled` on those of one file before it decides.
        memory_bars: bars that warm the LSTM up before the first decision.
        other_code: the features were computed by another release of our code, TA-Lib, numpy or pandas in training.
        costs, fill: of the training: what an account earns and pays; costs as plain data, see `Costs.from_dict`.
        allow_modules: modules that a cost model may be imported from.
        seen_until: open time of the last bar that training or the choice of the weights read, nanoseconds since 1970
            UTC; decisions up to it are not out of sample.
        reader: options of the bar reader.
    """

    specs: Sequence[FeatureSpec]
    scaler: Scaler
    bar_seconds: float
    point: float
    memory_bars: int
    other_code: bool
    costs: Mapping[str, Any]
    allow_modules: Sequence[str]
    fill: str
    seen_until: int
    reader: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        trained: Mapping[str, Any],
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        allow_modules: Sequence[str] = (),
    ) -> Feed:
        """Build it from what a checkpoint keeps of its data.

        Args:
            trained: the datamodule's state in the checkpoint.
            settings: `data.*` of the run's configuration; empty where there is none.
            options: of the bar reader, over those of the configuration; None where it holds.
            allow_modules: modules that features may be imported from, besides this project's.

        Raises:
            ValueError: the features cannot be made, or are not those of the checkpoint.
        """
        fingerprint = trained["fingerprint"]
        entries = trained.get("features") or settings.get("features")  # older checkpoints kept the labels only
        if entries is None:
            raise ValueError(
                "The checkpoint holds the names of its features, not their parameters, and there is no config.yaml "
                "of its run to read them from. Give the run's folder, results/<seed>"
            )
        specs = load_features(entries, allow_modules)
        labels = [spec.label for spec in specs]
        if labels != fingerprint.get("features", labels):  # the prior trader's have no data that they were made of
            raise ValueError(
                f"The checkpoint was trained with the features {', '.join(fingerprint['features'])}, but data.features "
                f"of its run gives {', '.join(labels)}. Restore the list or the file that it names"
            )
        mean, std = (np.array(trained["scaler"][name]) for name in ("mean", "std"))
        reader = {name: settings.get(name) for name in READER_OPTIONS}
        reader |= {name: value for name, value in options.items() if value is not None}
        return cls(
            specs=specs,
            scaler=Scaler(mean, std, trained["reward_scale"]),
            bar_seconds=fingerprint["bar_seconds"],
            point=fingerprint["point"],
            memory_bars=fingerprint["warmup_bars"],
            other_code=features_key(specs) != fingerprint.get("features_sha256", features_key(specs)),
            costs=fingerprint["costs"],
            allow_modules=allow_modules,
            fill=fingerprint["fill"],
            # Older checkpoints do not keep it: then the end of the file they were trained from bounds it.
            seen_until=pd.Timestamp(trained.get("seen_until", fingerprint["last_time"])).as_unit("ns").value,
            reader={name: value for name, value in reader.items() if value is not None},
        )

    @property
    def warmup(self) -> int:
        """Bars before the first one that has every feature."""
        return warmup_bars(self.specs)

    @property
    def reward_scale(self) -> float:
        """Standard deviation of the price return on the train bars."""
        return self.scaler.reward_scale

    def settled(self, path: str | Path) -> Feed:
        """For bars like those of this file, where the policy trades any; else itself.

        Raises:
            BarFileError: the file cannot be used.
        """
        if self.bar_seconds:
            return self
        bars = read_bars(path, **self.reader)
        return self.like(bars.bar_seconds, bars.point)

    def like(self, bar_seconds: float, point: float) -> Feed:
        """For bars of this length and point."""
        return replace(self, bar_seconds=bar_seconds, point=point)

    def read(self, path: str | Path) -> dict[str, np.ndarray]:
        """Read and check a bar file.

        Returns:
            time [N] int64, nanoseconds since 1970 UTC, and every other column [N] float64.

        Raises:
            BarFileError: the file cannot be used.
            ValueError: bars of another length or point than those of the training.
        """
        bars = read_bars(path, **self.reader)
        if bars.bar_seconds != self.bar_seconds:
            raise ValueError(
                f"The policy decides on bars of {self.bar_seconds:g} seconds, but {bars.path.name} has bars of "
                f"{bars.bar_seconds:g}. Give bars of the same length"
            )
        if not np.isclose(bars.point, self.point, rtol=1e-9, atol=0):
            raise ValueError(
                f"The policy decides on quotes with a point of {self.point:g}, but {bars.path.name} has one of "
                f"{bars.point:g}. Give bars of the same feed; if the digits mislead, pass --point {self.point:g}"
            )
        columns = {name: bars.frame[name].to_numpy(np.float64) for name in bars.frame.columns if name != "time"}
        return {"time": bar_times(bars.frame), **columns}

    def features(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the features [N, F] float32, not scaled; NaN within a feature's warm-up."""
        frame = _frame(columns)
        cost = None
        if sees_costs(self.specs):
            costs = Costs.from_dict(self.costs, self.allow_modules)
            if costs.spread == "file" and "spread" not in frame:
                raise ValueError(
                    "This policy sees what trading costs, with each bar's own spread (costs.spread is 'file'), and the "
                    "bars have no spread column. Give bars with one; for the prior trader name it: --spread 1.5bp"
                )
            cost = known_cost(frame, costs, self.point, "the bars seen")
        return compute_features(frame, self.specs, self.bar_seconds, cost=cost)

    def fills(self, columns: Mapping[str, np.ndarray]) -> FillArrays:
        """Fill prices and costs [N] as in training; NaN where they lie beyond the bars.

        Raises:
            ValueError: the training took the spread from its bars, and these have none; or its cost model is in a
                module that is not allowed.
        """
        costs = Costs.from_dict(self.costs, self.allow_modules)
        if costs.spread == "file" and "spread" not in columns:
            raise ValueError(
                "The policy sees what its account has earned, with the spread that stands in the bar file, but the new "
                "bars have no spread column. Give bars with one, or train with a number for data.costs.spread"
            )
        return fill_arrays(_frame(columns), costs, self.fill, self.point, "the bars seen")

    def scale(self, features: np.ndarray) -> np.ndarray:
        """Scale features [N, F] as in training: float32."""
        return self.scaler.apply(features)

    def describe(self) -> dict[str, Any]:
        """What a program needs to compute and scale the features by itself, as plain JSON."""
        features = [
            {"name": spec.label, "entry": spec.entry, "warmup_bars": spec.warmup, "parity": spec.parity}
            for spec in self.specs
        ]
        return {
            "features": features,
            "scaler": {**self.scaler.to_dict(), "clip": CLIP},
            "reward_scale": self.scaler.reward_scale,
            "bar_seconds": self.bar_seconds,
            "point": self.point,
            "warmup_bars": self.memory_bars,
            "seen_until": pd.Timestamp(self.seen_until, tz="UTC").isoformat(),
        }


def _frame(columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    time = pd.DatetimeIndex(columns["time"].view("datetime64[ns]"), tz="UTC")
    return pd.DataFrame({**columns, "time": time}, copy=False)
