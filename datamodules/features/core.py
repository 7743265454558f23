"""The core features: what a Bayesian would know of a market's direction, from its prices alone, bar after bar.

    log returns, hours, costs -> one pass, a state of fixed size -> [N, F]

Each is causal and free of scale, and the same code serves real bars and the markets of the prior (`datamodules.prior`).
A memory of 200 bars cannot hold what 20,000 have shown of a drift; these running statistics can. They carry their
state from the first bar of the file, so that a later start gives other values: that state is data (docs/prior.md).

    z_t       return of bar t in the volatility known before it, within +-4
    trends    exponential averages of z, each in its own standard deviations under no edge
    families  drift; one trend; one wave of the day; a hidden sign that flips: each with unknown size (and length,
              turns, flip rate), by Bayes: its forecast of z_{t+1} if it is there, and the log odds that it is
    single    the forecast averaged over the families and over there being none
    ahead     what a position of one is to earn in the coming 8, 32 and 128 bars, by single and by joint: a change of
              position pays if that is more than its cost
    joint     z_{t+1} = beta_t . x_t + noise with everything at once: a Kalman filter, whose beta wanders around 0
    hours     mean of z in the hour of the coming bar, shrunk towards 0
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

VOLATILITY_BARS = 100.0
LARGEST_SQUARE = 25.0
LARGEST_Z = 4.0
LARGEST_TREND = 2.0
TREND_BARS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
WAVES = 3  # sine and cosine of one, two and three turns a day
MEMORIES = (200_000.0, 5_000.0)  # bars in which coefficients wander; the families have the first
DRIFT_SIZE, TREND_SIZE, WAVE_SIZE, HOUR_SIZE = 0.04, 0.08, 0.08, 0.08  # prior standard deviations, volatilities a bar
JOINT_SHARE = 0.6  # of these, in the joint filter: with everything at once each is smaller
REGIME_SIZES = (0.03, 0.06, 0.1, 0.17, 0.3, 0.5)
REGIME_FLIPS = (0.003, 0.01, 0.03)
HOUR_MEMORY = 5_000.0  # visits of an hour
AHEAD = (8, 32, 128)  # bars
AHEAD_UNIT = 0.1  # volatilities: sums are shown as asinh(sum / unit), for they may be large
NULL_ODDS = 2.0  # of no edge against each family, beforehand
START_BARS = 100  # until the volatility is worth dividing by

FAMILIES = ("drift", "trend", "wave", "regime")
_PARTS = ("drift", "trend", "wave", "all")
NAMES = (
    "return",
    *(f"trend_{bars:g}" for bars in TREND_BARS[1:]),
    *(f"{family}_{what}" for family in FAMILIES for what in ("forecast", "odds")),
    "single_forecast",
    "single_odds",
    *(f"joint_{part}_{kind}" for part in _PARTS for kind in ("forecast", "t")),
    "fast_forecast",
    "fast_t",
    *(f"{what}_ahead_{bars}" for bars in AHEAD for what in ("single", "joint")),
    "hour_forecast",
    "hour_t",
    *(f"regime_side_{flip:g}" for flip in REGIME_FLIPS),
    "regime_flips",
    "volatility_fast",
    "volatility_slow",
    "cost",
    "bars_seen",
)
_EVEN = ("regime_flips", "volatility_fast", "volatility_slow", "cost", "bars_seen")
PARITY = tuple(1 if name in _EVEN or name.endswith("_odds") else -1 for name in NAMES)
HURDLE_UNIT = 0.002  # volatilities a bar held; the hurdle enters as the logarithm of its multiple
MEAN_UNIT = 0.05  # volatilities a bar: forecasts are shown in this unit


def core_features(
    log_return: FloatArray,
    seconds: NDArray[np.int64],
    bar_seconds: float,
    cost: FloatArray,
    wanted: NDArray[np.bool_] | None = None,
    room: int = 0,
) -> NDArray[np.float32]:
    """Compute the core features of one market.

    Args:
        log_return: [N] of the closes, the first one 0.
        seconds: [N] open time of each bar, since 1970 UTC.
        bar_seconds: length of a bar: the coming bar is taken to open so much later. Days have no hours.
        cost: [N] what a change of position by one costs, fraction of notional, as known at bar t's close; 0 for none.
        wanted: [N] the rows that somebody will read, None for all; the others hold anything.
        room: further columns that the caller fills in.

    Returns:
        [N, F + room] float32, columns `NAMES`; the first `START_BARS` rows are of a market not yet known.
    """
    turn = 2 * math.pi / 86_400
    coming = (seconds + int(bar_seconds)) % 86_400
    has_hours = bar_seconds < 86_400
    angles = coming * turn if has_hours else np.zeros(len(seconds))
    waves = np.zeros((len(seconds), 2 * WAVES))
    if has_hours:
        for k in range(WAVES):
            waves[:, 2 * k], waves[:, 2 * k + 1] = np.sin((k + 1) * angles), np.cos((k + 1) * angles)
    hours = (seconds // 3600 % 24).astype(np.int64) if has_hours else np.full(len(seconds), -1)
    next_hours = (coming // 3600).astype(np.int64) if has_hours else np.full(len(seconds), -1)
    out = np.empty((len(log_return), len(NAMES) + room), dtype=np.float32)
    _scan(
        np.ascontiguousarray(log_return, dtype=np.float64),
        waves,
        hours,
        next_hours,
        np.ascontiguousarray(cost, dtype=np.float64),
        np.ones(len(log_return), dtype=np.bool_) if wanted is None else wanted,
        out,
        np.array(TREND_BARS),
        np.array(MEMORIES),
        np.array(REGIME_SIZES),
        np.array(REGIME_FLIPS),
        np.array(AHEAD),
        turn * bar_seconds if has_hours else 0.0,
    )
    return out


def hurdle_feature(hurdle: float) -> float:
    """The policy's input for a hurdle, volatilities per bar held: what a position must earn on average to be held."""
    return math.log(hurdle / HURDLE_UNIT)


