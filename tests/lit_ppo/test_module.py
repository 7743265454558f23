"""The Lightning shell: epochs, generators, options, resume."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from callbacks import ConvergenceEarlyStopping, MetricsLog, TrainingCheckpoint, ValidationSelection
from lit_ppo.module import LitPPO, quiet_lightning
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.recipe import Recipe
from lit_ppo.scoring.evaluation import evaluate
from lit_ppo.seeding import make_generator
from lit_ppo.store.checkpoints import CheckpointStore, load_checkpoint
from tests.integration.shells import ENCODER, HEADS_SAMPLED, SMALL, fitted, same, small_data, small_trainer, weights
from tests.lit_ppo.markets import market_tensors

KINDS = {"counterfactual": {}, "sampled": HEADS_SAMPLED, "encoder": ENCODER}


class Steps(Logger):
    """Remembers the x axis of everything logged."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int | None, str]] = []

    name = version = "steps"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.steps.append((step, min(metrics)))


def test_one_epoch_is_one_ppo_iteration_and_the_budget_ends_the_training(tmp_path):
    logger = Steps()
    module = fitted(tmp_path, trainer_settings={"logger": logger})
    assert (module.iteration, module.timesteps, module.trainer.current_epoch) == (4, 256, 4)
    assert [step for step, first in logger.steps if first.startswith("t")] == [64, 128, 192, 256]
    assert [step for step, first in logger.steps if first.startswith("v")] == [64, 128, 192, 256]


def test_evaluation_from_python_pays_the_exit_as_the_command_does():
    policy = MarketPolicy(3, hold_bias=-3.0, generator=make_generator(0))  # never keeps a position
    module = LitPPO()
    module.policy = policy
    market = market_tensors()
    found = module.evaluate(market)
    paid = evaluate(policy, market, module.recipe.account_features, close_at_end=True)
    left_open = evaluate(policy, market, module.recipe.account_features)
    assert found.positions[-1] == 0.0 != left_open.positions[-1]
    assert found.score != left_open.score
    np.testing.assert_array_equal(found.ledger.net_return, paid.ledger.net_return)
    assert module.evaluate(market, close_at_end=False).score == left_open.score


