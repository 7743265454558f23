"""The border of a run's folder: what its JSON and YAML must hold, checked once, where a file is read.

A folder may be damaged, or a stranger's. Behind this border everybody has plain values of the declared types; a file
that holds anything else is a `ValueError` that names file, key, what was wanted and what was found. Keys that are not
declared are left alone: releases add some. The shapes that are read everywhere are declared here, others where they
are written.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, Union, get_args, get_origin, get_type_hints

from lit_ppo.store.files import check_levels, read_yaml

REMEDY = "Restore it, or start the run again with --overwrite"
LARGEST = 1e100  # of a number: sums and products of those that a run writes stay far below


class Within(NamedTuple):
    """Least and largest value of a number, both allowed."""

    low: float
    high: float


Count = Annotated[int, Within(0, 10**15)]
Seconds = Annotated[float, Within(0, 1e12)]
Positive = Annotated[float, Within(1e-12, 1e12)]


class DataRecord(TypedDict, total=False):
    """`data` of run.json: the fingerprint of the bars."""

    path: str | None
    sha256: str | None
    bars_sha256: str | None
    bars_per_year: Positive


class OracleRecord(TypedDict):
    """`oracle` of run.json: what is known about a synthetic market."""

    kind: str
    optimum_per_bar: float
    scale: Positive


class MoneyRecord(TypedDict, total=False):
    """`money` of run.json: the account in lots."""

    initial_balance: Positive
    balance_per_lot: Positive
    min_lots: Positive
    max_lots: Positive
    lot_step: Positive
    contract_size: Positive


class ChoiceRecord(TypedDict):
    """`candidates` of run.json: what choosing among them is worth."""

    number: Count
    backtest_overfitting_probability: Annotated[float, Within(0, 1)] | None


class StartRecord(TypedDict, total=False):
    """`start` of run.json: the weights that every fold begins with."""

    weights: str
    sha256: str
    card: dict[str, Any]


class SearchRecord(TypedDict):
    """`search` of run.json: which search has chosen the settings, on bars before the test.

    trials: settings that it tried. folds: on which it judged them. validation: [start, stop) rows of the bar file.
    """

    trials: Count
    objective: str
    folds: Count
    validation: tuple[Count, Count]


class ResumeRecord(TypedDict, total=False):
    """One entry of `changed_at_resume` of run.json."""

    refused: list[str]
    inexact: list[str]


class RunRecord(TypedDict, total=False):
    """run.json."""

    schema: Literal[1]
    status: str
    seed: Count
    seeds: list[Count]
    command: list[str]
    data: DataRecord
    commit: str | None
    dirty: bool | None
    source_sha256: str | None
    versions: dict[str, str | None]
    machine: dict[str, str | int | float | None]
    started: str
    oracle: OracleRecord
    money: MoneyRecord | None
    candidates: ChoiceRecord
    start: StartRecord
    search: SearchRecord
    changed_at_resume: list[ResumeRecord]


class _Screen(TypedDict):
    passed: list[str]
    score: dict[str, float]
    threshold: dict[str, float]


class Screen(_Screen, total=False):
    """`details.screen` of a fold: what the feature screen saw."""

    modulates: list[str]
    years: Seconds


class Mirror(TypedDict):
    """`details.mirror` of a fold: what its train bars decided about the mirror."""

    mirrored: bool
    score: dict[str, float]
    threshold: dict[str, float]


class OptimisationRecord(TypedDict, total=False):
    """An entry of `details.optimisations`: what its callback noted, see `lit_ppo.trainee.TrainingNotes`."""

    did: str
    failed: str
    counts: dict[str, Count]
    seconds_saved: float
    cost_seconds: float


class Details(TypedDict, total=False):
    """`details` of a fold."""

    times: dict[str, tuple[str, str]]
    screen: Screen | None
    mirror: Mirror
    seen: tuple[Count, Count]
    planned_timesteps: Count
    visited_timesteps: Count
    optimisations: dict[str, OptimisationRecord]
    candidates: list[dict[str, Any]]
    money: dict[str, float | None]


class _Fold(TypedDict):
    index: Annotated[int, Within(0, 10**6)]


class Fold(_Fold, total=False):
    """One fold of folds.json, see `results.FoldRecord`."""

    status: Literal["running", "done", "failed"]
    bars: dict[str, tuple[Count, Count]]
    timesteps: Count
    seconds: dict[str, Seconds]
    scores: dict[str, float | None]
    stop_reason: str
    trials: Count
    details: Details


class LedgerOfFolds(TypedDict):
    """folds.json; its `schema` may be missing in what another program made."""

    folds: list[Fold]


class Configuration(TypedDict, total=False):
    """config.yaml; the parser knows the rest when the run is repeated."""

    model: dict[str, Any] | None
    data: dict[str, Any] | None
    trainer: dict[str, Any] | None


def parse_json(data: bytes, kind: Any, source: str, remedy: str = REMEDY) -> Any:
    """Parse strict JSON of the declared type.

    Args:
        data: UTF-8.
        kind: see `check`.
        source: what it was read from, for the message.
        remedy: what to do about it.

    Raises:
        ValueError: it is cut, no UTF-8, no strict JSON (NaN), or of another type.
    """
    try:
        content = json.loads(data.decode(), parse_constant=_refused, parse_float=_finite, parse_int=_whole)
        if b"\\u" in data:
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deep to be read. {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}). {remedy}") from error
    check_levels(content, source)
    check(content, kind, source, remedy)
    return content


def read_json(path: Path, kind: Any, remedy: str = REMEDY) -> Any:
    """Read a JSON file of the declared type.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is cut, no UTF-8, no strict JSON (NaN), or of another type.
    """
    return parse_json(path.read_bytes(), kind, str(path), remedy)


def read_json_lines(path: Path, kind: Any) -> list[Any]:
    """Read a file of one JSON value a line; a last line without its end, cut by a kill, is left out."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    lines = enumerate(whole.split(b"\n") if whole else [], start=1)
    return [parse_json(line, kind, f"{path}, line {number},", "Remove the file") for number, line in lines]


