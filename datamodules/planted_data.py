"""A datamodule's own bars with an edge planted in them, under the same settings: what `lit-ppo power` trains on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datamodules.features.compute import load_features
from datamodules.planted import EDGE_COLUMN, Edge, Planted, plant
from datamodules.walk_forward import WalkForwardDataModule


def plant_in(data: WalkForwardDataModule, kind: str, size: float, seed: int) -> Planted:
    """Plant an edge into the datamodule's bars; one seed gives the same noise to every edge.

    Raises:
        ValueError: as `Edge` and `plant`.
    """
    return plant(data.bars, Edge(kind, size), np.random.default_rng(seed))  # type: ignore[arg-type]


def planted_data(data: WalkForwardDataModule, planted: Planted, folds: Sequence[int]) -> WalkForwardDataModule:
    """The same settings over the planted bars, with these folds only, numbered anew from 0.

    A planted column comes on top of the features, as a user would add his own.

    Args:
        data: set up.
        planted: of its bars.
        folds: numbers of folds of `data`, rising.
    """
    with_column = copy.copy(data)
    if EDGE_COLUMN in planted.bars.frame:
        with_column.specs = [*load_features([{"column": EDGE_COLUMN, "parity": -1}]), *data.specs]
    made = with_column.over(planted.bars.frame)
    made.folds = [replace(data.folds[fold], index=number) for number, fold in enumerate(folds)]
    made.fold = 0
    return made
