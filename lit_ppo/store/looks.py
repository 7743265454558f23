"""The ledger of looks: which configurations ever read the test bars of a file, whatever became of their folders.

`RESULTS/looks.jsonl`, one line a look, beside the runs: the deflated Sharpe ratio of every later report counts them
(`lit_ppo.report.analysis.trials_seen`). A run that is deleted, or made again with other settings, stays in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from lit_ppo.store.atomic import open_own, write_all
from lit_ppo.store.results import FoldRecord
from lit_ppo.store.run_lock import alone_in
from lit_ppo.store.schema import Count, read_json_lines

NAME = "looks.jsonl"


class Look(TypedDict):
    """One line.

    run: folder of the run, under its results folder. configuration: SHA-256 of its config.yaml and its seed: who makes
    the same run again looks at nothing new. bars: SHA-256 of the bars. test: [start, stop) of the bar file's rows.
    """

    time: str
    run: str
    configuration: str
    bars: str
    test: list[Count]
    command: list[str]


def bars_of(record: Mapping[str, Any]) -> str | None:
    """Which bars a run.json speaks of: SHA-256 of their content, or of their file in older runs."""
    data = record.get("data", {})
    return data.get("bars_sha256") or data.get("sha256")


def test_range(folds: Sequence[FoldRecord]) -> tuple[int, int] | None:
    """[start, stop) rows of the bar file from the first to the last finished test; None without one."""
    tests = [fold.bars["test"] for fold in folds if fold.status == "done" and "test" in fold.bars]
    return (min(test[0] for test in tests), max(test[1] for test in tests)) if tests else None


def configuration_of(config: str | None, record: Mapping[str, Any]) -> str:
    """What makes a run the one it is: its settings and its seed."""
    return hashlib.sha256(f"{record.get('seed')}\n{config or record.get('command')}".encode()).hexdigest()


def note_look(root: Path, run: str, config: str | None, record: Mapping[str, Any], folds: Sequence[FoldRecord]) -> None:
    """Write down that a run has read its test bars, unless the ledger says so already.

    Args:
        root: results folder.
        run: name of the run's folder in it.
        config, record, folds: its config.yaml, run.json and ledger of folds.

    Raises:
        ValueError: the ledger is a symbolic link, or has a damaged line.
    """
    bars, rows = bars_of(record), test_range(folds)
    if bars is None or rows is None:
        return
    configuration = configuration_of(config, record)
    for look in looks(root):
        same = (look["configuration"], look["bars"]) == (configuration, bars)
        if same and look["test"][0] <= rows[0] and rows[1] <= look["test"][1]:
            return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line: Look = {
        "time": now,
        "run": run,
        "configuration": configuration,
        "bars": bars,
        "test": list(rows),
        "command": list(record.get("command", [])),
    }
    with alone_in(root), open_own(root / NAME) as file:  # two runs may end at once
        content = file.readall()
        file.seek(len(content.rpartition(b"\n")[0]) + (1 if b"\n" in content else 0))  # over a line that a kill cut
        file.truncate()
        write_all(file.fileno(), (json.dumps(line) + "\n").encode())


def looks(root: Path) -> list[Look]:
    """Every look at test bars under a results folder; a last line that a kill has cut is left out.

    Raises:
        ValueError: another line is damaged.
    """
    path = root / NAME
    return read_json_lines(path, Look) if path.is_file() else []


def configurations_seen(root: Path, bars: str, rows: tuple[int, int]) -> set[str]:
    """Configurations whose test on these bars overlapped these rows."""
    return {
        look["configuration"]
        for look in looks(root)
        if look["bars"] == bars and look["test"][0] < rows[1] and rows[0] < look["test"][1]
    }
