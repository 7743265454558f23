"""The Fabric shell: a script over the same `Learner`, for several devices or machines, with nothing hidden.

    python lit_ppo/fabric_trainer.py --config configs/fabric.yaml
    python lit_ppo/fabric_trainer.py --config configs/fabric.yaml --devices 2 --strategy ddp
    lit-ppo run lit_ppo/fabric_trainer.py --devices 2 --strategy ddp -- --config configs/fabric.yaml
    fabric run lit_ppo/fabric_trainer.py --precision bf16-mixed --num-nodes 2 --node-rank 0 --main-address HOST -- ...

The policy is not wrapped by the strategy: the learner averages gradients itself, in one all-reduce, as it does under
Lightning, and equal settings give equal weights.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by its path: `lit_ppo/market/tensors.py` must not stand in for Python's own `types`
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from torch import Tensor, distributed

from lit_ppo import interrupts
from lit_ppo.class_paths import refuse_functions, restrict_class_paths
from lit_ppo.command_line_only import check_asked_by_flag, check_environment
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.ppo.diagnosis import diagnosed
from lit_ppo.ppo.learner import Learner
from lit_ppo.ppo.screening import mirror_line
from lit_ppo.ppo.sources import Experience
from lit_ppo.precision import SkippedSteps, check_precision, scales_loss
from lit_ppo.recipe import (
    Policy,
    Recipe,
    build_optimizer,
    build_policy,
    experience,
    policy_inputs,
    resume_differences,
    suitable_threads,
)
from lit_ppo.scoring.evaluation import Evaluation, evaluate
from lit_ppo.store.checkpoints import FACTS, SELECTED, CheckpointStore
from lit_ppo.store.one_training import make_room
from lit_ppo.store.results import NOT_TRAINED
from lit_ppo.tensorboard import write_configuration


@contextmanager
def _no_weight_cache() -> Iterator[None]:
    """Let autocast convert the weights anew each time: it would keep the 16-bit ones of before the first update."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


class FabricTrainer:
    """One training under Fabric.

    Args:
        fabric: launched.
        recipe: see `lit_ppo.recipe.Recipe`.
        source: train bars, or a vector environment.
        seed: of every draw; each rank makes its own draws of it.
        directory: of checkpoints; None: none are written.
    """

    def __init__(
        self, fabric: Fabric, recipe: Recipe, source: Experience, seed: int, directory: Path | None = None
    ) -> None:
        self.fabric, self.recipe, self.seed = fabric, recipe, seed
        self.store = None if directory is None else CheckpointStore(directory)
        if isinstance(source, MarketTensors):
            source = source.to(fabric.device)
        source = experience(recipe, source, seed, fabric.global_rank)
        self.inputs = policy_inputs(source)
        self.policy: Policy = build_policy(recipe, self.inputs, seed).to(fabric.device)  # type: ignore[assignment]
        plain = build_optimizer(self.policy, recipe, scales_loss(fabric.strategy.precision))
        self.optimizer: Any = fabric.setup_optimizers(plain)
        self.learner = Learner(
            self.policy, plain, recipe, seed=seed, rank=fabric.global_rank, world_size=fabric.world_size
        )
        self.learner.attach(source)
        self.best = -math.inf  # validation score ...
        self.weights: dict[str, Tensor] = {}  # ... and the policy's weights that had it
        self._skipped = SkippedSteps()

    def iterate(self) -> dict[str, float]:
        """One PPO iteration."""
        with self.fabric.autocast(), _no_weight_cache():
            try:
                return self.learner.iterate(self._apply_loss)
            except FloatingPointError as error:
                if self.store is None:
                    raise
                raise diagnosed(error, self.learner, self.store.directory) from error

    def _apply_loss(self, loss: Tensor) -> None:
        precision = self.fabric.strategy.precision
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.fabric.device.type, enabled=False):  # as in the Lightning shell
            self.fabric.backward(loss)
        if scales_loss(precision):
            # An overflow on one rank must make every rank's scaler skip the step: average before unscaling.
            for parameter in self.policy.parameters():
                if parameter.grad is not None:
                    parameter.grad.copy_(self.fabric.all_reduce(parameter.grad, reduce_op="mean"))  # type: ignore
            precision.unscale_gradients(self.optimizer.optimizer)
        if not self._skipped.skip(precision, self.policy):
            self.learner.prepare_gradients()
        self.optimizer.step()

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint; every rank takes part."""
        if self.store is None:
            return
        states: list[Any] = [self.learner.state_dict()]
        if self.fabric.world_size > 1:
            states = states * self.fabric.world_size
            distributed.all_gather_object(states, self.learner.state_dict())
        precision = self.fabric.strategy.precision.state_dict()
        if self.fabric.is_global_zero:
            state = {
                "state_dict": {f"policy.{key}": value for key, value in self.policy.state_dict().items()},
                "optimizer": self.optimizer.optimizer.state_dict(),
                "precision": precision,
                "learner": {"ranks": states},
                "selection": {"score": self.best, "weights": self.weights},
                "policy": self.inputs,
                "hyper_parameters": {"seed": self.seed, **self.recipe.to_dict()},
                FACTS: {"timesteps": self.learner.timesteps, "iteration": self.learner.iteration},
            }
            self.store.save(state, name)
        self.fabric.barrier()

    def resume(self) -> bool:
        """Go on from the newest checkpoint; returns whether there is one.

        Raises:
            ValueError: it was made with other settings or another number of ranks.
        """
        found = None if self.store is None else self.store.load_newest(self.fabric.device)
        if found is None:
            return False
        state, path = found
        changed, prolonged = resume_differences(state["hyper_parameters"], {"seed": self.seed, **self.recipe.to_dict()})
        ranks = state["learner"]["ranks"]
        if len(ranks) != self.fabric.world_size:
            changed.append(f"the number of ranks was {len(ranks)} and is {self.fabric.world_size}")
        if state["policy"] != self.inputs:
            changed.append(f"what the policy sees was {state['policy']} and is {self.inputs}")
        if changed:
            raise ValueError(
                f"{path} was made with other settings: {'; '.join(changed)}. Restore them (model.total_timesteps alone "
                "may grow)"
            )
        self.policy.load_state_dict({key.removeprefix("policy."): v for key, v in state["state_dict"].items()})
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.learner.load_state_dict(ranks[self.fabric.global_rank])
        if prolonged:
            self.learner.total_timesteps = self.recipe.total_timesteps
            self.fabric.print(prolonged)
        self.best, self.weights = state["selection"]["score"], state["selection"]["weights"]
        return True

    def select(self, score: float) -> None:
        """Keep the present weights if `score` is the best so far; of equals the later ones, which have learnt more."""
        if score >= self.best:
            self.best = score
            self.weights = {name: value.detach().clone() for name, value in self.policy.state_dict().items()}

    def evaluate(self, market: MarketTensors, close_at_end: bool = True) -> Evaluation:
        """As `LitPPO.evaluate`."""
        return evaluate(self.policy, market, self.recipe.account_features, close_at_end)


def run(fabric: Fabric, trainer: FabricTrainer, validation: MarketTensors, every: int) -> None:
    """Train to the end, and leave the weights that did best on validation in the policy.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    if trainer.learner.sees_nothing:
        fabric.print(NOT_TRAINED)
    if (decided := trainer.learner.mirror_record) and not decided["mirrored"]:
        fabric.print(mirror_line(decided))
    while not trainer.learner.finished:
        metrics = trainer.iterate()
        score = fabric.broadcast(trainer.evaluate(validation, close_at_end=False).score)
        trainer.select(score)
        fabric.log_dict({**metrics, "validation/score": score}, step=trainer.learner.timesteps)
        fabric.print(
            f"{trainer.learner.timesteps:,} / {trainer.learner.total_timesteps:,} bars  "
            f"{metrics['time/steps_per_s']:,.0f} steps/s  validation score {score:+.4f}"
        )
        stop = fabric.strategy.reduce_boolean_decision(interrupts.requested(), all=False)  # type: ignore[attr-defined]
        if stop or trainer.learner.iteration % every == 0 or trainer.learner.finished:
            trainer.save()
        interrupts.raise_if_requested()
    if trainer.weights:  # none where every score was NaN
        trainer.policy.load_state_dict(trainer.weights)


