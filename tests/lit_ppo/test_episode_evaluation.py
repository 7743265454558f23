"""Greedy evaluation of whole episodes: which episodes, with which statistics, and what it must not touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lit_ppo.envs.gymnasium_vector import environment_of
from lit_ppo.market.tensors import GymnasiumTask
from lit_ppo.nets.policy import ObservationPolicy
from lit_ppo.scoring.episode_evaluation import evaluate_episodes
from lit_ppo.seeding import derive_seed, make_generator

CARTPOLE = GymnasiumTask("CartPole-v1", mask_observations=(1, 3), role="test", num_episodes=6)
PENDULUM = GymnasiumTask("Pendulum-v1", mask_observations=(2,), role="test", num_episodes=3)
NATIVE: dict[str, Callable[[torch.Tensor], Any]] = {
    "CartPole-v1": lambda action: int(action),
    "Pendulum-v1": lambda action: (action.clamp(-1, 1) * 2).numpy(),  # the space is a torque within +-2
}


def policy_of(task: GymnasiumTask, **settings: Any) -> ObservationPolicy:
    env = environment_of(task, 1, seed=0)
    sizes = (env.observation_size, env.num_actions, env.action_size)
    policy = ObservationPolicy(*sizes, hidden_size=8, generator=make_generator(3), **settings)
    policy.set_statistics(torch.full((sizes[0],), 0.01), torch.full((sizes[0],), 0.02))
    return policy


@torch.no_grad()
def play_alone(policy: ObservationPolicy, task: GymnasiumTask, seed: int) -> tuple[float, int]:
    """One episode by gymnasium's own calls: total reward and length."""
    env = gymnasium.make(task.env_id)
    raw, _ = env.reset(seed=seed)
    state, total, length, ended = policy.initial_state(1), 0.0, 0, False
    while not ended:
        seen = torch.tensor(np.delete(raw, task.mask_observations)).double()
        seen = ((seen - policy.observation_mean) / (policy.observation_variance + 1e-8).sqrt()).clamp(-10, 10)
        action, _, _, state = policy.act(seen.float().unsqueeze(0), state)
        raw, reward, terminated, truncated, _ = env.step(NATIVE[task.env_id](action[0]))
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return total, length


@pytest.mark.parametrize("task", [CARTPOLE, PENDULUM], ids=lambda task: task.env_id)
def test_episodes_side_by_side_equal_each_one_played_alone(task):
    policy = policy_of(task)
    result = evaluate_episodes(policy, task, seed=4)
    base = derive_seed(4, 0, "test episodes")
    alone = [play_alone(policy, task, derive_seed(base, 0, f"environment {i}")) for i in range(task.num_episodes)]
    np.testing.assert_allclose(result.total_rewards.numpy(), [total for total, _ in alone], rtol=1e-4)
    assert result.lengths.tolist() == [length for _, length in alone]
    assert result.score == pytest.approx(np.mean([total for total, _ in alone]), rel=1e-4)
    assert result.metrics["episode_steps"] == pytest.approx(np.mean(result.lengths.numpy()))
    assert result.metrics["episode_reward_min"] == float(result.total_rewards.min())


def test_the_same_seed_gives_the_same_episodes_and_another_role_or_seed_others():
    policy = policy_of(CARTPOLE)
    first, again = (evaluate_episodes(policy, CARTPOLE, seed=0).lengths.tolist() for _ in range(2))
    assert first == again
    assert first != evaluate_episodes(policy, CARTPOLE, seed=1).lengths.tolist()
    assert first != evaluate_episodes(policy, replace(CARTPOLE, role="validation"), seed=0).lengths.tolist()


def test_evaluation_changes_neither_policy_nor_global_generator():
    policy, state = policy_of(CARTPOLE), torch.get_rng_state()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    evaluate_episodes(policy, CARTPOLE, seed=0)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_the_policys_statistics_matter_unless_the_task_says_no():
    policy = policy_of(CARTPOLE)
    plain = replace(CARTPOLE, normalise_observations=False)
    with_statistics, without = (evaluate_episodes(policy, task, seed=0).lengths.tolist() for task in (CARTPOLE, plain))
    policy.set_statistics(torch.full((2,), -0.2), torch.full((2,), 1e-4))
    assert evaluate_episodes(policy, CARTPOLE, seed=0).lengths.tolist() != with_statistics
    assert evaluate_episodes(policy, plain, seed=0).lengths.tolist() == without


def test_an_evaluation_without_episodes_is_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        evaluate_episodes(policy_of(CARTPOLE), replace(CARTPOLE, num_episodes=0), seed=0)


def test_an_unknown_environment_is_named():
    with pytest.raises(ValueError, match=r"data\.env_id 'CartPool-v1' cannot be made"):
        environment_of(replace(CARTPOLE, env_id="CartPool-v1"), 1, seed=0)


def test_a_masked_column_is_not_there():
    assert environment_of(CARTPOLE, 1, seed=0).reset().shape == (1, 2)
    assert environment_of(replace(CARTPOLE, mask_observations=()), 1, seed=0).reset().shape == (1, 4)
