"""Which parts of the default learner pay: each left out alone, and all together, on windows of the size of a real one.

    python -m benchmarks.ablation              # 12 variants, 2 markets, 8 seeds: half an hour on one core
    python -m benchmarks.ablation --jobs 2     # two trainings at a time

O3 main learnt from 2,500 bars, without and with 30 useless features; share of the known optimum on 300,000 fresh bars
of another seed, with the weights at the end of training. Results: benchmarks/results/ablation.json.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks.common import RESULTS, provenance, write
from benchmarks.oracles import Job, run_job
from lit_ppo.commands.oracle import summarise

PATH = RESULTS / "ablation.json"
TRAIN_BARS, TEST_BARS, TIMESTEPS = 2500, 300_000, 1_000_000
MARKETS: dict[str, dict[str, Any]] = {
    "2,500 bars": {"kind": "regime"},
    "2,500 bars, 30 useless features": {"kind": "regime", "nuisances": 30, "nuisance_kind": "iid"},
}
PARTS: dict[str, dict[str, Any]] = {
    "screening of the features": {"screen_features": False},
    "mirror": {"mirror": False},
    "hidden dropout": {"hidden_dropout": 0.0},
    "pull to the start values": {"pull_to_start": 0.0},
    "vote of three networks (one)": {"num_networks": 1},
    "limit on passes (all 1,000,000 timesteps)": {"max_passes": None},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"without {name}": change for name, change in PARTS.items()},
    "without any of these six": {key: value for change in PARTS.values() for key, value in change.items()},
    "value loss weighed 0.01 instead of 0.1": {"vf_coef": 0.01},
    "orthogonal start values of the LSTM": {"init": "orthogonal"},
    "no hold bias": {"hold_bias": 0.0},
    "sampled advantages (one account)": {"estimator": "sampled"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each")
    arguments = parser.parse_args()
    jobs = [
        Job(f"{market} | {variant}", seed, MARKETS[market], TRAIN_BARS, TIMESTEPS, test_bars=TEST_BARS, changes=changes)
        for market in MARKETS
        for variant, changes in VARIANTS.items()
        for seed in range(arguments.seeds)
    ]
    record: dict[str, Any] = {"what": __doc__, "markets": {market: {} for market in MARKETS}}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for job, result in zip(jobs, pool.map(run_job, jobs), strict=True):
            market, variant = job.group.split(" | ")
            group = record["markets"][market].setdefault(variant, {"changes": job.changes, "seeds": []})
            group["seeds"].append(
                {key: result[key] for key in ("seed", "fraction", "fraction_error", "timesteps", "commit")}
            )
            if len(group["seeds"]) == arguments.seeds:
                group["summary"] = summarise(
                    [{**seed, "seconds": 0.0, "looks_ahead": False} for seed in group["seeds"]]
                )
                low, high = group["summary"]["interval"] or (float("nan"), float("nan"))
                print(
                    f"{market:32s} {variant:48s} {100 * group['summary']['interquartile_mean']:6.1f} % "
                    f"[{100 * low:.1f}, {100 * high:.1f}], least {100 * group['summary']['min']:.1f}",
                    flush=True,
                )
                write(PATH, record | provenance())


if __name__ == "__main__":
    main()
