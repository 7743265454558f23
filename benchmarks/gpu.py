"""Training on a CUDA card: steps per second by batch size, share of matmul peak; pretraining; all folds as one batch.

    python -m benchmarks.gpu               # writes benchmarks/results/gpu.json

Without a card it says so, writes {"unmeasured": ...} and ends well: the README's row then reads "unmeasured".
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, provenance, write
from benchmarks.folds_as_one import FoldsAsOne, fold_learners
from benchmarks.lit_ppo_peer import weights_multiplied
from benchmarks.pretraining import make_learner
from datamodules.oracle_bars import train_fold
from datamodules.synthetic import SyntheticMarket
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, policy_inputs

BATCHES = (256, 1024, 4096, 16_384)  # sequences side by side
ITERATIONS, WARMUP = 10, 3
MATRIX = 8192
FOLDS = 109  # of the first user's file


def matmul_tflops(device: torch.device, dtype: torch.dtype, size: int = MATRIX, repeats: int = 10) -> float:
    """Rate of one large square product on the card, TFLOP/s."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize(device)
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e12


def steps_per_second(
    learner: Learner, device: torch.device, iterations: int = ITERATIONS, warmup: int = WARMUP
) -> float:
    """Rate of whole PPO iterations, once what is compiled or chosen at the first ones is."""
    for _ in range(warmup):
        learner.iterate()
    finish(device)
    started = time.perf_counter()
    for _ in range(iterations):
        learner.iterate()
    finish(device)
    return iterations * learner.config.steps_per_iteration / (time.perf_counter() - started)


def finish(device: torch.device) -> None:
    """Wait for the card."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(market: MarketTensors, num_envs: int, hidden_size: int, **rounds: int) -> dict[str, Any]:
    """Default recipe at LSTM `hidden_size`, 4 epochs, `num_envs` sequences; `rounds` as in `steps_per_second`."""
    device = market.features.device
    recipe = Recipe(num_envs=num_envs, hidden_size=hidden_size, update_epochs=4, total_timesteps=10**12)
    policy = build_policy(recipe, policy_inputs(market), seed=0).to(device)
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)  # type: ignore[arg-type]
    learner.attach(market)
    rate = steps_per_second(learner, device, **rounds)
    return {
        "num_envs": num_envs,
        "hidden_size": hidden_size,
        "steps_per_s": rate,
        "tflops": (2 + 6 * recipe.update_epochs) * weights_multiplied(policy) * rate / 1e12,
        "memory_mb": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    }


def folds_as_one(folds: int, device: torch.device, **settings: Any) -> dict[str, Any]:
    """Every fold's training from scratch as one batch, evaluation apart; `settings` of the recipe."""
    folds_together = FoldsAsOne(fold_learners(folds, str(device), **settings))
    folds_together.iterate()  # what is chosen at the first one is; it counts as a share of the whole
    finish(device)
    started = time.perf_counter()
    while not folds_together.finished:
        folds_together.iterate()
    finish(device)
    seconds = time.perf_counter() - started
    iterations = folds_together.learners[0].iteration
    return {"folds": folds, "networks": folds_together.networks, "seconds": seconds * iterations / (iterations - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        write(arguments.out, {"unmeasured": "no CUDA card at hand", **provenance()})
        print("no CUDA card: unmeasured")
        return
    device = torch.device("cuda")
    market = train_fold(SyntheticMarket(kind="regime", seed=1), 500_000).fold_data(0).train.to(device)
    peaks = {str(dtype): matmul_tflops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows = []
    for num_envs in BATCHES:
        rows.append(measure(market, num_envs, arguments.hidden_size))
        rows[-1]["share_of_matmul_peak"] = rows[-1]["tflops"] / peaks["torch.float32"]
        print(rows[-1], flush=True)
    card = {"card": torch.cuda.get_device_name(device), "matmul_tflops": peaks}
    pretraining = {"bars_per_s": steps_per_second(make_learner(device="cuda"), device)}
    print(f"pretraining: {pretraining}", flush=True)
    folds = folds_as_one(FOLDS, device)
    print(f"folds as one: {folds}", flush=True)
    record = {"what": "training on one card", **card, "rows": rows, "pretraining": pretraining, "folds_as_one": folds}
    write(arguments.out, {**record, **provenance()})


if __name__ == "__main__":
    main()
