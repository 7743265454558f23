"""Costs are computed by hand here, once for every term."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from lit_ppo.market.costs import CostModel, Costs, bar_interval, fill_arrays, fill_delay, net_return, nights_charged


def frame_of(times, opens, closes, spreads=None) -> pd.DataFrame:
    columns = {"time": pd.to_datetime(list(times), utc=True), "open": opens, "close": closes}
    if spreads is not None:
        columns["spread"] = spreads
    return pd.DataFrame(columns)


def nanoseconds(*texts: str) -> np.ndarray:
    return pd.to_datetime(list(texts), utc=True).to_numpy("datetime64[ns]").astype(np.int64)


QUARTERS = ["2024-01-02 10:00", "2024-01-02 10:15", "2024-01-02 10:30", "2024-01-02 10:45"]


@pytest.mark.parametrize(
    ("fill", "price", "returns"),
    [
        ("next_open", [11, 12, 13, np.nan], [12 / 11 - 1, 13 / 12 - 1, np.nan, np.nan]),
        ("next_close", [21, 24, 20, np.nan], [24 / 21 - 1, 20 / 24 - 1, np.nan, np.nan]),
        ("same_close", [20, 21, 24, 20], [21 / 20 - 1, 24 / 21 - 1, 20 / 24 - 1, np.nan]),
    ],
)
def test_each_fill_rule_prices_a_decision_at_the_bar_it_names(fill, price, returns):
    frame = frame_of(QUARTERS, [10.0, 11, 12, 13], [20.0, 21, 24, 20], [200, 200, 200, 200])
    fills = fill_arrays(frame, Costs(), fill, point=0.001)
    np.testing.assert_array_equal(fills.fill_price, price)
    np.testing.assert_allclose(fills.price_return, returns, rtol=1e-15)


def test_turnover_cost_is_half_the_spread_of_the_filling_bar_plus_the_rates():
    frame = frame_of(QUARTERS, [2000.0] * 4, [2000.0] * 4, [200, 300, 0, 100])
    costs = Costs(commission_rate=1e-5, slippage_rate=2e-5)
    following = fill_arrays(frame, costs, "next_open", point=0.001).turnover_cost
    # 300 points of 0.001 = $0.30; half of it over $2000 is 7.5e-5; and 3e-5 of rates.
    np.testing.assert_allclose(following, [7.5e-5 + 3e-5, 3e-5, 2.5e-5 + 3e-5, np.nan], rtol=1e-12)
    same = fill_arrays(frame, costs, "same_close", point=0.001).turnover_cost
    np.testing.assert_allclose(same, [5e-5 + 3e-5, 7.5e-5 + 3e-5, 3e-5, 2.5e-5 + 3e-5], rtol=1e-12)


def test_a_spread_in_price_units_needs_no_column():
    frame = frame_of(QUARTERS, [2000.0] * 4, [2000.0] * 4)
    cost = fill_arrays(frame, Costs(spread=0.2), "next_open", point=0.001).turnover_cost
    np.testing.assert_allclose(cost[:3], 0.1 / 2000, rtol=1e-12)


@pytest.mark.parametrize("spread", ["1.5bp", "1.5 bps", "0.015%", ".015 %"])
@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_a_spread_as_a_share_of_the_price_is_paid_by_halves(spread, fill):
    frame = frame_of(QUARTERS, [2000.0, 10, 500, 4], [1000.0, 20, 300, 5])
    cost = fill_arrays(frame, Costs(spread=spread), fill, point=0.001).turnover_cost
    np.testing.assert_allclose(cost[:3], 0.75e-4, rtol=1e-12)


def test_rates_can_be_quoted_in_basis_points_and_per_cent():
    assert Costs(commission_rate="1bp", slippage_rate="0.02%") == Costs(commission_rate=1e-4, slippage_rate=2e-4)


@dataclass(frozen=True)
class Impact(CostModel):
    share: float = 0.1

    def turnover_cost(self, frame, price, point):
        frame["open"] = 0.0  # a copy: what a model does to it is its own affair
        return self.share * np.arange(len(price)) / price


def test_a_model_of_one_s_own_is_added_to_the_other_costs():
    frame = frame_of(QUARTERS, [2000.0] * 4, [1000.0] * 4)
    costs = Costs(spread=0.2, commission_rate=1e-5, model=Impact(0.3))
    cost = fill_arrays(frame, costs, "next_open", point=0.001).turnover_cost
    np.testing.assert_allclose(cost[:3], 0.1 / 2000 + 1e-5 + 0.3 * np.array([1, 2, 3]) / 2000, rtol=1e-12)
    assert (frame["open"] == 2000).all()


def test_a_model_that_pays_the_trader_or_gives_no_cost_for_a_bar_is_refused():
    class Short(Impact):
        def turnover_cost(self, frame, price, point):
            return price[1:]

    frame = frame_of(QUARTERS, [2000.0] * 4, [1000.0] * 4)
    with pytest.raises(ValueError, match=r"Impact gives -0\.0001 at bar 1 \(2024-01-02 10:15.*3 costs below 0"):
        fill_arrays(frame, Costs(spread=0, model=Impact(-0.1)), "same_close", point=1)
    with pytest.raises(ValueError, match=r"Short must give one cost per bar, 4, got \(3,\)"):
        fill_arrays(frame, Costs(spread=0, model=Short()), "same_close", point=1)


def test_costs_with_a_model_are_plain_data_and_back():
    costs = Costs(spread="2bp", model=Impact(0.3))
    entry = costs.to_dict()
    assert entry["model"] == {"class_path": f"{__name__}.Impact", "init_args": {"share": 0.3}}
    with pytest.raises(ValueError, match=f"--allow-module {__name__}"):
        Costs.from_dict(entry)
    with pytest.raises(ValueError, match="is no CostModel"):
        Costs.from_dict(entry | {"model": {"class_path": "pathlib.Path", "init_args": {}}}, ["pathlib"])
    assert Costs.from_dict(Costs(spread="2bp").to_dict()) == Costs(spread="2bp")
    before_models = {name: value for name, value in entry.items() if name != "model"}
    assert Costs.from_dict(before_models) == Costs(spread="2bp")


def test_a_model_comes_back_from_a_module_that_is_allowed(tmp_path, monkeypatch):
    (tmp_path / "own_costs.py").write_text(
        "from dataclasses import dataclass\n"
        "from lit_ppo.market.costs import CostModel\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Flat(CostModel):\n"
        "    rate: float = 1e-4\n\n"
        "    def turnover_cost(self, frame, price, point):\n"
        "        return 0 * price + self.rate\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    costs = Costs.from_dict({"model": {"class_path": "own_costs.Flat", "init_args": {"rate": 2e-4}}}, ["own_costs"])
    assert costs.model.rate == 2e-4
    assert Costs.from_dict(costs.to_dict(), ["own_costs"]) == costs


def test_a_model_that_no_run_could_record_is_refused():
    class Plain(CostModel):
        def turnover_cost(self, frame, price, point):
            return 0 * price

    for model in (Plain(), lambda frame, price, point: price):
        with pytest.raises(ValueError, match=r"costs\.model must be a dataclass derived from"):
            Costs(model=model)


def test_a_file_without_spread_is_refused_with_a_remedy():
    frame = frame_of(QUARTERS, [2000.0] * 4, [2000.0] * 4)
    with pytest.raises(ValueError, match=r"gold\.csv has no spread column.*--data\.costs\.spread"):
        fill_arrays(frame, Costs(), "next_open", point=0.001, source="gold.csv")


def test_carry_is_zero_within_a_day_and_paid_over_the_night():
    times = ["2024-01-02 21:00", "2024-01-02 21:30", "2024-01-02 22:00", "2024-01-02 22:30", "2024-01-02 23:00"]
    frame = frame_of(times, [1.0] * 5, [1.0] * 5)
    costs = Costs(spread=0.0, swap_long_rate=1e-4, swap_short_rate=-3e-5)
    fills = fill_arrays(frame, costs, "next_open", point=1.0)
    # decision 0 is filled at 21:30 and the next one at 22:00: held over the rollover; decision 1 fills after it.
    np.testing.assert_allclose(fills.carry_long, [1e-4, 0, 0, np.nan, np.nan])
    np.testing.assert_allclose(fills.carry_short, [-3e-5, 0, 0, np.nan, np.nan])


def test_a_close_fill_happens_one_bar_length_after_the_open_time():
    times = ["2024-01-02 21:00", "2024-01-02 21:15", "2024-01-02 21:30", "2024-01-02 21:45", "2024-01-02 22:00"]
    frame = frame_of(times, [1.0] * 5, [1.0] * 5)
    costs = Costs(spread=0.0, swap_long_rate=1e-4)
    carry = fill_arrays(frame, costs, "same_close", point=1.0).carry_long
    np.testing.assert_allclose(carry, [0, 0, 1e-4, 0, np.nan])  # from 21:45 to 22:00, the close of bar 2 to bar 3's


def test_the_triple_day_counts_three_nights_and_the_weekend_none():
    noon = nanoseconds(*[f"2024-01-{day:02d} 12:00" for day in range(1, 9)])  # Monday the 1st to Monday the 8th
    assert np.diff(nights_charged(noon, Costs())).tolist() == [1, 1, 3, 1, 1, 0, 0]
    assert np.diff(nights_charged(noon, Costs(triple_swap_weekday=4))).tolist() == [1, 1, 1, 1, 3, 0, 0]
    assert np.diff(nights_charged(noon, Costs(triple_swap_weekday=None))).tolist() == [1] * 7


def test_rollover_at_midnight_charges_the_night_of_the_day_that_ends():
    noon = nanoseconds(*[f"2024-01-{day:02d} 12:00" for day in range(1, 9)])
    assert np.diff(nights_charged(noon, Costs(rollover_hour=0))).tolist() == [1, 1, 3, 1, 1, 0, 0]
    edge = nanoseconds("2024-01-03 23:59", "2024-01-04 00:00", "2024-01-04 00:01")
    assert np.diff(nights_charged(edge, Costs(rollover_hour=0))).tolist() == [3, 0]


@pytest.mark.parametrize(
    "times",
    [
        ["2024-07-12 20:30", "2024-07-12 20:45", "2024-07-14 22:00", "2024-07-14 22:15"],  # US summer time
        ["2024-01-12 21:30", "2024-01-12 21:45", "2024-01-14 23:00", "2024-01-14 23:15"],  # US winter time
    ],
)
def test_a_weekend_is_one_night_under_both_us_clocks(times):
    frame = frame_of(times, [1.0] * 4, [1.0] * 4)
    carry = fill_arrays(frame, Costs(spread=0.0, swap_long_rate=1e-4), "next_open", point=1.0).carry_long
    np.testing.assert_allclose(carry, [1e-4, 0, np.nan, np.nan])


@pytest.mark.parametrize(("day", "hour"), [("2024-07-10", 21), ("2024-01-10", 22)])
def test_a_night_is_charged_at_five_in_new_york_in_summer_and_winter(day, hour):
    frame = frame_of([f"{day} {h}:{m}" for h in (20, 21, 22) for m in ("00", "30")], [1.0] * 6, [1.0] * 6)
    costs = Costs(spread=0.0, swap_long_rate=1e-4, triple_swap_weekday=None)
    carry = fill_arrays(frame, costs, "next_open", point=1.0).carry_long
    reached = 2 * (hour - 20) - 2  # the decision whose next fill is the first one at the rollover
    np.testing.assert_allclose(carry[:4], [1e-4 if t == reached else 0.0 for t in range(4)])


def test_before_1970_the_nights_go_on_counting():
    noon = nanoseconds("1969-12-29 12:00", "1970-01-05 12:00", "1950-01-02 12:00")
    nights = nights_charged(noon, Costs())
    assert nights[1] - nights[0] == 7
    assert nights[0] - nights[2] == (noon[0] - noon[2]) // (86_400 * 10**9)


def test_net_return_is_the_hand_computed_one_for_floats_arrays_and_tensors():
    # from short 1 to long 0.5: earns 0.5 * 2 %, pays 1.5 * 0.01 % and 0.5 * 0.3 % of swap
    expected = 0.5 * 0.02 - 1.5 * 0.0001 - 0.5 * 0.003
    rest = (0.02, 0.0001, 0.003, -0.001)
    assert net_return(-1.0, 0.5, *rest) == pytest.approx(expected, rel=1e-12)
    # a short position of 1 earns its swap
    assert net_return(0.0, -1.0, *rest) == pytest.approx(-0.02 - 0.0001 + 0.001, rel=1e-12)
    grid = np.array([-1.0, 0.0, 0.5])
    array = net_return(grid[:, None], grid[None, :], *rest)
    tensor = net_return(torch.tensor(grid)[:, None], torch.tensor(grid)[None, :], *rest)
    scalar = [[net_return(p, a, *rest) for a in grid.tolist()] for p in grid.tolist()]
    np.testing.assert_array_equal(array, scalar)
    np.testing.assert_array_equal(tensor.numpy(), scalar)


def test_holding_costs_nothing_but_carry():
    assert net_return(1.0, 1.0, 0.0, 0.5, 0.25, 0.0) == -0.25
    assert net_return(0.0, 0.0, 0.3, 0.5, 0.25, 0.25) == 0


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_unit_of_the_time_column_does_not_matter(unit):
    frame = frame_of(["2024-01-02 21:00", "2024-01-02 21:30", "2024-01-02 22:00"], [1.0] * 3, [1.0] * 3)
    frame["time"] = frame["time"].dt.as_unit(unit)
    fills = fill_arrays(frame, Costs(spread=0.0, swap_long_rate=1e-4), "next_open", point=1.0)
    np.testing.assert_allclose(fills.carry_long, [1e-4, np.nan, np.nan])


def test_the_bar_interval_is_the_most_frequent_distance():
    assert bar_interval(np.array([0, 15, 30, 45, 120, 135])) == 15
    assert bar_interval(np.array([7])) == 0


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
@pytest.mark.parametrize("bars", [0, 1, 2])
def test_a_file_too_short_for_any_fill_gives_nan(fill, bars):
    frame = frame_of(QUARTERS[:bars], [1.0] * bars, [1.0] * bars)
    fills = fill_arrays(frame, Costs(spread=0.0), fill, point=1.0)
    assert [len(values) for values in fills] == [bars] * 5
    assert np.isnan(fills.price_return[max(0, bars - 1 - fill_delay(fill)) :]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spread": -0.1}, "costs.spread"),
        ({"spread": float("nan")}, "costs.spread"),
        ({"spread": "auto"}, "costs.spread"),
        ({"spread": "-1bp"}, "costs.spread.*1.5bp or 0.02%"),
        ({"spread": "100%"}, "costs.spread"),
        ({"commission_rate": "1 point"}, "costs.commission_rate: '1 point' is no share like 1.5bp"),
        ({"slippage_rate": "200%"}, "costs.slippage_rate"),
        ({"commission_rate": -1e-5}, "costs.commission_rate"),
        ({"slippage_rate": 1.5}, "costs.slippage_rate"),
        ({"swap_long_rate": float("inf")}, "costs.swap_long_rate"),
        ({"triple_swap_weekday": 6}, "costs.triple_swap_weekday"),
        ({"rollover_hour": 24}, "costs.rollover_hour"),
    ],
)
def test_impossible_costs_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Costs(**arguments)


def test_an_unknown_fill_is_refused():
    with pytest.raises(ValueError, match="`fill` must be one of next_open, next_close, same_close, got 'now'"):
        fill_delay("now")
