"""Start values of an encoder: the field's orthogonal ones, or time scales spread over the memory wanted (chrono)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

InitScheme = Literal["chrono", "orthogonal"]
SHORTEST_MEMORY, LONGEST_MEMORY = 1.5, 200.0  # bars


def orthogonal(rows: int, columns: int, gain: float, generator: torch.Generator | None) -> Tensor:
    """A random matrix [rows, columns] with orthogonal rows or columns, times `gain`."""
    return nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=generator)


def memory_log_odds(hidden_size: int) -> Tensor:
    """[H] bias of a gate that keeps 1 - 1 / tau_k of unit k, tau spread evenly in logarithm from 1.5 to 200 bars.

    log(tau - 1): Tallec and Ollivier 2018, arXiv:1804.11188.
    """
    tau = torch.logspace(math.log10(SHORTEST_MEMORY), math.log10(LONGEST_MEMORY), hidden_size)
    return (tau - 1).log()
