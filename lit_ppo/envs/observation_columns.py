"""Observations of any gymnasium space as columns of numbers, a whole batch at once."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from numpy.typing import NDArray


def count_columns(space: Space) -> int:
    """Return D, the columns of one observation: those of `gymnasium.spaces.flatten`.

    Raises:
        ValueError: a space without a fixed number of columns (Graph, Sequence, Text).
    """
    _check(space, space)
    return int(gymnasium.spaces.flatdim(space))


def _check(space: Space, whole: Space) -> None:
    if isinstance(space, Tuple | Dict):
        for part in _parts(space):
            _check(part, whole)
    elif not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        raise ValueError(
            "Observations must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Tuple or Dict of them, "
            f"got {space}{'' if space is whole else f' in {whole}'}. Wrap the environment so that they are."
        )


def _parts(space: Tuple | Dict) -> list[Space]:
    return list(space.spaces) if isinstance(space, Tuple) else list(space.spaces.values())


def to_columns(space: Space, observations: Any) -> NDArray[np.float64]:
    """Turn B observations, batched as a gymnasium vector environment batches them, into [B, D] float64.

    Numbers stay as they are; a choice of n becomes n columns with a single 1; the parts of a Tuple or Dict stand side
    by side, in the space's order.
    """
    if isinstance(space, Tuple):
        return np.concatenate([to_columns(part, own) for part, own in zip(space, observations, strict=True)], 1)
    if isinstance(space, Dict):
        return np.concatenate([to_columns(part, observations[name]) for name, part in space.items()], 1)
    values = np.asarray(observations).reshape(len(observations), -1)
    if isinstance(space, Discrete):
        return _one_hot(values - space.start, np.array([space.n]))
    if isinstance(space, MultiDiscrete):
        return _one_hot(values - space.start.ravel(), space.nvec.ravel())
    return values.astype(np.float64)


def _one_hot(choices: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """[B, K] choices out of sizes [K] -> [B, sum of sizes]."""
    columns = np.zeros((len(choices), int(sizes.sum())))
    columns[np.arange(len(choices))[:, None], choices + np.cumsum(sizes) - sizes] = 1.0
    return columns
