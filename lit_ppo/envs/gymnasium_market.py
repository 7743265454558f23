"""The market as a gymnasium environment, for the tools of others. Importing this module registers it.

import gymnasium, lit_ppo.envs.gymnasium_market
env = gymnasium.make("LitPPO/Market-v0", market=fold_data.train)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_ppo.envs.scalar_market import ScalarMarket
from lit_ppo.market.tensors import MarketTensors

MARKET_ID = "LitPPO/Market-v0"


class GymnasiumMarket(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One account over windows of the bars; observations, actions, rewards and ends as `lit_ppo.envs.market.MarketEnv`.

    `reset(options={"row": 120})` starts the window at bar 120. `info` tells `row` (bar of the next decision),
    `net_return` (fraction of notional) and `equity` (1 at the start), both up to the fill of the next decision: books
    to be read afterwards, not something to decide by.

    Args:
        market: the bars.
        positions, episode_bars, random_start, random_position, account_features: as in `MarketEnv`.
        render_mode: the market has nothing to draw; only None.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(
        self,
        market: MarketTensors,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        episode_bars: int | None = None,
        random_start: bool = True,
        random_position: bool = False,
        account_features: Sequence[str] = ("position",),
        render_mode: None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"{MARKET_ID} has no render mode, got {render_mode!r}; leave it out")
        self.render_mode = None
        self.account_market = ScalarMarket(market, positions, episode_bars, account_features)
        self.first_row, self.last_start = market.warmup, len(market) - 1 - self.account_market.episode_bars
        self.random_start, self.random_position = random_start, random_position
        features = self.account_market.features
        if not np.isfinite(features).all():
            raise ValueError(f"{MARKET_ID} needs finite features; {int((~np.isfinite(features)).sum())} values are not")
        grid = self.account_market.positions
        bounds = {"unrealised": (-5.0, 5.0), "holding_time": (0.0, 5.0)}
        others = [bounds[name] for name in account_features if name != "position"]
        # One unit beyond what the bars hold, so that a constant feature has an interval too.
        low = [*np.floor(features.min(0) - 1), grid[0], *(pair[0] for pair in others)]
        high = [*np.ceil(features.max(0) + 1), grid[-1], *(pair[1] for pair in others)]
        self.observation_space = gymnasium.spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        self.action_space = gymnasium.spaces.Discrete(len(grid))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a window: at `options["row"]` if given, else as `random_start` says.

        Raises:
            ValueError: a row without decisions, or without room for a window.
        """
        super().reset(seed=seed)
        row = self.first_row
        if options and "row" in options:
            row = int(options["row"])
            if not self.first_row <= row <= self.last_start:
                raise ValueError(f"A window can start at bars {self.first_row} to {self.last_start}, not at {row}")
        elif self.random_start:
            row = int(self.np_random.integers(self.first_row, self.last_start, endpoint=True))
        grid = self.account_market.positions
        position = grid[int(self.np_random.integers(len(grid)))] if self.random_position else 0.0
        return np.array(self.account_market.reset(row, position), np.float32), self._info()

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated = self.account_market.step(int(action))
        return np.array(observation, np.float32), reward, terminated, truncated, self._info()

    def _info(self) -> dict[str, Any]:
        account = self.account_market
        return {"row": account.row, "net_return": account.net_return, "equity": float(np.exp(account.log_equity))}

    def state_dict(self) -> dict[str, Any]:
        """Return where the account stands; gymnasium's generator is kept by who saves the environment."""
        return {name: getattr(self.account_market, name) for name in _ACCOUNT_STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name in _ACCOUNT_STATE:
            setattr(self.account_market, name, state[name])


_ACCOUNT_STATE = (
    *("row", "end", "position", "bars_held", "net_return"),
    *("log_equity", "known_log_equity", "entry_log_equity"),
)

if MARKET_ID not in gymnasium.registry:
    gymnasium.register(MARKET_ID, entry_point="lit_ppo.envs.gymnasium_market:GymnasiumMarket")
