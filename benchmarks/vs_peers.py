"""lit-ppo against other recurrent PPO trainers: same bars, same environment, same cores, one after the other in turns.

    python -m benchmarks.vs_peers                      # both settings, three rounds: 15 minutes on two idle cores
    python -m benchmarks.vs_peers --setting C --rounds 5

Every round runs each trainer once, in its own process; a ratio compares two trainers of one round, so that whoever else
uses the machine meets both. The peers' scripts and the reference environment are not part of this repository: `--peers`
names their folder, and `--pythons` the folder of their virtual environments (NAME/bin/python or venv-NAME/bin/python;
their README says what goes in). A peer without one is left out, and said so. Results: benchmarks/results/vs_peers.json.

Setting C: 64 environments x 128 steps, minibatches of 2,048 samples, 4 epochs, one LSTM of 256, 24 inputs, 4 actions.
Setting original: 2 x 256 LSTMs for actor and critic each, heads 128-64 (Mish), AdamW, 12 epochs, minibatches of 256
samples; the old script has one environment, lit-ppo as many as it likes: epochs, samples and network are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, provenance, read, spread, write

ROOT = Path(__file__).parents[1]
PATH = RESULTS / "vs_peers.json"
C = ("--n-envs", "64", "--n-steps", "128", "--batch-size", "2048", "--epochs", "4")


@dataclass(frozen=True)
class Trainer:
    """One trainer in one setting.

    Attributes:
        name: for the reader.
        venv: name of its virtual environment; "" is this process's own Python.
        command: script and flags.
    """

    name: str
    venv: str
    command: tuple[str, ...]


def ours(setting: str, steps: int) -> Trainer:
    command = ("-m", "benchmarks.lit_ppo_peer", "--setting", setting, "--steps", str(steps))
    return Trainer("lit-ppo", "", command)


SETTINGS: dict[str, tuple[Trainer, ...]] = {
    "C": (
        ours("C", 32_768),
        Trainer("sb3-contrib, shared LSTM", "sb3", ("bench_sb3_recurrent.py", *C, "--shared-lstm", "--steps", "16384")),
        Trainer("SheepRL", "sheeprl", ("bench_sheeprl.py", *C, "--steps", "16384")),
        Trainer("sb3-contrib", "sb3", ("bench_sb3_recurrent.py", *C, "--steps", "8192")),
        Trainer("TorchRL", "torchrl", ("bench_torchrl.py", *C, "--steps", "8192")),
        Trainer("Sample Factory", "sf", ("bench_sample_factory.py", *C, "--steps", "8192")),
    ),
    "original": (
        ours("original", 8192),
        Trainer("sb3-contrib", "sb3", ("bench_sb3_recurrent.py", "--original", "--steps", "1024")),
    ),
}


def python_of(venv: str, folder: Path) -> Path | None:
    """Interpreter of a virtual environment; None if there is none."""
    if not venv:
        return Path(sys.executable)
    found = [folder / name / "bin" / "python" for name in (venv, f"venv-{venv}")]
    return next((path for path in found if path.exists()), None)


def run(trainer: Trainer, python: Path, peers: Path, threads: int, timeout: float) -> dict[str, Any]:
    """Run one trainer in its own process and return the JSON line it prints, or {"error": ...}."""
    command = [str(python), *trainer.command, "--threads", str(threads)]
    if not trainer.venv:
        command += ["--peers", str(peers)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = "" if trainer.venv else str(ROOT)
    folder = peers if trainer.venv else ROOT
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {timeout:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(lines[-1])


def lightning_import_mb() -> float:
    """What importing Lightning and torchmetrics adds to torch's memory, in processes of their own."""
    peaks = []
    for modules in ("torch", "torch, torchmetrics, lightning.pytorch"):
        code = f"import {modules}; from benchmarks.common import peak_memory_mb; print(peak_memory_mb())"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    return round(peaks[1] - peaks[0], 1)


def per_second(result: dict[str, Any], of_cpu: bool) -> float | None:
    """Steps per second of wall time or of CPU time; None without a result."""
    if "sps" not in result:
        return None
    return result["sps"] / result["cpu_per_wall"] if of_cpu else result["sps"]


