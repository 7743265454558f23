"""Features declared as data: a list of what to compute, read from YAML, turned into a float32 matrix [N, F].

    - {name: log_return, bars: 1}           an indicator of `datamodules.features.indicators` and its parameters
    - {name: core}                          all features of the set configs/features/core.yaml
    - {column: sentiment, parity: -1}       a further column of the bar file
    - {class_path: my_features.Skew, window: 50}   a user's class or function, from a module that was allowed by name

Every feature is causal: the value of bar t is a function of bars <= t. numpy, pandas and TA-Lib; no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import talib

from datamodules.features import core, indicators
from datamodules.features.indicators import REGISTRY, BarArrays
from lit_ppo.store.files import read_yaml
from lit_ppo.words import did_you_mean

FEATURE_SETS = Path(__file__).resolve().parents[2] / "configs" / "features"
_VOLUME_FEATURES = ("vwap_distance", "volume_change")
_FROM_BARS = -1  # warm-up of a function that does not say it, until `settled`


@runtime_checkable
class UserFeature(Protocol):
    """What a feature class of the user must offer; its constructor takes the parameters of the YAML entry.

    Attributes:
        warmup: bars before the first value that no longer depends on where the file starts.
        parity: -1, +1 or 0, see `MarketTensors.feature_parity`.
    """

    warmup: int
    parity: int

    def __call__(self, frame: pd.DataFrame) -> np.ndarray:
        """Bars (time, open, high, low, close, volume, ...) to values [N]; value t from rows <= t only."""


@dataclass(frozen=True)
class FeatureSpec:
    """One column of the feature matrix.

    Attributes:
        label: unique name, `log_return_5`: the name and the parameters that differ from the defaults.
        entry: the YAML entry, for the fingerprint.
        warmup: bars before the first value that no longer depends on where the file starts; -1: see `settled`.
        parity: -1 odd, +1 even, 0 unknown under a mirror of the price.
        source: SHA-256 of a user's module; empty for our own (`code_version` covers those).
        compute: BarArrays -> values [N].
        scale_free: not to be scaled with the statistics of train.
        running: its state runs from the first bar of the file, so that another start gives other values; it also sees
            what trading costs.
    """

    label: str
    entry: dict[str, Any]
    warmup: int
    parity: int
    source: str
    compute: Callable[[BarArrays], np.ndarray]
    scale_free: bool = False
    running: bool = False


def load_features(
    features: str | Path | Sequence[Mapping[str, Any]], allow_modules: Sequence[str] = ()
) -> list[FeatureSpec]:
    """Turn "default", "full", a YAML file or a list of entries into feature specs.

    Args:
        features: name of a file in configs/features, path of a YAML file, or the list itself, where {name: core} stands
            for all entries of configs/features/core.yaml.
        allow_modules: modules (and their submodules) that `class_path` entries may import. What is shipped is named
            by `name`, so a `class_path` names nothing of this project unless its module is allowed too.

    Raises:
        FileNotFoundError: no such set or file.
        ValueError: unknown name (with the nearest known one), parameter or column, module that is not allowed, or two
            entries for the same column.
    """
    entries = _read_entries(features) if isinstance(features, str | Path) else features
    if not isinstance(entries, Sequence) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"data.features must be a list of entries like {{name: rsi, period: 14}}, got {entries!r}")
    specs = [_spec(dict(entry), allow_modules) for entry in _expanded(entries)]
    labels = [spec.label for spec in specs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"data.features names {', '.join(twice)} more than once")
    return specs


def compute_features(
    frame: pd.DataFrame,
    specs: Sequence[FeatureSpec],
    bar_seconds: float,
    finite: bool = True,
    cost: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the feature matrix of a bar file.

    Args:
        frame: bars in time order: time (datetime64 UTC), open, high, low, close, volume, further columns.
        specs: F features.
        bar_seconds: length of one bar.
        finite: refuse values that are not; False for the look-ahead audit, whose bars have holes on purpose.
        cost: [N] `market.costs.known_cost` of the bars; features that see it need it (`sees_costs`).

    Returns:
        [N, F] float32, not scaled. Within a feature's own warm-up the values are NaN.

    Raises:
        ValueError: a feature has a value that is not finite after its warm-up, or a column is missing.
    """
    data = BarArrays(frame, bar_seconds, cost)
    silent = [spec.label for spec in specs if spec.entry.get("name") in _VOLUME_FEATURES]
    if silent and len(frame) and not data.volume.any():
        warnings.warn(f"The bars have no volume, so {', '.join(silent)} carry no information of it", stacklevel=2)
    matrix = np.full((len(frame), len(specs)), np.nan, dtype=np.float32)
    for column, spec in enumerate(specs):
        assert spec.warmup != _FROM_BARS, f"{spec.label} is not settled"
        if len(frame) <= spec.warmup:
            continue
        values = _values(spec, data)
        bad = np.flatnonzero(~np.isfinite(values[spec.warmup :])) + spec.warmup
        if bad.size and finite:
            raise ValueError(
                f"Feature {spec.label} has {bad.size} values that are not finite after its {spec.warmup} warm-up bars, "
                f"the first at bar {bad[0]} ({frame['time'].iloc[bad[0]]}). Correct the file, or leave the feature out."
            )
        matrix[spec.warmup :, column] = values[spec.warmup :]
    return matrix


