"""Traders and closed forms that the solvers of `lit_ppo.oracles` are checked against: no code is shared with them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter

from lit_ppo.oracles.optima import rewards
from lit_ppo.oracles.rules import predictor_rule_value

FloatArray = NDArray[np.float64]


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


class QuadraticOptimum(NamedTuple):
    """O2's best trader, x_t = hold * x_{t-1} + aim * f_t, and its average reward."""

    value: float
    hold: float
    aim: float


def solve_quadratic(
    phi: float, signal_std: float, sigma: float, risk_aversion: float, impact: float
) -> QuadraticOptimum:
    """O2, in closed form: f' = (1 - phi) f + e; reward = x f - gamma sigma^2 x^2 / 2 - lambda sigma^2 dx^2 / 2.

        a = (sqrt(gamma^2 + 4 gamma lambda) - gamma) / 2
        x_t = (1 - a / lambda) x_{t-1} + (a / lambda) f_t / (gamma sigma^2 (1 + phi a / gamma))

    Source: Garleanu and Pedersen 2013, "Dynamic Trading with Predictable Returns and Transaction Costs", without
    discounting.
    """
    a = (math.sqrt(risk_aversion**2 + 4 * risk_aversion * impact) - risk_aversion) / 2
    hold = 1 - a / impact
    aim = a / impact / (risk_aversion * sigma**2 * (1 + phi * a / risk_aversion))
    keep = 1 - phi
    covariance = aim * signal_std**2 / (1 - hold * keep)  # E[x_t f_t]
    variance = (2 * hold * aim * keep * covariance + aim**2 * signal_std**2) / (1 - hold**2)  # E[x_t^2]
    change = 2 * variance - 2 * (hold * variance + aim * keep * covariance)  # E[(x_t - x_{t-1})^2]
    value = covariance - sigma**2 / 2 * (risk_aversion * variance + impact * change)
    return QuadraticOptimum(value, hold, aim)
