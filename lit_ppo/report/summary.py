"""The table at the end of a walk-forward: folds, stitched result, baselines on the same bars, statistics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_ppo.oracles.optima import fraction_of_optimum
from lit_ppo.report.analysis import analyse, recorded_baselines
from lit_ppo.report.untraded import reason, remedies
from lit_ppo.scoring.fills import read_fills
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.scoring.power import power_of
from lit_ppo.scoring.replay import baseline_positions, random_traders, replay
from lit_ppo.store.results import FoldRecord, Run

MOST_FOLDS = 20  # in the table; all are in folds.json and the report
COLUMNS = ("return_pct", "sharpe_annual", "max_drawdown_pct", "trades", "turnover_per_bar", "cost_pct")
TITLES = ("return %", "Sharpe", "drawdown %", "trades", "turnover", "costs %")


def print_summary(run: Run, console: Console | None = None) -> None:
    """Print what a finished run is worth.

    Args:
        run: as `results.load_run` reads it.
        console: where to; the default is as wide as the table when there is no terminal.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=140)
    done = [record for record in run.folds if record.status == "done"]
    if run.out_of_sample["position"].any():
        console.print(_folds(run, done))
    if "oracle" in run.record:
        console.print(
            "Of the optimum: what the best trader earns on average; on the bars of one fold luck adds or takes."
        )
    console.print(_paths(run, done))
    for line in _statistics(run):
        console.print(line, highlight=False)
    here = run.path.is_relative_to(Path.cwd())
    power = power_of(run, run.settings, "" if here else str(run.path))
    if power is not None:
        console.print(power.text, highlight=False, markup=False, soft_wrap=True)  # its command may be copied


def _fraction(run: Run, net: Any) -> float:
    """Share of the optimum earned per bar; nan on real bars, or where there is nothing to earn."""
    oracle = run.record.get("oracle")
    if not oracle or not oracle["optimum_per_bar"] > 0:
        return math.nan
    return fraction_of_optimum(float(np.mean(net)), oracle["optimum_per_bar"], oracle["scale"])


def _folds(run: Run, done: list[FoldRecord]) -> Table:
    shown = done[-MOST_FOLDS:]
    title = "Out of sample, by fold" + (f" (the last {MOST_FOLDS} of {len(done)})" if len(done) > MOST_FOLDS else "")
    table = Table(title=title)
    synthetic = "oracle" in run.record
    names = ("fold", "bars visited", "seconds", "validation score", *TITLES)
    for name in (*names, *(["of optimum %"] if synthetic else [])):
        table.add_column(name, justify="right")
    rows = run.out_of_sample
    for record in shown:
        cells = [str(record.index), f"{record.timesteps:,}", f"{sum(record.seconds.values()):.1f}"]
        cells += [_cell(record.scores.get("validation/score"), 4)]
        cells += [_cell(record.scores.get(f"test/{name}")) for name in COLUMNS]
        if synthetic:
            net = rows.loc[rows["fold"] == record.index, "net_return"].to_numpy()
            cells.append(_cell(100 * _fraction(run, net), 1))
        table.add_row(*cells)
    return table


def _paths(run: Run, done: list[FoldRecord]) -> Table:
    """The stitched agent against traders that need no learning, on the same bars, fills and costs."""
    table = Table(title="All test bars, stitched")
    synthetic = "oracle" in run.record
    for name in ("trader", *TITLES, *(["of optimum %"] if synthetic else [])):
        table.add_column(name, justify="left" if name == "trader" else "right")
    fills = read_fills(run.path, [record.index for record in done])
    bars_per_year = run.bars_per_year
    position = run.out_of_sample["position"].to_numpy()
    ledgers = {"lit-ppo": replay(position, fills)}
    # One account through all folds, as on the page: they have no model that changes between folds.
    ledgers |= {
        name: replay(path, fills, restart=False) for name, path in baseline_positions(fills, bars_per_year).items()
    }
    for name, ledger in ledgers.items():
        figures = trading_metrics(ledger.net_return, ledger.position, bars_per_year, costs=ledger.cost)
        cells = [name.replace("_", " "), *(_cell(figures[column]) for column in COLUMNS)]
        if synthetic:
            cells.append(_cell(100 * _fraction(run, ledger.net_return), 1))
        table.add_row(*cells)
    for other in recorded_baselines(run, bars_per_year):
        cells = [other.label, *(_cell(other.metrics[column]) for column in COLUMNS)]
        if synthetic:
            cells.append(_cell(100 * _fraction(run, other.net_returns), 1))
        table.add_row(*cells)
    return table


def _statistics(run: Run) -> list[str]:
    net = run.out_of_sample["net_return"].to_numpy()
    position = run.out_of_sample["position"].to_numpy()
    lines = [f"{len(net):,} test bars. Folds: {len(run.folds)}."]
    if net.std() == 0:
        tries = [f"  {text}" for text in remedies(run.folds)]
        return [*lines, f"It never traded. {reason(run.folds)}", "To try:", *tries]
    analysis = analyse(run.path)
    interval = analysis.evidence.mean
    if math.isnan(interval.estimate):
        return [*lines, "Too few bars to say: no interval can be computed."]
    lines.append(
        f"Mean net return a year {100 * interval.estimate:+.2f} %, 95 % interval "
        f"[{100 * interval.low:+.2f}, {100 * interval.high:+.2f}] (stationary bootstrap)."
    )
    rank = analysis.evidence.rank
    if rank is None:  # one position throughout: the page compares it with nobody
        done = [record.index for record in run.folds if record.status == "done"]
        rank = random_traders(position, read_fills(run.path, done), seed=0).rank
    lines.append(f"Better than {rank.percentile:.1f} % of {rank.draws} random traders with the same habits.")
    lines.append(f"Verdict: {analysis.verdict.sentence}")
    return lines


def _cell(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"
