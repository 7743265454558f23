"""Which features of a train window can tell anything about the next return: the rest only gives noise to learn.

A window of 2,000 bars with 36 features holds a strategy for every taste. An LSTM finds them all, and they are gone on
the next bar. So before training, each feature must show on the train bars alone, against the same returns with random
signs, that some exponential average of it goes with the return that follows, or that it says when others do.
The same test asks whether up and down are alike: a market in which they are may be learnt from upside down as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_ppo.market.tensors import MarketTensors
from lit_ppo.seeding import derive_seed

HALF_LIVES = (0, 2, 5, 10, 20, 50, 100)  # bars; 0 is the feature itself
SIGN_FLIPS = 200
FAMILY_WISE_ERROR = 0.01
MAX_BARS = 100_000  # the newest bars of a longer window decide: enough to see any correlation above 0.02
VOLATILITY_BARS = 100.0
LARGEST_MOVE = 5.0  # volatilities
DRIFT = "drift"  # what the constant is called among the evidence of a side
DRIFT_ERROR = 0.005  # probability of seeing a drift where there is none
DRIFT_BARS, DRIFT_STRETCHES = 200, (8, 40)  # what a regime does not outlast; so many of them at the least and at most


class InputScreen(NamedTuple):
    """What the policy does with each feature, and whether the train bars have a side.

    Attributes:
        gain: [F] float32, 1 for a feature that the policy sees, 0 for one that it does not.
        mirror_sign: [F] float32, the feature's sign in a mirrored market: -1 odd, +1 even.
        score: [F] float32, correlation of the feature's best average with the part of the next return that features
            chosen before it leave unexplained, in standard errors; of a feature that passed by modulating: of its best
            product.
        threshold: [F] float32, the score that chance alone would pass with 1 % probability: in the main feature's own
            averages, or in those (or the products) of all other features together.
        modulates: [F] bool, whether the feature passed by its product with what others say, not by itself.
        sides: what may tell up from down -> its score and what that needs: the drift, and every feature that passed
            by itself and is declared even.
        years: length of the bars that were looked at.
    """

    gain: Tensor
    mirror_sign: Tensor
    score: Tensor
    threshold: Tensor
    modulates: Tensor
    sides: dict[str, tuple[float, float]]
    years: float

    @property
    def symmetric(self) -> bool:
        """Nothing on these bars tells up from down."""
        return all(score <= needed for score, needed in self.sides.values())

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """For the ledger of folds: passed, modulates: names; score, threshold: by name; years."""
        scores, thresholds = (dict(zip(names, x.tolist(), strict=True)) for x in (self.score, self.threshold))
        return {
            "passed": [name for name, gain in zip(names, self.gain.tolist(), strict=True) if gain > 0],
            "modulates": [name for name, does in zip(names, self.modulates.tolist(), strict=True) if does],
            "score": scores,
            "threshold": thresholds,
            "years": self.years,
        }

    def mirror_record(self, mirrored: bool) -> dict[str, Any]:
        """For the ledger of folds, where this decided about the mirror: mirrored; score, threshold: by name."""
        scores, thresholds = ({name: pair[k] for name, pair in self.sides.items()} for k in (0, 1))
        return {"mirrored": mirrored, "score": scores, "threshold": thresholds}


def mirror_line(record: Mapping[str, Any]) -> str:
    """An `InputScreen.mirror_record` in words: `not mirrored (drift 4.1, needs 3.5)`; "" where it is mirrored."""
    if record["mirrored"]:
        return ""
    score, needed = record["score"], record["threshold"]
    found = [f"{name} {score[name]:.1f}, needs {needed[name]:.1f}" for name in score if score[name] > needed[name]]
    return f"not mirrored ({'; '.join(found) or 'the positions are not symmetric'})"


def nearest(record: Mapping[str, Any]) -> str:
    """The feature of an `InputScreen.record` that passed by most, or came nearest to passing."""
    score, threshold = record["score"], record["threshold"]
    return max(score, key=lambda name: score[name] / max(threshold[name], 1e-12))


def passed_of(record: Mapping[str, Any]) -> str:
    """One fold's `InputScreen.record` in words: `2 of 5 features pass`."""
    return f"{len(record['passed'])} of {len(record['score'])} features pass"


