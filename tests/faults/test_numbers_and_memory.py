"""C14, C15: a number that is none, or memory that ends: the run stops, and what was good stays good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_ppo.ppo.diagnosis import FOLDER, RECORD, TENSORS
from lit_ppo.store.checkpoints import load_checkpoint
from tests.faults.harness import SEED, assert_same_run, command, leftovers


def non_finite(value: Any, where: str = "") -> list[str]:
    """Names of the tensors of a checkpoint that are not finite."""
    if isinstance(value, torch.Tensor):
        return [] if not value.is_floating_point() or value.isfinite().all() else [where]
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in non_finite(inner, f"{where}[{key}]")]
    if isinstance(value, list | tuple):
        return [found for index, inner in enumerate(value) for found in non_finite(inner, f"{where}[{index}]")]
    return []


def check_stopped(ended, folder: Path, checkpoints: int = 2) -> None:
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    found = sorted((folder / "fold_000").glob("*.ckpt"))
    assert len(found) == checkpoints
    assert [non_finite(load_checkpoint(path)) for path in found] == [[]] * checkpoints
    assert load_checkpoint(folder / "fold_000")["lit_ppo"]["iteration"] == 2
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert leftovers(folder) == []


def check_diagnosis(folder: Path, fault: str) -> None:
    """The bundle names what is no number, and holds what the loss was computed from."""
    record = json.loads((folder / RECORD).read_text())
    assert "of PPO iteration 2" in record["error"]
    assert record["iteration"] == 2
    assert record["settings"]["gamma"] == 0.995
    spoilt = {name.split(".")[0] for name, found in record["tensors"].items() if found["not_finite"]}
    assert spoilt == {"nan_loss": set(), "nan_gradient": {"gradient"}}.get(fault, {"minibatch"})
    tensors = load_file(folder / TENSORS)
    assert {name.split(".")[0] for name in tensors} == {"minibatch", "weight"}
    assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name.startswith("weight."))
    assert list(tensors["minibatch.advantages"].shape) == record["tensors"]["minibatch.advantages"]["shape"]


FAULTS = ("nan_loss", "nan_gradient", "infinite_observation", "nan_advantage")


@pytest.mark.parametrize("fault", [FAULTS[0], *(pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS[1:])])
def test_a_number_that_is_none_stops_the_run_before_the_optimizer_step(launch, whole, fault):
    folder = launch.directory / "results" / str(SEED)
    ended = launch(*command(), faults=[f"tests.faults.injected:{fault}"])
    assert "of PPO iteration 2" in ended.output
    assert "the weights were not touched by it" in ended.output
    check_stopped(ended, folder)
    check_diagnosis(folder / "fold_000" / FOLDER, fault)
    if fault == FAULTS[0]:  # the fault gone, the run goes on as if it had never been
        ended = launch(*command("--resume"))
        assert ended.code == 0, ended.output
        assert_same_run(whole, folder)


@pytest.mark.parametrize(
    "fault",
    [
        "host_memory_ends",
        pytest.param("device_memory_ends", marks=pytest.mark.slow),
        pytest.param("python_memory_ends", marks=pytest.mark.slow),
    ],
)
def test_memory_that_runs_out_names_the_knobs_and_leaves_the_last_checkpoint(launch, whole, fault):
    folder = launch.directory / "results" / str(SEED)
    ended = launch(*command(), faults=[f"tests.faults.injected:{fault}"])
    assert "Memory ran out" in ended.output
    assert "Lower model.num_envs or model.num_steps" in ended.output
    check_stopped(ended, folder)
    if fault == "host_memory_ends":
        ended = launch(*command("--resume"))
        assert ended.code == 0, ended.output
        assert_same_run(whole, folder)
