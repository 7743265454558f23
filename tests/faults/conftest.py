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


# What `make test` runs of the fault tests; the others start many processes and belong to `make test-all`.
FAST = (
    "test_killed_three_times_at_random_also_while_resuming_equals_uninterrupted",
    "test_a_resume_without_one_item_of_its_state_is_not_equal",
    "test_a_resume_from_the_same_state_written_again_is_equal",
    "test_a_resume_on_another_machine_is_allowed_and_labelled_not_bit_identical",
    "test_what_decides_the_numbers_is_refused_and_what_may_change_the_last_bits_is_labelled",
    "test_a_record_of_a_release_that_knew_less_can_be_resumed",
)
FAST_FILES = ("test_reliability_table.py", "test_releases.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if item.path.is_relative_to(here) and item.path.name not in FAST_FILES]
    for item in ours:
        if getattr(item, "originalname", item.name) not in FAST:
            item.add_marker(pytest.mark.slow)
