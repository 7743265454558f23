"""Mark a policy on markets with known edges: what share of it does it find, and what does it do where there is none?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lit_ppo.market.stretches import Exam
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.scoring.evaluation import evaluate
from lit_ppo.scoring.informed import informed_trader


@dataclass(frozen=True)
class Marks:
    """What a policy did in an exam.

    Attributes:
        metrics: share_<name> of what the informed trader earned, where he earned; exposure_<name>.
        score: mean over the markets of the reward per bar, in volatilities, after the hurdle: what is learnt for.
    """

    metrics: dict[str, float]
    score: float


def mark(policy: MarketPolicy, exam: Exam) -> Marks:
    """Let the policy trade every market of the exam."""
    metrics: dict[str, float] = {}
    scores = []
    for name, market, forecast in exam.cells:
        done = evaluate(policy, market)
        columns = ("price_return", "turnover_cost", "carry_long", "carry_short")
        arrays = {column: market.decisions(column).cpu().numpy() for column in columns}
        informed = informed_trader(forecast.numpy(), bars_per_year=market.bars_per_year, **arrays).net_return.sum()
        if informed > 0 and np.abs(forecast.numpy()).max() > 0:
            metrics[f"share_{name}"] = float(done.ledger.net_return.sum() / informed)
        metrics[f"exposure_{name}"] = float(np.abs(done.positions).mean())
        scores.append(done.score)
    return Marks(metrics, math.fsum(scores) / len(scores))
