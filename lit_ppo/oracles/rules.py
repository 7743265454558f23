"""Simple traders of the markets in `oracles`, and what they earn: the controls an agent is compared with.

Rewards are in units per bar, timed as in `oracles`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter

from lit_ppo.oracles.dynamic_programming import FloatArray
from lit_ppo.oracles.optima import rewards


class Rule(NamedTuple):
    """What a rule earns per bar, units, and its settings: +1 above `threshold`, -1 below minus it, else keep."""

    value: float
    threshold: float
    decay: float = 0.0


def hysteresis(signal: ArrayLike, threshold: float = 0.0) -> FloatArray:
    """Positions [N]: +1 where signal > threshold, -1 where signal < -threshold, else what was held; flat at first."""
    signal = np.asarray(signal, dtype=np.float64)
    wanted = np.where(signal > threshold, 1.0, np.where(signal < -threshold, -1.0, 0.0))
    last = np.maximum.accumulate(np.where(wanted != 0, np.arange(len(wanted)), 0))  # row of the last clear signal
    return wanted[last]


def moving_average(values: ArrayLike, decay: float) -> FloatArray:
    """Exponential moving average [N]: m_t = decay m_{t-1} + (1 - decay) v_t, from 0."""
    return np.asarray(lfilter([1 - decay], [1.0, -decay], np.asarray(values, dtype=np.float64)))


def known_regime_value(q: float, mu: float, cost: float) -> float:
    """Regime: value of one who is told s_t at the close of bar t: follow it, or stay flat if that does not pay."""
    return max(0.0, mu * (1 - 2 * q) - 2 * cost * q)


def memoryless_value(q: float, mu: float, cost: float, threshold: float, dof: float | None = None) -> float:
    """Regime: exact value of `hysteresis` on the last return alone.

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


def best_ewma(returns: ArrayLike, cost: float, decays: ArrayLike, thresholds: ArrayLike) -> Rule:
    """Regime: the best of the given moving averages on these returns [N] (units).

    Args:
        returns: a long draw; the value is its mean, with its error.
        decays: of `moving_average`.
        thresholds: in stationary standard deviations of white noise averaged so, i.e. of sqrt((1 - d) / (1 + d)).
    """
    returns = np.asarray(returns, dtype=np.float64)
    best = Rule(-math.inf, 0.0)
    for decay in np.asarray(decays, dtype=np.float64):
        average = moving_average(returns, decay)
        width = math.sqrt((1 - decay) / (1 + decay))
        for threshold in width * np.asarray(thresholds, dtype=np.float64):
            value = float(rewards(hysteresis(average, threshold), returns, cost).mean())
            best = max(best, Rule(value, float(threshold), float(decay)))
    return best


def predictor_no_cost_value(rho: float, beta: float) -> float:
    """Predictor: E|p|, what the sign of the signal earns if trading is free."""
    return beta / math.sqrt(1 - rho**2) * math.sqrt(2 / math.pi)


def predictor_rule_value(rho: float, beta: float, cost: float, threshold: float = 0.0) -> float:
    """Predictor: exact value of `hysteresis` on the signal: `threshold` 0 is its sign, `cost` the myopic rule.

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


def best_predictor_rule(rho: float, beta: float, cost: float) -> Rule:
    """Predictor: the best threshold on the signal. It equals the optimum: an independent check of the programming."""
    top = 4 * beta / math.sqrt(1 - rho**2)
    found = minimize_scalar(
        lambda c: -predictor_rule_value(rho, beta, cost, c),
        bounds=(0.0, top),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return Rule(float(-found.fun), float(found.x))
