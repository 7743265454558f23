"""Recurrent PPO for trading, trained by walk-forward, on PyTorch Lightning and Fabric.

Names are loaded at their first use (PEP 562): `import lit_ppo` and the light commands (`lit-ppo data`, `report`,
`cache`) start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lit_ppo.version import __version__

_HOME = {
    "walk_forward": "lit_ppo.api",
    "load_run": "lit_ppo.api",
    "load_policy": "lit_ppo.api",
    "power": "lit_ppo.api",
    "search": "lit_ppo.api",
    "load_portfolio": "lit_ppo.api",
    "Portfolio": "lit_ppo.api",
    "Run": "lit_ppo.api",
    "Committee": "lit_ppo.nets.committee",
    "LitPPO": "lit_ppo.module",
    "Recipe": "lit_ppo.recipe",
    "WalkForwardDataModule": "datamodules.walk_forward",
}
__all__ = [
    "AdaptiveTimesteps",
    "Committee",
    "ConvergenceEarlyStopping",
    "EvaluationSchedule",
    "LitPPO",
    "MetricsLog",
    "Phase",
    "Portfolio",
    "ProgressiveHyperparameters",
    "Recipe",
    "Run",
    "RunProgress",
    "TrainingCheckpoint",
    "ValidationSelection",
    "WalkForwardDataModule",
    "WarmStart",
    "__version__",
    "load_policy",
    "load_portfolio",
    "load_run",
    "power",
    "search",
    "walk_forward",
]

if TYPE_CHECKING:
    from callbacks import (
        AdaptiveTimesteps,
        ConvergenceEarlyStopping,
        EvaluationSchedule,
        MetricsLog,
        Phase,
        ProgressiveHyperparameters,
        RunProgress,
        TrainingCheckpoint,
        ValidationSelection,
        WarmStart,
    )
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo.api import Portfolio, Run, load_policy, load_portfolio, load_run, power, search, walk_forward
    from lit_ppo.module import LitPPO
    from lit_ppo.nets.committee import Committee
    from lit_ppo.recipe import Recipe


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "callbacks")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
