"""What every benchmark of this folder shares: where results go, and what they say about how they were made.

Run the scripts from the repository's root: `python -m benchmarks.NAME`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.provenance import code_state, machine, package_versions

RESULTS = Path(__file__).parent / "results"
SGEMM_SIZE = 1024


def provenance() -> dict[str, Any]:
    """Machine, versions, commit and its dirty flag, torch threads, the machine's load at this moment."""
    return {
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "code": code_state(),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a result as JSON: the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(record, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a result; {} if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def sgemm_gflops(repeats: int = 5) -> float:
    """Best rate of a 1024 x 1024 float32 matrix product with the threads of this process, GFLOP/s."""
    a, b = (torch.rand(SGEMM_SIZE, SGEMM_SIZE) for _ in range(2))
    return 2 * SGEMM_SIZE**3 / min(timed(lambda: a @ b) for _ in range(repeats + 1)) / 1e9


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB.

    Linux: VmHWM, which begins anew with the program; `ru_maxrss` starts with what the parent held when it forked.
    """
    import resource

    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
