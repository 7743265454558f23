"""`lit-ppo search`: try settings on validation bars, write the best one as a recipe, and read test bars with it, once.

    RESULTS/search/search.json       what is searched, on which bars
                   trials.journal    Optuna's journal of finished trials
                   trial_007/<seed>  folds of the trial that runs; goes with its end
                   recipe.yaml       the best setting: `lit-ppo walk-forward --config RESULTS/search/recipe.yaml`
                   search.html       history, importance, every trial
    RESULTS/<seed>/                  that walk-forward, over the bars behind those that were searched

A trial is drawn from the seed, its number and the finished trials, so a search that is killed goes on as if it had not
been, and its result does not depend on who trains the folds.
"""

from __future__ import annotations

import os
import shutil
import textwrap
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lit_ppo.argument_types import as_flag
from lit_ppo.commands.config_check import known_keys
from lit_ppo.commands.lightning_cli import LitPPOCLI, UsageError
from lit_ppo.commands.rerun import PER_CALL
from lit_ppo.commands.search_space import Choices, Plan, Range, read_plan, said
from lit_ppo.commands.walk_forward import engine_of, make_loop, refuse_many_devices, walk_forward
from lit_ppo.folds.engine import Engine
from lit_ppo.folds.trial import Trial, first_unseen, fitting_folds, searched_folds
from lit_ppo.market.tensors import Fold
from lit_ppo.report.analysis import analyse
from lit_ppo.report.search_page import search_page
from lit_ppo.seeding import derive_seed
from lit_ppo.store.atomic import atomic_write, open_own, refuse_link
from lit_ppo.store.files import json_bytes, make_writable
from lit_ppo.store.provenance import source_sha256
from lit_ppo.store.results import RunFolder, run_record
from lit_ppo.store.resume_check import changes, flat
from lit_ppo.store.run_lock import RunLock
from lit_ppo.store.schema import read_json
from lit_ppo.words import plural

FOLDER, RECORD, JOURNAL, RECIPE, PAGE = "search", "search.json", "trials.journal", "recipe.yaml", "search.html"
OF_A_SEARCH = ("space", "trials", "results", *PER_CALL)  # keys that the recipe does not have
WIDTH = 100  # columns of a trial's lines
TRIAL_FAILED = (ValueError, ArithmeticError, MemoryError)  # a setting that cannot be trained, not a broken search


@dataclass(frozen=True)
class Ground:
    """On which bars a search goes.

    Attributes:
        folds: searched: their validation bars judge every trial.
        seen: the bar after the last of those; test begins behind it.
    """

    folds: list[Fold]

    @property
    def seen(self) -> int:
        return self.folds[-1].validation.stop


def search(cli: LitPPOCLI, arguments: Sequence[str]) -> int:
    """Run the trials that are missing, write recipe and page, test the best setting; returns the exit code.

    Args:
        cli: with the configuration.
        arguments: what follows `search`.

    Raises:
        ValueError, FileExistsError: the search does not fit the recipe, the data or what is there.
        RuntimeError: Optuna or Ray is not installed, or no trial could be finished.
        Interrupted: a signal came; `--resume` goes on.
    """
    config = cli.config
    optuna = import_optuna()
    plan = read_plan(config["space"], known_keys(cli.parser), config["trials"])
    if cli.dev_run:
        raise UsageError("trainer.fast_dev_run keeps no trial to compare: leave it out, or give --trials 1")
    refuse_many_devices(config["trainer"])
    engine = engine_of(cli)
    torch.set_num_threads(config["threads"] or 1)  # their number may change the last bit of a sum
    cli.datamodule.setup("fit")
    cli.make_module().build(cli.datamodule.fold_data(0).train)  # what cannot be built is refused before any work
    own = Settings(cli, arguments)
    ground = ground_of(own, plan)
    root, seed = Path(config["results"]), config["seed_everything"]
    folder = root / FOLDER
    _refuse_present(root, seed, config)
    make_writable(folder, "search", "--results")
    with RunLock(folder), engine.kept():
        _begin(cli, folder, plan, ground, arguments)
        history = History(optuna, folder, plan, seed)
        first = ground.folds[0].validation.start
        what = (
            f"search: {plural(plan.trials, 'trial')} on {plural(len(ground.folds), 'fold')}, by {plan.objective} of "
            f"their validation (bars {first:,} to {ground.seen - 1:,}); test begins behind them"
        )
        print(textwrap.fill(what, WIDTH), flush=True)
        while history.number < plan.trials:
            _one_trial(own, history, engine, ground, folder)
        best = history.best()
        recipe = refuse_link(folder / RECIPE)
        atomic_write(recipe, _recipe(own, plan, best, ground))
        page = refuse_link(folder / PAGE)
        atomic_write(page, search_page(optuna, history.study, plan.to_dict(), _ground_record(ground)))
        what = f"best: trial {best.number + 1}, {plan.objective} {best.value:+.4f}"
        print(_folded(what, plan.settings(best.params)))
        print(f"recipe: {recipe}, page: {page}", flush=True)
        code = _test(own, recipe, plan, ground, len(history.study.trials), engine)
        verdict = analyse(root / str(seed)).verdict.text
        atomic_write(page, search_page(optuna, history.study, plan.to_dict(), _ground_record(ground), verdict))
    return code


