"""The networks of a policy as the one that decides: what each sees of the market, and the sum of their votes."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_ppo.nets.networks import PolicyState
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy


class Committee:
    """K networks that vote, each with V views: the market and, where it was trained mirrored, the market upside down.

    S = K V sequences run side by side, network by network and view by view. Logits are added; a mirrored view's are
    turned back first, its long is our short: so the decision is exactly symmetric. A policy that sees its account in
    the encoder is one network with one view.

    Attributes:
        policy: whose networks these are.
        networks: K.
        views: V, 1 or 2.
    """

    def __init__(self, policy: MarketPolicy | ObservationPolicy) -> None:
        self.policy = policy
        self.networks = policy.num_networks
        self.views = 2 if isinstance(policy, MarketPolicy) and bool(policy.mirrored) else 1

    @property
    def size(self) -> int:
        """S, the votes that a decision adds up."""
        return self.networks * self.views

    def initial_state(self) -> PolicyState:
        """S sequences without memory."""
        return self.policy.initial_state(self.size)

    def see(self, features: Tensor) -> Tensor:
        """Market features [C, F] -> [C, S, F]: what each sequence sees."""
        views = [features]
        if self.views == 2:
            views.append(features * self.policy.mirror_sign)  # type: ignore[operator]
        return torch.stack(views, dim=1).repeat(1, self.networks, 1)

    def remember(self, features: Tensor, state: PolicyState) -> tuple[Tensor, PolicyState]:
        """Market features [C, F] -> memories [C, S, H], and the state after them."""
        assert isinstance(self.policy, MarketPolicy)
        encoded, state = self.policy.encode(self.see(features), state)
        return encoded.policy, state

    def votes(self, memories: Tensor) -> Tensor:
        """Memories [..., S, H] -> [..., P, P]: row = held position, column = next one."""
        assert isinstance(self.policy, MarketPolicy)
        logits = self.policy.logits(memories)  # [..., S, P, P]
        if self.views == 1:
            return logits.sum(-3)
        views = logits.unflatten(-3, (self.networks, 2))
        return views.select(-3, 0).sum(-3) + views.select(-3, 1).sum(-3).flip(-1, -2)

    def votes_from(self, held: Tensor, memories: Tensor, account: Tensor | None = None) -> Tensor:
        """Memories [S, H] of one bar -> [P], for one held position [1] and further account features [1, C]."""
        assert isinstance(self.policy, MarketPolicy)
        sides = held
        if self.views == 2:
            sides = torch.cat([held, len(self.policy.positions) - 1 - held])
        seen = None if account is None else account.expand(self.size, -1)
        logits = self.policy.logits(memories, sides.repeat(self.networks), seen)  # [S, P]
        if self.views == 1:
            return logits.sum(0)
        views = logits.unflatten(0, (self.networks, 2))
        return views[:, 0].sum(0) + views[:, 1].sum(0).flip(-1)

    def probabilities(self, votes: Tensor) -> Tensor:
        """Votes [..., P] -> probabilities of the mean of the logits."""
        return (votes / self.size).softmax(-1)
