"""Which trained policy a command means: a run folder, one fold's folder or one checkpoint file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_ppo.recipe import Policy, Recipe, load_policy
from lit_ppo.store.atomic import sha256_file
from lit_ppo.store.checkpoints import SELECTED, CheckpointStore, local_path
from lit_ppo.store.files import shown_path
from lit_ppo.store.results import NOT_TRAINED, load_run
from lit_ppo.store.schema import read_configuration

DATA_STATE = "WalkForwardDataModule"  # key under which Lightning keeps the datamodule's state
REMEDY = "Give a run's folder (results/<seed>), a fold's folder in it, or a checkpoint file"


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint, and what is known about it.

    Attributes:
        path: the file.
        folder: its run's folder, or the checkpoint's own where it belongs to no run.
        sha256: of the file.
        content: the checkpoint.
        settings: `data.*` of the run's configuration; empty where there is none.
    """

    path: Path
    folder: Path
    sha256: str
    content: dict[str, Any]
    settings: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        """What it keeps of its data: fingerprint, features, scaler."""
        return self.content[DATA_STATE]

    @property
    def fold(self) -> int:
        return self.data["fold"]

    @property
    def not_trained(self) -> str:
        """What to warn of weights that were not trained, because the policy sees nothing; "" if they were."""
        learner = self.content.get("learner") or {}
        if learner.get("reason") != NOT_TRAINED:
            return ""
        return (
            f"fold {self.fold} was {NOT_TRAINED}. Its policy sees nothing and stays flat: the run's report says what "
            "to try"
        )

    def load_policy(self) -> tuple[Policy, Recipe]:
        """Rebuild the policy, with the settings it was trained with."""
        policy, recipe = load_policy(self.content)
        return policy.eval().requires_grad_(False), recipe


def choose_checkpoint(asked: str, fold: int | None = None) -> ChosenCheckpoint:
    """Find and load the weights that `asked` means: of a run, the chosen weights of its newest finished fold.

    Args:
        asked: run folder, fold folder or checkpoint file.
        fold: of a run folder, a finished fold.

    Raises:
        FileNotFoundError: nothing there, or the fold is not finished.
        ValueError: the checkpoint has no bars' scaler: it is of a gymnasium environment or of the Fabric shell.
        CheckpointError: the file is damaged.
    """
    path = _file(local_path(asked), fold)
    content = CheckpointStore(path.parent).load(path.name)
    if missing := [key for key in ("hyper_parameters", "policy", "state_dict", DATA_STATE) if key not in content]:
        raise ValueError(
            f"{shown_path(path)} holds no {', '.join(missing)}, so it says not how bars become inputs: it is of a "
            f"gymnasium environment, of the Fabric script, or none of ours. {REMEDY} of lit-ppo walk-forward or fit"
        )
    config = next(
        (folder for folder in path.resolve().parents[:3] if all((folder / x).is_file() for x in _RUN)), path.parent
    )
    settings = _data_settings(config / "config.yaml")
    return ChosenCheckpoint(path, config, sha256_file(path), content, settings)


_RUN = ("run.json", "config.yaml")


def _data_settings(config: Path) -> dict[str, Any]:
    """`data.*` of a run's configuration; empty where the checkpoint belongs to no run."""
    if not config.is_file():
        return {}
    found = read_configuration(config).get("data")
    if found is None:
        raise ValueError(
            f"{shown_path(config)} is no configuration of a run: it has no `data`. Restore it, or copy the checkpoint "
            "to a folder of its own and give that"
        )
    return found


def _file(asked: Path, fold: int | None) -> Path:
    """The checkpoint file that `asked` means."""
    if not asked.exists():
        raise FileNotFoundError(f"--ckpt {shown_path(asked)}: there is nothing of that name. {REMEDY}")
    if asked.is_dir() and (asked / "run.json").is_file():
        done = [record.index for record in load_run(asked).folds if record.status == "done"]
        if not done or (fold is not None and fold not in done):
            asked_for = "a finished fold" if fold is None else f"fold {fold}"
            there = f"folds {', '.join(map(str, done))} are finished" if done else "no fold is finished"
            raise FileNotFoundError(
                f"--ckpt {shown_path(asked)}: asked for {asked_for}, but there {there}. Name one of them with --fold, "
                "or bring the run on with lit-ppo walk-forward --resume"
            )
        asked = asked / f"fold_{max(done) if fold is None else fold:03d}"
    elif fold is not None:
        raise ValueError(f"--fold {fold} belongs to a run's folder (results/<seed>), got --ckpt {shown_path(asked)}")
    if asked.is_dir():
        if not (asked / SELECTED).is_file():
            raise FileNotFoundError(f"--ckpt {shown_path(asked)}: there is no run.json and no {SELECTED}. {REMEDY}")
        return asked / SELECTED
    return asked
