"""`lit-ppo compare --all`: the history of every run under a results directory, in one file.

The file is a summary that can be deleted at any time: it is made again from the run folders. A run whose folder is gone
keeps its row, marked as gone, because history is what it is for.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from lit_ppo import __version__
from lit_ppo.report import plotly_figures
from lit_ppo.report.compare import halves, printable, text_table
from lit_ppo.report.page import number, render, signed, tint
from lit_ppo.report.tables import Cell, Row
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import json_bytes
from lit_ppo.store.results import Run, load_run, run_records
from lit_ppo.store.schema import Count, Seconds, read_json

FILE_NAME = "runs.json"


class IndexedRun(TypedDict):
    """What is kept of a run; `stamp` tells whether its files changed since."""

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


class Index(TypedDict):
    """runs.json."""

    schema: Literal[1]
    runs: list[IndexedRun]


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
    digest = hashlib.sha256()
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
    return {
        "folder": folder,
        "stamp": stamp,
        "started": record.get("started"),
        "status": record.get("status"),
        "seed": record.get("seed"),
        "data": data.get("path") or f"synthetic {record.get('oracle', {}).get('kind', 'market')}",
        "sha256": data.get("sha256"),
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
    *("", "Started", "Status", "Data", "Code", "Folds", "Return, %", "Sharpe", "Max. drawdown, %", "Validation score"),
    *("Timesteps a fold", "Seconds a fold", "Did less, x", "Did it faster, x"),
)


RESULTS = 8  # of the columns are about the result, the others about what it took


def history(root: str | Path, html_path: str | Path | None = None) -> str:
    """The history of all runs under `root`, as text; speed is against the oldest run on the same bytes that trained.

    Args:
        root: results directory.
        html_path: also write a page there.
    """
    runs, damaged = update(root)
    left_out = "".join(f"\nLeft out: {printable(error)}" for error in damaged.values())
    if not runs:
        return f"No run under {Path(root).name} yet.{left_out}"
    measured = [run for run in runs if run["folds"] and run["timesteps"] and run["seconds"]]
    references = {run["sha256"]: run for run in reversed(measured)}
    rows = [_row(run, references.get(run["sha256"])) for run in runs]
    if html_path is not None:
        atomic_write(html_path, _page(runs, rows, damaged))
    return text_table(COLUMNS, rows) + left_out


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
            Cell(str(run["data"] or "–")),
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


def _page(runs: list[dict[str, Any]], rows: list[Row], damaged: dict[str, str]) -> str:
    measured = [run for run in runs if run["folds"]]
    labels = [plotly_figures.plain_text(run["folder"]) for run in measured]
    # One mark per run in the order of their start: two results of a day must not hide each other.
    sharpe = [math.nan if run["sharpe_annual"] is None else run["sharpe_annual"] for run in measured]
    results, effort = halves(COLUMNS, rows, RESULTS)
    figure = plotly_figures.bars(labels, sharpe, "annual Sharpe", "run, oldest first")
    return render(
        "compare.html.j2",
        figures={"equity": figure},
        title="History of all runs",
        subtitle=f"{len(runs)} runs, oldest first. Picking the best of them is one more search: count it as trials."
        + (f" Left out, because a file is damaged: {', '.join(damaged)}." if damaged else ""),
        version=__version__,
        results=results,
        results_caption="Out of sample, after costs; runs on other data answer other questions",
        effort=effort,
        effort_caption="What it took; less and faster are against the oldest training on the same bytes",
        chart_caption="Annual Sharpe ratio out of sample of every run, oldest first.",
        difference_columns=(),
        difference_rows=[],
        reference="",
        setting_columns=(),
        setting_rows=[],
        pooled="",
        other_files="",
    )
