"""`lit-ppo oracle`: train on a market whose optimum is known, and print what share of it the agent captures.

The way is the product's own: bars -> features -> fold -> Lightning shell -> evaluation and books, on fresh bars of
another seed. One recipe serves every market: the defaults of `lit_ppo.recipe.Recipe`, unless `--config` or `--model.*`
say otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from rich.table import Table

from lit_ppo.lab.oracle_score import FreshBars
from lit_ppo.lab.oracle_training import LEVELS, SeedResult, train_seed
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.oracles import optima, rules
from lit_ppo.recipe import Recipe, suitable_threads
from lit_ppo.report.summary import console_of
from lit_ppo.scoring.significance import interquartile_mean, interquartile_mean_interval
from lit_ppo.seeding import derive_seed
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import shown_path
from lit_ppo.store.provenance import code_state, machine, package_versions

MARKET_KEYS = ("q", "mu", "rho", "beta", "cost", "noise", "dof", "nuisances", "nuisance_kind")


@dataclass(frozen=True)
class MarketMaker:
    """What the command line hands in, so that nothing here knows the datamodules.

    Attributes:
        market: `datamodules.synthetic.SyntheticMarket`.
        train_fold: market, train bars -> a set-up datamodule.
        fresh_bars: datamodule, market -> that market's bars, scaled as the datamodule's fold.
    """

    market: Callable[..., Any]
    train_fold: Callable[[Any, int], pl.LightningDataModule]
    fresh_bars: Callable[[Any, Any], MarketTensors]


@dataclass(frozen=True)
class OracleTask:
    """A market, how much of it may be learnt from, and what the agent is measured on.

    Attributes:
        market: keywords of the market: kind, parameters, nuisances.
        train_bars: bars to learn from.
        test_bars: fresh ones, of another seed; the same for every agent seed.
    """

    market: dict[str, Any]
    train_bars: int
    test_bars: int

    def fresh(self, make: MarketMaker, datamodule: pl.LightningDataModule) -> FreshBars:
        """Draw the fresh bars, scale them for the datamodule's fold, and run the best trader on them."""
        market = make.market(**self.market, num_bars=self.test_bars, seed=derive_seed(0, 0, "oracle test") >> 32)
        draw = market.draw()
        optimum = optima.solve(market.kind, **market.parameters)
        return FreshBars.of(make.fresh_bars(datamodule, market), optimum, market.scale, draw.returns, draw.signal)

    def train(self, make: MarketMaker, seed: int, recipe: dict[str, Any], **options: Any) -> SeedResult:
        """Train one seed: its own train bars, its own agent, the common fresh bars."""
        market = make.market(**self.market, seed=derive_seed(seed, 0, "oracle train") >> 32)
        datamodule = make.train_fold(market, self.train_bars)
        return train_seed(seed, datamodule, self.fresh(make, datamodule), recipe, **options)


def rule_controls(parameters: dict[str, Any], kind: str) -> dict[str, float]:
    """Exact rewards per bar, units, of traders that need no learning."""
    controls = {"flat": 0.0}
    if kind == "regime":
        q, mu, cost, dof = (parameters[name] for name in ("q", "mu", "cost", "dof"))
        controls["sign_rule"] = rules.memoryless_value(q, mu, cost, 0.0, dof)
        controls["best_memoryless_rule"] = rules.best_memoryless(q, mu, cost, dof).value
    if kind == "predictor":
        controls["sign_rule"] = rules.predictor_rule_value(*(parameters[name] for name in ("rho", "beta", "cost")))
    return controls


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Interquartile mean of the seeds' fractions with a bootstrap interval; of rewards, where nothing can be earned."""
    key = "fraction" if all(result["fraction"] is not None for result in results) else "reward"
    values = [result[key] for result in results]
    interval: list[float] | None = None  # of one seed there is none
    if len(values) > 1:
        found = interquartile_mean_interval(np.array(values)[:, None])
        interval = [found.low, found.high]
    return {
        "of": key,
        "seeds": len(values),
        "interquartile_mean": interquartile_mean(values),
        "interval": interval,
        "min": min(values),
        "max": max(values),
        "seconds": float(np.median([result["seconds"] for result in results])),
        "looks_ahead": any(result["looks_ahead"] for result in results),
    }


