"""Explore early, fine-tune late: set PPO's coefficients by phase of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from lit_ppo.trainee import Trainee


@dataclass(frozen=True)
class Phase:
    """One phase of a training.

    Attributes:
        name: for the records.
        until: share of the budget at which it ends, in (0, 1].
        learning_rate, ent_coef, clip_coef, update_epochs: factors on the `model.*` values of the same names; epochs
            are rounded, and never fewer than one.
    """

    name: str
    until: float
    learning_rate: float = 1.0
    ent_coef: float = 1.0
    clip_coef: float = 1.0
    update_epochs: float = 1.0

    def __post_init__(self) -> None:
        factors = (self.learning_rate, self.clip_coef, self.update_epochs)
        if not 0 < self.until <= 1 or min(factors) <= 0 or self.ent_coef < 0:
            raise ValueError(
                f"Phase {self.name!r} needs until in (0, 1], ent_coef >= 0 and the other factors > 0; got until "
                f"{self.until}, ent_coef {self.ent_coef} and {factors}"
            )


PHASES = (
    Phase("explore", until=0.3, ent_coef=2.0, update_epochs=0.5),
    Phase("balance", until=0.7),
    Phase("fine-tune", until=1.0, learning_rate=0.5, ent_coef=0.2, clip_coef=0.5, update_epochs=0.5),
)


class ProgressiveHyperparameters(pl.Callback):
    """Set learning rate, entropy, clip range and epochs by phase: explore, balance, fine-tune.

    Reads `pl_module.progress`, `recipe` and the last iteration's `metrics`; writes the four coefficients of
    `pl_module.learner` before each PPO iteration, and its notes. What is
    in force is `train/learning_rate`, `train/ent_coef`, `train/clip_coef` and `train/epochs` of every logger. The
    learning rate's own decay goes on inside a phase. The phase is a function of progress; only the record of it is part
    of the checkpoint.

    Args:
        phases: in order; the last one ends at 1. None is `PHASES`: explore until 0.3 (twice the entropy, half the
            epochs), balance until 0.7 (as configured), fine-tune (half the learning rate, clip range and epochs, a
            fifth of the entropy).

    Raises:
        ValueError: phases that do not rise to 1.
    """

    optimisation = "progressive_hyperparameters"

    def __init__(self, phases: Sequence[Phase] | None = None) -> None:
        phases = PHASES if phases is None else phases
        ends = [phase.until for phase in phases]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(f"`phases` must end at rising shares of training, the last at 1.0; got until={ends}")
        self.phases = list(phases)
        self.entered: dict[str, int] = {}  # timesteps at which a phase began
        self.epochs_saved = 0
        self.seconds_saved = 0.0

    def phase(self, progress: float) -> Phase:
        """Return the phase that is in force at `progress`, 0 to 1."""
        return next(phase for phase in self.phases if progress < phase.until or phase is self.phases[-1])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        phase, recipe, learner = self.phase(pl_module.progress), pl_module.recipe, pl_module.learner
        assert learner is not None
        learner.learning_rate = recipe.learning_rate * phase.learning_rate
        learner.final_learning_rate = recipe.final_learning_rate * phase.learning_rate
        learner.ent_coef = recipe.ent_coef * phase.ent_coef
        learner.clip_coef = recipe.clip_coef * phase.clip_coef
        learner.update_epochs = max(1, round(recipe.update_epochs * phase.update_epochs))
        self.entered.setdefault(phase.name, pl_module.timesteps)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        assert pl_module.learner is not None
        saved = pl_module.recipe.update_epochs - pl_module.learner.update_epochs
        self.epochs_saved += saved
        self.seconds_saved += saved * pl_module.metrics["time/update_s"] / pl_module.metrics["train/epochs"]
        pl_module.notes.optimised(
            self.optimisation,
            ", ".join(f"{name} from {timesteps:,}" for name, timesteps in self.entered.items()),
            phases=dict(self.entered),
            epochs_saved=self.epochs_saved,
            seconds_saved=self.seconds_saved,
        )

    def withdraw(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        """Give the coefficients their configured values back: the callback has failed and is left out."""
        for name in ("learning_rate", "final_learning_rate", "ent_coef", "clip_coef", "update_epochs"):
            setattr(pl_module.learner, name, getattr(pl_module.recipe, name))

    def state_dict(self) -> dict[str, Any]:
        return {
            "entered": dict(self.entered),
            "epochs_saved": self.epochs_saved,
            "seconds_saved": self.seconds_saved,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.entered, self.epochs_saved = dict(state_dict["entered"]), state_dict["epochs_saved"]
        self.seconds_saved = state_dict["seconds_saved"]
