"""What a run was made with: versions, commit, machine. No host, user or directory name, and no torch import."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_ppo.version import __version__

# Those whose version can change a result or its meaning.
PACKAGES = (
    *("torch", "lightning", "torchmetrics", "gymnasium", "numpy", "pandas", "scipy", "arch", "numba"),
    *("safetensors", "TA-Lib", "jsonargparse"),
)


def package_versions() -> dict[str, str | None]:
    """Return the version of lit-ppo, Python and every package that matters; None where one is not installed."""
    versions: dict[str, str | None] = {"lit-ppo": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def code_state(directory: Path | None = None) -> dict[str, Any]:
    """Return {"commit", "dirty"} of the checkout that lit_ppo runs from; both None outside a checkout or without git.

    `dirty`: a tracked file differs from the commit, so the commit alone does not give this code back. Measured results
    (`benchmarks/results`) are no code: a benchmark would call the next one's commit dirty.
    """
    package = directory or Path(__file__).parent
    unknown = {"commit": None, "dirty": None}
    # An installed copy inside someone else's repository is not of that repository: ask whether git tracks this file.
    if directory is None and _git(package, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return unknown
    commit = _git(package, "rev-parse", "HEAD")
    places = ("--", ":(top)", ":(top,exclude)benchmarks/results")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", *places)
    if commit is None or changes is None:
        return unknown
    return {"commit": commit, "dirty": bool(changes)}


@functools.cache
def source_sha256(root: Path | None = None) -> str:
    """SHA-256 of every Python file of lit-ppo's packages, names included: the code, committed or not.

    Once for each process: an edit while it runs does not change the code it has loaded.
    """
    root = root or Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in ("lit_ppo", "datamodules", "callbacks"):
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """Return the processor's name, the cores this process may use, memory in bytes, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "ram_bytes": _memory(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None
