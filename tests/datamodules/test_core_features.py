"""The core features: causal, free of scale, and what Bayes says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from datamodules.features import core
from datamodules.features.compute import compute_features, load_features
from datamodules.planted import regime_mean
from datamodules.synthetic import SyntheticMarket
from lit_ppo.market.costs import Costs, known_cost

BARS = 1_500


def column(values: np.ndarray, name: str) -> np.ndarray:
    return values[:, core.NAMES.index(name)].astype(np.float64)


@pytest.fixture(scope="module")
def returns() -> np.ndarray:
    made = np.random.default_rng(3).standard_normal(BARS) * 1e-3
    made[0] = 0.0
    return made


def features_of(returns: np.ndarray, bar_seconds: int = 900, cost: float = 1e-4) -> np.ndarray:
    seconds = 345_600 + np.arange(len(returns)) * bar_seconds
    return core.core_features(returns, seconds, bar_seconds, np.full(len(returns), cost))


def test_a_later_end_of_the_file_changes_nothing(returns):
    np.testing.assert_array_equal(features_of(returns[:700]), features_of(returns)[:700])


def test_the_next_bar_is_not_known(returns):
    other = returns.copy()
    other[701:] *= -3.0
    np.testing.assert_array_equal(features_of(returns)[:701], features_of(other)[:701])
    assert (features_of(returns)[701] != features_of(other)[701]).any()


def test_a_hole_in_the_future_is_not_known_either(returns):
    other = returns.copy()
    other[701:] = np.nan
    np.testing.assert_array_equal(features_of(returns)[:701], features_of(other)[:701])


def test_rows_that_are_wanted_are_those_of_the_whole(returns):
    wanted = np.random.default_rng(0).random(BARS) < 0.3
    seconds, cost = 345_600 + np.arange(BARS) * 900, np.full(BARS, 1e-4)
    some = core.core_features(returns, seconds, 900, cost, wanted, room=2)
    assert some.shape == (BARS, len(core.NAMES) + 2)
    np.testing.assert_array_equal(some[wanted, :-2], features_of(returns)[wanted])


def test_a_mirrored_market_turns_odd_features_round_and_leaves_even_ones(returns):
    straight, turned = features_of(returns), features_of(-returns)
    np.testing.assert_allclose(turned, straight * np.array(core.PARITY), atol=2e-4)


def test_no_unit_of_price_or_volatility_matters(returns):
    np.testing.assert_allclose(features_of(returns * 7, cost=7e-4), features_of(returns), atol=2e-4)


def test_a_market_that_stands_still_and_days_without_hours_give_numbers(returns):
    assert np.isfinite(features_of(np.zeros(300))).all()
    daily = features_of(returns, bar_seconds=86_400)
    assert np.isfinite(daily).all()
    for name in ("wave_forecast", "hour_forecast", "hour_t"):
        assert not column(daily, name).any()


def z_of(returns: np.ndarray) -> np.ndarray:
    """z [N] as the core defines it, by the definition alone."""
    variance, spread, seen, found = 0.0, 1.0, 0, []
    for value in returns.tolist():
        square, z = value**2, 0.0
        if variance > 0 and seen >= 20:
            z = min(max(value / math.sqrt(variance * spread), -4.0), 4.0)
            spread += (min(square / variance, 16.0) - spread) / 2000
        if square > 0 or variance > 0:
            rate = max(1 / (seen + 1), 1 / 100)
            variance = square if variance <= 0 else variance + rate * (min(square, 25 * variance) - variance)
            seen += 1
        found.append(z)
    return np.array(found)


def test_the_drift_is_the_posterior_mean_of_a_wandering_coefficient(returns):
    """Against the batch solution: a Gaussian process with the same prior, conditioned on every z at once."""
    drifting = returns + 5e-5
    z = z_of(drifting)
    seen = np.flatnonzero(z)[:400]
    keep = math.exp(-1 / core.MEMORIES[0])
    at = int(seen[-1])
    lags = np.abs(seen[:, None] - seen[None, :])
    prior = core.DRIFT_SIZE**2 * keep ** lags.astype(float)
    toward = core.DRIFT_SIZE**2 * keep ** (at + 1 - seen).astype(float)
    wanted = toward @ np.linalg.solve(prior + np.eye(len(seen)), z[seen])
    found = column(features_of(drifting), "drift_forecast")[at] * core.MEAN_UNIT
    assert found == pytest.approx(wanted, rel=1e-4)


def test_the_regime_is_the_posterior_over_its_grid(returns):
    """Against the filter of the planted edges for each size and flip rate, weighted by explicit likelihoods."""
    z = z_of(returns)[:600]
    start = int(np.flatnonzero(z)[0])
    z = z[start:]
    keep = math.exp(-1 / core.MEMORIES[0])
    weights, forecasts = [], []
    for size in core.REGIME_SIZES:
        for flip in core.REGIME_FLIPS:
            mean = regime_mean(np.append(z, 0.0), size, flip)  # of each bar before it, and of the bar after the last
            up = (1 + mean[:-1] / size) / 2
            likelihood = up * np.exp(size * z) + (1 - up) * np.exp(-size * z)
            gains = np.log(likelihood) - size**2 / 2
            weights.append(sum(gain * keep ** (len(z) - 1 - t) for t, gain in enumerate(gains)))
            forecasts.append(mean[-1])
    shares = np.exp(np.array(weights) - max(weights))
    wanted = float(shares @ np.array(forecasts) / shares.sum())
    found = features_of(returns[: start + len(z)])
    assert column(found, "regime_forecast")[-1] * core.MEAN_UNIT == pytest.approx(wanted, rel=1e-4)
    odds = max(weights) + math.log(shares.mean())
    assert column(found, "regime_odds")[-1] * 4.0 == pytest.approx(odds, abs=1e-4)


def test_a_season_is_seen_where_there_is_one_and_its_odds_say_so(returns):
    hours = (345_600 + np.arange(BARS) * 900) / 3600 % 24
    seasonal = returns + 3e-4 * np.sin(2 * np.pi * hours / 24)
    there, not_there = features_of(seasonal), features_of(returns)
    assert column(there, "wave_odds")[-1] > 1.0 > column(not_there, "wave_odds")[-1]
    coming = np.sin(2 * np.pi * (hours + 0.25) / 24)
    assert np.corrcoef(column(there, "wave_forecast")[800:], coming[800:])[0, 1] > 0.9


def test_what_is_ahead_is_the_sum_over_the_coming_bars():
    """Against the regressors carried on bar by bar: a drift stays, averages fade, waves turn."""
    g = np.random.default_rng(0)
    T, W, bars, step = len(core.TREND_BARS), core.WAVES, 32, 2 * math.pi / 96
    angle = 1.0
    x = np.concatenate(([1.0], g.standard_normal(T), np.zeros(2 * W)))
    wanted = np.zeros(len(x))
    for bar in range(bars):
        fade = (1 - 1 / np.array(core.TREND_BARS)) ** bar
        turned = (np.arange(W) + 1) * (angle + bar * step)
        now = np.concatenate(([1.0], x[1 : 1 + T] * fade, np.stack([np.sin(turned), np.cos(turned)], axis=1).ravel()))
        wanted += now
        if bar == 0:
            x = now
    counts = np.arange(bars)
    fades = np.concatenate(([bars], (1 - (1 - 1 / np.array(core.TREND_BARS)) ** bars) * core.TREND_BARS))
    along = np.array([np.cos(counts * (k + 1) * step).sum() for k in range(W)])
    across = np.array([np.sin(counts * (k + 1) * step).sum() for k in range(W)])
    found = np.empty(len(x))
    core._coming(x, fades, along, across, T, found)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("what", ["single", "joint"])
def test_a_season_is_added_up_over_the_bars_ahead(returns, what):
    hours = (345_600 + np.arange(BARS) * 900) / 3600 % 24
    seasonal = features_of(returns + 6e-4 * np.sin(2 * np.pi * hours / 24))
    forecast = column(seasonal, "wave_forecast" if what == "single" else "joint_all_forecast") * core.MEAN_UNIT
    rows = np.arange(BARS - 300, BARS - 200)
    for bars in core.AHEAD:
        found = np.sinh(column(seasonal, f"{what}_ahead_{bars}")[rows]) * core.AHEAD_UNIT
        summed = np.array([forecast[row : row + bars].sum() for row in rows])
        assert np.corrcoef(found, summed)[0, 1] > (0.97 if what == "single" else 0.7)


def test_they_are_features_like_others_and_enter_as_they_are():
    specs = load_features("core")
    assert [spec.label for spec in specs[:-1]] == [f"core_{name}" for name in core.NAMES]
    assert specs[-1].label == "core_hurdle"  # the recipe asks for the default, which `predict --ckpt prior` has too
    assert all(spec.scale_free for spec in specs)
    bars = SyntheticMarket(num_bars=400, seed=1).bars()
    with pytest.raises(ValueError, match="cost"):
        compute_features(bars.frame, specs, bars.bar_seconds)
    cost = known_cost(bars.frame, Costs(), bars.point)
    matrix = compute_features(bars.frame, specs, bars.bar_seconds, cost=cost)
    assert np.isfinite(matrix[core.START_BARS :]).all()
    assert matrix[-1, -1] == pytest.approx(math.log(0.002 / core.HURDLE_UNIT))  # the default caution
