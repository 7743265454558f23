"""The tables of the report as rows of plain text cells; the template escapes and draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from lit_ppo.folds.optimisation_summary import pace_in_words, work_in_words
from lit_ppo.report.analysis import Analysis
from lit_ppo.report.breakdown import Group, Month
from lit_ppo.report.page import number, signed, tint
from lit_ppo.report.scrutiny import against_market, daily, worst_drawdowns
from lit_ppo.report.scrutiny import sides as sides_of
from lit_ppo.report.untraded import ScreenedFeature
from lit_ppo.report.verdict import CONFIDENCE, ENOUGH, Evidence, duration
from lit_ppo.scoring.pooling import POOLED
from lit_ppo.scoring.significance import Interval
from lit_ppo.store.results import FoldRecord
from lit_ppo.words import plural

_SIGNED = ("return_pct", "sharpe_annual")  # the others are sizes, or shares
_SEED_DIGITS = {"trades": 0, "of_optimum_pct": 1}


class Cell(NamedTuple):
    text: str
    kind: str = ""  # CSS class: "gain", "loss", "text", ...


class Row(NamedTuple):
    label: str
    cells: list[Cell]
    ours: bool = False


class Card(NamedTuple):
    label: str
    value: str
    range: str = ""


def between(interval: Interval, factor: float = 1.0) -> str:
    """ "[low to high]", or nothing where there is no interval."""
    if math.isnan(interval.estimate):
        return ""
    return f"[{signed(factor * interval.low)} to {signed(factor * interval.high)}]"


def cards(analysis: Analysis) -> list[Card]:
    """The figures at the top."""
    m, evidence = analysis.metrics, analysis.evidence
    a_year = _with_unit(signed(100 * evidence.mean.estimate), "%")
    return [
        Card("Net return", _with_unit(signed(m["return_pct"]), "%")),
        Card("Mean net return a year", a_year, between(evidence.mean, 100)),
        Card("Sharpe, annual", signed(m["sharpe_annual"]), between(evidence.sharpe)),
        Card("Sortino, annual", signed(m["sortino_annual"])),
        Card(
            "Maximum drawdown",
            number(m["max_drawdown_pct"]) + " %",
            f"longest {plural(round(m['max_drawdown_bars']), 'bar')}",
        ),
        Card("Calmar", signed(m["calmar"])),
        Card("Profit factor", number(m["profit_factor"])),
        Card("Win rate", _with_unit(number(100 * m["win_rate"], 1), "%"), plural(round(m["trades"]), "trade")),
        Card("Costs paid", number(m["cost_pct"]) + " %", "of notional, summed"),
        Card("Exposure", number(100 * m["exposure"], 1) + " %", f"turnover {number(m['turnover_per_bar'], 4)} a bar"),
        Card("Average holding time", _with_unit(number(m["holding_bars"], 1), "bars")),
        Card(
            "Test",
            plural(len(analysis.time), "bar"),
            f"{duration(evidence.years)}, {plural(len(analysis.fold_metrics), 'fold')}",
        ),
    ]


def _with_unit(text: str, unit: str) -> str:
    """A number with its unit; a dash, where there is no number, has none."""
    return text if text == "–" else f"{text} {unit}"


def _of_their_own_kind(e: Evidence) -> str:
    """How many of the trials were other ones, by their returns; "" for one trial."""
    if e.trials < 2:
        return ""
    return (
        f" By their test returns {e.kinds:,} of the {e.trials:,} are of a kind of their own (others correlate by more "
        f"than a half with them): against {e.kinds:,} it is {number(e.deflated_kinds, 3)}."
    )


def evidence(analysis: Analysis) -> list[Row]:
    """How sure the numbers are."""
    e = analysis.evidence
    block = e.sharpe.block_length
    rows = [
        (
            "Interval of the Sharpe ratio",
            between(e.sharpe) or "–",
            f"{100 * CONFIDENCE:.0f} %, stationary bootstrap, mean block {number(block, 1)} bars. "
            "If it contains 0: luck will do."
            if not math.isnan(block)
            else "Too few independent bets for a ratio with an interval.",
        ),
        (
            "Probabilistic Sharpe ratio",
            number(e.probabilistic, 3),
            "Probability that the true ratio is above 0 (2012 form).",
        ),
        (
            "Deflated Sharpe ratio",
            number(e.deflated, 3),
            f"The same against the luckiest of {plural(e.trials, 'worthless trial')}; {ENOUGH:.2f} is convincing."
            + _of_their_own_kind(e),
        ),
        (
            "Minimum track record",
            "never" if e.track_years == math.inf else duration(e.track_years),
            f"How long this must go on to exclude 0 (one-sided, 5 %); the test has {duration(e.years)}.",
        ),
    ]
    rows.append(("Backtest overfitting", *_overfitting(analysis.run.record)))
    if e.difference is not None:
        found = f"{signed(100 * e.difference.estimate)} % {between(e.difference, 100)}"
        rows.append(
            (
                "A year above buy and hold",
                found,
                "Mean net return, paired on the same bars. If it contains 0: no difference.",
            )
        )
    if e.rank is not None:
        rows.append(
            (
                "Rank among random traders",
                f"{number(e.rank.percentile, 1)} %",
                f"Share of {e.rank.draws:,} traders of the same exposure and turnover that did worse.",
            )
        )
    if e.oracle is not None:
        share = "nothing to earn" if e.oracle.nothing else f"{number(100 * e.oracle.fraction, 1)} %"
        rows.append(("Share of the optimum", share, "Of a synthetic market whose best result is known."))
    return [Row(label, [Cell(value), Cell(meaning, "text")]) for label, value, meaning in rows]


def _overfitting(record: Mapping[str, Any]) -> tuple[str, str]:
    """Value and meaning of what choosing among candidates is worth; run.json has it at the end of a run."""
    found = record.get("candidates")
    if not found:
        return "–", "One candidate a fold: nothing was chosen between, so the choice cannot have been overfitted."
    probability, number_ = found["backtest_overfitting_probability"], found["number"]
    if probability is None:
        why = found.get("why_none") or "too few validation bars"
        return "–", f"Best of {number_} candidates a fold; its probability is not known: {why}."
    return number(probability, 2), (
        f"Probability that the best of {number_} candidates on one half of the validation bars is below the median on "
        "the other; 0.5 is a coin: then choosing was worth nothing."
    )


def money(analysis: Analysis) -> list[Row]:
    """The account in lots."""
    books = analysis.money
    if books is None:
        return []
    values = {
        "Final balance": number(float(books.balance[-1])) + (" (ruined)" if books.balance[-1] <= 0 else ""),
        "Lowest balance": number(float(books.balance.min())),
        "Costs paid": number(float(books.cost.sum())),
        "Largest position, lots": number(float(np.abs(books.lots).max())),
    }
    return [Row(label, [Cell(value)]) for label, value in values.items()]


SEED_COLUMNS = {
    "Return, %": "return_pct",
    "Sharpe": "sharpe_annual",
    "Max. drawdown, %": "max_drawdown_pct",
    "Trades": "trades",
    "Costs, %": "cost_pct",
    "Of the optimum, %": "of_optimum_pct",
}


def seed_columns(analysis: Analysis) -> list[str]:
    """Column titles of `seeds`; the optimum's only where it is known."""
    by_seed = analysis.pooled["by_seed"] if analysis.pooled else []
    return ["", *(title for title, key in SEED_COLUMNS.items() if any(key in row for row in by_seed))]


