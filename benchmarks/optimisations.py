"""What the optimisations save and what they cost: on a market with a known optimum, and on a bar file.

    python -m benchmarks.optimisations                  # O3 main (hidden regime), a quarter of an hour
    python -m benchmarks.optimisations --fast_base --ablation  # its results, one optimisation at a time, much sooner
    python -m benchmarks.optimisations --data bars.csv  # the same on a file, one optimisation at a time

Writes benchmarks/results/optimisations_regime.json or optimisations_file.json; everything is measured by
`lit-ppo benchmark`, whose flags may follow.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from lit_ppo.cli import main

# The window of a real walk-forward, and long test segments, because 500 bars are mostly noise.
REGIME = """
data:
  synthetic: {kind: regime, num_bars: 36500, seed: 1}
  train_size: 2000
  validation_size: 500
  test_size: 4000
  step_size: 4000
  fold_limit: 6
"""


def arguments(given: Sequence[str], work: str) -> list[str]:
    """Return the arguments of `lit-ppo benchmark`; run folders go to `work`."""
    own = ["--config", "configs/scratch.yaml", "--results", work]
    if given[:1] == ["--data"]:
        own += ["--data.path", given[1], "--data.fold_limit", "6", "--name", "optimisations_file", "--ablation"]
        return [*own, "--seeds", "1", *given[2:]]
    name = "optimisations_regime_results" if "--fast_base" in given else "optimisations_regime"
    return [*own, "--config", REGIME, "--name", name, "--seeds", "2", *given]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        sys.exit(main(["benchmark", *arguments(sys.argv[1:], work)]))
