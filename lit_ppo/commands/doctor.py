"""`lit-ppo doctor`: whether this installation can do its work, by doing a little of it.

Versions, threads, the fused kernels against plain torch, device, cache, disk, and one short training on a market whose
optimum is known. Every line says what was found; one that is wrong says what to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper

import torch

from lit_ppo.commands.oracle import MarketMaker, OracleTask
from lit_ppo.folds.machine_load import usable_cores
from lit_ppo.nets.kernels.torch_layers import reference_layer
from lit_ppo.nets.lstm import fastest_on_cpu, layer_function
from lit_ppo.recipe import Recipe, suitable_threads
from lit_ppo.seeding import make_generator
from lit_ppo.store.provenance import package_versions

NEEDED = ("torch", "lightning", "gymnasium", "torchmetrics", "pandas", "numpy")
MALICIOUS = ("2.6.2", "2.6.3")  # of lightning: GHSA-w37p-236h-pfx3
LEAST_DISK = 1_000_000_000  # bytes: a walk-forward of 109 folds leaves some 100 MB
LEAST_SHARE = 0.8  # of the optimum; seeds of the full budget end at 98 % and more (docs/benchmarks.md)
TOLERANCE = 2e-6  # of a fused layer's outputs, which lie within +-1, from the reference


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do where it is wrong (empty: it is right)."""

    name: str
    found: str
    remedy: str = ""


def versions() -> Finding:
    """The packages that everything stands on."""
    found = package_versions()
    text = ", ".join(f"{name} {found[name]}" for name in ("lit-ppo", "python", *NEEDED))
    if missing := [name for name in NEEDED if found[name] is None]:
        return Finding("versions", text, f"install {', '.join(missing)}")
    if found["lightning"] in MALICIOUS:
        return Finding("versions", text, "this release of lightning steals credentials: remove it, change them")
    return Finding("versions", text)


def threads() -> Finding:
    """Cores that this process may use, and what torch would take of them."""
    return Finding(
        "threads",
        f"of {usable_cores()} cores torch would take {torch.get_num_threads()}; the default recipe takes "
        f"{suitable_threads(Recipe())}",
    )


def kernels() -> Finding:
    """The fused LSTM layer against the plain one, on the same numbers."""
    name = fastest_on_cpu()
    if name != "numba":
        return Finding("kernels", "plain torch: the same numbers, several times slower", "pip install numba")
    generator = make_generator(0, 0, "doctor")
    T, S, F, H = 16, 8, 5, 16
    shapes = ((T, S, F), (4 * H, F), (4 * H, H), (4 * H,), (S, H), (S, H))
    inputs, weight_ih, weight_hh, bias, hidden, cell = (0.5 * torch.randn(s, generator=generator) for s in shapes)
    with torch.no_grad():
        arguments = (inputs, hidden, cell, weight_ih, weight_hh, bias, None)
        start = time.perf_counter()
        fused = layer_function(name)(*arguments)[0]
        seconds = time.perf_counter() - start
        error = float((fused - reference_layer(*arguments)[0]).abs().max())
    text = f"fused, within {error:.0e} of plain torch, ready in {seconds:.1f} s"
    return Finding("kernels", text, "" if error <= TOLERANCE else "please report it with this output")


def device() -> Finding:
    """Accelerators that torch sees."""
    if not torch.cuda.is_available():
        return Finding("device", "no GPU: the networks are small, a CPU trains them")
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return Finding("device", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")


def disk(directory: Path) -> Finding:
    """Room for results, and whether this user may write there."""
    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free for {directory}"
    if not os.access(place, os.W_OK):
        return Finding("disk", text, f"this user may not write to {place}: name another --results")
    return Finding("disk", text, "" if free >= LEAST_DISK else "free some: a run needs up to 1 GB")


def training(make: MarketMaker, timesteps: int) -> Finding:
    """Learn a hidden regime, from bar file to score: the share of the known optimum on fresh bars."""
    recipe = {"total_timesteps": timesteps}
    torch.set_num_threads(suitable_threads(Recipe()))
    task = OracleTask({"kind": "regime"}, train_bars=50_000, test_bars=100_000)
    start = time.perf_counter()
    share = task.train(make, 0, recipe, curve_decisions=0).score.fraction
    seconds = time.perf_counter() - start
    assert share is not None
    text = f"{100 * share:.0f} % of a known optimum after {timesteps:,} timesteps, {seconds:.0f} s in all"
    return Finding("training", text, "" if share >= LEAST_SHARE else f"expected {100 * LEAST_SHARE:.0f} % or more")


def doctor(arguments: Sequence[str], make: MarketMaker, cache: Callable[[], str]) -> int:
    """Run the command; returns the exit code: 0, or 1 where something is wrong.

    Args:
        arguments: what follows `doctor`.
        make: the market, see `MarketMaker`.
        cache: says where the feature cache is and what it holds; raises OSError where it cannot be used.
    """
    parser = argparse.ArgumentParser(prog="lit-ppo doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--results", default="results", help="where runs would go")
    parser.add_argument("--timesteps", type=int, default=100_000, help="of the training; 0: none")
    options = parser.parse_args(list(arguments))

    def cached() -> Finding:
        try:
            return Finding("cache", cache())
        except OSError as error:
            return Finding("cache", str(error), "name another with --data.cache_dir, or XDG_CACHE_HOME")

    def findings() -> Iterator[Finding]:
        yield versions()
        yield threads()
        yield kernels()
        yield device()
        yield cached()
        yield disk(Path(options.results))
        if options.timesteps:
            yield training(make, options.timesteps)

    wrapped = TextWrapper(80, subsequent_indent=" " * 16, break_long_words=False, break_on_hyphens=False)
    wrong = 0
    for finding in findings():
        wrong += bool(finding.remedy)
        mark = "WRONG" if finding.remedy else "ok"
        print("\n".join(wrapped.wrap(f"{mark:<6}{finding.name:<10}{finding.found}")), flush=True)
        if finding.remedy:
            print(f"{'':<16}-> {finding.remedy}", flush=True)
    print("everything works" if not wrong else f"{wrong} of the above must be mended")
    return 1 if wrong else 0
