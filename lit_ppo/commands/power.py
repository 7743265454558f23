"""`lit-ppo power`: what would this recipe have found in these bars? Table, page and power.json."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from lit_ppo.commands.lightning_cli import LitPPOCLI, UsageError
from lit_ppo.commands.rerun import take_original
from lit_ppo.folds.candidates import overlays_of
from lit_ppo.folds.loop import WalkForward
from lit_ppo.lab.power import Battery, Planted, Silent, Subject, run_battery
from lit_ppo.report.power_page import cell, half_cell, null_text, power_page
from lit_ppo.report.summary import WIDTH, console_of
from lit_ppo.scoring.power import FILE_NAME, SCHEMA, curves, remedies, sentence, settings_of
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import json_bytes, make_writable, refuse_link, shown_path
from lit_ppo.store.provenance import code_state, machine, package_versions
from lit_ppo.store.results import RunFolder

PAGE = "power.html"
OF_A_RUN = ("model", "data", "trainer", "seed_everything", "threads", "parallel_candidates", "candidates")
QUICK = Battery(sharpes=(3.0, 10.0), seeds=(0, 1), folds=1)


@dataclass(frozen=True)
class EdgeMaker:
    """What the command line hands in, so that nothing here knows the datamodules.

    Attributes:
        kinds: that can be planted.
        plant, planted_data: see `lit_ppo.lab.power.Subject`.
    """

    kinds: Sequence[str]
    plant: Callable[..., Planted]
    planted_data: Callable[..., Any]


@contextmanager
def of_a_run(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Put the recipe of a run in the place of `--from RUN`; what is measured goes into that run's folder.

    Args:
        arguments: what follows `power`.

    Raises:
        ValueError, FileNotFoundError: as `rerun.take_original`.
    """
    rest, run = take_original(arguments)
    if run is None:
        yield rest
        return
    recipe = {key: value for key, value in yaml.safe_load(run.config).items() if key in OF_A_RUN}
    given = rest[rest.index("--results") + 2 :]  # what stood beside --from
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        atomic_write(path, yaml.safe_dump(recipe, sort_keys=False))
        yield ["--config", str(path), "--results", str(run.path), *given]


def power(cli: LitPPOCLI, make: EdgeMaker) -> int:
    """Run the battery, print the table, write RESULTS/power.json and power.html; returns 0.

    Raises:
        ValueError, FileExistsError: the configuration does not fit the data or what is there.
        Interrupted: a signal came; nothing is written.
    """
    battery = battery_of(cli.config, make.kinds)
    folder = Path(cli.config["results"])
    path = refuse_link(folder / FILE_NAME)
    if path.exists() and not cli.config["overwrite"]:
        raise FileExistsError(f"{path} is there already. Replace it with --overwrite, or choose another --results")
    subject = subject_of(cli, make)
    make_writable(folder, "battery", "--results")
    console = console_of(WIDTH)
    started = time.perf_counter()
    console.print(
        f"{subject.data.source}: {len(battery.edges)} edges, each {len(battery.seeds)} seeds of {battery.folds} of "
        f"{len(subject.data.folds)} folds, spread over the file",
        highlight=False,
        markup=False,  # a file's name is no markup
    )
    found = run_battery(subject, battery, lambda row: console.print(row_line(row), highlight=False))
    record = power_record(cli, battery, found) | {"seconds": round(time.perf_counter() - started, 1)}
    atomic_write(path, json_bytes(record))
    page = refuse_link(folder / PAGE)
    atomic_write(page, power_page(record))
    console.print(_table(record, battery))
    for text in (null_text(record), record["sentence"], record["remedies"]):
        console.print(text, highlight=False)
    if (folder / "run.json").is_file():
        console.print(f"lit-ppo report {folder} puts it on the page of that run", highlight=False)
    console.print(f"{record['seconds']:.0f} s; page: {page}", highlight=False)
    return 0


