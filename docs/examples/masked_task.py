"""A task of one's own: remember which door was lit, wait, then take it; what cannot be done now is masked.

lit-ppo fit --config docs/examples/masked_task.yaml --allow-module masked_task

See docs/gymnasium.md. Without memory the best is 1/2: of two open doors one was lit.
"""

import gymnasium
import numpy as np


class Doors(gymnasium.Env):
    """Action 0 waits, action i takes door i. Observed: the lit door first, at the end which are open."""

    def __init__(self, doors: int = 4, delay: int = 5) -> None:
        self.doors, self.delay = doors, delay
        self.observation_space = gymnasium.spaces.Box(0, 1, (2 * doors,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(1 + doors)
        self.lit, self.clock, self.open = 0, 0, np.zeros(doors, np.int8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.lit, other = (int(door) for door in self.np_random.choice(self.doors, 2, replace=False))
        self.clock, self.open = 0, np.isin(np.arange(self.doors), (self.lit, other)).astype(np.int8)
        return self._seen(), self._info()

    def step(self, action):
        if not self._info()["action_mask"][action]:
            raise ValueError(f"action {action} is forbidden at step {self.clock}")
        chosen, self.clock = self.clock == self.delay, self.clock + 1
        return self._seen(), float(chosen and action == 1 + self.lit), chosen, False, self._info()

    def _seen(self):
        lit = (np.arange(self.doors) == self.lit) * (self.clock == 0)
        return np.concatenate([lit, self.open * (self.clock == self.delay)]).astype(np.float32)

    def _info(self):
        at_the_doors = self.clock == self.delay
        return {"action_mask": np.array([not at_the_doors, *(self.open * at_the_doors)], np.int8)}


class Stretched(gymnasium.RewardWrapper):
    """A reward shaped for training."""

    def __init__(self, env: gymnasium.Env, factor: float = 1.0) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward):
        return self.factor * float(reward)
