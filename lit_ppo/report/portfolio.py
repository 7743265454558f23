"""Several instruments' runs as one portfolio: RESULTS/portfolio.json and portfolio.html. No torch.

RESULTS/<name>/<seed>/ -> scoring.portfolio (days, weights, returns) -> record -> page
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from lit_ppo.report import plotly_figures
from lit_ppo.report.analysis import trials_seen
from lit_ppo.report.compare import text_table
from lit_ppo.report.page import number, render, signed, tint
from lit_ppo.report.tables import Card, Cell, Row, between
from lit_ppo.report.verdict import CONFIDENCE, Verdict, independent_bets, judge, weigh
from lit_ppo.scoring.performance import calmar, drawdown, equity_curve, sharpe_annual
from lit_ppo.scoring.portfolio import DAY, RISK, Leg, Portfolio, combine, rank_among_random, read_leg
from lit_ppo.scoring.significance import Alpha, Interval, alpha_over
from lit_ppo.store.atomic import atomic_write, refuse_link
from lit_ppo.store.files import json_bytes
from lit_ppo.store.results import load_run
from lit_ppo.store.schema import Count, read_json
from lit_ppo.version import __version__
from lit_ppo.words import plural

FILE_NAME = "portfolio.json"
PAGE_NAME = "portfolio.html"
SCHEMA = 1
SEED = 0  # of the bootstrap and the random traders: every page of the same runs is the same
SIGNIFICANT = 1.96  # t of an alpha
MOST_CORRELATIONS = 16  # instruments whose pairs fit a page; with more, each one's mean is shown
LABELS = {
    "agent": ("the agent", "agent"),
    "long": ("long", "hold"),
    "trend": ("trend: sign of the last year", "trend"),
    "long_trend": ("long + trend", "year"),
    "later": ("the agent, one bar later", ""),
    "no_costs": ("the agent, no costs", ""),
    "double_costs": ("the agent, double costs", ""),
}
# Baselines that the agent is regressed on, by label.
FACTORS = {
    "long": ("long",),
    "trend": ("trend",),
    "long + trend": ("long_trend",),
    "long and trend, each with its own beta": ("long", "trend"),
}
JUDGED = "long and trend, each with its own beta"


class PortfolioRecord(TypedDict):
    """What of portfolio.json is read back."""

    seed: Count
    instruments: list[str]
    failed: dict[str, str]


class Result(NamedTuple):
    """Everything the page shows."""

    legs: Sequence[Leg]
    portfolio: Portfolio
    verdict: Verdict
    sharpe: Interval
    mean: Interval
    alphas: Mapping[str, Alpha]


def write_portfolio(
    root: str | Path, names: Sequence[str], seed: int, failed: Mapping[str, str]
) -> tuple[dict[str, Any], Path]:
    """Combine the runs ROOT/<name>/<seed>; write portfolio.json and portfolio.html.

    Args:
        root: the results directory.
        names: of the instruments.
        seed: of their runs.
        failed: why an instrument has no run, by name.

    Returns:
        What portfolio.json holds, and the path of the page.

    Raises:
        FileNotFoundError, ValueError: a run is missing or damaged, or the tests are too short for a volatility.
    """
    root = Path(root)
    result, record = _analysed(root, names, seed, failed)
    atomic_write(refuse_link(root / FILE_NAME), json_bytes(record))
    atomic_write(refuse_link(root / PAGE_NAME), page(result, record))
    return record, root / PAGE_NAME


def rewrite_portfolio(root: str | Path) -> Path:
    """Write portfolio.json and the page again, from the runs; returns the path of the page."""
    record = read_portfolio(root)
    return write_portfolio(root, record["instruments"], record["seed"], record["failed"])[1]


def read_portfolio(root: str | Path) -> dict[str, Any]:
    """Return portfolio.json of a results directory."""
    remedy = "Delete it, or run lit-ppo walk-forward with --resume again"
    record: dict[str, Any] = read_json(Path(root) / FILE_NAME, PortfolioRecord, remedy)
    return record


def _analysed(root: Path, names: Sequence[str], seed: int, failed: Mapping[str, str]) -> tuple[Result, dict[str, Any]]:
    runs = {name: load_run(root / name / str(seed)) for name in names}
    legs = [read_leg(name, run) for name, run in runs.items()]
    portfolio = combine(legs)
    net, gross = portfolio.net(), np.abs(portfolio.exposure).sum(axis=1)
    traded = bool(gross.any())
    trials = max(trials_seen(run) for run in runs.values())
    evidence = weigh(
        net,
        portfolio.days_per_year,
        trials.number,
        kinds=trials.kinds,
        bets=independent_bets(gross, portfolio.day * DAY),
        hold=portfolio.net("long"),
        rank=rank_among_random(legs, portfolio, SEED) if traded else None,
        oracle=None,
        ruined=bool(equity_curve(net)[-1] <= 0),
        seed=SEED,
    )
    alphas = {label: alpha_over(net, *(portfolio.net(key) for key in keys)) for label, keys in FACTORS.items()}
    verdict = judge(evidence, "" if traded else "No instrument was ever held.")
    if traded:
        verdict = verdict._replace(text=f"{verdict.text} {beyond_trend(alphas[JUDGED], portfolio)}")
    result = Result(legs, portfolio, verdict, evidence.sharpe, evidence.mean, alphas)
    per_year = portfolio.days_per_year
    first, last = (str(day) for day in portfolio.day[[0, -1]].astype("datetime64[D]"))
    record = {
        "schema": SCHEMA,
        "seed": seed,
        "instruments": list(runs),
        "failed": dict(failed),
        "days": len(net),
        "range": [first, last],
        "days_per_year": per_year,
        "verdict": verdict._asdict(),
        "trials": evidence.trials,
        "sharpe": evidence.sharpe._asdict(),
        "deflated_sharpe": evidence.deflated,
        "traders": {key: figures(portfolio.net(key), per_year) for key in LABELS},
        "alpha": {
            label: {"percent_a_year": 100 * found.alpha * per_year, "t": found.t, "betas": found.betas}
            for label, found in alphas.items()
        },
        "by_instrument": by_instrument(legs, portfolio),
        "correlations": portfolio.correlations().tolist(),
    }
    return result, record


def beyond_trend(alpha: Alpha, portfolio: Portfolio) -> str:
    """Whether it is more than being long and following the trend, in one sentence."""
    percent = signed(100 * alpha.alpha * portfolio.days_per_year)
    numbers = f"alpha {percent} % a year over both, Newey-West t {signed(alpha.t)}"
    if alpha.t >= SIGNIFICANT:
        return f"It is more than being long and following the trend: {numbers}."
    if alpha.t <= -SIGNIFICANT:
        return f"It is worse than being long and following the trend: {numbers}."
    return f"It is not shown to beat being long and following the trend: {numbers}."


def figures(net: NDArray[np.float64], per_year: float) -> dict[str, float]:
    """Figures of a portfolio's net returns [N] a day; percentages of equity."""
    return {
        "return_pct": 100 * (float(equity_curve(net)[-1]) - 1),
        "mean_pct": 100 * float(net.mean()) * per_year,
        "volatility_pct": 100 * float(net.std()) * math.sqrt(per_year),
        "sharpe_annual": sharpe_annual(net, per_year),
        "max_drawdown_pct": 100 * float(drawdown(net)[0].max(initial=0.0)),
        "calmar": calmar(net, per_year),
    }