def battery_of(config: Mapping[str, Any], kinds: Sequence[str]) -> Battery:
    """The battery that the flags ask for.

    Raises:
        UsageError: a number or a name that cannot be meant.
    """
    base = QUICK if config["quick"] else Battery()
    unknown = [kind for kind in config["kinds"] or () if kind not in kinds or kind == "null"]
    if unknown or config["kinds"] == []:
        edges = ", ".join(kind for kind in kinds if kind != "null")
        raise UsageError(f"--kinds are some of {edges} (the null is always measured), got {config['kinds']}")
    sharpes = base.sharpes if config["sharpes"] is None else tuple(dict.fromkeys(config["sharpes"]))
    if not sharpes or not all(0 < sharpe < float("inf") for sharpe in sharpes):
        raise UsageError(f"--sharpes are annual Sharpe ratios above 0, got {config['sharpes']}")
    count, folds = config["seeds"] or len(base.seeds), config["folds"] or base.folds
    for name in ("seeds", "folds"):
        if config[name] is not None and config[name] < 1:
            raise UsageError(f"--{name} must be >= 1, got {config[name]}")
    first = config["seed_everything"]
    chosen = base.kinds if config["kinds"] is None else tuple(dict.fromkeys(config["kinds"]))
    return Battery(chosen, sharpes, tuple(range(first, first + count)), folds)


def subject_of(cli: LitPPOCLI, make: EdgeMaker) -> Subject:
    """The recipe and the bars of a configuration, ready to be measured.

    Raises:
        ValueError: the configuration does not fit the data.
    """
    config, data = cli.config, cli.datamodule
    cli.set_threads()
    data.setup("fit")
    cli.make_module().build(data.fold_data(0).train)  # what cannot be built is refused before any work

    def loop(planted: Any, folder: RunFolder, seed: int) -> WalkForward:
        return WalkForward(
            datamodule=planted,
            make_module=cli.make_module,
            make_trainer=cli.make_trainer,
            folder=folder,
            seed=seed,
            monitor=Silent(),  # type: ignore[arg-type]
            overlays=overlays_of(config["parallel_candidates"], config["candidates"]),
        )

    return Subject(data, make.plant, make.planted_data, loop)


def power_record(cli: LitPPOCLI, battery: Battery, found: Mapping[str, Any]) -> dict[str, Any]:
    """What power.json holds."""
    data = cli.datamodule
    settings = settings_of(yaml.safe_load(cli.config_text()))
    record: dict[str, Any] = {
        "what": "lit-ppo power",
        "schema": SCHEMA,
        "data": {"path": data.path and shown_path(data.path), **data.fingerprint()},
        "settings": settings,
        "seeds": list(battery.seeds),
        "folds": min(battery.folds, len(data.folds)),
        "folds_there": len(data.folds),
        **found,
        "machine": machine(),
        "versions": package_versions(),
        "code": code_state(),
    }
    split = record["data"]["split"]
    return record | {"sentence": sentence(record), "remedies": remedies(settings["model"], split)}


def row_line(row: Mapping[str, Any]) -> str:
    """One edge on one line, when it is measured."""
    name = row["kind"] if row["kind"] == "null" else f"{row['kind']} {row['sharpe']:g}"
    if row["m"] is None:
        return f"{name:14s} cannot be planted: {row['why']}"
    trained = f"{row['trained']} of {row['trainings']} trained, {row['traded']} traded"
    found = "" if row["kind"] == "null" else f"m {row['m']:.3f}  found {cell(row):>20s}  "
    return f"{name:14s} {found}{trained}, {row['seconds']:.0f} s"


def _table(record: Mapping[str, Any], battery: Battery) -> Table:
    table = Table(title="Share found of an edge, by its informed annual Sharpe ratio (95 % interval)")
    table.add_column("edge")
    for sharpe in sorted(battery.sharpes):
        table.add_column(f"{sharpe:g}", justify="right")
    table.add_column("half at", justify="right")
    found = curves(record)
    for kind in battery.kinds:
        cells = [cell(row) for row in record["rows"] if row["kind"] == kind]
        table.add_row(kind, *cells, half_cell(found.get(kind)))
    return table
