"""Look-ahead audit: does anything known at the close of bar t change when the bars after t do?

    features, scaler, costs, actions, equity      equal up to t, bit for bit, when the bars after t are cut off, noise,
                                                  times 1,000 or NaN, at many random t; costs are never below 0
    fills                                         a decision at t is executed at a price that bars <= t do not hold
    warm-up                                       bars that each feature really needs, against what it declares;
                                                  bars that the LSTM needs until its actions do not tell where it began
    rows                                          what each role of each fold read, from the accesses themselves
    selection                                     weights trained and chosen are the same when the test bars are noise

The datamodule comes as an argument and is asked for the same folds over changed bars. What holds at the sampled t is
shown, not proven, for the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from lit_ppo.market.tensors import BarRange, Fold, FoldData, MarketTensors
from lit_ppo.recipe import Policy
from lit_ppo.scoring.evaluation import evaluate

SUBJECTS = ("features", "scaler", "costs", "actions", "equity")
WARMUP_TOLERANCE = 1e-6  # standard deviations of the feature: where a difference counts as none
MEMORY_LADDER = (0, 10, 25, 50, 100, 200, 400, 800, 1600)  # bars of warm-up that are tried
MEMORY_DECISIONS = 300  # compared after each start
MEMORY_TOLERANCE = 0.01  # share of decisions that may depend on where the history begins: near ties always do
MONEY = ("price_return", "turnover_cost", "carry_long", "carry_short", "fill_price")


class AuditedData(Protocol):
    """What the audit asks of a datamodule."""

    folds: list[Fold]
    row_accesses: dict[int, dict[str, BarRange]]
    bars: Any

    @property
    def feature_matrix(self) -> np.ndarray:
        """[N, F] features of every bar, not scaled."""

    @property
    def feature_warmups(self) -> dict[str, int]:
        """Bars that each feature declares to need."""

    @property
    def running_features(self) -> set[str]:
        """Features whose state runs from the first bar of the file."""

    def own_values(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """[N] what the user's own features and costs make of these bars, by name."""

    def over(self, frame: pd.DataFrame) -> AuditedData:
        """The same settings and folds over other bars."""

    def fold_data(self, index: int) -> FoldData:
        """Train and validation bars of a fold."""

    def test_segment(self, index: int) -> MarketTensors:
        """Test bars of a fold."""


@dataclass(frozen=True)
class Finding:
    """One line of the audit: what was looked at, what was seen, whether it is as it must be, and what it is if not.

    `holds` is None where nothing could be measured: no proof, and no fault.
    """

    check: str
    subject: str
    detail: str
    holds: bool | None
    fault: str = "LEAK"


def _cut(frame: pd.DataFrame, t: int, draws: np.random.Generator) -> pd.DataFrame:
    return frame.iloc[: t + 1]


def noise_after(frame: pd.DataFrame, t: int, draws: np.random.Generator) -> pd.DataFrame:
    """Every number after row t times its own random factor between 1/2 and 2."""
    return _scaled(frame, t, lambda shape: np.exp2(draws.uniform(-1, 1, shape)))


def _times_1000(frame: pd.DataFrame, t: int, draws: np.random.Generator) -> pd.DataFrame:
    return _scaled(frame, t, lambda shape: np.full(shape, 1000.0))


def _nan(frame: pd.DataFrame, t: int, draws: np.random.Generator) -> pd.DataFrame:
    return _scaled(frame, t, lambda shape: np.full(shape, np.nan))


def _scaled(frame: pd.DataFrame, t: int, factor: Callable[[tuple[int, ...]], np.ndarray]) -> pd.DataFrame:
    changed = frame.copy()
    columns = [name for name in frame.columns if name != "time"]
    values = changed[columns].to_numpy(np.float64, copy=True)
    values[t + 1 :] *= factor(values[t + 1 :].shape)
    changed[columns] = values
    return changed


ALTERATIONS = {"cut": _cut, "noise": noise_after, "times 1,000": _times_1000, "NaN": _nan}


