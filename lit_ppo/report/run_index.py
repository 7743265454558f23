"""`lit-ppo compare --all`: the history of every run under a results directory, in one file.

The file is a summary that can be deleted at any time: it is made again from the run folders. A run whose folder is gone
keeps its row, marked as gone, because history is what it is for. Runs are grouped by the bars that they were tested on:
results on other bars are never put into one order, and each group says how often its test bars were looked at.
"""

from __future__ import annotations

import hashlib
import math
import os
import textwrap
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from lit_ppo.report import plotly_figures
from lit_ppo.report.analysis import trials_of
from lit_ppo.report.compare import WIDTH, halves, printable, text_table
from lit_ppo.report.page import number, render, signed, tint
from lit_ppo.report.tables import Cell, Row
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import json_bytes
from lit_ppo.store.looks import Look, bars_of, looks, test_range
from lit_ppo.store.results import Run, load_run, run_records
from lit_ppo.store.schema import Count, Seconds, read_json
from lit_ppo.version import __version__
from lit_ppo.words import plural

FILE_NAME = "runs.json"


class _IndexedRun(TypedDict):
    folder: str
    stamp: str
    started: str | None
    status: str | None
    seed: int | None
    data: str | None
    sha256: str | None
    settings: str | None
    code: str | None
    cpu: str | None
    folds: Count
    bars: Count
    timesteps: Count
    seconds: Seconds
    return_pct: float | None
    sharpe_annual: float | None
    max_drawdown_pct: float | None
    validation_score: float | None
    present: bool


class IndexedRun(_IndexedRun, total=False):
    """What is kept of a run; `stamp` tells whether its files changed since.

    bars_sha256: of the bars' content; test: [start, stop) rows from the first to the last finished test; rows of an
    older index, whose folder is gone, have neither.
    """

    bars_sha256: str | None
    test: list[Count] | None


class Index(TypedDict):
    """runs.json."""

    schema: Literal[1]
    runs: list[IndexedRun]


_STAMP = b"2"  # another one where more is kept of a run: every run is read again
_STAMPED = ("run.json", "folds.json", "out_of_sample.csv", "config.yaml")