def seeds(analysis: Analysis) -> list[Row]:
    """One row per seed that is pooled; this run is marked."""
    own = analysis.run.record.get("seed")
    keys = [SEED_COLUMNS[title] for title in seed_columns(analysis)[1:]]
    return [
        Row(
            f"seed {row['seed']}",
            [
                Cell(
                    signed(row[key]) if key in _SIGNED else number(row[key], _SEED_DIGITS.get(key, 2)),
                    tint(row[key]) if key == "return_pct" else "",
                )
                for key in keys
            ],
            row["seed"] == own,
        )
        for row in (analysis.pooled["by_seed"] if analysis.pooled else [])
    ]


def pooled(analysis: Analysis) -> list[Row]:
    """Interquartile means over seeds and folds."""
    rows = []
    for key, found in (analysis.pooled["interquartile_mean"] if analysis.pooled else {}).items():
        label, digits = POOLED[key]
        shown = signed if key in _SIGNED else number
        estimate, low, high = (shown(found[name], digits) for name in ("estimate", "low", "high"))
        rows.append(Row(label, [Cell(estimate), Cell(f"[{low} to {high}]" if found["low"] is not None else "–")]))
    return rows


BASELINE_COLUMNS = (
    "",
    "Return, %",
    "Sharpe",
    "Max. drawdown, %",
    "Exposure, %",
    "Turnover a bar",
    "Costs, %",
    "Trades",
)


