"""The screen keeps what says something about the next return, and little else."""

import dataclasses

import numpy as np
import torch

from lit_ppo.ppo.screening import keep_all_features, screen_features
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
    assert sum(kept) <= 2  # binomial(40, .01): more than 2 has probability 0.007


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
