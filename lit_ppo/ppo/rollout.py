"""Collect one rollout: whole stretches of bars of an exogenous market, or steps of any vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lit_ppo.envs.account import Account
from lit_ppo.envs.protocol import MaskedEnv, VectorEnv
from lit_ppo.market.rewards import sampled_rewards, transition_rewards
from lit_ppo.market.stretches import MarketStretches
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.encoder import EncoderState, state_like
from lit_ppo.nets.networks import Encoded, PolicyState, Seen, select_sequences
from lit_ppo.nets.policy import AllActionOutputs, MarketPolicy, ObservationPolicy, SampledOutputs
from lit_ppo.ppo.advantages import counterfactual_advantage, generalized_advantage


class SampledRollout(NamedTuple):
    """S sequences of T decisions, one action sampled at each.

    Attributes:
        seen: what the policy saw.
        actions: [T, S], or [T, S, A] continuous ones.
        log_probs, advantages, values, value_targets: [T, S].
    """

    seen: Seen
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    values: Tensor
    value_targets: Tensor

    @property
    def weights(self) -> Tensor:
        """[T, S] of ones: every decision counts alike."""
        return torch.ones_like(self.advantages)

    @property
    def state_weights(self) -> Tensor:
        """[T, S] of ones."""
        return self.weights

    def select(self, sequences: Tensor) -> SampledRollout:
        """Return whole sequences: a shuffled step would meet another step's memory."""
        return select_sequences(self, sequences)

    def evaluate(self, policy: MarketPolicy | ObservationPolicy) -> SampledOutputs:
        """The same decisions under the policy's current weights."""
        return policy.sampled(self.seen, self.actions)


class AllActionRollout(NamedTuple):
    """S sequences of T decisions, every next position tried from every held one (counterfactual).

    Attributes:
        seen: what the policy saw; no held position, they are all there.
        log_probs, advantages, weights: [T, S, P, P], row = held position, column = next one.
        values, value_targets, state_weights: [T, S, P].

    `weights` and `state_weights` sum to T S over the rollout, so that their mean over any minibatch is about 1.
    """

    seen: Seen
    log_probs: Tensor
    advantages: Tensor
    weights: Tensor
    values: Tensor
    value_targets: Tensor
    state_weights: Tensor

    def select(self, sequences: Tensor) -> AllActionRollout:
        """Return whole sequences: a shuffled step would meet another step's memory."""
        return select_sequences(self, sequences)

    def evaluate(self, policy: MarketPolicy) -> AllActionOutputs:
        """The same decisions under the policy's current weights."""
        return policy.every_action(self.seen)


Rollout = SampledRollout | AllActionRollout


def draw_stretches(
    policy: MarketPolicy,
    market: MarketTensors,
    num_sequences: int,
    num_steps: int,
    burn_in: int,
    mirror: bool,
    hidden_dropout: float,
    generator: torch.Generator,
    random_start: bool = True,
) -> MarketStretches:
    """Draw random stretches of the train bars, every start equally likely; each network of the policy sees them all.

    Args:
        mirror: turn a random half of the sequences upside down: odd features and positions change sign. A market's
            noise is not symmetric, what can be learnt about it mostly is, so the agent sees twice the bars.
        hidden_dropout: share of the encoder's outputs hidden from a whole sequence, drawn anew for each rollout
            (Gal and Ghahramani 2016, arXiv:1512.05287).
        random_start: False spreads the starts evenly over the bars instead of drawing them.

    Raises:
        ValueError: the market is shorter than one stretch.
    """
    needed = burn_in + num_steps + 1
    if len(market) < needed:
        raise ValueError(
            f"One stretch needs burn_in {burn_in} + num_steps {num_steps} + 1 = {needed} bars, but the train segment "
            f"has {len(market)}. Lower model.num_steps or model.burn_in, or raise data.train_size."
        )
    device, networks = market.features.device, policy.num_networks
    last = len(market) - needed
    if random_start:
        first = torch.randint(last + 1, (num_sequences,), generator=generator, device=generator.device)
    else:
        first = torch.linspace(0, last, num_sequences, dtype=torch.float64).long()
    index = first.to(device) + torch.arange(needed, device=device).unsqueeze(1)  # [burn_in + T + 1, S]
    index = index.repeat(1, networks)  # [.., K S], network by network
    features = market.features[index]
    signs = masks = None
    if mirror:
        flips = torch.rand(index.shape[1], generator=generator, device=device) < 0.5
        signs = torch.where(flips, -1.0, 1.0)
        features = torch.where(flips.unsqueeze(-1), features * policy.mirror_sign, features)
    if hidden_dropout:
        shape = (1, index.shape[1], policy.hidden_size)
        kept = torch.rand(shape, generator=generator, device=device) >= hidden_dropout
        masks = kept.float() / (1 - hidden_dropout)
    return MarketStretches(features, index[burn_in:-1], signs, masks, burn_in)


