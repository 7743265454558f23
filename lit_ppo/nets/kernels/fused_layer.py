"""The fused LSTM layer for float32 on the CPU: autograd, packing and threads around `numba_layer`."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lit_ppo.nets.kernels.numba_layer import ROWS, backward, forward
from lit_ppo.nets.kernels.simd import LANES
from lit_ppo.nets.kernels.torch_layers import recurrent_weight_gradient

INFERENCE_GATES = 2**17  # input gates held at a time without gradient: 512 KiB stay in a core's own cache,
INFERENCE_STEPS = 16  # but no fewer steps than these: threads are woken once for them
THREAD_WORK = 2**20  # multiply-adds worth handing to another thread (waking it takes about 50 us)


class NumbaLayer(torch.autograd.Function):
    """A layer whose H is a multiple of LANES; arguments and results as in `LayerFunction`, tensors contiguous."""

    @staticmethod
    def forward(ctx, inputs, hidden, cell, weight_ih, weight_hh, bias, episode_starts):
        """One input GEMM for all T, then the fused recurrence, which turns the input gates into activations."""
        T, S, _ = inputs.shape
        gates = inputs.new_empty(T, S, len(bias))
        outputs, cells = inputs.new_empty(T, S, hidden.shape[-1]), inputs.new_empty(T, S, hidden.shape[-1])
        last_cell = _fill(gates, outputs, cells, inputs, hidden, cell, weight_ih, weight_hh, bias, episode_starts)
        ctx.save_for_backward(inputs, hidden, cell, weight_ih, weight_hh, bias, gates, outputs, cells, episode_starts)
        ctx.spent = False
        return outputs, last_cell

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs, grad_cell):
        """The fused recurrence backwards, then one GEMM for each weight.

        The gradient of the gates overwrites their activations: touching another 32 MiB (H = 256, 64 x 128 steps) for
        the first time takes a tenth of the whole pass. A second backward over a kept graph computes them again.
        """
        inputs, hidden, cell, weight_ih, weight_hh, bias, gates, outputs, cells, episode_starts = ctx.saved_tensors
        T, S, H = outputs.shape
        if ctx.spent:
            again = (torch.empty_like(outputs), torch.empty_like(cells))
            _fill(gates, *again, inputs, hidden, cell, weight_ih, weight_hh, bias, episode_starts)
        ctx.spent = True
        carry = grad_cell.clone(memory_format=torch.contiguous_format)
        grad_outputs, packed = grad_outputs.contiguous(), pack_backward(weight_hh)
        starts = 0 if episode_starts is None else episode_starts.data_ptr()
        addresses = [tensor.data_ptr() for tensor in (grad_outputs, gates, cells, cell, carry)]
        _over_sequences(backward, T, S, H, (*addresses, starts, packed.data_ptr()))
        grad_gates = gates
        grad_hidden = grad_gates[0] @ weight_hh if ctx.needs_input_grad[1] else None
        if episode_starts is not None:
            mask = episode_starts[0].unsqueeze(-1)
            carry = carry.masked_fill(mask, 0.0)
            grad_hidden = None if grad_hidden is None else grad_hidden.masked_fill(mask, 0.0)
        flat = grad_gates.flatten(0, 1)  # [T S, 4H]
        return (
            grad_gates @ weight_ih if ctx.needs_input_grad[0] else None,
            grad_hidden,
            carry,
            (inputs.flatten(0, 1).t() @ flat).t(),
            recurrent_weight_gradient(grad_gates, outputs, hidden, episode_starts),
            flat.sum(0),
            None,
        )


def _fill(
    gates: Tensor,
    outputs: Tensor,
    cells: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    episode_starts: Tensor | None,
) -> Tensor:
    """Write activations, outputs and cells of all T steps; returns the last cell [S, H]."""
    torch.addmm(bias, inputs.flatten(0, 1), weight_ih.t(), out=gates.view(-1, len(bias)))
    last_cell = cell.clone()
    _run_forward(gates, hidden, last_cell, outputs, cells, episode_starts, pack_forward(weight_hh))
    return last_cell


def numba_layer(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    episode_starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A `LayerFunction` for float32 on the CPU.

    Raises:
        ValueError: another dtype or device.
    """
    if inputs.dtype != torch.float32 or inputs.device.type != "cpu":
        raise ValueError(f"The numba LSTM kernel needs float32 on the CPU, got {inputs.dtype} on {inputs.device}")
    H = hidden.shape[-1]
    padding = -H % LANES
    if padding:  # units with zero weights stay zero and touch nothing
        hidden, cell = functional.pad(hidden, (0, padding)), functional.pad(cell, (0, padding))
        weight_ih = functional.pad(weight_ih.unflatten(0, (4, H)), (0, 0, 0, padding)).flatten(0, 1)
        weight_hh = functional.pad(weight_hh.unflatten(0, (4, H)), (0, padding, 0, padding)).flatten(0, 1)
        bias = functional.pad(bias.unflatten(0, (4, H)), (0, padding)).flatten()
    tensors = [tensor.contiguous() for tensor in (inputs, hidden, cell, weight_ih, weight_hh, bias)]
    starts = None if episode_starts is None else episode_starts.contiguous()
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    run: Callable[..., tuple[Tensor, Tensor]] = NumbaLayer.apply if differentiable else _infer
    outputs, last_cell = run(*tensors, starts)
    last_hidden = outputs[-1]
    if padding:
        outputs, last_hidden, last_cell = outputs[..., :H], last_hidden[..., :H], last_cell[..., :H]
    return outputs, last_hidden, last_cell


