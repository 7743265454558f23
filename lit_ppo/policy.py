"""The two recurrent policies: account at the heads (exogenous markets), account at the encoder (any environment)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_ppo.lstm import LSTM, LSTMState

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "mish": nn.Mish}


class PolicyState(NamedTuple):
    """LSTM state of a policy: one encoder, or one for the policy and one for the critic."""

    policy: LSTMState
    critic: LSTMState | None = None

    def map(self, function) -> PolicyState:
        """Return the state with `function` applied to each [L, S, H] tensor."""

        def mapped(state: LSTMState) -> LSTMState:
            return LSTMState(function(state.hidden), function(state.cell))

        return PolicyState(mapped(self.policy), None if self.critic is None else mapped(self.critic))

    def reset_where(self, starts: Tensor) -> PolicyState:
        """Zero the state of the sequences that `starts` [S] marks: before the step, never after it."""
        critic = None if self.critic is None else self.critic.reset_where(starts)
        return PolicyState(self.policy.reset_where(starts), critic)

    def detach(self) -> PolicyState:
        return self.map(torch.Tensor.detach)

    def select(self, sequences: Tensor) -> PolicyState:
        """Return the state of some sequences."""
        return self.map(lambda tensor: tensor[:, sequences])


class PolicyOutputs(NamedTuple):
    """What the loss needs of a rollout: [T, S] each, or [T, S, P, P] and twice [T, S, P] for all actions."""

    log_probs: Tensor
    entropies: Tensor
    values: Tensor


class EvaluatedRollout(Protocol):
    """The part of `lit_ppo.rollout.Rollout` that a policy reads to evaluate it."""

    observations: Tensor
    episode_starts: Tensor | None
    initial_state: PolicyState
    burn_in: int
    actions: Tensor | None
    held: Tensor | None
    account: Tensor | None


def _initialise(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _mlp(width: int, layers: Sequence[int], activation: str, outputs: int, output_gain: float) -> nn.Sequential:
    modules: list[nn.Module] = []
    for size in layers:
        modules += [_initialise(nn.Linear(width, size), 2**0.5), ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*modules, _initialise(nn.Linear(width, outputs), output_gain))


def _check_network(hidden_size: int, num_layers: int, activation: str) -> None:
    if hidden_size < 1 or num_layers < 1:
        raise ValueError(f"The LSTM needs hidden_size >= 1 and num_layers >= 1, got {hidden_size} and {num_layers}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {sorted(ACTIVATIONS)}, got {activation!r}")


class RecurrentEncoder(nn.Module):
    """One LSTM for policy and critic, or one each.

    Args:
        num_inputs: F, width of an observation.
        hidden_size, num_layers: H and L of each LSTM.
        shared: one LSTM serves both heads; otherwise the critic has its own.
    """

    def __init__(self, num_inputs: int, hidden_size: int, num_layers: int, shared: bool) -> None:
        super().__init__()
        self.policy = LSTM(num_inputs, hidden_size, num_layers)
        self.critic = None if shared else LSTM(num_inputs, hidden_size, num_layers)

    def initial_state(self, num_sequences: int) -> PolicyState:
        """Return zeros: an episode starts without memory."""
        critic = None if self.critic is None else self.critic.initial_state(num_sequences)
        return PolicyState(self.policy.initial_state(num_sequences), critic)

    def forward(
        self, inputs: Tensor, state: PolicyState, episode_starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, PolicyState]:
        """Encode [T, S, F]; returns hidden for the policy and for the critic [T, S, H] and the state after step T.

        `episode_starts` [T, S] resets the state before the step it marks.
        """
        hidden, policy_state = self.policy(inputs, state.policy, episode_starts)
        if self.critic is None:
            return hidden, hidden, PolicyState(policy_state)
        critic_hidden, critic_state = self.critic(inputs, state.critic, episode_starts)
        return hidden, critic_hidden, PolicyState(policy_state, critic_state)

    def after_burn_in(self, rollout: EvaluatedRollout) -> tuple[Tensor, Tensor]:
        """Encode a rollout: its first `burn_in` steps without gradient, the rest with it. [T, S, H] twice."""
        state, starts = rollout.initial_state, rollout.episode_starts
        if rollout.burn_in:
            with torch.no_grad():
                burn_starts = None if starts is None else starts[: rollout.burn_in]
                _, _, state = self(rollout.observations[: rollout.burn_in], state, burn_starts)
            state = state.detach()
        later_starts = None if starts is None else starts[rollout.burn_in :]
        hidden, critic_hidden, _ = self(rollout.observations[rollout.burn_in :], state, later_starts)
        return hidden, critic_hidden


class PositionHead(nn.Module):
    """An MLP over the memory of the market, evaluated for every held position at once.

    The held position enters as an embedding added before the first activation, other account features through a
    linear map added at the same place.
    """

    def __init__(
        self,
        hidden_size: int,
        num_positions: int,
        num_account: int,
        layers: Sequence[int],
        activation: str,
        outputs: int,
        output_gain: float,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("A position head needs at least one hidden layer: the held position enters there")
        self.market = _initialise(nn.Linear(hidden_size, layers[0]), 2**0.5)
        self.position = nn.Parameter(torch.empty(num_positions, layers[0]))
        nn.init.orthogonal_(self.position, 1.0)
        self.account = (
            _initialise(nn.Linear(num_account, layers[0], bias=False), 2**0.5) if num_account else None
        )
        self.activation = ACTIVATIONS[activation]()
        self.output = _mlp(layers[0], layers[1:], activation, outputs, output_gain)

    def forward(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., H] -> [..., P, outputs] for all held positions, or [..., outputs] for the given `held` [...]."""
        market = self.market(hidden)
        if held is None:
            inner = market.unsqueeze(-2) + self.position
        else:
            inner = market + self.position[held]
        if self.account is not None and account is not None:
            inner = inner + self.account(account)
        return self.output(self.activation(inner))


