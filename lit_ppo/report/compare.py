"""`lit-ppo compare A B ...`: runs side by side, their difference with its uncertainty, what was set differently.

The first run is the reference. Differences are paired: only bars that both runs decided on count, and they are
resampled together, so that the market's own luck cancels.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.report import plotly_figures
from lit_ppo.report.page import number, render, signed, tint
from lit_ppo.report.tables import Cell, Row, between, without_directories
from lit_ppo.scoring.fills import read_fills
from lit_ppo.scoring.performance import equity_curve, sharpe_annual, trading_metrics
from lit_ppo.scoring.significance import (
    Interval,
    draws_for,
    interquartile_mean_interval,
    paired_difference_interval,
    sharpe_difference_interval,
    sharpe_interval,
)
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import shown_path
from lit_ppo.store.results import Run, load_run
from lit_ppo.version import __version__

Floats = NDArray[np.float64]
WIDTH, LEAST_WIDTH = 80, 8  # columns of a terminal's table, and of what a column's name is folded to
COLOURS = ("agent", "hold", "short", "cross", "oracle", "flat")
# Where a run was written says nothing about it.
PLACE_KEYS = frozenset({"results"})
# What every seed of one experiment sets differently; runs that differ in nothing else are pooled.
SEED_KEYS = frozenset({"seed_everything", "seed"})


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        label: its folder, as it may be shown.
        run: its files.
        time, net_return: [D] out of sample.
        bars_per_year: of the file's own calendar.
        metrics: see `performance.trading_metrics`.
        sharpe: with interval.
        settings: configuration, flattened to "model.gamma": value.
    """

    label: str
    run: Run
    time: NDArray[np.int64]
    net_return: Floats
    bars_per_year: float
    metrics: dict[str, float]
    sharpe: Interval
    settings: dict[str, Any]

    @property
    def timesteps(self) -> int:
        return sum(record.timesteps for record in self.run.folds)

    @property
    def seconds(self) -> float:
        return sum(sum(record.seconds.values()) for record in self.run.folds)

    @property
    def num_folds(self) -> int:
        return max(1, sum(record.status == "done" for record in self.run.folds))


@dataclass(frozen=True)
class Difference:
    """A run minus the reference, on the bars that both decided on.

    `comparable`: both read the same bytes of bars, or were filled at the same prices on the bars in common.
    """

    label: str
    bars: int
    mean: Interval
    sharpe: Interval
    note: str
    comparable: bool = True


