"""How much faster are N workers than this process, on the same folds with the same bytes?

    python -m benchmarks.workers --config quickstart                     # writes benchmarks/results/workers.json
    python -m benchmarks.workers --config walk_forward --data.path bars.csv --workers 2 --repeats 3

Runs in this process and with workers take turns, each a `lit-ppo walk-forward` of its own, start of Python and of Ray
included (`workers_ready_s` is the latter). A ratio counts only if out_of_sample.csv is the same in all runs, and if the
machine did nothing else: `busy_machine` says whether it did.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, provenance, spread, write

READY = re.compile(r"Ray: workers ready after ([\d.]+) s")


def run(workers: int, arguments: list[str], results: Path) -> dict[str, Any]:
    """One walk-forward: wall seconds, seconds until the workers were ready, its test decisions."""
    command = [sys.executable, "-m", "lit_ppo", "walk-forward", *arguments, "--results", str(results)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--workers", str(workers), "--overwrite"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    (rows,) = results.glob("*/out_of_sample.csv")
    ready = READY.search(done.stdout)
    return {
        "workers": workers,
        "seconds": round(seconds, 2),
        "workers_ready_s": float(ready[1]) if ready else None,
        "load_average": round(os.getloadavg()[0], 2),
        "decisions": rows.read_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    parser.add_argument("--output", type=Path, default=RESULTS / "workers.json")
    options, arguments = parser.parse_known_args()
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        for repeat in range(options.repeats):
            for workers in (0, options.workers):
                runs.append(run(workers, arguments, Path(directory) / f"{workers}"))
                print(f"repeat {repeat}: {workers} workers, {runs[-1]['seconds']:.1f} s", flush=True)
    same = len({one.pop("decisions") for one in runs}) == 1
    seconds = {
        kind: spread([one["seconds"] for one in runs if one["workers"] == kind]) for kind in (0, options.workers)
    }
    ratio = seconds[0]["median"] / seconds[options.workers]["median"]
    busy = max(one["load_average"] for one in runs) > (os.cpu_count() or 1) + 1
    record = {"arguments": arguments, "same_bytes": same, "speed_ratio": round(ratio, 3), "busy_machine": busy}
    write(options.output, {**record, "seconds": seconds, "runs": runs, **provenance()})
    print(f"{options.workers} workers: {ratio:.2f} times as fast, same bytes: {same}, busy machine: {busy}")


if __name__ == "__main__":
    main()
