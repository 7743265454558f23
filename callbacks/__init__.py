"""The optional parts of a training; each one vanishes when its YAML entry is deleted.

A callback touches the module only through what `lit_ppo.module.LitPPO` names in its docstring, and callbacks do not
know each other.
"""

from callbacks.adaptive_timesteps import AdaptiveTimesteps
from callbacks.checkpoint import TrainingCheckpoint
from callbacks.convergence_early_stopping import ConvergenceEarlyStopping
from callbacks.evaluation_schedule import EvaluationSchedule
from callbacks.metrics_log import MetricsLog
from callbacks.progress import RunProgress
from callbacks.progressive_hyperparameters import Phase, ProgressiveHyperparameters
from callbacks.validation_selection import ValidationSelection
from callbacks.warm_start import WarmStart

__all__ = [
    "AdaptiveTimesteps",
    "ConvergenceEarlyStopping",
    "EvaluationSchedule",
    "MetricsLog",
    "Phase",
    "ProgressiveHyperparameters",
    "RunProgress",
    "TrainingCheckpoint",
    "ValidationSelection",
    "WarmStart",
]
