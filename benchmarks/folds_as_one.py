"""Several trainings of one shape as one batch: every fold's networks side by side, for a card that waits for launches.

`FoldsAsOne` makes the same iterations as a `Learner` each: the same draws, rollouts, losses and steps of the optimizer,
with the axis fold x network in front (`torch.func.vmap`; torch has no rule for its own LSTMs, pytorch #105982, so the
layer is the plain loop). What is drawn is drawn fold by fold, by its own generators. It is for trainings from scratch
that know nothing of each other: no warm start, and no callback looks in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.market.stretches import MarketStretches
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.lstm import LSTM
from lit_ppo.nets.networks import Seen
from lit_ppo.nets.policy import AllActionOutputs, MarketPolicy
from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.rollout import AllActionRollout, collect_counterfactual
from lit_ppo.ppo.schedules import linear
from lit_ppo.ppo.sources import Window
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, policy_inputs

BARS = ("price_return", "turnover_cost", "carry_long", "carry_short", "reward_scale")  # what a reward is made of


class _OneNetwork(nn.Module):
    """One network as a function: a rollout of stretches, or what the loss needs of it."""

    def __init__(self, policy: MarketPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, seen: Seen | MarketStretches, market: MarketTensors | None, recipe: Recipe) -> Any:
        if isinstance(seen, MarketStretches):
            assert market is not None
            return collect_counterfactual(self.policy, market, seen, recipe.gamma, recipe.gae_lambda)
        outputs = self.policy.every_action(seen)
        return outputs.logits, outputs.values


def batched(function: Callable[..., Any], *trees: Any) -> Any:
    """`vmap` over the first axis of every tensor in `trees`; whatever else is in them, None too, stays as it is."""
    given, layout = pytree.tree_flatten(trees)
    places = [place for place, leaf in enumerate(given) if isinstance(leaf, Tensor)]
    result: list[Any] = []

    def of_one(*tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(given)
        for place, tensor in zip(places, tensors, strict=True):
            leaves[place] = tensor
        result[:] = pytree.tree_flatten(function(*pytree.tree_unflatten(leaves, layout)))
        return tuple(leaf for leaf in result[0] if isinstance(leaf, Tensor))

    tensors = iter(vmap(of_one)(*(given[place] for place in places)))
    leaves, layout = result
    return pytree.tree_unflatten([next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves], layout)


def stacked(several: Sequence[Any]) -> Any:
    """Tuples of tensors, and of what is the same in all of them -> one, with an axis in front of its tensors."""
    return pytree.tree_map(lambda *x: torch.stack(x) if isinstance(x[0], Tensor) else x[0], *several)


def by_tensor(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


class FoldsAsOne:
    """The trainings of several learners, one PPO iteration of all of them at a time.

    Args:
        learners: of one recipe (counterfactual, no `target_kl`) and one device, each attached to train bars of one
            length that it sees something in. Their policies hold what was learnt after `give_back`.

    Attributes:
        weights: by name, [F K, ...], fold by fold.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        first = learners[0]
        self.recipe, self.networks = first.config, first.policy.num_networks
        assert isinstance(self.recipe, Recipe)
        if self.recipe.estimator != "counterfactual" or self.recipe.target_kl is not None:
            raise ValueError("Folds are trained as one with `estimator: counterfactual` and without `target_kl`")
        self.sources = [learner.source for learner in learners]
        lengths = {source.market.num_decisions if isinstance(source, Window) else 0 for source in self.sources}
        if len(lengths) > 1 or 0 in lengths or any(learner.finished for learner in learners):
            raise ValueError(f"Folds are trained as one on windows of one length that show something, got {lengths}")
        self.device = next(first.policy.parameters()).device
        markets = [source.market for source in self.sources]  # type: ignore[attr-defined]  # every source is a window
        self.market = market = max(markets, key=len)
        self.one = _OneNetwork(build_policy(replace(self.recipe, num_networks=1), policy_inputs(market), 0)).to(
            self.device
        )
        for layer in self.one.modules():
            if isinstance(layer, LSTM):
                layer.implementation = "reference"  # the one of plain operations, which vmap knows
        self.weights = self._stacked([dict(x.named_parameters()) for y in learners for x in y.policy.networks])
        self.fixed = self._stacked([self._inputs(learner.policy) for learner in learners for _ in range(self.networks)])
        self.start = {name: value.detach().clone() for name, value in self.weights.items() if "encoder" in name}
        self.optimizer = build_optimizer(nn.ParameterList(self.weights.values()), self.recipe)  # type: ignore[arg-type]
        self.bars = {name: self._by_network([torch.as_tensor(getattr(x, name)) for x in markets]) for name in BARS}

    @property
    def finished(self) -> bool:
        return self.learners[0].finished

    def iterate(self) -> Tensor:
        """One PPO iteration of every fold; returns the mean loss of each, [F]."""
        leading, recipe = self.learners[0], self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = linear(leading.learning_rate, leading.final_learning_rate, leading.progress)
        with torch.no_grad():
            rollout = batched(leading.normalise, self._collect())
        losses = []
        for _ in range(recipe.update_epochs):
            orders = [torch.randperm(recipe.num_envs, generator=x.minibatch_generator) for x in self.learners]
            for sequences in torch.stack(orders).to(self.device).chunk(recipe.num_minibatches, 1):
                own = sequences.unsqueeze(1).expand(-1, self.networks, -1)  # the same ones for each network
                losses.append(self._step(batched(partial(batched, AllActionRollout.select), rollout, own)))
        for learner in self.learners:
            learner.timesteps += recipe.steps_per_iteration
            learner.iteration += 1
        return torch.stack(losses).mean(0)

    def give_back(self) -> None:
        """Copy the weights into the learners' policies."""
        networks = [network for learner in self.learners for network in learner.policy.networks]
        with torch.no_grad():
            for index, network in enumerate(networks):
                for name, parameter in network.named_parameters():
                    parameter.copy_(self.weights[_name(name)][index])

    def _collect(self) -> AllActionRollout:
        """One rollout of each network, [F, K, T, S, ...]."""
        recipe, drawn = self.recipe, []
        for learner, source in zip(self.learners, self.sources, strict=True):
            assert isinstance(source, Window)
            stretches = source.draw(learner.rollout_generator)
            if stretches.mirror is None:
                upright = torch.ones(stretches.rows.shape[1], device=self.device)
                stretches = stretches._replace(mirror=upright)
            drawn += stretches.split(self.networks)

        def of_network(weights, fixed, bars, stretches):
            market = replace(self.market, **bars)
            return functional_call(self.one, {**weights, **fixed}, (stretches, market, recipe))

        rollout = batched(of_network, self.weights, self.fixed, self.bars, stacked(drawn))
        return by_tensor(lambda x: x.unflatten(0, (-1, self.networks)), rollout)

    def _step(self, minibatch: AllActionRollout) -> Tensor:
        """One step of the optimizer on one minibatch of every fold; returns their losses [F]."""
        recipe = self.recipe
        seen = by_tensor(lambda x: x.flatten(0, 1), minibatch.seen)  # [F K, ...]

        def of_network(weights, fixed, seen):
            return functional_call(self.one, {**weights, **fixed}, (seen, None, recipe))

        def of_fold(logits, values, minibatch):
            return self.learners[0].objective(AllActionOutputs(logits, values), minibatch).total

        outputs = batched(of_network, self.weights, self.fixed, seen)
        losses = batched(of_fold, *(x.unflatten(0, (-1, self.networks)) for x in outputs), minibatch)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._clip()
        self.optimizer.step()
        with torch.no_grad():
            strength = self.optimizer.param_groups[0]["lr"] * self.sources[0].pull  # type: ignore[attr-defined]
            for name, start in self.start.items():
                self.weights[name].lerp_(start, strength)
        return losses.detach()

    def _clip(self) -> None:
        """Clip the norm of each network's gradient, as `Learner.prepare_gradients` does."""
        gradients = [weights.grad for weights in self.weights.values() if weights.grad is not None]
        squares = torch.stack([x.square().view(len(x), -1).sum(1) for x in gradients]).sum(0)  # [F K]
        scale = (self.recipe.max_grad_norm / self.networks / (squares.sqrt() + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))

    @staticmethod
    def _inputs(policy: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in policy.named_buffers() if "." not in name}

    def _stacked(self, several: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Parameters (leaves of their own) or buffers, by their name within `_OneNetwork`."""
        found: dict[str, Tensor] = {}
        for name, value in several[0].items():
            values = torch.stack([one[name].detach() for one in several])
            if isinstance(value, nn.Parameter):
                found[_name(name)] = nn.Parameter(values)
            else:
                found[f"policy.{name}"] = values
        return found

    def _by_network(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor for each fold -> [F K, ...]; the first fold has fewer bars before it, and gets zeros after."""
        padded = nn.utils.rnn.pad_sequence(list(values), batch_first=True) if values[0].ndim else torch.stack([*values])
        return padded.to(self.device).repeat_interleave(self.networks, 0)


def _name(name: str) -> str:
    """A network's parameter, within `_OneNetwork`."""
    return f"policy.networks.0.{name}"


def fold_learners(folds: int, device: str = "cpu", **settings: Any) -> list[Learner]:
    """The default recipe on so many walk-forward windows of 2,000 bars of a market with a regime, features as shipped.

    Args:
        settings: of the recipe.
    """
    recipe = Recipe(**{"screen_features": False, **settings})
    market = SyntheticMarket(kind="regime", mu=0.3, seed=1, num_bars=3_300 + 500 * folds)
    data = WalkForwardDataModule(synthetic=market, fold_limit=folds, cache=False)
    data.setup()
    learners = []
    for fold in range(folds):
        train = data.fold_data(fold).train.to(device)
        policy = build_policy(recipe, policy_inputs(train), seed=fold).to(device)
        learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=fold)
        learner.attach(train)
        learners.append(learner)
    return learners
