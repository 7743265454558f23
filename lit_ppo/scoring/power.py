"""What a walk-forward could have found: shares of planted edges in words, and power.json. numpy only.

`lit_ppo.lab.power` measures them; the report only reads the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lit_ppo.store.files import shown_path
from lit_ppo.store.results import Run

FILE_NAME = "power.json"
SCHEMA = 1
HALF = 0.5
NOTHING = 0.05  # less of an edge than this is nothing
BLIND = 0.1  # a kind of whose largest edge less than this is found is not seen
DRAWS = 2000
CONFIDENCE = 0.95
IGNORED = ("bars_per_year", "path", "sha256")  # of `data`: not what the tensors of a fold depend on


class Share(NamedTuple):
    """Share of an edge that was found, with its interval; nan where the informed trader earned nothing."""

    estimate: float
    low: float
    high: float


def share_over_seeds(agent: ArrayLike, informed: ArrayLike, seed: int = 0) -> Share:
    """Sum of the agent's results over that of the informed trader's, with a percentile bootstrap interval.

    Seeds are resampled, and the trainings within each: another seed is another noise, another edge and another agent.

    Args:
        agent, informed: [seeds, folds] net result of each training's test decisions.
        seed: of the bootstrap.
    """
    results = np.array([agent, informed], dtype=np.float64)  # [2, seeds, folds]
    total = results.sum((1, 2))
    if not total[1] > 0:
        return Share(math.nan, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    _, seeds, folds = results.shape
    rows = generator.integers(seeds, size=(DRAWS, seeds, 1))
    columns = generator.integers(folds, size=(DRAWS, seeds, folds))
    sums = results[:, rows, columns].sum((2, 3))  # [2, draws]
    shares = sums[0, sums[1] > 0] / sums[1, sums[1] > 0]
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Share(float(total[0] / total[1]), low, high)


def half_found(sharpes: Sequence[float], shares: Sequence[float]) -> float | None:
    """The smallest edge of which half is found, as is of every larger one; None if none of these is.

    Between two sizes the share is taken to be a straight line, and 0 at the size 0.

    Args:
        sharpes: informed annual Sharpe ratios, rising.
        shares: of the edge that was found at each.
    """
    missed = [k for k, share in enumerate(shares) if not share >= HALF]
    if not shares or (missed and missed[-1] == len(shares) - 1):
        return None
    sizes, found = [0.0, *sharpes], [0.0, *shares]
    low = missed[-1] + 1 if missed else 0
    if not found[low + 1] > found[low]:
        return sizes[low + 1]
    return sizes[low] + (sizes[low + 1] - sizes[low]) * (HALF - found[low]) / (found[low + 1] - found[low])


def nothing_below(sharpes: Sequence[float], shares: Sequence[float]) -> float:
    """The largest size up to which less than `NOTHING` of an edge is found; 0 if some is found of every one."""
    largest = 0.0
    for sharpe, share in zip(sharpes, shares, strict=True):
        if share >= NOTHING:
            break
        largest = sharpe
    return largest


def curves(record: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """By kind: the informed Sharpe ratios that could be planted, rising, and the share found of each."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted((row for row in record["rows"] if row["share"] is not None), key=lambda row: row["sharpe"]):
        sharpes, shares = found.setdefault(row["kind"], ([], []))
        sharpes.append(row["sharpe"])
        shares.append(row["share"])
    return found


def mean_curve(record: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """The share found at each size, mean over the kinds that the recipe sees at all (over all if it sees none)."""
    blind, found = blind_to(record), curves(record)
    by_size: dict[float, list[float]] = {}
    for kind, (sharpes, shares) in found.items():
        if kind not in blind or len(blind) == len(found):
            for sharpe, share in zip(sharpes, shares, strict=True):
                by_size.setdefault(sharpe, []).append(share)
    return sorted(by_size), [float(np.mean(by_size[sharpe])) for sharpe in sorted(by_size)]


def sentence(record: Mapping[str, Any]) -> str:
    """What the recipe could have found, and what its "no edge" therefore means."""
    split = record["data"]["split"]
    windows = f"{'expanding windows from' if split['expand_train'] else 'windows of'} {split['train_size']:,} bars"
    sharpes, shares = mean_curve(record)
    if not sharpes:
        return f"In {windows} with these costs no edge of the sizes asked for can be planted: the power is unknown."
    half, nothing = half_found(sharpes, shares), nothing_below(sharpes, shares)
    blind = blind_to(record)
    seen = [kind for kind in curves(record) if kind not in blind]
    if nothing == sharpes[-1]:
        found = f"finds nothing of an edge up to annual Sharpe {nothing:g}"
    elif half is None:
        found = f"finds less than half of an edge of annual Sharpe {sharpes[-1]:g}"
    else:
        found = f"finds half of an edge of annual Sharpe {half:.1f}"
    if 0 < nothing < sharpes[-1]:
        found += f" and nothing up to {nothing:g}"
    if seen:
        found += f" ({_listed(seen)})"
    limit = f"{sharpes[-1]:g}" if half is None else f"{half:.1f}"
    meaning = f"\u201cno edge\u201d here means \u201cnone above {limit} that it can see\u201d"
    if half is None:
        meaning = f"\u201cno edge\u201d here says nothing about edges up to {limit}"
    text = f"In {windows} with these costs this recipe {found}: {meaning}."
    return f"{text} It does not see {_listed(blind)} at any of these sizes." if blind and seen else text


def _listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + list(words[-1:]))


