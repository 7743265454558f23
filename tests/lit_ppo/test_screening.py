"""The screen keeps what says something about the next return, and little else."""

import dataclasses

import numpy as np
import pytest
import torch

from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.screening import keep_all_features, mirror_line, screen_features
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, policy_inputs
from tests.lit_ppo.markets import market_tensors


def with_features(market, columns, parity):
    features = torch.from_numpy(np.column_stack(columns)).float()
    names = tuple(f"f{i}" for i in range(features.shape[1]))
    return dataclasses.replace(market, features=features, feature_names=names, feature_parity=parity)


def noise_market(seed, useless=30, bars=2500):
    market = market_tensors(num_bars=bars, seed=seed, mean=0.2)
    draw = np.random.default_rng(seed + 100)
    columns = [market.features[:, 0].numpy(), *draw.standard_normal((useless, bars))]
    return with_features(market, columns, (-1,) + (0,) * useless)


def test_useless_features_are_dropped_but_for_a_rare_one():
    kept = [int((screen_features(noise_market(seed), 0).gain[1:] > 0).sum()) for seed in range(20)]
    assert sum(count > 0 for count in kept) <= 2, kept  # binomial(20, .01): more than 2 has probability 0.001
    assert max(kept) <= 2


def test_a_return_with_memory_is_kept_and_one_without_is_not():
    screens = [screen_features(market_tensors(num_bars=2500, seed=seed, mean=0.2), 0) for seed in range(10)]
    assert all(screen.gain[0] == 1.0 for screen in screens)
    assert all(screen.mirror_sign[0] == -1.0 for screen in screens)
    kept = [screen_features(market_tensors(num_bars=2500, seed=seed, mean=0.0), 0).gain[0] > 0 for seed in range(40)]
    assert sum(kept) <= 3  # by itself or by a product: binomial(40, .02): more than 3 has probability 0.008


def test_quiet_and_wild_times_are_not_taken_for_memory():
    """Returns without memory whose size comes in waves: shuffled ones would call every third of them predictable."""
    found = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        waves = np.exp(1.2 * np.sin(np.arange(2000) / 60 + draw.uniform(0, 6)))
        returns = waves * draw.standard_t(4, 2000)
        market = market_tensors(num_bars=2000, seed=seed, mean=0.0)
        market.features[:, 0] = torch.from_numpy(returns / returns.std()).float()
        market = dataclasses.replace(market, price_return=torch.from_numpy(np.roll(returns, -1)) * 1e-4)
        found += int(screen_features(market, 0).gain[0] > 0)
    assert found <= 2  # binomial(40, .01): more than 2 has probability 0.007


def test_a_feature_that_predicts_is_kept_and_counts_as_odd():
    market = noise_market(1)
    columns = list(market.features.numpy().T)
    draw = np.random.default_rng(9)
    columns[7] = market.price_return.numpy() / market.price_return.numpy().std() + 3 * draw.standard_normal(len(market))
    screen = screen_features(with_features(market, columns, market.feature_parity), 0)
    assert screen.gain[7] == 1.0
    assert screen.mirror_sign[7] == -1.0
    assert screen.score[7] > screen.threshold[7]
    copies = [*columns[:20], *[columns[7] + 0.01 * draw.standard_normal(len(market)) for _ in range(11)]]
    again = screen_features(with_features(market, copies, market.feature_parity), 0)
    assert (again.gain[1:] > 0.05).sum() <= 2, "copies of a kept feature say nothing new"


def test_validation_and_warm_up_rows_are_not_looked_at():
    market = noise_market(2)
    warm = dataclasses.replace(market, warmup=300)
    before = screen_features(warm, 0)
    market.features[:300] = 1e6
    after = screen_features(dataclasses.replace(market, warmup=300), 0)
    assert torch.equal(before.gain, after.gain)
    assert torch.equal(before.score, after.score)


def test_a_constant_feature_does_no_harm():
    market = noise_market(3)
    market.features[:, 4] = 1.0
    screen = screen_features(market, 0)
    assert screen.gain[4] == 0.0
    assert torch.isfinite(screen.score).all()


def test_without_a_screen_declared_parities_count():
    market = with_features(market_tensors(), list(market_tensors().features.numpy().T), (-1, 1, 0))
    screen = keep_all_features(market)
    assert screen.gain.tolist() == [1.0, 1.0, 1.0]
    assert screen.mirror_sign.tolist() == [-1.0, 1.0, 1.0]


def test_a_feature_declared_even_keeps_its_sign_under_the_mirror_even_where_no_feature_is_odd():
    market = market_tensors(num_bars=2500, seed=0, mean=0.2)
    columns = [market.features[:, 0].numpy(), market.features[:, 0].abs().numpy()]
    for parity, sign in (((1, 1), (1.0, 1.0)), ((0, 1), (-1.0, 1.0)), ((-1, 1), (-1.0, 1.0))):
        assert tuple(screen_features(with_features(market, columns, parity), 0).mirror_sign.tolist()) == sign


