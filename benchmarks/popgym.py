"""POPGym's memory scoreboard: six tasks, one recipe, beside the memoryless control and sb3-contrib's RecurrentPPO.

    python -m benchmarks.popgym                                           # ours and its two controls, five seeds
    python -m benchmarks.popgym --tasks RepeatFirstMedium --seeds 0 1     # goes on with what is missing
    python -m benchmarks.popgym --agents as_long --tasks NoisyPositionOnlyCartPoleMedium --seeds 0    # 15 M steps
    python -m benchmarks.popgym --agents sb3_contrib --peer-python VENV/bin/python --stop-at 200000

Needs `pip install "lit-ppo[popgym]"`. The recipe is configs/popgym.yaml; agents differ from it in one setting. A score
is what POPGym reports: the mean return of the episodes that ended during one PPO iteration, actions sampled; *final* is
that of the last iteration, *best* that of the best, and the greedy test is 100 other episodes with the final weights. A
goal counts as reached at the first iteration whose score, rounded as published, is at least it. CPU seconds are those
of the process (rollouts and updates, no evaluation, no start), which says more than seconds on a shared machine. A run
that was stopped early (`--stop-at`, or by a signal) keeps the schedules of a whole one, and is run again by a call that
goes further. Results: benchmarks/results/popgym.json, after every training; calls for different tasks, agents or seeds
may run side by side.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import RESULTS, provenance, read, write
from datamodules.gymnasium_data import GymnasiumDataModule
from lit_ppo import interrupts
from lit_ppo.nets.policy import ObservationPolicy
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, experience, policy_inputs
from lit_ppo.scoring.episode_evaluation import evaluate_episodes
from lit_ppo.store.provenance import code_state

CONFIG = Path(__file__).parents[1] / "configs/popgym.yaml"
CURVE_POINTS = 40  # kept of a training's iterations


@dataclass(frozen=True)
class Goal:
    """A task's score to reach, and the published one: Morad et al. 2023, arXiv:2303.01859, GRU, 15 M steps, best."""

    score: float
    published: float


GOALS = {
    "RepeatPreviousEasy": Goal(1.0, 1.0),
    "RepeatFirstMedium": Goal(1.0, 1.0),
    "PositionOnlyCartPoleHard": Goal(1.0, 1.0),
    "NoisyPositionOnlyCartPoleMedium": Goal(0.642, 0.642),
    "CountRecallEasy": Goal(0.509, 0.177),
    "RepeatPreviousMedium": Goal(-0.314, -0.315),  # above the published one
}
OURS: dict[str, dict[str, Any]] = {
    "lit_ppo": {},
    "memoryless": {"encoder": "memoryless"},
    "orthogonal": {"init": "orthogonal"},
    "as_long": {"total_timesteps": 14_999_552},  # as the published figures had
}
USUAL = [agent for agent in OURS if agent != "as_long"]
PEER = "sb3_contrib"


def recipe_of(agent: str) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of configs/popgym.yaml as the agent has it, and its `data` keys."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return Recipe(**{**config["model"], **OURS.get(agent, {})}), config["data"]


def train(task: str, agent: str, seed: int, stop_at: float) -> dict[str, Any]:
    """One training of ours, by the learner that both shells drive, and the greedy test of its last weights."""
    recipe, settings = recipe_of(agent)
    data = GymnasiumDataModule(**{**settings, "env_id": f"popgym:popgym-{task}-v0"}, allow_modules=["popgym"])
    source = experience(recipe, data.task, seed)
    policy = build_policy(recipe, policy_inputs(source), seed)
    assert isinstance(policy, ObservationPolicy)
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=seed)
    learner.attach(source)
    points: list[dict[str, float]] = []
    started = time.process_time()
    while not learner.finished and learner.timesteps < stop_at and not interrupts.requested():
        metrics = learner.iterate()
        if "train/episode_reward" in metrics:
            score, cpu_s = metrics["train/episode_reward"], time.process_time() - started
            points.append({"timesteps": learner.timesteps, "cpu_s": round(cpu_s, 1), "score": round(score, 4)})
            if learner.iteration % 10 == 0:
                print(f"{task} {agent} seed {seed}: {points[-1]}", file=sys.stderr, flush=True)
    test = evaluate_episodes(policy, next(iter(data.test_dataloader())), seed)
    return {"points": points, "timesteps": learner.timesteps, "greedy_test": round(test.score, 4)}


