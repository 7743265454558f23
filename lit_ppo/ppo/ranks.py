"""What the ranks of one training tell each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed


class Ranks(NamedTuple):
    """This process among those that train one policy together."""

    rank: int = 0
    world_size: int = 1

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all ranks, in place."""
        if self.world_size > 1:
            distributed.all_reduce(values)
            values /= self.world_size
        return values

    def of_every(self, values: Tensor, device: torch.device) -> Tensor:
        """[K] of this rank -> [ranks, K] of all, in their order, on the host; exchanged on `device`."""
        own = values.to(device)
        found = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(found, own)
        return torch.stack(found).cpu()
