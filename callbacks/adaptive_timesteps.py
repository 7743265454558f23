"""Give later folds a smaller budget: a policy that needs little more training gets little more."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from lit_ppo.trainee import Trainee


class AdaptiveTimesteps(pl.Callback):
    """Set the budget of fold i before its training starts.

        budget_0 = base = model.total_timesteps,    budget_i = max(min_timesteps, floor(base * min(0.8, 0.95^m)))

    With `rule: fold`, m is i. With `rule: maturity`, m is the number of earlier folds whose training raised the
    validation score by no more than `maturity_threshold` over the score before their first iteration; the budget stays
    `base` while m is 0. The maturity rule belongs to `WarmStart`: from new weights every fold has everything to learn.

    Reads `pl_module.fold`, `recipe.total_timesteps`, and for `maturity` `earlier_folds` and the validation score;
    writes `pl_module.total_timesteps`, its notes and one printed line. Progress,
    and with it every schedule, counts against the new budget. The budget is a function of the fold and the ledger, so
    only the two scores are part of the checkpoint.

    Args:
        min_timesteps: bars that every fold gets at least.
        rule: "fold" or "maturity".
        maturity_threshold: gain of the validation score, in its units, up to which a fold counts as mature.

    Raises:
        ValueError: a value out of its range, or `min_timesteps` above the budget.
    """

    optimisation = "adaptive_timesteps"
    sets_budget = True

    def __init__(
        self,
        min_timesteps: int = 25_000,
        rule: Literal["fold", "maturity"] = "fold",
        maturity_threshold: float = 0.002,
    ) -> None:
        if min_timesteps < 1 or maturity_threshold < 0 or rule not in ("fold", "maturity"):
            raise ValueError(
                "AdaptiveTimesteps needs min_timesteps >= 1, maturity_threshold >= 0 and rule fold or maturity; got "
                f"{min_timesteps}, {maturity_threshold}, {rule!r}"
            )
        self.min_timesteps, self.rule, self.maturity_threshold = min_timesteps, rule, maturity_threshold
        self.first_score: float | None = None  # before the first iteration
        self.best_score = -math.inf

    def budget(self, base: int, steps: int) -> int:
        """Return the budget after `steps` folds, or mature folds: the formula above."""
        if steps == 0:
            return base
        return max(self.min_timesteps, math.floor(base * min(0.8, 0.95**steps)))

    def setup(self, trainer: pl.Trainer, pl_module: Trainee, stage: str) -> None:
        if stage != "fit":
            return
        base = pl_module.recipe.total_timesteps
        if self.min_timesteps > base:
            raise ValueError(
                f"AdaptiveTimesteps.min_timesteps {self.min_timesteps:,} is more than model.total_timesteps {base:,}, "
                "the budget it is to cut. Lower the one or raise the other"
            )
        steps = pl_module.fold[0] if self.rule == "fold" else self._mature_folds(pl_module)
        budget = pl_module.total_timesteps = self.budget(base, steps)
        if trainer.is_global_zero:
            print(f"Adaptive timesteps: {budget:,} (saved {base - budget:,})", flush=True)
            others = {getattr(callback, "optimisation", "") for callback in trainer.callbacks}  # type: ignore[attr-defined]
            if budget < base and "warm_start" not in others:
                warnings.warn(
                    "AdaptiveTimesteps without WarmStart: every fold starts from new weights and learns less in a "
                    "smaller budget, often nothing (docs/optimisations.md). Add callbacks.WarmStart, or leave this out",
                    stacklevel=2,
                )
        did = f"budget {budget:,} of {base:,}"
        pl_module.notes.optimised(self.optimisation, did, rule=self.rule, budget=budget, timesteps_saved=base - budget)

    def _mature_folds(self, pl_module: Trainee) -> int:
        records = [fold.optimisations.get(self.optimisation, {}) for fold in pl_module.earlier_folds]
        gains = [record.get("improvement") for record in records]
        return sum(gain is not None and gain <= self.maturity_threshold for gain in gains)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Trainee, batch: Any, batch_idx: int) -> None:
        # The batch hook, because by then a warm start is complete.
        if self.rule == "maturity" and pl_module.iteration == 0:
            market = next(iter(trainer.val_dataloaders))  # type: ignore[arg-type]
            self.first_score = pl_module.evaluate(market, close_at_end=False).score

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if self.rule != "maturity" or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        score = float(trainer.callback_metrics["validation/score"])
        if score > self.best_score:  # never true of nan
            self.best_score = score

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        record, learner = pl_module.notes.optimisations[self.optimisation], pl_module.learner
        if learner is not None:  # `max_passes` may have cut the whole budget too
            whole = learner.within_passes(pl_module.recipe.total_timesteps)
            record["timesteps_saved"] = whole - learner.total_timesteps
        if self.first_score is not None and math.isfinite(self.best_score - self.first_score):
            record["improvement"] = self.best_score - self.first_score

    def state_dict(self) -> dict[str, Any]:
        return {"first_score": self.first_score, "best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first_score, self.best_score = state_dict["first_score"], state_dict["best_score"]
