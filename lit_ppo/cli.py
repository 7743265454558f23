"""The command line: the one place that knows all three packages.

Light commands (`data`, `report`, `compare`, `cache`, `--version`) are dispatched before torch or Lightning is imported.
Exit codes: 0 done, 1 the run failed, 2 bad input or usage (a message, never a traceback), 3 done but an optimisation
failed and was left out, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_ppo.command_line_only import check_environment
from lit_ppo.commands.memory_errors import out_of_memory
from lit_ppo.version import __version__
from lit_ppo.words import did_you_mean

if TYPE_CHECKING:
    from lit_ppo.commands.lightning_cli import LitPPOCLI


class Command(NamedTuple):
    """One command of `lit-ppo`: what runs it, given what follows its name, and what it does, for the overview."""

    run: Callable[[list[str]], int]
    does: str


EXAMPLES = (
    "  lit-ppo walk-forward --config quickstart       # a market with a known optimum",
    "  lit-ppo walk-forward --config walk_forward --data.path bars.csv   # your bars",
    "  lit-ppo report results/42                      # the page of that run again",
)
VERSION_HINT = "lit-ppo COMMAND --help shows its flags, lit-ppo --version the version."


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: lit-ppo COMMAND [--help] ...", "", *EXAMPLES, "", *lines, "", VERSION_HINT])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        print(f"lit-ppo {__version__}")
        return 0
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        print(f"lit-ppo: there is no command {command!r}; {did_you_mean(command, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        check_environment()
        return COMMANDS[command].run(rest)
    except KeyboardInterrupt:
        return 130
    except SystemExit as leave:  # argparse and jsonargparse: --help is 0, a usage error 2
        return leave.code if isinstance(leave.code, int) else 2
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        return _failed(command, error, 2)
    except OSError as error:
        return _failed(command, error, 1)


REMEDIES = {
    PermissionError: ". Give this user the right to read and write there, or name another place",
    FileNotFoundError: ". Restore it, or name another one",
    IsADirectoryError: ". A file is wanted there: move the folder away",
}


def _failed(command: str, error: Exception, code: int) -> int:
    if os.environ.get("LIT_PPO_TRACEBACK"):
        raise error
    # A file's name may hold escape sequences: what a terminal would obey is shown instead.
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in out_of_memory(error) or str(error))
    if isinstance(error, OSError) and error.filename is not None:  # the system's words; ours say what to do
        text += next((remedy for kind, remedy in REMEDIES.items() if isinstance(error, kind)), "")
    print(f"lit-ppo {command}: {text}", file=sys.stderr)
    return code


def _train(command: str, rest: list[str]) -> int:
    """`walk-forward`, and Lightning's own commands on one fold."""
    import lightning.pytorch as pl
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from datamodules.gymnasium_data import GymnasiumDataModule
    from datamodules.prior_data import PriorDataModule
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo import interrupts
    from lit_ppo.commands import rerun
    from lit_ppo.commands.data_choice import asks_for_environment
    from lit_ppo.commands.lightning_cli import LitPPOCLI, run_on_one_fold
    from lit_ppo.store.run_lock import RunLockedError

    original = None
    if command == "walk-forward":
        rest, original = rerun.take_original(rest)
    data: type[pl.LightningDataModule] = WalkForwardDataModule
    if command == "pretrain":
        data = PriorDataModule
    elif asks_for_environment(rest):
        if command in ("walk-forward", "audit", "power", "search"):
            raise ValueError(f"{command} goes through bars, but data.env_id names an environment: use lit-ppo fit")
        data = GymnasiumDataModule
    if command == "power":
        from lit_ppo.commands.power import of_a_run

        with of_a_run(rest) as recipe:
            cli = LitPPOCLI(command, recipe, data)
    else:
        cli = LitPPOCLI(command, rest, data)
    interrupts.install(interrupts.WAYS_ON.get(command, interrupts.NOTHING_KEPT))
    try:
        if command == "walk-forward":
            from lit_ppo.commands.walk_forward import walk_forward

            if cli.datamodule.several:
                return _instruments(cli, rest, original is not None)
            if cli.config["seeds"] != 1:
                return _seeds(cli, rest, original is not None)
            if original is not None and (cli.config["json"] or cli.config["quiet"]):
                raise ValueError("--from says on the terminal what differs: leave --json and --quiet out")
            if original is not None:
                rerun.say_differences(original, cli.datamodule, cli.config_text())
            code = walk_forward(cli, ["walk-forward", *rest])
            if original is not None and not cli.dev_run:
                rerun.say_outcome(original, Path(cli.config["results"]) / str(cli.config["seed_everything"]))
            return code
        if command == "audit":
            from lit_ppo.commands.audit import audit

            return audit(cli)
        if command == "search":
            from lit_ppo.commands.search import search

            return search(cli, rest)
        if command == "power":
            from datamodules.planted import KINDS
            from datamodules.planted_data import plant_in, planted_data
            from lit_ppo.commands.power import EdgeMaker, power

            return power(cli, EdgeMaker(KINDS, plant_in, planted_data))
        run_on_one_fold(cli)
    except interrupts.Interrupted as stopped:
        print(f"lit-ppo {command}: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except MisconfigurationException as error:  # trainer.* asks for what Lightning cannot do here
        return _failed(command, error, 2)
    except (RuntimeError, ArithmeticError, MemoryError) as error:  # the run failed; its messages say what to do
        return _failed(command, error, 2 if isinstance(error, RunLockedError) else 1)
    return 0


def _predict(rest: list[str]) -> int:
    """`lit-ppo predict --ckpt RUN --data FILE`; without `--ckpt`, Lightning's own on one fold."""
    from lit_ppo.commands.signals import is_signals, predict

    if not is_signals(rest):
        return _train("predict", rest)
    from datamodules.features.feed import Feed
    from lit_ppo.store.checkpoints import CheckpointError

    try:
        return predict(rest, Feed.of)
    except CheckpointError as error:
        return _failed("predict", error, 2)


def _export(rest: list[str]) -> int:
    """`lit-ppo export --ckpt RUN --output DIR`."""
    from datamodules.features.feed import Feed
    from lit_ppo.signals.export import MissingPackageError, export
    from lit_ppo.store.checkpoints import CheckpointError

    try:
        return export(rest, Feed.of)
    except CheckpointError as error:
        return _failed("export", error, 2)
    except MissingPackageError as error:
        return _failed("export", error, 1)


def _seeds(cli: LitPPOCLI, rest: list[str], repeats: bool) -> int:
    """`lit-ppo walk-forward --seeds N`: each seed with a command line, data and model of its own."""
    from lit_ppo.commands.lightning_cli import LitPPOCLI
    from lit_ppo.commands.seeds import run_seeds
    from lit_ppo.commands.walk_forward import engine_of, walk_forward

    config = cli.config
    first, count = config["seed_everything"], config["seeds"]
    if count < 1 or repeats or cli.dev_run:
        why = "--from repeats one run" if repeats else "a number of runs >= 1 is needed"
        why = "trainer.fast_dev_run keeps no run to pool" if cli.dev_run else why
        raise ValueError(f"--seeds {count}: {why}; leave --seeds out for one run")
    if config["json"] or config["quiet"]:
        raise ValueError(f"--seeds {count}: --json and --quiet are of one run. Run the seeds, then read pooled.json")
    seeds, engine = range(first, first + count), engine_of(cli)

    def run_one(seed: int) -> int:
        own = LitPPOCLI("walk-forward", [*rest, f"--seed={seed}", "--seeds=1"], type(cli.datamodule))
        return walk_forward(own, ["walk-forward", *rest], seeds, engine=engine)

    with engine.kept():
        return run_seeds(run_one, config["results"], seeds, resume=config["resume"], overwrite=config["overwrite"])


def _instruments(cli: LitPPOCLI, rest: list[str], repeats: bool) -> int:
    """`lit-ppo walk-forward` over several instruments: a run each, and their portfolio."""
    from lit_ppo.commands.instruments import run_instruments

    if repeats:
        raise ValueError("--from repeats one run, of one instrument: leave out what names several (data.path)")
    return run_instruments(cli, rest)


def _oracle(rest: list[str]) -> int:
    """`lit-ppo oracle`: what share of a known optimum is captured."""
    from jsonargparse import ArgumentError

    from datamodules.oracle_bars import fresh_bars, train_fold
    from datamodules.synthetic import SyntheticMarket
    from lit_ppo import interrupts
    from lit_ppo.commands.oracle import MarketMaker, oracle
    from lit_ppo.module import quiet_lightning

    quiet_lightning()
    interrupts.install(interrupts.NOTHING_KEPT)
    try:
        return oracle(rest, MarketMaker(SyntheticMarket, train_fold, fresh_bars))
    except interrupts.Interrupted as stopped:
        print(f"lit-ppo oracle: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except ArgumentError as error:
        return _failed("oracle", error, 2)
    except (RuntimeError, ArithmeticError) as error:
        return _failed("oracle", error, 1)


def _doctor(rest: list[str]) -> int:
    """`lit-ppo doctor`: does this installation work?"""
    from datamodules import cache
    from datamodules.oracle_bars import fresh_bars, train_fold
    from datamodules.synthetic import SyntheticMarket
    from lit_ppo.commands.doctor import doctor
    from lit_ppo.commands.oracle import MarketMaker
    from lit_ppo.module import quiet_lightning

    def cached() -> str:
        found = cache.info()
        return f"{found.directory}: {found.entries} entries, {found.bytes / 1e6:,.0f} MB"

    quiet_lightning()
    return doctor(rest, MarketMaker(SyntheticMarket, train_fold, fresh_bars), cached)


def _init(rest: list[str]) -> int:
    """`lit-ppo init [DIR]`: the shipped recipes, and the examples of the documentation, as files of one's own."""
    import argparse

    from lit_ppo.commands.data_choice import RECIPES
    from lit_ppo.store.atomic import atomic_write

    parser = argparse.ArgumentParser(
        prog="lit-ppo init",
        description="Write the shipped recipes into a folder, to edit, and the examples into DIRECTORY/examples.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", nargs="?", default="configs", help="made if absent; default: configs")
    target = Path(parser.parse_args(rest).directory)
    examples = sorted(path for path in RECIPES.glob("examples/*") if path.suffix in (".py", ".yaml"))
    recipes = sorted(path for path in RECIPES.rglob("*.yaml") if path not in examples)
    copies = {path: target / path.relative_to(RECIPES) for path in (*recipes, *examples)}
    if there := [copy for copy in copies.values() if copy.exists()]:
        raise FileExistsError(f"{there[0]} is there already, and init writes over nothing. Name another folder")
    for path, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(copy, path.read_bytes())
    print(f"{len(recipes)} recipes are in {target}, {len(examples)} examples in {target / 'examples'}:")
    print(f"lit-ppo walk-forward --config {target / 'walk_forward.yaml'} --data.path bars.csv")
    return 0


def _completion(rest: list[str]) -> int:
    """`lit-ppo completion bash | zsh`."""
    import contextlib
    import io

    from lit_ppo.commands.completion import completion

    def help_of(command: str) -> str:
        if command == "completion":
            return "--help"
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            main([command, "--help"])
        return text.getvalue()

    return completion(rest, {name: command.does for name, command in COMMANDS.items()}, help_of)


def _benchmark(rest: list[str]) -> int:
    """`lit-ppo benchmark`."""
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo import interrupts
    from lit_ppo.commands.benchmark import benchmark
    from lit_ppo.module import quiet_lightning

    quiet_lightning()
    interrupts.install()
    try:
        return benchmark(rest, WalkForwardDataModule)
    except interrupts.Interrupted as stopped:
        print("lit-ppo benchmark: stopped; its result holds the folds that were complete", file=sys.stderr)
        return stopped.exit_code
    except (RuntimeError, ArithmeticError) as error:
        return _failed("benchmark", error, 1)


def _run_script(rest: list[str]) -> int:
    """`lit-ppo run SCRIPT` is `fabric run SCRIPT`: the same options, the same environment for the script."""
    from lightning.fabric.cli import _main
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        _main.main(["run", *rest], prog_name="lit-ppo")
    except ChildFailedError as error:  # the process that failed has said why
        return error.get_first_failure()[1].exitcode
    return 0


def _data(rest: list[str]) -> int:
    """`lit-ppo data FILE | FOLDER`."""
    from datamodules.bars.read import read_bars
    from lit_ppo.commands.bar_files import data

    return data(rest, read_bars)


def _cache(rest: list[str]) -> int:
    """`lit-ppo cache info | clear | prune`."""
    import argparse

    from datamodules import cache

    parser = argparse.ArgumentParser(
        prog="lit-ppo cache", description="The disk cache of computed features.", allow_abbrev=False
    )
    parser.add_argument("action", choices=("info", "clear", "prune"))
    parser.add_argument("--cache_dir", help="default: the user's cache home")
    parser.add_argument(
        "--max_bytes", type=int, default=cache.DEFAULT_MAX_BYTES, help="prune: what may stay, least recently used goes"
    )
    options = parser.parse_args(rest)
    if options.action == "prune":
        left = cache.prune(cache.cache_directory(options.cache_dir), options.max_bytes)
    elif options.action == "clear":
        removed = cache.clear(options.cache_dir)
        print(f"removed {removed.entries} entries, {removed.bytes:,} bytes")
        left = cache.info(options.cache_dir)
    else:
        left = cache.info(options.cache_dir)
    print(f"{left.directory}: {left.entries} entries, {left.bytes:,} bytes")
    return 0


def _report(rest: list[str]) -> int:
    """`lit-ppo report DIR`."""
    import argparse

    from lit_ppo.report.build import write_report
    from lit_ppo.report.portfolio import FILE_NAME, rewrite_portfolio

    parser = argparse.ArgumentParser(
        prog="lit-ppo report", description="Write report.html into a run folder.", allow_abbrev=False
    )
    parser.add_argument("directory", help="results/<seed>; or results with the portfolio of several instruments")
    folder = Path(parser.parse_args(rest).directory)
    several = (folder / FILE_NAME).is_file() and not (folder / "run.json").is_file()
    print(rewrite_portfolio(folder) if several else write_report(folder))
    return 0


def _compare(rest: list[str]) -> int:
    """`lit-ppo compare DIR DIR ...` and `lit-ppo compare --all`."""
    import argparse

    from lit_ppo.report.compare import compare
    from lit_ppo.report.run_index import history

    parser = argparse.ArgumentParser(
        prog="lit-ppo compare", description="Compare runs with the first of them.", allow_abbrev=False
    )
    parser.add_argument("directories", nargs="*", help="results/<seed>, two or more")
    parser.add_argument("--all", action="store_true", help="the history of every run under RESULTS instead")
    parser.add_argument("--results", help="where --all looks; default: results")
    parser.add_argument("--html", help="also write a page here")
    options = parser.parse_args(rest)
    if options.all and options.directories:
        parser.error(f"--all takes every run under --results; leave {options.directories} out, or --all")
    if options.results and not options.all:
        parser.error("--results belongs to --all")
    found = (
        history(options.results or "results", options.html)
        if options.all
        else compare(options.directories, options.html)
    )
    print(found)
    return 0


COMMANDS = {
    "walk-forward": Command(partial(_train, "walk-forward"), "train, select and test every fold: results/<seed>/"),
    "fit": Command(partial(_train, "fit"), "train one fold (--data.fold k)"),
    "pretrain": Command(partial(_train, "pretrain"), "train the prior trader on synthetic markets without end"),
    "validate": Command(partial(_train, "validate"), "evaluate a checkpoint on a fold's validation bars"),
    "test": Command(partial(_train, "test"), "evaluate a checkpoint on a fold's test bars"),
    "predict": Command(_predict, "decide on new bars with a trained policy (--ckpt, --data)"),
    "export": Command(_export, "write a trained policy as ONNX (--ckpt RUN --output DIR)"),
    "oracle": Command(_oracle, "train on a market with a known optimum: share of it captured"),
    "benchmark": Command(_benchmark, "with and without the optimisations, on the same folds"),
    "audit": Command(partial(_train, "audit"), "look for look-ahead in data, features, model and training"),
    "power": Command(partial(_train, "power"), "plant known edges in your bars: would this recipe find them?"),
    "search": Command(partial(_train, "search"), "try settings on validation bars, test the best one once"),
    "report": Command(_report, "write the report of a run folder"),
    "compare": Command(_compare, "put run folders side by side (--all: every run under results/)"),
    "data": Command(_data, "check a bar file (its data card) or a folder of them (a table)"),
    "cache": Command(_cache, "info, clear or prune the disk cache"),
    "doctor": Command(_doctor, "check this installation, with a 10-second training"),
    "init": Command(_init, "write the shipped recipes into a folder, to edit"),
    "run": Command(_run_script, "run a Fabric script on several devices (= fabric run)"),
    "completion": Command(_completion, "print a script for bash or zsh that completes all of this"),
}
