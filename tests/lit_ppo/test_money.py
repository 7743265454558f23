"""money.csv: the test decisions in lots, the balance going on from fold to fold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lit_ppo.market.books import account
from lit_ppo.scoring.money import COLUMNS, MoneyBook, MoneySettings, money_line
from lit_ppo.store.results import RunFolder

SETTINGS = MoneySettings(initial_balance=1000.0, balance_per_lot=500.0, min_lots=0.1, max_lots=5.0, contract_size=10.0)


def ledger(positions: list[float], returns: list[float], first_bar: int = 0):
    size = len(positions)
    prices = 100 * np.cumprod(np.concatenate([[1.0], 1 + np.array(returns[:-1])]))
    zeros = np.zeros(size)
    books = account(
        np.array(positions),
        time=(first_bar + np.arange(size)) * 900 * 10**9,
        price_return=np.array(returns),
        turnover_cost=np.full(size, 1e-4),
        carry_long=zeros,
        carry_short=zeros,
    )
    return books, prices


def test_the_balance_goes_on_from_fold_to_fold(tmp_path):
    book = MoneyBook(RunFolder(tmp_path, 1), SETTINGS)
    figures = [
        book.append(0, *ledger([1.0, 1.0, 0.0], [0.01, 0.02, 0.0])),
        book.append(1, *ledger([-1.0, 0.0], [0.01, 0.0], first_bar=3)),
    ]
    rows = pd.read_csv(tmp_path / "1/money.csv")
    assert tuple(rows.columns) == COLUMNS
    assert rows["fold"].tolist() == [0, 0, 0, 1, 1]
    assert rows["lots"].iloc[0] == pytest.approx(2.0)  # 1000 / 500
    assert rows["balance"].iloc[0] == pytest.approx(1000 + 2 * 10 * 100 * 0.01 - 2 * 10 * 100 * 1e-4)
    np.testing.assert_allclose(1000 + rows["profit"].cumsum(), rows["balance"])
    assert figures[1]["balance_before"] == figures[0]["balance"] == rows["balance"].iloc[2]
    assert "Account: 1,000.00 -> " in money_line(figures)


def test_a_fold_that_is_written_again_replaces_itself(tmp_path):
    book = MoneyBook(RunFolder(tmp_path, 1), SETTINGS)
    books = ledger([1.0, 0.0], [0.01, 0.0])
    book.append(0, *books)
    once = (tmp_path / "1/money.csv").read_bytes()
    book.append(0, *books)
    assert (tmp_path / "1/money.csv").read_bytes() == once


def test_a_ruined_account_trades_nothing_in_later_folds(tmp_path):
    book = MoneyBook(RunFolder(tmp_path, 1), SETTINGS)
    assert book.append(0, *ledger([1.0, 1.0], [-0.99, 0.0]))["balance"] == 0.0
    later = book.append(1, *ledger([1.0, 0.0], [0.01, 0.0], first_bar=2))
    assert (later["balance"], later["most_lots"]) == (0.0, 0.0)


def test_settings_that_cannot_be_meant_are_refused():
    for wrong in ({"initial_balance": 0.0}, {"min_lots": 2.0, "max_lots": 1.0}, {"contract_size": float("nan")}):
        with pytest.raises(ValueError, match="The money account needs"):
            MoneySettings(**wrong)
