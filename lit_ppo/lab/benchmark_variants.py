"""What `lit-ppo benchmark` compares: the recipe with and without each optimisation, and the original recipe.

The *base* is the learner of the given recipe with every optimisation off, the old script's budget (100,000 timesteps a
fold) and the old script's evaluation: bar by bar, over train and validation bars, about every 10,000 timesteps.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_ppo.market.tensors import MarketTensors
from lit_ppo.module import LitPPO
from lit_ppo.scoring.evaluation import Evaluation, evaluate_bar_by_bar
from lit_ppo.store.files import read_yaml

BALANCED = Path(__file__).resolve().parents[2] / "configs" / "profiles" / "balanced.yaml"
ORIGINAL = Path(__file__).resolve().parents[2] / "configs" / "profiles" / "original.yaml"
BUDGET = 100_000  # timesteps of a fold of the old script
EVERY = 10_000  # its distance of two evaluations, timesteps
FAST_EVALUATION = "fast evaluation"


@dataclass(frozen=True)
class Optimisation:
    """One optimisation as an overlay.

    Attributes:
        name: for tables.
        callback: its YAML entry, if it is a callback.
        model: the `model.*` keys that belong to it.
    """

    name: str
    callback: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None


def _of_profile() -> tuple[Optimisation, ...]:
    """The callbacks of the profile that has every optimisation, in its order, and the fast evaluation."""
    profile = read_yaml(BALANCED.read_bytes(), str(BALANCED))
    found = []
    for entry in profile["trainer"]["callbacks+"]:
        module, _, name = entry["class_path"].rpartition(".")
        callback = getattr(importlib.import_module(module), name)
        model = profile["model"] if getattr(callback, "sets_budget", False) else None
        label = callback.optimisation.replace("_", " ")
        found.append(Optimisation(LABELS.get(label, label), {"init_args": {}, **entry}, model))
    return (*found, Optimisation(FAST_EVALUATION))


LABELS = {  # of recorded results
    "convergence early stopping": "early stopping",
    "progressive hyperparameters": "progressive hyper-parameters",
}
OPTIMISATIONS = _of_profile()


def as_configured(trainer: Mapping[str, Any], total_timesteps: int) -> list[Optimisation]:
    """The optimisations with the values that a recipe gives them; those that it lacks have the values above.

    Args:
        trainer: the recipe's `trainer.*`.
        total_timesteps: its budget, which is the optimised one where it has a callback that sets budgets.
    """
    given = {entry["class_path"].rpartition(".")[2]: entry for entry in trainer.get("callbacks") or []}
    found = []
    for optimisation in OPTIMISATIONS:
        name = optimisation.callback["class_path"].rpartition(".")[2] if optimisation.callback else ""
        if name in given:
            model = {"total_timesteps": total_timesteps} if optimisation.model else None
            optimisation = Optimisation(optimisation.name, given[name], model)
        found.append(optimisation)
    return found


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        label: how it is named.
        names: of the optimisations that are on.
    """

    label: str
    names: tuple[str, ...]

    @property
    def slug(self) -> str:
        """A folder's name."""
        return "-".join(name.replace(" ", "_") for name in self.names) or "base"

    def overlay(self, steps_per_iteration: int, optimisations: Sequence[Optimisation] = OPTIMISATIONS) -> str:
        """The configuration that it lays over the recipe, YAML."""
        on = [optimisation for optimisation in optimisations if optimisation.name in self.names]
        model: dict[str, Any] = {"total_timesteps": BUDGET}
        for optimisation in on:
            model |= optimisation.model or {}
        callbacks = [{"class_path": "callbacks.ValidationSelection"}, *(dict(o.callback) for o in on if o.callback)]
        trainer = {
            "logger": False,
            "callbacks": callbacks,
            "check_val_every_n_epoch": max(round(EVERY / steps_per_iteration), 1),
        }
        return yaml.safe_dump({"model": model, "trainer": trainer, "strict": True, "parallel_candidates": 1})


def variants(ablation: bool, fast: bool = False) -> list[Variant]:
    """Base and everything; with `ablation` also one added at a time, then one left out at a time.

    The set of all but the last one added is in both halves, and once in the list.

    Args:
        ablation: more than the two rows.
        fast: every row evaluates fast, the base too. What is learnt is the same, so the differences out of sample are,
            in a tenth of the time; the time ratios are then against a base that is fast already.
    """
    always = (FAST_EVALUATION,) if fast else ()
    every = tuple(optimisation.name for optimisation in OPTIMISATIONS if optimisation.name not in always)
    rows = [Variant("base: every optimisation off" + (", but fast evaluation" if fast else ""), always)]
    if ablation:
        rows += [Variant(f"+ {every[count - 1]}", every[:count] + always) for count in range(1, len(every))]
        rows.append(Variant(f"+ {every[-1]} = all", every + always))
        rows += [Variant(f"all but {name}", tuple(x for x in every if x != name) + always) for name in every[:-1]]
    else:
        rows.append(Variant("all", every + always))
    return rows


def as_before(make_module: Callable[..., LitPPO], datamodule: Any) -> Callable[..., LitPPO]:
    """Let modules evaluate as the old script did: bar by bar, the train bars too (of which only the time counts)."""

    def make(seed: int, overlay: Mapping[str, Any]) -> LitPPO:
        module = make_module(seed, overlay)

        def evaluate(market: MarketTensors, close_at_end: bool = True) -> Evaluation:
            assert module.policy is not None
            features: Sequence[str] = module.recipe.account_features
            evaluate_bar_by_bar(module.policy, datamodule.fold_data(datamodule.fold).train, features)
            return evaluate_bar_by_bar(module.policy, market, features, close_at_end)

        module.evaluate = evaluate  # type: ignore[method-assign]
        return module

    return make
