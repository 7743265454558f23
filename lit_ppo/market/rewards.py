"""The learner's reward: log of one plus the net return, in standard deviations of the train bars' price return.

log(1 + n) / s of a net return n = z s is z - s z^2 / 2 + ...: in units of the usual move s the account's own growth has
the risk aversion s, which is next to nothing on short bars. `risk_aversion` sets another: log(1 + a z) / a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_ppo.market.costs import net_return
from lit_ppo.market.tensors import MarketTensors

# A net return at or below this loss is ruin: the account has nothing left to trade with.
RUIN_RETURN = -0.95


def log_reward(net_returns: Tensor, reward_scale: float, risk_aversion: float | None = None) -> Tensor:
    """float64 net returns [...] -> float32 rewards [...]: log(1 + a n / scale) / a, with a n / scale held above ruin.

    Args:
        reward_scale: usual size of a price return, the unit of rewards.
        risk_aversion: a; None: `reward_scale`, so that the reward is log(1 + n) / scale.
    """
    aversion = reward_scale if risk_aversion is None else risk_aversion
    return (torch.log1p((net_returns * (aversion / reward_scale)).clamp(min=RUIN_RETURN)) / aversion).float()


def transition_rewards(market: MarketTensors, rows: Tensor, positions: Tensor, mirror: Tensor | None = None) -> Tensor:
    """r_t(p, a) for every held position p and every next position a.

    Args:
        market: the bars.
        rows: [T, S] rows of the decisions.
        positions: [P] float64 position grid.
        mirror: [S] +1 or -1; -1 turns a sequence's positions round, so that long earns what short did.

    Returns:
        [T, S, P, P] float32; held position first, next position last.
    """

    def of_bar(values: Tensor) -> Tensor:
        return values[rows][..., None, None]  # [T, S, 1, 1]

    grid = positions if mirror is None else positions * mirror.to(positions.dtype)[:, None]  # [P] or [S, P]
    returns = net_return(
        grid[..., :, None],
        grid[..., None, :],
        of_bar(market.price_return),
        of_bar(market.turnover_cost),
        of_bar(market.carry_long),
        of_bar(market.carry_short),
    )
    return log_reward(returns, market.reward_scale, market.risk_aversion)


def sampled_rewards(
    market: MarketTensors,
    rows: Tensor,
    positions: Tensor,
    held: Tensor,
    actions: Tensor,
    mirror: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Reward [S] float32 and net return [S] float64 of going from position `held` [S] to `actions` [S] (indices)."""
    sign = 1.0 if mirror is None else mirror.to(positions.dtype)
    returns = net_return(
        positions[held] * sign,
        positions[actions] * sign,
        market.price_return[rows],
        market.turnover_cost[rows],
        market.carry_long[rows],
        market.carry_short[rows],
    )
    return log_reward(returns, market.reward_scale, market.risk_aversion), returns
