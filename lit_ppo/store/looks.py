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

import numpy as np
from numpy.typing import NDArray

from lit_ppo.store.atomic import open_own, write_all
from lit_ppo.store.results import FoldRecord, load_run
from lit_ppo.store.run_lock import alone_in
from lit_ppo.store.schema import Count, read_json_lines

NAME = "looks.jsonl"
MOST_SUMS = 512  # of a line
_HOUR = 3_600 * 10**9


class Returns(TypedDict):
    """Net returns of the test decisions, summed over stretches of so many hours, which are numbered from 1970 on.

    hours: a power of two, so that the sums of two looks can be brought to equal stretches. first: number of the first.
    """

    hours: Count
    first: int
    sums: list[float]


class _Look(TypedDict):
    time: str
    run: str
    configuration: str
    bars: str
    test: list[Count]
    command: list[str]


class Look(_Look, total=False):
    """One line.

    run: folder of the run, under its results folder. configuration: SHA-256 of its config.yaml and its seed: who makes
    the same run again looks at nothing new. bars: SHA-256 of the bars. test: [start, stop) of the bar file's rows.
    returns: what it earned there; older lines have none.
    """

    returns: Returns


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
    decided = load_run(root / run).out_of_sample
    line: Look = {
        "time": now,
        "run": run,
        "configuration": configuration,
        "bars": bars,
        "test": list(rows),
        "command": list(record.get("command", [])),
        "returns": returns_of(
            decided["time"].to_numpy("datetime64[ns]").astype(np.int64), decided["net_return"].to_numpy()
        ),
    }
    with alone_in(root), open_own(root / NAME) as file:  # two runs may end at once
        content = file.readall()
        file.seek(len(content.rpartition(b"\n")[0]) + (1 if b"\n" in content else 0))  # over a line that a kill cut
        file.truncate()
        write_all(file.fileno(), (json.dumps(line) + "\n").encode())


def returns_of(time: NDArray[np.int64], net_return: NDArray[np.float64]) -> Returns:
    """Net returns [D] as the ledger keeps them: of at most `MOST_SUMS` stretches.

    Args:
        time: [D] open times of the decisions' bars, rising, nanoseconds since 1970 UTC.
    """
    hours, hour = 1, time // _HOUR
    while (hour[-1] // hours) - (hour[0] // hours) >= MOST_SUMS:
        hours *= 2
    stretch = hour // hours
    sums = np.bincount(stretch - stretch[0], weights=net_return)
    return {"hours": hours, "first": int(stretch[0]), "sums": [float(f"{one:.6g}") for one in sums]}


def side_by_side(every: Sequence[Returns]) -> NDArray[np.float64]:
    """Sums [stretches, N] of N looks over equal stretches, which all of them have seen; 0 rows: there are none."""
    hours = max(one["hours"] for one in every)
    columns = []
    for one in every:
        stretch = (one["first"] + np.arange(len(one["sums"]))) // (hours // one["hours"])
        columns.append((int(stretch[0]), np.bincount(stretch - stretch[0], weights=one["sums"])))
    first = max(start for start, _ in columns)
    count = min(start + len(sums) for start, sums in columns) - first
    return np.array([sums[first - start :][: max(count, 0)] for start, sums in columns]).T


def looks(root: Path) -> list[Look]:
    """Every look at test bars under a results folder; a last line that a kill has cut is left out.

    Raises:
        ValueError: another line is damaged.
    """
    path = root / NAME
    return read_json_lines(path, Look) if path.is_file() else []


def configurations_seen(root: Path, bars: str, rows: tuple[int, int]) -> dict[str, Returns | None]:
    """Configurations whose test on these bars overlapped these rows, and what they earned, where that is known."""
    return {
        look["configuration"]: look.get("returns")
        for look in looks(root)
        if look["bars"] == bars and look["test"][0] < rows[1] and rows[0] < look["test"][1]
    }
