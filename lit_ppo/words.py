"""Words that every floor writes."""

from __future__ import annotations


def plural(count: float, noun: str) -> str:
    """A whole count with its noun: "1 trial", "2 trials"."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"
