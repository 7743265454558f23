"""Bars of another file, as a fold sees them: its features, costs and scaler, fitted on its own train bars."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from datamodules.bars.read import Bars
from datamodules.features.compute import compute_features, sees_costs, warmup_bars
from datamodules.features.scaling import Scaler
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.market.costs import bar_times, fill_arrays, fill_delay, known_cost
from lit_ppo.market.tensors import MarketTensors


def fresh_segment(datamodule: WalkForwardDataModule, fold: int, bars: Bars) -> MarketTensors:
    """Return all usable bars of `bars` as decisions, scaled with the train bars of `fold`.

    For bars that the walk-forward never holds: a synthetic market of another seed, a newer file. The first
    `datamodule.warmup_bars` usable bars only warm the LSTM up.

    Raises:
        ValueError: fewer bars than the warm-up needs.
    """
    specs, data = datamodule.specs, datamodule.fold_data(fold)
    first, last = warmup_bars(specs), len(bars.frame) - fill_delay(datamodule.fill) - 1
    if last - first <= datamodule.warmup_bars:
        raise ValueError(
            f"{bars.path.name} has {len(bars.frame)} bars, of which {max(last - first, 0)} have features and a fill; "
            f"data.warmup_bars {datamodule.warmup_bars} leave none to decide on. Give more bars"
        )
    rows = slice(first, last)
    mean, std = (np.array(data.scaler[name]) for name in ("mean", "std"))
    scaler = Scaler(mean, std, data.train.reward_scale)
    fills = fill_arrays(bars.frame, datamodule.costs, datamodule.fill, bars.point, bars.path.name)
    cost = known_cost(bars.frame, datamodule.costs, bars.point, bars.path.name) if sees_costs(specs) else None
    features = compute_features(bars.frame, specs, bars.bar_seconds, cost=cost)
    filled: dict[str, Any] = {name: torch.from_numpy(values[rows].copy()) for name, values in fills._asdict().items()}
    return MarketTensors(
        features=torch.from_numpy(scaler.apply(features[rows])),
        time=torch.from_numpy(bar_times(bars.frame)[rows].copy()),
        first_bar=first,
        warmup=datamodule.warmup_bars,
        reward_scale=data.train.reward_scale,
        bars_per_year=bars.bars_per_year,
        feature_names=data.train.feature_names,
        feature_parity=data.train.feature_parity,
        **filled,
    )