@dataclass(frozen=True)
class Settings:
    """Makes the configuration of a trial: the command line's, and what the trial changes."""

    cli: LitPPOCLI
    arguments: Sequence[str]

    def with_(self, changed: Mapping[str, Any]) -> LitPPOCLI:
        """The configuration with these keys; its datamodule is set up.

        Raises:
            ValueError: they do not fit the recipe or the data.
        """
        flags = [f"--{key}={as_flag(key, value)}" for key, value in changed.items()]
        found = LitPPOCLI("search", [*self.arguments, *flags], type(self.cli.datamodule))
        found.datamodule.setup("fit")
        return found


def ground_of(own: Settings, plan: Plan) -> Ground:
    """Lay out the folds of a search, so that every setting of its space has the same validation bars.

    Raises:
        ValueError: a value of `data.*` does not fit the data, or no fold is left to search or to test.
    """
    data = own.cli.datamodule
    ends = [(key, end) for key, one in plan.space.items() if key.startswith("data.") for end in one.ends]
    every = [data, *(own.with_({key: end}).datamodule for key, end in ends)]
    first = max(one.usable.start for one in every)
    train = plan.largest("data.train_size", data.split.train_size)
    purged = plan.largest("data.purged_size", data.split.purged_size)
    fitting = fitting_folds(data, train, purged, first)
    count = plan.folds or max(len(fitting) // 2, 1)
    if count > len(fitting):
        raise UsageError(
            f"The search needs {count} of the {len(data.folds)} folds, and {len(fitting)} have {train:,} train bars "
            f"between bar {first:,}, the first with all features of the space, and their validation. Lower `folds` of "
            "the search or the largest data.train_size, raise data.fold_limit, or give a longer file"
        )
    ground = Ground(fitting[:count])
    for one in every:
        searched_folds(one, ground.folds)
        if first_unseen(one, ground.seen) is None:
            raise UsageError(
                f"The search sees the bars up to {ground.seen - 1:,} of {data.source}, and no fold has its test behind "
                "them. Lower `folds` of the search, or give a longer file"
            )
    return ground


class History:
    """The finished trials: in Optuna's journal, and in the memory of the study that suggests the next one.

    Args:
        optuna: the package.
        folder: of the search; its owner alone may make this.
        plan: of the search.
        seed: of the draws.

    Attributes:
        study: Optuna's, with the finished trials and the one that runs.
    """

    def __init__(self, optuna: Any, folder: Path, plan: Plan, seed: int) -> None:
        self.optuna, self.plan, self.seed = optuna, plan, seed
        journal = folder / JOURNAL
        _mend(journal)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        self._kept = optuna.create_study(study_name=FOLDER, storage=storage, direction="maximize", load_if_exists=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=plan.p_threshold)
        self.study = optuna.create_study(direction="maximize", pruner=pruner)
        self.study.add_trials(self._kept.trials)

    @property
    def number(self) -> int:
        """Of the next trial: how many are finished."""
        return len(self._kept.trials)

    def ask(self, own: Mapping[str, Any]) -> Any:
        """Suggest the next trial; the first one is the recipe's own setting, as far as the space holds it.

        Args:
            own: settings of the recipe by dotted key.
        """
        samplers, number = self.optuna.samplers, self.number
        make = {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}[self.plan.sampler]
        self.study.sampler = make(seed=derive_seed(self.seed, 0, f"search trial {number}") % 2**32)
        if number == 0 and (names := self.plan.names_of(own)):
            self.study.enqueue_trial(names)
        return self.study.ask({key: self._distribution(one) for key, one in self.plan.space.items()})

    def tell(self, trial: Any, state: str, value: float | None) -> None:
        """End a trial; it is in the journal as a whole or not at all."""
        found = self.optuna.trial.TrialState[state]
        self.study.tell(trial, value, state=found)
        self._kept.add_trial(self.study.trials[trial.number])

    def best(self) -> Any:
        """The finished trial with the highest value; the first of equals.

        Raises:
            RuntimeError: there is none.
        """
        done = [trial for trial in self.study.trials if trial.state.name == "COMPLETE"]
        if not done:
            why = next((trial.user_attrs.get("error", "") for trial in self.study.trials), "")
            raise RuntimeError(f"None of the {len(self.study.trials)} trials could be finished; the first: {why}")
        return max(done, key=lambda trial: (trial.value, -trial.number))

    def _distribution(self, one: Range | Choices) -> Any:
        kinds = self.optuna.distributions
        if isinstance(one, Choices):
            return kinds.CategoricalDistribution(one.names)
        if one.whole:
            return kinds.IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
        return kinds.FloatDistribution(float(one.low), float(one.high), log=one.log, step=one.step)


def kept_trials(folder: Path) -> list[dict[str, Any]]:
    """The finished trials of a search: number, state, value, folds, and each searched key."""
    optuna = import_optuna()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.value if trial.state.name == "COMPLETE" else None,
            "folds": len(trial.intermediate_values),
            **trial.params,
        }
        for trial in optuna.load_study(study_name=FOLDER, storage=storage).trials
    ]


