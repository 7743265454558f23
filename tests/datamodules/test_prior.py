"""The prior: what is drawn is what was declared, and a market is a function of its number."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from datamodules.prior import FEATURES, KINDS, UNIT, Edge, Prior, PriorStream, draw_edges, draw_market, make_market
from datamodules.prior_data import PriorDataModule
from lit_ppo.market.stretches import MarketStream
from lit_ppo.scoring.exam import mark
from lit_ppo.store.prior_weights import PriorWeights

SMALL = Prior(bars=(400, 600))


def stream(**changes) -> PriorStream:
    return PriorStream(
        **{"prior": SMALL, "seed": 1, "ring": 6, "fresh": 2, "contexts": (16,), "context_weights": (1.0,)} | changes
    )


def test_a_market_is_a_function_of_seed_and_number():
    one, again, other = draw_market(SMALL, 1, 5), draw_market(SMALL, 1, 5), draw_market(SMALL, 1, 6)
    np.testing.assert_array_equal(one.log_return, again.log_return)
    np.testing.assert_array_equal(one.features(), again.features())
    assert one.edges == again.edges
    assert len(one.log_return) != len(other.log_return) or (one.log_return != other.log_return).any()


def test_kinds_come_as_often_as_declared_and_sizes_stay_in_their_ranges():
    g = np.random.default_rng(0)
    drawn = [draw_edges(SMALL, g) for _ in range(4_000)]
    share = np.mean([not edges for edges in drawn])
    assert share == pytest.approx(SMALL.nothing, abs=0.03)
    single = [edges[0] for edges in drawn if len(edges) == 1]
    for kind, weight in zip(KINDS, SMALL.kinds, strict=True):
        assert np.mean([edge.kind == kind for edge in single]) == pytest.approx(weight, abs=0.04)
    for edges in drawn:
        for edge in edges:
            low, high = getattr(SMALL, edge.kind)
            assert low <= edge.size <= high


@pytest.mark.parametrize(
    "edge",
    [
        Edge("drift", 0.1, {"sign": -1.0}),
        Edge("season", 0.2, {"turns": 1.0, "phase": 1.0}),
        Edge("trend", 0.2, {"bars": 10.0, "sign": 1.0}),
        Edge("regime", 0.2, {"flip": 0.01}),
    ],
    ids=lambda edge: edge.kind,
)
def test_what_is_left_of_a_return_after_its_move_is_noise_that_nothing_foretells(edge):
    g = np.random.default_rng(11)
    seconds = 345_600 + np.arange(20_000) * 900
    market = make_market(Prior(plain=1.0), g, seconds, 900, (edge,), 0.05, 0.002)
    left = market.log_return / market.sigma - market.moves
    standard_error = 1 / np.sqrt(len(left))
    assert abs(left.mean()) < 3 * standard_error
    assert abs(np.corrcoef(left[1:], market.moves[1:])[0, 1]) < 3 * standard_error
    forecast = market.forecast[:-1]
    if edge.kind == "regime":  # the filter knows less than the truth, and is right on average
        slope = np.polyfit(forecast, market.moves[1:], 1)[0]
        assert slope == pytest.approx(1.0, abs=0.1)
    else:
        np.testing.assert_allclose(forecast, market.moves[1:])


def test_a_null_market_pays_for_nothing():
    g = np.random.default_rng(2)
    market = make_market(SMALL, g, 345_600 + np.arange(500) * 900, 900, (), 0.05, 0.002)
    assert not market.moves.any()
    assert not market.forecast.any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nothing": 1.2}, "probability"),
        ({"drift": (0.1, 0.01)}, "range"),
        ({"kinds": (1, 1)}, "weights"),
        ({"bars": (50, 90)}, "at least"),
    ],
)
def test_what_is_no_distribution_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Prior(**changes)


def test_an_iteration_of_a_stream_does_not_depend_on_the_ones_before():
    first, fresh = stream(), stream()
    for iteration in range(3):
        first.draw(iteration, 4, 32)
    (market, stretches), (again, same) = first.draw(3, 4, 32), fresh.draw(3, 4, 32)
    torch.testing.assert_close(stretches.features, same.features, rtol=0, atol=0)
    torch.testing.assert_close(market.price_return, again.price_return, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 32), (6, 32), (4, 48), (9, 16)])
def test_the_order_and_the_shape_of_earlier_draws_do_not_matter(shape):
    """Features are found for the rows that will be read: other stretches, or an earlier iteration, read others."""
    used, fresh = stream(), stream()
    for iteration in (7, 2, 3):
        used.draw(iteration, 4, 32)
    for iteration in (3, 1):
        (_, stretches), (_, same) = used.draw(iteration, *shape), fresh.draw(iteration, *shape)
        torch.testing.assert_close(stretches.features, same.features, rtol=0, atol=0)


def test_stretches_hold_bars_of_the_ring_and_earn_the_mean_of_the_coming_bar():
    source = stream()
    market, stretches = source.draw(2, 5, 24)
    assert isinstance(source, MarketStream)
    assert stretches.features.shape == (16 + 24 + 1, 5, len(FEATURES))
    assert market.price_return.shape == (24 * 5,)
    own = {index: draw_market(SMALL, 1, index) for index in range(4, 10)}
    for s in range(5):
        wanted = stretches.features[16:40, s].numpy()
        found = 0
        for drawn in own.values():
            features = drawn.features()
            for start in range(len(features) - 24):
                if np.array_equal(features[start : start + 24], wanted):
                    found += 1
                    earned = market.price_return.view(24, 5)[:, s].numpy() / UNIT
                    moves = drawn.moves[start + 1 : start + 25]
                    np.testing.assert_array_equal(np.sign(earned), np.sign(moves))
                    np.testing.assert_allclose(earned, moves, rtol=1.0, atol=1e-12)  # but for the unit
        assert found == 1


def test_ranks_have_markets_of_their_own():
    (one, _), (two, _) = (stream().of_rank(rank).draw(0, 4, 16) for rank in (0, 1))
    assert not torch.equal(one.price_return, two.price_return)


def test_more_sequences_than_markets_are_drawn_too():
    market, _ = stream().draw(0, 9, 16)
    assert len(market) == 9 * 16


def test_the_exam_is_passed_by_who_knows_and_failed_by_who_sleeps():
    data = PriorDataModule(SMALL, ring=4, fresh=1)
    exam = data.exam()
    assert [cell.name for cell in exam.cells][-1] == "nothing"
    policy = tiny_policy()
    marks = mark(policy, type(exam)(exam.cells[:1]))
    assert marks.metrics["share_regime_10"] == pytest.approx(0.0, abs=0.2)


def tiny_policy():
    from lit_ppo.nets.policy import MarketPolicy
    from lit_ppo.seeding import make_generator

    return MarketPolicy(
        len(FEATURES), hidden_size=8, policy_layers=(8,), value_layers=(8,), generator=make_generator(0)
    )


def test_the_card_of_the_released_weights_is_what_they_score():
    """The file's scores are recomputed from the file: two of its markets here, all of them by `make bench`."""
    from lit_ppo.recipe import Recipe, build_policy

    weights = PriorWeights.read("prior")
    assert weights.card["real_bars_seen"] == 0
    policy = build_policy(Recipe(start="prior"), {"feature_names": list(weights.features)}, 0)
    data = PriorDataModule(
        Prior(**{name: tuple(x) if isinstance(x, list) else x for name, x in weights.card["data"]["prior"].items()}),
        weights.card["data"]["prior_seed"],
    )
    cells = [cell for cell in data.exam().cells if cell.name in ("season_10", "drift_05")]
    marks = mark(policy, type(data.exam())(tuple(cells)))
    for name, share in marks.metrics.items():
        assert share == pytest.approx(weights.card["exam"][name], abs=0.02), name


