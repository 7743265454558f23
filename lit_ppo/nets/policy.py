"""The two policies: account at the heads (exogenous markets), account at the encoder (any environment)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_ppo.envs.account import checked_positions
from lit_ppo.nets.encoder import EncoderName, EncoderState
from lit_ppo.nets.initialisation import InitScheme
from lit_ppo.nets.networks import (
    ActorCriticEncoder,
    Encoded,
    PolicyState,
    PositionHead,
    Seen,
    check_network,
    join_sequences,
    mlp,
)

FORBIDDEN = -1e9  # logit of a masked action: its probability is exactly 0, and p log p stays 0 where -inf would be NaN


class SampledOutputs(NamedTuple):
    """What the loss needs of sampled actions under the current weights: [T, S] each."""

    log_probs: Tensor
    entropies: Tensor
    values: Tensor


@dataclass(frozen=True)
class AllActionOutputs:
    """What the loss needs where every held and next position counts.

    Attributes:
        logits: [T, S, P, P], row = held position, column = next one.
        values: [T, S, P].
    """

    logits: Tensor
    values: Tensor

    @cached_property
    def log_probs(self) -> Tensor:
        """[T, S, P, P]."""
        return functional.log_softmax(self.logits, dim=-1)

    @cached_property
    def entropies(self) -> Tensor:
        """[T, S, P]."""
        return _entropies(self.log_probs)


def _entropies(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _of_actions(log_probs: Tensor, actions: Tensor) -> Tensor:
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


class MarketNetwork(nn.Module):
    """One encoder and its two heads; the encoder never sees the account. Arguments: see `MarketPolicy`."""

    hold: Tensor

    def __init__(
        self,
        num_features: int,
        num_positions: int,
        encoder: EncoderName,
        hidden_size: int,
        num_layers: int,
        shared_encoder: bool,
        policy_layers: Sequence[int],
        value_layers: Sequence[int],
        activation: str,
        hold_bias: float,
        num_account: int,
        init: InitScheme,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.num_account = num_account
        self.encoder = ActorCriticEncoder(
            encoder, num_features, hidden_size, num_layers, shared_encoder, init, generator
        )
        self.policy_head = PositionHead(
            hidden_size, num_positions, num_account, policy_layers, activation, num_positions, 0.01, generator
        )
        self.value_head: nn.Module = (
            PositionHead(hidden_size, num_positions, num_account, value_layers, activation, 1, 1.0, generator)
            if num_account
            else mlp(hidden_size, value_layers, activation, num_positions, 1.0, generator)
        )
        self.hold_bias = nn.Parameter(torch.tensor(float(hold_bias)))
        self.register_buffer("hold", torch.eye(num_positions), persistent=False)

    def logits(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., H] -> [..., P, P]: row = held position, column = next one; [..., P] for a given `held` [...]."""
        hold = self.hold if held is None else self.hold[held]
        return (self.policy_head(hidden, held, account) + self.hold_bias * hold).float()

    def values(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., H] -> [..., P], the value of holding each position; [...] for a given `held` [...]."""
        if self.num_account:
            return self.value_head(hidden, held, account).squeeze(-1).float()
        values = self.value_head(hidden).float()
        return values if held is None else values.gather(-1, held.unsqueeze(-1)).squeeze(-1)


class MarketPolicy(nn.Module):
    """Policy of an exogenous market: the encoder never sees the account (`account_at: heads`).

    The market does not react to us, so its memory is the same whatever we hold: the encoder runs over each stretch of
    bars once, in one whole-sequence call, for all held positions.

    Several networks, alike but for their start values, may form one policy: they learn side by side from the same
    bars, and their logits are added for a decision. Sequences are then laid out network by network: of K S sequences,
    the first S belong to the first network, and so on.

    Args:
        num_features: F, market features.
        positions: the P target exposures; action a means "hold positions[a] next". Must contain 0.
        num_networks: K.
        encoder, hidden_size, num_layers, shared_encoder, init: see `ActorCriticEncoder`.
        policy_layers, value_layers: widths of the heads' hidden layers.
        activation: "tanh", "relu" or "mish".
        hold_bias: start of the learned bias on the logit of keeping the held position. Near 0, a trader under costs
            collapses to "never trade" before it has learnt anything.
        num_account: account features at the heads beside the held position (0, or those of `envs.account`).
        generator: source of the start values.

    Raises:
        ValueError: an unusable size, activation or position grid.
    """

    positions: Tensor
    input_gain: Tensor
    mirror_sign: Tensor
    mirrored: Tensor
    networks: Sequence[MarketNetwork]

    def __init__(
        self,
        num_features: int,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        num_networks: int = 1,
        encoder: EncoderName = "lstm",
        hidden_size: int = 16,
        num_layers: int = 1,
        shared_encoder: bool = True,
        policy_layers: Sequence[int] = (16,),
        value_layers: Sequence[int] = (16,),
        activation: str = "tanh",
        hold_bias: float = 3.0,
        num_account: int = 0,
        init: InitScheme = "chrono",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_network(hidden_size, num_layers, activation)
        if num_networks < 1:
            raise ValueError(f"A policy needs at least one network, got num_networks {num_networks}")
        grid = list(checked_positions(positions))
        self.flat_index = grid.index(0.0)
        self.symmetric = grid == [-position for position in reversed(grid)]
        self.num_account = num_account
        self.register_buffer("positions", torch.tensor(grid, dtype=torch.float64))
        # Set from the train bars by `set_inputs`: weight of each feature, and its sign in a mirrored market.
        self.register_buffer("input_gain", torch.ones(num_features))
        self.register_buffer("mirror_sign", torch.ones(num_features))
        self.register_buffer("mirrored", torch.tensor(False))
        self.networks = nn.ModuleList(  # type: ignore[assignment]
            MarketNetwork(
                num_features,
                len(grid),
                encoder,
                hidden_size,
                num_layers,
                shared_encoder,
                policy_layers,
                value_layers,
                activation,
                hold_bias,
                num_account,
                init,
                generator,
            )
            for _ in range(num_networks)
        )

    @property
    def num_networks(self) -> int:
        return len(self.networks)

    @property
    def hidden_size(self) -> int:
        return self.networks[0].encoder.policy.hidden_size

    def set_inputs(self, gain: Tensor, mirror_sign: Tensor, mirrored: bool) -> None:
        """Say how the market is seen; kept in the checkpoint.

        Args:
            gain: [F] weight of each feature.
            mirror_sign: [F] what a feature is multiplied by in a mirrored market.
            mirrored: decisions look at the market upside down as well (`evaluation`).
        """
        self.input_gain.copy_(gain)
        self.mirror_sign.copy_(mirror_sign)
        self.mirrored.fill_(mirrored)

    def initial_state(self, num_sequences: int) -> PolicyState:
        """State of `num_sequences` (K S) sequences without memory."""
        return self.networks[0].encoder.initial_state(num_sequences)

    def encode(
        self, features: Tensor, state: PolicyState, episode_starts: Tensor | None = None
    ) -> tuple[Encoded, PolicyState]:
        """Encode features [T, K S, F], network by network; returns memories [T, K S, H] and the state after step T."""
        inputs = features * self.input_gain
        if self.num_networks == 1:
            return self.networks[0].encoder(inputs, state, episode_starts)
        size = features.shape[1] // self.num_networks
        encoded, states = [], []
        for index, network in enumerate(self.networks):
            own = slice(index * size, (index + 1) * size)
            starts = None if episode_starts is None else episode_starts[:, own]
            memory, after = network.encoder(inputs[:, own].contiguous(), state.select(own), starts)
            encoded.append(memory)
            states.append(after)
        policy = torch.cat([memory.policy for memory in encoded], 1)
        shared = encoded[0].critic is encoded[0].policy
        critic = policy if shared else torch.cat([memory.critic for memory in encoded], 1)
        return Encoded(policy, critic), join_sequences(states)

    def _by_network(self, method: str, hidden: Tensor, held: Tensor | None, account: Tensor | None) -> Tensor:
        """Call a head of each network on its own sequences: the last axis but one of `hidden` [..., K S, H]."""
        if self.num_networks == 1:
            return getattr(self.networks[0], method)(hidden, held, account)
        pieces = self.num_networks
        hiddens = hidden.chunk(pieces, dim=-2)
        helds = (None,) * pieces if held is None else held.chunk(pieces, dim=-1)
        accounts = (None,) * pieces if account is None else account.chunk(pieces, dim=-2)
        outputs = [
            getattr(network, method)(*own)
            for network, own in zip(self.networks, zip(hiddens, helds, accounts, strict=True), strict=True)
        ]
        return torch.cat(outputs, dim=hidden.ndim - 2)

    def logits(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., K S, H] -> [..., K S, P, P]: row = held, column = next position; [..., K S, P] for a given `held`."""
        return self._by_network("logits", hidden, held, account)

    def values(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., K S, H] -> [..., K S, P], the value of holding each position; [..., K S] for a given `held`."""
        return self._by_network("values", hidden, held, account)

    def _logits_and_values(self, seen: Seen) -> tuple[Tensor, Tensor]:
        encoded, _ = self.encode(seen.observations, seen.initial_state, seen.episode_starts)
        if seen.hidden_mask is not None:
            mask = seen.hidden_mask
            encoded = encoded.map(lambda hidden: hidden * mask)
        logits = self.logits(encoded.policy, seen.held, seen.account)
        return logits, self.values(encoded.critic, seen.held, seen.account)

    def every_action(self, seen: Seen) -> AllActionOutputs:
        """Evaluate every held and next position under the current weights: with the gradient, for the loss."""
        return AllActionOutputs(*self._logits_and_values(seen))

    def sampled(self, seen: Seen, actions: Tensor) -> SampledOutputs:
        """Evaluate `actions` [T, S] under the current weights: with the gradient, for the loss."""
        logits, values = self._logits_and_values(seen)
        log_probs = functional.log_softmax(logits, dim=-1)
        entropies = _entropies(log_probs)
        return SampledOutputs(_of_actions(log_probs, actions), entropies, values)


class ObservationPolicy(nn.Module):
    """Policy of any environment: the encoder sees the whole observation (`account_at: encoder`).

    Args:
        observation_size: D.
        num_actions: number of discrete actions, or None for continuous ones.
        action_size: number of continuous actions (Gaussian, state-independent standard deviation).
        hold_column, positions: on a market, the observation column with the held position and the position grid: the
            logit of keeping it gets the learned bias `hold_bias`. None: no such bias.
        encoder, hidden_size, num_layers, shared_encoder, policy_layers, value_layers, activation, init, generator: as
            in `MarketPolicy`.
    """

    positions: Tensor
    observation_mean: Tensor
    observation_variance: Tensor

    def __init__(
        self,
        observation_size: int,
        num_actions: int | None,
        action_size: int = 0,
        hold_column: int | None = None,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        encoder: EncoderName = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        shared_encoder: bool = False,
        policy_layers: Sequence[int] = (64,),
        value_layers: Sequence[int] = (64,),
        activation: str = "tanh",
        hold_bias: float = 3.0,
        init: InitScheme = "orthogonal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_network(hidden_size, num_layers, activation)
        if (num_actions is None) == (action_size == 0):
            raise ValueError(f"Give either num_actions or action_size, got {num_actions} and {action_size}")
        if hold_column is not None and num_actions != len(positions):
            raise ValueError(f"A market with {len(positions)} positions has as many actions, got {num_actions}")
        self.num_actions, self.action_size = num_actions, action_size
        self.hold_column = hold_column
        grid = [float(position) for position in positions]
        self.register_buffer("positions", torch.tensor(grid, dtype=torch.float64))
        # Of the environment's raw observations when these weights were trained: a checkpoint evaluates with them.
        self.register_buffer("observation_mean", torch.zeros(observation_size, dtype=torch.float64))
        self.register_buffer("observation_variance", torch.ones(observation_size, dtype=torch.float64))
        self.flat_index = grid.index(0.0) if hold_column is not None else 0
        self.encoder = ActorCriticEncoder(
            encoder, observation_size, hidden_size, num_layers, shared_encoder, init, generator
        )
        outputs = num_actions if num_actions is not None else action_size
        self.policy_head = mlp(hidden_size, policy_layers, activation, outputs, 0.01, generator)
        self.value_head = mlp(hidden_size, value_layers, activation, 1, 1.0, generator)
        self.log_std = nn.Parameter(torch.zeros(action_size)) if action_size else None
        self.hold_bias = nn.Parameter(torch.tensor(float(hold_bias))) if hold_column is not None else None

    @property
    def num_networks(self) -> int:
        return 1

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What learns by itself: as of a `MarketPolicy`, here one."""
        return [self]

    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Keep the statistics [D] with which the environment normalises what the policy sees."""
        self.observation_mean.copy_(mean)
        self.observation_variance.copy_(variance)

    def initial_state(self, num_sequences: int) -> PolicyState:
        return self.encoder.initial_state(num_sequences)

    def action_parameters(self, hidden: Tensor, observations: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """[..., H] -> logits [..., A] of discrete actions, or means [..., A] of continuous ones, float32.

        Actions that `action_mask` [..., A] (bool) forbids have probability 0 and no gradient.
        """
        parameters = self.policy_head(hidden).float()
        if self.hold_column is not None and self.hold_bias is not None:
            held = observations[..., self.hold_column].unsqueeze(-1)
            parameters = parameters + self.hold_bias * ((held - self.positions.to(held.dtype)).abs() < 1e-6)
        return parameters if action_mask is None else parameters.masked_fill(~action_mask, FORBIDDEN)

    def act(
        self,
        observations: Tensor,
        state: PolicyState,
        generator: torch.Generator | None = None,
        action_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """One step [S, D]: actions, their distribution's parameters [S, A], the policy's memory [S, H], state after it.

        Greedy (mode of the distribution) without a generator. A critic with its own encoder is not run: nobody needs a
        value to act, and whole stretches of values (`run_critic`) cost a fraction of single ones. So `state.critic`
        comes back as it was given.
        """
        hidden, memory = self.encoder.policy(observations.unsqueeze(0), state.policy)
        parameters = self.action_parameters(hidden[0], observations, action_mask)
        if self.num_actions is not None:
            if generator is None:
                actions = parameters.argmax(-1)
            else:
                actions = torch.multinomial(parameters.softmax(-1), 1, generator=generator).squeeze(-1)
        elif generator is None:
            actions = parameters
        else:
            assert self.log_std is not None
            noise = torch.randn(parameters.shape, generator=generator, device=parameters.device)
            actions = parameters + self.log_std.exp() * noise
        return actions, parameters, hidden[0], PolicyState(memory, state.critic)

    def run_critic(
        self, observations: Tensor, state: EncoderState, episode_starts: Tensor | None = None
    ) -> tuple[Tensor, EncoderState]:
        """Memory [T, S, H] of the value head's encoder, over observations [T, S, D], and the state after."""
        return (self.encoder.critic or self.encoder.policy)(observations, state, episode_starts)

    def values(self, hidden: Tensor) -> Tensor:
        """V [...] of memories [..., H], float32."""
        return self.value_head(hidden).squeeze(-1).float()

    def log_probs(self, parameters: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [...] of actions."""
        if self.num_actions is not None:
            log_probs = functional.log_softmax(parameters, dim=-1)
            entropies = _entropies(log_probs)
            return _of_actions(log_probs, actions), entropies
        assert self.log_std is not None
        normal = torch.distributions.Normal(parameters, self.log_std.exp().expand_as(parameters), validate_args=False)
        return normal.log_prob(actions).sum(-1), normal.entropy().sum(-1)

    def sampled(self, seen: Seen, actions: Tensor) -> SampledOutputs:
        """Evaluate `actions` [T, S] (or [T, S, A]) under the current weights: with the gradient, for the loss."""
        encoded, _ = self.encoder(seen.observations, seen.initial_state, seen.episode_starts)
        parameters = self.action_parameters(encoded.policy, seen.observations, seen.action_mask)
        log_probs, entropies = self.log_probs(parameters, actions)
        return SampledOutputs(log_probs, entropies, self.values(encoded.critic))
