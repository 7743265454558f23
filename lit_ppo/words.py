"""Words that every floor writes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def plural(count: float, noun: str) -> str:
    """A whole count with its noun: "1 trial", "2 trials"."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one is likely to mean."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about a name that nothing has: the nearest one, else `otherwise`, else all there are."""
    near = nearest(name, known := list(known))
    return f"did you mean {near}?" if near else otherwise or f"there are {', '.join(known)}"