def read_configuration(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a run.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no YAML, no configuration, or grows without bound where its aliases are written out.
    """
    found = read_yaml(path.read_bytes(), str(path)) or {}
    check(found, Configuration, str(path), REMEDY)
    return found


def check(value: Any, kind: Any, source: str, remedy: str) -> None:
    """Check that a value is of a declared type.

    Args:
        value: plain values, as JSON or YAML gives them.
        kind: a type made of bool, int, float, str, None, Any, Literal, list, Sequence, tuple, dict, unions, `Annotated`
            numbers with `Within`, TypedDicts and dataclasses (their required fields must be there).
        source: what it was read from, for the message.
        remedy: what to do about it.

    Raises:
        ValueError: it is not; says where, what was wanted and what was found.
    """
    if wrong := mismatch(value, kind):
        raise ValueError(f"{source} is damaged: {wrong}. {remedy}")


def mismatch(value: Any, kind: Any, where: str = "") -> str:
    """What is wrong with a value of a declared type, with its key, in words; "" if nothing is."""
    origin, options = get_origin(kind), get_args(kind)
    if kind is Any:
        return ""
    if origin is Annotated:
        wrong = mismatch(value, options[0], where)
        return wrong or ("" if options[1].low <= value <= options[1].high else _wanted(value, kind, where))
    if origin in (Union, UnionType):
        wrong_ones = [mismatch(value, option, where) for option in options]
        if "" in wrong_ones:
            return ""
        others = [option for option in options if option is not NoneType]
        return mismatch(value, others[0], where) if len(others) == 1 else _wanted(value, kind, where)
    if origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in options)
    elif fields := _fields(kind):
        if isinstance(value, Mapping):
            missing = [name for name, (_, required) in fields.items() if required and name not in value]
            if missing:
                return f"{_joined(where, missing[0])} is missing"
            return _first(
                (value[name], hint, _joined(where, name)) for name, (hint, _) in fields.items() if name in value
            )
        fits = False
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return _first((item, options[1], _joined(where, key)) for key, item in value.items())
        fits = False
    elif origin in (list, Sequence):
        if isinstance(value, (list, tuple)):
            return _first((item, options[0], f"{where}[{i}]") for i, item in enumerate(value))
        fits = False
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(options):
            return _first((*pair, f"{where}[{i}]") for i, pair in enumerate(zip(value, options, strict=True)))
        fits = False
    elif kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, NoneType if kind is None else kind)
    return "" if fits else _wanted(value, kind, where)


def _first(parts: Any) -> str:
    return next((wrong for part in parts if (wrong := mismatch(*part))), "")


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Names of a TypedDict or a dataclass, each with its type and whether it must be there; empty for other types."""
    if not isinstance(kind, type):
        return {}
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        required = {x.name for x in dataclasses.fields(kind) if x.default is missing and x.default_factory is missing}
    elif hasattr(kind, "__required_keys__"):
        required = set(kind.__required_keys__)
    else:
        return {}
    return {name: (hint, name in required) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wanted(value: Any, kind: Any, where: str) -> str:
    text = repr(value)[:60]
    return f"{where or 'it'} must be {_words(kind)}, found {text}"


def _words(kind: Any) -> str:
    origin, options = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_words(options[0])} from {options[1].low:g} to {options[1].high:g}"
    if origin in (Union, UnionType):
        return " or ".join(_words(option) for option in options)
    if origin is Literal:
        return " or ".join(repr(option) for option in options)
    if origin is tuple:
        return f"a list of {len(options)}"
    if origin in (list, Sequence):
        return "a list"
    if origin in (dict, Mapping) or _fields(kind):
        return "an object (keys and values)"
    plain = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", NoneType: "null"}
    return plain[kind]


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > 19:  # digits of 64 bits
        raise ValueError(f"{text[:40]} is too large")
    return int(text)
