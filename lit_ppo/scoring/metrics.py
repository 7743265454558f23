"""The trading figures as torchmetrics: fed in chunks of bars, merged, gathered over ranks, logged by Lightning.

Each state is the float64 path itself, joined in order, and `scoring.performance` computes the figure from it: a path
fed in chunks gives the same bits as the whole, drawdowns and trades across chunk borders included. A path costs 8 or
16 bytes a bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lit_ppo.scoring import performance


def figures(bars_per_year: float, prefix: str) -> MetricCollection:
    """The figures by their keys of docs/metrics.md: of a path that comes in segments, which is not their mean.

    Args:
        bars_per_year: of the bar file.
        prefix: before each key, as "test/".
    """
    found: dict[str, Metric | MetricCollection] = {
        "sharpe_annual": Sharpe(bars_per_year),
        "sortino_annual": Sortino(bars_per_year),
        "calmar": Calmar(bars_per_year),
        "max_drawdown_pct": MaxDrawdown(),
        "profit_factor": ProfitFactor(),
        "win_rate": WinRate(),
        "turnover_per_bar": Turnover(),
        "exposure": Exposure(),
    }
    return MetricCollection(found, prefix=prefix, compute_groups=False)


class PathMetric(Metric):
    """Base: keeps the paths named by `paths`, in the order they came."""

    is_differentiable = False
    full_state_update = False
    paths: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.paths:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _append(self, **chunks: Tensor) -> None:
        """Keep one chunk [D] of each path, float64."""
        if len({tuple(chunk.shape) for chunk in chunks.values()}) != 1 or next(iter(chunks.values())).ndim != 1:
            shapes = {name: tuple(chunk.shape) for name, chunk in chunks.items()}
            raise ValueError(f"{type(self).__name__} needs chunks [D] of one length, got {shapes}")
        for name, chunk in chunks.items():
            getattr(self, name).append(chunk.detach().to(torch.float64))

    def _path(self, name: str) -> Any:
        kept = getattr(self, name)  # a list of chunks; one tensor after gathering over ranks
        chunks = [kept] if isinstance(kept, Tensor) else list(kept)
        return torch.cat([torch.zeros(0, dtype=torch.float64), *(c.double().cpu() for c in chunks)]).numpy()

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Append the bars of a later part of the path (torchmetrics itself would put them first)."""
        if isinstance(incoming_state, Metric):
            if not isinstance(incoming_state, type(self)):
                raise ValueError(f"{type(self).__name__} merges with its own kind, got {type(incoming_state).__name__}")
            incoming_state = incoming_state.metric_state
        for name in self.paths:
            incoming = incoming_state[name]
            getattr(self, name).extend([incoming] if isinstance(incoming, Tensor) else incoming)
        self._computed = None
        self._update_count += 1

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        # `module.to(torch.bfloat16)` moves a metric's state with the weights and would round the path: follow the
        # device only. (torchmetrics guards `.half()` and its kind by itself.)
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_precision, exclude_state)

    def _figure(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)


class ReturnMetric(PathMetric):
    """Base: a figure of the net returns, annualised with the file's own calendar.

    Args:
        bars_per_year: of the bar file (`Bars.bars_per_year`).
        kwargs: of `torchmetrics.Metric`.
    """

    paths = ("net_returns",)
    net_returns: list[Tensor]

    def __init__(self, bars_per_year: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not bars_per_year > 0:
            raise ValueError(f"{type(self).__name__} needs bars_per_year > 0, got {bars_per_year}")
        self.bars_per_year = float(bars_per_year)

    def update(self, net_returns: Tensor) -> None:
        """Add the next bars' net returns [D], fractions of notional."""
        self._append(net_returns=net_returns)


class Sharpe(ReturnMetric):
    """Annual Sharpe ratio, see `performance.sharpe_annual`."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return self._figure(performance.sharpe_annual(self._path("net_returns"), self.bars_per_year))


class Sortino(ReturnMetric):
    """Annual Sortino ratio, see `performance.sortino_annual`."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return self._figure(performance.sortino_annual(self._path("net_returns"), self.bars_per_year))


class Calmar(ReturnMetric):
    """Compound growth per year / deepest drawdown, see `performance.calmar`."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return self._figure(performance.calmar(self._path("net_returns"), self.bars_per_year))


class MaxDrawdown(PathMetric):
    """Deepest drawdown, percent of the highest equity before it."""

    higher_is_better = False
    paths = ("net_returns",)
    net_returns: list[Tensor]

    def update(self, net_returns: Tensor) -> None:
        """Add the next bars' net returns [D], fractions of notional."""
        self._append(net_returns=net_returns)

    def compute(self) -> Tensor:
        return self._figure(100.0 * performance.max_drawdown(self._path("net_returns")))


class TradeMetric(PathMetric):
    """Base: a figure of the round trips, see `performance.round_trips`."""

    paths = ("net_returns", "positions")
    net_returns: list[Tensor]
    positions: list[Tensor]

    def update(self, net_returns: Tensor, positions: Tensor) -> None:
        """Add the next bars' net returns [D] and positions [D]."""
        self._append(net_returns=net_returns, positions=positions)

    def _results(self) -> Any:
        return performance.round_trips(self._path("net_returns"), self._path("positions")).results


class ProfitFactor(TradeMetric):
    """Sum of the winning trades / sum of the losing ones; nan without a losing one."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return self._figure(performance.profit_factor(self._results()))


class WinRate(TradeMetric):
    """Share of trades that earned something, in [0, 1]."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return self._figure(performance.win_rate(self._results()))


class PositionMetric(PathMetric):
    """Base: a figure of the positions."""

    paths = ("positions",)
    positions: list[Tensor]

    def update(self, positions: Tensor) -> None:
        """Add the next bars' positions [D], share of notional; the path starts flat."""
        self._append(positions=positions)


class Turnover(PositionMetric):
    """Mean absolute change of position per bar."""

    def compute(self) -> Tensor:
        return self._figure(performance.turnover_per_bar(self._path("positions")))


class Exposure(PositionMetric):
    """Mean absolute position."""

    def compute(self) -> Tensor:
        return self._figure(performance.exposure(self._path("positions")))