@dataclass(frozen=True)
class _Known:
    """What fold `fold` knows: the test segment's scaler, actions and books, from one set of bars."""

    scaler: dict[str, list[float]]
    reward_scale: float
    market: MarketTensors
    actions: np.ndarray
    equity: np.ndarray

    @classmethod
    def of(cls, data: AuditedData, fold: int, policy: Policy, account_features: Sequence[str]) -> _Known:
        market = data.test_segment(fold)
        # The books refuse holes and, where noise lets a low exceed a high, costs below 0; only what lies before is
        # compared.
        whole: dict[str, Any] = {name: torch.nan_to_num(getattr(market, name), nan=0.0) for name in MONEY}
        whole["turnover_cost"] = whole["turnover_cost"].clamp(min=0.0)
        with np.errstate(all="ignore"):
            traded = evaluate(policy, replace(market, **whole), account_features)
        scaler = data.fold_data(fold).scaler
        return cls(scaler, market.reward_scale, market, traded.actions, traded.ledger.equity)


def lively(
    policy: Policy, market: MarketTensors, account_features: Sequence[str], generator: torch.Generator
) -> Policy:
    """A copy of a policy with random weights that changes its position on `market`.

    Where information can flow is a matter of the network and not of its weights; an agent that seldom trades would
    pass every test of its actions.

    Raises:
        RuntimeError: 50 draws of weights never made it trade.
    """
    for _ in range(50):
        wild = copy.deepcopy(policy)
        with torch.no_grad():
            for name, parameter in wild.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
                # No constant preference: without biases and the reluctance to trade, the features decide.
                parameter.copy_(parameter + noise if parameter.ndim > 1 and "bias" not in name else 0.0 * parameter)
        actions = evaluate(wild, market, account_features).actions
        if np.mean(actions != wild.flat_index) >= 0.1 and np.mean(actions[1:] != actions[:-1]) >= 0.05:
            return wild
    raise RuntimeError("The audit found no random weights with which this model trades: its actions were not tested")


