"""`lit-ppo walk-forward`: from the configuration to a run folder, its table and its report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from lit_ppo.files import shown_path
from lit_ppo.lightning_cli import LitPPOCLI, UsageError
from lit_ppo.oracles import solve
from lit_ppo.report import write_report
from lit_ppo.results import RunFolder, load_run, run_record
from lit_ppo.run_lock import RunLock
from lit_ppo.summary import print_summary
from lit_ppo.walk_forward import WalkForward

# What may differ between a run and its resume: where it is shown and stored, and how far it goes.
FREE_KEYS: tuple[str, ...] = ("results", "data.fold", "data.fold_limit", "data.cache", "data.cache_dir")
FREE_KEYS += ("data.cache_max_bytes", "trainer.logger", "trainer.default_root_dir")


def walk_forward(cli: LitPPOCLI, command: Sequence[str]) -> None:
    """Run every fold, print the table, write the report.

    Raises:
        ValueError, FileExistsError: the configuration does not fit the data or the run that is there.
        Interrupted: a signal came; `--resume` goes on.
    """
    config = cli.config
    data = cli.datamodule
    _refuse_many_devices(config["trainer"])
    data.setup("fit")
    cli.make_module().build(data.fold_data(0).train)  # what cannot be built is refused before anything is written
    folder = RunFolder(config["results"], config["seed_everything"])
    with RunLock(folder.path):
        text = _stored(cli.config_text())
        if folder.begin(resume=config["resume"], overwrite=config["overwrite"]):
            _refuse_changes(folder, text, data.fingerprint())
            folder.update_run(status="running")
        else:
            folder.write_config(text)
            folder.write_run(_record(cli, command))
        loop = WalkForward(
            datamodule=data,
            make_module=cli.make_module,
            make_trainer=cli.make_trainer,
            folder=folder,
            seed=config["seed_everything"],
            warm_start=config["warm_start"],
        )
        try:
            loop.run()
        except BaseException as error:
            folder.update_run(status="stopped" if isinstance(error, KeyboardInterrupt) else "interrupted")
            raise
        folder.update_run(status="done", cache=data.get_optimization_info())
        print_summary(load_run(folder.path))
        print(f"report: {shown_path(write_report(folder.path))}")


def _refuse_many_devices(trainer: Mapping[str, Any]) -> None:
    if trainer["devices"] not in (1, "1", "auto") or trainer["num_nodes"] != 1:
        raise UsageError(
            f"walk-forward trains its folds on one device, got trainer.devices {trainer['devices']} and num_nodes "
            f"{trainer['num_nodes']}; `lit-ppo fit` and lit_ppo/fabric_trainer.py train one fold on several"
        )


def _record(cli: LitPPOCLI, command: Sequence[str]) -> dict[str, Any]:
    data = cli.datamodule
    card = {"path": data.path, "sha256": data.bars.sha256, "bars_per_year": data.bars.bars_per_year}
    more: dict[str, Any] = {"device": cli.config["trainer"]["accelerator"], "threads": torch.get_num_threads()}
    if data.synthetic is not None:
        more["oracle"] = oracle_record(data.synthetic)
    return run_record(
        seed=cli.config["seed_everything"], data={**card, **data.fingerprint()}, command=["lit-ppo", *command], **more
    )


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
    for key in ("resume", "overwrite"):
        config.pop(key, None)
    return yaml.safe_dump(config, sort_keys=False)


def _refuse_changes(folder: RunFolder, text: str, fingerprint: Mapping[str, Any]) -> None:
    """A resume with other settings or data would be neither the old run nor a new one."""
    then, now = (_flat(yaml.safe_load(part) or {}) for part in ((folder.path / "config.yaml").read_text(), text))
    before = folder.read_run()
    then |= _flat({"data bars": {name: before["data"].get(name) for name in fingerprint}})
    now |= _flat({"data bars": dict(fingerprint)})
    changed = [
        f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in FREE_KEYS
    ]
    if changed:
        raise UsageError(
            f"--resume: {folder.path} was made with other settings: {'; '.join(changed)}. Restore them, or start a new "
            "run with --overwrite or another --results directory"
        )
    commit = run_record(seed=0, data={}, command=[])["commit"]
    if before.get("commit") != commit:
        warnings.warn(
            f"{folder.path} was begun at commit {before.get('commit')}, this is {commit}: its folds are not all made "
            "by the same code",
            stacklevel=2,
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
