"""Lightning's way to `lit_ppo.store.checkpoints`; apart from it, so that reading a checkpoint needs no Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lit_ppo.store.checkpoints import CheckpointStore, MapLocation, load_checkpoint, local_path


class AtomicCheckpointIO(CheckpointIO):
    """`path` ending in .ckpt is a named file, anything else a rolling directory.

    Lightning's own writer stages in the system's temp directory, does not fsync, and lets a PermissionError pass.
    """

    def __init__(self, keep: int = 2) -> None:
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None:
            raise TypeError(f"AtomicCheckpointIO writes local files, without storage options; got {storage_options!r}")
        target = local_path(path)
        if target.suffix == ".ckpt":
            CheckpointStore(target.parent, self.keep).save(checkpoint, target.name)
        else:
            CheckpointStore(target, self.keep).save(checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: MapLocation = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        if weights_only is False:
            raise ValueError("Checkpoints are loaded with weights_only=True only: a pickle can run any code")
        return load_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        local_path(path).unlink(missing_ok=True)
