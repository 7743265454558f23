"""Best average reward of a trader in a one-dimensional market, exactly up to the grid (float64).

The market has a state y (a belief, a signal) that moves whatever the trader does. Holding position a earns
a * edge(y) on average until the next decision, and going from p to a costs cost * |a - p|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FloatArray = NDArray[np.float64]

MAX_POLICY_ITERATIONS = 100
# Where flat is best, what to do with a position that nobody takes is settled slowly; the value stands long before.
SETTLED_ROUNDS, SETTLED_VALUE = 20, 1e-10
# Chance per bar of being put back, free of charge, into the middle of the grid without a position. It moves the value
# by some 1e-7 at most, and joins what would be separate worlds: "always flat" and "always long" under one policy.
RESTART = 1e-8
WORTHLESS = 1e-8  # an average reward below this is rounding: flat is best
FINE_POINTS = 20_001  # on which the borders of the policy are located


class Solution(NamedTuple):
    """Attributes:
    value: best average reward per bar.
    borders: [P, P-1]; from held position h take the number of k with y > borders[h, k] as the next position's index.
    """

    value: float
    borders: FloatArray


def noise_nodes(dof: float | None, count: int = 801) -> tuple[FloatArray, FloatArray]:
    """Nodes and probabilities that integrate over noise of variance 1: normal, or Student's t if `dof` is given.

    Trapezoid rule in x with z = sinh(x): fine in the middle, and far enough out (+-1500) for the tails of a t.
    """
    x = np.linspace(-8.0, 8.0, count)
    z = np.sinh(x)
    weights = np.exp(log_density(z, dof)) * np.cosh(x)
    kept = weights > 1e-18
    return z[kept], weights[kept] / weights[kept].sum()


def log_density(z: FloatArray, dof: float | None) -> FloatArray:
    """Log density of noise of variance 1 at z: normal, or Student's t with `dof` degrees of freedom."""
    if dof is None:
        return stats.norm.logpdf(z)
    spread = np.sqrt(dof / (dof - 2))
    return stats.t.logpdf(z * spread, dof) + np.log(spread)


def best_average_reward(
    grid: FloatArray,
    next_states: FloatArray,
    probabilities: FloatArray,
    edge: Callable[[FloatArray], FloatArray],
    positions: FloatArray,
    cost: float,
) -> Solution:
    """Solve the average-reward problem by policy iteration.

        V(y, p) = max_a [ a edge(y) - cost |a - p| + W(y, a) ],      W(y, a) = E[ V(y', a) | y ] - g

    W, not V, lives on the grid: it is smooth, V has a kink wherever the best action changes. The maximum is taken at
    the quadrature's own states, between grid points, where W is interpolated by cubics.

    Args:
        grid: [n] equally spaced states; states beyond its ends count as its ends.
        next_states: [n, m] states that may follow each grid point.
        probabilities: [n, m] their probabilities, rows sum to 1.
        edge: expected return of one unit of position until the next decision, given the state.
        positions: [P] ascending position grid.
        cost: per unit of position changed, in the unit of `edge`.

    Source: Howard 1960; Puterman 1994, section 8.6.
    """
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1.0):
        raise ValueError("best_average_reward needs next-state probabilities >= 0 whose rows sum to 1")
    num_positions = len(positions)
    corner, cubic = cubic_weights(grid, next_states)  # [n, m], [4, n, m]
    expected = cubic * probabilities * (1 - RESTART)
    fee = cost * np.abs(positions[:, None] - positions[None, :])  # [P, P] held, next
    income_next = positions[:, None, None] * edge(next_states)  # [P, n, m] of the next position, before the fee
    # Start from following the sign of the edge, whatever is held.
    policy = np.repeat(income_next.argmax(0)[None], num_positions, axis=0)  # [P, n, m] index of the next position
    values: list[float] = []
    for _ in range(MAX_POLICY_ITERATIONS):
        value, after = _evaluate(policy, income_next, fee, probabilities, expected, corner)
        worth = income_next + np.stack([(cubic * w[corner + _CUBIC_OFFSETS]).sum(0) for w in after])
        improved = _improve(policy, worth, fee)
        values.append(value)
        stands = len(values) > SETTLED_ROUNDS and value < values[-1 - SETTLED_ROUNDS] + SETTLED_VALUE
        if stands or np.array_equal(improved, policy):
            if value < WORTHLESS and 0.0 in positions:
                return stay_flat(positions)
            return Solution(value, _borders(grid, after, edge, positions, fee))
        policy = improved
    raise ArithmeticError(f"policy iteration did not settle in {MAX_POLICY_ITERATIONS} rounds (value {value:.6f})")


