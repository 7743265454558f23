"""A hand-written LSTM encoder: whole sequences in one call, state resets inside them, fast on a CPU."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo.nets.encoder import Encoder
from lit_ppo.nets.initialisation import InitScheme, memory_log_odds, orthogonal
from lit_ppo.nets.kernels.torch_layers import LayerFunction, library_layer, reference_layer, torch_layer

IMPLEMENTATIONS = ("reference", "torch", "library", "numba")


class LSTMState(NamedTuple):
    """The memory of L layers for S sequences.

    Attributes:
        hidden, cell: [L, S, H].
    """

    hidden: Tensor
    cell: Tensor


class LSTM(Encoder[LSTMState]):
    """Long short-term memory over time-major sequences, with one bias a layer.

    Weights start orthogonal (recurrent, per gate) and Xavier-uniform (input, per gate), biases zero. Under autocast
    everything here stays in the parameters' dtype: a recurrence multiplies rounding errors, and on a CPU bfloat16
    would not be faster.

    Args:
        num_inputs, hidden_size, num_layers: F, H and L, see `Encoder`.
        generator: where the initial weights are drawn from; None is torch's default generator, as for `torch.nn`.
        implementation: "auto", or one of `IMPLEMENTATIONS` (for tests, benchmarks and export).

    Raises:
        ValueError: a size below 1 or an unknown implementation.
    """

    state_type = LSTMState
    weight_layout = "one bias a layer; rows of weights and bias by gate: input, forget, cell, output, as in torch"

    def __init__(
        self,
        num_inputs: int,
        hidden_size: int,
        num_layers: int = 1,
        generator: torch.Generator | None = None,
        implementation: str = "auto",
    ) -> None:
        super().__init__(num_inputs, hidden_size, num_layers)
        if implementation not in ("auto", *IMPLEMENTATIONS):
            raise ValueError(f"`implementation` must be auto or one of {IMPLEMENTATIONS}, got {implementation!r}")
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

    @torch.no_grad()
    def initialise(self, scheme: InitScheme, generator: torch.Generator | None) -> None:
        """Set the start values of every layer.

        orthogonal: orthogonal weights per gate, zero bias (Huang et al. 2022, "The 37 Implementation Details of PPO").

        chrono: unit k forgets over tau_k bars, tau spread evenly in logarithm from 1.5 to 200 bars:
            b_f = log(tau - 1)          (Tallec and Ollivier 2018, arXiv:1804.11188)
            b_i = -log(tau - 1) / 2     the input is scaled by 1 / sqrt(tau), so that every unit's variance is alike
            b_o = 1
        The gates' input weights are a fifth of the cell's and the recurrent weights a tenth of orthogonal: at the
        start, each unit is close to an exponential average of the cell's input, and training bends it from there. An
        agent that starts so sees the right memory in its first iteration instead of finding it after half a million
        bars.
        """
        hidden = self.hidden_size
        gates = [slice(gate * hidden, (gate + 1) * hidden) for gate in range(4)]  # i, f, g, o
        for weight_ih, weight_hh, bias in zip(self.weight_ih, self.weight_hh, self.bias, strict=True):
            width = weight_ih.shape[1]
            for rows in gates:
                weight_hh[rows] = orthogonal(hidden, hidden, 1.0 if scheme == "orthogonal" else 0.1, generator)
            if scheme == "orthogonal":
                for rows in gates:
                    weight_ih[rows] = orthogonal(hidden, width, 1.0, generator)
                bias.zero_()
                continue
            gains = torch.tensor([0.1, 0.1, 0.5, 0.1]).repeat_interleave(hidden).unsqueeze(1)
            weight_ih.copy_(gains * torch.randn(4 * hidden, width, generator=generator))
            log_odds = memory_log_odds(hidden)
            bias.copy_(torch.cat([-0.5 * log_odds, log_odds, torch.zeros(hidden), torch.ones(hidden)]))

    def step_by_step(self) -> None:
        self.implementation = "reference"  # the one that can be traced, and the fastest for a single step

    def forward(
        self, inputs: Tensor, state: LSTMState, episode_starts: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        """See `Encoder.forward`; returns the hidden of the last layer [T, S, H], and the state after step T."""
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


class Memoryless(LSTM):
    """The control without memory: an LSTM that starts from zero before every step."""

    recurrent = False

    def forward(
        self, inputs: Tensor, state: LSTMState, episode_starts: Tensor | None = None
    ) -> tuple[Tensor, LSTMState]:
        always = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        return super().forward(inputs, state, always)


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
