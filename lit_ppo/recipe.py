"""One training's settings in one flat list, and the way from them to policy, optimizer and source of experience.

Both shells build with these functions, so that equal settings give equal weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch

from lit_ppo.argument_types import check_types
from lit_ppo.envs.market import MarketEnv
from lit_ppo.market.stretches import MarketStream
from lit_ppo.market.tensors import GymnasiumTask, MarketTensors
from lit_ppo.nets.encoder import EncoderName
from lit_ppo.nets.initialisation import InitScheme
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.ppo.config import PPOConfig
from lit_ppo.ppo.sources import Experience
from lit_ppo.seeding import make_generator
from lit_ppo.store.prior_weights import PriorWeights, current_settings
from lit_ppo.words import did_you_mean

Policy = MarketPolicy | ObservationPolicy
Batch = Experience | GymnasiumTask  # what a train batch is
_OF_START = ("num_networks", "hidden_size", "shared_encoder", "policy_layers", "value_layers")  # None: those of `start`


@dataclass
class Recipe(PPOConfig):
    """`PPOConfig` and the network: the `model.*` keys of recipes and flags.

    Attributes:
        positions: target exposures, share of notional, rising, with 0; an action is the next position.
        num_networks: networks that learn side by side and vote; None: three with the account at the heads, one at the
            encoder, which has no more.
        encoder: what remembers: "lstm", "gru", or "memoryless", the control that sees one bar at a time.
        hidden_size, num_layers: H and number of the encoder's layers.
        shared_encoder: one encoder for policy and critic, or one each.
        policy_layers, value_layers: widths of the heads' hidden layers.
        activation: "tanh", "relu" or "mish".
        hold_bias: start of the learned bias on the logit of keeping the held position.
        init: start values of the encoder, "chrono" or "orthogonal".
        risk_aversion: a position of 1 is worth its risk where it earns at least half of this on average, volatilities
            (standard deviations of a train bar's price return) a bar held; twice as much where this is the best size.
            None: what the growth of the account asks, the volatility itself: .001 on bars of 15 minutes, .01 on days.
        episode_bars: bars of one episode of the market environment (account at the encoder only); None: the segment.
        start: "scratch", "prior" (the released weights of the prior trader, docs/prior.md) or a prior.safetensors of
            `lit-ppo pretrain`. The network is then theirs, `mirror: auto` is true (they were trained so, and their
            inputs show what a drift or an hour has done so far), and `total_timesteps: 0` trains nothing.
        optimizer: "adam", or "adamw" with torch's weight decay of 0.01 towards zero.
    Where None is allowed it means the default of the policy that `account_at` chooses.
    """

    positions: Sequence[float] = (-1.0, 0.0, 1.0)
    num_networks: int | None = None
    encoder: EncoderName = "lstm"
    hidden_size: int | None = None
    num_layers: int = 1
    shared_encoder: bool | None = None
    policy_layers: Sequence[int] | None = None
    value_layers: Sequence[int] | None = None
    activation: str = "tanh"
    hold_bias: float = 3.0
    init: InitScheme | None = None
    episode_bars: int | None = None
    risk_aversion: float | None = None
    optimizer: Literal["adam", "adamw"] = "adam"
    start: str = "scratch"

    def __post_init__(self) -> None:
        check_types(_recipe_hints(), vars(self), "model.")
        # A checkpoint's settings name the whole network: what they began from may be gone, and is not asked for.
        if self.start != "scratch" and None in (getattr(self, name) for name in _OF_START):
            self.take_network(PriorWeights.read(self.start))
            check_types(_recipe_hints(), vars(self), f"model.start {self.start!r}: ")
        super().__post_init__()
        if self.start != "scratch" and self.mirror == "auto":
            self.mirror = True
        if self.risk_aversion is not None and not self.risk_aversion > 0:
            raise ValueError(f"model.risk_aversion must be above 0 (none: the account's own), got {self.risk_aversion}")
        if self.num_networks is None:
            self.num_networks = 3 if self.account_at == "heads" else 1
        if self.account_at == "encoder" and self.num_networks != 1:
            raise ValueError(f"`account_at: encoder` has one network, got model.num_networks {self.num_networks}")
        if self.account_at == "heads" and self.episode_bars is not None:
            raise ValueError(
                "model.episode_bars belongs to `account_at: encoder`; at the heads a stretch is num_steps bars long"
            )

    @property
    def least_timesteps(self) -> int:
        return 1 if self.start == "scratch" else 0

    def take_network(self, weights: PriorWeights) -> None:
        """The network is that of the weights to start from; what is asked for beside it must agree."""
        for name, theirs in {**weights.network, "num_networks": 1, "account_at": "heads"}.items():
            asked = getattr(self, name)
            default = type(self).__dataclass_fields__[name].default
            same = list(asked) == list(theirs) if isinstance(theirs, list) and asked is not None else asked == theirs
            if not same and asked != default:
                raise ValueError(
                    f"model.{name} is {asked!r}, but model.start {self.start!r} is a network with {theirs!r}. Leave "
                    f"model.{name} out, or start from scratch"
                )
            setattr(self, name, theirs)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists only, as a checkpoint keeps them."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read `to_dict` back.

        Raises:
            ValueError: a name that this version does not know.
        """
        values = current_settings(values)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"The checkpoint's settings {unknown} are of another version of lit-ppo")
        return cls(**values)


