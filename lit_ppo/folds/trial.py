"""One trial of a search: a setting, trained on the searched folds and judged by their validation bars alone.

    whole walk-forward:   |-- searched folds: validation only --|-- later folds: test, once, by the chosen setting --|

The validation bars of a fold are the test bars of the one before it. So a setting that was chosen on the validation of
every fold would have been chosen on nearly every test bar; therefore the bars are divided by time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from lit_ppo.folds.engine import FoldWork
from lit_ppo.folds.loop import WalkForward, fills_of, ranges_of, scores_of
from lit_ppo.market.tensors import BarRange, Fold
from lit_ppo.store.results import FoldRecord
from lit_ppo.timing import Stopwatch


@dataclass
class Trial(WalkForward):
    """The loop over the searched folds: `WalkForward` that reads no test bar and writes none of a run's files."""

    def work(self, fold: Fold) -> FoldWork:
        """Train and validate one fold; the ledger of the work is that of its validation bars."""
        record, watch = FoldRecord(fold.index, bars=ranges_of(fold)), Stopwatch()
        data, _, chosen = self.trained(fold, record, watch)
        record.seconds = watch.reset()
        record.scores = scores_of("validation", chosen)
        return FoldWork(record, chosen.ledger, chosen.probability, fills_of(fold.index, data.validation))

    def commit(self, work: FoldWork) -> FoldRecord:
        """Write a fold's validation into the ledger of folds."""
        work.record.status = "done"
        self.folder.record_fold(work.record)
        return work.record

    def records(self, order: Sequence[int]) -> Iterator[FoldRecord]:
        """Bring one searched fold after the other to its validation; who has seen enough closes the iterator.

        Args:
            order: numbers of the folds, in which they are given, however many are trained side by side.

        Raises:
            Interrupted: a signal came; everything is saved.
        """
        done = {record.index: record for record in self.folder.folds() if record.status == "done"}
        before = [index for index in order if index in done]
        yield from (done[index] for index in before)
        waiting = [self.datamodule.folds[index] for index in order if index not in done]
        with closing(self.engine.results(self, waiting)) as results:  # type: ignore[type-var]
            for work in results:
                yield self.commit(work)


def fitting_folds(data: Any, train_size: int, purged_size: int, first: int) -> list[Fold]:
    """Folds of `data` whose validation begins late enough for a train segment of this size.

    Args:
        data: a `WalkForwardDataModule`, set up.
        train_size, purged_size: bars, the largest of the space.
        first: bar that is the first usable one under every setting of the space.
    """
    return [fold for fold in data.folds if fold.validation.start - purged_size - train_size >= first]


def searched_folds(data: Any, folds: Sequence[Fold]) -> list[Fold]:
    """The folds of a trial: the same validation bars under every setting, train bars before them, no test bars.

    Args:
        data: of the trial, set up.
        folds: of the search.

    Raises:
        ValueError: a train segment does not fit before its validation.
    """
    found = []
    for number, fold in enumerate(folds):
        stop = fold.validation.start - data.split.purged_size
        start = data.usable.start if data.split.expand_train else stop - data.split.train_size
        if not data.usable.start <= start < stop:
            raise ValueError(
                f"data.train_size {data.split.train_size} and purged_size {data.split.purged_size} do not fit between "
                f"the first usable bar {data.usable.start} and the validation of searched fold {number} at bar "
                f"{fold.validation.start}"
            )
        none = BarRange(fold.validation.stop, fold.validation.stop)
        found.append(replace(fold, index=number, train=BarRange(start, stop), test=none))
    return found


def first_unseen(data: Any, seen: int) -> int | None:
    """The first fold of `data` whose test bars begin after the bars that a search has seen; None: there is none.

    Args:
        data: a `WalkForwardDataModule`, set up, with all of its folds.
        seen: the bar after the last searched validation bar. The embargo keeps its last reward out of the test.
    """
    return next((fold.index for fold in data.folds if fold.test.start >= seen + data.split.embargo_size), None)
