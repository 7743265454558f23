"""`lit-ppo walk-forward`: from the configuration to a run folder, its table and its report."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
import yaml

from lit_ppo.commands.lightning_cli import LitPPOCLI, UsageError
from lit_ppo.commands.rerun import PER_CALL
from lit_ppo.folds.autotune import Choice, autotune, overrides, stored_choice
from lit_ppo.folds.candidates import overfitting_probability, overlays_of
from lit_ppo.folds.engine import Engine, InProcess, RayWorkers
from lit_ppo.folds.loop import WalkForward
from lit_ppo.folds.monitor import Monitor, read_baseline
from lit_ppo.folds.optimisation_summary import exit_code, summarise, summary_lines, write_summary
from lit_ppo.lab.audit import refuse_lookahead
from lit_ppo.oracles.optima import solve
from lit_ppo.report.analysis import Analysis, analyse
from lit_ppo.report.build import write_report
from lit_ppo.report.summary import outcome, print_summary
from lit_ppo.scoring.money import MoneyBook, money_line
from lit_ppo.store.files import json_bytes
from lit_ppo.store.looks import note_look
from lit_ppo.store.prior_weights import start_record
from lit_ppo.store.provenance import source_sha256
from lit_ppo.store.results import RunFolder, load_run, run_record
from lit_ppo.store.resume_check import changes
from lit_ppo.store.run_lock import RunLock
from lit_ppo.tensorboard import write_test

Loop = TypeVar("Loop", bound=WalkForward)


def walk_forward(
    cli: LitPPOCLI,
    command: Sequence[str],
    seeds: Sequence[int] = (),
    search: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
) -> int:
    """Run every fold, print the table, write the report; returns the exit code.

    Args:
        cli: with the configuration.
        command: what was asked for, for the record.
        seeds: of all runs that are pooled with this one: each counts as a trial.
        search: that has chosen the configuration, for the record: see `schema.SearchRecord`.
        engine: who trains, of `engine_of`; None: one of this run's own.

    Raises:
        ValueError, FileExistsError: the configuration does not fit the data or the run that is there.
        Interrupted: a signal came; `--resume` goes on.
    """
    with _voice(cli.config) as out, cli.place(Path(cli.config["results"])) as results:
        return _run(cli, command, seeds, search, engine, results, out)


@contextmanager
def _voice(config: Mapping[str, Any]) -> Iterator[TextIO]:
    """Standard output for what `--json` and `--quiet` leave; everything else that is printed goes elsewhere."""
    out = sys.stdout
    if not (config["json"] or config["quiet"]):
        yield out
        return
    with ExitStack() as stack:
        elsewhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if config["quiet"] else sys.stderr
        stack.enter_context(redirect_stdout(elsewhere))
        yield out


def _tell(cli: LitPPOCLI, analysis: Analysis, report: Path | None, out: TextIO) -> None:
    """What `--json` or `--quiet` says at the end."""
    if cli.config["json"]:
        out.write(json_bytes(outcome(analysis, report)).decode())
    elif cli.config["quiet"]:
        where = [] if report is None else [f"report: {_for_the_terminal(report)}"]
        print(analysis.verdict.text, *where, sep="\n", file=out)


def _run(
    cli: LitPPOCLI,
    command: Sequence[str],
    seeds: Sequence[int],
    search: Mapping[str, Any] | None,
    engine: Engine | None,
    results: Path,
    out: TextIO,
) -> int:
    config = cli.config
    data = cli.datamodule
    read_baseline(config["baseline"])
    refuse_many_devices(config["trainer"])
    own = engine_of(cli)  # sets torch's threads
    overlays = overlays_of(config["parallel_candidates"], config["candidates"])
    data.setup("fit")
    refuse_lookahead(data)
    train = data.fold_data(0).train
    cli.make_module().build(train)  # what cannot be built is refused before anything is written
    _check_candidates(cli, overlays, train)
    cli.make_trainer(results)
    folder = RunFolder(results, config["seed_everything"])
    with RunLock(folder.path):
        tuned = _tune(cli, folder)
        text = _stored(cli.config_text())
        resumed = folder.begin(resume=config["resume"], overwrite=config["overwrite"])
        if resumed:
            if _go_on(cli, folder, text, command):
                if cli.config["json"] or cli.config["quiet"]:
                    _tell(cli, analyse(folder.path), folder.path / "report.html", out)
                return exit_code(summarise(folder.folds(), len(data.folds), {}))
        else:
            folder.write_config(text)
            folder.write_run(_record(cli, command, seeds) | ({} if search is None else {"search": dict(search)}))
            if tuned is not None:
                tuned.write(folder.path)
        loop = make_loop(cli, folder, WalkForward)
        loop.engine = engine or own
        try:
            with _monitor(cli, loop):
                loop.run()
        except BaseException as error:
            if not resumed and isinstance(error, ValueError) and not any(folder.path.glob("fold_*/*.ckpt")):
                folder.remove()  # settings that only the training could refuse: the corrected command starts anew
                raise
            folder.update_run(status="stopped" if isinstance(error, KeyboardInterrupt) else "interrupted")
            _note_look(folder)
            raise
        folder.update_run(status="done", cache=data.get_optimization_info())
        _note_look(folder)
        summary = write_summary(folder, len(data.folds), data.get_optimization_info())
        lines = _overfitting(folder, len(loop.overlays)) if len(loop.overlays) > 1 else []
        analysis = analyse(folder.path)  # once, for table and page
        print_summary(analysis)
        if money := [record.details["money"] for record in folder.folds() if "money" in record.details]:
            lines.append(money_line(money))
        for line in [*lines, *summary_lines(summary)]:
            print(line)
        report = write_report(analysis)
        if not cli.dev_run:
            print(f"report: {_for_the_terminal(report)}")
        _tell(cli, analysis, None if cli.dev_run else report, out)
        return exit_code(summary)


def _check_candidates(cli: LitPPOCLI, overlays: Sequence[Mapping[str, Any]], train: Any) -> None:
    """Build what each candidate changes, before any of them is trained."""
    for number, overlay in enumerate(overlays):
        if overlay:
            try:
                cli.make_module(overlay=overlay).build(train)
            except ValueError as error:
                raise UsageError(f"candidates[{number}]: {error}") from error


def _for_the_terminal(path: Path) -> Path:
    """The path from here, or in full: a terminal, unlike a record, does not travel."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _overfitting(folder: RunFolder, candidates: int) -> list[str]:
    """Keep what choosing the best candidate by validation is worth, for the page; returns it in a line."""
    probability, why = overfitting_probability(folder.path)
    found = {"number": candidates, "backtest_overfitting_probability": probability, "why_none": why}
    folder.update_run(candidates=found)
    told = why if probability is None else f"{probability:.2f}"
    return [f"{candidates} candidates a fold, chosen by validation; probability of backtest overfitting: {told}"]


