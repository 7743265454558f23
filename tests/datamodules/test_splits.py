"""Where folds lie, compared as whole lists: a loop over an empty list passes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.splits import WalkForwardSplit
from lit_ppo.market.tensors import BarRange, Fold

SPLIT = WalkForwardSplit(train_size=10, validation_size=4, test_size=3, step_size=3, purged_size=2, embargo_size=1)


def test_rolling_folds_are_the_hand_written_ones():
    assert SPLIT.split(BarRange(5, 33)) == [
        Fold(0, BarRange(5, 15), BarRange(17, 21), BarRange(22, 25)),
        Fold(1, BarRange(8, 18), BarRange(20, 24), BarRange(25, 28)),
        Fold(2, BarRange(11, 21), BarRange(23, 27), BarRange(28, 31)),
    ]


def test_expanding_folds_keep_their_first_train_bar():
    assert replace(SPLIT, expand_train=True).split(BarRange(5, 33)) == [
        Fold(0, BarRange(5, 15), BarRange(17, 21), BarRange(22, 25)),
        Fold(1, BarRange(5, 18), BarRange(20, 24), BarRange(25, 28)),
        Fold(2, BarRange(5, 21), BarRange(23, 27), BarRange(28, 31)),
    ]


def test_a_file_that_just_fits_gives_one_fold_and_one_bar_less_none():
    assert SPLIT.split(BarRange(0, 20)) == [Fold(0, BarRange(0, 10), BarRange(12, 16), BarRange(17, 20))]
    with pytest.raises(ValueError, match="= 20 bars, but the bar file has 19"):
        SPLIT.split(BarRange(0, 19))
    with pytest.raises(ValueError, match="but the bar file has 0"):
        SPLIT.split(BarRange(30, 19))  # a file shorter than its warm-up


def test_the_refusal_states_every_number():
    split = WalkForwardSplit(20000, 500, 2000, 2000, purged_size=96, embargo_size=2)
    with pytest.raises(ValueError, match="WalkForwardSplit needs") as error:
        split.split(BarRange(200, 18411), source="XAUUSDm_15min.csv", lost="200 warm-up bars")
    assert str(error.value) == (
        "WalkForwardSplit needs train_size 20000 + purged_size 96 + validation_size 500 + embargo_size 2 + "
        "test_size 2000 = 22598 bars, but XAUUSDm_15min.csv has 18211 after 200 warm-up bars. "
        "Lower one of the sizes or give a longer file."
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_size", 11),
        ("validation_size", 5),
        ("test_size", 2),
        ("step_size", 4),
        ("purged_size", 3),
        ("embargo_size", 2),
        ("expand_train", True),
    ],
)
def test_every_key_changes_the_folds(key, value):
    assert replace(SPLIT, **{key: value}).split(BarRange(5, 33)) != SPLIT.split(BarRange(5, 33))


@pytest.mark.parametrize("key", ["train_size", "validation_size", "test_size", "step_size"])
def test_sizes_below_one_are_refused(key):
    with pytest.raises(ValueError, match=f"data.{key} is a number of bars >= 1, got 0"):
        replace(SPLIT, **{key: 0})


@pytest.mark.parametrize("key", ["purged_size", "embargo_size"])
def test_negative_gaps_are_refused(key):
    with pytest.raises(ValueError, match=f"data.{key} is a number of bars >= 0, got -1"):
        replace(SPLIT, **{key: -1})


def test_overlapping_test_segments_are_refused():
    with pytest.raises(ValueError, match="would share 2 bars"):
        replace(SPLIT, step_size=1)


sizes = st.integers(1, 40)


@given(
    train=sizes,
    validation=sizes,
    test=st.integers(1, 20),
    beyond=st.integers(0, 20),
    purged=st.integers(0, 10),
    embargo=st.integers(0, 10),
    expand=st.booleans(),
    start=st.integers(0, 50),
    rest=st.integers(0, 200),
)
def test_last_train_bar_plus_purge_lies_before_the_first_test_bar_in_every_mode(
    train, validation, test, beyond, purged, embargo, expand, start, rest
):
    split = WalkForwardSplit(train, validation, test, test + beyond, purged, embargo, expand)
    usable = BarRange(start, start + split.bars_needed + rest)
    folds = split.split(usable)
    assert len(folds) == rest // (test + beyond) + 1
    for index, fold in enumerate(folds):
        assert fold.index == index
        assert usable.start <= fold.train.start
        assert fold.train.stop - 1 + purged < fold.validation.start
        assert fold.validation.stop - 1 + embargo < fold.test.start
        assert fold.train.stop - 1 + purged < fold.test.start
        assert fold.test.stop <= usable.stop
        assert (len(fold.validation), len(fold.test)) == (validation, test)
        assert len(fold.train) == train + (index * (test + beyond) if expand else 0)
    for one, following in pairwise(folds):
        assert one.test.stop <= following.test.start
