"""The report: numbers from disk, an honest verdict, a page that nothing foreign can act on."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console
from scipy.stats import binom

from lit_ppo.market.baselines import Percentile
from lit_ppo.market.books import account, trades
from lit_ppo.report import breakdown, plotly_figures
from lit_ppo.report import build as report
from lit_ppo.report.analysis import BASELINE_LABELS, Analysis, analyse
from lit_ppo.report.page import packed, source_hash
from lit_ppo.report.summary import _paths as stitched_paths
from lit_ppo.report.summary import print_summary
from lit_ppo.report.tables import without_directories
from lit_ppo.report.untraded import decided_by
from lit_ppo.report.verdict import Evidence, against_optimum, independent_bets, judge, weigh
from lit_ppo.scoring import replay, significance
from lit_ppo.scoring.fills import FillTable, read_fills, write_fills
from lit_ppo.scoring.significance import Interval
from lit_ppo.store.results import PRIOR_DECIDES, RunFolder, load_run
from lit_ppo.words import plural

ROOT = Path(__file__).parents[2]
HOSTILE = '"><img src=x onerror=alert(1)>.csv'


def load(name: str) -> ModuleType:
    """Import a script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load("report_demo")


@pytest.fixture(scope="module")
def lucky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.make_run(tmp_path_factory.mktemp("lucky"), folds=4, test_bars=400)


@pytest.fixture(scope="module")
def analysis(lucky: Path) -> Analysis:
    return analyse(lucky)


def random_fills(size: int = 60, seed: int = 0) -> FillTable:
    generator = np.random.default_rng(seed)
    price_return = generator.normal(0, 0.01, size)
    return FillTable(
        time=np.arange(size) * 900 * 10**9,
        fold=np.arange(size) // 20,
        fill_price=100 * np.cumprod(1 + price_return),
        price_return=price_return,
        turnover_cost=generator.uniform(0, 1e-3, size),
        carry_long=generator.normal(0, 1e-4, size),
        carry_short=generator.normal(0, 1e-4, size),
    )


# ---- fills and replay


def test_fills_come_back_to_the_last_bit(tmp_path: Path) -> None:
    fills = random_fills()
    for fold in range(3):
        folder = tmp_path / f"fold_{fold:03d}"
        folder.mkdir()
        rows = fills.fold == fold
        write_fills(folder, FillTable(*(getattr(fills, name)[rows] for name in fills.__dataclass_fields__)))
    back = read_fills(tmp_path, range(3))
    for name in fills.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(back, name), getattr(fills, name))


def test_a_damaged_or_pickled_fill_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fold_000").mkdir()
    path = tmp_path / "fold_000" / "test_bars.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="no table of test fills"):
        read_fills(tmp_path, [0])
    with path.open("wb") as file:
        np.savez(file, time=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="no table of test fills") as refused:
        read_fills(tmp_path, [0])
    assert "unsafe" not in str(refused.value)
    assert "allow_pickle" not in str(refused.value)


def test_a_replay_restarts_every_fold_flat_and_agrees_with_the_scalar_sum() -> None:
    fills = random_fills()
    positions = np.random.default_rng(1).integers(-1, 2, 60).astype(float)
    books = replay.replay(positions, fills)
    for t in range(60):
        held = 0.0 if t % 20 == 0 else positions[t - 1]
        carry = fills.carry_long[t] if positions[t] > 0 else fills.carry_short[t]
        expected = positions[t] * fills.price_return[t] - fills.turnover_cost[t] * abs(positions[t] - held)
        assert books.net_return[t] == pytest.approx(expected - abs(positions[t]) * carry, abs=1e-15)


def test_delayed_decisions_arrive_one_bar_later_and_never_cross_a_fold() -> None:
    positions = np.array([1.0, -1.0, 0.0, 1.0, 1.0, -1.0])
    late = replay.delayed(positions, np.array([0, 0, 0, 1, 1, 1]))
    np.testing.assert_array_equal(late, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0])


def test_one_bar_later_pays_the_last_exit_and_earns_nothing_after_the_close() -> None:
    # Long at the second of four bars; the fold ends with the exit. One bar later: one bar held, entry and exit paid.
    moves, cost = np.array([0.0, 0.01, 0.02, 0.5]), np.full(4, 0.001)
    fills = FillTable(np.arange(4), np.zeros(4, int), np.full(4, 1.0), moves, cost, np.zeros(4), np.zeros(4))
    books = replay.replay(replay.delayed(np.array([0.0, 1.0, 1.0, 0.0]), fills.fold), fills)
    np.testing.assert_allclose(books.net_return, [0.0, 0.0, 0.02 - 0.001, -0.001])


