"""How much of a result could be luck: Sharpe ratios with their uncertainty, selection and overfitting.

Every Sharpe ratio in this module is PER BAR (mean / standard deviation) unless a name says `annual`; an annual one put
into these formulas is the commonest mistake with them. Kurtosis is the full one: 3 for a normal distribution.
numpy, scipy and arch; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from arch.bootstrap import StationaryBootstrap
from numpy.typing import ArrayLike, NDArray
from scipy import fft, integrate, stats
from scipy.cluster import hierarchy

from lit_ppo.scoring.performance import sharpe_per_bar

Floats = NDArray[np.float64]
Convention = Literal["2012", "2025"]

EULER_GAMMA = 0.5772156649015329


class Moments(NamedTuple):
    """What the formulas below need to know of a series of net returns."""

    sharpe: float  # per bar
    skew: float
    kurtosis: float  # full: 3 for a normal distribution
    bars: int


def moments(net_returns: ArrayLike) -> Moments:
    """Return the moments of [D] net returns; nan where they are not defined (fewer than two, or all equal)."""
    n = np.asarray(net_returns, dtype=np.float64)
    sharpe = sharpe_per_bar(n)
    if math.isnan(sharpe):
        return Moments(math.nan, math.nan, math.nan, len(n))
    return Moments(sharpe, float(stats.skew(n)), float(stats.kurtosis(n, fisher=False)), len(n))


def _sharpe_variance(sharpe: float, skew: float, kurtosis: float) -> float:
    """Variance of sqrt(n) * (estimated - true Sharpe ratio) of independent returns whose true ratio is `sharpe`."""
    variance = 1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2
    if variance <= 0:  # impossible for the moments of one distribution: kurtosis >= 1 + skew^2
        raise ValueError(
            f"No distribution has skew {skew:g} and kurtosis {kurtosis:g}: the variance of its Sharpe ratio {sharpe:g} "
            f"would be {variance:g}. Give the full kurtosis (3 for a normal one) and a Sharpe ratio per bar"
        )
    return variance


def probabilistic_sharpe(
    sharpe: float,
    benchmark: float,
    count: int,
    skew: float = 0.0,
    kurtosis: float = 3.0,
    convention: Convention = "2012",
) -> float:
    """Probability that the true Sharpe ratio is above `benchmark`, given the one seen (PSR).

        2012:  PSR = Phi[(SR - SR*) sqrt(n - 1) / sqrt(1 - skew SR + (kurtosis - 1) / 4 SR^2)]
        2025:  PSR = Phi[(SR - SR*) sqrt(n) / sqrt(1 - skew SR* + (kurtosis - 1) / 4 SR*^2)]

    The second takes the variance under the hypothesis that is tested. The two differ much for skewed returns (0.913
    and 0.987 for one fund), so a figure is quoted with its convention; lit-ppo reports 2012.

    Args:
        sharpe, benchmark: SR and SR*, per bar.
        count: n, bars.

    Source: Bailey & Lopez de Prado 2012, "The Sharpe Ratio Efficient Frontier"; Lopez de Prado, Lipton & Zoonekynd
    2025, "How to Use the Sharpe Ratio".
    """
    if convention == "2012":
        deviation = math.sqrt(_sharpe_variance(sharpe, skew, kurtosis) / (count - 1))
    else:
        deviation = math.sqrt(_sharpe_variance(benchmark, skew, kurtosis) / count)
    return float(stats.norm.cdf((sharpe - benchmark) / deviation))


def expected_max_normal(trials: int, exact: bool = False) -> float:
    """Expected largest of N independent standard normal numbers; 0 for one.

        (1 - gamma) Phi^-1(1 - 1/N) + gamma Phi^-1(1 - 1/(N e)),   gamma = 0.5772...

    is the usual approximation (within 0.04 from N = 10 on); `exact` integrates instead.

    Raises:
        ValueError: fewer than one trial.

    Source: Bailey & Lopez de Prado 2014, "The Deflated Sharpe Ratio", eq. 6.
    """
    if trials < 1:
        raise ValueError(f"The number of trials counts every configuration that was looked at, so >= 1; got {trials}")
    if trials == 1:
        return 0.0
    if exact:
        norm = stats.norm
        density = lambda x: x * trials * math.exp(norm.logpdf(x) + (trials - 1) * norm.logcdf(x))  # noqa: E731
        return float(integrate.quad(density, -10.0, 10.0 + math.log(trials), limit=200)[0])
    first, second = stats.norm.ppf([1.0 - 1.0 / trials, 1.0 - 1.0 / (trials * math.e)])
    return float((1.0 - EULER_GAMMA) * first + EULER_GAMMA * second)


def luckiest_sharpe(trials: int, trials_variance: float) -> float:
    """SR0: the Sharpe ratio per bar that the best of N worthless trials is expected to show.

    Args:
        trials: N, configurations (and seeds, if one is picked) whose test result was looked at; folds are none.
        trials_variance: variance of the trials' Sharpe ratios per bar.
    """
    return math.sqrt(trials_variance) * expected_max_normal(trials)


def deflated_sharpe(
    sharpe: float, count: int, skew: float, kurtosis: float, *, trials: int, trials_variance: float
) -> float:
    """Probability that the best of N trials has skill: PSR (2012 form) against SR0 instead of 0 (DSR).

    Source: Bailey & Lopez de Prado 2014, "The Deflated Sharpe Ratio".
    """
    return probabilistic_sharpe(sharpe, luckiest_sharpe(trials, trials_variance), count, skew, kurtosis)


def minimum_track_record(
    sharpe: float,
    benchmark: float,
    skew: float = 0.0,
    kurtosis: float = 3.0,
    alpha: float = 0.05,
    convention: Convention = "2012",
) -> float:
    """Bars needed before PSR reaches 1 - alpha if the same Sharpe ratio goes on (MinTRL); inf if it is not above SR*.

        2012:  1 + [1 - skew SR + (kurtosis - 1) / 4 SR^2] (Phi^-1(1 - alpha) / (SR - SR*))^2
        2025:  the same with SR* inside the brackets, without the leading 1

    Source: as `probabilistic_sharpe`.
    """
    if sharpe <= benchmark:
        return math.inf
    factor = float(stats.norm.ppf(1.0 - alpha) / (sharpe - benchmark)) ** 2
    if convention == "2012":
        return 1.0 + _sharpe_variance(sharpe, skew, kurtosis) * factor
    return _sharpe_variance(benchmark, skew, kurtosis) * factor


def clusters(net_returns: ArrayLike, correlation: float = 0.5) -> int:
    """Number of groups of trials whose returns move together: how many of N trials were trials of their own kind.

    Average linkage; groups are joined while their returns correlate by more than `correlation` on average. Trials
    without any variation (that never traded) are one group.

    Args:
        net_returns: [D, N] one column a trial, over the same stretches of time.

    Source: the effective number of trials of Lopez de Prado 2018, "A Data Science Solution to the Multiple-Testing
    Crisis", with a fixed threshold in the place of his search for the best number of clusters.
    """
    x = np.asarray(net_returns, dtype=np.float64)
    moving = x[:, x.std(axis=0) > 0]
    count = int(moving.shape[1] < x.shape[1])
    if moving.shape[1] < 2:
        return count + moving.shape[1]
    distance = np.clip(1.0 - np.corrcoef(moving, rowvar=False), 0.0, 2.0)
    upper = distance[np.triu_indices(len(distance), 1)]
    found = hierarchy.fcluster(hierarchy.linkage(upper, "average"), 1.0 - correlation, "distance")
    return count + int(found.max())


def minimum_backtest_years(trials: int, annual_sharpe: float = 1.0) -> float:
    """Years of history below which the best of N worthless trials is expected to show `annual_sharpe` (MinBTL).

    Source: Bailey, Borwein, Lopez de Prado & Zhu 2014, "Pseudo-Mathematics and Financial Charlatanism".
    """
    return (expected_max_normal(trials) / annual_sharpe) ** 2


def false_discovery_rate(
    sharpe: float, count: int, skew: float, kurtosis: float, *, prior: float, skilled_sharpe: float
) -> float:
    """Probability that a strategy with this Sharpe ratio is worthless after all (observed FDR, 2025 convention).

    Args:
        sharpe: seen, per bar.
        prior: share of strategies that have skill, before looking.
        skilled_sharpe: the true ratio per bar of one that has.

    Source: Lopez de Prado, Lipton & Zoonekynd 2025, "How to Use the Sharpe Ratio".
    """
    false = (1.0 - prior) * (1.0 - probabilistic_sharpe(sharpe, 0.0, count, skew, kurtosis, "2025"))
    true = prior * (1.0 - probabilistic_sharpe(sharpe, skilled_sharpe, count, skew, kurtosis, "2025"))
    return false / (false + true)


class Overfitting(NamedTuple):
    """Result of `backtest_overfitting`."""

    probability: float  # share of the splits in which the winner was below the median out of sample
    logits: Floats  # [splits] log-odds of the winner's rank out of sample; <= 0: below the median


def backtest_overfitting(net_returns: ArrayLike, blocks: int = 16) -> Overfitting:
    """Probability of backtest overfitting (PBO) by combinatorially symmetric cross-validation.

    The bars are cut into S blocks. For each of the C(S, S/2) ways to take half of them, the column with the best
    Sharpe ratio there is ranked by its Sharpe ratio on the other half. One PBO is a noisy number: of 60 draws of pure
    noise (1000 x 100) single ones lie between 0.2 and 0.9. Columns must not be centred on their full-sample mean: then
    what is high in one half is low in the other, and PBO is 1.

    Args:
        net_returns: [D, N] one column per candidate; the oldest D modulo S bars are left out.
        blocks: S, even.

    Raises:
        ValueError: fewer than two candidates, an odd or too small number of blocks, or fewer than two bars a block.

    Source: Bailey, Borwein, Lopez de Prado & Zhu 2015, "The Probability of Backtest Overfitting".
    """
    x = np.asarray(net_returns, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 2 or blocks < 2 or blocks % 2 or len(x) < 2 * blocks:
        raise ValueError(
            "backtest_overfitting needs [D, N] returns of N >= 2 candidates, an even number of blocks and two bars in "
            f"each; got shape {x.shape} and {blocks} blocks"
        )
    size = len(x) // blocks
    x = x[len(x) - size * blocks :]
    scale = x.std(axis=0)
    x = x / np.where(scale > 0, scale, 1.0)  # the ratio does not change, the rounding of the squares does
    cut = x.reshape(blocks, size, -1)
    sums, squares = cut.sum(axis=1), (cut**2).sum(axis=1)  # [S, N]
    chosen = np.array(list(combinations(range(blocks), blocks // 2)))  # [splits, S/2]
    logits = []
    for part in np.array_split(chosen, math.ceil(len(chosen) / 1024)):  # at most 1024 N numbers at a time
        inside = np.zeros((len(part), blocks))
        np.put_along_axis(inside, part, 1.0, axis=1)
        count = size * blocks // 2
        best = _sharpe_of_sums(inside @ sums, inside @ squares, count).argmax(axis=1)  # [splits]
        outside = _sharpe_of_sums((1 - inside) @ sums, (1 - inside) @ squares, count)
        rank = stats.rankdata(outside, axis=1)[np.arange(len(part)), best] / (x.shape[1] + 1)  # in (0, 1)
        logits.append(np.log(rank / (1 - rank)))
    every = np.concatenate(logits)
    return Overfitting(float(np.mean(every <= 0)), every)


def _sharpe_of_sums(sums: Floats, squares: Floats, count: int) -> Floats:
    mean = sums / count
    variance = squares / count - mean**2
    flat = variance <= 1e-12 * squares / count  # a candidate that never traded earned nothing
    return np.where(flat, 0.0, mean / np.sqrt(np.where(flat, 1.0, variance)))


class Interval(NamedTuple):
    """An estimate and its two-sided bootstrap interval; all three nan where the estimate is not defined."""

    estimate: float
    low: float
    high: float
    block_length: float  # mean length of the bootstrap's blocks, bars; 1: independent draws


# Of K returns [D]: a statistic, and its [D] influence: how much each bar moves it, so that
# variance of the statistic = long-run variance of the influence / D.
Statistic = Callable[..., tuple[float, Floats]]


def draws_for(net_returns: ArrayLike) -> int:
    """Bootstrap draws for whatever is said of these returns: table, report and comparison say the same numbers."""
    return 2_000 if len(np.asarray(net_returns)) <= 20_000 else 1_000  # of long runs fewer, to be quick


def sharpe_interval(
    net_returns: ArrayLike, bars_per_year: float, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Annual Sharpe ratio with a studentised stationary-bootstrap interval; dependence between bars is allowed for.

    Args:
        net_returns: [D], pooled out of sample (not an average over folds).
        bars_per_year: annual = per bar * sqrt(bars_per_year).
        confidence: of the two-sided interval.
        draws: bootstrap samples.
        seed: of the draws.

    Source: Politis & Romano 1994; block length Politis & White 2004 with Patton, Politis & White 2009; studentised
    as in Ledoit & Wolf 2008, "Robust performance hypothesis testing with the Sharpe ratio".
    """
    interval = _bootstrap(_columns(net_returns), _sharpe, confidence, draws, seed)
    return _scaled(interval, math.sqrt(bars_per_year))


