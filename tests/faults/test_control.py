"""The control of C1: a resume that has lost one item of its state is seen, whichever item it is.

The newest checkpoint of a killed run gets one item of the checkpoint before it, an iteration stale; an item that does
not change from one iteration to the next is deleted. A comparison that still found "equal" would prove nothing.
(The datamodule's item is no state: scaler and fingerprint are computed from the data again, and checked against it.)
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ppo.store.checkpoints import MANIFEST, CheckpointStore
from tests.faults.harness import SEED, assert_same_run, command

LEARNER = ("learner", "ranks", 0)
ITEMS: dict[str, tuple[str | int, ...]] = {
    "weights": ("state_dict",),
    "optimizer moments": ("optimizer_states", 0, "state"),
    "rollout generator": (*LEARNER, "rollout_generator"),
    "minibatch generator": (*LEARNER, "minibatch_generator"),
    "timesteps": (*LEARNER, "timesteps"),
    "iteration": (*LEARNER, "iteration"),
    "start values of the weights": (*LEARNER, "start"),
    "coefficients": (*LEARNER, "coefficients"),
    "chosen weights": ("callbacks", "ValidationSelection"),  # stale ones of a score that is never reached again
    "early stopping": ("callbacks", "ConvergenceEarlyStopping"),
    "lines of the metrics log": ("callbacks", "MetricsLog"),
    "progress of Lightning's loops": ("loops",),
    "whether training had stopped": ("learner", "stopped"),
}
FAST = ("rollout generator",)
CASES = [pytest.param(item, marks=() if item in FAST else pytest.mark.slow) for item in ITEMS]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def spoil(newest: dict[str, Any], older: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """Return the newest state with the item at `path` stale, or without it where it does not change."""
    state = copy.deepcopy(newest)
    owner, source = state, older
    for key in path[:-1]:
        owner, source = owner[key], source[key]  # type: ignore[index]
    if path == ITEMS["chosen weights"]:
        # At a score never reached again: those of the checkpoint before, or, where they are still the best, the last.
        weights = {name.removeprefix("policy."): value for name, value in newest["state_dict"].items()}
        last = {"weights": weights} if same(owner[path[-1]], source[path[-1]]) else {}  # type: ignore[index]
        owner[path[-1]] = {**source[path[-1]], **last, "score": 1e9}  # type: ignore[index]
    elif same(owner[path[-1]], source[path[-1]]):  # type: ignore[index]
        del owner[path[-1]]  # type: ignore[arg-type]
    else:
        owner[path[-1]] = source[path[-1]]  # type: ignore[index]
    return state


def resumed(launch, path: tuple[str | int, ...] | None):
    """Kill a run after its second iteration, spoil its newest checkpoint, resume it; returns how it ended, and where.

    Of four checkpoints the last two stay, so what was spoilt is gone at the end: only its effects can be seen.
    """
    assert launch(*command(), environment={"LIT_PPO_FAILPOINT": "after_replace@manifest.json:2"}).code == -9
    folder: Path = launch.directory / "results" / str(SEED)
    store = CheckpointStore(folder / "fold_000")
    first, second = store.entries()
    older, newest = (store.load(entry["file"]) for entry in (first, second))
    (folder / "fold_000" / second["file"]).unlink()
    manifest = json.loads((folder / "fold_000" / MANIFEST).read_text())
    manifest["entries"] = [entry for entry in manifest["entries"] if entry["file"] == first["file"]]
    (folder / "fold_000" / MANIFEST).write_text(json.dumps(manifest))
    store.save(newest if path is None else spoil(newest, older, path))
    return launch(*command("--resume")), folder


def test_a_resume_from_the_same_state_written_again_is_equal(launch, whole):
    ended, folder = resumed(launch, None)
    assert ended.code == 0, ended.output
    assert_same_run(whole, folder)


@pytest.mark.parametrize("item", CASES)
def test_a_resume_without_one_item_of_its_state_is_not_equal(launch, whole, item, record_property):
    ended, folder = resumed(launch, ITEMS[item])
    if ended.code == 0:
        with pytest.raises(AssertionError):
            assert_same_run(whole, folder)
    record_property("state items removed and missed", 1)