def _tune(cli: LitPPOCLI, folder: RunFolder) -> Choice | None:
    """Put what suits this machine into the configuration, where that was asked for; says what it changes."""
    config, choice = cli.config, None
    found = stored_choice(folder.path) if config["resume"] else None
    if found is not None:
        print(f"autotune: as when the run began, {', '.join(f'{name} {value}' for name, value in found.items())}")
    elif config["autotune"]:
        recipe, train = cli.make_module().recipe, cli.datamodule.fold_data(0).train
        choice = autotune(recipe, train, torch.get_num_threads())
        print("\n".join(choice.lines()), flush=True)
        found = asdict(choice.chosen)
    if found is not None:
        for key, value in overrides(found):
            config[key] = value
        config["autotune"] = False  # config.yaml holds the choice: a rerun from it is the same run
        torch.set_num_threads(config["threads"])
    return choice


def make_loop(cli: LitPPOCLI, folder: RunFolder, kind: type[Loop]) -> Loop:
    """Return the loop of this kind that a configuration describes; its datamodule is `cli.datamodule`."""
    config, shell = cli.config, cli.shell
    callbacks = shell.trainer["callbacks"] or []
    return kind(
        datamodule=cli.datamodule,
        make_module=shell.make_module,
        make_trainer=shell.make_trainer,
        folder=folder,
        seed=config["seed_everything"],
        money=None if config.get("money") is None else MoneyBook(folder, cli.config_init["money"]),
        overlays=overlays_of(config["parallel_candidates"], config["candidates"]),
        show_test=None if config["trainer"]["logger"] is False else write_test,
        chained=any(
            getattr(callback, "reads_earlier_folds", False)
            for callback in (callbacks if isinstance(callbacks, list) else [callbacks])
        ),
    )


@contextmanager
def _monitor(cli: LitPPOCLI, loop: WalkForward) -> Iterator[None]:
    events = None if cli.config["trainer"]["logger"] is False else loop.folder.file("monitor")
    with Monitor(len(cli.datamodule.folds), read_baseline(cli.config["baseline"]), events) as loop.monitor:
        yield


def engine_of(cli: LitPPOCLI) -> Engine:
    """Who trains the folds of a configuration, with torch's threads set as suits it.

    Raises:
        UsageError, RuntimeError: as `set_threads` and `ray_workers`.
    """
    config = cli.config
    cli.set_threads()
    side_by_side = config["workers"] or config["cluster"]
    candidates = len(overlays_of(config["parallel_candidates"], config["candidates"]))
    if config["threads"] is None and (candidates > 1 or side_by_side):
        torch.set_num_threads(1)  # their number may change the last bit of a sum
    return ray_workers(config) if side_by_side else InProcess()


