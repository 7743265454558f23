"""Durations, from one monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage: `with watch.stage("rollout"): ...`.

    Uses the monotonic clock, so a change of the wall clock (DST, NTP) never shows.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def reset(self) -> dict[str, float]:
        """Return the seconds by stage since the last reset, and start again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds
