"""What a training leaves when a loss or gradient is not finite: everything to look at it, or to compute it again.

    diagnosis/diagnosis.json       the error, where it happened, settings, versions, range of every tensor
    diagnosis/tensors.safetensors  the minibatch and the weights, as they were before the update that was refused

Weights are untouched by that update, and no checkpoint holds what is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from lit_ppo.store.atomic import atomic_write, own_folder
from lit_ppo.store.files import json_bytes
from lit_ppo.store.provenance import code_state, package_versions

if TYPE_CHECKING:
    from lit_ppo.ppo.learner import Learner

FOLDER, RECORD, TENSORS = "diagnosis", "diagnosis.json", "tensors.safetensors"


def diagnosed(error: FloatingPointError, learner: Learner, directory: str | Path) -> FloatingPointError:
    """Write the bundle for an error of `learner.iterate`; returns the error with a word on where it is.

    Args:
        error: as raised.
        learner: whose minibatch, weights and gradients are still those of the update that was refused.
        directory: of the training; the bundle goes to its folder `diagnosis`, one for each rank.
    """
    folder = Path(directory) / (f"{FOLDER}_rank{learner.ranks.rank}" if learner.ranks.rank else FOLDER)
    tensors = dict(_named(learner))
    record = {
        "error": str(error),
        "iteration": learner.iteration,
        "timesteps": learner.timesteps,
        "rank": learner.ranks.rank,
        "seed": learner.seed,
        "learning_rate": learner.optimizer.param_groups[0]["lr"],
        "settings": vars(learner.config),
        "versions": package_versions(),
        **code_state(),
        "tensors": {name: _range(tensor) for name, tensor in tensors.items()},
    }
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("gradient.")}
    try:
        own_folder(folder)
        atomic_write(folder / TENSORS, save({name: x.cpu().contiguous().clone() for name, x in kept.items()}))
        atomic_write(folder / RECORD, json_bytes(record))
    except (OSError, ValueError) as failure:  # ValueError: the folder is a link
        return FloatingPointError(f"{error} No diagnosis could be written to {folder}: {failure}")
    return FloatingPointError(f"{error} What it was computed from is in {folder}")


def _named(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    yield from _tensors("minibatch", learner.minibatch)
    for name, parameter in learner.policy.named_parameters():
        yield f"weight.{name}", parameter.detach()
        if parameter.grad is not None:
            yield f"gradient.{name}", parameter.grad.detach()


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor within named tuples, by its path."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif hasattr(value, "_asdict"):
        for field, part in value._asdict().items():
            yield from _tensors(f"{name}.{field}", part)


def _range(tensor: Tensor) -> dict[str, Any]:
    """Shape, smallest and largest finite number, how many are none, and where the first of those is."""
    values = tensor.float()
    bad = ~values.isfinite()
    whole = values[~bad]
    found: dict[str, Any] = {"shape": list(tensor.shape), "not_finite": int(bad.sum())}
    if whole.numel():
        found |= {"min": float(whole.min()), "max": float(whole.max())}
    if bad.any():
        found["first_not_finite"] = torch.nonzero(bad)[0].tolist()
    return found
