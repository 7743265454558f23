"""The old scripts' command line: their flags, turned into the configuration that YAML writes.

    configs/scratch.yaml  <-  configs/profiles/PROFILE.yaml  <-  flags  ->  lit-ppo walk-forward

Nothing is trained here. `--print_config` shows the configuration, a recipe that `lit-ppo walk-forward --config` runs as
well. docs/migration.md says what differs from the old scripts, and why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_ppo.cli import main as lit_ppo_main
from lit_ppo.commands.config_check import bend_budget
from lit_ppo.commands.data_choice import RECIPES
from lit_ppo.folds.monitor import OLD_SCRIPT
from lit_ppo.store.atomic import atomic_write

LOT_STEP = 0.01  # lots
PROFILES = ("conservative", "balanced", "aggressive", "ultra_fast", "original")
# Flags that set one key of the configuration.
KEYS: dict[str, tuple[str, Any, str]] = {
    "data_path": ("data.path", str, "bar file"),
    "seed": ("seed_everything", int, "of every draw; the run goes to RESULTS_DIR/<seed>/"),
    "seeds": ("seeds", int, "so many runs, of this seed and the next ones, pooled"),
    "results_dir": ("results", str, "where runs go"),
    "iterations": ("data.fold_limit", int, "first so many folds only"),
    "initial_balance": ("money.initial_balance", float, "account currency"),
    "min_lots": ("money.min_lots", float, "least lots of an order"),
    "max_lots": ("money.max_lots", float, "most lots of an order"),
    "contract_size": ("money.contract_size", float, "units per lot"),
    "spread": ("data.costs.spread", float, "price units; default: the file's column"),
    "point_value": ("data.point", float, "size of a point in price units; default: from the quotes' digits"),
    "total_timesteps": ("model.total_timesteps", int, "bars visited in the first fold"),
    "learning_rate": ("model.learning_rate", float, "at the start"),
    "final_learning_rate": ("model.final_learning_rate", float, "at the end, linear between"),
    "parallel_candidates": ("parallel_candidates", int, "seeds trained in each fold, the best by validation kept"),
}
SWITCHED_KEYS = {
    "random_start": ("model.random_start", "training begins at random bars"),
    "cache_environments": ("data.cache", "keep computed features on disk"),
    "strict": ("strict", "an optimisation that fails ends the run"),
}
# Switches and values of optimisations: the callback, the argument that a value sets.
SWITCHES = {
    "adaptive_timesteps": ("AdaptiveTimesteps", "smaller budgets for later folds"),
    "warm_start": ("WarmStart", "start from the best earlier fold's weights"),
    "progressive_training": ("ProgressiveHyperparameters", "explore, balance, fine-tune"),
}
VALUES: dict[str, tuple[str, str, Any, str]] = {
    "min_timesteps": ("AdaptiveTimesteps", "min_timesteps", int, "bars that every fold gets at least"),
    "early_stopping_patience": ("ConvergenceEarlyStopping", "patience", int, "validations without gain; 0: off"),
    "convergence_threshold": ("ConvergenceEarlyStopping", "convergence_threshold", float, "what counts as a gain"),
}


class DropInError(ValueError):
    """Flags that contradict each other."""


def make_parser(program: str, default_profile: str) -> argparse.ArgumentParser:
    """Return the parser of every flag; a flag that is not given is None, so that the profile decides."""
    parser = argparse.ArgumentParser(
        prog=program, description="Train by walk-forward: the old script's flags over lit-ppo.", allow_abbrev=False
    )
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
    for name, (_, kind, text) in KEYS.items():
        parser.add_argument(f"--{name}", type=kind, help=text, required=name == "data_path")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, mps or auto")
    parser.add_argument("--initial_window", type=int, help="bars of train and validation together")
    parser.add_argument("--validation_size", type=float, help="of these; below 1 a share, else bars")
    parser.add_argument("--balance_per_lot", type=float, help="account currency for each 0.01 lot")
    parser.add_argument("--step_size", type=int, help="bars from fold to fold, and of each test segment")
    parser.add_argument("--eval_freq", type=int, help="bars between two validations (on a plateau, with a schedule)")
    for name, (_, text) in (SWITCHED_KEYS | SWITCHES).items():
        parser.add_argument(f"--{name}", help=text, **switch)
    for name, (_, _, kind, text) in VALUES.items():
        parser.add_argument(f"--{name}", type=kind, help=f"{text}; switches the optimisation on")
    parser.add_argument("--use_original_training", help="the plain recipe: profile original", **switch)
    parser.add_argument("--optimization_profile", choices=PROFILES, help=f"default: {default_profile}")
    parser.add_argument("--benchmark_mode", help="original against optimised: lit-ppo benchmark", **switch)
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    parser.add_argument("--print_config", action="store_true", help="show the configuration and leave")
    return parser


def chosen_profile(options: argparse.Namespace, default_profile: str) -> str:
    """Return the profile that the flags mean.

    Raises:
        DropInError: `--use_original_training` with another profile, or its `--no-` form with `original`.
    """
    asked, original = options.optimization_profile, options.use_original_training
    if options.benchmark_mode:
        default_profile = "balanced"  # the benchmark times the original recipe by itself
    if asked is not None and original is not None and original != (asked == "original"):
        flag = "--use_original_training" if original else "--no-use_original_training"
        raise DropInError(f"{flag} contradicts --optimization_profile {asked}; give one of them")
    if original is not None:
        return "original" if original else asked or "balanced"
    return asked or default_profile


def overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay one recipe over another, as several `--config` do: mappings merge, `name+` appends to a list."""
    merged = dict(base)
    for key, value in over.items():
        if key.endswith("+"):
            merged[key[:-1]] = [*merged.get(key[:-1], []), *value]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = value
    return merged


