"""Pretraining of the prior trader: bars per second and CPU seconds a million bars, on one and two threads and ranks.

    python -m benchmarks.pretraining               # minutes; writes benchmarks/results/pretraining.json
    python -m benchmarks.pretraining --peer-python VENV/bin/python --peers ../shared/peers   # with sb3-contrib's update

Whole PPO iterations of configs/prior.yaml: markets drawn, features, contexts, rollout, update. "plain" is the same
learner on the same draws in torch alone (`nn.LSTM`'s kernel, heads and loss of torch operations). All take turns, one
iteration and one sgemm each; CPU seconds are of all threads, and the share of the sgemm rate counts the products of
bars with weights only, a CPU second of ours against a CPU second of a 1024 x 1024 product. On a busy machine bars per
second say nothing, and CPU seconds little less than on an idle one.

sb3-contrib's update is that of as many sequences, steps, epochs and minibatches through one shared LSTM of the same
width (24 inputs, one action of four a bar) in its own environment: the update alone, CPU seconds, in the same turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from benchmarks.common import RESULTS, SGEMM_SIZE, provenance, spread, write
from datamodules.prior import FEATURES, Prior, PriorStream
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, policy_inputs

CONFIG = Path(__file__).parents[1] / "configs/prior.yaml"
CANDIDATES = {"one thread": (1, False), "two threads": (2, False), "plain, one thread": (1, True)}


@contextmanager
def plain_torch() -> Iterator[None]:
    """Everything that asks for our kernels is told that there are none."""
    with mock.patch("lit_ppo.nets.lstm.fastest_on_cpu", return_value="torch"):
        yield


def make_learner(plain: bool = False, rank: int = 0, world_size: int = 1, device: str = "cpu", **other: Any) -> Learner:
    """A training as `lit-ppo pretrain --config prior` begins it; `other` settings of the model."""
    recipe = Recipe(**yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"] | other)
    stream = PriorStream(Prior(), 1, device=device)
    policy = build_policy(recipe, policy_inputs(stream), seed=0).to(device)
    if plain:
        policy.networks[0].encoder.policy.implementation = "library"
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0, rank=rank, world_size=world_size)
    learner.attach(stream)
    return learner


def flop_per_bar(config: Recipe, context: float) -> float:
    """2 FLOP a weight and bar forward, twice as much backward (inputs have no gradient), rollout and epochs."""
    hidden, inputs = config.hidden_size or 0, len(FEATURES)
    encoder, recurrent = 8 * hidden * (hidden + inputs), 8 * hidden * (2 * hidden + inputs)
    heads = 2 * sum(64 * hidden + outputs * 64 for outputs in (9, 3))
    rollout = (encoder + heads) * (config.num_steps + 1) / config.num_steps + encoder * context / config.num_steps
    return rollout + config.update_epochs * (encoder + recurrent + 3 * heads)


def timed(run: Any) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def peer_update(python: str, peers: Path, config: Any) -> float:
    """CPU seconds of sb3-contrib's update for a million bars, one thread: its second iteration."""
    bars = config.num_envs * config.num_steps
    sizes = {"n-envs": config.num_envs, "n-steps": config.num_steps, "batch-size": bars // config.num_minibatches}
    sizes |= {"epochs": config.update_epochs, "hidden": config.hidden_size, "steps": bars, "threads": 1}
    command = [python, "bench_sb3_recurrent.py", "--shared-lstm", *(f"--{name}={size}" for name, size in sizes.items())]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=peers, env=alone, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return 1e6 * found["cpu_per_wall"] / found["sps"] * found["update_frac"]


def turns(rounds: int, peer: Callable[[Any], float] | None = None) -> dict[str, Any]:
    """Every candidate in turn; the first round, which compiles and fills the ring of markets, is not counted.

    Args:
        peer: gives the CPU seconds of another trainer's update for a million bars at our settings.
    """
    learners = {name: make_learner(plain) for name, (_, plain) in CANDIDATES.items()}
    config = next(iter(learners.values())).config
    bars = config.steps_per_iteration
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in [*CANDIDATES, "sgemm"]}
    a, b = (torch.rand(SGEMM_SIZE, SGEMM_SIZE) for _ in range(2))
    contexts, updates = [], []
    metrics: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, (threads, plain) in CANDIDATES.items():
            torch.set_num_threads(threads)
            with plain_torch() if plain else mock.patch.dict({}):
                found[name].append(timed(lambda learner=learners[name]: metrics.update(learner.iterate())))
            if name == "one thread" and peer is not None and number:
                share = metrics["time/update_s"] / (metrics["time/update_s"] + metrics["time/rollout_s"])
                updates.append((1e6 / bars * share * found[name][-1][1], peer(config)))
        torch.set_num_threads(1)
        found["sgemm"].append(min(timed(lambda: a @ b) for _ in range(5)))
        one = learners["one thread"]
        _, stretches = one.source.stream.draw(one.iteration - 1, config.num_envs, config.num_steps)  # type: ignore[attr-defined]
        contexts.append(stretches.burn_in)
    counted = {name: seconds[1:] for name, seconds in found.items()}
    context = statistics.mean(contexts[1:])
    flop = flop_per_bar(config, context)  # type: ignore[arg-type]
    sgemm = [2 * SGEMM_SIZE**3 / cpu / 1e9 for _, cpu in counted["sgemm"]]
    gflops = flop * bars * rounds / sum(cpu for _, cpu in counted["one thread"]) / 1e9
    return {
        "rounds": rounds,
        "bars_an_iteration": bars,
        "mean_context": context,
        "kflop_per_bar": round(flop / 1e3),
        "candidates": {name: figures(counted[name], bars) for name in CANDIDATES},
        "plain_cpu_over_ours": ratios(counted["plain, one thread"], counted["one thread"], 1),
        "one_wall_over_two": ratios(counted["one thread"], counted["two threads"], 0),
        "sgemm_gflops_a_cpu_second": spread(sgemm),
        "gflops_a_cpu_second": gflops,
        "share_of_sgemm": gflops / statistics.median(sgemm),
        "sb3_contrib_update": update_figures(updates) if updates else None,
    }