def baselines(analysis: Analysis) -> list[Row]:
    """Ours first, then every other trader, then what the optimum would have earned."""
    rows = [_figures("the agent", analysis.metrics, ours=True)]
    rows += [_figures(contender.label, contender.metrics) for contender in analysis.baselines]
    oracle = analysis.evidence.oracle
    if oracle is not None and not oracle.nothing:
        growth = math.log1p(oracle.optimum_return) * len(analysis.time)
        text = signed(100 * math.expm1(growth)) if growth < 700 else "beyond 1e300"
        rows.append(Row("known optimum (expected)", [Cell(text, "gain"), *[Cell("–")] * (len(BASELINE_COLUMNS) - 2)]))
    return rows


def _figures(label: str, m: Mapping[str, float], ours: bool = False) -> Row:
    return Row(
        label,
        [
            Cell(signed(m["return_pct"]), tint(m["return_pct"])),
            Cell(signed(m["sharpe_annual"])),
            Cell(number(m["max_drawdown_pct"])),
            Cell(number(100 * m["exposure"], 1)),
            Cell(number(m["turnover_per_bar"], 4)),
            Cell(number(m["cost_pct"])),
            Cell(number(m["trades"], 0)),
        ],
        ours,
    )


def stress(analysis: Analysis) -> list[Row]:
    """Dearer costs and later execution."""
    return [
        Row(
            label,
            [
                Cell(signed(m["return_pct"]), tint(m["return_pct"])),
                Cell(signed(m["sharpe_annual"])),
                Cell(number(m["max_drawdown_pct"])),
                Cell(number(m["cost_pct"])),
            ],
            label == "costs 1x",
        )
        for label, m in analysis.stress
    ]


FOLD_COLUMNS = (
    *("", "Test from", "Test to", "Return, %", "Sharpe", "Max. drawdown, %", "Trades", "Validation score"),
    *("Timesteps", "Seconds", "Training ended", "Warm start"),
)


def folds(analysis: Analysis) -> list[Row]:
    """One row per finished fold."""
    rows = []
    for record, m in analysis.fold_metrics:
        days = analysis.time[analysis.fold == record.index][[0, -1]].astype("datetime64[ns]").astype("datetime64[D]")
        rows.append(
            Row(
                f"fold {record.index}",
                [
                    *(Cell(str(day)) for day in days),
                    Cell(signed(m["return_pct"]), tint(m["return_pct"])),
                    Cell(signed(m["sharpe_annual"])),
                    Cell(number(m["max_drawdown_pct"])),
                    Cell(number(m["trades"], 0)),
                    Cell(signed(record.scores.get("validation/score"), 4)),
                    Cell(f"{record.timesteps:,}"),
                    Cell(number(sum(record.seconds.values()), 1)),
                    Cell(record.stop_reason or "–", "text"),
                    Cell(warm_start(record.details) or "–", "text"),
                ],
            )
        )
    return rows


def warm_start(details: Mapping[str, Any]) -> str:
    """Which fold's weights training started from; empty for new ones."""
    found = details.get("warm_start")
    if isinstance(found, Mapping) and "fold" in found:
        return f"fold {found['fold']}"
    return str(found) if found else ""


def groups(found: Iterable[Group]) -> list[Row]:
    """One split of the result."""
    return [
        Row(
            group.label,
            [
                Cell(f"{group.bars:,}"),
                Cell(signed(group.sum_pct), tint(group.sum_pct)),
                Cell(f"{signed(100 * group.per_bar_pct)} ± {number(100 * group.error_pct)}"),
                Cell(signed(group.sharpe_annual)),
            ],
        )
        for group in found
    ]


