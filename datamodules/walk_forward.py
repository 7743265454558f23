"""From a bar file to the tensors of one walk-forward fold, as a LightningDataModule."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch

from datamodules import cache as disk_cache
from datamodules.bars.fingerprint import content_hash, differences
from datamodules.bars.instruments import Instrument, find_instruments, names_several
from datamodules.bars.options import ReaderOptions
from datamodules.bars.read import Bars, read_bars
from datamodules.features.compute import (
    FeatureSpec,
    compute_features,
    features_key,
    load_features,
    sees_costs,
    settled,
    warmup_bars,
)
from datamodules.features.scaling import Scaler
from datamodules.loader import OneBatch
from datamodules.splits import WalkForwardSplit
from datamodules.synthetic import SyntheticMarket
from lit_ppo.argument_types import check_types
from lit_ppo.market.costs import Costs, FillArrays, bar_times, fill_arrays, fill_delay, known_cost
from lit_ppo.market.tensors import BarRange, Fold, FoldData, MarketTensors
from lit_ppo.store.files import shown_path

DEFAULT_COSTS = Costs()


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(WalkForwardDataModule.__init__)


class WalkForwardDataModule(pl.LightningDataModule):
    """The folds of a walk-forward over one bar file; every segment is one batch, a `MarketTensors`.

    Features are computed over the whole file once (they are causal) and cached on disk; a fold is a slice of them,
    scaled with the statistics of its own train bars.

    Args:
        path: bar file; give this or `synthetic`. A list, files by name or a glob are several instruments, of which
            `lit-ppo walk-forward` runs each.
        synthetic: a market made by a formula instead of a file.
        fold: the fold that the data loaders serve, from 0.
        fold_start: leave out the first so many folds; the others are numbered anew from 0.
        fold_limit: use the first so many folds only, of those that `fold_start` leaves.
        train_size, validation_size, test_size, step_size: bars; see `WalkForwardSplit`.
        purged_size, embargo_size: bars; None is the least allowed: the fill delay plus one, so that the last reward
            of a segment is known before the next segment starts.
        expand_train: keep all earlier bars in train.
        fill: next_open, next_close or same_close: the price a decision is executed at.
        features: "default", "full", a YAML file, or a list of entries; see `datamodules.features.compute`.
        costs: what trading costs.
        warmup_bars: bars before each segment that only warm the LSTM up (as far as there are any).
        cache: keep computed features on disk.
        cache_dir: where; default is the user's cache home.
        cache_max_bytes: bound on the cache's size.
        allow_modules: modules that features may be imported from, besides this project's; on the command line they
            are named by `--allow-module NAME`, and a configuration cannot add any.
        reader: how to read the file: the fields of `ReaderOptions`, as `data.point`, `data.timezone`, ...

    Attributes:
        row_accesses: by fold and role, the bars whose features (`train`, `validation`, `test`, `scaler`) and whose
            prices (`train_fills`, ...; a reward reaches beyond its segment by the fill delay plus one) were read.
    """

    def __init__(
        self,
        path: list[str] | dict[str, str] | str | None = None,
        synthetic: SyntheticMarket | None = None,
        fold: int = 0,
        fold_start: int = 0,
        fold_limit: int | None = None,
        train_size: int = 2000,
        validation_size: int = 500,
        test_size: int = 500,
        step_size: int = 500,
        purged_size: int | None = None,
        embargo_size: int | None = None,
        expand_train: bool = False,
        fill: str = "next_open",
        features: str | list[dict[str, Any]] = "default",
        costs: Costs = DEFAULT_COSTS,
        warmup_bars: int = 200,
        cache: bool = True,
        cache_dir: str | None = None,
        cache_max_bytes: int = disk_cache.DEFAULT_MAX_BYTES,
        allow_modules: list[str] | None = None,
        **reader: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        super().__init__()
        check_types(_hints(), given, "data.")
        if (path is None) == (synthetic is None):
            raise ValueError(
                f"Give a bar file (data.path) or data.synthetic, one of them; got {path!r} and {synthetic!r}"
            )
        least = fill_delay(fill) + 1
        for name, size in (("purged_size", purged_size), ("embargo_size", embargo_size)):
            if size is not None and size < least:
                raise ValueError(
                    f"data.{name} {size} is too small for fill {fill}: the last reward of a segment is known "
                    f"{least} bars later, so it must be >= {least} (null for that)"
                )
        if fold < 0 or (fold_limit is not None and fold_limit < 1):
            raise ValueError(f"data.fold counts from 0 and data.fold_limit from 1, got {fold} and {fold_limit}")
        if fold_start < 0:
            raise ValueError(f"data.fold_start is a number of folds >= 0, got {fold_start}")
        if warmup_bars < 0:
            raise ValueError(f"data.warmup_bars is a number of bars >= 0, got {warmup_bars}")
        self.path = str(path) if isinstance(path, Path) else path
        self.synthetic, self.fold, self.fold_limit = synthetic, fold, fold_limit
        self.fold_start = fold_start
        self.split = WalkForwardSplit(
            train_size=train_size,
            validation_size=validation_size,
            test_size=test_size,
            step_size=step_size,
            purged_size=least if purged_size is None else purged_size,
            embargo_size=least if embargo_size is None else embargo_size,
            expand_train=expand_train,
        )
        self.fill, self.costs, self.warmup_bars = fill, costs, warmup_bars
        self.specs: list[FeatureSpec] = load_features(features, allow_modules or ())
        self.cache = disk_cache.FeatureCache(cache_dir, cache_max_bytes) if cache else None
        self._cache_dir = cache_dir
        self.reader = ReaderOptions(**reader)
        if self.reader.close_only and fill == "next_open":
            raise ValueError(
                "data.close_only makes each bar open at the close before it, so data.fill next_open would execute a "
                "decision at the very close it was made from. Set data.fill to next_close (--data.fill next_close)"
            )
        self.row_accesses: dict[int, dict[str, BarRange]] = {}
        self.load_seconds = 0.0
        self._bars: Bars | None = None
        self._served: FoldData | None = None
        self._scalers: dict[int, Scaler] = {}
        self._on_device: tuple[MarketTensors, MarketTensors] | None = None
        if fill == "same_close":
            warnings.warn(
                "data.fill same_close executes a decision at the very close it was made from; no account can do that",
                stacklevel=2,
            )

    # Loading

    def setup(self, stage: str | None = None) -> None:
        """Read the bars and lay out the folds; does nothing the second time."""
        if self._bars is not None:
            return
        if self.several:
            raise ValueError(
                f"{len(self.instruments())} instruments are asked for (data.path, data.symbol), and this command reads "
                "one: name one file, and one symbol of it. lit-ppo walk-forward runs each of several"
            )
        start = time.perf_counter()
        bars = self._read()
        self._content = content_hash(bars)
        self.specs = settled(self.specs, bars.frame, bars.bar_seconds)
        seen = f"{features_key(self.specs)} {self._content}"
        if sees_costs(self.specs):
            seen += f" {json.dumps(self.costs.to_dict(), sort_keys=True)} {bars.point!r}"
        key = hashlib.sha256(seen.encode()).hexdigest()
        self._fills: FillArrays = fill_arrays(bars.frame, self.costs, self.fill, bars.point, self.source)
        self._time = bar_times(bars.frame)
        first, last = warmup_bars(self.specs), len(bars.frame) - fill_delay(self.fill) - 1
        lost = f"{first} warm-up bars and {len(bars.frame) - last} without a fill"
        folds = self.split.split(BarRange(first, last), self.source, lost)
        if self.fold_start >= len(folds):
            raise ValueError(
                f"data.fold_start {self.fold_start} leaves out all of the {len(folds)} folds that {self.source} has at "
                "these sizes"
            )
        kept = [replace(fold, index=number) for number, fold in enumerate(folds[self.fold_start :])]
        self.folds: list[Fold] = kept[: self.fold_limit]
        if self.fold >= len(self.folds):
            raise ValueError(
                f"data.fold is {self.fold}, but {self.source} has folds 0 to {len(self.folds) - 1} at these sizes"
            )

        def compute() -> np.ndarray:
            return self._computed(bars.frame, bars)

        self._features: np.ndarray = self.cache.get(key, compute) if self.cache else compute()
        self.usable = BarRange(first, last)
        self._check_usable()
        self._bars = bars
        self.load_seconds = time.perf_counter() - start

    def _computed(self, frame: pd.DataFrame, bars: Bars, finite: bool = True) -> np.ndarray:
        cost = known_cost(frame, self.costs, bars.point, self.source, finite) if sees_costs(self.specs) else None
        return compute_features(frame, self.specs, bars.bar_seconds, finite, cost)

    @property
    def source(self) -> str:
        """Name of the market in messages."""
        if isinstance(self.path, str):
            return Path(self.path).name
        assert self.synthetic is not None
        return f"the synthetic {self.synthetic.kind} market"

    @property
    def bars(self) -> Bars:
        self.setup()
        assert self._bars is not None
        return self._bars

    @property
    def several(self) -> bool:
        """Whether several instruments are asked for: each is to have a datamodule of its own."""
        return names_several(self.path, self.reader.symbol)

    def instruments(self) -> list[Instrument]:
        """What `data.path` and `data.symbol` name, where they name several; see `find_instruments`."""
        assert self.path is not None
        return find_instruments(self.path, self.reader)

    def _read(self) -> Bars:
        if self.synthetic is not None:
            return self.synthetic.bars()
        assert isinstance(self.path, str)
        return read_bars(self.path, **asdict(self.reader))

    def _check_usable(self) -> None:
        """Every row of a segment must be a number: NaN would spread through the LSTM or the equity in silence."""
        rows = slice(self.usable.start, self.usable.stop)
        for name, values in zip(FillArrays._fields, self._fills, strict=True):
            bad = np.flatnonzero(~np.isfinite(values[rows]))
            if bad.size:
                raise ValueError(
                    f"{self.source}: {name} is not a number at bar {bad[0] + rows.start}; correct its prices or spread"
                )

    # Folds

    def fold_data(self, index: int) -> FoldData:
        """Train and validation of fold `index`, scaled on its train bars; cheap, the last one asked for is kept."""
        fold = self._fold(index)
        if self._served is None or self._served.fold.index != index:
            self._on_device = None  # free the device before the next fold is built
            train, validation = (self._segment(fold, role) for role in ("train", "validation"))
            self._served = FoldData(fold, train, validation, self._scaler(fold).to_dict())
        return self._served

    def test_segment(self, index: int) -> MarketTensors:
        """Test of fold `index`, scaled on its train bars: to be asked for once, after selection."""
        return self._segment(self._fold(index), "test")

    def test_segment_of_another(self, index: int, checkpoint: Mapping[str, Any]) -> MarketTensors:
        """Test of fold `index` as the model of another fold sees it: with the scaler and units of its checkpoint.

        Args:
            checkpoint: what `state_dict` gave when that model was saved.
        """
        other = copy.copy(self)
        mean, std = (np.array(checkpoint["scaler"][name]) for name in ("mean", "std"))
        other._scalers = {index: Scaler(mean, std, checkpoint["reward_scale"])}
        return other._segment(other._fold(index), "test")

    def _fold(self, index: int) -> Fold:
        self.setup()
        if not 0 <= index < len(self.folds):
            raise ValueError(f"There is no fold {index}; {self.source} has folds 0 to {len(self.folds) - 1}")
        return self.folds[index]

    def _segment(self, fold: Fold, role: str) -> MarketTensors:
        decisions: BarRange = getattr(fold, role)
        first = max(decisions.start - self.warmup_bars, self.usable.start)
        rows = self._access(fold, role, BarRange(first, decisions.stop))
        scaler = self._scaler(fold)
        self._access(fold, f"{role}_fills", self._fill_bars(BarRange(first, decisions.stop)))
        fills: dict[str, Any] = {
            name: torch.from_numpy(values[rows].copy()) for name, values in self._fills._asdict().items()
        }
        return MarketTensors(
            features=torch.from_numpy(scaler.apply(self._features[rows])),
            time=torch.from_numpy(self._time[rows].copy()),
            first_bar=first,
            warmup=decisions.start - first,
            reward_scale=scaler.reward_scale,
            bars_per_year=self.bars.bars_per_year,
            feature_names=tuple(spec.label for spec in self.specs),
            feature_parity=tuple(spec.parity for spec in self.specs),
            **fills,
        )

    def _scaler(self, fold: Fold) -> Scaler:
        if fold.index not in self._scalers:
            rows = self._access(fold, "scaler", fold.train)
            self._access(fold, "scaler_fills", self._fill_bars(fold.train))
            returns = self._fills.price_return[rows]
            if not returns.std() > 0:
                raise ValueError(
                    f"{self.source}: the price does not move in the train bars {fold.train} of fold {fold.index}"
                )
            parity = tuple(spec.parity for spec in self.specs)
            free = tuple(spec.scale_free for spec in self.specs)
            self._scalers[fold.index] = Scaler.fit(self._features[rows], parity, float(returns.std()), free)
        return self._scalers[fold.index]

    def _access(self, fold: Fold, role: str, rows: BarRange) -> slice:
        """Record that `role` reads `rows`: what the look-ahead audit goes by."""
        self.row_accesses.setdefault(fold.index, {})[role] = rows
        return slice(rows.start, rows.stop)

    def _fill_bars(self, decisions: BarRange) -> BarRange:
        """Bars whose prices the rewards of `decisions` are made of: fill t to fill t+1."""
        delay = fill_delay(self.fill)
        return BarRange(decisions.start + delay, decisions.stop + delay + 1)

    # Look-ahead audit

    @property
    def feature_matrix(self) -> np.ndarray:
        """[N, F] float32 features of every bar of the file, not scaled; NaN within a feature's warm-up."""
        self.setup()
        return self._features

    @property
    def feature_warmups(self) -> dict[str, int]:
        """Bars that each feature needs before its first value, as it declares them."""
        return {spec.label: spec.warmup for spec in self.specs}

    @property
    def running_features(self) -> set[str]:
        """Features whose state runs from the first bar of the file: their value depends on where it starts."""
        return {spec.label for spec in self.specs if spec.running}

    def own_values(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """What the user's own code makes of each of these bars, by name: [N] features, and costs of the model."""
        own = [spec for spec in self.specs if spec.source]
        with np.errstate(all="ignore"):
            matrix = compute_features(frame, own, self.bars.bar_seconds, finite=False)
            found = {f"Feature {spec.label}": matrix[:, column] for column, spec in enumerate(own)}
            if (model := self.costs.model) is not None:
                cost = known_cost(frame, self.costs, self.bars.point, self.source, possible=False)
                found[f"Cost model {type(model).__name__}"] = cost
        return found

    def over(self, frame: pd.DataFrame) -> WalkForwardDataModule:
        """The same settings and folds over other bars: what the look-ahead audit compares with.

        Row t of `frame` stands for bar t. A shorter frame ends early: what would need its missing rows is NaN. Bars
        may have holes; nothing is checked, cached or shared with this datamodule.
        """
        length = len(self.bars.frame)
        other = copy.copy(self)
        other._bars = replace(self.bars, frame=frame)
        other._content = content_hash(other._bars)
        other.cache = None
        with np.errstate(all="ignore"):
            fills = fill_arrays(frame, self.costs, self.fill, self.bars.point, self.source, possible=False)
            features = self._computed(frame, self.bars, finite=False)
        other._fills = FillArrays(*(_padded(values, length) for values in fills))
        other._features = _padded(features, length)
        other.row_accesses, other._scalers = {}, {}
        other._served = other._on_device = other.trainer = None
        return other

    # Lightning

    def train_dataloader(self) -> OneBatch:
        return OneBatch(self.fold_data(self.fold).train)

    def val_dataloader(self) -> OneBatch:
        return OneBatch(self.fold_data(self.fold).validation)

    def test_dataloader(self) -> OneBatch:
        return OneBatch(self.test_segment(self.fold))

    def predict_dataloader(self) -> OneBatch:
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a segment once: the train bars come back every epoch as the same object."""
        if not isinstance(batch, MarketTensors):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._served is None or batch is not self._served.train:
            return batch.to(device)
        if self._on_device is None or self._on_device[0] is not batch:
            self._on_device = (batch, batch.to(device))
        return self._on_device[1].to(device)

    def state_dict(self) -> dict[str, Any]:
        """Which data, which fold and its scaler: what makes a checkpoint's inputs its own."""
        fold = self._fold(self.fold)
        scaler = self._scaler(fold)
        last_seen = self._fill_bars(fold.validation).stop - 1  # whose price the choice of the weights went by
        return {
            "fingerprint": self.fingerprint(),
            "fold": self.fold,
            "seen_until": self.bars.frame["time"].iloc[last_seen].isoformat(),
            "features": [dict(spec.entry) for spec in self.specs],  # a run folder suffices to use the policy
            "scaler": scaler.to_dict(),
            "reward_scale": scaler.reward_scale,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's scaler.

        Raises:
            ValueError: the checkpoint was made from other data, sizes, features, costs, code or another fold; lists
                what differs.
        """
        then = {**state_dict["fingerprint"], "fold": state_dict["fold"]}
        now = {**self.fingerprint(), "fold": self.fold}
        changed = list(differences(then, now))
        if changed:
            raise ValueError(
                "The checkpoint was made with other data or settings: "
                + "; ".join(changed)
                + ". Restore them, or start a new run without the checkpoint."
            )
        mean, std = (np.array(state_dict["scaler"][name]) for name in ("mean", "std"))
        self._scalers[self.fold] = Scaler(mean, std, state_dict["reward_scale"])
        self._served = None

    def use_scaler(self, index: int, scaler: Mapping[str, list[float]]) -> None:
        """Scale fold `index` with the mean and deviation of an earlier fold; its reward scale stays its own.

        Raises:
            ValueError: a scaler of another number of features.
        """
        own = self._scaler(self._fold(index))
        mean, std = (np.array(scaler[name]) for name in ("mean", "std"))
        if mean.shape != own.mean.shape:
            raise ValueError(f"The scaler is of {len(mean)} features, and the data has {len(own.mean)}")
        self._scalers[index] = Scaler(mean, std, own.reward_scale)
        if index == self.fold:
            self._served = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a logger keeps of it, as plain values; `fingerprint` has the bars themselves."""
        return {
            "path": shown_path(self.path) if isinstance(self.path, str) else self.path,
            "synthetic": None if self.synthetic is None else asdict(self.synthetic),
            "fold": self.fold,
            "fold_start": self.fold_start,
            "fold_limit": self.fold_limit,
            **asdict(self.split),
            "fill": self.fill,
            "features": [dict(spec.entry) for spec in self.specs],
            "costs": self.costs.to_dict(),
            "warmup_bars": self.warmup_bars,
            **asdict(self.reader),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What the tensors of a fold depend on: the bars' content, features and their code, sizes, fills and costs."""
        bars = self.bars
        return {
            "bars_sha256": self._content,
            "rows": len(bars.frame),
            "first_time": bars.frame["time"].iloc[0].isoformat(),
            "last_time": bars.frame["time"].iloc[-1].isoformat(),
            "bar_seconds": float(bars.bar_seconds),
            "point": float(bars.point),
            "features": [spec.label for spec in self.specs],
            "features_sha256": features_key(self.specs),
            "fill": self.fill,
            "costs": self.costs.to_dict(),
            "split": asdict(self.split),
            "warmup_bars": self.warmup_bars,
        }

    # The old script's names

    def get_optimization_info(self) -> dict[str, Any]:
        """What the preprocessing cache holds and did: directory, entries, bytes, hits, misses, seconds saved."""
        on_disk = asdict(disk_cache.info(self._cache_dir)) if self.cache else {}
        return {
            "cache_enabled": self.cache is not None,
            "load_seconds": self.load_seconds,
            **on_disk,
            **disk_cache.statistics_dict(self.cache),
        }

    def clear_optimization_cache(self) -> None:
        """Remove every entry of the preprocessing cache; features in memory stay valid."""
        if self.cache:
            disk_cache.clear(self._cache_dir)


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """`values` [M, ...] followed by rows of NaN, `length` in all."""
    padded = np.full((length, *values.shape[1:]), np.nan, dtype=values.dtype)
    padded[: len(values)] = values
    return padded
