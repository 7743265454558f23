"""Where a learner's rollouts come from: a window of bars, a stream of markets without end, or environments."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lit_ppo.envs.protocol import EpisodicEnv, VectorEnv
from lit_ppo.market.stretches import MarketStream, MarketStretches
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.networks import join_sequences
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.ppo.config import PPOConfig
from lit_ppo.ppo.ranks import Ranks
from lit_ppo.ppo.rollout import (
    AllActionRollout,
    Rollout,
    SampledRollout,
    StepwiseCollector,
    collect_counterfactual,
    collect_sampled,
    draw_stretches,
)
from lit_ppo.ppo.screening import InputScreen, keep_all_features, screen_features
from lit_ppo.ppo.threaded_loss import in_threads, pieces_on, share_threads

Experience = MarketTensors | MarketStream | VectorEnv


class Source:
    """What a learner asks of its experience; here, of one without bars of its own.

    Attributes:
        screen: what the screen of the features found on the train bars; None where there was none.
        mirror_record: why the market is learnt from upside down as well, or not, where the train bars decided
            (`mirror: auto`); None elsewhere.
        sees_nothing: nothing there can be learnt from: the policy stays flat.
        shares_threads: threads that share the sequences of a minibatch pay (`lit_ppo.ppo.threaded_loss`).
    """

    screen: InputScreen | None = None
    mirror_record: dict[str, Any] | None = None
    sees_nothing = False
    shares_threads = False

    @abstractmethod
    def collect(self, iteration: int, generator: torch.Generator) -> Rollout:
        """One rollout with the current policy; its advantages are not normalised."""

    @abstractmethod
    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """What the agent did in a rollout, keys of docs/metrics.md."""

    def within_passes(self, timesteps: int) -> int:
        """What a budget of `timesteps` comes to here."""
        return timesteps

    def after_step(self, learning_rate: float) -> None:
        """What follows every step of the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: `start` and `collector`, tensors, numbers, strings, lists and dicts only."""
        return {"start": [], "collector": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


class Window(Source):
    """The train bars of a fold, account at the heads: screened, mirrored, with dropout and a pull to the start.

    Raises:
        ValueError: a mirror, and positions that are not symmetric.
    """

    def __init__(self, market: MarketTensors, policy: MarketPolicy, config: PPOConfig, seed: int) -> None:
        if config.mirror is True and not policy.symmetric:
            raise ValueError(
                f"`mirror` needs a position grid that is symmetric about 0, got {policy.positions.tolist()}. "
                "Set model.mirror: auto or false, or give symmetric model.positions."
            )
        self.market, self.policy, self.config = market, policy, config
        self.mirrored, screen = config.mirror is True, keep_all_features(market)
        if config.mirror == "auto" or config.screen_features:
            found = screen_features(market, seed)
            if config.mirror == "auto":
                self.mirrored = found.symmetric and policy.symmetric
                self.mirror_record = found.mirror_record(self.mirrored)
            if config.screen_features:
                self.screen = screen = found
        policy.set_inputs(screen.gain, screen.mirror_sign, self.mirrored)
        # No feature passed the screen and the market is mirrored: such a policy has no side to take, and is flat.
        blind = config.screen_features and not screen.gain.any() and self.mirrored
        self.sees_nothing = blind and tuple(config.account_features) == ("position",)
        self._start: list[Tensor] = [parameter.detach().clone() for parameter in self._pulled()]

    def draw(self, generator: torch.Generator) -> MarketStretches:
        """The stretches of one rollout, for every network."""
        config, market = self.config, self.market
        return draw_stretches(
            self.policy,
            market,
            config.num_envs,
            config.num_steps,
            config.burn_in,
            self.mirrored,
            config.hidden_dropout / (1 + market.num_decisions / 50_000),
            generator,
            config.random_start,
        )

    def collect(self, iteration: int, generator: torch.Generator) -> Rollout:
        config, policy, market = self.config, self.policy, self.market
        stretches = self.draw(generator)
        if config.estimator == "counterfactual":
            return collect_counterfactual(policy, market, stretches, config.gamma, config.gae_lambda)
        return collect_sampled(
            policy, market, stretches, config.account_features, config.gamma, config.gae_lambda, generator
        )

    def within_passes(self, timesteps: int) -> int:
        """No more than `max_passes` over the train bars."""
        if self.config.max_passes is None:
            return timesteps
        return min(timesteps, math.ceil(self.config.max_passes * math.sqrt(2_000 * self.market.num_decisions)))

    def _pulled(self) -> list[nn.Parameter]:
        """The weights that are drawn back to their start: the encoders'."""
        if not self.config.pull_to_start:
            return []
        return [parameter for network in self.policy.networks for parameter in network.encoder.parameters()]

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:
        """Decoupled decay towards the start values (as Loshchilov and Hutter 2019, arXiv:1711.05101, towards 0)."""
        if self._start:
            torch._foreach_lerp_(list[Tensor](self._pulled()), self._start, learning_rate * self.pull)

    @property
    def pull(self) -> float:
        """Strength with which weights are drawn back, per unit of step size: `pull_to_start`, less for many bars."""
        return self.config.pull_to_start / (1 + self.market.num_decisions / 200_000)

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        return behaviour(rollout, self.policy.positions.float())

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "collector": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = [start.to(own.device) for start, own in zip(state["start"], self._pulled(), strict=True)]