def oracle(arguments: Sequence[str], make: MarketMaker) -> int:
    """Run the command; returns the exit code: 1 when an agent beat the optimum, which only a leak can."""
    options = _parse(arguments)
    kind = options["market"]
    task = OracleTask(
        {"kind": kind, **{key: options[key] for key in MARKET_KEYS if options[key] is not None}},
        options["train_bars"],
        options["test_bars"],
    )
    market = make.market(**task.market)
    optimum = optima.solve(kind, **market.parameters)
    recipe = {**options["model"], "total_timesteps": options["timesteps"]}
    torch.set_num_threads(suitable_threads(Recipe(**recipe)))
    console = console_of(140)
    console.print(
        f"{kind} {market.parameters}: the optimum is {optimum.value:.5f} units per bar. Learning from "
        f"{task.train_bars:,} bars, {options['timesteps']:,} timesteps; tested on {task.test_bars:,} fresh ones.",
        highlight=False,
    )
    directory = Path(options["results"])
    results, memoryless = [], []
    for seed in range(options["seed"], options["seed"] + options["seeds"]):
        results.append(task.train(make, seed, recipe, directory=directory / f"seed_{seed}").to_dict())
        console.print(_line(results[-1]), highlight=False)
    if options["controls"]:
        for seed in range(options["seed"], options["seed"] + min(options["seeds"], 3)):
            without = task.train(make, seed, {**recipe, "encoder": "memoryless"}, curve_decisions=0)
            memoryless.append(without.to_dict())
    record: dict[str, Any] = {
        "what": "lit-ppo oracle",
        "market": {**task.market, "parameters": market.parameters, "scale": market.scale},
        "train_bars": task.train_bars,
        "test_bars": task.test_bars,
        "optimum_per_bar": optimum.value,
        "recipe": Recipe(**recipe).to_dict(),
        "summary": summarise(results),
        "seeds": results,
        "controls": {
            "rules": rule_controls(market.parameters, kind),
            "memoryless_trainer": [{key: run[key] for key in ("seed", "fraction", "reward")} for run in memoryless],
        },
        "machine": machine(),
        "versions": package_versions(),
        "code": code_state(),
    }
    console.print(_table(record))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "oracle.json"
    atomic_write(path, json.dumps(record, indent=1) + "\n")
    console.print(f"{shown_path(path)}; curves: tensorboard --logdir {shown_path(directory)}", highlight=False)
    if record["summary"]["looks_ahead"]:
        console.print("An agent earned more than the optimum by three standard errors: something looks ahead.")
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    parser = ArgumentParser(
        prog="lit-ppo oracle", description="Train on a market with a known optimum.", allow_abbrev=False
    )
    parser.add_argument("--market", choices=tuple(optima.SOLVERS), default="regime")
    for name, text in (
        ("q", "regime: chance per bar that it flips"),
        ("mu", "regime: mean return in standard deviations"),
        ("rho", "predictor: persistence per bar"),
        ("beta", "predictor: innovation per bar"),
        ("cost", "units per unit of position changed"),
        ("dof", "degrees of freedom of noise student_t"),
    ):
        parser.add_argument(f"--{name}", type=float | None, default=None, help=f"{text}; default: the main case")
    parser.add_argument("--noise", type=str | None, default=None, help="normal or student_t")
    parser.add_argument("--nuisances", type=int, default=0, help="useless extra features")
    parser.add_argument("--nuisance_kind", default="iid", help="iid, random_walk, lagged, noisy or mixed")
    parser.add_argument("--train_bars", type=int, default=500_000, help="bars to learn from")
    parser.add_argument("--test_bars", type=int, default=1_000_000, help="fresh bars to measure on")
    parser.add_argument("--timesteps", type=int, default=1_000_000, help="bars visited in training")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--controls", type=bool, default=True, help="also train without memory (up to 3 seeds)")
    parser.add_argument("--results", default="results/oracle", help="oracle.json and TensorBoard's events go here")
    parser.add_argument("--config", type=str | None, default=None, help="a recipe; its `model` section is used")
    parser.add_class_arguments(Recipe, "model", skip={"total_timesteps"})
    given = list(arguments)
    for position, argument in enumerate(arguments):
        if argument.startswith("--config"):
            path = argument.partition("=")[2] or arguments[position + 1]
            model = (yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}).get("model", {})
            given = [f"--model.{key}={json.dumps(v)}" for key, v in model.items() if key != "total_timesteps"] + given
    options = parser.parse_args(given).as_dict()
    if options["seeds"] < 1 or options["test_bars"] < 1000:
        raise ValueError(
            f"oracle needs --seeds >= 1 and --test_bars >= 1000, got {options['seeds']}, {options['test_bars']}"
        )
    return options


def _line(result: dict[str, Any]) -> str:
    reached = "  ".join(
        f"{100 * level:.0f} % " + (f"{point['seconds']:.1f} s, {point['timesteps']:,}" if point else "never")
        for level in LEVELS
        for point in (result["reached"][f"{level:g}"],)
    )
    probe = "" if result["probe_r2"] is None else f"  probe R2 {result['probe_r2']:.3f}"
    worth = result["fraction"] is not None
    figure = (
        f"{100 * result['fraction']:6.2f} % +- {100 * result['fraction_error']:.2f}"
        if worth
        else (
            f"reward {result['reward']:+.5f} +- {result['standard_error']:.5f}, "
            f"trades on {100 * result['trades_per_bar']:.2f} % of bars"
        )
    )
    alarm = "  LOOKS AHEAD" if result["looks_ahead"] else ""
    return f"seed {result['seed']:3d}  {figure}  {result['seconds']:.1f} s{probe}  {reached if worth else ''}{alarm}"


def _table(record: dict[str, Any]) -> Table:
    optimum, summary = record["optimum_per_bar"], record["summary"]
    table = Table(title="Fraction of the optimum" if optimum > 0 else "Mean reward per bar, units")
    for name in ("trader", "interquartile mean", "95 % interval", "min", "max"):
        table.add_column(name, justify="left" if name == "trader" else "right")

    def cell(value: float) -> str:
        return f"{100 * value:.2f} %" if optimum > 0 else f"{value:+.5f}"

    interval = " to ".join(cell(value) for value in summary["interval"] or [])
    table.add_row(
        f"lit-ppo, {summary['seeds']} seeds, {summary['seconds']:.1f} s each",
        cell(summary["interquartile_mean"]),
        interval,
        cell(summary["min"]),
        cell(summary["max"]),
    )
    without = [run["fraction" if optimum > 0 else "reward"] for run in record["controls"]["memoryless_trainer"]]
    if without:
        table.add_row(
            f"the same without memory, {len(without)} seeds",
            cell(interquartile_mean(without)),
            "",
            cell(min(without)),
            cell(max(without)),
        )
    for name, value in record["controls"]["rules"].items():
        table.add_row(name.replace("_", " "), cell(value / optimum if optimum > 0 else value), "exact", "", "")
    return table
