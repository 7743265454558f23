"""What a search may change, how often it tries, and what it asks of a setting: configs/search/*.yaml."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from lit_ppo.argument_types import check_types
from lit_ppo.commands.data_choice import recipe_file
from lit_ppo.recipe import Recipe
from lit_ppo.store.files import read_yaml
from lit_ppo.words import did_you_mean

# `data.*` keys that leave the validation bars, their prices and their costs as they are: trials are paired on those.
DATA_KEYS = ("data.features", "data.train_size", "data.expand_train", "data.purged_size", "data.warmup_bars")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both allowed; whole ones if both are.

    Attributes:
        log: draw the logarithm evenly.
        step: from one value to the next; None: any number (whole numbers: 1).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        return self.low, self.high


@dataclass(frozen=True)
class Choices:
    """Values to choose from: scalars, or lists and mappings, which Optuna knows by their JSON text."""

    values: tuple[Any, ...]

    @property
    def names(self) -> tuple[Value, ...]:
        """What Optuna knows the values by."""
        return tuple(json.dumps(value) if isinstance(value, list | dict) else value for value in self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values


@dataclass(frozen=True)
class Plan:
    """A search, as its file declares it.

    Attributes:
        space: by key of a recipe, what it may be.
        trials: settings that are tried, the recipe's own one included.
        folds: searched, from the first on; None: half of those that every setting fits into. Their validation bars
            choose; test begins after them.
        objective: mean over the searched folds of this figure of their validation: "sharpe_annual", "return_pct", or
            "score", what the learner maximises.
        sampler: "tpe" learns from the trials before, "random" does not.
        p_threshold: a trial is stopped when a signed-rank test (Wilcoxon) of its folds against the same folds of the
            best trial says so with a p value below this; 0 stops none.
    """

    space: Mapping[str, Range | Choices]
    trials: int = 30
    folds: int | None = None
    objective: Literal["sharpe_annual", "return_pct", "score"] = "sharpe_annual"
    sampler: Literal["tpe", "random"] = "tpe"
    p_threshold: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """As its file has it."""
        space = {
            key: list(one.values) if isinstance(one, Choices) else dataclasses.asdict(one)
            for key, one in self.space.items()
        }
        return dataclasses.asdict(self) | {"space": space}

    def largest(self, key: str, otherwise: int) -> int:
        """The largest number of bars that a key may be; `otherwise` where it is not in the space."""
        one = self.space.get(key)
        return otherwise if one is None else max(otherwise, *(int(value) for value in one.ends if value is not None))

    def value_of(self, key: str, name: Value) -> Any:
        """The value that Optuna knows by a name."""
        one = self.space[key]
        return one.values[one.names.index(name)] if isinstance(one, Choices) else name

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Keys and values of a recipe for what Optuna suggests."""
        return {key: self.value_of(key, params[key]) for key in self.space}

    def names_of(self, config: Mapping[str, Any]) -> dict[str, Value]:
        """What Optuna would have suggested to give a recipe's own values, as far as the space holds them.

        Args:
            config: by dotted key.
        """
        found: dict[str, Value] = {}
        for key, one in self.space.items():
            value = config.get(key)
            if isinstance(one, Choices):
                if value in one.values:
                    found[key] = one.names[one.values.index(value)]
            elif isinstance(value, int | float) and _on_grid(one, value):
                found[key] = value if one.whole else float(value)
        return found


def _on_grid(one: Range, value: float) -> bool:
    steps = 0.0 if one.step is None else (value - one.low) / one.step
    return one.low <= value <= one.high and math.isclose(steps, round(steps), abs_tol=1e-9)


def read_plan(asked: str, known: Collection[str], trials: int | None = None) -> Plan:
    """Read a search by the name of a shipped one, or from its file.

    Args:
        asked: a path, or the name of a file in configs/search/.
        known: keys that a recipe may have.
        trials: how many, in the place of what the file says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no search; names the key.
    """
    path = recipe_file(asked, "search")
    if not path.is_file():
        raise FileNotFoundError(f"--space: there is no file {path}; name one, or one of configs/search/, such as `ppo`")
    return plan_of(read_yaml(path.read_bytes(), str(path)), str(path), known, trials)


def plan_of(content: Any, source: str, known: Collection[str], trials: int | None = None) -> Plan:
    """The search that a mapping declares; see `read_plan`."""
    if not isinstance(content, Mapping) or not isinstance(content.get("space"), Mapping) or not content["space"]:
        raise ValueError(f"{source} declares no search: it needs `space`, a mapping of keys to what they may be")
    hints = get_type_hints(Plan)
    for name in content.keys() - hints.keys():
        raise ValueError(f"{source}: there is no {name}; {did_you_mean(str(name), hints)}")
    settings = {name: value for name, value in content.items() if name != "space"}
    if trials is not None:
        settings["trials"] = trials
    check_types({name: hints[name] for name in settings}, settings, f"{source}: ")
    space = {str(key): _entry(str(key), value, source, known) for key, value in content["space"].items()}
    plan = Plan(space, **settings)
    if plan.trials < 1 or (plan.folds is not None and plan.folds < 1) or not 0 <= plan.p_threshold < 1:
        raise ValueError(
            f"{source}: trials and folds are numbers >= 1 and p_threshold is in [0, 1), got {plan.trials}, "
            f"{plan.folds} and {plan.p_threshold}"
        )
    return plan


def _entry(key: str, value: Any, source: str, known: Collection[str]) -> Range | Choices:
    if key not in known or key == "model.seed":
        hint = did_you_mean(
            key, [name for name in known if name.startswith(("model.", "data."))], "docs/search.md tells"
        )
        raise ValueError(f"{source}: no recipe has the key {key}; {hint}")
    if not key.startswith("model.") and key not in DATA_KEYS:
        raise ValueError(
            f"{source}: {key} cannot be searched: trials are paired on the same validation bars at the same costs, and "
            f"this would change them. Any model.* can be, and {', '.join(DATA_KEYS)}"
        )
    one: Range | Choices
    if isinstance(value, list) and value:
        one = Choices(tuple(value))
        if len(set(map(repr, one.names))) < len(one.names):
            raise ValueError(f"{source}: {key} lists a value twice: {value}")
    elif isinstance(value, Mapping) and {"low", "high"} <= value.keys() <= {"low", "high", "log", "step"}:
        check_types(get_type_hints(Range), value, f"{source}: {key}.")
        one = Range(**value)
        if (
            not one.low < one.high
            or (one.log and (one.low <= 0 or one.step))
            or (one.step is not None and one.step <= 0)
        ):
            raise ValueError(
                f"{source}: {key} is a range with low < high and a step > 0; log wants low > 0 and no step; got {value}"
            )
        if one.whole and isinstance(one.step, float):
            raise ValueError(f"{source}: {key} is a range of whole numbers, so its step must be one, got {one.step}")
    else:
        raise ValueError(
            f"{source}: {key} is a list of values, or {{low: ..., high: ..., log: true or false, step: ...}}; got "
            f"{value!r}"
        )
    if key.startswith("model."):
        name, hints = key.removeprefix("model."), get_type_hints(Recipe)
        for end in one.ends:
            check_types({name: hints[name]}, {name: end}, f"{source}: model.")
    return one


def said(settings: Mapping[str, Any]) -> str:
    """Settings on one line, as a person reads them."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in settings.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)