def train_peer(python: str, task: str, seed: int, stop_at: float) -> dict[str, Any]:
    """The same for sb3-contrib, with the same settings, in its own environment."""
    recipe, _ = recipe_of(PEER)
    wanted = {"task": task, "seed": seed, "stop_at": stop_at, "recipe": recipe.to_dict()}
    script = Path(__file__).with_name("popgym_peer.py")
    # -P: beside the script lies a `profile.py`, which would stand in for Python's own, and this file for the package.
    done = subprocess.run(
        [python, "-P", str(script), json.dumps(wanted)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def judged(run: dict[str, Any], goal: Goal) -> dict[str, Any]:
    """Replace a training's points by its figures and a thinner curve."""
    points = run.pop("points")
    first = next((point for point in points if round(point["score"], 3) >= goal.score), None)
    every = -(-len(points) // CURVE_POINTS)
    return {
        **run,
        "cpu_s": points[-1]["cpu_s"],
        "final": points[-1]["score"],
        "best": max(point["score"] for point in points),
        "reached": first and {"timesteps": first["timesteps"], "cpu_s": first["cpu_s"]},
        "curve": points[every - 1 :: every],
    }


def missing(runs: dict[str, Any], task: str, agent: str, seed: int, timesteps: int) -> bool:
    """Whether no such run went as far."""
    return all(run["seed"] != seed or run["timesteps"] < timesteps for run in runs.get(task, {}).get(agent, []))


def add(out: Path, task: str, agent: str, run: dict[str, Any]) -> None:
    """Put a run into the results, in the place of a shorter one; another call may be doing the same."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = read(out).get("runs", {})
        if not missing(runs, task, agent, run["seed"], run["timesteps"]):
            return
        others = [one for one in runs.get(task, {}).get(agent, []) if one["seed"] != run["seed"]]
        runs.setdefault(task, {})[agent] = sorted([*others, run], key=lambda one: one["seed"])
        record = {
            "what": "Mean return of the episodes of an iteration on POPGym: with memory, without, and sb3-contrib",
            **provenance(),
            "goals": {name: {"score": goal.score, "published": goal.published} for name, goal in GOALS.items()},
            "recipe": recipe_of("lit_ppo")[0].to_dict(),
            "runs": runs,
        }
        write(out, record)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--agents", nargs="+", choices=[*OURS, PEER], default=USUAL)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--stop-at", type=int, help="timesteps after which a training is cut off; default: never")
    parser.add_argument("--peer-python", help="interpreter of an environment with sb3-contrib and popgym")
    parser.add_argument("--out", type=Path, default=RESULTS / "popgym.json", help="where the results go")
    options = parser.parse_args(arguments)
    if PEER in options.agents and not options.peer_python:
        parser.error(
            f"--agents {PEER} needs --peer-python, the interpreter of an environment with sb3-contrib and popgym"
        )
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    interrupts.install()
    for seed in options.seeds:  # interleaved: a shared machine is not equally fast all the time
        for task in options.tasks:
            for agent in options.agents:
                stop_at = min(options.stop_at or math.inf, recipe_of(agent)[0].total_timesteps)
                if interrupts.requested() or not missing(read(options.out).get("runs", {}), task, agent, seed, stop_at):
                    continue
                if agent == PEER:
                    run = train_peer(options.peer_python, task, seed, stop_at)
                else:
                    run = train(task, agent, seed, stop_at)
                run = judged(
                    {
                        "seed": seed,
                        "commit": code_state()["commit"],
                        "load_average": round(os.getloadavg()[0], 1),
                        **run,
                    },
                    GOALS[task],
                )
                add(options.out, task, agent, run)
                figures = ", ".join(f"{name} {run[name]}" for name in ("final", "best", "reached", "cpu_s"))
                print(f"{task} {agent} seed {seed}: {figures}", flush=True)


if __name__ == "__main__":
    main()
