"""What one training does: the settings of the learner, and what cannot be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_ppo.envs.account import check_account_features


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