class Stream(Source):
    """Other markets in every iteration: no window whose noise could be learnt.

    Raises:
        ValueError: settings that need a window.
    """

    shares_threads = True

    def __init__(self, stream: MarketStream, policy: MarketPolicy, config: PPOConfig) -> None:
        unfit = config.screen_features or config.hidden_dropout or config.mirror == "auto"
        if policy.num_networks != 1 or unfit:
            raise ValueError(
                "A stream of markets has no train window to screen, to spare or to vote about: set "
                "model.num_networks: 1, model.screen_features: false, model.hidden_dropout: 0 and model.mirror"
            )
        self.stream, self.policy, self.config = stream, policy, config
        parity = torch.tensor(stream.feature_parity, dtype=torch.float32)
        policy.set_inputs(torch.ones_like(parity), parity, config.mirror is True)

    def collect(self, iteration: int, generator: torch.Generator) -> AllActionRollout:
        config = self.config
        market, stretches = self.stream.draw(iteration, config.num_envs, config.num_steps)
        pieces = pieces_on(stretches.features.device, config.num_envs)

        def collect(part: MarketStretches) -> AllActionRollout:
            return collect_counterfactual(self.policy, market, part, config.gamma, config.gae_lambda)

        if pieces == 1:
            return collect(stretches)
        with share_threads(pieces):
            return join_sequences(in_threads(collect, stretches.split(pieces)))

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        return behaviour(rollout, self.policy.positions.float())


class Environments(Source):
    """Any vector environment, stepped with the policy; it goes on where the last rollout ended."""

    shares_threads = True

    def __init__(self, env: VectorEnv, policy: ObservationPolicy, config: PPOConfig, ranks: Ranks) -> None:
        self.collector, self.config, self.ranks = StepwiseCollector(env, policy), config, ranks

    def collect(self, iteration: int, generator: torch.Generator) -> SampledRollout:
        config, policy, env = self.config, self.collector.policy, self.collector.env
        rollout = self.collector.collect(config.num_steps, config.gamma, config.gae_lambda, generator)
        if isinstance(env, EpisodicEnv):
            if self.ranks.world_size > 1:  # other statistics would make another policy of the same weights
                device = next(policy.parameters()).device
                env.share_statistics(lambda values: self.ranks.of_every(values, device))
            policy.set_statistics(*env.observation_statistics)
        return rollout

    def metrics(self, rollout: Rollout) -> dict[str, float]:
        """What the episodes that ended in this rollout earned, in the environment's own rewards; {} if none did."""
        env = self.collector.env
        episodes = env.take_episodes() if isinstance(env, EpisodicEnv) else []
        if not episodes:
            return {}
        return {
            "train/episode_reward": sum(episode.total_reward for episode in episodes) / len(episodes),
            "train/episode_steps": sum(episode.length for episode in episodes) / len(episodes),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"start": [], "collector": self.collector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["collector"] is not None:
            self.collector.load_state_dict(state["collector"])


def behaviour(rollout: Rollout, positions: Tensor) -> dict[str, float]:
    """Exposure (mean |position| held) and turnover (mean |position change|) of the sampled or expected account."""
    if isinstance(rollout, SampledRollout):
        held, following = positions[rollout.seen.held], positions[rollout.actions]
        exposure, turnover = following.abs().mean(), (following - held).abs().mean()
    else:
        flows = rollout.weights / rollout.weights.sum()  # [T, S, P, P] share of (held, next)
        changes = (positions[:, None] - positions[None, :]).abs()
        exposure, turnover = (flows * positions.abs()).sum(), (flows * changes).sum()
    return {"train/exposure": float(exposure), "train/turnover_per_bar": float(turnover)}


def source_of(
    experience: Experience, policy: MarketPolicy | ObservationPolicy, config: PPOConfig, seed: int, ranks: Ranks
) -> Source:
    """The source that serves this experience to this policy.

    Raises:
        ValueError: the two do not fit.
    """
    if isinstance(experience, MarketStream):
        if not isinstance(policy, MarketPolicy) or config.estimator != "counterfactual":
            raise ValueError("A stream of markets is learnt from with `estimator: counterfactual` only")
        return Stream(experience.of_rank(ranks.rank), policy, config)
    if isinstance(experience, MarketTensors):
        if not isinstance(policy, MarketPolicy):
            raise ValueError("`account_at: encoder` learns from a vector environment, not from bars: use MarketEnv")
        return Window(experience, policy, config, seed)
    if not isinstance(policy, ObservationPolicy):
        raise ValueError("`account_at: heads` learns from MarketTensors, not from a vector environment")
    return Environments(experience, policy, config, ranks)
