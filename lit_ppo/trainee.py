"""What a callback sees of a training, and what it leaves: `Trainee` and its `TrainingNotes`.

A new callback needs nothing else. What it notes goes into the ledger of folds; its counts, timesteps and seconds go
into optimization_summary.json and the terminal, which know no callback by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lit_ppo.market.tensors import MarketTensors, TrainedFold
    from lit_ppo.ppo.learner import Learner
    from lit_ppo.recipe import Policy, Recipe
    from lit_ppo.scoring.evaluation import Evaluation


@dataclass
class TrainingNotes:
    """What is to be kept of a fold's training besides its weights and scores, as plain JSON.

    Attributes:
        stop_reason: why training ended before its budget; "" otherwise. Written by early-stopping callbacks.
        selection: {"score", "timesteps"} of the weights that were chosen; written by a selecting callback.
        optimisations: by name of an optimisation, what it did in this fold, see `optimised`.
        details: further entries of the fold's `details` in the ledger.
    """

    stop_reason: str = ""
    selection: dict[str, float] = field(default_factory=dict)
    optimisations: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def optimised(self, name: str, did: str, counts: Mapping[str, int] | None = None, **more: Any) -> None:
        """Note what an optimisation has done in this fold so far, in place of what it noted before.

        Args:
            name: of the optimisation, its callback's attribute `optimisation`.
            did: in words.
            counts: by what is counted ("early_stops"), how often; the summary of the run adds them up over its folds.
            more: its own entries. `seconds_saved` and `cost_seconds` enter the run's speed-up.
        """
        self.optimisations[name] = {"did": did, **more, **({"counts": dict(counts)} if counts else {})}


class Trainee(Protocol):
    """The training that a callback is given as `pl_module`: `lit_ppo.module.LitPPO`.

    Attributes:
        recipe: its settings.
        policy, learner: None until they are built, and until training starts.
        total_timesteps: bars that this training visits: the recipe's, unless a callback sets another budget.
        metrics: what the last PPO iteration measured, keys of docs/metrics.md.
        validation: what the last validation of this iteration measured; empty if none.
        stop_requested: some rank was asked to stop; all ranks agree.
        fold: number of this fold and number of folds.
        side_by_side: folds that are trained at the same time.
        show: changes the line of this fold in the run's display; None where there is no such display.
        earlier_folds: folds of this walk-forward that are done, oldest first, with what their optimisations did.
        notes: to be written.
    """

    recipe: Recipe
    policy: Policy | None
    learner: Learner | None
    metrics: dict[str, float]
    validation: dict[str, float]
    stop_requested: bool
    fold: tuple[int, int]
    side_by_side: int
    show: Callable[[str], None] | None
    earlier_folds: Sequence[TrainedFold]
    notes: TrainingNotes

    @property
    def timesteps(self) -> int:
        """Bars visited so far, over all ranks."""
        ...

    @property
    def iteration(self) -> int:
        """PPO iterations done."""
        ...

    @property
    def progress(self) -> float:
        """Share of `total_timesteps` done, 0 to 1."""
        ...

    @property
    def total_timesteps(self) -> int: ...

    @total_timesteps.setter
    def total_timesteps(self, timesteps: int) -> None: ...

    def evaluate(self, market: MarketTensors, close_at_end: bool = True) -> Evaluation:
        """Trade `market` greedily, from flat; `close_at_end` goes flat with the last decision, and pays."""
        ...
