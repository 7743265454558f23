"""What the machine gives and what a run takes of it: memory, cores, their use. No torch import unless it is loaded."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence

import psutil


def usable_cores() -> int:
    """Cores this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


class MachineLoad:
    """Memory and processor use of this process and its children between two readings.

    Use of 100 % is one core busy all the time: two cores may show 200 %.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._seconds = self._cpu_seconds(self._processes())
        self._wall = time.monotonic()
        self.peak_bytes = 0

    def read(self) -> dict[str, float]:
        """Memory now and at its highest reading, processor use since the last reading; the GPU's where torch has one.

        Returns:
            memory_mb, peak_memory_mb, cpu_pct, and gpu_memory_mb, gpu_pct where there is a GPU.
        """
        processes = self._processes()
        memory = sum(_of(process, "memory_info").rss for process in processes if _of(process, "memory_info"))
        self.peak_bytes = max(self.peak_bytes, memory)
        seconds, wall = self._cpu_seconds(processes), time.monotonic()
        busy = max(seconds - self._seconds, 0.0) / max(wall - self._wall, 1e-9)
        self._seconds, self._wall = seconds, wall
        figures = {"memory_mb": memory / 1e6, "peak_memory_mb": self.peak_bytes / 1e6, "cpu_pct": 100 * busy}
        return figures | _gpu()

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    @staticmethod
    def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
        times = [_of(process, "cpu_times") for process in processes]
        return sum(found.user + found.system for found in times if found)


def _of(process: psutil.Process, method: str):  # type: ignore[no-untyped-def]
    """A figure of a process, None if it has ended since it was listed."""
    try:
        return getattr(process, method)()
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return None


def _gpu() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    figures = {"gpu_memory_mb": torch.cuda.max_memory_allocated() / 1e6}
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # the driver's own library is optional
        figures["gpu_pct"] = float(torch.cuda.utilization())
    return figures