def core_volatility(log_return: FloatArray) -> FloatArray:
    """Volatility [N] of each bar's return, known before the bar: the unit of the core features."""
    out = np.empty(len(log_return))
    _volatility(np.ascontiguousarray(log_return, dtype=np.float64), out)
    return out


@numba.njit(cache=True, error_model="numpy")
def _next_variance(variance: float, square: float, seen: int) -> float:
    """An average over all bars at first, exponential over VOLATILITY_BARS then; one bar counts at most 25 of it."""
    if variance <= 0.0:
        return square
    rate = max(1.0 / (seen + 1.0), 1.0 / VOLATILITY_BARS)
    return variance + rate * (min(square, LARGEST_SQUARE * variance) - variance)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _volatility(log_return, out):
    variance, seen = 0.0, 0
    for t in range(len(log_return)):
        out[t] = math.sqrt(variance)
        square = log_return[t] ** 2
        if square > 0.0 or variance > 0.0:
            variance = _next_variance(variance, square, seen)
            seen += 1


@numba.njit(cache=True, error_model="numpy")
def _learn_alone(beta, own, cross, x, z, keep, start, errors, spreads, singles):
    """One step of a Kalman filter for every variant of a family, each alone; leaves errors and spreads of z.

    beta' = keep (beta + P x e / S),   P' = keep^2 (P - P x x' P / S) + (1 - keep^2) P0
    e = z - beta . x,   S = 1 + x P x

    The first `singles` variants have one regressor and P = `own`; then pairs, with `own` and `cross`.
    """
    square = keep * keep
    for d in range(singles):
        gain = own[d] * x[d]
        errors[d] = z - beta[d] * x[d]
        spreads[d] = 1.0 + x[d] * gain
        beta[d] = keep * (beta[d] + gain / spreads[d] * errors[d])
        own[d] = square * (own[d] - gain * gain / spreads[d]) + (1.0 - square) * start[d]
    for w in range(len(cross)):
        d, a, b = singles + w, singles + 2 * w, singles + 2 * w + 1
        gain_a = own[a] * x[a] + cross[w] * x[b]
        gain_b = cross[w] * x[a] + own[b] * x[b]
        error = z - beta[a] * x[a] - beta[b] * x[b]
        spread = 1.0 + x[a] * gain_a + x[b] * gain_b
        beta[a] = keep * (beta[a] + gain_a / spread * error)
        beta[b] = keep * (beta[b] + gain_b / spread * error)
        own[a] = square * (own[a] - gain_a * gain_a / spread) + (1.0 - square) * start[a]
        own[b] = square * (own[b] - gain_b * gain_b / spread) + (1.0 - square) * start[b]
        cross[w] = square * (cross[w] - gain_a * gain_b / spread)
        errors[d], spreads[d] = error, spread


