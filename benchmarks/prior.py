"""What does the prior trader find without any training? Known edges on real noise, and laboratory markets.

    python -m benchmarks.prior                       # three plantings a cell, two files; 5 minutes
    python -m benchmarks.prior --hurdles .0005 .002 .004 # the dial
    python -m benchmarks.prior --start results/pretrain/prior.safetensors --seeds 1

The policy reads the file once from its start, state and running statistics carried on; it decides from bar 500, and is
scored from bar 3,000 (and, to show what context is worth, from 500 to 3,000). Costs are the file's. The share is of
what the informed trader earns on the same rows with thresholds best in hindsight; once of the returns as they came, and
once of their known means (positions times what was planted, less costs), in which no luck is left.

`OUTSIDE` are shapes that the prior does not draw. They were written down before the released weights were trained.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, provenance, write
from benchmarks.planted import DATA, DEFAULT_FILES
from datamodules.bars.read import Bars, read_bars
from datamodules.features.compute import compute_features, load_features
from datamodules.features.core import hurdle_feature
from datamodules.planted import Edge, LogBars, mirrored, plant, rebuilt, relative, volatility
from datamodules.synthetic import SyntheticMarket
from lit_ppo import walk_forward
from lit_ppo.market.costs import DEFAULT_HURDLE, Costs, bar_times, fill_arrays, known_cost
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.oracles import optima
from lit_ppo.recipe import Recipe, build_policy
from lit_ppo.report.analysis import analyse
from lit_ppo.scoring.evaluation import Evaluation, evaluate
from lit_ppo.scoring.informed import informed_trader, share_found
from lit_ppo.store.prior_weights import PriorWeights

PATH = RESULTS / "prior.json"
CONTEXT, SCORED_FROM = 500, 3_000
PLANTED = (
    ("regime", 0.1),
    ("regime", 0.05),
    ("momentum", 0.1),
    ("momentum", 0.05),
    ("reversion", 0.15),
    ("season", 0.1),
    ("season", 0.05),
    ("drift", 0.05),
    ("drift", 0.02),
    ("null", 0.0),
)
FloatArray = np.ndarray


def _session_step(z: FloatArray, hours: FloatArray, days: FloatArray) -> FloatArray:
    """Up by .1 in the three hours from 13:00 UTC, nothing else."""
    return np.where((hours >= 13) & (hours < 16), 0.1, 0.0)


def _weekday(z: FloatArray, hours: FloatArray, days: FloatArray) -> FloatArray:
    """Mondays rise by .05 a bar, Fridays fall by as much."""
    return np.where(days == 0, 0.05, np.where(days == 4, -0.05, 0.0))


def _slow_turn(z: FloatArray, hours: FloatArray, days: FloatArray) -> FloatArray:
    """A drift of .05 that turns round every 2,000 bars, as a sine."""
    return 0.05 * np.sin(2 * np.pi * np.arange(len(z)) / 4_000)


def _wild_momentum(z: FloatArray, hours: FloatArray, days: FloatArray) -> FloatArray:
    """Momentum of 20 bars, .1, only while the last 15 bars moved more than the last 100."""
    moves, average, fast, slow = np.zeros(len(z)), 0.0, 1.0, 1.0
    for t, still in enumerate(z.tolist()):
        if fast > slow:
            moves[t] = 0.1 * min(max(average / math.sqrt(1 / 39), -2.0), 2.0)
        shown = still + moves[t]
        average += (shown - average) / 20
        fast, slow = fast + (shown**2 - fast) / 15, slow + (shown**2 - slow) / 100
    return moves


def _shock_reversal(z: FloatArray, hours: FloatArray, days: FloatArray) -> FloatArray:
    """The three bars after a bar of more than two volatilities go back by .15 each."""
    moves, left, side = np.zeros(len(z)), 0, 0.0
    for t, still in enumerate(z.tolist()):
        if left:
            moves[t], left = -0.15 * side, left - 1
        if abs(still + moves[t]) > 2:
            left, side = 3, math.copysign(1.0, still)
    return moves


OUTSIDE: dict[str, Callable[[FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "session step": _session_step,
    "weekday": _weekday,
    "slow turn": _slow_turn,
    "wild momentum": _wild_momentum,
    "shock reversal": _shock_reversal,
}


def plant_outside(bars: Bars, shape: str, generator: np.random.Generator) -> tuple[Bars, FloatArray]:
    """The bars with direction erased and this shape planted, and [N] mean of the next log return, known at a close."""
    noise = mirrored(relative(bars.frame), generator)
    sigma = volatility(noise.close)
    hours = bar_times(bars.frame) / 3.6e12 % 24
    days = (bar_times(bars.frame) // 86_400_000_000_000 + 3) % 7
    moves = OUTSIDE[shape](noise.close / sigma, hours, days)
    close = noise.close + moves * sigma
    logs = LogBars(noise.open, np.maximum(noise.high, close), np.minimum(noise.low, close), close)
    return replace(bars, frame=rebuilt(bars, logs)), np.append((moves * sigma)[1:], 0.0)


def market_of(bars: Bars, costs: Costs, hurdle: float) -> MarketTensors:
    """The whole file as the prior trader sees it."""
    specs = load_features("core")
    cost = known_cost(bars.frame, costs, bars.point)
    features = compute_features(bars.frame, specs, bars.bar_seconds, cost=cost)
    names = [spec.label for spec in specs]
    features[:, -1] = hurdle_feature(hurdle)
    fills = fill_arrays(bars.frame, costs, "next_open", bars.point)
    first, last = max(spec.warmup for spec in specs), len(bars.frame) - 2
    rows = slice(first, last)
    return MarketTensors(
        features=torch.from_numpy(features[rows].copy()),
        time=torch.from_numpy(bar_times(bars.frame)[rows].copy()),
        first_bar=first,
        warmup=CONTEXT - first,
        reward_scale=float(np.nanstd(fills.price_return)),
        bars_per_year=bars.bars_per_year,
        feature_names=tuple(names),
        feature_parity=tuple(spec.parity for spec in specs),
        **{name: torch.from_numpy(values[rows].copy()) for name, values in fills._asdict().items()},
    )


def marked(done: Evaluation, market: MarketTensors, means: FloatArray) -> dict[str, Any]:
    """What it earned, from bar 3,000 on and before, against the informed trader on the same rows.

    `means` [N] is the mean of the next log return, as known at each close of the file.
    """
    found: dict[str, Any] = {}
    known = means[market.first_bar + market.warmup :][: len(done.positions)]
    for name, rows in (("early", slice(0, SCORED_FROM - CONTEXT)), ("scored", slice(SCORED_FROM - CONTEXT, None))):
        columns = ("price_return", "turnover_cost", "carry_long", "carry_short")
        arrays = {column: market.decisions(column).numpy()[rows] for column in columns}
        informed = informed_trader(known[rows], bars_per_year=market.bars_per_year, **arrays)
        net, cost = done.ledger.net_return[rows], done.ledger.cost[rows]
        worth = [
            float((positions * known[rows]).sum() - np.abs(np.diff(positions, prepend=0.0)) @ arrays["turnover_cost"])
            for positions in (done.positions[rows], informed.positions)
        ]
        deviation = float(net.std())
        found[name] = {
            "share": share_found(net, informed.net_return) if informed.net_return.sum() > 0 else None,
            "net": float(net.sum()),
            "informed_net": float(informed.net_return.sum()),
            "expected": worth[0],
            "informed_expected": worth[1],
            "informed_sharpe": informed.sharpe_annual,
            "t": float(net.mean() / deviation * math.sqrt(len(net))) if deviation else 0.0,
            "cost_in_sharpe": float(cost.mean() / deviation * math.sqrt(market.bars_per_year)) if deviation else 0.0,
            "exposure": float(np.abs(done.positions[rows]).mean()),
        }
    return found


def laboratory(policy: MarketPolicy, hurdle: float, num_bars: int, seed: int) -> dict[str, Any]:
    """Share of the optimum, and of the Bayes value, on regime markets: two main ones, and 20 drawn at random."""
    g = np.random.default_rng(7)
    cells = {"main": (0.01, 0.2, 0.1), "hard": (0.01, 0.1, 0.1)}
    for number in range(20):
        flip, size, cost = (float(np.exp(g.uniform(math.log(a), math.log(b)))) for a, b in UNSEEN)
        cells[f"unseen {number:02d}"] = (flip, size, cost)
    found = {}
    for name, (q, mu, cost) in cells.items():
        made = SyntheticMarket(kind="regime", q=q, mu=mu, cost=cost, num_bars=num_bars, seed=seed)
        optimum = optima.solve("regime", q=q, mu=mu, cost=cost)
        returns = made.draw().returns
        best = optima.rewards(optimum.decide(returns), returns, cost)
        market = market_of(made.bars(), Costs(), hurdle)
        done = evaluate(policy, market)
        net = np.log1p(done.ledger.net_return) / made.scale
        rows = slice(SCORED_FROM - CONTEXT, None)
        lead = (net - best[CONTEXT : CONTEXT + len(net)])[rows]
        filtered = market.decisions("features")[rows, market.feature_names.index("core_regime_forecast")].numpy()
        columns = ("price_return", "turnover_cost", "carry_long", "carry_short")
        arrays = {column: market.decisions(column).numpy()[rows] for column in columns}
        bayes = np.log1p(informed_trader(filtered, bars_per_year=1.0, **arrays).net_return).sum()
        worth = optimum.value > 1e-3
        found[name] = {
            "q": q,
            "mu": mu,
            "cost": cost,
            "optimum": optimum.value,
            "share": 1 + float(lead.mean()) / optimum.value if worth else None,
            # The filter that must find q and mu out too, with the thresholds that are best in hindsight
            "share_of_bayes": float(np.log1p(done.ledger.net_return[rows]).sum() / bayes) if bayes > 0 else None,
        }
    return found


def real(path: Path, start: str, results: Path) -> dict[str, Any]:
    """The walk-forward that a user would run, and its verdict, whatever comes; files without spreads pay 2 bp."""
    found: dict[str, Any] = {"file": path.name}
    try:
        costs = Costs() if "spread" in read_bars(path).frame else Costs(spread="2bp")
        windows = {"train_size": 250, "validation_size": 50, "test_size": 500, "step_size": 500}
        folder = results / path.name.split(".")[0]
        run = walk_forward(path, config="zero_shot", model={"start": start}, costs=costs, results=folder, **windows)
        analysis = analyse(run.path)
    except ValueError as error:  # the reader's: several symbols, two bar lengths; the table says so
        why = str(error).splitlines()[0].replace(str(path), path.name)
        print(f"{path.name[:40]:40s} not read: {why[:100]}")
        return found | {"refused": why}
    figures = ("return_pct", "sharpe_annual", "exposure")
    found |= {"bars": len(analysis.net_return), "spread": str(costs.spread), "verdict": analysis.verdict.kind}
    found |= {name: analysis.metrics[name] for name in figures}
    found["t"] = analysis.metrics["sharpe_annual"] * math.sqrt(len(analysis.net_return) / analysis.bars_per_year)
    for other in analysis.baselines:
        if other.key in ("buy_and_hold", "trend"):
            found[other.key] = {name: other.metrics[name] for name in figures}
    print(f"{path.name[:40]:40s} {analysis.verdict.text}", flush=True)
    return found


UNSEEN = ((0.003, 0.04), (0.1, 0.4), (0.05, 0.2))  # ranges of q, mu and cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=list(DEFAULT_FILES))
    parser.add_argument("--spread", type=float, default=0.2, help="price units, for a file without spreads")
    parser.add_argument("--start", default="prior", help="weights, as model.start takes them")
    parser.add_argument("--hurdles", type=float, nargs="+", default=[DEFAULT_HURDLE])
    parser.add_argument("--seeds", type=int, default=3, help="plantings of each cell")
    parser.add_argument("--laboratory_bars", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    weights = PriorWeights.read(arguments.start)
    policy = build_policy(Recipe(start=arguments.start), {"feature_names": list(weights.features)}, 0)
    assert isinstance(policy, MarketPolicy)
    record: dict[str, Any] = {"what": "zero-shot share found by the prior trader", "cells": [], "laboratory": {}}
    for path in (path for path in arguments.data if path.is_file()):
        bars = read_bars(path)
        costs = Costs() if "spread" in bars.frame else Costs(spread=arguments.spread)
        cells = [*PLANTED, *((shape, None) for shape in OUTSIDE)]
        for kind, size in cells:
            for seed in range(arguments.seeds):
                generator = np.random.default_rng(seed)
                if size is None:
                    made, means = plant_outside(bars, kind, generator)
                else:
                    planted = plant(bars, Edge(kind, size), generator)  # type: ignore[arg-type]
                    made, means = planted.bars, planted.forecast * np.append(planted.sigma[1:], 0.0)
                for hurdle in arguments.hurdles:
                    market = market_of(made, costs, hurdle)
                    found = marked(evaluate(policy, market), market, means)
                    cell = {"file": path.name, "kind": kind, "m": size, "seed": seed, "hurdle": hurdle, **found}
                    record["cells"].append(cell)
                    print(line(cell), flush=True)
    with tempfile.TemporaryDirectory() as results:
        record["real"] = [real(path, arguments.start, Path(results)) for path in sorted(DATA.glob("*.csv*"))]
    for hurdle in arguments.hurdles:
        found = laboratory(policy, hurdle, arguments.laboratory_bars, seed=5)
        record["laboratory"][f"{hurdle:g}"] = found
        unseen = sorted(cell["share"] for name, cell in found.items() if "unseen" in name and cell["share"] is not None)
        print(
            f"laboratory, hurdle {hurdle:g}: main {found['main']['share']:.3f}, hard {found['hard']['share']:.3f}, "
            f"{len(unseen)} unseen: median {np.median(unseen):.3f}, worst {unseen[0]:.3f}; of the Bayes value: "
            f"main {found['main']['share_of_bayes']:.3f}, hard {found['hard']['share_of_bayes']:.3f}"
        )
    record |= {"card": weights.card, **provenance()}
    write(arguments.out, record)


def line(cell: dict[str, Any]) -> str:
    scored = cell["scored"]
    share = "   -  " if scored["share"] is None else f"{100 * scored['share']:4.0f} %"
    if scored["informed_expected"] > 0:
        share += f" (of the means {100 * scored['expected'] / scored['informed_expected']:4.0f} %)"
    size = "" if cell["m"] is None else f"m {cell['m']:g}"
    return (
        f"{cell['file'][:12]} {cell['kind']:14s} {size:7s} seed {cell['seed']} hurdle {cell['hurdle']:g}  "
        f"found {share} "
        f"of Sharpe {scored['informed_sharpe']:5.2f}  t {scored['t']:+5.1f}  exposure {scored['exposure']:.2f}  "
        f"costs {scored['cost_in_sharpe']:.2f}"
    )


if __name__ == "__main__":
    main()
