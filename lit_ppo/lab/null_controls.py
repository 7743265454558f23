"""Null controls: markets made of the user's own bars in which nothing can be learned. An edge there is a leak or luck,
and luck comes at a known rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

NULLS = ("shuffled returns", "random walk")
LEVEL = 0.05  # an honest trader is called better than nothing this often
SURPRISE = 0.01  # so many rejections or more by luck alone are this rare: then it is no luck


def null_frame(frame: pd.DataFrame, kind: str, draws: np.random.Generator) -> pd.DataFrame:
    """Make a market without an edge of a market's bars.

    Args:
        frame: bars; the times stay, so the calendar features see the same clock.
        kind: "shuffled returns" puts whole bars (gap, body, wicks, volume, spread) in random order and takes the drift
            out; "random walk" draws normal bodies of the same standard deviation, without gaps.
        draws: the order, or the bodies.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in NULLS:
        raise ValueError(f"A null market is one of {', '.join(NULLS)}, got {kind!r}")
    open_, high, low, close = (np.log(frame[name].to_numpy(np.float64)) for name in ("open", "high", "low", "close"))
    order = draws.permutation(len(frame))
    gap = np.concatenate([[0.0], open_[1:] - close[:-1]])[order]
    body, up, down = (
        (x)[order] for x in (close - open_, high - np.maximum(open_, close), np.minimum(open_, close) - low)
    )
    if kind == "random walk":
        gap, body = np.zeros(len(frame)), draws.normal(0.0, float((gap + body).std()), len(frame))
    body = body - (gap + body).mean()
    new_close = close[0] + np.cumsum(gap + body)
    new_open = new_close - body
    changed = frame.iloc[order].reset_index(drop=True)
    changed["time"] = frame["time"].reset_index(drop=True)
    changed["open"], changed["close"] = np.exp(new_open), np.exp(new_close)
    changed["high"] = np.exp(np.maximum(new_open, new_close) + up)
    changed["low"] = np.exp(np.minimum(new_open, new_close) - down)
    return changed


def edge_p_value(positions: np.ndarray, price_return: np.ndarray) -> float:
    """One-sided p-value of "the positions [D] earn before costs", given price returns [D] that nobody can know.

    z = sum a rho / sqrt(sum a^2 rho^2) is standard normal without an edge; 1 for an account that stays flat.
    """
    gains = positions * price_return
    size = float(np.sqrt(np.square(gains).sum()))
    return float(stats.norm.sf(gains.sum() / size)) if size > 0 else 1.0


@dataclass(frozen=True)
class NullResult:
    """Trainings on one kind of null market.

    Attributes:
        kind: of `NULLS`.
        p_values: one for each seed.
        traded: seeds whose account was not flat all the time.
    """

    kind: str
    p_values: list[float]
    traded: int

    @property
    def rejections(self) -> int:
        """Seeds that look like an edge at the level."""
        return sum(p < LEVEL for p in self.p_values)

    @property
    def holds(self) -> bool:
        """Whether so many rejections are what luck gives."""
        return bool(stats.binom.sf(self.rejections - 1, len(self.p_values), LEVEL) >= SURPRISE)

    @property
    def detail(self) -> str:
        """The count in words."""
        count = len(self.p_values)
        return (
            f"{self.rejections} of {count} seeds show an edge at {100 * LEVEL:.0f} % ({LEVEL * count:.2g} expected); "
            f"{self.traded} of {count} traded"
        )
