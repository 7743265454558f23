"""Markets with a known optimum: the best possible average reward, who earns it, and what share an agent captured.

All rewards here are per bar and in *units*: standard deviations of the market's noise (sigma = 1), as in
`datamodules.synthetic`, whose files hold log returns of `scale` per unit. The timing is that of a `next_open` fill on
such a file: position a_t, decided at the close of bar t, earns a_t r_{t+1} - cost |a_t - a_{t-1}|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lit_ppo.oracles.dynamic_programming import (
    FloatArray,
    Solution,
    best_average_reward,
    log_density,
    noise_nodes,
    stay_flat,
)

POSITIONS = (-1.0, 0.0, 1.0)
Noise = Literal["normal", "student_t"]


@dataclass(frozen=True)
class Optimum:
    """The best trader of a market.

    Attributes:
        kind: a key of `SOLVERS`.
        parameters: of the market, as `SyntheticMarket.parameters` has them.
        value: best average reward per bar, units.
        positions: the grid, ascending.
        borders: [P, P-1]; holding position number h in state y, the next position's number is the count of k with
            y > borders[h, k].
    """

    kind: str
    parameters: dict[str, Any]
    value: float
    positions: tuple[float, ...]
    borders: FloatArray

    def states(self, observed: ArrayLike) -> FloatArray:
        """What the policy decides on, [N], from what the trader may see.

        Args:
            observed: [N] returns r_t in units (regime, random_walk) or the signal p_t (predictor), bars <= t at row t.

        Returns:
            regime: log odds that the next bar is a rising one; predictor: the signal; random_walk: 0.
        """
        observed = np.asarray(observed, dtype=np.float64)
        if self.kind == "predictor":
            return observed
        if self.kind == "random_walk":
            return np.zeros(len(observed))
        q, mu, dof = (self.parameters[name] for name in ("q", "mu", "dof"))
        return next_log_odds(belief_log_odds(observed, q, mu, dof), q)

    def decide(self, observed: ArrayLike) -> FloatArray:
        """Positions [N] of the best trader, who starts flat (or nearest to it), given `observed` [N] as in `states`."""
        grid = np.asarray(self.positions)
        flat = int(np.abs(grid).argmin())

        def step(held: FloatArray, state: FloatArray) -> FloatArray:
            return (state[:, None] > self.borders[held.astype(np.int64)]).sum(1).astype(np.float64)

        return grid[scan(step, self.states(observed), float(flat)).astype(np.int64)]


@cache
def solve(kind: str, **parameters: Any) -> Optimum:
    """Solve the market of one kind; `parameters` are those of `SyntheticMarket.parameters`.

    A market is solved once in a process: the runs of `--seeds` share one.
    """
    if kind not in SOLVERS:
        raise ValueError(f"there is an oracle for {', '.join(SOLVERS)}; asked for {kind!r}")
    return SOLVERS[kind](**parameters)


def solve_regime(
    q: float,
    mu: float,
    cost: float,
    noise: Noise = "normal",
    dof: float | None = None,
    positions: Sequence[float] = POSITIONS,
) -> Optimum:
    """O3: s_t = +-1 flips with probability q; r_t = mu s_t + noise; s is hidden. Dynamic programming on the belief.

        b_{t+1|t} = b_t (1 - q) + (1 - b_t) q,      log odds(b_t) = log odds(b_{t|t-1}) + log f(r_t - mu) / f(r_t + mu)

    The state is y = log odds(b_{t+1|t}), which stays within +-log((1 - q) / q).
    """
    _check("q", q, 0 < q < 0.5)
    _check("mu", mu, mu >= 0)
    _check_noise(noise, dof)
    top = math.log((1 - q) / q)
    grid = np.linspace(-top, top, _grid_points(2 * top, 2 * mu))
    z, weights = noise_nodes(dof)
    rising = 1 / (1 + np.exp(-grid))  # [n] probability that the next bar is a rising one
    branches = []
    for regime, probability in ((1.0, rising), (-1.0, 1 - rising)):
        posterior = grid[:, None] + log_likelihood_ratio(regime * mu + z, mu, dof)  # [n, m]
        branches.append((next_log_odds(posterior, q), probability[:, None] * weights))
    solution = best_average_reward(
        grid,
        np.hstack([states for states, _ in branches]),
        np.hstack([probabilities for _, probabilities in branches]),
        lambda y: mu * np.tanh(y / 2),  # mu (2 b - 1)
        np.asarray(positions, dtype=np.float64),
        cost,
    )
    parameters = {"q": q, "mu": mu, "cost": cost, "noise": noise, "dof": dof}
    return _optimum("regime", parameters, positions, solution)


def solve_predictor(rho: float, beta: float, cost: float, positions: Sequence[float] = POSITIONS) -> Optimum:
    """O1: the signal p_{t+1} = rho p_t + beta eps is seen, and p_t is what one unit of position earns next.

    Source of the problem: de Lataillade et al. 2012, arXiv:1203.5957.
    """
    _check("rho", rho, 0 <= rho < 1)
    _check("beta", beta, beta > 0)
    deviation = beta / math.sqrt(1 - rho**2)
    grid = np.linspace(-6 * deviation, 6 * deviation, _grid_points(12 * deviation, beta))
    z, weights = noise_nodes(None)
    solution = best_average_reward(
        grid,
        rho * grid[:, None] + beta * z,
        np.broadcast_to(weights, (len(grid), len(weights))),
        lambda p: p,
        np.asarray(positions, dtype=np.float64),
        cost,
    )
    return _optimum("predictor", {"rho": rho, "beta": beta, "cost": cost}, positions, solution)


def solve_random_walk(
    cost: float, noise: Noise = "normal", dof: float | None = None, positions: Sequence[float] = POSITIONS
) -> Optimum:
    """O4: nothing to learn. The best is to stay flat, worth 0."""
    if 0.0 not in positions:
        raise ValueError(f"the oracle of a random walk stays flat; the positions {tuple(positions)} have no 0")
    _check_noise(noise, dof)
    solution = stay_flat(np.asarray(positions, dtype=np.float64))
    return _optimum("random_walk", {"cost": cost, "noise": noise, "dof": dof}, positions, solution)


SOLVERS: dict[str, Callable[..., Optimum]] = {
    "regime": solve_regime,
    "predictor": solve_predictor,
    "random_walk": solve_random_walk,
}


def belief_log_odds(returns: ArrayLike, q: float, mu: float, dof: float | None = None) -> FloatArray:
    """Log odds of a rising regime at each bar, given the returns [N] up to and including it (units); [N].

    The exact Bayes filter, l_t = next_log_odds(l_{t-1}) + log f(r_t - mu) / f(r_t + mu), from even odds.
    """
    evidence = log_likelihood_ratio(np.asarray(returns, dtype=np.float64), mu, dof)
    return scan(lambda odds, seen: next_log_odds(odds, q) + seen, evidence, 0.0)


def next_log_odds(log_odds: FloatArray, q: float) -> FloatArray:
    """Log odds of a rising next bar: the regime may flip in between. b' = b (1 - q) + (1 - b) q."""
    # 2 artanh((1 - 2q) tanh(l / 2)): odds near certainty do not overflow.
    return 2 * np.arctanh((1 - 2 * q) * np.tanh(np.asarray(log_odds) / 2))


