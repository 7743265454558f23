"""Where the folds of a walk-forward lie: train / purge / validation / embargo / test, in bars."""

from __future__ import annotations

from dataclasses import dataclass

from lit_ppo.market.tensors import BarRange, Fold


@dataclass(frozen=True)
class WalkForwardSplit:
    """The sizes of a walk-forward, all in bars.

        fold i:  |<- train_size ->|<- purged_size ->|<- validation_size ->|<- embargo_size ->|<- test_size ->|
                 ^ first usable bar + i * step_size

    Attributes:
        train_size: bars the fold learns from. With `expand_train` those of fold 0; later folds keep them all.
        validation_size: bars that choose between checkpoints.
        test_size: bars read once, after that choice.
        step_size: bars from one fold's start to the next one's.
        purged_size: bars left out between train and validation, so that no train reward looks into validation.
        embargo_size: bars left out between validation and test.
        expand_train: train always starts at the first usable bar instead of moving on with the fold.

    Source: the names are skfolio's `WalkForward`; purge and embargo as in Lopez de Prado 2018, chapter 7.
    """

    train_size: int
    validation_size: int
    test_size: int
    step_size: int
    purged_size: int = 0
    embargo_size: int = 0
    expand_train: bool = False

    def __post_init__(self) -> None:
        for name in ("train_size", "validation_size", "test_size", "step_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is a number of bars >= 1, got {getattr(self, name)}")
        for name in ("purged_size", "embargo_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} is a number of bars >= 0, got {getattr(self, name)}")
        if self.step_size < self.test_size:
            raise ValueError(
                f"data.step_size {self.step_size} is less than data.test_size {self.test_size}: test segments of "
                f"neighbouring folds would share {self.test_size - self.step_size} bars, and their stitched result "
                f"would count those twice. Raise step_size or lower test_size."
            )

    @property
    def bars_needed(self) -> int:
        """Usable bars that one fold takes."""
        return self.train_size + self.purged_size + self.validation_size + self.embargo_size + self.test_size

    def split(self, usable: BarRange, source: str = "the bar file", lost: str = "") -> list[Fold]:
        """Return every whole fold within `usable`, in time order; a rest too short for one is left out.

        Args:
            usable: bars that have all features and a fill price for this decision and the next.
            source: name of the file, for the message.
            lost: what the other bars were needed for, for the message: "200 warm-up bars".

        Raises:
            ValueError: not even one fold fits; says how many bars are needed and how many there are.
        """
        bars = max(usable.stop - usable.start, 0)
        count = (bars - self.bars_needed) // self.step_size + 1
        if count < 1:
            raise ValueError(
                f"WalkForwardSplit needs train_size {self.train_size} + purged_size {self.purged_size} + "
                f"validation_size {self.validation_size} + embargo_size {self.embargo_size} + "
                f"test_size {self.test_size} = {self.bars_needed} bars, but {source} has {bars}"
                f"{' after ' + lost if lost else ''}. Lower one of the sizes or give a longer file."
            )
        return [self._fold(index, usable.start) for index in range(count)]

    def _fold(self, index: int, first: int) -> Fold:
        start = first + index * self.step_size
        train = BarRange(first if self.expand_train else start, start + self.train_size)
        validation = _following(train.stop + self.purged_size, self.validation_size)
        test = _following(validation.stop + self.embargo_size, self.test_size)
        return Fold(index, train, validation, test)


def _following(start: int, size: int) -> BarRange:
    return BarRange(start, start + size)
