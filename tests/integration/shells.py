"""Small trainings through the shipped shells, for tests."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.module import LitPPO
from lit_ppo.store.checkpoint_io import AtomicCheckpointIO

warnings.filterwarnings("ignore", ".*does not have many workers.*")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

SMALL: dict[str, Any] = {"num_envs": 4, "num_steps": 16, "burn_in": 4, "hidden_size": 4, "policy_layers": (8,)}
SMALL |= {
    "value_layers": (8,),
    "num_minibatches": 2,
    "update_epochs": 2,
    "total_timesteps": 4 * 64,
    "screen_features": False,
}
HEADS_SAMPLED = {"estimator": "sampled", "account_features": ("position", "unrealised")}
ENCODER = {"estimator": "sampled", "account_at": "encoder"}


def small_data(**settings: Any) -> WalkForwardDataModule:
    """Three folds of a synthetic market."""
    sizes = {"train_size": 300, "validation_size": 100, "test_size": 100, "step_size": 100, "warmup_bars": 20}
    market = SyntheticMarket(num_bars=760, seed=3)
    data = WalkForwardDataModule(**{"synthetic": market, "cache": False, **sizes, **settings})
    data.setup()
    return data


def small_trainer(directory: Path, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": -1, "num_sanity_val_steps": 0}
    defaults |= {"log_every_n_steps": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    has_checkpoint = any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks)
    return pl.Trainer(
        **{**defaults, **settings},
        default_root_dir=str(directory),
        enable_checkpointing=has_checkpoint,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO(keep=10)],
    )


def fitted(
    directory: Path,
    callbacks: Sequence[pl.Callback] = (),
    *,
    seed: int = 5,
    ckpt_path: Path | None = None,
    data: WalkForwardDataModule | None = None,
    trainer_settings: dict[str, Any] | None = None,
    **recipe: Any,
) -> LitPPO:
    """Train a small policy; `recipe` changes SMALL."""
    module = LitPPO(seed=seed, **{**SMALL, **recipe})
    trainer = small_trainer(directory, callbacks, **(trainer_settings or {}))
    trainer.fit(module, datamodule=data or small_data(), ckpt_path=ckpt_path)
    return module


def weights(module: LitPPO) -> dict[str, torch.Tensor]:
    assert module.policy is not None
    return {name: value.detach().clone() for name, value in module.policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