def by_instrument(legs: Sequence[Leg], portfolio: Portfolio) -> list[dict[str, Any]]:
    """One entry an instrument: when, how large, what it gave to the portfolio and what it is worth alone."""
    per_year, net = portfolio.days_per_year, portfolio.net()
    agent, paid = portfolio.returns["agent"], portfolio.returns["no_costs"] - portfolio.returns["agent"]
    shares, correlations = portfolio.share_of_risk(), portfolio.correlations()
    found = []
    for column, leg in enumerate(legs):
        live = portfolio.weights[:, column] > 0
        others = np.delete(correlations[column], column)
        known = others[np.isfinite(others)]
        first, last = (str(day) for day in leg.day[[0, -1]].astype("datetime64[D]"))
        entry = {
            "name": leg.name,
            "range": [first, last],
            "days": int(live.sum()),
            "notional_pct": 100 * float(np.abs(portfolio.exposure[live, column]).mean()) if live.any() else math.nan,
            "contribution_pct": 100 * float(agent[:, column].mean()) * per_year,
            "costs_pct": 100 * float(paid[:, column].mean()) * per_year,
            "share_of_risk_pct": 100 * float(shares[column]),
            "correlation_with_rest": _correlation(agent[live, column], (net - agent[:, column])[live]),
            "mean_correlation": float(known.mean()) if len(known) else math.nan,
        }
        for key in ("agent", "long", "trend", "long_trend"):
            entry[f"sharpe_{key}"] = sharpe_annual(portfolio.alone(key, column), per_year)
        found.append(entry)
    return found


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


# What the page and the terminal show

TRADER_COLUMNS = ("", "Net return, %", "Mean a year, %", "Volatility a year, %", "Sharpe, annual", "Max. drawdown, %")
ALPHA_COLUMNS = ("Alpha over", "Alpha, % a year", "Newey-West t", "Beta")
INSTRUMENT_COLUMNS = (
    *("Instrument", "Test", "Days", "Notional, %", "Contribution, % a year", "Costs, % a year", "Share of risk, %"),
    *("Sharpe", "Long", "Trend", "Long + trend", "Correlation with the rest", "Mean correlation"),
)


def portfolio_text(record: Mapping[str, Any]) -> str:
    """The portfolio for a terminal."""
    columns = ("", "return %", "Sharpe", "drawdown %")
    rows = [
        Row(
            LABELS[key][0],
            [Cell(signed(x["return_pct"])), Cell(signed(x["sharpe_annual"])), Cell(number(x["max_drawdown_pct"]))],
        )
        for key, x in record["traders"].items()
    ]
    first, last = record["range"]
    head = (
        f"{plural(len(record['instruments']), 'instrument')} at equal risk, {record['days']:,} days, {first} to {last}"
    )
    return f"\n{head}\n\n{text_table(columns, rows)}\n\n{record['verdict']['text']}"