def log_likelihood_ratio(returns: FloatArray, mu: float, dof: float | None = None) -> FloatArray:
    """Log f(r - mu) / f(r + mu): the evidence of one return for a rising regime (2 mu r for normal noise)."""
    if dof is None:
        return 2 * mu * returns
    return log_density(returns - mu, dof) - log_density(returns + mu, dof)


def scan(
    step: Callable[[FloatArray, FloatArray], FloatArray], inputs: FloatArray, first: float, tolerance: float = 1e-13
) -> FloatArray:
    """States [N] of state_t = step(state_{t-1}, inputs_t), state_{-1} = first.

    The inputs are cut into about sqrt(N) blocks that run side by side, each from a guess of its first state; then each
    block starts again from where the one before ended, until nothing changes. A state that forgets (a belief, a
    position with hysteresis) needs two or three rounds; the result is that of the plain loop in any case.
    """
    n = len(inputs)
    length = max(math.isqrt(n), 1)
    num_blocks = -(-n // length)
    padded = np.zeros(num_blocks * length)
    padded[:n] = inputs
    blocks = np.ascontiguousarray(padded.reshape(num_blocks, length).T)  # [length, blocks]
    states = np.empty_like(blocks)
    starts = np.full(num_blocks, float(first))
    for _ in range(num_blocks + 1):  # each round settles one more block at least
        state = starts
        for t in range(length):
            state = states[t] = step(state, blocks[t])
        following = np.append(first, state[:-1])
        if np.abs(following - starts).max(initial=0.0) <= tolerance:
            break
        starts = following
    return states.T.ravel()[:n]


def rewards(positions: ArrayLike, returns: ArrayLike, cost: float) -> FloatArray:
    """Rewards [N-1] in units: a_t r_{t+1} - cost |a_t - a_{t-1}|, flat before the first decision.

    Args:
        positions: [N] decided at the close of each bar.
        returns: [N] r_t of each bar, units.
        cost: units per unit of position changed.
    """
    held = np.asarray(positions, dtype=np.float64)
    return held[:-1] * np.asarray(returns, dtype=np.float64)[1:] - cost * np.abs(np.diff(held[:-1], prepend=0.0))


def standard_error(values: ArrayLike, num_blocks: int = 200) -> float:
    """Standard error of the mean of a series [N] that depends on its past: from the means of `num_blocks` blocks."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 * num_blocks:
        raise ValueError(f"standard_error needs two bars a block: {len(values)} bars for {num_blocks} blocks")
    length = len(values) // num_blocks
    means = values[: num_blocks * length].reshape(num_blocks, length).mean(1)
    return float(means.std(ddof=1) / math.sqrt(num_blocks))


def fraction_of_optimum(mean_net: float, optimum: float, scale: float = 1.0) -> float:
    """Share of the attainable that was earned: (J - J_flat) / (J_optimum - J_flat), J_flat = 0.

    Args:
        mean_net: mean net return per bar, as a fraction of notional (or in units, with scale 1).
        optimum: `Optimum.value`, units.
        scale: fraction of notional that one unit is: `SyntheticMarket.scale`.
    """
    if not optimum > 0:
        raise ValueError(f"nothing can be earned in this market (optimum {optimum}): there is no share of it")
    return mean_net / scale / optimum


def looks_ahead(mean_net: float, error: float, optimum: float, scale: float = 1.0) -> bool:
    """More than the optimum + 3 standard errors is no success but a look-ahead leak.

    Args:
        mean_net, error: mean net return per bar and its `standard_error`, as fractions of notional (or units).
        optimum, scale: as in `fraction_of_optimum`.
    """
    return mean_net / scale > optimum + 3 * error / scale


def _grid_points(width: float, stride: float) -> int:
    """An odd number of grid points: 201, up to 401 where one bar moves the state by less than the distance of two."""
    wanted = math.ceil(width / stride) if stride > 0 else 0
    return int(np.clip(wanted, 201, 401)) | 1


def _optimum(kind: str, parameters: dict[str, Any], positions: Sequence[float], solution: Solution) -> Optimum:
    return Optimum(kind, parameters, solution.value, tuple(float(p) for p in positions), solution.borders)


def _check(name: str, value: float, holds: bool) -> None:
    if not holds:
        raise ValueError(f"the oracle cannot solve a market with {name} = {value}")


def _check_noise(noise: str, dof: float | None) -> None:
    if (noise, dof is None) not in (("normal", True), ("student_t", False)) or (dof is not None and dof <= 2):
        raise ValueError(f"noise is normal without dof or student_t with dof > 2, got {noise!r} and dof {dof}")
