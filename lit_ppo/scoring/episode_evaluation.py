"""Play whole episodes of a gymnasium environment greedily, with the statistics that the policy was trained with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_ppo.envs.gymnasium_vector import environment_of
from lit_ppo.market.tensors import GymnasiumTask
from lit_ppo.nets.policy import ObservationPolicy
from lit_ppo.seeding import derive_seed


@dataclass(frozen=True)
class EpisodeEvaluation:
    """What a policy did in N episodes.

    Attributes:
        total_rewards: [N] float64, sum of each episode's own rewards.
        lengths: [N] int64, steps of each episode.
    """

    total_rewards: Tensor
    lengths: Tensor

    @property
    def score(self) -> float:
        """Mean reward of an episode."""
        return float(self.total_rewards.mean())

    @property
    def metrics(self) -> dict[str, float]:
        """Figures beside the score; the standard deviation is of single episodes, not of their mean."""
        return {
            "episode_reward_std": float(self.total_rewards.std(correction=0)),
            "episode_reward_min": float(self.total_rewards.min()),
            "episode_steps": float(self.lengths.double().mean()),
        }


@torch.no_grad()
def evaluate_episodes(policy: ObservationPolicy, task: GymnasiumTask, seed: int) -> EpisodeEvaluation:
    """Play `task.num_episodes` episodes with the most probable actions, all side by side, without memory at the start.

    One episode counts of every environment: with fewer environments, short episodes would end first and be counted
    more often. Observations are normalised with the policy's own frozen statistics. Never changes the policy or draws a
    random number; the episodes are a function of (seed, role of the task).

    Raises:
        ValueError: no episode is asked for, or the environment cannot be made.
    """
    if task.num_episodes < 1:
        raise ValueError(f"An evaluation needs at least one episode, got num_episodes {task.num_episodes}")
    env = environment_of(task, task.num_episodes, seed=derive_seed(seed, 0, f"{task.role} episodes"))
    env.freeze(policy.observation_mean, policy.observation_variance)
    observations, state = env.reset(), policy.initial_state(env.num_envs)
    rewards = torch.zeros(env.num_envs, dtype=torch.float64, device=env.device)
    lengths = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while running.any():
        actions, _, _, state = policy.act(observations, state, action_mask=env.action_mask)
        transition = env.step(actions)
        rewards += transition.rewards * running
        lengths += running
        running &= ~(transition.terminated | transition.truncated)
        observations = transition.observations
    env.envs.close()
    return EpisodeEvaluation(rewards.cpu(), lengths.cpu())
