"""Tables of known edges on real noise: the battery (`benchmarks.planted`), the prior trader (`benchmarks.prior`)."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.markdown import UNMEASURED, Row, percent, table, verdict

ASKED = {  # informed annual Sharpe: share of it that the default recipe is to find in windows of 24,000 bars
    3.0: {"regime": 0.4},
    6.0: {"regime": 0.8},
    10.0: dict.fromkeys(("momentum", "reversion", "season", "drift"), 0.9),
}
PLANTED_FIGURES = {"t": "+.1f", "exposure": ".2f"}
RECIPES = {"walk_forward": "the prior, nothing trained", "fine_tune": "fine-tuned", "scratch": "from scratch"}
Cells = dict[tuple[str, float | None], dict[str, list[dict[str, Any]]]]


def planted_cells(record: dict[str, Any], recipe: str = "walk_forward") -> Cells:
    """A recipe's runs by (kind, informed Sharpe), then by window."""
    found: Cells = {}
    for cell in record.get("cells", {}).values():
        if cell["recipe"] == recipe:
            found.setdefault((cell["kind"], cell["sharpe"]), {}).setdefault(cell["window"], []).append(cell)
    return found


def planted_headlines(record: dict[str, Any]) -> list[Row]:
    """One row a size in windows of 24,000 bars: the mean of files and seeds by kind. One row for nothing planted."""
    window, found, rows = "24000", planted_cells(record), []
    for sharpe, least in ASKED.items():
        shares = {
            kind: statistics.mean(cell["share"] for cell in by_window[window])
            for (kind, size), by_window in found.items()
            if size == sharpe and by_window.get(window)
        }
        title = f"known edge on real noise, informed annual Sharpe {sharpe:g}: share found by the default recipe"
        bar = ", ".join(f"{kind} >= {100 * share:.0f} %" for kind, share in least.items())
        measured = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
        met = verdict(all(shares[kind] >= share for kind, share in least.items())) if shares else ""
        rows.append([title, bar, measured or UNMEASURED, met])
    null = found.get(("null", None), {}).get(window, [])
    title, measured, met = "nothing planted: t, and annual Sharpe lost to costs", UNMEASURED, ""
    if null:
        t, lost = [cell["t"] for cell in null], max(cell["cost_in_sharpe"] for cell in null)
        measured = f"t {min(t):+.1f} to {max(t):+.1f} in {len(t)} plantings; at most {lost:.2f} lost"
        met = verdict(max(map(abs, t)) < 2 and lost <= 0.2)
    return [*rows, [title, "t within 2, at most 0.2 lost", measured, met]]


def planted_tables(record: dict[str, Any]) -> str:
    """The battery: a row a kind and size, a column a window, and every planting."""
    found = planted_cells(record)
    if not found:
        return UNMEASURED
    windows = list(record["windows"])
    rows, every = [], []
    for (kind, sharpe), by_window in found.items():
        cells = []
        for window in windows:
            runs = by_window.get(window, [])
            if not runs:
                cells.append(UNMEASURED)
            elif sharpe is None:
                cells.append(
                    f"t {min(run['t'] for run in runs):+.1f} to {max(run['t'] for run in runs):+.1f}, exposure "
                    f"{statistics.mean(run['exposure'] for run in runs):.2f}, costs at most "
                    f"{max(run['cost_in_sharpe'] for run in runs):.2f} of annual Sharpe"
                )
            else:
                shares = [100 * run["share"] for run in runs]
                cells.append(f"{statistics.mean(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})")
        size = "" if sharpe is None else f"{sharpe:g}"
        rows.append([kind, size, *cells])
        for window, runs in by_window.items():
            for file in dict.fromkeys(run["file"] for run in runs):
                own = [run for run in runs if run["file"] == file]
                shown = ", ".join("-" if run["share"] is None else f"{100 * run['share']:.0f} %" for run in own)
                every.append(
                    [kind, size, window, file.split("_")[0], shown]
                    + [", ".join(f"{run[name]:{form}}" for run in own) for name, form in PLANTED_FIGURES.items()]
                )
    titles = ["planted", "informed Sharpe", *(f"windows of {int(w):,}" if w.isdigit() else w for w in windows)]
    detail = ["planted", "informed Sharpe", "window", "noise of", "found", "t", "exposure"]
    return (
        f"{table(titles, rows)}\n\nThe default beside training, windows of 24,000, the same plantings in a row:\n\n"
        f"{recipe_table(record)}\n\nEvery planting of the default:\n\n{table(detail, every)}"
    )


def recipe_table(record: dict[str, Any], window: str = "24000") -> str:
    """Prior, fine-tuned and from scratch: means (least to most) over the plantings that all measured recipes share."""
    by_recipe = {recipe: planted_cells(record, recipe) for recipe in RECIPES}
    rows: list[Row] = []
    for (kind, sharpe), by_window in by_recipe["walk_forward"].items():
        runs = {"walk_forward": by_window.get(window, [])}
        runs |= {recipe: cells.get((kind, sharpe), {}).get(window, []) for recipe, cells in by_recipe.items()}
        named = {recipe: {(run["file"], run["seed"]): run for run in own} for recipe, own in runs.items() if own}
        if len(named) < 2:
            continue
        shared = sorted(set.intersection(*map(set, named.values())))
        shown = [one_or_none(named.get(recipe), shared) for recipe in RECIPES]
        rows.append([kind, "" if sharpe is None else f"{sharpe:g}", str(len(shared)), *shown])
    titles = ["planted", "informed Sharpe", "plantings", *RECIPES.values()]
    return table(titles, rows or [["", "", "", *[UNMEASURED] * len(RECIPES)]])