def _values(spec: FeatureSpec, data: BarArrays) -> np.ndarray:
    values = np.asarray(spec.compute(data), dtype=np.float64)
    if values.shape != (len(data.frame),):
        raise ValueError(f"Feature {spec.label} must give one value per bar, {len(data.frame)}, got {values.shape}")
    return values


def settled(specs: Sequence[FeatureSpec], frame: pd.DataFrame, bar_seconds: float) -> list[FeatureSpec]:
    """The specs with the warm-up of each function that does not say its own: its bars without a value at the start.

    Raises:
        ValueError: a function has no finite value, or gives another number of them than there are bars.
    """
    found, data = [], BarArrays(frame, bar_seconds, None)
    for spec in specs:
        if spec.warmup == _FROM_BARS:
            finite = np.isfinite(_values(spec, data))
            if not finite.any():
                raise ValueError(f"Feature {spec.label} has no finite value on these {len(frame)} bars")
            warmup = int(finite.argmax())
            spec = replace(spec, warmup=warmup, entry={**spec.entry, "warmup": warmup})
        found.append(spec)
    return found


def sees_costs(specs: Sequence[FeatureSpec]) -> bool:
    """Whether a feature depends on what trading costs."""
    return any(spec.running for spec in specs)


def warmup_bars(specs: Sequence[FeatureSpec]) -> int:
    """Bars of the file before the first one that has every feature."""
    return max(spec.warmup for spec in specs)


