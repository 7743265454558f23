"""Collect one rollout: whole stretches of bars of an exogenous market, or steps of any vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lit_ppo.advantages import counterfactual_advantage, generalized_advantage
from lit_ppo.envs.account import Account
from lit_ppo.envs.protocol import VectorEnv
from lit_ppo.policy import MarketPolicy, ObservationPolicy, PolicyState
from lit_ppo.rewards import sampled_rewards, transition_rewards
from lit_ppo.types import MarketTensors


class Rollout(NamedTuple):
    """S sequences of T decisions, time-major, after `burn_in` steps that only warm the LSTM up.

    Attributes:
        observations: [burn_in + T, S, D] what the encoder read.
        episode_starts: [burn_in + T, S] bool: the LSTM is reset *before* that step; None: never.
        initial_state: the policy's state before observations[0].
        burn_in: steps encoded without gradient before the first decision.
        actions: [T, S] (or [T, S, A] continuous) sampled actions; None: every action was tried (counterfactual).
        held: [T, S] index of the held position (account at the heads, sampled), or None: every held position.
        account: [T, S, C] other account features at the heads, or None.
        log_probs, advantages, weights: [T, S], or [T, S, P, P] for every (held, next) position.
        values, value_targets, state_weights: [T, S], or [T, S, P] for every held position.

    `weights` and `state_weights` sum to T S over the rollout, so that their mean over any minibatch is about 1.
    """

    observations: Tensor
    episode_starts: Tensor | None
    initial_state: PolicyState
    burn_in: int
    actions: Tensor | None
    held: Tensor | None
    account: Tensor | None
    log_probs: Tensor
    advantages: Tensor
    weights: Tensor
    values: Tensor
    value_targets: Tensor
    state_weights: Tensor

    @property
    def num_sequences(self) -> int:
        return self.observations.shape[1]

    def select(self, sequences: Tensor) -> Rollout:
        """Return whole sequences: a shuffled step would meet another step's LSTM state."""
        chosen = {
            name: value[:, sequences] for name, value in self._asdict().items() if isinstance(value, torch.Tensor)
        }
        return self._replace(initial_state=self.initial_state.select(sequences), **chosen)


class MarketStretches(NamedTuple):
    """S stretches of `burn_in` + T + 1 consecutive bars; the last bar is only looked at, for its value."""

    features: Tensor  # [burn_in + T + 1, S, F], after the regularisers
    rows: Tensor  # [T, S] row of each decision in the market
    burn_in: int


