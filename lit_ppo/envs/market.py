"""The market as a vector environment: B accounts over the bars of one `MarketTensors`, on its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_ppo.envs.account import Account, check_account_features, checked_positions
from lit_ppo.envs.protocol import Transition
from lit_ppo.market.rewards import sampled_rewards
from lit_ppo.market.tensors import MarketTensors


def window_length(market: MarketTensors, episode_bars: int | None) -> int:
    """Return the decisions of one episode; None: all of the market's but the last, which is only looked at.

    Raises:
        ValueError: the market has no room for such an episode and the bar after it.
    """
    room = market.num_decisions - 1
    length = room if episode_bars is None else episode_bars
    if not 1 <= length <= room:
        raise ValueError(
            f"An episode of {length} bars and the bar after it need {max(length, 1) + 1} bars with decisions, but the "
            f"market has {market.num_decisions} ({len(market)} bars, {market.warmup} of them warm-up). "
            "Lower episode_bars or give more bars."
        )
    return length


def checked_grid(positions: Sequence[float], account_features: Sequence[str]) -> tuple[float, ...]:
    """Return the position grid as floats.

    Raises:
        ValueError: a grid that does not rise or lacks 0, or account features that are unknown or lack `position`.
    """
    check_account_features(account_features)
    return checked_positions(positions)


class MarketEnv:
    """B accounts trading windows of the same bars. No step waits for the device.

    An observation is [F market features of bar t, held exposure, other account features]. Action a at bar t means
    "hold positions[a]"; its reward is that of `market.rewards.sampled_rewards`. The window's end truncates, and the
    final observation is the bar after its last decision; ruin terminates. Both start a new window at once.

    Args:
        market: the bars. Warm-up rows see no decision.
        positions: the P target exposures, rising, with 0.
        num_envs: B.
        episode_bars: decisions per window; None: all bars.
        random_start: windows start at any bar with equal probability; otherwise at the first decision bar.
        random_position: accounts start with a random position, which nobody paid for; otherwise flat.
        account_features: from `lit_ppo.envs.account.ACCOUNT_FEATURES`, with `position`.
        generator: draws starts and positions; best on the market's device.

    Raises:
        ValueError: unusable sizes, positions or account features.
    """

    def __init__(
        self,
        market: MarketTensors,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        num_envs: int = 1,
        *,
        generator: torch.Generator,
        episode_bars: int | None = None,
        random_start: bool = True,
        random_position: bool = False,
        account_features: Sequence[str] = ("position",),
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"MarketEnv needs num_envs >= 1, got {num_envs}")
        self.positions: tuple[float, ...] | None = checked_grid(positions, account_features)
        self.episode_bars = window_length(market, episode_bars)
        self.market, self.num_envs, self.generator = market, num_envs, generator
        self.random_start, self.random_position = random_start, random_position
        self.account_features = tuple(account_features)
        self.num_actions: int | None = len(self.positions)
        self.action_size = 0
        self.hold_column: int | None = market.features.shape[1]
        self.observation_size = market.features.shape[1] + len(self.account_features)
        device = market.features.device
        self._grid = torch.tensor(self.positions, dtype=torch.float64, device=device)
        flat = self.positions.index(0.0)
        held = torch.full((num_envs,), flat, dtype=torch.int64, device=device)
        self.account = Account(held, self._grid, flat, market.reward_scale)
        self.rows = torch.full_like(held, market.warmup)  # [B] bar of the next decision
        self.window_ends = self.rows + self.episode_bars  # [B] bar after the window's last decision
        self._everywhere = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._started = False

    def reset(self) -> Tensor:
        """Start a window in every environment; returns the first observations [B, D]."""
        self._started = True
        self._restart_where(self._everywhere)
        return self._observe()

    def step(self, actions: Tensor) -> Transition:
        """Take the positions `actions` [B] (indices) at the current bars.

        Raises:
            RuntimeError: before `reset`.
        """
        if not self._started:
            raise RuntimeError("MarketEnv.step was called before MarketEnv.reset")
        rewards, net_returns = sampled_rewards(self.market, self.rows, self._grid, self.account.held, actions)
        terminated = self.account.advance(actions, net_returns)
        self.rows = self.rows + 1
        truncated = (self.rows == self.window_ends) & ~terminated
        final_observations = self._observe()
        self._restart_where(terminated | truncated)
        return Transition(self._observe(), rewards, terminated, truncated, final_observations)

    def _observe(self) -> Tensor:
        """[B, D] float32 of the accounts at their bars."""
        exposure = self._grid[self.account.held].float().unsqueeze(-1)
        columns = [self.market.features[self.rows], exposure]
        others = self.account.features(self.account_features)
        return torch.cat(columns if others is None else [*columns, others], dim=-1)

    def _restart_where(self, mask: Tensor) -> None:
        """Start new windows where `mask` [B]. Draws for every environment: to draw for some would ask the device."""
        warmup = self.market.warmup
        self.account.restart_where(mask)
        if self.random_start:
            choices = self.market.num_decisions - self.episode_bars
            self.rows = torch.where(mask, warmup + self._draw(choices), self.rows)
        else:
            self.rows = torch.where(mask, warmup, self.rows)
        if self.random_position:
            self.account.held = torch.where(mask, self._draw(len(self._grid)), self.account.held)
        self.window_ends = torch.where(mask, self.rows + self.episode_bars, self.window_ends)

    def _draw(self, choices: int) -> Tensor:
        drawn = torch.randint(choices, (self.num_envs,), generator=self.generator, device=self.generator.device)
        return drawn.to(self.rows.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Return where every account stands, and the generator. The market itself is not in it."""
        account = self.account
        return {
            "started": self._started,
            "rows": self.rows,
            "window_ends": self.window_ends,
            "held": account.held,
            "log_equity": account.log_equity,
            "known_log_equity": account.known_log_equity,
            "entry_log_equity": account.entry_log_equity,
            "bars_held": account.bars_held,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another number of environments, of more bars than this market has, or of an earlier
                version and `unrealised` is seen, which then looked ahead.
        """
        rows = state["rows"]
        if rows.shape != self.rows.shape or int(state["window_ends"].max()) >= len(self.market):
            raise ValueError(
                f"The saved market state has {len(rows)} environments up to bar {int(state['window_ends'].max())}; "
                f"this one has {self.num_envs} environments over {len(self.market)} bars. "
                "Resume with the num_envs and the bars it was saved with."
            )
        if "known_log_equity" not in state:
            if "unrealised" in self.account_features:
                raise ValueError(
                    "The saved market state is of an earlier version, whose account feature `unrealised` looked one "
                    "fill ahead: what was learned from it is worth nothing. Train again from the start."
                )
            state = {**state, "known_log_equity": state["log_equity"]}  # only `unrealised` reads it
        device = self.rows.device
        self._started = bool(state["started"])
        self.rows, self.window_ends = rows.to(device), state["window_ends"].to(device)
        for name in ("held", "log_equity", "known_log_equity", "entry_log_equity", "bars_held"):
            setattr(self.account, name, state[name].to(device))
        self.generator.set_state(state["generator"].cpu())
