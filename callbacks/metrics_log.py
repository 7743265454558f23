"""One line of JSON per PPO iteration: what a report, or a plain `jq`, reads."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as pl


class _GrowingFile:
    """A file that a resume cuts back to what its checkpoint knew."""

    def __init__(self, path: Path, offset: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = path.stat().st_size if path.exists() else 0
        if found < offset:
            raise ValueError(
                f"{path} has {found} bytes, but the checkpoint was written when it had {offset}: it was changed since. "
                "Restore it, or start a new run"
            )
        self.file: BinaryIO = open(path, "r+b" if path.exists() else "wb")  # noqa: SIM115 - open as long as training
        self.file.truncate(offset)
        self.file.seek(offset)

    def add(self, values: dict[str, float]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps(plain).encode() + b"\n")

    def offset(self) -> int:
        """Bytes that are on the disk now."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()


class MetricsLog(pl.Callback):
    """Append what each iteration measured to `metrics.jsonl`, and how long it took to `timing.jsonl`.

    Reads `pl_module.metrics` and `pl_module.validation`; writes the two files in `directory`. Durations are apart
    because they differ from run to run: `metrics.jsonl` of a resumed run equals the uninterrupted one's, byte for byte.
    The checkpoint keeps both files' lengths, and a resume cuts them back to these.

    Args:
        directory: default is the trainer's `default_root_dir`.
    """

    FILES = ("metrics.jsonl", "timing.jsonl")

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory
        self._offsets = [0, 0]
        self._files: list[_GrowingFile] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            directory = Path(self.directory or trainer.default_root_dir)
            self._files = [
                _GrowingFile(directory / name, offset) for name, offset in zip(self.FILES, self._offsets, strict=True)
            ]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self._files:
            return
        counters = {"timesteps": pl_module.timesteps, "iteration": pl_module.iteration}
        measured = {**pl_module.metrics, **pl_module.validation}
        times = {name: value for name, value in measured.items() if name.startswith("time/")}
        self._files[0].add(counters | {name: value for name, value in measured.items() if name not in times})
        self._files[1].add(counters | times)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for growing in self._files:
            growing.file.close()
        self._files = []

    def state_dict(self) -> dict[str, Any]:
        if self._files:
            self._offsets = [growing.offset() for growing in self._files]
        return {"offsets": list(self._offsets)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._offsets = list(state_dict["offsets"])
