"""The prior trader's weights as a file: safetensors, with a card that says where they come from (docs/prior.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lit_ppo.store.atomic import atomic_write, sha256_file
from lit_ppo.store.files import shown_path
from lit_ppo.store.schema import Within, parse_json

RELEASED = Path(__file__).resolve().parents[1] / "weights" / "prior.safetensors"
HURDLE = "core_hurdle"
NETWORK = ("hidden_size", "num_layers", "shared_encoder", "policy_layers", "value_layers", "activation", "encoder")
MOST_BYTES = 256 * 2**20  # the released file has some 150 kB
REMEDY = "Name another file, or make one with `lit-ppo pretrain`"
Width = Annotated[int, Within(1, 4096)]
Exposure = Annotated[float, Within(-1000, 1000)]


class NetworkRecord(TypedDict, total=False):
    """`network` of a file: what the shape of its tensors follows from, and nothing else of a recipe."""

    hidden_size: Width
    num_layers: Annotated[int, Within(1, 16)]
    shared_encoder: bool
    policy_layers: list[Width]
    value_layers: list[Width]
    activation: str
    encoder: str
    recurrent: bool  # of the first weights, see `current_settings`
    positions: list[Exposure]


class _Described(TypedDict):
    features: list[str]
    network: NetworkRecord
    card: dict[str, Any]


def current_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Network settings as they are named now: `recurrent` of the first weights and checkpoints chose the encoder."""
    values = dict(settings)
    if "recurrent" in values:
        values["encoder"] = "lstm" if values.pop("recurrent") else "memoryless"
    return values


@dataclass(frozen=True)
class PriorWeights:
    """A trained policy to start from.

    Attributes:
        tensors: the policy's state dict, of one network.
        features: names of its inputs, in order.
        network: the settings that its shape follows from, `NETWORK` and positions.
        card: how it was made, plain JSON: prior, seed, steps, commit, scores.
    """

    tensors: dict[str, Tensor]
    features: tuple[str, ...]
    network: dict[str, Any]
    card: dict[str, Any]

    def write(self, path: str | Path) -> None:
        """Write it whole or not at all."""
        described = {"features": list(self.features), "network": self.network, "card": self.card}
        metadata = {"format": "pt", "lit_ppo_prior": json.dumps(described, sort_keys=True)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        atomic_write(Path(path), save(tensors, metadata))

    @classmethod
    def read(cls, path: str | Path) -> PriorWeights:
        """Read a file, `prior` being the released one.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no such file, is damaged, or says more of a recipe than its network.
        """
        file = RELEASED if str(path) == "prior" else Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"model.start {str(path)!r}: there are no weights at {file}. Name `prior` (the released ones), "
                "`scratch`, or the prior.safetensors of a `lit-ppo pretrain`. To resume what began from this file, put "
                "it back (run.json has its sha256); to decide with what is trained, it is not needed"
            )
        status = file.stat()
        kept = _read(file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        tensors = {name: tensor.clone() for name, tensor in kept.tensors.items()}
        return replace(kept, tensors=tensors, network=deepcopy(kept.network), card=dict(kept.card))

    def fitted(self, feature_names: Sequence[str]) -> dict[str, Tensor]:
        """The state dict for a policy that sees these features: further ones enter with weight 0.

        Raises:
            ValueError: a feature that the weights need is missing.
        """
        # A hurdle of one's own is in the feature's label, and the same input.
        known = [HURDLE if name.startswith(f"{HURDLE}_") else name for name in feature_names]
        missing = [name for name in self.features if name not in known]
        if missing:
            raise ValueError(
                f"model.start: these weights see {len(self.features)} features, and data.features lacks "
                f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Set data.features: core, or a list "
                "that begins with {name: core}; or train on yours alone, with the recipe `scratch` (config)"
            )
        columns = [known.index(name) for name in self.features]
        for name, tensor in self.tensors.items():
            per_feature = name.endswith("weight_ih.0") or name in ("input_gain", "mirror_sign")
            if per_feature and (not tensor.ndim or tensor.shape[-1] != len(columns)):
                shape = list(tensor.shape)
                raise ValueError(f"model.start: {name} {shape} is for other than {len(columns)} features. {REMEDY}")
        fitted = dict(self.tensors)
        for name, tensor in self.tensors.items():
            if name.endswith("weight_ih.0"):
                fitted[name] = tensor.new_zeros(len(tensor), len(feature_names))
                fitted[name][:, columns] = tensor
            elif name in ("input_gain", "mirror_sign"):
                fitted[name] = tensor.new_ones(len(feature_names))
                fitted[name][columns] = tensor
        return fitted


@functools.lru_cache(maxsize=1)
def _read(file: Path, identity: tuple[int, int, int, int]) -> PriorWeights:
    """Every fold asks for the same weights, twice; `identity` tells a file from what has taken its place."""
    source, size = f"model.start: {file}", identity[2]
    if size > MOST_BYTES:
        raise ValueError(f"{source} has {size:,} bytes, more than {MOST_BYTES:,}. {REMEDY}")
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get("lit_ppo_prior", "null")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} cannot be read as weights of a prior trader: {error}") from error
    if text == "null":
        raise ValueError(f"{source} holds tensors, but not what they are weights of. {REMEDY}")
    described = parse_json(text.encode(), _Described, f"{source}, its description,", REMEDY)
    if foreign := sorted(set(described["network"]) - NetworkRecord.__annotations__.keys()):
        raise ValueError(f"{source} sets {', '.join(foreign)}, which is no part of a network. {REMEDY}")
    for name, tensor in tensors.items():
        known = tensor.is_floating_point() or tensor.dtype == torch.bool
        if not known or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{source} is damaged: {name} holds something else than finite numbers. {REMEDY}")
    positions = described["network"].get("positions")
    if "positions" in tensors and positions is not None and tensors["positions"].tolist() != positions:
        raise ValueError(
            f"{source} is damaged: it speaks of positions {positions}, and trades {tensors['positions'].tolist()}. "
            f"{REMEDY}"
        )
    network = current_settings(described["network"])
    return PriorWeights(tensors, tuple(described["features"]), network, described["card"])


def start_record(start: str | Path) -> dict[str, Any]:
    """What run.json says of the weights that every fold begins with: which, their hash, plain entries of their card.

    Raises:
        FileNotFoundError, ValueError: as `PriorWeights.read`.
    """
    file = RELEASED if str(start) == "prior" else Path(start)
    card = {key: value for key, value in PriorWeights.read(start).card.items() if isinstance(value, (int, float, str))}
    return {"weights": "prior" if file == RELEASED else shown_path(file), "sha256": sha256_file(file), "card": card}