def sharpe_difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    bars_per_year: float,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Annual Sharpe ratio of `first` minus that of `second` [D], on the same bars, which are resampled together.

    Source: Ledoit & Wolf 2008.
    """
    interval = _bootstrap(_columns(first, second), _sharpe_difference, confidence, draws, seed)
    return _scaled(interval, math.sqrt(bars_per_year))


def mean_interval(
    net_returns: ArrayLike, bars_per_year: float, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean net return a year (per bar * bars_per_year, not compounded), as `sharpe_interval`."""
    interval = _bootstrap(_columns(net_returns), _mean, confidence, draws, seed)
    return _scaled(interval, bars_per_year)


def paired_difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    bars_per_year: float,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean net return a year of `first` minus that of `second` [D] on the same bars, as `mean_interval`."""
    one, other = _columns(first, second)
    return mean_interval(one - other, bars_per_year, confidence=confidence, draws=draws, seed=seed)


class Alpha(NamedTuple):
    """What is left of a return after its exposure to factors: r_t = alpha + sum of beta_k f_kt + e_t.

    Attributes:
        alpha: per period.
        t: alpha / its standard error after Newey & West 1987; nan where nothing is left to explain.
        betas: [M].
        lags: of the standard error, periods.
    """

    alpha: float
    t: float
    betas: tuple[float, ...]
    lags: int


def alpha_over(returns: ArrayLike, *factors: ArrayLike) -> Alpha:
    """Regress returns [D] on factors [D] each by least squares.

    The lags are floor(4 (D / 100)^(2/9)), the rule of Newey & West 1994 without a pilot.
    """
    columns = np.ascontiguousarray(_columns(returns, *factors).T)  # [D, 1 + M]
    count = len(columns)
    y, x = columns[:, 0], np.column_stack([np.ones(count), columns[:, 1:]])
    lags = int(4 * (count / 100) ** (2 / 9))
    inverse = np.linalg.pinv(x.T @ x / count)  # two equal factors share their beta
    found = inverse @ (x.T @ y) / count
    left = y - x @ found
    error = math.nan
    if count > x.shape[1] + 1 and left.std() > 1e-9 * max(float(y.std()), 1e-300):
        error = _standard_error(left * (x @ inverse[0]), lags)
    betas = tuple(float(beta) for beta in found[1:])
    return Alpha(float(found[0]), float(found[0]) / error if error > 0 else math.nan, betas, lags)


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all scores: robust like the median, with less noise. Source: arXiv:2108.13264."""
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=None))


