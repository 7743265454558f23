"""One account, one bar at a time, in python floats: slow and obviously right. `MarketEnv` must give the same bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_ppo.envs.market import checked_grid, window_length
from lit_ppo.market.rewards import RUIN_RETURN
from lit_ppo.market.tensors import MarketTensors


class ScalarMarket:
    """See `MarketEnv`; the caller says where a window starts, and with what position."""

    def __init__(
        self,
        market: MarketTensors,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        episode_bars: int | None = None,
        account_features: Sequence[str] = ("position",),
    ) -> None:
        self.positions = checked_grid(positions, account_features)
        self.episode_bars = window_length(market, episode_bars)
        self.account_features, self.reward_scale = tuple(account_features), market.reward_scale
        self.features = market.features.cpu().numpy()
        self.rho, self.kappa = market.price_return.tolist(), market.turnover_cost.tolist()
        self.carry_long, self.carry_short = market.carry_long.tolist(), market.carry_short.tolist()

    def reset(self, row: int, position: float = 0.0) -> list[float]:
        self.row, self.end, self.position = row, row + self.episode_bars, position
        self.log_equity = self.known_log_equity = self.entry_log_equity = self.net_return = 0.0
        self.bars_held = 0
        return self.observe()

    def observe(self) -> list[float]:
        observation = [*self.features[self.row].tolist(), self.position]
        for name in self.account_features:
            if name == "unrealised":
                result = (self.known_log_equity - self.entry_log_equity) / (10 * self.reward_scale)
                observation.append(min(max(result, -5.0), 5.0))
            elif name == "holding_time":
                observation.append(math.log1p(self.bars_held) / 5)
        return observation

    def step(self, action: int) -> tuple[list[float], float, bool, bool]:
        """Return the next observation, the reward, whether the account is ruined, whether the window ended."""
        target, t = self.positions[action], self.row
        gross = target * self.rho[t] - self.kappa[t] * abs(target - self.position)
        carry = target * self.carry_long[t] if target > 0 else -target * self.carry_short[t]
        self.net_return = gross - carry
        growth = math.log1p(max(self.net_return, RUIN_RETURN))
        if target != self.position:
            self.entry_log_equity, self.bars_held = self.log_equity, 0
        self.position, self.bars_held = target, self.bars_held + 1
        self.known_log_equity = self.log_equity  # the fill that this return ends at is still to come
        self.log_equity += growth
        self.row += 1
        terminated = self.net_return <= RUIN_RETURN
        return self.observe(), growth / self.reward_scale, terminated, self.row == self.end and not terminated
