"""What the `data.*` keys of a command describe: bars, or a gymnasium environment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_ppo.store.files import read_yaml
from lit_ppo.words import did_you_mean

RECIPES = Path(__file__).resolve().parents[2] / "configs"


def asks_for_environment(arguments: Sequence[str]) -> bool:
    """Whether `data.env_id` is given, by a flag or in a configuration file: then `data` is no bar file.

    What a file says besides is the parser's affair, and so is a file that cannot be read.
    """
    if any(argument.partition("=")[0] == "--data.env_id" for argument in arguments):
        return True
    return any("env_id" in _data_keys(path) for path in configuration_files(arguments))


def configuration_files(arguments: Sequence[str]) -> Iterator[Path]:
    """Files that `--config` names."""
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            yield recipe_file(value if equals else next(waiting, ""))


def recipe_file(asked: str, kind: str = "") -> Path:
    """The file that `--config` means: a path, or the name of a recipe that is installed with the program.

    Args:
        kind: folder of configs/ that it is looked for in.
    """
    shipped = RECIPES / kind / f"{asked}.yaml"
    return shipped if re.fullmatch(r"\w+", asked) and not Path(asked).is_file() and shipped.is_file() else Path(asked)


def with_recipe_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with every name of a recipe replaced by its file.

    Raises:
        FileNotFoundError: there is no such recipe.
    """
    found, waiting = [], iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-c"):
            found.append(argument)
        elif equals:
            found.append(f"{flag}={_existing(value)}")
        else:
            found += [flag, *(str(_existing(name)) for name in (next(waiting, None),) if name is not None)]
    return found


def _existing(asked: str) -> Path:
    path = recipe_file(asked)
    if re.fullmatch(r"\w[\w./\\-]*", asked) and not path.exists():  # else it is the parser's affair
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise FileNotFoundError(
            f"--config {asked}: there is no such file, and no recipe of that name; {did_you_mean(asked, names)}"
        )
    return path


def _data_keys(path: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return {}  # `config_check` and the parser say so, with the place
    data = content.get("data") if isinstance(content, dict) else None
    return data if isinstance(data, dict) else {}