def page(result: Result, record: Mapping[str, Any]) -> str:
    """The whole page as text."""
    portfolio, net = result.portfolio, result.portfolio.net()
    time = portfolio.day * DAY
    curves = [(label, color, equity_curve(portfolio.net(key))) for key, (label, color) in LABELS.items() if color]
    rows = record["by_instrument"]
    names = [plotly_figures.plain_text(row["name"]) for row in rows]
    charts = {
        "equity": plotly_figures.equity(time, curves, drawdown(net)[0], []),
        "contribution": plotly_figures.bars(names, [row["contribution_pct"] for row in rows], "% a year", "instrument"),
    }
    live = portfolio.live
    known = any(x is not None and math.isfinite(x) for line in record["correlations"] for x in line)
    few = known and len(rows) <= MOST_CORRELATIONS
    at_a_time = plural(int(live.max()), "instrument")
    return render(
        "portfolio.html.j2",
        figures=charts,
        title=f"Portfolio of {plural(len(rows), 'instrument')}, seed {record['seed']}",
        subtitle=f"{len(net):,} days, {record['range'][0]} to {record['range'][1]}; "
        f"{f'{live.min()} to ' if live.min() < live.max() else ''}{at_a_time} at a time.",
        verdict=result.verdict,
        confidence=f"{100 * CONFIDENCE:.0f}",
        cards=_cards(result, record),
        risk=f"{100 * RISK:g}",
        trader_columns=TRADER_COLUMNS,
        trader_rows=[_trader(key, figures) for key, figures in record["traders"].items()],
        alpha_columns=ALPHA_COLUMNS,
        alpha_rows=[_alpha(label, found, portfolio.days_per_year) for label, found in result.alphas.items()],
        instrument_columns=INSTRUMENT_COLUMNS,
        instrument_rows=[_instrument(row) for row in rows],
        correlation_columns=["", *(row["name"] for row in rows)] if few else [],
        correlation_rows=[
            Row(row["name"], [Cell(number(x)) for x in line])
            for row, line in zip(rows, record["correlations"], strict=True)
        ]
        if few
        else [],
        failed=record["failed"],
        version=__version__,
    )


def _cards(result: Result, record: Mapping[str, Any]) -> list[Card]:
    m = record["traders"]["agent"]
    return [
        Card("Net return", f"{signed(m['return_pct'])} %"),
        Card("Mean net return a year", f"{signed(m['mean_pct'])} %", between(result.mean, 100)),
        Card("Volatility a year", f"{number(m['volatility_pct'])} %"),
        Card("Sharpe, annual", signed(m["sharpe_annual"]), between(result.sharpe)),
        Card("Maximum drawdown", f"{number(m['max_drawdown_pct'])} %"),
        Card("Calmar", signed(m["calmar"])),
        Card("Costs paid", f"{number(sum(row['costs_pct'] for row in record['by_instrument']))} %", "of equity a year"),
        Card("Notional", f"{number(100 * float(np.abs(result.portfolio.exposure).sum(axis=1).mean()), 1)} %", "mean"),
    ]


def _trader(key: str, m: Mapping[str, Any]) -> Row:
    cells = [
        Cell(signed(m["return_pct"]), tint(m["return_pct"])),
        Cell(signed(m["mean_pct"])),
        Cell(number(m["volatility_pct"])),
        Cell(signed(m["sharpe_annual"])),
        Cell(number(m["max_drawdown_pct"])),
    ]
    return Row(LABELS[key][0], cells, key == "agent")


def _alpha(label: str, found: Alpha, per_year: float) -> Row:
    percent, betas = 100 * found.alpha * per_year, ", ".join(number(beta) for beta in found.betas)
    return Row(label, [Cell(signed(percent), tint(percent)), Cell(signed(found.t)), Cell(betas)], label == JUDGED)


def _days(first: str, last: str) -> str:
    """From one day to another, in two lines where it must break."""
    return f"{first} to\N{NO-BREAK SPACE}{last}".replace("-", "\N{NON-BREAKING HYPHEN}")


def _instrument(row: Mapping[str, Any]) -> Row:
    cells = [Cell(_days(*row["range"]), "text"), Cell(f"{row['days']:,}")]
    cells += [
        Cell(number(row["notional_pct"], 1)),
        Cell(signed(row["contribution_pct"]), tint(row["contribution_pct"])),
    ]
    cells += [Cell(number(row["costs_pct"])), Cell(number(row["share_of_risk_pct"], 1))]
    cells += [Cell(signed(row[f"sharpe_{key}"])) for key in ("agent", "long", "trend", "long_trend")]
    return Row(row["name"], [*cells, Cell(number(row["correlation_with_rest"])), Cell(number(row["mean_correlation"]))])
