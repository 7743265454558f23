"""What the stepwise collector asks of a vector environment, and what one step of it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Transition(NamedTuple):
    """One step of B environments side by side.

    Attributes:
        observations: [B, D] float32, what the next decision sees: the first observation of the next episode where
            this step ended one.
        rewards: [B] float32.
        terminated: [B] bool: the action ended the episode for good; the future is worth 0.
        truncated: [B] bool: the window ended here; the future is worth V(final observation). Never with `terminated`.
        final_observations: [B, D] float32, the state this step led to, *before* any reset; equal to `observations`
            where no episode ended.
    """

    observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observations: Tensor


class VectorEnv(Protocol):
    """B environments side by side that reset themselves inside `step`.

    Attributes:
        num_envs: B.
        observation_size: D.
        num_actions: number of discrete actions; None: continuous ones.
        action_size: number of continuous actions; 0: discrete ones.
        hold_column, positions: on a market, the observation column with the held exposure and the exposures that the
            actions stand for; None elsewhere.
    """

    num_envs: int
    observation_size: int
    num_actions: int | None
    action_size: int
    hold_column: int | None
    positions: tuple[float, ...] | None

    def reset(self) -> Tensor:
        """Start an episode in every environment; returns the first observations [B, D]."""
        ...

    def step(self, actions: Tensor) -> Transition:
        """Take `actions` ([B] int64, or [B, A] float32)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next steps depend on, as tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state` as if never interrupted."""
        ...


@runtime_checkable
class MaskedEnv(Protocol):
    """What a vector environment offers besides when some of its discrete actions may be forbidden.

    Attributes:
        action_mask: [B, A] bool: the actions that the next step may take, at least one of each row; None: all.
    """

    action_mask: Tensor | None


class Episode(NamedTuple):
    """One finished episode: sum of the environment's own rewards, and steps."""

    total_reward: float
    length: int


@runtime_checkable
class EpisodicEnv(Protocol):
    """What a vector environment offers besides when its episodes count and it normalises what the policy sees."""

    @property
    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance [D] of the observations so far, with which the next ones are normalised."""
        ...

    def share_statistics(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Merge what this rank has seen with the other ranks'; `gather`: [K] of this rank -> [ranks, K]."""
        ...

    def take_episodes(self) -> list[Episode]:
        """Return the episodes finished since the last call."""
        ...
