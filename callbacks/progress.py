"""Where the training stands: a Rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from datetime import timedelta

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lit_ppo.trainee import Trainee


class RunProgress(pl.Callback):
    """Show timesteps done, steps per second, time left, fold and validation score.

    Reads `pl_module.timesteps`, `total_timesteps`, `fold`, `side_by_side`, `validation` and `show`; writes to the
    terminal only (rank zero): where the run as a whole has a display, into its line. Time left counts the folds still
    to come, at this training's pace. The pace is taken from the end of the first iteration on: that one also compiles
    kernels, and would promise hours for a training of a minute.

    Args:
        every_seconds: distance of two plain lines where there is no terminal.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        if every_seconds <= 0:
            raise ValueError(f"RunProgress needs every_seconds > 0, got {every_seconds}")
        self.every_seconds = every_seconds
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._score = float("nan")
        self._said = 0.0
        self._pace_from: tuple[float, int] | None = None  # clock and timesteps at the end of the first iteration

    def on_train_start(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        self._said = time.monotonic()
        self._pace_from = None
        console = Console()
        if trainer.is_global_zero and console.is_terminal and pl_module.show is None:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True)
            self._task = self._bar.add_task("", total=pl_module.total_timesteps, completed=pl_module.timesteps)
            self._bar.start()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        self._score = pl_module.validation.get("validation/score", self._score)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=pl_module.timesteps, description=self._line(pl_module, now))
        elif pl_module.show is not None:
            pl_module.show(self._line(pl_module, now))
        elif trainer.is_global_zero and now - self._said >= self.every_seconds:
            self._said = now
            print(self._line(pl_module, now), flush=True)

    def _line(self, pl_module: Trainee, now: float) -> str:
        fold, num_folds = pl_module.fold
        total = pl_module.total_timesteps
        where = f"fold {fold} of {num_folds}: " if num_folds > 1 else ""  # `fit` knows of the one that it trains
        score = "" if math.isnan(self._score) else f", validation score {self._score:.4f}"
        done = f"{where}{pl_module.timesteps:,} / {total:,} timesteps"
        if self._pace_from is None:
            self._pace_from = (now, pl_module.timesteps)
            return f"{done}{score}"
        pace = (pl_module.timesteps - self._pace_from[1]) / max(now - self._pace_from[0], 1e-9)
        left = max(total - pl_module.timesteps, 0) + total * (num_folds - fold - 1) / pl_module.side_by_side
        return f"{done}, {pace:,.0f} steps/s, {timedelta(seconds=round(left / max(pace, 1e-9)))} left{score}"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
