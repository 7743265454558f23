"""Unknown keys of configuration files, found before anything else is parsed, with the nearest known name.

jsonargparse finds most of them too, without a hint; `model: 3` and an empty unknown group it takes in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser

from lit_ppo.store.files import MOST_LEVELS, check_expansion, read_yaml
from lit_ppo.words import did_you_mean


def known_keys(parser: ArgumentParser) -> set[str]:
    """Dotted names of every key that a configuration may have, those of optional dataclasses included."""
    known = set(parser.get_defaults(skip_validation=True).keys())
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        for kind in get_args(hint) or (hint,):
            if dataclasses.is_dataclass(kind):
                known |= {f"{action.dest}.{field.name}" for field in dataclasses.fields(kind)}
    return known


def check_files(paths: Iterable[Path], known: set[str]) -> None:
    """Check the keys of configuration files; one that is not there is left to the parser, which says so.

    Raises:
        ValueError: an unknown key, a group of keys that is no mapping, no YAML, or one that `files.read_yaml` refuses.
    """
    groups = {name for key in known for name in _groups(key)}
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError:
            continue
        content = read_yaml(text, str(path))
        if isinstance(content, Mapping):
            _check(path, content, "", known, groups)


def check_values(arguments: Iterable[str]) -> None:
    """Check values of the command line that are deep YAML or have aliases; what is no YAML is left to the parser.

    Raises:
        ValueError: the aliases grow without bound, or it is nested too deep.
    """
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        text = value if equals and flag.startswith("--") else argument
        if ("&" not in text or "*" not in text) and text.count("[") + text.count("{") < MOST_LEVELS:
            continue
        try:
            content = yaml.safe_load(text)
        except RecursionError as error:
            raise ValueError(f"The value {text[:40]!r}... is nested too deep to be read") from error
        except (yaml.YAMLError, ValueError):
            continue
        check_expansion(content, f"The value {text[:40]!r}...")


def bend_budget(callbacks: Iterable[Any], total_timesteps: int) -> int | None:
    """Lower the `min_timesteps` of `AdaptiveTimesteps` to a smaller budget.

    Args:
        callbacks: entries of `trainer.callbacks`, changed in place.
        total_timesteps: the budget.

    Returns:
        What `min_timesteps` was; None where nothing was lowered.
    """
    for entry in callbacks:
        if entry["class_path"].endswith(".AdaptiveTimesteps"):
            arguments = entry.get("init_args") or {}
            least = arguments.get("min_timesteps", 25_000)  # the callback's default
            if least > total_timesteps >= 1:
                arguments["min_timesteps"] = total_timesteps
                entry["init_args"] = arguments
                return least
    return None


def _groups(key: str) -> Iterator[str]:
    parts = key.split(".")[:-1]
    yield from (".".join(parts[: count + 1]) for count in range(len(parts)))


def _check(path: Path, content: Mapping[Any, Any], prefix: str, known: set[str], groups: set[str]) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}".removesuffix("+")  # `callbacks+` goes after what an earlier file has in the list
        if isinstance(value, Mapping) and "class_path" in value and name in known:
            continue  # a class of the user's choice has keys of its own: the parser knows them
        if name in groups and isinstance(value, Mapping):
            _check(path, value, f"{name}.", known, groups)
        elif name not in known and name not in groups:
            raise ValueError(f"{path}: there is no {name}; {_nearest(name, known | groups)}")
        elif name in groups and name not in known:
            raise ValueError(f"{path}: {name} is a group of keys ({name}.*), got {value!r}")


def _nearest(name: str, names: set[str]) -> str:
    parent = name.rpartition(".")[0]
    return did_you_mean(name, sorted(other for other in names if other.rpartition(".")[0] == parent))