class HeatRow(NamedTuple):
    year: int
    cells: list[Cell]


def heat_map(months: Sequence[Month]) -> list[HeatRow]:
    """Months as rows of years, with the year's own return last; the shade is a third of the largest month."""
    largest = max((abs(month.return_pct) for month in months), default=0.0) or 1.0
    rows = []
    for year in sorted({month.year for month in months}):
        values = {month.month: month.return_pct for month in months if month.year == year}
        cells = []
        for month in range(1, 13):
            value = values.get(month)
            shade = 0 if value is None else min(3, int(3 * abs(value) / largest) + 1)
            kind = "" if not value else f"{'u' if value > 0 else 'd'}{shade}"
            cells.append(Cell("" if value is None else signed(value, 1), kind))
        growth = math.prod(1 + value / 100 for value in values.values()) - 1
        rows.append(HeatRow(year, [*cells, Cell(signed(100 * growth, 1), tint(growth))]))
    return rows


def optimisations(summary: Mapping[str, Any]) -> list[Row]:
    """What optimization_summary.json measured, in words; its folds are in the table of folds."""
    measured = summary.get("measured", {})
    rows: dict[str, Any] = {
        "Folds done": measured.get("folds"),
        "Timesteps": measured.get("timesteps"),
        "Timesteps planned": measured.get("timesteps_planned"),
        "Against the plan": work_in_words(summary.get("did_less")),
        "Timesteps a second": _rounded(measured.get("steps_per_s")),
        "Seconds, all folds": _rounded(measured.get("seconds"), 1),
        "Pace against no optimisations": pace_in_words(summary.get("total_speedup_achieved")),
        "That is against": summary.get("speedup_baseline"),
        "Early stops": summary.get("early_stops"),
        "Warm starts": summary.get("warm_starts"),
        "Validations left out": summary.get("evaluations_left_out"),
        "Time saved, hours (estimated)": summary.get("estimated_time_saved_hours"),
        "Features from the cache": summary.get("cache", {}).get("hits"),
        "Failed and left out": "; ".join(
            f"{entry['optimisation']} in fold {entry['fold']}: {entry['reason']}" for entry in summary.get("failed", [])
        )
        or "none",
    }
    return flatten(rows)


def _rounded(value: float | None, digits: int = 0) -> str | None:
    return None if value is None else number(value, digits)


def data_card(record: Mapping[str, Any]) -> list[Row]:
    """The bars of a run; of a synthetic market its kind and parameters instead of a file."""
    data, oracle = dict(record.get("data", {})), record.get("oracle")
    if oracle and not data.get("path"):
        data.pop("path", None)
        data = {"file": f"none: a synthetic market, {oracle['kind']}", "parameters": oracle.get("parameters"), **data}
    return flatten(data)


def flatten(record: Mapping[str, Any], prefix: str = "") -> list[Row]:
    """A nested record as rows "a, b | value"; long lists are cut, and what is null inside is left out."""
    rows: list[Row] = []
    for key, value in record.items():
        if prefix and value is None:
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flatten(value, name + ", ")
        else:
            rows.append(Row(name.replace("_", " "), [Cell(_shown(value), "text")]))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not recorded"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        parts = [_shown(item) for item in value[:12]]
        return ", ".join(parts) + (f", … ({len(value)} in all)" if len(value) > 12 else "")
    return without_directories(str(value))


def without_directories(text: str) -> str:
    """The file name of an absolute path; any other text as it is. A report travels, the user's directories do not."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() and len(path.parts) > 1:
            return path.name
    return text


def screen(features: Sequence[ScreenedFeature]) -> list[Row]:
    """Each feature over the folds: in how many it passed the screen, and its median score and threshold."""
    rows = [(x.name, (f"{x.passed} of {x.folds}", f"{x.score:.1f}", f"{x.threshold:.1f}")) for x in features]
    return [Row(name, [Cell(text) for text in texts]) for name, texts in rows]


def screen_folds(features: Sequence[ScreenedFeature], folds: Sequence[FoldRecord]) -> list[Row]:
    """Each fold that was screened: every feature's score against its threshold."""
    records = [(str(fold.index), fold.details.get("screen")) for fold in folds]
    return [Row(index, [_screened(record, x.name) for x in features]) for index, record in records if record]