def compare(run_dirs: Sequence[str | Path], html_path: str | Path | None = None) -> str:
    """Compare runs with the first of them.

    Args:
        run_dirs: two or more run folders.
        html_path: also write a page there.

    Returns:
        The comparison as text.

    Raises:
        FileNotFoundError: a folder is not that of a run.
        ValueError: fewer than two runs, or one without a finished fold.
    """
    if len(run_dirs) < 2:
        raise ValueError(
            f"compare needs two or more run folders, got {len(run_dirs)}: lit-ppo compare results/1 results/2"
        )
    entries = _told_apart([_read(path) for path in run_dirs])
    differences = [_difference(entries[0], entry) for entry in entries[1:]]
    settings = setting_differences(entries)
    pooled = _pooled(entries, settings)
    if html_path is not None:
        atomic_write(html_path, _page(entries, differences, settings, pooled))
    return _text(entries, differences, settings, pooled)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"model.gamma": 0.99}; lists stay whole, paths lose their directories."""
    if not isinstance(settings, dict):
        return {prefix.removesuffix("."): without_directories(settings) if isinstance(settings, str) else settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten(value, f"{prefix}{key}.")
    return found


def _read(path: str | Path) -> Entry:
    run = load_run(path)
    rows = run.out_of_sample
    if rows.empty:
        raise ValueError(f"{run.path} cannot be compared: no fold is finished")
    bars_per_year = run.bars_per_year
    net, position, cost = (rows[name].to_numpy(np.float64) for name in ("net_return", "position", "cost"))
    return Entry(
        shown_path(run.path),
        run,
        rows["time"].to_numpy("datetime64[ns]").astype(np.int64),
        net,
        bars_per_year,
        trading_metrics(net, position, bars_per_year, costs=cost),
        sharpe_interval(net, bars_per_year, draws=draws_for(net)),
        flatten(run.settings),
    )


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """Number the labels when two are the same: `a/42` and `b/42` from elsewhere are both shown as 42."""
    if len({entry.label for entry in entries}) == len(entries):
        return entries
    return [replace(entry, label=f"{order}: {entry.label}") for order, entry in enumerate(entries, start=1)]


def _difference(reference: Entry, other: Entry) -> Difference:
    _, ours, theirs = np.intersect1d(other.time, reference.time, return_indices=True)
    nothing = Interval(math.nan, math.nan, math.nan, math.nan)
    same = same_file(reference, other)
    if len(ours) < 10:
        return Difference(other.label, len(ours), nothing, nothing, "no bars in common: nothing to pair", same)
    if not same and not _same_prices(reference, theirs, other, ours):
        return Difference(other.label, len(ours), nothing, nothing, "other prices at these times: not paired", False)
    pair = (other.net_return[ours], reference.net_return[theirs], other.bars_per_year)
    if np.array_equal(pair[0], pair[1]):
        return Difference(other.label, len(ours), nothing, nothing, "equal on every one of these bars")
    note = "" if same else "another file with the same prices"
    mean = paired_difference_interval(*pair, draws=draws_for(pair[0]))
    return Difference(other.label, len(ours), mean, sharpe_difference_interval(*pair, draws=draws_for(pair[0])), note)


def same_file(one: Entry, other: Entry) -> bool:
    """Whether two runs read the same bytes of bars."""
    prints = [entry.run.record.get("data", {}).get("sha256") for entry in (one, other)]
    return prints[0] is not None and prints[0] == prints[1]


def _same_prices(one: Entry, rows: NDArray[np.int64], other: Entry, others: NDArray[np.int64]) -> bool:
    """Whether two runs on different files were filled at the same prices on these rows; no, where it is not known."""
    try:
        prices = [
            read_fills(entry.run.path, entry.run.out_of_sample["fold"].unique()).fill_price for entry in (one, other)
        ]
    except FileNotFoundError:
        return False
    if [len(found) for found in prices] != [len(entry.time) for entry in (one, other)]:
        return False
    return bool(np.allclose(prices[0][rows], prices[1][others], rtol=1e-9, atol=0.0))


def setting_differences(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Settings, commits and versions that are not the same in every run: key -> one value per run."""
    every = []
    for entry in entries:
        record = entry.run.record
        versions = {f"version of {name}": value for name, value in record.get("versions", {}).items()}
        data = {f"data {key}": record.get("data", {}).get(key) for key in ("path", "sha256", "rows")}
        machine = {f"machine {key}": value for key, value in record.get("machine", {}).items()}
        every.append(entry.settings | data | {"commit": record.get("commit")} | versions | machine)
    keys = [key for key in dict.fromkeys(key for settings in every for key in settings) if key not in PLACE_KEYS]
    table = {key: [settings.get(key, "not set") for settings in every] for key in keys}
    # What one run has as null another does not have at all where the block around it is null: no difference.
    alike = {key: [None if value == "not set" else value for value in values] for key, values in table.items()}
    return {key: values for key, values in table.items() if any(value != alike[key][0] for value in alike[key])}


def _pooled(entries: Sequence[Entry], settings: dict[str, list[Any]]) -> Interval | None:
    """Interquartile mean over seeds and folds of the fold's annual Sharpe ratio, if only the seed differs."""
    seeds = {entry.run.record.get("seed") for entry in entries}
    if not set(settings) <= SEED_KEYS or len(seeds) != len(entries):
        return None
    scores = []
    for entry in entries:
        fold = entry.run.out_of_sample["fold"].to_numpy(np.int64)
        ratios = [sharpe_annual(entry.net_return[fold == index], entry.bars_per_year) for index in np.unique(fold)]
        scores.append(np.nan_to_num(ratios, nan=0.0))  # a fold that never traded earned nothing
    if len({len(row) for row in scores}) != 1:
        return None
    return interquartile_mean_interval(np.array(scores))


COLUMNS = (
    *("", "Folds", "Bars", "Return, %", "Sharpe", "95 % interval", "Max. drawdown, %", "Turnover a bar", "Timesteps"),
    *("Seconds a fold", "Timesteps/s", "Did less, x", "Did it faster, x"),
)