def ray_workers(config: Any) -> RayWorkers:
    """The workers that were asked for; refused before anything is read or written.

    Raises:
        UsageError: not a number of workers, or they would train on a GPU.
        RuntimeError: Ray is not installed.
    """
    accelerator = config["trainer"]["accelerator"]
    if accelerator != "cpu" and not (accelerator == "auto" and not torch.cuda.is_available()):
        raise UsageError(
            f"--workers and --cluster train on the CPU, and trainer.accelerator is {accelerator!r}: add "
            "--trainer.accelerator cpu, or leave them out"
        )
    return RayWorkers(config["workers"], config["cluster"], torch.get_num_threads())


def refuse_many_devices(trainer: Mapping[str, Any]) -> None:
    if trainer["devices"] not in (1, "1", "auto") or trainer["num_nodes"] != 1:
        raise UsageError(
            f"walk-forward trains its folds on one device, got trainer.devices {trainer['devices']} and num_nodes "
            f"{trainer['num_nodes']}; `lit-ppo fit` and lit_ppo/fabric_trainer.py train one fold on several"
        )


def _record(cli: LitPPOCLI, command: Sequence[str], seeds: Sequence[int] = ()) -> dict[str, Any]:
    data = cli.datamodule
    card = {"path": data.path, "sha256": data.bars.sha256, "bars_per_year": data.bars.bars_per_year}
    more: dict[str, Any] = {"source_sha256": source_sha256()}
    more |= {"device": cli.config["trainer"]["accelerator"], "threads": torch.get_num_threads()}
    if data.synthetic is not None:
        more["oracle"] = oracle_record(data.synthetic)
    if (start := cli.config["model"]["start"]) != "scratch":
        more["start"] = start_record(start)
    if cli.config["money"] is not None:
        more["money"] = asdict(cli.config_init["money"])
    return run_record(
        seed=cli.config["seed_everything"],
        seeds=seeds,
        data={**card, **data.fingerprint()},
        command=["lit-ppo", *command],
        **more,
    )


def _note_look(folder: RunFolder) -> None:
    """Into the ledger of looks: what was seen counts against later runs, even once this folder is gone."""
    config = (folder.path / "config.yaml").read_text(encoding="utf-8")
    note_look(folder.path.parent, folder.path.name, config, folder.read_run(), folder.folds())


def oracle_record(market: Any) -> dict[str, Any]:
    """What is known about a synthetic market: its kind, parameters, and the best mean reward per bar."""
    optimum = solve(market.kind, **market.parameters)
    return {
        "kind": market.kind,
        "parameters": market.parameters,
        "optimum_per_bar": optimum.value,
        "unit": "standard deviations of the market's noise",
        "scale": market.scale,
    }


def _stored(text: str) -> str:
    """The configuration without what belongs to one call only: a rerun from config.yaml must not overwrite."""
    config = yaml.safe_load(text)
    for key in PER_CALL:
        config.pop(key, None)
    return yaml.safe_dump(config, sort_keys=False)


def _go_on(cli: LitPPOCLI, folder: RunFolder, text: str, command: Sequence[str]) -> bool:
    """Check that a resume is of the same run, and note in run.json what is not quite the same.

    Returns whether the run is finished: then there is nothing to do, and nothing is written.

    Raises:
        UsageError: settings, data or code differ, and `--allow-mismatch` was not given.
        ValueError: a file of the run is damaged.
    """
    before = load_run(folder.path).record  # whole, before anything is added to it
    then, now = folder.read_config(), yaml.safe_load(text)
    found = changes(then, now, before, _record(cli, command))
    if found.refused and not cli.config["allow_mismatch"]:
        raise UsageError(
            f"--resume: {folder.path} was made with other settings: {'; '.join(found.refused)}. Restore them, start a "
            "new run with --overwrite or another --results directory, or mix the two on purpose with --allow-mismatch"
        )
    report = folder.path / "report.html"
    if (
        before.get("status") == "done"
        and report.is_file()
        and all(folder.is_done(f.index) for f in cli.datamodule.folds)
    ):
        print(f"{_for_the_terminal(folder.path)} is finished, nothing was changed; report: {_for_the_terminal(report)}")
        return True
    for label, entries in (("mixes two runs", found.refused), ("is not bit-identical", found.inexact)):
        if entries:
            warnings.warn(f"The resumed run {label} ({'; '.join(entries)}); run.json says so", stacklevel=2)
    notes = {}
    if found.refused or found.inexact:
        note = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(found)}
        notes = {"changed_at_resume": [*before.get("changed_at_resume", []), note]}
    if not found.refused:
        folder.write_config(text)  # what may change (more folds, say) is what a rerun repeats
    folder.update_run(status="running", **notes)
    return False
