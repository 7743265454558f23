"""The books: an independent scalar loop, conservation, round trips, money in lots."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo.market.books import Ledger, account, money_account, stitch, trades
from lit_ppo.market.costs import net_return
from lit_ppo.scoring.performance import round_trips, trading_metrics


def random_market(size: int, seed: int, *, carry: float = 1e-5) -> dict[str, np.ndarray]:
    """Per-bar arrays of `account` and the fill prices they belong to (key `fill_price`, [size + 1])."""
    rng = np.random.default_rng(seed)
    price = 2000 * np.exp(np.cumsum(1e-3 * rng.standard_t(4, size + 1)))
    return {
        "time": 10**18 + 900 * 10**9 * np.arange(size),
        "fill_price": price,
        "price_return": price[1:] / price[:-1] - 1,
        "turnover_cost": rng.uniform(0, 2e-4, size),
        "carry_long": carry * rng.normal(0.5, 1, size),
        "carry_short": carry * rng.normal(-0.5, 1, size),
    }


def keep_books(market: dict[str, np.ndarray], positions: np.ndarray, **options) -> Ledger:
    return account(positions, **{name: values for name, values in market.items() if name != "fill_price"}, **options)


def scalar_books(market: dict[str, np.ndarray], positions: list[float], first: float) -> list[tuple[float, ...]]:
    """Trade `positions` in exact arithmetic from the prices: price change, costs and equity of each bar."""
    equity, held, rows = Fraction(1), Fraction(first), []
    prices = [Fraction(price) for price in market["fill_price"].tolist()]
    for t, position in enumerate(map(Fraction, positions)):
        change = position * (prices[t + 1] - prices[t]) / prices[t]
        turnover = Fraction(market["turnover_cost"][t]) * abs(position - held)
        swap = abs(position) * Fraction(market["carry_long" if position > 0 else "carry_short"][t])
        net = change - turnover - swap
        equity, held = Fraction(float(equity * (1 + net))), position
        rows.append((float(change), float(turnover), float(swap), float(net), float(equity)))
    return rows


def random_path(size: int, seed: int, grid: tuple[float, ...] = (-1.0, 0.0, 1.0), stay: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    path = rng.choice(grid, size)
    for t in range(1, size):
        if rng.random() < stay:
            path[t] = path[t - 1]
    return path


@pytest.mark.parametrize("first", [0.0, -1.0])
@pytest.mark.parametrize("grid", [(-1.0, 0.0, 1.0), (-2.0, -0.3, 0.0, 0.7)])
def test_equity_change_is_position_times_price_change_minus_costs(first, grid):
    market, positions = random_market(400, seed=1), random_path(400, seed=2, grid=grid)
    ledger = keep_books(market, positions, first_position=first)
    change, turnover, swap, net, equity = np.array(scalar_books(market, positions.tolist(), first)).T
    np.testing.assert_allclose(ledger.gross_return, change + np.maximum(-swap, 0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(ledger.cost, turnover + np.maximum(swap, 0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(ledger.net_return, net, rtol=0, atol=1e-15)
    np.testing.assert_allclose(ledger.equity, equity, rtol=0, atol=1e-12)
    before = np.concatenate([[1.0], equity[:-1]])
    assert abs(ledger.equity[-1] - 1 - (before * (change - turnover - swap)).sum()) < 1e-9


def test_net_return_is_the_one_the_learner_sees():
    market, positions = random_market(200, seed=3), random_path(200, seed=4)
    ledger = keep_books(market, positions)
    names = ("price_return", "turnover_cost", "carry_long", "carry_short")
    expected = net_return(ledger.held, ledger.position, *(market[name] for name in names))
    np.testing.assert_allclose(ledger.net_return, expected, rtol=0, atol=1e-17)


def test_carry_earned_is_gross_and_carry_paid_is_cost():
    market = random_market(2, seed=0) | {"carry_long": np.array([2e-4, -3e-4]), "turnover_cost": np.zeros(2)}
    ledger = keep_books(market, np.array([1.0, 1.0]))
    np.testing.assert_array_equal(ledger.cost, [2e-4, 0.0])
    np.testing.assert_array_equal(ledger.gross_return, market["price_return"] + [0.0, 3e-4])


def test_close_at_end_goes_flat_with_the_last_decision_and_pays_for_it():
    market = random_market(5, seed=5)
    positions = np.ones(5)
    ledger = keep_books(market, positions, close_at_end=True)
    assert ledger.position.tolist() == [1, 1, 1, 1, 0]
    assert ledger.net_return[-1] == -market["turnover_cost"][-1]
    assert positions[-1] == 1  # the caller's array is left alone
    assert trades(ledger, market["fill_price"][:-1]).closed.all()


def test_a_ruined_account_stays_at_zero():
    market = random_market(4, seed=6) | {"price_return": np.array([0.1, -1.2, 0.5, 0.5])}
    assert keep_books(market, np.ones(4)).equity[1:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price_return": np.array([0.0, np.nan, 0.0])}, r"price_return\[1\] of 3 is nan"),
        ({"turnover_cost": np.array([0.0, 0.0, -1e-4])}, "row 2"),
        ({"carry_long": np.zeros(2)}, r"carry_long.*\(2,\)"),
    ],
)
def test_unusable_arrays_are_refused_with_their_row(change, message):
    with pytest.raises(ValueError, match=message):
        keep_books(random_market(3, seed=0) | change, np.zeros(3))


def test_stitched_segments_compound_on():
    market = random_market(60, seed=7)
    parts = [{name: values[i : i + 20] for name, values in market.items()} for i in (0, 20, 40)]
    ledgers = [keep_books(part, random_path(20, seed=i)) for i, part in enumerate(parts)]
    whole = stitch(ledgers)
    np.testing.assert_allclose(whole.equity[-1], np.prod([ledger.equity[-1] for ledger in ledgers]), rtol=1e-14)
    assert whole.held[[0, 20, 40]].tolist() == [0, 0, 0]
    rows = trades(whole, market["fill_price"][:-1])
    np.testing.assert_allclose(np.prod(1 + rows.result), whole.equity[-1], rtol=1e-12)
    with pytest.raises(ValueError, match="rise in time; row 20"):
        stitch([ledgers[1], ledgers[0]])


def test_a_change_of_size_stays_one_round_trip_and_a_reversal_opens_the_next():
    market = random_market(6, seed=8, carry=0.0)
    ledger = keep_books(market, np.array([0.5, 1.0, 0.3, -0.5, -0.5, 0.0]))
    rows = trades(ledger, market["fill_price"][:-1])
    price = market["fill_price"]
    expected = [(0, 3, 1, 1.0, slice(0, 3)), (3, 5, -1, 0.5, slice(3, 6))]  # entry, exit, side, size, bars it owns
    assert len(rows) == len(expected)
    for i, (entry, exit_, side, size, bars) in enumerate(expected):
        assert rows.entry_time[i] == market["time"][entry]
        assert rows.exit_time[i] == market["time"][exit_]
        assert (rows.entry_price[i], rows.exit_price[i]) == (price[entry], price[exit_])
        assert (rows.side[i], rows.bars_held[i], rows.closed[i]) == (side, exit_ - entry, True)
        np.testing.assert_allclose([rows.size[i], rows.cost[i]], [size, ledger.cost[bars].sum()], rtol=1e-12)
        np.testing.assert_allclose(rows.result[i], np.prod(1 + ledger.net_return[bars]) - 1, rtol=0, atol=1e-15)


def test_a_long_holding_earns_what_prices_say_not_the_sum_of_simple_returns():
    size = 700
    price = 100 * np.cumprod(np.concatenate([[1.0], np.tile([1.01, 0.99], size // 2)]))  # falls 3.4 %, returns sum to 0
    price[-2:] *= 1.01  # sum of returns +1 %, prices -2.5 %
    nothing = np.zeros(size)
    market = random_market(size, seed=0) | {"fill_price": price, "price_return": price[1:] / price[:-1] - 1}
    market |= dict.fromkeys(("turnover_cost", "carry_long", "carry_short"), nothing)
    ledger = keep_books(market, np.ones(size), close_at_end=True)
    (result,) = trades(ledger, price[:-1]).result
    assert ledger.net_return.sum() > 0
    assert price[size - 1] < price[0]
    assert result == pytest.approx(price[size - 1] / price[0] - 1, abs=1e-12)


@pytest.mark.parametrize("grid", [[-1.0, -0.6, -0.3, 0.0, 0.3, 0.6, 1.0], [-2.0, 0.0, 2.0], [-2.0, 0.0, 1.0]])
def test_trades_csv_and_the_figures_cut_the_same_round_trips(grid):
    market = random_market(400, seed=3)
    positions = np.random.default_rng(4).choice(grid, 400)
    ledger = keep_books(market, positions, close_at_end=True)
    rows, trips = trades(ledger, market["fill_price"][:-1]), round_trips(ledger.net_return, ledger.position)
    assert rows.result.tolist() == trips.results.tolist()
    assert rows.bars_held.tolist() == trips.bars.tolist()
    figures = trading_metrics(ledger.net_return, ledger.position, 23_000)
    assert (figures["trades"], figures["win_rate"]) == (len(rows), np.mean(rows.result > 0))


def test_a_position_still_open_is_valued_at_the_last_fill():
    market = random_market(3, seed=9)
    rows = trades(keep_books(market, np.array([0.0, 1.0, 1.0])), market["fill_price"][:-1])
    assert rows.closed.tolist() == [False]
    assert rows.bars_held.tolist() == [2]
    np.testing.assert_allclose(rows.exit_price, market["fill_price"][-1:], rtol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    path=st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.1, 0.2, 0.3, 1.0, 2.5]), min_size=1, max_size=40),
    first=st.sampled_from([0.0, 0.1, -1.0]),
    seed=st.integers(0, 1000),
)
def test_round_trips_compound_to_the_ledger(path, first, seed):
    market = random_market(len(path), seed, carry=1e-4)
    ledger = keep_books(market, np.array(path), first_position=first)
    rows = trades(ledger, market["fill_price"][:-1])
    np.testing.assert_allclose(np.prod(1 + rows.result), ledger.equity[-1], rtol=1e-12)
    np.testing.assert_allclose(rows.cost.sum(), ledger.cost.sum(), rtol=0, atol=1e-12)
    assert rows.bars_held.sum() == np.count_nonzero(path)
    assert (rows.size > 0).all()
    assert (rows.cost >= 0).all()
    closed = rows.closed
    assert rows.side[~closed].sum() == np.sign(path[-1])


def test_money_follows_price_change_times_lots_minus_costs():
    market, positions = random_market(300, seed=10), random_path(300, seed=11)
    ledger = keep_books(market, positions)
    price = market["fill_price"]
    money = money_account(ledger, price[:-1], initial_balance=3000, balance_per_lot=15_000, contract_size=100)
    balance, held, lots = 3000.0, 0.0, 0.0
    for t, position in enumerate(positions):
        before = lots
        if position != held:
            lots = np.sign(position) * max(0.01, np.floor(balance / 15_000 * 100 + 1e-9) / 100) if position else 0.0
        cost = abs(lots - before) * 100 * price[t] * market["turnover_cost"][t]
        swap = abs(lots) * 100 * price[t] * market["carry_long" if position > 0 else "carry_short"][t]
        balance += lots * 100 * (price[t + 1] - price[t]) - cost - swap
        held = position
        np.testing.assert_allclose(money.lots[t], lots, atol=1e-12)
        np.testing.assert_allclose(money.balance[t], balance, atol=1e-6)
        np.testing.assert_allclose(money.cost[t], cost + max(swap, 0), atol=1e-9)
    np.testing.assert_allclose(3000 + money.profit.sum(), money.balance[-1], rtol=1e-12)
    assert len({*np.abs(money.lots).round(2)}) > 3  # the lots did follow the balance


@pytest.mark.parametrize(
    ("balance", "exposure", "lots"),
    [(500, 1.0, 0.5), (5, 1.0, 0.01), (290, -1.0, -0.29), (1e6, 1.0, 2.0), (37.9, 1.0, 0.03), (500, 0.5, 0.25)],
)
def test_lots_are_stepped_and_clamped(balance, exposure, lots):
    market = random_market(1, seed=0)
    ledger = keep_books(market, np.array([exposure]))
    money = money_account(ledger, market["fill_price"][:-1], initial_balance=balance, max_lots=2.0)
    assert money.lots[0] == pytest.approx(lots, abs=1e-12)


def test_inherited_and_dropped_positions_cost_no_money():
    market = random_market(4, seed=13, carry=0.0)
    first = {name: values[:2] for name, values in market.items()}
    second = {name: values[2:] for name, values in market.items()}
    ledger = stitch([keep_books(first, np.full(2, -1.0), first_position=-1.0), keep_books(second, np.zeros(2))])
    money = money_account(ledger, market["fill_price"][:-1], initial_balance=1000, contract_size=1)
    assert money.lots.tolist() == [-1, -1, 0, 0]
    assert money.cost.tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(money.profit[:2], -np.diff(market["fill_price"])[:2], rtol=1e-9)


def test_a_ruined_balance_stays_at_zero_and_trades_no_more():
    market = random_market(3, seed=0) | {"price_return": np.array([-0.5, 0.5, 0.5])}
    money = money_account(keep_books(market, np.ones(3)), market["fill_price"][:-1], initial_balance=100)
    assert money.balance.tolist() == [0.0, 0.0, 0.0]
    assert money.lots[1:].tolist() == [0.0, 0.0]
    assert money.profit.sum() == -100


def test_money_sizes_and_prices_are_checked():
    market = random_market(3, seed=0)
    ledger = keep_books(market, np.ones(3))
    with pytest.raises(ValueError, match=r"lot_step.*0"):
        money_account(ledger, market["fill_price"][:-1], lot_step=0)
    with pytest.raises(ValueError, match="one price per decision, 3"):
        money_account(ledger, market["fill_price"])
    with pytest.raises(ValueError, match="row 1 is -1"):
        trades(ledger, np.array([1.0, -1.0, 1.0]))


def test_a_million_bars_take_less_than_a_second():
    size = 1_000_000
    rng = np.random.default_rng(0)
    turns = np.repeat(rng.integers(-1, 2, size // 8), 8).astype(np.float64)
    market = random_market(size, seed=12)
    start = time.process_time()
    ledger = keep_books(market, turns)
    rows = trades(ledger, market["fill_price"][:-1])
    assert time.process_time() - start < 1
    assert len(rows) > 50_000
    start = time.process_time()
    money_account(ledger, market["fill_price"][:-1])
    assert time.process_time() - start < 2
