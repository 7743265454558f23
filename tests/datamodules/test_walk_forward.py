"""The datamodule: which bars a fold's tensors are made of, and which they are not."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules import walk_forward as module
from datamodules.features.compute import compute_features, load_features
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.market.costs import Costs, fill_arrays
from lit_ppo.market.tensors import BarRange, Fold, MarketTensors

FEATURES = [
    {"name": "log_return"},
    {"name": "log_return", "bars": 5},
    {"name": "volatility", "period": 10},
    {"name": "hour_sin"},
]
SIZES = {"train_size": 100, "validation_size": 30, "test_size": 20, "step_size": 20, "warmup_bars": 15}


def random_frame(bars: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 2000 * np.exp(np.cumsum(rng.normal(1e-4, 1e-3, bars)))
    open_ = np.append(close[0], close[:-1]) * np.exp(rng.normal(0, 1e-5, bars))
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-01-02", periods=bars, freq="15min", tz="UTC"),
            "open": open_,
            "high": np.maximum(open_, close) * 1.0001,
            "low": np.minimum(open_, close) * 0.9999,
            "close": close,
            "volume": rng.integers(1, 99, bars).astype(float),
            "spread": rng.integers(150, 250, bars).astype(float),
        }
    )


@dataclass
class Market:
    """Serves a frame where the datamodule would read a file."""

    monkeypatch: pytest.MonkeyPatch
    tmp_path: object

    def __call__(self, frame: pd.DataFrame | None = None, **arguments) -> WalkForwardDataModule:
        bars = SimpleNamespace(
            frame=random_frame() if frame is None else frame, point=0.001, bar_seconds=900.0, bars_per_year=23_000.0
        )
        self.monkeypatch.setattr(module, "read_bars", lambda path, **options: bars)
        defaults = {"path": "bars.csv", "features": FEATURES, "cache_dir": str(self.tmp_path), **SIZES}
        return WalkForwardDataModule(**{**defaults, **arguments})


@pytest.fixture
def market(monkeypatch, tmp_path):
    return Market(monkeypatch, tmp_path)


def segments(data: WalkForwardDataModule, index: int) -> dict[str, MarketTensors]:
    fold = data.fold_data(index)
    return {"train": fold.train, "validation": fold.validation, "test": data.test_segment(index)}


def assert_same(one: MarketTensors, other: MarketTensors) -> None:
    for name in ("features", "price_return", "turnover_cost", "carry_long", "carry_short", "fill_price", "time"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
    assert one.reward_scale == other.reward_scale


def test_folds_are_the_hand_written_ones_rolling_and_expanding(market):
    # volatility needs 10 bars; the last two bars have no fill for their decision and the next: 10 ... 298
    assert market(step_size=40, purged_size=5, embargo_size=3).setup() is None
    rolling = market(step_size=40, purged_size=5, embargo_size=3)
    expanding = market(step_size=40, purged_size=5, embargo_size=3, expand_train=True)
    rolling.setup()
    expanding.setup()
    assert rolling.folds == [
        Fold(0, BarRange(10, 110), BarRange(115, 145), BarRange(148, 168)),
        Fold(1, BarRange(50, 150), BarRange(155, 185), BarRange(188, 208)),
        Fold(2, BarRange(90, 190), BarRange(195, 225), BarRange(228, 248)),
        Fold(3, BarRange(130, 230), BarRange(235, 265), BarRange(268, 288)),
    ]
    assert expanding.folds == [replace(fold, train=BarRange(10, fold.train.stop)) for fold in rolling.folds]


def test_gaps_default_to_the_fill_delay_plus_one(market):
    for fill, gap in (("next_open", 2), ("next_close", 2)):
        data = market(fill=fill)
        assert (data.split.purged_size, data.split.embargo_size) == (gap, gap)
    with pytest.warns(UserWarning, match="no account can do that"):
        data = market(fill="same_close")
    assert (data.split.purged_size, data.split.embargo_size) == (1, 1)


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
def test_a_segment_holds_the_features_fills_and_times_of_its_bars(market, fill):
    frame, costs = random_frame(), Costs(commission_rate=1e-5, swap_long_rate=2e-4, swap_short_rate=-1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = market(frame, fill=fill, costs=costs)
    raw = compute_features(frame, load_features(FEATURES), 900.0).astype(np.float64)
    fills = fill_arrays(frame, costs, fill, 0.001)
    for role, segment in segments(data, 2).items():
        decisions = getattr(data.folds[2], role)
        rows = slice(decisions.start - 15, decisions.stop)
        assert (segment.first_bar, segment.warmup, segment.num_decisions) == (rows.start, 15, len(decisions))
        train = data.folds[2].train
        on_train = raw[train.start : train.stop]
        mean = on_train.mean(axis=0) * [0, 0, 1, 1]  # returns are odd: no offset
        std = np.sqrt(np.square(on_train - mean).mean(axis=0))
        np.testing.assert_allclose(segment.features.numpy(), (raw[rows] - mean) / std, rtol=1e-5, atol=1e-6)
        for name, values in fills._asdict().items():
            np.testing.assert_array_equal(getattr(segment, name).numpy(), values[rows])
            assert getattr(segment, name).dtype == torch.float64
        np.testing.assert_array_equal(segment.time.numpy(), frame["time"].dt.as_unit("ns").astype("int64")[rows])
        assert segment.reward_scale == pytest.approx(fills.price_return[train.start : train.stop].std(), rel=1e-12)
        assert segment.bars_per_year == 23_000.0
        assert segment.feature_names == ("log_return", "log_return_5", "volatility_10", "hour_sin")
        assert segment.feature_parity == (-1, -1, 1, 1)


def test_the_first_fold_has_no_bars_to_warm_up_on_and_later_ones_have(market):
    data = market(warmup_bars=33)
    assert [data.fold_data(i).train.warmup for i in (0, 1, 2)] == [0, 20, 33]
    assert data.fold_data(0).validation.warmup == 33
    assert market(warmup_bars=0).fold_data(2).validation.warmup == 0


@pytest.mark.parametrize("poison", [np.nan, 1e9])
def test_the_scaler_is_untouched_by_validation_and_test(market, poison):
    clean, poisoned = market(), market()
    poisoned.setup()
    train = poisoned.folds[1].train
    outside = np.ones(300, dtype=bool)
    outside[train.start : train.stop] = False
    poisoned._features = np.array(poisoned._features)
    poisoned._features[outside] = poison
    for values in poisoned._fills:
        values[outside] = poison
    assert poisoned.fold_data(1).scaler == clean.fold_data(1).scaler
    assert poisoned.fold_data(1).train.reward_scale == clean.fold_data(1).train.reward_scale
    inside = slice(clean.fold_data(1).train.warmup, None)
    torch.testing.assert_close(
        poisoned.fold_data(1).train.features[inside], clean.fold_data(1).train.features[inside], rtol=0, atol=0
    )


@pytest.mark.parametrize("role", ["train", "validation", "test"])
@pytest.mark.parametrize("change", ["cut", "times 1000", "noise"])
def test_a_segment_is_identical_whatever_comes_after_its_last_fill(market, role, change):
    frame = random_frame()
    clean = market(frame)
    expected = segments(clean, 1)[role]
    last = clean.row_accesses[1][f"{role}_fills"].stop
    changed = frame.copy()
    prices = ["open", "high", "low", "close"]
    if change == "times 1000":
        changed.loc[last:, prices] *= 1000
    elif change == "noise":
        changed.loc[last:, prices] = np.random.default_rng(1).uniform(1, 2, (len(frame) - last, 4))
    else:
        changed = frame.iloc[: max(last, clean.folds[1].test.stop + 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(segments(market(changed), 1)[role], expected)


def test_row_accesses_are_the_ranges_that_were_read(market):
    data = market()
    data.fold_data(2)
    expected = {
        "scaler": BarRange(50, 150),
        "scaler_fills": BarRange(51, 152),
        "train": BarRange(35, 150),
        "train_fills": BarRange(36, 152),
        "validation": BarRange(137, 182),
        "validation_fills": BarRange(138, 184),
    }
    assert data.row_accesses == {2: expected}
    data.test_segment(2)
    test = {"test": BarRange(169, 204), "test_fills": BarRange(170, 206)}
    assert data.row_accesses == {2: {**expected, **test}}


@given(
    fill=st.sampled_from(["next_open", "next_close", "same_close"]),
    expand=st.booleans(),
    purged=st.one_of(st.none(), st.integers(2, 9)),
    embargo=st.one_of(st.none(), st.integers(2, 9)),
    train=st.integers(20, 80),
    bars=st.integers(160, 300),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bar_that_train_earned_on_is_decided_on_later_in_every_mode(
    market, fill, expand, purged, embargo, train, bars
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = market(
            random_frame(bars), fill=fill, expand_train=expand, purged_size=purged, embargo_size=embargo,
            train_size=train, cache=False,
        )  # fmt: skip
    data.setup()
    assert data.folds
    for fold in data.folds:
        for segment in segments(data, fold.index).values():
            assert torch.isfinite(segment.features).all()
            for name in ("price_return", "turnover_cost", "carry_long", "carry_short", "fill_price"):
                assert torch.isfinite(getattr(segment, name)).all(), name
        read = data.row_accesses[fold.index]
        assert fold.train.stop - 1 + data.split.purged_size < fold.test.start
        assert read["train_fills"].stop <= fold.validation.start
        assert read["validation_fills"].stop <= fold.test.start
        assert read["scaler"] == fold.train
    for one, following in pairwise(data.folds):
        assert one.test.stop <= following.test.start


def test_the_last_decision_of_a_file_that_just_fits_has_both_fills(market):
    frame = random_frame(10 + 100 + 2 + 30 + 2 + 20 + 2)
    data = market(frame)
    assert data.test_segment(0).fill_price[-1] == frame["open"].iloc[-2]
    assert data.test_segment(0).price_return[-1] == frame["open"].iloc[-1] / frame["open"].iloc[-2] - 1
    with pytest.raises(ValueError) as error:  # noqa: PT011
        market(frame.iloc[:-1]).setup()
    assert "= 154 bars, but bars.csv has 153 after 10 warm-up bars and 2 without a fill" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": None}, "one of them; got None and None"),
        ({"synthetic": SyntheticMarket()}, "one of them"),
        ({"purged_size": 1}, "data.purged_size 1 is too small for fill next_open: .* must be >= 2"),
        ({"embargo_size": 0}, "data.embargo_size 0 is too small"),
        ({"fill": "yesterday"}, "`fill` must be one of"),
        ({"fold": -1}, "data.fold counts from 0"),
        ({"fold_limit": 0}, "data.fold_limit from 1"),
        ({"warmup_bars": -1}, "data.warmup_bars is"),
        ({"train_size": 0}, "data.train_size is a number of bars >= 1"),
        ({"features": [{"name": "rsii"}]}, "did you mean rsi"),
        ({"cache_max_bytes": 0}, "cache_max_bytes must be >= 1"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_file_is_read(market, arguments, message):
    with pytest.raises(ValueError, match=message):
        market(**arguments)


def test_a_fold_that_does_not_exist_is_refused_with_those_that_do(market):
    with pytest.raises(ValueError, match=r"data\.fold is 9, but bars\.csv has folds 0 to 6"):
        market(fold=9).setup()
    with pytest.raises(ValueError, match=r"There is no fold 7; bars\.csv has folds 0 to 6"):
        market().fold_data(7)


def test_fold_limit_keeps_the_first_folds(market):
    data, limited = market(), market(fold_limit=2)
    data.setup()
    limited.setup()
    assert limited.folds == data.folds[:2]


def test_a_file_without_spread_is_refused_before_features_are_computed(market, monkeypatch):
    monkeypatch.setattr(module, "compute_features", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"bars\.csv has no spread column"):
        market(random_frame().drop(columns="spread")).setup()


def test_train_bars_without_any_movement_are_refused(market):
    frame = random_frame()
    frame.loc[:, ["open", "high", "low", "close"]] = 2000.0
    with pytest.raises(ValueError, match="price does not move in the train bars"):
        market(frame).fold_data(0)


def test_a_spread_that_is_not_a_number_is_refused_with_its_bar(market):
    frame = random_frame()
    frame.loc[120, "spread"] = np.nan
    with pytest.raises(ValueError, match="turnover_cost is not a number at bar 119"):
        market(frame).setup()


def test_data_loaders_serve_one_batch_and_the_same_one_every_epoch(market):
    data = market(fold=1)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    assert [len(loader) for loader in loaders] == [1, 1, 1, 1]
    train, validation, test, predict = (next(iter(loader)) for loader in loaders)
    assert train is data.fold_data(1).train
    assert train is next(iter(loaders[0]))
    assert validation is data.fold_data(1).validation
    assert_same(test, data.test_segment(1))
    assert_same(predict, test)


def test_a_segment_travels_to_a_device_once(market):
    data = market()
    train = data.fold_data(0).train
    device = torch.device("meta")
    moved = data.transfer_batch_to_device(train, device, 0)
    assert moved.features.device == device
    assert data.transfer_batch_to_device(train, device, 0) is moved
    other = data.transfer_batch_to_device(data.fold_data(0).validation, device, 0)
    assert len(other) == len(data.fold_data(0).validation)
    data.fold_data(1)
    assert data.transfer_batch_to_device(data.fold_data(0).train, device, 0) is not moved


class Witness(pl.LightningModule):
    """Keeps what a Trainer hands it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[MarketTensors]] = {"train": [], "validation": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)

    def validation_step(self, batch, batch_idx):
        self.seen["validation"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **arguments) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(max_epochs=2, num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet, **arguments)


