"""The checkpoint to load: of a run's folder, of one fold's folder, or a checkpoint file itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_ppo.market.costs import DEFAULT_HURDLE, Costs
from lit_ppo.recipe import Policy, Recipe, load_policy
from lit_ppo.store.atomic import sha256_file
from lit_ppo.store.checkpoints import SELECTED, CheckpointStore, local_path
from lit_ppo.store.files import shown_path
from lit_ppo.store.prior_weights import RELEASED, PriorWeights
from lit_ppo.store.results import NOT_TRAINED, read_folds
from lit_ppo.store.schema import read_configuration

PRIOR = "prior"  # the released prior trader, which needs no run; a folder of that name is ./prior
PRIOR_WARMUP_BARS = 200  # that warm its LSTM up, as in the recipe zero_shot
_NO_BAR = "1677-09-22"  # no bar is so old: the prior trader saw none
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
        asked: what was asked of the prior trader (hurdle, spread), which decides about its numbers as the weights do.
    """

    path: Path
    folder: Path
    sha256: str
    content: dict[str, Any]
    settings: dict[str, Any]
    asked: dict[str, Any] = field(default_factory=dict)

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


def choose_policy(
    asked: str, fold: int | None = None, hurdle: float | None = None, spread: float | str | None = None
) -> ChosenCheckpoint:
    """`choose_checkpoint`, or the prior trader where that is asked; None is the default.

    Raises:
        ValueError: also an option that does not belong to what is asked.
    """
    prior = {name: x for name, x in (("hurdle", hurdle), ("spread", spread)) if x is not None}
    if asked == PRIOR:
        if fold is not None:
            raise ValueError(f"--fold {fold} belongs to a run's folder; the prior trader has no folds. Leave it out")
        return prior_trader(**prior)  # type: ignore[arg-type]
    if prior:
        name = next(iter(prior))
        raise ValueError(f"--{name} belongs to --ckpt prior: a run has the {name} of its training. Leave it out")
    return choose_checkpoint(asked, fold)


def prior_trader(hurdle: float = DEFAULT_HURDLE, spread: float | str = "file") -> ChosenCheckpoint:
    """The released prior trader as a checkpoint: for any bars, nothing trained, nothing scaled.

    Args:
        hurdle: volatilities that a position must earn per bar on average to be held, above 0.
        spread: as `data.costs.spread`.

    Raises:
        ValueError: a hurdle that is no number above 0.
        FileNotFoundError: this installation has no weights.
    """
    if not (math.isfinite(hurdle) and hurdle > 0):
        raise ValueError(
            f"--hurdle is volatilities per bar held, a number above 0 ({DEFAULT_HURDLE} is usual), got {hurdle}"
        )
    weights = PriorWeights.read(PRIOR)
    costs = asdict(Costs(spread=spread))
    entries: list[dict[str, Any]] = [{"name": name} for name in weights.features]
    entries[weights.features.index("core_hurdle")]["value"] = hurdle
    nothing, one = [0.0] * len(entries), [1.0] * len(entries)
    content = {
        "hyper_parameters": {**Recipe(start=PRIOR).to_dict(), "seed": 0},
        "policy": {"feature_names": list(weights.features)},
        "state_dict": weights.tensors,
        DATA_STATE: {
            "features": entries,
            "scaler": {"mean": nothing, "std": one},
            "reward_scale": 1.0,
            "seen_until": _NO_BAR,
            "fingerprint": {
                "bar_seconds": 0,
                "point": 0.0,
                "warmup_bars": PRIOR_WARMUP_BARS,
                "costs": costs,
                "fill": "next_open",
                "last_time": _NO_BAR,
            },
        },
    }
    return ChosenCheckpoint(RELEASED, Path(), sha256_file(RELEASED), content, {}, {"hurdle": hurdle, "spread": spread})


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
        done = [record.index for record in read_folds(asked) if record.status == "done"]
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
