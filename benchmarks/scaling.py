"""Does the cost of training grow with the file? Steps per second and peak memory at 2 k to 2 M train bars.

    python -m benchmarks.scaling                      # writes benchmarks/results/scaling.json

Each size runs in its own process, from a bar file on disk through the datamodule to some PPO iterations of the default
recipe, so that its peak memory is its own. The full feature set is used. `--file` measures the memory of a real file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, peak_memory_mb, provenance, write

SIZES = (2_000, 20_000, 200_000, 2_000_000)
ITERATIONS, WARMUP_ITERATIONS = 12, 3


def measure(path: str, train_size: int | None) -> dict[str, Any]:
    """Read, compute features, build fold 0, train; in this process."""
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo.ppo.learner import Learner
    from lit_ppo.recipe import Recipe, build_optimizer, build_policy, policy_inputs

    torch.set_num_threads(1)
    started = time.perf_counter()
    sizes = {} if train_size is None else {"train_size": train_size}
    data = WalkForwardDataModule(path=path, features="full", cache=False, fold_limit=1, **sizes)
    train = data.fold_data(0).train
    loaded = time.perf_counter() - started
    recipe = Recipe(total_timesteps=10**9)
    policy = build_policy(recipe, policy_inputs(train), seed=0)
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)  # type: ignore[arg-type]
    started = time.perf_counter()
    learner.attach(train)
    attached = time.perf_counter() - started
    rates = [learner.iterate()["time/steps_per_s"] for _ in range(WARMUP_ITERATIONS + ITERATIONS)]
    return {
        "bars": len(data.bars.frame),
        "train_bars": train.num_decisions,
        "features": train.features.shape[1],
        "load_s": round(loaded, 2),
        "screening_s": round(attached, 2),
        "steps_per_s": round(statistics.median(rates[WARMUP_ITERATIONS:]), 1),
        "steps_per_s_best": round(max(rates), 1),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def in_own_process(path: str, train_size: int | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--measure", path, "--train-size", str(train_size or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="a real bar file: its peak memory at the default sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--train-size", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.train_size or None)))
        return
    from datamodules.synthetic import SyntheticMarket

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            path = Path(folder) / f"bars_{size}.csv"
            SyntheticMarket(kind="regime", num_bars=size + 2000, seed=1).write(path)
            rows.append(in_own_process(str(path), size))
            path.unlink()
            print(rows[-1], flush=True)
    rates = [row["steps_per_s"] for row in rows]
    record: dict[str, Any] = {
        "what": "training by length of the train segment, one thread, default recipe, full feature set",
        "rows": rows,
        "slowest_over_fastest": min(rates) / max(rates),
    }
    if arguments.file:
        record["file"] = {"name": Path(arguments.file).name, **in_own_process(arguments.file, None)}
        print(record["file"])
    write(arguments.out, record | provenance())


if __name__ == "__main__":
    main()