def main(datamodule_class: type[pl.LightningDataModule], arguments: list[str] | None = None) -> int:
    """Parse the command line and train one fold; returns the exit code."""
    parser = ArgumentParser(prog="fabric_trainer.py", description="Train one fold under Fabric.", allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", "--seed", type=int, default=0)
    parser.add_argument("--accelerator", type=str, default="auto")
    parser.add_argument("--strategy", type=str, default="auto")
    parser.add_argument("--devices", type=int | str, default="auto")
    parser.add_argument("--num_nodes", type=int, default=1)
    parser.add_argument("--precision", type=str | None, default=None)
    parser.add_argument("--directory", type=str, default="results/fabric", help="of checkpoints and TensorBoard events")
    parser.add_argument("--save_every", type=int, default=10, help="PPO iterations between two checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete the training that is there")
    parser.add_class_arguments(Recipe, "model")
    parser.add_class_arguments(datamodule_class, "data")
    restrict_class_paths()
    try:
        check_environment()
        config = parser.parse_args(arguments)
        check_asked_by_flag(vars(config), sys.argv[1:] if arguments is None else arguments)
        refuse_functions(config)
        check_precision(config.precision, "precision")
        directory = Path(config.directory)
        interrupts.install()
        fabric = Fabric(
            accelerator=config.accelerator,
            strategy=config.strategy,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,
            loggers=TensorBoardLogger(directory, name="", version=""),
        )
        if not os.environ.get("LT_CLI_USED"):  # `fabric run` has started the processes already
            fabric.launch()
        made = parser.instantiate(config)
        data, recipe = made.data, made.model
        torch.set_num_threads(suitable_threads(recipe))
        fold = data.fold_data(data.fold)
        if not config.resume and (fabric.is_global_zero or not config.overwrite):  # all refuse, one deletes
            make_room(directory, config.overwrite, "--resume")
        trainer = FabricTrainer(fabric, recipe, fold.train, config.seed_everything, directory)
        if config.resume and not trainer.resume():
            raise FileNotFoundError(f"--resume: there is no checkpoint in {directory}")
        if config.resume and trainer.learner.finished and (directory / SELECTED).is_file():
            fabric.print(f"{directory} is finished, its weights are {SELECTED}: nothing to do")
            return 0
        if fabric.is_global_zero:
            write_configuration(fabric.logger.experiment, parser.dump(config))  # type: ignore[attr-defined]
        run(fabric, trainer, fold.validation, config.save_every)
        result = trainer.evaluate(data.test_segment(data.fold))
        trainer.save(SELECTED)
        figures = {"score": result.score, **result.metrics}
        plain = {f"test/{name}": value if math.isfinite(value) else None for name, value in figures.items()}
        fabric.print(json.dumps(plain))
    except interrupts.Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (ValueError, OSError) as error:
        print(f"fabric_trainer.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from datamodules.walk_forward import WalkForwardDataModule  # a command line, like lit_ppo.cli

    sys.exit(main(WalkForwardDataModule))
