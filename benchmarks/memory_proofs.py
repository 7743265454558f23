"""Does the agent have memory? CartPole and Pendulum without their velocities, with the LSTM and without it.

    python -m benchmarks.memory_proofs                                  # five seeds of each, with memory and without
    python -m benchmarks.memory_proofs --peer-python VENV/bin/python    # and sb3-contrib, interleaved with ours
    python -m benchmarks.memory_proofs --add ...                        # go on with what is missing

Every training runs through the product (`lit-ppo fit --config configs/...`). Its weights are chosen on the validation
episodes and judged on 100 greedy test episodes, which are others. A score counts as reached at the first validation
whose mean is at least the goal. Seconds are those of rollouts and updates, without evaluation; CPU seconds are seconds
times the share of a core that the whole run had: they say more where the machine is shared. sb3-contrib RecurrentPPO
runs with the settings that RL Zoo publishes for the two tasks (`memory_proofs_peer.py`), validated as often, with as
many episodes, and judged alike. Results: benchmarks/results/memory_proofs.json, rewritten after every training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.gymnasium_data import GymnasiumDataModule
from lit_ppo.nets.policy import ObservationPolicy
from lit_ppo.recipe import load_policy
from lit_ppo.scoring.episode_evaluation import evaluate_episodes
from lit_ppo.store.checkpoints import SELECTED, load_checkpoint
from lit_ppo.store.provenance import code_state, machine, package_versions
from lit_ppo.timing import Stopwatch

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks/results/memory_proofs.json"
SEEDS = 5  # that a goal is about


@dataclass(frozen=True)
class Goal:
    """A task, the mean reward of an episode to reach on it, and on how many of five seeds (None: by their mean)."""

    config: str
    reward: float
    seeds_needed: int | None

    @property
    def path(self) -> Path:
        return REPOSITORY / "configs" / self.config


GOALS = {"cartpole": Goal("cartpole_novel.yaml", 475.0, 4), "pendulum": Goal("pendulum_novel.yaml", -220.0, None)}
OURS = {"memory": "lstm", "no_memory": "memoryless"}


def curve_of(folder: Path) -> list[dict[str, float]]:
    """Validations of a run: timesteps, training seconds until then, mean reward."""

    def lines(name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    seconds = accumulate(line["time/rollout_s"] + line["time/update_s"] for line in lines("timing.jsonl"))
    return [
        {"timesteps": line["timesteps"], "seconds": round(elapsed, 1), "reward": round(line["validation/score"], 2)}
        for line, elapsed in zip(lines("metrics.jsonl"), seconds, strict=True)
        if "validation/score" in line
    ]


def train(goal: Goal, encoder: str, seed: int) -> dict[str, Any]:
    """One training by the command line, and the test of the weights it chose."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lit_ppo", "fit", "--config", str(goal.path), "--seed", str(seed)]
        command += ["--model.encoder", encoder, "--trainer.default_root_dir", folder]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        watch, before = Stopwatch(), resource.getrusage(resource.RUSAGE_CHILDREN)
        with watch.stage("fit"):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        curve = curve_of(Path(folder))
        policy, _ = load_policy(load_checkpoint(Path(folder) / SELECTED))
    assert isinstance(policy, ObservationPolicy)
    data = GymnasiumDataModule(**yaml.safe_load(goal.path.read_text(encoding="utf-8"))["data"])
    result = evaluate_episodes(policy, next(iter(data.test_dataloader())), seed)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "test_reward": round(result.score, 2),
        "test_reward_std": round(result.metrics["episode_reward_std"], 2),
        "cpu_per_wall": round(cpu_s / watch.seconds["fit"], 3),
        "curve": curve,
    }