@dataclass(frozen=True)
class FeatureNoise:
    """What the features of a rollout suffer, drawn once per rollout and the same in all its updates.

    Attributes:
        dropout: probability that a feature is hidden from one whole sequence; the others are scaled up.
        noise_std: standard deviation of the noise added to every feature of every bar.
    """

    dropout: float = 0.0
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1 or self.noise_std < 0:
            raise ValueError(f"Feature dropout must be in [0, 1) and noise >= 0, got {self.dropout}, {self.noise_std}")

    def apply(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """[T, S, F] -> [T, S, F]."""
        if self.dropout:
            _, num_sequences, width = features.shape
            kept = torch.rand(num_sequences, width, generator=generator, device=features.device) >= self.dropout
            features = features * (kept.to(features.dtype) / (1 - self.dropout))
        if self.noise_std:
            noise = torch.randn(features.shape, generator=generator, device=features.device, dtype=features.dtype)
            features = features + self.noise_std * noise
        return features


def draw_stretches(
    market: MarketTensors,
    num_sequences: int,
    num_steps: int,
    burn_in: int,
    noise: FeatureNoise,
    generator: torch.Generator,
) -> MarketStretches:
    """Draw random stretches of the market's decision bars, every start equally likely.

    Raises:
        ValueError: the market is shorter than one stretch.
    """
    needed = burn_in + num_steps + 1
    if len(market) < needed:
        raise ValueError(
            f"One stretch needs burn_in {burn_in} + num_steps {num_steps} + 1 = {needed} bars, but the train segment "
            f"has {len(market)}. Lower model.num_steps or model.burn_in, or raise data.train_size."
        )
    device = market.features.device
    first = torch.randint(
        len(market) - needed + 1, (num_sequences,), generator=generator, device=generator.device
    ).to(device)  # [S] row of the first burn-in bar
    index = first + torch.arange(needed, device=device).unsqueeze(1)  # [burn_in + T + 1, S]
    features = noise.apply(market.features[index], generator)
    return MarketStretches(features, index[burn_in:-1], burn_in)


@torch.no_grad()
def collect_counterfactual(
    policy: MarketPolicy,
    market: MarketTensors,
    stretches: MarketStretches,
    gamma: float,
    gae_lambda: float,
) -> Rollout:
    """Try every held position and every next position on every bar of the stretches.

    Half of the weight of the held positions is where the old policy would be, half is uniform, so that no held
    position is ever forgotten. Accounts start from every position with equal probability.
    """
    burn_in = stretches.burn_in
    state = policy.initial_state(stretches.features.shape[1])
    hidden, critic_hidden, _ = policy.encoder(stretches.features, state)
    log_probs = functional.log_softmax(policy.logits(hidden[burn_in:-1]).float(), dim=-1)  # [T, S, P, P]
    values = policy.values(critic_hidden[burn_in:]).float()  # [T + 1, S, P]
    rewards = transition_rewards(market, stretches.rows, policy.positions)  # [T, S, P, P]
    probs = log_probs.exp()
    num_positions = probs.shape[-1]
    uniform = torch.full_like(values[0], 1 / num_positions)
    estimate = counterfactual_advantage(rewards, probs, values, uniform, gamma, gae_lambda)
    held_weights = 0.5 * estimate.occupancy + 0.5 / num_positions  # d', [T, S, P]
    return Rollout(
        observations=stretches.features[:-1],
        episode_starts=None,
        initial_state=state,
        burn_in=burn_in,
        actions=None,
        held=None,
        account=None,
        log_probs=log_probs,
        advantages=estimate.advantages,
        weights=held_weights.unsqueeze(-1) * probs,
        values=values[:-1],
        value_targets=estimate.value_targets,
        state_weights=held_weights,
    )


@torch.no_grad()
def collect_sampled(
    policy: MarketPolicy,
    market: MarketTensors,
    stretches: MarketStretches,
    account_features: Sequence[str],
    gamma: float,
    gae_lambda: float,
    generator: torch.Generator,
) -> Rollout:
    """Trade one account along each stretch: recurrent PPO as the literature has it, with one encoder call.

    Accounts start with a random held position. Ruin ends an account (terminated); a fresh flat one goes on. The end of
    a stretch truncates: its future is worth V of the bar after it.
    """
    burn_in, rows = stretches.burn_in, stretches.rows
    num_steps, num_sequences = rows.shape
    state = policy.initial_state(num_sequences)
    hidden, critic_hidden, _ = policy.encoder(stretches.features, state)
    hidden, critic_hidden = hidden[burn_in:], critic_hidden[burn_in:]
    device = rows.device
    first = torch.randint(len(policy.positions), (num_sequences,), generator=generator, device=device)
    account = Account(first, policy.positions, policy.flat_index, market.reward_scale)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("held", "actions", "log_probs", "rewards", "values")}
    columns |= {"next_values": [], "terminated": [], "account": []}
    for t in range(num_steps):
        held, features = account.held, account.features(account_features)
        logits = policy.logits(hidden[t], held, features).float()
        actions = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        rewards, net_returns = sampled_rewards(market, rows[t], policy.positions, held, actions)
        columns["values"].append(policy.values(critic_hidden[t], held, features).float())
        terminated = account.advance(actions, net_returns)
        after = policy.values(critic_hidden[t + 1], account.held, account.features(account_features)).float()
        account.restart_where(terminated)
        columns["held"].append(held)
        columns["actions"].append(actions)
        columns["log_probs"].append(functional.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1))
        columns["rewards"].append(rewards)
        columns["next_values"].append(after)
        columns["terminated"].append(terminated)
        if features is not None:
            columns["account"].append(features)
    stacked = {name: torch.stack(column) for name, column in columns.items() if column}
    truncated = torch.zeros_like(stacked["terminated"])
    truncated[-1] = ~stacked["terminated"][-1]
    advantages, targets = generalized_advantage(
        stacked["rewards"],
        stacked["values"],
        stacked["next_values"],
        stacked["terminated"],
        truncated,
        gamma,
        gae_lambda,
    )
    ones = torch.ones_like(advantages)
    return Rollout(
        observations=stretches.features[:-1],
        episode_starts=None,
        initial_state=state,
        burn_in=burn_in,
        actions=stacked["actions"],
        held=stacked["held"],
        account=stacked.get("account"),
        log_probs=stacked["log_probs"],
        advantages=advantages,
        weights=ones,
        values=stacked["values"],
        value_targets=targets,
        state_weights=ones,
    )


