"""How much faster a whole-sequence evaluation is than going bar by bar, for one policy and for several candidates.

    python -m benchmarks.evaluation

Both take the same decisions, which is checked before anything is timed. Bars: one fold of the default recipe,
validation (500) and train (2,000), with 200 bars of warm-up before the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, provenance, spread, timed, write
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.recipe import Policy, Recipe, build_policy, policy_inputs
from lit_ppo.scoring.evaluation import Evaluation, evaluate, evaluate_bar_by_bar


def _evaluate_all(how: Callable[..., Evaluation], policies: Sequence[Policy], market: MarketTensors) -> None:
    for policy in policies:
        how(policy, market)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "evaluation.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = WalkForwardDataModule(synthetic=SyntheticMarket(num_bars=4000, seed=1), cache=False)
    fold = data.fold_data(0)
    recipe = Recipe(hold_bias=0.0)  # an untrained policy that trades: what it holds has no head start
    policies: list[Policy] = [
        build_policy(recipe, policy_inputs(fold.train), seed) for seed in range(options.candidates)
    ]
    rows = []
    for role, market in (("validation", fold.validation), ("train", fold.train)):
        for count in (1, options.candidates):
            chosen = policies[:count]
            for policy in chosen:  # also warms both ways up
                fast, slow = evaluate(policy, market), evaluate_bar_by_bar(policy, market)
                if not (np.array_equal(fast.actions, slow.actions) and fast.score == slow.score):
                    raise RuntimeError(f"{role}: whole-sequence and bar-by-bar evaluation differ")
            whole, steps = [], []
            for _ in range(options.repeats):  # interleaved
                whole.append(timed(partial(_evaluate_all, evaluate, chosen, market)))
                steps.append(timed(partial(_evaluate_all, evaluate_bar_by_bar, chosen, market)))
            ratio = spread(steps)["median"] / spread(whole)["median"]
            row = {"segment": role, "bars": len(market), "candidates": count, "ratio": ratio}
            rows.append(row | {"whole_sequence_s": spread(whole), "bar_by_bar_s": spread(steps)})
            print(f"{role}, {len(market)} bars, {count} policies: {ratio:.0f}x", flush=True)
    write(options.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    main()
