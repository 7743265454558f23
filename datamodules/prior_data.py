"""The prior as data: markets without end to learn from, and held-out ones to be marked on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from datamodules.loader import OneBatch
from datamodules.prior import (
    DAY,
    FEATURE_PARITY,
    FEATURES,
    MONDAY,
    Edge,
    Prior,
    PriorMarket,
    PriorStream,
    make_market,
)
from lit_ppo.market.stretches import Exam, ExamCell
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.seeding import derive_seed

EXAM_BARS, EXAM_FIRST, EXAM_BAR_SECONDS = 20_000, 1_000, 900
EXAM_COST, EXAM_HURDLE = 0.06, 0.002  # volatilities
EXAM: dict[str, Edge | None] = {
    "regime_10": Edge("regime", 0.1, {"flip": 0.01}),
    "regime_05": Edge("regime", 0.05, {"flip": 0.01}),
    "momentum_05": Edge("trend", 0.05, {"bars": 20.0, "sign": 1.0}),
    "reversion_15": Edge("trend", 0.15, {"bars": 5.0, "sign": -1.0}),
    "season_10": Edge("season", 0.1, {"turns": 1.0, "phase": 1.0}),
    "season_05": Edge("season", 0.05, {"turns": 1.0, "phase": 4.0}),
    "drift_05": Edge("drift", 0.05, {"sign": 1.0}),
    "drift_02": Edge("drift", 0.02, {"sign": -1.0}),
    "nothing": None,
}


class PriorDataModule(pl.LightningDataModule):
    """Markets of the prior to learn from, and one held-out market for each kind and size of edge.

    Args:
        prior: the distribution of markets.
        prior_seed: of the markets; the exam's are of another.
        ring: markets that the stretches of one iteration are drawn from.
        fresh: of them, new ones in each iteration.
        contexts, context_weights: bars before a stretch that only warm the LSTM up; one of them an iteration.

    Raises:
        ValueError: what is no distribution.
    """

    def __init__(
        self,
        prior: Prior = Prior(),  # noqa: B008  frozen
        prior_seed: int = 1,
        ring: int = 256,
        fresh: int = 10,
        contexts: tuple[int, ...] = (64, 256, 1_000),
        context_weights: tuple[float, ...] = (0.6, 0.3, 0.1),
    ) -> None:
        super().__init__()
        self.prior, self.prior_seed = prior, prior_seed
        self.stream = PriorStream(prior, prior_seed, ring, fresh, contexts, context_weights)
        self._exam: Exam | None = None

    def exam(self) -> Exam:
        """The held-out markets: plain noise of the prior, quarter hours of five-day weeks, every edge alone."""
        if self._exam is None:
            cells = []
            for number, (name, edge) in enumerate(EXAM.items()):
                g = np.random.default_rng(derive_seed(self.prior_seed, number, "exam"))
                day, bar = np.divmod(np.arange(EXAM_BARS), DAY // EXAM_BAR_SECONDS)
                seconds = MONDAY + 1_000 * 7 * DAY + (day // 5 * 7 + day % 5) * DAY + bar * EXAM_BAR_SECONDS
                edges = () if edge is None else (edge,)
                market = make_market(self.prior, g, seconds, EXAM_BAR_SECONDS, edges, EXAM_COST, EXAM_HURDLE)
                cells.append(exam_cell(name, market))
            self._exam = Exam(tuple(cells))
        return self._exam

    def train_dataloader(self) -> OneBatch:
        return OneBatch(self.stream)

    def val_dataloader(self) -> OneBatch:
        return OneBatch(self.exam())

    def test_dataloader(self) -> OneBatch:
        return OneBatch(self.exam())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """What the policy was trained on."""
        stream = self.stream
        return {
            "prior": json.loads(json.dumps(asdict(self.prior))),  # lists, as a checkpoint keeps them
            "prior_seed": self.prior_seed,
            "ring": stream.size,
            "fresh": stream.fresh,
            "contexts": list(stream.contexts),
            "context_weights": stream.weights.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the prior is the checkpoint's.

        Raises:
            ValueError: it is another one; lists what differs.
        """
        now = self.state_dict()
        changed = [f"data.{k} was {state_dict[k]!r} and is {now[k]!r}" for k in now if state_dict[k] != now[k]]
        if changed:
            raise ValueError(
                f"The checkpoint was made with another prior: {'; '.join(changed)}. Restore it, or start a new run"
            )


def exam_cell(name: str, market: PriorMarket, first: int = EXAM_FIRST) -> ExamCell:
    """A market as one to be marked on: decisions from bar `first`, hurdle charged to nobody, units of volatility."""
    last = len(market.log_return) - 1  # the last bar has no coming one
    nothing = torch.zeros(last, dtype=torch.float64)
    tensors = MarketTensors(
        features=torch.from_numpy(market.features()[:last]),
        price_return=torch.from_numpy(np.expm1(market.log_return[1:])),
        turnover_cost=torch.from_numpy(market.cost[:last].copy()),
        carry_long=nothing,
        carry_short=nothing,
        fill_price=torch.from_numpy(np.exp(np.cumsum(market.log_return))[:last]),
        time=torch.from_numpy(market.seconds[:last] * 10**9),
        first_bar=0,
        warmup=first,
        reward_scale=float(market.log_return.std()),
        bars_per_year=260 * DAY / market.bar_seconds,
        feature_names=FEATURES,
        feature_parity=FEATURE_PARITY,
    )
    return ExamCell(name, tensors, torch.from_numpy(market.forecast[first:last].copy()))
