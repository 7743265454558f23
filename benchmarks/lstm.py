"""Our LSTM against torch.nn.LSTM: forward + backward and inference, interleaved, on one thread.

    python benchmarks/lstm.py            # about a minute; writes benchmarks/results/lstm.json

Each repetition times every candidate once, in turn, so that a neighbour's load meets all of them; the figure is the
median over the repetitions, and a speed-up is the median of the ratios within a repetition. GFLOP/s counts the products
with the weights only (2 FLOP each) at the fastest repetition, and is compared with the fastest large sgemm of the same
turns: a share of what the core can do at all, activations and memory traffic included.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_ppo.nets.lstm import LSTM
from lit_ppo.seeding import make_generator
from lit_ppo.store.provenance import code_state, machine, package_versions
from lit_ppo.timing import Stopwatch

RESULTS = Path(__file__).parent / "results" / "lstm.json"
SHAPES = (  # hidden size H, sequences S, steps T, inputs F, repetitions
    (16, 32, 128, 24, 101),
    (32, 64, 128, 24, 51),
    (64, 64, 128, 24, 25),
    (256, 64, 128, 24, 9),
)
LONG_BARS, LONG_REPEATS = 1_000_000, 5  # one sequence, H = 32: the evaluation of a long file
SGEMM_SIZE = 1024


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return seconds by candidate, one per repetition; a first, untimed turn compiles and warms."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            watch = Stopwatch()
            with watch.stage(name):
                run()
            seconds[name].append(watch.seconds[name])
    return seconds


def trained(module: nn.Module, inputs: torch.Tensor, state: Any, grad: torch.Tensor) -> Callable[[], object]:
    def run() -> None:
        module.zero_grad(set_to_none=True)
        module(inputs, state)[0].backward(grad)

    return run


def inferred(module: nn.Module, inputs: torch.Tensor, state: Any) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        module(inputs, state)

    return run


def sgemm(generator: torch.Generator) -> Callable[[], object]:
    a, b = (torch.randn(SGEMM_SIZE, SGEMM_SIZE, generator=generator) for _ in range(2))
    return lambda: a @ b


def row(seconds: dict[str, list[float]], bars: int, flop_per_bar: int, key: str) -> dict[str, Any]:
    """Figures of one timed pair: `ours_<key>` and `library_<key>`, with the sgemm of the same turns."""
    ours, library = seconds[f"ours_{key}"], seconds[f"library_{key}"]
    gflops = bars * flop_per_bar / min(ours) / 1e9
    peak = 2 * SGEMM_SIZE**3 / min(seconds["sgemm"]) / 1e9
    return {
        "ours_ms": round(statistics.median(ours) * 1e3, 3),
        "library_ms": round(statistics.median(library) * 1e3, 3),
        "ours_bars_per_s": round(bars / statistics.median(ours)),
        "library_bars_per_s": round(bars / statistics.median(library)),
        "speedup": round(statistics.median(y / x for x, y in zip(ours, library, strict=True)), 2),
        "ours_gflops": round(gflops, 1),
        "sgemm_gflops": round(peak, 1),
        "share_of_sgemm": round(gflops / peak, 2),
        "repeats": len(ours),
    }


def measure_shape(hidden_size: int, sequences: int, steps: int, inputs: int, repeats: int) -> dict[str, Any]:
    """Time one shape: forward + backward (inputs without gradient, as market features are) and inference."""
    generator = make_generator(0, purpose="benchmark")
    features = torch.randn(steps, sequences, inputs, generator=generator)
    grad = torch.randn(steps, sequences, hidden_size, generator=generator)
    ours = LSTM(inputs, hidden_size, generator=generator, implementation="numba")
    library = nn.LSTM(inputs, hidden_size)
    state = ours.initial_state(sequences)
    seconds = interleaved(
        {
            "ours_train": trained(ours, features, state, grad),
            "library_train": trained(library, features, tuple(state), grad),
            "ours_infer": inferred(ours, features, state),
            "library_infer": inferred(library, features, tuple(state)),
            "sgemm": sgemm(generator),
        },
        repeats,
    )
    bars = steps * sequences
    forward = 2 * 4 * hidden_size * (hidden_size + inputs)
    backward = 2 * 4 * hidden_size * (2 * hidden_size + inputs)
    return {
        "hidden_size": hidden_size,
        "sequences": sequences,
        "steps": steps,
        "inputs": inputs,
        "forward_backward": row(seconds, bars, forward + backward, "train"),
        "inference": row(seconds, bars, forward, "infer"),
    }


def measure_long_file() -> dict[str, Any]:
    """Time the inference of one sequence of a million bars, H = 32."""
    generator = make_generator(0, purpose="benchmark")
    features = torch.randn(LONG_BARS, 1, 24, generator=generator)
    ours, library = LSTM(24, 32, generator=generator, implementation="numba"), nn.LSTM(24, 32)
    state = ours.initial_state(1)
    candidates = {
        "ours_infer": inferred(ours, features, state),
        "library_infer": inferred(library, features, tuple(state)),
        "sgemm": sgemm(generator),
    }
    seconds = interleaved(candidates, LONG_REPEATS)
    return {
        "hidden_size": 32,
        "sequences": 1,
        "steps": LONG_BARS,
        "inputs": 24,
        "inference": row(seconds, LONG_BARS, 2 * 4 * 32 * (32 + 24), "infer"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    watch = Stopwatch()
    with watch.stage("first_call"):  # compiles, or loads the disk cache
        lstm = LSTM(4, 16, implementation="numba")
        lstm(torch.zeros(4, 4, 4), lstm.initial_state(4))[0].sum().backward()
    shapes = [measure_shape(*shape) for shape in SHAPES] + [measure_long_file()]
    result = {
        "what": "LSTM layer, float32, CPU: ours (fused) against torch.nn.LSTM, medians of interleaved repetitions",
        "threads": arguments.threads,
        "first_call_s": round(watch.seconds["first_call"], 2),
        "machine": machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": package_versions(),
        "code": code_state(),
        "shapes": shapes,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for shape in shapes:
        size = f"H {shape['hidden_size']:3d}  S {shape['sequences']:2d}  T {shape['steps']}"
        for name in ("forward_backward", "inference"):
            if name in shape:
                r = shape[name]
                print(
                    f"{size}  {name:16s}  {r['ours_bars_per_s']:>10,} bars/s  library {r['library_bars_per_s']:>10,}"
                    f"  x{r['speedup']:.2f}  {r['ours_gflops']} of {r['sgemm_gflops']} GFLOP/s"
                )


if __name__ == "__main__":
    main()
