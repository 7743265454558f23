"""One decision of a market policy as a function of tensors alone: what signals step through and ONNX holds.

`lit_ppo.scoring.evaluation` does the same bar by bar; tests hold the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo.nets.committee import Committee
from lit_ppo.nets.encoder import Encoder, EncoderState, state_like
from lit_ppo.nets.networks import PolicyState, join_sequences
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.recipe import Policy


class Decision(NamedTuple):
    """What a policy says at the close of one bar.

    Attributes:
        votes: [P] logits, summed over the networks and the views of the market.
        probabilities: [P] of the mean of those logits.
        action: [1] int64 index of the position to hold next.
        memory: the encoder's state after the bar, tensors [L, S, H].
    """

    votes: Tensor
    probabilities: Tensor
    action: Tensor
    memory: EncoderState


class DecisionStep(nn.Module):
    """The policy, one bar at a time, on plain torch operations; S sequences side by side, as its `committee` says."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        for module in policy.modules():
            if isinstance(module, Encoder):
                module.step_by_step()
        self.committee = Committee(policy)

    def initial_state(self) -> EncoderState:
        """No memory: tensors [L, S, H] of zeros."""
        return self.committee.initial_state().policy

    def forward(self, features: Tensor, held: Tensor, account: Tensor | None, *memory: Tensor) -> Decision:
        """Decide at the close of one bar.

        Args:
            features: [F] float32, scaled.
            held: [1] int64 index of the held position.
            account: [1, C] float32 other account features that the policy was trained with; None if there are none.
            memory: the tensors [L, S, H] of the encoder's state before the bar.
        """
        state = state_like(self.initial_state(), memory)
        if isinstance(self.policy, ObservationPolicy):
            votes, state = self._of_observation(self.policy, features, held, account, state)
        else:
            votes, state = self._of_market(self.policy, features, held, account, state)
        return Decision(votes, self.committee.probabilities(votes), votes.argmax(-1, keepdim=True), state)

    def _of_market(
        self, policy: MarketPolicy, features: Tensor, held: Tensor, account: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, EncoderState]:
        views = self.committee.see(features.unsqueeze(0)) * policy.input_gain  # [1, S, F]
        size = self.committee.views
        memories, after = [], []
        for index, network in enumerate(policy.networks):
            own = slice(index * size, (index + 1) * size)
            before = PolicyState(state).select(own).policy
            memory, state_after = network.encoder.policy(views[:, own], before)
            memories.append(memory[0])
            after.append(PolicyState(state_after))
        votes = self.committee.votes_from(held, torch.cat(memories), account)
        return votes, join_sequences(after).policy

    def _of_observation(
        self, policy: ObservationPolicy, features: Tensor, held: Tensor, account: Tensor | None, state: EncoderState
    ) -> tuple[Tensor, EncoderState]:
        exposure = policy.positions[held].float().unsqueeze(-1)  # [1, 1]
        columns = [features.unsqueeze(0), exposure]
        observation = torch.cat(columns if account is None else [*columns, account], dim=-1)
        memory, state = policy.encoder.policy(observation.unsqueeze(0), state)
        return policy.action_parameters(memory[0], observation)[0], state
