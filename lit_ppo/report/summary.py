"""What a run says at its end: tables of 80 columns and the verdict, or the object of `--json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from lit_ppo.oracles.optima import fraction_of_optimum
from lit_ppo.report.analysis import Analysis
from lit_ppo.report.untraded import decided_by, remedies, unmirrored
from lit_ppo.scoring.power import power_of
from lit_ppo.store.results import FoldRecord, Run
from lit_ppo.words import plural

MOST_FOLDS = 20  # in the table; all are in folds.json and the report
WIDTH = 100  # columns, of text where there is no terminal; the tables of usual figures need 80
COLUMNS = {
    "return_pct": "return\n%",
    "sharpe_annual": "Sharpe",
    "max_drawdown_pct": "drawdown\n%",
    "trades": "trades",
    "turnover_per_bar": "turnover",
    "cost_pct": "costs\n%",
}
COUNTS = ("trades", "max_drawdown_bars")  # figures that are whole numbers
OPTIMUM = "optimum\n%"  # share of it


def console_of(width: int) -> Console:
    """Standard output: as wide as the terminal, or `width` columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def print_summary(analysis: Analysis, console: Console | None = None) -> None:
    """Print what a finished run is worth.

    Args:
        analysis: of the run, the one that its page shows.
        console: where to; None: standard output.
    """
    console, run = console or console_of(WIDTH), analysis.run
    if analysis.position.any():
        console.print(_folds(run))
    if "oracle" in run.record:
        console.print(
            "Optimum: what the best trader earns on average; on the bars of one fold luck adds or takes.",
            highlight=False,
        )
    console.print(_paths(analysis))
    for line in _statistics(analysis):
        console.print(line, highlight=False)
    here = run.path.is_relative_to(Path.cwd())
    power = power_of(run, run.settings, "" if here else str(run.path))
    if power is not None:
        console.print(power.text, highlight=False, markup=False, soft_wrap=True)  # its command may be copied


def outcome(analysis: Analysis, report: Path | None) -> dict[str, Any]:
    """The object that `--json` prints: verdict, figures and where the files are.

    Args:
        analysis: of the run.
        report: its page; None: nothing of the run is kept.
    """
    paths: dict[str, Path] = {}
    if report is not None:
        files = ("out_of_sample.csv", "trades.csv", "folds.json", "run.json")
        paths = {"folder": report.parent, "report": report}
        paths |= {name.partition(".")[0]: report.parent / name for name in files}
    return {
        "verdict": analysis.verdict._asdict(),
        "decided_by": decided_by(analysis.run),
        "test_bars": len(analysis.time),
        "folds": len(analysis.fold_metrics),
        "metrics": _with_whole_counts(analysis.metrics),
        "baselines": {contender.key: _with_whole_counts(contender.metrics) for contender in analysis.baselines},
        "paths": {name: str(path) for name, path in paths.items()},
    }


def _with_whole_counts(metrics: Mapping[str, float]) -> dict[str, float | int]:
    return {key: int(value) if key in COUNTS and math.isfinite(value) else value for key, value in metrics.items()}


def _fraction(run: Run, net: NDArray[np.float64]) -> float:
    """Share of the optimum earned per bar; nan on real bars, or where there is nothing to earn."""
    oracle = run.record.get("oracle")
    if not oracle or not oracle["optimum_per_bar"] > 0:
        return math.nan
    return fraction_of_optimum(float(np.mean(net)), oracle["optimum_per_bar"], oracle["scale"])


def _table(title: str, columns: Sequence[str], left: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    table.title_justify = "left"
    for name in columns:
        table.add_column(name, justify="left" if name == left else "right")
    return table


def _folds(run: Run) -> Table:
    done: list[FoldRecord] = [record for record in run.folds if record.status == "done"]
    shown = done[-MOST_FOLDS:]
    title = "Out of sample, by fold" + (f" (the last {MOST_FOLDS} of {len(done)})" if len(done) > MOST_FOLDS else "")
    synthetic, trained = "oracle" in run.record, any(record.timesteps for record in shown)
    figures = {key: name for key, name in COLUMNS.items() if key != "turnover_per_bar"}
    columns = ["fold", *(["bars\nvisited"] if trained else []), "validation\nscore", *figures.values()]
    table = _table(title, [*columns, *([OPTIMUM] if synthetic else [])], "")
    rows = run.out_of_sample
    for record in shown:
        cells = [str(record.index), *([f"{record.timesteps:,}"] if trained else [])]
        cells += [_cell(record.scores.get("validation/score"), 4)]
        cells += [_figure(key, record.scores.get(f"test/{key}")) for key in figures]
        if synthetic:
            net = rows.loc[rows["fold"] == record.index, "net_return"].to_numpy()
            cells.append(_cell(100 * _fraction(run, net), 1))
        table.add_row(*cells)
    return table


def _paths(analysis: Analysis) -> Table:
    """The stitched agent against traders that need no learning, on the same bars, fills and costs."""
    synthetic = "oracle" in analysis.run.record
    columns = ["trader", *COLUMNS.values(), *([OPTIMUM] if synthetic else [])]
    table = _table("All test bars, stitched", columns, "trader")
    traders = [("lit-ppo", analysis.metrics, analysis.net_return)]
    traders += [(other.key.replace("_", " "), other.metrics, other.net_returns) for other in analysis.baselines]
    for name, figures, net in traders:
        cells = [name, *(_figure(key, figures[key]) for key in COLUMNS)]
        if synthetic:
            cells.append(_cell(100 * _fraction(analysis.run, net), 1))
        table.add_row(*cells)
    return table


def _statistics(analysis: Analysis) -> list[str]:
    run, evidence = analysis.run, analysis.evidence
    lines = [f"{plural(len(analysis.time), 'test bar')}. Folds: {len(run.folds)}."]
    lines += filter(None, (decided_by(run), unmirrored(run.folds)))
    if not analysis.position.any():
        return [*lines, analysis.verdict.text, "To try:", *(f"  {text}" for text in remedies(run.folds))]
    interval = evidence.mean
    if not math.isnan(interval.estimate):  # of a few bars there is none, and no rank worth telling
        lines.append(
            f"Mean net return a year {100 * interval.estimate:+.2f} %, 95 % interval "
            f"[{100 * interval.low:+.2f}, {100 * interval.high:+.2f}] (stationary bootstrap)."
        )
        if evidence.rank is not None:
            rank = evidence.rank
            lines.append(f"Better than {rank.percentile:.1f} % of {rank.draws} random traders with the same habits.")
    lines.append(f"Verdict: {analysis.verdict.text}")
    return lines


def _figure(key: str, value: float | None) -> str:
    return _cell(value, 0 if key == "trades" else 2)


def _cell(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"