class Seen(pl.Callback):
    """What a callback of a bare trainer finds after each epoch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.threads: set[int] = set()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: LitPPO) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.threads.add(torch.get_num_threads())


def test_a_bare_trainer_has_the_training_metrics_in_its_callback_metrics(tmp_path):
    module = fitted(tmp_path, [seen := Seen()])
    assert len(seen.metrics) == 4
    names = {name for name in module.metrics if name.startswith("train/")}
    assert {"train/approx_kl", "train/loss"} <= names
    assert names | {"validation/score"} <= module.trainer.callback_metrics.keys()
    assert len({found["train/loss"] for found in seen.metrics}) == 4
    for name in names:
        np.testing.assert_allclose(seen.metrics[-1][name], module.metrics[name], rtol=1e-6)


@pytest.mark.parametrize(("hidden_size", "asked", "expected"), [(4, None, 1), (4, 2, 2), (65, None, 2)])
def test_a_bare_trainer_trains_on_the_threads_that_suit_the_network_and_gives_the_others_back(
    tmp_path, hidden_size, asked, expected
):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = LitPPO(seed=5, **{**SMALL, "hidden_size": hidden_size, "total_timesteps": 64})
        module.threads = asked
        small_trainer(tmp_path, [seen := Seen()]).fit(module, datamodule=small_data())
        assert seen.threads == {expected}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_global_generators_are_not_drawn_from(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fitted(tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("kind", KINDS)
def test_validation_logging_and_callbacks_change_no_weight(tmp_path, kind):
    plain = fitted(tmp_path, trainer_settings={"limit_val_batches": 0}, **KINDS[kind])
    logged = fitted(tmp_path, [MetricsLog(), TrainingCheckpoint(every_n_iterations=1)], **KINDS[kind])
    assert same(weights(plain), weights(logged))


CHANGES: dict[str, Any] = {
    "estimator": "sampled",
    "account_at": ENCODER,
    "account_features": HEADS_SAMPLED,
    "num_envs": 8,
    "num_steps": 8,
    "burn_in": 0,
    "random_start": False,
    "total_timesteps": 512,
    "update_epochs": 1,
    "num_minibatches": 4,
    "gamma": 0.5,
    "gae_lambda": 0.1,
    "clip_coef": 1e-6,
    "clip_value": 1e-6,
    "ent_coef": 0.1,
    "vf_coef": 0.5,
    "max_grad_norm": 1e-6,
    "target_kl": 1e-12,
    "learning_rate": 1e-4,
    "final_learning_rate": 5e-3,
    "max_passes": 0.3,
    "normalise_advantages": "standard",
    "screen_features": True,
    "mirror": False,
    "hidden_dropout": 0.0,
    "pull_to_start": 0.0,
    "positions": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "num_networks": 2,
    "hidden_size": 8,
    "num_layers": 2,
    "shared_encoder": False,
    "policy_layers": (4,),
    "value_layers": (4,),
    "activation": "relu",
    "hold_bias": 0.0,
    "encoder": "gru",
    "init": "orthogonal",
    "episode_bars": ENCODER | {"episode_bars": 8},
    "risk_aversion": 0.5,
    "optimizer": "adamw",
}


@pytest.fixture(scope="module")
def trained_before(tmp_path_factory) -> Callable[..., LitPPO]:
    """Return a function like `fitted` for trainings that tests only compare with: each is done once.

    `by` names what the callbacks are, where there are some.
    """
    made: dict[str, LitPPO] = {}

    def get(callbacks: Sequence[pl.Callback] = (), *, by: str = "", **recipe: Any) -> LitPPO:
        if (name := f"{by} {recipe}") not in made:
            made[name] = fitted(tmp_path_factory.mktemp("before"), callbacks, **recipe)
        return made[name]

    return get


def outcome(module: LitPPO) -> list[float]:
    """A fingerprint of the weights that also works across shapes."""
    return [float(value.double().abs().sum()) for value in weights(module).values()]


# `start` needs the core features: test_prior_weights.py
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe) if field.name != "start"])
def test_every_option_changes_the_result(tmp_path, trained_before, name):
    value = CHANGES[name]
    changed = value if isinstance(value, dict) else {name: value}
    # An iteration's advantages may clip nothing yet, and options of the encoder need an encoder on both sides.
    base = {"episode_bars": ENCODER, "mirror": {"mirror": True}}.get(name, {})
    assert outcome(trained_before(**base)) != outcome(fitted(tmp_path, **changed))


def test_the_seed_changes_the_result_and_the_same_seed_does_not(tmp_path):
    first, again, other = (weights(fitted(tmp_path, seed=seed)) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


class Stop(pl.Callback):
    """Ends a training in the middle, as a kill would: nothing after this runs."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if pl_module.iteration == self.iteration:
            raise KeyError("killed")


