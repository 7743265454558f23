"""All folds of a walk-forward: train, choose on validation, read test once, write it down, go on.

    for each fold:  fit (the Lightning shell) -> chosen weights -> selected.ckpt
                    (of several candidates: the best one's, see lit_ppo.folds.candidates)
                    -> test, once -> out_of_sample.csv, trades.csv -> ledger folds.json

The datamodule comes as an argument. Who trains is the engine's affair (`lit_ppo.folds.engine`): `work` is what a fold
needs by itself, `commit` what depends on the folds before it, in their order. A fold counts when the ledger says
"done"; a resumed run goes on after the last one, or in the middle of a fold from its newest checkpoint, and gives what
an uninterrupted run gives.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np

from lit_ppo import interrupts
from lit_ppo.folds.candidates import Trained, best, candidate_path, keep
from lit_ppo.folds.engine import Engine, FoldWork, InProcess
from lit_ppo.folds.monitor import Monitor
from lit_ppo.folds.optimisation_summary import bars_seen, note_fold, write_summary
from lit_ppo.market.baselines import buy_and_hold
from lit_ppo.market.books import Ledger, trades
from lit_ppo.market.tensors import BarRange, Fold, FoldData, MarketTensors, TrainedFold
from lit_ppo.module import LitPPO
from lit_ppo.ppo.screening import mirror_line, passed_of, screen_line
from lit_ppo.recipe import Policy, load_policy
from lit_ppo.scoring.evaluation import Evaluation, evaluate
from lit_ppo.scoring.fills import FillTable, write_fills
from lit_ppo.scoring.money import MoneyBook
from lit_ppo.scoring.replay import replay
from lit_ppo.seeding import derive_seed
from lit_ppo.store.checkpoints import SELECTED, CheckpointError, CheckpointStore
from lit_ppo.store.files import utc_cells
from lit_ppo.store.results import NOT_TRAINED, PRIOR_DECIDES, FoldRecord, RunFolder, fold_name
from lit_ppo.store.schema import REMEDY
from lit_ppo.timing import Stopwatch

SUMMARY_SECONDS = 1.0  # between two writings of the summary: a fold that trains nothing takes a tenth of that


class Folds(Protocol):
    """What the loop asks of a datamodule."""

    fold: int
    folds: list[Fold]
    row_accesses: dict[int, dict[str, BarRange]]

    def fold_data(self, index: int) -> FoldData:
        """Train and validation bars of a fold."""
        ...

    def test_segment(self, index: int) -> MarketTensors:
        """Test bars of a fold, asked for once."""
        ...

    def test_segment_of_another(self, index: int, checkpoint: Mapping[str, Any]) -> MarketTensors:
        """The same, scaled as the model of another fold was trained."""
        ...

    def get_optimization_info(self) -> dict[str, Any]:
        """What the preprocessing cache did."""
        ...


@dataclass
class WalkForward:
    """The loop over the folds.

    Attributes:
        datamodule: a set-up LightningDataModule that is also `Folds`.
        make_module: a fresh module, given its seed and the `model.*` keys that differ from the run's.
        make_trainer: a fresh trainer with fresh callbacks, given the fold's folder.
        folder: where the run is written.
        seed: of the run; every fold's own seed derives from it.
        monitor: shows how the run gets on; None: nothing does.
        overlays: for each candidate of a fold the `model.*` keys that it changes; with one there is no choice.
        money: the account in currency that also trades the test decisions; None: there is none.
        show_test: `tensorboard.write_test`; None: there are no curves to put it beside.
        engine: who trains.
        chained: a fold reads what the ones before it have left, so that they cannot be trained side by side.
        workers: of which this is one; 0: folds are trained in this process.
    """

    datamodule: Any
    make_module: Callable[[int, Mapping[str, Any]], LitPPO]
    make_trainer: Callable[[Path], pl.Trainer]
    folder: RunFolder
    seed: int
    monitor: Monitor | None = None
    overlays: Sequence[Mapping[str, Any]] = ({},)
    money: MoneyBook | None = None
    show_test: Callable[..., None] | None = None
    engine: Engine = field(default_factory=InProcess)
    chained: bool = False
    workers: int = 0

    def run(self) -> list[FoldRecord]:
        """Bring every fold to its test result; returns the ledger.

        Raises:
            Interrupted: a signal came; everything is saved.
        """
        folds = self.datamodule.folds
        finished = {record.index for record in self.folder.folds() if record.status == "done"}
        waiting = [fold for fold in folds if fold.index not in finished]
        started = due = time.monotonic()
        stale = False
        try:
            with closing(self.engine.results(self, waiting)) as results:  # type: ignore[type-var]
                for work in results:
                    record, stale = self.commit(work), True
                    cache = self.datamodule.get_optimization_info()
                    if time.monotonic() >= due:
                        write_summary(self.folder, len(folds), cache)
                        due, stale = time.monotonic() + SUMMARY_SECONDS, False
                    started, seconds = time.monotonic(), time.monotonic() - started
                    if self.monitor is not None:
                        self.monitor.fold_done(_line(record), seconds, self.folder.folds(), cache)
        except BaseException as error:
            if stale and not isinstance(error, OSError):  # a full disk has no room for the summary either
                write_summary(self.folder, len(folds), self.datamodule.get_optimization_info())
            raise
        if stale:
            write_summary(self.folder, len(folds), self.datamodule.get_optimization_info())
        return self.folder.folds()

    def run_fold(self, fold: Fold) -> FoldRecord:
        """Bring one fold to its test result, and into the ledger, in this process."""
        self.begin(fold)
        return self.commit(self.work(fold))

    def begin(self, fold: Fold) -> None:
        """Tell the ledger that a fold is being trained."""
        self.folder.record_fold(FoldRecord(fold.index, bars=ranges_of(fold)))

    def to_send(self, workers: int) -> WalkForward:
        """What one of so many workers needs of this."""
        return replace(self, engine=InProcess(), monitor=None, money=None, workers=workers)

    def work(self, fold: Fold) -> FoldWork:
        """Train, select and test one fold; writes into its own folder only."""
        watch = Stopwatch()
        directory = self.folder.fold_path(fold.index)
        record = FoldRecord(fold.index, bars=ranges_of(fold))
        data, module, chosen = self.trained(fold, record, watch)
        interrupts.raise_if_requested()
        with watch.stage("test"):
            market = self.datamodule.test_segment(fold.index)
            # The account goes flat with the last decision: the next fold's starts flat, and the way there costs.
            tested = evaluate(_policy(module), market, module.recipe.account_features, close_at_end=True)
            fills = fills_of(fold.index, market)
            write_fills(directory, fills)
        segments = {"train": data.train, "validation": data.validation, "test": market}
        record.details["times"] = {role: _range_of_times(segment) for role, segment in segments.items()}
        record.seconds = watch.reset()
        record.scores = {**scores_of("validation", chosen), **scores_of("test", tested)}
        if self.show_test is not None and record.stop_reason != PRIOR_DECIDES:  # there is no curve to put it beside
            settings = {"fold": fold.index, "seed": self.seed, **module.recipe.to_dict()}
            hold = replay(buy_and_hold(len(tested.ledger)), fills)
            returns = (tested.ledger.net_return, hold.net_return)
            self.show_test(directory, settings, record.scores, *returns, record.timesteps)
        return FoldWork(record, tested.ledger, tested.probability, fills)

    def trained(self, fold: Fold, record: FoldRecord, watch: Stopwatch) -> tuple[FoldData, LitPPO, Evaluation]:
        """Train a fold and choose its weights; its test bars are not read.

        Args:
            record: of the fold, filled with what the training was.
            watch: told the stages.

        Returns:
            Its bars, the module with the chosen weights, and their validation.
        """
        directory = self.folder.fold_path(fold.index)
        with watch.stage("data"):
            self.datamodule.fold = fold.index
            data = self.datamodule.fold_data(fold.index)
        if len(self.overlays) == 1:
            return data, *self._train(fold, data, directory, record, watch)
        return data, *self._choose(fold, data, directory, record, watch)

    def commit(self, work: FoldWork) -> FoldRecord:
        """Write a fold's test result behind those of the folds before it, and then into the ledger."""
        record, watch = work.record, Stopwatch()
        with watch.stage("test"):
            self._write_test(record.index, work)
            if record.stop_reason == PRIOR_DECIDES:  # the fold before has the same weights: nothing was learnt anew
                record.details["previous_fold"] = {"left_out": PRIOR_DECIDES}
            else:
                record.details["previous_fold"] = self._previous_fold(record.index, work.ledger)
            if self.money is not None:
                record.details["money"] = self.money.append(record.index, work.ledger, work.fills.fill_price)
        record.status = "done"
        record.seconds["test"] += watch.seconds["test"]
        self.folder.record_fold(record)
        return record

    def _train(
        self, fold: Fold, data: FoldData, directory: Path, record: FoldRecord, watch: Stopwatch, number: int = 0
    ) -> tuple[LitPPO, Evaluation]:
        """Train one candidate into `directory`; fills `record` and returns it with its validation."""
        module = self._new_module(fold, data, number)
        if module.total_timesteps:
            with watch.stage("fit"):
                trainer = self._fit(module, directory)
            with watch.stage("checkpoint"):
                trainer.save_checkpoint(directory / SELECTED, weights_only=True)
                CheckpointStore(directory).clean()
        else:
            module.notes.stop_reason = PRIOR_DECIDES
            with watch.stage("checkpoint"):
                CheckpointStore(directory).save(module.untrained_checkpoint(self.datamodule), SELECTED)
        with watch.stage("validation"):
            chosen = self._validated(module, fold)
        note_fold(record, module, bars_seen(self.datamodule.row_accesses[fold.index]))
        record.timesteps = module.timesteps
        record.stop_reason = module.notes.stop_reason or "budget"
        if module.screen:
            record.details["screen"] = module.screen
        if module.mirror_record:
            record.details["mirror"] = module.mirror_record
        record.details["selected"] = module.notes.selection or {"timesteps": module.timesteps, "score": chosen.score}
        return module, chosen

    def _new_module(self, fold: Fold, data: FoldData, number: int) -> LitPPO:
        # The first candidate is what the fold trains when there is no choice.
        purpose = f"fold {fold.index}" + (f" candidate {number}" if number else "")
        module = self.make_module(derive_seed(self.seed, 0, purpose), self.overlays[number])
        module.fold, module.side_by_side = (fold.index, len(self.datamodule.folds)), max(self.workers, 1)
        if self.monitor is not None and self.monitor.live:
            module.show = self.monitor.show
        module.earlier_folds = (
            NotSent() if self.workers and not self.chained else earlier_folds(self.folder, fold.index)
        )
        module.build(data.train)
        return module

    def train_candidate(self, index: int, number: int) -> Trained:
        """Train candidate `number` of fold `index`, or go on with it; its test bars are not read.

        Raises:
            Interrupted: a signal came; everything is saved.
        """
        directory = candidate_path(self.folder.fold_path(index), number)
        trained = Trained.read(directory)
        if trained is None:
            interrupts.raise_if_requested()
            self.datamodule.fold = index
            fold, data = self.datamodule.folds[index], self.datamodule.fold_data(index)
            record, watch = FoldRecord(index), Stopwatch()
            _, chosen = self._train(fold, data, directory, record, watch, number)
            trained = Trained(
                number=number,
                overlay=dict(self.overlays[number]),
                score=chosen.score,
                timesteps=record.timesteps,
                seconds=sum(watch.reset().values()),
                stop_reason=record.stop_reason,
                details=record.details,
                time=chosen.ledger.time.tolist(),
                net_returns=chosen.ledger.net_return.tolist(),
            )
            trained.write(directory)
        return trained

    def _choose(
        self, fold: Fold, data: FoldData, directory: Path, record: FoldRecord, watch: Stopwatch
    ) -> tuple[LitPPO, Evaluation]:
        """Train every candidate, keep the best by validation; fills `record` and returns it with its validation."""
        numbers = range(len(self.overlays))
        with watch.stage("candidates"):
            every = [self.train_candidate(fold.index, number) for number in numbers]
        winner = best(every)
        state = keep(candidate_path(directory, winner.number), directory)
        self.datamodule.load_state_dict(state[type(self.datamodule).__qualname__])  # its scaler
        module = self._new_module(fold, data, winner.number)
        _policy(module).load_state_dict({name.removeprefix("policy."): x for name, x in state["state_dict"].items()})
        record.trials = len(every)
        record.timesteps = sum(one.timesteps for one in every)
        record.stop_reason = winner.stop_reason
        record.details |= winner.details
        record.details |= {"candidate": winner.number, "candidates": [one.summary() for one in every]}
        with watch.stage("validation"):
            return module, self._validated(module, fold)

    def _validated(self, module: LitPPO, fold: Fold) -> Evaluation:
        # Asked for anew: a warm start may have brought a scaler of its own.
        market = self.datamodule.fold_data(fold.index).validation
        return evaluate(_policy(module), market, module.recipe.account_features)

    def _fit(self, module: LitPPO, directory: Path) -> pl.Trainer:
        trainer = self.make_trainer(directory)
        # None in the directory: a fold killed before its first checkpoint starts again, with equal result.
        newest = CheckpointStore(directory).load_newest()
        trainer.fit(module, datamodule=self.datamodule, ckpt_path=None if newest is None else newest[1])
        return trainer

    def _previous_fold(self, fold: int, tested: Ledger) -> dict[str, Any]:
        """Let the model of the fold before trade this fold's test bars: what training anew was worth.

        Fold 0 has none before it and stays flat; so does a fold whose predecessor's weights cannot be read.

        Returns:
            For the ledger of folds: its figures, or why it stayed flat.
        """
        why, checkpoint = "there is no fold before", None
        if fold > 0:
            try:
                checkpoint = CheckpointStore(self.folder.fold_path(fold - 1)).load(SELECTED)
            except (FileNotFoundError, CheckpointError) as error:
                why = f"the weights of fold {fold - 1} cannot be read"
                warnings.warn(f"The baseline `previous_fold` stays flat in fold {fold}: {error}", stacklevel=2)
        if checkpoint is None:
            self.folder.append_baselines(fold, tested.time, np.zeros(len(tested)))
            return {"flat": why}
        policy, recipe = load_policy(checkpoint)
        scaled = checkpoint[type(self.datamodule).__qualname__]
        market = self.datamodule.test_segment_of_another(fold, scaled)
        found = evaluate(policy, market, recipe.account_features, close_at_end=True)
        self.folder.append_baselines(fold, found.ledger.time, found.ledger.net_return)
        return {name: _finite(found.metrics[name]) for name in ("return_pct", "sharpe_annual", "trades")}

    def _write_test(self, fold: int, work: FoldWork) -> None:
        self.folder.append_out_of_sample(fold, work.ledger, work.probability)
        self.folder.append_trades(fold, trades(work.ledger, work.fills.fill_price))