def screen_line(record: Mapping[str, Any]) -> str:
    """The same with the nearest one: `0 of 5 features pass (best: log_return 1.9, needs 3.0)`."""
    best = nearest(record)
    return f"{passed_of(record)} (best: {best} {record['score'][best]:.1f}, needs {record['threshold'][best]:.1f})"


def keep_all_features(market: MarketTensors) -> InputScreen:
    """The screen that passes everything: declared parities, unknown ones as even (they do not change sign)."""
    parity = torch.tensor(market.feature_parity, dtype=torch.float32)
    ones = torch.ones(len(parity))
    years = market.num_decisions / market.bars_per_year
    return InputScreen(ones, torch.where(parity < 0, -1.0, 1.0), 0 * ones, 0 * ones, ones < 0, {}, years)


def screen_features(market: MarketTensors, seed: int) -> InputScreen:
    """Choose the features that say something about the next return, on these (train) bars only.

    Forward selection on the next return in the volatility known before it. First the main feature (the first that is
    declared odd, else the first: the bar's own return in the shipped sets) is tested against returns with random signs;
    kept, it explains what it can. Then the feature whose averages correlate most with the rest is tested against the
    most that such rests correlate with any feature, kept if it passes, and explains its share; and so on until none
    passes. A kept feature moves with the return, and so counts as odd unless it is declared even. Last, features that
    only modulate (time of day, volatility): the product of one with an average of the main feature, or with all that
    the kept ones say, is tested in the same way.

    A kept feature that is declared even tells up from down, and so does a drift, a mean of the returns themselves:
    `sides` has both. Where nothing passes and there is no drift, the policy sees nothing: a symmetric one stays flat.
    """
    first = max(market.warmup, len(market) - MAX_BARS)
    features = market.features[first:].double().cpu().numpy()  # [N, F]
    target = _in_volatility(market.price_return[first:].double().cpu().numpy())  # [N]
    bars, width = features.shape
    averages = _standardised_averages(features)  # [F, K, N]
    parity = np.array(market.feature_parity)
    main = int(np.argmax(parity < 0))  # the first where none is odd
    others = [column for column in range(width) if column != main]
    gain, score, threshold = np.zeros(width), np.zeros(width), np.zeros(width)
    centred = target - target.mean()
    threshold[main] = _threshold(averages[main], centred, derive_seed(seed, 0, "screening of the main feature"))
    rest = _select(averages, centred, [main], threshold, gain, score)
    if others:
        family = averages[others].reshape(-1, bars)
        threshold[others] = _threshold(family, rest, derive_seed(seed, 0, "screening of the others"))
        rest = _select(averages, rest, others, threshold, gain, score)
    moves = gain > 0
    sides = {DRIFT: _drift(target)}
    names = market.feature_names
    sides |= {names[x]: (float(score[x]), float(threshold[x])) for x in range(width) if parity[x] > 0 and moves[x]}
    modulates = np.zeros(width, bool)
    left = [column for column in others if not moves[column]]
    if left:
        products = _products(averages[left, 0], averages[main], centred - rest)
        least, found, best = (np.zeros(len(left)) for _ in range(3))
        least[:] = _threshold(products.reshape(-1, bars), rest, derive_seed(seed, 0, "screening of the products"))
        _select(products, rest, list(range(len(left))), least, found, best)
        for column, passed, own, needed in zip(left, found, best, least, strict=True):
            if passed:
                gain[column], score[column], threshold[column], modulates[column] = 1.0, own, needed, True
                gain[main] = 1.0  # whose meaning it changes
    moves[main] = True
    mirror_sign = np.where((parity < 0) | ((parity == 0) & moves), -1.0, 1.0)
    return InputScreen(
        torch.from_numpy(gain).float(),
        torch.from_numpy(mirror_sign).float(),
        torch.from_numpy(score).float(),
        torch.from_numpy(threshold).float(),
        torch.from_numpy(modulates),
        sides,
        bars / market.bars_per_year,
    )