def everything() -> list[pl.Callback]:
    return [ValidationSelection(), ConvergenceEarlyStopping(patience=50), MetricsLog(), TrainingCheckpoint(None, 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iteration", [1, 3])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, trained_before, kind, iteration):
    whole = trained_before(everything(), by="everything", **KINDS[kind])
    there = Path(whole.trainer.default_root_dir)
    with pytest.raises(KeyError):
        fitted(tmp_path / "cut", [*everything(), Stop(iteration)], **KINDS[kind])
    resumed = fitted(tmp_path / "cut", everything(), ckpt_path=tmp_path / "cut", **KINDS[kind])
    assert same(weights(whole), weights(resumed))
    assert whole.notes.selection == resumed.notes.selection
    assert (there / "metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
    states = [load_checkpoint(folder) for folder in (there, tmp_path / "cut")]
    for key in ("optimizer_states", "learner", "callbacks", "loops"):
        assert_equal(states[0][key], states[1][key])


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def learner_item(name: str):
    def spoil(state: dict[str, Any]) -> None:
        fresh = LitPPO(seed=5, **{**SMALL, **ENCODER})
        state["learner"]["ranks"][0][name] = fresh_learner_state(fresh)[name]

    return spoil


def fresh_learner_state(module: LitPPO) -> dict[str, Any]:
    trainer = small_trainer("unused", max_epochs=0)
    trainer.fit(module, datamodule=small_data())
    module.on_train_start()
    assert module.learner is not None
    return module.learner.state_dict()


def optimizer_moments(state: dict[str, Any]) -> None:
    for moments in state["optimizer_states"][0]["state"].values():
        moments["exp_avg"].zero_()


def one_weight(state: dict[str, Any]) -> None:
    next(value for value in state["state_dict"].values() if value.dtype == torch.float32).add_(0.01)


ITEMS = {
    "rollout generator": learner_item("rollout_generator"),
    "minibatch generator": learner_item("minibatch_generator"),
    "timesteps": lambda state: state["learner"]["ranks"][0].update(timesteps=0),
    "environment and LSTM state": learner_item("collector"),
    "optimizer moments": optimizer_moments,
    "weights": one_weight,
}


@pytest.mark.parametrize("item", ITEMS)
def test_a_resume_without_one_item_of_its_state_is_seen_to_differ(tmp_path, trained_before, item):
    whole = trained_before(**ENCODER)
    with pytest.raises(KeyError):
        fitted(tmp_path / "cut", [TrainingCheckpoint(None, 1), Stop(2)], **ENCODER)
    state = load_checkpoint(tmp_path / "cut")
    ITEMS[item](state)
    CheckpointStore(tmp_path / "cut").save(state)
    resumed = fitted(tmp_path / "cut", ckpt_path=tmp_path / "cut", **ENCODER)
    assert not same(weights(whole), weights(resumed))


@pytest.mark.parametrize("stopper", [None, "convergence", "lightning"])
def test_a_finished_or_early_stopped_training_resumes_to_nothing(tmp_path, stopper):
    def callbacks() -> list[pl.Callback]:
        stop: dict[str | None, list[pl.Callback]] = {
            None: [],
            "convergence": [ConvergenceEarlyStopping(1, 1e9, min_progress=0.3, wait_for_change=False)],
            "lightning": [EarlyStopping("validation/score", mode="max", patience=1, min_delta=1e9)],
        }
        return [*stop[stopper], ValidationSelection(), TrainingCheckpoint(None, 1)]

    first = fitted(tmp_path, callbacks())
    assert (first.timesteps == 256) == (stopper is None)
    files = {path.name for path in tmp_path.iterdir()}
    again = fitted(tmp_path, callbacks(), ckpt_path=tmp_path)
    assert again.timesteps == first.timesteps
    assert again.notes.stop_reason == first.notes.stop_reason
    assert same(weights(first), weights(again))
    assert {path.name for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("stopper", [False, True])
def test_a_training_goes_on_with_a_larger_budget_and_its_schedules_run_over_that(tmp_path, capsys, stopper):
    early = [ConvergenceEarlyStopping(1, 1e9, min_progress=0.3, wait_for_change=False)] if stopper else []
    first = fitted(tmp_path, [*early, ValidationSelection(), MetricsLog(), TrainingCheckpoint(None, 1)])
    assert (first.timesteps == 256) != stopper
    with pytest.raises(ValueError, match=r"total_timesteps was 256 and is 192.*total_timesteps alone may grow"):
        fitted(tmp_path, ckpt_path=tmp_path, total_timesteps=192)
    capsys.readouterr()
    longer = fitted(
        tmp_path,
        [ValidationSelection(), MetricsLog(), TrainingCheckpoint(None, 1)],
        ckpt_path=tmp_path,
        total_timesteps=512,
    )
    assert "budget of 512 timesteps, was 256: schedules now run over the new total" in capsys.readouterr().out
    assert (longer.timesteps, longer.total_timesteps, longer.notes.stop_reason) == (512, 512, "")
    rates = [json.loads(line)["train/learning_rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    done = first.timesteps // 64
    assert rates[done:] == pytest.approx([1e-2 * (1 - 64 * i / 512) for i in range(done, 8)])
    again = fitted(tmp_path, ckpt_path=tmp_path, total_timesteps=512)
    assert same(weights(longer), weights(again))


def test_a_resume_with_other_settings_is_refused_and_lists_them(tmp_path):
    fitted(tmp_path, [TrainingCheckpoint(None, 1)])
    with pytest.raises(ValueError, match=r"model\.gamma was 0\.995 and is 0\.9; model\.seed was 5 and is 6"):
        fitted(tmp_path, ckpt_path=tmp_path, gamma=0.9, seed=6)


def test_a_checkpoint_of_another_network_is_refused_in_evaluation_and_other_training_settings_are_not(tmp_path):
    fitted(tmp_path, [TrainingCheckpoint(None, 1)])
    trained_otherwise = LitPPO(seed=9, **{**SMALL, "gamma": 0.5})
    (result,) = small_trainer(tmp_path).validate(trained_otherwise, small_data(), ckpt_path=tmp_path, verbose=False)
    assert np.isfinite(result["validation/score"])
    with pytest.raises(ValueError, match=r"model\.hidden_size was 4 and is 5"):
        small_trainer(tmp_path).validate(LitPPO(**{**SMALL, "hidden_size": 5}), small_data(), ckpt_path=tmp_path)


def test_every_checkpoint_loads_with_weights_only(tmp_path):
    module = fitted(tmp_path, everything())
    module.trainer.save_checkpoint(tmp_path / "selected.ckpt", weights_only=True)
    found = sorted(tmp_path.glob("*.ckpt"))
    assert len(found) == 5
    for path in found:
        assert torch.load(path, weights_only=True)["hyper_parameters"]["hidden_size"] == 4


def test_lightnings_own_loader_gives_the_policy_back(tmp_path):
    module = fitted(tmp_path, [TrainingCheckpoint(None, 1)])
    path = max(tmp_path.glob("checkpoint-*.ckpt"))
    loaded = LitPPO.load_from_checkpoint(path)
    assert loaded.recipe.to_dict() == module.recipe.to_dict()
    assert same(weights(loaded), weights(module))


def test_a_number_that_is_not_finite_stops_before_the_optimizer_step(tmp_path):
    data = small_data()
    served = data.fold_data(0)
    broken = dataclasses.replace(served.train, price_return=served.train.price_return * float("nan"))
    data._served = dataclasses.replace(served, train=broken)
    module = LitPPO(seed=5, **{**SMALL, "screen_features": False})
    before = {name: value.clone() for name, value in module.build(served.train).named_parameters()}
    with pytest.raises(FloatingPointError, match="PPO iteration 0"):
        small_trainer(tmp_path, [TrainingCheckpoint(None, 1)]).fit(module, datamodule=data)
    assert same(before, dict(module.policy.named_parameters()))
    assert list(tmp_path.glob("*.ckpt")) == []


def test_bfloat16_trains_and_gives_other_weights_than_float32(tmp_path):
    full, mixed = (weights(fitted(tmp_path, trainer_settings={"precision": p})) for p in ("32-true", "bf16-mixed"))
    assert not same(full, mixed)
    assert all(value.isfinite().all() for value in mixed.values())


def kept_by(logger_kind: type[Logger], directory: Path) -> dict[str, Any]:
    """hparams.yaml of a logger after a training."""
    logger = logger_kind(directory, name="", version="")
    fitted(directory, trainer_settings={"logger": logger}, total_timesteps=64)
    return yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())


@pytest.mark.parametrize("logger_kind", [TensorBoardLogger, CSVLogger])
def test_every_logger_keeps_the_settings_of_model_and_data(tmp_path, logger_kind):
    kept = kept_by(logger_kind, tmp_path)
    assert kept["model"] == {"seed": 5, **Recipe(**{**SMALL, "total_timesteps": 64}).to_dict()}
    assert (kept["data"]["train_size"], kept["data"]["purged_size"], kept["data"]["fill"]) == (300, 2, "next_open")
    assert kept["data"]["synthetic"]["seed"] == 3
    assert kept["data"]["costs"] == dataclasses.asdict(small_data().costs)
    assert kept["data"]["features"][0]["name"] == "log_return"


@pytest.mark.parametrize("name", ["hparams.yaml", "metrics.csv"])
@pytest.mark.parametrize("logger_kind", [TensorBoardLogger, CSVLogger])
def test_a_logger_follows_no_link_with_them(tmp_path, logger_kind, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to("../outside")
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        kept_by(logger_kind, tmp_path / "run")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_precision_that_the_network_cannot_have_is_refused_with_those_it_can(tmp_path, precision):
    with pytest.raises(ValueError, match=f"one of 32-true, bf16-mixed, 16-mixed, got {precision}"):
        fitted(tmp_path, trainer_settings={"precision": precision}, total_timesteps=64)


def test_two_ranks_get_no_advice_about_scores_that_are_equal():
    with warnings.catch_warnings(record=True) as seen:
        quiet_lightning()
        warnings.warn("It is recommended to use `self.log('validation/score', ..., sync_dist=True)`", stacklevel=1)
    assert seen == []