def pretrain_command(folder, timesteps: int, more: tuple[str, ...] = ()) -> list[str]:
    small = {
        "trainer.default_root_dir": folder,
        "trainer.check_val_every_n_epoch": 1_000,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "model.total_timesteps": timesteps,
        "model.num_envs": 8,
        "model.num_steps": 16,
        "model.hidden_size": 8,
        "model.final_learning_rate": 0.002,  # the same step in every iteration, however long the training is
        "data.ring": 4,
        "data.fresh": 1,
        "data.contexts": "[16]",
        "data.context_weights": "[1.0]",
        "data.prior.bars": "[400, 500]",
    }
    return ["pretrain", "--config", "prior", *more, *(f"--{name}={value}" for name, value in small.items())]


def pretrain(folder, timesteps: int, more: tuple[str, ...] = ()) -> int:
    from lit_ppo.cli import main

    return main(pretrain_command(folder, timesteps, more))


@pytest.fixture
def small_exam(monkeypatch):
    monkeypatch.setattr("datamodules.prior_data.EXAM", {"drift_05": Edge("drift", 0.2, {"sign": 1.0})})
    monkeypatch.setattr("datamodules.prior_data.EXAM_BARS", 1_500)


def test_a_pretraining_that_goes_on_gives_the_weights_of_one_that_was_never_stopped(tmp_path, small_exam):
    assert pretrain(tmp_path / "whole", 8 * 16 * 4) == 0
    assert pretrain(tmp_path / "parts", 8 * 16 * 2) == 0
    assert pretrain(tmp_path / "parts", 8 * 16 * 4, ("--ckpt_path", "last")) == 0
    whole, parts = (PriorWeights.read(tmp_path / name / "prior.safetensors") for name in ("whole", "parts"))
    assert whole.card["timesteps"] == parts.card["timesteps"] == 8 * 16 * 4
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(tensor, parts.tensors[name], rtol=0, atol=0)
    assert whole.card["exam"].keys() == {"share_drift_05", "exposure_drift_05"}


def test_half_precision_takes_the_same_way(tmp_path, small_exam):
    for name, precision in (("full", "32-true"), ("half", "bf16-mixed")):
        assert pretrain(tmp_path / name, 8 * 16 * 2, ("--trainer.precision", precision)) == 0
    full, half = (PriorWeights.read(tmp_path / name / "prior.safetensors").tensors for name in ("full", "half"))
    apart = max(float((full[name].float() - half[name].float()).abs().max()) for name in full)
    assert 0 < apart < 0.05  # other roundings, and the same steps of .002


@pytest.mark.slow
def test_two_ranks_share_one_pretraining(tmp_path):
    """They draw markets of their own and average their gradients: the second time gives the same weights."""
    more = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    files = []
    for name in ("once", "again"):
        command = pretrain_command(tmp_path / name, 2 * 8 * 16 * 2, more)
        subprocess.run([sys.executable, "-m", "lit_ppo", *command], check=True, timeout=600)
        files.append(PriorWeights.read(tmp_path / name / "prior.safetensors"))
    assert files[0].card["timesteps"] == 2 * 8 * 16 * 2
    for name, tensor in files[0].tensors.items():
        torch.testing.assert_close(tensor, files[1].tensors[name], rtol=0, atol=0)
