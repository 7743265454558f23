"""The optional parts of a training; each one vanishes when its YAML entry is deleted.

A callback touches the module only through what `lit_ppo.module.LitPPO` names in its docstring, and callbacks do not
know each other.
"""

from callbacks.checkpoint import TrainingCheckpoint
from callbacks.convergence_early_stopping import ConvergenceEarlyStopping
from callbacks.metrics_log import MetricsLog
from callbacks.progress import RunProgress
from callbacks.validation_selection import ValidationSelection

__all__ = ["ConvergenceEarlyStopping", "MetricsLog", "RunProgress", "TrainingCheckpoint", "ValidationSelection"]