def _run_row(entry: Entry, reference: Entry) -> Row:
    m = entry.metrics
    speed, base = (x.timesteps / x.seconds if x.timesteps and x.seconds > 0 else math.nan for x in (entry, reference))
    work, base_work = (x.timesteps / x.num_folds if x.timesteps else math.nan for x in (entry, reference))
    less, faster = (base_work / work, speed / base) if same_file(entry, reference) else (math.nan, math.nan)
    return Row(
        entry.label,
        [
            Cell(str(entry.num_folds)),
            Cell(f"{len(entry.time):,}"),
            Cell(signed(m["return_pct"]), tint(m["return_pct"])),
            Cell(signed(m["sharpe_annual"])),
            Cell(between(entry.sharpe) or "–"),
            Cell(number(m["max_drawdown_pct"])),
            Cell(number(m["turnover_per_bar"], 4)),
            Cell(f"{entry.timesteps:,}"),
            Cell(number(entry.seconds / entry.num_folds, 1)),
            Cell(number(speed, 0)),
            Cell(number(less)),
            Cell(number(faster)),
        ],
        entry is reference,
    )


RESULTS = 7  # of the columns are about the result, the others about what it took


def halves(
    columns: Sequence[str], rows: Sequence[Row], first: int
) -> tuple[tuple[Sequence[str], list[Row]], tuple[Sequence[str], list[Row]]]:
    """A table as two with the same labels, for a page: `first` columns of cells, and the others."""
    left = [row._replace(cells=row.cells[:first]) for row in rows]
    right = [row._replace(cells=row.cells[first:]) for row in rows]
    return (columns[: first + 1], left), ((columns[0], *columns[first + 1 :]), right)


DIFFERENCE_COLUMNS = ("", "Bars in common", "Net return a year, %", "95 % interval", "Sharpe", "95 % interval", "Says")


def _difference_row(difference: Difference) -> Row:
    low, high = difference.mean.low, difference.mean.high
    says = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    cells = [
        Cell(f"{difference.bars:,}"),
        Cell(signed(100 * difference.mean.estimate), tint(difference.mean.estimate)),
        Cell(between(difference.mean, 100) or "–"),
        Cell(signed(difference.sharpe.estimate)),
        Cell(between(difference.sharpe) or "–"),
        Cell(difference.note or says if math.isnan(low) or difference.note == "" else f"{says}; {difference.note}"),
    ]
    return Row(difference.label, cells)


