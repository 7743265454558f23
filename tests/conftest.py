"""Fixtures that several test packages share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

BAR_FILES = Path(os.environ.get("LIT_PPO_BAR_FILES") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()


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