def ratios(rounds: Sequence[dict[str, dict[str, Any]]], of_cpu: bool = False) -> dict[str, dict[str, float]]:
    """Steps per second of lit-ppo over those of each peer: median, least and largest over the rounds.

    Args:
        of_cpu: per CPU second instead, which says more on a busy machine (and nothing about the use of two cores).
    """
    found = {}
    for name in sorted({name for results in rounds for name in results if name != "lit-ppo"}):
        values = []
        for results in rounds:
            own, theirs = (per_second(results.get(who, {}), of_cpu) for who in ("lit-ppo", name))
            if own is not None and theirs is not None:
                values.append(own / theirs)
        if values:
            found[name] = spread(values)
    return found


def summarise(setting: str, rounds: Sequence[dict[str, dict[str, Any]]], missing: Sequence[str]) -> dict[str, Any]:
    """What the README's table shows of one setting."""
    own = [results["lit-ppo"] for results in rounds if "sps" in results.get("lit-ppo", {})]
    by_peer = ratios(rounds)
    summary: dict[str, Any] = {
        "setting": setting,
        "rounds": len(rounds),
        "missing": list(missing),
        "ratios": by_peer,
        "ratios_per_cpu_second": ratios(rounds, of_cpu=True),
        "ratio_to_fastest_peer": min(by_peer.values(), key=lambda ratio: ratio["median"]) if by_peer else None,
    }
    if own:
        summary["steps_per_s"] = spread([result["sps"] for result in own])
        summary["share_of_sgemm"] = spread([result["share_of_sgemm"] for result in own])
        summary["sgemm_gflops"] = spread([result["sgemm_gflops"] for result in own])
        summary["cpu_per_wall"] = spread([result["cpu_per_wall"] for result in own])
    names = {name for results in rounds for name in results}
    summary["peers_steps_per_s"] = {
        name: spread([results[name]["sps"] for results in rounds if "sps" in results.get(name, {})])
        for name in sorted(names - {"lit-ppo"})
        if any("sps" in results.get(name, {}) for results in rounds)
    }
    summary["memory_mb"] = {
        name: spread([results[name]["rss_mb"] for results in rounds if "rss_mb" in results.get(name, {})])
        for name in sorted(names)
        if any("rss_mb" in results.get(name, {}) for results in rounds)
    }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--peers", type=Path, default=ROOT / ".." / "shared" / "peers")
    parser.add_argument("--pythons", type=Path, default=ROOT / "..")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one run")
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    peers = arguments.peers.resolve()
    if not (peers / "reference_env.py").is_file():
        print(f"left out: the peers' scripts are not in {peers}; name their folder with --peers")
        return
    record = read(arguments.out) or {"what": "steps per second, updates included, against other trainers"}
    record["lightning_import_mb"] = lightning_import_mb()
    for setting in arguments.setting:
        missing, chosen = [], []
        for trainer in SETTINGS[setting]:
            python = python_of(trainer.venv, arguments.pythons)
            if python is None:
                missing.append(trainer.name)
                print(f"{trainer.name}: left out, there is no {trainer.venv}/bin/python in {arguments.pythons}")
            else:
                chosen.append((trainer, python))
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(arguments.rounds):
            rounds.append({})
            for trainer, python in chosen:
                started = time.perf_counter()
                result = run(trainer, python, peers, arguments.threads, arguments.timeout)
                rounds[-1][trainer.name] = result
                figure = f"{result['sps']:10,.1f} steps/s" if "sps" in result else result["error"]
                print(
                    f"{setting:9s} round {number}  {trainer.name:26s} {figure}  cpu/wall {result.get('cpu_per_wall')}"
                    f"  ({time.perf_counter() - started:.0f} s)",
                    flush=True,
                )
            summary = summarise(setting, rounds, missing)
            record |= {**provenance(), "threads": arguments.threads}
            record.setdefault("settings", {})[setting] = {"summary": summary, "rounds": rounds}
            write(arguments.out, record)
        for name, ratio in summary["ratios"].items():
            print(
                f"{setting:9s} lit-ppo / {name:26s} x{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            )
        if "share_of_sgemm" in summary:
            share = summary["share_of_sgemm"]
            print(f"{setting:9s} update at {100 * share['median']:.0f} % of sgemm")


if __name__ == "__main__":
    main()
