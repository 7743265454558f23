"""What both policies are built of: encoders, heads, and the state that is carried along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo.nets.encoder import Encoder, EncoderName, EncoderState, state_like
from lit_ppo.nets.gru import GRU
from lit_ppo.nets.initialisation import InitScheme
from lit_ppo.nets.kernels.activations import ACTIVATIONS, Tanh
from lit_ppo.nets.lstm import LSTM, Memoryless, fused_on_cpu

# (num_inputs, hidden_size, num_layers, generator) -> encoder
ENCODERS: dict[EncoderName, Callable[[int, int, int, torch.Generator | None], Encoder[Any]]] = {
    "lstm": LSTM,
    "gru": GRU,
    "memoryless": Memoryless,
}

WIDEST_VECTOR = 16  # lanes of any processor's


class PolicyState(NamedTuple):
    """State of a policy's encoders: one for policy and critic, or one each."""

    policy: EncoderState
    critic: EncoderState | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> PolicyState:
        """Return the state with `function` applied to each [L, S, H] tensor."""
        critic = None if self.critic is None else state_like(self.critic, map(function, self.critic))
        return PolicyState(state_like(self.policy, map(function, self.policy)), critic)

    def reset_where(self, starts: Tensor) -> PolicyState:
        """Zero the state of the sequences that `starts` [S] marks: before the step, never after it."""
        mask = starts.unsqueeze(-1)  # [S, 1]
        return self.map(lambda tensor: tensor.masked_fill(mask, 0.0))

    def select(self, sequences: Tensor | slice) -> PolicyState:
        """Return the state of some sequences."""
        return self.map(lambda tensor: tensor[:, sequences])


class Seen(NamedTuple):
    """What a policy sees of S sequences of T steps.

    Attributes:
        observations: [T, S, D] what the encoder reads.
        initial_state: before observations[0], as it was when the rollout was collected.
        episode_starts: [T, S] bool: the encoder is reset *before* that step; None: never.
        hidden_mask: [1, S, H] multiplier of what the encoder remembers, the same in rollout and update (dropout).
        held: [T, S] index of the held position (account at the heads), None for every position, or in an environment.
        account: [T, S, C] other account features at the heads, or None.
        action_mask: [T, S, A] bool: the actions that were allowed; None: all of them.
    """

    observations: Tensor
    initial_state: PolicyState
    episode_starts: Tensor | None = None
    hidden_mask: Tensor | None = None
    held: Tensor | None = None
    account: Tensor | None = None
    action_mask: Tensor | None = None

    def select(self, sequences: Tensor) -> Seen:
        """Return whole sequences."""
        return select_sequences(self, sequences)


def select_sequences(parts: Any, sequences: Tensor) -> Any:
    """Select from a NamedTuple of tensors [T, S, ...], None, and what selects its own sequences."""

    def selected(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, Tensor):
            return part.index_select(1, sequences)  # several times faster than part[:, sequences]
        return part.select(sequences)

    return parts._make(map(selected, parts))


def join_sequences(several: Sequence[Any]) -> Any:
    """Put side by side what `select_sequences` took apart."""

    def joined(parts: Sequence[Any]) -> Any:
        if parts[0] is None:
            return None
        if isinstance(parts[0], Tensor):
            return torch.cat(tuple(parts), 1)
        return join_sequences(parts)

    return several[0]._make(map(joined, zip(*several, strict=True)))


class Encoded(NamedTuple):
    """What an encoder remembers: [T, S, H] for the policy head and for the value head."""

    policy: Tensor
    critic: Tensor

    def map(self, function) -> Encoded:
        """Apply `function` to the policy's tensor and to the critic's; once when they are the same."""
        policy = function(self.policy)
        return Encoded(policy, policy if self.critic is self.policy else function(self.critic))


