"""sb3-contrib RecurrentPPO on the tasks of memory_proofs.py, with the settings that RL Zoo publishes for them.

Runs in an environment of its own (torch, sb3-contrib, gymnasium); prints one line of JSON. The argument is a JSON
object: task, seed, every (timesteps between validations), validation_episodes, test_episodes.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

TASKS: dict[str, dict[str, Any]] = {
    "cartpole": {"env_id": "CartPole-v1", "kept": [0, 2], "num_envs": 8},
    "pendulum": {"env_id": "Pendulum-v1", "kept": [0, 1], "num_envs": 4},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cartpole": {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8}
    | {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "clip_range": LinearSchedule(0.2, 0.0, 1.0)},
    "pendulum": {"n_steps": 1024, "n_epochs": 10, "gamma": 0.9, "gae_lambda": 0.95}
    | {"learning_rate": 1e-3, "clip_range": 0.2},
}
TIMESTEPS = 100_000


class Masked(gymnasium.ObservationWrapper):
    """Leaves the kept columns of an observation."""

    def __init__(self, env: gymnasium.Env, kept: list[int]) -> None:
        super().__init__(env)
        self.kept = kept
        space = env.observation_space
        self.observation_space = gymnasium.spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self.kept]


def environments(task: dict[str, Any], count: int) -> DummyVecEnv:
    return DummyVecEnv([lambda: Masked(gymnasium.make(task["env_id"]), task["kept"])] * count)


def evaluate(
    model: RecurrentPPO, statistics: VecNormalize, task: dict[str, Any], episodes: int, seed: int
) -> np.ndarray:
    """Total rewards of one greedy episode of each of `episodes` environments."""
    envs = environments(task, episodes)
    envs.seed(seed)
    observations, state, starts = envs.reset(), None, np.ones(episodes, bool)
    totals, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        seen = statistics.normalize_obs(observations)
        actions, state = model.predict(seen, state=state, episode_start=starts, deterministic=True)
        observations, rewards, starts, _ = envs.step(actions)
        totals += rewards * running
        running &= ~starts
    envs.close()
    return totals


class Validation(BaseCallback):
    """Validates every so many steps, between two rollouts, and keeps the best weights; its time does not count."""

    def __init__(self, statistics: VecNormalize, wanted: dict[str, Any]) -> None:
        super().__init__()
        self.statistics, self.wanted = statistics, wanted
        self.curve: list[dict[str, float]] = []
        self.best, self.saved = -np.inf, (b"", statistics.obs_rms.copy())
        self.started, self.validating, self.due = time.perf_counter(), 0.0, wanted["every"]

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.due:
            self.due += self.wanted["every"]
            self.validate()

    def validate(self) -> None:
        now = time.perf_counter()
        seconds = now - self.started - self.validating
        task, episodes = TASKS[self.wanted["task"]], self.wanted["validation_episodes"]
        reward = float(evaluate(self.model, self.statistics, task, episodes, 10_000 + self.wanted["seed"]).mean())
        self.curve.append({"timesteps": self.num_timesteps, "seconds": round(seconds, 1), "reward": round(reward, 2)})
        if reward >= self.best:
            file = io.BytesIO()
            torch.save(self.model.policy.state_dict(), file)
            self.best, self.saved = reward, (file.getvalue(), self.statistics.obs_rms.copy())
        self.validating += time.perf_counter() - now

    def _on_step(self) -> bool:
        return True


def main() -> None:
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    task, settings = TASKS[wanted["task"]], SETTINGS[wanted["task"]]
    envs = VecNormalize(environments(task, task["num_envs"]), gamma=settings["gamma"])
    network = {"ortho_init": False, "activation_fn": torch.nn.ReLU, "lstm_hidden_size": 64}
    network |= {"enable_critic_lstm": True, "net_arch": {"pi": [64], "vf": [64]}}
    model = RecurrentPPO(
        "MlpLstmPolicy", envs, **settings, ent_coef=0.0, policy_kwargs=network, seed=wanted["seed"], device="cpu"
    )
    validation = Validation(envs, wanted)
    model.learn(TIMESTEPS, callback=validation)
    validation.validate()
    weights, envs.obs_rms = validation.saved
    model.policy.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    tests = evaluate(model, envs, task, wanted["test_episodes"], 20_000 + wanted["seed"])
    usage, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - validation.started
    result = {
        "test_reward": round(float(tests.mean()), 2),
        "test_reward_std": round(float(tests.std()), 2),
        "cpu_per_wall": round((usage.ru_utime + usage.ru_stime) / wall, 3),
        "version": sb3_contrib.__version__,
        "curve": validation.curve,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
