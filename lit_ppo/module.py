"""The Lightning shell: one `training_step` is one PPO iteration of the `Learner`, and one epoch.

Everything that learns is in `ppo.learner`; here are Lightning's optimizer step and precision, loggers, checkpoints,
and the end of the training.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed
from torchmetrics import MetricCollection

from lit_ppo import interrupts
from lit_ppo.argument_types import check_types
from lit_ppo.market.stretches import Exam
from lit_ppo.market.tensors import GymnasiumTask, MarketTensors, TrainedFold
from lit_ppo.nets.policy import MarketPolicy, ObservationPolicy
from lit_ppo.ppo.diagnosis import diagnosed
from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.screening import nearest
from lit_ppo.precision import SkippedSteps, check_precision, scales_loss
from lit_ppo.recipe import (
    NETWORK,
    Batch,
    Policy,
    Recipe,
    build_optimizer,
    build_policy,
    check_name,
    differences,
    empty_policy,
    experience,
    policy_inputs,
    resume_differences,
    suitable_threads,
)
from lit_ppo.scoring.episode_evaluation import EpisodeEvaluation, evaluate_episodes
from lit_ppo.scoring.evaluation import Evaluation, evaluate
from lit_ppo.scoring.exam import Marks, mark
from lit_ppo.scoring.metrics import figures
from lit_ppo.seeding import derive_seed
from lit_ppo.store.atomic import refuse_link
from lit_ppo.store.checkpoints import FACTS
from lit_ppo.store.results import NOT_TRAINED
from lit_ppo.trainee import Trainee, TrainingNotes

INPUTS = ("input_gain", "mirror_sign", "mirrored")  # of the policy: how it sees the market


def quiet_lightning() -> None:
    """No devices, tips and module summaries once for every fold, and no advice about the workers of one batch.

    Nor about averaging scores over ranks: every rank scores the same policy on the same bars.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for boring in (".*does not have many workers.*", ".*isinstance.treespec.*", ".*LeafSpec.*", ".*sync_dist=True.*"):
        warnings.filterwarnings("ignore", boring)