def refuse_lookahead(data: AuditedData, points: int = 6) -> None:
    """Look before a run whether the user's own features and costs look ahead; the whole audit takes trainings.

    Args:
        data: set up.
        points: bars t after which everything is cut off, and is noise: one near the end, the others anywhere.

    Raises:
        ValueError: a value of bars <= t changes with the bars after t; names it and the first such bar.
    """
    frame = data.bars.frame
    before = data.own_values(frame)
    if not before:
        return
    draws = np.random.default_rng(0)
    for t in [len(frame) - 2, *draws.integers(len(frame) // 4, len(frame) - 2, points - 1).tolist()]:
        for alter in (_cut, noise_after):
            after = data.own_values(alter(frame, t, draws))
            for name, values in before.items():
                then, now = values[: t + 1], after[name][: t + 1]
                differs = ~((then == now) | (np.isnan(then) & np.isnan(now)))
                if differs.any():
                    row = int(differs.argmax())
                    raise ValueError(
                        f"{name} looks ahead: its value at bar {row} ({frame['time'].iloc[row]}) is {then[row]:.6g}, "
                        f"and {now[row]:.6g} where the bars after bar {t} are others. Row t of what it gives may be "
                        "made of rows up to t only"
                    )


def prefix_findings(
    data: AuditedData,
    policy: Policy,
    account_features: Sequence[str],
    points: int,
    draws: np.random.Generator,
    delay: int,
) -> list[Finding]:
    """Change the bars after t in four ways, at `points` random t of the test segments; nothing up to t may change.

    Args:
        data: set up.
        policy: whose actions are compared.
        account_features: what it sees of the account.
        points: random t, with replacement where there are fewer bars.
        draws: of t and of the noise.
        delay: bars between a decision and its fill; equity is compared where both its fills are known.
    """
    bars = np.concatenate([np.arange(*fold.test) for fold in data.folds])
    owner = np.concatenate([np.full(len(fold.test), fold.index) for fold in data.folds])
    chosen = np.sort(draws.choice(len(bars), size=points, replace=points > len(bars)))
    wrong: dict[tuple[str, str], list[str]] = {(how, what): [] for how in ALTERATIONS for what in SUBJECTS}
    same_bar: list[int] = []
    trading = []
    before: tuple[int, _Known] | None = None
    frame, features = data.bars.frame, data.feature_matrix
    for t, fold in zip(bars[chosen].tolist(), owner[chosen].tolist(), strict=True):
        if before is None or before[0] != fold:
            before = (fold, _Known.of(data, fold, policy, account_features))
        known = before[1]
        last = t - data.folds[fold].test.start  # decision number of bar t
        settled = max(last - delay, 0)  # decisions whose fill t and fill t+1 are prices of bars <= t
        trading.append(known.actions[last] != policy.flat_index)
        for how, alter in ALTERATIONS.items():
            other = data.over(alter(frame, t, draws))
            changed = _changed_columns(features[: t + 1], other.feature_matrix[: t + 1], data.feature_warmups)
            now = _Known.of(other, fold, policy, account_features)
            if changed:
                wrong[how, "features"].append(f"{', '.join(changed)} at t = {t}")
            if (now.scaler, now.reward_scale) != (known.scaler, known.reward_scale):
                wrong[how, "scaler"].append(f"fold {fold}, t = {t}")
            # of the fills in bars <= t
            costs = [of.market.decisions("turnover_cost")[: last + 1 - delay] for of in (known, now)]
            if not torch.equal(*costs):
                wrong[how, "costs"].append(f"fold {fold}, t = {t}")
            if not np.array_equal(now.actions[: last + 1], known.actions[: last + 1]):
                wrong[how, "actions"].append(f"fold {fold}, t = {t}")
            if not np.array_equal(now.equity[:settled], known.equity[:settled]):
                wrong[how, "equity"].append(f"fold {fold}, t = {t}")
            if how == "cut" and torch.isfinite(now.market.decisions("fill_price")[last]):
                same_bar.append(t)
    share = f"{100 * np.mean(trading):.0f} % of the decisions not flat"
    charged = torch.cat([data.test_segment(fold.index).decisions("turnover_cost") for fold in data.folds])
    least, most = float(charged.min()), float(charged.max())
    found = [
        Finding(f"future bars {how}", what, _verdict(places, points, share if what == "actions" else ""), not places)
        for (how, what), places in wrong.items()
    ]
    detail = (
        f"same-bar fill: decision t is executed at a price known at t, at {len(same_bar)} of {points} points, "
        f"first t = {same_bar[0]}; no account gets it"
        if same_bar
        else f"executed after the bar it was decided on, at {points} points"
    )
    cost = f"{1e4 * least:.4g} to {1e4 * most:.4g} bp of notional per unit of position changed"
    return [
        *found,
        Finding("costs", "never below 0", cost, least >= 0, "NEGATIVE"),
        Finding("fill", "price of decision t", detail, not same_bar),
    ]


def _verdict(places: Sequence[str], points: int, more: str) -> str:
    if places:
        return f"changed at {len(places)} of {points} points, first: {places[0]}"
    return f"bit-equal at {points} points" + (f"; {more}" if more else "")


def _changed_columns(before: np.ndarray, after: np.ndarray, names: dict[str, int]) -> list[str]:
    equal = ((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=0)
    return [name for name, same in zip(names, equal.tolist(), strict=True) if not same]


def warmup_findings(data: AuditedData, starts: int = 5) -> list[Finding]:
    """Start the file later, several times: how many bars does each feature need to give the value of the whole file?

    Args:
        data: set up.
        starts: later starts, spread over the first half of the bars.
    """
    frame, features, declared = data.bars.frame, data.feature_matrix, data.feature_warmups
    size = features[max(declared.values()) :].std(axis=0, dtype=np.float64)
    size[size == 0] = 1.0
    needed = np.zeros(len(declared), dtype=np.int64)
    for start in np.linspace(0, len(frame) // 2, starts + 1, dtype=int)[1:].tolist():
        later = data.over(frame.iloc[start:].reset_index(drop=True)).feature_matrix[: len(frame) - start]
        with np.errstate(invalid="ignore"):
            differs = ~(np.abs(later.astype(np.float64) - features[start:]) <= WARMUP_TOLERANCE * size)
        rows = len(differs) - np.argmax(differs[::-1], axis=0)
        needed = np.maximum(needed, np.where(differs.any(axis=0), rows, 0))
    return [
        Finding("warm-up", name, "its state runs from the first bar of the file: that is data", None)
        if name in data.running_features
        else Finding("warm-up", name, f"needs {need} bars, declares {bars}", need <= bars)
        for (name, bars), need in zip(declared.items(), needed.tolist(), strict=True)
    ]


def memory_finding(
    market: MarketTensors, policy: Policy, account_features: Sequence[str], warmup_bars: int, starts: int = 5
) -> Finding:
    """Warm the LSTM up from zeros over ever more bars before the same decisions: after how many are the actions those
    of a long history?

    Args:
        market: bars to start at; those before the start, at least a third, are the long history.
        policy: trained.
        account_features: what it sees of the account.
        warmup_bars: what the configuration gives every segment.
        starts: first decisions, spread over the middle third.
    """
    rows = len(market)
    tried = sorted(n for n in {*MEMORY_LADDER, warmup_bars} if n <= rows // 3)
    differ, decisions, active = dict.fromkeys(tried, 0), 0, 0
    for start in np.linspace(rows // 3, 2 * rows // 3, starts, dtype=int).tolist():
        end = min(start + MEMORY_DECISIONS, rows)
        long = evaluate(policy, _part(market, 0, start, end), account_features).actions
        decisions, active = decisions + len(long), active + int((long != policy.flat_index).sum())
        for bars in tried:
            short = evaluate(policy, _part(market, start - bars, start, end), account_features).actions
            differ[bars] += int((short != long).sum())
    last = max((bars for bars in tried if differ[bars]), default=-1)  # the longest that is not enough
    enough = next((f"after {bars} bars of warm-up" for bars in tried if bars > last), f"not even after {last} bars")
    at = max(bars for bars in tried if bars <= warmup_bars)
    if not active:
        detail = "the model stayed flat, so its memory decided nothing; more --timesteps may show it"
        return Finding("warm-up", "LSTM state", detail, None)
    share = differ[at] / decisions
    detail = f"equal actions {enough}; after {at} (data.warmup_bars {warmup_bars}) {100 * share:.1f} % differ; "
    detail += f"{100 * active / decisions:.0f} % of {decisions} decisions not flat"
    return Finding("warm-up", "LSTM state", detail, share <= MEMORY_TOLERANCE, "TOO SHORT")


def _part(market: MarketTensors, first: int, start: int, end: int) -> MarketTensors:
    """Rows first to end - 1; decisions begin at `start`."""
    names = ("features", "time", *MONEY)
    tensors: dict[str, Any] = {name: getattr(market, name)[first:end] for name in names}
    return replace(market, first_bar=market.first_bar + first, warmup=start - first, **tensors)


def row_findings(data: AuditedData, read_before_test: dict[str, BarRange]) -> list[Finding]:
    """Check what every role of every fold read.

    Args:
        data: set up; every fold's bars are read here.
        read_before_test: the accesses of fold 0 up to the end of its training, selection included.
    """
    wrong = []
    for fold in data.folds:
        data.fold_data(fold.index)
        data.test_segment(fold.index)
        roles = data.row_accesses[fold.index]
        for role, rows in roles.items():
            before = {"scaler": fold.validation, "train": fold.validation, "validation": fold.test}
            limit = before.get(role.removesuffix("_fills"))
            if limit is not None and rows.stop > limit.start:
                wrong.append(f"fold {fold.index}: {role} read bars {_span(rows)}, and must end before {limit.start}")
    early = sorted(role for role in read_before_test if role.startswith("test"))
    detail = f"{len(data.folds)} folds in order" if not wrong else f"{len(wrong)} overlaps, first: {wrong[0]}"
    asked = "read before the weights were chosen" if early else "first read after the weights were chosen"
    return [
        Finding("rows read", "train < validation < test", detail, not wrong),
        Finding("rows read", "test bars of fold 0", asked, not early),
    ]


def row_table(data: AuditedData) -> list[list[str]]:
    """What each role of each fold read: rows of fold, role, features of bars, prices of bars."""
    table = []
    for index, roles in sorted(data.row_accesses.items()):
        for role in ("scaler", "train", "validation", "test"):
            if role in roles:
                table.append([str(index), role, _span(roles[role]), _span(roles[f"{role}_fills"])])
    return table


def _span(rows: BarRange) -> str:
    return f"{rows.start}..{rows.stop - 1}"


def selection_finding(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> Finding:
    """Compare the chosen weights of two trainings of fold 0, the second with noise for its test bars."""
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    detail = f"{len(changed)} of {len(before)} tensors changed" if changed else "bit-equal weights"
    return Finding("test bars noise", "training and selection", detail, not changed)
