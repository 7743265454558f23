"""Several candidates for each fold: other seeds or other settings, the best by validation kept.

    candidate k of a fold  -> fold_000/candidate_k/: checkpoints, selected.ckpt, candidate.json
    the best by validation -> fold_000/selected.ckpt, and test, once

The test bars of a candidate that was not chosen are never read. Every candidate counts as a trial: the ledger's
`trials`, and the validation returns of all of them (`validation_returns`), are what deflated Sharpe ratio and the
probability of backtest overfitting ask for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lit_ppo.recipe import Recipe
from lit_ppo.scoring.significance import backtest_overfitting
from lit_ppo.store.atomic import atomic_write, refuse_link
from lit_ppo.store.checkpoints import SELECTED, CheckpointStore
from lit_ppo.store.files import json_bytes
from lit_ppo.store.schema import REMEDY, Count, Details, Seconds, mismatch, read_json
from lit_ppo.words import did_you_mean

TRAINED = "candidate.json"
LEAST_BLOCK = 4  # bars in a block of the cross-validation


class TrainedRecord(TypedDict):
    """candidate.json: the fields of `Trained`."""

    number: Count
    overlay: dict[str, Any]
    score: float | None
    timesteps: Count
    seconds: Seconds
    stop_reason: str
    details: Details
    time: list[int]
    net_returns: list[float]


@dataclass(frozen=True)
class Trained:
    """What training one candidate of one fold gave.

    Attributes:
        number: of the candidate, from 0.
        overlay: what of the recipe it changes.
        score: of its chosen weights on validation; may be NaN.
        timesteps: bars it visited.
        seconds: wall time of its training.
        stop_reason: why it ended.
        details: as in the ledger.
        time: [D] open times of the validation decisions, nanoseconds since 1970 UTC.
        net_returns: [D] net return of each.
    """

    number: int
    overlay: dict[str, Any]
    score: float
    timesteps: int
    seconds: float
    stop_reason: str
    details: dict[str, Any]
    time: list[int]
    net_returns: list[float]

    def write(self, directory: Path) -> None:
        """Put it beside the candidate's weights; written last, it says that the candidate is complete."""
        atomic_write(directory / TRAINED, json_bytes(dataclasses.asdict(self)))

    @classmethod
    def read(cls, directory: Path) -> Trained | None:
        """Return what a complete candidate wrote, None if it is not complete.

        Raises:
            ValueError: the file is damaged.
        """
        path = directory / TRAINED
        if not path.is_file():
            return None
        values = read_json(path, TrainedRecord)
        if len(values["time"]) != len(values["net_returns"]):
            raise ValueError(
                f"{path} is damaged: {len(values['time'])} times and {len(values['net_returns'])} net returns. {REMEDY}"
            )
        return cls(**values | {"score": math.nan if values["score"] is None else values["score"]})

    def summary(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        score = self.score if math.isfinite(self.score) else None
        names = ("number", "overlay", "timesteps", "seconds", "stop_reason")
        return {name: getattr(self, name) for name in names} | {"score": score}


def candidate_path(fold_directory: Path, number: int) -> Path:
    """Folder of one candidate of a fold; a symbolic link is refused."""
    return refuse_link(fold_directory / f"candidate_{number}")


def overlays_of(parallel_candidates: int, candidates: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """One overlay of `model.*` keys for each candidate; candidates without one differ by their seed.

    Args:
        parallel_candidates: how many; 1 with `candidates` means as many as there are.
        candidates: their overlays.

    Raises:
        ValueError: fewer than one, another number of overlays, a key that `model.*` does not have, or a value of
            another type.
    """
    overlays = [dict(overlay) for overlay in candidates or []]
    if parallel_candidates < 1:
        raise ValueError(f"parallel_candidates is a number of candidates a fold, >= 1; got {parallel_candidates}")
    if overlays and parallel_candidates not in (1, len(overlays)):
        raise ValueError(
            f"parallel_candidates {parallel_candidates} and {len(overlays)} `candidates` disagree: leave the number "
            "out, or give as many overlays"
        )
    hints = get_type_hints(Recipe)
    known = list(hints)
    for number, overlay in enumerate(overlays):
        for name in overlay.keys() - set(known):
            hint = did_you_mean(repr(name), map(repr, known))
            raise ValueError(f"Candidate {number} sets {name!r}, which is no key of model.*; {hint}")
        for name, value in overlay.items():
            if wrong := mismatch(value, hints[name], f"candidates[{number}].{name}"):
                raise ValueError(f"{wrong}: a value as model.{name} takes")
    return overlays or [{} for _ in range(parallel_candidates)]


def best(trained: Sequence[Trained]) -> Trained:
    """The candidate with the highest validation score; the first of equals, and never one without a score.

    Raises:
        FloatingPointError: none has a score.
    """
    scored = [one for one in trained if math.isfinite(one.score)]
    if not scored:
        raise FloatingPointError(f"None of the {len(trained)} candidates has a finite validation score")
    return max(scored, key=lambda one: (one.score, -one.number))


def keep(candidate: Path, fold_directory: Path) -> dict[str, Any]:
    """Bring what the chosen candidate left (named checkpoints, curves) to where a fold's are looked for.

    Returns:
        Its chosen weights' checkpoint.
    """
    source, target = CheckpointStore(candidate), CheckpointStore(fold_directory)
    for entry in source.entries():
        if entry["kind"] == "named":
            target.save(source.load(entry["file"]), entry["file"])
    for name in ("metrics.jsonl", "timing.jsonl"):
        if (candidate / name).is_file():
            atomic_write(fold_directory / name, refuse_link(candidate / name).read_bytes())
    return target.load(SELECTED)


def validation_returns(run_folder: str | Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Net returns of every candidate on the stitched validation bars.

    A bar that is validation in several folds counts in the first of them.

    Returns:
        time [D], nanoseconds since 1970 UTC, and net returns [D, N]; D is 0 for a run without candidates.
    """
    times: list[NDArray[np.int64]] = []
    returns: list[NDArray[np.float64]] = []
    last = np.iinfo(np.int64).min
    for directory in sorted(Path(run_folder).glob("fold_[0-9]*")):
        numbered = [(path.name.rpartition("_")[2], path) for path in directory.glob("candidate_*")]
        paths = [path for _, path in sorted((int(number), path) for number, path in numbered if number.isdecimal())]
        found = [Trained.read(path) for path in paths]
        whole = [one for one in found if one is not None]
        if not whole or len(whole) < len(found):
            continue  # the fold is not complete
        if other := next((path for path, one in zip(paths, whole, strict=True) if one.time != whole[0].time), None):
            raise ValueError(f"{other / TRAINED} has other validation bars than the candidates beside it. {REMEDY}")
        time = np.array(whole[0].time, dtype=np.int64)
        new = time > last
        times.append(time[new])
        returns.append(np.array([one.net_returns for one in whole]).T[new])
        last = max(last, int(time[-1]))
    if not times:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    return np.concatenate(times), np.concatenate(returns)


def overfitting_probability(run_folder: str | Path, blocks: int = 16) -> tuple[float | None, str]:
    """Probability that the best candidate on validation is below the median elsewhere.

    Returns:
        The probability, or None, and then why there is none.
    """
    _, returns = validation_returns(run_folder)
    if returns.shape[1] < 2:
        return None, "there were no candidates to choose between"
    if len(returns) < LEAST_BLOCK * blocks:
        return None, f"{len(returns)} validation bars are too few: {LEAST_BLOCK * blocks} are needed"
    if (returns == returns[:, :1]).all():
        return None, "the candidates traded alike, so nothing was chosen"
    return backtest_overfitting(returns, blocks).probability, ""
