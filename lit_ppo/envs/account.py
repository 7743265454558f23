"""The account of a trader: what is held, since when, and what it has earned. Batched, on the market's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_ppo.market.rewards import RUIN_RETURN

# `position` is the held exposure itself; the others are what `Account.features` adds beside it.
ACCOUNT_FEATURES = ("position", "unrealised", "holding_time")


def checked_positions(positions: Sequence[float]) -> tuple[float, ...]:
    """Return the position grid as floats.

    Raises:
        ValueError: a grid that does not rise or lacks 0.
    """
    grid = tuple(float(position) for position in positions)
    if list(grid) != sorted(set(grid)) or 0.0 not in grid or len(grid) < 2:
        raise ValueError(f"`positions` must rise, without repeats, and contain 0 (flat); got {list(positions)}")
    return grid


def check_account_features(names: Sequence[str]) -> None:
    """Refuse account features that are unknown or lack `position`."""
    if not set(names) <= set(ACCOUNT_FEATURES) or "position" not in names:
        raise ValueError(
            f"`account_features` are chosen from {ACCOUNT_FEATURES} and contain `position`, got {tuple(names)}"
        )


class Account:
    """S accounts side by side.

    A decision is made at the close of its bar, and its own fill may come later. So what it sees ends at the fill of the
    decision before: `log_equity` already holds the return up to the coming fill, and nobody knows that yet.

    Attributes:
        held: [S] int64 index of the held position.
        log_equity: [S] float64 at the fill of the coming decision, 0 at the start. For the books, never to be seen.
        known_log_equity: [S] float64 at the last fill before it.
        entry_log_equity: [S] float64, log equity when the held position was taken.
        bars_held: [S] float64, bars since then.

    Args:
        held: [S] index of the position held at the start.
        positions: [P] float64 grid.
        flat_index: where 0 stands in it.
        reward_scale: standard deviation of a bar's price return: the unit of the unrealised result.
    """

    def __init__(self, held: Tensor, positions: Tensor, flat_index: int, reward_scale: float) -> None:
        self.positions, self.flat_index, self.reward_scale = positions, flat_index, reward_scale
        self.held = held
        self.log_equity = torch.zeros(held.shape, dtype=torch.float64, device=held.device)
        self.known_log_equity = self.log_equity.clone()
        self.entry_log_equity = self.log_equity.clone()
        self.bars_held = self.log_equity.clone()

    def features(self, names: Sequence[str]) -> Tensor | None:
        """[S, C] float32 of the named features other than `position`; None if there are none.

        unrealised: log equity from the fill of the entry to the last fill before this decision's, in ten standard
            deviations of a bar, within +-5; so 0 on the bar after the entry. The same for every fill, although with
            `same_close` one return more would be known.
        holding_time: log(1 + bars since entry) / 5.
        """
        columns = []
        for name in names:
            if name == "unrealised":
                result = (self.known_log_equity - self.entry_log_equity) / (10 * self.reward_scale)
                columns.append(result.clamp(-5, 5))
            elif name == "holding_time":
                columns.append(torch.log1p(self.bars_held) / 5)
        return torch.stack(columns, dim=-1).float() if columns else None

    def advance(self, actions: Tensor, net_returns: Tensor) -> Tensor:
        """Take the positions `actions` [S] and earn `net_returns` [S]; returns [S] bool: ruined."""
        changed = actions != self.held
        self.entry_log_equity = torch.where(changed, self.log_equity, self.entry_log_equity)
        self.bars_held = torch.where(changed, 0.0, self.bars_held) + 1.0
        self.known_log_equity = self.log_equity
        self.log_equity = self.log_equity + torch.log1p(net_returns.clamp(min=RUIN_RETURN))
        self.held = actions
        return net_returns <= RUIN_RETURN

    def restart_where(self, mask: Tensor) -> None:
        """Give the accounts that `mask` [S] marks a fresh start: flat, nothing earned."""
        self.held = torch.where(mask, self.flat_index, self.held)
        self.log_equity = torch.where(mask, 0.0, self.log_equity)
        self.known_log_equity = torch.where(mask, 0.0, self.known_log_equity)
        self.entry_log_equity = torch.where(mask, 0.0, self.entry_log_equity)
        self.bars_held = torch.where(mask, 0.0, self.bars_held)
