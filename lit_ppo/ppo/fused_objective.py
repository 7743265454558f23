"""Every held and next position at once, in float32 on a CPU: advantages in one loop, clipped objective in another.

`advantages.counterfactual_advantage` and `losses.ppo_loss` say the same in torch and run everywhere. But
thirty small operations over [T, S, P, P], and as many backwards, took half of an update's time, and 128 steps of ten
small ones a third of a rollout's.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_ppo.nets.kernels.simd import BYTES, LANES, clamp, constant, fma, load, store, where_at_most
from lit_ppo.nets.kernels.vector_math import compiled, exp


def counterfactual_loss(
    logits: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    values: Tensor,
    value_targets: Tensor,
    state_weights: Tensor,
    *,
    clip_coef: float,
    vf_coef: float,
    ent_coef: float,
) -> tuple[Tensor, ...]:
    """The terms of `PPOLoss`, as `losses.ppo_loss` finds them, without value clipping; float32 on the CPU.

    Args:
        logits, old_log_probs, advantages, weights: [T, S, P, P], next position last; `weights` need not sum to 1.
        values, value_targets, state_weights: [T, S, P]; `state_weights` need not sum to 1.
        clip_coef, vf_coef, ent_coef: see `ppo_loss`.
    """
    fixed = [tensor.detach().contiguous() for tensor in (old_log_probs, advantages, weights, value_targets)]
    total, terms = _CounterfactualLoss.apply(
        logits, values, *fixed, state_weights.contiguous(), clip_coef, vf_coef, ent_coef
    )
    return total, *terms.unbind()


class _CounterfactualLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        logits,
        values,
        old_log_probs,
        advantages,
        weights,
        value_targets,
        state_weights,
        clip_coef,
        vf_coef,
        ent_coef,
    ):
        """Return the total [] and [policy, value, entropy, approx_kl, clip_fraction]; the gradient is kept."""
        logits, values = logits.contiguous(), values.contiguous()
        positions = logits.shape[-1]
        grad_logits, grad_values = torch.empty_like(logits), torch.empty_like(values)
        rows = [
            tensor.detach().numpy().reshape(-1, positions) for tensor in (logits, old_log_probs, advantages, weights)
        ]
        states = [tensor.detach().numpy().reshape(-1) for tensor in (values, value_targets, state_weights)]
        terms = np.empty(5, dtype=np.float64)
        _loss_and_gradient(
            *rows,
            *states,
            float(clip_coef),
            float(vf_coef),
            float(ent_coef),
            grad_logits.detach().numpy().reshape(-1, positions),
            grad_values.detach().numpy().reshape(-1),
            terms,
        )
        ctx.save_for_backward(grad_logits, grad_values)
        policy, value, entropy = terms[:3]
        total = torch.tensor(policy + vf_coef * value - ent_coef * entropy, dtype=torch.float32)
        kept = torch.from_numpy(terms.astype(np.float32))
        ctx.mark_non_differentiable(kept)
        return total, kept

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, _):
        grad_logits, grad_values = ctx.saved_tensors
        return grad_logits * grad_total, grad_values * grad_total, *([None] * 8)


@compiled
def _loss_and_gradient(
    logits,
    old_log_probs,
    advantages,
    weights,
    values,
    value_targets,
    state_weights,
    clip_coef,
    vf_coef,
    ent_coef,
    grad_logits,
    grad_values,
    terms,
):
    """LANES rows (one held position on one bar each) at a time, turned so that a vector holds one position of each.

    Sums over rows in float64, in order.
    """
    rows, positions = logits.shape
    weight_sum, state_weight_sum = 0.0, 0.0
    for row in range(rows):
        state_weight_sum += state_weights[row]
        for a in range(positions):
            weight_sum += weights[row, a]
    weight_scale, value_scale = constant(-1.0 / weight_sum), numba.float32(2.0 * vf_coef / rows)
    entropy_scale = constant(ent_coef / state_weight_sum)
    zero, one = constant(0.0), constant(1.0)
    lowest, highest = constant(1.0 - clip_coef), constant(1.0 + clip_coef)
    given = np.zeros((4, positions, LANES), dtype=np.float32)  # logits, old log-probabilities, advantages, weights
    found = np.empty((3, positions, LANES), dtype=np.float32)  # probabilities, log-probabilities, gradient
    of_rows = np.zeros((6, LANES), dtype=np.float32)  # state weight, total, its log, entropy, policy, KL
    clipped_of_rows = np.empty(LANES, dtype=np.float32)
    given_at, found_at, rows_at = given.ctypes.data, found.ctypes.data, of_rows.ctypes.data
    clipped_at = clipped_of_rows.ctypes.data
    plane = positions * BYTES
    policy, value, entropy, kl, clipped = 0.0, 0.0, 0.0, 0.0, 0.0
    for first in range(0, rows, LANES):
        count = min(LANES, rows - first)
        for lane in range(count):
            of_rows[0, lane] = state_weights[first + lane]
            for a in range(positions):
                given[0, a, lane] = logits[first + lane, a]
                given[1, a, lane] = old_log_probs[first + lane, a]
                given[2, a, lane] = advantages[first + lane, a]
                given[3, a, lane] = weights[first + lane, a]
        largest = load(given_at)
        for a in range(1, positions):
            logit = load(given_at + a * BYTES)
            largest = where_at_most(logit, largest, largest, logit)
        total = zero
        for a in range(positions):
            prob = exp(load(given_at + a * BYTES) - largest)
            store(found_at + a * BYTES, prob)
            total = total + prob
        store(rows_at + BYTES, total)
        for lane in range(LANES):
            of_rows[2, lane] = np.log(of_rows[1, lane])
        log_total, share = load(rows_at + 2 * BYTES), one / total
        row_entropy, row_policy, row_kl, row_clipped, gradient_sum = zero, zero, zero, zero, zero
        for a in range(positions):
            at = a * BYTES
            log_prob = load(given_at + at) - largest - log_total
            prob = load(found_at + at) * share
            store(found_at + at, prob)
            store(found_at + plane + at, log_prob)
            row_entropy = row_entropy - prob * log_prob
            log_ratio = log_prob - load(given_at + plane + at)
            ratio = exp(log_ratio)
            advantage, weight = load(given_at + 2 * plane + at), load(given_at + 3 * plane + at)
            unclipped, bounded = ratio * advantage, clamp(ratio, lowest, highest) * advantage
            gradient = where_at_most(unclipped, bounded, weight_scale * weight * unclipped, zero)
            row_policy = row_policy - weight * where_at_most(unclipped, bounded, unclipped, bounded)
            row_kl = fma(weight, ratio - one - log_ratio, row_kl)
            inside = where_at_most(ratio, highest, where_at_most(lowest, ratio, zero, weight), weight)
            row_clipped = row_clipped + inside
            store(found_at + 2 * plane + at, gradient)
            gradient_sum = gradient_sum + gradient
        store(rows_at + 3 * BYTES, row_entropy)
        store(rows_at + 4 * BYTES, row_policy)
        store(rows_at + 5 * BYTES, row_kl)
        store(clipped_at, row_clipped)
        pull = entropy_scale * load(rows_at)
        for a in range(positions):
            at = found_at + a * BYTES
            slope = pull * (load(at + plane) + row_entropy) - gradient_sum
            store(at + 2 * plane, fma(load(at), slope, load(at + 2 * plane)))
        for lane in range(count):
            row = first + lane
            for a in range(positions):
                grad_logits[row, a] = found[2, a, lane]
            error = values[row] - value_targets[row]
            grad_values[row] = value_scale * error
            value += error * error
            entropy += of_rows[0, lane] * of_rows[3, lane]
            policy += of_rows[4, lane]
            kl += of_rows[5, lane]
            clipped += clipped_of_rows[lane]
    terms[0], terms[1], terms[2] = policy / weight_sum, value / rows, entropy / state_weight_sum
    terms[3], terms[4] = kl / weight_sum, clipped / weight_sum


@compiled
def evaluate_positions(
    rewards, probs, values, first_occupancy, gamma, gae_lambda, advantages, value_targets, occupancy
):
    """Fill in the last three arrays as `advantages.counterfactual_advantage` defines them (shapes there)."""
    steps, sequences, positions, _ = rewards.shape
    gamma, gae_lambda = numba.float32(gamma), numba.float32(gae_lambda)
    later = np.empty((sequences, positions), dtype=np.float32)  # W_{t+1}
    held = np.empty((sequences, positions), dtype=np.float32)  # d_t
    now = np.empty(positions, dtype=np.float32)
    for s in range(sequences):
        for p in range(positions):
            later[s, p], held[s, p] = values[steps, s, p], first_occupancy[s, p]
    for t in range(steps - 1, -1, -1):
        for s in range(sequences):
            for p in range(positions):
                state_value = numba.float32(0.0)
                for a in range(positions):
                    action_value = rewards[t, s, p, a] + gamma * later[s, a]
                    advantages[t, s, p, a] = action_value
                    state_value += probs[t, s, p, a] * action_value
                for a in range(positions):
                    advantages[t, s, p, a] -= state_value
                value_targets[t, s, p] = state_value
                now[p] = values[t, s, p] + gae_lambda * (state_value - values[t, s, p])
            for p in range(positions):
                later[s, p] = now[p]
    for t in range(steps):
        for s in range(sequences):
            for a in range(positions):
                now[a] = 0.0
            for p in range(positions):
                occupancy[t, s, p] = held[s, p]
                for a in range(positions):
                    now[a] += held[s, p] * probs[t, s, p, a]
            for a in range(positions):
                held[s, a] = now[a]
