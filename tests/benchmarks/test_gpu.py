"""The rates that a card would be measured by: the same code on the CPU, and the rows that it fills."""

from __future__ import annotations

import torch

from benchmarks import gpu, tables
from benchmarks.markdown import UNMEASURED
from benchmarks.pretraining import make_learner
from datamodules.oracle_bars import train_fold
from datamodules.synthetic import SyntheticMarket

CPU = torch.device("cpu")


def test_a_rate_is_that_of_the_iterations_after_the_warm_up():
    learner = make_learner(num_envs=2, num_steps=8, num_minibatches=1, hidden_size=4)
    assert gpu.steps_per_second(learner, CPU, iterations=2, warmup=1) > 0
    assert learner.timesteps == 3 * 2 * 8
    market = train_fold(SyntheticMarket(kind="regime", seed=1), 1_000).fold_data(0).train
    row = gpu.measure(market, num_envs=4, hidden_size=4, iterations=1, warmup=0)
    assert row["tflops"] > 0
    assert row["memory_mb"] is None  # only a card says


def test_a_card_fills_both_rows_and_none_fills_neither():
    measured = {"card": "a card", "pretraining": {"bars_per_s": 2e6}}
    measured["rows"] = [{"steps_per_s": 1e6, "share_of_matmul_peak": 0.1}]
    assert [row[2] for row in tables.gpu_rows({"unmeasured": "no card"})] == [UNMEASURED] * 2
    assert [row[-1] for row in tables.gpu_rows(measured)] == ["no", "yes"]
