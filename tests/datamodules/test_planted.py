"""A planted file is an ordinary bar file with the noise of the real one and no direction but what was planted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.bars.read import Bars, read_bars
from datamodules.planted import (
    EDGE_COLUMN,
    FLIP,
    KINDS,
    Edge,
    mirrored,
    plant,
    regime_mean,
    relative,
    volatility,
    write_bars,
)
from lit_ppo.oracles import optima

BARS = 20_000
GOLD = "XAUUSDm_15min_exness_2022-11_2025-05.csv.gz"


def noise_frame(length: int = BARS) -> pd.DataFrame:
    """Fat tails, volatility clusters, a trend, weekends and a spread: what a real file has."""
    numbers = np.random.default_rng(7)
    wave = np.convolve(numbers.standard_normal(length + 400), np.exp(-np.arange(400) / 80), "valid")[:length]
    returns = 5e-4 * np.exp(0.08 * wave) * numbers.standard_t(4, length) + 2e-5
    close = 1800 * np.exp(np.cumsum(returns))
    open_ = np.append(1800.0, close[:-1]) * np.exp(2e-5 * numbers.standard_normal(length))
    reach = np.exp(2e-4 * np.abs(numbers.standard_normal((2, length))))
    minutes = np.arange(length) * 15
    minutes = minutes + minutes // (5 * 1440) * (2 * 1440)  # five days, then a weekend
    return pd.DataFrame(
        {
            "time": pd.Timestamp("2022-01-03", tz="UTC") + pd.to_timedelta(minutes, unit="min"),
            "open": open_.round(3),
            "high": (np.maximum(open_, close) * reach[0]).round(3),
            "low": (np.minimum(open_, close) / reach[1]).round(3),
            "close": close.round(3),
            "volume": numbers.integers(1, 1000, length),
            "spread": numbers.integers(100, 300, length),
        }
    )


@cache
def bars_of(folder: Path) -> Bars:
    path = folder / "noise.csv"
    noise_frame().to_csv(path, index=False)
    return read_bars(path)


@pytest.fixture
def noise(tmp_path_factory) -> Bars:
    return bars_of(tmp_path_factory.getbasetemp())


@pytest.fixture(params=["made", "gold"])
def either(request, noise) -> Bars:
    """The made noise, and the real one where it is at hand."""
    return noise if request.param == "made" else read_bars(request.getfixturevalue("bar_file")(GOLD))


def closes(frame: pd.DataFrame) -> np.ndarray:
    return np.diff(np.log(frame["close"].to_numpy()))


def autocorrelation(x: np.ndarray, lag: int) -> float:
    return float(np.corrcoef(x[lag:], x[:-lag])[0, 1])


def size_of(kind: str) -> float:
    return 0.0 if kind == "null" else 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_file_reads_back_as_the_bars_in_memory(noise, kind, tmp_path):
    planted = plant(noise, Edge(kind, size_of(kind)), np.random.default_rng(0))
    read = read_bars(planted.write(tmp_path / "planted.csv"))
    assert (read.point, read.bar_seconds, read.bars_per_year) == (noise.point, noise.bar_seconds, noise.bars_per_year)
    pd.testing.assert_frame_equal(read.frame, planted.bars.frame, check_dtype=False, rtol=1e-12)
    assert (EDGE_COLUMN in read.frame) == (kind == "column")
    for name in ("time", "volume", "spread"):
        assert read.frame[name].equals(noise.frame[name]), name


def test_a_file_without_volume_is_written_without_it(tmp_path):
    path = tmp_path / "plain.csv"
    noise_frame(600).drop(columns=["volume", "spread"]).to_csv(path, index=False)
    planted = plant(read_bars(path), Edge("null"), np.random.default_rng(0))
    assert not read_bars(write_bars(planted.bars, tmp_path / "planted.csv.gz")).has_volume


@pytest.mark.parametrize("kind", KINDS)
def test_high_and_low_hold_open_and_close(either, kind):
    frame = plant(either, Edge(kind, size_of(kind)), np.random.default_rng(1)).bars.frame
    assert (frame["high"] >= frame[["open", "close"]].max(axis=1)).all()
    assert (frame["low"] <= frame[["open", "close"]].min(axis=1)).all()
    assert (frame["low"] > 0).all()


def test_sizes_and_volatility_clusters_stay(either):
    before = np.abs(closes(either.frame))
    null = np.abs(closes(plant(either, Edge("null"), np.random.default_rng(2)).bars.frame))
    shares = [0.1, 0.5, 0.9, 0.99, 0.999]
    np.testing.assert_allclose(np.quantile(null, shares), np.quantile(before, shares), rtol=0.02)
    edge = np.abs(closes(plant(either, Edge("momentum", 0.1), np.random.default_rng(2)).bars.frame))
    shares = shares[1:]  # a move of up to .2 sigma shows in the smallest sizes
    np.testing.assert_allclose(np.quantile(edge, shares), np.quantile(before, shares), rtol=0.06)
    for lag in (1, 5, 20, 96):
        assert autocorrelation(null, lag) == pytest.approx(autocorrelation(before, lag), abs=0.01)
        assert autocorrelation(edge, lag) == pytest.approx(autocorrelation(before, lag), abs=0.03)


def test_the_null_has_no_direction(either):
    """Of many mirrors' statistics, in standard errors, one in twenty may pass 2; their spread must be 1, mean 0."""
    hour = either.frame["time"].dt.hour.to_numpy()[1:]
    scores = []
    for seed in range(4):
        planted = plant(either, Edge("null"), np.random.default_rng(seed))
        assert not planted.moves.any()
        z = closes(planted.bars.frame) / planted.sigma[1:]
        z = np.clip(z, -5, 5)
        scores.append(z.mean() / z.std() * np.sqrt(len(z)))  # drift
        scores += [
            (z[lag:] * z[:-lag]).mean() / (z[lag:] * z[:-lag]).std() * np.sqrt(len(z) - lag) for lag in (1, 2, 5, 20)
        ]
        scores += [z[hour == h].mean() / z[hour == h].std() * np.sqrt((hour == h).sum()) for h in np.unique(hour)]
    scores = np.array(scores)
    assert np.abs(scores).max() < 4
    assert (np.abs(scores) > 2).mean() < 0.12
    assert abs(scores.mean()) < 0.25


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "null"])
def test_the_forecast_is_what_the_next_close_moves_by(noise, kind):
    """Regressed on the forecast of the bar before, the file's z rises one for one."""
    planted = plant(noise, Edge(kind, 0.2), np.random.default_rng(3))
    z = closes(planted.bars.frame) / planted.sigma[1:]
    known, z = planted.forecast[:-1], np.clip(z, -6, 6)
    slope = (known * z).sum() / np.square(known).sum()
    error = z.std() / np.sqrt(np.square(known).sum())
    assert abs(slope - 1) < 3 * error
    assert slope > 5 * error
    if kind != "regime":  # whose state the trader does not see
        np.testing.assert_allclose(planted.forecast[:-1], planted.moves[1:])
    assert planted.forecast[-1] == 0


