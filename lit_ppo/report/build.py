"""`lit-ppo report DIR`: one self-contained page from the files of a run. No torch, no network, no bar file.

results/<seed>/ -> analysis (numbers) -> plotly_figures, tables -> page (HTML) -> report.html
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lit_ppo.folds.optimisation_summary import Summary
from lit_ppo.report import captions, plotly_figures, tables
from lit_ppo.report.analysis import Analysis, analyse
from lit_ppo.report.breakdown import MONTHS
from lit_ppo.report.page import render
from lit_ppo.report.scrutiny import rolling_sharpe, selection
from lit_ppo.report.tables import Row, without_directories
from lit_ppo.report.untraded import decided_by, price_of_screen, remedies, screened, unmirrored
from lit_ppo.report.verdict import CONFIDENCE
from lit_ppo.scoring.performance import drawdown, equity_curve
from lit_ppo.scoring.pooling import pooled_text
from lit_ppo.scoring.replay import fold_starts
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import shown_path
from lit_ppo.store.schema import read_json
from lit_ppo.version import __version__
from lit_ppo.words import plural

SECTIONS = (
    ("verdict", "Verdict"),
    ("features", "Features"),
    ("numbers", "Numbers"),
    ("seeds", "Seeds"),
    ("equity", "Equity"),
    ("folds", "Folds"),
    ("price", "Price"),
    ("trades", "Trades"),
    ("returns", "Returns"),
    ("risk", "Risk"),
    ("months", "Months"),
    ("stress", "Stress"),
    ("learning", "Learning curves"),
    ("optimisations", "Optimisations"),
    ("data", "Data card"),
    ("configuration", "Configuration"),
    ("rerun", "How to rerun"),
)
# Keys of metrics.jsonl that are drawn, in this order.
LEARNING_KEYS = {
    "validation/score": "Validation score",
    "train/entropy": "Entropy, nats",
    "train/approx_kl": "KL divergence of an update, nats",
    "train/explained_variance": "Explained variance of the critic",
    "train/turnover_per_bar": "Turnover per bar",
    "train/exposure": "Exposure",
    "train/value_loss": "Value loss",
    "time/steps_per_s": "Speed, timesteps/s",
}
# A ledger recomputed from the fills agrees to rounding; more means that the two files do not belong together.
TOLERANCE = 1e-9


def write_report(run: str | Path | Analysis) -> Path:
    """Write `report.html` into the folder of a run and return its path.

    Args:
        run: its folder, or its analysis where there is one already.

    Raises:
        FileNotFoundError, ValueError: as `analysis.analyse`.
    """
    analysis = run if isinstance(run, Analysis) else analyse(run)
    path = analysis.run.path / "report.html"
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link; a report is written only inside its run's folder. Remove the link"
        )
    atomic_write(path, page(analysis))
    return path


def page(analysis: Analysis) -> str:
    """The whole page as text."""
    run, traded, features = analysis.run, _traded(analysis), screened(analysis.run.folds)
    figures = charts(analysis)
    sections = _sections(analysis, figures)
    source = run.record.get("data", {}).get("path")
    if not source:
        source = f"synthetic {run.record.get('oracle', {}).get('kind', 'market')}".replace("_", " ")
    first, last = analysis.time[[0, -1]].astype("datetime64[ns]").astype("datetime64[D]")
    return render(
        "report.html.j2",
        figures=figures,
        title=f"{without_directories(str(source))}: walk-forward, seed {run.record.get('seed', 'unknown')}",
        subtitle=f"{plural(len(analysis.time), 'test bar')}, {first} to {last}, "
        f"{plural(len(analysis.fold_metrics), 'fold')}; "
        f"run {run.record.get('status', 'of unknown status')}.",
        sections=sections,
        shown={name for name, _ in sections},
        traded=traded,
        tries=[] if traded else remedies(run.folds),
        screen_rows=tables.screen(features),
        screen_names=[feature.name for feature in features],
        screen_fold_rows=tables.screen_folds(features, run.folds),
        version=__version__,
        confidence=f"{100 * CONFIDENCE:.0f}",
        verdict=analysis.verdict,
        decided_by=decided_by(run),
        unmirrored=unmirrored(run.folds),
        price_of_screen=price_of_screen(run.folds),
        power=analysis.power,
        cards=tables.cards(analysis),
        evidence=tables.evidence(analysis),
        money=tables.money(analysis),
        captions=captions.captions(analysis),
        pooled=pooled_text(analysis.pooled) if analysis.pooled else "",
        seed_columns=tables.seed_columns(analysis),
        seed_rows=tables.seeds(analysis),
        pooled_rows=tables.pooled(analysis),
        baseline_columns=tables.BASELINE_COLUMNS,
        baseline_rows=tables.baselines(analysis),
        random_text=captions.random_traders(analysis),
        missing_fills=analysis.missing_fills,
        has_timeline="timeline" in figures,
        fold_columns=tables.FOLD_COLUMNS,
        fold_rows=tables.folds(analysis),
        best=captions.best_trades(analysis),
        side_columns=tables.SIDE_COLUMNS,
        side_rows=tables.sides(analysis),
        drawdown_columns=tables.DRAWDOWN_COLUMNS,
        drawdown_rows=tables.drawdowns(analysis),
        day_rows=tables.days(analysis),
        market_rows=tables.market(analysis),
        month_names=MONTHS,
        months=tables.heat_map(analysis.months),
        splits=[(name, tables.groups(groups)) for name, groups in analysis.splits.items() if "hour" not in name],
        stress_rows=tables.stress(analysis),
        learning=[(name, label) for name, label, _ in _learning(analysis)],
        optimisation_rows=_optimisations(analysis),
        data_rows=tables.data_card(run.record),
        run_rows=_run_rows(analysis),
        checks=_checks(analysis),
        config=_config(analysis),
        rerun=_rerun(analysis),
        committed=bool(run.record.get("commit")),
    )


def _traded(analysis: Analysis) -> bool:
    """Whether there is anything to draw: a run that stayed flat to the end fits one screen."""
    return bool(analysis.position.any())


def _sections(analysis: Analysis, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections that the page of a run has, in their order: what is not there is not drawn."""
    there = {
        "features": bool(screened(analysis.run.folds)),
        "seeds": analysis.pooled is not None,
        "price": "price" in figures,
        "trades": bool(len(analysis.trades)),
        "stress": bool(analysis.stress),
        "learning": any(name.startswith("learning-") for name in figures),
        "optimisations": any(record.details.get("optimisations") for record in analysis.run.folds),
    }
    shown = {name for name, _ in SECTIONS}
    if not _traded(analysis):
        shown = {"verdict", "features", "data", "configuration", "rerun"}
    return [(name, label) for name, label in SECTIONS if name in shown and there.get(name, True)]


