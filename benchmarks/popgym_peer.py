"""sb3-contrib RecurrentPPO on the tasks of popgym.py, with the settings of our recipe.

Runs in an environment of its own (torch, sb3-contrib, popgym); prints one line of JSON. The argument is a JSON object:
task, seed, stop_at (timesteps), recipe (our settings by our names).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gymnasium
import popgym  # noqa: F401  registers its environments
import sb3_contrib
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize


class Scores(BaseCallback):
    """Mean return of the episodes that ended during each rollout, after the update that follows it."""

    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at, self.returns, self.points = stop_at, list[float](), list[dict[str, float]]()
        self.started = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps > self.stop_at:  # the first step of the next rollout: the last one's update is done
            return False
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_start(self) -> None:
        self.note()

    def note(self) -> None:
        """An iteration is done."""
        if self.returns:
            cpu_s, score = time.process_time() - self.started, sum(self.returns) / len(self.returns)
            point = {"timesteps": self.num_timesteps, "cpu_s": round(cpu_s, 1), "score": round(score, 4)}
            self.points.append(point)
            self.returns = []


class Columns(FlattenExtractor):
    """sb3's default; a MultiDiscrete space has a width of NumPy's int64 there, which no LSTM takes."""

    def __init__(self, observation_space: gymnasium.Space) -> None:
        super().__init__(observation_space)
        self._features_dim = int(self._features_dim)


def make(task: str) -> gymnasium.Env:
    return Monitor(gymnasium.make(f"popgym-{task}-v0"))


def main() -> None:
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    recipe = wanted["recipe"]
    torch.set_num_threads(1)
    plain = DummyVecEnv([lambda: make(wanted["task"])] * recipe["num_envs"])
    # It turns choices into columns itself, and normalises numbers only.
    numbers = isinstance(plain.observation_space, gymnasium.spaces.Box)
    envs = VecNormalize(plain, norm_obs=numbers, gamma=recipe["gamma"])
    model = RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=recipe["num_steps"],
        batch_size=recipe["num_envs"] * recipe["num_steps"] // recipe["num_minibatches"],
        n_epochs=recipe["update_epochs"],
        gamma=recipe["gamma"],
        gae_lambda=recipe["gae_lambda"],
        clip_range=recipe["clip_coef"],
        ent_coef=recipe["ent_coef"],
        vf_coef=recipe["vf_coef"],
        max_grad_norm=recipe["max_grad_norm"],
        learning_rate=LinearSchedule(recipe["learning_rate"], 0.0, 1.0),
        policy_kwargs={
            "lstm_hidden_size": recipe["hidden_size"],
            "shared_lstm": recipe["shared_encoder"],
            "enable_critic_lstm": not recipe["shared_encoder"],
            "net_arch": {"pi": recipe["policy_layers"], "vf": recipe["value_layers"]},
            "features_extractor_class": Columns,
            "activation_fn": {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[recipe["activation"]],
        },
        seed=wanted["seed"],
        device="cpu",
    )
    scores = Scores(wanted["stop_at"])
    model.learn(recipe["total_timesteps"], callback=scores)
    scores.note()
    print(json.dumps({"points": scores.points, "timesteps": model.num_timesteps, "version": sb3_contrib.__version__}))


if __name__ == "__main__":
    main()
