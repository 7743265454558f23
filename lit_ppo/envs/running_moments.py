"""Running mean and variance of observations and returns; float64, on the host, beside the environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
Gather = Callable[[Tensor], Tensor]  # [K] of this rank -> [ranks, K] of all of them, in their order
_EPSILON = 1e-8


class RunningMoments:
    """Mean and variance [D] of every row seen, merged batch by batch.

        delta = mean_batch - mean,   n = count + count_batch
        mean += delta count_batch / n,   M2 += M2_batch + delta^2 count count_batch / n

    Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self.squares = np.zeros(size)  # M2, sum of squared deviations from the mean
        self._shared = (self.count, self.mean, self.squares)  # what every rank had after the last `share`

    def update(self, batch: FloatArray) -> None:
        """Take in the rows of `batch` [B, D]."""
        mean = batch.mean(axis=0)
        self._merge(len(batch), mean, ((batch - mean) ** 2).sum(axis=0))

    def _merge(self, rows: int, mean: FloatArray, squares: FloatArray) -> None:
        delta, total = mean - self.mean, self.count + rows
        self.squares = self.squares + squares + delta**2 * (self.count * rows / total)
        self.mean = self.mean + delta * (rows / total)
        self.count = total

    def share(self, gather: Gather) -> None:
        """Take in the rows that the other ranks have seen since the last call: then all have the same statistics.

        This rank's own rows since then are what is left of the sums above without the shared ones.
        """
        count, mean, squares = self._shared
        rows = self.count - count
        own_mean = mean + (self.mean - mean) * (self.count / max(rows, 1))
        between = (own_mean - mean) ** 2 * (count * rows / max(self.count, 1))
        own_squares = np.maximum(self.squares - squares - between, 0.0)  # a rounding error below 0 is 0
        own = torch.from_numpy(np.concatenate([[float(rows)], own_mean, own_squares]))
        self.count, self.mean, self.squares = self._shared
        for part in gather(own).numpy():
            size, (part_mean, part_squares) = int(part[0]), np.split(part[1:], 2)
            if size:
                self._merge(size, part_mean, part_squares)
        self._shared = (self.count, self.mean, self.squares)

    @property
    def variance(self) -> FloatArray:
        """[D], of the population; 1 before the first row."""
        return self.squares / self.count if self.count else np.ones_like(self.squares)

    @property
    def scale(self) -> FloatArray:
        """[D] standard deviation, kept off 0."""
        return np.sqrt(self.variance + _EPSILON)

    def normalised(self, batch: FloatArray, clip: float) -> FloatArray:
        """[B, D] in standard deviations from the mean, within +-`clip`."""
        return np.clip((batch - self.mean) / self.scale, -clip, clip)

    def freeze(self, mean: FloatArray, variance: FloatArray) -> None:
        """Take statistics [D] that were learnt elsewhere, to normalise with."""
        self.count, self.mean, self.squares = 1, mean.copy(), variance.copy()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": torch.tensor(self.mean), "squares": torch.tensor(self.squares)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self.mean, self.squares = state["mean"].cpu().numpy().copy(), state["squares"].cpu().numpy().copy()
        self._shared = (self.count, self.mean, self.squares)  # states are saved between iterations, after a `share`


class RewardNormaliser:
    """Divide rewards by the standard deviation of the discounted return so far; the mean stays, so signs do.

        G_t = gamma G_{t-1} (1 - ended_{t-1}) + r_t

    Source: Engstrom et al. 2020, arXiv:2005.12729, section 3; as in gymnasium and stable-baselines3.

    Args:
        num_envs: B.
        gamma: discount per step.
        clip: normalised rewards stay within +-this.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float) -> None:
        self.gamma, self.clip = gamma, clip
        self.returns = np.zeros(num_envs)  # [B] G
        self.moments = RunningMoments(1)

    def __call__(self, rewards: FloatArray, ended: NDArray[np.bool_]) -> FloatArray:
        """Take in `rewards` [B] and return them normalised; `ended` [B] starts their returns again."""
        self.returns = self.gamma * self.returns + rewards
        self.moments.update(self.returns[:, None])
        self.returns = np.where(ended, 0.0, self.returns)
        return np.clip(rewards / self.moments.scale[0], -self.clip, self.clip)

    def state_dict(self) -> dict[str, Any]:
        return {"returns": torch.tensor(self.returns), "moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = state["returns"].cpu().numpy().copy()
        self.moments.load_state_dict(state["moments"])
