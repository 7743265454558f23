"""Published reference numbers of Sharpe statistics, and calibration of the intervals on returns of known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from arch.bootstrap import optimal_block_length
from scipy import stats
from scipy.signal import lfilter

from lit_ppo.scoring import significance
from lit_ppo.scoring.significance import deflated_sharpe, minimum_track_record, probabilistic_sharpe

pytestmark = pytest.mark.filterwarnings("error")
DAYS = 250
DAILY = 2.5 / math.sqrt(DAYS)  # the deflated Sharpe paper's example: annual 2.5
VARIANCE = 0.5 / DAYS  # of the trials' Sharpe ratios, 1/2 annual
FUND = {"sharpe": 0.036 / 0.079, "count": 24, "skew": -2.448, "kurtosis": 10.164}  # monthly returns of one hedge fund


def autoregressive(seed, bars, sharpe, phi=0.2):
    """[bars] AR(1) returns of standard deviation 1 and the given Sharpe ratio per bar."""
    noise = np.random.default_rng(seed).normal(size=bars + 200)
    return lfilter([1.0], [1.0, -phi], noise)[200:] * math.sqrt(1 - phi**2) + sharpe


# ---- deflated and probabilistic Sharpe ratio


def test_deflated_sharpe_of_the_paper():
    assert pytest.approx(0.1581, abs=5e-5) == DAILY
    assert significance.luckiest_sharpe(100, VARIANCE) == pytest.approx(0.1132, abs=5e-5)
    assert significance.luckiest_sharpe(46, VARIANCE) == pytest.approx(0.1004, abs=5e-5)


@pytest.mark.parametrize(
    ("skew", "kurtosis", "trials", "expected"),
    [(-3, 10, 100, 0.9004), (-3, 10, 46, 0.9505), (0, 3, 88, 0.9505), (0, 3, 100, 0.9428)],
)
def test_deflated_sharpe_reference_numbers(skew, kurtosis, trials, expected):
    dsr = deflated_sharpe(DAILY, 1250, skew, kurtosis, trials=trials, trials_variance=VARIANCE)
    assert dsr == pytest.approx(expected, abs=5e-5)


def test_one_trial_needs_no_deflation():
    one = deflated_sharpe(DAILY, 1250, 0.0, 3.0, trials=1, trials_variance=VARIANCE)
    assert one == probabilistic_sharpe(DAILY, 0.0, 1250)


@pytest.mark.parametrize(("skew", "kurtosis", "expected"), [(-2.448, 10.164, 0.9134), (0.0, 3.0, 0.9817)])
def test_probabilistic_sharpe_reference_numbers(skew, kurtosis, expected):
    assert probabilistic_sharpe(0.458, 0.0, 24, skew, kurtosis) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("benchmark", "convention", "expected", "digits"),
    [(0.0, "2012", 0.9127, 4), (0.1, "2012", 0.8554, 4), (0.0, "2025", 0.987, 3), (0.1, "2025", 0.939, 3)],
)
def test_the_two_conventions_differ_as_published(benchmark, convention, expected, digits):
    psr = probabilistic_sharpe(**FUND, benchmark=benchmark, convention=convention)
    assert psr == pytest.approx(expected, abs=0.5 * 10**-digits)


def test_numbers_of_the_2025_convention():
    moments = {key: FUND[key] for key in ("sharpe", "skew", "kurtosis")}
    # The standard error at the observed ratio is what one standard deviation below it gives 84 % against.
    error = math.sqrt(significance._sharpe_variance(**moments) / FUND["count"])
    assert error == pytest.approx(0.329, abs=5e-4)
    assert minimum_track_record(**moments, benchmark=0.0, convention="2025") == pytest.approx(13.029, abs=5e-4)
    rate = significance.false_discovery_rate(**FUND, prior=0.05, skilled_sharpe=0.5)
    assert rate == pytest.approx(0.306, abs=5e-4)


def test_impossible_moments_are_refused_instead_of_giving_nan():
    with pytest.raises(ValueError, match="No distribution has skew 5"):
        probabilistic_sharpe(0.5, 0.0, 100, skew=5.0, kurtosis=3.0)


def test_moments_use_the_full_kurtosis_and_the_sharpe_ratio_per_bar():
    draws = np.random.default_rng(0).normal(0.05, 1.0, size=200_000)
    sharpe, skew, kurtosis, bars = significance.moments(draws)
    assert (sharpe, skew, kurtosis) == pytest.approx((0.05, 0.0, 3.0), abs=0.03)
    assert bars == 200_000
    assert all(math.isnan(m) for m in significance.moments(np.zeros(10))[:3])
    assert math.isnan(probabilistic_sharpe(math.nan, 0.0, 10, math.nan, math.nan))


def test_a_probabilistic_sharpe_is_uniform_when_there_is_no_skill():
    generator = np.random.default_rng(1)
    values = []
    for _ in range(400):
        sharpe, skew, kurtosis, count = significance.moments(generator.standard_t(5, size=500))
        values.append(probabilistic_sharpe(sharpe, 0.0, count, skew, kurtosis))
    assert stats.kstest(values, "uniform").pvalue > 0.01


# ---- how long, how many


@pytest.mark.parametrize(("periods", "years"), [(252, 2.73), (52, 2.83), (12, 3.24)])
def test_minimum_track_record_reference_numbers(periods, years):
    bars = minimum_track_record(2 / math.sqrt(periods), 1 / math.sqrt(periods))
    assert bars / periods == pytest.approx(years, abs=5e-3)


def test_minimum_track_record_of_skewed_monthly_returns():
    months = minimum_track_record(2 / math.sqrt(12), 1 / math.sqrt(12), skew=-0.72, kurtosis=5.78)
    assert (months, months / 12) == (pytest.approx(59.9, abs=0.05), pytest.approx(4.99, abs=5e-3))
    assert minimum_track_record(0.1, 0.1) == math.inf


def test_after_the_minimum_track_record_the_probability_is_one_minus_alpha():
    for convention in ("2012", "2025"):
        bars = minimum_track_record(0.12, 0.02, -0.5, 6.0, alpha=0.01, convention=convention)
        assert probabilistic_sharpe(0.12, 0.02, bars, -0.5, 6.0, convention) == pytest.approx(0.99, abs=1e-9)


@pytest.mark.parametrize(
    ("trials", "approximate", "exact"),
    [(10, 1.5746, 1.5388), (45, 2.2356, 2.2077), (100, 2.5306, 2.5076), (1000, 3.2551, 3.2414)],
)
def test_expected_maximum_reference_numbers(trials, approximate, exact):
    assert significance.expected_max_normal(trials) == pytest.approx(approximate, abs=5e-5)
    assert significance.expected_max_normal(trials, exact=True) == pytest.approx(exact, abs=5e-5)


def test_expected_maximum_of_one_trial_is_zero_and_of_none_an_error():
    assert significance.expected_max_normal(1) == 0.0
    assert significance.expected_max_normal(2, exact=True) == pytest.approx(1 / math.sqrt(math.pi))
    with pytest.raises(ValueError, match="got 0"):
        significance.expected_max_normal(0)


@pytest.mark.parametrize(("trials", "years"), [(10, 2.5), (45, 5.0), (100, 6.4), (1000, 10.6)])
def test_minimum_backtest_reference_numbers(trials, years):
    assert significance.minimum_backtest_years(trials) == pytest.approx(years, abs=0.05)
    assert significance.minimum_backtest_years(trials, 2.0) == pytest.approx(years / 4, abs=0.0125)


# ---- overfitting


def pbo_oracle(x, blocks):
    """One split at a time, plain numpy."""
    parts = np.split(x, blocks)
    logits = []
    for chosen in itertools.combinations(range(blocks), blocks // 2):
        inside = np.concatenate([parts[i] for i in chosen])
        outside = np.concatenate([parts[i] for i in range(blocks) if i not in chosen])
        best = np.argmax(inside.mean(axis=0) / inside.std(axis=0))
        scores = outside.mean(axis=0) / outside.std(axis=0)
        rank = np.sum(scores <= scores[best]) / (x.shape[1] + 1)
        logits.append(math.log(rank / (1 - rank)))
    return logits


def noise(seed, bars=1000, candidates=100):
    return np.random.default_rng(seed).normal(size=(bars, candidates))


def test_overfitting_matches_one_split_at_a_time():
    x = noise(5, 120, 7)
    result = significance.backtest_overfitting(x, blocks=6)
    expected = pbo_oracle(x, 6)
    np.testing.assert_allclose(result.logits, expected, rtol=1e-12)
    assert result.probability == np.mean(np.array(expected) <= 0)


def test_sixteen_blocks_make_12870_splits_and_the_oldest_bars_are_left_out():
    x = noise(0, 330, 4)
    result = significance.backtest_overfitting(x)
    assert len(result.logits) == 12_870
    np.testing.assert_array_equal(significance.backtest_overfitting(x[10:]).logits, result.logits)


def test_overfitting_of_pure_noise_is_a_coin_flip_on_average():
    values = [significance.backtest_overfitting(noise(seed), blocks=10).probability for seed in range(60)]
    # 600 draws have mean 0.488 and standard deviation 0.16, so a mean of 60 has 0.021: 0.45 here, 0.526 elsewhere.
    assert np.mean(values) == pytest.approx(0.49, abs=0.063)
    assert max(values) - min(values) > 0.3  # one PBO alone says little


def test_overfitting_of_centred_columns_is_certain():
    x = noise(0)
    assert significance.backtest_overfitting(x - x.mean(axis=0), blocks=10).probability == pytest.approx(1.0, abs=0.01)


def test_overfitting_is_rare_when_one_candidate_has_skill():
    values = []
    for seed in range(10):
        x = noise(seed)
        x[:, 0] += 0.15
        values.append(significance.backtest_overfitting(x, blocks=10).probability)
    assert np.mean(values) == pytest.approx(0.10, abs=0.08)


def test_a_candidate_that_never_traded_counts_as_zero():
    x = noise(3, 200, 3)
    x[:, 0] = 0.0
    assert np.isfinite(significance.backtest_overfitting(x, blocks=4).logits).all()


@pytest.mark.parametrize(("shape", "blocks"), [((100,), 4), ((100, 1), 4), ((100, 3), 5), ((7, 3), 4)])
def test_overfitting_needs_candidates_and_blocks(shape, blocks):
    with pytest.raises(ValueError, match="candidates"):
        significance.backtest_overfitting(np.ones(shape), blocks=blocks)


# ---- bootstrap intervals


def coverage(simulations, bars, draws, sharpe=0.1):
    hits = 0
    for seed in range(simulations):
        interval = significance.sharpe_interval(autoregressive(seed, bars, sharpe), 1.0, draws=draws, seed=seed)
        hits += interval.low <= sharpe <= interval.high
    return hits / simulations


def test_sharpe_interval_of_dependent_returns_covers_the_truth():
    assert 0.88 <= coverage(simulations=80, bars=400, draws=200) <= 1.0


@pytest.mark.slow
def test_sharpe_interval_of_dependent_returns_covers_the_truth_in_95_of_100_cases():
    assert 0.92 <= coverage(simulations=500, bars=500, draws=1000) <= 0.97


def test_blocks_grow_with_dependence_and_widen_the_interval():
    dependent = significance.sharpe_interval(autoregressive(0, 2000, 0.1, phi=0.6), 1.0, draws=300)
    independent = significance.sharpe_interval(autoregressive(0, 2000, 0.1, phi=0.0), 1.0, draws=300)
    assert dependent.block_length > 2 * independent.block_length
    assert dependent.high - dependent.low > 1.4 * (independent.high - independent.low)


def test_interval_of_independent_normal_returns_matches_the_formula():
    x = np.random.default_rng(2).normal(0.1, 1.0, size=3000)
    interval = significance.sharpe_interval(x, 252.0, draws=1000)
    sharpe = x.mean() / x.std()
    error = 1.96 * math.sqrt((1 + sharpe**2 / 2) / 3000)
    assert interval.estimate == pytest.approx(sharpe * math.sqrt(252))
    assert interval.low == pytest.approx((sharpe - error) * math.sqrt(252), abs=0.12)
    assert interval.high == pytest.approx((sharpe + error) * math.sqrt(252), abs=0.12)


def test_the_seed_decides_the_interval():
    x = autoregressive(0, 200, 0.1)
    first, again, other = (significance.sharpe_interval(x, 1.0, draws=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_more_confidence_is_a_wider_interval():
    x = autoregressive(0, 200, 0.1)
    narrow, wide = (significance.sharpe_interval(x, 1.0, draws=300, confidence=c) for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_a_difference_of_paired_returns_is_more_certain_than_either():
    market = autoregressive(0, 1500, 0.0)
    better = market + 0.05 + 0.1 * np.random.default_rng(1).normal(size=1500)
    alone = significance.sharpe_interval(better, 1.0, draws=300)
    difference = significance.sharpe_difference_interval(better, market, 1.0, draws=300)
    assert difference.low > 0
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    reverse = significance.sharpe_difference_interval(market, better, 1.0, draws=300)
    assert (reverse.estimate, reverse.low) == pytest.approx((-difference.estimate, -difference.high))
    mean = significance.paired_difference_interval(better, market, 252.0, draws=300)
    assert mean.estimate == pytest.approx(252 * np.mean(better - market))
    assert mean.low < 252 * 0.05 < mean.high
    assert mean == significance.mean_interval(better - market, 252.0, draws=300)


def test_differences_without_a_difference_are_rarely_significant():
    rejected = 0
    for seed in range(60):
        market = autoregressive(seed, 300, 0.1)
        first, second = (market + np.random.default_rng([seed, i]).normal(size=300) for i in (1, 2))
        interval = significance.sharpe_difference_interval(first, second, 1.0, draws=200, seed=seed)
        rejected += not interval.low <= 0 <= interval.high
    assert rejected <= 8  # 3 expected at 5 %; more than 8 happen once in 300


def test_intervals_of_what_never_traded_are_undefined_and_rare_trades_are_not():
    assert all(math.isnan(v) for v in significance.sharpe_interval(np.zeros(100), 252.0))
    assert all(math.isnan(v) for v in significance.sharpe_interval([0.1, -0.1], 252.0))
    rare = np.zeros(300)
    rare[[10, 200]] = 0.01, -0.002
    assert np.isfinite(significance.sharpe_interval(rare, 252.0, draws=200)).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[0.1]],), {}, "finite net returns"),
        (([0.1, math.nan],), {}, "finite net returns"),
        ((np.ones(20),), {"draws": 10}, "at least 100 draws"),
        ((np.ones(20),), {"confidence": 95}, "between 0 and 1"),
    ],
)
def test_intervals_refuse_wrong_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        significance.sharpe_interval(*arguments, 252.0, **options)
    with pytest.raises(ValueError, match="shapes"):
        significance.sharpe_difference_interval(np.ones(20), np.ones(21), 252.0)


# ---- many seeds


def test_interquartile_mean_ignores_a_quarter_at_each_end():
    assert significance.interquartile_mean([[-1000.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 9999.0]]) == 3.5


def test_seeds_are_resampled_within_their_fold():
    folds = np.array([0.0, 10.0, 20.0, 30.0])
    no_noise = significance.interquartile_mean_interval(np.tile(folds, (10, 1)), draws=200)
    assert no_noise == (15.0, 15.0, 15.0, 1.0)  # differences between folds are no uncertainty
    scores = folds + np.random.default_rng(0).normal(size=(10, 4))
    noisy = significance.interquartile_mean_interval(scores, draws=1000)
    assert noisy.low < noisy.estimate < noisy.high
    assert noisy.high - noisy.low < 2.0
    assert noisy == significance.interquartile_mean_interval(scores, draws=1000)


def test_seed_intervals_cover_the_truth():
    hits = 0
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(size=(10, 5))
        interval = significance.interquartile_mean_interval(scores, draws=300, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="seeds >= 2"):
        significance.interquartile_mean_interval(np.ones((1, 5)))


@pytest.mark.parametrize("count", [10, 11, 60, 1_000, 5_001])
@pytest.mark.parametrize("memory", [0.0, 0.6, -0.5, 0.98])
def test_the_block_length_is_that_of_arch(count, memory):
    draws = np.random.default_rng(count).standard_normal(count)
    series = lfilter([1.0], [1.0, -memory], draws)
    with np.errstate(all="ignore"):
        expected = float(optimal_block_length(series)["stationary"].iloc[0])
    assert significance._block_length(series) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "lags"), [(10, 1), (10, 9), (10, 30), (700, 17), (5, 0)])
def test_the_standard_error_is_the_sum_over_lags(count, lags):
    influence = np.random.default_rng(count).standard_normal(count)
    variance = float(influence @ influence) / count
    for lag in range(1, min(lags, count - 1) + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1)) * float(influence[lag:] @ influence[:-lag]) / count
    assert significance._standard_error(influence, lags) == pytest.approx(math.sqrt(variance / count), rel=1e-12)
