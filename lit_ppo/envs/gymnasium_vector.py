"""Gymnasium environments with Discrete or Box actions, as the collector's vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from lit_ppo.envs.gymnasium_state import environment_state, restore_environment
from lit_ppo.envs.observation_columns import count_columns, to_columns
from lit_ppo.envs.protocol import Episode, Transition
from lit_ppo.envs.running_moments import Gather, RewardNormaliser, RunningMoments
from lit_ppo.market.tensors import GymnasiumTask
from lit_ppo.seeding import derive_seed


def make_environments(env_id: str, num_envs: int, **env_arguments: Any) -> SyncVectorEnv:
    """Return `num_envs` environments that reset in the step that ends an episode, the kind the adapter needs."""
    envs = gymnasium.make_vec(
        env_id,
        num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **env_arguments,
    )
    assert isinstance(envs, SyncVectorEnv)
    return envs


def environment_of(
    task: GymnasiumTask, num_envs: int, *, seed: int, rank: int = 0, gamma: float = 0.99
) -> GymnasiumVectorEnv:
    """Return `num_envs` environments of a task; the other arguments are those of `GymnasiumVectorEnv`.

    Raises:
        ValueError: there is no such environment, or it cannot be adapted.
    """
    try:
        envs = make_environments(task.env_id, num_envs, **task.env_arguments)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"data.env_id {task.env_id!r} cannot be made: {error}") from error
    return GymnasiumVectorEnv(
        envs,
        seed=seed,
        rank=rank,
        mask_observations=task.mask_observations,
        normalise_observations=task.normalise_observations,
        normalise_rewards=task.normalise_rewards,
        gamma=gamma,
        rescale_actions=task.rescale_actions,
        device=task.device,
    )


class GymnasiumVectorEnv:
    """B gymnasium environments, with the normalisation of observations and rewards that PPO needs on them.

    Statistics are learnt while `training` is True; otherwise (see `freeze`) they are frozen and rewards are
    the environment's own. The rollout stores the normalised observations, so the update sees what the policy saw.

    Args:
        envs: from `make_environments`, or any `SyncVectorEnv` with autoreset mode SAME_STEP.
        seed, rank: every environment of every rank has its own generator, made of these.
        mask_observations: columns of the flat observation to remove, such as velocities (memory experiments).
        normalise_observations: by running mean and standard deviation, within +-10.
        normalise_rewards: by the running standard deviation of the return discounted with `gamma`, within +-10.
        gamma: discount per step of the reward normalisation; the learner's.
        rescale_actions: continuous actions in [-1, 1] span the action space; otherwise they are in its own units.
            Both are clipped to it.
        device: of the tensors.

    Attributes:
        training: see above.

    Raises:
        ValueError: another autoreset mode, or spaces that cannot be adapted, or columns that are not there.
    """

    def __init__(
        self,
        envs: SyncVectorEnv,
        *,
        seed: int,
        rank: int = 0,
        mask_observations: Sequence[int] = (),
        normalise_observations: bool = True,
        normalise_rewards: bool = True,
        gamma: float = 0.99,
        rescale_actions: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if not isinstance(envs, SyncVectorEnv) or envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            mode = getattr(envs, "autoreset_mode", None)
            raise ValueError(
                f"GymnasiumVectorEnv needs a SyncVectorEnv with autoreset mode SAME_STEP, got {type(envs).__name__} "
                f"with {mode}. Make it with lit_ppo.envs.gymnasium_vector.make_environments."
            )
        self.envs, self.seed, self.rank = envs, seed, rank
        self.num_envs, self.device = envs.num_envs, torch.device(device)
        self.mask_observations, self.gamma, self.rescale_actions = tuple(mask_observations), gamma, rescale_actions
        self.training = True
        self._kept = self._kept_columns()
        self.observation_size = len(self._kept)
        self.num_actions: int | None = None
        self.action_size = 0
        self.hold_column: int | None = None
        self.positions: tuple[float, ...] | None = None
        self._read_action_space()
        self._moments = RunningMoments(self.observation_size) if normalise_observations else None
        self._rewards = RewardNormaliser(self.num_envs, gamma, clip=10.0) if normalise_rewards else None
        self._started = False
        self._totals = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._episodes: list[Episode] = []

    def _kept_columns(self) -> NDArray[np.int64]:
        space = self.envs.single_observation_space
        size = count_columns(space)
        wrong = [column for column in self.mask_observations if not 0 <= column < size]
        if wrong or len(set(self.mask_observations)) == size:
            raise ValueError(
                f"mask_observations {list(self.mask_observations)} must name some, not all, of the columns 0 to "
                f"{size - 1} of {space}"
            )
        return np.setdiff1d(np.arange(size), self.mask_observations)

    def _read_action_space(self) -> None:
        space = self.envs.single_action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            self.num_actions, self._first_action = int(space.n), int(space.start)
        elif isinstance(space, gymnasium.spaces.Box):
            if self.rescale_actions and not space.is_bounded():
                raise ValueError(f"`rescale_actions` needs a bounded action space, got {space}. Switch it off.")
            self.action_size = int(np.prod(space.shape))
            self._low, self._high = space.low, space.high
        else:
            raise ValueError(f"Actions must be Discrete or a Box, got {space}")

    def reset(self) -> Tensor:
        """Start an episode in every environment; returns the first observations [B, D].

        The first reset seeds the environments; later ones go on with their generators.
        """
        seeds: list[int | None] = [None] * self.num_envs
        if not self._started:
            seeds = [derive_seed(self.seed, self.rank, f"environment {i}") for i in range(self.num_envs)]
        self._started = True
        observations, _ = self.envs.reset(seed=seeds)
        self._totals, self._lengths = np.zeros_like(self._totals), np.zeros_like(self._lengths)
        if self._rewards is not None:
            self._rewards.returns = np.zeros(self.num_envs)
        return self._tensor(self._normalised(self._flat(observations), learn=self.training))

    def step(self, actions: Tensor) -> Transition:
        """Take `actions`: [B] int64, or [B, A] float32.

        Raises:
            RuntimeError: before `reset`.
        """
        if not self._started:
            raise RuntimeError("GymnasiumVectorEnv.step was called before GymnasiumVectorEnv.reset")
        raw, rewards, terminated, truncated, info = self.envs.step(self._to_gymnasium(actions))
        truncated = truncated & ~terminated
        ended = terminated | truncated
        observations = self._flat(raw)
        final = observations.copy()
        for i in np.flatnonzero(ended):
            last = gymnasium.spaces.flatten(self.envs.single_observation_space, info["final_obs"][i])
            final[i] = np.asarray(last)[self._kept]
        self._count_episodes(rewards, ended)
        observations = self._normalised(observations, learn=self.training)
        if self.training and self._rewards is not None:
            rewards = self._rewards(rewards, ended)
        return Transition(
            self._tensor(observations),
            self._tensor(rewards),
            torch.tensor(terminated, device=self.device),
            torch.tensor(truncated, device=self.device),
            self._tensor(self._normalised(final, learn=False)),
        )

    def _to_gymnasium(self, actions: Tensor) -> NDArray[Any]:
        chosen = actions.detach().cpu().numpy()
        if self.num_actions is not None:
            return chosen + self._first_action
        chosen = chosen.reshape(self.num_envs, *self._low.shape)
        if self.rescale_actions:
            chosen = self._low + (np.clip(chosen, -1, 1) + 1) / 2 * (self._high - self._low)
        return np.clip(chosen, self._low, self._high).astype(self._low.dtype)

    def _flat(self, observations: Any) -> NDArray[np.float64]:
        """A batch of B observations -> [B, D] float64 without the masked columns."""
        return to_columns(self.envs.single_observation_space, observations)[:, self._kept]

    def _normalised(self, observations: NDArray[np.float64], learn: bool) -> NDArray[np.float64]:
        if self._moments is None:
            return observations
        if learn:
            self._moments.update(observations)
        return self._moments.normalised(observations, clip=10.0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _count_episodes(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        self._totals, self._lengths = self._totals + rewards, self._lengths + 1
        self._episodes += [Episode(float(self._totals[i]), int(self._lengths[i])) for i in np.flatnonzero(ended)]
        self._totals, self._lengths = np.where(ended, 0.0, self._totals), np.where(ended, 0, self._lengths)

    def take_episodes(self) -> list[Episode]:
        """Return the episodes finished since the last call, in the environment's own rewards."""
        episodes, self._episodes = self._episodes, []
        return episodes

    @property
    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance [D] float64 of the observations seen so far; 0 and 1 where they are not normalised."""
        moments = self._moments or RunningMoments(self.observation_size)
        return torch.tensor(moments.mean), torch.tensor(moments.variance)

    def share_statistics(self, gather: Gather) -> None:
        """Merge the statistics of observations and returns with the other ranks', so that all normalise alike."""
        if self._moments is not None:
            self._moments.share(gather)
        if self._rewards is not None:
            self._rewards.moments.share(gather)

    def freeze(self, mean: Tensor, variance: Tensor) -> None:
        """Evaluate from now on: normalise with these `observation_statistics`, learn none, give raw rewards."""
        self.training = False
        if self._moments is not None:
            self._moments.freeze(mean.cpu().numpy(), variance.cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        """Return statistics, running episodes, and every environment with its generator.

        Raises:
            TypeError: an environment keeps something that a checkpoint cannot hold.
        """
        return {
            "started": self._started,
            "training": self.training,
            "observations": None if self._moments is None else self._moments.state_dict(),
            "rewards": None if self._rewards is None else self._rewards.state_dict(),
            "totals": torch.tensor(self._totals),
            "lengths": torch.tensor(self._lengths),
            "episodes": [list(episode) for episode in self._episodes],
            "environments": [environment_state(env) for env in self.envs.envs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it was saved with another number of environments or other normalisation.
        """
        saved = (len(state["environments"]), state["observations"] is not None, state["rewards"] is not None)
        ours = (self.num_envs, self._moments is not None, self._rewards is not None)
        if saved != ours:
            raise ValueError(
                "num_envs, normalise_observations, normalise_rewards must be as they were saved: "
                f"{saved}, but they are {ours}"
            )
        self._started, self.training = bool(state["started"]), bool(state["training"])
        if self._moments is not None:
            self._moments.load_state_dict(state["observations"])
        if self._rewards is not None:
            self._rewards.load_state_dict(state["rewards"])
        self._totals, self._lengths = state["totals"].cpu().numpy().copy(), state["lengths"].cpu().numpy().copy()
        self._episodes = [Episode(float(total), int(length)) for total, length in state["episodes"]]
        for env, saved_env in zip(self.envs.envs, state["environments"], strict=True):
            restore_environment(env, saved_env)