class MarketPolicy(nn.Module):
    """Recurrent policy of an exogenous market: the encoder never sees the account (`account_at: heads`).

    The market does not react to us, so its memory is the same whatever we hold: the encoder runs over each stretch of
    bars once, in one whole-sequence call, for all held positions.

    Args:
        num_features: F, market features.
        positions: the P target exposures; action a means "hold positions[a] next". Must contain 0.
        hidden_size, num_layers, shared_encoder: see `RecurrentEncoder`.
        policy_layers, value_layers: widths of the heads' hidden layers.
        activation: "tanh", "relu" or "mish".
        hold_bias: start of the learned bias on the logit of keeping the held position. Near 0, a trader under costs
            collapses to "never trade" before it has learnt anything.
        num_account: account features at the heads beside the held position (0, or those of `envs.account`).

    Raises:
        ValueError: an unusable size, activation or position grid.
    """

    def __init__(
        self,
        num_features: int,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        hidden_size: int = 32,
        num_layers: int = 1,
        shared_encoder: bool = True,
        policy_layers: Sequence[int] = (64,),
        value_layers: Sequence[int] = (64,),
        activation: str = "tanh",
        hold_bias: float = 3.0,
        num_account: int = 0,
    ) -> None:
        super().__init__()
        _check_network(hidden_size, num_layers, activation)
        grid = [float(position) for position in positions]
        if grid != sorted(set(grid)) or 0.0 not in grid or len(grid) < 2:
            raise ValueError(f"`positions` must rise, without repeats, and contain 0 (flat); got {list(positions)}")
        self.register_buffer("positions", torch.tensor(grid, dtype=torch.float64))
        self.flat_index = grid.index(0.0)
        self.num_account = num_account
        self.encoder = RecurrentEncoder(num_features, hidden_size, num_layers, shared_encoder)
        num_positions = len(grid)
        self.policy_head = PositionHead(
            hidden_size, num_positions, num_account, policy_layers, activation, num_positions, 0.01
        )
        self.value_layers = len(value_layers)
        if num_account:
            self.value_head: nn.Module = PositionHead(
                hidden_size, num_positions, num_account, value_layers, activation, 1, 1.0
            )
        else:
            self.value_head = _mlp(hidden_size, value_layers, activation, num_positions, 1.0)
        self.hold_bias = nn.Parameter(torch.tensor(float(hold_bias)))
        self.register_buffer("hold", torch.eye(num_positions), persistent=False)

    def initial_state(self, num_sequences: int) -> PolicyState:
        return self.encoder.initial_state(num_sequences)

    def logits(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., H] -> [..., P, P]: row = held position, column = next one; [..., P] for a given `held` [...]."""
        hold = self.hold if held is None else self.hold[held]
        return self.policy_head(hidden, held, account) + self.hold_bias * hold

    def values(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., H] -> [..., P], the value of holding each position; [...] for a given `held` [...]."""
        if self.num_account:
            return self.value_head(hidden, held, account).squeeze(-1)
        values = self.value_head(hidden)
        return values if held is None else values.gather(-1, held.unsqueeze(-1)).squeeze(-1)

    def forward(self, rollout: EvaluatedRollout) -> PolicyOutputs:
        """Evaluate the rollout's actions under the current weights: with the gradient, for the loss."""
        hidden, critic_hidden = self.encoder.after_burn_in(rollout)
        log_probs = functional.log_softmax(self.logits(hidden, rollout.held, rollout.account).float(), dim=-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        values = self.values(critic_hidden, rollout.held, rollout.account).float()
        if rollout.actions is not None:
            log_probs = log_probs.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1)
        return PolicyOutputs(log_probs, entropies, values)


