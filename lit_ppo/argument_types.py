"""Types of arguments, checked where a user's value enters: the command line has a parser for that, Python has none."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NAMED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    NoneType: "None",
    dict: "a dict",
    list: "a list",
}
_SEVERAL: dict[Any, str] = {float: " of numbers", int: " of whole numbers", str: " of strings"}


def check_types(hints: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> None:
    """Check values against type hints.

    Args:
        hints: by name, evaluated (`typing.get_type_hints`); names without a value are left out.
        values: by name.
        prefix: before a name in the message, such as "model.".

    Raises:
        ValueError: a value of another type; says its name, what it may be and what was found.
    """
    for name, hint in hints.items():
        if name in values and not _fits(values[name], hint):
            raise ValueError(f"{prefix}{name} must be {described(hint)}, got {values[name]!r}")


def described(hint: Any) -> str:
    """A type hint in words: "a whole number or None"."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(described(one) for one in inner)
    if kind is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    plain: Any = kind or hint
    if plain is Sequence or plain is list:
        return "a list" + (_SEVERAL.get(inner[0], "") if inner else "")
    if plain is Mapping:
        return "a dict"
    return _NAMED.get(plain) or f"a {getattr(plain, '__name__', plain)}"


def as_flag(key: str, value: Any) -> str:
    """A keyword's value as the command line would have it.

    Raises:
        ValueError: it is of a type that no recipe can hold.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=_plain)
    except TypeError as error:
        raise ValueError(
            f"{key} must be made of numbers, strings, lists and dicts, as in a recipe, so that config.yaml can repeat "
            f"the run; got {value!r}"
        ) from error


def _plain(value: Any) -> Any:
    """What an argument of a callback is in a recipe, where it is no plain value."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numbers and arrays of numpy
        return value.tolist()
    raise TypeError


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    kind = kind or hint
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | os.PathLike)
    if kind is Sequence or kind is list:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value if inner)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, kind)


def allowed_class(path: str, base: type, key: str, allow_modules: Sequence[str]) -> type:
    """Import the class that a configuration names, if the user trusts its module.

    Args:
        path: "module.Class".
        base: what it must derive from.
        key: of the configuration, for the message.
        allow_modules: modules, with their submodules, that may be imported.

    Raises:
        ValueError: the module is not allowed or cannot be imported, or it defines no such class.
    """
    module, _, name = path.rpartition(".")

    def allowed(asked: str) -> bool:
        return any(f"{asked}.".startswith(f"{one}.") for one in allow_modules)

    if not module:
        raise ValueError(f"{key}: {path!r} is no class path; write module.Class")
    if not allowed(module):
        raise ValueError(
            f"{key}: {path} was not imported. If you trust module {module}, name it with --allow-module {module}"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{key}: module {module} of {path} cannot be imported: {error}") from error
    # A name that an allowed module merely imported would let a configuration reach any class.
    if not inspect.isclass(found) or not issubclass(found, base) or not allowed(found.__module__):
        raise ValueError(f"{key}: {path} is no {base.__name__} that is defined there")
    return found