@numba.njit(cache=True, error_model="numpy")
def _learn_jointly(beta, P, x, z, keep, start, gain):
    """The same step with all regressors at once. P is symmetric to the last bit, so that its rows add up as vectors.

    (The length is asked of an array: a loop of a known short length would be unrolled, and not made of vectors.)
    """
    size, error, spread = len(gain), z, 1.0
    for k in range(size):
        gain[k] = 0.0
    for j in range(size):
        seen = x[j]
        for k in range(size):
            gain[k] += P[j, k] * seen
    for k in range(size):
        error -= beta[k] * x[k]
        spread += x[k] * gain[k]
    square = keep * keep
    for k in range(size):
        own = gain[k]
        beta[k] = keep * (beta[k] + own / spread * error)
        for j in range(size):
            P[k, j] = square * (P[k, j] - own * gain[j] / spread)
    for k in range(size):
        P[k, k] += (1.0 - square) * start[k]


@numba.njit(cache=True, error_model="numpy")
def _coming(x, fades, along, across, trends, coming):
    """Sum of each regressor over the coming bars, from what it is now."""
    first = 1 + trends
    for k in range(first):
        coming[k] = fades[k] * x[k]
    for k in range(len(along)):
        sine, cosine = x[first + 2 * k], x[first + 2 * k + 1]
        coming[first + 2 * k] = along[k] * sine + across[k] * cosine
        coming[first + 2 * k + 1] = along[k] * cosine - across[k] * sine