def configuration(options: argparse.Namespace, default_profile: str) -> dict[str, Any]:
    """Return the configuration that the flags mean: recipe, profile, flags.

    Raises:
        DropInError: flags contradict each other, or a device is unknown.
    """
    recipes = (RECIPES / "scratch.yaml", RECIPES / f"profiles/{chosen_profile(options, default_profile)}.yaml")
    config = overlay(*(yaml.safe_load(path.read_text(encoding="utf-8")) for path in recipes))
    config |= {"results": "results", "money": {}}  # the old script's folder; its account traded in lots
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name, (key, *_) in (KEYS | SWITCHED_KEYS).items():
        if name in given:
            _set(config, key, given[name])
    if "device" in given:
        config["trainer"] |= _device(given["device"])
    if "balance_per_lot" in given:
        config["money"]["balance_per_lot"] = given["balance_per_lot"] / LOT_STEP
    config["data"] |= _windows(config["data"], given)
    if "step_size" in given:
        config["data"] |= {"step_size": given["step_size"], "test_size": given["step_size"]}
    _switch(config, given)
    if "total_timesteps" in given and "min_timesteps" not in given:  # a profile's own gives way to what was typed
        bend_budget(config["trainer"]["callbacks"], given["total_timesteps"])
    if "eval_freq" in given:
        _evaluate_every(config, given["eval_freq"])
    return config


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[name] = value


def _windows(data: dict[str, Any], given: dict[str, Any]) -> dict[str, int]:
    """Sizes of train and validation: the old script cut validation off the end of its window."""
    recipe = data["train_size"] + data["validation_size"]
    window = given.get("initial_window", recipe)
    size = given.get("validation_size", data["validation_size"] / recipe)
    validation = int(window * size) if 0 < size < 1 else int(size)
    if not 0 < validation < window:
        raise DropInError(f"--validation_size {size:g} leaves nothing of a window of {window} bars; lower it")
    return {"train_size": window - validation, "validation_size": validation}