def clock_market(seed, bars=4000, hour=0.0, drift=0.0, modulated=0.0):
    """Noise, with a mean that has an hour or a drift, or whose return goes on in the hours in which the sine is up."""
    draw = np.random.default_rng(seed)
    sine = np.sin(2 * np.pi * np.arange(bars) / 96)
    seen = draw.standard_normal(bars)
    following = drift + hour * sine + modulated * sine * seen + draw.standard_normal(bars)
    market = market_tensors(num_bars=bars, seed=seed)
    market = dataclasses.replace(market, price_return=torch.from_numpy(1e-3 * following))
    return with_features(market, [seen, sine], (-1, 1))


def test_a_drift_and_an_hour_tell_up_from_down_and_noise_does_not():
    assert not screen_features(clock_market(0, drift=0.1), 0).symmetric
    hours = screen_features(clock_market(0, hour=0.2), 0)
    assert not hours.symmetric
    assert hours.sides["f1"][0] > hours.sides["f1"][1]
    assert list(hours.mirror_sign) == [-1, 1]
    trend = screen_features(market_tensors(num_bars=4000, seed=1, mean=0.2), 0)
    assert trend.symmetric
    assert trend.gain[0] == 1
    sided = sum(not screen_features(clock_market(seed, bars=1000), 0).symmetric for seed in range(40))
    assert sided <= 3  # a test of 1 % and one of .5 %: binomial(40, .015): more than 3 has probability 0.003


def test_a_longer_window_has_more_stretches_and_sees_a_smaller_drift():
    needed = {bars: screen_features(clock_market(0, bars=bars), 0).sides["drift"][1] for bars in (1500, 4000, 12_000)}
    assert needed == pytest.approx({1500: 4.03, 4000: 3.17, 12_000: 2.98}, abs=0.005)  # Student's t, 8, 20, 40 means
    small = clock_market(5, bars=12_000, drift=0.05)
    assert not screen_features(small, 0).symmetric


def test_a_regime_or_a_trend_is_not_taken_for_a_drift():
    """Their means wander more than those of noise: a standard error of single bars calls 56 % of these a drift."""
    markets = [market_tensors(num_bars=2000, seed=seed, mean=0.5, flip=0.01) for seed in range(20)]
    assert sum(not screen_features(market, 0).symmetric for market in markets) <= 2  # one in 70 is expected


def test_a_feature_that_only_modulates_is_kept_with_the_one_whose_meaning_it_changes():
    screen = screen_features(clock_market(2, modulated=0.2), 0)
    assert screen.gain.tolist() == [1, 1]
    assert screen.modulates.tolist() == [False, True]
    assert screen.score[1] > screen.threshold[1]
    assert set(screen.sides) == {"drift"}  # it says nothing about the sign by itself
    record = screen.record(("f0", "f1"))
    assert record["modulates"] == ["f1"]
    assert record["years"] == 4000 / 24_000


def test_the_mirror_asks_the_train_bars_and_says_what_they_said():
    decided = {}
    for name, drift in (("alike", 0.0), ("up", 0.2)):
        market = clock_market(3, bars=1500, drift=drift)
        for mirror in ("auto", True, False):
            recipe = Recipe(num_envs=4, num_steps=16, burn_in=4, hidden_size=4, total_timesteps=64, mirror=mirror)
            policy = build_policy(recipe, policy_inputs(market), 0)
            learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)
            learner.attach(market)
            assert bool(policy.mirrored) == learner.source.mirrored
            decided[name, mirror] = (learner.source.mirrored, learner.mirror_record is not None)
            if (name, mirror) == ("up", "auto"):
                assert learner.mirror_record is not None
                assert mirror_line(learner.mirror_record).startswith("not mirrored (drift ")
                assert not learner.sees_nothing  # a side can be learnt without any feature
    assert decided == {
        ("alike", "auto"): (True, True),
        ("alike", True): (True, False),
        ("alike", False): (False, False),
        ("up", "auto"): (False, True),
        ("up", True): (True, False),
        ("up", False): (False, False),
    }


def test_a_grid_that_is_not_symmetric_is_not_mirrored_unless_asked_to():
    market = clock_market(4, bars=1000)
    recipe = Recipe(num_envs=4, num_steps=16, burn_in=4, hidden_size=4, total_timesteps=64, positions=(0.0, 1.0))
    policy = build_policy(recipe, policy_inputs(market), 0)
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)
    learner.attach(market)
    assert not learner.source.mirrored
    assert "the positions are not symmetric" in mirror_line(learner.mirror_record)
