"""How much faster are N workers than this process, on the same folds with the same bytes, and what does Ray cost?

    python -m benchmarks.workers --config quickstart                     # writes benchmarks/results/workers.json
    python -m benchmarks.workers --config scratch --data.path bars.csv --data.fold_limit 20 --workers 2 --repeats 3

Runs in this process, with one worker and with N take turns, each a `lit-ppo walk-forward` of its own. Of each:

    seconds, cpu_s              the whole command, start of Python, of Ray and the report included; CPU of all processes
    ready_s                     what lit-ppo says it waited for workers
    fold_seconds, fold_cpu_s    a fold, from the line of the first one to the line of the last one, of all but the N
                                that were under way before that first line: no start, no report
    others                      CPU that other processes of the machine used meanwhile, in cores

A ratio of wall seconds counts only if out_of_sample.csv is the same in all runs, and if others used next to nothing:
`busy` says whether they did. CPU seconds a fold say what the engine costs on a busy machine too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import RESULTS, provenance, spread, write

READY = re.compile(r"Ray: workers ready after ([\d.]+) s")
FOLD = re.compile(r"^ *(\d+)/(\d+) +fold ")
POLL_SECONDS = 0.1
QUIET_CORES = 0.1  # that others may use in a measurement of wall time


class Family:
    """CPU seconds of a process and of all its descendants, those that have ended included."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.used: dict[int, float] = {}  # by process

    def cpu(self) -> float:
        """So far, user and system."""
        with contextlib.suppress(psutil.Error):
            for process in (self.root, *self.root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self.used[process.pid] = times.user + times.system
        return sum(self.used.values())


def machine_cpu() -> float:
    """CPU seconds that all processes have used since the machine started."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def run(workers: int, arguments: list[str], results: Path) -> dict[str, Any]:
    """One walk-forward: its seconds, CPU and test decisions."""
    command = [sys.executable, "-m", "lit_ppo", "walk-forward", *arguments, "--results", str(results)]
    command += ["--workers", str(workers), "--overwrite"]
    started, before = time.perf_counter(), machine_cpu()
    lines: list[tuple[float, float]] = []  # wall and CPU seconds at each fold's line
    log = results.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        family = Family(process.pid)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            cpu, said = family.cpu(), log.read_text(errors="replace").splitlines()
            folds = sum(bool(FOLD.match(line)) for line in said)
            lines += [(time.perf_counter() - started, cpu)] * (folds - len(lines))
    seconds, cpu, text = time.perf_counter() - started, family.cpu(), log.read_text(errors="replace")
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    (rows,) = results.glob("*/out_of_sample.csv")
    ready = READY.search(text)
    between = max(len(lines) - max(workers, 1), 1)
    each = [(last - first) / between for first, last in zip(lines[0], lines[-1], strict=True)]
    return {
        "workers": workers,
        "folds": len(lines),
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "ready_s": float(ready[1]) if ready else None,
        "fold_seconds": round(each[0], 3),
        "fold_cpu_s": round(each[1], 3),
        "others": round((machine_cpu() - before - cpu) / seconds, 2),
        "decisions": rows.read_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--output", type=Path, default=RESULTS / "workers.json")
    options, arguments = parser.parse_known_args()
    kinds, runs = sorted({0, 1, options.workers}), []
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(options.repeats):
            for workers in kinds:
                runs.append(run(workers, arguments, Path(directory) / f"{workers}"))
                told = {name: value for name, value in runs[-1].items() if name != "decisions"}
                print(f"repeat {repeat}: {told}", flush=True)
    same = len({one.pop("decisions") for one in runs}) == 1
    names = ("seconds", "cpu_s", "fold_seconds", "fold_cpu_s")
    found = {
        workers: {name: spread([one[name] for one in runs if one["workers"] == workers]) for name in names}
        for workers in kinds
    }
    here, one, many = (found[kind] for kind in (0, 1, options.workers))
    record = {
        "arguments": arguments,
        "same_bytes": same,
        "speed_ratio": round(here["seconds"]["median"] / many["seconds"]["median"], 3),
        "fold_speed_ratio": round(here["fold_seconds"]["median"] / many["fold_seconds"]["median"], 3),
        "engine_cpu_ratio": round(one["fold_cpu_s"]["median"] / here["fold_cpu_s"]["median"], 3),
        "busy": max(one["others"] for one in runs) > QUIET_CORES,
    }
    write(options.output, {**record, "by_workers": found, "runs": runs, **provenance()})
    print(record)


if __name__ == "__main__":
    main()
