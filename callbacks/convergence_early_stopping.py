"""End a fold's training when its validation score has stopped improving."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lit_ppo.trainee import Trainee


class ConvergenceEarlyStopping(pl.Callback):
    """Stop when the smoothed validation score has not improved by `convergence_threshold` for `patience` validations.

        s_k = smoothing * s_{k-1} + (1 - smoothing) * score_k,    s_1 = score_1

    Reads the monitored metric after each validation; writes `trainer.should_stop`, `pl_module.notes.stop_reason` and
    its notes. Ends one fold's training, never the walk-forward, and then
    puts the weights with the best (unsmoothed) score back, unless a selecting callback has chosen already. Smoothing,
    best score, waiting time, history and best weights are part of the checkpoint.

    Args:
        patience: validations without an improvement.
        convergence_threshold: what counts as one, in units of the score.
        smoothing: weight of the past, in [0, 1); 0 compares the raw scores.
        min_progress: share of the budget before which training never ends.
        wait_for_change: count no validation before the score has moved for the first time. A recurrent trader under
            costs stays flat, with one and the same score, for its first ten thousands of bars, and learns afterwards.
        monitor: metric, larger is better.

    Raises:
        ValueError: a value out of its range.
    """

    optimisation = "convergence_early_stopping"

    def __init__(
        self,
        patience: int = 5,
        convergence_threshold: float = 1e-3,
        smoothing: float = 0.5,
        min_progress: float = 0.25,
        wait_for_change: bool = True,
        monitor: str = "validation/score",
    ) -> None:
        if patience < 1 or convergence_threshold < 0 or not 0 <= smoothing < 1 or not 0 <= min_progress <= 1:
            raise ValueError(
                "ConvergenceEarlyStopping needs patience >= 1, convergence_threshold >= 0, smoothing in [0, 1) and "
                f"min_progress in [0, 1]; got {patience}, {convergence_threshold}, {smoothing}, {min_progress}"
            )
        self.patience, self.convergence_threshold = patience, convergence_threshold
        self.smoothing, self.min_progress, self.monitor = smoothing, min_progress, monitor
        self.wait_for_change = wait_for_change
        self.best = -math.inf
        self.wait = 0
        self.history: list[float] = []  # smoothed scores
        self.first_raw: float | None = None
        self.moved = False
        self.best_raw, self.best_timesteps = -math.inf, 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        assert pl_module.policy is not None
        own = pl_module.validation.get(self.monitor)  # in full; what Lightning keeps has 32 bits
        score = float(trainer.callback_metrics[self.monitor]) if own is None else own
        self.first_raw = score if self.first_raw is None else self.first_raw
        self.moved = self.moved or score != self.first_raw
        if score >= self.best_raw:
            self.best_raw, self.best_timesteps = score, pl_module.timesteps
            self.weights = {name: value.detach().clone() for name, value in pl_module.policy.state_dict().items()}
        if self.history:
            score = self.smoothing * self.history[-1] + (1 - self.smoothing) * score
        self.history.append(score)
        if score > self.best + self.convergence_threshold:
            self.best, self.wait = score, 0
        elif self.moved or not self.wait_for_change:
            self.wait += 1
        if self.wait >= self.patience and pl_module.progress >= self.min_progress and not trainer.should_stop:
            trainer.should_stop = True
            pl_module.notes.stop_reason = (
                f"early stopping: {self.monitor} within {self.convergence_threshold:g} of {self.best:.4g} for "
                f"{self.wait} validations"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        stopped = pl_module.notes.stop_reason.startswith("early stopping")
        if stopped and self.weights and not pl_module.notes.selection:
            assert pl_module.policy is not None
            pl_module.policy.load_state_dict(self.weights)
            pl_module.notes.selection = {"score": self.best_raw, "timesteps": self.best_timesteps}
        pl_module.notes.optimised(
            self.optimisation,
            pl_module.notes.stop_reason or "never stopped",
            {"early_stops": int(stopped)},
            stopped=stopped,
            timesteps_saved=max(pl_module.total_timesteps - pl_module.timesteps, 0),
            history=list(self.history),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self.history), **{name: getattr(self, name) for name in _STATE}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state_dict[name])
        self.history, self.weights = list(state_dict["history"]), dict(state_dict["weights"])


_STATE = ("best", "wait", "first_raw", "moved", "best_raw", "best_timesteps", "weights")
