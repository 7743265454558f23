"""The page of `lit-ppo search`: the trials' values over time and settings, a table, what the test said. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_ppo.report import plotly_figures
from lit_ppo.report.page import render
from lit_ppo.report.plotly_figures import Figure
from lit_ppo.report.tables import Cell, Row
from lit_ppo.version import __version__
from lit_ppo.words import plural

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
        figures=figures(optuna, study, plan),
        title=f"Search over {plural(len(plan['space']), 'setting')}, {plural(len(trials), 'trial')}",
        subtitle=f"{plan['objective']}, mean over the validation of {plural(ground['folds'], 'fold')} (bars "
        f"{start:,} to {stop - 1:,}); sampler {plan['sampler']}.",
        best=[f"{key}: {_text(value)}" for key, value in done[0].params.items()],
        value=f"{done[0].value:+.4f}",
        number=done[0].number + 1,
        first=f"{trials[0].value:+.4f}" if trials[0].state.name == "COMPLETE" else None,
        counts=", ".join(f"{count} {word}" for word, count in counts.items() if count),
        trials=len(trials),
        seen=f"{stop - 1:,}",
        verdict=verdict,
        settings=[(f"setting-{place}", key) for place, key in enumerate(plan["space"])],
        columns=["Trial", _words(plan["objective"]), "Folds", "", *map(_words, plan["space"])],
        rows=[_row(trial, plan) for trial in (*done, *others)],
        errors=[f"Trial {one.number + 1}: {one.user_attrs['error']}" for one in others if "error" in one.user_attrs],
        version=__version__,
    )


def figures(optuna: Any, study: Any, plan: Mapping[str, Any]) -> dict[str, Figure]:
    """The history, every setting against the value, and Optuna's importance of each, where it can be told."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    numbers = [trial.number + 1 for trial in done]
    values = [float(trial.value) for trial in done]
    names = [f"trial {number}" for number in numbers]
    history = plotly_figures.scatter(numbers, values, names, ("trial", plan["objective"]))
    best = plotly_figures.rounded(np.maximum.accumulate(np.asarray(values)), 5)
    history["data"].append(
        plotly_figures.line(numbers, best, "the best so far", "hold", style={"shape": "hv"}) | {"hoverinfo": "skip"}
    )
    history["data"][0]["name"] = "each trial"
    history["layout"]["xaxis"] |= {"tickformat": "d", "dtick": max(1, math.ceil(len(study.trials) / 10))}
    found = {"history": history}
    for place, key in enumerate(plan["space"]):
        found[f"setting-{place}"] = _against(key, [trial.params[key] for trial in done], values, names)
    if len(set(values)) > 1:  # with one value there is nothing that a setting could matter for
        plot = optuna.visualization.plot_param_importances(study, target_name=plan["objective"])
        importance = _plain(plot.to_plotly_json())
        importance["data"][0] |= {"marker": {"color": "agent"}, "textposition": "auto"}
        importance["layout"] |= {"xaxis": {"title": {"text": "importance"}}, "yaxis": {"title": {"text": ""}}}
        found["importance"] = importance
    return found


def _against(key: str, chosen: Sequence[Any], values: Sequence[float], names: Sequence[str]) -> Figure:
    """The trials' values over one setting: a number's axis, or a place for each choice."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in chosen)
    figure = plotly_figures.scatter(range(len(chosen)), values, names, ("", ""))
    (data,), layout = figure["data"], figure["layout"]
    data["x"] = list(chosen) if numbers else [_text(x) for x in chosen]
    spread = numbers and min(chosen) > 0 and max(chosen) > 20 * min(chosen)
    layout["xaxis"] = {"type": "log" if spread else "linear" if numbers else "category", "nticks": 5}
    layout["xaxis"]["categoryorder"] = "category ascending"
    layout["yaxis"] = {"nticks": 5}
    layout |= {"height": 210, "margin": {"l": 48, "r": 8, "t": 8, "b": 40}}
    return figure


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
        str(trial.number + 1), [Cell(text) for text in (*texts, *(_text(trial.params[key]) for key in plan["space"]))]
    )


def _text(value: Any) -> str:
    """A value as YAML has it."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _words(key: str) -> str:
    """The last part of a key in words: a column's name that folds."""
    return key.rpartition(".")[2].replace("_", " ")
