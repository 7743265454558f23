"""lit-ppo on the peers' reference environment: one JSON line in the peers' own format, for `benchmarks.vs_peers`.

    python -m benchmarks.lit_ppo_peer --peers ../shared/peers --setting C --threads 2

Through the Lightning shell, `sampled` and `account_at: encoder`: the same work as the peers do, nothing of the market's
structure used.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from benchmarks.common import peak_memory_mb, sgemm_gflops
from benchmarks.reference_market import ReferenceMarket
from datamodules.loader import OneBatch
from lit_ppo import __version__
from lit_ppo.module import LitPPO
from lit_ppo.seeding import make_generator

COMMON: dict[str, Any] = {"estimator": "sampled", "account_at": "encoder", "gamma": 0.99, "gae_lambda": 0.95}
SETTINGS: dict[str, dict[str, Any]] = {
    # 64 environments x 128 steps, minibatches of 2,048 samples, 4 epochs, one shared LSTM of 256.
    "C": {
        **COMMON,
        "num_envs": 64,
        "num_steps": 128,
        "num_minibatches": 4,
        "update_epochs": 4,
        "hidden_size": 256,
        "shared_encoder": True,
        "policy_layers": [64, 64],
        "value_layers": [64, 64],
    },
    # The first user's: 2 x 256 LSTMs for actor and critic, heads 128-64 Mish, AdamW, 12 epochs, 256-sample minibatches.
    # Samples per minibatch and epochs are the old script's; environments side by side and their sequences are ours.
    "original": {
        **COMMON,
        "num_envs": 64,
        "num_steps": 32,
        "num_minibatches": 8,
        "update_epochs": 12,
        "hidden_size": 256,
        "num_layers": 2,
        "shared_encoder": False,
        "policy_layers": [128, 64],
        "value_layers": [128, 64],
        "activation": "mish",
        "optimizer": "adamw",
        "learning_rate": 3e-4,
    },
}


def load_module(path: Path) -> ModuleType:
    """Import one file of the peers' folder without putting that folder on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"The reference environment is not at {path}; give its folder with --peers")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_market(peers: Path, num_envs: int, bars: int = 20_000, seed: int = 0) -> ReferenceMarket:
    """The environment of `peers/reference_env.py` on its synthetic prices."""
    reference = load_module(peers / "reference_env.py")
    prices = reference.synthetic_prices(bars, seed=0)
    features = torch.from_numpy(reference.market_features(prices))
    log_prices = torch.from_numpy(prices).log()
    return ReferenceMarket(features, log_prices, num_envs, generator=make_generator(seed, purpose="environment"))


def weights_multiplied(policy: nn.Module) -> int:
    """Weights that every sample is multiplied with: all matrices."""
    return sum(parameter.numel() for parameter in policy.parameters() if parameter.ndim == 2)


class Clock(pl.Callback):
    """Adds up the seconds of rollout and update after the first iterations."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.steps = warmup, 0
        self.seconds = {"rollout": 0.0, "update": 0.0}
        self.started = self.started_cpu = self.ended = self.ended_cpu = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended, self.ended_cpu = time.perf_counter(), time.process_time()
        if pl_module.iteration <= self.warmup:
            self.started, self.started_cpu = self.ended, self.ended_cpu
            return
        self.steps += pl_module.recipe.steps_per_iteration
        for stage in self.seconds:
            self.seconds[stage] += pl_module.metrics[f"time/{stage}_s"]


def run(setting: str, peers: Path, steps: int, warmup: int, threads: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Train, and return the line."""
    torch.set_num_threads(threads)
    recipe = {**SETTINGS[setting], **changes}
    per_iteration = recipe["num_envs"] * recipe["num_steps"]
    recipe["total_timesteps"] = (warmup + max(1, round(steps / per_iteration))) * per_iteration
    env = reference_market(peers, recipe["num_envs"])
    module, clock = LitPPO(seed=0, **recipe), Clock(warmup)
    module.threads = threads
    module.build(env)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(module, train_dataloaders=OneBatch(env))  # type: ignore[arg-type]
    assert module.policy is not None
    wall, weights = clock.ended - clock.started, weights_multiplied(module.policy)
    flop = 6 * weights * recipe["update_epochs"] * clock.steps
    peak = sgemm_gflops()
    rate = flop / clock.seconds["update"] / 1e9
    return {
        "peer": "lit-ppo",
        "version": __version__,
        "sps": round(clock.steps / wall, 1),
        "seconds_per_100k": round(1e5 * wall / clock.steps, 1),
        "cores": len(os.sched_getaffinity(0)),
        "config": {key: value for key, value in recipe.items() if key != "total_timesteps"},
        "rss_mb": round(peak_memory_mb(), 1),
        "measured_steps": clock.steps,
        "params": sum(parameter.numel() for parameter in module.policy.parameters()),
        "rollout_frac": round(clock.seconds["rollout"] / wall, 4),
        "update_frac": round(clock.seconds["update"] / wall, 4),
        "cpu_per_wall": round((clock.ended_cpu - clock.started_cpu) / wall, 3),
        "update_gflops": round(rate, 1),
        "sgemm_gflops": round(peak, 1),
        "share_of_sgemm": round(rate / peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder with reference_env.py")
    parser.add_argument("--setting", choices=SETTINGS, default="C")
    parser.add_argument("--steps", type=int, default=16_384, help="environment steps measured")
    parser.add_argument("--warmup-iters", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe (JSON values)")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in arguments.set)}
    steps, warmup = arguments.steps, arguments.warmup_iters
    print(json.dumps(run(arguments.setting, arguments.peers, steps, warmup, arguments.threads, changes)))


if __name__ == "__main__":
    main()
