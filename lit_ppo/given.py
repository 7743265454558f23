"""Python objects as a configuration would name them: an import path, and the arguments that they were made with.

So config.yaml can repeat the run, a resume and workers can make them again, and a command line gives the same bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

NOT_ELSEWHERE = "__main__"  # the module of a script or a notebook: no other process can import from it


def import_path(found: Any, key: str) -> str:
    """The name by which another process finds a function or a class.

    Raises:
        ValueError: it has none.
    """
    if "<" in found.__qualname__ or "." in found.__qualname__:
        kind = "a lambda" if "lambda" in found.__qualname__ else "defined inside a function or class"
        raise ValueError(
            f"{key}: {found.__qualname__} is {kind}, so that config.yaml cannot name it, and the run could be neither "
            "resumed nor repeated. Define it at the top of a module, a script or a notebook"
        )
    return f"{found.__module__}.{found.__qualname__}"


def made_with(given: Any, key: str) -> dict[str, Any]:
    """What the constructor of an object was given, read from its attributes of the same names.

    Raises:
        ValueError: they do not tell, or would make another object.
    """
    kind = type(given)
    parameters = inspect.signature(kind).parameters
    open_ended = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}
    lost = [name for name, p in parameters.items() if p.kind in open_ended or not hasattr(given, name)]
    found = {name: getattr(given, name) for name in parameters if name not in lost}
    if not lost:
        again = kind(**found)
        lost = [name for name, value in found.items() if getattr(again, name) != value]
    if lost:
        raise ValueError(
            f"{key}: what {kind.__name__} was made with cannot be read from it ({', '.join(lost)}), so that no fold "
            f"could have one of its own. Give {{'class_path': '{import_path(kind, key)}', 'init_args': {{...}}}}, or "
            "keep each argument in an attribute of its name"
        )
    return found


def refuse_for_workers(modules: Sequence[str]) -> None:
    """Check that workers can import what was given.

    Raises:
        ValueError: it is defined in the script or notebook itself.
    """
    if NOT_ELSEWHERE in modules:
        raise ValueError(
            "workers, cluster: a feature, cost model or callback is defined in this script or notebook, and no worker "
            "can import from there. Put it into a module (my_features.py) and import it, or leave workers out"
        )
