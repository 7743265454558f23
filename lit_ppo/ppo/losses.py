"""The clipped PPO objective, once, for sampled actions and for all actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PPOLoss(NamedTuple):
    """Scalars of one minibatch; `total` is minimised, the others are for the log."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    values: Tensor,
    old_values: Tensor,
    value_targets: Tensor,
    entropies: Tensor,
    state_weights: Tensor,
    *,
    clip_coef: float,
    vf_coef: float,
    ent_coef: float,
    clip_value: float | None = None,
) -> PPOLoss:
    """Clipped surrogate, squared value error and entropy bonus of one minibatch.

        L = - sum w min(rho A, clip(rho, 1 - eps, 1 + eps) A) + c_v mean (V - target)^2 - c_e sum s H,
        rho = pi / pi_old

    With sampled actions every weight w is 1 / (T S): the mean of arXiv:1707.06347, eq. 7. With all actions
    w_t(p, a) = d'_t(p) pi_old(a | h_t, p) / (T S): its exact expectation over actions and held positions.

    Args:
        log_probs, old_log_probs, advantages, weights: one shape, [T, S] or [T, S, P, P]; `weights` sums to 1.
        values, old_values, value_targets: one shape, [T, S] or [T, S, P].
        entropies, state_weights: one shape, [T, S] or [T, S, P]; `state_weights` sums to 1.
        clip_coef: eps.
        clip_value: if given, values may move this far from `old_values` (the larger error counts).

    Source: Schulman et al. 2017, arXiv:1707.06347, eqs. 7 and 9; value clipping as Huang et al. 2022, "The 37
    Implementation Details of Proximal Policy Optimization", detail 9; KL estimator k3, Schulman 2020.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages
    policy = -(weights * torch.min(unclipped, clipped)).sum()
    errors = (values - value_targets).square()
    if clip_value is not None:
        bounded = old_values + (values - old_values).clamp(-clip_value, clip_value)
        errors = torch.max(errors, (bounded - value_targets).square())
    value = errors.mean()
    entropy = (state_weights * entropies).sum()
    total = policy + vf_coef * value - ent_coef * entropy
    with torch.no_grad():
        approx_kl = (weights * (ratio - 1 - log_ratio)).sum()
        clip_fraction = (weights * ((ratio - 1).abs() > clip_coef)).sum()
    return PPOLoss(total, policy.detach(), value.detach(), entropy.detach(), approx_kl, clip_fraction)