def long_market(seed: int) -> FillTable:
    moves = np.random.default_rng(seed).normal(0, 1e-3, 400)
    cost, zero = np.full(400, 1e-4), np.zeros(400)
    return FillTable(np.arange(400), np.arange(400) // 40, np.full(400, 1.0), moves, cost, zero, zero)


def test_always_long_has_the_middle_rank_because_everybody_pays_the_exit_of_a_fold() -> None:
    ranks = []
    for seed in range(20):
        fills = long_market(seed)
        agent = replay.closed_at_fold_ends(np.ones(400), fills.fold)
        ranks.append(replay.random_traders(agent, fills, seed=0, draws=100).rank.percentile)
    assert np.mean(ranks) == pytest.approx(50, abs=3)


def test_the_ranks_of_long_and_short_on_one_market_sum_to_100() -> None:
    fills = long_market(1)
    fills = FillTable(**fills.__dict__ | {"turnover_cost": np.zeros(400)})
    path = replay.closed_at_fold_ends((np.random.default_rng(2).random(400) < 0.5).astype(float), fills.fold)
    long, short = (replay.random_traders(x, fills, seed=0, draws=1000).rank.percentile for x in (path, -path))
    assert long + short == pytest.approx(100, abs=1)  # compounding, not rank, is what is left


def entering_after(sign: int, moves: np.ndarray) -> np.ndarray:
    """[folds, bars] long from the bar after the fold has moved that way by as much as 16 bars do, to its end."""
    moved = sign * np.cumsum(moves, axis=1) > 4e-3
    entered = np.maximum.accumulate(moved, axis=1)
    return np.concatenate((np.zeros((len(moves), 1)), entered[:, :-1]), axis=1)


@pytest.mark.parametrize("sign", [1, -1], ids=["after a rise", "after a fall"])
def test_who_enters_after_a_move_that_says_nothing_ranks_in_the_middle(sign: int) -> None:
    ranks = []
    for seed in range(40):
        moves = np.random.default_rng(seed).normal(0, 1e-3, (30, 60))
        zero = np.zeros(moves.size)
        times, fold = np.arange(moves.size), np.repeat(np.arange(30), 60)
        fills = FillTable(times, fold, np.ones(moves.size), moves.ravel(), zero, zero, zero)
        agent = replay.closed_at_fold_ends(entering_after(sign, moves).ravel(), fold)
        ranks.append(replay.random_traders(agent, fills, seed=0, draws=100).rank.percentile)
    assert np.mean(ranks) == pytest.approx(50, abs=3.3 * 29 / np.sqrt(40))  # of uniform ranks
    assert sum(rank >= 95 for rank in ranks) <= binom.ppf(1 - 1e-4, 40, 0.05)


def test_random_traders_leave_the_folds_of_the_agent_and_keep_their_volatility() -> None:
    fold = np.repeat(np.arange(24), 10)
    wild = np.where(fold % 2, 1e-2, 1e-3)
    moves = wild * np.random.default_rng(0).choice([-1.0, 1.0], 240)
    zero = np.zeros(240)
    fills = FillTable(np.arange(240), fold, np.ones(240), moves, zero, zero, zero)
    agent = np.where(fold == 5, 1.0, 0.0)
    paths = replay.random_paths(agent, fills, 200, np.random.default_rng(1))
    held = np.unique(fold[np.flatnonzero(paths.any(axis=0))])
    assert held.tolist() == [k for k in range(1, 24, 2) if k != 5]  # all of the wild ones but its own
    np.testing.assert_array_equal(paths.sum(axis=1), np.full(200, 9.0))  # the last decision of a fold closes
    assert not paths[:, 9::10].any()


def test_dearer_costs_scale_what_is_paid_and_leave_the_price_alone() -> None:
    fills = random_fills()
    positions = np.random.default_rng(1).integers(-1, 2, 60).astype(float)
    free, once, thrice = (replay.replay(positions, fills.scaled_costs(x)).net_return for x in (0.0, 1.0, 3.0))
    np.testing.assert_allclose(free, positions * fills.price_return, atol=1e-15)
    np.testing.assert_allclose(free - thrice, 3 * (free - once), atol=1e-15)


def test_random_traders_rank_a_clairvoyant_at_the_top_and_themselves_in_the_middle() -> None:
    generator = np.random.default_rng(3)
    size = 2000
    price_return = generator.normal(0, 1e-3, size)
    fills = FillTable(
        np.arange(size) * 900 * 10**9,
        np.zeros(size, dtype=np.int64),
        np.full(size, 100.0),
        price_return,
        *(np.full(size, x) for x in (1e-5, 0.0, 0.0)),
    )
    seeing = np.sign(price_return)
    assert replay.random_traders(seeing, fills, seed=0, draws=200).rank.percentile == 100.0
    blind = np.repeat(generator.integers(-1, 2, size // 20), 20).astype(float)
    ranks = [replay.random_traders(np.roll(blind, k * 97), fills, 0, 200).rank.percentile for k in range(20)]
    assert 25 < np.mean(ranks) < 75


@pytest.mark.parametrize("name", ["sma_cross", "last_year", "trend"])
def test_a_baseline_sees_no_fill_of_its_own_decision_or_later(name) -> None:
    fills = random_fills(300)
    later = fills.fill_price[::-1] * np.where(np.arange(300) < 260, 0.1, 10.0)
    changed = FillTable(**fills.__dict__ | {"fill_price": np.where(np.arange(300) >= 200, later, fills.fill_price)})
    before, after = (replay.baseline_positions(x, 120.0)[name] for x in (fills, changed))
    np.testing.assert_array_equal(before[:201], after[:201])
    assert (before[201:] != after[201:]).any()


@pytest.mark.parametrize("grid", [np.linspace(-3, 3, 7).tolist(), [-2, 0, 2], [-2, 0, 1]])
def test_terminal_and_page_hold_one_of_notional_and_count_the_same_trades(lucky, tmp_path, grid) -> None:
    copy = tmp_path / lucky.name
    shutil.copytree(lucky, copy)
    table = pd.read_csv(copy / "out_of_sample.csv")
    done = [record.index for record in load_run(copy).folds]
    fills = read_fills(copy, done)
    last = np.append(fills.fold[1:] != fills.fold[:-1], True)
    positions = np.where(last, 0.0, np.random.default_rng(1).choice(np.float64(grid), len(fills)))
    ledger = replay.replay(positions, fills)
    for name in ("position", "gross_return", "cost", "net_return", "equity"):
        table[name] = getattr(ledger, name)
    table.to_csv(copy / "out_of_sample.csv", index=False)
    (copy / "trades.csv").unlink()
    folder = RunFolder(tmp_path, int(lucky.name))
    for fold in done:
        rows = fills.fold == fold
        one = FillTable(*(getattr(fills, name)[rows] for name in fills.__dataclass_fields__))
        folder.append_trades(fold, trades(replay.replay(positions[rows], one), one.fill_price))
    page = analyse(copy)
    assert page.metrics["trades"] == len(page.trades)
    assert page.metrics["win_rate"] == np.mean(page.trades.result > 0)
    won, lost = (abs(page.trades.result[sign * page.trades.result > 0].sum()) for sign in (1, -1))
    assert page.metrics["profit_factor"] == pytest.approx(won / lost)
    hold = next(x for x in page.baselines if x.key == "buy_and_hold")
    assert hold.metrics["exposure"] == 1.0
    told = io.StringIO()
    Console(file=told, width=80).print(stitched_paths(page))
    cells = {row[0]: row for line in told.getvalue().splitlines() if len(row := re.split(" {2,}", line.strip())) > 6}
    assert float(cells["buy and hold"][1].replace(",", "")) == pytest.approx(hold.metrics["return_pct"], abs=0.006)
    assert cells["lit-ppo"][4] == f"{len(page.trades):,}"  # a whole number


# ---- numbers


def test_the_report_recomputes_the_ledger_and_finds_the_same_returns(analysis: Analysis) -> None:
    assert analysis.recomputed < 1e-15
    assert analysis.stress[1][1]["return_pct"] == pytest.approx(analysis.metrics["return_pct"], abs=1e-9)
    hold = next(x for x in analysis.baselines if x.key == "buy_and_hold")
    fills = analysis.fills
    assert fills is not None
    expected = account(
        np.ones(len(fills)),
        time=fills.time,
        price_return=fills.price_return,
        turnover_cost=fills.turnover_cost,
        carry_long=fills.carry_long,
        carry_short=fills.carry_short,
    )
    assert hold.metrics["return_pct"] == pytest.approx(100 * (expected.equity[-1] - 1))


def test_every_split_adds_up_to_the_whole(analysis: Analysis) -> None:
    whole = 100 * analysis.net_return.sum()
    for name in ("year", "month of the year", "weekday", "hour (UTC)"):
        groups = analysis.splits[name]
        assert sum(group.sum_pct for group in groups) == pytest.approx(whole)
        assert sum(group.bars for group in groups) == len(analysis.time)
    growth = np.prod([1 + month.return_pct / 100 for month in analysis.months])
    assert 100 * (growth - 1) == pytest.approx(analysis.metrics["return_pct"])
    assert analysis.best.all_pct == pytest.approx(analysis.metrics["return_pct"])


def test_calendar_splits_know_their_days() -> None:
    moment = np.array(["2024-02-29T22:15"], dtype="datetime64[ns]").astype(np.int64)  # a Thursday
    assert breakdown.weekdays(moment)[0] == 3
    assert breakdown.hours(moment)[0] == 22
    assert breakdown.years(moment)[0] == 2024
    assert breakdown.months(moment)[0] == 2


def test_volatility_thirds_use_only_returns_known_at_the_decision() -> None:
    returns = np.random.default_rng(0).normal(0, 1, 300)
    thirds = breakdown.volatility_thirds(returns, bars=10)
    level = np.array([np.sqrt(np.sum(returns[t - 11 : t - 1] ** 2)) for t in range(11, 300)])
    assert (thirds[:11] == -1).all()
    np.testing.assert_array_equal(thirds[11:], np.searchsorted(np.quantile(level, [1 / 3, 2 / 3]), level, side="right"))


# ---- verdict


def test_luck_is_called_no_edge_and_skill_an_edge(tmp_path: Path, analysis: Analysis) -> None:
    assert analysis.verdict.kind == "none"
    assert "indistinguishable from flat" in analysis.verdict.text
    skilled = analyse(demo.make_run(tmp_path, seed=7, folds=6, test_bars=500, skill=0.5))
    assert skilled.verdict.kind == "edge"
    assert skilled.evidence.sharpe.low > 0
    assert skilled.evidence.deflated > 0.95


def verdict_of(net: np.ndarray, trials: int = 1, ruined: bool = False, why: str = "", **more: object) -> str:
    rank = Percentile(99.0 if net.mean() > 0 else 1.0, 0.01, 1000)
    bets = 0 if not net.any() else 40
    given = {"bets": bets, "rank": rank} | more
    evidence = weigh(net, 25_000.0, trials, hold=None, **{"oracle": None} | given, ruined=ruined, seed=0)  # type: ignore[arg-type]
    return said(evidence, why)


def said(evidence: Evidence, why: str = "") -> str:
    verdict = judge(evidence, why)
    return f"{verdict.kind}: {verdict.text}"


def test_an_interval_above_zero_is_no_edge_when_many_trials_explain_it() -> None:
    net = np.random.default_rng(0).normal(0, 1e-3, 4000)
    net += 1e-3 * 2.6 / np.sqrt(4000) - net.mean()  # 2.6 standard errors above zero
    assert verdict_of(net).startswith("edge")
    assert verdict_of(net, trials=500).startswith("none: No edge that can be told from luck")


def test_interval_rank_and_deflated_ratio_must_agree_and_counts_have_their_noun(monkeypatch) -> None:
    monkeypatch.setattr("lit_ppo.scoring.significance.draws_for", lambda net: 200)
    net = np.random.default_rng(0).normal(0, 1e-3, 500)
    net += 1e-3 * 4 / np.sqrt(500) - net.mean()
    given = {"bets": 40, "hold": None, "rank": Percentile(99.0, 0.01, 1000), "oracle": None, "ruined": False, "seed": 0}
    better, worse = (weigh(x, 25_000.0, 1, **given) for x in (net, -net))  # type: ignore[arg-type]
    assert said(better).endswith("it survives the count of 1 trial.")
    assert said(better._replace(rank=Percentile(60.0, 0.4, 1000))).startswith("none")
    assert said(better._replace(rank=None)).startswith("none")
    assert said(worse).startswith("none: No edge, and no agreement on a loss")
    assert said(better._replace(bets=29)).startswith("none: Too few trades to say: 29 independent bets")
    assert (plural(1, "day"), plural(1200, "day")) == ("1 day", "1,200 days")


def test_seven_of_eight_bars_traded_is_too_few_but_not_hardly_traded() -> None:
    net = np.array([0.0, *np.random.default_rng(0).normal(0, 1e-3, 7)])
    found = verdict_of(net, bets=1.0)
    assert "hardly" not in found
    assert "1 independent bet (" in found
    assert "nan" not in found


def test_a_test_of_a_few_bars_says_that_they_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bars, name in ((8, "eight"), (1, "one")):
        run = demo.make_run(tmp_path / name, folds=1, test_bars=bars, skill=1.0)
        analysis = analyse(run)
        print_summary(analysis)
        printed = " ".join(capsys.readouterr().out.split())
        assert f"{plural(bars, 'test bar')}. Folds: 1." in printed
        assert analysis.verdict.text in printed  # the page's own
        page = report.write_report(run).read_text(encoding="utf-8")
        assert f"{plural(bars, 'test bar')}, " in page
        for text in (printed, page.partition("<script")[0]):
            assert re.findall(r"\bnan\b|\b1 (?:bars|folds|trades|days|trials|test bars)\b", text) == []


def test_the_tables_of_the_terminal_fit_80_columns(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=3, test_bars=200)
    record = load_run(run).record
    oracle = {"kind": "x", "optimum_per_bar": 0.1, "scale": 1e-3}
    RunFolder(tmp_path, 42).write_run(record | {"oracle": oracle})
    told = io.StringIO()
    print_summary(analyse(run), Console(file=told, width=80, force_terminal=True, no_color=True, highlight=False))
    lines = re.sub("\x1b[^m]*m", "", told.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in told.getvalue()
    assert any(line.startswith("last year") for line in lines)


def test_a_run_that_trained_nothing_says_whose_decisions_these_are(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=2, test_bars=300, stop_reason=PRIOR_DECIDES)
    assert "what they saw before is not on a card" in decided_by(load_run(run))
    start = {"weights": "prior", "sha256": "0", "card": {"real_bars_seen": 0, "timesteps": 1_000_000}}
    RunFolder(tmp_path, 42).update_run(start=start)
    told = decided_by(load_run(run))
    assert told.startswith("Nothing was trained: the released prior trader (1,000,000 timesteps of training) decided")
    assert "never these bars" in told
    assert told in report.write_report(run).read_text()
    trained = demo.make_run(tmp_path, seed=1, folds=2, test_bars=300)
    assert decided_by(load_run(trained)) == ""


def test_bets_are_round_trips_or_days_and_one_large_trade_among_tiny_ones_is_one() -> None:
    time = np.arange(400) * 900 * 10**9
    path = np.zeros(400)
    path[5:305:10] = 1.0
    assert independent_bets(path, time) == pytest.approx(30)
    path[5:290:10] = 1e-3
    assert independent_bets(path, time) < 1.1
    assert independent_bets(np.ones(960), np.arange(960) * 900 * 10**9) == pytest.approx(10)
    assert independent_bets(np.zeros(400), time) == 0


NO_INTERVAL = Interval(np.nan, np.nan, np.nan, np.nan)
ABOVE, BELOW = Interval(2.0, 1.0, 3.0, 1.0), Interval(-2.0, -3.0, -1.0, 1.0)
BEST, WORST = Percentile(100.0, 0.001, 1000), Percentile(0.0, 1.0, 1000)


def random_trader(trades: int, held: int, bars: int, seed: int, tail: float) -> tuple[FillTable, np.ndarray]:
    """Fills whose true mean is 0, and a path of random sign at random times on them; 0 trades: flat, -1: long."""
    generator = np.random.default_rng(seed)
    moves = 1e-3 * (generator.normal(size=bars) if tail == np.inf else generator.standard_t(tail, bars))
    path = np.full(bars, 1.0 if trades < 0 else 0.0)
    gap = bars // max(trades, 1)
    for start in gap * np.arange(max(trades, 0)) + generator.integers(max(gap - held, 1), size=max(trades, 0)):
        path[start : start + held] = generator.choice([-1.0, 1.0])
    path[-1] = 0.0
    time, zero = np.arange(bars) * 900 * 10**9, np.zeros(bars)
    return FillTable(time, np.zeros(bars, int), np.full(bars, 1.0), moves, zero, zero, zero), path


def verdict_on(fills: FillTable, path: np.ndarray, draws: int = 200) -> str:
    """The shipped verdict on a path.

    Rank and interval, which cost seconds, are computed only where they can matter: where `judge` finds nothing with
    the best of them, nor with the worst, it finds nothing.
    """
    net = path * fills.price_return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "mean_interval", lambda *_, **__: NO_INTERVAL)  # told, and no verdict reads it
        patch.setattr(significance, "sharpe_interval", lambda *_, **__: ABOVE)
        bets = independent_bets(path, fills.time)
        found = weigh(net, 23_600.0, 1, bets=bets, hold=None, rank=BEST, oracle=None, ruined=False, seed=0)

    def kinds(*claims: tuple[Interval, Percentile]) -> set[str]:
        return {judge(found._replace(sharpe=interval, rank=rank)).kind for interval, rank in claims}

    if kinds((ABOVE, BEST), (BELOW, WORST)) == {"none"}:
        return "none"
    rank = replay.random_traders(path, fills, 0, draws).rank
    if kinds((ABOVE, rank), (BELOW, rank)) == {"none"}:
        return "none"
    interval = significance.sharpe_interval(net, 23_600.0, draws=significance.draws_for(net), seed=0)
    return judge(found._replace(sharpe=interval, rank=rank)).kind


def assert_nominal(kinds: list[str], chance: float = 1e-4) -> None:
    """No verdict comes more often than 2.5 % of all draws, as far as a test of this chance of a false alarm can see.

    The bound is the exact binomial quantile: of 2,000 draws 78 (a true rate of 5.1 % is seen 99 times in 100), of 240
    draws 17 (11.9 %), of a cell of 24 draws 5 (46 %). The draws are seeded: what passes once passes again.
    """
    allowed = binom.ppf(1 - chance, len(kinds), 0.025)
    for kind in ("edge", "loss"):
        assert kinds.count(kind) <= allowed, (kind, kinds.count(kind), len(kinds))


@pytest.mark.parametrize(("trades", "held"), [(0, 1), (1, 1), (1, 4), (5, 1), (10, 4), (-1, 1)])
def test_a_sparse_random_trader_gets_no_verdict(trades: int, held: int) -> None:
    assert {verdict_on(*random_trader(trades, held, 500, seed, np.inf)) for seed in range(3)} == {"none"}


def test_a_verdict_is_found_the_short_way_as_the_long_way() -> None:
    for skill in (1, -1):
        fills, path = random_trader(60, 4, 500, 0, np.inf)
        path = skill * np.abs(path) * np.sign(fills.price_return)
        rank, bets = replay.random_traders(path, fills, 0, 200).rank, independent_bets(path, fills.time)
        given = {"bets": bets, "hold": None, "rank": rank, "oracle": None, "ruined": False, "seed": 0}
        whole = judge(weigh(path * fills.price_return, 23_600.0, 1, **given)).kind  # type: ignore[arg-type]
        assert verdict_on(fills, path) == whole == ("edge" if skill > 0 else "loss")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tail", [np.inf, 3.0])
@pytest.mark.parametrize(("bars", "count"), [(500, 400), (4_000, 200), (60_000, 24)])  # 60,000: seconds a draw
def test_verdicts_on_random_traders_come_at_their_nominal_rate(bars: int, count: int, tail: float) -> None:
    every: list[str] = []
    for number in (0, 1, 2, 5, 10, 30, 100, 300, -1):
        for held in (1, 4, 96):
            if bars < max(number, 0) * (held + 1) or (number < 1 and held > 1):  # does not fit, or is the same
                continue
            draws = min(count, 20) if 0 <= number < 30 else count  # too few bets: no draw matters
            seeds = range(1000 * len(every), 1000 * len(every) + draws)
            kinds = [verdict_on(*random_trader(number, held, bars, seed, tail)) for seed in seeds]
            assert_nominal(kinds)
            if number >= 30:
                every += kinds
            elif number >= 0:
                assert set(kinds) == {"none"}
    assert_nominal(every)


def test_folds_are_no_trials_and_runs_on_the_same_bars_are(tmp_path: Path) -> None:
    few = analyse(demo.make_run(tmp_path / "a", seed=1, folds=4, test_bars=400)).evidence
    many = analyse(demo.make_run(tmp_path / "b", seed=1, folds=8, test_bars=200)).evidence
    assert few.trials == many.trials == 1
    shutil.copytree(tmp_path / "a" / "1", tmp_path / "a" / "2")
    assert analyse(tmp_path / "a" / "1").evidence.trials == 1  # the same settings and seed: nothing new was seen
    record = tmp_path / "a" / "2" / "run.json"
    record.write_text(record.read_text().replace('"seed": 1,', '"seed": 2,'))
    assert analyse(tmp_path / "a" / "1").evidence.trials == 2
    record.write_text(record.read_text().replace("0" * 64, "1" * 64))
    assert analyse(tmp_path / "a" / "1").evidence.trials == 1  # other bars


def test_losing_ruin_idleness_and_look_ahead_are_named() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-3, 4000)
    assert verdict_of(noise - 3e-4).startswith("loss: It loses money")
    assert verdict_of(noise, ruined=True).startswith("loss: Ruined")
    assert verdict_of(np.zeros(4000), why="No feature passed.").endswith("nothing to judge. No feature passed.")
    too_good = noise + 1e-3
    assert "look-ahead" in verdict_of(too_good, oracle=against_optimum(too_good, optimum=0.1, scale=1e-3))


def test_on_a_market_with_nothing_to_learn_there_is_no_share_of_the_optimum() -> None:
    oracle = against_optimum(np.random.default_rng(0).normal(0, 1e-3, 4000), optimum=0.0, scale=1e-3)
    assert oracle.nothing
    assert not oracle.leak


# ---- page


def test_what_is_packed_cannot_be_read_as_html_and_is_small() -> None:
    text = "</script><!--<script>&" * 1000
    assert set(packed(text)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert gzip.decompress(base64.b64decode(packed(text))).decode() == text
    assert len(packed(text)) < len(text) / 20


def test_the_policy_lets_nothing_load_and_hashes_every_script(lucky: Path) -> None:
    page = report.write_report(lucky).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    text = policy[1].replace("&#39;", "'")
    assert text.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in text
    assert "http" not in text
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 1
    for script in [*scripts, get_plotlyjs()]:
        assert source_hash(script) in text
    for section, _ in report.SECTIONS:
        assert (f'<section id="{section}"' in page) == (section != "seeds")  # there is one


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=2, test_bars=300, fills=False)
    folder = RunFolder(tmp_path, 42)
    for record in folder.folds():
        for name in ("optimisations", "screen"):
            record.details.pop(name, None)
        folder.record_fold(record)
        (folder.fold_path(record.index) / "metrics.jsonl").unlink()
    page = report.write_report(run).read_text(encoding="utf-8")
    for section in ("features", "seeds", "price", "stress", "learning", "optimisations"):
        assert f'id="{section}"' not in page
        assert f'href="#{section}"' not in page


def test_hostile_names_reach_the_page_only_as_text(tmp_path: Path) -> None:
    attack = "</script><script>alert(2)</script>"
    run = demo.make_run(tmp_path, folds=2, test_bars=300, name=HOSTILE, config={attack: attack}, stop_reason=attack)
    page = report.write_report(run).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "alert(2)</script>" not in page
    assert "&lt;script&gt;alert(2)" in page  # in the configuration, as text


def test_no_directory_or_user_name_is_shown(tmp_path: Path, lucky: Path) -> None:
    page = report.write_report(lucky).read_text(encoding="utf-8")
    assert "/home/someone" not in page
    assert str(lucky.parent) not in page
    assert without_directories("/home/someone/bars.csv") == "bars.csv"
    assert without_directories(r"C:\Users\someone\bars.csv") == "bars.csv"
    assert without_directories("data/bars.csv") == "data/bars.csv"


def test_without_fills_the_page_says_what_is_missing(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=2, test_bars=300, fills=False)
    page = report.write_report(run).read_text(encoding="utf-8")
    assert page.count("fold_000/test_bars.npz is missing") == 1  # said once; what is computed from them is not drawn
    assert '<section id="stress"' not in page


def test_fills_of_another_run_are_refused(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=2, test_bars=300)
    fills = read_fills(run, [0])
    write_fills(run / "fold_000", FillTable(**fills.__dict__ | {"time": fills.time + 1}))
    with pytest.raises(ValueError, match="files of two runs are mixed"):
        analyse(run)


def test_a_run_without_a_finished_fold_has_no_report(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, 1)
    run.write_run({"status": "running", "data": {"bars_per_year": 1.0}})
    with pytest.raises(ValueError, match="no finished fold"):
        report.write_report(run.path)
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        report.write_report(tmp_path)


def test_a_report_is_never_written_through_a_link(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=2, test_bars=300)
    (run / "report.html").symlink_to(tmp_path / "elsewhere.html")
    with pytest.raises(ValueError, match="symbolic link"):
        report.write_report(run)


def test_every_section_that_is_listed_stands_on_the_page(analysis: Analysis) -> None:
    text = report.page(analysis)
    assert set(re.findall(r'<a href="#([\w-]+)"', text)) <= set(re.findall(r'id="([\w-]+)"', text))


def test_every_baseline_has_its_colour_light_and_dark() -> None:
    light, dark = (ROOT / "lit_ppo/report/templates/report.css").read_text().split('[data-theme="dark"]')
    for _, color in BASELINE_LABELS.values():
        assert all(f"--{color}: #" in theme for theme in (light, dark)), color


def test_the_same_run_gives_the_same_page(lucky: Path) -> None:
    assert report.write_report(lucky).read_bytes() == report.write_report(lucky).read_bytes()


def test_a_report_needs_no_torch(lucky: Path) -> None:
    code = (
        "import sys; from lit_ppo.report.build import write_report; write_report(sys.argv[1]); "
        "heavy = {'torch', 'lightning', 'pytorch_lightning'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(lucky)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_report_of_57_thousand_bars_is_small_and_quick(tmp_path: Path) -> None:
    run = demo.make_run(tmp_path, folds=114, test_bars=500)
    start = time.process_time()  # of the processor: other work on the machine does not count
    page = report.write_report(run)
    assert time.process_time() - start < 15
    assert page.stat().st_size < 8e6


def test_the_drawn_rows_keep_the_extremes_of_every_curve() -> None:
    generator = np.random.default_rng(0)
    curves = [("a", "agent", np.ones(9000)), ("b", "hold", np.exp(np.cumsum(generator.normal(0, 0.01, 9000))))]
    figure = plotly_figures.equity(np.arange(9000) * 900 * 10**9, curves, np.zeros(9000), [])
    drawn = figure["data"][1]["y"]
    assert min(drawn) == pytest.approx(curves[1][2].min(), rel=1e-5)
    assert max(drawn) == pytest.approx(curves[1][2].max(), rel=1e-5)
    assert len(drawn) < 2000


def test_the_page_says_what_choosing_among_candidates_was_worth_and_that_nothing_was_chosen(tmp_path):
    run = demo.make_run(tmp_path, folds=2, test_bars=300)
    assert "One candidate a fold: nothing was chosen between" in report.write_report(run).read_text()
    folder = RunFolder(tmp_path, 42)
    folder.update_run(candidates={"number": 3, "backtest_overfitting_probability": 0.25, "why_none": ""})
    page = report.write_report(run).read_text()
    assert "best of 3 candidates on one half" in page
    assert ">0.25<" in page
    why = "the candidates traded alike, so nothing was chosen"
    folder.update_run(candidates={"number": 3, "backtest_overfitting_probability": None, "why_none": why})
    assert why in report.write_report(run).read_text()


def test_the_fold_timeline_has_dates_on_its_axis(tmp_path):
    run = demo.make_run(tmp_path, folds=3, test_bars=300)
    figure = report.charts(analyse(run))["timeline"]
    assert figure["layout"]["xaxis"]["type"] == "date"
    test = next(trace for trace in figure["data"] if trace["name"] == "test")
    rows = load_run(run).out_of_sample
    first = rows.loc[rows["fold"] == 1, "time"].iloc[0]
    assert test["base"][1] == str(first)[:16]
    assert test["customdata"][1][2] == "2,802 to 3,101"
    train = next(trace for trace in figure["data"] if trace["name"] == "train")
    assert all(base < other for base, other in zip(train["base"], test["base"], strict=True))
    assert train["x"][0] == 1999 * 15 * 60_000


def test_a_fold_without_recorded_times_has_no_row_in_the_timeline(tmp_path):
    run = demo.make_run(tmp_path, folds=2, test_bars=300)
    folder = RunFolder(tmp_path, 42)
    for record in folder.folds():
        record.details.pop("times")
        folder.record_fold(record)
    assert "timeline" not in report.charts(analyse(run))
    assert "No timeline: the ledger" in report.write_report(run).read_text()


def test_what_the_optimisations_did_is_told_in_words(tmp_path):
    run = demo.make_run(tmp_path, folds=2, test_bars=300)
    summary = {"did_less": 0.4, "total_speedup_achieved": 1.01, "failed": [], "measured": {"timesteps": 12_000}}
    (run / "optimization_summary.json").write_text(json.dumps(summary))
    page = report.write_report(run).read_text()
    for text in ("2.5x more work", "as fast", ">12,000<", ">none<"):
        assert text in page
    assert "did less" not in page


def test_the_rerun_is_one_command_that_says_what_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = demo.make_run(Path("results"), folds=2, test_bars=300)
    assert (
        "lit-ppo walk-forward --from results/42/run.json --results results/again"
        in report.write_report(run).read_text()
    )
    record = json.loads((run / "run.json").read_text())
    record |= {"commit": None, "versions": {"lit-ppo": "1.2.3"}}  # installed, not in a checkout
    (run / "run.json").write_text(json.dumps(record))
    page = report.write_report(run).read_text()
    assert "pip install lit-ppo==1.2.3" in page
    assert "COMMIT" not in page
