"""Make docs/reliability.md: fault | promise | test | measured, from the last recorded test run.

python -m pytest -p tests.faults.record tests      # part of `make test-all`; writes benchmarks/results/reliability.json
python benchmarks/reliability_table.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Row:
    """One fault of the matrix."""

    number: str
    fault: str
    promise: str
    tests: tuple[str, ...]  # file::function


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/{file}.py::test_{name}" for name in names)


ROWS: tuple[Row, ...] = (
    Row(
        "C1",
        "`kill -9` at a random moment, and at each named failpoint of each file",
        "resumed with `--resume`, every file equals the uninterrupted run's byte for byte; nothing temporary is left",
        _of(
            "faults/test_kill",
            "killed_at_every_failpoint_one_after_the_other_equals_uninterrupted",
            "killed_at_each_failpoint_of_each_file_equals_uninterrupted",
            "twenty_fresh_processes_killed_at_random_equal_uninterrupted",
            "twenty_runs_killed_at_random_equal_uninterrupted",
        ),
    ),
)