def train_peer(python: str, name: str, goal: Goal, seed: int) -> dict[str, Any]:
    """The same for sb3-contrib, in its own environment."""
    recipe = yaml.safe_load(goal.path.read_text(encoding="utf-8"))
    per_iteration = recipe["model"]["num_envs"] * recipe["model"]["num_steps"]
    wanted = {
        "task": name,
        "seed": seed,
        "every": per_iteration * recipe["trainer"]["check_val_every_n_epoch"],
        "validation_episodes": recipe["data"]["validation_episodes"],
        "test_episodes": recipe["data"]["test_episodes"],
    }
    script = Path(__file__).with_name("memory_proofs_peer.py")
    # -P: beside the script lies a `profile.py`, which would stand in for Python's own.
    command = [python, "-P", str(script), json.dumps(wanted)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def with_first_reached(run: dict[str, Any], goal: Goal) -> dict[str, Any]:
    """Add where the goal was first reached, None if never."""
    first = next((point for point in run["curve"] if point["reward"] >= goal.reward), None)
    if first is None:
        return {**run, "reached": None}
    cpu_s = round(first["seconds"] * run["cpu_per_wall"], 1)
    return {**run, "reached": {"timesteps": first["timesteps"], "seconds": first["seconds"], "cpu_s": cpu_s}}


def summary(runs: list[dict[str, Any]], goal: Goal) -> dict[str, Any]:
    """What the runs of one agent on one task show together."""
    tests = [run["test_reward"] for run in runs]
    reached = [run["reached"] for run in runs if run["reached"]]
    passing = sum(test >= goal.reward for test in tests)
    met = passing >= goal.seeds_needed if goal.seeds_needed else float(np.mean(tests)) >= goal.reward
    return {
        "seeds": len(tests),
        "mean_test_reward": round(float(np.mean(tests)), 2),
        "worst_test_reward": min(tests),
        "seeds_at_goal": passing,
        "goal_met": met if len(tests) >= SEEDS else None,  # None: too few seeds to say
        "seeds_that_reached": len(reached),
        "median_timesteps_to_goal": float(np.median([point["timesteps"] for point in reached])) if reached else None,
        "median_seconds_to_goal": float(np.median([point["seconds"] for point in reached])) if reached else None,
        "median_cpu_s_to_goal": float(np.median([point["cpu_s"] for point in reached])) if reached else None,
    }


def write(out: Path, runs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    result = {
        "what": "Mean reward of 100 greedy episodes without observed velocities: with memory, without, and sb3-contrib",
        "threads": 1,
        "machine": machine(),
        "versions": package_versions(),
        "code": code_state(),
        "goals": {name: {"reward": GOALS[name].reward, "seeds_needed_of_5": GOALS[name].seeds_needed} for name in runs},
        "summary": {
            name: {agent: summary(done, GOALS[name]) for agent, done in agents.items() if done}
            for name, agents in runs.items()
        },
        "runs": runs,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(GOALS), default=sorted(GOALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--peer-python", help="interpreter of an environment with sb3-contrib; default: ours alone")
    parser.add_argument("--peer-seeds", nargs="+", type=int, help="seeds of sb3-contrib; default: all")
    parser.add_argument("--add", action="store_true", help="keep the runs of OUT and make those that are missing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the trainings; networks of 64 units gain nothing from a second thread
    peer_seeds = options.seeds if options.peer_seeds is None else options.peer_seeds
    agents = [*OURS, *(["sb3_contrib"] if options.peer_python else [])]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    if options.add and options.out.is_file():
        runs = json.loads(options.out.read_text(encoding="utf-8"))["runs"]
    for name in options.tasks:
        for agent in agents:
            runs.setdefault(name, {}).setdefault(agent, [])
    for seed in options.seeds:  # interleaved: a shared machine is not equally fast all the time
        for name in options.tasks:
            for agent in agents:
                if any(run["seed"] == seed for run in runs[name][agent]):
                    continue
                if agent in OURS:
                    run = train(GOALS[name], OURS[agent], seed)
                elif seed in peer_seeds:
                    run = train_peer(options.peer_python, name, GOALS[name], seed)
                else:
                    continue
                facts = {"seed": seed, "commit": code_state()["commit"], "load_average": round(os.getloadavg()[0], 1)}
                run = with_first_reached({**facts, **run}, GOALS[name])
                runs[name][agent].append(run)
                print(f"{name} {agent} seed {seed}: test {run['test_reward']}, reached {run['reached']}", flush=True)
                write(options.out, runs)


if __name__ == "__main__":
    main()
