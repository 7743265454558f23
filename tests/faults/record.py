"""A pytest plugin that keeps what the fault tests measured: `pytest -p tests.faults.record` (part of `make test-all`).

Counts come from the tests' `record_property(name, number)`: kills survived, bits flipped, inputs tried. They go to
benchmarks/results/reliability.json by test, with outcome, seconds and commit; docs/reliability.md is made of that file.
A test that was not run this time keeps its last entry.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.reliability_table import RESULTS, ROWS
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.provenance import code_state, machine

NAMED = {test for row in ROWS for test in row.tests}


class Recorder:
    """Adds up the reports of one session."""

    def __init__(self) -> None:
        self.origin = {"commit": code_state()["commit"]}
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if name not in NAMED or (report.when != "call" and report.passed):
            return
        entry = self.tests.setdefault(name, {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "counts": {}})
        entry[report.outcome] += 1
        entry["seconds"] = round(entry["seconds"] + report.duration, 1)
        for key, value in report.user_properties if report.passed else ():
            entry["counts"][key] = entry["counts"].get(key, 0) + value

    def pytest_sessionfinish(self) -> None:
        """At the end, also of a session that was stopped: meanwhile a test compares the record with the page of it."""
        before = json.loads(RESULTS.read_text())["tests"] if RESULTS.is_file() else {}
        tests = before | {name: {**entry, **self.origin} for name, entry in self.tests.items()}
        tests = {name: entry for name, entry in tests.items() if name in NAMED}  # a test may have got another name
        content = {"machine": machine(), "tests": dict(sorted(tests.items()))}
        atomic_write(RESULTS, json.dumps(content, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the reports of all workers arrive at the one that started them
        config.pluginmanager.register(Recorder())
