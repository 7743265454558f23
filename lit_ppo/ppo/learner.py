"""One PPO iteration: collect, estimate, update. Plain torch; the Lightning and the Fabric shell share it unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lit_ppo.nets.policy import AllActionOutputs, MarketPolicy, ObservationPolicy, SampledOutputs
from lit_ppo.ppo.config import PPOConfig
from lit_ppo.ppo.losses import PPOLoss, ppo_loss
from lit_ppo.ppo.ranks import Ranks
from lit_ppo.ppo.rollout import Rollout
from lit_ppo.ppo.schedules import linear
from lit_ppo.ppo.screening import InputScreen
from lit_ppo.ppo.sources import Experience, Source, source_of
from lit_ppo.ppo.threaded_loss import loss_in_threads, pieces_on, share_threads
from lit_ppo.seeding import make_generator
from lit_ppo.timing import Stopwatch


class Learner:
    """Everything of one training that is not a shell: generators, schedules, update; its experience is a `Source`.

    Args:
        policy: `MarketPolicy` (account at the heads) or `ObservationPolicy` (account at the encoder).
        optimizer: over the policy's parameters; its learning rate is set before each iteration.
        config: see `PPOConfig`.
        seed, rank, world_size: every rank draws its own experience and minibatches; gradients are averaged here, in
            one all-reduce, so that both shells do the same arithmetic.

    Attributes:
        timesteps, iteration: done so far, over all ranks.
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
        self.seed, self.ranks = seed, Ranks(rank, world_size)
        self.timesteps = self.iteration = 0
        self.learning_rate, self.final_learning_rate = config.learning_rate, config.final_learning_rate
        self.ent_coef, self.clip_coef, self.update_epochs = config.ent_coef, config.clip_coef, config.update_epochs
        self._budget = config.total_timesteps
        self.watch = Stopwatch()
        # The rollout's generator lives where its draws are needed; the minibatch order is drawn on the CPU.
        self.rollout_generator = make_generator(seed, rank, "rollout", next(policy.parameters()).device)
        self.minibatch_generator = make_generator(seed, rank, "minibatches")
        self._source: Source | None = None
        self._gradient_norms: list[Tensor] = []
        self.minibatch: Rollout | None = None

    def attach(self, experience: Experience) -> None:
        """Give the learner its experience: the fold's train bars, a stream of markets, or a vector environment.

        Raises:
            ValueError: it does not fit `account_at`, or the settings.
        """
        self._source = source_of(experience, self.policy, self.config, self.seed, self.ranks)

    @property
    def source(self) -> Source:
        """Where rollouts come from.

        Raises:
            RuntimeError: `attach` was not called.
        """
        if self._source is None:
            raise RuntimeError("A Learner before Learner.attach: give it train bars or an environment first")
        return self._source

    @property
    def screen(self) -> InputScreen | None:
        """What the screen of the features found on the train bars; None where there was none."""
        return self.source.screen

    @property
    def mirror_record(self) -> dict[str, Any] | None:
        """Why the market is learnt from upside down as well, or not, where the train bars decided; None elsewhere."""
        return self.source.mirror_record

    @property
    def sees_nothing(self) -> bool:
        """Nothing can be learnt: the policy stays flat (`Window`)."""
        return self._source is not None and self._source.sees_nothing

    @property
    def total_timesteps(self) -> int:
        """Bars that this training visits: the budget that was set, or what `max_passes` allows, if less."""
        return self.within_passes(self._budget)

    @total_timesteps.setter
    def total_timesteps(self, timesteps: int) -> None:
        self._budget = timesteps

    def within_passes(self, timesteps: int) -> int:
        """Return what a budget of `timesteps` comes to: no more than `max_passes` over the train bars."""
        return timesteps if self._source is None else self._source.within_passes(timesteps)

    @property
    def progress(self) -> float:
        """Share of `total_timesteps` done, 0 to 1."""
        return min(self.timesteps / self.total_timesteps, 1.0) if self.total_timesteps else 1.0

    @property
    def finished(self) -> bool:
        """Whether there is nothing (more) to do: the budget is visited, or the policy sees nothing to learn from."""
        return self.timesteps >= self.total_timesteps or self.sees_nothing

    def collect(self) -> Rollout:
        """Collect one rollout with the current policy; its advantages are not normalised yet.

        Raises:
            RuntimeError: `attach` was not called.
        """
        return self.source.collect(self.iteration, self.rollout_generator)

    def iterate(self, apply_loss: Callable[[Tensor], None] | None = None) -> dict[str, float]:
        """Do one PPO iteration and return what it measured (keys of docs/metrics.md).

        Args:
            apply_loss: the shell's part of one minibatch: backward, `self.prepare_gradients()` once the gradients are
                unscaled, optimizer step. Default: plain torch.

        Raises:
            FloatingPointError: a loss or gradient is not finite; raised before the optimizer step.
        """
        learning_rate = linear(self.learning_rate, self.final_learning_rate, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self.watch.stage("rollout"):
            rollout = self.normalise(self.collect())
        pieces = self._pieces(rollout)
        with self.watch.stage("update"), share_threads(pieces):
            losses, epochs = self._update(rollout, apply_loss or self.apply_loss, pieces)
        steps = self.config.steps_per_iteration * self.ranks.world_size
        self.timesteps += steps
        self.iteration += 1
        return self._metrics(rollout, losses, epochs, learning_rate, steps)

    def normalise(self, rollout: Rollout) -> Rollout:
        """Bring advantages to unit scale under their weights, over all ranks; constant advantages become 0."""
        weights = rollout.weights / rollout.weights.sum()
        moments = torch.stack([(weights * rollout.advantages).sum(), (weights * rollout.advantages.square()).sum()])
        mean, square = self.ranks.mean(moments)
        if self.config.normalise_advantages == "rms":
            mean = torch.zeros_like(mean)
        scale = (square - mean.square()).clamp(min=0).sqrt() + 1e-8
        return rollout._replace(advantages=(rollout.advantages - mean) / scale)

    def minibatches(self, rollout: Rollout) -> Iterator[Rollout]:
        """Yield every sequence once, in random order: whole sequences in minibatches of one size."""
        networks = self.policy.num_networks
        size = rollout.advantages.shape[1] // networks
        order = torch.randperm(size, generator=self.minibatch_generator)
        for sequences in order.chunk(self.config.num_minibatches):
            own = (sequences + size * torch.arange(networks).unsqueeze(1)).flatten()  # the same ones for each network
            yield rollout.select(own.to(rollout.advantages.device))

    def loss(self, minibatch: Rollout, pieces: int = 1) -> PPOLoss:
        """The clipped objective of one minibatch under the current weights, on so many threads."""
        if pieces == 1:
            return self._loss_of(minibatch, 1)
        return loss_in_threads(
            lambda part: self._loss_of(part, pieces), minibatch, pieces, list(self.policy.parameters())
        )

    def _loss_of(self, part: Rollout, pieces: int) -> PPOLoss:
        """The objective of one of `pieces` equal parts of a minibatch; parts add up to it."""
        # The source collected it with this policy.
        return self.objective(part.evaluate(self.policy), part, pieces)  # type: ignore[arg-type]

    def objective(self, outputs: SampledOutputs | AllActionOutputs, part: Rollout, pieces: int = 1) -> PPOLoss:
        """`ppo_loss` with the coefficients of this iteration."""
        return ppo_loss(
            outputs,
            part,
            clip_coef=self.clip_coef,
            vf_coef=self.config.vf_coef,
            ent_coef=self.ent_coef,
            clip_value=self.config.clip_value,
            pieces=pieces,
        )

    def _pieces(self, rollout: Rollout) -> int:
        """How many threads share the sequences of a minibatch, where it pays (`lit_ppo.ppo.threaded_loss`)."""
        sequences = rollout.advantages.shape[1] // self.config.num_minibatches
        return pieces_on(rollout.advantages.device, sequences) if self.source.shares_threads else 1

    def _update(self, rollout: Rollout, apply_loss: Callable[[Tensor], None], pieces: int) -> tuple[list[PPOLoss], int]:
        losses: list[PPOLoss] = []
        for epoch in range(1, self.update_epochs + 1):
            kl = torch.zeros((), device=rollout.advantages.device)
            for minibatch in self.minibatches(rollout):
                self.minibatch = minibatch
                loss = self.loss(minibatch, pieces)
                self._refuse_non_finite("loss", loss.total.detach())
                apply_loss(loss.total)
                self.source.after_step(self.optimizer.param_groups[0]["lr"])
                losses.append(PPOLoss(*(term.detach() for term in loss)))
                kl += loss.approx_kl / self.config.num_minibatches
            self.minibatch = None
            if self.config.target_kl is not None and self.ranks.mean(kl) > self.config.target_kl:
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
        if self.ranks.world_size > 1:
            gradients = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
            flat = self.ranks.mean(nn.utils.parameters_to_vector(gradients))
            nn.utils.vector_to_parameters(flat, gradients)
        networks = self.policy.networks
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
            **self.source.metrics(rollout),
            "time/timesteps": float(self.timesteps),
            "time/rollout_s": seconds["rollout"],
            "time/update_s": seconds["update"],
            "time/steps_per_s": steps / (seconds["rollout"] + seconds["update"]),
        }

    def state_dict(self) -> dict:
        """What a resume needs beside weights and optimizer; tensors, numbers, strings, lists and dicts only."""
        return {
            "timesteps": self.timesteps,
            "iteration": self.iteration,
            "coefficients": {name: getattr(self, name) for name in _COEFFICIENTS},
            "rollout_generator": self.rollout_generator.get_state(),
            "minibatch_generator": self.minibatch_generator.get_state(),
            **self.source.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict`; `attach` comes first."""
        self.timesteps, self.iteration = state["timesteps"], state["iteration"]
        for name in _COEFFICIENTS:
            setattr(self, name, state["coefficients"][name])
        self.rollout_generator.set_state(state["rollout_generator"].cpu())
        self.minibatch_generator.set_state(state["minibatch_generator"].cpu())
        self.source.load_state_dict(state)


_COEFFICIENTS = ("learning_rate", "final_learning_rate", "ent_coef", "clip_coef", "update_epochs", "total_timesteps")
