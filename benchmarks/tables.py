"""The measured table of the README, and docs/benchmarks.md with all of them, from benchmarks/results/*.json.

    python -m benchmarks.tables            # rewrites docs/benchmarks.md, and the measured parts of README.md,
                                           # docs/prior.md and docs/power.md
    python -m benchmarks.tables --check    # exit 1 if they are not what the results say

Nothing is measured here. A row without a result reads "unmeasured".
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, read
from benchmarks.edge_tables import planted_headlines, planted_tables, prior_tables
from benchmarks.markdown import UNMEASURED, Row, percent, replaced, table, verdict
from benchmarks.oracles import CONTROL_SUFFIX, ROWS

ROOT = Path(__file__).parents[1]
NAMES = ("oracles", "ablation", "vs_peers", "walk_forward", "long_evaluation", "scaling", "gpu", "memory_proofs")
NAMES += ("popgym", "prior", "planted", "optimisations_regime", "optimisations_regime_results")
NAMES += ("optimisations_file", "null_searches", "workers", "pretraining")
HEADLINES = {  # rows of the README's table: markets of `oracles`, and how rows of `speed_rows` begin
    "quality": ("o3",),
    "speed": ("first user's recipe", "one LSTM of 256", "whole walk-forward"),
}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record there is, by name; the controls of `oracles` stand in a file of their own."""
    results = {name: read(folder / f"{name}.json") for name in NAMES}
    results["oracles"].setdefault("rows", {}).update(read(folder / "oracle_controls.json").get("rows", {}))
    return results


# Quality


def quality_rows(oracles: dict[str, Any]) -> list[Row]:
    """One row per market: bar, interquartile mean with interval, least and most of the seeds, seconds."""
    rows = []
    recorded = oracles.get("rows", {})
    for name, group in ((name, recorded[name]) for name in (*ROWS, "unseen") if name in recorded):
        if name == "unseen":
            rows.append(unseen_row(group))
            continue
        summary, seeds = group["summary"], group["seeds"]
        if summary["of"] == "fraction":
            figure = percent(summary["interquartile_mean"])
            interval = " to ".join(percent(end) for end in summary["interval"] or []) or "one seed"
            ends = f"{percent(summary['min'])} to {percent(summary['max'])}"
        else:
            trades = max(seed["trades_per_bar"] for seed in seeds)
            figure = f"J {summary['interquartile_mean']:+.5f}"
            error = statistics.median(seed["standard_error"] for seed in seeds)
            interval, ends = f"standard error {error:.5f}", f"at most {percent(trades, 3)} of bars traded"
        probes = [seed["probe_r2"] for seed in seeds if seed["probe_r2"] is not None]
        if "probe" in group["bar_text"] and probes:
            figure += f", probe R2 {min(probes):.3f}"
        budget = f"{group['timesteps']:,}"
        seconds = f"{summary['seconds']:.1f} s"
        control = recorded.get(f"{name}{CONTROL_SUFFIX}", {}).get("summary")
        without = percent(control["interquartile_mean"]) if control and control["of"] == "fraction" else ""
        cells = [group["title"], group["bar_text"], figure, interval, ends, without]
        rows.append([*cells, str(summary["seeds"]), budget, seconds, verdict(group.get("passed"))])
    return rows


