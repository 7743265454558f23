"""One LSTM layer over a whole sequence, in torch: the plainest loop, our own gradient, and the vendor's library.

All layers share one signature, `LayerFunction`, and compute, for step t of sequence s (gate order i, f, g, o as torch):

    h, c     = 0, 0 where episode_starts[t, s]                                  before the step, never after it
    z        = x_t W_ih' + b + h W_hh'                                          [4H]
    c_t      = sigmoid(z_f) c + sigmoid(z_i) tanh(z_g)
    h_t      = sigmoid(z_o) tanh(c_t)

Source: Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class LayerFunction(Protocol):
    """One layer over T steps of S sequences.

    Args:
        inputs: [T, S, F].
        hidden, cell: [S, H] state before inputs[0].
        weight_ih, weight_hh, bias: [4H, F], [4H, H], [4H].
        episode_starts: [T, S] bool, or None when no sequence starts inside.

    Returns:
        hidden of every step [T, S, H], hidden and cell after the last [S, H].
    """

    def __call__(
        self,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor,
        episode_starts: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def reference_layer(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    episode_starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step by step, gradient by autograd: slow, obviously right, and traceable (export to ONNX)."""
    outputs = []
    for t in range(len(inputs)):
        if episode_starts is not None:
            hidden, cell = _reset(hidden, episode_starts[t]), _reset(cell, episode_starts[t])
        gates = inputs[t] @ weight_ih.t() + bias + hidden @ weight_hh.t()  # [S, 4H]
        entrance, forget, candidate, exit_ = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + entrance.sigmoid() * candidate.tanh()
        hidden = exit_.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs), hidden, cell


def torch_layer(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    episode_starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One input GEMM for all T, then one recurrent GEMM a step in each direction; any device and dtype."""
    gates = functional.linear(inputs, weight_ih, bias)  # [T, S, 4H]
    outputs, last_cell = TorchRecurrence.apply(gates, hidden, cell, weight_hh, episode_starts)
    return outputs, outputs[-1], last_cell


def library_layer(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    episode_starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own kernel (cuDNN on a GPU), which knows no resets.

    Raises:
        ValueError: `episode_starts` is given.
    """
    if episode_starts is not None:
        raise ValueError("The library's LSTM kernel cannot reset a state inside a sequence: pass episode_starts=None")
    weights = [weight_ih, weight_hh, bias, torch.zeros_like(bias)]  # the library adds two biases
    state = (hidden.unsqueeze(0), cell.unsqueeze(0))
    # Arguments after the weights: biases, layers, dropout, train, bidirectional, batch first. cuDNN keeps what its
    # backward needs only if it is told to train.
    outputs, last_hidden, last_cell = torch._VF.lstm(  # type: ignore[attr-defined]
        inputs, state, weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
    )
    return outputs, last_hidden[0], last_cell[0]


class TorchRecurrence(torch.autograd.Function):
    """The recurrent part of a layer, from input gates [T, S, 4H] (bias included), with a hand-written gradient."""

    @staticmethod
    def forward(ctx, gates, hidden, cell, weight_hh, episode_starts):
        """Returns hidden of every step [T, S, H] and the last cell [S, H]."""
        initial_hidden, initial_cell = hidden, cell
        keep = any(ctx.needs_input_grad)
        recurrent = weight_hh.t()
        outputs = gates.new_empty(*gates.shape[:2], hidden.shape[-1])
        activations = torch.empty_like(gates) if keep else gates[:0]
        cells = torch.empty_like(outputs) if keep else outputs[:0]
        for t in range(len(gates)):
            if episode_starts is not None:
                hidden, cell = _reset(hidden, episode_starts[t]), _reset(cell, episode_starts[t])
            entrance, forget, candidate, exit_ = torch.addmm(gates[t], hidden, recurrent).chunk(4, dim=-1)
            entrance, forget = entrance.sigmoid_(), forget.sigmoid_()
            candidate, exit_ = candidate.tanh_(), exit_.sigmoid_()
            cell = torch.addcmul(forget * cell, entrance, candidate)
            hidden = torch.mul(exit_, cell.tanh(), out=outputs[t])
            if keep:
                torch.cat((entrance, forget, candidate, exit_), dim=-1, out=activations[t])
                cells[t] = cell
        if keep:
            ctx.save_for_backward(activations, cells, outputs, initial_hidden, initial_cell, weight_hh, episode_starts)
        return outputs, cell.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_outputs, grad_cell):
        """The formulas of the module's docstring, transposed, from the last step to the first."""
        activations, cells, outputs, initial_hidden, initial_cell, weight_hh, episode_starts = ctx.saved_tensors
        grad_gates = torch.empty_like(activations)
        grad_hidden = torch.zeros_like(initial_hidden)
        for t in reversed(range(len(activations))):
            previous_cell = cells[t - 1] if t else initial_cell
            if episode_starts is not None:
                previous_cell = _reset(previous_cell, episode_starts[t])
            entrance, forget, candidate, exit_ = activations[t].chunk(4, dim=-1)
            squashed = cells[t].tanh()
            grad_hidden = grad_outputs[t] + grad_hidden
            grad_cell = grad_cell + grad_hidden * exit_ * (1 - squashed * squashed)
            grad_entrance, grad_forget, grad_candidate, grad_exit = grad_gates[t].chunk(4, dim=-1)
            grad_entrance.copy_(grad_cell * candidate * entrance * (1 - entrance))
            grad_forget.copy_(grad_cell * previous_cell * forget * (1 - forget))
            grad_candidate.copy_(grad_cell * entrance * (1 - candidate * candidate))
            grad_exit.copy_(grad_hidden * squashed * exit_ * (1 - exit_))
            grad_cell = grad_cell * forget
            grad_hidden = grad_gates[t] @ weight_hh
            if episode_starts is not None:
                grad_hidden, grad_cell = _reset(grad_hidden, episode_starts[t]), _reset(grad_cell, episode_starts[t])
        grad_weight = recurrent_weight_gradient(grad_gates, outputs, initial_hidden, episode_starts)
        return grad_gates, grad_hidden, grad_cell, grad_weight, None


def recurrent_weight_gradient(
    grad_gates: Tensor, outputs: Tensor, initial_hidden: Tensor, episode_starts: Tensor | None
) -> Tensor:
    """Return the gradient of weight_hh [4H, H]: one GEMM over all steps but the first, plus the first.

    Args:
        grad_gates: [T, S, 4H] gradient of the gates before their activation.
        outputs: [T, S, H] hidden after each step.
        initial_hidden: [S, H] hidden before the first.
        episode_starts: [T, S] bool or None.
    """
    previous = outputs[:-1]  # [T - 1, S, H] what each step multiplied
    if episode_starts is not None:
        previous = previous.masked_fill(episode_starts[1:].unsqueeze(-1), 0.0)
        initial_hidden = _reset(initial_hidden, episode_starts[0])
    # [H, 4H], then transposed: this orientation keeps the GEMM's wide side in memory order, up to 6 times faster.
    gradient = previous.flatten(0, 1).t() @ grad_gates[1:].flatten(0, 1)
    return gradient.addmm_(initial_hidden.t(), grad_gates[0]).t()


def _reset(state: Tensor, starts: Tensor) -> Tensor:
    """Zero the rows of [S, H] that `starts` [S] marks; a mask, not a product: NaN times 0 would be NaN."""
    return state.masked_fill(starts.unsqueeze(-1), 0.0)
