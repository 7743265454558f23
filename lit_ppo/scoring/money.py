"""The same test decisions on an account in currency, traded in lots: money.csv."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lit_ppo.market.books import Ledger, MoneyLedger, money_account
from lit_ppo.store.files import FoldCsv, utc_cells
from lit_ppo.store.results import RunFolder

FILE = "money.csv"
COLUMNS = ("time", "fold", "lots", "profit", "cost", "balance")


@dataclass(frozen=True)
class MoneySettings:
    """The account that evaluation trades in lots, see `books.money_account`; defaults are gold's.

    Attributes:
        initial_balance: account currency, before the first test decision.
        balance_per_lot: account currency for each lot traded at exposure 1; the default is 500 for each 0.01 lot.
        min_lots, max_lots: least and most lots of an order.
        lot_step: lots are whole multiples of it.
        contract_size: units per lot (gold: 100 ounces).

    Raises:
        ValueError: a size that is not positive, or min_lots > max_lots.
    """

    initial_balance: float = 10_000.0
    balance_per_lot: float = 50_000.0
    min_lots: float = 0.01
    max_lots: float = 200.0
    lot_step: float = 0.01
    contract_size: float = 100.0

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in asdict(self).items() if not (np.isfinite(value) and value > 0)}
        if wrong or self.min_lots > self.max_lots:
            raise ValueError(f"The money account needs sizes > 0 and min_lots <= max_lots; got {wrong or asdict(self)}")


class MoneyBook:
    """money.csv of a run: one row per test decision, the balance going on from fold to fold."""

    def __init__(self, folder: RunFolder, settings: MoneySettings) -> None:
        self.settings = settings
        self._csv = FoldCsv(folder.file(FILE), COLUMNS)

    def append(self, fold: int, ledger: Ledger, fill_price: ArrayLike) -> dict[str, Any]:
        """Trade a fold's test decisions; returns figures for the ledger. A repeated append replaces the first."""
        _, last = self._csv.before(fold)
        before = float(last[-1]) if last else self.settings.initial_balance
        money = self._trade(ledger, np.asarray(fill_price, dtype=np.float64), before)
        columns = (money.lots, money.profit, money.cost, money.balance)
        cells = zip(utc_cells(money.time), *(column.tolist() for column in columns), strict=True)
        self._csv.append(fold, [",".join([time, str(fold), *map(repr, row)]) for time, *row in cells])
        return {
            "balance_before": before,
            "balance": float(money.balance[-1]),
            "lowest_balance": float(money.balance.min()),
            "costs": float(money.cost.sum()),
            "most_lots": float(np.abs(money.lots).max()),
        }

    def _trade(self, ledger: Ledger, fill_price: np.ndarray, balance: float) -> MoneyLedger:
        if balance <= 0.0:  # ruined in an earlier fold
            nothing = np.zeros(len(ledger))
            return MoneyLedger(ledger.time, nothing, nothing, nothing, nothing)
        settings = asdict(self.settings) | {"initial_balance": balance}
        return money_account(ledger, fill_price, **settings)


def money_line(figures: list[dict[str, Any]]) -> str:
    """The account in one line, from what `append` returned for each fold."""
    first, last = figures[0]["balance_before"], figures[-1]["balance"]
    lowest = min(fold["lowest_balance"] for fold in figures)
    costs, lots = sum(fold["costs"] for fold in figures), max(fold["most_lots"] for fold in figures)
    return (
        f"Account: {first:,.2f} -> {last:,.2f} (lowest {lowest:,.2f}), costs {costs:,.2f}, up to {lots:.2f} lots; "
        f"margin and stop-outs are not modelled. Row by row: {FILE}."
    )