@functools.cache
def _recipe_hints() -> dict[str, Any]:
    return get_type_hints(Recipe)


def check_name(name: str) -> None:
    """Check that `model.NAME` exists.

    Raises:
        ValueError: it does not; names the nearest, or all.
    """
    known = Recipe.__dataclass_fields__
    if name not in known:
        raise ValueError(f"{name!r} is no key of model.*; {did_you_mean(repr(name), map(repr, known))}")


SMALL_NETWORK = 64  # hidden units: below, one operation takes microseconds


def suitable_threads(recipe: Recipe) -> int:
    """Threads of torch for a training: one for a small network, else torch's own choice.

    Threads that share microseconds of work wait for each other most of the time: on a busy machine a small network
    trained 300 times slower with two. And the last bit of a sum may depend on their number, so that one thread
    gives the same bits on machines of any size.
    """
    hidden = recipe.hidden_size or (16 if recipe.account_at == "heads" else 64)
    return 1 if hidden <= SMALL_NETWORK else torch.get_num_threads()


NETWORK: tuple[str, ...] = ("positions", "num_networks", "hidden_size", "num_layers", "shared_encoder", "policy_layers")
NETWORK += ("value_layers", "activation", "encoder", "account_at", "account_features")


def differences(then: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str] | None = None) -> list[str]:
    """List what differs between two `to_dict`s, ready for a message."""
    then = current_settings(then)
    names = names or sorted(then.keys() | now.keys())
    return [
        f"model.{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in names
        if then.get(name) != now.get(name)
    ]


def resume_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], str]:
    """Compare the settings of a checkpoint with those of the training that goes on from it.

    Returns:
        What forbids it, ready for a message; and what to tell where the one setting that may grow has grown, the budget
        ("" if it has not).
    """
    before, total = then.get("total_timesteps", 0), now["total_timesteps"]
    if total <= before:
        return differences(then, now), ""
    told = f"Going on with a budget of {total:,} timesteps, was {before:,}: schedules now run over the new total"
    return differences({**then, "total_timesteps": total}, now), told