class LitPPO(pl.LightningModule):
    """Recurrent PPO as a LightningModule.

    Args:
        seed: of every draw of this training; global generators are not touched.
        recipe: the fields of `lit_ppo.recipe.Recipe`, which has their meaning.

    Raises:
        ValueError: a name or a value that no recipe has.

    Attributes:
        policy: built from the first train batch (a `MarketTensors` or a vector environment), or by `build`.
        learner: made when training starts.
        screen: what the screen of the features found, see `InputScreen.record`; {} where there was none.
        mirror_record: what the train bars decided about the mirror, see `InputScreen.mirror_record`; None: nothing.
        allow_mismatch: resume a checkpoint of other settings, as long as the network is the same.
        threads: of torch, while it trains; None: as many as suit the network, see `suitable_threads`.
    What callbacks read and write of it is `lit_ppo.trainee.Trainee`.
    """

    # What `LitPPO?` and editors show in place of **recipe; the command line reads `__init__`.
    __signature__ = inspect.signature(Recipe).replace(
        parameters=[
            inspect.Parameter("seed", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=0, annotation="int"),
            *(p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(Recipe).parameters.values()),
        ]
    )

    def __init__(self, seed: int = 0, **recipe: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_types({"seed": int}, {"seed": seed})
        for name in recipe:
            check_name(name)
        self.seed, self.recipe = seed, Recipe(**recipe)
        self.policy: Policy | None = None
        self._inputs: dict[str, Any] = {}
        self.learner: Learner | None = None
        self.metrics: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.allow_mismatch = False
        self.threads: int | None = None
        self._threads_before = torch.get_num_threads()
        self.stop_requested = False
        self.notes = TrainingNotes()
        self.figures: MetricCollection | None = None  # of the path that `test` and `validate` go along
        self.screen: dict[str, Any] = {}
        self.mirror_record: dict[str, Any] | None = None
        self.fold, self.side_by_side = (0, 1), 1
        self.show: Callable[[str], None] | None = None
        self.earlier_folds: Sequence[TrainedFold] = ()
        self._total_timesteps = self.recipe.total_timesteps
        self._resume: dict[str, Any] | None = None
        self._prolonged = ""  # what to tell of a resume with a larger budget
        self._skipped = SkippedSteps()

    # What callbacks read and write

    @property
    def timesteps(self) -> int:
        """Bars visited so far, over all ranks."""
        return self.learner.timesteps if self.learner else 0

    @property
    def iteration(self) -> int:
        """PPO iterations done."""
        return self.learner.iteration if self.learner else 0

    @property
    def total_timesteps(self) -> int:
        """Bars this training visits: `recipe.total_timesteps`, unless a callback has set another budget."""
        return self.learner.total_timesteps if self.learner else self._total_timesteps

    @total_timesteps.setter
    def total_timesteps(self, timesteps: int) -> None:
        self._total_timesteps = timesteps
        if self.learner:
            self.learner.total_timesteps = timesteps

    @property
    def progress(self) -> float:
        """Share of `total_timesteps` done, 0 to 1."""
        return self.learner.progress if self.learner else 0.0

    # Building

    def build(self, source: Batch) -> Policy:
        """Build the policy for a source of experience, once.

        Args:
            source: train bars, a gymnasium task or a vector environment: what a train batch is.
        """
        if self.policy is None:
            self._inputs = policy_inputs(experience(self.recipe, source, self.seed))
            self.policy = build_policy(self.recipe, self._inputs, self.seed)
        return self.policy

    def configure_model(self) -> None:
        if self.policy is None and self._trainer is not None:
            datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
            if datamodule is None:
                raise RuntimeError("LitPPO has no policy yet: give a datamodule, or call build(train bars) first")
            self.build(next(iter(datamodule.train_dataloader())))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.policy is not None
        return build_optimizer(self.policy, self.recipe, scales_loss(self.trainer.precision_plugin))

    # Training

    def setup(self, stage: str) -> None:
        check_precision(self.trainer.precision)

    def on_fit_start(self) -> None:
        """Set torch's threads; give loggers the settings of model and data, before Lightning makes them write its own.

        Raises:
            ValueError: a file that a logger would write is a link; loggers follow them.
        """
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads or suitable_threads(self.recipe))
        if not self.trainer.is_global_zero:
            return
        data = getattr(self.trainer, "datamodule", None)
        settings = {"model": {"seed": self.seed, **self.recipe.to_dict()}, "data": getattr(data, "settings", {})}
        for logger in self.loggers:
            folder = getattr(logger, "log_dir", None)
            if isinstance(folder, str):
                for name in ("hparams.yaml", "metrics.csv"):
                    refuse_link(Path(folder) / name)
            logger.log_hyperparams(settings)

    def on_train_start(self) -> None:
        assert self.policy is not None
        optimizer = self.optimizers(use_pl_optimizer=False)
        world, rank = self.trainer.world_size, self.global_rank
        states = self._resume["ranks"] if self._resume else []
        # Another number of ranks: no rank has a past of its own, so every one gets new draws.
        same_ranks = len(states) in (0, world)
        seed = self.seed if same_ranks else derive_seed(self.seed, 0, f"resumed at {states[0]['timesteps']}")
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.learner = Learner(self.policy, optimizer, self.recipe, seed=seed, rank=rank, world_size=world)
        self.learner.total_timesteps = self._total_timesteps
        batch = next(iter(self.trainer.train_dataloader))  # type: ignore[arg-type]
        source = self.trainer.strategy.batch_to_device(batch, self.device)
        self.learner.attach(experience(self.recipe, source, seed, rank))
        self._tell_screen()
        if self.learner.sees_nothing and self._resume is None:
            # New weights, whatever a callback brought: those of a symmetric policy that has learnt nothing stay flat.
            fresh = build_policy(self.recipe, self._inputs, self.seed).state_dict()
            self.policy.load_state_dict({**fresh, **{name: getattr(self.policy, name) for name in INPUTS}})
            self.notes.stop_reason = NOT_TRAINED
        elif self.learner.total_timesteps < self._total_timesteps and self.fold[0] == 0:
            self.print(
                f"Training ends after {self.learner.total_timesteps:,} of {self._total_timesteps:,} timesteps: "
                f"model.max_passes {self.recipe.max_passes:g}, for this many train bars"
            )
        stopped = False
        if self._resume is not None:
            self._restore(states, same_ranks)
            if self._prolonged and not self.learner.sees_nothing:
                self.learner.total_timesteps = self._total_timesteps
                self.print(self._prolonged)
            else:
                stopped, self.notes.stop_reason = self._resume["stopped"], self._resume["reason"]
        if self.learner.finished or stopped:
            self.trainer.should_stop = True
        self._resume = None

    def on_fit_end(self) -> None:
        torch.set_num_threads(self._threads_before)

    def _tell_screen(self) -> None:
        """Keep what the screen found for the ledger (`screen`, `mirror_record`), and give it to the loggers."""
        assert self.learner is not None
        found, self.mirror_record = self.learner.screen, self.learner.mirror_record
        if found is None:
            return
        self.screen = found.record(self._inputs["feature_names"])
        best = nearest(self.screen)
        figures = {"passed": float(len(self.screen["passed"])), "best_score": self.screen["score"][best]}
        figures["threshold"] = self.screen["threshold"][best]
        self._record({f"screen/{name}": value for name, value in figures.items()})

    def _restore(self, states: list[dict[str, Any]], same_ranks: bool) -> None:
        assert self.learner is not None
        if same_ranks:
            self.learner.load_state_dict(states[self.global_rank])
            return
        if states[0]["collector"] is not None:
            raise ValueError(
                f"The checkpoint was written by {len(states)} ranks with an environment each, and this run has "
                f"{self.trainer.world_size}: resume it with as many"
            )
        fresh = self.learner.state_dict()
        draws = {name: fresh[name] for name in ("rollout_generator", "minibatch_generator")}
        self.learner.load_state_dict({**states[0], **draws})
        self.print(
            f"Resumed on {self.trainer.world_size} ranks what {len(states)} wrote: the result is not bit-identical to "
            "an uninterrupted run"
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        assert self.learner is not None
        self.validation = {}
        try:
            self.metrics = self.learner.iterate(self._apply_loss)
        except FloatingPointError as error:
            raise diagnosed(error, self.learner, self.trainer.default_root_dir) from error
        self._record(self.metrics)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.metrics.items()})
        stop = self.trainer.strategy.reduce_boolean_decision(interrupts.requested(), all=False)
        self.stop_requested = bool(stop)
        if self.learner.finished:
            self.trainer.should_stop = True

    def _apply_loss(self, loss: Tensor) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, enabled=False):  # each operation's gradient has its forward's precision
            self.manual_backward(loss)
        optimizer.step()  # calls `on_before_optimizer_step` once the gradients are unscaled

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.learner is not None
        if not self._skipped.skip(self.trainer.precision_plugin, self.learner.policy):
            self.learner.prepare_gradients()

    def _record(self, metrics: dict[str, float]) -> None:
        """To every logger, once per iteration, x axis = timesteps. (`self.log` costs about 0.7 ms for each key.)"""
        if self.trainer.is_global_zero:
            for logger in self.loggers:
                logger.log_metrics(metrics, step=self.timesteps)

    # Evaluation

    def evaluate(self, market: MarketTensors, close_at_end: bool = True) -> Evaluation:
        """Trade `market` greedily, from flat; the last decision goes flat and pays, as at the end of a fold's test.

        Args:
            close_at_end: False: keep the last position open, as validation and predict do.
        """
        assert self.policy is not None
        return evaluate(self.policy, market, self.recipe.account_features, close_at_end)

    def _evaluated(
        self, batch: MarketTensors | Exam | GymnasiumTask, close_at_end: bool
    ) -> Evaluation | EpisodeEvaluation | Marks:
        if isinstance(batch, MarketTensors):
            return self.evaluate(batch, close_at_end)
        if isinstance(batch, Exam):
            assert isinstance(self.policy, MarketPolicy)
            return mark(self.policy, batch)
        assert isinstance(self.policy, ObservationPolicy)
        return evaluate_episodes(self.policy, batch, self.seed)

    def validation_step(self, batch: MarketTensors | Exam | GymnasiumTask, batch_idx: int) -> None:
        self.validation = self._report("validation", batch, self._evaluated(batch, close_at_end=False))

    def test_step(self, batch: MarketTensors | Exam | GymnasiumTask, batch_idx: int) -> None:
        self._report("test", batch, self._evaluated(batch, close_at_end=True))

    def predict_step(self, batch: MarketTensors, batch_idx: int) -> dict[str, Tensor]:
        """Decisions: open time of each bar (nanoseconds since 1970 UTC) and the position decided at its close."""
        evaluation = self.evaluate(batch, close_at_end=False)
        return {"time": torch.from_numpy(evaluation.ledger.time), "position": torch.from_numpy(evaluation.positions)}

    def _report(self, stage: str, batch: Any, evaluation: Evaluation | EpisodeEvaluation | Marks) -> dict[str, float]:
        metrics = {f"{stage}/{name}": value for name, value in evaluation.metrics.items()}
        metrics[f"{stage}/score"] = evaluation.score
        if self.trainer.state.fn == TrainerFn.FITTING:
            # What one rank found is everybody's: callbacks decide by it, and must decide alike on all ranks.
            metrics = self.trainer.strategy.broadcast(metrics)
            self.log(f"{stage}/score", metrics[f"{stage}/score"], batch_size=1, logger=False)  # for EarlyStopping etc.
            self._record(metrics)
        else:
            of_path: set[str] = set()
            if isinstance(evaluation, Evaluation):
                of_path = self._log_path(stage, batch.bars_per_year, evaluation)
            self.log_dict({name: value for name, value in metrics.items() if name not in of_path}, batch_size=1)
        return metrics

    def _log_path(self, stage: str, bars_per_year: float, evaluation: Evaluation) -> set[str]:
        """Log ratios, drawdown and trades of all segments as one path, not as their mean; returns the keys."""
        if self.figures is None or self.figures.prefix != f"{stage}/":
            self.figures = figures(bars_per_year, f"{stage}/")
        ledger = evaluation.ledger
        path = {"net_returns": ledger.net_return, "positions": ledger.position}
        self.figures.update(**{name: torch.from_numpy(values.copy()) for name, values in path.items()})
        self.log_dict(self.figures, batch_size=1)  # type: ignore[arg-type] # a collection is a dict of metrics
        return {str(name) for name in self.figures}

    # Checkpoints

    def untrained_checkpoint(self, datamodule: pl.LightningDataModule) -> dict[str, Any]:
        """What a trainer would save of a policy that is used as it is, with no training and no trainer."""
        checkpoint = {
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": pl.__version__,
            "state_dict": self.state_dict(),
            type(datamodule).__qualname__: datamodule.state_dict(),
        }
        self.on_save_checkpoint(checkpoint)
        return checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put every rank's learner beside the weights; all ranks get here."""
        own = None if self.learner is None else self.learner.state_dict()
        if self._trainer is not None and self.trainer.world_size > 1:
            states: list[Any] = [None] * self.trainer.world_size
            distributed.all_gather_object(states, own)
        else:
            states = [own]
        if own is not None:
            # `should_stop` is not part of Lightning's loops: without it, an early-stopped training would go on.
            stop = {"stopped": self.trainer.should_stop, "reason": self.notes.stop_reason}
            checkpoint["learner"] = {"ranks": states, **stop}
        checkpoint["policy"] = self._inputs
        checkpoint["hyper_parameters"] = {"seed": self.seed, **self.recipe.to_dict()}
        checkpoint[FACTS] = {"timesteps": self.timesteps, "iteration": self.iteration}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the learner's state until training starts.

        Raises:
            ValueError: the checkpoint was made with other settings; lists them.
        """
        then = dict(checkpoint["hyper_parameters"])
        now: dict[str, Any] = {"seed": self.seed, **self.recipe.to_dict()}
        resuming = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if self.allow_mismatch or not resuming:
            changed, self._prolonged = differences(then, now, NETWORK), ""
        else:
            changed, self._prolonged = resume_differences(then, now)
        if self.policy is None:  # `load_from_checkpoint`: there is no data to ask
            self._inputs = checkpoint["policy"]
            self.policy = empty_policy(self.recipe, self._inputs, self.seed)
        elif checkpoint["policy"] != self._inputs:
            changed.append(f"what the policy sees was {checkpoint['policy']} and is {self._inputs}")
        if changed:
            raise ValueError(
                f"The checkpoint was made with other settings: {'; '.join(changed)}. Restore them, or start a new run "
                "(model.total_timesteps alone may grow)"
            )
        self._resume = checkpoint.get("learner")


if TYPE_CHECKING:
    _: Trainee = LitPPO()  # it is what callbacks are promised
