"""`lit-ppo walk-forward` over several instruments: RESULTS/<name>/<seed>, a run each, and their portfolio."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_ppo.commands.lightning_cli import LitPPOCLI
from lit_ppo.commands.memory_errors import out_of_memory
from lit_ppo.commands.seeds import RUN_FAILED
from lit_ppo.commands.walk_forward import engine_of, walk_forward
from lit_ppo.folds.engine import Engine
from lit_ppo.report.portfolio import FILE_NAME, portfolio_text, write_portfolio
from lit_ppo.store.atomic import refuse_link


def run_instruments(cli: LitPPOCLI, arguments: Sequence[str]) -> int:
    """Run every instrument with a command line, data and model of its own, then put them together.

    An instrument that fails (too few bars, a damaged file) is said at once, left out and named on the page; it does
    not stop the others; then the code is 1. A signal stops all (`interrupts.Interrupted` is none of RUN_FAILED).

    Args:
        cli: with the configuration; its datamodule knows the instruments.
        arguments: what follows `walk-forward`.

    Returns:
        The exit code.

    Raises:
        FileExistsError: an instrument has a run already.
        ValueError, OSError: what is asked for cannot be done, an instrument's folder is a symbolic link, or no
            instrument could be run: the first one's error.
    """
    config = cli.config
    root, seed = Path(config["results"]), config["seed_everything"]
    if config["seeds"] != 1 or cli.dev_run:
        what = "trainer.fast_dev_run keeps no runs" if cli.dev_run else f"--seeds {config['seeds']} pools one market"
        raise ValueError(f"{what}, and several instruments are asked for: leave it out, or name one instrument")
    instruments = cli.datamodule.instruments()
    for one in instruments:
        refuse_link(root / one.name)
    present = [one.name for one in instruments if (root / one.name / str(seed) / "run.json").exists()]
    if present and not (config["resume"] or config["overwrite"]):
        raise FileExistsError(
            f"{root} holds runs of seed {seed} of {len(present)} of these instruments already ({present[0]}, ...). "
            "Continue with --resume, delete them with --overwrite, or choose another --seed or --results directory"
        )
    codes: list[int] = []
    failed: dict[str, str] = {}
    errors: list[Exception] = []
    engine = engine_of(cli)
    with engine.kept():
        for number, one in enumerate(instruments, start=1):
            print(f"{one.name} ({number} of {len(instruments)})", flush=True)
            try:
                codes.append(_run(cli, arguments, one, root, engine))
            except RUN_FAILED as error:
                errors.append(error)
                failed[one.name] = out_of_memory(error) or str(error)
                print(f"lit-ppo walk-forward: {one.name} failed: {failed[one.name]}", file=sys.stderr, flush=True)
    if not codes:
        raise errors[0]
    done = [one.name for one in instruments if one.name not in failed]
    record, page = write_portfolio(root, done, seed, failed)
    print(portfolio_text(record))
    print(f"portfolio: {root / FILE_NAME}, report: {page}")
    return 1 if failed else max(codes)


def _run(cli: LitPPOCLI, arguments: Sequence[str], instrument: Any, root: Path, engine: Engine) -> int:
    own = [*arguments, f"--data.path={instrument.path}", f"--results={root / instrument.name}"]
    if instrument.symbol is not None:
        own.append(f"--data.symbol={instrument.symbol}")
    made = LitPPOCLI("walk-forward", own, type(cli.datamodule))
    return walk_forward(made, ["walk-forward", *own], engine=engine)