def _screened(record: Mapping[str, Any], name: str) -> Cell:
    text = f"{record['score'][name]:.1f} / {record['threshold'][name]:.1f}"
    return Cell(text, "gain" if name in record["passed"] else "")


DRAWDOWN_COLUMNS = ("", "Depth, %", "From", "Lowest", "Recovered", "Days")


def drawdowns(analysis: Analysis) -> list[Row]:
    """The five deepest falls of the equity."""
    days = analysis.time.astype("datetime64[ns]").astype("datetime64[D]")
    rows = []
    for number_, fall in enumerate(worst_drawdowns(analysis.net_return), start=1):
        start, end = days[max(fall.high, 0)], days[-1 if fall.recovered is None else fall.recovered]
        length = int((end - start).astype(int))
        ended = "not yet" if fall.recovered is None else str(end)
        texts = (number(fall.depth_pct), str(start), str(days[fall.low]), ended, f"{length:,}")
        rows.append(Row(str(number_), [Cell(text) for text in texts]))
    return rows


SIDE_COLUMNS = (
    "",
    "Bars",
    "Sum of bars, %",
    "Sharpe of bars",
    "Trades",
    "Win rate, %",
    "Profit factor",
    "Mean, %",
    "Bars held",
)


def sides(analysis: Analysis) -> list[Row]:
    """Long against short; a side that was never taken is left out."""
    found = sides_of(analysis.position, analysis.net_return, analysis.trades, analysis.bars_per_year)
    return [
        Row(
            side.label,
            [
                Cell(f"{side.bars.bars:,}"),
                Cell(signed(side.bars.sum_pct), tint(side.bars.sum_pct)),
                Cell(signed(side.bars.sharpe_annual)),
                Cell(f"{side.trades:,}"),
                Cell(number(100 * side.win_rate, 1)),
                Cell(number(side.profit_factor)),
                Cell(signed(side.mean_pct, 3), tint(side.mean_pct)),
                Cell(number(side.mean_bars, 1)),
            ],
        )
        for side in found
        if side.bars is not None
    ]


def days(analysis: Analysis) -> list[Row]:
    """The figures by day beside those by bar; empty for a test of few days."""
    found, m = daily(analysis.time, analysis.net_return, analysis.bars_per_year), analysis.metrics
    if found is None:
        return []
    deviation = 100 * float(analysis.net_return.std(ddof=1)) * math.sqrt(analysis.bars_per_year)
    net, sums = analysis.net_return, 100 * analysis.net_return
    pairs = {
        "Sharpe, annual": (signed(m["sharpe_annual"]), signed(found.sharpe_annual)),
        "Sortino, annual": (signed(m["sortino_annual"]), signed(found.sortino_annual)),
        "Volatility a year, %": (number(deviation), number(found.volatility_pct)),
        "Maximum drawdown, %": (number(m["max_drawdown_pct"]), number(found.max_drawdown_pct)),
        "Best, %": (signed(float(sums.max())), signed(found.best_pct)),
        "Worst, %": (signed(float(sums.min())), signed(found.worst_pct)),
        "Share above zero, %": (number(100 * float((net > 0).mean()), 1), number(100 * found.positive, 1)),
        "Number": (f"{len(net):,}", f"{found.days:,}"),
    }
    return [Row(label, [Cell(text) for text in texts]) for label, texts in pairs.items()]


def market(analysis: Analysis) -> list[Row]:
    """Alpha and beta to buy and hold; empty where they cannot be computed."""
    hold = next((x.net_returns for x in analysis.baselines if x.key == "buy_and_hold"), None)
    found = None
    if hold is not None:
        found = against_market(analysis.time, analysis.net_return, hold, analysis.bars_per_year)
    if found is None:
        return []
    rows = {
        "Alpha a year, %": (signed(found.alpha_pct), number(found.alpha_error)),
        "Beta": (signed(found.beta, 3), number(found.beta_error, 3)),
        "Correlation": (signed(found.correlation, 3), "–"),
    }
    return [Row(label, [Cell(text) for text in texts]) for label, texts in rows.items()]
