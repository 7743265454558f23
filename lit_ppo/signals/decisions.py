"""One decision of a market policy as a function of tensors alone: what signals step through and ONNX holds.

`lit_ppo.scoring.evaluation` does the same bar by bar; tests hold the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo.nets.lstm import LSTM, LSTMState
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.recipe import Policy
from lit_ppo.scoring.evaluation import sum_of_votes, views_of_market


class Decision(NamedTuple):
    """What a policy says at the close of one bar.

    Attributes:
        votes: [P] logits, summed over the networks and the views of the market.
        probabilities: [P] of the mean of those logits.
        action: [1] int64 index of the position to hold next.
        hidden, cell: [L, S, H] the memory after the bar.
    """

    votes: Tensor
    probabilities: Tensor
    action: Tensor
    hidden: Tensor
    cell: Tensor


class DecisionStep(nn.Module):
    """The policy, one bar at a time, on plain torch operations.

    Attributes:
        num_views: S, LSTM sequences side by side: K networks, times 2 where the mirrored market is looked at as well.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        for module in policy.modules():
            if isinstance(module, LSTM):
                module.implementation = "reference"  # the one that can be traced, and the fastest for a single step
        views = 2 if isinstance(policy, MarketPolicy) and bool(policy.mirrored) else 1
        self.num_views = views * (policy.num_networks if isinstance(policy, MarketPolicy) else 1)

    def initial_state(self) -> LSTMState:
        """No memory: hidden and cell [L, S, H] of zeros."""
        return self.policy.initial_state(self.num_views).policy

    def forward(self, features: Tensor, held: Tensor, account: Tensor | None, hidden: Tensor, cell: Tensor) -> Decision:
        """Decide at the close of one bar.

        Args:
            features: [F] float32, scaled.
            held: [1] int64 index of the held position.
            account: [1, C] float32 other account features that the policy was trained with; None if there are none.
            hidden, cell: [L, S, H] the memory before the bar.
        """
        state = LSTMState(hidden, cell)
        if isinstance(self.policy, ObservationPolicy):
            votes, state = self._of_observation(self.policy, features, held, account, state)
        else:
            votes, state = self._of_market(self.policy, features, held, account, state)
        probabilities = (votes / self.num_views).softmax(-1)
        return Decision(votes, probabilities, votes.argmax(-1, keepdim=True), state.hidden, state.cell)

    def _starts(self, recurrent: bool, sequences: int) -> Tensor | None:
        """The memoryless control forgets before every bar."""
        return None if recurrent else torch.ones(1, sequences, dtype=torch.bool)

    def _of_market(
        self, policy: MarketPolicy, features: Tensor, held: Tensor, account: Tensor | None, state: LSTMState
    ) -> tuple[Tensor, LSTMState]:
        views = views_of_market(policy, features.unsqueeze(0)) * policy.input_gain  # [1, S, F]
        size = self.num_views // policy.num_networks
        memories, hiddens, cells = [], [], []
        for index, network in enumerate(policy.networks):
            own = slice(index * size, (index + 1) * size)
            before = LSTMState(state.hidden[:, own], state.cell[:, own])
            memory, after = network.encoder.policy(views[:, own], before, self._starts(policy.recurrent, size))
            memories.append(memory[0])
            hiddens.append(after.hidden)
            cells.append(after.cell)
        votes = sum_of_votes(policy, torch.cat(memories), held, account)
        return votes, LSTMState(torch.cat(hiddens, 1), torch.cat(cells, 1))

    def _of_observation(
        self, policy: ObservationPolicy, features: Tensor, held: Tensor, account: Tensor | None, state: LSTMState
    ) -> tuple[Tensor, LSTMState]:
        exposure = policy.positions[held].float().unsqueeze(-1)  # [1, 1]
        columns = [features.unsqueeze(0), exposure]
        observation = torch.cat(columns if account is None else [*columns, account], dim=-1)
        memory, state = policy.encoder.policy(observation.unsqueeze(0), state, self._starts(policy.recurrent, 1))
        return policy.action_parameters(memory[0], observation)[0], state