def test_a_fading_edge_ends_in_the_middle(noise):
    planted = plant(noise, Edge("fading", 0.1, ("regime",)), np.random.default_rng(4))
    half = len(noise) // 2
    assert np.abs(planted.moves[:half]).min() == pytest.approx(0.1)
    assert not planted.moves[half:].any()
    assert not planted.forecast[half:].any()


def test_two_edges_are_the_sum_of_both(noise):
    both, season, drift = (
        plant(noise, edge, np.random.default_rng(5)).moves
        for edge in (Edge("two", 0.1, ("season", "drift")), Edge("season", 0.1), Edge("drift", 0.1))
    )
    np.testing.assert_allclose(both, season + drift)


def test_the_forecast_of_a_bar_does_not_change_with_the_bars_after_it(noise):
    """Exact but for the scale of momentum, which is one number of the whole file."""
    z = np.random.default_rng(0).standard_normal(3000)
    np.testing.assert_array_equal(regime_mean(z, 0.1)[:2000], regime_mean(z[:2000], 0.1))
    np.testing.assert_array_equal(volatility(z)[:2000], volatility(z[:2000]))
    short = replace(noise, frame=noise.frame.iloc[:15_000])
    edge = Edge("season", 0.1)
    long_, less = (plant(bars, edge, np.random.default_rng(6)) for bars in (noise, short))
    assert long_.bars.frame["close"].iloc[:15_000].equals(less.bars.frame["close"])
    np.testing.assert_array_equal(long_.forecast[:14_999], less.forecast[:14_999])


def test_the_belief_filter_is_bayes_sum_over_all_paths():
    size, z = 0.3, np.random.default_rng(8).standard_normal(9) * 2
    seen = np.clip(z, -4, 4)
    expected = []
    for t in range(len(z)):
        weight = {1: 0.0, -1: 0.0}
        for path in product((1, -1), repeat=t + 1):  # states of bars 0 .. t
            p = 0.5
            for a, b in pairwise(path):
                p *= FLIP if a != b else 1 - FLIP
            p *= np.exp(-0.5 * np.square(seen[:t] - size * np.array(path[:t])).sum())
            weight[path[-1]] += p
        expected.append(size * (weight[1] - weight[-1]) / (weight[1] + weight[-1]))
    np.testing.assert_allclose(regime_mean(z, size), expected, atol=1e-12)


def test_the_belief_filter_is_the_laboratorys():
    z = np.random.default_rng(9).standard_normal(500)
    odds = optima.next_log_odds(optima.belief_log_odds(z, FLIP, 0.2), FLIP)
    np.testing.assert_allclose(regime_mean(z, 0.2)[1:], 0.2 * np.tanh(odds / 2)[:-1], atol=1e-12)


def test_a_mirrored_bar_is_the_bar_upside_down(noise):
    logs = relative(noise.frame)
    turned = mirrored(logs, np.random.default_rng(10))
    down = (turned.close != logs.close) | (turned.high != logs.high)
    assert 0.4 < down.mean() < 0.6
    np.testing.assert_array_equal(turned.high[down], -logs.low[down])
    np.testing.assert_array_equal(turned.low[down], -logs.high[down])
    np.testing.assert_array_equal(turned.close[down], -logs.close[down])
    np.testing.assert_array_equal(turned.close[~down], logs.close[~down])


def test_one_seed_gives_one_file(noise, tmp_path):
    def text(seed: int) -> bytes:
        planted = plant(noise, Edge("column", 0.1), np.random.default_rng(seed))
        return planted.write(tmp_path / "planted.csv").read_bytes()

    assert text(1) == text(1)
    assert text(1) != text(2)


@pytest.mark.parametrize(
    ("kind", "size", "parts", "message"),
    [
        ("trend", 0.1, (), "kind is one of"),
        ("drift", -0.1, (), "size is in"),
        ("null", 0.1, (), "size must be 0"),
        ("two", 0.1, ("drift", "drift"), "2 different parts"),
        ("drift", 0.1, ("season",), "0 different parts"),
    ],
)
def test_an_edge_that_cannot_be_is_refused(kind, size, parts, message):
    with pytest.raises(ValueError, match=message):
        Edge(kind, size, parts)


def test_bars_that_do_not_move_are_refused():
    with pytest.raises(ValueError, match="do not move"):
        volatility(np.zeros(600))
