"""Fixtures of the fault tests: one launcher and one uninterrupted run for each test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.faults.harness")

from tests.faults.harness import CONFIG, SEED, Launcher, command  # noqa: E402 - after its asserts are made to speak


@pytest.fixture(scope="session")
def shared_launcher(tmp_path_factory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


@pytest.fixture
def launch(shared_launcher, tmp_path) -> Launcher:
    """A launcher whose runs work in this test's directory, with the configuration in it."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    shared_launcher.directory = tmp_path
    return shared_launcher


@pytest.fixture(scope="session")
def whole(shared_launcher, tmp_path_factory) -> Path:
    """Folder of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "config.yaml").write_text(CONFIG)
    before, shared_launcher.directory = shared_launcher.directory, directory
    ended = shared_launcher(*command())
    shared_launcher.directory = before
    assert ended.code == 0, ended.output
    folder = directory / "results" / str(SEED)
    assert len((folder / "trades.csv").read_text().splitlines()) > 50  # a run that does nothing would compare nothing
    shared_launcher.whole_run_seconds = ended.cpu_seconds
    return folder