def charts(analysis: Analysis) -> dict[str, Any]:
    """Every chart of the page by name; one that has no data is left out."""
    if not _traded(analysis):
        return {}
    net, equity = analysis.net_return, equity_curve(analysis.net_return)
    curves = [("the agent", "agent", equity)]
    curves += [(plotly_figures.plain_text(x.label), x.color, equity_curve(x.net_returns)) for x in analysis.baselines]
    oracle = analysis.evidence.oracle
    if oracle is not None and not oracle.nothing:
        with np.errstate(over="ignore"):
            ideal = np.exp(math.log1p(oracle.optimum_return) * np.arange(1, len(net) + 1))
        curves.append(("known optimum (expected)", "oracle", ideal))
    by_hour = analysis.splits["hour (UTC)"]
    found = {
        "equity": plotly_figures.equity(
            analysis.time, curves, drawdown(net)[0], fold_starts(analysis.fold)[1:].tolist()
        ),
        "distribution": plotly_figures.distribution(net, float(net.std())),
        "hours": plotly_figures.bars(
            [g.label for g in by_hour], [g.sum_pct for g in by_hour], "%", "hour of the day, UTC"
        ),
    }
    roles = ("train", "validation", "test")
    folds = [record for record in analysis.run.folds if all(role in record.details.get("times", {}) for role in roles)]
    if folds:
        found["timeline"] = plotly_figures.timeline(
            [
                {"index": record.index, "note": _fold_note(record), "bars": record.bars, **record.details["times"]}
                for record in folds
            ]
        )
    if analysis.fills is not None:
        found["price"] = plotly_figures.price(
            analysis.time, analysis.fills.fill_price, analysis.position, analysis.trades
        )
    _, ratios = rolling_sharpe(net, analysis.bars_per_year)
    if np.isfinite(ratios).any():
        found["rolling"] = plotly_figures.rolling(analysis.time, ratios)
    if len(analysis.trades) >= 10:
        found["trades"] = plotly_figures.trade_results(analysis.trades.result)
    if (chosen := selection(analysis.run.folds)) is not None:
        names = [f"fold {index}" for index in chosen.folds]
        titles = ("validation score", "test score")
        found["selection"] = plotly_figures.scatter(chosen.validation, chosen.test, names, titles)
    if analysis.stress:
        labels, figures = zip(*analysis.stress, strict=True)
        found["stress"] = plotly_figures.bars(labels, [m["return_pct"] for m in figures], "%", "net return")
    return found | {name: figure for name, _, figure in _learning(analysis)}


