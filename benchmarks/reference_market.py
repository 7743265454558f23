"""The peers' reference environment (`reference_env.TradingCore`), many at a time, as tensors: lit-ppo's `VectorEnv`.

The same bars, windows, observations [24], actions (hold, buy, sell, close), costs and rewards; a test steps both side
by side. Only the start of a window comes from another random stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_ppo.envs.protocol import Transition

WARMUP_BARS = 200  # of the reference: windows start no earlier
FULL_AGE = 96  # bars in a position after which its age reads 1


class ReferenceMarket:
    """B accounts on windows of one price series.

    Args:
        features: [N, 20] float32 market features of `reference_env.market_features`.
        log_prices: [N] float64.
        num_envs: B.
        window: bars of an episode; its end truncates.
        half_spread: relative, per unit of position changed.
        scale: log return that counts as one unit of reward.
        generator: draws the starts.
    """

    num_actions: int | None = 4
    action_size = 0
    hold_column: int | None = None
    positions: tuple[float, ...] | None = None

    def __init__(
        self,
        features: Tensor,
        log_prices: Tensor,
        num_envs: int,
        *,
        generator: torch.Generator,
        window: int = 672,
        half_spread: float = 2e-5,
        scale: float = 1e-3,
    ) -> None:
        if len(features) < WARMUP_BARS + window + 2:
            raise ValueError(f"A window of {window} bars needs {WARMUP_BARS + window + 2} bars, got {len(features)}")
        self.features, self.log_prices, self.num_envs, self.window = features, log_prices, num_envs, window
        self.cost, self.scale, self.generator = half_spread / scale, scale, generator
        self.observation_size = features.shape[1] + 4
        # Position that each action leads to, if it is not "hold"; index 0 is replaced by what is held.
        self._target = torch.tensor([0.0, 1.0, -1.0, 0.0])
        self.row = torch.zeros(num_envs, dtype=torch.int64)
        self.end = torch.zeros(num_envs, dtype=torch.int64)
        self.held = torch.zeros(num_envs)
        self.age = torch.zeros(num_envs)
        self.entry = torch.zeros(num_envs, dtype=torch.float64)
        # [N] float32 reward of one unit over the bar that follows, and log price, looked up once a step.
        self._gain = torch.zeros(len(log_prices))
        self._gain[:-1] = ((log_prices[1:] - log_prices[:-1]) / scale).float()

    def reset(self) -> Tensor:
        self._restart(torch.ones(self.num_envs, dtype=torch.bool))
        return self._observe()

    def step(self, actions: Tensor) -> Transition:
        following = torch.where(actions == 0, self.held, self._target[actions])
        changed = following != self.held
        self.entry = torch.where(changed, self.log_prices[self.row], self.entry)
        self.age = torch.where(changed, 0.0, self.age + (following != 0))
        rewards = following * self._gain[self.row] - (following - self.held).abs() * self.cost
        self.held = following
        self.row = self.row + 1
        truncated = self.row >= self.end
        observations = final = self._observe()
        if bool(truncated.any()):
            self._restart(truncated)
            observations = self._observe()
        return Transition(observations, rewards, torch.zeros_like(truncated), truncated, final)

    def _observe(self) -> Tensor:
        profit = (self.held * (self.log_prices[self.row] - self.entry) / self.scale).clamp(-10, 10).float()
        age = (self.age / FULL_AGE).clamp(max=1)
        left = (self.end - self.row) / self.window
        account = torch.stack([self.held, profit, age, left], dim=-1)
        return torch.cat([self.features[self.row], account], dim=-1)

    def _restart(self, mask: Tensor) -> None:
        last = len(self.features) - self.window - 1
        starts = torch.randint(WARMUP_BARS, last + 1, (self.num_envs,), generator=self.generator)
        self.row = torch.where(mask, starts, self.row)
        self.end = torch.where(mask, starts + self.window, self.end)
        self.held = torch.where(mask, 0.0, self.held)
        self.age = torch.where(mask, 0.0, self.age)
        self.entry = torch.where(mask, self.log_prices[self.row], self.entry)

    def state_dict(self) -> dict[str, Any]:
        names = ("row", "end", "held", "age", "entry")
        return {**{name: getattr(self, name) for name in names}, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("row", "end", "held", "age", "entry"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
