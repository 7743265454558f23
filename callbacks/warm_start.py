"""Start a fold's training from what an earlier fold has learnt."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch

from lit_ppo.market.tensors import BarRange, Fold, TrainedFold
from lit_ppo.store.checkpoints import SELECTED, CheckpointStore
from lit_ppo.trainee import Trainee

OWN = "warm_start.ckpt"  # what the chosen weights' file lacks: the optimizer


def _overlap(one: BarRange, other: BarRange) -> bool:
    return one.start < other.stop and other.start < one.stop


class WarmStart(pl.Callback):
    """Take the weights of the earlier fold with the best validation score, if it has seen none of this fold's bars.

    A source whose training, or the choice of its weights, has read a bar that this fold validates or tests on is
    refused: its score there would be a memory. What it has read includes the prices of its last rewards, so that at
    `step_size == validation_size` the fold just before is refused by the fill delay plus one bar, and the one before it
    may serve. No fold fits: training starts from new weights, and says so.

    Reads `pl_module.earlier_folds`, `fold` and the datamodule's `folds`, and files of the source's folder; writes the
    policy's weights (shapes checked, all or none), by choice the optimizer's moments and the inputs' scale, and
    the module's notes. The learner draws weights back to where they started
    (`model.pull_to_start`): with a warm start, to the source's.

    Args:
        optimizer: also take the moments that the source's optimizer ended with. Each fold then leaves them in
            `warm_start.ckpt` of its folder.
        normaliser: also keep the source's feature scaler and feature weights, so that the network sees inputs in the
            units it has learnt; False fits both on this fold's train bars. The scale of the reward stays its own.
        source: take this fold instead of the best one.

    Raises:
        ValueError: a negative `source`; when training starts: `source` is not an earlier fold or has seen this fold's
            bars, or the weights do not fit.
    """

    optimisation = "warm_start"
    reads_earlier_folds = True  # so that folds are trained in turn

    def __init__(self, optimizer: bool = False, normaliser: bool = False, source: int | None = None) -> None:
        if source is not None and source < 0:
            raise ValueError(f"WarmStart needs source >= 0 (number of a fold) or null, got {source}")
        self.optimizer, self.normaliser, self.source = optimizer, normaliser, source
        self.moments_taken = False
        self._moments: dict[str, Any] | None = None
        self._inputs: dict[str, torch.Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Trainee, stage: str) -> None:
        if stage != "fit":
            return
        start = time.perf_counter()
        index = pl_module.fold[0]
        chosen, why = self._choose(trainer, pl_module, index)
        source: dict[str, Any] = {}
        did = f"new weights: {why}"
        if chosen is not None:
            self._take(trainer, pl_module, chosen)
            did, source = f"weights of fold {chosen.index} ({why})", {"fold": chosen.index}
            pl_module.notes.details["warm_start"] = source
        if index > 0 and trainer.is_global_zero:
            print(f"Warm start: fold {index} from {did}", flush=True)
        cost = time.perf_counter() - start
        counts = {"warm_starts": len(source)}
        pl_module.notes.optimised(self.optimisation, did, counts, **source, cost_seconds=cost)

    def _choose(self, trainer: pl.Trainer, pl_module: Trainee, index: int) -> tuple[TrainedFold | None, str]:
        """Return the source and its score in words, or None and why there is none."""
        earlier = [fold for fold in pl_module.earlier_folds if self.source in (None, fold.index)]
        if self.source is not None and index > self.source and not earlier:
            raise ValueError(f"WarmStart.source {self.source} is not among the folds that are done")
        if not earlier:
            return None, "there is no earlier fold"
        fold: Fold = trainer.datamodule.folds[index]  # type: ignore[attr-defined]
        fitting = [old for old in earlier if not any(_overlap(old.seen, own) for own in (fold.validation, fold.test))]
        if not fitting:
            newest = earlier[-1]
            why = (
                f"fold {newest.index} has read bars {newest.seen.start} to {newest.seen.stop - 1}, and fold {index} "
                f"validates on {fold.validation.start} to {fold.validation.stop - 1} and tests on {fold.test.start} to "
                f"{fold.test.stop - 1}"
            )
            if self.source is not None:
                raise ValueError(f"WarmStart.source {self.source}: {why}. Choose an older one, or raise data.step_size")
            return None, why
        scored = [(old.validation_score, old.index, old) for old in fitting if old.validation_score is not None]
        if not scored:
            return None, "no earlier fold's validation score is a number"
        score, _, best = max(scored, key=lambda entry: entry[:2])
        return best, f"validation score {score:+.4f}, the best of {len(scored)}"

    def _take(self, trainer: pl.Trainer, pl_module: Trainee, source: TrainedFold) -> None:
        store = CheckpointStore(source.directory)
        checkpoint = store.load(SELECTED)
        weights = {name.removeprefix("policy."): value for name, value in checkpoint["state_dict"].items()}
        assert pl_module.policy is not None
        own = pl_module.policy.state_dict()
        wrong = [
            f"{name} {list(weights[name].shape) if name in weights else 'missing'} for {list(value.shape)}"
            for name, value in own.items()
            if name not in weights or weights[name].shape != value.shape
        ]
        wrong += [f"{name} is not known" for name in weights.keys() - own.keys()]
        if wrong:
            raise ValueError(f"WarmStart: the weights of fold {source.index} do not fit: {'; '.join(wrong)}")
        if self.optimizer:
            self._moments = store.load(OWN)["optimizer"]
        if self.normaliser:
            datamodule = trainer.datamodule  # type: ignore[attr-defined]
            datamodule.use_scaler(pl_module.fold[0], checkpoint[type(datamodule).__qualname__]["scaler"])
            self._inputs = {name: weights[name] for name in ("input_gain", "mirror_sign") if name in weights}
        pl_module.policy.load_state_dict(weights)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if self._moments is not None and not self.moments_taken:  # a resumed training has its own
            trainer.optimizers[0].load_state_dict(self._moments)
        self.moments_taken = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        for name, value in self._inputs.items():  # the learner has just weighed the features anew, on a resume too
            getattr(pl_module.policy, name).copy_(value)
        self._inputs = {}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Trainee) -> None:
        if self.optimizer and trainer.is_global_zero:
            state = {"optimizer": trainer.optimizers[0].state_dict()}
            CheckpointStore(trainer.default_root_dir).save(state, OWN)

    def state_dict(self) -> dict[str, Any]:
        return {"moments_taken": self.moments_taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.moments_taken = state_dict["moments_taken"]