def _fold_note(record: Any) -> str:
    score = record.scores.get("validation/score")
    parts = [record.status, f"{record.timesteps:,} timesteps", record.stop_reason]
    parts.append("" if score is None else f"validation score {score:.4f}")
    if source := tables.warm_start(record.details):
        parts.append(f"warm start from {source}")
    return plotly_figures.plain_text(", ".join(part for part in parts if part))


def _logged(analysis: Analysis, fold: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, with those of timing.jsonl (what differs from run to run) added line by line."""
    rows, timing = (analysis.run.metrics(fold, name) for name in ("metrics.jsonl", "timing.jsonl"))
    for row, more in zip(rows, timing, strict=False):  # a kill may leave one file a line longer
        row.update(more)
    return rows


def _learning(analysis: Analysis) -> list[tuple[str, str, plotly_figures.Figure]]:
    """(name, label, chart) of every metric that the folds logged."""
    grid = np.linspace(0, 1, 51)
    lines = [_logged(analysis, record.index) for record in analysis.run.folds]
    panels: list[tuple[str, str, plotly_figures.Figure]] = []
    for key, label in LEARNING_KEYS.items():
        logged = [[row[key] for row in rows if isinstance(row.get(key), int | float)] for rows in lines]
        folds = [np.interp(grid, np.linspace(0, 1, len(values)), values) for values in logged if len(values) > 1]
        if folds:
            figure = plotly_figures.learning(np.median(folds, axis=0), folds)
            panels.append((f"learning-{len(panels)}", label, figure))
    return panels


def _optimisations(analysis: Analysis) -> list[Row]:
    path = analysis.run.path / "optimization_summary.json"
    if not path.is_file():
        return []
    return tables.optimisations(read_json(path, Summary, "Delete it, or run the walk-forward again"))


def _run_rows(analysis: Analysis) -> list[Row]:
    shown = ("status", "seed", "seeds", "commit", "dirty", "started", "finished", "device", "machine", "versions")
    record = analysis.run.record
    return tables.flatten({key: record[key] for key in shown if key in record})


def _checks(analysis: Analysis) -> list[Row]:
    left, difference = analysis.run.rows_left_out, analysis.recomputed
    unfinished = sum(record.status != "done" for record in analysis.run.folds)
    rows = {
        "Net returns recomputed from the fills": "not possible, the fills are not on disk"
        if math.isnan(difference)
        else "agree exactly"
        if difference == 0
        else f"agree to {difference:.1e}"
        if difference <= TOLERANCE
        else f"DIFFER by up to {difference:.3g}: this result is not to be trusted",
        "Folds not finished": str(unfinished) if unfinished else "none",
        "Rows of unfinished folds left out": f"{left:,}" if left else "none",
        "Trials counted": f"{analysis.evidence.trials:,}, {analysis.evidence.kinds:,} of their own kind by returns",
    }
    if found := analysis.run.record.get("search"):
        start, stop = found["validation"]
        rows["Settings chosen by"] = (
            f"lit-ppo search: the best of {plural(found['trials'], 'trial')} by {found['objective']} on the validation "
            f"of {plural(found['folds'], 'fold')}, bars {start:,} to {stop - 1:,}, before these test bars; they are no "
            "trials here"
        )
    for key, label in (("refused", "Mixed at a resume (--allow-mismatch)"), ("inexact", "Not bit-identical since")):
        notes = [entry for note in analysis.run.record.get("changed_at_resume", []) for entry in note.get(key, [])]
        if notes:
            rows[label] = "; ".join(notes)
    return tables.flatten(rows)


def _config(analysis: Analysis) -> str:
    if not analysis.run.settings:
        return ""
    return yaml.safe_dump(_shortened(analysis.run.settings), sort_keys=False, allow_unicode=True, width=110)


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return without_directories(value) if isinstance(value, str) else value


def _rerun(analysis: Analysis) -> str:
    record = analysis.run.record
    folder = shown_path(analysis.run.path)
    command = " ".join(str(part) for part in record.get("command", []))
    release = f"pip install lit-ppo=={record.get('versions', {}).get('lit-ppo', 'VERSION')}"
    lines = [
        f"git checkout {record['commit']}" if record.get("commit") else release,
        f"lit-ppo walk-forward --from {folder}/run.json --results results/again",
        f"lit-ppo report {folder}",
        f"lit-ppo compare {folder} results/again/{record.get('seed', 0)}",
    ]
    if command:
        lines.insert(0, f"# this run was started as: {command}")
    return "\n".join(lines)
