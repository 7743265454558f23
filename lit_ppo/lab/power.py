"""Would this recipe have found an edge? Known edges in the user's own bars, and the share that his recipe finds.

    bars -> planted edge (kind, size) -> the recipe's own walk-forward on a few of its folds -> positions
         -> what they earn of the planted moves, net of costs / what the informed trader earns there

A fold's test is short: a week at an annual Sharpe ratio of 3 is luck. But what was planted is known, so the share is
of the *planted* returns: each position earns the move that was planted into its bar, and pays the real costs. The
noise, of which nobody can earn anything on average, is left out on both sides. Sizes are named likewise: mean planted
net return of the informed trader over the file / standard deviation of its real one, a year.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_ppo.folds.loop import WalkForward
from lit_ppo.market.costs import bar_times, fill_arrays, net_return
from lit_ppo.scoring.informed import Informed, informed_trader, share_found, size_edge
from lit_ppo.scoring.performance import exposure, sharpe_annual
from lit_ppo.scoring.power import share_over_seeds
from lit_ppo.store.results import NOT_TRAINED, PRIOR_DECIDES, RunFolder, load_run

Floats = NDArray[np.float64]
KINDS = ("regime", "momentum", "reversion", "season", "drift")  # of edges, unless asked otherwise
SHARPES = (1.5, 3.0, 6.0, 10.0)  # of the informed trader
ADVANCE = {"next_open": 1, "same_close": 1, "next_close": 2}  # decision t earns what bar t + 1 or t + 2 moves by


class Planted(Protocol):
    """`datamodules.planted.Planted`."""

    @property
    def bars(self) -> Any: ...
    @property
    def moves(self) -> Floats: ...
    @property
    def forecast(self) -> Floats: ...
    @property
    def sigma(self) -> Floats: ...


@dataclass(frozen=True)
class Subject:
    """A recipe and its bars: all that the command line hands in, so that nothing here knows the datamodules.

    Attributes:
        data: set-up datamodule of the user's own bars.
        plant: datamodule, kind, size m, seed -> its bars with that edge.
        planted_data: datamodule, planted bars, fold numbers -> datamodule of these folds.
        loop: datamodule, folder, seed -> the recipe's walk-forward.
    """

    data: Any
    plant: Callable[..., Planted]
    planted_data: Callable[..., Any]
    loop: Callable[[Any, RunFolder, int], WalkForward]

    def planted(self, kind: str, size: float, seed: int) -> Planted:
        """The bars with an edge of size m; the same noise for every edge of a seed."""
        return self.plant(self.data, kind, size, seed)

    def informed(self, planted: Planted, rows: Any) -> tuple[Informed, float]:
        """The informed trader on these rows of the file, and its annual Sharpe ratio.

        Its thresholds and `net_return` are of the planted returns.
        """
        fills = self._fills(planted, rows) | {"price_return": self.planted_return(planted)[rows]}
        bars_per_year = self.data.bars.bars_per_year
        found = informed_trader(planted.forecast[rows], bars_per_year=bars_per_year, **fills)
        spread = float(self.realised(planted, rows, found.positions).std())
        return found, float(found.net_return.mean() / spread * math.sqrt(bars_per_year)) if spread > 0 else 0.0

    def realised(self, planted: Planted, rows: Any, positions: Floats) -> Floats:
        """[D] net returns of positions [D] on these rows, noise and all."""
        earned: Floats = net_return(np.append(0.0, positions[:-1]), positions, **self._fills(planted, rows))
        return earned

    def planted_return(self, planted: Planted) -> Floats:
        """[N] what one unit of the position of decision t earns of the planted moves."""
        advance = ADVANCE[self.data.fill]
        moved: Floats = np.expm1(planted.moves * planted.sigma)
        return np.append(moved[advance:], np.zeros(advance))

    def _fills(self, planted: Planted, rows: Any) -> dict[str, Floats]:
        fills = fill_arrays(planted.bars.frame, self.data.costs, self.data.fill, self.data.bars.point)._asdict()
        return {name: values[rows] for name, values in fills.items() if name != "fill_price"}


class Silent:
    """Shows nothing of a walk-forward: there are dozens in a battery."""

    live = True

    def show(self, line: str) -> None:
        """The line of a fold in training."""

    def fold_done(self, *args: Any) -> None:
        """A fold and what it took."""


@dataclass
class Sizes:
    """Edge sizes m by informed Sharpe ratio, on the noise of one seed.

    There is no luck in the planted return, so that one noise serves all seeds.
    """

    subject: Subject
    seed: int
    _sharpes: dict[tuple[str, float], float] = field(default_factory=dict)

    def of(self, kind: str, sharpe: float) -> float:
        """The size m of an edge; 0 of the null.

        Raises:
            ValueError: no edge of that kind is worth so much on these bars.
        """
        if kind == "null":
            return 0.0
        return size_edge(lambda size: self._sharpe(kind, size), sharpe, tolerance=0.02 * sharpe)

    def _sharpe(self, kind: str, size: float) -> float:
        if (kind, size) not in self._sharpes:
            usable = self.subject.data.usable
            planted = self.subject.planted(kind, size, self.seed)
            self._sharpes[kind, size] = self.subject.informed(planted, slice(usable.start, usable.stop))[1]
        return self._sharpes[kind, size]


def spread_folds(available: int, folds: int, seeds: int, number: int) -> list[int]:
    """Fold numbers for seed `number` of `seeds`: spread evenly over the file, and between those of the other seeds."""
    each = min(folds, available)
    return [int((place + number / seeds) * available / each) for place in range(each)]


def measure(subject: Subject, kind: str, size: float, seed: int, folds: Sequence[int]) -> dict[str, Any]:
    """Plant one edge, run the recipe's walk-forward on these folds, and compare with the informed trader.

    Returns:
        Plain JSON: m, seed, folds, test_bars, seconds; agent, informed: planted net results [folds]; share: of the
        planted returns, and share_realised: of the real ones (None where the informed trader earns nothing);
        informed_sharpe, informed_exposure; sharpe_annual, t, cost_in_sharpe, exposure of the agent, as it would have
        seen them; trained, traded: numbers of folds.
    """
    started = time.perf_counter()
    planted = subject.planted(kind, size, seed)
    data = subject.planted_data(subject.data, planted, folds)
    with tempfile.TemporaryDirectory() as directory:
        folder = RunFolder(directory, seed)
        folder.write_run({})  # it is read again here, and by nobody else
        records = subject.loop(data, folder, seed).run()
        decided = load_run(folder.path).out_of_sample
    times = decided["time"].to_numpy("datetime64[ns]").astype(np.int64)
    rows = np.searchsorted(bar_times(planted.bars.frame), times)
    fold = decided["fold"].to_numpy()
    position, cost, net = (decided[name].to_numpy(np.float64) for name in ("position", "cost", "net_return"))
    informed, informed_sharpe = subject.informed(planted, rows)
    informed_net = subject.realised(planted, rows, informed.positions)
    earned = position * subject.planted_return(planted)[rows] - cost
    bars_per_year = subject.data.bars.bars_per_year
    sharpe = sharpe_annual(net, bars_per_year)
    spread = float(net.std())

    def by_fold(values: Floats) -> list[float]:
        return [float(values[fold == number].sum()) for number in range(len(folds))]

    return {
        "m": size,
        "seed": seed,
        "folds": list(folds),
        "test_bars": len(net),
        "agent": by_fold(earned),
        "informed": by_fold(informed.net_return),
        "share": _share(earned, informed.net_return),
        "share_realised": _share(net, informed_net),
        "informed_sharpe": informed_sharpe,
        "informed_exposure": informed.exposure,
        "sharpe_annual": sharpe if math.isfinite(sharpe) else 0.0,  # never traded
        "t": sharpe * math.sqrt(len(net) / bars_per_year) if math.isfinite(sharpe) else 0.0,
        "cost_in_sharpe": float(cost.mean()) / spread * math.sqrt(bars_per_year) if spread > 0 else 0.0,
        "exposure": exposure(position),
        "trained": sum(record.stop_reason not in (NOT_TRAINED, PRIOR_DECIDES) for record in records),
        "traded": int(sum(position[fold == number].any() for number in range(len(folds)))),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _share(agent: Floats, informed: Floats) -> float | None:
    return share_found(agent, informed) if informed.sum() > 0 else None


@dataclass(frozen=True)
class Battery:
    """What is planted, and how often the recipe is trained on it.

    Attributes:
        kinds: of `datamodules.planted`, without the null, which is always measured.
        sharpes: informed annual Sharpe ratios.
        seeds: each its own noise, edge and agent.
        folds: trainings of each seed, spread over the file.
    """

    kinds: tuple[str, ...] = KINDS
    sharpes: tuple[float, ...] = SHARPES
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = 3

    @property
    def edges(self) -> list[tuple[str, float]]:
        """Every kind and size; the null is the first."""
        return [("null", 0.0), *((kind, sharpe) for kind in self.kinds for sharpe in sorted(self.sharpes))]


def run_battery(subject: Subject, battery: Battery, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure every edge.

    Args:
        say: told each row when it is measured.

    Returns:
        {"null": row, "rows": rows}, plain JSON: see `row_of`.
    """
    sizes, rows = Sizes(subject, battery.seeds[0]), []
    available, count = len(subject.data.folds), len(battery.seeds)
    for kind, sharpe in battery.edges:
        row: dict[str, Any] = {"kind": kind, "sharpe": sharpe}
        try:
            size = sizes.of(kind, sharpe)
        except ValueError as error:  # no edge of that kind is worth so much here: a finding, not a fault
            row |= {"m": None, "share": None, "low": None, "high": None, "why": str(error), "runs": []}
        else:
            places = [spread_folds(available, battery.folds, count, number) for number in range(count)]
            runs = [
                measure(subject, kind, size, seed, folds) for seed, folds in zip(battery.seeds, places, strict=True)
            ]
            row |= row_of(size, runs)
        say(row)
        rows.append(row)
    return {"null": rows[0], "rows": rows[1:]}


def row_of(size: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One edge over its seeds: m, share with its interval, trainings, how many trained and traded, means, runs."""
    share = share_over_seeds([run["agent"] for run in runs], [run["informed"] for run in runs])
    known = math.isfinite(share.estimate)
    return {
        "m": size,
        **{name: value if known else None for name, value in share._asdict().items() if name != "estimate"},
        "share": share.estimate if known else None,
        "trainings": sum(len(run["folds"]) for run in runs),
        **{name: sum(run[name] for run in runs) for name in ("trained", "traded")},
        **{
            name: float(np.mean([run[name] for run in runs]))
            for name in ("exposure", "cost_in_sharpe", "informed_sharpe")
        },
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "runs": list(runs),
    }
