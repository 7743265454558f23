"""A folder with the files of one training: `lit-ppo fit` and the Fabric script, which keep no run around it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lit_ppo.store.checkpoints import MANIFEST, SELECTED
from lit_ppo.store.files import make_writable

PRESENT = (MANIFEST, SELECTED, "metrics.jsonl", "checkpoint-*.ckpt")  # by these a training is known
FILES = (*PRESENT, "timing.jsonl", "predictions.csv", "events.out.tfevents.*", "diagnosis")


def make_room(directory: Path, overwrite: bool, way_on: str) -> None:
    """Prepare a folder for a new training: never into another one's files, whose curves and checkpoints would mix.

    Args:
        directory: made if absent.
        overwrite: delete the training that is there.
        way_on: how to go on with it, for the message.

    Raises:
        FileExistsError: there is a training and `overwrite` is False.
        OSError: the folder cannot be made or written to.
    """
    make_writable(directory, "training", "folder")
    if not overwrite and any(found for name in PRESENT for found in directory.glob(name)):
        raise FileExistsError(
            f"{directory} holds a training already. Continue it with {way_on}, delete it with --overwrite, or choose "
            "another folder"
        )
    for path in [path for name in FILES for path in directory.glob(name)] if overwrite else ():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
