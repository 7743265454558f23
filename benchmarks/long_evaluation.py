"""1,000,000 bars through encoder, policy, books and money account; the same decisions as bar by bar, on a part.

    python -m benchmarks.long_evaluation              # writes benchmarks/results/long_evaluation.json

Bars and features are made before the clock starts: what is timed is what every evaluation does. The policy is an
untrained one of the default recipe without its hold bias, so that it trades a lot.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, peak_memory_mb, provenance, spread, timed, write
from datamodules.fresh import fresh_segment
from datamodules.oracle_bars import train_fold
from datamodules.synthetic import SyntheticMarket
from lit_ppo.lab.oracle_score import PER_BAR
from lit_ppo.market.books import money_account
from lit_ppo.recipe import Recipe, build_policy, policy_inputs
from lit_ppo.scoring.evaluation import Evaluation, evaluate, evaluate_bar_by_bar

FEATURES = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=1_000_000)
    parser.add_argument("--compared", type=int, default=5_000, help="bars that are also traded one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "long_evaluation.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    market = SyntheticMarket(kind="regime", nuisances=FEATURES - 1, seed=1)
    data = train_fold(market, 10_000)
    bars = fresh_segment(data, 0, replace(market, num_bars=arguments.bars + 1000, seed=2).bars())
    bars = replace(bars, **{name: getattr(bars, name)[: bars.warmup + arguments.bars] for name in PER_BAR})
    recipe = Recipe(hold_bias=0.0)
    policy = build_policy(recipe, policy_inputs(bars), seed=0)
    part = replace(bars, **{name: getattr(bars, name)[: bars.warmup + arguments.compared] for name in PER_BAR})
    done: list[Evaluation] = []

    def trade() -> None:
        done.append(evaluate(policy, bars))
        money_account(done[-1].ledger, bars.decisions("fill_price").numpy(), balance_per_lot=50_000.0)

    seconds = [timed(trade) for _ in range(arguments.repeats)]
    one_by_one: list[Evaluation] = []
    slow = timed(lambda: one_by_one.append(evaluate_bar_by_bar(policy, part)))
    equal = bool(np.array_equal(one_by_one[0].positions, done[0].positions[: arguments.compared]))
    record = {
        "what": "evaluation of one long segment: encoder, policy, books, money account",
        "bars": arguments.bars,
        "features": FEATURES,
        "seconds": spread(seconds),
        "compared_bars": arguments.compared,
        "equal_to_bar_by_bar": equal,
        "bar_by_bar_s_per_1m_bars": slow * 1e6 / arguments.compared,
        "trades_per_bar": float((np.diff(done[0].positions, prepend=0.0) != 0).mean()),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        **provenance(),
    }
    write(arguments.out, record)
    print(f"{arguments.bars:,} bars in {record['seconds']}; equal to bar by bar on {arguments.compared:,}: {equal}")
    if not equal:
        raise SystemExit("whole-sequence and bar-by-bar evaluation take different decisions")


if __name__ == "__main__":
    main()