def features_key(specs: Sequence[FeatureSpec]) -> str:
    """SHA-256 of what is computed and of the code that computes it: changes whenever a value might."""
    text = json.dumps(
        {
            "entries": [spec.entry for spec in specs],
            "sources": [spec.source for spec in specs],
            "code": code_version(),
            "libraries": {"TA-Lib": talib.__version__, "numpy": np.__version__, "pandas": pd.__version__},
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def code_version() -> str:
    """SHA-256 of the source of this module, of the indicators and of the core features."""
    return hashlib.sha256(
        b"".join(Path(file).read_bytes() for file in (__file__, indicators.__file__, core.__file__))
    ).hexdigest()


def _sets() -> list[str]:
    return sorted(file.stem for file in FEATURE_SETS.glob("*.yaml"))


def _expanded(entries: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The entries, with those of a set in the place of its name."""
    sets = _sets()
    for entry in entries:
        if list(entry) == ["name"] and entry["name"] in sets:
            yield from _read_entries(entry["name"])
        else:
            yield entry


def _read_entries(name: str | Path) -> Any:
    path = FEATURE_SETS / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml"):
        path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"data.features is {str(name)!r}: no set of that name ({', '.join(_sets())}) and no YAML file at {path}"
        )
    return read_yaml(path.read_bytes(), f"data.features: {path}")


def _spec(entry: dict[str, Any], allow_modules: Sequence[str]) -> FeatureSpec:
    kinds = [kind for kind in ("name", "column", "class_path") if kind in entry]
    if len(kinds) != 1 or not isinstance(entry[kinds[0]], str):
        raise ValueError(f"A feature needs exactly one of name, column and class_path (a text), got {entry}")
    make = {"name": _indicator_spec, "column": _column_spec}.get(kinds[0])
    parameters = {key: value for key, value in entry.items() if key != kinds[0]}
    nested = parameters.pop("parameters", None) or {}
    if not isinstance(nested, Mapping):
        raise ValueError(f"The parameters of feature {entry[kinds[0]]} must be a mapping, got {nested!r}")
    parameters |= nested
    if make is None:
        return _user_spec(entry[kinds[0]], parameters, allow_modules)
    return make(entry[kinds[0]], parameters)


def _indicator_spec(name: str, parameters: dict[str, Any]) -> FeatureSpec:
    if name not in REGISTRY:
        hint = did_you_mean(name, [*sorted(REGISTRY), *_sets()])
        raise ValueError(f"data.features: there is no feature {name!r}; {hint}")
    entry = REGISTRY[name]
    known = {key: value.default for key, value in list(inspect.signature(entry.function).parameters.items())[1:]}
    for key, value in parameters.items():
        if key not in known:
            raise ValueError(
                f"data.features: {name} has no parameter {key!r}; it has {', '.join(known) if known else 'none'}"
            )
        _check_parameter(name, key, value, known[key])
    needed = inspect.signature(entry.warmup).parameters
    warmup = entry.warmup(**{key: value for key, value in parameters.items() if key in needed})
    chosen = {**known, **parameters}
    changed = [str(value) for key, value in chosen.items() if value != known[key] or isinstance(value, str)]
    return FeatureSpec(
        label="_".join([name, *changed]),
        entry={"name": name, **chosen},
        warmup=warmup,
        parity=entry.parity,
        source="",
        compute=lambda data: entry.function(data, **parameters),
        scale_free=entry.scale_free,
        running=entry.running,
    )


def _check_parameter(name: str, key: str, value: Any, default: Any) -> None:
    """Refuse a value of the wrong kind where the user's list is read, not inside TA-Lib."""
    if isinstance(default, int):
        least = 2 if key in ("period", "fast", "slow") else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 100_000:
            raise ValueError(f"data.features: {name}.{key} is a number of bars from {least} to 100000, got {value!r}")
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"data.features: {name}.{key} is a text, got {value!r}")
        if key == "market" and value not in indicators.SESSIONS:
            raise ValueError(f"data.features: {name}.{key} is one of {', '.join(indicators.SESSIONS)}, got {value!r}")
    elif value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise ValueError(f"data.features: {name}.{key} is a number > 0, got {value!r}")


def _column_spec(column: str, parameters: dict[str, Any]) -> FeatureSpec:
    parity = parameters.pop("parity", 0)
    if column == "time":
        raise ValueError(
            "data.features: column time says when a bar was, which never comes again, and is no feature. Take "
            "hour_sin and hour_cos, or weekday_sin and weekday_cos"
        )
    if parameters:
        raise ValueError(f"data.features: column {column} takes only `parity`, got {', '.join(parameters)}")
    _check_parity(f"column {column}", parity)

    def compute(data: BarArrays) -> np.ndarray:
        if column not in data.frame:
            raise ValueError(f"data.features asks for column {column!r}; the bars have {', '.join(data.frame.columns)}")
        return data.frame[column].to_numpy(np.float64)

    return FeatureSpec(column, {"column": column, "parity": parity}, 0, parity, "", compute)


def _user_spec(class_path: str, parameters: dict[str, Any], allow_modules: Sequence[str]) -> FeatureSpec:
    module_name, _, class_name = class_path.rpartition(".")
    if not _within(module_name, allow_modules):
        raise ValueError(
            f"data.features: {class_path} is no shipped feature (those have a `name`), and its module is not among the "
            f"allowed ones ({', '.join(allow_modules) or 'none'}): it was not imported. If you trust module "
            f"{module_name!r}, name it with --allow-module {module_name} (load_policy: allow_modules=[{module_name!r}])"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"data.features: module {module_name} of {class_path} cannot be imported: {error}") from error
    found = getattr(module, class_name, None)
    # A name that an allowed module merely imported would let a configuration reach any class.
    own = inspect.isclass(found) or inspect.isfunction(found)
    if not own or not _within(found.__module__, allow_modules):  # type: ignore[union-attr]
        raise ValueError(f"data.features: {module_name} defines no class {class_name!r}, nor such a function")
    entry = {"class_path": class_path, **parameters}
    label = "_".join([class_name, *(str(x) for name, x in parameters.items() if name not in _OF_FUNCTION)])
    if inspect.isfunction(found):
        warmup, parity = (parameters.pop(name, getattr(found, name, x)) for name, x in _OF_FUNCTION.items())
        compute = _of_function(class_path, found, parameters)
    else:
        feature = _of_class(class_path, found, parameters)
        warmup, parity = feature.warmup, feature.parity

        def compute(data: BarArrays) -> np.ndarray:
            return feature(data.frame.copy())

    _check_parity(class_path, parity)
    unsaid = inspect.isfunction(found) and warmup == _FROM_BARS
    if not unsaid and (not isinstance(warmup, int) or warmup < 0):
        raise ValueError(f"data.features: {class_path}.warmup is a number of bars >= 0, got {warmup!r}")
    return FeatureSpec(label, entry, warmup, parity, _source_of(class_path, found), compute)


_OF_FUNCTION = {"warmup": _FROM_BARS, "parity": 0}  # what a function's entry, or the function itself, may say


def _of_function(path: str, function: Callable, parameters: Mapping[str, Any]) -> Callable[[BarArrays], np.ndarray]:
    try:
        inspect.signature(function).bind(None, **parameters)
    except TypeError as error:
        raise ValueError(f"data.features: {path} does not take a table of bars and {parameters}: {error}") from error
    return lambda data: function(data.frame.copy(), **parameters)


def _of_class(path: str, cls: Any, parameters: Mapping[str, Any]) -> UserFeature:
    # Before it is made: a constructor that is no feature's does what it does with the arguments of a stranger.
    if not any("__call__" in vars(base) for base in cls.__mro__):
        raise ValueError(
            f"data.features: {path} is no feature: it has no __call__(frame). It was not made; name a class like "
            "those of docs/walk-forward.md"
        )
    try:
        feature = cls(**parameters)
    except TypeError as error:
        raise ValueError(f"data.features: {path} does not take {parameters}: {error}") from error
    if not isinstance(feature, UserFeature):
        raise ValueError(f"data.features: {path} needs attributes `warmup` and `parity` and to be callable")
    return feature


def _source_of(path: str, found: Any) -> str:
    """SHA-256 of the module's text; of a script or notebook of its own text alone, for the rest changes all the time.

    Raises:
        ValueError: there is no text, so that another version would go unnoticed.
    """
    try:
        text = inspect.getsource(found if found.__module__ == "__main__" else sys.modules[found.__module__])
    except (OSError, TypeError) as error:
        raise ValueError(
            f"data.features: the source of {path} cannot be read ({error}), so that a run could not tell one version "
            "of it from another. Put it into a file and import it"
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def _within(module: str, allowed: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _check_parity(what: str, parity: Any) -> None:
    if isinstance(parity, bool) or parity not in (-1, 0, 1):
        raise ValueError(f"data.features: the parity of {what} is -1 (odd), 1 (even) or 0 (unknown), got {parity!r}")