def _device(name: str) -> dict[str, Any]:
    kind, _, number = name.partition(":")
    accelerators = {"cpu": "cpu", "cuda": "gpu", "gpu": "gpu", "mps": "mps", "auto": "auto"}
    if kind not in accelerators or (number and not (kind in ("cuda", "gpu") and number.isdigit())):
        raise DropInError(f"--device is cpu, cuda, cuda:N, mps or auto, got {name!r}")
    return {"accelerator": accelerators[kind], "devices": [int(number)] if number else 1}


def _switch(config: dict[str, Any], given: dict[str, Any]) -> None:
    """Put optimisations in and out of the list of callbacks."""
    for name, (callback, _) in SWITCHES.items():
        if name in given:
            _entry(config, callback, wanted=given[name])
    if given.get("early_stopping_patience") == 0:
        if "convergence_threshold" in given:
            raise DropInError("--early_stopping_patience 0 turns off what --convergence_threshold belongs to")
        _entry(config, "ConvergenceEarlyStopping", wanted=False)
        given = {name: value for name, value in given.items() if name != "early_stopping_patience"}
    for name, (callback, argument, *_) in VALUES.items():
        if name not in given:
            continue
        off = [switch for switch, (other, _) in SWITCHES.items() if other == callback and given.get(switch) is False]
        if off:
            raise DropInError(f"--{name} belongs to an optimisation that --no-{off[0]} turns off; give one of them")
        _entry(config, callback, wanted=True)[argument] = given[name]


def _entry(config: dict[str, Any], callback: str, wanted: bool) -> dict[str, Any]:
    """Bring a callback into the list, or out of it; returns its arguments."""
    callbacks: list[dict[str, Any]] = config["trainer"]["callbacks"]
    found = [entry for entry in callbacks if entry["class_path"] == f"callbacks.{callback}"]
    if not wanted:
        config["trainer"]["callbacks"] = [entry for entry in callbacks if entry not in found]
        return {}
    if not found:
        callbacks.append({"class_path": f"callbacks.{callback}"})
        found = callbacks[-1:]
    return found[0].setdefault("init_args", {})


def _evaluate_every(config: dict[str, Any], bars: int) -> None:
    schedule = "callbacks.EvaluationSchedule"
    if any(entry["class_path"] == schedule for entry in config["trainer"]["callbacks"]):
        _entry(config, "EvaluationSchedule", wanted=True)["longest"] = bars
        return
    from lit_ppo.recipe import Recipe  # torch: not needed to parse flags or show help

    recipe = Recipe(**config["model"])
    iterations = -(-recipe.total_timesteps // recipe.steps_per_iteration)
    every = min(max(bars // recipe.steps_per_iteration, 1), iterations)
    config["trainer"]["check_val_every_n_epoch"] = every


def main(program: str, default_profile: str, arguments: Sequence[str] | None = None) -> int:
    """Run an old script's command line; returns the exit code.

    Args:
        program: its name, for messages.
        default_profile: what it does without `--optimization_profile`.
    """
    try:
        options = make_parser(program, default_profile).parse_args(arguments)
    except SystemExit as leave:  # --help is 0, a wrong flag 2
        return leave.code if isinstance(leave.code, int) else 2
    try:
        config = configuration(options, default_profile)
    except ValueError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    text = yaml.safe_dump(config, sort_keys=False)
    if options.print_config:
        print(text, end="")
        return 0
    with tempfile.TemporaryDirectory() as directory:  # the run's folder keeps the merged configuration
        recipe = Path(directory) / f"{Path(program).stem}.yaml"
        atomic_write(recipe, text)
        if options.benchmark_mode:
            return lit_ppo_main(["benchmark", "--config", str(recipe), "--output", config["results"]])
        asked = [f"--{name}" for name in ("resume", "overwrite") if getattr(options, name)]
        return lit_ppo_main(["walk-forward", "--config", str(recipe), "--baseline", OLD_SCRIPT, *asked])
