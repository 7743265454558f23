"""The informed trader: thresholds, books and shares, on made bars and on real noise."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from datamodules.bars.read import read_bars
from datamodules.planted import Edge, plant
from lit_ppo.market.books import account
from lit_ppo.market.costs import Costs, fill_arrays
from lit_ppo.scoring.informed import hysteresis, informed_trader, share_found, size_edge

YEAR = 23_500.0


def made_market(length: int = 4000, strength: float = 0.3, cost: float = 2e-4) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    forecast = np.convolve(numbers.standard_normal(length + 19), np.ones(20) / math.sqrt(20), "valid")
    return {
        "forecast": forecast,
        "price_return": 1e-3 * (strength * forecast + numbers.standard_normal(length)),
        "turnover_cost": np.full(length, cost),
        "carry_long": np.full(length, 1e-6),
        "carry_short": np.full(length, -1e-6),
    }


@pytest.mark.parametrize(("enter", "leave"), [(0.0, 0.0), (0.5, 0.5), (0.5, 0.2), (0.5, -0.2), (0.5, -0.5)])
def test_hysteresis_is_the_plain_loop(enter, leave):
    forecast = np.random.default_rng(1).standard_normal(500).round(1)  # thresholds are met exactly, too
    held, expected = 0.0, []
    for f in forecast:
        if f > enter:
            held = 1.0
        elif f < -enter:
            held = -1.0
        elif held * f < leave and held:
            held = 0.0
        expected.append(held)
    np.testing.assert_array_equal(hysteresis(forecast, enter, leave), expected)


def test_its_net_returns_are_those_of_the_books():
    market = made_market()
    found = informed_trader(**market, bars_per_year=YEAR)
    del market["forecast"]
    books = account(found.positions, time=np.arange(4000), **market)
    np.testing.assert_allclose(found.net_return, books.net_return, atol=1e-15)
    net = books.net_return
    assert found.sharpe_annual == pytest.approx(net.mean() / net.std() * math.sqrt(YEAR), rel=1e-3)
    assert found.exposure == pytest.approx(np.abs(found.positions).mean())
    assert found.turnover == pytest.approx(np.abs(np.diff(found.positions, prepend=0.0)).mean())


def test_no_other_thresholds_of_the_grid_earn_more_and_costs_widen_them():
    market = made_market()
    best = informed_trader(**market, bars_per_year=YEAR)
    known = market.pop("forecast")
    for enter in np.quantile(np.abs(known), [0.0, 0.3, 0.6, 0.9]):
        for leave in (-enter, 0.0, enter):
            books = account(hysteresis(known, enter, leave), time=np.arange(4000), **market)
            assert books.net_return.sum() <= best.net_return.sum() * 1.02  # quantiles between those of the grid
    free = informed_trader(known, **market | {"turnover_cost": np.zeros(4000)}, bars_per_year=YEAR)
    assert free.turnover > 1.5 * best.turnover
    assert free.net_return.sum() > best.net_return.sum()


def test_who_knows_nothing_or_pays_too_much_stays_flat():
    market = made_market()
    ignorant = informed_trader(**market | {"forecast": np.zeros(4000)}, bars_per_year=YEAR)
    poor = informed_trader(**market | {"turnover_cost": np.ones(4000)}, bars_per_year=YEAR)
    for flat in (ignorant, poor):
        assert not flat.positions.any()
        assert flat.sharpe_annual == 0.0
        assert (flat.enter, flat.exit) == (math.inf, math.inf)


def test_the_share_is_of_the_net_result_on_the_same_rows():
    assert share_found([0.1, -0.05, 0.0], [0.1, 0.1, -0.1]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="there is no share of it"):
        share_found([0.1], [0.0])
    with pytest.raises(ValueError, match="same rows"):
        share_found([0.1], [0.1, 0.2])


def test_an_edge_is_sized_by_its_sharpe_ratio():
    def sharpe_of(size: float) -> float:
        return max(0.0, 60 * size - 0.5)

    for wanted in (1.5, 3.0, 6.0, 10.0):
        assert sharpe_of(size_edge(sharpe_of, wanted)) == pytest.approx(wanted, abs=0.05)
    with pytest.raises(ValueError, match="below the wanted 40"):
        size_edge(sharpe_of, 40.0)
    with pytest.raises(ValueError, match="above 0"):
        size_edge(sharpe_of, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"price_return": np.zeros(3)}, "one length"), ({"forecast": np.full(4000, np.nan)}, r"forecast\[0\] is nan")],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        informed_trader(**made_market() | change, bars_per_year=YEAR)


@pytest.mark.parametrize(
    ("kind", "size", "low", "high"),
    [
        ("regime", 0.1, 3.5, 6.5),
        ("momentum", 0.1, 11.0, 17.0),
        ("reversion", 0.15, 7.5, 11.0),
        ("season", 0.1, 7.0, 11.0),
        ("drift", 0.05, 5.0, 10.0),
        ("null", 0.0, 0.0, 0.0),
    ],
)
def test_what_an_edge_is_worth_on_gold(bar_file, kind, size, low, high):
    """Annual Sharpe ratios have a standard error of 0.65 on this file."""
    bars = read_bars(bar_file("XAUUSDm_15min_exness_2022-11_2025-05.csv.gz"))
    planted = plant(bars, Edge(kind, size), np.random.default_rng(0))
    fills = fill_arrays(planted.bars.frame, Costs(), "next_open", bars.point)._asdict()
    del fills["fill_price"]
    rows = slice(0, len(bars) - 2)
    arrays = {name: values[rows] for name, values in fills.items()}
    found = informed_trader(planted.forecast[rows], bars_per_year=bars.bars_per_year, **arrays)
    assert low <= found.sharpe_annual <= high


def test_the_guides_example_runs(tmp_path, monkeypatch, capsys):
    guide = Path(__file__).parents[2] / "docs" / "oracles.md"
    section = guide.read_text(encoding="utf-8").partition("## Planted edges on real noise")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], str(guide), "exec"), {})
    assert capsys.readouterr().out.splitlines()[1] == "0.5"
    assert len(read_bars("planted.csv")) == 20_000
