"""The page of `lit-ppo power`: power.json -> power.html. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_ppo.report.page import render
from lit_ppo.report.plotly_figures import Figure
from lit_ppo.report.tables import Cell, Row, without_directories
from lit_ppo.scoring.power import curves, half_found
from lit_ppo.version import __version__

COLOURS = ("agent", "hold", "cross", "oracle", "short", "previous", "validation", "test")


def power_page(record: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        record: power.json.
    """
    sizes = sorted({row["sharpe"] for row in record["rows"]})
    found = curves(record)
    split = record["data"]["split"]
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in record["rows"]):
        by_size = {row["sharpe"]: row for row in record["rows"] if row["kind"] == kind}
        texts = [cell(by_size[size]) if size in by_size else "" for size in sizes]
        rows.append(Row(kind, [*(Cell(text) for text in texts), Cell(half_cell(found.get(kind)))]))
    source = without_directories(str(record["data"]["path"] or "synthetic market"))
    count = len(record["seeds"])
    return render(
        "power.html.j2",
        figures={"power": figure(record)},
        title=f"{source}: what this recipe would have found",
        subtitle=f"Edges planted in these bars, direction erased. Windows: train {split['train_size']:,}, validation "
        f"{split['validation_size']:,}, test {split['test_size']:,} bars. {count} seeds, each {record['folds']} of "
        f"{record['folds_there']} folds spread over the file.",
        sentence=record["sentence"],
        remedies=record["remedies"],
        null=null_text(record),
        columns=["Edge", *(f"Sharpe {size:g}" for size in sizes), "Half found at"],
        rows=rows,
        detail_rows=[_detail(row) for row in (record["null"], *record["rows"]) if row["m"] is not None],
        left_out=[f"{row['kind']} {row['sharpe']:g}: {row['why']}" for row in record["rows"] if row["m"] is None],
        version=__version__,
    )


def figure(record: Mapping[str, Any]) -> Figure:
    """Share found against the informed trader's annual Sharpe ratio, a line a kind, with its interval."""
    data = []
    for number, kind in enumerate(dict.fromkeys(row["kind"] for row in record["rows"])):
        rows = [row for row in record["rows"] if row["kind"] == kind and row["share"] is not None]
        color = COLOURS[number % len(COLOURS)]
        shares = [100 * row["share"] for row in rows]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": kind,
                "x": [row["sharpe"] for row in rows],
                "y": [round(share, 2) for share in shares],
                "line": {"color": color, "width": 2},
                "marker": {"color": color, "size": 7},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(100 * row["high"] - share, 2) for row, share in zip(rows, shares, strict=True)],
                    "arrayminus": [round(share - 100 * row["low"], 2) for row, share in zip(rows, shares, strict=True)],
                    "thickness": 1,
                    "color": color,
                },
                "hovertemplate": f"{kind}, Sharpe %{{x}}: %{{y:.0f}} % found<extra></extra>",
            }
        )
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "annual Sharpe ratio of the informed trader"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "share found, %"}},
    }
    return {"data": data, "layout": layout}


def cell(row: Mapping[str, Any]) -> str:
    """The share of one row with its interval, in percent."""
    if row["share"] is None:
        return "\u2013"
    low, high = (f"{100 * row[name]:.0f}" for name in ("low", "high"))
    return f"{100 * row['share']:.0f} % ({low} to {high})".replace("-", "\u2212")


def half_cell(curve: tuple[list[float], list[float]] | None) -> str:
    """The smallest edge of which half is found, for a table."""
    if curve is None:
        return "\u2013"
    half = half_found(*curve)
    return f"above {curve[0][-1]:g}" if half is None else f"{half:.1f}"


def null_text(record: Mapping[str, Any]) -> str:
    """False trading: what the recipe did where there is nothing to find."""
    null = record["null"]
    text = f"With nothing planted it traded in {null['traded']} of {null['trainings']} folds"
    if not null["traded"]:
        return f"{text}: no false trading."
    runs = null["runs"]
    t = sum(run["t"] for run in runs) / len(runs) ** 0.5
    return (
        f"{text}: exposure {null['exposure']:.2f}, costs {null['cost_in_sharpe']:.2f} of annual Sharpe, t of its net "
        f"result {t:+.1f}."
    )


def _detail(row: Mapping[str, Any]) -> Row:
    name = row["kind"] if row["kind"] == "null" else f"{row['kind']} {row['sharpe']:g}"
    seeds = ", ".join("\u2013" if run["share"] is None else f"{100 * run['share']:.0f}" for run in row["runs"])
    texts = (f"{row['m']:.4f}", seeds, f"{row['trained']} of {row['trainings']}", str(row["traded"]))
    return Row(name, [Cell(text) for text in (*texts, f"{row['exposure']:.2f}", f"{row['cost_in_sharpe']:.2f}")])
