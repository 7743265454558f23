"""Trade a segment of bars greedily, from flat, and keep the books: the whole segment in one call, or bar by bar.

The result of both is the same, decision for decision; `evaluate` is the fast one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_ppo.envs.account import Account
from lit_ppo.market.books import Ledger, account
from lit_ppo.market.rewards import log_reward, sampled_rewards
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.committee import Committee
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.scoring.performance import trading_metrics

CHUNK = 16_384  # bars encoded in one call: bounds the memory of a long segment


@dataclass(frozen=True)
class Evaluation:
    """What a policy did on the D decision bars of a segment.

    Attributes:
        actions: [D] int64 index of the position decided at each bar.
        positions: [D] float64 that position, share of notional.
        ledger: the books, float64.
        metrics: figures of `performance.trading_metrics`.
        score: mean reward per bar, log(1 + net return) in standard deviations of the train bars' price return: what
            the learner maximises.
        probability: [D] float64, in [0, 1]: what the policy gave that position, by the mean of its networks' logits.
    """

    actions: np.ndarray
    positions: np.ndarray
    ledger: Ledger
    metrics: dict[str, float]
    score: float
    probability: np.ndarray


def evaluate(
    policy: MarketPolicy | ObservationPolicy,
    market: MarketTensors,
    account_features: Sequence[str] = ("position",),
    close_at_end: bool = False,
) -> Evaluation:
    """Trade `market` with the most probable actions, from flat, after warming the LSTM up on its warm-up rows.

    Never changes the policy or draws a random number.

    Args:
        account_features: what the policy was trained to see of the account.
        close_at_end: pay for going flat with the last decision.
    """
    market = market.to(next(policy.parameters()).device)
    with torch.no_grad():
        if isinstance(policy, ObservationPolicy):
            decided = _decisions(_steps_of_observations(policy, market, account_features))
        elif policy.num_account:
            decided = _decisions(_with_account(policy, market, account_features))
        else:
            decided = _chain(_votes(policy, market), policy.flat_index)
    return _booked(policy, decided, market, close_at_end)


def evaluate_bar_by_bar(
    policy: MarketPolicy | ObservationPolicy,
    market: MarketTensors,
    account_features: Sequence[str] = ("position",),
    close_at_end: bool = False,
) -> Evaluation:
    """As `evaluate`, one bar at a time, as a live account would: slow, and the proof that nothing looks ahead."""
    market = market.to(next(policy.parameters()).device)
    steps = _steps_of_observations if isinstance(policy, ObservationPolicy) else _steps_of_market
    with torch.no_grad():
        decided = _decisions(steps(policy, market, account_features))  # type: ignore[arg-type]
    return _booked(policy, decided, market, close_at_end)


class _Decisions(NamedTuple):
    """Actions [D], and the votes [D, P] by which each was taken."""

    actions: Tensor
    votes: Tensor


def _decisions(steps: Iterator[tuple[Tensor, Tensor]]) -> _Decisions:
    return _Decisions(*map(torch.stack, zip(*steps, strict=True)))


def _booked(
    policy: MarketPolicy | ObservationPolicy, decided: _Decisions, market: MarketTensors, close_at_end: bool
) -> Evaluation:
    """Turn decisions on the decision bars of `market` into returns, metrics and score."""
    indices = decided.actions.cpu().numpy()
    taken = policy.positions.cpu().numpy()[indices]
    chosen = decided.actions.clone()
    if close_at_end:
        chosen[-1] = policy.flat_index  # what the books hold, whatever was decided
    probabilities = Committee(policy).probabilities(decided.votes.float())
    probability = probabilities.gather(-1, chosen.to(probabilities.device).unsqueeze(-1)).squeeze(-1)

    def of_decisions(name: str) -> np.ndarray:
        return market.decisions(name).cpu().numpy()

    ledger = account(
        taken,
        time=of_decisions("time"),
        price_return=of_decisions("price_return"),
        turnover_cost=of_decisions("turnover_cost"),
        carry_long=of_decisions("carry_long"),
        carry_short=of_decisions("carry_short"),
        close_at_end=close_at_end,
    )
    metrics = trading_metrics(ledger.net_return, ledger.position, market.bars_per_year, costs=ledger.cost)
    rewards = log_reward(torch.from_numpy(ledger.net_return), market.reward_scale)
    score = float(rewards.double().mean())
    return Evaluation(indices, ledger.position, ledger, metrics, score, probability.double().cpu().numpy())


def _votes(policy: MarketPolicy, market: MarketTensors) -> Tensor:
    """[D, P, P] votes on each decision bar: row = held position, column = next one."""
    committee = Committee(policy)
    return torch.cat([committee.votes(memories) for memories in _memories(committee, market)])[market.warmup :]


def _memories(committee: Committee, market: MarketTensors) -> Iterator[Tensor]:
    """Encoder outputs of all bars, [C, S, H] a chunk."""
    state = committee.initial_state()
    for features in market.features.split(CHUNK):
        memories, state = committee.remember(features, state)
        yield memories


def _chain(votes: Tensor, flat_index: int) -> _Decisions:
    """Follow the votes [D, P, P] from flat."""
    held, path = flat_index, [flat_index]
    for row in votes.argmax(-1).tolist():
        held = row[held]
        path.append(held)
    before = torch.tensor(path[:-1], device=votes.device)
    return _Decisions(torch.tensor(path[1:], dtype=torch.int64), votes[torch.arange(len(votes)), before])


def _with_account(
    policy: MarketPolicy, market: MarketTensors, account_features: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole-sequence memories, then the heads bar by bar: what they see of the account depends on what was done."""
    trader = _Trader(policy, market, account_features)
    for memories in torch.cat(list(_memories(trader.committee, market)))[market.warmup :]:
        yield trader.take_best(trader.votes(memories))


