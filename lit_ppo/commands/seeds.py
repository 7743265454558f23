"""`lit-ppo walk-forward --seeds N`: seed, seed + 1, ..., each its own run, then pooled; never the best of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lit_ppo.commands.memory_errors import out_of_memory
from lit_ppo.report.build import write_report
from lit_ppo.report.summary import console_of
from lit_ppo.scoring.pooling import FILE_NAME, POOLED, pool, pooled_text

RUN_FAILED = (RuntimeError, ArithmeticError, MemoryError, ValueError, OSError)
# Title of the table's column, key, digits; columns that no seed has are left out.
COLUMNS = (
    ("return %", "return_pct", 2),
    ("Sharpe", "sharpe_annual", 2),
    ("drawdown %", "max_drawdown_pct", 2),
    ("trades", "trades", 0),
    ("costs %", "cost_pct", 2),
    ("of optimum %", "of_optimum_pct", 1),
)


def run_seeds(
    run_one: Callable[[int], int], root: str | Path, seeds: Sequence[int], *, resume: bool, overwrite: bool
) -> int:
    """Run every seed, pool those that have a result, write their reports; returns the exit code.

    A seed that fails is said at once and does not stop the others; then the code is 1. A signal stops all
    (`interrupts.Interrupted` is none of RUN_FAILED).

    Args:
        run_one: the whole walk-forward of one seed; returns its exit code.
        root: the results directory.
        seeds: of the runs.
        resume, overwrite: as asked; without either no seed may have a run there.

    Raises:
        FileExistsError: a seed has a run already.
        ValueError, OSError: the first seed could not begin: the others would not either.
    """
    present = [seed for seed in seeds if (Path(root) / str(seed) / "run.json").exists()]
    if present and not (resume or overwrite):
        raise FileExistsError(
            f"{root} holds runs of the seeds {', '.join(map(str, present))} already. Continue with --resume, delete "
            "them with --overwrite, or choose another --seed or --results directory"
        )
    codes: list[int] = []
    failed: dict[int, str] = {}
    for number, seed in enumerate(seeds, start=1):
        print(f"seed {seed} ({number} of {len(seeds)})", flush=True)
        try:
            codes.append(run_one(seed))
        except RUN_FAILED as error:
            if number == 1 and isinstance(error, (ValueError, OSError)):
                raise
            failed[seed] = out_of_memory(error) or str(error)
            print(f"lit-ppo walk-forward: seed {seed} failed: {failed[seed]}", file=sys.stderr, flush=True)
    if codes:
        record = pool(root, seeds, failed)
        for seed in record["pooled"]:
            write_report(Path(root) / str(seed))
        print_pooled(record)
        print(f"pooled: {Path(root) / FILE_NAME}")
    return 1 if failed else max(codes)


def print_pooled(record: dict[str, Any]) -> None:
    """Print one line a seed, the interquartile means with their intervals, and what they say."""
    console = console_of(140)
    rows = record["by_seed"]
    columns = [column for column in COLUMNS if any(column[1] in row for row in rows)]
    table = Table(title="All test bars, stitched, by seed")
    for title in ("seed", *(title for title, _, _ in columns)):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(str(row["seed"]), *(_cell(row.get(key), digits) for _, key, digits in columns))
    console.print(table)
    means = Table(title=f"Interquartile mean over seeds and folds, {100 * record['confidence']:.0f} % interval")
    for title in ("figure", "mean", "from", "to"):
        means.add_column(title, justify="left" if title == "figure" else "right")
    for key, found in record["interquartile_mean"].items():
        label, digits = POOLED[key]
        means.add_row(label, *(_cell(found[name], digits) for name in ("estimate", "low", "high")))
    console.print(means)
    console.print(pooled_text(record), highlight=False)


def _cell(value: float | None, digits: int) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"
