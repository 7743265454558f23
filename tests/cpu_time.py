"""A pytest plugin that keeps the suite fast: which tests compute longest (`pytest -p tests.cpu_time`).

Seconds are computing time of the test's process and of the processes it waited for, fixtures included: on a busy
machine wall time says little. `make test` prints the list; `make test-all` fails where a fast test is over the budget.
"""

from __future__ import annotations

import resource
from typing import Any

import pytest

PROPERTY = "fast test's CPU seconds"
STARTED = pytest.StashKey[float]()
LISTED = 20


def computed() -> float:
    """CPU seconds of this process and of its ended children."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-budget", type=float, help="CPU seconds that a test not marked slow may take")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that hears of every test
        config.pluginmanager.register(Dearest(config.getoption("--cpu-budget")))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED] = computed()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Any:
    report = yield
    if call.when == "teardown" and STARTED in item.stash and item.get_closest_marker("slow") is None:
        report.user_properties = [*report.user_properties, (PROPERTY, computed() - item.stash[STARTED])]
    return report


class Dearest:
    """Collects what tests took, prints the dearest, and fails the session over the budget."""

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown" and (took := dict(report.user_properties).get(PROPERTY)) is not None:
            self.seconds[report.nodeid] = took

    @property
    def over(self) -> list[str]:
        return [name for name, took in self.seconds.items() if self.budget is not None and took > self.budget]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.over and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        total = sum(self.seconds.values())
        terminalreporter.write_line(f"{len(self.seconds):,} fast tests took {total:.0f} CPU seconds; most of all:")
        for name, took in sorted(self.seconds.items(), key=lambda pair: -pair[1])[:LISTED]:
            terminalreporter.write_line(f"{took:7.1f} {name}")
        for name in self.over:
            terminalreporter.write_line(f"over the budget of {self.budget:g} CPU seconds: {name}: shorten it", red=True)