class NotSent(Sequence[TrainedFold]):
    """Stands for the earlier folds of one that a worker trains beside them: there is nothing to read."""

    def __len__(self) -> int:
        raise RuntimeError(
            "A callback reads `earlier_folds` of a fold that is trained side by side with others. Give its class the "
            "attribute `reads_earlier_folds = True`, and the folds are trained in turn"
        )

    def __getitem__(self, index: Any) -> Any:
        return self.__len__()


def earlier_folds(folder: RunFolder, index: int) -> list[TrainedFold]:
    """The folds before fold `index` that are done and were trained, oldest first.

    Raises:
        ValueError: the ledger does not say what their training saw and did, so that this fold could learn from it.
    """
    return [
        _trained(folder, record)
        for record in folder.folds()
        if record.status == "done" and record.index < index and record.stop_reason != NOT_TRAINED
    ]


def _trained(folder: RunFolder, record: FoldRecord) -> TrainedFold:
    needed = {"details": record.details, "scores": record.scores}
    names = (("details", "seen"), ("scores", "validation/score"), ("details", "optimisations"))
    if missing := [f"{part}[{name!r}]" for part, name in names if name not in needed[part]]:
        raise ValueError(
            f"{folder.path / 'folds.json'} says that fold {record.index} is done, but its entry has no "
            f"{', '.join(missing)}, which later folds read. {REMEDY}"
        )
    return TrainedFold(
        index=record.index,
        directory=str(folder.path / fold_name(record.index)),
        seen=BarRange(*record.details["seen"]),
        validation_score=record.scores["validation/score"],
        optimisations=record.details["optimisations"],
    )