class _UndrawnLinear(nn.Linear):
    """Has no start values: the global generator would draw them. (`skip_init` loads sympy for that, half a second.)"""

    def reset_parameters(self) -> None: ...


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator | None, bias: bool = True) -> nn.Linear:
    """An orthogonal linear layer, drawn from `generator`: `nn.Linear` alone would draw from the global one."""
    layer = _UndrawnLinear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(
    width: int,
    layers: Sequence[int],
    activation: str,
    outputs: int,
    output_gain: float,
    generator: torch.Generator | None,
) -> nn.Sequential:
    """Linear layers of these widths, orthogonal with gain sqrt(2), and an output layer with a gain of its own."""
    modules: list[nn.Module] = []
    for size in layers:
        modules += [linear(width, size, 2**0.5, generator), ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*modules, linear(width, outputs, output_gain, generator))


def check_network(hidden_size: int, num_layers: int, activation: str) -> None:
    """Refuse sizes and activations that cannot be built."""
    if hidden_size < 1 or num_layers < 1:
        raise ValueError(f"The encoder needs hidden_size >= 1 and num_layers >= 1, got {hidden_size} and {num_layers}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {sorted(ACTIVATIONS)}, got {activation!r}")


class ActorCriticEncoder(nn.Module):
    """One encoder for policy and critic, or one each.

    Args:
        name: which, of `ENCODERS`.
        num_inputs: F, width of an observation.
        hidden_size, num_layers: H and L of each encoder.
        shared: one encoder serves both heads; otherwise the critic has its own.
        init: start values, see `lit_ppo.nets.initialisation`.
    """

    def __init__(
        self,
        name: EncoderName,
        num_inputs: int,
        hidden_size: int,
        num_layers: int,
        shared: bool,
        init: InitScheme,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        make = ENCODERS[name]
        self.policy = make(num_inputs, hidden_size, num_layers, generator)
        self.critic = None if shared else make(num_inputs, hidden_size, num_layers, generator)
        for encoder in (self.policy, self.critic):
            if encoder is not None:
                encoder.initialise(init, generator)

    def initial_state(self, num_sequences: int) -> PolicyState:
        """Return zeros: an episode starts without memory."""
        critic = None if self.critic is None else self.critic.initial_state(num_sequences)
        return PolicyState(self.policy.initial_state(num_sequences), critic)

    def forward(
        self, inputs: Tensor, state: PolicyState, episode_starts: Tensor | None = None
    ) -> tuple[Encoded, PolicyState]:
        """Encode [T, S, F]; `episode_starts` [T, S] resets the state before the step it marks."""
        hidden, policy_state = self.policy(inputs, state.policy, episode_starts)
        if self.critic is None:
            return Encoded(hidden, hidden), PolicyState(policy_state)
        critic_hidden, critic_state = self.critic(inputs, state.critic, episode_starts)
        return Encoded(hidden, critic_hidden), PolicyState(policy_state, critic_state)


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
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("A position head needs at least one hidden layer: the held position enters there")
        self.market = linear(hidden_size, layers[0], 2**0.5, generator)
        self.position = nn.Parameter(torch.empty(num_positions, layers[0]))
        nn.init.orthogonal_(self.position, 1.0, generator=generator)
        self.account = linear(num_account, layers[0], 2**0.5, generator, bias=False) if num_account else None
        self.activation = ACTIVATIONS[activation]()
        self.output = mlp(layers[0], layers[1:], activation, outputs, output_gain, generator)

    def forward(self, hidden: Tensor, held: Tensor | None = None, account: Tensor | None = None) -> Tensor:
        """[..., H] -> [..., P, outputs] for all held positions, or [..., outputs] for the given `held` [...]."""
        market = self.market(hidden)
        if held is None and self.account is None and self._fused(market):
            from lit_ppo.nets.kernels.position_head import every_position  # numba is optional

            (output,) = self.output
            assert isinstance(output, nn.Linear)
            return every_position(market, self.position, output.weight, output.bias)
        inner = market.unsqueeze(-2) + self.position if held is None else market + self.position[held]
        if self.account is not None and account is not None:
            inner = inner + self.account(account)
        return self.output(self.activation(inner))

    def _fused(self, market: Tensor) -> bool:
        """Whether the kernel for one hidden layer of tanh serves, which gives the same but for rounding."""
        plain = len(self.output) > 1 or not isinstance(self.activation, Tanh) or torch.jit.is_tracing()
        return not plain and market.shape[-1] % WIDEST_VECTOR == 0 and fused_on_cpu(market, self.position)
