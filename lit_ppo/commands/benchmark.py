"""`lit-ppo benchmark`: the recipe with and without its optimisations, on the same folds, same machine, interleaved.

    python -m lit_ppo benchmark --config configs/scratch.yaml --data.path bars.csv --data.fold_limit 6 --ablation

Two comparisons are told apart: with the *base*, which has the same learner, so that only the optimisations differ; and
with the *original* recipe, the old script's network and settings. The original takes close to an hour a fold, so its
pace is timed on a few timesteps, and what a whole fold would take is extrapolated from that and labelled so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from lit_ppo import interrupts
from lit_ppo.commands.lightning_cli import LitPPOCLI
from lit_ppo.commands.walk_forward import make_loop
from lit_ppo.folds.loop import WalkForward
from lit_ppo.lab.benchmark_variants import (
    BUDGET,
    EVERY,
    FAST_EVALUATION,
    ORIGINAL,
    Variant,
    as_before,
    as_configured,
    variants,
)
from lit_ppo.module import LitPPO
from lit_ppo.oracles.optima import solve
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import build_optimizer, experience
from lit_ppo.report.summary import console_of
from lit_ppo.scoring.evaluation import evaluate_bar_by_bar
from lit_ppo.scoring.significance import Interval
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.provenance import code_state, machine, package_versions
from lit_ppo.store.results import RunFolder
from lit_ppo.timing import Stopwatch
from lit_ppo.words import plural

WIDTH = 80  # columns of the table where there is no terminal
TIMED_BARS = 200  # bars of the original network's single-step evaluation that are timed


def make_parser() -> argparse.ArgumentParser:
    """The flags of its own; all others are those of walk-forward."""
    parser = argparse.ArgumentParser(
        prog="lit-ppo benchmark",
        description="Original against optimised, on the same folds. Further flags are those of lit-ppo walk-forward; "
        f"budgets are the comparison's own: {BUDGET:,} timesteps a fold, adaptive ones as the recipe or half as many.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ablation", action="store_true", help="add one optimisation at a time, leave out one at a time"
    )
    parser.add_argument("--fast_base", action="store_true", help="the base evaluates fast too: only results differ")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of every fold, with other seeds")
    parser.add_argument(
        "--original_timesteps", type=int, default=1024, help="on which its pace is timed; 0: not at all"
    )
    parser.add_argument("--name", default="benchmark", help="of the result: OUTPUT/<name>.json")
    parser.add_argument("--output", default="benchmarks/results", help="directory of the result")
    return parser


def benchmark(arguments: Sequence[str], datamodule_class: type[Any]) -> int:
    """Run it, print the table, write the JSON; returns the exit code.

    Raises:
        ValueError: a flag that cannot be meant, a configuration that does not fit the data, or no fold was trained.
        Interrupted: a signal came; the result holds the folds that were complete.
    """
    options, rest = make_parser().parse_known_args(list(arguments))
    if options.seeds < 1 or options.original_timesteps < 0 or not options.name.isidentifier():
        raise ValueError(
            "benchmark needs --seeds >= 1, --original_timesteps >= 0 and a --name of letters, digits and _; got "
            f"{options.seeds}, {options.original_timesteps} and {options.name!r}"
        )
    plain = LitPPOCLI("walk-forward", rest, datamodule_class)
    data = plain.datamodule
    torch.set_num_threads(plain.config["threads"] or 1)  # the fastest for networks of this size, and fair on any load
    data.setup("fit")
    rows = variants(options.ablation, options.fast_base)
    loops = _loops(plain, rows, options.seeds, rest, datamodule_class)
    old = LitPPOCLI("walk-forward", [*rest, "--config", ORIGINAL.read_text(encoding="utf-8")], datamodule_class)
    measured: dict[Variant, list[dict[str, Any]]] = {row: [] for row in rows}
    original: list[dict[str, float]] = []
    load = os.getloadavg()[0]
    path = Path(options.output) / f"{options.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for fold in data.folds:
        if options.original_timesteps:
            original.append(_time_original(old.make_module(), data, fold.index, options.original_timesteps))
        for seed in range(options.seeds):
            # Forwards and backwards by turns: a slow drift of the machine meets early and late rows alike.
            for row in rows if (seed + fold.index) % 2 == 0 else reversed(rows):
                interrupts.raise_if_requested()
                measured[row].append(_run(loops[row][seed], fold, seed))
            done = [f"{row.label}: {measured[row][-1]['seconds']:.1f} s" for row in (rows[0], _all(rows))]
            print(f"fold {fold.index}, seed {seed}: {', '.join(done)}", flush=True)
        if not all(any(entry["timesteps"] for entry in entries) for entries in measured.values()):
            continue  # no feature passed the screen so far: nothing was trained, and there is nothing to compare
        result = _provenance(data, arguments, load) | {
            "folds": list(range(fold.index + 1)),
            "seeds": options.seeds,
            **results(rows, measured, original),
        }
        atomic_write(path, json.dumps(result, indent=1) + "\n")  # after each fold: what is complete is worth keeping
    if not result:
        raise ValueError(
            f"nothing was trained in the {len(data.folds)} folds: no feature passed the screen, so that there is no "
            "training to compare. Give other data.features, a longer data.train_size or --model.screen_features false"
        )
    print_table(result)
    print(f"result: {path}")
    return 0


def _provenance(data: Any, arguments: Sequence[str], load: float) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if data.synthetic is not None:
        optimum = solve(data.synthetic.kind, **data.synthetic.parameters).value
        # In the units of `test_mean_net_return` and of `test_score`.
        more["optimum_per_bar"] = {"net_return": optimum * data.synthetic.scale, "noise_deviations": optimum}
    return {
        "command": ["lit-ppo", "benchmark", *(Path(x).name if Path(x).is_absolute() else x for x in arguments)],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "load_average": {"start": load, "end": os.getloadavg()[0]},
        "versions": package_versions(),
        **code_state(),
        "data": data.fingerprint(),
        "cache": _cache_figures(data),
        **more,
    }


def _all(rows: Sequence[Variant]) -> Variant:
    return max(rows, key=lambda row: len(row.names))


def _loops(
    plain: LitPPOCLI, rows: Sequence[Variant], seeds: int, rest: Sequence[str], datamodule_class: type[Any]
) -> dict[Variant, list[WalkForward]]:
    """One walk-forward for each row and seed, over one datamodule: what differs is the recipe."""
    loops: dict[Variant, list[WalkForward]] = {}
    recipe = plain.make_module().recipe
    given = yaml.safe_load(plain.config_text())["trainer"]
    optimisations = as_configured(given, recipe.total_timesteps)
    for row in rows:
        cli = LitPPOCLI(
            "walk-forward",
            [*rest, "--config", row.overlay(recipe.steps_per_iteration, optimisations)],
            datamodule_class,
        )
        cli.datamodule = plain.datamodule
        loops[row] = []
        for seed in range(seeds):
            folder = RunFolder(
                Path(cli.config["results"]) / "benchmark" / row.slug, cli.config["seed_everything"] + seed
            )
            folder.begin(overwrite=True)
            loop = dataclasses.replace(make_loop(cli, folder, WalkForward), seed=folder.seed, money=None)
            if FAST_EVALUATION not in row.names:
                loop.make_module = as_before(loop.make_module, loop.datamodule)
            loops[row].append(loop)
    return loops


def _run(loop: WalkForward, fold: Any, seed: int) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    record = loop.run_fold(fold)
    seconds, busy = time.perf_counter() - wall, time.process_time() - cpu
    rows = loop.folder.path / "out_of_sample.csv"
    return {
        "seed": seed,
        "fold": fold.index,
        "seconds": seconds,
        "cpu_seconds": busy,
        "timesteps": record.timesteps,
        "validation_score": record.scores["validation/score"],
        "test_score": record.scores["test/score"],
        "test_sharpe_annual": record.scores["test/sharpe_annual"],
        "test_mean_net_return": _mean_net_return(rows, fold.index),
        "stop_reason": record.stop_reason,
    }


def _mean_net_return(path: Path, fold: int) -> float:
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return float(np.mean([float(line[5]) for line in lines if int(line[1]) == fold]))


def _time_original(module: LitPPO, data: Any, fold: int, timesteps: int) -> dict[str, float]:
    """Seconds per timestep of the old recipe's training, and per bar of its single-step evaluation."""
    train = data.fold_data(fold).train
    policy = module.build(train)
    recipe = module.recipe
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)
    learner.attach(experience(recipe, train, 0))
    watch = Stopwatch()
    while learner.timesteps < timesteps:
        with watch.stage("training"):
            learner.iterate()
    head = _first(train, TIMED_BARS)
    with watch.stage("evaluation"):
        evaluate_bar_by_bar(policy, head, recipe.account_features)
    # The old script's evaluation: train and validation bars, every 10,000 timesteps.
    evaluated = (len(train) + len(data.fold_data(fold).validation)) * (BUDGET // EVERY)
    training, evaluation = watch.seconds["training"] / learner.timesteps, watch.seconds["evaluation"] / len(head)
    return {
        "fold": fold,
        "timed_timesteps": learner.timesteps,
        "timed_bars": len(head),
        "training_s_per_timestep": training,
        "evaluation_s_per_bar": evaluation,
        "extrapolated_s_per_fold": BUDGET * training + evaluated * evaluation,
    }


def _first(market: Any, bars: int) -> Any:
    """The first bars of a segment."""
    names = ("features", "price_return", "turnover_cost", "carry_long", "carry_short", "fill_price", "time")
    return dataclasses.replace(market, warmup=0, **{name: getattr(market, name)[:bars] for name in names})


def _cache_figures(data: Any) -> dict[str, Any]:
    info = data.get_optimization_info()
    return {name: info[name] for name in ("cache_enabled", "hits", "misses", "seconds_saved") if name in info}


def results(
    rows: Sequence[Variant], measured: dict[Variant, list[dict[str, Any]]], original: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Everything that is computed from the measurements: one entry a row, against the first."""
    base = measured[rows[0]]
    found: dict[str, Any] = {"variants": [_row(row, measured[row], base) for row in rows]}
    first, optimised = found["variants"][0], _row(_all(rows), measured[_all(rows)], base)
    found["baseline"] = {
        "name": f"the same learner on this machine, {rows[0].label}",
        "seconds": first["seconds_per_fold"],
        "timesteps": BUDGET,
    }
    if original:
        seconds = float(np.median([entry["extrapolated_s_per_fold"] for entry in original]))
        found["original"] = {
            "label": f"original recipe, extrapolated from {sum(entry['timed_timesteps'] for entry in original):.0f} "
            "timesteps in all; never trained to its end here, so it has no out-of-sample result",
            "steps_per_s": 1 / float(np.median([entry["training_s_per_timestep"] for entry in original])),
            "extrapolated_s_per_fold": seconds,
            "extrapolated_time_ratio": seconds / optimised["seconds_per_fold"],
            "timesteps_ratio": BUDGET / optimised["timesteps_per_fold"],
            "timed": list(original),
        }
        found["baseline"] = {
            "name": "the original recipe on this machine, extrapolated from a few timesteps",
            "seconds": seconds,
            "timesteps": BUDGET,
        }
    return found


def _row(row: Variant, own: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    def total(entries: list[dict[str, Any]], name: str) -> float:
        return float(sum(entry[name] for entry in entries))

    less = total(base, "timesteps") / total(own, "timesteps")
    ratio, cpu = (total(base, name) / total(own, name) for name in ("seconds", "cpu_seconds"))
    difference = paired_interval(_table(own, "test_score") - _table(base, "test_score"))
    return {
        "label": row.label,
        "optimisations": list(row.names),
        "seconds_per_fold": total(own, "seconds") / len(own),
        "cpu_seconds_per_fold": total(own, "cpu_seconds") / len(own),
        "timesteps_per_fold": total(own, "timesteps") / len(own),
        "time_ratio": ratio,
        "cpu_time_ratio": cpu,
        "did_less": less,
        "did_it_faster": ratio / less,
        "test_score": float(_table(own, "test_score").mean()),
        "test_score_difference": difference._asdict(),
        "runs": own,
    }


def _table(entries: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """[seeds, folds] of one figure."""
    seeds = sorted({entry["seed"] for entry in entries})
    return np.array(
        [[e[name] for e in sorted(entries, key=lambda e: e["fold"]) if e["seed"] == s] for s in seeds], dtype=np.float64
    )


def paired_interval(
    differences: NDArray[np.float64], confidence: float = 0.95, draws: int = 5000, seed: int = 0
) -> Interval:
    """Mean difference with a percentile interval of a bootstrap over folds, and over seeds within each.

    Args:
        differences: [seeds, folds] of pairs on the same fold and seed.
    """
    generator = np.random.default_rng(seed)
    seeds, folds = differences.shape
    picked_folds = generator.integers(folds, size=(draws, 1, folds))
    picked_seeds = generator.integers(seeds, size=(draws, seeds, folds))
    means = differences[picked_seeds, np.broadcast_to(picked_folds, picked_seeds.shape)].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(float(differences.mean()), low, high, 1.0)


def print_table(result: dict[str, Any]) -> None:
    """Print a result as a table."""
    console = console_of(WIDTH)
    counts = ", ".join(plural(n, what) for n, what in ((len(result["folds"]), "fold"), (result["seeds"], "seed")))
    table = Table(
        title=f"{counts}, interleaved, {plural(result['threads'], 'thread')}",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    table.add_column("")
    names = ("s/fold", "time", "CPU", "did\nless", "did it\nfaster", "test\nscore", "difference\n95 % interval")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    number: Callable[[float], str] = lambda x: f"{x:.2f}x"  # noqa: E731
    for row in result["variants"]:
        d = row["test_score_difference"]
        cells = [f"{row['seconds_per_fold']:.2f}"]
        cells += [number(row[name]) for name in ("time_ratio", "cpu_time_ratio", "did_less", "did_it_faster")]
        cells += [f"{row['test_score']:+.4f}", f"{d['estimate']:+.4f}\n[{d['low']:+.4f}, {d['high']:+.4f}]"]
        table.add_row(row["label"], *cells)
    console.print(table)
    if "original" in result:
        found = result["original"]
        console.print(
            f"The original recipe runs {found['steps_per_s']:.0f} steps/s: {found['extrapolated_s_per_fold']:,.0f} s a "
            f"fold (EXTRAPOLATED), {found['extrapolated_time_ratio']:,.0f}x the time and "
            f"{found['timesteps_ratio']:.2f}x the timesteps of all optimisations together.",
            highlight=False,
        )