class ObservationPolicy(nn.Module):
    """Recurrent policy of any environment: the encoder sees the whole observation (`account_at: encoder`).

    Args:
        observation_size: D.
        num_actions: number of discrete actions, or None for continuous ones.
        action_size: number of continuous actions (Gaussian, state-independent standard deviation).
        hold_column, positions: on a market, the observation column with the held position and the position grid: the
            logit of keeping it gets the learned bias `hold_bias`. None: no such bias.
        recurrent: False gives the memoryless control: the state is zeroed before every step.
        orthogonal: orthogonal heads with a small last policy layer; False keeps torch's defaults.
        hidden_size, num_layers, shared_encoder, policy_layers, value_layers, activation: as in `MarketPolicy`.
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int | None,
        action_size: int = 0,
        hold_column: int | None = None,
        positions: Sequence[float] = (-1.0, 0.0, 1.0),
        hidden_size: int = 64,
        num_layers: int = 1,
        shared_encoder: bool = False,
        policy_layers: Sequence[int] = (64,),
        value_layers: Sequence[int] = (64,),
        activation: str = "tanh",
        hold_bias: float = 3.0,
        recurrent: bool = True,
        orthogonal: bool = True,
    ) -> None:
        super().__init__()
        _check_network(hidden_size, num_layers, activation)
        if (num_actions is None) == (action_size == 0):
            raise ValueError(f"Give either num_actions or action_size, got {num_actions} and {action_size}")
        if hold_column is not None and num_actions != len(positions):
            raise ValueError(f"A market with {len(positions)} positions has as many actions, got {num_actions}")
        self.num_actions, self.action_size = num_actions, action_size
        self.hold_column, self.recurrent = hold_column, recurrent
        grid = [float(position) for position in positions]
        self.register_buffer("positions", torch.tensor(grid, dtype=torch.float64))
        self.flat_index = grid.index(0.0) if hold_column is not None else 0
        self.encoder = RecurrentEncoder(observation_size, hidden_size, num_layers, shared_encoder)
        outputs = num_actions if num_actions is not None else action_size
        self.policy_head = _mlp(hidden_size, policy_layers, activation, outputs, 0.01)
        self.value_head = _mlp(hidden_size, value_layers, activation, 1, 1.0)
        if not orthogonal:
            for layer in (*self.policy_head, *self.value_head):
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        self.log_std = nn.Parameter(torch.zeros(action_size)) if action_size else None
        self.hold_bias = nn.Parameter(torch.tensor(float(hold_bias))) if hold_column is not None else None

    def initial_state(self, num_sequences: int) -> PolicyState:
        return self.encoder.initial_state(num_sequences)

    def _encode(
        self, observations: Tensor, state: PolicyState, episode_starts: Tensor | None
    ) -> tuple[Tensor, Tensor, PolicyState]:
        if not self.recurrent:
            episode_starts = torch.ones(observations.shape[:2], dtype=torch.bool, device=observations.device)
        return self.encoder(observations, state, episode_starts)

    def action_parameters(self, hidden: Tensor, observations: Tensor) -> Tensor:
        """[..., H] -> logits [..., A] of discrete actions, or means [..., A] of continuous ones, float32."""
        parameters = self.policy_head(hidden).float()
        if self.hold_column is not None and self.hold_bias is not None:
            held = observations[..., self.hold_column].unsqueeze(-1)
            parameters = parameters + self.hold_bias * ((held - self.positions.to(held.dtype)).abs() < 1e-6)
        return parameters

    def act(
        self, observations: Tensor, state: PolicyState, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """One step [S, D]: actions, their log-probabilities [S], values [S] and the state after it.

        Greedy (mode of the distribution) without a generator.
        """
        hidden, critic_hidden, state = self._encode(observations.unsqueeze(0), state, None)
        parameters = self.action_parameters(hidden[0], observations)
        values = self.value_head(critic_hidden[0]).squeeze(-1).float()
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
        log_probs, _ = self._log_probs(parameters, actions)
        return actions, log_probs, values, state

    def state_values(self, observations: Tensor, state: PolicyState) -> Tensor:
        """V of [S, D] observations that follow `state`; the state itself is not advanced."""
        _, critic_hidden, _ = self._encode(observations.unsqueeze(0), state, None)
        return self.value_head(critic_hidden[0]).squeeze(-1).float()

    def _log_probs(self, parameters: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [...] of actions."""
        if self.num_actions is not None:
            log_probs = functional.log_softmax(parameters, dim=-1)
            entropies = -(log_probs.exp() * log_probs).sum(-1)
            return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropies
        assert self.log_std is not None
        normal = torch.distributions.Normal(parameters, self.log_std.exp().expand_as(parameters), validate_args=False)
        return normal.log_prob(actions).sum(-1), normal.entropy().sum(-1)

    def forward(self, rollout: EvaluatedRollout) -> PolicyOutputs:
        """Evaluate the rollout's actions under the current weights: with the gradient, for the loss."""
        if not self.recurrent:
            rollout = rollout._replace(episode_starts=torch.ones_like(rollout.episode_starts))  # type: ignore
        hidden, critic_hidden = self.encoder.after_burn_in(rollout)
        observations = rollout.observations[rollout.burn_in :]
        log_probs, entropies = self._log_probs(self.action_parameters(hidden, observations), rollout.actions)  # type: ignore
        values = self.value_head(critic_hidden).squeeze(-1).float()
        return PolicyOutputs(log_probs, entropies, values)
