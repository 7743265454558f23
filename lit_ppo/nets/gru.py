"""A GRU encoder, on torch's own kernels: the LSTM's alternative with a quarter fewer weights and one state tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo.nets.encoder import Encoder
from lit_ppo.nets.initialisation import InitScheme, memory_log_odds, orthogonal


class GRUState(NamedTuple):
    """The memory of L layers for S sequences: hidden [L, S, H]."""

    hidden: Tensor


class GRU(Encoder[GRUState]):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), gates in torch's order: reset, update, candidate.

        h_t = (1 - z) tanh(W x + b + r * (U h + c)) + z h,      r, z = sigmoid(W' x + b' + U' h + c')

    Between two resets the sequences run in one call of torch's kernel (cuDNN on a GPU).
    """

    state_type = GRUState
    weight_layout = "two biases a layer; rows of weights and biases by gate: reset, update, candidate, as in torch"

    def __init__(
        self, num_inputs: int, hidden_size: int, num_layers: int = 1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(num_inputs, hidden_size, num_layers)
        widths = [num_inputs] + [hidden_size] * (num_layers - 1)
        self.weight_ih = nn.ParameterList(torch.empty(3 * hidden_size, width) for width in widths)
        self.weight_hh = nn.ParameterList(torch.empty(3 * hidden_size, hidden_size) for _ in widths)
        self.bias_ih = nn.ParameterList(torch.zeros(3 * hidden_size) for _ in widths)
        self.bias_hh = nn.ParameterList(torch.zeros(3 * hidden_size) for _ in widths)
        self.initialise("orthogonal", generator)

    @torch.no_grad()
    def initialise(self, scheme: InitScheme, generator: torch.Generator | None) -> None:
        """Orthogonal per gate, zero bias; "chrono": unit k keeps z = 1 - 1 / tau_k of its memory, as the LSTM's."""
        hidden, gain = self.hidden_size, 1.0 if scheme == "orthogonal" else 0.1
        for weight_ih, weight_hh, bias in zip(self.weight_ih, self.weight_hh, self.bias_ih, strict=True):
            for gate in range(3):
                rows = slice(gate * hidden, (gate + 1) * hidden)
                candidate = 0.5 if scheme == "chrono" and gate == 2 else gain
                weight_ih[rows] = orthogonal(hidden, weight_ih.shape[1], candidate, generator)
                weight_hh[rows] = orthogonal(hidden, hidden, gain, generator)
            bias.zero_()
            if scheme == "chrono":
                bias[hidden : 2 * hidden] = memory_log_odds(hidden)

    def forward(self, inputs: Tensor, state: GRUState, episode_starts: Tensor | None = None) -> tuple[Tensor, GRUState]:
        self._check(inputs, state, episode_starts)
        layers = zip(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, strict=True)
        weights = [tensor for layer in layers for tensor in layer]
        cuts = [] if episode_starts is None else episode_starts[1:].any(1).nonzero().flatten().add(1).tolist()
        hidden, pieces = state.hidden.to(weights[0].dtype), []
        with torch.autocast(inputs.device.type, enabled=False):
            for begin, end in zip([0, *cuts], [*cuts, len(inputs)], strict=True):
                if episode_starts is not None:
                    hidden = hidden.masked_fill(episode_starts[begin].unsqueeze(-1), 0.0)
                # Arguments after the weights: biases, layers, dropout, train, bidirectional, batch first.
                options = (True, self.num_layers, 0.0, torch.is_grad_enabled(), False, False)
                piece, hidden = torch._VF.gru(  # type: ignore[attr-defined]
                    inputs[begin:end].to(hidden.dtype), hidden, weights, *options
                )
                pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces), GRUState(hidden)
