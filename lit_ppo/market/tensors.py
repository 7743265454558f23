"""The few data types that all three packages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import gymnasium

    Wrapping = Callable[[gymnasium.Env], gymnasium.Wrapper]


class BarRange(NamedTuple):
    """Bars start, start + 1, ..., stop - 1 of the file (row numbers after checking)."""

    start: int
    stop: int

    def __len__(self) -> int:  # type: ignore[override]
        return self.stop - self.start


@dataclass(frozen=True)
class Fold:
    """The bar ranges of one walk-forward fold, in time order: train / purge / validation / embargo / test."""

    index: int
    train: BarRange
    validation: BarRange
    test: BarRange


@dataclass(frozen=True)
class TrainedFold:
    """A fold that is done, as the ledger of the walk-forward has it: what a later fold's training may know of it.

    Attributes:
        index: number of the fold.
        directory: of its files; `selected.ckpt` there holds the chosen weights.
        seen: bars that its training and the choice of its weights have read, prices included; never its test bars.
        validation_score: of the chosen weights; None if it was NaN.
        optimisations: by name, what the optimisations did in it.
    """

    index: int
    directory: str
    seen: BarRange
    validation_score: float | None
    optimisations: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class MarketTensors:
    """N consecutive bars as the learner sees them. Decision t is made at the close of bar t.

    The first `warmup` rows only warm the LSTM up: no decision is made and nothing is earned on them.

    Attributes:
        features: [N, F] float32, scaled with the statistics of the fold's train bars.
        price_return: [N] float64, rho_t = fill price of t+1 / fill price of t - 1.
        turnover_cost: [N] float64, kappa_t per unit of position changed at fill t, fraction of notional, >= 0.
        carry_long, carry_short: [N] float64, swap per unit of long / short position held from fill t to fill t+1,
            fraction of notional; positive is paid, negative is earned.
        fill_price: [N] float64, the price at which decision t is executed, in price units.
        time: [N] int64, open time of bar t, nanoseconds since 1970 UTC.
        first_bar: row of the bar file that row 0 is.
        warmup: number of leading rows without decisions.
        reward_scale: standard deviation of rho on the fold's train bars; rewards are divided by it for the learner.
        bars_per_year: from the file's own calendar; annual figures use it.
        feature_names: F names.
        feature_parity: F numbers: what a feature becomes when the price is mirrored (r -> -r): -1 (odd: returns,
            RSI - 50), +1 (even: volatility, time of day) or 0 (unknown, never mirrored).
        risk_aversion: of the learner's reward, see `lit_ppo.market.rewards`; None: that of the account's growth.
    """

    features: Tensor
    price_return: Tensor
    turnover_cost: Tensor
    carry_long: Tensor
    carry_short: Tensor
    fill_price: Tensor
    time: Tensor
    first_bar: int
    warmup: int
    reward_scale: float
    bars_per_year: float
    feature_names: tuple[str, ...]
    feature_parity: tuple[int, ...]
    risk_aversion: float | None = None

    def __post_init__(self) -> None:
        n = len(self.features)
        per_bar = ("price_return", "turnover_cost", "carry_long", "carry_short", "fill_price", "time")
        wrong = {name: tuple(getattr(self, name).shape) for name in per_bar if getattr(self, name).shape != (n,)}
        if self.features.ndim != 2 or wrong:
            raise ValueError(f"MarketTensors needs features [N, F] and per-bar [N], N = {n}; got {wrong}")
        width = self.features.shape[1]
        if len(self.feature_names) != width or len(self.feature_parity) != width:
            raise ValueError(
                f"MarketTensors has {width} features, {len(self.feature_names)} names and "
                f"{len(self.feature_parity)} parities; they must agree"
            )
        if not 0 <= self.warmup < max(n, 1):
            raise ValueError(f"MarketTensors has {n} bars, so warmup must be in [0, {n}), got {self.warmup}")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_decisions(self) -> int:
        """Bars on which a decision is made: all but the warm-up."""
        return len(self) - self.warmup

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MarketTensors:
        """Return the same bars on another device (self if they are there already)."""
        if self.features.device == torch.device(device):
            return self
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def decisions(self, name: str) -> Tensor:
        """Return the per-bar tensor `name` without the warm-up rows."""
        return getattr(self, name)[self.warmup :]


@dataclass(frozen=True)
class FoldData:
    """What the learner gets of one fold. `test` is not here: it is asked for once, after selection."""

    fold: Fold
    train: MarketTensors
    validation: MarketTensors
    scaler: dict[str, list[float]]  # {"mean": [F], "std": [F]}, fitted on train, kept in the checkpoint


@dataclass(frozen=True)
class GymnasiumTask:
    """A gymnasium environment to learn in, in the place of bars, by its name.

    Attributes:
        env_id: as `gymnasium.make` takes it, such as "CartPole-v1".
        mask_observations: columns of the flat observation that the agent does not see.
        normalise_observations, normalise_rewards: by running statistics of the training episodes.
        rescale_actions: continuous actions in [-1, 1] span the action space; otherwise they are in its own units.
        env_arguments: for `gymnasium.make`.
        env_class: the environment itself, where `env_id` is not a registered name but names this class.
        wrappers: around each environment, the first one innermost.
        training_wrappers: around those, in training only: a shaped reward that no evaluation counts.
        role: what the episodes are for; each role has episodes of its own.
        num_episodes: of an evaluation.
        device: of the tensors.
    """

    env_id: str
    mask_observations: tuple[int, ...] = ()
    normalise_observations: bool = True
    normalise_rewards: bool = True
    rescale_actions: bool = True
    env_arguments: Mapping[str, Any] = field(default_factory=dict)
    env_class: type[gymnasium.Env] | None = None
    wrappers: tuple[Wrapping, ...] = ()
    training_wrappers: tuple[Wrapping, ...] = ()
    role: Literal["train", "validation", "test"] = "train"
    num_episodes: int = 0
    device: str = "cpu"

    def to(self, device: torch.device | str) -> GymnasiumTask:
        """Return the same task with its tensors on another device."""
        return replace(self, device=str(device))