def experience(recipe: Recipe, batch: Batch, seed: int, rank: int = 0) -> Experience:
    """Return what `Learner.attach` wants: the bars (account at the heads), or the environment that the batch describes.

    Raises:
        ValueError: a gymnasium environment with the account at the heads.
    """
    if isinstance(batch, GymnasiumTask):
        if recipe.account_at != "encoder":
            raise ValueError(
                f"{batch.env_id} is no market: set model.account_at: encoder and model.estimator: sampled, "
                f"got {recipe.account_at} and {recipe.estimator}"
            )
        from lit_ppo.envs.gymnasium_vector import environment_of  # gymnasium: who decides on bars needs none of it

        return environment_of(batch, recipe.num_envs, seed=seed, rank=rank, gamma=recipe.gamma)
    if not isinstance(batch, MarketTensors):
        if recipe.risk_aversion is not None:
            raise ValueError(f"model.risk_aversion {recipe.risk_aversion} is for bars of one market; leave it out here")
        return batch
    batch = dataclasses.replace(batch, risk_aversion=recipe.risk_aversion)
    if recipe.account_at == "heads":
        return batch
    generator = make_generator(seed, rank, "environment", batch.features.device)
    return MarketEnv(
        batch,
        recipe.positions,
        recipe.num_envs,
        generator=generator,
        episode_bars=recipe.episode_bars,
        random_start=recipe.random_start,
        account_features=recipe.account_features,
    )


def policy_inputs(source: Experience) -> dict[str, Any]:
    """Return what a policy must know of its source of experience, as a checkpoint keeps it."""
    if isinstance(source, MarketTensors | MarketStream):
        return {"feature_names": list(source.feature_names)}
    return {
        "observation_size": source.observation_size,
        "num_actions": source.num_actions,
        "action_size": source.action_size,
        "hold_column": source.hold_column,
    }


def build_policy(recipe: Recipe, inputs: Mapping[str, Any], seed: int) -> Policy:
    """Build the policy that a training for `policy_inputs` begins with: `recipe.start`, or values made of `seed` alone.

    Raises:
        FileNotFoundError, ValueError: the weights to start from are not there, or are of another network.
    """
    policy = empty_policy(recipe, inputs, seed)
    if recipe.start != "scratch":
        weights = PriorWeights.read(recipe.start)
        recipe.take_network(weights)
        try:
            policy.load_state_dict(weights.fitted(inputs["feature_names"]))
        except RuntimeError as error:  # names or shapes that differ
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"model.start {recipe.start!r}: its tensors are not of its network: {reason}") from error
    return policy


def empty_policy(recipe: Recipe, inputs: Mapping[str, Any], seed: int) -> Policy:
    """Build the policy for weights that are at hand: a checkpoint's take the place of what `recipe.start` was."""
    names: tuple[str, ...] = ("hidden_size", "num_layers", "shared_encoder", "policy_layers", "value_layers")
    names += ("activation", "hold_bias", "encoder", "init")
    network = {name: getattr(recipe, name) for name in names if getattr(recipe, name) is not None}
    network |= {"positions": recipe.positions, "generator": make_generator(seed, 0, "weights")}
    if "feature_names" not in inputs:
        return ObservationPolicy(**inputs, **network)
    return MarketPolicy(
        len(inputs["feature_names"]),
        num_networks=recipe.num_networks or 1,
        num_account=len(recipe.account_features) - 1,  # the held position enters by itself
        **network,
    )


def load_policy(checkpoint: Mapping[str, Any]) -> tuple[Policy, Recipe]:
    """Rebuild the policy that a checkpoint of either shell holds, and the settings it was trained with."""
    settings = dict(checkpoint["hyper_parameters"])
    seed = settings.pop("seed")
    recipe = Recipe.from_dict(settings)
    policy = empty_policy(recipe, checkpoint["policy"], seed)
    policy.load_state_dict({name.removeprefix("policy."): x for name, x in checkpoint["state_dict"].items()})
    return policy, recipe


def build_optimizer(policy: Policy, recipe: Recipe, loss_scaling: bool = False) -> torch.optim.Optimizer:
    """Adam or AdamW with eps 1e-5 (arXiv:2005.12729); the learner sets the learning rate before each iteration.

    Args:
        loss_scaling: gradients will be scaled (`16-mixed`): they must be unscaled before they are clipped, which
            torch's fused step would do itself, afterwards. So it is not used then; else it is several times faster.
    """
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(policy.parameters(), lr=recipe.learning_rate, eps=1e-5, foreach=loss_scaling, fused=not loss_scaling)
