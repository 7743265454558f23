"""Two processes that train together; started by test_two_ranks.py, they write what they saw to DIRECTORY.

The second is forked from the first once everything is imported, and before anything is computed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch
from lightning.fabric import Fabric

from callbacks import ConvergenceEarlyStopping, TrainingCheckpoint, ValidationSelection
from datamodules.gymnasium_data import GymnasiumDataModule
from lit_ppo.fabric_trainer import FabricTrainer
from lit_ppo.module import LitPPO
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import Recipe
from tests.integration.shells import ENCODER, SMALL, small_data, small_trainer, weights

DDP = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
RECIPE = {**SMALL, "total_timesteps": 4 * 128, "target_kl": 1e-3}
collected: list[torch.Tensor] = []


def watched_collect(self, original=Learner.collect):
    rollout = original(self)
    collected.append(rollout.seen.observations.clone())
    return rollout


def lightning(directory: Path, iterations: int | None = None, resume: bool = False) -> dict:
    """Train under Lightning, or only so many iterations; returns weights and rollouts."""
    collected.clear()
    module = LitPPO(seed=5, **RECIPE)
    limit = -1 if iterations is None else iterations
    trainer = small_trainer(directory, [TrainingCheckpoint(None, 1)], **DDP, max_epochs=limit)
    trainer.fit(module, datamodule=small_data(), ckpt_path=directory if resume else None)
    return {"weights": weights(module), "collected": list(collected), "timesteps": module.timesteps}


def fabric() -> dict:
    collected.clear()
    group = Fabric(**DDP)
    group.launch()
    trainer = FabricTrainer(group, Recipe(**RECIPE), small_data().fold_data(0).train, 5)
    while not trainer.learner.finished:
        trainer.iterate()
    return {"weights": dict(trainer.policy.state_dict()), "collected": list(collected)}


def gymnasium(directory: Path) -> dict:
    """Train on CartPole, each rank in environments of its own, and stop at the first validation that is no better."""
    recipe = {**SMALL, **ENCODER, "num_envs": 2, "num_steps": 16, "total_timesteps": 64 * 40, "learning_rate": 0.01}
    module = LitPPO(seed=0, **recipe)
    impatient = ConvergenceEarlyStopping(1, 0.0, smoothing=0.0, min_progress=0.0, wait_for_change=False)
    trainer = small_trainer(directory, [impatient, ValidationSelection()], **DDP)
    data = GymnasiumDataModule("CartPole-v1", mask_observations=[1, 3], validation_episodes=3, test_episodes=1)
    trainer.fit(module, datamodule=data)
    return {"weights": weights(module), "iteration": module.iteration, "chosen": module.notes.selection["timesteps"]}


def train(where: Path, rank: int) -> None:
    os.environ.update({"LOCAL_RANK": str(rank), "NODE_RANK": "0", "RANK": str(rank)})
    Learner.collect = watched_collect  # type: ignore[method-assign]
    results = {"whole": lightning(where / "whole")}
    lightning(where / "cut", iterations=2)
    results["resumed"] = lightning(where / "cut", resume=True)
    results["fabric"] = fabric()
    results["gymnasium"] = gymnasium(where / "gymnasium")
    torch.save(results, where / f"rank_{rank}.pt")


if __name__ == "__main__":
    second = os.fork()
    try:
        train(Path(sys.argv[1]), rank=0 if second else 1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    if not second:
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
