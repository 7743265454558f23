"""The bars of one oracle: a fold to learn from, and fresh bars of another seed of the same market."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datamodules.fresh import fresh_segment
from datamodules.synthetic import SIGNAL_COLUMN, SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.market.tensors import MarketTensors

_EVALUATED = 8  # bars of the validation and test segments, which an oracle does not use


def oracle_features(market: SyntheticMarket) -> list[dict[str, Any]]:
    """What the trader sees: the last return, or a predictor's signal; then every nuisance, of unknown parity."""
    main: dict[str, Any] = {"name": "log_return"}
    if market.kind == "predictor":
        main = {"column": SIGNAL_COLUMN, "parity": -1}
    return [main, *({"column": f"nuisance_{k:02d}", "parity": 0} for k in range(market.nuisances))]


def train_fold(market: SyntheticMarket, train_bars: int) -> WalkForwardDataModule:
    """One fold whose train segment is `train_bars` bars of the market (its `num_bars` is not used)."""
    longer = replace(market, num_bars=train_bars + 8 * _EVALUATED)
    datamodule = WalkForwardDataModule(
        synthetic=longer,
        train_size=train_bars,
        validation_size=_EVALUATED,
        test_size=_EVALUATED,
        step_size=_EVALUATED,
        fold_limit=1,
        features=oracle_features(market),
        cache=False,
    )
    datamodule.setup()
    return datamodule


def fresh_bars(datamodule: WalkForwardDataModule, market: SyntheticMarket) -> MarketTensors:
    """All bars of `market`, scaled with the train bars of the fold."""
    return fresh_segment(datamodule, 0, market.bars())