@numba.njit(cache=True, error_model="numpy", forceinline=True)
def _show(out, t, c, mean, uncertain):
    """A forecast and its t; returns the next column."""
    out[t, c] = min(max(mean / MEAN_UNIT, -8.0), 8.0)
    out[t, c + 1] = mean / math.sqrt(uncertain) / 2.0 if uncertain > 1e-12 else 0.0
    return c + 2


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _scan(log_return, waves, hours, next_hours, cost, wanted, out, trend_bars, memories, sizes, flips, ahead, step):
    N, T, W = len(log_return), len(trend_bars), waves.shape[1]
    K, D = 1 + T + W, 1 + T + W // 2  # regressors; families' variants: drift, trends, waves
    variance, fast, slow, seen = 0.0, 0.0, 0.0, 0
    spread_z = 1.0  # running mean square of z: real bars are not normal
    # Loops, not expressions of arrays: numba compiles those for seconds, with the text of their errors.
    average, scales, rates = np.zeros(T), np.empty(T), np.empty(T)
    for k in range(T):
        rates[k] = 1.0 / trend_bars[k]
        scales[k] = 1.0 / math.sqrt(rates[k] / (2.0 - rates[k]))
    start = np.empty(K)  # prior variances
    start[0] = DRIFT_SIZE**2
    for k in range(T):
        start[1 + k] = TREND_SIZE**2
    for k in range(W):
        start[1 + T + k] = (WAVE_SIZE / (1 + k // 2)) ** 2
    begins, ends = np.empty(D, np.int64), np.empty(D, np.int64)  # regressors of each variant
    for d in range(D):
        begins[d] = d if d < 1 + T else 1 + T + 2 * (d - 1 - T)
        ends[d] = begins[d] + (1 if d < 1 + T else 2)
    families = (0, 1, 1 + T, D)  # first variant of drift, trends, waves
    # Each variant alone, side by side: coefficients, their variances and (waves) covariance, evidence
    beta, own, cross, evidence = np.zeros(K), np.empty(K), np.zeros(W // 2), np.zeros(D)
    errors, spreads = np.empty(D), np.empty(D)
    wide = (K + 3) // 4 * 4  # whole vectors: what is beyond the regressors stays 0
    slow_beta, slow_P = np.zeros(wide), np.zeros((wide, wide))
    fast_beta, fast_P = np.zeros(wide), np.zeros((wide, wide))
    together, x, gain = np.zeros(wide), np.zeros(wide), np.empty(wide)
    keeps = np.empty(2)
    for k in range(K):
        together[k] = JOINT_SHARE**2 * start[k]
        own[k], slow_P[k, k], fast_P[k, k] = start[k], together[k], together[k]
    for m in range(2):
        keeps[m] = math.exp(-1.0 / memories[m])
    hour_n, hour_s = np.zeros(24), np.zeros(24)
    G, Q = len(sizes), len(flips)
    R = G * Q  # regimes, flip rate by flip rate within a size
    flip_of, stay_of, log_flip_of, moves_of = np.empty(R), np.empty(R), np.empty(R), np.empty(R)
    size_of, odds, base, both = np.empty(R), np.empty(R), np.empty(R), np.empty(R)
    up, weight = np.empty(R), np.zeros(R)  # belief in +1; log evidence of a regime against none
    for r in range(R):
        size_of[r], flip_of[r] = sizes[r // Q], flips[r % Q]
        stay_of[r], log_flip_of[r] = 1.0 - 2.0 * flip_of[r], math.log(flip_of[r] / 0.01)
        moves_of[r], up[r] = size_of[r] * stay_of[r], 0.5
    tops, sums, means = np.empty(4), np.empty(4), np.empty(4)
    # Sums of the regressors over the coming A[i] bars, as multiples of what they are now: a drift stays, a trend fades,
    # a wave turns (`along`, and `across` of its other half), a hidden sign flips
    A = len(ahead)
    fades, along, across, stays = np.empty((A, 1 + T)), np.zeros((A, W // 2)), np.zeros((A, W // 2)), np.empty((A, R))
    for i in range(A):
        fades[i, 0] = ahead[i]
        for k in range(T):
            fades[i, 1 + k] = trend_bars[k] * (1.0 - (1.0 - rates[k]) ** ahead[i])
        for k in range(W // 2):
            for bar in range(ahead[i]):
                along[i, k] += math.cos(bar * (k + 1) * step)
                across[i, k] += math.sin(bar * (k + 1) * step)
        for r in range(R):
            stays[i, r] = (1.0 - (1.0 - 2.0 * flip_of[r]) ** ahead[i]) / (2.0 * flip_of[r])
    coming, later, log_odds, odds_of = np.empty(K), np.empty(4), np.empty(4), np.empty(4)
    weights, share = np.empty(D), np.empty(R)  # of the variants of a family, and of its regimes, by their evidence
    side, flow, part = np.empty(R), np.empty(R), np.empty(R)
    for t in range(N):
        # What bar t says of what was known before it
        square = log_return[t] ** 2
        z = 0.0
        if variance > 0.0 and seen >= 20:
            z = log_return[t] / math.sqrt(variance * spread_z)
            z = min(max(z, -LARGEST_Z), LARGEST_Z)
            spread_z += (min(square / variance, 16.0) - spread_z) / 2000.0
            _learn_alone(beta, own, cross, x, z, keeps[0], start, errors, spreads, 1 + T)
            for d in range(D):
                against_none = 0.5 * (z * z - errors[d] * errors[d] / spreads[d] - math.log(spreads[d]))
                evidence[d] = keeps[0] * evidence[d] + against_none
            _learn_jointly(slow_beta, slow_P, x, z, keeps[0], together, gain)
            _learn_jointly(fast_beta, fast_P, x, z, keeps[1], together, gain)
            if hours[t] >= 0:
                hour_n[hours[t]] = hour_n[hours[t]] * (1.0 - 1.0 / HOUR_MEMORY) + 1.0
                hour_s[hours[t]] = hour_s[hours[t]] * (1.0 - 1.0 / HOUR_MEMORY) + z
            for g in range(G):
                odds_g = math.exp(2.0 * sizes[g] * z)
                base_g = -sizes[g] * z - 0.5 * sizes[g] ** 2
                for r in range(g * Q, (g + 1) * Q):
                    odds[r], base[r] = odds_g, base_g
            for r in range(R):
                p = flip_of[r] + stay_of[r] * up[r]
                both[r] = p * odds[r] + 1.0 - p
                up[r] = p * odds[r] / both[r]
            for r in range(R):
                weight[r] = keeps[0] * weight[r] + math.log(both[r]) + base[r]
            for k in range(T):
                average[k] += rates[k] * (z - average[k])
        if square > 0.0 or variance > 0.0:
            variance = _next_variance(variance, square, seen)
            capped = min(square, LARGEST_SQUARE * variance)
            fast = capped if fast <= 0.0 else fast + (capped - fast) * max(1.0 / (seen + 1.0), 1.0 / 15.0)
            slow = capped if slow <= 0.0 else slow + (capped - slow) * max(1.0 / (seen + 1.0), 1.0 / 1000.0)
            seen += 1
        # What is known of bar t + 1
        x[0] = 1.0
        for k in range(T):
            x[1 + k] = min(max(average[k] * scales[k], -LARGEST_TREND), LARGEST_TREND)
        for k in range(W):
            x[1 + T + k] = waves[t, k]
        if not wanted[t]:
            continue
        c = 0
        out[t, c] = z / 2.0
        c += 1
        for k in range(1, T):
            out[t, c] = x[1 + k]
            c += 1
        # The families: evidence and forecast of each, over its variants
        for f in range(3):
            first, last = families[f], families[f + 1]
            top, total, mean = evidence[first], 0.0, 0.0
            for d in range(first, last):
                top = max(top, evidence[d])
            for d in range(first, last):
                weights[d], forecast = math.exp(evidence[d] - top), 0.0
                for k in range(begins[d], ends[d]):
                    forecast += beta[k] * x[k]
                total += weights[d]
                mean += weights[d] * forecast
            tops[f], sums[f], means[f] = top, total / (last - first), mean / total
        top, total, mean, flip_sum = weight[0], 0.0, 0.0, 0.0
        for r in range(R):
            top = max(top, weight[r])
        for r in range(R):
            share[r] = math.exp(weight[r] - top)
        for r in range(R):
            side[r] = 2.0 * up[r] - 1.0
            flow[r] = share[r] * size_of[r] * stay_of[r] * side[r]
        for r in range(R):
            total += share[r]
            mean += flow[r]
            flip_sum += share[r] * log_flip_of[r]
        tops[3], sums[3], means[3] = top, total / R, mean / total
        highest = 0.0  # no edge
        for f in range(4):
            log_odds[f] = tops[f] + math.log(sums[f])
            out[t, c] = min(max(means[f] / MEAN_UNIT, -8.0), 8.0)
            out[t, c + 1] = min(max(log_odds[f] / 4.0, -2.0), 6.0)
            highest = max(highest, log_odds[f])
            c += 2
        edge, single = 0.0, 0.0
        for f in range(4):
            odds_of[f] = math.exp(log_odds[f] - highest)
            edge += odds_of[f]
            single += odds_of[f] * means[f]
        none = NULL_ODDS * math.exp(-highest)
        out[t, c] = min(max(single / (edge + none) / MEAN_UNIT, -8.0), 8.0)
        out[t, c + 1] = min(max((math.log(edge) + highest - math.log(NULL_ODDS)) / 4.0, -2.0), 6.0)
        c += 2
        # Drift, trends, waves, and all of them, of the slow memory; then all, of the fast one. Sums wait for their last
        # addition, so they run side by side.
        trend_mean, wave_mean, slow_mean, fast_mean = 0.0, 0.0, 0.0, 0.0
        trend_spread, wave_spread, slow_spread, fast_spread = 0.0, 0.0, 0.0, 0.0
        for k in range(K):
            slow_mean += slow_beta[k] * x[k]
            fast_mean += fast_beta[k] * x[k]
            for j in range(K):
                slow_spread += x[k] * slow_P[k, j] * x[j]
                fast_spread += x[k] * fast_P[k, j] * x[j]
        for k in range(1, 1 + T):
            trend_mean += slow_beta[k] * x[k]
            for j in range(1, 1 + T):
                trend_spread += x[k] * slow_P[k, j] * x[j]
        for k in range(1 + T, K):
            wave_mean += slow_beta[k] * x[k]
            for j in range(1 + T, K):
                wave_spread += x[k] * slow_P[k, j] * x[j]
        c = _show(out, t, c, slow_beta[0] * x[0], x[0] * slow_P[0, 0] * x[0])
        c = _show(out, t, c, trend_mean, trend_spread)
        c = _show(out, t, c, wave_mean, wave_spread)
        c = _show(out, t, c, slow_mean, slow_spread)
        c = _show(out, t, c, fast_mean, fast_spread)
        for i in range(A):
            _coming(x, fades[i], along[i], across[i], T, coming)
            for f in range(3):
                later[f] = 0.0
                for d in range(families[f], families[f + 1]):
                    forecast = 0.0
                    for k in range(begins[d], ends[d]):
                        forecast += beta[k] * coming[k]
                    later[f] += weights[d] * forecast
                later[f] /= sums[f] * (families[f + 1] - families[f])
            for r in range(R):
                part[r] = share[r] * (moves_of[r] * side[r]) * stays[i, r] / total
            later[3] = 0.0
            for r in range(R):
                later[3] += part[r]
            mixed, mean = 0.0, 0.0
            for f in range(4):
                mixed += odds_of[f] * later[f]
            for k in range(K):
                mean += slow_beta[k] * coming[k]
            out[t, c] = math.asinh(mixed / (edge + none) / AHEAD_UNIT)
            out[t, c + 1] = math.asinh(mean / AHEAD_UNIT)
            c += 2
        h = next_hours[t]
        if h >= 0:
            out[t, c] = hour_s[h] / (hour_n[h] + 1.0 / HOUR_SIZE**2) / MEAN_UNIT
            out[t, c + 1] = hour_s[h] / math.sqrt(hour_n[h] + 1.0) / 2.0
        else:
            out[t, c], out[t, c + 1] = 0.0, 0.0
        c += 2
        for q in range(Q):
            lean, within = 0.0, 0.0
            for r in range(q, R, Q):
                within += share[r]
                lean += share[r] * side[r]
            out[t, c] = lean / within if within > 0.0 else 0.0
            c += 1
        out[t, c] = flip_sum / total
        c += 1
        sigma = math.sqrt(variance)
        out[t, c] = 0.5 * math.log(fast / variance) if variance > 0.0 and fast > 0.0 else 0.0
        out[t, c + 1] = 0.5 * math.log(slow / variance) if variance > 0.0 and slow > 0.0 else 0.0
        c += 2
        in_sigma = cost[t] / sigma if sigma > 0.0 else 1.0
        out[t, c] = (math.log(max(in_sigma, 1e-3)) + 2.5) / 1.5
        out[t, c + 1] = (math.log(1.0 + seen) - 7.0) / 2.0
