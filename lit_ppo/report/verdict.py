"""What a sceptic may believe about a run: evidence, and the one sentence that sums it up.

An edge is found only if the interval of the Sharpe ratio lies above zero AND the deflated Sharpe ratio, which pays for
every configuration that was looked at, is at least `ENOUGH`. Anything else is no edge.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.market.baselines import Percentile
from lit_ppo.oracles.optima import fraction_of_optimum, looks_ahead
from lit_ppo.scoring import significance
from lit_ppo.scoring.significance import Interval

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
ENOUGH = 0.95  # probability that a deflated Sharpe ratio must reach


class Oracle(NamedTuple):
    """A synthetic market's optimum against what was earned.

    Attributes:
        fraction: share of the optimum that was earned per bar.
        error: standard error of that share.
        optimum_return: optimal mean net return per bar, fraction of notional.
        leak: more was earned than can be: a look-ahead.
        nothing: the optimum is 0, never to trade.
    """

    fraction: float
    error: float
    optimum_return: float
    leak: bool
    nothing: bool


class Evidence(NamedTuple):
    """Everything the verdict rests on.

    Attributes:
        sharpe, mean: annual Sharpe ratio and mean net return a year (fraction), with intervals; nan without a trade.
        probabilistic, deflated: probabilities that the true Sharpe ratio is above 0, and above what luck gives the
            best of `trials` worthless configurations (2012 form).
        trials: configurations looked at: folds x candidates x seeds, from the ledger.
        track_years: years of this result that would be needed to exclude 0 (one-sided 5 %); inf if it is not above 0.
        years: length of the test, years.
        difference: mean net return a year above buy and hold; None when the fills are not on disk.
        rank: among random traders of matched turnover; None likewise.
        oracle: None on real bars.
        ruined: the account lost everything.
    """

    sharpe: Interval
    mean: Interval
    probabilistic: float
    deflated: float
    trials: int
    track_years: float
    years: float
    difference: Interval | None
    rank: Percentile | None
    oracle: Oracle | None
    ruined: bool


class Verdict(NamedTuple):
    """kind: "edge", "none" or "loss"."""

    kind: str
    sentence: str
    reasons: list[str]


def weigh(
    net_returns: Floats,
    bars_per_year: float,
    trials: int,
    *,
    hold: Floats | None,
    rank: Percentile | None,
    oracle: Oracle | None,
    ruined: bool,
    seed: int,
) -> Evidence:
    """Compute the evidence.

    Args:
        net_returns: [D] stitched out of sample.
        bars_per_year: of the file's own calendar.
        trials: every configuration that was looked at.
        hold: [D] net returns of buy and hold on the same bars.
        rank, oracle, ruined: see `Evidence`.
        seed: of the bootstrap.
    """
    settings = {"confidence": CONFIDENCE, "draws": significance.draws_for(net_returns), "seed": seed}
    found, count = significance.moments(net_returns), len(net_returns)
    probabilistic = deflated = math.nan
    track = math.inf
    if not math.isnan(found.sharpe):
        shape = (found.skew, found.kurtosis)
        probabilistic = significance.probabilistic_sharpe(found.sharpe, 0.0, count, *shape)
        # The Sharpe ratios of worthless configurations scatter by chance alone: variance 1 / bars.
        spread = 1.0 / (count - 1)
        deflated = significance.deflated_sharpe(found.sharpe, count, *shape, trials=trials, trials_variance=spread)
        track = significance.minimum_track_record(found.sharpe, 0.0, *shape) / bars_per_year
    difference = None
    if hold is not None:
        difference = significance.paired_difference_interval(net_returns, hold, bars_per_year, **settings)  # type: ignore[arg-type]
    return Evidence(
        significance.sharpe_interval(net_returns, bars_per_year, **settings),  # type: ignore[arg-type]
        significance.mean_interval(net_returns, bars_per_year, **settings),  # type: ignore[arg-type]
        probabilistic,
        deflated,
        trials,
        track,
        len(net_returns) / bars_per_year,
        difference,
        rank,
        oracle,
        ruined,
    )


def against_optimum(net_returns: Floats, optimum: float, scale: float) -> Oracle:
    """Compare with a known optimum.

    Args:
        net_returns: [D].
        optimum: best mean net reward per bar, in units.
        scale: fraction of notional that one unit is.
    """
    mean = float(net_returns.mean())
    error = float(net_returns.std(ddof=1)) / math.sqrt(len(net_returns)) if len(net_returns) > 1 else math.nan
    leak = looks_ahead(mean, error, optimum, scale)
    if optimum <= 0:
        return Oracle(math.nan, math.nan, 0.0, leak, True)
    return Oracle(fraction_of_optimum(mean, optimum, scale), error / scale / optimum, optimum * scale, leak, False)


def judge(evidence: Evidence, untraded: str = "") -> Verdict:
    """Say it in one sentence, and why.

    Args:
        evidence: what was measured.
        untraded: why nothing was traded; "" where something was.
    """
    if untraded:
        return Verdict("none", f"It never traded: there is nothing to judge. {untraded}", _reasons(evidence))
    sharpe, kind = evidence.sharpe, "none"
    numbers = f"annual Sharpe {_between(sharpe, 1.0, 2)} out of sample, after costs"
    if evidence.ruined:
        kind, sentence = "loss", "Ruined: the account lost everything out of sample."
    elif evidence.oracle is not None and evidence.oracle.leak:
        kind, sentence = (
            "loss",
            "Too good to be true: more was earned than this market offers. Look for a look-ahead leak.",
        )
    elif math.isnan(sharpe.estimate):
        sentence = "No edge: it hardly traded, so it is flat, and nothing can be measured."
    elif sharpe.high < 0:
        kind, sentence = "loss", f"It loses money: {numbers}."
    elif sharpe.low > 0 and evidence.deflated >= ENOUGH:
        kind, sentence = "edge", f"An edge: {numbers}; it survives the count of {evidence.trials} trials."
    elif sharpe.low > 0:
        sentence = (
            f"No edge that can be told from luck: {numbers}, but the best of {evidence.trials} worthless trials would "
            "often look like this."
        )
    else:
        sentence = f"No edge: indistinguishable from flat. A{numbers[1:]}."
    return Verdict(kind, sentence, _reasons(evidence))


def _between(interval: Interval, factor: float, digits: int, unit: str = "") -> str:
    estimate, low, high = (f"{factor * x:+.{digits}f}".replace("-", "−") for x in interval[:3])
    return f"{estimate}{unit} ({100 * CONFIDENCE:.0f} % interval {low} to {high}{unit})"


def _reasons(evidence: Evidence) -> list[str]:
    found = []
    if not math.isnan(evidence.mean.estimate):
        found.append(f"Mean net return a year, not compounded: {_between(evidence.mean, 100, 1, ' %')}.")
    if not math.isnan(evidence.deflated):
        found.append(
            f"Deflated Sharpe ratio {evidence.deflated:.3f} after {evidence.trials} trials; "
            f"{ENOUGH:.2f} would be convincing."
        )
    if evidence.oracle is not None:
        found.append(_against(evidence.oracle))
    if evidence.difference is not None and not math.isnan(evidence.difference.estimate):
        low, high = evidence.difference.low, evidence.difference.high
        word = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told apart from"
        found.append(f"It {word} buy and hold on the same bars: {_between(evidence.difference, 100, 1, ' %')} a year.")
    if evidence.rank is not None:
        found.append(
            f"It did better than {evidence.rank.percentile:.0f} % of {evidence.rank.draws:,} random traders with the "
            f"same exposure and turnover (p = {evidence.rank.p_value:.3f})."
        )
    if 0 < evidence.track_years < math.inf:
        needed = duration(evidence.track_years)
        found.append(f"Such results must go on for {needed} to exclude zero; this test has {duration(evidence.years)}.")
    return found


def duration(years: float) -> str:
    """A length of time in years, or in days when it is shorter than a quarter."""
    return f"{years:.1f} years" if years >= 0.25 else f"{max(1, round(365.25 * years))} days"


def _against(oracle: Oracle) -> str:
    if oracle.nothing:
        return "In this synthetic market nothing can be earned: the optimum is never to trade."
    return (
        f"It earned {100 * oracle.fraction:.1f} % (± {100 * oracle.error:.1f}, one standard error) of the optimum of "
        "this synthetic market, which is known by dynamic programming."
    )
