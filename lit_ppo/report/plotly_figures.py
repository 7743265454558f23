"""The charts of the report as plotly.js dictionaries. No plotly import: only the page needs its script.

Colours are names of the page's CSS variables ("agent", "loss"); the page's script puts the theme's values in.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_ppo.market.books import Trades

Figure = dict[str, Any]
Floats = NDArray[np.float64]
MILLISECOND = 10**6  # nanoseconds
MOST_POINTS = 1_500  # of one drawn curve: more than a screen has columns


def iso_times(time: NDArray[np.int64]) -> list[str]:
    """Nanoseconds since 1970 UTC as plotly's date text, to the minute."""
    return [str(text).replace("T", " ") for text in time.astype("datetime64[ns]").astype("datetime64[m]")]


def rounded(values: Floats, digits: int = 6) -> list[float | None]:
    """Numbers to `digits` significant digits, for a small page; what is not finite becomes null."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def rows_to_draw(values: Floats, most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Rows that keep a curve's shape: the first, lowest and highest of each of `most` / 3 buckets, and the last."""
    size = len(values)
    if size <= most:
        return np.arange(size)
    rows = {size - 1}
    for bucket in np.array_split(np.arange(size), max(most // 3, 1)):
        part = values[bucket]
        rows |= {int(bucket[0]), int(bucket[part.argmin()]), int(bucket[part.argmax()])}
    return np.array(sorted(rows))


def with_cuts(values: Sequence[Any], cuts: Sequence[int]) -> list[Any]:
    """The values with null before each of the rising positions `cuts`: a line ends there and begins anew."""
    edges = [0, *cuts, len(values)]
    parts = [list(values[start:stop]) for start, stop in pairwise(edges)]
    return [item for number, part in enumerate(parts) for item in ([None] if number else []) + part]


def line(x: Sequence[Any], y: Sequence[float | None], name: str, color: str, **more: Any) -> Figure:
    style = {"color": color, "width": more.pop("width", 1.5)} | more.pop("style", {})
    return {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": style, **more}


def equity(
    time: NDArray[np.int64],
    curves: Sequence[tuple[str, str, Floats]],
    drawdown: Floats,
    fold_starts: Sequence[int],
) -> Figure:
    """Equity of ours and the baselines over time, fold borders, and our drawdown below.

    Args:
        time: [D].
        curves: (label, colour, equity [D]); the first one is ours.
        drawdown: [D] ours, fraction of the highest equity before, >= 0.
        fold_starts: rows at which a fold begins.
    """
    # The extremes of every curve: rows chosen by ours alone would flatten the others while we are flat.
    rows = np.unique(np.concatenate([rows_to_draw(values, MOST_POINTS // 2) for _, _, values in curves]))
    # A hole in the calendar is no line: wider than a hundredth of the picture.
    steps = np.diff(time)
    usual = float(np.median(steps)) if len(steps) else 0.0
    holes = np.flatnonzero(steps > max((time[-1] - time[0]) / 100, 4 * usual))
    cuts = np.searchsorted(rows, holes, side="right").tolist()
    x = with_cuts(iso_times(time[rows]), cuts)

    def drawn(values: Floats, digits: int = 6) -> list[float | None]:
        return with_cuts(rounded(values[rows], digits), cuts)

    data = [
        # Ours above the others: a flat agent would lie under the flat baseline.
        line(x, drawn(values), label, color, width=2.4 if order == 0 else 1.3, zorder=int(order == 0))
        for order, (label, color, values) in enumerate(curves)
    ]
    depth = line(x, drawn(-100.0 * drawdown, 4), "drawdown", "loss", yaxis="y2", fill="tozeroy", width=1)
    depth |= {"showlegend": False, "hovertemplate": "%{x}<br>%{y:.2f} % below the high<extra></extra>"}
    shown = np.concatenate([values[rows] for _, _, values in curves])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    # Compounded paths that span decades are only comparable on a logarithmic axis.
    scale = "log" if len(shown) and shown.max() > 20 * shown.min() else "linear"
    borders = [
        {
            "type": "line",
            "x0": text,
            "x1": text,
            "yref": "paper",
            # Many borders over the curves would hatch them: they become ticks between the two panels.
            "y0": 0 if len(fold_starts) <= 40 else 0.25,
            "y1": 1 if len(fold_starts) <= 40 else 0.29,
            "line": {"color": "line", "width": 1, "dash": "dot"},
        }
        for text in iso_times(time[np.asarray(fold_starts, dtype=np.int64)])
    ]
    layout: Figure = {
        "height": 480,
        "shapes": borders,
        "xaxis": {"type": "date", "anchor": "y2"},
        "yaxis": {"domain": [0.3, 1], "type": scale, "title": {"text": "equity (start = 1)"}},
        "yaxis2": {"domain": [0, 0.24], "title": {"text": "drawdown, %"}},
    }
    if not drawdown.any():
        layout["yaxis2"] |= {"range": [-1, 0]}
    return {"data": [*data, depth], "layout": layout}


def timeline(folds: Sequence[dict[str, Any]]) -> Figure:
    """Bars in time for train, validation and test of every fold.

    Args:
        folds: index, note (hover text), `train`, `validation`, `test` as [first, last] open time (ISO 8601), and
            `bars`: the same as [first bar, bar after the last].
    """
    labels = [f"fold {fold['index']}" for fold in folds]
    data = []
    for role in ("train", "validation", "test"):
        first, last = (np.array([fold[role][end].rstrip("Z") for fold in folds], "datetime64[ms]") for end in (0, 1))
        texts = [[str(time).replace("T", " ")[:16] for time in times] for times in (first, last)]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": role,
                "y": labels,
                "base": texts[0],
                "x": (last - first).astype(np.int64).tolist(),  # milliseconds, on an axis of dates
                "marker": {"color": role},
                "customdata": [
                    [start, end, f"{fold['bars'][role][0]:,} to {fold['bars'][role][1] - 1:,}", fold["note"]]
                    for start, end, fold in zip(*texts, folds, strict=True)
                ],
                "hovertemplate": f"%{{y}}, {role}: %{{customdata[0]}} to %{{customdata[1]}}"
                "<br>bars %{customdata[2]}<br>%{customdata[3]}<extra></extra>",
            }
        )
    layout = {
        "barmode": "overlay",
        "bargap": 0.25,
        "height": int(min(900, 130 + 22 * len(folds))),
        "xaxis": {"type": "date"},
        "yaxis": {"autorange": "reversed", "nticks": 20},
    }
    return {"data": data, "layout": layout}


def price(time: NDArray[np.int64], prices: Floats, positions: Floats, trades: Trades) -> Figure:
    """Every test bar, packed: the page draws what its window can show and redraws when zoomed."""
    minutes = (time // (60_000 * MILLISECOND)).astype("<i4")
    entry, exit_ = (x // MILLISECOND for x in (trades.entry_time, trades.exit_time))
    columns = (entry, exit_, trades.entry_price, trades.exit_price, trades.side * trades.size, trades.result)
    digits = (13, 13, 8, 8, 4, 5)
    rows = zip(*(rounded(c.astype(np.float64), d) for c, d in zip(columns, digits, strict=True)), strict=True)
    return {
        "times": _packed(minutes),
        "prices": _packed(prices.astype("<f4")),
        "positions": _packed(positions.astype("<f4")),
        "trades": [list(row) for row in rows],
    }


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def distribution(net_returns: Floats, normal_std: float) -> Figure:
    """Histogram of the net returns per bar, in percent, against a normal of the same standard deviation.

    The middle 99.8 % is drawn; what lies beyond is counted in the outermost columns.
    """
    percent = 100.0 * net_returns
    low, high = np.quantile(percent, [0.001, 0.999])
    if low == high:
        low, high = low - 1.0, high + 1.0
    edges = np.linspace(low, high, 61)
    counts, _ = np.histogram(np.clip(percent, low, high), edges)
    middles = (edges[1:] + edges[:-1]) / 2
    data: list[Figure] = [
        {
            "type": "bar",
            "name": "bars",
            "x": rounded(middles, 4),
            "y": counts.tolist(),
            "marker": {"color": ["gain" if middle >= 0 else "loss" for middle in middles]},
            "hovertemplate": "%{x:.3f} %: %{y} bars<extra></extra>",
            "showlegend": False,
        }
    ]
    if normal_std > 0:
        density = np.exp(-0.5 * ((middles - percent.mean()) / (100 * normal_std)) ** 2)
        expected = density / density.sum() * len(percent)
        name = "normal distribution of the same mean and deviation"
        data.append(line(rounded(middles, 4), rounded(expected, 4), name, "flat", width=1.5))
    return {
        "data": data,
        "layout": {
            "height": 320,
            "bargap": 0.05,
            "xaxis": {"title": {"text": "net return of a bar, %"}},
            # From half a bar up: the normal line falls to nothing in the tails.
            "yaxis": {
                "title": {"text": "bars (log scale)"},
                "type": "log",
                "dtick": 1,  # powers of ten only: 2 and 5 between them would be read as 2 and 5 bars
                "range": [math.log10(0.5), math.log10(2.0 * max(1, int(counts.max())))],
            },
        },
    }


def bars(labels: Sequence[str], values: Sequence[float], unit: str, title: str) -> Figure:
    """One column per label, green above zero and red below."""
    return {
        "data": [
            {
                "type": "bar",
                "x": list(labels),
                "y": rounded(np.asarray(values, dtype=np.float64), 5),
                "marker": {"color": ["gain" if value >= 0 else "loss" for value in values]},
                "hovertemplate": f"%{{x}}: %{{y:.2f}} {unit}<extra></extra>",
            }
        ],
        "layout": {
            "height": 280,
            "xaxis": {"type": "category", "title": {"text": title}},
            "yaxis": {"title": {"text": unit}},
        },
    }


def rolling(time: NDArray[np.int64], values: Floats) -> Figure:
    """A figure of the last bars over time; nan is not drawn."""
    known = np.flatnonzero(np.isfinite(values))
    rows = known[rows_to_draw(values[known])] if len(known) else known
    unknown = np.cumsum(~np.isfinite(values))[rows]
    cuts = (np.flatnonzero(np.diff(unknown)) + 1).tolist()
    x, y = with_cuts(iso_times(time[rows]), cuts), with_cuts(rounded(values[rows], 4), cuts)
    data = line(x, y, "rolling Sharpe", "agent", width=1.4)
    zero = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": "flat", "width": 1}}
    layout = {"height": 280, "showlegend": False, "shapes": [zero], "xaxis": {"type": "date"}}
    return {"data": [data], "layout": layout | {"yaxis": {"title": {"text": "Sharpe, annual"}}}}


def trade_results(results: Floats) -> Figure:
    """Histogram of the results of the round trips, percent; what lies beyond the middle 98 % is at the ends."""
    percent = 100.0 * results
    low, high = np.quantile(percent, [0.01, 0.99])
    if low == high:
        low, high = low - 1.0, high + 1.0
    number = int(min(60, max(10, math.sqrt(len(percent)) * 2)))
    counts, edges = np.histogram(np.clip(percent, low, high), np.linspace(low, high, number + 1))
    middles = (edges[1:] + edges[:-1]) / 2
    column = {
        "type": "bar",
        "x": rounded(middles, 4),
        "y": counts.tolist(),
        "marker": {"color": ["gain" if middle >= 0 else "loss" for middle in middles]},
        "hovertemplate": "%{x:.3f} %: %{y} trades<extra></extra>",
    }
    axes = {"xaxis": {"title": {"text": "result of a trade, %"}}, "yaxis": {"title": {"text": "trades"}}}
    return {"data": [column], "layout": {"height": 280, "bargap": 0.05, **axes}}


def scatter(x: ArrayLike, y: ArrayLike, labels: Sequence[str], titles: tuple[str, str]) -> Figure:
    """One point per label."""
    data = {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(np.asarray(x, dtype=np.float64), 5),
        "y": rounded(np.asarray(y, dtype=np.float64), 5),
        "text": list(labels),
        "marker": {"color": "agent", "size": 7, "opacity": 0.7},
        "hovertemplate": "%{text}: %{x}, %{y}<extra></extra>",
    }
    axes = {"xaxis": {"title": {"text": titles[0]}}, "yaxis": {"title": {"text": titles[1]}}}
    return {"data": [data], "layout": {"height": 320, **axes}}


def learning(median: Floats, folds: Sequence[Floats]) -> Figure:
    """One logged metric of every fold (thin) and their median (thick) over the share of training.

    Args:
        median: [G] on a common grid from 0 to 100 % of training.
        folds: [G] of each fold, on the same grid.
    """
    grid = rounded(np.linspace(0, 100, len(median)), 4)
    x: list[float | None] = []
    y: list[float | None] = []
    for values in folds:  # one trace with gaps: a hundred traces draw slowly
        x += [*grid, None]
        y += [*rounded(values, 5), None]
    thin = line(x, y, "folds", "train", width=0.8) | {"opacity": 0.6, "hoverinfo": "skip"}
    thick = line(grid, rounded(median, 5), "median of the folds", "agent", width=2.2)
    axis = {"title": {"text": "training done, %"}}
    margin = {"l": 48, "r": 8, "t": 8, "b": 40}
    return {
        "data": [thin, thick],
        "layout": {"height": 210, "showlegend": False, "xaxis": axis, "yaxis": {"nticks": 5}, "margin": margin},
    }


def plain_text(text: str) -> str:
    """Foreign text for a name or hover of plotly, which reads a little markup: it must stay text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
