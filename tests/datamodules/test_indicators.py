"""Indicators against slow oracles and by hand; their parity under a mirror of the price; their warm-up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.features.compute import FeatureSpec, load_features
from datamodules.features.indicators import REGISTRY, BarArrays

FULL = load_features("full")
# The running ones have a test file of their own: test_core_features.py
EVERY = load_features([{"name": name} for name, entry in REGISTRY.items() if not entry.running])
BOTH = list({spec.label: spec for spec in (*FULL, *EVERY)}.values())
SECONDS = 900.0


def random_bars(bars: int = 2500, seed: int = 0) -> pd.DataFrame:
    """Bars with trends, gaps over nights and weekends, and quiet hours without any movement."""
    rng = np.random.default_rng(seed)
    time = pd.date_range("2024-02-26", periods=2 * bars, freq="15min", tz="UTC")
    time = time[(time.day_of_week < 5) & (time.hour != 22)][:bars]
    steps = rng.standard_t(4, bars) * 1e-3 + 2e-4 * np.sin(np.arange(bars) / 50)
    steps[700:712] = 0.0
    close = np.cumsum(steps) + math.log(2000.0)
    open_ = np.append(close[0], close[:-1]) + rng.normal(0, 1e-4, bars)
    open_[701:712] = close[701:712]
    wicks = np.abs(rng.normal(0, 3e-4, (2, bars)))
    wicks[:, 701:712] = 0.0
    return pd.DataFrame(
        {
            "time": time,
            "open": np.exp(open_),
            "high": np.exp(np.maximum(open_, close) + wicks[0]),
            "low": np.exp(np.minimum(open_, close) - wicks[1]),
            "close": np.exp(close),
            "volume": rng.integers(0, 500, bars).astype(float),
        }
    )


def mirrored(frame: pd.DataFrame) -> pd.DataFrame:
    """The same bars upside down in log price: the high becomes the low."""
    fixed = frame["close"].iloc[0] ** 2
    columns = {"open": "open", "high": "low", "low": "high", "close": "close"}
    return frame.assign(**{name: fixed / frame[other] for name, other in columns.items()})


def compute(name: str, frame: pd.DataFrame, **parameters) -> np.ndarray:
    return REGISTRY[name].function(BarArrays(frame, SECONDS), **parameters)


def values_of(spec: FeatureSpec, frame: pd.DataFrame) -> np.ndarray:
    return spec.compute(BarArrays(frame, SECONDS))


def bars_of(closes, **columns) -> pd.DataFrame:
    closes = np.asarray(closes, dtype=float)
    time = pd.date_range("2024-01-02", periods=len(closes), freq="15min", tz="UTC")
    frame = pd.DataFrame({"time": time, "open": closes, "high": closes, "low": closes, "close": closes, "volume": 1.0})
    return frame.assign(**columns)


@pytest.mark.parametrize("spec", BOTH, ids=lambda spec: spec.label)
def test_a_mirrored_price_flips_odd_features_and_leaves_even_ones(spec):
    frame = random_bars()
    there, back = values_of(spec, frame)[spec.warmup :], values_of(spec, mirrored(frame))[spec.warmup :]
    scale = there.std() or 1.0
    if spec.parity:
        np.testing.assert_allclose(back, spec.parity * there, rtol=0, atol=1e-8 * scale)
    else:
        assert np.abs(back - there).max() > 1e-3 * scale
        assert np.abs(back + there).max() > 1e-3 * scale


@pytest.mark.parametrize("spec", BOTH, ids=lambda spec: spec.label)
def test_after_warm_up_an_earlier_start_changes_nothing(spec):
    frame = random_bars()
    whole = values_of(spec, frame)
    scale = whole[spec.warmup :].std() or 1.0
    for start in (1, 97, 640, 705):
        part = values_of(spec, frame.iloc[start:].reset_index(drop=True))
        assert np.isfinite(part[spec.warmup :]).all()
        np.testing.assert_allclose(part[spec.warmup :], whole[start + spec.warmup :], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("spec", [spec for spec in BOTH if 0 < spec.warmup < 120], ids=lambda spec: spec.label)
def test_the_warm_up_of_a_sliding_window_is_as_short_as_it_can_be(spec):
    assert not np.isfinite(values_of(spec, random_bars())[spec.warmup - 1])


@pytest.mark.parametrize("spec", [spec for spec in BOTH if spec.warmup >= 250], ids=lambda spec: spec.label)
def test_half_of_an_exponential_warm_up_would_not_be_enough(spec):
    frame = random_bars()
    whole, part = values_of(spec, frame), values_of(spec, frame.iloc[640:].reset_index(drop=True))
    assert np.abs(part[spec.warmup // 2] - whole[640 + spec.warmup // 2]) > 1e-6 * whole[spec.warmup :].std()


@pytest.mark.parametrize("spec", BOTH, ids=lambda spec: spec.label)
@pytest.mark.parametrize("future", ["cut", "noise", "times 1000", "nan"])
def test_features_are_identical_whatever_comes_later(spec, future):
    frame = random_bars(900)
    whole = values_of(spec, frame)
    prices = ["open", "high", "low", "close", "volume"]
    for t in (spec.warmup + 1, 777, 898):
        changed = frame.copy()
        if future == "cut":
            changed = changed.iloc[: t + 1]
        elif future == "nan":
            changed.loc[t + 1 :, prices] = np.nan
        elif future == "noise":
            changed.loc[t + 1 :, prices] = np.random.default_rng(t).uniform(1, 9, (len(frame) - t - 1, len(prices)))
        else:
            changed.loc[t + 1 :, prices] *= 1000
        np.testing.assert_array_equal(values_of(spec, changed)[: t + 1], whole[: t + 1])


def test_returns_candles_and_trends_by_hand():
    frame = pd.DataFrame(
        {
            "time": pd.date_range("2024-01-02", periods=3, freq="15min", tz="UTC"),
            "open": [10.0, 11.0, 9.0],
            "high": [12.0, 14.0, 10.0],
            "low": [9.0, 10.0, 8.0],
            "close": [11.0, 10.0, 9.5],
            "volume": [1.0, 3.0, 0.0],
        }
    )
    log = math.log
    expected = {
        ("log_return", 1): [np.nan, log(10 / 11), log(9.5 / 10)],
        ("log_return", 2): [np.nan, np.nan, log(9.5 / 11)],
        ("body", None): [log(1.1), log(10 / 11), log(9.5 / 9)],
        ("bar_range", None): [log(12 / 9), log(1.4), log(1.25)],
        ("upper_wick", None): [log(12 / 11), log(14 / 11), log(10 / 9.5)],
        ("lower_wick", None): [log(10 / 9), 0.0, log(9 / 8)],
    }
    for (name, bars), values in expected.items():
        parameters = {} if bars is None else {"bars": bars}
        np.testing.assert_allclose(compute(name, frame, **parameters), values, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(compute("sma_trend", frame, period=2)[1], log(10) - (log(11) + log(10)) / 2)
    np.testing.assert_allclose(compute("roc", frame, period=2)[2], log(9.5 / 11) / 2)
    np.testing.assert_allclose(compute("volume_change", frame, period=2)[2], -(log(4) / 2))
    typical = [(log(h) + log(low) + log(c)) / 3 for h, low, c in ((12, 9, 11), (14, 10, 10))]
    vwap = (typical[0] + 3 * typical[1]) / 4
    np.testing.assert_allclose(compute("vwap_distance", frame, period=2)[1], log(10) - vwap)


def test_vwap_without_any_volume_is_the_plain_mean():
    frame = bars_of([10.0, 11, 12, 13, 14], volume=[1e12 / 3, 0.1, 0.1, 0.0, 0.0])
    distance = compute("vwap_distance", frame, period=2)
    # a running sum of these volumes is not quite 0 at the end: it must not be taken for trade
    np.testing.assert_allclose(distance[4], np.log(14) - np.log(13 * 14) / 2, rtol=1e-9)


def test_rsi_and_true_range_match_a_loop_of_wilders_average():
    frame = random_bars(400)
    period = 14
    log = {name: np.log(frame[name]).tolist() for name in ("high", "low", "close")}
    changes = np.diff(log["close"]).tolist()
    up = sum(max(c, 0.0) for c in changes[:period]) / period
    down = sum(max(-c, 0.0) for c in changes[:period]) / period
    ranges = [
        max(log["high"][t], log["close"][t - 1]) - min(log["low"][t], log["close"][t - 1]) for t in range(1, len(frame))
    ]
    true_range = sum(ranges[:period]) / period
    rsi, atr = compute("rsi", frame, period=period), compute("atr", frame, period=period)
    for t in range(period, len(frame)):
        if t > period:
            up = (up * (period - 1) + max(changes[t - 1], 0.0)) / period
            down = (down * (period - 1) + max(-changes[t - 1], 0.0)) / period
            true_range = (true_range * (period - 1) + ranges[t - 1]) / period
        classical = 100 - 100 / (1 + up / down)
        assert rsi[t] == pytest.approx((classical - 50) / 50, abs=1e-9)
        assert atr[t] == pytest.approx(true_range, rel=1e-9)


def test_stochastic_williams_and_cci_match_their_definitions():
    frame = random_bars(60)
    high, low, close = (np.log(frame[name].to_numpy()) for name in ("high", "low", "close"))
    t, n = 50, 14
    percent_k = [
        100 * (close[i] - low[i - n + 1 : i + 1].min()) / np.ptp(np.r_[high[i - n + 1 : i + 1], low[i - n + 1 : i + 1]])
        for i in range(t - 4, t + 1)
    ]
    assert compute("stochastic_k", frame)[t] == pytest.approx(np.mean(percent_k[-3:]) / 50 - 1)
    assert compute("stochastic_d", frame)[t] == pytest.approx(
        np.mean([np.mean(percent_k[i : i + 3]) for i in range(3)]) / 50 - 1
    )
    assert compute("williams_r", frame)[t] == pytest.approx((percent_k[-1] - 100 + 50) / 50)
    typical = ((high + low + close) / 3)[t - 19 : t + 1]
    deviation = np.abs(typical - typical.mean()).mean()
    assert compute("cci", frame)[t] == pytest.approx((typical[-1] - typical.mean()) / (0.015 * deviation) / 100)


def test_a_market_that_does_not_move_is_neutral_everywhere():
    frame = bars_of(np.full(1200, 2000.0))
    for spec in FULL:
        if spec.parity == -1:
            np.testing.assert_allclose(values_of(spec, frame)[spec.warmup :], 0.0, atol=1e-9, err_msg=spec.label)


def test_a_steady_trend_has_a_high_adx_and_its_direction():
    rising = bars_of(2000 * np.exp(np.arange(800) * 1e-3))
    assert compute("adx", rising)[-1] > 0.9
    assert compute("directional", rising)[-1] > 0.9
    assert compute("directional", mirrored(rising))[-1] < -0.9


def test_time_of_day_and_weekday_lie_on_circles():
    frame = bars_of(np.ones(4)).assign(
        time=pd.to_datetime(["2024-01-01 00:00", "2024-01-01 06:00", "2024-01-02 12:00", "2024-01-07 18:00"], utc=True)
    )
    np.testing.assert_allclose(compute("hour_sin", frame), [0, 1, 0, -1], atol=1e-12)
    np.testing.assert_allclose(compute("hour_cos", frame), [1, 0, -1, 0], atol=1e-12)
    turns = np.array([0, 0, 1, 6]) * 2 * np.pi / 7
    np.testing.assert_allclose(compute("weekday_sin", frame), np.sin(turns), atol=1e-12)
    np.testing.assert_allclose(compute("weekday_cos", frame), np.cos(turns), atol=1e-12)


@pytest.mark.parametrize(
    ("market", "winter_start", "summer_start"), [("london", 8, 7), ("new_york", 13, 12), ("tokyo", 0, 0)]
)
def test_sessions_follow_the_local_clock_through_daylight_saving_time(market, winter_start, summer_start):
    for day, start in (("2024-01-16", winter_start), ("2024-07-16", summer_start)):
        time = pd.date_range(day, periods=24, freq="h", tz="UTC")
        flags = compute("session", bars_of(np.ones(24)).assign(time=time), market=market)
        assert np.flatnonzero(flags)[0] == start


def test_session_break_marks_the_first_bar_after_a_gap_only():
    times = ["2024-01-02 21:30", "2024-01-02 21:45", "2024-01-02 23:00", "2024-01-02 23:15"]
    flags = compute("session_break", bars_of(np.ones(4)).assign(time=pd.to_datetime(times, utc=True)))
    np.testing.assert_array_equal(flags, [np.nan, 0, 1, 0])


def test_round_numbers_are_powers_of_ten_or_the_given_step():
    distance = compute("round_number_distance", bars_of([2000.0, 2004.0, 1996.0, 1.084]))
    np.testing.assert_allclose(distance, [0, 0.4, -0.4, 0.4], atol=1e-9)
    np.testing.assert_allclose(compute("round_number_distance", bars_of([2004.0]), step=50.0), [0.08], atol=1e-9)


def test_fast_and_slow_true_range_compare():
    frame = random_bars(1000)
    ratio = compute("atr", frame, period=7) / compute("atr", frame, period=28)
    np.testing.assert_allclose(compute("atr_ratio", frame)[600:], np.log(ratio)[600:], rtol=1e-9)


def test_the_documents_table_states_every_indicators_warm_up_and_parity():
    page = (Path(__file__).parents[2] / "docs" / "walk-forward.md").read_text()
    words = {-1: "odd", 1: "even", 0: "unknown"}
    for spec in EVERY:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{spec.entry['name']}` |"))
        assert row.split("|")[3:5] == [f" {spec.warmup} ", f" {words[spec.parity]} "]