def pack_forward(weight_hh: Tensor) -> Tensor:
    """[4H, H] -> [H / LANES, H, 4, LANES]: for each k, the four gates of one vector of units side by side."""
    H = weight_hh.shape[1]
    return weight_hh.view(4, H // LANES, LANES, H).permute(1, 3, 0, 2).contiguous()


def pack_backward(weight_hh: Tensor) -> Tensor:
    """[4H, H] -> [H / LANES, 4H, LANES]."""
    rows, H = weight_hh.shape
    return weight_hh.view(rows, H // LANES, LANES).permute(1, 0, 2).contiguous()


def _infer(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    episode_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The forward pass without gradient: gates exist for a piece of the sequence at a time."""
    T, S, F = inputs.shape
    outputs = inputs.new_empty(T, S, hidden.shape[-1])
    cell, packed = cell.clone(), pack_forward(weight_hh)
    steps = min(T, max(INFERENCE_STEPS, INFERENCE_GATES // (S * len(bias))))
    buffer = hidden.new_empty(steps * S, len(bias))
    for start in range(0, T, steps):
        piece = slice(start, min(start + steps, T))
        flat = inputs[piece].view(-1, F)
        gates = torch.addmm(bias, flat, weight_ih.t(), out=buffer[: len(flat)])
        starts = None if episode_starts is None else episode_starts[piece]
        _run_forward(gates, hidden, cell, outputs[piece], None, starts, packed)
        hidden = outputs[piece.stop - 1]
    return outputs, cell


def _run_forward(
    gates: Tensor,
    hidden: Tensor,
    cell: Tensor,
    outputs: Tensor,
    cells: Tensor | None,
    episode_starts: Tensor | None,
    packed: Tensor,
) -> None:
    """Call `forward` on tensors."""
    starts = 0 if episode_starts is None else episode_starts.data_ptr()
    kept = 0 if cells is None else cells.data_ptr()
    addresses = [tensor.data_ptr() for tensor in (gates, hidden, cell, outputs)]
    T, S, H = outputs.shape
    _over_sequences(forward, T, S, H, (*addresses, kept, starts, packed.data_ptr()))


_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def _over_sequences(kernel: Callable, T: int, S: int, H: int, arguments: tuple[int, ...]) -> None:
    """Run a kernel over sequences 0..S-1, spread over at most `torch.get_num_threads()` threads.

    The kernels release the GIL, and each thread runs its sequences through all T steps without meeting another.
    """
    groups = -(-S // ROWS)
    pieces = min(torch.get_num_threads(), groups, 1 + T * S * H * 4 * H // THREAD_WORK)
    if pieces == 1:
        kernel(0, S, T, S, H, *arguments)
        return
    edges = [min(S, groups * piece // pieces * ROWS) for piece in range(pieces + 1)]
    pool = _pools.get(os.getpid())
    if pool is None:
        pool = _pools[os.getpid()] = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="lstm")
    futures = [pool.submit(kernel, edges[i], edges[i + 1], T, S, H, *arguments) for i in range(1, pieces)]
    kernel(edges[0], edges[1], T, S, H, *arguments)
    for future in futures:
        future.result()
