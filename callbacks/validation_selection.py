"""Keep the weights that did best on validation: the end of a training is seldom its best moment."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lit_ppo.trainee import Trainee


class ValidationSelection(pl.Callback):
    """Remember the weights with the best validation score and put them back when training ends.

    Reads the monitored metric after each validation; when `fit` ends writes the policy's weights and
    `pl_module.notes.selection`. Delete the entry and the last weights are used. The remembered weights are part of the
    checkpoint, one atomic unit with the rest.

    Args:
        monitor: metric to compare, larger is better.
        min_progress: share of the budget before which nothing is selected: a score of a policy that has hardly learnt
            is luck.

    Raises:
        ValueError: `min_progress` outside [0, 1).
    """

    def __init__(self, monitor: str = "validation/score", min_progress: float = 0.0) -> None:
        if not 0 <= min_progress < 1:
            raise ValueError(f"ValidationSelection needs min_progress in [0, 1), got {min_progress}")
        self.monitor, self.min_progress = monitor, min_progress
        self.score = -math.inf
        self.timesteps = 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            gave = sorted(name for name in trainer.callback_metrics if name.startswith("validation/"))
            raise RuntimeError(f"ValidationSelection monitors {self.monitor!r}, but validation gave {gave}")
        assert pl_module.policy is not None
        score = float(trainer.callback_metrics[self.monitor])
        # Of equals the later one, it has learnt more; a score of NaN is never best.
        if pl_module.progress >= self.min_progress and score >= self.score:
            self.score, self.timesteps = score, pl_module.timesteps
            self.weights = {name: value.detach().clone() for name, value in pl_module.policy.state_dict().items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if self.weights:
            assert pl_module.policy is not None
            pl_module.policy.load_state_dict(self.weights)
            pl_module.notes.selection = {"score": self.score, "timesteps": self.timesteps}

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "timesteps": self.timesteps, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.timesteps = state_dict["score"], state_dict["timesteps"]
        self.weights = dict(state_dict["weights"])