def unseen_row(group: dict[str, Any]) -> Row:
    fractions = sorted(seed["fraction"] for seed in group["seeds"])
    low = fractions[len(fractions) // 10]
    figure = f"median {percent(statistics.median(fractions))}, tenth {percent(low)}"
    ends = f"{percent(fractions[0])} to {percent(fractions[-1])}"
    title = "Unseen markets: q, mu, cost, noise and 2,500-50,000 train bars at random"
    seconds = f"{group['summary']['seconds']:.1f} s"
    return [title, "shown", figure, "", ends, "", str(len(fractions)), "500,000", seconds, ""]


def quality_table(oracles: dict[str, Any]) -> str:
    titles = ["market", "bar", "share of the optimum", "95 % interval", "least to most", "without memory", "seeds"]
    rows = quality_rows(oracles) or [["all", "", UNMEASURED, *[""] * 7]]
    return table([*titles, "timesteps", "seconds a seed", "passed"], rows)


def ablation_table(record: dict[str, Any]) -> str:
    """Interquartile mean and least of the seeds, a row for each variant of the learner and a column for each market."""
    markets = record.get("markets", {})
    variants = list(dict.fromkeys(name for group in markets.values() for name in group))
    rows: list[Row] = []
    for variant in variants:
        cells = [variant]
        for group in markets.values():
            summary = group.get(variant, {}).get("summary")
            if summary is None:
                cells.append(UNMEASURED)
                continue
            mean, least = percent(summary["interquartile_mean"]), percent(summary["min"])
            cells.append(f"{mean} (least {least}, {summary['seeds']} seeds)")
        rows.append(cells)
    return table(["the default learner", *markets], rows or [["all variants", UNMEASURED]])


# Speed


def speed_rows(results: dict[str, dict[str, Any]]) -> list[Row]:
    """One row per claim: target, measured, met."""
    peers = results["vs_peers"].get("settings", {})
    rows: list[Row] = [
        original_row(peers.get("original", {}).get("summary")),
        memory_row(results["vs_peers"], peers.get("original", {}).get("summary")),
        *setting_rows(peers.get("C", {}).get("summary")),
        *fold_rows(results["walk_forward"], peers.get("original", {}).get("summary")),
        evaluation_row(results["long_evaluation"]),
        *scaling_rows(results["scaling"]),
        *pretraining_rows(results["pretraining"]),
        *gpu_rows(results["gpu"]),
    ]
    return rows


def original_row(summary: dict[str, Any] | None) -> Row:
    what = "first user's recipe (2 x 256 LSTMs twice, 12 epochs) against sb3-contrib, equal samples"
    if not summary or "sb3-contrib" not in summary["ratios"]:
        return [what, ">= 20x", UNMEASURED, ""]
    ratio = summary["ratios"]["sb3-contrib"]
    steps, theirs = summary["steps_per_s"]["median"], summary["peers_steps_per_s"]["sb3-contrib"]["median"]
    measured = f"{times(ratio)}: {steps:,.0f} against {theirs:,.0f} steps/s"
    return [what, ">= 20x", measured, verdict(ratio["median"] >= 20)]


def memory_row(record: dict[str, Any], summary: dict[str, Any] | None) -> Row:
    what, target = "peak memory in those runs", "<= sb3-contrib's + Lightning's import"
    memory, imported = (summary or {}).get("memory_mb", {}), record.get("lightning_import_mb")
    if not {"lit-ppo", "sb3-contrib"} <= memory.keys() or imported is None:
        return [what, target, UNMEASURED, ""]
    own, theirs = memory["lit-ppo"]["median"], memory["sb3-contrib"]["median"]
    measured = f"{own:,.0f} MB against {theirs:,.0f} + {imported:,.0f} MB"
    return [what, target, measured, verdict(own <= theirs + imported)]


def setting_rows(summary: dict[str, Any] | None) -> list[Row]:
    what = "one LSTM of 256, 64 x 128 steps, batch 2,048, 4 epochs: against the fastest of "
    share = "update's share of the machine's sgemm rate in that setting"
    if not summary or not summary["ratios"]:
        return [[f"{what}the other trainers", ">= 1.5x", UNMEASURED, ""], [share, ">= 65 %", UNMEASURED, ""]]
    ratios = summary["ratios"]
    name, ratio = min(ratios.items(), key=lambda item: item[1]["median"])
    measured = f"{times(ratio)} {name}: {summary['steps_per_s']['median']:,.0f} steps/s"
    part = summary["share_of_sgemm"]
    shares = f"{percent(part['median'], 0)} ({percent(part['min'], 0)} to {percent(part['max'], 0)}) of "
    shares += f"{summary['sgemm_gflops']['median']:.0f} GFLOP/s"
    return [
        [f"{what}{len(ratios)} other trainers", ">= 1.5x", measured, verdict(ratio["median"] >= 1.5)],
        [share, ">= 65 %", shares, verdict(part["median"] >= 0.65)],
    ]


def fold_rows(walk_forward: dict[str, Any], original: dict[str, Any] | None) -> list[Row]:
    runs = walk_forward.get("runs", {})
    rows: list[Row] = []
    default = runs.get("scratch")
    fold = "one fold: 100,000 timesteps, validations, test"
    if default is None:
        rows.append([fold, "<= 3 s", UNMEASURED, ""])
    else:
        seconds = default["fold_s"]
        rows.append([fold, "<= 3 s", span(seconds, "s"), verdict(seconds["median"] <= 3)])
        theirs = (original or {}).get("peers_steps_per_s", {}).get("sb3-contrib")
        if theirs:
            ratio = 100_000 / theirs["median"] / seconds["median"]
            what = "the same against the first user's recipe under sb3-contrib, training alone"
            rows.append([what, ">= 1,000x", f"{ratio:,.0f}x", verdict(ratio >= 1000)])
    recipes = {"zero_shot": (20, "nothing trained"), "scratch": (360, "trained"), "aggressive": (120, "aggressive")}
    for name, (target, how) in recipes.items():
        run = runs.get(name)
        what = f"whole walk-forward of the 57,072-bar file, {how}"
        if run is None:
            rows.append([what, f"<= {target} s", UNMEASURED, ""])
        else:
            trained = f", {run['timesteps']:,} timesteps" if run["timesteps"] else ""
            whole = f"{run['total_s']:.0f} s, {run['folds']} folds{trained}"
            met = verdict(run["total_s"] <= target) if run["folds"] > 100 else ""
            rows.append([what, f"<= {target} s", whole, met])
            rows += outcome_rows(f"its result out of sample, {run['folds']} folds", run.get("out_of_sample"))
    return rows


def outcome_rows(what: str, outcome: dict[str, Any] | None) -> list[Row]:
    """What the walk-forward of real bars earned: no target, and no claim."""
    if outcome is None:
        return [[what, "shown", UNMEASURED, ""]]
    hold = f"buy and hold {outcome['buy_and_hold_return_pct']:+.1f} %"
    if not outcome["trades"]:
        return [[what, "shown", f"never traded: no edge found, 0.0 %; {hold}", ""]]
    sharpe, low, high = outcome["sharpe_annual"]
    told = (
        f"{outcome['return_pct']:+.1f} %, {outcome['trades']:,} trades, Sharpe {sharpe:+.2f} [{low:+.2f}, {high:+.2f}]"
    )
    return [[what, "shown", f"{told}; {hold}", ""]]


def evaluation_row(record: dict[str, Any]) -> Row:
    what = "evaluation of 1,000,000 bars: encoder, policy, books, money account; equal to bar by bar"
    if not record:
        return [what, "<= 10 s", UNMEASURED, ""]
    met = record["seconds"]["median"] <= 10 and record["equal_to_bar_by_bar"] and record["bars"] >= 1_000_000
    return [what, "<= 10 s", span(record["seconds"], "s"), verdict(met)]


def scaling_rows(record: dict[str, Any]) -> list[Row]:
    what = "steps per second from 2,000 to 2,000,000 train bars: slowest over fastest"
    memory = "peak memory, 2,000,000 bars x full feature set"
    if not record:
        return [[what, ">= 80 %", UNMEASURED, ""], [memory, "< 2,000 MB", UNMEASURED, ""]]
    ratio = record["slowest_over_fastest"]
    rates = ", ".join(f"{row['steps_per_s']:,.0f}" for row in record["rows"])
    rows: list[Row] = [[what, ">= 80 %", f"{percent(ratio, 0)} ({rates} steps/s)", verdict(ratio >= 0.8)]]
    peak = max(record["rows"], key=lambda row: row["bars"])["peak_memory_mb"]
    rows.append([memory, "< 2,000 MB", f"{peak:,.0f} MB", verdict(peak < 2000)])
    if "file" in record:
        own = record["file"]["peak_memory_mb"]
        rows.append(["peak memory, the 57,072-bar file", "< 700 MB", f"{own:,.0f} MB", verdict(own < 700)])
    return rows


def gpu_rows(record: dict[str, Any]) -> list[Row]:
    what, target = "training on one H100-class card, LSTM 256, 4 epochs", ">= 3,000,000 steps/s"
    prior, bars = "pretraining of the prior trader on that card", ">= 1,000,000 bars/s"
    folds, limit = "training of 109 folds x 3 networks from scratch as one batch, on that card", "< 20 s"
    if "rows" not in record:
        return [[name, wanted, UNMEASURED, ""] for name, wanted in ((what, target), (prior, bars), (folds, limit))]
    best = max(record["rows"], key=lambda row: row["steps_per_s"])
    measured = f"{best['steps_per_s']:,.0f} steps/s at {percent(best['share_of_matmul_peak'], 0)} of {record['card']}"
    rate, seconds = record["pretraining"]["bars_per_s"], record["folds_as_one"]["seconds"]
    return [
        [what, target, measured, verdict(best["steps_per_s"] >= 3e6)],
        [prior, bars, f"{rate:,.0f} bars/s", verdict(rate >= 1e6)],
        [folds, limit, f"{seconds:.1f} s", verdict(seconds < 20)],
    ]


def pretraining_rows(record: dict[str, Any]) -> list[Row]:
    """Bars per second count where nobody else was busy; CPU seconds, and ratios of them, elsewhere too."""
    share = [
        "pretraining (LSTM 64, markets, features and contexts included): a core's share of its sgemm rate",
        ">= 60 %",
    ]
    rate = ["the same on two threads", ">= 120,000 bars/s on two idle cores"]
    two, ranks = ["two threads against one, wall time", ">= 1.8x"], ["two ranks against one, bars/s", ">= 1.8x"]
    plain = ["against the same learner in plain torch (nn.LSTM), CPU time, one thread", "shown"]
    update = ["its update against sb3-contrib's: same LSTM, sequences, epochs; CPU time, one thread", "shown"]
    if not record:
        return [[*row, UNMEASURED, ""] for row in (share, rate, two, ranks, plain, update)]
    idle = record["load_average"] <= 2  # its own two threads are all
    told = "" if idle else f"; load {record['load_average']}, others' included"
    by_name, by_ranks = record["candidates"], record["ranks"]
    bars, cpu = (by_name["two threads"][key] for key in ("bars_per_s", "cpu_s_a_million_bars"))
    of_ranks = by_ranks["2"]["bars_per_s"] / by_ranks["1"]["bars_per_s"]
    of_what = f"{record['sgemm_gflops_a_cpu_second']['median']:.0f} GFLOP a CPU second"
    return [
        [
            *share,
            f"{percent(record['share_of_sgemm'], 0)} of {of_what}, {record['kflop_per_bar']} kFLOP a bar",
            verdict(record["share_of_sgemm"] >= 0.6),
        ],
        [*rate, f"{bars:,.0f} bars/s, {cpu:.1f} CPU s a million{told}", verdict(bars >= 120_000) if idle else ""],
        [
            *two,
            f"{times(record['one_wall_over_two'])}{told}",
            verdict(record["one_wall_over_two"]["median"] >= 1.8) if idle else "",
        ],
        [*ranks, f"{of_ranks:.2f}x{told}", verdict(of_ranks >= 1.8) if idle else ""],
        [*plain, times(record["plain_cpu_over_ours"]), ""],
        [*update, update_measured(record.get("sb3_contrib_update")), ""],
    ]


def update_measured(record: dict[str, Any] | None) -> str:
    if not record:
        return UNMEASURED
    ours, theirs = (record[f"{who}_cpu_s"]["median"] for who in ("ours", "theirs"))
    return f"{times(record['theirs_over_ours'])}: {ours:.1f} against {theirs:.1f} CPU s a million bars"


# Many runs


def many_runs_rows(searches: dict[str, Any], workers: dict[str, Any]) -> list[Row]:
    """Searches that found nothing where there is nothing, and what Ray costs and brings."""
    null = ["searches on markets without an edge that end with a deflated Sharpe ratio above 0.95", "<= 5 of 100"]
    if "summary" in searches:
        found = searches["summary"]
        passed = found["above_0.95"] <= 5 if found["searches"] >= 100 or found["above_0.95"] > 5 else None
        null += [
            f"{found['above_0.95']} of {found['searches']}, {searches['trials']} trials each; true share at most "
            f"{percent(found['upper'])} (95 %, exact binomial); {found['judged']} traded enough for a ratio",
            verdict(passed),
        ]
    else:
        null += [UNMEASURED, ""]
    rows: list[Row] = [null]
    claims = (
        ("two workers on two cores against this process, wall time a fold", ">= 1.8x", "fold_speed_ratio"),
        ("one worker against this process, CPU time a fold", "<= 1.05x", "engine_cpu_ratio"),
    )
    for what, target, name in claims:
        if name not in workers or (name == "fold_speed_ratio" and "2" not in workers["by_workers"]):
            rows.append([what, target, UNMEASURED, ""])
            continue
        others = max(one["others"] for one in workers["runs"])
        told = f"{workers[name]:.3f}x, equal bytes: {verdict(workers['same_bytes'])}"
        told += f"; others used up to {others:.1f} cores meanwhile" if workers["busy"] else ""
        met = workers[name] >= 1.8 if name == "fold_speed_ratio" else workers[name] <= 1.05
        rows.append([what, target, told, "" if workers["busy"] else verdict(met)])
    return rows


# Memory


def memory_table(record: dict[str, Any]) -> str:
    """One row per task and trainer: episodes won at the end, and work until the goal was first seen."""
    who = {
        "memory": "lit-ppo",
        "no_memory": "the same without memory (control)",
        "sb3_contrib": "sb3-contrib, RL Zoo's",
    }
    names = {"cartpole": "CartPole without velocities", "pendulum": "Pendulum without velocity"}
    rows: list[Row] = []
    for task, title in names.items():
        goal = record.get("goals", {}).get(task, {}).get("reward")
        for kind, label in who.items():
            summary = record.get("summary", {}).get(task, {}).get(kind)
            if summary is None:
                rows.append([title, label, UNMEASURED, "", "", ""])
                continue
            reward = f"{summary['mean_test_reward']:.1f} (worst {summary['worst_test_reward']:.1f})"
            reached = f"{summary['seeds_at_goal']} of {summary['seeds']} at {goal:g}"
            budget = max(run["curve"][-1]["timesteps"] for run in record["runs"][task][kind])
            points = [run["reached"] for run in record["runs"][task][kind] if run["reached"]]
            steps, cpu = (median_and_ends([point[name] for point in points]) for name in ("timesteps", "cpu_s"))
            rows.append([title, f"{label}, {budget:,} timesteps", reward, reached, steps or "never", cpu])
    titles = ["task", "who", "mean reward, 100 test episodes", "seeds", "timesteps to the goal", "CPU seconds to it"]
    return table(titles, rows)


POPGYM_AGENTS = {
    "lit_ppo": "lit-ppo",
    "memoryless": "the same without memory (control)",
    "orthogonal": "the same from orthogonal start values",
    "as_long": "lit-ppo, as many timesteps as published",
    "sb3_contrib": "sb3-contrib RecurrentPPO, same settings",
}


def popgym_table(record: dict[str, Any]) -> str:
    """One row per task and agent: mean (least to most) over seeds of POPGym's score, and work until the goal."""
    rows: list[Row] = []
    for task, goal in record.get("goals", {}).items():
        title = f"{task} (goal {goal['score']:.3f}, published {goal['published']:.3f})"
        runs = {label: record["runs"].get(task, {}).get(agent, []) for agent, label in POPGYM_AGENTS.items()}
        rows += [[title, label, *popgym_figures(own)] for label, own in runs.items() if own]
        optional = POPGYM_AGENTS["as_long"]
        if missing := [label for label, own in runs.items() if not own and label != optional]:
            rows.append([title, "; ".join(missing), UNMEASURED, *[""] * 6])
    titles = [
        "task",
        "who",
        "seeds",
        "timesteps",
        "final",
        "best",
        "at the goal",
        "timesteps to it",
        "CPU seconds to it",
    ]
    return table(titles, rows or [["POPGym", "", UNMEASURED, *[""] * 6]])


def popgym_figures(runs: list[dict[str, Any]]) -> list[str]:
    """Cells of one agent's runs on one task."""

    def scores(name: str) -> str:
        values = [run[name] for run in runs]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    budgets = sorted({run["timesteps"] for run in runs})
    reached = [run["reached"] for run in runs if run["reached"]]
    work = [median_and_ends([point[name] for point in reached]) or "never" for name in ("timesteps", "cpu_s")]
    steps = " to ".join(f"{budget:,}" for budget in (budgets[:1] + budgets[-1:] if len(budgets) > 1 else budgets))
    return [str(len(runs)), steps, scores("final"), scores("best"), f"{len(reached)} of {len(runs)}", *work]


def median_and_ends(values: Sequence[float]) -> str:
    """Median, least and most; "" of nothing."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})" if values else ""


# Optimisations


def optimisation_rows(record: dict[str, Any]) -> list[Row]:
    """One row per variant of `lit-ppo benchmark --ablation`."""
    rows: list[Row] = []
    for variant in record.get("variants", []):
        difference = variant["test_score_difference"]
        change = f"{difference['estimate']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        times_of = [f"{variant[name]:.2f}x" for name in ("time_ratio", "did_less", "did_it_faster")]
        seconds = f"{variant['seconds_per_fold']:.2f} s"
        rows.append([variant["label"], seconds, *times_of, f"{variant['test_score']:.4f}", change])
    return rows


OPTIMISATION_TITLES = ("seconds a fold", "time ratio", "did less", "did it faster", "test score", "change [95 %]")
MEASURED_ON = {
    "optimisations_regime": "O3 main (optimum 0.1110), base evaluates bar by bar",
    "optimisations_file": "the 57,072-bar file, base evaluates bar by bar",
    "optimisations_regime_results": "O3 main, every variant evaluates whole sequences",
}


def optimisations_together(results: dict[str, dict[str, Any]]) -> str:
    """All of them at once against none, on each market where every variant was measured from bar-by-bar evaluation."""
    rows: list[Row] = []
    for name in ("optimisations_regime", "optimisations_file"):
        found = optimisation_rows(results[name])
        rows += [[MEASURED_ON[name], *row] for row in found if row[0].startswith("base") or row[0].endswith("all")]
    return table(["where", "what", *OPTIMISATION_TITLES], rows or [["all", UNMEASURED, *[""] * 7]])


def optimisation_table(name: str, record: dict[str, Any]) -> str:
    """Every variant of one recorded ablation, and the first user's recipe beside it."""
    size = f": {len(record['folds'])} folds, {record['seeds']} seeds" if record else ""
    rows = optimisation_rows(record) or [["all", UNMEASURED, *[""] * 5]]
    text = table([f"{MEASURED_ON[name]}{size}", *OPTIMISATION_TITLES], rows)
    original = record.get("original")
    if original:
        text += (
            f"\n\nThe first user's recipe in the same run: {original['steps_per_s']:,.0f} steps/s, "
            f"{original['extrapolated_s_per_fold']:,.0f} s a fold ({original['label']})."
        )
    return text


def times(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"


def span(values: dict[str, float], unit: str) -> str:
    return f"{values['median']:.2f} {unit} ({values['min']:.2f} to {values['max']:.2f})"


# Pages


def origin(results: dict[str, dict[str, Any]]) -> str:
    """Which machine and commits the figures are of."""
    made = {name: record for name, record in results.items() if "machine" in record}
    lines = []
    for name, record in made.items():
        machine = record["machine"]
        code = record.get("code") or {"commit": record["commit"], "dirty": record["dirty"]}
        commit = (code["commit"] or "unknown")[:7] + (" (with changes)" if code["dirty"] else "")
        lines.append(
            f"{name}: {machine['cpu']}, {machine['cores']} cores, {record['threads']} threads, load "
            f"{load_of(record)}, torch {record['versions']['torch']}, commit {commit}"
        )
    return "\n".join(f"- {line}" for line in lines)


def load_of(record: dict[str, Any]) -> str:
    """Load average while it was measured."""
    load = record.get("load_average", "of each training in its file")
    return f"{load['start']:.1f} to {load['end']:.1f}" if isinstance(load, dict) else str(load)


def readme_part(results: dict[str, dict[str, Any]]) -> str:
    """What stands between the markers: eight rows, a bar that was missed among them, and how to see the rest."""
    quality, speed = quality_rows(results["oracles"]), speed_rows(results)
    rows: list[Row] = []
    for name in HEADLINES["quality"]:
        title = f"share of the optimum, {ROWS[name].title}"
        found = next((row for row in quality if row[0] == ROWS[name].title), None)
        measured = f"{found[2]}, {found[6]} seeds ({found[4]})" if found else UNMEASURED
        rows.append([title, ROWS[name].bar_text, measured, found[-1] if found else ""])
    rows += planted_headlines(results["planted"])
    rows += [next(row for row in speed if row[0].startswith(start)) for start in HEADLINES["speed"]]
    return "\n".join(
        [
            f"Measured on {where_measured(results)}; generated from `benchmarks/results/`.",
            "",
            table(["what", "bar", "measured", "met"], rows),
            "",
            "[docs/benchmarks.md](docs/benchmarks.md) has every market, seed and trainer, commits and load.",
        ]
    )


def where_measured(results: dict[str, dict[str, Any]]) -> str:
    machines = {
        f"{record['machine']['cpu']}, {record['machine']['cores']} cores"
        for record in results.values()
        if "machine" in record
    }
    return "; ".join(sorted(machines)) or "no machine yet"


def others_load(record: dict[str, Any]) -> str:
    """What to know of seconds that were taken beside others' work."""
    load = record.get("load_average", 0.0)
    return f"; seconds include others' work, load {load:.1f} at the end" if load > 2 else ""


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The tables that docs/benchmarks.md begins with."""
    return "\n\n".join(
        [
            "## Quality",
            "Share of the known optimum captured on fresh bars, one recipe for all markets "
            f"([oracles.md](oracles.md); {where_measured(results)}{others_load(results['oracles'])}).",
            quality_table(results["oracles"]),
            "## What each part of the learner is worth",
            "On a small window: `python -m benchmarks.ablation`.",
            ablation_table(results["ablation"]),
            "## Speed",
            "Updates included; ratios are within one run on one machine, with their spread.",
            table(["what", "target", "measured", "met"], speed_rows(results)),
            "## Many runs",
            "`python -m benchmarks.null_searches` ([search.md](search.md)), `python -m benchmarks.workers` "
            "([scale.md](scale.md)).",
            table(["what", "target", "measured", "met"], many_runs_rows(results["null_searches"], results["workers"])),
            "## Memory",
            "Beyond markets ([gymnasium.md](gymnasium.md)): `python -m benchmarks.memory_proofs`.",
            memory_table(results["memory_proofs"]),
            "### POPGym",
            "One recipe (configs/popgym.yaml): `python -m benchmarks.popgym`. Score: mean return of the episodes of "
            "one PPO iteration, actions sampled, as POPGym reports it; mean over seeds (least to most). Timesteps and "
            "CPU seconds: of the seeds that reached the goal, median (least to most). Published: GRU, 15,000,000 "
            "timesteps, best. Fewer timesteps than the others had: cut off there, and nothing is claimed beyond.",
            popgym_table(results["popgym"]),
            "## Optimisations",
            "All against none: `python -m benchmarks.optimisations`, `--data FILE`. Score: mean reward per bar.",
            optimisations_together(results),
        ]
    )


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/benchmarks.md: every seed, trainer and optimisation, and where it was measured."""
    groups = results["oracles"].get("rows", {})
    parts = [
        "# What was measured",
        "Generated by `python -m benchmarks.tables` from `benchmarks/results/*.json`; do not edit by hand.",
        summary(results),
        "## Every seed",
        "Share of the optimum on the same 1,000,000 fresh bars (mean reward per bar in units for the random walk), the "
        "weights at the end of training; in brackets, timesteps to 80, 90 and 95 % at the first look that showed it.",
        *(seed_lines(groups[name]) for name in (*ROWS, "unseen") if name in groups),
        "## Every trainer",
        *(trainer_table(name, setting) for name, setting in results["vs_peers"].get("settings", {}).items()),
        "## Every optimisation",
        "Added one at a time, then left out one at a time: `python -m benchmarks.optimisations --ablation`, with "
        "`--fast_base` where every variant evaluates whole sequences. Test score: mean reward per bar.",
        *(optimisation_table(name, results[name]) for name in MEASURED_ON),
        "## Where",
        origin(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def seed_lines(group: dict[str, Any]) -> str:
    lines = [f"### {group['title']}", ""]
    for seed in group["seeds"]:
        worth = seed["fraction"] is not None
        figure = (
            f"{percent(seed['fraction'], 2)} +- {100 * seed['fraction_error']:.2f}"
            if worth
            else (
                f"{seed['reward']:+.5f} +- {seed['standard_error']:.5f}, trades on {percent(seed['trades_per_bar'], 3)}"
            )
        )
        reached = [point and f"{point['timesteps']:,}" for point in seed["reached"].values()]
        when = f" [{', '.join(value or 'never' for value in reached)}]" if worth and seed["curve"] else ""
        market = f"; {seed['market']}, {seed['train_bars']:,} bars" if "market" in seed else ""
        lines.append(f"- seed {seed['seed']}: {figure}{when}, {seed['seconds']:.1f} s{market}")
    return "\n".join(lines)


def trainer_table(name: str, setting: dict[str, Any]) -> str:
    names = sorted({trainer for results in setting["rounds"] for trainer in results})
    rows = [[trainer, *(figure(results.get(trainer, {})) for results in setting["rounds"])] for trainer in names]
    titles = ["steps/s", *(f"round {i + 1}" for i in range(len(setting["rounds"])))]
    cpu = setting["summary"]["ratios_per_cpu_second"]
    more = "; ".join(f"{trainer} {times(ratio)}" for trainer, ratio in cpu.items())
    more = f"lit-ppo's steps per CPU second over theirs: {more or UNMEASURED}."
    return f"### Setting {name}\n\n{table(titles, rows)}\n\n{more}"


def figure(result: dict[str, Any]) -> str:
    if "sps" not in result:
        return result.get("error", "not run").replace("|", "/")
    return f"{result['sps']:,.0f} ({result['cpu_per_wall']:.2f} cores)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = read_results(arguments.results)
    readme, docs = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
    prior, power = ROOT / "docs" / "prior.md", ROOT / "docs" / "power.md"
    wanted = {
        readme: replaced(readme.read_text(encoding="utf-8"), readme_part(results)),
        docs: page(results),
        prior: replaced(prior.read_text(encoding="utf-8"), prior_tables(results["prior"])),
        power: replaced(power.read_text(encoding="utf-8"), planted_tables(results["planted"])),
    }
    for path, text in wanted.items():
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        if arguments.check and not same:
            raise SystemExit(f"{path.name} is not what benchmarks/results says; run python -m benchmarks.tables")
        if not same:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name} rewritten")


if __name__ == "__main__":
    main()
