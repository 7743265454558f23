"""Fixtures that several test packages share."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything loads OpenMP: the tests run side by side, and threads of tiny networks wait for each other by
# spinning, a third of all the computing time. Tests of threads ask for theirs with `torch.set_num_threads`.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest

# Before Lightning is imported: each `Trainer` asks for the entry points of all packages, a file or two each.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

BAR_FILES = Path(os.environ.get("LIT_PPO_BAR_FILES") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()


@pytest.fixture(scope="session", autouse=True)
def few_draws() -> Iterator[None]:
    """Intervals of tests' runs and pages by 200 bootstrap draws in place of 2,000; tests of intervals say their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("scoring.significance", "report.compare"):
            patch.setattr(f"lit_ppo.{module}.draws_for", lambda net_returns: 200)
        yield


@pytest.fixture(scope="session")
def bar_file() -> Callable[[str], Path]:
    """Return a function from the name of a real bar file to its path; skips the test when the file is absent.

    The real files may not travel with the product (their licences), so they are looked for in the directory that the
    environment variable LIT_PPO_BAR_FILES names, else in `../shared/data` next to the repository.
    """

    def find(name: str) -> Path:
        path = BAR_FILES / name
        if not path.is_file():
            pytest.skip(f"the real bar file {name!r} is not in {BAR_FILES}; set LIT_PPO_BAR_FILES to its directory")
        return path

    return find


@pytest.fixture(scope="session")
def bar_frame() -> Callable[..., pd.DataFrame]:
    """Return a maker of valid bars: a rounded random walk with naive times, volume and spread."""

    def make(
        rows: int = 60, seed: int = 0, minutes: int = 15, start: str = "2023-03-14 22:00", digits: int = 3
    ) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        close = np.round(1800 * np.exp(np.cumsum(rng.normal(0, 0.001, rows))), digits)
        opened = np.concatenate([[1800.0], close[:-1]])
        high = np.round(np.maximum(opened, close) + rng.exponential(0.5, rows), digits)
        low = np.round(np.minimum(opened, close) - rng.exponential(0.5, rows), digits)
        return pd.DataFrame(
            {
                "time": pd.date_range(start, periods=rows, freq=f"{minutes}min").as_unit("ns"),
                "open": opened,
                "high": high,
                "low": low,
                "close": close,
                "volume": rng.integers(1, 5000, rows).astype(float),
                "spread": rng.integers(100, 300, rows).astype(float),
            }
        )

    return make