def _encode_stretches(policy: MarketPolicy, stretches: MarketStretches) -> tuple[Encoded, PolicyState]:
    """Memories of the T decisions and the bar after them [T + 1, S, H], and the state before the first decision."""
    state = policy.initial_state(stretches.features.shape[1])
    if stretches.burn_in:
        _, state = policy.encode(stretches.features[: stretches.burn_in], state)
    encoded, _ = policy.encode(stretches.features[stretches.burn_in :], state)
    if stretches.hidden_mask is not None:
        mask = stretches.hidden_mask
        encoded = encoded.map(lambda hidden: hidden * mask)
    return encoded, state


@torch.no_grad()
def collect_counterfactual(
    policy: MarketPolicy, market: MarketTensors, stretches: MarketStretches, gamma: float, gae_lambda: float
) -> AllActionRollout:
    """Try every held position and every next position on every bar of the stretches.

    Half of the weight of the held positions is where the old policy would be, half is uniform, so that no held
    position is ever forgotten. Accounts start from every position with equal probability.
    """
    encoded, state = _encode_stretches(policy, stretches)
    log_probs = functional.log_softmax(policy.logits(encoded.policy[:-1]), dim=-1)  # [T, S, P, P]
    values = policy.values(encoded.critic)  # [T + 1, S, P]
    rewards = transition_rewards(market, stretches.rows, policy.positions, stretches.mirror)  # [T, S, P, P]
    probs = log_probs.exp()
    num_positions = probs.shape[-1]
    uniform = torch.full_like(values[0], 1 / num_positions)
    estimate = counterfactual_advantage(rewards, probs, values, uniform, gamma, gae_lambda)
    held_weights = 0.5 * estimate.occupancy + 0.5 / num_positions  # d', [T, S, P]
    seen = Seen(stretches.features[stretches.burn_in : -1], state, hidden_mask=stretches.hidden_mask)
    return AllActionRollout(
        seen=seen,
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
) -> SampledRollout:
    """Trade one account along each stretch: recurrent PPO as the literature has it, with one encoder call.

    Accounts start with a random held position. Ruin ends an account (terminated); a fresh flat one goes on. The end of
    a stretch truncates: its future is worth V of the bar after it.
    """
    rows = stretches.rows
    num_steps, num_sequences = rows.shape
    encoded, state = _encode_stretches(policy, stretches)
    device = rows.device
    first = torch.randint(len(policy.positions), (num_sequences,), generator=generator, device=device)
    account = Account(first, policy.positions, policy.flat_index, market.reward_scale)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("held", "actions", "log_probs", "rewards", "values")}
    columns |= {"next_values": [], "terminated": [], "account": []}
    for t in range(num_steps):
        held, features = account.held, account.features(account_features)
        log_probs = functional.log_softmax(policy.logits(encoded.policy[t], held, features), dim=-1)  # [S, P]
        actions = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(-1)
        rewards, net_returns = sampled_rewards(market, rows[t], policy.positions, held, actions, stretches.mirror)
        columns["values"].append(policy.values(encoded.critic[t], held, features))
        terminated = account.advance(actions, net_returns)
        after = policy.values(encoded.critic[t + 1], account.held, account.features(account_features))
        account.restart_where(terminated)
        columns["held"].append(held)
        columns["actions"].append(actions)
        columns["log_probs"].append(log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1))
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
    seen = Seen(
        stretches.features[stretches.burn_in : -1],
        state,
        hidden_mask=stretches.hidden_mask,
        held=stacked["held"],
        account=stacked.get("account"),
    )
    return SampledRollout(
        seen, stacked["actions"], stacked["log_probs"], advantages, stacked["values"], value_targets=targets
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
    def collect(self, num_steps: int, gamma: float, gae_lambda: float, generator: torch.Generator) -> SampledRollout:
        """Take `num_steps` steps in every environment."""
        self._begin()
        assert self.observations is not None
        assert self.episode_starts is not None
        assert self.state is not None
        initial_state = self.state
        names = ("observations", "starts", "actions", "parameters", "hidden", "rewards", "terminated", "truncated")
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        masks: list[Tensor] = []
        ahead: dict[int, tuple[EncoderState, Tensor]] = {}  # step: memory after it, final observations it led to
        for t in range(num_steps):
            state = self.state.reset_where(self.episode_starts)  # before the step, never after it
            mask = self.env.action_mask if isinstance(self.env, MaskedEnv) else None
            if mask is not None:
                masks.append(mask)
            actions, parameters, hidden, state = self.policy.act(self.observations, state, generator, mask)
            transition = self.env.step(actions)
            if t == num_steps - 1 or bool(transition.truncated.any()):
                ahead[t] = state.policy, transition.final_observations
            seen = (self.observations, self.episode_starts, actions, parameters, hidden)
            step = (*seen, transition.rewards, transition.terminated, transition.truncated)
            for name, value in zip(names, step, strict=True):
                columns[name].append(value)
            self.observations, self.state = transition.observations, state
            self.episode_starts = transition.terminated | transition.truncated
        stacked = {name: torch.stack(column) for name, column in columns.items()}
        log_probs, _ = self.policy.log_probs(stacked["parameters"], stacked["actions"])
        values, final_values, critic_state = self._values(stacked, initial_state, ahead)
        self.state = self.state._replace(critic=critic_state)
        following = torch.cat([values[1:], final_values[-1:]])
        ended = stacked["terminated"] | stacked["truncated"]
        next_values = torch.where(ended, final_values, following)
        advantages, targets = generalized_advantage(
            stacked["rewards"],
            values,
            next_values,
            stacked["terminated"],
            stacked["truncated"],
            gamma,
            gae_lambda,
        )
        return SampledRollout(
            Seen(
                stacked["observations"],
                initial_state,
                stacked["starts"],
                action_mask=torch.stack(masks) if masks else None,
            ),
            stacked["actions"],
            log_probs,
            advantages,
            values,
            value_targets=targets,
        )

    def _values(
        self, stacked: dict[str, Tensor], initial_state: PolicyState, ahead: dict[int, tuple[EncoderState, Tensor]]
    ) -> tuple[Tensor, Tensor, EncoderState | None]:
        """Values [T, S] of all steps; of final observations [T, S], 0 where nobody looks; the critic's own last state.

        After the last step, for all of them at once. A critic with its own LSTM runs in pieces that end where a window
        did: its state is needed there.
        """
        policy, starts, observations = self.policy, stacked["starts"], stacked["observations"]
        final_values = torch.zeros_like(stacked["rewards"])
        if initial_state.critic is None:
            for t, (memory, final) in ahead.items():
                final_values[t] = policy.values(policy.run_critic(final.unsqueeze(0), memory)[0][0])
            return policy.values(stacked["hidden"]), final_values, None
        state, begin, pieces = initial_state.critic, 0, []
        for t, (_, final) in ahead.items():
            hidden, state = policy.run_critic(observations[begin : t + 1], state, starts[begin : t + 1])
            pieces.append(policy.values(hidden))
            final_values[t] = policy.values(policy.run_critic(final.unsqueeze(0), state)[0][0])
            begin = t + 1
        return torch.cat(pieces), final_values, state

    def state_dict(self) -> dict:
        """Everything the next rollout depends on, as tensors, numbers, strings, lists and dicts."""
        self._begin()
        assert self.state is not None
        memory = {name: part._asdict() for name, part in self.state._asdict().items() if part is not None}
        return {
            "observations": self.observations,
            "episode_starts": self.episode_starts,
            "memory": memory,
            "env": self.env.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict` as if never interrupted."""
        self.env.load_state_dict(state["env"])
        fresh = self.policy.initial_state(self.env.num_envs)
        device = next(self.policy.parameters()).device
        self.observations = state["observations"].to(device)
        self.episode_starts = state["episode_starts"].to(device)
        memory = state["memory"] if "memory" in state else state["lstm"]  # as it was called until 0.1.0
        parts = {
            name: state_like(fresh.policy, (memory[name][key].to(device) for key in fresh.policy._asdict()))
            for name in memory
        }
        self.state = PolicyState(**parts)
