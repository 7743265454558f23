"""Trade a segment of bars greedily, from flat, and keep the books: the whole segment in one call, or bar by bar.

The result of both is the same, decision for decision; `evaluate` is the fast one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_ppo.envs.account import Account
from lit_ppo.market.books import Ledger, account
from lit_ppo.market.rewards import log_reward, sampled_rewards
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.networks import PolicyState
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
    """

    actions: np.ndarray
    positions: np.ndarray
    ledger: Ledger
    metrics: dict[str, float]
    score: float


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
            actions = torch.stack(list(_steps_of_observations(policy, market, account_features)))
        elif policy.num_account:
            actions = _with_account(policy, market, account_features)
        else:
            actions = _chain(decision_table(policy, market), policy.flat_index)
    return keep_books(actions, policy.positions, market, close_at_end)


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
        actions = torch.stack(list(steps(policy, market, account_features)))  # type: ignore[arg-type]
    return keep_books(actions, policy.positions, market, close_at_end)


def keep_books(actions: Tensor, positions: Tensor, market: MarketTensors, close_at_end: bool = False) -> Evaluation:
    """Turn actions [D] on the decision bars of `market` into returns, metrics and score."""
    indices = actions.cpu().numpy()
    taken = positions.cpu().numpy()[indices]

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
    return Evaluation(indices, ledger.position, ledger, metrics, float(rewards.double().mean()))


@torch.no_grad()
def decision_table(policy: MarketPolicy, market: MarketTensors) -> Tensor:
    """[D, P] int64: the position that the policy takes next on each decision bar, for every held position."""
    table = [sum_of_votes(policy, hidden).argmax(-1) for hidden in _memories(policy, market)]
    return torch.cat(table)[market.warmup :]


def views_of_market(policy: MarketPolicy, features: Tensor) -> Tensor:
    """[C, F] -> [C, K V, F]: what each network sees, V times: the market, and the market upside down if so trained."""
    views = [features, features * policy.mirror_sign] if policy.mirrored else [features]
    return torch.stack(views, dim=1).repeat(1, policy.num_networks, 1)


def _initial_state(policy: MarketPolicy) -> PolicyState:
    return policy.initial_state(policy.num_networks * (2 if policy.mirrored else 1))


def _memories(policy: MarketPolicy, market: MarketTensors) -> Iterator[Tensor]:
    """Encoder outputs of all bars, [C, K V, H] a chunk."""
    state = _initial_state(policy)
    for features in market.features.split(CHUNK):
        encoded, state = policy.encode(views_of_market(policy, features), state)
        yield encoded.policy


def sum_of_votes(
    policy: MarketPolicy, hidden: Tensor, held: Tensor | None = None, seen: Tensor | None = None
) -> Tensor:
    """Sum of the networks' logits: [..., K V, H] -> [..., P, P], or [K V, H] -> [P] for one held position [1].

    A mirrored view's logits are turned back: its long is our short. The sum makes the decision exactly symmetric.
    """
    if held is None:
        logits = policy.logits(hidden)  # [..., K V, P, P]
        if policy.mirrored:
            views = logits.unflatten(-3, (policy.num_networks, 2))
            return views.select(-3, 0).sum(-3) + views.select(-3, 1).sum(-3).flip(-1, -2)
        return logits.sum(-3)
    last = len(policy.positions) - 1
    sides = torch.cat([held, last - held]) if policy.mirrored else held
    seen = None if seen is None else seen.expand(hidden.shape[0], -1)
    logits = policy.logits(hidden, sides.repeat(policy.num_networks), seen)  # [K V, P]
    if policy.mirrored:
        views = logits.unflatten(0, (policy.num_networks, 2))
        return views[:, 0].sum(0) + views[:, 1].sum(0).flip(-1)
    return logits.sum(0)


def _chain(table: Tensor, flat_index: int) -> Tensor:
    """Follow a table [D, P] of next positions from flat: [D]."""
    held, actions = flat_index, []
    for row in table.tolist():
        held = row[held]
        actions.append(held)
    return torch.tensor(actions, dtype=torch.int64)


def _with_account(policy: MarketPolicy, market: MarketTensors, account_features: Sequence[str]) -> Tensor:
    """Whole-sequence memories, then the heads bar by bar: what they see of the account depends on what was done."""
    trader = _Trader(policy, market, account_features)
    hidden = torch.cat(list(_memories(policy, market)))[market.warmup :]
    return torch.stack([trader.take(trader.vote(memory)) for memory in hidden])


def _steps_of_market(policy: MarketPolicy, market: MarketTensors, account_features: Sequence[str]) -> Iterator[Tensor]:
    """Account at the heads, one bar at a time."""
    state = _initial_state(policy)
    trader = _Trader(policy, market, account_features)
    for row, features in enumerate(market.features):
        encoded, state = policy.encode(views_of_market(policy, features.unsqueeze(0)), state)
        if row >= market.warmup:
            yield trader.take(trader.vote(encoded.policy[0]))


def _steps_of_observations(
    policy: ObservationPolicy, market: MarketTensors, account_features: Sequence[str]
) -> Iterator[Tensor]:
    """The classical recurrent policy sees its account, so that the encoder itself goes bar by bar; flat in warm-up."""
    state = policy.initial_state(1)
    trader = _Trader(policy, market, account_features)
    for row, features in enumerate(market.features):
        action, _, _, state = policy.act(trader.observe(features), state)
        if row >= market.warmup:
            yield trader.take(action)


class _Trader:
    """One account, taken through the decision bars of a market."""

    def __init__(
        self, policy: MarketPolicy | ObservationPolicy, market: MarketTensors, account_features: Sequence[str]
    ) -> None:
        self.policy, self.market, self.account_features = policy, market, account_features
        self.row = torch.tensor([market.warmup], device=market.features.device)
        held = torch.full_like(self.row, policy.flat_index)
        self.account = Account(held, policy.positions, policy.flat_index, market.reward_scale)

    def observe(self, features: Tensor) -> Tensor:
        """Market features [F] -> observation [1, D], as `envs.market.MarketEnv` makes them."""
        exposure = self.policy.positions[self.account.held].float().unsqueeze(-1)
        others = self.account.features(self.account_features)
        columns = [features.unsqueeze(0), exposure]
        return torch.cat(columns if others is None else [*columns, others], dim=-1)

    def vote(self, memory: Tensor) -> Tensor:
        """Most probable next position [1] given the memories [K V, H] of this bar."""
        seen = self.account.features(self.account_features)
        return sum_of_votes(self.policy, memory, self.account.held, seen).argmax(-1, keepdim=True)  # type: ignore[arg-type]

    def take(self, action: Tensor) -> Tensor:
        """Take the position `action` [1] at this bar and go on to the next; returns its index []."""
        _, returns = sampled_rewards(self.market, self.row, self.policy.positions, self.account.held, action)
        self.account.advance(action, returns)
        self.row = self.row + 1
        return action[0]
