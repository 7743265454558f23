"""What reads a sequence and remembers: the protocol that every encoder keeps.

A new one is a subclass of `Encoder` in a file of its own, its name in `EncoderName` and a line in `networks.ENCODERS`;
training, resume, signals and export ask for nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lit_ppo.nets.initialisation import InitScheme

EncoderName = Literal["lstm", "gru", "memoryless"]


class EncoderState(Protocol):
    """What an encoder remembers of S sequences: a NamedTuple of tensors [L, S, H], zeros being no memory.

    Only the encoder knows what they mean. Others select, join, reset and store them, by name.
    """

    def __iter__(self) -> Iterator[Any]: ...

    def _asdict(self) -> dict[str, Any]: ...


State = TypeVar("State", bound=EncoderState)


def state_like(state: State, tensors: Iterable[Tensor]) -> State:
    """A state of that encoder with these tensors."""
    return type(state)(*tensors)


class Encoder(nn.Module, Generic[State]):
    """Whole time-major sequences in one call, with resets inside them.

    Args:
        num_inputs: F, width of an input.
        hidden_size: H, width of what is remembered of a step.
        num_layers: L; layer l > 0 reads the hidden of layer l - 1.

    Attributes:
        recurrent: a step's output depends on the steps before it.
        state_type: the NamedTuple of its state.
        weight_layout: what a port must know to read its weights.

    Raises:
        ValueError: a size below 1.
    """

    recurrent: bool = True
    state_type: type[State]
    weight_layout: str

    def __init__(self, num_inputs: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        if min(num_inputs, hidden_size, num_layers) < 1:
            raise ValueError(
                f"{type(self).__name__} needs num_inputs, hidden_size and num_layers >= 1, "
                f"got {num_inputs}, {hidden_size} and {num_layers}"
            )
        self.num_inputs, self.hidden_size, self.num_layers = num_inputs, hidden_size, num_layers

    @abstractmethod
    def initialise(self, scheme: InitScheme, generator: torch.Generator | None) -> None:
        """Draw the start values, see `lit_ppo.nets.initialisation`."""

    @abstractmethod
    def forward(self, inputs: Tensor, state: State, episode_starts: Tensor | None = None) -> tuple[Tensor, State]:
        """Run T steps of S sequences.

        Args:
            inputs: [T, S, F].
            state: of S sequences, before inputs[0].
            episode_starts: [T, S] bool: the state is zeroed *before* that step; None: never.

        Returns:
            what is remembered after each step [T, S, H], and the state after step T.

        Raises:
            ValueError: shapes that do not fit, or no step or sequence at all.
        """

    def step_by_step(self) -> None:
        """Prepare for single steps, and for being traced: torch's own operations only."""

    def initial_state(self, num_sequences: int) -> State:
        """Return zeros: an episode starts without memory."""
        zeros = next(self.parameters()).new_zeros(self.num_layers, num_sequences, self.hidden_size)
        return self.state_type(*(zeros.clone() for _ in self.state_type.__annotations__))

    def extra_repr(self) -> str:
        return f"{self.num_inputs}, {self.hidden_size}, num_layers={self.num_layers}"

    def _check(self, inputs: Tensor, state: State, episode_starts: Tensor | None) -> None:
        name = type(self).__name__
        if inputs.ndim != 3 or inputs.shape[-1] != self.num_inputs or 0 in inputs.shape:
            raise ValueError(
                f"{name} needs inputs [T, S, {self.num_inputs}] with at least one step and one sequence, "
                f"got {list(inputs.shape)}"
            )
        expected = [self.num_layers, inputs.shape[1], self.hidden_size]
        if any(list(part.shape) != expected for part in state):
            found = " and ".join(f"{key} {list(part.shape)}" for key, part in state._asdict().items())
            raise ValueError(
                f"{name} needs a state of [L, S, H] = {expected} for inputs {list(inputs.shape)}, got {found}"
            )
        if episode_starts is not None and (
            episode_starts.shape != inputs.shape[:2] or episode_starts.dtype != torch.bool
        ):
            raise ValueError(
                f"{name} needs episode_starts [T, S] = {list(inputs.shape[:2])} of bool, "
                f"got {list(episode_starts.shape)} of {episode_starts.dtype}"
            )
