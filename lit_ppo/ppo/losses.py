"""The clipped PPO objective, once, for sampled actions and for all actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_ppo.nets.lstm import fused_on_cpu
from lit_ppo.nets.policy import AllActionOutputs, SampledOutputs
from lit_ppo.ppo.rollout import Rollout


class PPOLoss(NamedTuple):
    """Scalars of one minibatch; `total` is minimised, the others are for the log."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_loss(
    outputs: SampledOutputs | AllActionOutputs,
    minibatch: Rollout,
    *,
    clip_coef: float,
    vf_coef: float,
    ent_coef: float,
    clip_value: float | None = None,
    pieces: int = 1,
) -> PPOLoss:
    """Clipped surrogate, squared value error and entropy bonus of one minibatch.

        L = - sum w min(rho A, clip(rho, 1 - eps, 1 + eps) A) + c_v mean (V - target)^2 - c_e sum s H,
        rho = pi / pi_old

    With sampled actions every weight w is 1 / (T S): the mean of arXiv:1707.06347, eq. 7. With all actions
    w_t(p, a) = d'_t(p) pi_old(a | h_t, p) / (T S): its exact expectation over actions and held positions. On a CPU, in
    float32 and without `clip_value`, that goes through one loop of our own (`lit_ppo.ppo.fused_objective`).

    Args:
        outputs: of the policy under its current weights, with the gradient.
        minibatch: whole sequences of the rollout; both its weights are brought to sum 1.
        clip_coef: eps.
        clip_value: if given, values may move this far from the old ones (the larger error counts).
        pieces: the minibatch is one of so many of equal size, whose losses add up to that of the whole.

    Source: Schulman et al. 2017, arXiv:1707.06347, eqs. 7 and 9; value clipping as Huang et al. 2022, "The 37
    Implementation Details of Proximal Policy Optimization", detail 9; KL estimator k3, Schulman 2020.
    """
    weights, state_weights = minibatch.weights, minibatch.state_weights
    old_log_probs, advantages, targets = minibatch.log_probs, minibatch.advantages, minibatch.value_targets
    if isinstance(outputs, AllActionOutputs) and clip_value is None and fused_on_cpu(advantages):
        from lit_ppo.ppo.fused_objective import counterfactual_loss  # compiled at the first use

        given = (outputs.logits, old_log_probs, advantages, weights, outputs.values, targets, state_weights)
        terms = counterfactual_loss(*given, clip_coef=clip_coef, vf_coef=vf_coef, ent_coef=ent_coef)
        return PPOLoss(*terms) if pieces == 1 else PPOLoss(*(term / pieces for term in terms))
    weights = weights / (weights.sum() * pieces)
    state_weights = state_weights / (state_weights.sum() * pieces)
    entropies, log_probs = outputs.entropies, outputs.log_probs
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages
    policy = -(weights * torch.min(unclipped, clipped)).sum()
    errors = (outputs.values - targets).square()
    if clip_value is not None:
        bounded = minibatch.values + (outputs.values - minibatch.values).clamp(-clip_value, clip_value)
        errors = torch.max(errors, (bounded - targets).square())
    value = errors.mean()
    entropy = (state_weights * entropies).sum()
    total = policy + vf_coef / pieces * value - ent_coef * entropy
    with torch.no_grad():
        approx_kl = (weights * (ratio - 1 - log_ratio)).sum()
        clip_fraction = (weights * ((ratio - 1).abs() > clip_coef)).sum()
    return PPOLoss(total, policy.detach(), value.detach() / pieces, entropy.detach(), approx_kl, clip_fraction)