def _steps_of_market(
    policy: MarketPolicy, market: MarketTensors, account_features: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Account at the heads, one bar at a time."""
    trader = _Trader(policy, market, account_features)
    state = trader.committee.initial_state()
    for row, features in enumerate(market.features):
        memories, state = trader.committee.remember(features.unsqueeze(0), state)
        if row >= market.warmup:
            yield trader.take_best(trader.votes(memories[0]))


def _steps_of_observations(
    policy: ObservationPolicy, market: MarketTensors, account_features: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The classical recurrent policy sees its account, so that the encoder itself goes bar by bar; flat in warm-up."""
    state = policy.initial_state(1)
    trader = _Trader(policy, market, account_features)
    for row, features in enumerate(market.features):
        _, votes, _, state = policy.act(trader.observe(features), state)
        if row >= market.warmup:
            yield trader.take_best(votes[0])


class _Trader:
    """One account, taken through the decision bars of a market."""

    def __init__(
        self, policy: MarketPolicy | ObservationPolicy, market: MarketTensors, account_features: Sequence[str]
    ) -> None:
        self.policy, self.market, self.account_features = policy, market, account_features
        self.committee = Committee(policy)
        self.row = torch.tensor([market.warmup], device=market.features.device)
        held = torch.full_like(self.row, policy.flat_index)
        self.account = Account(held, policy.positions, policy.flat_index, market.reward_scale)

    def observe(self, features: Tensor) -> Tensor:
        """Market features [F] -> observation [1, D], as `envs.market.MarketEnv` makes them."""
        exposure = self.policy.positions[self.account.held].float().unsqueeze(-1)
        others = self.account.features(self.account_features)
        columns = [features.unsqueeze(0), exposure]
        return torch.cat(columns if others is None else [*columns, others], dim=-1)

    def votes(self, memories: Tensor) -> Tensor:
        """Votes [P] for the next position given the memories [S, H] of this bar."""
        return self.committee.votes_from(self.account.held, memories, self.account.features(self.account_features))

    def take(self, action: Tensor) -> Tensor:
        """Take the position `action` [1] at this bar and go on to the next; returns its index []."""
        _, returns = sampled_rewards(self.market, self.row, self.policy.positions, self.account.held, action)
        self.account.advance(action, returns)
        self.row = self.row + 1
        return action[0]

    def take_best(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        """Take the position with most votes [P]; returns its index [] and them."""
        return self.take(votes.argmax(-1, keepdim=True)), votes
