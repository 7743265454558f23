"""From positions to returns, trades and money: the books that evaluation, baselines and report share. numpy only.

    gross_t = a rho_t + carry earned,   cost_t = kappa_t |a - p| + carry paid,   net_t = gross_t - cost_t
    equity_t = equity_{t-1} (1 + net_t),   equity before the first decision = 1

p is the position held before decision t, a the one it takes; returns are fractions of notional between fill t and
fill t+1. See DESIGN "Words"; `lit_ppo.market.costs.net_return` is the same sum, as the learner sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Ledger:
    """The books of D decisions, in time order.

    Attributes:
        time: [D] int64, open time of bar t, nanoseconds since 1970 UTC.
        position: [D] exposure decided at the close of bar t, share of notional.
        gross_return: [D] fraction of notional earned between fill t and fill t+1, carry earned included.
        cost: [D] >= 0, fraction of notional: change of position at fill t, and carry paid until fill t+1.
        net_return: [D] gross_return - cost.
        equity: [D] after fill t+1; starts from 1 before the first decision. A ruined account stays at 0.
        held: [D] exposure before decision t.
        price_return: [D] rho_t.
        carry: [D] swap of the position from fill t to fill t+1; positive is paid (in `cost`), negative is earned.
    """

    time: IntArray
    position: FloatArray
    gross_return: FloatArray
    cost: FloatArray
    net_return: FloatArray
    equity: FloatArray
    held: FloatArray
    price_return: FloatArray
    carry: FloatArray

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True)
class Trades:
    """One row per round trip: from leaving flat (or changing side) to flat (or the other side), see `trip_of_bar`.

    Changing the size on one side stays one trade. Its result is what the account grew by from its entry to its exit, so
    the product of 1 + `result` over all rows is the ledger's final equity, and a long at exposure 1 without costs earns
    exit_price / entry_price - 1.

    Attributes:
        entry_time, exit_time: [R] int64, open time of the bar whose decision opened and closed it, ns since 1970 UTC.
        entry_price, exit_price: [R] fill prices.
        side: [R] int64, +1 long, -1 short.
        size: [R] > 0, largest exposure held, share of notional.
        result: [R] compounded net return, after `cost`; -1 is ruin.
        cost: [R] >= 0, sum over its bars, fraction of notional. A reversal's cost belongs to the trade that it opens.
        bars_held: [R] int64.
        closed: [R] bool; False: still open after the last decision, valued at the fill that ends its bar.
    """

    entry_time: IntArray
    entry_price: FloatArray
    exit_time: IntArray
    exit_price: FloatArray
    side: IntArray
    size: FloatArray
    result: FloatArray
    cost: FloatArray
    bars_held: IntArray
    closed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.side)


@dataclass(frozen=True)
class MoneyLedger:
    """The same decisions on an account in currency, traded in lots.

    Attributes:
        time: [D] as in `Ledger`.
        lots: [D] signed lots held from fill t to fill t+1.
        profit: [D] account currency, between fill t and fill t+1, after costs; never below minus the balance.
        cost: [D] >= 0, account currency, part of `profit`.
        balance: [D] account currency, open positions at their fill price, after fill t+1. Ruined: 0 from then on.
    """

    time: IntArray
    lots: FloatArray
    profit: FloatArray
    cost: FloatArray
    balance: FloatArray

    def __len__(self) -> int:
        return len(self.lots)


def account(
    positions: FloatArray,
    *,
    time: IntArray,
    price_return: FloatArray,
    turnover_cost: FloatArray,
    carry_long: FloatArray,
    carry_short: FloatArray,
    first_position: float = 0.0,
    close_at_end: bool = False,
) -> Ledger:
    """Keep the books of D decisions.

    Args:
        positions: [D] exposure decided at each bar.
        time, price_return, turnover_cost, carry_long, carry_short: [D], as in `lit_ppo.market.tensors.MarketTensors`.
        first_position: exposure held before the first decision; nobody pays for having it.
        close_at_end: the last decision goes flat, whatever `positions` says, so that closing is paid for.

    Raises:
        ValueError: shapes differ, a number is not finite, or a turnover cost is negative.
    """
    positions = np.array(positions, dtype=np.float64)  # a copy: the last entry may be overwritten
    given = {
        "price_return": price_return,
        "turnover_cost": turnover_cost,
        "carry_long": carry_long,
        "carry_short": carry_short,
    }
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in given.items()}
    time = np.asarray(time, dtype=np.int64)
    shapes = {name: values.shape for name, values in ({"time": time} | arrays).items()}
    if positions.ndim != 1 or len(positions) == 0 or set(shapes.values()) != {positions.shape}:
        raise ValueError(f"account needs [D] arrays of one length, D >= 1; positions is {positions.shape}, {shapes}")
    for name, values in ({"positions": positions} | arrays).items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"account needs finite numbers, but {name}[{row}] of {len(values)} is {values[row]}")
    if not np.isfinite(first_position):
        raise ValueError(f"first_position must be finite, got {first_position}")
    kappa = arrays["turnover_cost"]
    if (kappa < 0).any():
        row = int(np.argmax(kappa < 0))
        raise ValueError(f"turnover_cost is a cost, >= 0, but row {row} is {kappa[row]}")
    if close_at_end:
        positions[-1] = 0.0
    held = np.concatenate([[float(first_position)], positions[:-1]])
    long, short = np.maximum(positions, 0.0), np.maximum(-positions, 0.0)
    carry = long * arrays["carry_long"] + short * arrays["carry_short"]
    gross = positions * arrays["price_return"] + np.maximum(-carry, 0.0)
    cost = kappa * np.abs(positions - held) + np.maximum(carry, 0.0)
    net = gross - cost
    return Ledger(time, positions, gross, cost, net, _compound(net), held, arrays["price_return"], carry)


def _compound(net_returns: FloatArray) -> FloatArray:
    growth: FloatArray = np.maximum(1.0 + net_returns, 0.0)
    return np.multiply.accumulate(growth)


def stitch(ledgers: Sequence[Ledger]) -> Ledger:
    """Join ledgers that follow each other in time (the test segments of all folds) into one, equity compounding on.

    Raises:
        ValueError: no ledger, or times that do not rise.
    """
    if not ledgers:
        raise ValueError("stitch needs at least one ledger")
    joined = {f.name: np.concatenate([getattr(ledger, f.name) for ledger in ledgers]) for f in fields(Ledger)}
    if (np.diff(joined["time"]) <= 0).any():
        row = int(np.argmax(np.diff(joined["time"]) <= 0))
        raise ValueError(f"Stitched ledgers must rise in time; row {row + 1} is not later than row {row}")
    return Ledger(**joined | {"equity": _compound(joined["net_return"])})


def trip_of_bar(positions: FloatArray, held: FloatArray) -> IntArray:
    """Number the round trips of a path: [D], which of them each bar's net return belongs to; -1 before the first.

    A trip opens where the exposure leaves flat or changes side, and where exposure is there without having been opened
    (before the first decision, or at a segment's start). Its closing bar, which earns only the exit cost, is its own;
    so are the flat bars after it, which earn nothing.

    Args:
        positions: [D] exposure after each decision.
        held: [D] exposure before it.
    """
    side, before = np.sign(positions), np.sign(held)
    segment = held != np.concatenate([[0.0], positions[:-1]])  # [D] exposure came or went without a decision
    opens = ((side != 0) & (side != before)) | (segment & (before != 0))
    numbers: IntArray = np.cumsum(opens, dtype=np.int64) - 1
    return numbers


def compound_by_trip(net_returns: FloatArray, trip: IntArray) -> FloatArray:
    """Compound the net returns [D] of each of K round trips: [K]; ruin is -1, and growth above e^700 counts as e^700.

    Args:
        net_returns: [D] fraction of notional.
        trip: [D] of `trip_of_bar`.
    """
    entered = trip >= 0
    with np.errstate(divide="ignore"):
        growth = np.log1p(np.maximum(net_returns, -1.0))
    count = int(trip.max(initial=-1)) + 1
    total = np.bincount(trip[entered], weights=growth[entered], minlength=count)
    result: FloatArray = np.expm1(np.minimum(total, 700.0))  # a perfect trader of a synthetic market overflows float64
    return result


def trades(ledger: Ledger, fill_price: FloatArray) -> Trades:
    """Cut a ledger into round trips.

    Exposure that was there before the first decision opens at fill 0 without cost. Where a stitched ledger drops its
    exposure between two segments, the round trip ends at the next segment's first fill, without cost.

    Args:
        ledger: D decisions.
        fill_price: [D] price at which decision t is executed.

    Raises:
        ValueError: `fill_price` is not [D], or not positive and finite.
    """
    fill_price = _checked_prices(ledger, fill_price)
    size = len(ledger)
    trip = trip_of_bar(ledger.position, ledger.held)
    count = int(trip[-1]) + 1
    entry = np.searchsorted(trip, np.arange(count))
    entered, holding = trip >= 0, ledger.position != 0
    bars_held = np.bincount(trip[entered & holding], minlength=count)  # the flat bars of a trip follow all others
    exit_ = entry + bars_held
    exposure = np.zeros(count)
    np.maximum.at(exposure, trip[entered], np.abs(ledger.position[entered]))
    first = np.where(holding[entry], ledger.position[entry], ledger.held[entry])  # closed at once: what was held
    cost = np.bincount(trip[entered], weights=ledger.cost[entered], minlength=count)
    end_price = fill_price[-1] * (1.0 + ledger.price_return[-1])
    prices, times = np.append(fill_price, end_price), np.append(ledger.time, ledger.time[-1])
    return Trades(
        entry_time=times[entry],
        entry_price=prices[entry],
        exit_time=times[exit_],
        exit_price=prices[exit_],
        side=np.sign(first).astype(np.int64),
        size=np.maximum(exposure, np.abs(first)),
        result=compound_by_trip(ledger.net_return, trip),
        cost=cost.astype(np.float64),  # without a trade bincount gives whole numbers
        bars_held=bars_held,
        closed=exit_ < size,
    )


def _unit_rates(ledger: Ledger) -> tuple[FloatArray, FloatArray]:
    """Turnover cost per unit of exposure changed and carry per unit held; [D] each, 0 where there is none."""
    turnover, exposure = np.abs(ledger.position - ledger.held), np.abs(ledger.position)
    paid = ledger.cost - np.maximum(ledger.carry, 0.0)
    kappa = np.divide(paid, turnover, out=np.zeros(len(ledger)), where=turnover > 0)
    return kappa, np.divide(ledger.carry, exposure, out=np.zeros(len(ledger)), where=exposure > 0)


def _checked_prices(ledger: Ledger, fill_price: FloatArray) -> FloatArray:
    fill_price = np.asarray(fill_price, dtype=np.float64)
    if fill_price.shape != (len(ledger),):
        raise ValueError(f"fill_price must have one price per decision, {len(ledger)}; got shape {fill_price.shape}")
    if not (np.isfinite(fill_price) & (fill_price > 0)).all():
        row = int(np.argmin(np.isfinite(fill_price) & (fill_price > 0)))
        raise ValueError(f"fill_price must be positive and finite, but row {row} is {fill_price[row]}")
    return fill_price


def money_account(
    ledger: Ledger,
    fill_price: FloatArray,
    *,
    initial_balance: float = 10_000.0,
    balance_per_lot: float = 1_000.0,
    min_lots: float = 0.01,
    max_lots: float = 100.0,
    lot_step: float = 0.01,
    contract_size: float = 100.0,
) -> MoneyLedger:
    """Trade the ledger's decisions in lots, in account currency (that of the quotes).

        lots = sign(a) min(max_lots, max(min_lots, floor(|a| balance / balance_per_lot / lot_step) lot_step))

    Lots are chosen when the exposure changes and stay until it changes again. Margin and stop-outs are not modelled: a
    balance at or below 0 is ruin, and nothing is traded afterwards.

    Args:
        ledger: D decisions.
        fill_price: [D] price at which decision t is executed, account currency per unit.
        initial_balance, balance_per_lot: account currency; one lot is traded per `balance_per_lot` of balance.
        min_lots, max_lots, lot_step: lots; the lot step of the broker.
        contract_size: units per lot (gold: 100 ounces).

    Raises:
        ValueError: a size is not positive, or min_lots > max_lots, or prices as in `trades`.
    """
    fill_price = _checked_prices(ledger, fill_price)
    sizes = {
        "initial_balance": initial_balance,
        "balance_per_lot": balance_per_lot,
        "min_lots": min_lots,
        "lot_step": lot_step,
        "contract_size": contract_size,
    }
    wrong = {name: value for name, value in sizes.items() if not (np.isfinite(value) and value > 0)}
    if wrong or not min_lots <= max_lots:
        raise ValueError(f"money_account needs sizes > 0 and min_lots <= max_lots {max_lots}; got {wrong or sizes}")

    def lots_for(exposure: float, balance: float) -> float:
        if exposure == 0.0:
            return 0.0
        # 1e-9 of a step: 0.29 / 0.01 is 28.9999... in binary, and is 29 steps.
        steps = int(abs(exposure) * balance / balance_per_lot / lot_step + 1e-9)
        lots = min(max_lots, max(min_lots, steps * lot_step))
        return lots if exposure > 0 else -lots

    kappa, unit_carry = _unit_rates(ledger)
    notional = fill_price * contract_size  # [D] account currency of one lot
    columns = (ledger.held, ledger.position, notional * ledger.price_return, notional * kappa, notional * unit_carry)
    balance, exposure, lots = float(initial_balance), 0.0, 0.0
    rows = []
    # A loop, because the next lots depend on the balance that the last ones left.
    for held, position, move, fee, carry in zip(*(column.tolist() for column in columns), strict=True):
        if balance <= 0.0:
            rows.append((0.0, 0.0, 0.0, 0.0))
            continue
        if held != exposure:  # at the start, or between stitched segments: free
            lots = lots_for(held, balance)
        cost = 0.0
        if position != held:
            before, lots = lots, lots_for(position, balance)
            cost = abs(lots - before) * fee
        exposure = position
        swap = abs(lots) * carry
        profit = max(lots * move - cost - swap, -balance)
        balance += profit
        rows.append((lots, profit, cost + max(swap, 0.0), balance))
    lots_held, profits, costs, balances = np.array(rows, dtype=np.float64).T
    return MoneyLedger(ledger.time, lots_held, profits, costs, balances)