def stay_flat(positions: FloatArray) -> Solution:
    """Earn nothing: go to position 0, which the grid must have, from wherever, and stay there."""
    flat = int(np.flatnonzero(positions == 0.0)[0])
    borders = np.where(np.arange(len(positions) - 1) < flat, -np.inf, np.inf)
    return Solution(0.0, np.tile(borders, (len(positions), 1)))


_CUBIC_OFFSETS = np.arange(4)[:, None, None]


def cubic_weights(grid: FloatArray, at: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    """First of the four grid points around each `at` [...], and their Lagrange weights [4, ...]."""
    n = len(grid)
    place = np.clip((at - grid[0]) / (grid[1] - grid[0]), 0, n - 1)
    corner = np.clip(np.floor(place).astype(np.int64) - 1, 0, n - 4)
    d = place - corner
    weights = [
        -(d - 1) * (d - 2) * (d - 3) / 6,
        d * (d - 2) * (d - 3) / 2,
        -d * (d - 1) * (d - 3) / 2,
        d * (d - 1) * (d - 2) / 6,
    ]
    return corner, np.stack(weights)


def _evaluate(
    policy: NDArray[np.int64],
    income_next: FloatArray,
    fee: FloatArray,
    probabilities: FloatArray,
    expected: FloatArray,
    corner: NDArray[np.int64],
) -> tuple[float, FloatArray]:
    """Average reward of a policy, and its W [P, n] relative to the flat-most position in the middle of the grid."""
    num_positions, n, _ = policy.shape
    cells = np.arange(n)[:, None] * n + corner  # [n, m] of an n x n matrix
    system = np.eye(num_positions * n).reshape(num_positions, n, num_positions, n)
    income = np.empty((num_positions, n))
    for held, action in enumerate(policy):
        earned = np.take_along_axis(income_next, action[None], axis=0)[0] - fee[held][action]
        income[held] = (probabilities * earned).sum(1)
        for following in range(num_positions):
            chosen = action == following
            where = cells[chosen]
            for k in range(4):
                system[held, :, following, :] -= np.bincount(where + k, expected[k][chosen], n * n).reshape(n, n)
    matrix = system.reshape(num_positions * n, num_positions * n)
    reference = num_positions // 2 * n + n // 2
    matrix[:, reference] = 1.0  # W is 0 there; its column holds the average reward instead
    after = np.linalg.solve(matrix, income.ravel()).astype(np.float64)
    value, after[reference] = float(after[reference]), 0.0
    return value, after.reshape(num_positions, n)


def _improve(policy: NDArray[np.int64], worth: FloatArray, fee: FloatArray) -> NDArray[np.int64]:
    """Best next position [P, n, m] for every held one; the old choice is kept unless another is truly better."""
    improved = np.empty_like(policy)
    for held, old in enumerate(policy):
        gain = worth - fee[held][:, None, None]
        best = gain.argmax(0)
        better = gain.max(0) > np.take_along_axis(gain, old[None], axis=0)[0] + 1e-11
        improved[held] = np.where(better, best, old)
    return improved


def _borders(
    grid: FloatArray,
    after: FloatArray,
    edge: Callable[[FloatArray], FloatArray],
    positions: FloatArray,
    fee: FloatArray,
) -> FloatArray:
    """States at which the best next position passes from index <= k to index > k: [P, P-1], +-inf if it never does."""
    fine = np.linspace(grid[0], grid[-1], FINE_POINTS)
    corner, cubic = cubic_weights(grid, fine)
    worth = positions[:, None] * edge(fine) + np.stack(
        [(cubic * w[corner + _CUBIC_OFFSETS[:, 0]]).sum(0) for w in after]
    )
    borders = np.empty((len(positions), len(positions) - 1))
    for held in range(len(positions)):
        gain = worth - fee[held][:, None]
        for k in range(len(positions) - 1):
            ahead = gain[k + 1 :].max(0) - gain[: k + 1].max(0)
            above = ahead > 0
            if np.any(above[:-1] & ~above[1:]):
                raise ArithmeticError("the best position does not rise with the state: borders cannot describe it")
            i = int(np.argmax(above))
            if not above.any():
                borders[held, k] = np.inf
            elif i == 0:
                borders[held, k] = -np.inf
            else:
                borders[held, k] = fine[i] - ahead[i] * (fine[i] - fine[i - 1]) / (ahead[i] - ahead[i - 1])
    return borders