def _in_volatility(returns: np.ndarray) -> np.ndarray:
    """Returns [N] in the volatility of the bars before each, within `LARGEST_MOVE`: wild times do not decide."""
    from scipy.signal import lfilter  # 1.5 s to import, and a policy that only decides screens nothing

    squares, rate = returns**2, 1 / VOLATILITY_BARS
    start = squares.mean()
    variance, _ = lfilter([rate], [1, rate - 1], squares, zi=[(1 - rate) * start])
    before = np.sqrt(np.append(start, variance[:-1]))
    scaled: np.ndarray = np.divide(returns, before, out=np.zeros_like(returns), where=before > 0)
    return np.clip(scaled, -LARGEST_MOVE, LARGEST_MOVE)


def _drift(target: np.ndarray) -> tuple[float, float]:
    """Mean of `target` [N] in standard errors that its stretches show, and what that needs: Student's t of their means.

    A regime or a trend within a stretch is no drift. A stretch has at least `DRIFT_BARS` bars, unless there are few.
    """
    from scipy.special import stdtrit

    fewest, most = DRIFT_STRETCHES
    number = min(max(len(target) // DRIFT_BARS, fewest), most)
    means = np.array([stretch.mean() for stretch in np.array_split(target, number)])
    error = float(means.std(ddof=1)) / math.sqrt(number)
    score = abs(float(means.mean())) / error if error > 1e-12 else 0.0
    return score, float(stdtrit(number - 1, 1 - DRIFT_ERROR / 2))


def _products(levels: np.ndarray, averages: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[M, N] levels of features times [K, N] averages of the main one and times what is known [N]: [M, K + 1, N]."""
    partners = np.vstack([averages, _unit(known)]).astype(np.float32)
    products: np.ndarray = _unit(levels[:, None] * partners)
    return products


def _select(
    averages: np.ndarray,
    rest: np.ndarray,
    columns: list[int],
    threshold: np.ndarray,
    gain: np.ndarray,
    score: np.ndarray,
) -> np.ndarray:
    """Fill in `gain` and `score` of the features `columns`, best first; returns what they leave of `rest` [N]."""
    left = list(columns)
    score[left] = _scores(averages[left], rest)
    while left:
        scores = _scores(averages[left], rest)
        best = int(scores.argmax())
        column = left.pop(best)
        if scores[best] <= threshold[column]:
            return rest
        score[column] = scores[best]
        gain[column] = 1.0
        rest = _residual(rest, averages[column])
    return rest


def _scores(averages: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Largest correlation of each feature's averages [M, K, N] with `rest` [N], in standard errors: [M]."""
    return np.abs(averages @ _unit(rest).astype(np.float32)).max(axis=1) / len(rest) ** 0.5


def _standardised_averages(features: np.ndarray) -> np.ndarray:
    """[N, F] -> [F, K, N]: exponential averages of every half-life, mean 0, standard deviation 1 (0 if constant)."""
    from scipy.signal import lfilter

    columns = features.T  # [F, N]
    averages = np.empty((columns.shape[0], len(HALF_LIVES), columns.shape[1]), dtype=np.float32)
    for k, half_life in enumerate(HALF_LIVES):
        keep = 0.5 ** (1 / half_life) if half_life else 0.0
        averages[:, k] = _unit(lfilter([1 - keep], [1, -keep], columns, axis=1) if keep else columns)
    return averages


def _unit(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)


def _residual(target: np.ndarray, regressors: np.ndarray) -> np.ndarray:
    """What least squares on `regressors` [K, N] leaves of `target` [N]."""
    coefficients, *_ = np.linalg.lstsq(regressors.T.astype(np.float64), target, rcond=None)
    return target - regressors.T @ coefficients


def _threshold(averages: np.ndarray, rest: np.ndarray, seed: int) -> float:
    """The largest |score| among useless features, exceeded with probability `FAMILY_WISE_ERROR`.

    Whoever knows nothing of the sign of the next return meets returns with random signs (the wild bootstrap: Liu 1988,
    Davidson and Flachaire 2008). They keep their sizes at their places, and with them quiet and wild times, which
    features share: shuffled returns lose that, and called 35 % of the windows of a gold file predictable, not 9 %.
    """
    numbers = np.random.default_rng(seed)
    signs = numbers.integers(0, 2, (SIGN_FLIPS, len(rest)), dtype=np.int8).astype(np.float32) * 2 - 1
    signs *= _unit(rest).astype(np.float32)  # [flips, N]
    largest = np.abs(signs @ averages.T).max(axis=1) / len(rest) ** 0.5
    return float(np.quantile(largest, 1 - FAMILY_WISE_ERROR))
