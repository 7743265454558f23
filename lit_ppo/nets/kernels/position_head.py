"""The head of a policy on a CPU in float32: tanh(market + position) times the output's weights, for every position.

In torch these are tensors [N, P, W] that are written and read seven times. Here a row's activations live in registers:
they are computed again for the gradient rather than kept. Sums over rows are of blocks of rows, in order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_ppo.nets.kernels.simd import BYTES, LANES, constant, fma, load, load_all, store
from lit_ppo.nets.kernels.vector_math import compiled, tanh

BLOCK_ROWS = 64  # whose sums are added up on their own, so that float32 loses little


def every_position(market: Tensor, position: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """tanh(market + position) weight' + bias for each position.

    Args:
        market: [..., W] float32 on the CPU, W a multiple of LANES.
        position: [P, W]; weight: [A, W]; bias: [A].

    Returns:
        [..., P, A].
    """
    outputs = _EveryPosition.apply(market.reshape(-1, market.shape[-1]), position, weight, bias)
    return outputs.view(*market.shape[:-1], len(position), len(bias))


class _EveryPosition(torch.autograd.Function):
    @staticmethod
    def forward(ctx, market, position, weight, bias):
        tensors = [tensor.detach().contiguous() for tensor in (market, position, weight, bias)]
        rows, width = market.shape
        sizes = rows, width, len(position), len(bias)
        outputs = market.new_empty(rows, len(position), len(bias))
        _forward(*sizes, *(tensor.data_ptr() for tensor in tensors[:3]), tensors[3].numpy(), outputs.numpy())
        ctx.save_for_backward(*tensors[:3])
        ctx.sizes = sizes
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs):
        tensors = ctx.saved_tensors
        grad_outputs = grad_outputs.contiguous()
        grads = [torch.empty_like(tensors[0]), *(torch.zeros_like(tensor) for tensor in tensors[1:])]
        given = (*tensors, grad_outputs, *grads)
        _backward(*ctx.sizes, *(tensor.data_ptr() for tensor in given))
        return *grads, grad_outputs.sum((0, 1))


@compiled
def _forward(rows, width, positions, actions, market, position, weight, bias, outputs):
    """Addresses: market [N, W], position [P, W], weight [A, W]; arrays: bias [A], outputs [N, P, A]."""
    row_bytes = 4 * width
    vectors = width // LANES
    active = np.empty(width, dtype=np.float32)
    lanes = np.empty(LANES, dtype=np.float32)
    active_at, lanes_at = active.ctypes.data, lanes.ctypes.data
    for n in range(rows):
        source = market + n * row_bytes
        for p in range(positions):
            own = position + p * row_bytes
            for v in range(0, row_bytes, BYTES):
                store(active_at + v, tanh(load(source + v) + load(own + v)))
            for a in range(actions):
                weights = weight + a * row_bytes
                total = load(active_at) * load(weights)
                for v in range(1, vectors):
                    total = fma(load(active_at + v * BYTES), load(weights + v * BYTES), total)
                store(lanes_at, total)
                value = bias[a]
                for lane in range(LANES):
                    value += lanes[lane]
                outputs[n, p, a] = value


@compiled
def _backward(
    rows, width, positions, actions, market, position, weight, grad_outputs, grad_market, grad_position, grad_weight
):
    """Addresses as in `_forward`; grad_outputs [N, P, A]; gradients like what they are of, the last two zeroed."""
    row_bytes = 4 * width
    sums = np.empty((positions + actions) * LANES, dtype=np.float32)
    sums_at = sums.ctypes.data
    one = constant(1.0)
    for first in range(0, rows, BLOCK_ROWS):
        last = min(rows, first + BLOCK_ROWS)
        for v in range(0, row_bytes, BYTES):
            for k in range(positions + actions):
                store(sums_at + k * BYTES, constant(0.0))
            for n in range(first, last):
                here = n * row_bytes + v
                inner, grad_inner = load(market + here), constant(0.0)
                for p in range(positions):
                    active = tanh(inner + load(position + p * row_bytes + v))
                    grad_active = constant(0.0)
                    for a in range(actions):
                        grad = load_all(grad_outputs + 4 * ((n * positions + p) * actions + a))
                        grad_active = fma(grad, load(weight + a * row_bytes + v), grad_active)
                        at = sums_at + (positions + a) * BYTES
                        store(at, fma(grad, active, load(at)))
                    grad_active = grad_active * (one - active * active)
                    grad_inner = grad_inner + grad_active
                    at = sums_at + p * BYTES
                    store(at, load(at) + grad_active)
                store(grad_market + here, grad_inner)
            for p in range(positions):
                at = grad_position + p * row_bytes + v
                store(at, load(at) + load(sums_at + p * BYTES))
            for a in range(actions):
                at = grad_weight + a * row_bytes + v
                store(at, load(at) + load(sums_at + (positions + a) * BYTES))