def blind_to(record: Mapping[str, Any]) -> list[str]:
    """Kinds of whose largest edge next to nothing is found."""
    return [kind for kind, (_, shares) in curves(record).items() if shares[-1] < BLIND]


def remedies(settings: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    """What would raise the power of a recipe, in one sentence.

    Args:
        settings: the merged configuration's `model` section.
        split: of the fingerprint.
    """
    if settings.get("total_timesteps") == 0:  # a window's length matters to a training alone
        tries = ["bars before the first fold, which this trader reads", "a smaller hurdle (core_hurdle)"]
    else:
        tries = ["a longer window (data.train_size)"]
        if not split["expand_train"]:
            tries.append("an expanding one (data.expand_train: true)")
        if settings.get("start", "prior") != "prior":
            tries.append("starting from the prior trader (model.start: prior)")
    tries.append("more instruments")
    return f"What would raise it: {', '.join(tries[:-1])}, {tries[-1]}."


class Power(NamedTuple):
    """What the page of a run says about its power.

    Attributes:
        known: whether a power.json of the same bars and settings was found.
        text: the sentence, or that it is unknown and how to find out.
        remedies: what would raise it; "" where it is unknown.
    """

    known: bool
    text: str
    remedies: str


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a merged configuration that decides what is learnt, besides data and seed."""
    trainer = config.get("trainer") or {}
    names = ("parallel_candidates", "candidates")
    model = {key: value for key, value in (config.get("model") or {}).items() if key != "seed"}
    return {
        "model": model,
        "callbacks": trainer.get("callbacks"),
        "precision": trainer.get("precision"),
        **{name: config.get(name) for name in names},
    }


def read_power(path: str | Path) -> dict[str, Any]:
    """Read a power.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not what `lit-ppo power` writes.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
        {key: record[key] for key in ("data", "settings", "rows", "null")}
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no {path}; `lit-ppo power` writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what this version of lit-ppo power writes ({error!r}). Delete it, or make it again"
        ) from error
    return record


def power_of(run: Run, config: Mapping[str, Any], folder: str = "") -> Power | None:
    """What this run could have found, from a power.json in its folder or beside it; None on a market of known optimum.

    Args:
        run: as read.
        config: its merged configuration.
        folder: how the command names the run's folder; "": as a page that travels may.
    """
    if "oracle" in run.record:
        return None
    data = {key: value for key, value in run.record.get("data", {}).items() if key not in IGNORED}
    settings = settings_of(config)
    why = ""
    for path in (run.path / FILE_NAME, run.path.parent / FILE_NAME):
        if not path.is_file():
            continue
        try:
            record = read_power(path)
        except ValueError:  # a page must not fail for a file that is not the run's own
            why = f" ({FILE_NAME} cannot be read)"
            continue
        then = {key: value for key, value in record["data"].items() if key not in IGNORED}
        others = _different(then, data, "data") + _different(record["settings"], settings, "")
        if not others:
            return Power(True, sentence(record), remedies(settings["model"], record["data"]["split"]))
        why = f" ({FILE_NAME} is of another {', '.join(others[:3])})"
    command = f"lit-ppo power --from {folder or shown_path(run.path)}"
    return Power(False, f"What could not have been found is unknown{why}: run {command}", "")


def _different(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    """Dotted names of entries that are not equal, one level of nesting deep."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        name = f"{prefix}.{key}" if prefix else key
        a, b = then.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _different(a, b, name)
        elif a != b:
            found.append(name)
    return found


def visible_sharpe(threshold: float, years: float) -> float:
    """Annual Sharpe ratio, before costs, of the edge that passes a threshold in one of two windows of so many years.

    What goes with the next return by the correlation c earns a Sharpe ratio of c a bar, c sqrt(bars a year) a year, and
    scores c sqrt(bars): the score is the yearly ratio times sqrt(years). Four of five pass at threshold + 0.84.
    """
    return threshold / math.sqrt(years)