def _one_trial(own: Settings, history: History, engine: Engine, ground: Ground, folder: Path) -> None:
    """Ask for a setting, train and validate its folds until they are done or lost, and tell."""
    plan, started = history.plan, time.monotonic()
    trial = history.ask(flat(own.cli.config.as_dict()))
    settings = plan.settings(trial.params)
    directory = folder / f"trial_{trial.number:03d}"
    state, value, values, error = "COMPLETE", None, [], ""
    try:
        made = own.with_(settings)
        made.datamodule.folds = searched_folds(made.datamodule, ground.folds)
        loop = make_loop(made, RunFolder(directory, history.seed), Trial)
        loop.engine = engine
        with closing(loop.records(_order(loop, history.seed, trial.number))) as records:  # type: ignore[type-var]
            for record in records:
                # A fold that did not trade has no Sharpe ratio, and earned nothing.
                values.append(record.scores[f"validation/{plan.objective}"] or 0.0)
                trial.report(values[-1], record.index)
                if len(values) < len(ground.folds) and trial.should_prune():
                    state = "PRUNED"
                    break
    except TRIAL_FAILED as failure:
        state, error = "FAIL", f"{type(failure).__name__}: {failure}"
        trial.set_user_attr("error", error)
    if state == "COMPLETE":
        value = float(np.mean(values))
    trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
    history.tell(trial, state, value)
    shutil.rmtree(directory, ignore_errors=True)
    _say(trial.number, plan, state, values, error, settings)


def _order(loop: Trial, seed: int, number: int) -> list[int]:
    """Folds in the order that the pruner sees them in: another one for each trial, unless they need their own."""
    count = len(loop.datamodule.folds)
    if loop.chained:
        return list(range(count))
    return np.random.default_rng([seed, number]).permutation(count).tolist()


def _say(number: int, plan: Plan, state: str, values: Sequence[float], error: str, settings: Mapping[str, Any]) -> None:
    what = f"{plan.objective} {np.mean(values):+.4f}" if values else ""
    if state == "PRUNED":
        what += f", stopped after {plural(len(values), 'fold')}: worse than the best on the same ones"
    elif state == "FAIL":
        what = f"cannot be trained: {error}"
    print(_folded(f"trial {number + 1:3d}/{plan.trials}  {what}", settings), flush=True)


def _folded(what: str, settings: Mapping[str, Any]) -> str:
    """Settings behind what is said of them, in lines of at most 100 columns."""
    gap = " " * 14
    return textwrap.fill(f"{what}  {said(settings)}", WIDTH, subsequent_indent=gap, break_on_hyphens=False)


