"""Save the whole training at PPO iteration boundaries, so that a kill costs at most a little time."""

from __future__ import annotations

import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lit_ppo.store.checkpoint_io import AtomicCheckpointIO
from lit_ppo.trainee import Trainee


class TrainingCheckpoint(Checkpoint):
    """Write rolling checkpoints into `directory`; a resume from any of them gives the uninterrupted run.

    Reads the whole state of the trainer after an iteration, and `pl_module.stop_requested`; writes files. The two
    newest checkpoints are kept. Also saves the last iteration, and before a signal ends the run.

    Args:
        every_seconds: least wall time between two saves, by the monotonic clock; None: not by time.
        every_n_iterations: save after so many PPO iterations; None: not by count.
        directory: default is the trainer's `default_root_dir`.

    Raises:
        ValueError: an interval that is not positive.
    """

    def __init__(
        self,
        every_seconds: float | None = 30.0,
        every_n_iterations: int | None = None,
        directory: str | None = None,
    ) -> None:
        for name, value in (("every_seconds", every_seconds), ("every_n_iterations", every_n_iterations)):
            if value is not None and value <= 0:
                raise ValueError(f"TrainingCheckpoint needs {name} > 0 or null, got {value}")
        self.every_seconds, self.every_n_iterations = every_seconds, every_n_iterations
        self.directory = directory
        self._saved_at = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            raise ValueError(
                "TrainingCheckpoint writes files whole or not at all; Lightning's own writer does not. Give the "
                "trainer `plugins: [lit_ppo.store.checkpoint_io.AtomicCheckpointIO]`"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        due = pl_module.stop_requested or trainer.should_stop
        if self.every_n_iterations is not None:
            due = due or pl_module.iteration % self.every_n_iterations == 0
        if self.every_seconds is not None:
            due = due or time.monotonic() - self._saved_at >= self.every_seconds
        # Saving is a meeting of all ranks, whose clocks differ.
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            trainer.save_checkpoint(Path(self.directory or trainer.default_root_dir), weights_only=False)
            self._saved_at = time.monotonic()
