"""`lit-ppo audit`: the look-ahead audit of a configuration's own data, features and model, as a table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lit_ppo.commands.lightning_cli import LitPPOCLI, UsageError
from lit_ppo.lab.audit import (
    Finding,
    lively,
    memory_finding,
    noise_after,
    prefix_findings,
    row_findings,
    row_table,
    selection_finding,
    warmup_findings,
)
from lit_ppo.lab.null_controls import NULLS, NullResult, edge_p_value, null_frame
from lit_ppo.market.costs import fill_delay
from lit_ppo.module import LitPPO
from lit_ppo.report.summary import console_of
from lit_ppo.seeding import derive_seed, make_generator

MOST_FOLDS = 3


def audit(cli: LitPPOCLI, console: Console | None = None) -> int:
    """Run every check and print the table; returns 0, or 1 where something looks ahead."""
    config, data = cli.config, cli.datamodule
    for name, least in (("points", 1), ("null_seeds", 0), ("timesteps", 1)):
        if config[name] < least:
            raise UsageError(f"--{name} must be >= {least}, got {config[name]}")
    cli.set_threads()
    data.setup("fit")
    console = console or console_of(140)
    console.print(f"{data.source}: {len(data.bars.frame):,} bars, {len(data.folds)} folds", highlight=False)
    seed = config["seed_everything"]
    draws = np.random.default_rng(derive_seed(seed, 0, "audit"))
    data.fold = 0
    fold = data.folds[0]
    chosen = _trained(cli, data, seed)
    read_before_test = dict(data.row_accesses[0])
    delay = fill_delay(data.fill)
    # Bars whose prices make the last validation reward stay; from the next on everything is noise.
    last = min(fold.validation.stop + delay, fold.test.start - 1)
    blind = _trained(cli, data.over(noise_after(data.bars.frame, last, draws)), seed)
    findings = row_findings(data, read_before_test)
    findings.append(selection_finding(_weights(chosen), _weights(blind)))
    assert chosen.policy is not None
    sees = chosen.recipe.account_features
    policy = lively(chosen.policy, data.fold_data(0).validation, sees, make_generator(seed, 0, "audit weights"))
    findings += prefix_findings(data, policy, sees, config["points"], draws, delay)
    findings += warmup_findings(data)
    findings.append(memory_finding(data.fold_data(0).train, chosen.policy, sees, data.warmup_bars))
    trades = bool(np.any(chosen.evaluate(data.test_segment(0)).positions))
    findings += _null_findings(cli, draws, trades)
    console.print(_rows(row_table(data), len(data.folds)))
    console.print(_table(findings))
    measured = [finding for finding in findings if finding.holds is not None]
    leaks = [finding for finding in measured if not finding.holds]
    summary = f"{len(leaks)} of {len(measured)} checks failed" if leaks else f"all {len(measured)} checks hold"
    if len(measured) < len(findings):
        summary += f", {len(findings) - len(measured)} could not be measured"
    console.print(
        f"{summary}; {config['points']} random t, {config['null_seeds']} seeds on each null market", highlight=False
    )
    return 1 if leaks else 0


def _trained(cli: LitPPOCLI, data: Any, seed: int) -> LitPPO:
    """Train fold 0 for the audit's budget, with the configuration's own callbacks; files are thrown away."""
    budget = min(cli.config["timesteps"], cli.config["model"]["total_timesteps"])
    module = cli.make_module(seed, {"total_timesteps": budget})
    data.fold = 0
    module.build(data.fold_data(0).train)
    with tempfile.TemporaryDirectory() as directory:
        cli.make_trainer(Path(directory)).fit(module, datamodule=data)
    return module


def _weights(module: LitPPO) -> dict[str, torch.Tensor]:
    assert module.policy is not None
    return {name: value.detach().cpu() for name, value in module.policy.state_dict().items()}


def _null_findings(cli: LitPPOCLI, draws: np.random.Generator, trades: bool) -> list[Finding]:
    """Null controls; `trades`: whether this budget leads to trades on the real bars. Without any they say nothing."""
    data, findings = cli.datamodule, []
    end = data.folds[0].test.stop + fill_delay(data.fill) + 1
    for kind in NULLS if cli.config["null_seeds"] else ():
        p_values, traded = [], 0
        for seed in range(cli.config["null_seeds"]):
            null = data.over(null_frame(data.bars.frame.iloc[:end], kind, draws))
            module = _trained(cli, null, derive_seed(seed, 0, kind))
            ledger = module.evaluate(null.test_segment(0)).ledger
            p_values.append(edge_p_value(ledger.position, ledger.price_return))
            traded += bool(np.any(ledger.position))
        result = NullResult(kind, p_values, traded)
        told = trades or traded > 0
        detail = result.detail + ("" if told else ", nor does this budget trade on the real bars; more --timesteps may")
        findings.append(Finding("null control", kind, detail, result.holds if told else None))
    return findings


def _rows(rows: list[list[str]], folds: int) -> Table:
    shown = [row for row in rows if int(row[0]) < MOST_FOLDS or int(row[0]) == folds - 1]
    left_out = f", the first {MOST_FOLDS} and the last of {folds}" if folds > MOST_FOLDS + 1 else ""
    table = Table(title=f"Bars read by each role{left_out}", box=box.SIMPLE)
    for name in ("fold", "role", "features of bars", "prices of bars"):
        table.add_column(name, justify="left" if name == "role" else "right")
    for row in shown:
        table.add_row(*row)
    return table


def _table(findings: list[Finding]) -> Table:
    table = Table(title="Look-ahead audit", box=box.SIMPLE)
    for name in ("check", "subject", "found", ""):
        table.add_column(name, overflow="fold")
    for finding in findings:
        fault = "not measured" if finding.holds is None else f"[bold red]{finding.fault}[/]"
        verdict = "[green]holds[/]" if finding.holds else fault
        table.add_row(finding.check, finding.subject, finding.detail, verdict)
    return table
