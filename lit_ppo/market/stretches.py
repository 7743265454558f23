"""What a learner on bars reads in one iteration: stretches of bars, and streams of them without end."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_ppo.market.tensors import MarketTensors


class MarketStretches(NamedTuple):
    """S stretches of `burn_in` + T + 1 consecutive bars; the last bar is only looked at, for its value."""

    features: Tensor  # [burn_in + T + 1, S, F], mirrored where `mirror` says so
    rows: Tensor  # [T, S] row of each decision in the market
    mirror: Tensor | None  # [S] +1, or -1 where the stretch is turned upside down
    hidden_mask: Tensor | None  # [1, S, H]
    burn_in: int

    def split(self, pieces: int) -> list[MarketStretches]:
        """Equal shares of the sequences, in order."""
        features, rows = self.features.chunk(pieces, 1), self.rows.chunk(pieces, 1)
        mirrors = [None] * pieces if self.mirror is None else self.mirror.chunk(pieces)
        masks = [None] * pieces if self.hidden_mask is None else self.hidden_mask.chunk(pieces, 1)
        parts = zip(features, rows, mirrors, masks, strict=True)
        return [MarketStretches(*part, self.burn_in) for part in parts]


@runtime_checkable
class MarketStream(Protocol):
    """Stretches of other markets in every iteration, without end.

    Attributes:
        feature_names, feature_parity: as in `MarketTensors`.
    """

    feature_names: tuple[str, ...]
    feature_parity: tuple[int, ...]

    def draw(self, iteration: int, num_sequences: int, num_steps: int) -> tuple[MarketTensors, MarketStretches]:
        """Stretches of one iteration and the bars that their rows count in; the same for the same iteration."""
        ...

    def of_rank(self, rank: int) -> MarketStream:
        """The stream of one of several ranks, each with markets of its own."""
        ...

    def to(self, device: torch.device | str) -> MarketStream:
        """The same stream with its tensors on another device."""
        ...


class ExamCell(NamedTuple):
    """One market with a known edge that a policy is marked on.

    Attributes:
        name: of the edge and its size.
        market: its bars.
        forecast: [D] on its decision bars, what can be known of the coming bar's move, in volatilities.
    """

    name: str
    market: MarketTensors
    forecast: Tensor


class Exam(NamedTuple):
    """Markets that no training sees, each with what there is to find in it."""

    cells: tuple[ExamCell, ...]

    def to(self, device: torch.device | str) -> Exam:
        """The same markets on another device."""
        return Exam(tuple(cell._replace(market=cell.market.to(device)) for cell in self.cells))