def import_optuna() -> Any:
    """Optuna, without its log lines.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise RuntimeError("search needs Optuna, which is not installed: pip install lit-ppo[search]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _mend(journal: Path) -> None:
    """Take away what a kill has left: Optuna reads no journal with half a line, and waits for a lock that is nobody's.

    Raises:
        ValueError: the journal is a link.
    """
    with open_own(journal) as file:
        content = file.readall() or b""
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink()


def _refuse_present(root: Path, seed: int, config: Mapping[str, Any]) -> None:
    if config["resume"] and config["overwrite"]:
        raise UsageError("--resume continues the search that is there, --overwrite deletes it; give one of them")
    if config["overwrite"] or (config["resume"] and (root / FOLDER / RECORD).exists()):
        return
    for path in (root / FOLDER / RECORD, root / str(seed) / "run.json"):
        if path.exists():
            raise FileExistsError(
                f"{path.parent} is there already, and a search ends with a walk-forward in {root / str(seed)}. "
                "Continue with --resume, delete both with --overwrite, or choose another --seed or --results directory"
            )


def _begin(cli: LitPPOCLI, folder: Path, plan: Plan, ground: Ground, arguments: Sequence[str]) -> None:
    """Write what is searched, or check that a resume is of the same search.

    Raises:
        UsageError: settings, data or code differ.
    """
    data = cli.datamodule
    now = run_record(
        seed=cli.config["seed_everything"],
        data={"path": data.path, **data.fingerprint()},
        command=["lit-ppo", "search", *arguments],
        source_sha256=source_sha256(),
        config=_without(yaml.safe_load(cli.config_text()), OF_A_SEARCH),
        plan=plan.to_dict() | {"trials": plan.trials},
        ground=_ground_record(ground),
    )
    path = refuse_link(folder / RECORD)
    if cli.config["overwrite"]:
        for name in (RECORD, JOURNAL, RECIPE, PAGE):
            (folder / name).unlink(missing_ok=True)
        for left in folder.glob("trial_[0-9]*"):
            shutil.rmtree(left)
    if path.is_file():
        then = read_json(path, dict[str, Any])
        settings = [one["config"] | {"search": _without(one["plan"], ("trials",))} for one in (then, now)]
        found = changes(settings[0], settings[1], then, now)
        if found.refused:
            raise UsageError(
                f"--resume: {folder} was made with other settings: {'; '.join(found.refused)}. Restore them, or start "
                "a new search with --overwrite or another --results directory"
            )
        now = then | {"plan": now["plan"]}  # more trials may be asked for
    atomic_write(path, json_bytes(now))


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _ground_record(ground: Ground) -> dict[str, Any]:
    return {"folds": len(ground.folds), "validation": [ground.folds[0].validation.start, ground.seen]}


def _recipe(own: Settings, plan: Plan, best: Any, ground: Ground) -> str:
    """The best setting as a recipe whose test bars begin behind those that chose it."""
    made = own.with_(plan.settings(best.params))
    config = _without(yaml.safe_load(made.config_text()), OF_A_SEARCH)
    first = first_unseen(made.datamodule, ground.seen)
    assert first is not None
    data = config["data"]
    data["fold_start"] += first
    if data["fold_limit"] is not None:
        data["fold_limit"] -= first
    head = (
        f"# The best of {plan.trials} settings by {plan.objective} on the validation bars "
        f"{ground.folds[0].validation.start} to {ground.seen - 1} (lit-ppo search).\n"
        "# data.fold_start: its test bars begin behind them.\n"
    )
    return head + yaml.safe_dump(config, sort_keys=False)


def _test(own: Settings, recipe: Path, plan: Plan, ground: Ground, trials: int, engine: Engine) -> int:
    """The one look at test bars: the walk-forward of the recipe."""
    config = own.cli.config
    arguments = ["--config", str(recipe), "--results", config["results"]]
    arguments += [f"--{name}={config[name]}" for name in ("workers", "cluster") if config[name]]
    arguments += [f"--{name}" for name in ("resume", "overwrite") if config[name]]
    arguments += [f"--allow-module={name}" for name in own.cli.allowed_modules]
    cli = LitPPOCLI("walk-forward", arguments, type(own.cli.datamodule))
    chosen = {"trials": trials, "objective": plan.objective, **_ground_record(ground)}
    return walk_forward(cli, ["walk-forward", *arguments], search=chosen, engine=engine)
