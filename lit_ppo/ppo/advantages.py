"""Advantages and value targets, of sampled accounts (GAE) and of all positions at once (counterfactual)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_ppo.nets.lstm import fused_on_cpu


@torch.no_grad()
def generalized_advantage(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Estimate advantages and value targets for one rollout.

        delta_t = r_t + gamma * V(s_{t+1}) * (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma * lambda * (1 - ended_t) * A_{t+1},    A_T = 0

    A *terminated* account (ruin) is worth nothing afterwards; a *truncated* one (the fold's window ran out) keeps
    the value of the state it was cut in. Both end the sum.

    Args:
        rewards: [T, S] reward of action t, in log-return units.
        values: [T, S] V(s_t) of the policy that collected the rollout.
        next_values: [T, S] V of the state action t led to, *before* any auto-reset.
        terminated, truncated: [T, S] bool.
        gamma: discount per bar, in [0, 1].
        gae_lambda: 0 is one-step TD, 1 is Monte Carlo.

    Returns:
        advantages [T, S] and value targets [T, S] (= advantages + values).

    Raises:
        ValueError: the five tensors do not share one [T, S] shape.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16; truncation as in Pardo et al. 2018, arXiv:1712.00378.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"generalized_advantage needs five tensors of one [T, S] shape, got {sorted(shapes)}")
    continues = (~(terminated | truncated)).to(rewards.dtype)
    deltas = rewards + gamma * (~terminated).to(rewards.dtype) * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[0])  # [S]
    for t in reversed(range(len(deltas))):
        running = deltas[t] + gamma * gae_lambda * continues[t] * running
        advantages[t] = running
    return advantages, advantages + values


class CounterfactualAdvantages(NamedTuple):
    """What every (held position p, next position a) is worth on every bar.

    Attributes:
        advantages: [T, S, P, P] A_t(p, a).
        value_targets: [T, S, P] q_t(p).
        occupancy: [T, S, P] d_t(p), probability that the old policy holds p before decision t.
    """

    advantages: Tensor
    value_targets: Tensor
    occupancy: Tensor


@torch.no_grad()
def counterfactual_advantage(
    rewards: Tensor, probs: Tensor, values: Tensor, first_occupancy: Tensor, gamma: float, gae_lambda: float
) -> CounterfactualAdvantages:
    """Evaluate every held position and every next position on every bar, exactly.

        Q_t(p,a) = r_t(p,a) + gamma * W_{t+1}(a)
        q_t(p)   = sum_a pi(a | h_t, p) Q_t(p,a)
        W_t(p)   = (1 - lambda) V(h_t, p) + lambda q_t(p),      W_T(p) = V(h_T, p)
        A_t(p,a) = Q_t(p,a) - q_t(p)
        d_{t+1}(a) = sum_p d_t(p) pi(a | h_t, p)

    The market does not react to the account, so one stretch of bars serves all positions: no action is sampled, and
    what noise is left is the market's own. The mean of many sampled advantages (`generalized_advantage`) equals A.

    Args:
        rewards: [T, S, P, P] r_t(p, a).
        probs: [T, S, P, P] pi(a | h_t, p) of the policy before the update; sums to 1 over the last axis.
        values: [T + 1, S, P] V(h_t, p); row T is the bootstrap.
        first_occupancy: [S, P] d_0, sums to 1.
        gamma, gae_lambda: as in `generalized_advantage`.

    Raises:
        ValueError: shapes that do not fit together.

    Source: expected policy gradients (Ciosek and Whiteson 2018, arXiv:1801.03326), made exact over the horizon by the
    exogenous market (decision processes with exogenous inputs, arXiv:2207.06272); lambda-return as arXiv:1506.02438.
    """
    num_steps, num_sequences, num_positions = rewards.shape[:3]
    wanted = {
        "rewards": (num_steps, num_sequences, num_positions, num_positions),
        "probs": (num_steps, num_sequences, num_positions, num_positions),
        "values": (num_steps + 1, num_sequences, num_positions),
        "first_occupancy": (num_sequences, num_positions),
    }
    given = {"rewards": rewards, "probs": probs, "values": values, "first_occupancy": first_occupancy}
    wrong = {name: tuple(given[name].shape) for name, shape in wanted.items() if given[name].shape != shape}
    if wrong:
        raise ValueError(f"counterfactual_advantage needs {wanted}, got {wrong}")
    results = torch.empty_like(rewards), torch.empty_like(rewards[..., 0]), torch.empty_like(rewards[..., 0])
    if fused_on_cpu(rewards, probs, values, first_occupancy):
        from lit_ppo.ppo.fused_objective import evaluate_positions  # compiled at the first use

        arrays = [tensor.contiguous().numpy() for tensor in (rewards, probs, values, first_occupancy)]
        evaluate_positions(*arrays, float(gamma), float(gae_lambda), *(tensor.numpy() for tensor in results))
    else:
        _evaluate_positions(rewards, probs, values, first_occupancy, gamma, gae_lambda, *results)
    return CounterfactualAdvantages(*results)


def _evaluate_positions(
    rewards: Tensor,
    probs: Tensor,
    values: Tensor,
    first_occupancy: Tensor,
    gamma: float,
    gae_lambda: float,
    advantages: Tensor,
    value_targets: Tensor,
    occupancy: Tensor,
) -> None:
    """Fill in the last three: the formulas above, in torch."""
    num_steps = len(rewards)
    later = values[num_steps]  # W_{t+1}, [S, P]
    for t in reversed(range(num_steps)):
        action_values = rewards[t] + gamma * later.unsqueeze(1)  # Q_t, [S, P, P]
        state_values = (probs[t] * action_values).sum(-1)  # q_t, [S, P]
        advantages[t] = action_values - state_values.unsqueeze(-1)
        value_targets[t] = state_values
        later = torch.lerp(values[t], state_values, gae_lambda)
    held = first_occupancy
    for t in range(num_steps):
        occupancy[t] = held
        held = torch.einsum("sp,spa->sa", held, probs[t])
