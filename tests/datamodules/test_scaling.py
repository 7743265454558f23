"""The scaler against numpy's own statistics, and the mirror it must commute with."""

from __future__ import annotations

import numpy as np

from datamodules.features import scaling
from datamodules.features.scaling import CLIP, Scaler


def rows(count: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).normal([0.5, 20.0, -3.0], [1.0, 0.01, 4.0], (count, 3)).astype(np.float32)


def test_features_are_centred_and_divided_by_their_standard_deviation():
    features = rows()
    scaler = Scaler.fit(features, (0, 1, 1), 1.0)
    np.testing.assert_allclose(scaler.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, features.std(axis=0, dtype=np.float64), rtol=1e-9)
    scaled = scaler.apply(features)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=1e-4)


def test_scaling_an_odd_feature_commutes_with_the_mirror():
    features, parity = rows(), (-1, 1, -1)
    mirrored = features * np.array([-1, 1, -1], np.float32)
    one, other = Scaler.fit(features, parity, 1.0), Scaler.fit(mirrored, parity, 1.0)
    np.testing.assert_array_equal(other.apply(mirrored), one.apply(features) * np.array([-1, 1, -1], np.float32))
    np.testing.assert_allclose(one.std[0], np.sqrt(np.square(features[:, 0], dtype=np.float64).mean()), rtol=1e-9)


def test_a_constant_column_becomes_zero():
    features = np.full((50, 2), 0.1, np.float32)
    scaler = Scaler.fit(features, (1, 1), 1.0)
    np.testing.assert_allclose(scaler.apply(features), 0, atol=1e-7)
    np.testing.assert_array_equal(Scaler.fit(features * 0, (-1, 1), 1.0).apply(features * 0), 0)


def test_extreme_values_are_clipped():
    scaler = Scaler(np.zeros(1), np.ones(1), 1.0)
    np.testing.assert_array_equal(scaler.apply(np.array([[1e9], [-1e9], [2.0]])), [[CLIP], [-CLIP], [2.0]])


def test_chunks_do_not_change_the_result(monkeypatch):
    features = rows()
    whole = Scaler.fit(features, (0, 1, -1), 1.0)
    monkeypatch.setattr(scaling, "_CHUNK_ROWS", 33)
    parts = Scaler.fit(features, (0, 1, -1), 1.0)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-12)
    np.testing.assert_array_equal(parts.apply(features), Scaler(parts.mean, parts.std, 1.0).apply(features))
