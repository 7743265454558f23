"""Scale features with the statistics of a fold's train bars, and of no other bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CLIP = 10.0  # standard deviations: a feature further out says no more than "extreme", and must not blow the LSTM up
_CHUNK_ROWS = 65_536  # float64 copies of a chunk only, so that 2 million bars fit into memory


@dataclass(frozen=True)
class Scaler:
    """x -> clip((x - mean) / std, -CLIP, CLIP), float64 statistics [F].

    An odd feature (parity -1) keeps the mean 0 and is divided by its root mean square: scaling then commutes with the
    mirror of the market, and a train window that went up teaches no offset. A column that is constant on train is
    divided by 1.

    Attributes:
        mean, std: [F].
        reward_scale: standard deviation of the price return on the same bars.
    """

    mean: np.ndarray
    std: np.ndarray
    reward_scale: float

    @classmethod
    def fit(
        cls, features: np.ndarray, parity: Sequence[int], reward_scale: float, scale_free: Sequence[bool] | None = None
    ) -> Scaler:
        """Fit to the train rows `features` [N, F]; columns that are free of scale stay as they are."""
        total = np.zeros(features.shape[1])
        for chunk in _chunks(features):
            total += chunk.sum(axis=0)
        mean = np.where(np.array(parity) == -1, 0.0, total / len(features))
        squares = np.zeros(features.shape[1])
        for chunk in _chunks(features):
            squares += np.square(chunk - mean).sum(axis=0)
        std = np.sqrt(squares / len(features))
        constant = std <= 1e-6 * np.abs(mean)  # float32 keeps seven digits: less than that is rounding
        as_they_are = np.zeros(features.shape[1], bool) if scale_free is None else np.array(scale_free)
        return cls(np.where(as_they_are, 0.0, mean), np.where(constant | as_they_are, 1.0, std), reward_scale)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Scale rows [N, F]; returns a new float32 array."""
        scaled = np.empty(features.shape, dtype=np.float32)
        start = 0
        for chunk in _chunks(features):
            scaled[start : start + len(chunk)] = np.clip((chunk - self.mean) / self.std, -CLIP, CLIP)
            start += len(chunk)
        return scaled

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


def _chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    """float64 copies of consecutive rows."""
    for start in range(0, len(features), _CHUNK_ROWS):
        yield np.asarray(features[start : start + _CHUNK_ROWS], dtype=np.float64)
