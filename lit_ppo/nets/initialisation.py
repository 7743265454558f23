"""Start values of the LSTM: either the field's orthogonal ones, or time scales spread over the memory wanted."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lit_ppo.nets.lstm import LSTM

InitScheme = Literal["chrono", "orthogonal"]
SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 200.0  # bars


def orthogonal(rows: int, columns: int, gain: float, generator: torch.Generator | None) -> Tensor:
    """A random matrix [rows, columns] with orthogonal rows or columns, times `gain`."""
    return nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)


@torch.no_grad()
def initialise_lstm(lstm: LSTM, scheme: InitScheme, generator: torch.Generator | None) -> None:
    """Set the start values of every layer.

    orthogonal: orthogonal weights per gate, zero bias (Huang et al. 2022, "The 37 Implementation Details of PPO").

    chrono: unit k forgets over tau_k bars, tau spread evenly in logarithm from 1.5 to 200 bars:
        b_f = log(tau - 1)          (Tallec and Ollivier 2018, arXiv:1804.11188)
        b_i = -log(tau - 1) / 2     the input is scaled by 1 / sqrt(tau), so that every unit's variance is alike
        b_o = 1
    The gates' input weights are a fifth of the cell's and the recurrent weights a tenth of orthogonal: at the start,
    each unit is close to an exponential average of the cell's input, and training bends it from there. An agent that
    starts so sees the right memory in its first iteration instead of finding it after half a million bars.
    """
    for weight_ih, weight_hh, bias in zip(lstm.weight_ih, lstm.weight_hh, lstm.bias, strict=True):
        hidden, width = weight_hh.shape[1], weight_ih.shape[1]
        gates = [slice(gate * hidden, (gate + 1) * hidden) for gate in range(4)]  # i, f, g, o
        for rows in gates:
            weight_hh[rows] = orthogonal(hidden, hidden, 1.0 if scheme == "orthogonal" else 0.1, generator)
        if scheme == "orthogonal":
            for rows in gates:
                weight_ih[rows] = orthogonal(hidden, width, 1.0, generator)
            bias.zero_()
            continue
        gains = torch.tensor([0.1, 0.1, 0.5, 0.1]).repeat_interleave(hidden).unsqueeze(1)
        weight_ih.copy_(gains * torch.randn(4 * hidden, width, generator=generator))
        tau = torch.logspace(math.log10(SHORTEST_MEMORY), math.log10(LONGEST_MEMORY), hidden)
        log_odds = (tau - 1).log()
        bias.copy_(torch.cat([-0.5 * log_odds, log_odds, torch.zeros(hidden), torch.ones(hidden)]))
