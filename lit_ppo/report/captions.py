"""What the report says in words under its charts."""

from __future__ import annotations

import math

import numpy as np

from lit_ppo.report.analysis import Analysis
from lit_ppo.report.page import number, signed
from lit_ppo.report.scrutiny import rolling_sharpe, selection


def captions(analysis: Analysis) -> dict[str, str]:
    """By chart: what it shows, and how not to be fooled by it."""
    m = analysis.metrics
    end = number(1 + m["return_pct"] / 100, 4)
    deepest, longest = number(m["max_drawdown_pct"]), number(m["max_drawdown_bars"], 0)
    idle = np.mean(analysis.net_return == 0)
    found = {
        "equity": (
            f"The agent ends at {end} times the start; its deepest drawdown is {deepest} %, and the longest lasts "
            f"{longest} bars. Dotted lines are fold borders: from each on, another fold decides, from a flat start. "
            "The baselines keep their position across them, but for the previous fold's model."
        ),
        "timeline": (
            "Each row is one fold: its model learned on the train bars, was chosen on validation, and was tested once. "
            "Between two roles lies the purge or embargo, often too thin to be seen."
        ),
        "price": (
            "Triangles open a trade, crosses close it. Drag to zoom, or use the buttons; all bars are here, and only "
            "what the width can show is drawn."
        ),
        "distribution": (
            f"{100 * idle:.0f} % of the bars earn exactly nothing (flat). A column far above the line at either end is "
            "a tail that a Sharpe ratio does not see. The outermost columns hold all that lies beyond."
        ),
        "hours": (
            "Sum of the net returns of the decisions made in each hour of the day, UTC. These are twenty-four looks at "
            "the same data: one high column is no discovery."
        ),
    }
    window, _ = rolling_sharpe(analysis.net_return, analysis.bars_per_year)
    found["rolling"] = (
        f"Annual Sharpe ratio of the last {window:,} bars. Its noise is large: one standard error is about "
        f"{math.sqrt(analysis.bars_per_year / window):.1f}."
    )
    if (chosen := selection(analysis.run.folds)) is not None:
        found["selection"] = (
            f"Each point is a fold: the score that chose its weights against the score of its test. Rank correlation "
            f"{signed(chosen.rank_correlation)} over {len(chosen.folds)} folds (p = {number(chosen.p_value, 3)}). Near "
            "zero: what validation prefers says nothing about the test."
        )
    if analysis.stress:
        returns = {label: signed(figures["return_pct"]) for label, figures in analysis.stress}
        found["stress"] = (
            f"At the costs of the configuration it returns {returns['costs 1x']} %; at twice the costs "
            f"{returns['costs 2x']} %, without any {returns['costs 0x']} %, and with every decision executed one bar "
            f"later {returns['one bar later']} %. The decisions stay the same. An edge that dies of one bar's delay is "
            "a fill assumption."
        )
        if not analysis.cost.any() and analysis.position.any():
            found["stress"] = "This run has no costs, so dearer ones change nothing. " + found["stress"]
    return found


def random_traders(analysis: Analysis) -> str:
    """What traders with the agent's habits and no knowledge earned; empty if there are none."""
    if analysis.random is None:
        return ""
    other = "other folds of similar volatility" if len(analysis.fold_metrics) > 1 else "the same fold"
    low, middle, high = 100 * np.expm1(np.quantile(analysis.random.log_growth, [0.05, 0.5, 0.95]))
    return (
        f"{analysis.random.rank.draws:,} random traders with the agent's own positions and holding times, but in "
        f"{other}, at random times: the middle one returns {signed(middle)} %, nine of ten lie between {signed(low)} "
        f"and {signed(high)} %. The agent is better than {analysis.random.rank.percentile:.1f} % of them."
    )


def best_trades(analysis: Analysis) -> str:
    """What remains without the best trades; empty if there was none."""
    best = analysis.best
    if best.removed == 0:
        return ""
    return (
        f"All trades together earned {signed(best.all_pct)} % (compounded). The best "
        f"{best.removed} of {len(analysis.trades):,} earned {signed(best.best_pct)} %; without them "
        f"{signed(best.rest_pct)} % remains."
    )
