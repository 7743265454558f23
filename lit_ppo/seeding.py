"""Every random draw of lit-ppo comes from a `torch.Generator` made here, of (seed, rank, purpose).

The global generators of torch, numpy and python are never drawn from, so that logging, validation or another
library cannot change a run; the generators' states go into the checkpoint.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, rank: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on all three arguments (SHA-256, so neighbours are unrelated)."""
    digest = hashlib.sha256(f"{seed}/{rank}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_generator(
    seed: int, rank: int = 0, purpose: str = "", device: torch.device | str | None = None
) -> torch.Generator:
    """Return a new generator for one purpose ("rollout", "minibatches", ...) on `device` (default: CPU)."""
    generator = torch.Generator(device=device or "cpu")
    generator.manual_seed(derive_seed(seed, rank, purpose))
    return generator