def one_or_none(runs: dict[tuple[str, int], dict[str, Any]] | None, shared: list[tuple[str, int]]) -> str:
    """A recipe's share of these plantings; where nothing was planted its t and exposure."""
    if runs is None:
        return UNMEASURED
    own = [runs[planting] for planting in shared]
    if own[0]["share"] is None:
        t = [run["t"] for run in own]
        return f"t {min(t):+.1f} to {max(t):+.1f}, exposure {statistics.mean(run['exposure'] for run in own):.2f}"
    shares = [100 * run["share"] for run in own]
    return f"{statistics.mean(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})"


def prior_tables(record: dict[str, Any]) -> str:
    """What the prior trader finds without training: planted edges, shapes outside the prior, laboratory markets."""
    if not record:
        return UNMEASURED
    parts, details = [], []
    for what, inside in (("planted edge", True), ("shape that the prior does not draw", False)):
        rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for cell in record["cells"]:
            if (cell["m"] is not None) == inside:
                rows.setdefault((cell["kind"], cell["m"], cell["file"], cell["hurdle"]), []).append(cell)
        titles = (what, "noise of", "hurdle", "informed Sharpe", "found of the means", "least to most")
        titles += ("found of the returns", "t", "exposure")
        parts.append(table(titles, [prior_row(key, cells) for key, cells in rows.items()]))
        titles = (what, "noise of", "informed Sharpe", "found of the returns", "before bar 3,000", "exposure", "t")
        details.append(table(titles, [planting_row(key, cells) for key, cells in rows.items()]))
    for hurdle, found in record["laboratory"].items():
        unseen = [cell["share"] for name, cell in found.items() if "unseen" in name and cell["share"] is not None]
        main, hard = found["main"], found["hard"]
        parts.append(
            f"Laboratory, hurdle {hurdle}: share of the optimum O3 main {percent(main['share'])}, O3 hard "
            f"{percent(hard['share'])}, {len(unseen)} unseen regime markets median "
            f"{percent(statistics.median(unseen))}, worst {percent(min(unseen))}. Share of what the filter earns that "
            "must find the regime's size and flip rate out too (thresholds best in hindsight): "
            f"{percent(main['share_of_bayes'])} and {percent(hard['share_of_bayes'])}."
        )
    titles = ("real file", "bars", "spread", "net", "annual Sharpe", "t", "exposure", "long: net", "Sharpe", "trend")
    titles = (*titles, "verdict")
    parts.append(table(titles, [real_row(found) for found in record["real"]]))
    return "\n\n".join([*parts, "Every planting:", *details])


def real_row(found: dict[str, Any]) -> Row:
    if "refused" in found:
        return (
            found["file"],
            "not read: " + found["refused"].removeprefix(f"{found['file']}: ")[:70] + " ...",
            *[""] * 9,
        )
    return (
        found["file"],
        f"{found['bars']:,}",
        found["spread"],
        f"{found['return_pct']:+.1f} %",
        f"{found['sharpe_annual']:+.2f}",
        f"{found['t']:+.1f}",
        f"{found['exposure']:.2f}",
        f"{found['buy_and_hold']['return_pct']:+.1f} %",
        f"{found['buy_and_hold']['sharpe_annual']:+.2f}",
        f"{found['trend']['sharpe_annual']:+.2f}",
        {"edge": "edge", "none": "no edge", "loss": "loss"}[found["verdict"]],
    )


def prior_row(key: tuple[Any, ...], cells: list[dict[str, Any]]) -> Row:
    """A kind and a file: all plantings together."""
    kind, size, file, hurdle = key
    scored = [cell["scored"] for cell in cells]

    def together(found: str, informed: str) -> str:
        most = sum(cell[informed] for cell in scored)
        return f"{100 * sum(cell[found] for cell in scored) / most:.0f} %" if most > 0 else "-"

    each = [cell["expected"] / cell["informed_expected"] for cell in scored if cell["informed_expected"] > 0]
    exposures = [cell["exposure"] for cell in scored]
    return (
        kind if not size else f"{kind} {size:g}",
        file.split("_")[0],
        f"{hurdle:g}",
        f"{statistics.mean(cell['informed_sharpe'] for cell in scored):.1f}",
        together("expected", "informed_expected"),
        f"{100 * min(each):.0f} to {100 * max(each):.0f} %" if each else "-",
        together("net", "informed_net"),
        f"{statistics.mean(cell['t'] for cell in scored):+.1f}",
        f"{statistics.mean(exposures):.2f} ({min(exposures):.2f} to {max(exposures):.2f})",
    )


def planting_row(key: tuple[Any, ...], cells: list[dict[str, Any]]) -> Row:
    """A kind and a file: every planting."""
    kind, size, file, _ = key

    def shares(part: str) -> str:
        found = [cell[part]["share"] for cell in cells]
        return ", ".join("-" if share is None else f"{100 * share:.0f} %" for share in found)

    scored = [cell["scored"] for cell in cells]
    return (
        kind if not size else f"{kind} {size:g}",
        file.split("_")[0],
        ", ".join(f"{cell['informed_sharpe']:.1f}" for cell in scored),
        shares("scored"),
        shares("early"),
        ", ".join(f"{cell['exposure']:.2f}" for cell in scored),
        ", ".join(f"{cell['t']:+.1f}" for cell in scored),
    )
