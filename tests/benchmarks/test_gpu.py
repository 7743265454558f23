"""The rates that a card would be measured by: the same code on the CPU, and the rows that it fills."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu, tables
from benchmarks.folds_as_one import FoldsAsOne, fold_learners
from benchmarks.markdown import UNMEASURED
from benchmarks.pretraining import make_learner, plain_torch
from datamodules.oracle_bars import train_fold
from datamodules.synthetic import SyntheticMarket

CPU = torch.device("cpu")
SMALL = {"num_envs": 4, "num_steps": 16, "burn_in": 8, "hidden_size": 8, "num_networks": 2, "total_timesteps": 256}


def test_a_rate_is_that_of_the_iterations_after_the_warm_up():
    learner = make_learner(num_envs=2, num_steps=8, num_minibatches=1, hidden_size=4)
    assert gpu.steps_per_second(learner, CPU, iterations=2, warmup=1) > 0
    assert learner.timesteps == 3 * 2 * 8
    market = train_fold(SyntheticMarket(kind="regime", seed=1), 1_000).fold_data(0).train
    row = gpu.measure(market, num_envs=4, hidden_size=4, iterations=1, warmup=0)
    assert row["tflops"] > 0
    assert row["memory_mb"] is None  # only a card says


def test_a_card_fills_both_rows_and_none_fills_neither():
    measured = {"card": "a card", "pretraining": {"bars_per_s": 2e6}, "folds_as_one": {"seconds": 12.0}}
    measured["rows"] = [{"steps_per_s": 1e6, "share_of_matmul_peak": 0.1}]
    assert [row[2] for row in tables.gpu_rows({"unmeasured": "no card"})] == [UNMEASURED] * 3
    assert [row[-1] for row in tables.gpu_rows(measured)] == ["no", "yes", "yes"]


@pytest.mark.parametrize("changes", [{}, {"mirror": False, "hidden_dropout": 0.0, "pull_to_start": 0.0}])
def test_folds_as_one_batch_learn_what_each_learns_alone(changes):
    with plain_torch():
        together, alone = (fold_learners(3, **SMALL, **changes) for _ in range(2))
        start = [parameter.detach().clone() for parameter in together[2].policy.parameters()]
        batch = FoldsAsOne(together)
        while not batch.finished:
            losses = batch.iterate()
        batch.give_back()
        for learner in alone:
            while not learner.finished:
                metrics = learner.iterate()
    assert metrics["train/loss"] == pytest.approx(float(losses[-1]), abs=1e-5)
    assert together[0].iteration == alone[0].iteration == 4
    for ours, theirs in zip(together, alone, strict=True):
        for weight, expected in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)
    moved = (abs(new - old).max() for new, old in zip(together[2].policy.parameters(), start, strict=True))
    assert max(moved) > 1e-2


def test_folds_that_differ_in_shape_or_stop_by_themselves_are_refused():
    with pytest.raises(ValueError, match="target_kl"):
        FoldsAsOne(fold_learners(1, **SMALL, target_kl=0.1))


def test_folds_as_one_have_a_time():
    with plain_torch():
        row = gpu.folds_as_one(2, CPU, **SMALL)
    assert row["seconds"] > 0
    assert (row["folds"], row["networks"]) == (2, 2)
