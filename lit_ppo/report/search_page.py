"""The page of `lit-ppo search`: Optuna's own plots of the trials, the table of them, what the test said. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lit_ppo import __version__
from lit_ppo.report.page import render
from lit_ppo.report.plotly_figures import Figure
from lit_ppo.report.tables import Cell, Row
from lit_ppo.report.verdict import plural

ENDS = {"COMPLETE": "done", "PRUNED": "stopped", "FAIL": "failed"}


def search_page(
    optuna: Any, study: Any, plan: Mapping[str, Any], ground: Mapping[str, Any], verdict: str | None = None
) -> str:
    """The whole page as text.

    Args:
        optuna: the package.
        study: its study, every trial finished.
        plan, ground: as search.json has them.
        verdict: sentence of the test of the best setting; None before it.
    """
    trials = study.trials
    done = sorted(
        (trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda one: (-one.value, one.number)
    )
    counts = {word: sum(trial.state.name == state for trial in trials) for state, word in ENDS.items()}
    others = sorted((one for one in trials if one not in done), key=lambda one: one.number)
    start, stop = ground["validation"]
    return render(
        "search.html.j2",
        figures=figures(optuna, study, plan["objective"]),
        title=f"Search over {plural(len(plan['space']), 'setting')}, {plural(len(trials), 'trial')}",
        subtitle=f"{plan['objective']}, mean over the validation of {plural(ground['folds'], 'fold')} (bars "
        f"{start:,} to {stop - 1:,}); sampler {plan['sampler']}.",
        best=[f"{key}: {_text(value)}" for key, value in done[0].params.items()],
        value=f"{done[0].value:+.4f}",
        number=done[0].number,
        first=f"{trials[0].value:+.4f}" if trials[0].state.name == "COMPLETE" else None,
        counts=", ".join(f"{count} {word}" for word, count in counts.items() if count),
        trials=len(trials),
        seen=f"{stop - 1:,}",
        verdict=verdict,
        columns=["Trial", plan["objective"], "Folds", "", *plan["space"]],
        rows=[_row(trial, plan) for trial in (*done, *others)],
        errors=[f"Trial {one.number}: {one.user_attrs['error']}" for one in others if "error" in one.user_attrs],
        version=__version__,
    )


def figures(optuna: Any, study: Any, objective: str) -> dict[str, Figure]:
    """Optuna's optimisation history, importance of each setting, and slices; importance where it can be told."""
    plots = optuna.visualization
    found = {
        "history": plots.plot_optimization_history(study, target_name=objective),
        "slices": plots.plot_slice(study, target_name=objective),
    }
    values = {trial.value for trial in study.trials if trial.state.name == "COMPLETE"}
    if len(values) > 1:  # with one value there is nothing that a setting could matter for
        found["importance"] = plots.plot_param_importances(study, target_name=objective)
    return {name: _plain(figure.to_plotly_json()) for name, figure in found.items()}


def _plain(figure: Mapping[str, Any]) -> Figure:
    """Optuna's figure without its template and title: the page has colours and captions of its own."""
    layout = {key: value for key, value in figure["layout"].items() if key not in ("template", "title", "width")}
    return _json({"data": list(figure["data"]), "layout": {"height": 380, **layout}})


def _json(value: Any) -> Any:
    """Tuples, numpy values and numbers that are none as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if hasattr(value, "tolist"):
        return _json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(trial: Any, plan: Mapping[str, Any]) -> Row:
    values = list(trial.intermediate_values.values())
    mean = f"{sum(values) / len(values):+.4f}" if values else "–"
    texts = [mean, str(len(values)), ENDS[trial.state.name]]
    return Row(
        str(trial.number), [Cell(text) for text in (*texts, *(_text(trial.params[key]) for key in plan["space"]))]
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