def interquartile_mean_interval(
    scores: ArrayLike, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Interquartile mean over seeds and folds, with a percentile interval from a stratified bootstrap.

    Seeds are resampled within each fold, never across: folds are different tasks and share no chance.

    Args:
        scores: [seeds, folds], at least two seeds.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or not np.isfinite(table).all():
        raise ValueError(f"An interval over seeds needs finite scores [seeds >= 2, folds], got shape {table.shape}")
    generator = np.random.default_rng(seed)
    picked = generator.integers(len(table), size=(draws, *table.shape))
    sample = np.take_along_axis(table[None], picked, axis=1)  # [draws, seeds, folds]
    values = stats.trim_mean(sample.reshape(draws, -1), 0.25, axis=1)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(interquartile_mean(table), low, high, 1.0)


def _columns(*series: ArrayLike) -> Floats:
    """Checked series of the same bars: [K, D]."""
    arrays = [np.asarray(one, dtype=np.float64) for one in series]
    if {a.ndim for a in arrays} != {1} or len({len(a) for a in arrays}) != 1 or not np.isfinite(arrays).all():
        raise ValueError(
            "An interval needs finite net returns [D], two of them on the same bars; got the shapes "
            f"{[a.shape for a in arrays]}"
        )
    return np.stack(arrays)


def _mean(x: Floats) -> tuple[float, Floats]:
    mean = x.mean()
    return float(mean), x - mean


def _sharpe(x: Floats) -> tuple[float, Floats]:
    mean = x.mean()
    z = x - mean
    deviation = math.sqrt(np.square(z).mean())
    if deviation == 0:  # a resample in which nothing was traded
        return 0.0, np.zeros(len(x))
    sharpe = float(mean / deviation)
    z /= deviation
    spread = np.square(z)
    spread -= 1.0
    spread *= 0.5 * sharpe
    z -= spread
    return sharpe, z


def _sharpe_difference(first: Floats, second: Floats) -> tuple[float, Floats]:
    (one, its), (other, theirs) = _sharpe(first), _sharpe(second)
    return one - other, its - theirs


def _standard_error(influence: Floats, lags: int) -> float:
    """Square root of the long-run variance (Bartlett weights, Newey & West 1987) / D.

    Bartlett-weighted covariances sum to the mean square of the sums over windows of lags + 1 bars, so that one running
    sum gives what one product for each lag would.
    """
    count, width = len(influence), lags + 1
    total = np.empty(count + width + lags)
    total[:width] = 0.0
    np.cumsum(influence, out=total[width : width + count])
    total[width + count :] = total[width + count - 1]
    windows = total[width:] - total[:-width]  # [D + lags], those that overhang either end included
    # Not `@`: on a busy machine BLAS's threads wait for each other, many times longer than this takes.
    return math.sqrt(float(np.einsum("i,i", windows, windows)) / width) / count


def _block_length(x: Floats) -> float:
    """Mean block length, bars, that suits a stationary bootstrap of x [D].

    What `arch.bootstrap.optimal_block_length` gives (a test compares), with all autocovariances from one Fourier
    transform instead of one product a lag: seconds on a busy machine.

    Source: Politis & White 2004, with the correction of Patton, Politis & White 2009.
    """
    count, moved = len(x), x - x.mean()
    run = max(5, int(math.log10(count)))  # so many small autocorrelations in a row end the search
    most = math.ceil(math.sqrt(count)) + run
    size = fft.next_fast_len(count + most + 1, real=True)
    products = fft.irfft(np.abs(fft.rfft(moved, size)) ** 2, size)[: most + 1]
    squares = np.concatenate(([0.0], np.cumsum(moved**2)))
    lags = np.minimum(np.arange(1, most + 2), count)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.abs(products) / np.sqrt((squares[-1] - squares[lags]) * squares[count - lags])
    small = correlation < 2.0 * math.sqrt(math.log10(count) / count)
    found = next((lag for lag in range(most + 1 - run) if small[lag : lag + run].all()), None)
    bandwidth = most if found is None else min(2 * max(found, 1), most)
    lag = np.arange(1, bandwidth + 1)
    taper = np.where(lag / bandwidth <= 0.5, 1.0, 2.0 * (1.0 - lag / bandwidth))
    covariance = products / count
    slope = 2.0 * float((taper * lag * covariance[1 : bandwidth + 1]).sum())
    spectrum = float(covariance[0]) + 2.0 * float((taper * covariance[1 : bandwidth + 1]).sum())
    longest = math.ceil(min(3.0 * math.sqrt(count), count / 3.0))
    return min((slope**2 / spectrum**2) ** (1 / 3) * count ** (1 / 3), longest)


def _bootstrap(columns: Floats, statistic: Statistic, confidence: float, draws: int, seed: int) -> Interval:
    if not 0 < confidence < 1 or draws < 100:
        raise ValueError(
            f"An interval needs a confidence between 0 and 1 and at least 100 draws, got {confidence}, {draws}"
        )
    estimate, moved = statistic(*columns)
    if len(moved) < 10 or moved.std() <= 1e-12 * np.abs(columns).max():
        return Interval(math.nan, math.nan, math.nan, math.nan)
    # The block follows the influence, not the returns: its long-run variance is what the interval has to get right.
    block = max(1, round(_block_length(moved)))
    error = _standard_error(moved, block)
    resampler = StationaryBootstrap(block, moved, seed=np.random.default_rng(seed))
    ratios = np.empty(draws)
    for draw in range(draws):
        rows = resampler.update_indices()  # `bootstrap` takes rows of a matrix, one number each: slow
        value, influence = statistic(*(column[rows] for column in columns))
        sample_error = _standard_error(influence, block)
        ratios[draw] = (value - estimate) / sample_error if sample_error > 0 else 0.0
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(estimate, estimate - high * error, estimate - low * error, block)


def _scaled(interval: Interval, factor: float) -> Interval:
    low, high = interval.low * factor, interval.high * factor
    return Interval(interval.estimate * factor, low, high, interval.block_length)
