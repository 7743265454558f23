"""Train one seed on a market with a known optimum, through the Lightning shell, and watch it learn on fresh bars."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lit_ppo import interrupts
from lit_ppo.lab.oracle_score import FreshBars, OracleScore, belief_probe
from lit_ppo.module import LitPPO
from lit_ppo.nets.policy import MarketPolicy

LEVELS = (0.8, 0.9, 0.95)  # of the optimum: how long until each was reached first
CURVE_POINTS = 25  # at most so many looks at fresh bars while training, closer together at the start
PROBE_BARS = 100_000


@dataclass
class CurvePoint:
    """Fraction of the optimum (mean reward in units, where nothing can be earned) during training."""

    timesteps: int
    seconds: float
    fraction: float


@dataclass
class SeedResult:
    """One training.

    Attributes:
        seed: of market and agent.
        score: on all fresh bars, with the weights at the END of training: nothing is selected.
        seconds: of training, without the looks at fresh bars.
        timesteps: bars visited.
        curve: looks at a part of the fresh bars.
        probe_r2: see `belief_probe`; None without a hidden state.
    """

    seed: int
    score: OracleScore
    seconds: float
    timesteps: int
    curve: list[CurvePoint] = field(default_factory=list)
    probe_r2: float | None = None

    def reached(self, level: float) -> CurvePoint | None:
        """First look at which the agent had `level` of the optimum."""
        return next((point for point in self.curve if point.fraction >= level), None)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, for JSON; None for a share of nothing."""
        points = {f"{level:g}": self.reached(level) for level in LEVELS}
        measured = {name: value if math.isfinite(value) else None for name, value in asdict(self.score).items()}
        return {
            "seed": self.seed,
            **measured,
            "seconds": self.seconds,
            "timesteps": self.timesteps,
            "probe_r2": self.probe_r2,
            "reached": {level: point and asdict(point) for level, point in points.items()},
            "curve": [[point.timesteps, round(point.seconds, 3), round(point.fraction, 4)] for point in self.curve],
        }


class OracleCurve(pl.Callback):
    """Look at fresh bars during training, outside the clock.

    Reads `pl_module.timesteps` and its policy; writes nothing of the training's: a curve never chooses weights.

    Args:
        look: fraction of the optimum of a policy, on a part of the fresh bars; None: only keep the time.
        total_timesteps: of the training.
    """

    def __init__(self, look: Callable[[Any], float] | None, total_timesteps: int) -> None:
        self.look = look
        shares = ((i + 1) / CURVE_POINTS for i in range(CURVE_POINTS))
        self.due = [total_timesteps * share**1.5 for share in shares]
        self.points: list[CurvePoint] = []
        self.started = self.excluded = 0.0

    @property
    def seconds(self) -> float:
        """Trained so far."""
        return time.perf_counter() - self.started - self.excluded

    def start(self) -> None:
        """Start the clock, before the trainer does anything."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        interrupts.raise_if_requested()
        if self.look is None or not self.due or pl_module.timesteps < self.due[0]:
            return
        while self.due and pl_module.timesteps >= self.due[0]:
            self.due.pop(0)
        seconds = self.seconds
        began = time.perf_counter()
        fraction = self.look(pl_module.policy)
        self.points.append(CurvePoint(pl_module.timesteps, seconds, fraction))
        for logger in trainer.loggers:
            logger.log_metrics({"oracle/fraction": fraction, "oracle/seconds_s": seconds}, step=pl_module.timesteps)
        self.excluded += time.perf_counter() - began


def train_seed(
    seed: int,
    datamodule: pl.LightningDataModule,
    fresh: FreshBars,
    recipe: dict[str, Any],
    *,
    curve_decisions: int = 50_000,
    directory: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> SeedResult:
    """Train on fold 0 of `datamodule` and score the last weights on `fresh`.

    Args:
        seed: of the agent.
        datamodule: a set-up WalkForwardDataModule; its validation bars are not used.
        fresh: bars of another seed of the same market.
        recipe: `model.*` settings.
        curve_decisions: fresh bars of one look during training; 0 draws no curve.
        directory: where TensorBoard's events go; None writes none.
        callbacks: further ones.
    """
    module = LitPPO(seed=seed, **recipe)
    module.threads = torch.get_num_threads()  # the command has set them
    seen = module.recipe.account_features
    part = fresh.head(min(curve_decisions, len(fresh.best))) if curve_decisions else None
    worth = fresh.optimum.value > 0

    def look(policy: Any) -> float:
        assert part is not None
        score = part.score(policy, seen)
        return score.fraction if worth else score.reward

    curve = OracleCurve(look if part is not None else None, module.recipe.total_timesteps)
    logger = False if directory is None else TensorBoardLogger(str(directory), name="", version="")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,  # model.total_timesteps ends the training
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=logger,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        callbacks=[curve, *callbacks],
    )
    curve.start()
    trainer.fit(module, datamodule=datamodule)
    seconds = curve.seconds
    score = fresh.score(module.policy, seen)  # type: ignore[arg-type]
    probe = None
    if fresh.hidden_state is not None and isinstance(module.policy, MarketPolicy):
        probe = belief_probe(module.policy, fresh.head(min(PROBE_BARS, len(fresh.best))))
    return SeedResult(seed, score, seconds, module.timesteps, curve.points, probe)
