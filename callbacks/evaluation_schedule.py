"""Validate often while the score moves, rarely while it does not."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from lit_ppo.trainee import Trainee


class EvaluationSchedule(pl.Callback):
    """Decide before each PPO iteration whether validation follows it.

    It follows every iteration of the first `early_share` of the budget, the first one after the score moved by more
    than `change` or after a coefficient was changed, and the last one. While the score stays within `change`, the
    distance doubles from validation to validation, up to `longest` bars.

    Reads `pl_module.timesteps`, `progress`, the learner's coefficients and the monitored metric; writes
    `trainer.check_val_every_n_epoch` and the module's notes. Validation draws no random
    number and touches no weight, so the training is the same with and without it; which weights are kept, and when
    convergence is seen, depends on the validations there are. Distance and counts are part of the checkpoint.

    Args:
        longest: largest distance of two validations, bars visited.
        early_share: share of the budget validated after every iteration.
        change: move of the score, in its units, that counts as one.
        monitor: metric.

    Raises:
        ValueError: a value out of its range.
    """

    optimisation = "evaluation_schedule"

    def __init__(
        self,
        longest: int = 20_000,
        early_share: float = 0.2,
        change: float = 0.002,
        monitor: str = "validation/score",
    ) -> None:
        if longest < 1 or not 0 <= early_share <= 1 or change < 0:
            raise ValueError(
                "EvaluationSchedule needs longest >= 1 bar, early_share in [0, 1] and change >= 0; got "
                f"{longest}, {early_share}, {change}"
            )
        self.longest, self.early_share, self.change, self.monitor = longest, early_share, change, monitor
        self.distance = self.due_at = 0  # bars visited
        self.last_score = math.nan
        self.coefficients: list[float] = []  # in force at the last validation
        self.validations = self.skipped = 0
        self.seconds = 0.0
        self._started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Trainee, batch: Any, batch_idx: int) -> None:
        # The batch hook, because other callbacks change coefficients when the epoch starts.
        due = self._due(pl_module)
        self.skipped += not due
        # An epoch is one iteration; a distance longer than the epochs so far is never reached.
        trainer.check_val_every_n_epoch = 1 if due else trainer.current_epoch + 2

    def _due(self, pl_module: Trainee) -> bool:
        if pl_module.iteration == 0 or pl_module.progress < self.early_share:
            return True
        after = pl_module.timesteps + pl_module.timesteps // pl_module.iteration
        changed = _coefficients(pl_module) != self.coefficients
        return changed or after >= min(self.due_at, pl_module.total_timesteps)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self.seconds += time.perf_counter() - self._started
        self.validations += 1
        score = float(trainer.callback_metrics[self.monitor])
        if abs(score - self.last_score) <= self.change:  # never true of nan
            step = pl_module.timesteps // pl_module.iteration
            self.distance = min(max(2 * self.distance, step), self.longest)
        else:
            self.distance = 0
        self.last_score, self.due_at = score, pl_module.timesteps + self.distance
        self.coefficients = _coefficients(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        pl_module.notes.optimised(
            self.optimisation,
            f"{self.validations} validations, {self.skipped} left out",
            {"evaluations_left_out": self.skipped},
            validations=self.validations,
            skipped=self.skipped,
            validation_seconds=self.seconds,
            seconds_saved=self.skipped * self.seconds / max(self.validations, 1),
        )

    def withdraw(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        """Validate after every iteration again: the callback has failed and is left out."""
        trainer.check_val_every_n_epoch = 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state_dict[name])


_STATE = ("distance", "due_at", "last_score", "coefficients", "validations", "skipped", "seconds")


def _coefficients(pl_module: Trainee) -> list[float]:
    learner = pl_module.learner
    assert learner is not None
    return [float(learner.ent_coef), float(learner.clip_coef), float(learner.update_epochs)]