def test_a_trainer_sees_the_fold_and_its_checkpoint_knows_it(market, tmp_path):
    data, witness = market(fold=1), Witness()
    shell = trainer(tmp_path)
    shell.fit(witness, datamodule=data)
    shell.test(witness, datamodule=data, verbose=False)
    assert [len(seen) for seen in witness.seen.values()] == [2, 2, 1]
    assert witness.seen["train"][0] is witness.seen["train"][1]
    assert_same(witness.seen["train"][0], data.fold_data(1).train)
    assert_same(witness.seen["validation"][0], data.fold_data(1).validation)
    assert_same(witness.seen["test"][0], data.test_segment(1))
    path = tmp_path / "kept.ckpt"
    shell.save_checkpoint(path, weights_only=False)
    state = torch.load(path, weights_only=True)["WalkForwardDataModule"]
    assert state["fold"] == 1
    assert state["scaler"] == data.fold_data(1).scaler
    with pytest.raises(ValueError, match="fold was 1 and is 0"):
        trainer(tmp_path).fit(Witness(), datamodule=market(), ckpt_path=path)


def test_the_state_loads_with_weights_only_and_brings_the_scaler_along(market):
    data = market()
    buffer = io.BytesIO()
    torch.save(data.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = market()
    other.load_state_dict(state)
    assert_same(other.fold_data(0).train, data.fold_data(0).train)
    state["scaler"]["std"] = [2 * value for value in state["scaler"]["std"]]
    other.load_state_dict(state)
    for role, segment in segments(other, 0).items():
        torch.testing.assert_close(2 * segment.features[:, 0], segments(data, 0)[role].features[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_size": 90}, "split.train_size was 100 and is 90"),
        ({"validation_size": 29}, "split.validation_size was 30 and is 29"),
        ({"test_size": 19}, "split.test_size was 20 and is 19"),
        ({"step_size": 21}, "split.step_size was 20 and is 21"),
        ({"purged_size": 3}, "split.purged_size was 2 and is 3"),
        ({"embargo_size": 3}, "split.embargo_size was 2 and is 3"),
        ({"expand_train": True}, "split.expand_train was False and is True"),
        ({"fill": "next_close"}, "fill was 'next_open' and is 'next_close'"),
        ({"warmup_bars": 14}, "warmup_bars was 15 and is 14"),
        ({"costs": Costs(slippage_rate=1e-5)}, "costs.slippage_rate was 0.0 and is 1e-05"),
        ({"features": FEATURES[:3]}, "features was .*; features_sha256"),
        ({"frame": random_frame(seed=1)}, "bars_sha256 was"),
        ({"fold": 1}, "fold was 0 and is 1"),
    ],
)
def test_a_checkpoint_of_other_data_or_settings_is_refused_with_the_differences(market, change, message):
    state = market().state_dict()
    with pytest.raises(ValueError, match=message):
        market(**change).load_state_dict(state)


def test_closes_alone_are_not_executed_at_the_close_they_were_decided_from():
    with pytest.raises(ValueError, match=r"data\.fill next_open would execute .*--data\.fill next_close"):
        WalkForwardDataModule(path="closes.csv", close_only=True)
    data = WalkForwardDataModule(path="closes.csv", close_only=True, fill="next_close", symbol="A")
    assert (data.reader.close_only, data.reader.symbol, data.reader.stamp) == (True, "A", "open")


def test_where_the_cache_lies_or_a_limit_of_folds_is_no_difference(market, tmp_path):
    state = market().state_dict()
    market(cache=False).load_state_dict(state)
    market(fold_limit=1, cache_dir=str(tmp_path / "other")).load_state_dict(state)


def test_the_second_run_reads_its_features_from_the_cache_and_they_are_equal(market):
    first, second, without = market(), market(), market(cache=False)
    for data in (first, second, without):
        data.setup()
    assert [data.get_optimization_info()["hits"] for data in (first, second, without)] == [0, 1, 0]
    assert first.get_optimization_info()["misses"] == 1
    assert second.get_optimization_info()["entries"] == 1
    assert without.get_optimization_info()["cache_enabled"] is False
    for index in range(len(first.folds)):
        for role, segment in segments(without, index).items():
            assert_same(segments(first, index)[role], segment)
            assert_same(segments(second, index)[role], segment)
    second.clear_optimization_cache()
    assert second.get_optimization_info()["entries"] == 0
    assert_same(second.test_segment(0), without.test_segment(0))


def test_other_bars_or_features_are_another_cache_entry_and_other_costs_are_not(market):
    for arguments in ({}, {"features": FEATURES[:2]}, {"frame": random_frame(seed=1)}, {"costs": Costs(spread=0.1)}):
        data = market(**arguments)
        data.setup()
    assert data.get_optimization_info()["entries"] == 3
    assert data.get_optimization_info()["hits"] == 1


def test_a_synthetic_market_needs_no_file(tmp_path):
    data = WalkForwardDataModule(
        synthetic=SyntheticMarket(kind="predictor", num_bars=400),
        features=[{"name": "log_return"}, {"column": "signal", "parity": -1}],
        cache_dir=str(tmp_path),
        **SIZES,
    )
    train = data.fold_data(0).train
    assert train.feature_names == ("log_return", "signal")
    # what the signal announces is what the next fill earns
    correlation = np.corrcoef(train.features[:, 1].numpy(), train.price_return.numpy())[0, 1]
    assert correlation > 0.999


def test_a_written_synthetic_market_gives_the_tensors_of_the_one_in_memory(tmp_path):
    market = SyntheticMarket(kind="predictor", num_bars=400, nuisances=1)
    features = [{"name": "log_return"}, {"column": "signal", "parity": -1}, {"column": "nuisance_00"}]
    written = WalkForwardDataModule(path=str(market.write(tmp_path / "m.csv")), features=features, cache=False, **SIZES)
    kept = WalkForwardDataModule(synthetic=market, features=features, cache=False, **SIZES)
    for role, segment in segments(written, 1).items():
        assert_same(segment, segments(kept, 1)[role])


@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("XAUUSDm_15min_exness_2022-11_2025-05.csv.gz", "file"),
        ("XAUUSDm_15min_semicolon_tz_2024-01_2025-08.csv.gz", 0.2),
        ("BTCUSD_60min_desc_2018-05_2022-03.csv.gz", 10.0),
        ("GOOGL_1d_2009-05_2018-08.csv", 0.01),
    ],
)
@pytest.mark.filterwarnings("ignore:The bars have no volume")
def test_a_real_file_gives_finite_folds_of_the_full_set(bar_file, name, spread):
    data = WalkForwardDataModule(
        path=str(bar_file(name)), features="full", costs=Costs(spread=spread), cache=False,
        train_size=1000, validation_size=200, test_size=200, step_size=200,
    )  # fmt: skip
    data.setup()
    for index in (0, len(data.folds) - 1):
        for segment in segments(data, index).values():
            assert torch.isfinite(segment.features).all()
            assert segment.features.abs().max() <= 10
            assert 0 < segment.turnover_cost.median() < 0.01


@pytest.mark.slow
def test_two_million_bars_of_the_full_set_take_less_than_two_gigabytes(tmp_path):
    code = (
        "import resource, sys\n"
        "from datamodules.synthetic import SyntheticMarket\n"
        "from datamodules.walk_forward import WalkForwardDataModule\n"
        "market = SyntheticMarket(num_bars=2_000_000)\n"
        "data = WalkForwardDataModule(synthetic=market, features='full', cache_dir=sys.argv[1])\n"
        "data.setup()\n"
        "data.fold_data(len(data.folds) - 1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    root = Path(module.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=root, check=True
    )
    assert int(done.stdout) * 1024 < 2e9
