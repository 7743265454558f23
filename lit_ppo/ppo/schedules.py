"""Coefficients as functions of progress: nothing to remember, so nothing to resume."""

from __future__ import annotations


def linear(start: float, end: float, progress: float) -> float:
    """Return the value on the straight line from `start` (progress 0) to `end` (progress 1 and beyond)."""
    share = min(max(progress, 0.0), 1.0)
    return start + (end - start) * share