def update(root: str | Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Bring the index of a results directory up to date.

    Args:
        root: directory whose subfolders (at any of two depths) are runs.

    Returns:
        Its rows, oldest run first; and of each run that cannot be read, which has no row, what is wrong with it.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: `runs.json` there is not an index of this version.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a directory of runs; give the one that walk-forward got as --results")
    found = {path.parent.relative_to(root).as_posix(): path.parent for path in run_records(root)}
    damaged: dict[str, str] = {}
    known = _read(root / FILE_NAME)
    rows = {folder: {**row, "present": folder in found} for folder, row in known.items()}
    for folder, path in found.items():
        stamp = _stamp(path)
        if folder not in known or known[folder]["stamp"] != stamp:
            try:
                rows[folder] = _summary(folder, stamp, load_run(path))
            except (ValueError, OSError) as error:
                damaged[folder] = str(error)
    ordered = sorted(rows.values(), key=lambda row: (row["started"] or "", row["folder"]))
    if rows != known:
        if os.access(root, os.W_OK):
            atomic_write(root / FILE_NAME, json_bytes({"schema": 1, "runs": ordered}))
        else:
            warnings.warn(f"{root / FILE_NAME} cannot be written: every run is read again each time", stacklevel=3)
    return [row for row in ordered if row["folder"] not in damaged], damaged


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The index by folder; empty where there is none."""
    try:
        return (
            {row["folder"]: row for row in read_json(path, Index, "Delete it, it is made again")["runs"]}
            if path.is_file()
            else {}
        )
    except ValueError as error:
        raise ValueError(f"{path} is not an index of runs: {error}") from error


def _stamp(folder: Path) -> str:
    digest = hashlib.sha256(_STAMP)
    for name in _STAMPED:
        path = folder / name
        digest.update(f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode() if path.is_file() else b"-")
    return digest.hexdigest()


def _summary(folder: str, stamp: str, run: Run) -> dict[str, Any]:
    record, rows = run.record, run.out_of_sample
    data = record.get("data", {})
    figures: dict[str, float] = {}
    if len(rows) and data.get("bars_per_year"):
        net, position = (rows[name].to_numpy(np.float64) for name in ("net_return", "position"))
        figures = trading_metrics(net, position, data["bars_per_year"])
    scores = [x for fold in run.folds if (x := fold.scores.get("validation/score")) is not None]
    commit = str(record.get("commit") or "")[:10]
    rows_tested = test_range(run.folds)
    return {
        "folder": folder,
        "stamp": stamp,
        "started": record.get("started"),
        "status": record.get("status"),
        "seed": record.get("seed"),
        "data": data.get("path") or f"synthetic {record.get('oracle', {}).get('kind', 'market')}",
        "sha256": data.get("sha256"),
        "bars_sha256": bars_of(record),
        "test": None if rows_tested is None else list(rows_tested),
        "settings": hashlib.sha256(run.config.encode()).hexdigest()[:10] if run.config else None,
        "code": commit + ("+" if commit and record.get("dirty") else "") or None,
        "cpu": record.get("machine", {}).get("cpu"),
        "folds": sum(fold.status == "done" for fold in run.folds),
        "bars": len(rows),
        "timesteps": sum(fold.timesteps for fold in run.folds),
        "seconds": sum(sum(fold.seconds.values()) for fold in run.folds),
        **{name: _finite(figures.get(name)) for name in ("return_pct", "sharpe_annual", "max_drawdown_pct")},
        "validation_score": float(np.mean(scores)) if scores else None,
        "present": True,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


COLUMNS = (
    *(
        "",
        "Started",
        "Status",
        "Test bars",
        "Code",
        "Folds",
        "Return, %",
        "Sharpe",
        "Max. drawdown, %",
        "Validation score",
    ),
    *("Timesteps a fold", "Seconds a fold", "Did less, x", "Did it faster, x"),
)


RESULTS = 8  # of the columns are about the result, the others about what it took


def history(root: str | Path, html_path: str | Path | None = None) -> str:
    """The history of all runs under `root`, as text, by the bars that they were tested on.

    Speed is against the oldest run on the same bars that trained.

    Args:
        root: results directory.
        html_path: also write a page there.
    """
    runs, damaged = update(root)
    left_out = "".join(f"\nLeft out: {printable(error)}" for error in damaged.values())
    if not runs:
        return f"No run under {Path(root).name} yet.{left_out}"
    groups, seen = _by_bars(runs), _looks_of(Path(root), runs)
    parts = [
        (_heading(bars, group, seen), [_row(run, _reference(group)) for run in group]) for bars, group in groups.items()
    ]
    if html_path is not None:
        atomic_write(html_path, _page(groups, parts, damaged))
    texts = (f"{textwrap.fill(printable(head), WIDTH)}\n{text_table(COLUMNS, rows)}" for head, rows in parts)
    return "\n\n\n".join(texts) + left_out  # one empty line stands between the pieces of a table


def _by_bars(runs: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by the SHA-256 of their bars, oldest first; those that do not say theirs are by themselves."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        bars = run.get("bars_sha256") or run["sha256"] or f"unknown bars of {run['folder']}"
        groups.setdefault(bars, []).append(run)
    return groups


def _looks_of(root: Path, runs: Iterable[dict[str, Any]]) -> list[Look]:
    """What the ledgers of looks beside these runs hold, oldest first."""
    folders = {root, *((root / run["folder"]).parent for run in runs)}
    return sorted((look for folder in sorted(folders) for look in looks(folder)), key=lambda look: look["time"])


def _heading(bars: str, group: list[dict[str, Any]], seen: list[Look]) -> str:
    """Whose test bars these are, and who looked at them."""
    own = [look for look in seen if look["bars"] == bars]
    names = ", ".join(dict.fromkeys(str(run["data"]) for run in group))
    if not own:
        return f"{names}, bars {bars[:10]}: no look at test bars is on record"
    trials = trials_of({look["configuration"]: look.get("returns") for look in own})
    kinds = f" of {plural(trials.kinds, 'kind')}" if trials.kinds < trials.number else ""
    return (
        f"{names}, bars {bars[:10]}: {plural(trials.number, 'configuration')}{kinds} read its test bars, last "
        f"{own[-1]['run']}, {own[-1]['time'][:16].replace('T', ' ')} UTC"
    )


def _reference(group: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((run for run in group if run["folds"] and run["timesteps"] and run["seconds"]), None)


def _row(run: dict[str, Any], reference: dict[str, Any] | None) -> Row:
    less = faster = per_fold = work = math.nan
    if run["folds"]:
        per_fold, work = run["seconds"] / run["folds"], run["timesteps"] / run["folds"]
    if reference is not None and run["folds"] and run["timesteps"] and run["seconds"]:
        less = reference["timesteps"] / reference["folds"] / work
        faster = (run["timesteps"] / run["seconds"]) / (reference["timesteps"] / reference["seconds"])
    status = str(run["status"] or "unknown") + ("" if run["present"] else ", folder gone")
    return Row(
        run["folder"],
        [
            Cell((run["started"] or "–")[:16].replace("T", " ")),
            Cell(status),
            Cell("–" if not run.get("test") else f"{run['test'][0]:,}-{run['test'][1] - 1:,}"),
            Cell(run["code"] or "–"),
            Cell(str(run["folds"])),
            Cell(signed(run["return_pct"]), tint(run["return_pct"])),
            Cell(signed(run["sharpe_annual"])),
            Cell(number(run["max_drawdown_pct"])),
            Cell(signed(run["validation_score"], 4)),
            Cell(number(work, 0)),
            Cell(number(per_fold, 1)),
            Cell(number(less)),
            Cell(number(faster)),
        ],
        run is reference,
    )


def _page(groups: dict[str, list[dict[str, Any]]], parts: list[tuple[str, list[Row]]], damaged: dict[str, str]) -> str:
    figures, sections = {}, []
    for order, (group, (heading, rows)) in enumerate(zip(groups.values(), parts, strict=True), start=1):
        measured = [run for run in group if run["folds"]]
        labels = [plotly_figures.plain_text(run["folder"]) for run in measured]
        # One mark per run in the order of their start: two results of a day must not hide each other.
        sharpe = [math.nan if run["sharpe_annual"] is None else run["sharpe_annual"] for run in measured]
        figures[f"bars{order}"] = plotly_figures.bars(labels, sharpe, "annual Sharpe", "run, oldest first")
        sections.append((f"bars{order}", heading, *halves(COLUMNS, rows, RESULTS)))
    return render(
        "history.html.j2",
        figures=figures,
        title="History of all runs",
        subtitle=f"{sum(map(len, groups.values()))} runs, oldest first, by the bars that they were tested on: results "
        "on other bars cannot be ranked. Picking the best of some is one more search: count it as trials."
        + (f" Left out, because a file is damaged: {', '.join(damaged)}." if damaged else ""),
        version=__version__,
        sections=sections,
        chart_caption="Annual Sharpe ratio out of sample of every run on these bars, oldest first.",
    )
