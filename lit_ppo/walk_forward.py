"""All folds of a walk-forward: train, choose on validation, read test once, write it down, go on.

    for each fold:  fit (the Lightning shell) -> chosen weights -> selected.ckpt
                    -> test, once -> out_of_sample.csv, trades.csv -> ledger folds.json

The datamodule comes as an argument. A fold counts when the ledger says "done"; a resumed run goes on after the last
one, or in the middle of a fold from its newest checkpoint, and gives what an uninterrupted run gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np

from lit_ppo import interrupts
from lit_ppo.accounting import trades
from lit_ppo.checkpoints import CheckpointStore
from lit_ppo.evaluation import Evaluation, evaluate
from lit_ppo.module import LitPPO
from lit_ppo.report_bars import FillTable, write_fills
from lit_ppo.results import FoldRecord, RunFolder
from lit_ppo.seeding import derive_seed
from lit_ppo.timing import Stopwatch
from lit_ppo.types import Fold, FoldData, MarketTensors

SELECTED = "selected.ckpt"


class Folds(Protocol):
    """What the loop asks of a datamodule."""

    fold: int
    folds: list[Fold]

    def fold_data(self, index: int) -> FoldData:
        """Train and validation bars of a fold."""
        ...

    def test_segment(self, index: int) -> MarketTensors:
        """Test bars of a fold, asked for once."""
        ...


@dataclass
class WalkForward:
    """The loop over the folds.

    Attributes:
        datamodule: a set-up LightningDataModule that is also `Folds`.
        make_module: a fresh module, given its seed.
        make_trainer: a fresh trainer with fresh callbacks, given the fold's folder.
        folder: where the run is written.
        seed: of the run; every fold's own seed derives from it.
        warm_start: start a fold from the chosen weights of the one before, instead of from scratch.
        say: prints one line.
    """

    datamodule: Any
    make_module: Callable[[int], LitPPO]
    make_trainer: Callable[[Path], pl.Trainer]
    folder: RunFolder
    seed: int
    warm_start: bool = False
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if self.warm_start:
            self._refuse_leaking_warm_start()

    def _refuse_leaking_warm_start(self) -> None:
        """The weights handed on were chosen on the earlier fold's validation bars, so these must lie in the past."""
        folds = self.datamodule.folds
        for source, fold in pairwise(folds):
            if source.validation.stop > fold.validation.start:
                raise ValueError(
                    f"warm_start would choose fold {fold.index}'s first weights by bars up to "
                    f"{source.validation.stop}, and its validation begins at {fold.validation.start}: raise "
                    "data.step_size to at least data.validation_size, or leave warm_start off"
                )

    def run(self) -> list[FoldRecord]:
        """Bring every fold to its test result; returns the ledger.

        Raises:
            Interrupted: a signal came; everything is saved.
        """
        started, bars_done = time.monotonic(), 0
        folds = self.datamodule.folds
        finished = {record.index for record in self.folder.folds() if record.status == "done"}
        waiting = [fold for fold in folds if fold.index not in finished]
        for count, fold in enumerate(waiting, start=1):
            interrupts.raise_if_requested()
            record = self._run_fold(fold)
            bars_done += record.timesteps
            seconds = time.monotonic() - started
            left = timedelta(seconds=round((len(waiting) - count) * seconds / count))
            done = f"{len(folds) - len(waiting) + count}/{len(folds)}"
            self.say(f"{done:>7}  {_line(record)}  {bars_done / seconds:,.0f} steps/s  {left} left")
        return self.folder.folds()

    def _run_fold(self, fold: Fold) -> FoldRecord:
        watch = Stopwatch()
        directory = self.folder.fold_path(fold.index)
        with watch.stage("data"):
            self.datamodule.fold = fold.index
            data = self.datamodule.fold_data(fold.index)
        record = FoldRecord(fold.index, bars=_ranges(fold))
        self.folder.record_fold(record)
        module = self.make_module(derive_seed(self.seed, 0, f"fold {fold.index}"))
        module.fold = (fold.index, len(self.datamodule.folds))
        module.build(data.train)
        if self.warm_start and fold.index > 0:
            record.details["warm_start"] = self._start_from_previous(module, fold)
        with watch.stage("fit"):
            trainer = self._fit(module, directory)
        with watch.stage("checkpoint"):
            trainer.save_checkpoint(directory / SELECTED, weights_only=True)
            CheckpointStore(directory).clean()
        assert module.policy is not None
        with watch.stage("validation"):
            chosen = evaluate(module.policy, data.validation, module.recipe.account_features)
        interrupts.raise_if_requested()
        with watch.stage("test"):
            market = self.datamodule.test_segment(fold.index)
            # The account goes flat with the last decision: the next fold's starts flat, and the way there costs.
            tested = evaluate(module.policy, market, module.recipe.account_features, close_at_end=True)
            self._write_test(fold.index, directory, market, tested)
        record.status = "done"
        record.timesteps = module.timesteps
        record.stop_reason = module.stop_reason or "budget"
        record.seconds = watch.reset()
        record.scores = {**_scores("validation", chosen), **_scores("test", tested)}
        record.details["selected"] = module.selection or {"timesteps": module.timesteps, "score": chosen.score}
        self.folder.record_fold(record)
        return record

    def _fit(self, module: LitPPO, directory: Path) -> pl.Trainer:
        trainer = self.make_trainer(directory)
        # Only a directory that holds a checkpoint: a fold killed before its first one starts again, with equal result.
        resume = directory if CheckpointStore(directory).load_newest() is not None else None
        trainer.fit(module, datamodule=self.datamodule, ckpt_path=resume)
        return trainer

    def _start_from_previous(self, module: LitPPO, fold: Fold) -> dict[str, Any]:
        source = fold.index - 1
        state = CheckpointStore(self.folder.fold_path(source)).load(SELECTED)["state_dict"]
        weights = {name.removeprefix("policy."): value for name, value in state.items()}
        own = module.policy.state_dict()  # type: ignore[union-attr]
        wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
        if wrong:
            raise ValueError(f"warm_start: weights of fold {source} do not fit fold {fold.index}: {', '.join(wrong)}")
        module.policy.load_state_dict(weights)  # type: ignore[union-attr]
        return {"fold": source}

    def _write_test(self, fold: int, directory: Path, market: MarketTensors, tested: Evaluation) -> None:
        names = ("fill_price", "price_return", "turnover_cost", "carry_long", "carry_short")
        arrays = {name: market.decisions(name).cpu().numpy() for name in names}
        ledger = tested.ledger
        write_fills(directory, FillTable(ledger.time, np.full(len(ledger), fold), **arrays))
        self.folder.append_out_of_sample(fold, ledger)
        self.folder.append_trades(fold, trades(ledger, arrays["fill_price"]))


def _line(record: FoldRecord) -> str:
    scores = record.scores
    return (
        f"fold {record.index:3d}  {record.timesteps:,} bars  validation {_number(scores['validation/score'])}  "
        f"test {_number(scores['test/return_pct'], '+.2f')} %  Sharpe {_number(scores['test/sharpe_annual'], '+.2f')}"
    )


def _ranges(fold: Fold) -> dict[str, list[int]]:
    return {role: list(getattr(fold, role)) for role in ("train", "validation", "test")}


def _scores(stage: str, evaluation: Evaluation) -> dict[str, float | None]:
    values = {"score": evaluation.score, **evaluation.metrics}
    return {f"{stage}/{name}": value if math.isfinite(value) else None for name, value in values.items()}


def _number(value: float | None, form: str = "+.4f") -> str:
    return "n/a" if value is None else format(value, form)
