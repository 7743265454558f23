"""What a sceptic may believe about a run: evidence, and the one sentence that sums it up.

A verdict needs at least `LEAST_BETS` independent bets. An edge is found only if then the interval of the Sharpe ratio
lies above zero, the deflated Sharpe ratio, which pays for every configuration whose test result was looked at, is at
least `ENOUGH`, and so is the rank among random traders. Anything else is no edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.market.baselines import Percentile
from lit_ppo.oracles.optima import fraction_of_optimum, looks_ahead
from lit_ppo.scoring import significance
from lit_ppo.scoring.significance import Interval
from lit_ppo.words import plural

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
ENOUGH = 0.95  # probability that a deflated Sharpe ratio, and share of random traders that the agent, must reach
LEAST_BETS = 30  # with k equal wins in n bars the PSR's z tends to 2 sqrt(k) whatever n is: few bets prove nothing
_DAY = 86_400 * 10**9  # nanoseconds


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
        sharpe, mean: annual Sharpe ratio and mean net return a year (fraction), with intervals; nan without a trade,
            the ratio also below `LEAST_BETS`.
        probabilistic, deflated: probabilities that the true Sharpe ratio is above 0, and above what luck gives the
            best of `trials` worthless configurations (2012 form).
        trials: runs whose test result on these bars was looked at, this one included. Folds are stitched, not
            chosen among, and candidates are chosen on validation bars: neither are trials.
        kinds: of the trials, groups whose test returns move together: fewer than trials where settings hardly differ.
        deflated_kinds: as `deflated`, against the best of `kinds` worthless ones. The verdict goes by the stricter one.
        bets: see `independent_bets`.
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
    bets: float
    kinds: int
    deflated_kinds: float


class Verdict(NamedTuple):
    """kind: "edge", "none" or "loss"."""

    kind: str
    text: str
    reasons: list[str]


def independent_bets(positions: Floats, time: NDArray[np.int64]) -> float:
    """Effective number of independent bets: of round trips or of active days, whichever is more.

        (sum of r_i)^2 / sum of r_i^2,   r_i = sqrt(sum of position^2 over the bars of bet i)

    Bets of equal risk count fully, so k equal trades on k days are k bets; one large trade among tiny ones is about
    one. A position held for days is a bet a day: the market's returns of two days are independent.

    Args:
        positions: [D] after each decision; every fold closes its own.
        time: [D] open times of their bars, nanoseconds since 1970 UTC.

    Source: Kish 1965, "Survey Sampling", effective sample size.
    """
    active = positions != 0
    if not active.any():
        return 0.0
    side = np.sign(positions)
    opens = (side != 0) & (side != np.concatenate(([0.0], side[:-1])))
    groups = (np.cumsum(opens), np.unique(time // _DAY, return_inverse=True)[1])
    sizes = (np.sqrt(np.bincount(group[active], weights=positions[active] ** 2)) for group in groups)
    return max(float(r.sum() ** 2 / (r**2).sum()) for r in sizes)


def weigh(
    net_returns: Floats,
    bars_per_year: float,
    trials: int,
    *,
    bets: float,
    hold: Floats | None,
    rank: Percentile | None,
    oracle: Oracle | None,
    ruined: bool,
    seed: int,
    kinds: int | None = None,
) -> Evidence:
    """Compute the evidence.

    Args:
        net_returns: [D] stitched out of sample.
        bars_per_year: of the file's own calendar.
        trials: runs whose test result on these bars was looked at, this one included.
        bets: `independent_bets` of the run.
        hold: [D] net returns of buy and hold on the same bars.
        rank, oracle, ruined: see `Evidence`.
        seed: of the bootstrap.
        kinds: groups of trials whose returns move together; None: as many as trials.
    """
    kinds = trials if kinds is None else kinds
    settings = {"confidence": CONFIDENCE, "draws": significance.draws_for(net_returns), "seed": seed}
    found, count = significance.moments(net_returns), len(net_returns)
    probabilistic = deflated = deflated_kinds = math.nan
    track = math.inf
    sharpe = Interval(math.nan, math.nan, math.nan, math.nan)
    with ThreadPoolExecutor() as pool:  # the bootstraps are numpy's, which lets other threads run

        def ask(interval: Callable[..., Interval], *returns: NDArray[np.float64]) -> Future[Interval]:
            return pool.submit(interval, *returns, bars_per_year, **settings)

        mean = ask(significance.mean_interval, net_returns)
        difference = None if hold is None else ask(significance.paired_difference_interval, net_returns, hold)
        # From few bets these would be numbers without a meaning: one win in 500 bars has a PSR of 0.97.
        if bets >= LEAST_BETS and not math.isnan(found.sharpe):
            sharpe = significance.sharpe_interval(net_returns, bars_per_year, **settings)  # type: ignore[arg-type]
            shape = (found.skew, found.kurtosis)
            probabilistic = significance.probabilistic_sharpe(found.sharpe, 0.0, count, *shape)
            # The Sharpe ratios of worthless configurations scatter by chance alone: variance 1 / bars.
            spread = 1.0 / (count - 1)
            deflated, deflated_kinds = (
                significance.deflated_sharpe(found.sharpe, count, *shape, trials=number, trials_variance=spread)
                for number in (trials, kinds)
            )
            track = significance.minimum_track_record(found.sharpe, 0.0, *shape) / bars_per_year
    return Evidence(
        sharpe,
        mean.result(),
        probabilistic,
        deflated,
        trials,
        track,
        len(net_returns) / bars_per_year,
        None if difference is None else difference.result(),
        rank,
        oracle,
        ruined,
        bets,
        kinds,
        deflated_kinds,
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
    elif evidence.bets < LEAST_BETS:
        sentence = (
            f"Too few trades to say: {plural(round(evidence.bets), 'independent bet')} (round trips or active "
            f"days), and a verdict needs about {LEAST_BETS}."
        )
    elif math.isnan(sharpe.estimate):
        sentence = "Too few bars to say: returns that hardly differ have no Sharpe ratio."
    elif sharpe.high < 0 and evidence.probabilistic <= 1 - ENOUGH and not _beats_random(evidence.rank):
        kind, sentence = "loss", f"It loses money: {numbers}."
    elif sharpe.high < 0:
        sentence = f"No edge, and no agreement on a loss: {numbers}, but it did better than most random traders."
    elif sharpe.low > 0 and evidence.deflated >= ENOUGH and _beats_random(evidence.rank):
        kind, sentence = "edge", f"An edge: {numbers}; it survives the count of {plural(evidence.trials, 'trial')}."
    elif sharpe.low > 0 and evidence.deflated >= ENOUGH:
        sentence = f"No edge that can be told from luck: {numbers}, but "
        if evidence.rank is None:
            sentence += "it could not be compared with random traders."
        else:
            sentence += f"it did better than only {evidence.rank.percentile:.0f} % of random traders."
    elif sharpe.low > 0:
        best = plural(evidence.trials, "worthless trial")
        sentence = (
            f"No edge that can be told from luck: {numbers}, but "
            + (f"the best of {best}" if evidence.trials > 1 else "a worthless one")
            + " would often look like this."
        )
    else:
        sentence = f"No edge: indistinguishable from flat. A{numbers[1:]}."
    return Verdict(kind, sentence, _reasons(evidence))


def _beats_random(rank: Percentile | None) -> bool:
    return rank is not None and rank.percentile >= 100 * ENOUGH


def _between(interval: Interval, factor: float, digits: int, unit: str = "") -> str:
    estimate, low, high = (f"{factor * x:+.{digits}f}".replace("-", "−") for x in interval[:3])
    return f"{estimate}{unit} ({100 * CONFIDENCE:.0f} % interval {low} to {high}{unit})"


def _reasons(evidence: Evidence) -> list[str]:
    found = []
    if evidence.bets < LEAST_BETS:  # figures that few bets cannot carry are not evidence
        return [] if evidence.oracle is None else [_against(evidence.oracle)]
    if not math.isnan(evidence.mean.estimate):
        found.append(f"Mean net return a year, not compounded: {_between(evidence.mean, 100, 1, ' %')}.")
    if not math.isnan(evidence.deflated):
        found.append(
            f"Deflated Sharpe ratio {evidence.deflated:.3f} after {plural(evidence.trials, 'trial')}; "
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
    return f"{years:.1f} years" if years >= 0.25 else plural(max(1, round(365.25 * years)), "day")


def _against(oracle: Oracle) -> str:
    if oracle.nothing:
        return "In this synthetic market nothing can be earned: the optimum is never to trade."
    if math.isnan(oracle.error):
        return f"It earned {100 * oracle.fraction:.1f} % of the optimum of this synthetic market, on a single bar."
    return (
        f"It earned {100 * oracle.fraction:.1f} % (± {100 * oracle.error:.1f}, one standard error) of the optimum of "
        "this synthetic market, which is known by dynamic programming."
    )