def setting_text(value: Any, most: int = 40) -> str:
    """One setting as text of at most so many characters; of a list of classes their names."""
    if isinstance(value, list) and value and all(isinstance(x, dict) and "class_path" in x for x in value):
        value = ", ".join(str(x["class_path"]).rpartition(".")[2] for x in value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= most else text[: most - 3] + "..."


def _pooled_text(pooled: Interval | None, runs: int) -> str:
    if pooled is None:
        return ""
    value = f"{signed(pooled.estimate)} {between(pooled)}"
    return (
        f"Only the seed differs. Over {runs} seeds and all folds the interquartile mean of the fold's annual Sharpe "
        f"ratio is {value}."
    )


def printable(text: str) -> str:
    """Text for a terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Column(NamedTuple):
    head: list[str]  # lines of its name
    cells: list[str]
    size: int  # characters


def text_table(columns: Sequence[str], rows: Sequence[Row], width: int = WIDTH) -> str:
    """Rows as aligned text: labels left, cells right. Control characters of foreign text are shown, not sent.

    Long names of columns are folded. Columns that do not fit `width` go on in a further block, with the labels again.
    """
    corner, labels = printable(columns[0]), [printable(row.label) for row in rows]
    left = max(map(len, [corner, *labels]))
    blocks: list[list[_Column]] = []
    room = 0
    for place, name in enumerate(map(printable, columns[1:])):
        cells = [printable(row.cells[place].text) for row in rows]
        head = textwrap.wrap(name, max(LEAST_WIDTH, *map(len, [*cells, *name.split()])))
        column = _Column(head, cells, max(map(len, [*head, *cells])))
        if not blocks or room < column.size + 2:
            blocks.append([])
            room = width - left
        room -= column.size + 2
        blocks[-1].append(column)
    return "\n\n".join(_aligned(corner, labels, left, block) for block in blocks)


def _aligned(corner: str, labels: Sequence[str], left: int, block: Sequence[_Column]) -> str:
    height = max(len(column.head) for column in block)
    heads = [[""] * (height - len(column.head)) + column.head for column in block]  # names stand on the first row
    corners = [""] * (height - 1) + [corner]
    lines = [(corners[line], [head[line] for head in heads]) for line in range(height)]
    lines += [(label, [column.cells[row] for column in block]) for row, label in enumerate(labels)]
    sizes = [column.size for column in block]
    return "\n".join("  ".join([label.ljust(left), *map(str.rjust, cells, sizes)]).rstrip() for label, cells in lines)


def _setting_rows(settings: dict[str, list[Any]], most: int = 40) -> list[Row]:
    return [Row(key, [Cell(setting_text(value, most), "text") for value in values]) for key, values in settings.items()]


def _text(
    entries: list[Entry], differences: list[Difference], settings: dict[str, list[Any]], pooled: Interval | None
) -> str:
    parts = [
        text_table(COLUMNS, [_run_row(entry, entries[0]) for entry in entries]),
        *filter(None, [textwrap.fill(_other_files(entries), WIDTH)]),
        f"Minus {entries[0].label}, on the same bars:\n"
        + text_table(DIFFERENCE_COLUMNS, [_difference_row(difference) for difference in differences]),
    ]
    if settings:
        labels = ["", *(entry.label for entry in entries)]
        most = (WIDTH - max(map(len, settings))) // len(entries) - 2
        parts.append("Set differently:\n" + text_table(labels, _setting_rows(settings, min(max(most, 14), 24))))
    else:
        parts.append("Nothing was set differently.")
    if pooled is not None:
        parts.append(textwrap.fill(_pooled_text(pooled, len(entries)), WIDTH))
    return "\n\n".join(parts)


def _other_files(entries: Sequence[Entry]) -> str:
    """What keeps rows of one table from being read as one experiment; empty where all runs are on the same bytes."""
    others = [entry.label for entry in entries if not same_file(entries[0], entry)]
    if not others:
        return ""
    return (
        f"On another bar file than {entries[0].label}: {', '.join(map(printable, others))}. "
        "Speed is not compared there, and results only where the prices are the same."
    )


def _page(
    entries: list[Entry], differences: list[Difference], settings: dict[str, list[Any]], pooled: Interval | None
) -> str:
    unlike = [difference.label for difference in differences if not difference.comparable]
    drawn = [entry for entry in entries if entry.label not in unlike]
    left_out = f" Not drawn, because on other bars: {', '.join(unlike)}." if unlike else ""
    results, effort = halves(COLUMNS, [_run_row(entry, entries[0]) for entry in entries], RESULTS)
    data = []
    for order, entry in enumerate(drawn):
        equity = equity_curve(entry.net_return)
        rows = plotly_figures.rows_to_draw(equity)
        x, y = plotly_figures.iso_times(entry.time[rows]), plotly_figures.rounded(equity[rows])
        label = plotly_figures.plain_text(entry.label)
        data.append(plotly_figures.line(x, y, label, COLOURS[order % len(COLOURS)], width=2.0))
    layout = {"height": 420, "xaxis": {"type": "date"}, "yaxis": {"title": {"text": "equity (start = 1)"}}}
    return render(
        "compare.html.j2",
        figures={"equity": {"data": data, "layout": layout}},
        title=f"{len(entries)} runs compared",
        subtitle=f"The reference is {entries[0].label}.",
        version=__version__,
        chart_caption="Equity of every run over time: its stitched test segments, each from its own start." + left_out,
        results=results,
        results_caption="Out of sample, after costs",
        effort=effort,
        effort_caption="What it took; less and faster are against the reference",
        difference_columns=DIFFERENCE_COLUMNS,
        difference_rows=[_difference_row(difference) for difference in differences],
        reference=entries[0].label,
        setting_columns=["", *(entry.label for entry in entries)],
        setting_rows=_setting_rows(settings),
        pooled=_pooled_text(pooled, len(entries)),
        other_files=_other_files(entries),
    )
