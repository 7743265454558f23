"""Simple traders of the markets in `oracles`, and what they earn: the controls an agent is compared with.

Rewards are in units per bar, timed as in `oracles`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar


class Rule(NamedTuple):
    """What a rule earns per bar, units, and its threshold: +1 above it, -1 below minus it, else what was held."""

    value: float
    threshold: float


def memoryless_value(q: float, mu: float, cost: float, threshold: float, dof: float | None = None) -> float:
    """Regime: exact value of a rule (`Rule`) on the last return alone.

    With A the probability that the position agrees with the regime: before the decision A' = A (1 - 2q) + q, after it
    A = A' + (1 - A') up - A' down, where up and down are the probabilities of a clear return with and against s.
    """
    width = 1.0 if dof is None else math.sqrt((dof - 2) / dof)
    tail = stats.norm.sf if dof is None else stats.t(dof).sf
    up, down = float(tail((threshold - mu) / width)), float(tail((threshold + mu) / width))
    stay = 1 - up - down
    agree = (up + stay * q) / (1 - stay * (1 - 2 * q))
    before = agree * (1 - 2 * q) + q
    switched = before * down + (1 - before) * up
    return mu * (1 - 2 * q) * (2 * agree - 1) - 2 * cost * switched


def best_memoryless(q: float, mu: float, cost: float, dof: float | None = None) -> Rule:
    """Regime: the best threshold on the last return alone. What a trader without memory can reach."""
    found = minimize_scalar(lambda c: -memoryless_value(q, mu, cost, c, dof), bounds=(0.0, 8.0), method="bounded")
    return Rule(float(-found.fun), float(found.x))


def predictor_rule_value(rho: float, beta: float, cost: float, threshold: float = 0.0) -> float:
    """Predictor: exact value of a rule (`Rule`) on the signal: `threshold` 0 is its sign, `cost` the myopic rule.

    (The myopic rule takes the position that is best if the next interval were the last one.) With u(p) the expected
    position at signal p, u = +-1 beyond the threshold c, and inside, as the signal is reversible in time,

        u(p) = P(p' > c | p) - P(p' < -c | p) + integral over (-c, c) of f(p' | p) u(p') dp'.
    """
    deviation = beta / math.sqrt(1 - rho**2)
    x, w = np.polynomial.legendre.leggauss(200)
    inside, inside_w = threshold * x, threshold * w
    outer = max(10 * deviation - threshold, 0.0) / 2
    outside, outside_w = threshold + outer * (1 + x), outer * w  # signals beyond the threshold, above 0
    above = stats.norm.sf(threshold, rho * inside, beta)
    below = stats.norm.cdf(-threshold, rho * inside, beta)
    kernel = stats.norm.pdf(inside[None, :], rho * inside[:, None], beta) * inside_w
    expected = np.linalg.solve(np.eye(len(x)) - kernel, above - below)  # u at `inside`
    density, density_outside = stats.norm.pdf(inside, 0, deviation), stats.norm.pdf(outside, 0, deviation)
    gross = (inside_w * density * inside * expected).sum() + 2 * (outside_w * density_outside * outside).sum()
    # Going from -1 to +1, half of all switches: short inside the band, or from beyond -c, to a signal above c.
    rises = (inside_w * density * (1 - expected) / 2 * above).sum()
    rises += (outside_w * density_outside * stats.norm.sf(threshold, -rho * outside, beta)).sum()
    return float(gross - 2 * cost * 2 * rises)
