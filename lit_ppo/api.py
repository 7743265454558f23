"""What Python users call: the same functions behind the commands, with DataFrames in and out.

    run = lit_ppo.walk_forward("bars.csv", model={"total_timesteps": 50_000}, test_size=500, results="results/mine")
    run.verdict.text, run.decisions, run.trades, run.folds, run.report()
    policy = lit_ppo.load_policy("results/mine/42")
    policy.decide(new_bars)

Keywords are the recipe's keys, and go through the parser of the command line: equal settings give equal bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints, overload

import numpy as np
import pandas as pd

from lit_ppo.argument_types import as_flag, check_types
from lit_ppo.class_paths import ALLOWED
from lit_ppo.commands.data_choice import recipe_file
from lit_ppo.given import import_path, made_with, refuse_for_workers
from lit_ppo.market.costs import CostModel, Costs, model_entry
from lit_ppo.scoring.power import FILE_NAME as POWER_FILE
from lit_ppo.scoring.power import read_power, sentence
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.files import read_yaml
from lit_ppo.store.results import load_run as read_run
from lit_ppo.words import did_you_mean

if TYPE_CHECKING:
    from lit_ppo.report.analysis import Analysis
    from lit_ppo.report.verdict import Verdict


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk, for reading; made by `walk_forward` and `load_run`.

    Attributes:
        path: its folder, RESULTS/<seed>.
        modules: where the features, costs and callbacks were defined that `walk_forward` was given as objects.
    """

    path: Path
    modules: tuple[str, ...] = ()

    @cached_property
    def _analysis(self) -> Analysis:
        from lit_ppo.report.analysis import analyse

        return analyse(self.path)

    @property
    def verdict(self) -> Verdict:
        """`kind` ("edge", "none", "loss", ...), `sentence` and `reasons`: those of the report."""
        return self._analysis.verdict

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the stitched test decisions, by the keys of docs/metrics.md."""
        return dict(self._analysis.metrics)

    @property
    def decisions(self) -> pd.DataFrame:
        """One row a test decision: time, fold, position, probability, price, gross_return, cost, net_return, equity.

        `price` is the fill price of the decision; the other columns are those of out_of_sample.csv. `probability` is
        what the policy gave the position, all its networks together, and no probability of profit. A column that a run
        of an earlier release, or without its fills, does not tell is nan.
        """
        rows = self._analysis.run.out_of_sample.copy()
        if "probability" not in rows:
            rows.insert(3, "probability", np.nan)
        fills = self._analysis.fills
        rows.insert(4, "price", np.nan if fills is None else fills.fill_price)
        return rows

    @property
    def trades(self) -> pd.DataFrame:
        """One row a round trip, as in trades.csv."""
        return self._analysis.run.trades.copy()

    @property
    def folds(self) -> pd.DataFrame:
        """One row a fold of the ledger."""
        return pd.DataFrame([vars(record) for record in self._analysis.run.folds])

    def report(self) -> Path:
        """Write report.html; returns its path."""
        from lit_ppo.report.build import write_report

        return write_report(self.path)


@dataclass(frozen=True)
class Portfolio:
    """Several instruments as they lie on disk; made by `walk_forward` of several and by `load_portfolio`.

    Attributes:
        path: the results directory, with portfolio.json and RESULTS/<name>/<seed>.
    """

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """portfolio.json."""
        from lit_ppo.report.portfolio import read_portfolio

        return read_portfolio(self.path)

    @property
    def runs(self) -> dict[str, Run]:
        """The run of each instrument, by name."""
        seed = str(self.record["seed"])
        return {name: load_run(self.path / name / seed) for name in self.record["instruments"]}

    @property
    def verdict(self) -> Verdict:
        """`kind`, `sentence` and `reasons`: those of the page."""
        from lit_ppo.report.verdict import Verdict

        return Verdict(**self.record["verdict"])

    @property
    def instruments(self) -> pd.DataFrame:
        """One row an instrument: contribution, costs, share of risk, correlations, Sharpe ratios: docs/portfolio.md."""
        return pd.DataFrame(self.record["by_instrument"]).set_index("name")

    @property
    def returns(self) -> pd.DataFrame:
        """One row a day (UTC), one column an instrument: the agent's net return as fraction of the whole equity."""
        from lit_ppo.scoring.portfolio import combine, read_leg

        found = combine([read_leg(name, read_run(run.path)) for name, run in self.runs.items()])
        days = pd.DatetimeIndex(found.day.astype("datetime64[D]"), tz="UTC", name="time")
        return pd.DataFrame(found.returns["agent"], index=days, columns=list(found.names))

    def report(self) -> Path:
        """Write portfolio.json and portfolio.html again, from the runs; returns the path of the page."""
        from lit_ppo.report.portfolio import rewrite_portfolio

        return rewrite_portfolio(self.path)