def _range_of_times(market: MarketTensors) -> list[str]:
    """Open times of the first and the last decision bar."""
    return utc_cells(market.decisions("time")[[0, -1]].cpu().numpy())


def fills_of(fold: int, market: MarketTensors) -> FillTable:
    """What any position would have earned and paid on the decision bars."""
    names = ("time", "fill_price", "price_return", "turnover_cost", "carry_long", "carry_short")
    arrays = {name: market.decisions(name).cpu().numpy() for name in names}
    return FillTable(fold=np.full(len(arrays["time"]), fold), **arrays)


def _line(record: FoldRecord) -> str:
    scores, screen = record.scores, record.details.get("screen")
    if record.stop_reason == NOT_TRAINED:
        return f"fold {record.index:3d}  not trained: {screen_line(record.details['screen'])}"
    trained = f"  {record.timesteps:,} bars" if record.timesteps else ""
    line = (
        f"fold {record.index:3d}{trained}  validation {_number(scores['validation/score'])}  "
        f"test {_number(scores['test/return_pct'], '+.2f')} %"
    )
    told = [passed_of(screen)] if screen else []
    if mirror := record.details.get("mirror"):
        told.append(mirror_line(mirror))
    return "  ".join([line, *filter(None, told)])


def _policy(module: LitPPO) -> Policy:
    assert module.policy is not None
    return module.policy


def ranges_of(fold: Fold) -> dict[str, list[int]]:
    return {role: list(getattr(fold, role)) for role in ("train", "validation", "test")}


def scores_of(stage: str, evaluation: Evaluation) -> dict[str, float | None]:
    values = {"score": evaluation.score, **evaluation.metrics}
    return {f"{stage}/{name}": _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None, form: str = "+.4f") -> str:
    return "n/a" if value is None else format(value, form)
