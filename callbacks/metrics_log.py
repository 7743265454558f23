"""One line of JSON per PPO iteration: what a report, or a plain `jq`, reads."""

from __future__ import annotations

import json
import math
import os
from io import FileIO
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_ppo.store.atomic import open_own, room_for, write_all
from lit_ppo.trainee import Trainee


def _reopened(path: Path, lines: int) -> FileIO:
    """Open a file for appending after its first `lines` lines; what a killed run wrote after them goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Open as long as the training, and unbuffered: a full disk shows when a line is written, not at the end.
    file = open_own(path)
    kept = file.read().split(b"\n")[:-1][:lines]
    if len(kept) < lines:
        file.close()
        raise ValueError(
            f"{path} has {len(kept)} whole lines, but the checkpoint was written when it had {lines}: it was changed "
            "since. Restore it, or start a new run"
        )
    file.seek(sum(len(line) + 1 for line in kept))
    file.truncate()
    return file


def _json_line(values: dict[str, float]) -> bytes:
    plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return json.dumps(plain).encode() + b"\n"


class MetricsLog(pl.Callback):
    """Append what each iteration measured to `metrics.jsonl`, and how long it took to `timing.jsonl`.

    Reads `pl_module.metrics` and `pl_module.validation`; writes the two files in `directory`. Durations are apart
    because they differ from run to run: `metrics.jsonl` of a resumed run equals the uninterrupted one's, byte for byte.
    The checkpoint keeps the number of lines, and a resume cuts both files back to it.

    Args:
        directory: default is the trainer's `default_root_dir`.
    """

    FILES = ("metrics.jsonl", "timing.jsonl")

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory
        self.lines = 0
        self._files: list[FileIO] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            directory = Path(self.directory or trainer.default_root_dir)
            self._files = [_reopened(directory / name, self.lines) for name in self.FILES]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        self.lines += 1
        if not self._files:
            return
        counters = {"timesteps": pl_module.timesteps, "iteration": pl_module.iteration}
        measured = {**pl_module.metrics, **pl_module.validation}
        times = {name: value for name, value in measured.items() if name.startswith("time/")}
        lines = (counters | {k: v for k, v in measured.items() if k not in times}, counters | times)
        for file, line in zip(self._files, map(_json_line, lines), strict=True):
            with room_for(Path(file.name), len(line)):
                write_all(file.fileno(), line)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for file in self._files:
            file.close()
        self._files = []

    def state_dict(self) -> dict[str, Any]:
        for file in self._files:  # the lines that a checkpoint counts are on the disk before it is
            os.fsync(file.fileno())
        return {"lines": self.lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lines = state_dict["lines"]
