"""The feature list: what it accepts, what it refuses and how, and the matrix it becomes."""

from __future__ import annotations

import linecache
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.features import compute as module
from datamodules.features.compute import FEATURE_SETS, compute_features, features_key, load_features, warmup_bars

SECONDS = 900.0


def bars(count: int = 700, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 2000 * np.exp(np.cumsum(rng.normal(0, 1e-3, count)))
    open_ = np.append(close[0], close[:-1])
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-01-02", periods=count, freq="15min", tz="UTC"),
            "open": open_,
            "high": np.maximum(open_, close) * 1.0001,
            "low": np.minimum(open_, close) * 0.9999,
            "close": close,
            "volume": rng.integers(1, 99, count).astype(float),
            "sentiment": rng.normal(size=count),
        }
    )


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module `trusted_features` of the user on the import path."""
    (tmp_path / "trusted_features.py").write_text(
        "import numpy as np\n"
        "from subprocess import Popen\n"
        "class Gap:\n"
        "    parity = -1\n"
        "    def __init__(self, lag=1):\n"
        "        self.lag = self.warmup = lag\n"
        "    def __call__(self, frame):\n"
        "        return np.log(frame['open'] / frame['close'].shift(self.lag)).to_numpy()\n"
        "class Broken:\n"
        "    warmup, parity = 0, 0\n"
        "    def __call__(self, frame):\n"
        "        return np.zeros(3)\n"
        "class NoFeature:\n"
        "    def __init__(self):\n"
        "        raise SystemExit('was made')\n"
        "class BadParity(Broken):\n"
        "    parity = 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "trusted_features"
    sys.modules.pop("trusted_features", None)


def test_the_default_set_is_small_and_starts_with_the_return():
    specs = load_features("default")
    assert [spec.label for spec in specs] == ["log_return", "log_return_12", "volatility_24", "hour_sin", "hour_cos"]
    assert [spec.parity for spec in specs] == [-1, -1, 1, 1, 1]
    assert warmup_bars(specs) == 24
    matrix = compute_features(bars(), specs, SECONDS)
    np.testing.assert_array_equal(matrix[24:, 0], np.diff(np.log(bars()["close"]))[23:].astype(np.float32))


def test_the_full_set_has_every_group_of_the_first_script():
    names = {spec.entry["name"] for spec in load_features("full")}
    groups = "log_return rsi atr atr_ratio adx body wick_balance wick_total hour_sin hour_cos volume_change macd "
    groups += "stochastic_k stochastic_d vwap_distance session round_number_distance sma_trend williams_r roc cci"
    assert set(groups.split()) <= names


@pytest.mark.parametrize("path", sorted(FEATURE_SETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_set_gives_finite_float32_after_its_warm_up(path):
    specs = load_features(path)
    matrix = compute_features(bars(), specs, SECONDS, cost=np.full(len(bars()), 1e-4))
    assert matrix.dtype == np.float32
    assert matrix.shape == (700, len(specs))
    for column, spec in enumerate(specs):
        assert np.isnan(matrix[: spec.warmup, column]).all()
        assert np.isfinite(matrix[spec.warmup :, column]).all()


def test_the_matrix_is_identical_for_any_later_end_of_file():
    specs, frame = load_features("full"), bars()
    whole = compute_features(frame, specs, SECONDS)
    for end in (540, 601, 683, 699):
        np.testing.assert_array_equal(compute_features(frame.iloc[:end], specs, SECONDS), whole[:end])


def test_a_file_shorter_than_the_warm_up_has_no_value_and_no_error():
    specs = load_features("full")
    assert np.isnan(compute_features(bars(1), specs, SECONDS)[:, 0]).all()
    assert compute_features(bars(1).iloc[:0], specs, SECONDS).shape == (0, len(specs))


def test_parameters_may_stand_beside_the_name_or_below_it():
    beside, below = (
        load_features([{"name": "rsi", "period": 7}]),
        load_features([{"name": "rsi", "parameters": {"period": 7}}]),
    )
    assert beside[0].entry == below[0].entry
    assert beside[0].label == "rsi_7"


def test_a_column_of_the_file_is_a_feature_with_the_parity_it_is_given():
    specs = load_features([{"column": "sentiment", "parity": -1}])
    assert (specs[0].label, specs[0].parity, specs[0].warmup) == ("sentiment", -1, 0)
    matrix = compute_features(bars(), specs, SECONDS)
    np.testing.assert_array_equal(matrix[:, 0], bars()["sentiment"].astype(np.float32))


def test_a_missing_column_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'mood'; the bars have time, open, .*sentiment"):
        compute_features(bars(), load_features([{"column": "mood"}]), SECONDS)


def test_a_value_that_is_not_finite_is_refused_with_its_bar():
    frame = bars()
    frame.loc[300, "sentiment"] = np.nan
    with pytest.raises(ValueError, match=r"sentiment has 1 values .* first at bar 300 \(2024-01-05 03:00"):
        compute_features(frame, load_features([{"column": "sentiment"}]), SECONDS)


def test_a_file_without_volume_says_so_and_goes_on():
    specs = load_features([{"name": "volume_change"}, {"name": "vwap_distance", "period": 4}])
    with pytest.warns(UserWarning, match="no volume, so volume_change, vwap_distance_4 carry"):
        matrix = compute_features(bars().assign(volume=0.0), specs, SECONDS)
    assert not matrix[19:, 0].any()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "rsii"}], "no feature 'rsii'; did you mean rsi"),
        ([{"name": "rsi", "periode": 7}], "rsi has no parameter 'periode'; it has period"),
        ([{"name": "body", "period": 7}], "body has no parameter 'period'; it has none"),
        ([{"name": "rsi", "period": 1}], r"rsi.period is a number of bars from 2 to 100000, got 1"),
        ([{"name": "rsi", "period": 7.5}], "rsi.period is a number of bars"),
        ([{"name": "rsi", "period": True}], "rsi.period is a number of bars"),
        ([{"name": "log_return", "bars": 0}], "log_return.bars is a number of bars from 1"),
        ([{"name": "log_return", "bars": -1}], "log_return.bars is a number of bars from 1"),
        ([{"name": "session", "market": "mars"}], "session.market is one of tokyo, london, new_york, got 'mars'"),
        ([{"name": "round_number_distance", "step": 0}], "step is a number > 0"),
        ([{"name": "rsi"}, {"name": "rsi", "period": 14}], "names rsi more than once"),
        ([{"name": "rsi", "column": "close"}], "exactly one of name, column and class_path"),
        ([{"period": 3}], "exactly one of name, column and class_path"),
        ([{"column": "sentiment", "parity": 3}], "parity of column sentiment is -1"),
        ([{"column": "sentiment", "lag": 3}], "takes only `parity`, got lag"),
        ([{"name": "rsi", "parameters": 7}], "must be a mapping"),
        (["rsi"], "must be a list of entries"),
        ([], "must be a list of entries"),
        ({"name": "rsi"}, "must be a list of entries"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entries, message):
    with pytest.raises(ValueError, match=message):
        load_features(entries)


def test_an_unknown_set_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'fulll': no set of that name \(core, default, full\)"):
        load_features("fulll")
    broken = tmp_path / "broken.yaml"
    broken.write_text("- {name: rsi\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_features(broken)


def test_a_users_yaml_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("- {name: cci, period: 30}\n")
    assert [spec.label for spec in load_features(str(path))] == ["cci_30"]


def test_a_users_class_is_a_feature_once_its_module_is_allowed(user_module):
    specs = load_features([{"class_path": "trusted_features.Gap", "lag": 2}], allow_modules=[user_module])
    assert (specs[0].label, specs[0].parity, specs[0].warmup) == ("Gap_2", -1, 2)
    frame = bars()
    matrix = compute_features(frame, specs, SECONDS)
    np.testing.assert_allclose(matrix[2:, 0], np.log(frame["open"] / frame["close"].shift(2))[2:], rtol=1e-6)


def test_a_module_that_is_not_allowed_is_not_even_imported(user_module):
    with pytest.raises(ValueError, match="--allow-module trusted_features"):
        load_features([{"class_path": "trusted_features.Gap"}])
    assert "trusted_features" not in sys.modules
    with pytest.raises(ValueError, match="--allow-module trusted_features"):
        load_features([{"class_path": "trusted_features.Gap"}], allow_modules=["trusted"])


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("os.system", "no shipped feature .* allowed ones \\(trusted_features\\): it was not imported"),
        ("datamodules.cache.FeatureCache", "no shipped feature"),
        ("datamodules.features.compute.Path", "no shipped feature"),
        ("trusted_features.Popen", "defines no class 'Popen'"),
        ("trusted_features.Nothing", "defines no class 'Nothing'"),
        ("trusted_features.NoFeature", "is no feature: it has no __call__"),
        ("trusted_features.BadParity", "parity of trusted_features.BadParity"),
        ("trusted_features.nothing.Here", "cannot be imported"),
        ("Gap", "no shipped feature"),
    ],
)
def test_a_class_path_cannot_reach_beyond_the_allowed_modules(user_module, class_path, message):
    with pytest.raises(ValueError, match=message):
        load_features([{"class_path": class_path}], allow_modules=[user_module])


def test_the_time_is_no_feature():
    with pytest.raises(ValueError, match=r"column time .* is no feature"):
        load_features([{"column": "time"}])


def test_a_users_class_with_wrong_arguments_or_result_is_refused(user_module):
    with pytest.raises(ValueError, match="does not take"):
        load_features([{"class_path": "trusted_features.Gap", "lags": 2}], allow_modules=[user_module])
    specs = load_features([{"class_path": "trusted_features.Broken"}], allow_modules=[user_module])
    with pytest.raises(ValueError, match=r"one value per bar, 700, got \(3,\)"):
        compute_features(bars(), specs, SECONDS)


def test_the_key_changes_with_the_list_its_order_the_code_and_a_users_code(user_module, tmp_path, monkeypatch):
    one, other = {"name": "rsi"}, {"name": "cci"}
    keys = [
        features_key(load_features(entries)) for entries in ([one], [one, other], [other, one], [{**one, "period": 7}])
    ]
    assert len(set(keys)) == 4
    assert features_key(load_features([{"name": "rsi", "period": 14}])) == keys[0]

    user = [{"class_path": "trusted_features.Gap"}]
    before = features_key(load_features(user, [user_module]))
    sys.modules.pop("trusted_features")
    with open(tmp_path / "trusted_features.py", "a") as file:
        file.write("# another version, of another length\n")
    linecache.clearcache()
    assert features_key(load_features(user, [user_module])) != before

    monkeypatch.setattr(module, "code_version", lambda: "another")
    assert features_key(load_features([one])) != keys[0]


def test_features_need_neither_torch_nor_lightning():
    code = (
        "import sys, datamodules.features.compute, datamodules.cache; print({'torch', 'lightning'} & set(sys.modules))"
    )
    root = Path(module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "set()"
