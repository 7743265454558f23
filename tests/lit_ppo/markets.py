"""Small markets for tests, drawn from a seed."""

from __future__ import annotations

import numpy as np
import torch

from lit_ppo.market.tensors import MarketTensors


def market_tensors(
    num_bars: int = 600, num_features: int = 3, seed: int = 0, warmup: int = 0, flip: float = 0.02, mean: float = 0.5
) -> MarketTensors:
    """A hidden-regime market: feature 0 is the return just seen, the others are noise; costs and carry are not zero."""
    draw = np.random.default_rng(seed)
    regime = np.where(np.cumsum(draw.random(num_bars + 1) < flip) % 2 == 0, 1.0, -1.0)
    units = mean * regime + draw.standard_normal(num_bars + 1)
    features = np.column_stack([units[:-1], draw.standard_normal((num_bars, num_features - 1))])
    price_return = 1e-3 * units[1:]
    nights = (np.arange(num_bars) % 96 == 95).astype(float)
    return MarketTensors(
        features=torch.from_numpy(features).float(),
        price_return=torch.from_numpy(price_return),
        turnover_cost=torch.from_numpy(2e-4 * (0.5 + draw.random(num_bars))),
        carry_long=torch.from_numpy(1e-4 * nights),
        carry_short=torch.from_numpy(-5e-5 * nights),
        fill_price=torch.from_numpy(2000 * np.cumprod(1 + np.concatenate([[0.0], price_return[:-1]]))),
        time=torch.arange(num_bars) * 900 * 10**9,
        first_bar=0,
        warmup=warmup,
        reward_scale=float(price_return.std()),
        bars_per_year=24_000.0,
        feature_names=tuple(f"f{i}" for i in range(num_features)),
        feature_parity=(-1,) + (0,) * (num_features - 1),
    )
