"""Which Python names a configuration may make a program import: a configuration is data, and must not run code.

`class_path: os.system` in a file from somebody else would be a command line. So every import path that a value names
is checked before it is imported: this project's packages, Lightning's and torch's own are allowed, and modules that
the user names on the command line with `--allow-module`. A configuration cannot allow anything by itself.

jsonargparse keeps the rule, for the path that was written and for the place where the object found is defined: an
allowed module that merely imported `os` does not lend it. See SECURITY.md for what this does not promise.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ALLOWED = ("lit_ppo", "datamodules", "callbacks", "lightning", "torch")
# Of the allowed packages: what loads code or pickles, by name, from a file or the network.
DENIED = (
    *("torch.hub", "torch.load", "torch.serialization", "torch.package", "torch.utils.model_zoo"),
    *("torch.utils.cpp_extension", "torch.multiprocessing", "torch.compiler", "torch.distributed.elastic"),
    *("torch.distributed.run", "torch.distributed.launch", "lightning.fabric.cli"),
)
_ALLOWED_PREFIXES = tuple(f"{name}." for name in ALLOWED)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


_granted: set[str] = set()  # jsonargparse's rule is global to the process, and so is what was added to it


def restrict_class_paths(modules: Sequence[str] = ()) -> None:
    """From here on, values of a configuration may name what `ALLOWED` and `modules` hold, and nothing else.

    Args:
        modules: further modules, with their submodules, whose code the user trusts; those of an earlier call are
            withdrawn.

    Raises:
        ValueError: a name that is no module's, or jsonargparse itself, which would undo the rule.
    """
    from jsonargparse import set_parsing_settings  # not at the top: `predict` parses no configuration

    for module in modules:
        if not _MODULE.fullmatch(module):
            raise ValueError(f"--allow-module names a module to import, like my_features; got {module!r}")
    withdrawn = _granted - set(ALLOWED)
    _granted.clear()
    # Values of a type that accepts anything stay data, whatever they look like.
    set_parsing_settings(
        import_path_denylist=["*", *withdrawn, *DENIED],
        import_path_allowlist=[*ALLOWED, *modules],
        instantiate_subclass_spec_in_any=False,
    )
    _granted.update(modules)


def take_allowed_modules(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--allow-module NAME` and `--allow-module=NAME` out of a command's arguments.

    With one, modules of the working directory can be imported, as `python -m` would; an installed program does not
    look there by itself.

    Returns:
        The other arguments, and the names.

    Raises:
        ValueError: the flag without a name.
    """
    rest: list[str] = []
    modules: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag not in ("--allow-module", "--allow_module"):
            rest.append(argument)
            continue
        name = value if equals else next(waiting, "")
        if not name or name.startswith("-"):
            raise ValueError("--allow-module needs the name of a module, like --allow-module my_features")
        modules.append(name)
    if modules and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last: what the user named may lie there, and hides nothing that is installed
    return rest, modules


def refuse_functions(config: Any, modules: Sequence[str] = (), where: str = "") -> None:
    """Check that no value of a parsed configuration is a function: it would be called with what the configuration says.

    A class of the allowed packages does what it is made for; among their functions are ones that start a shell or read
    a pickle, and a list of those is never complete.

    Args:
        config: what the parser made of files and flags, before anything is instantiated.
        modules: those of `--allow-module`, whose functions the user trusts too.
        where: key of `config`, for the message.

    Raises:
        ValueError: a function, or a `class_path` that names one; says its key and its name.
    """
    from jsonargparse import Namespace

    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, Mapping):
        if isinstance(path := config.get("class_path"), str) and inspect.isroutine(found := _imported(path)):
            _refuse_function(found, modules, f"{where}.class_path")
        for key, value in config.items():
            refuse_functions(value, modules, f"{where}.{key}" if where else str(key))
    elif isinstance(config, (list, tuple, set)):
        for value in config:
            refuse_functions(value, modules, where)
    elif callable(config) and not inspect.isclass(config) and not isinstance(config, os.PathLike):
        _refuse_function(config, modules, where)


def _imported(path: str) -> Any:
    """What an import path names, if the parser has imported its module; nothing is imported for it here."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None) if f"{module}.".startswith(_ALLOWED_PREFIXES) else None


def _refuse_function(function: Any, modules: Sequence[str], where: str) -> None:
    module = getattr(function, "__module__", None) or type(function).__module__
    if any(f"{module}.".startswith(f"{name}.") for name in modules):
        return
    name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    raise ValueError(
        f"The configuration gives {where} the function {name}, and a configuration may name classes, not functions: it "
        f"was not called. Name a class, or write the function in a module of yours and add --allow-module to the "
        "command line"
    )


def refused_class_path(path: str) -> str:
    """The message for an import path that was refused."""
    module = path.rpartition(".")[0]
    return (
        f"The configuration names {path}, and only {', '.join(ALLOWED)} (less what loads code or pickles) may be: "
        f"it was not imported. If you trust module {module}, add --allow-module {module} to the command line"
    )
