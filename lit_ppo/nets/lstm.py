"""A hand-written LSTM encoder: whole sequences in one call, state resets inside them, fast on a CPU."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo.nets.kernels.torch_layers import LayerFunction, library_layer, reference_layer, torch_layer

IMPLEMENTATIONS = ("reference", "torch", "library", "numba")


class LSTMState(NamedTuple):
    """The memory of L layers for S sequences.

    Attributes:
        hidden, cell: [L, S, H].
    """

    hidden: Tensor
    cell: Tensor

    def reset_where(self, starts: Tensor) -> LSTMState:
        """Return the state with the sequences that `starts` [S] bool marks zeroed: before the step, never after it."""
        mask = starts.unsqueeze(-1)  # [S, 1]
        return LSTMState(self.hidden.masked_fill(mask, 0.0), self.cell.masked_fill(mask, 0.0))


class LSTM(nn.Module):
    """Long short-term memory over time-major sequences, with one bias a layer.

    Weights start orthogonal (recurrent, per gate) and Xavier-uniform (input, per gate), biases zero. Under autocast
    everything here stays in the parameters' dtype: a recurrence multiplies rounding errors, and on a CPU bfloat16
    would not be faster.

    Args:
        num_inputs: F, width of an input.
        hidden_size: H.
        num_layers: L; layer l > 0 reads the hidden of layer l - 1.
        generator: where the initial weights are drawn from; None is torch's default generator, as for `torch.nn`.
        implementation: "auto", or one of `IMPLEMENTATIONS` (for tests, benchmarks and export).

    Raises:
        ValueError: a size below 1 or an unknown implementation.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_size: int,
        num_layers: int = 1,
        generator: torch.Generator | None = None,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        if min(num_inputs, hidden_size, num_layers) < 1:
            raise ValueError(
                "LSTM needs num_inputs, hidden_size and num_layers >= 1, "
                f"got {num_inputs}, {hidden_size} and {num_layers}"
            )
        if implementation not in ("auto", *IMPLEMENTATIONS):
            raise ValueError(f"`implementation` must be auto or one of {IMPLEMENTATIONS}, got {implementation!r}")
        self.num_inputs, self.hidden_size, self.num_layers = num_inputs, hidden_size, num_layers
        self.implementation = implementation
        widths = [num_inputs] + [hidden_size] * (num_layers - 1)
        self.weight_ih = nn.ParameterList(torch.empty(4 * hidden_size, width) for width in widths)
        self.weight_hh = nn.ParameterList(torch.empty(4 * hidden_size, hidden_size) for _ in widths)
        self.bias = nn.ParameterList(torch.empty(4 * hidden_size) for _ in widths)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, gate by gate: one orthogonal [4H, H] matrix would tie the gates together."""
        for weight_ih, weight_hh, bias in zip(self.weight_ih, self.weight_hh, self.bias, strict=True):
            for gate in range(4):
                rows = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
                nn.init.xavier_uniform_(weight_ih[rows], generator=generator)
                nn.init.orthogonal_(weight_hh[rows], generator=generator)
            nn.init.zeros_(bias)

    def initial_state(self, num_sequences: int) -> LSTMState:
        """Return zeros [L, S, H]: an episode starts without memory."""
        zeros = self.bias[0].new_zeros(self.num_layers, num_sequences, self.hidden_size)
        return LSTMState(zeros, zeros.clone())

    def forward(
        self, inputs: Tensor, state: LSTMState, episode_starts: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """Run T steps of S sequences.

        Args:
            inputs: [T, S, F].
            state: [L, S, H], before inputs[0].
            episode_starts: [T, S] bool: the state is zeroed *before* that step; None: never.

        Returns:
            hidden of the last layer [T, S, H], and the state after step T.

        Raises:
            ValueError: shapes that do not fit, or no step or sequence at all.
        """
        self._check(inputs, state, episode_starts)
        dtype = self.bias[0].dtype
        with torch.autocast(inputs.device.type, enabled=False):
            layer_outputs = inputs.to(dtype)
            hiddens, cells = [], []
            layer = self._layer(layer_outputs, episode_starts)
            for index in range(self.num_layers):
                layer_outputs, hidden, cell = layer(
                    layer_outputs,
                    state.hidden[index].to(dtype),
                    state.cell[index].to(dtype),
                    self.weight_ih[index],
                    self.weight_hh[index],
                    self.bias[index],
                    episode_starts,
                )
                hiddens.append(hidden)
                cells.append(cell)
        return layer_outputs, LSTMState(torch.stack(hiddens), torch.stack(cells))

    def extra_repr(self) -> str:
        return f"{self.num_inputs}, {self.hidden_size}, num_layers={self.num_layers}"

    def _layer(self, inputs: Tensor, episode_starts: Tensor | None) -> LayerFunction:
        """Return the fastest layer function for the call, or the one asked for."""
        if self.implementation != "auto":
            return layer_function(self.implementation)
        if inputs.device.type == "cpu" and inputs.dtype == torch.float32:
            # A short call does not repay the packing of the weights: 0.02 ms at H = 32, 0.3 ms at H = 256, where a
            # plain step takes 0.05 ms.
            short = len(inputs) < max(2, self.hidden_size // 32)
            return layer_function("reference" if short else fastest_on_cpu())
        # Whether a given mask is empty is not asked: the answer would make a GPU wait.
        return layer_function("library" if inputs.is_cuda and episode_starts is None else "torch")

    def _check(self, inputs: Tensor, state: LSTMState, episode_starts: Tensor | None) -> None:
        if inputs.ndim != 3 or inputs.shape[-1] != self.num_inputs or 0 in inputs.shape:
            raise ValueError(
                f"LSTM needs inputs [T, S, {self.num_inputs}] with at least one step and one sequence, "
                f"got {list(inputs.shape)}"
            )
        expected = (self.num_layers, inputs.shape[1], self.hidden_size)
        if tuple(state.hidden.shape) != expected or tuple(state.cell.shape) != expected:
            raise ValueError(
                f"LSTM needs a state of [L, S, H] = {list(expected)} for inputs {list(inputs.shape)}, "
                f"got hidden {list(state.hidden.shape)} and cell {list(state.cell.shape)}"
            )
        if episode_starts is not None and (
            episode_starts.shape != inputs.shape[:2] or episode_starts.dtype != torch.bool
        ):
            raise ValueError(
                f"LSTM needs episode_starts [T, S] = {list(inputs.shape[:2])} of bool, "
                f"got {list(episode_starts.shape)} of {episode_starts.dtype}"
            )


def layer_function(implementation: str) -> LayerFunction:
    """Return the `LayerFunction` of that name.

    Args:
        implementation: "reference" (a plain loop), "torch" (our gradient, any device and dtype), "library" (torch's
            kernel: cuDNN on a GPU; no resets) or "numba" (fused; float32 on the CPU).
    """
    if implementation == "numba":
        from lit_ppo.nets.kernels.fused_layer import numba_layer  # numba takes 0.3 s to import: only when it is used

        return numba_layer
    layers: dict[str, LayerFunction] = {
        "reference": reference_layer,
        "torch": torch_layer,
        "library": library_layer,
    }
    return layers[implementation]


def fused_on_cpu(*tensors: Tensor) -> bool:
    """Whether our own float32 kernels serve these tensors."""
    plain = any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in tensors)
    return not plain and fastest_on_cpu() == "numba"


@functools.cache
def fastest_on_cpu() -> str:
    """Return "numba", or "torch" with one warning where numba is not installed."""
    if importlib.util.find_spec("numba") is not None:
        return "numba"
    warnings.warn(
        "numba is not installed: the LSTM runs on plain torch kernels, with the same numbers but several times slower. "
        "`pip install numba` brings the fused ones.",
        stacklevel=2,
    )
    return "torch"
