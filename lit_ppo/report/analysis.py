"""Everything the report says about a run, computed from its folder. No torch, no HTML."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_ppo.market.books import Ledger, MoneyLedger, Trades, money_account
from lit_ppo.report.breakdown import Group, Month, WithoutBest, monthly, splits, without_best
from lit_ppo.report.untraded import reason
from lit_ppo.report.verdict import Evidence, Oracle, Verdict, against_optimum, independent_bets, judge, weigh
from lit_ppo.scoring.fills import FillTable, read_fills
from lit_ppo.scoring.performance import trading_metrics
from lit_ppo.scoring.pooling import read_pooled
from lit_ppo.scoring.power import Power, power_of
from lit_ppo.scoring.replay import (
    RandomTraders,
    baseline_positions,
    delayed,
    random_traders,
    replay,
)
from lit_ppo.scoring.significance import clusters
from lit_ppo.store.looks import (
    Returns,
    bars_of,
    configuration_of,
    configurations_seen,
    returns_of,
    side_by_side,
    test_range,
)
from lit_ppo.store.results import BASELINE_COLUMNS, FoldRecord, Run, load_run, read_folds, read_record, run_records
from lit_ppo.store.schema import REMEDY, MoneyRecord
from lit_ppo.words import plural

Floats = NDArray[np.float64]
COST_FACTORS = (0.0, 1.0, 2.0, 3.0)
BASELINE_LABELS = {
    "flat": ("flat", "flat"),
    "buy_and_hold": ("buy and hold", "hold"),
    "always_short": ("always short", "short"),
    "sma_cross": ("SMA cross 20/100", "cross"),
    "last_year": ("half long, half sign of the last year", "year"),
    "trend": ("trend of four speeds", "trend"),
}


class Contender(NamedTuple):
    """One way to trade the test bars: net returns [D], and the figures of `performance.trading_metrics`."""

    key: str
    label: str
    color: str
    net_returns: Floats
    metrics: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """What the page shows.

    Attributes:
        run: the folder as read.
        time, fold, position, cost, net_return: columns [D] of out_of_sample.csv.
        bars_per_year: of the file's own calendar.
        metrics: stitched, see `performance.trading_metrics`.
        fold_metrics: the same for every finished fold.
        trades: round trips as in trades.csv.
        evidence, verdict: see `lit_ppo.report.verdict`.
        fills: None if the run has none on disk; `missing_fills` then says so, and what is computed from them is empty.
        recomputed: largest difference of a net return from the one recomputed from the fills; nan without fills.
        baselines, random, stress: other ways to trade the same bars.
        money: the account in lots, where run.json says how it trades them.
        splits, months, best: when the result was earned.
        power: what the run could have found; None on a market whose optimum is known.
        pooled: pooled.json of the seeds that this run is one of; None for a run of its own.
    """

    run: Run
    time: NDArray[np.int64]
    fold: NDArray[np.int64]
    position: Floats
    cost: Floats
    net_return: Floats
    bars_per_year: float
    metrics: dict[str, float]
    fold_metrics: list[tuple[FoldRecord, dict[str, float]]]
    trades: Trades
    evidence: Evidence
    verdict: Verdict
    fills: FillTable | None
    missing_fills: str
    recomputed: float
    baselines: list[Contender]
    random: RandomTraders | None
    stress: list[tuple[str, dict[str, float]]]
    money: MoneyLedger | None
    splits: dict[str, list[Group]]
    months: list[Month]
    best: WithoutBest
    power: Power | None
    pooled: dict[str, Any] | None


def analyse(run_dir: str | Path) -> Analysis:
    """Read a run and compute everything.

    Raises:
        FileNotFoundError: `run_dir` is not the folder of a run.
        ValueError: a file is damaged, or no fold is finished.
    """
    run = load_run(run_dir)
    rows = run.out_of_sample
    if rows.empty:
        raise ValueError(
            f"{run.path} has no finished fold (status: {run.record.get('status', 'unknown')}), so there is no test "
            "result to report. Finish it with `lit-ppo walk-forward --resume`"
        )
    bars_per_year, pooled = run.bars_per_year, read_pooled(run)
    time = rows["time"].to_numpy("datetime64[ns]").astype(np.int64)
    fold = rows["fold"].to_numpy(np.int64)
    position, cost, net = (rows[name].to_numpy(np.float64) for name in ("position", "cost", "net_return"))
    trades = _trades(run.trades)
    by_fold = _by_fold(run, fold, net, position, cost, bars_per_year)
    _check_trades(run, by_fold)
    metrics = trading_metrics(net, position, bars_per_year, costs=cost)
    seed = 0  # of the bootstrap and the random traders: terminal, page and comparison draw alike
    fills, missing = _fills(run, time, fold)
    recomputed = math.nan
    contenders: list[Contender] = []
    stress: list[tuple[str, dict[str, float]]] = []
    random = money = traders = None
    if fills is not None:
        recomputed = float(np.abs(replay(position, fills).net_return - net).max())
        contenders = [
            _contender(name, replay(positions, fills, restart=False), bars_per_year)
            for name, positions in baseline_positions(fills, bars_per_year).items()
        ]
        stress = _stress(position, fills, bars_per_year)
        money = _money(run, position, fills)
    contenders += recorded_baselines(run, bars_per_year)
    hold = next((x.net_returns for x in contenders if x.key == "buy_and_hold"), None)
    trials = trials_seen(run)
    with ThreadPoolExecutor() as pool:  # most of the time goes into these traders and into the bootstrap
        if fills is not None and np.any(position[1:] != position[:-1]):
            traders = pool.submit(random_traders, position, fills, seed)
        evidence = weigh(
            net,
            bars_per_year,
            trials.number,
            kinds=trials.kinds,
            bets=independent_bets(position, time),
            hold=hold,
            rank=None,
            oracle=_oracle(run, net),
            ruined=bool(rows["equity"].iloc[-1] <= 0),
            seed=seed,
        )
    if traders is not None:
        random = traders.result()
        evidence = evidence._replace(rank=random.rank)
    return Analysis(
        run=run,
        time=time,
        fold=fold,
        position=position,
        cost=cost,
        net_return=net,
        bars_per_year=bars_per_year,
        metrics=metrics,
        fold_metrics=by_fold,
        trades=trades,
        evidence=evidence,
        verdict=judge(evidence, "" if position.any() else reason(run.folds)),
        fills=fills,
        missing_fills=missing,
        recomputed=recomputed,
        baselines=contenders,
        random=random,
        stress=stress,
        money=money,
        splits=splits(time, net, None if fills is None else fills.price_return, bars_per_year),
        months=monthly(time, net),
        best=without_best(trades.result),
        power=power_of(run, run.settings),
        pooled=pooled,
    )


def _fills(run: Run, time: NDArray[np.int64], fold: NDArray[np.int64]) -> tuple[FillTable | None, str]:
    done = sorted(record.index for record in run.folds if record.status == "done")
    try:
        fills = read_fills(run.path, done)
    except FileNotFoundError as error:
        name = Path(error.filename)
        return None, (
            f"Not computed: {name.parent.name}/{name.name} is missing, so other decisions cannot be replayed on the "
            "test bars. Runs of this version write it; run the walk-forward again."
        )
    if not (np.array_equal(fills.time, time) and np.array_equal(fills.fold, fold)):
        raise ValueError(
            f"The fills of {run.path} ({len(fills)} rows of test_bars.npz) are not those of out_of_sample.csv "
            f"({len(time)} rows): files of two runs are mixed. Run the walk-forward again with --overwrite"
        )
    return fills, ""


def _contender(name: str, ledger: Ledger, bars_per_year: float) -> Contender:
    label, color = BASELINE_LABELS[name]
    metrics = trading_metrics(ledger.net_return, ledger.position, bars_per_year, costs=ledger.cost)
    return Contender(name, label, color, ledger.net_return, metrics)


def recorded_baselines(run: Run, bars_per_year: float) -> list[Contender]:
    """Baselines that only the walk-forward can compute (the previous fold's model), from baselines.csv.

    A run of a release that wrote none, or not from its first fold on, has none.
    """
    table = run.baseline_equity
    if table.empty or not table["time"].equals(run.out_of_sample["time"]):
        return []
    found = []
    for name in BASELINE_COLUMNS[2:]:
        equity = table[name].to_numpy(np.float64)
        before = np.concatenate(([1.0], equity[:-1]))
        net = np.divide(equity, before, out=np.ones_like(equity), where=before > 0) - 1.0
        metrics = trading_metrics(net, np.zeros(len(net)), bars_per_year)
        # Positions and costs of these are not on disk: what needs them is unknown, not zero.
        unknown = ("turnover_per_bar", "exposure", "holding_bars", "trades", "profit_factor", "win_rate", "cost_pct")
        label = "previous fold's model"
        found.append(Contender(name, label, "previous", net, metrics | dict.fromkeys(unknown, math.nan)))
    return found


def _stress(position: Floats, fills: FillTable, bars_per_year: float) -> list[tuple[str, dict[str, float]]]:
    """Figures under 0x to 3x costs, and with every decision executed one bar later."""
    paths = [(f"costs {factor:g}x", replay(position, fills.scaled_costs(factor))) for factor in COST_FACTORS]
    paths.append(("one bar later", replay(delayed(position, fills.fold), fills)))
    return [
        (label, trading_metrics(books.net_return, books.position, bars_per_year, costs=books.cost))
        for label, books in paths
    ]


def _money(run: Run, position: Floats, fills: FillTable) -> MoneyLedger | None:
    """The account in lots, if run.json holds `money`: the keyword arguments of `books.money_account`."""
    if not (found := run.record.get("money")):
        return None
    arguments = {name: found[name] for name in MoneyRecord.__annotations__ if name in found}
    try:
        return money_account(replay(position, fills), fills.fill_price, **arguments)
    except ValueError as error:
        raise ValueError(f"{run.path / 'run.json'} is damaged: money: {error}. {REMEDY}") from error


def _oracle(run: Run, net: Floats) -> Oracle | None:
    """run.json `oracle`: optimum_per_bar in `unit`s, and `scale`, the fraction of notional that one unit is."""
    found = run.record.get("oracle")
    return None if found is None else against_optimum(net, found["optimum_per_bar"], found["scale"])


class Trials(NamedTuple):
    """Configurations whose test result on the same bars was looked at.

    Attributes:
        number: N of the deflated Sharpe ratio.
        kinds: of them, groups whose test returns move together (`significance.clusters`); who is not known by its
            returns is a kind of its own.
    """

    number: int
    kinds: int


LEAST_STRETCHES = 10  # of returns, for a correlation


def trials_seen(run: Run) -> Trials:
    """Count the configurations whose test result on these bars was looked at, this one included.

    They are the runs beside this one (as `compare --all` lists them) with the same bars and a finished fold whose test
    overlaps this run's, and those that the ledger of looks (`lit_ppo.store.looks`) remembers, folders gone or not.
    The folds of one run are stitched, not chosen among, and candidates are chosen on validation bars: neither are
    trials. Seeds that are pooled with the run count even where their folders are not at hand.
    """
    bars, rows, root = bars_of(run.record), test_range(run.folds), run.path.parent
    rows_decided = run.out_of_sample
    time = rows_decided["time"].to_numpy("datetime64[ns]").astype(np.int64)
    own = returns_of(time, rows_decided["net_return"].to_numpy())
    seen: dict[str, Returns | None] = {}
    if bars is not None and rows is not None:
        try:
            seen = configurations_seen(root, bars, rows)
        except (ValueError, OSError) as error:
            warnings.warn(f"The ledger of looks is not counted: {error}", stacklevel=2)
    for path in run_records(root):
        if path.parent.resolve() == run.path.resolve():
            continue
        try:
            record, other = read_record(path.parent), test_range(read_folds(path.parent))
        except (ValueError, OSError) as error:
            warnings.warn(f"A run is not counted as a trial: {error}", stacklevel=2)
            continue
        if bars_of(record) == bars and bars and rows and other and other[0] < rows[1] and rows[0] < other[1]:
            config = path.parent / "config.yaml"
            text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None
            seen.setdefault(configuration_of(text, record), None)
    seen[configuration_of(run.config, run.record)] = own
    return trials_of(seen, len(run.record.get("seeds") or [1]))


def trials_of(seen: Mapping[str, Returns | None], least: int = 1) -> Trials:
    """How many configurations these are, and of how many kinds.

    Args:
        seen: what each earned, by configuration; None: not known.
        least: number that is known otherwise.
    """
    number = max(len(seen), least)
    known = [found for found in seen.values() if found is not None]
    side = side_by_side(known) if known else ()
    return Trials(number, number if len(side) < LEAST_STRETCHES else number - len(known) + clusters(side))


def _by_fold(
    run: Run, fold: NDArray[np.int64], net: Floats, position: Floats, cost: Floats, bars_per_year: float
) -> list[tuple[FoldRecord, dict[str, float]]]:
    found = []
    for record in run.folds:
        rows = fold == record.index
        if rows.any():
            figures = trading_metrics(net[rows], position[rows], bars_per_year, costs=cost[rows])
            found.append((record, figures))
    return found


def _check_trades(run: Run, by_fold: list[tuple[FoldRecord, dict[str, float]]]) -> None:
    counts = run.trades["fold"].value_counts()
    for record, figures in by_fold:
        found, wanted = int(counts.get(record.index, 0)), int(figures["trades"])
        if found < wanted:  # more: an earlier release wrote a row for each change of size
            raise ValueError(
                f"{run.path / 'trades.csv'} has {found:,} rows of fold {record.index}, where out_of_sample.csv has "
                f"{plural(wanted, 'round trip')}. {REMEDY}"
            )


def _trades(table: pd.DataFrame) -> Trades:
    def times(name: str) -> NDArray[np.int64]:
        return table[name].to_numpy("datetime64[ns]").astype(np.int64)

    def floats(name: str) -> Floats:
        return table[name].to_numpy(np.float64)

    return Trades(
        entry_time=times("entry_time"),
        entry_price=floats("entry_price"),
        exit_time=times("exit_time"),
        exit_price=floats("exit_price"),
        side=np.where(table["side"].to_numpy(str) == "long", 1, -1).astype(np.int64),
        size=floats("size"),
        result=floats("result"),
        cost=floats("cost"),
        bars_held=table["bars_held"].to_numpy(np.int64),
        closed=table["closed"].to_numpy(bool),
    )