def update_figures(updates: list[tuple[float, float]]) -> dict[str, Any]:
    """Ours and theirs, CPU seconds a million bars, and their ratio turn by turn."""
    ours, theirs = zip(*updates, strict=True)
    by_turn = spread([b / a for a, b in updates])
    return {"ours_cpu_s": spread(list(ours)), "theirs_cpu_s": spread(list(theirs)), "theirs_over_ours": by_turn}


def figures(seconds: list[tuple[float, float]], bars: int) -> dict[str, Any]:
    """Of all turns together: contexts and markets differ from one to the next."""
    wall, cpu = (sum(pair[k] for pair in seconds) for k in (0, 1))
    return {"bars_per_s": bars * len(seconds) / wall, "cpu_s_a_million_bars": 1e6 * cpu / (bars * len(seconds))}


def ratios(above: list[tuple[float, float]], below: list[tuple[float, float]], k: int) -> dict[str, float]:
    """Turn by turn, of wall (0) or CPU (1) seconds."""
    return spread([x[k] / y[k] for x, y in zip(above, below, strict=True)])


def rank_main(rank: int, rounds: int, world_size: int, address: str, out: Any) -> None:
    """One rank: as many iterations as the others, each with its own markets and one all-reduce a minibatch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    learner = make_learner(rank=rank, world_size=world_size)
    learner.iterate()
    seconds = [timed(learner.iterate) for _ in range(rounds)]
    out.put((rank, figures(seconds, learner.config.steps_per_iteration)))
    torch.distributed.barrier()


def ranks(rounds: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Bars per second of all ranks together, CPU seconds a million bars of them."""
    out = torch.multiprocessing.get_context("spawn").Queue()
    address = f"file://{folder / f'ranks-{world_size}'}"
    torch.multiprocessing.spawn(rank_main, (rounds, world_size, address, out), nprocs=world_size)
    found = [out.get()[1] for _ in range(world_size)]
    cpu = statistics.mean(one["cpu_s_a_million_bars"] for one in found)
    return {"bars_per_s": sum(one["bars_per_s"] for one in found), "cpu_s_a_million_bars": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="counted iterations of each candidate")
    parser.add_argument("--peer-python", help="interpreter of an environment with sb3-contrib; without: left out")
    parser.add_argument("--peers", type=Path, default=CONFIG.parents[2] / "shared/peers", help="the peers' scripts")
    parser.add_argument("--out", type=Path, default=RESULTS / "pretraining.json")
    arguments = parser.parse_args()
    python, peers = arguments.peer_python, arguments.peers.resolve()
    peer = (lambda config: peer_update(python, peers, config)) if python else None
    record = {**provenance(), **turns(arguments.rounds, peer)}
    with tempfile.TemporaryDirectory() as folder:
        record["ranks"] = {str(n): ranks(arguments.rounds, n, Path(folder)) for n in (1, 2)}
    write(arguments.out, record)
    for name, row in {**record["candidates"], **record["ranks"]}.items():
        print(f"{name:18s} {row['bars_per_s']:>9,.0f} bars/s {row['cpu_s_a_million_bars']:7.1f} CPU s a million bars")
    print({name: record[name] for name in ("share_of_sgemm", "plain_cpu_over_ours", "one_wall_over_two")})


if __name__ == "__main__":
    main()
