"""One PPO iteration: collect, estimate, update. Plain torch; the Lightning and the Fabric shell share it unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from lit_ppo.envs.account import check_account_features
from lit_ppo.envs.protocol import EpisodicEnv, VectorEnv
from lit_ppo.market.stretches import MarketStream
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.nets.lstm import fused_on_cpu
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.ppo.losses import PPOLoss, ppo_loss
from lit_ppo.ppo.rollout import (
    Rollout,
    StepwiseCollector,
    collect_counterfactual,
    collect_sampled,
    draw_stretches,
)
from lit_ppo.ppo.schedules import linear
from lit_ppo.ppo.screening import InputScreen, keep_all_features, screen_features
from lit_ppo.ppo.threaded_loss import count_pieces, loss_in_threads, share_threads
from lit_ppo.seeding import make_generator
from lit_ppo.timing import Stopwatch


@dataclass
class PPOConfig:
    """What one training does; names and meanings as in the field (see STYLE of cleanrl) and in docs/method.md.

    Attributes:
        estimator: "counterfactual" tries every held and next position on every bar; "sampled" trades one account.
        account_at: "heads" (exogenous market) or "encoder" (any environment).
        account_features: what the policy sees of the account.
        num_envs: S, stretches (or environments) side by side, per rank.
        num_steps: T, decisions per stretch and iteration: the longest memory the LSTM is trained on, bars.
        burn_in: bars before each stretch that only warm the LSTM up (account at the heads).
        random_start: stretches (or episodes of the market environment) begin at any bar with equal probability; False:
            stretches at evenly spaced bars, the same in every iteration, and episodes at the first bar.
        total_timesteps: bars visited, over all ranks; more epochs over them are not counted again.
        update_epochs, num_minibatches: passes over a rollout, and minibatches (whole sequences) in each.
        gamma, gae_lambda, clip_coef, clip_value, ent_coef, vf_coef, max_grad_norm: see `ppo_loss`.
        target_kl: an iteration's update stops after the epoch in which the KL divergence passed this; None: never.
        learning_rate, final_learning_rate: the step size falls linearly from one to the other.
        max_passes: training on bars ends after so many visits to each of 2,000 train bars, whatever `total_timesteps`
            says, and after max_passes * sqrt(2,000 / bars) visits in another window: what a small window has to say is
            soon said, the rest is its noise. None: no such end.
        normalise_advantages: "rms" (divide by the weighted root mean square), "standard" (also subtract the mean).
        screen_features: use the features that say something about the next return on train (`lit_ppo.ppo.screening`).
        mirror: train on a random half of the stretches upside down, and look at both sides for a decision; needs a
            symmetric position grid. "auto": unless the train bars tell up from down (`screen_features`), or the grid is
            not symmetric.
        hidden_dropout: share of the encoder's outputs hidden from a whole stretch while training on a small window; it
            fades as 1 / (1 + train bars / 50,000).
        pull_to_start: strength with which the LSTM's weights are drawn back to where they started, per unit of step
            size, on a small window; it fades as 1 / (1 + train bars / 200,000).
    The last five act on bars (account at the heads) only, except `normalise_advantages`.
    """

    estimator: Literal["counterfactual", "sampled"] = "counterfactual"
    account_at: Literal["heads", "encoder"] = "heads"
    account_features: Sequence[str] = ("position",)
    num_envs: int = 32
    num_steps: int = 128
    burn_in: int = 64
    random_start: bool = True
    total_timesteps: int = 100_000
    update_epochs: int = 4
    num_minibatches: int = 2
    gamma: float = 0.995
    gae_lambda: float = 0.97
    clip_coef: float = 0.2
    clip_value: float | None = None
    ent_coef: float = 0.005
    vf_coef: float = 0.1
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    learning_rate: float = 1e-2
    final_learning_rate: float = 0.0
    max_passes: float | None = 50.0
    normalise_advantages: Literal["rms", "standard"] = "rms"
    screen_features: bool = True
    mirror: Literal["auto"] | bool = "auto"
    hidden_dropout: float = 0.5
    pull_to_start: float = 3.0

    def __post_init__(self) -> None:
        """Refuse combinations that cannot be trained, before any work."""
        positive = ("num_envs", "num_steps", "update_epochs", "num_minibatches", "max_grad_norm")
        wrong = [f"{name}={getattr(self, name)}" for name in positive if getattr(self, name) <= 0]
        if self.total_timesteps < self.least_timesteps:
            wrong.append(f"total_timesteps={self.total_timesteps}")
        wrong += [
            f"{name}={getattr(self, name)}" for name in ("gamma", "gae_lambda") if not 0 <= getattr(self, name) <= 1
        ]
        wrong += [f"{name}={getattr(self, name)}" for name in ("burn_in", "pull_to_start") if getattr(self, name) < 0]
        if self.max_passes is not None and self.max_passes <= 0:
            wrong.append(f"max_passes={self.max_passes}")
        if self.clip_coef <= 0 or not 0 <= self.hidden_dropout < 1:
            wrong.append(f"clip_coef={self.clip_coef}, hidden_dropout={self.hidden_dropout}")
        if wrong:
            raise ValueError(
                f"Out of range: {', '.join(wrong)} (sizes > 0; gamma and gae_lambda in [0, 1]; "
                "hidden_dropout in [0, 1))"
            )
        if self.num_envs % self.num_minibatches:
            raise ValueError(
                f"num_envs {self.num_envs} sequences do not divide into num_minibatches {self.num_minibatches}: "
                "minibatches are whole sequences of equal number"
            )
        check_account_features(self.account_features)
        if self.estimator == "counterfactual" and self.account_at != "heads":
            raise ValueError(
                "`estimator: counterfactual` needs `account_at: heads`: the market must not see the account"
            )
        if self.estimator == "counterfactual" and tuple(self.account_features) != ("position",):
            raise ValueError(
                "`estimator: counterfactual` needs `account_features: [position]`: it evaluates every held position, "
                f"not every path of {tuple(self.account_features)}. Use `estimator: sampled` with more."
            )

    @property
    def least_timesteps(self) -> int:
        """A training from scratch needs a timestep; weights that are there already need none."""
        return 1

    @property
    def steps_per_iteration(self) -> int:
        """Timesteps of one PPO iteration on one rank."""
        return self.num_envs * self.num_steps


def _mean_over_ranks(values: Tensor, world_size: int) -> Tensor:
    if world_size > 1:
        distributed.all_reduce(values)
        values /= world_size
    return values


class Learner:
    """Everything of one training that is not a shell: source of experience, generators, schedules, update.

    Args:
        policy: `MarketPolicy` (account at the heads) or `ObservationPolicy` (account at the encoder).
        optimizer: over the policy's parameters; its learning rate is set before each iteration.
        config: see `PPOConfig`.
        seed, rank, world_size: every rank draws its own experience and minibatches; gradients are averaged here, in
            one all-reduce, so that both shells do the same arithmetic.

    Attributes:
        timesteps, iteration: done so far, over all ranks.
        screen: what the screen of the features found on the train bars; None where there was none.
        mirrored: whether the market is learnt from upside down as well.
        mirror_record: why, where the train bars decided (`mirror: auto`); None elsewhere.
        minibatch: of the update that is under way, or was refused; None between updates.
        learning_rate, final_learning_rate, ent_coef, clip_coef, update_epochs, total_timesteps: may be changed between
            iterations.
    """

    def __init__(
        self,
        policy: MarketPolicy | ObservationPolicy,
        optimizer: torch.optim.Optimizer,
        config: PPOConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.policy, self.optimizer, self.config = policy, optimizer, config
        self.rank, self.world_size = rank, world_size
        self.timesteps = self.iteration = 0
        self.learning_rate, self.final_learning_rate = config.learning_rate, config.final_learning_rate
        self.ent_coef, self.clip_coef, self.update_epochs = config.ent_coef, config.clip_coef, config.update_epochs
        self._budget = config.total_timesteps
        self.watch = Stopwatch()
        self.seed = seed
        device = next(policy.parameters()).device
        # The rollout's generator lives where its draws are needed; the minibatch order is drawn on the CPU.
        self.rollout_generator = make_generator(seed, rank, "rollout", device)
        self.minibatch_generator = make_generator(seed, rank, "minibatches")
        self._start: list[Tensor] = [parameter.detach().clone() for parameter in self._pulled()]
        self._market: MarketTensors | None = None
        self._stream: MarketStream | None = None
        self._collector: StepwiseCollector | None = None
        self._gradient_norms: list[Tensor] = []
        self.screen: InputScreen | None = None
        self.mirrored = config.mirror is True
        self.mirror_record: dict[str, Any] | None = None
        self.minibatch: Rollout | None = None

    def attach(self, source: MarketTensors | MarketStream | VectorEnv) -> None:
        """Give the learner its experience: the fold's train bars, a stream of markets, or a vector environment.

        Raises:
            ValueError: the source does not fit `account_at`.
        """
        if isinstance(source, MarketStream):
            if not isinstance(self.policy, MarketPolicy) or self.config.estimator != "counterfactual":
                raise ValueError("A stream of markets is learnt from with `estimator: counterfactual` only")
            unfit = self.config.screen_features or self.config.hidden_dropout or self.config.mirror == "auto"
            if self.policy.num_networks != 1 or unfit:
                raise ValueError(
                    "A stream of markets has no train window to screen, to spare or to vote about: set "
                    "model.num_networks: 1, model.screen_features: false, model.hidden_dropout: 0 and model.mirror"
                )
            self._stream = source.of_rank(self.rank)
            parity = torch.tensor(source.feature_parity, dtype=torch.float32)
            self.policy.set_inputs(torch.ones_like(parity), parity, self.mirrored)
        elif isinstance(source, MarketTensors):
            if not isinstance(self.policy, MarketPolicy):
                raise ValueError("`account_at: encoder` learns from a vector environment, not from bars: use MarketEnv")
            if self.config.mirror is True and not self.policy.symmetric:
                raise ValueError(
                    f"`mirror` needs a position grid that is symmetric about 0, got {self.policy.positions.tolist()}. "
                    "Set model.mirror: auto or false, or give symmetric model.positions."
                )
            self._market = source
            screen = keep_all_features(source)
            if self.config.mirror == "auto" or self.config.screen_features:
                found = screen_features(source, self.seed)
                if self.config.mirror == "auto":
                    self.mirrored = found.symmetric and self.policy.symmetric
                    self.mirror_record = found.mirror_record(self.mirrored)
                if self.config.screen_features:
                    self.screen = screen = found
            self.policy.set_inputs(screen.gain, screen.mirror_sign, self.mirrored)
        else:
            if not isinstance(self.policy, ObservationPolicy):
                raise ValueError("`account_at: heads` learns from MarketTensors, not from a vector environment")
            self._collector = StepwiseCollector(source, self.policy)

    @property
    def total_timesteps(self) -> int:
        """Bars that this training visits: the budget that was set, or what `max_passes` allows, if less."""
        return self.within_passes(self._budget)

    @total_timesteps.setter
    def total_timesteps(self, timesteps: int) -> None:
        self._budget = timesteps

    def within_passes(self, timesteps: int) -> int:
        """Return what a budget of `timesteps` comes to: no more than `max_passes` over the train bars."""
        if self._market is None or self.config.max_passes is None:
            return timesteps
        return min(timesteps, math.ceil(self.config.max_passes * math.sqrt(2_000 * self._market.num_decisions)))

    @property
    def sees_nothing(self) -> bool:
        """No feature passed the screen and the market is mirrored: such a policy has no side to take, and is flat."""
        blind = self.screen is not None and not self.screen.gain.any() and self.mirrored
        return blind and tuple(self.config.account_features) == ("position",)

    @property
    def progress(self) -> float:
        """Share of `total_timesteps` done, 0 to 1."""
        return min(self.timesteps / self.total_timesteps, 1.0) if self.total_timesteps else 1.0

    @property
    def finished(self) -> bool:
        """Whether there is nothing (more) to do: the budget is visited, or the policy sees nothing to learn from."""
        return self.timesteps >= self.total_timesteps or self.sees_nothing

    def _of_every_rank(self, values: Tensor) -> Tensor:
        """[K] of this rank -> [ranks, K] of all, in their order, on the host."""
        own = values.to(next(self.policy.parameters()).device)
        found = [torch.empty_like(own) for _ in range(self.world_size)]
        distributed.all_gather(found, own)
        return torch.stack(found).cpu()

    def collect(self) -> Rollout:
        """Collect one rollout with the current policy; its advantages are not normalised yet.

        Raises:
            RuntimeError: `attach` was not called.
        """
        config = self.config
        if self._collector is not None:
            env = self._collector.env
            rollout = self._collector.collect(config.num_steps, config.gamma, config.gae_lambda, self.rollout_generator)
            if isinstance(env, EpisodicEnv):
                if self.world_size > 1:  # other statistics would make another policy of the same weights
                    env.share_statistics(self._of_every_rank)
                self._collector.policy.set_statistics(*env.observation_statistics)
            return rollout
        if self._stream is not None:
            assert isinstance(self.policy, MarketPolicy)
            market, stretches = self._stream.draw(self.iteration, config.num_envs, config.num_steps)
            return collect_counterfactual(self.policy, market, stretches, config.gamma, config.gae_lambda)
        if self._market is None:
            raise RuntimeError("Learner.collect before Learner.attach: give it train bars or an environment first")
        assert isinstance(self.policy, MarketPolicy)
        stretches = draw_stretches(
            self.policy,
            self._market,
            config.num_envs,
            config.num_steps,
            config.burn_in,
            self.mirrored,
            config.hidden_dropout / (1 + self._market.num_decisions / 50_000),
            self.rollout_generator,
            config.random_start,
        )
        if config.estimator == "counterfactual":
            return collect_counterfactual(self.policy, self._market, stretches, config.gamma, config.gae_lambda)
        return collect_sampled(
            self.policy,
            self._market,
            stretches,
            config.account_features,
            config.gamma,
            config.gae_lambda,
            self.rollout_generator,
        )

    def iterate(self, apply_loss: Callable[[Tensor], None] | None = None) -> dict[str, float]:
        """Do one PPO iteration and return what it measured (keys of docs/metrics.md).

        Args:
            apply_loss: the shell's part of one minibatch: backward, `self.prepare_gradients()` once the gradients are
                unscaled, optimizer step. Default: plain torch.

        Raises:
            FloatingPointError: a loss or gradient is not finite; raised before the optimizer step.
        """
        apply_loss = apply_loss or self.apply_loss
        learning_rate = linear(self.learning_rate, self.final_learning_rate, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.watch.stage("rollout"):
            rollout = self.normalise(self.collect())
        with self.watch.stage("update"):
            losses, epochs = self._update(rollout, apply_loss)
        steps = self.config.steps_per_iteration * self.world_size
        self.timesteps += steps
        self.iteration += 1
        return self._metrics(rollout, losses, epochs, learning_rate, steps)

    def _pulled(self) -> list[nn.Parameter]:
        """The weights that are drawn back to their start: the market encoders'."""
        if not isinstance(self.policy, MarketPolicy) or not self.config.pull_to_start:
            return []
        return [parameter for network in self.policy.networks for parameter in network.encoder.parameters()]

    @torch.no_grad()
    def _pull_to_start(self, learning_rate: float) -> None:
        """Decoupled decay towards the start values (as Loshchilov and Hutter 2019, arXiv:1711.05101, towards 0)."""
        if not self._start or self._market is None:  # a stream of markets has no window whose noise is learnt
            return
        strength = self.config.pull_to_start / (1 + self._market.num_decisions / 200_000)
        torch._foreach_lerp_(list[Tensor](self._pulled()), self._start, learning_rate * strength)

    def normalise(self, rollout: Rollout) -> Rollout:
        """Bring advantages to unit scale under their weights, over all ranks; constant advantages become 0."""
        weights = rollout.weights / rollout.weights.sum()
        moments = torch.stack([(weights * rollout.advantages).sum(), (weights * rollout.advantages.square()).sum()])
        mean, square = _mean_over_ranks(moments, self.world_size)
        if self.config.normalise_advantages == "rms":
            mean = torch.zeros_like(mean)
        scale = (square - mean.square()).clamp(min=0).sqrt() + 1e-8
        return rollout._replace(advantages=(rollout.advantages - mean) / scale)

    def minibatches(self, rollout: Rollout) -> Iterator[Rollout]:
        """Yield every sequence once, in random order: whole sequences in minibatches of one size."""
        networks = self.policy.num_networks if isinstance(self.policy, MarketPolicy) else 1
        size = rollout.num_sequences // networks
        order = torch.randperm(size, generator=self.minibatch_generator)
        for sequences in order.chunk(self.config.num_minibatches):
            own = (sequences + size * torch.arange(networks).unsqueeze(1)).flatten()  # the same ones for each network
            yield rollout.select(own.to(rollout.observations.device))

    def loss(self, minibatch: Rollout, pieces: int = 1) -> PPOLoss:
        """The clipped objective of one minibatch under the current weights, on so many threads."""
        fused = minibatch.actions is None and self.config.clip_value is None and fused_on_cpu(minibatch.advantages)
        if fused:
            assert isinstance(self.policy, MarketPolicy)
            from lit_ppo.ppo.fused_objective import counterfactual_loss  # compiled at the first use

            logits, values = self.policy.logits_and_values(minibatch)
            return counterfactual_loss(
                logits,
                minibatch.log_probs,
                minibatch.advantages,
                minibatch.weights,
                values,
                minibatch.value_targets,
                minibatch.state_weights,
                clip_coef=self.clip_coef,
                vf_coef=self.config.vf_coef,
                ent_coef=self.ent_coef,
            )
        weights, state_weights = minibatch.weights, minibatch.state_weights
        minibatch = minibatch._replace(
            weights=weights / weights.sum(), state_weights=state_weights / state_weights.sum()
        )
        if pieces == 1:
            return self._loss_of(minibatch, 1)
        return loss_in_threads(
            lambda part: self._loss_of(part, pieces), minibatch, pieces, list(self.policy.parameters())
        )

    def _pieces(self, rollout: Rollout) -> int:
        """How many threads share the sequences of a minibatch, where it pays (`lit_ppo.ppo.threaded_loss`)."""
        on_cpu = rollout.advantages.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        shared = on_cpu and isinstance(self.policy, ObservationPolicy)
        return count_pieces(rollout.num_sequences // self.config.num_minibatches) if shared else 1

    def _loss_of(self, part: Rollout, pieces: int) -> PPOLoss:
        """The objective of one of `pieces` equal parts of a minibatch whose weights sum to 1; parts add up to it."""
        outputs = self.policy(part)
        loss = ppo_loss(
            outputs.log_probs,
            part.log_probs,
            part.advantages,
            part.weights,
            outputs.values,
            part.values,
            part.value_targets,
            outputs.entropies,
            part.state_weights,
            clip_coef=self.clip_coef,
            vf_coef=self.config.vf_coef / pieces,
            ent_coef=self.ent_coef,
            clip_value=self.config.clip_value,
        )
        return loss._replace(value=loss.value / pieces)

    def _update(self, rollout: Rollout, apply_loss: Callable[[Tensor], None]) -> tuple[list[PPOLoss], int]:
        pieces = self._pieces(rollout)
        with share_threads(pieces):
            return self._epochs(rollout, apply_loss, pieces)

    def _epochs(self, rollout: Rollout, apply_loss: Callable[[Tensor], None], pieces: int) -> tuple[list[PPOLoss], int]:
        losses: list[PPOLoss] = []
        for epoch in range(1, self.update_epochs + 1):
            kl = torch.zeros((), device=rollout.advantages.device)
            for minibatch in self.minibatches(rollout):
                self.minibatch = minibatch
                loss = self.loss(minibatch, pieces)
                self._refuse_non_finite("loss", loss.total.detach())
                apply_loss(loss.total)
                self._pull_to_start(self.optimizer.param_groups[0]["lr"])
                losses.append(PPOLoss(*(term.detach() for term in loss)))
                kl += loss.approx_kl / self.config.num_minibatches
            self.minibatch = None
            if self.config.target_kl is not None and _mean_over_ranks(kl, self.world_size) > self.config.target_kl:
                return losses, epoch
        return losses, self.update_epochs

    def apply_loss(self, loss: Tensor) -> None:
        """Backward and step in plain torch, for use without a shell."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.prepare_gradients()
        self.optimizer.step()

    def prepare_gradients(self) -> None:
        """Average the gradients over ranks and clip their norm; between (unscaled) backward and optimizer step.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        parameters = [parameter for parameter in self.policy.parameters() if parameter.grad is not None]
        if self.world_size > 1:
            gradients = [parameter.grad for parameter in parameters]
            flat = _mean_over_ranks(nn.utils.parameters_to_vector(gradients), self.world_size)  # type: ignore
            nn.utils.vector_to_parameters(flat, gradients)  # type: ignore
        networks = self.policy.networks if isinstance(self.policy, MarketPolicy) else [self.policy]
        # The loss is a mean over the networks' sequences, so each one's gradient is a share of what it would be alone.
        limit = self.config.max_grad_norm / len(networks)
        norms = [nn.utils.clip_grad_norm_(network.parameters(), limit) for network in networks]
        norm = torch.stack(norms).mean() * len(networks)
        self._refuse_non_finite("gradient", norm)
        self._gradient_norms.append(norm)

    def _refuse_non_finite(self, what: str, value: Tensor) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The {what} of PPO iteration {self.iteration} (timestep {self.timesteps}) is {float(value)}; the "
                "weights were not touched by it. Look for extreme features or rewards, or lower model.learning_rate."
            )

    def _metrics(
        self, rollout: Rollout, losses: list[PPOLoss], epochs: int, learning_rate: float, steps: int
    ) -> dict[str, float]:
        means = PPOLoss(*(torch.stack(terms).mean() for terms in zip(*losses, strict=True)))
        residual = rollout.value_targets - rollout.values
        spread = rollout.value_targets.var(unbiased=False).clamp(min=1e-12)
        # Under 16-mixed every step of an iteration may be skipped while the loss scale is found.
        norms = torch.stack(self._gradient_norms).mean() if self._gradient_norms else torch.tensor(math.nan)
        self._gradient_norms = []
        seconds = self.watch.reset()
        return {
            "train/loss": float(means.total),
            "train/policy_loss": float(means.policy),
            "train/value_loss": float(means.value),
            "train/entropy": float(means.entropy),
            "train/approx_kl": float(means.approx_kl),
            "train/clip_fraction": float(means.clip_fraction),
            "train/explained_variance": float(1 - residual.var(unbiased=False) / spread),
            "train/gradient_norm": float(norms),
            "train/learning_rate": learning_rate,
            "train/ent_coef": self.ent_coef,
            "train/clip_coef": self.clip_coef,
            "train/epochs": float(epochs),
            **self._behaviour(rollout),
            **self._episodes(),
            "time/timesteps": float(self.timesteps),
            "time/rollout_s": seconds["rollout"],
            "time/update_s": seconds["update"],
            "time/steps_per_s": steps / (seconds["rollout"] + seconds["update"]),
        }

    def _episodes(self) -> dict[str, float]:
        """What the episodes that ended in this rollout earned, in the environment's own rewards; {} if none did."""
        if self._collector is None or not isinstance(self._collector.env, EpisodicEnv):
            return {}
        episodes = self._collector.env.take_episodes()
        if not episodes:
            return {}
        return {
            "train/episode_reward": sum(episode.total_reward for episode in episodes) / len(episodes),
            "train/episode_steps": sum(episode.length for episode in episodes) / len(episodes),
        }

    def _behaviour(self, rollout: Rollout) -> dict[str, float]:
        """Exposure (mean |position| held) and turnover (mean |position change|) of the sampled or expected account."""
        if not isinstance(self.policy, MarketPolicy):
            return {}
        positions = self.policy.positions.float()
        if rollout.actions is not None and rollout.held is not None:
            held, following = positions[rollout.held], positions[rollout.actions]
            return {
                "train/exposure": float(following.abs().mean()),
                "train/turnover_per_bar": float((following - held).abs().mean()),
            }
        flows = rollout.weights / rollout.weights.sum()  # [T, S, P, P] share of (held, next)
        changes = (positions[:, None] - positions[None, :]).abs()
        return {
            "train/exposure": float((flows * positions.abs()).sum()),
            "train/turnover_per_bar": float((flows * changes).sum()),
        }

    def state_dict(self) -> dict:
        """What a resume needs beside weights and optimizer; tensors, numbers, strings, lists and dicts only."""
        return {
            "timesteps": self.timesteps,
            "iteration": self.iteration,
            "start": self._start,
            "coefficients": {name: getattr(self, name) for name in _COEFFICIENTS},
            "rollout_generator": self.rollout_generator.get_state(),
            "minibatch_generator": self.minibatch_generator.get_state(),
            "collector": None if self._collector is None else self._collector.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`; `attach` comes first."""
        self.timesteps, self.iteration = state["timesteps"], state["iteration"]
        self._start = [start.to(own.device) for start, own in zip(state["start"], self._pulled(), strict=True)]
        for name in _COEFFICIENTS:
            setattr(self, name, state["coefficients"][name])
        self.rollout_generator.set_state(state["rollout_generator"].cpu())
        self.minibatch_generator.set_state(state["minibatch_generator"].cpu())
        if state["collector"] is not None:
            if self._collector is None:
                raise RuntimeError("This checkpoint was written with an environment attached; attach it before loading")
            self._collector.load_state_dict(state["collector"])


_COEFFICIENTS = ("learning_rate", "final_learning_rate", "ent_coef", "clip_coef", "update_epochs", "total_timesteps")
