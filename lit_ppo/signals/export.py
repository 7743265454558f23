"""`lit-ppo export --ckpt RUN --output DIR`: a trained policy for programs without lit-ppo, or without Python.

    policy.onnx          one bar in, one decision out: raw features, held position and memory -> votes, next memory
    weights.safetensors  the same weights, by name
    policy.json          features with their parameters, scaler, positions, inputs and outputs: how to use the two

The scaler is part of the graph: its input is a feature as it is computed. No order is sent anywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from lit_ppo.class_paths import take_allowed_modules
from lit_ppo.nets.encoder import Encoder
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.recipe import Recipe
from lit_ppo.signals.checkpoint_choice import ChosenCheckpoint, choose_checkpoint
from lit_ppo.signals.decisions import Decision, DecisionStep
from lit_ppo.signals.live import MakeFeed, warn_of_other_code
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import json_bytes, shown_path
from lit_ppo.version import __version__

FORMAT = 1
OPSET = 17
FILES = ("policy.onnx", "weights.safetensors", "policy.json")
DECISION_RULE = (
    "Before the first bar: held is flat, {memory} zeros. At the close of every bar run the graph once, feed {memory} "
    "back (from {after}), and hold positions[action] next; the first warmup_bars bars after the features' own warm-up "
    "only fill the memory, and held stays flat in them."
)
ACCOUNT_INPUTS = {
    "unrealised": (
        "log(equity at the fill of the decision before this one / equity at the fill that the held position was taken "
        "at) / (10 reward_scale), within +-5; 0 on the bar after that fill. From fill to fill equity earns position * "
        "price return - cost of the change - carry, by `fill` and `costs`; a loss beyond 95 % counts as 95 %"
    ),
    "holding_time": "log(1 + bars since entry) / 5",
}


class MissingPackageError(RuntimeError):
    """A package that only the export needs is not installed."""


class PolicyGraph(nn.Module):
    """`DecisionStep` with the scaler in front: what the ONNX file holds.

    Args:
        step: the policy.
        scaler: {"mean": [F], "std": [F], "clip"}.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, step: DecisionStep, scaler: dict[str, Any]) -> None:
        super().__init__()
        self.step, self.clip = step, float(scaler["clip"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(scaler[name], dtype=torch.float64))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        return (*OUTPUT_MEANINGS, *(f"next_{name}" for name in self.step.initial_state()._asdict()))

    def forward(self, features: Tensor, held: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """[F] raw features, held position, the encoder's memory and account features (if any) -> `outputs`."""
        size = len(self.step.initial_state()._asdict())
        memory, account = others[:size], others[size] if len(others) > size else None
        scaled = ((features.double() - self.mean) / self.std).clamp(-self.clip, self.clip).float()
        decision: Decision = self.step(scaled, held, account, *memory)
        position = self.step.policy.positions.float()[decision.action]
        return decision.votes, decision.probabilities, decision.action, position, *decision.memory


OUTPUT_MEANINGS = {
    "votes": "logits of the next position, summed over networks and views",
    "probabilities": "of the next positions: softmax of the mean logits",
    "action": "index of the position to hold next: the largest vote",
    "position": "that position, share of notional",
}


def example_inputs(graph: PolicyGraph, num_account: int) -> dict[str, Tensor]:
    """Inputs of the right shapes, by name: the account flat, nothing remembered."""
    memory = graph.step.initial_state()
    inputs = {
        "features": graph.mean.float(),
        "held": torch.tensor([graph.step.policy.flat_index]),
        **memory._asdict(),
    }
    return inputs | ({"account": torch.zeros(1, num_account)} if num_account else {})


def to_onnx(graph: PolicyGraph, num_account: int) -> bytes:
    """Trace the graph.

    Raises:
        MissingPackageError: onnx is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingPackageError(
            "lit-ppo export writes policy.onnx, and the package onnx is not installed. Install it with "
            "`pip install 'lit-ppo[export]'` (or `pip install onnx onnxruntime`)"
        )
    import onnx

    inputs = example_inputs(graph, num_account)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Shape checks of our own code are traced as constants (they are), and torch's other exporter needs onnxscript.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # the exporter that traces takes a file, whatever its signature says
            dynamo=False,
            input_names=list(inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
        )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(model, full_check=True)
    return buffer.getvalue()


def description(chosen: ChosenCheckpoint, graph: PolicyGraph, recipe: Recipe, data: dict[str, Any]) -> dict[str, Any]:
    """What policy.json holds: everything that the graph's user has to know, and where it comes from."""
    policy = graph.step.policy
    account = [name for name in recipe.account_features if name != "position"]
    inputs, memory = example_inputs(graph, len(account)), list(graph.step.initial_state()._asdict())
    after = {f"next_{name}": f"{name} of the next bar" for name in memory}
    described = OUTPUT_MEANINGS | after
    meanings = {
        "features": "one bar's features, not scaled, in the order of `features`",
        "held": f"index of the held position in `positions`; flat is {policy.flat_index}",
        **dict.fromkeys(memory, "memory; zeros before the first bar"),
        "account": "; ".join(f"{name}: {ACCOUNT_INPUTS[name]}" for name in account),
    }
    with torch.no_grad():
        outputs = dict(zip(graph.outputs, graph(*inputs.values()), strict=True))
    return {
        "format": FORMAT,
        "lit_ppo": __version__,
        "checkpoint": {
            "path": f"{chosen.path.parent.name}/{chosen.path.name}",
            "sha256": chosen.sha256,
            "fold": chosen.fold,
            "bars": {k: chosen.data["fingerprint"][k] for k in ("bars_sha256", "rows", "first_time", "last_time")},
        },
        "decision": DECISION_RULE.format(memory=" and ".join(memory), after=" and ".join(after)),
        "positions": policy.positions.tolist(),
        "flat_index": policy.flat_index,
        "fill": chosen.data["fingerprint"]["fill"],
        "costs": chosen.data["fingerprint"]["costs"],
        **data,
        "inputs": {name: _shape(tensor) | {"meaning": meanings[name]} for name, tensor in inputs.items()},
        "outputs": {name: _shape(tensor) | {"meaning": described[name]} for name, tensor in outputs.items()},
        "network": _network(policy, recipe),
    }


def _shape(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _network(policy: Any, recipe: Recipe) -> dict[str, Any]:
    """Sizes, and what was learnt or measured of the inputs: for a port that reads weights.safetensors."""
    encoder = next(module for module in policy.modules() if isinstance(module, Encoder))
    common = {
        "kind": type(policy).__name__,
        "account_features": list(recipe.account_features),
        "activation": recipe.activation,
        "encoder": recipe.encoder,
        "recurrent": encoder.recurrent,
        "num_layers": recipe.num_layers,
        "weights": encoder.weight_layout,
    }
    if not isinstance(policy, MarketPolicy):
        hold = None if policy.hold_bias is None else float(policy.hold_bias)
        observation = "scaled features, held position (share of notional), further account features"
        return common | {"num_networks": 1, "views": 1, "hold_bias": [hold], "observation": observation}
    mirrored = bool(policy.mirrored)
    order = [
        {"network": network, "view": view}
        for network in range(policy.num_networks)
        for view in (("market", "mirrored") if mirrored else ("market",))
    ]
    return common | {
        "num_networks": policy.num_networks,
        "views": 2 if mirrored else 1,
        "sequences": order,
        "votes": (
            "logits [P] of every sequence for its held position, summed; a mirrored view sees features * mirror_sign "
            "and the held position turned round (index P - 1 - held), and its logits are turned back before the sum"
            if mirrored
            else "logits [P] of every network for the held position, summed"
        ),
        "screen_gain": policy.input_gain.tolist(),
        "mirror_sign": policy.mirror_sign.tolist(),
        "hold_bias": [float(network.hold_bias) for network in policy.networks],
    }


def parser() -> argparse.ArgumentParser:
    """Options of `lit-ppo export`."""
    parser = argparse.ArgumentParser(
        prog="lit-ppo export",
        description=f"Write a trained policy as {', '.join(FILES)}. Needs the package onnx.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt", required=True, help="run folder (results/<seed>), fold folder or checkpoint file")
    parser.add_argument("--output", required=True, help="folder to write into; made if absent")
    parser.add_argument("--fold", type=int, help="of a run; default: the newest finished one")
    parser.add_argument("--allow-module", metavar="NAME", help="a module that features may be imported from")
    return parser


def export(arguments: Sequence[str], make_feed: MakeFeed) -> int:
    """Run the command; returns the exit code.

    Args:
        arguments: what follows `export`.
        make_feed: `datamodules.features.feed.Feed.of`.

    Raises:
        ValueError, FileNotFoundError: the checkpoint cannot be used, or the output is no folder.
        MissingPackageError: onnx is not installed.
        CheckpointError: the checkpoint is damaged.
    """
    rest, modules = take_allowed_modules(arguments)
    options = parser().parse_args(rest)
    chosen = choose_checkpoint(options.ckpt, options.fold)
    directory = Path(options.output)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output {shown_path(directory)} is a file, and export writes a folder. Name another one")
    feed = make_feed(chosen.data, chosen.settings, {}, modules)
    warn_of_other_code(feed)
    policy, recipe = chosen.load_policy()
    data = feed.describe()
    graph = PolicyGraph(DecisionStep(policy), data["scaler"]).eval()
    model = to_onnx(graph, len(recipe.account_features) - 1)
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / "policy.onnx", model)
    weights = {name: tensor.contiguous() for name, tensor in policy.state_dict().items()}
    atomic_write(directory / "weights.safetensors", to_safetensors(weights))
    atomic_write(directory / "policy.json", json_bytes(description(chosen, graph, recipe, data)))
    print(f"{', '.join(FILES)} of {shown_path(chosen.path)} are in {directory}")
    return 0