def load_portfolio(path: str | Path) -> Portfolio:
    """Read a results directory with several instruments.

    Raises:
        FileNotFoundError: there is no portfolio.json.
        ValueError: it is not what a walk-forward writes.
    """
    found = Portfolio(Path(path))
    if not (found.path / "portfolio.json").is_file():
        raise FileNotFoundError(
            f"{found.path} has no portfolio.json. Give the results directory of several instruments"
        )
    assert found.record
    return found


def load_run(path: str | Path) -> Run:
    """Read the folder of a run, RESULTS/<seed>.

    Raises:
        FileNotFoundError: there is no run.json.
        ValueError: a file is not what a run writes.
    """
    return Run(read_run(path).path)


@overload
def walk_forward(bars: pd.DataFrame | str | Path, **settings: Any) -> Run: ...


@overload
def walk_forward(bars: Mapping[str, pd.DataFrame | str | Path], **settings: Any) -> Portfolio: ...


def walk_forward(
    bars: pd.DataFrame | str | Path | Mapping[str, pd.DataFrame | str | Path],
    *,
    model: Mapping[str, Any] | None = None,
    features: Sequence[Any] | str | None = None,
    costs: Mapping[str, Any] | Costs | CostModel | None = None,
    callbacks: Sequence[Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    config: str | Path = "walk_forward",
    results: str | Path = "results",
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    cluster: str | None = None,
    **data: Any,
) -> Run | Portfolio:
    """Train, select and test every fold: `lit-ppo walk-forward`.

    Args:
        bars: a bar file, or a DataFrame with time (UTC), open, high, low, close and, where there are any, volume,
            spread (points) and further columns of numbers; with close_only=True time and close suffice. A DataFrame is
            kept as RESULTS/bars/<hash>.csv, so that the run can be repeated. A dict of them, by name, is a run for each
            instrument, RESULTS/<name>/<seed>/, and their `Portfolio`; one that fails is left out and named in it.
        model, trainer: keys of `model.*` and `trainer.*`.
        costs: keys of `data.costs.*`, or a `Costs`, or a `CostModel` of your own, which is added to the recipe's costs
            and comes from a module that can be imported.
        features: "core", "default", "full", a YAML file or a list: names (also of these sets), entries as in a recipe,
            and functions of your own, which take the DataFrame of the bars and give a value for each (docs/python.md).
            The default recipe begins from the prior trader, which needs "core" among them; `config="scratch"` does not.
        callbacks: added to those of the recipe, in place of one of the same class: objects, class paths or entries as
            in a recipe. Every fold gets a copy, made anew. `trainer={"callbacks": [...]}` replaces all of them.
        config: a recipe by its name or its path; the keywords go over it.
        results: the run goes to RESULTS/<seed>/.
        seed: None is the recipe's.
        resume, overwrite: go on with, or delete, the run that is there.
        workers: folds trained side by side, in Ray actors; 0: one after the other, in this process. Same bytes.
        cluster: address of the Ray cluster that the actors live on; None: this machine, or the Ray that is initialised.
        data: any other key of `data.*`, such as train_size, test_size, fold_limit.

    Raises:
        ValueError: a setting, or bars, that cannot be meant; says what and where.
        FileExistsError: there is a run already.
        TypeError: `bars` is none of the above.
        RuntimeError: Ray is asked for and not installed, or its workers are lost again and again.
    """
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo.commands.lightning_cli import LitPPOCLI
    from lit_ppo.commands.walk_forward import walk_forward as command

    shared = _Shared(model, features, costs, trainer, config, results, seed, callbacks)
    arguments, modules = _arguments(
        bars, data, shared, workers=workers or None, cluster=cluster, resume=resume, overwrite=overwrite
    )
    if workers or cluster:
        refuse_for_workers(modules)
    cli = LitPPOCLI("walk-forward", arguments, WalkForwardDataModule)
    if cli.dev_run:
        raise ValueError(
            "trainer.fast_dev_run keeps no run that could be returned: leave it out and give fold_limit=1 with a small "
            "model total_timesteps, or use lit-ppo walk-forward --trainer.fast_dev_run true"
        )
    if cli.datamodule.several:
        from lit_ppo.commands.instruments import run_instruments

        run_instruments(cli, arguments)
        return Portfolio(Path(results))
    command(cli, ["walk-forward", *arguments])
    return Run(Path(results) / str(cli.config["seed_everything"]), tuple(modules))


@dataclass(frozen=True)
class Power:
    """What a recipe could have found, as `power` and `lit-ppo power` wrote it.

    Attributes:
        path: power.json.
    """

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """power.json."""
        return read_power(self.path)

    @property
    def sentence(self) -> str:
        """The smallest edge of which half is found, and what is not seen."""
        return sentence(self.record)

    @property
    def rows(self) -> pd.DataFrame:
        """One row an edge: kind, sharpe (informed, annual), m, share found with its interval low, high, and trainings.

        The first row is the null: nothing planted, so there is no share.
        """
        names = ("kind", "sharpe", "m", "share", "low", "high", "trainings", "trained", "traded", "exposure")
        rows = [self.record["null"], *self.record["rows"]]
        return pd.DataFrame([[row.get(name) for name in names] for row in rows], columns=list(names))


def power(
    bars: pd.DataFrame | str | Path,
    *,
    model: Mapping[str, Any] | None = None,
    features: Sequence[Any] | str | None = None,
    costs: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    config: str | Path = "walk_forward",
    results: str | Path = "results",
    seed: int | None = None,
    overwrite: bool = False,
    quick: bool = False,
    kinds: Sequence[str] | None = None,
    sharpes: Sequence[float] | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    **data: Any,
) -> Power:
    """Plant known edges into bars and measure what share this recipe finds: `lit-ppo power`.

    Args:
        bars, model, features, costs, trainer, config, seed, data: as for `walk_forward`: give the same, and the report
            of that run says what it could have found.
        results: power.json and power.html go there.
        overwrite: replace the power.json that is there.
        quick: two sizes, two seeds, one fold.
        kinds, sharpes: of the edges; None: five kinds, informed annual Sharpe ratios of 1.5, 3, 6 and 10.
        seeds, folds: noises, and trainings on each; None: 3 and 3.

    Raises:
        ValueError, FileExistsError, TypeError: as `walk_forward`.
    """
    from datamodules.planted import KINDS
    from datamodules.planted_data import plant_in, planted_data
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo.commands.lightning_cli import LitPPOCLI
    from lit_ppo.commands.power import EdgeMaker
    from lit_ppo.commands.power import power as command

    shared = _Shared(model, features, costs, trainer, config, results, seed)
    edges = {name: None if x is None else list(x) for name, x in (("kinds", kinds), ("sharpes", sharpes))}
    arguments, _ = _arguments(bars, data, shared, **edges, seeds=seeds, folds=folds, quick=quick, overwrite=overwrite)
    command(LitPPOCLI("power", arguments, WalkForwardDataModule), EdgeMaker(KINDS, plant_in, planted_data))
    return Power(Path(results) / POWER_FILE)


@dataclass(frozen=True)
class Search:
    """What a search tried and what its best setting is worth, as `search` and `lit-ppo search` wrote it.

    Attributes:
        path: its folder, RESULTS/search.
        run: the walk-forward of the best setting, behind the bars that chose it.
    """

    path: Path
    run: Run

    @property
    def recipe(self) -> Path:
        """The best setting as a recipe: `config` of `walk_forward`."""
        return self.path / "recipe.yaml"

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial: number, state (COMPLETE, PRUNED, FAIL), value, folds seen, then each searched key."""
        from lit_ppo.commands.search import kept_trials

        return pd.DataFrame(kept_trials(self.path))


def search(
    bars: pd.DataFrame | str | Path,
    *,
    space: Mapping[str, Any] | str | Path = "ppo",
    trials: int | None = None,
    model: Mapping[str, Any] | None = None,
    features: Sequence[Any] | str | None = None,
    costs: Mapping[str, Any] | Costs | CostModel | None = None,
    trainer: Mapping[str, Any] | None = None,
    config: str | Path = "scratch",
    results: str | Path = "results",
    seed: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    cluster: str | None = None,
    **data: Any,
) -> Search:
    """Try settings on validation bars, then test the best one, once, behind them: `lit-ppo search`.

    Args:
        bars, model, features, costs, trainer, config, seed, workers, cluster, data: as for `walk_forward`; the settings
            that the trials change, and the first trial.
        space: what may change: a file as those of configs/search/, the name of one of them, or what such a file holds.
            A mapping is kept as RESULTS/spaces/<hash>.yaml.
        trials: settings to try; None is as `space` says.
        results: the search goes to RESULTS/search/, the test of its best setting to RESULTS/<seed>/.
        resume, overwrite: go on with, or delete, the search that is there.

    Raises:
        ValueError, FileExistsError, TypeError: as `walk_forward`.
        RuntimeError: Optuna is not installed, or no trial could be finished.
    """
    from datamodules.walk_forward import WalkForwardDataModule
    from lit_ppo.commands.lightning_cli import LitPPOCLI
    from lit_ppo.commands.search import FOLDER
    from lit_ppo.commands.search import search as command

    shared = _Shared(model, features, costs, trainer, config, results, seed)
    flags = {"trials": trials, "workers": workers or None, "cluster": cluster, "resume": resume, "overwrite": overwrite}
    arguments, _ = _arguments(bars, data, shared, **flags)
    if isinstance(space, Mapping):
        content = (as_flag("space", dict(space)) + "\n").encode()
        space = _kept(content, Path(results) / "spaces", ".yaml")
    arguments.append(f"--space={space}")
    cli = LitPPOCLI("search", arguments, WalkForwardDataModule)
    command(cli, arguments)
    return Search(Path(results) / FOLDER, Run(Path(results) / str(cli.config["seed_everything"])))


class _Shared(NamedTuple):
    """The keywords that `walk_forward`, `power` and `search` have in common."""

    model: Mapping[str, Any] | None
    features: Sequence[Any] | str | None
    costs: Mapping[str, Any] | Costs | CostModel | None
    trainer: Mapping[str, Any] | None
    config: str | Path
    results: str | Path
    seed: int | None
    callbacks: Sequence[Any] | None = None


def _arguments(
    bars: pd.DataFrame | str | Path | Mapping[str, pd.DataFrame | str | Path],
    data: Mapping[str, Any],
    shared: _Shared,
    **flags: Any,
) -> tuple[list[str], list[str]]:
    """The keywords of a call as a command line, and the modules of what was given as objects: they are trusted.

    `flags` are those of one command: True is a bare flag, None and False are left out.
    """
    check_types(get_type_hints(_Shared), shared._asdict())
    _check_keys(data, [*shared._fields, *flags])
    model, features, costs, trainer, config, results, seed, callbacks = shared
    folder = Path(results) / "bars"
    path: Path | str
    if isinstance(bars, Mapping):
        path = json.dumps({name: str(_bar_file(one, folder)) for name, one in bars.items()})
    else:
        path = _bar_file(bars, folder)
    arguments = [f"--config={config}", f"--results={results}", f"--data.path={path}"]
    if seed is not None:
        arguments.append(f"--seed={seed}")
    keys: dict[str, Any] = {f"data.{name}": value for name, value in data.items()}
    modules: list[str] = []
    if features is not None:
        keys["data.features"] = features if isinstance(features, str) else _feature_entries(features, modules)
    cost_keys = _cost_keys(costs, modules)
    if callbacks is not None:
        trainer = {**(trainer or {}), "callbacks": _with_callbacks(callbacks, trainer or {}, config, modules)}
    for group, given in (("model", model), ("data.costs", cost_keys), ("trainer", trainer)):
        keys |= {f"{group}.{name}": value for name, value in (given or {}).items()}
    arguments += [f"--{key}={as_flag(key, value)}" for key, value in keys.items()]
    modules = sorted(set(modules))
    for name, value in flags.items():
        if value is not None and value is not False:
            arguments.append(f"--{name}" if value is True else f"--{name}={as_flag(name, value)}")
    return [*arguments, *(f"--allow-module={module}" for module in modules)], modules


def _check_keys(data: Mapping[str, Any], options: Sequence[str]) -> None:
    from datamodules.walk_forward import WalkForwardDataModule

    known = [*options, *inspect.signature(WalkForwardDataModule).parameters]
    for name in data.keys() - set(known):
        otherwise = "docs/python.md has the arguments, docs/data.md the keys"
        hint = did_you_mean(repr(name), map(repr, known), otherwise)
        raise ValueError(f"{name!r} is no argument, and no key of data.*; {hint}")


def _named(found: Any, key: str, modules: list[str]) -> str:
    """The import path of a function or class that was given; its module goes to `modules`, if it is the user's."""
    if found.__module__.partition(".")[0] not in ALLOWED:
        modules.append(found.__module__)
    return import_path(found, key)


def _feature_entries(features: Sequence[Any], modules: list[str]) -> list[Any]:
    """Features as entries of a recipe."""
    entries = []
    for number, given in enumerate(features):
        key = f"features[{number}]"
        if isinstance(given, str | Mapping):
            entries.append({"name": given} if isinstance(given, str) else given)
        elif inspect.isfunction(given):
            entries.append({"class_path": _named(given, key, modules)})
        elif callable(given) and hasattr(given, "warmup"):
            entries.append({"class_path": _named(type(given), key, modules), **made_with(given, key)})
        else:
            raise ValueError(
                f"{key} is a name, an entry like {{'name': 'rsi', 'period': 14}}, or a function of the bars' "
                f"DataFrame; got {given!r}"
            )
    return entries


def _with_callbacks(
    callbacks: Sequence[Any], trainer: Mapping[str, Any], config: str | Path, modules: list[str]
) -> list[Any]:
    """The recipe's callbacks as entries, and those that were given behind them or in their place."""
    from lightning.pytorch import Callback

    recipe = recipe_file(str(config))
    content = read_yaml(recipe.read_bytes(), str(recipe)) if recipe.is_file() and "callbacks" not in trainer else None
    of_recipe = content.get("trainer") if isinstance(content, dict) else None
    before = (trainer if "callbacks" in trainer else of_recipe or {}).get("callbacks") or []
    entries = [{"class_path": one} if isinstance(one, str) else one for one in _listed(before)]
    for number, given in enumerate(callbacks):
        key = f"callbacks[{number}]"
        if isinstance(given, str | Mapping):
            entry = {"class_path": given} if isinstance(given, str) else dict(given)
        elif isinstance(given, Callback):
            entry = {"class_path": _named(type(given), key, modules), "init_args": made_with(given, key)}
        else:
            got = f"the class: make one, {given.__name__}()" if inspect.isclass(given) else repr(given)
            raise ValueError(f"{key} is a callback, its class path, or an entry as in a recipe; got {got}")
        kind = str(entry.get("class_path")).rpartition(".")[2]
        kinds = [str(one.get("class_path")).rpartition(".")[2] for one in entries]
        if kind in kinds:
            entries[kinds.index(kind)] = entry
        else:
            entries.append(entry)
    return entries


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _cost_keys(costs: Mapping[str, Any] | Costs | CostModel | None, modules: list[str]) -> dict[str, Any]:
    """Costs as keys of `data.costs.*`."""
    if isinstance(costs, CostModel):
        costs = {"model": costs}
    elif isinstance(costs, Costs):
        costs = {field.name: getattr(costs, field.name) for field in fields(costs)}
    keys = dict(costs or {})
    model = keys.get("model")
    if isinstance(model, CostModel):
        _named(type(model), "costs.model", modules)
        keys["model"] = model_entry(model)
    return keys


@dataclass(frozen=True)
class TrainedPolicy:
    """The chosen weights of a run, ready to decide on new bars."""

    _chosen: Any
    _modules: tuple[str, ...] = ()

    def decide(self, bars: pd.DataFrame | str | Path) -> pd.DataFrame:
        """Decide at the close of every bar, from bars up to it only, starting flat and without memory.

        Args:
            bars: as for `walk_forward`, of the kind that the policy was trained on. The first ones warm features and
                memory up.

        Returns:
            One row a decision: time of the bar, position (share of notional), change of it, the probability that the
            policy gave it, and whether the bar is no later than the last one that its training or choice saw
            (`seen_in_training`: such rows are not out of sample, and a warning counts them).
        """
        from datamodules.features.feed import Feed
        from lit_ppo.signals.decisions import DecisionStep
        from lit_ppo.signals.live import SignalState, decide, seen_in_training, too_few_bars, warn_of_other_code

        chosen = self._chosen
        policy, recipe = chosen.load_policy()
        feed, step = Feed.of(chosen.data, chosen.settings, {}, self._modules), DecisionStep(policy)
        with _as_file(bars) as path:
            feed = feed.settled(path)
            state = SignalState.begin({}, step).with_bars(feed.read(path), str(path), feed.bar_seconds)
        state = decide(state, 0, step, feed, recipe.account_features)
        warn_of_other_code(feed)
        for warning in (chosen.not_trained, seen_in_training(state.times, feed.seen_until), too_few_bars(state, feed)):
            if warning:
                warnings.warn(warning, stacklevel=2)
        positions = policy.positions.numpy()[state.actions]
        return pd.DataFrame(
            {
                "time": pd.to_datetime(state.times, utc=True),
                "position": positions,
                "change": pd.Series(positions).diff().fillna(pd.Series(positions)).to_numpy(),
                "probability": state.probabilities,
                "seen_in_training": state.times <= feed.seen_until,
            }
        )


def load_policy(
    run: str | Path | Run,
    fold: int | None = None,
    *,
    hurdle: float | None = None,
    spread: float | str | None = None,
    allow_modules: Sequence[str] = (),
) -> TrainedPolicy:
    """Load the chosen weights of a run, a fold or a checkpoint file, or the released prior trader.

    Args:
        run: RESULTS/<seed>, a fold's folder in it, a checkpoint, or what `walk_forward` returned; "prior" is the
            released prior trader (docs/prior.md), which decides on any bars.
        fold: of a run; None is the newest finished one.
        hurdle: of the prior trader only: volatilities per bar that a position must earn; None is 0.002.
        spread: of the prior trader only: as `data.costs.spread`; None is "file".
        allow_modules: modules that its features and costs may be imported from: importing a module runs it. A `Run`
            that `walk_forward` has returned brings those of the objects that were given.

    Raises:
        FileNotFoundError: nothing there, or the fold is not finished.
        ValueError: the checkpoint is of no market; or an option that does not belong to it.
        CheckpointError: the file is damaged.
    """
    from lit_ppo.signals.checkpoint_choice import choose_policy

    known = run.modules if isinstance(run, Run) else ()
    chosen = choose_policy(str(run.path if isinstance(run, Run) else run), fold, hurdle, spread)
    return TrainedPolicy(chosen, (*known, *allow_modules))


def _bar_file(bars: pd.DataFrame | str | Path, folder: Path) -> Path:
    """The file that `bars` is, or is written to."""
    if isinstance(bars, str | Path):
        return Path(bars)
    return _kept(_csv(bars), folder, ".csv")


def _kept(content: bytes, folder: Path, suffix: str) -> Path:
    """A file with this content, named by it."""
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    return path


@contextmanager
def _as_file(bars: pd.DataFrame | str | Path) -> Iterator[Path]:
    if isinstance(bars, str | Path):
        yield Path(bars)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _bar_file(bars, Path(folder))


def _csv(bars: pd.DataFrame) -> bytes:
    """A DataFrame of bars as a bar file: every number to its last digit, times in UTC."""
    if not isinstance(bars, pd.DataFrame):
        raise TypeError(f"`bars` is a DataFrame or the path of a bar file, got {type(bars).__name__}")
    number = pd.api.types.is_numeric_dtype
    frame = bars if "time" in bars.columns or number(bars.index) else bars.rename_axis("time").reset_index()
    if "close" not in {str(name).lower() for name in frame.columns}:
        raise ValueError(
            "A DataFrame of bars needs time (or has it as its index), open, high, low and close; close not found among "
            f"{', '.join(map(str, frame.columns))}"
        )
    if "time" in frame.columns and not number(frame["time"]):  # numbers are the reader's affair
        times = pd.to_datetime(frame["time"], utc=True)
        frame = frame.assign(time=times.dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return frame.to_csv(index=False).encode()