class StepwiseCollector:
    """Steps a vector environment with the policy; remembers where it was between rollouts.

    The state before obs[0] is stored with the rollout; it carries across rollouts and is reset where an episode starts.
    """

    def __init__(self, env: VectorEnv, policy: ObservationPolicy) -> None:
        self.env, self.policy = env, policy
        self.observations: Tensor | None = None
        self.episode_starts: Tensor | None = None
        self.state: PolicyState | None = None

    def _begin(self) -> None:
        if self.observations is None:
            self.observations = self.env.reset()
            device = self.observations.device
            self.episode_starts = torch.ones(self.env.num_envs, dtype=torch.bool, device=device)
            self.state = self.policy.initial_state(self.env.num_envs)

    @torch.no_grad()
    def collect(self, num_steps: int, gamma: float, gae_lambda: float, generator: torch.Generator) -> Rollout:
        """Take `num_steps` steps in every environment."""
        self._begin()
        assert self.observations is not None and self.episode_starts is not None and self.state is not None
        initial_state = self.state
        columns: dict[str, list[Tensor]] = {
            name: [] for name in ("observations", "starts", "actions", "log_probs", "values", "rewards")
        }
        columns |= {"terminated": [], "truncated": [], "final_values": []}
        for t in range(num_steps):
            state = self.state.reset_where(self.episode_starts)  # before the step, never after it
            actions, log_probs, values, state = self.policy.act(self.observations, state, generator)
            transition = self.env.step(actions)
            ended = transition.terminated | transition.truncated
            last = t == num_steps - 1
            if last or bool(transition.truncated.any()):
                final_values = self.policy.state_values(transition.final_observations, state)
            else:
                final_values = torch.zeros_like(values)  # never read: see `next_values` below
            for name, value in (
                ("observations", self.observations),
                ("starts", self.episode_starts),
                ("actions", actions),
                ("log_probs", log_probs),
                ("values", values),
                ("rewards", transition.rewards),
                ("terminated", transition.terminated),
                ("truncated", transition.truncated),
                ("final_values", final_values),
            ):
                columns[name].append(value)
            self.observations, self.episode_starts, self.state = transition.observations, ended, state
        stacked = {name: torch.stack(column) for name, column in columns.items()}
        following = torch.cat([stacked["values"][1:], stacked["final_values"][-1:]])
        ended = stacked["terminated"] | stacked["truncated"]
        next_values = torch.where(ended, stacked["final_values"], following)
        advantages, targets = generalized_advantage(
            stacked["rewards"],
            stacked["values"],
            next_values,
            stacked["terminated"],
            stacked["truncated"],
            gamma,
            gae_lambda,
        )
        ones = torch.ones_like(advantages)
        return Rollout(
            observations=stacked["observations"],
            episode_starts=stacked["starts"],
            initial_state=initial_state,
            burn_in=0,
            actions=stacked["actions"],
            held=None,
            account=None,
            log_probs=stacked["log_probs"],
            advantages=advantages,
            weights=ones,
            values=stacked["values"],
            value_targets=targets,
            state_weights=ones,
        )

    def state_dict(self) -> dict:
        """Everything the next rollout depends on, as tensors, numbers, strings, lists and dicts."""
        self._begin()
        assert self.state is not None
        lstm = {
            name: {"hidden": part.hidden, "cell": part.cell}
            for name, part in self.state._asdict().items()
            if part is not None
        }
        return {
            "observations": self.observations,
            "episode_starts": self.episode_starts,
            "lstm": lstm,
            "env": self.env.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.env.load_state_dict(state["env"])
        self._begin_from(state)

    def _begin_from(self, state: dict) -> None:
        fresh = self.policy.initial_state(self.env.num_envs)
        device = fresh.policy.hidden.device
        self.observations = state["observations"].to(device)
        self.episode_starts = state["episode_starts"].to(device)
        parts = {
            name: type(fresh.policy)(part["hidden"].to(device), part["cell"].to(device))
            for name, part in state["lstm"].items()
        }
        self.state = PolicyState(**parts)


