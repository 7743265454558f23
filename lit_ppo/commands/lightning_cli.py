"""LightningCLI for lit-ppo: one flat configuration (`model.*`, `data.*`, `trainer.*`) for every command that trains.

Which classes it configures is the caller's affair (`lit_ppo.cli`); nothing here knows the datamodule.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_ppo.argument_types import described
from lit_ppo.class_paths import refuse_functions, refused_class_path, restrict_class_paths, take_allowed_modules
from lit_ppo.command_line_only import check_asked_by_flag
from lit_ppo.commands.config_check import bend_budget, check_files, check_values, known_keys
from lit_ppo.commands.data_choice import configuration_files, with_recipe_files
from lit_ppo.folds.optimisation_guard import guard, is_strict
from lit_ppo.interrupts import Interrupted, StopOnSignal
from lit_ppo.module import LitPPO, quiet_lightning
from lit_ppo.nets.policy import MarketPolicy
from lit_ppo.precision import check_precision
from lit_ppo.recipe import suitable_threads
from lit_ppo.scoring.exam import mark
from lit_ppo.scoring.money import MoneySettings
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.checkpoint_io import AtomicCheckpointIO
from lit_ppo.store.checkpoints import SELECTED, CheckpointStore
from lit_ppo.store.files import utc_cells
from lit_ppo.store.one_training import make_room
from lit_ppo.store.prior_weights import NETWORK, PriorWeights
from lit_ppo.store.provenance import code_state
from lit_ppo.tensorboard import ConfigurationText
from lit_ppo.words import nearest

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # model.total_timesteps ends a training
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_progress_bar": False,  # an epoch is one PPO iteration: see callbacks.RunProgress
    "log_every_n_steps": 1,
}


# What `--help` begins with, in the place of a hundred lines of usage. A line fits 80 columns.
_OTHERS = (
    "--config fit --ckpt_path last  # the newest checkpoint",
    "--config scratch --data.path bars.csv --data.fold 3",
)
EXAMPLES: dict[str, tuple[str, ...]] = {
    "walk-forward": (
        "--config quickstart  # a market with a known optimum",
        "--config walk_forward --data.path bars.csv  # your bars",
        "--config scratch --data.path bars.csv --resume",
    ),
    "fit": (
        "--config fit  # a synthetic market",
        "--config fit --ckpt_path last  # go on",
        "--config scratch --data.path bars.csv --data.fold 3",
    ),
    "pretrain": (
        "--config prior  # hours, as the released weights",
        "--config prior --ckpt_path last  # go on",
        "--config prior --model.total_timesteps 1000000",
    ),
    "validate": ("--config fit  # the chosen weights on the validation bars", *_OTHERS),
    "test": ("--config fit  # the chosen weights on the test bars", *_OTHERS),
    "predict": ("--config fit  # decisions on the test bars: predictions.csv", *_OTHERS),
    "audit": (
        "--config quickstart --null_seeds 1  # a first look",
        "--config walk_forward --data.path bars.csv  # your bars",
        "--config scratch --data.path bars.csv --null_seeds 100",
    ),
    "power": (
        "--from results/42  # what could that run have found?",
        "--from results/42 --quick",
        "--config scratch --data.path bars.csv --seeds 1",
    ),
    "search": (
        "--config scratch --data.path bars.csv  # its space: ppo",
        "--config scratch --data.path bars.csv --trials 10",
        "--config fine_tune --data.path bars.csv --space fine_tune",
    ),
}
FLAGS = (
    "Every key of a recipe is a flag as well; --print_config shows them all with their values. "
    "A recipe is a file or the name of a shipped one (`lit-ppo init` writes these)."
)
TRAINS = ("fit", "pretrain")  # one training, in one folder


class UsageError(ValueError):
    """A key, value or combination that cannot be meant."""


def one_seed(seed: Any) -> int:
    """The seed of everything is a number, so that a run can be repeated."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed_everything (--seed) must be a whole number >= 0, got {seed!r}")
    return seed


def usage(command: str) -> str:
    """Return what `--help` begins with; the list of all flags is below it."""
    examples = [f"  lit-ppo {command} {example}" for example in EXAMPLES[command]]
    return "\n".join([f"lit-ppo {command} [--config RECIPE] [--KEY VALUE] ...", "", *examples])


class ConfigParser(LightningArgumentParser):
    """Lightning's parser, for which a value is a value: only `--config` names a file that holds configuration.

    Lightning's own reads a value that happens to be the name of a file (jsonargparse #516): `data.features: default`
    would be the content of a file `default` in the working directory.
    """

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})

    def add_subclass_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_subclass_arguments(*args, **{**kwargs, "sub_configs": False})


_parsers: dict[tuple[str, Any], LightningArgumentParser] = {}  # by command and datamodule


class LitPPOCLI(LightningCLI):
    """Parses one command's arguments; the command itself is a method of the caller.

    Args:
        command: name of the command, for its own arguments and messages.
        arguments: what follows it on the command line.
        datamodule_class: what `data.*` configures.
    """

    def __init__(self, command: str, arguments: Sequence[str], datamodule_class: type[pl.LightningDataModule]) -> None:
        quiet_lightning()
        self.command = command
        self._dumped: tuple[Namespace, str] | None = None
        arguments, self.allowed_modules = take_allowed_modules(with_recipe_files(arguments))
        restrict_class_paths(self.allowed_modules)
        if self.allowed_modules:
            arguments = [*arguments, "--data.allow_modules", json.dumps(self.allowed_modules)]
        arguments = [re.sub(r"^--seed(?==|$)", "--seed_everything", argument) for argument in arguments]
        # Lightning warns of arguments given beside sys.argv, which are the same ones here.
        warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
        try:
            super().__init__(
                LitPPO,
                datamodule_class,
                save_config_callback=None,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=0,
                parser_kwargs={
                    "prog": f"lit-ppo {command}",
                    "usage": usage(command),
                    "description": FLAGS,
                    "exit_on_error": False,
                    "allow_abbrev": False,
                },
                parser_class=ConfigParser,
                args=list(arguments),
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except ArgumentError as error:
            raise UsageError(self._explained(str(error))) from error

    def setup_parser(self, *given: Any, **more: Any) -> None:
        """A parser is made once for each command of a process: that takes as long as parsing, and seeds need many."""
        kind = (self.command, self.datamodule_class)
        if kind not in _parsers:
            super().setup_parser(*given, **more)
            _parsers[kind] = self.parser
        self.parser = _parsers[kind]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "model.seed", compute_fn=one_seed)
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="of torch; null: 1 for a small network or with candidates, else torch's own choice",
        )
        if self.command == "walk-forward":
            parser.add_argument(
                "--results",
                type=str,
                default="results",
                help="the run goes to RESULTS/<seed>/; `--from RUN` repeats one",
            )
            parser.add_argument(
                "--seeds", type=int, default=1, help="so many runs, of this seed and the next ones, and pool them"
            )
            parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
            parser.add_argument("--overwrite", action="store_true", help="delete the run that is there")
            parser.add_argument("--quiet", action="store_true", help="print the verdict and the path of the page only")
            parser.add_argument(
                "--json",
                action="store_true",
                help="print one JSON object at the end (verdict, metrics, paths), all else to standard error",
            )
            parser.add_argument(
                "--allow-mismatch",
                action="store_true",
                help="resume although settings, data or code have changed; run.json lists what did",
            )
            parser.add_argument(
                "--strict",
                type=bool | None,
                default=None,
                help="an optimisation that fails ends the run; default: only where the environment says CI",
            )
            parser.add_argument(
                "--money",
                type=MoneySettings | None,
                default=None,
                help="also trade the test decisions in lots: money.csv",
            )
            self._add_candidates(parser)
            parser.add_argument(
                "--autotune",
                action="store_true",
                help="measure for 20 s what threads and batch suit this machine; config.yaml keeps the choice",
            )
            self._add_workers(parser)
            parser.add_argument(
                "--baseline",
                type=str | None,
                default=None,
                help="JSON of `lit-ppo benchmark`: the monitor shows a speed-up against it; null: it shows none",
            )
        elif self.command == "search":
            parser.add_argument(
                "--space",
                type=str,
                default="ppo",
                help="what is searched: a file as those of configs/search/, or the name of one of them",
            )
            parser.add_argument(
                "--trials", type=int | None, default=None, help="settings to try; null: as its file says"
            )
            parser.add_argument(
                "--results",
                type=str,
                default="results",
                help="the search goes to RESULTS/search/, the test of its best setting to RESULTS/<seed>/",
            )
            parser.add_argument("--resume", action="store_true", help="go on with the search that is there")
            parser.add_argument("--overwrite", action="store_true", help="delete the search and the run that are there")
            self._add_candidates(parser)
            self._add_workers(parser)
        elif self.command == "power":
            parser.add_argument(
                "--results",
                type=str,
                default="results",
                help="power.json goes there; `--from RUN` measures a run's recipe",
            )
            parser.add_argument("--overwrite", action="store_true", help="replace the power.json that is there")
            parser.add_argument("--quick", action="store_true", help="two sizes, two seeds, one fold: about a minute")
            parser.add_argument(
                "--kinds", type=list[str] | None, default=None, help="of edges; null: the five of docs/power.md"
            )
            parser.add_argument(
                "--sharpes",
                type=list[float] | None,
                default=None,
                help="informed annual Sharpe ratios of the edges; null: 1.5, 3, 6, 10",
            )
            parser.add_argument("--seeds", type=int | None, default=None, help="noises, edges and agents; null: 3")
            parser.add_argument(
                "--folds", type=int | None, default=None, help="trainings of each seed, spread over the file; null: 3"
            )
            self._add_candidates(parser)
        elif self.command == "audit":
            parser.add_argument("--points", type=int, default=200, help="random t after which the bars are changed")
            parser.add_argument(
                "--null_seeds", type=int, default=5, help="trainings on each null market; 100 for a verdict"
            )
            parser.add_argument(
                "--timesteps", type=int, default=100_000, help="bars visited by each training (the model's, if fewer)"
            )
        else:
            if self.command in TRAINS:
                parser.add_argument("--overwrite", action="store_true", help="delete the training that is there")
            parser.add_argument(
                "--ckpt_path",
                type=str | None,
                default=None if self.command in TRAINS else "selected",
                help="a checkpoint, a directory of them (its newest), `last`, or `selected` (= `best`)",
            )

    @staticmethod
    def _add_candidates(parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--parallel_candidates", type=int, default=1, help="train so many seeds a fold, keep the best"
        )
        parser.add_argument(
            "--candidates",
            type=list[dict[str, Any]] | None,
            default=None,
            help="or train one candidate for each of these sets of model.* keys",
        )

    @staticmethod
    def _add_workers(parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--workers",
            type=int,
            default=0,
            help="train so many folds side by side, in Ray actors; 0: in this process, one after the other",
        )
        parser.add_argument(
            "--cluster",
            type=str | None,
            default=None,
            help="the actors live on the Ray cluster of this address; --workers 0 is then one for each core",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_values(args)
        check_files(configuration_files(args), known_keys(parser))
        super().parse_arguments(parser, args)
        check_asked_by_flag(self.config, args)
        refuse_functions(self.config, self.allowed_modules)
        check_precision(self.config["trainer"]["precision"])
        self._bend_budget(args)

    def _bend_budget(self, arguments: Sequence[str]) -> None:
        """What a file says of the least budget gives way to a smaller budget that was typed; a typed one stays."""
        typed = any(argument.partition("=")[0] == "--model.total_timesteps" for argument in arguments)
        if not typed or any("min_timesteps" in argument for argument in arguments):
            return
        total, callbacks = self.config["model"]["total_timesteps"], self.config["trainer"]["callbacks"] or []
        least = bend_budget(callbacks if isinstance(callbacks, list) else [callbacks], total)
        if least is not None and getattr(rank_zero_only, "rank", 0) == 0:
            print(
                f"AdaptiveTimesteps.min_timesteps {least:,} of the configuration is now {total:,}: no more than the "
                "--model.total_timesteps typed",
                file=sys.stderr,
            )

    def _set_seed(self) -> None:
        """Draws come from generators made of the seed; the global ones stay as they are."""
        one_seed(self.config["seed_everything"])

    def instantiate_classes(self) -> None:
        """Make the datamodule; models and trainers are made when they are needed, one for each fold."""
        asked = self.config["data"].get("allow_modules") or []
        if unknown := sorted(set(asked) - set(self.allowed_modules)):
            flags = " ".join(f"--allow-module {name}" for name in unknown)
            raise UsageError(
                f"data.allow_modules names {', '.join(unknown)}, but a configuration cannot allow itself to import. "
                f"If you trust {'it' if len(unknown) == 1 else 'them'}, add {flags} to the command line"
            )
        self.config_init = self.parser.instantiate(self.config)
        self.datamodule = self.config_init["data"]

    def set_threads(self) -> None:
        """Set torch's threads as asked, or as suits the network.

        Raises:
            UsageError: not a number of threads.
        """
        threads = self.config["threads"]
        if threads is not None and threads < 1:
            raise UsageError(f"threads is a number of torch threads >= 1, or null; got {threads}")
        torch.set_num_threads(threads or suitable_threads(self.make_module().recipe))

    @property
    def shell(self) -> Shell:
        """What makes modules and trainers of the configuration as it is now."""
        config = self.config
        return Shell(
            command=self.command,
            model=config["model"].as_dict(),
            trainer=self.config_init["trainer"].as_dict(),
            allow_mismatch=bool(config.get("allow_mismatch", False)),
            strict=config.get("strict"),
            text=self.config_text(),
        )

    def make_module(self, seed: int | None = None, overlay: Mapping[str, Any] | None = None) -> LitPPO:
        """See `Shell.make_module`."""
        return self.shell.make_module(seed, overlay)

    def make_trainer(self, directory: Path) -> pl.Trainer:
        """See `Shell.make_trainer`."""
        return self.shell.make_trainer(directory)

    @contextmanager
    def place(self, directory: Path) -> Iterator[Path]:
        """The folder that a training writes into: `directory`; of a `trainer.fast_dev_run` one that goes with it."""
        if not self.dev_run:
            yield directory
            return
        with tempfile.TemporaryDirectory(prefix="lit-ppo-") as scratch:
            yield Path(scratch) / directory.name
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"trainer.fast_dev_run was a trial of the code: nothing of it is kept, and {directory} is as it was")

    @property
    def dev_run(self) -> bool:
        """Whether `trainer.fast_dev_run` asks for one batch only: it must not stand in a real training's way."""
        return bool(self.config["trainer"]["fast_dev_run"])

    @property
    def directory(self) -> Path:
        """Where a command on one fold writes: `trainer.default_root_dir`, else results/fit (results/pretrain)."""
        otherwise = "results/pretrain" if self.command == "pretrain" else "results/fit"
        return Path(self.config["trainer"]["default_root_dir"] or otherwise)

    def config_text(self) -> str:
        """The merged configuration as YAML; dumped anew only when it has changed."""
        if self._dumped is None or self._dumped[0] != self.config:
            text = self.parser.dump(self.config, skip_unset=False, skip_link_targets=True)
            self._dumped = (self.config.clone(), text)
        return self._dumped[1]

    def checkpoint(self) -> str | None:
        """Resolve `--ckpt_path`.

        Raises:
            FileNotFoundError: there is no such checkpoint: never a silent start from scratch.
        """
        asked = self.config["ckpt_path"]
        if asked in ("selected", "best"):  # Lightning says best
            asked = str(self.directory / SELECTED)
        if asked == "last":
            asked = str(self.directory)
            if CheckpointStore(self.directory).load_newest() is None:
                raise FileNotFoundError(f"--ckpt_path last: there is no checkpoint in {self.directory}")
        return asked

    def _explained(self, message: str) -> str:
        """Say what a refused class path or an unknown name needs; other messages stay as they are."""
        if refused := re.search(r"Importing '([\w.]+)' is not allowed", message):
            return refused_class_path(refused[1])
        if linked := re.search(r"Call to compute_fn of link .* with args .* failed: (.*)", message, re.DOTALL):
            return linked[1]
        if wrong := re.search(r'Parser key "((?:model|data)\.[\w.]+)":.*(?:Given|Got) value: (.*)', message, re.DOTALL):
            hints = {action.dest: getattr(action, "_typehint", None) for action in self.parser._actions}
            hint = hints.get(wrong[1])
            if hint is not None and not any(map(dataclasses.is_dataclass, (hint, *get_args(hint)))):
                return f"{wrong[1]} must be {described(hint)}, got {wrong[2].strip()}"
        unknown = re.findall(r"--([\w.]+)", message) if "nrecognized" in message else []
        unknown += re.findall(r"[Kk]ey '([\w.]+)'", message) + re.findall(r"['\"]([\w.]+)['\"] is not", message)
        known = sorted(known_keys(self.parser))
        for name in unknown:
            if name not in known and (near := nearest(name, known)):
                return f"{message}\nThere is no {name}; did you mean {near}?"
        return message


@dataclass(frozen=True)
class Shell:
    """Makes the modules and trainers of a configuration; it can be sent to another process.

    Attributes:
        command: of `lit-ppo`.
        model: `model.*`.
        trainer: `trainer.*`, its callbacks made.
        allow_mismatch, strict: as asked.
        text: the merged configuration, YAML.
    """

    command: str
    model: dict[str, Any]
    trainer: dict[str, Any]
    allow_mismatch: bool
    strict: bool | None
    text: str

    def make_module(self, seed: int | None = None, overlay: Mapping[str, Any] | None = None) -> LitPPO:
        """Return a fresh module; `seed` overrides the configured one, `overlay` other `model.*` keys."""
        seed = self.model["seed"] if seed is None else seed
        module = LitPPO(**{**self.model, **(overlay or {}), "seed": seed})
        module.allow_mismatch = self.allow_mismatch
        module.threads = torch.get_num_threads()  # the command has set them
        return module

    def make_trainer(self, directory: Path) -> pl.Trainer:
        """Return a fresh trainer with fresh callbacks, that writes into `directory`.

        Raises:
            UsageError: this machine or Lightning cannot do what `trainer.*` asks for.
        """
        config = copy.deepcopy(self.trainer)
        callbacks = config["callbacks"] or []
        config["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), StopOnSignal()]
        if self.command in ("walk-forward", "search") and not is_strict(self.strict):
            guard(config["callbacks"])
        plugins = config["plugins"] or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        config["default_root_dir"] = str(directory)
        if self.command in ("walk-forward", "audit", "power", "search"):
            config["devices"] = 1
        if self.command not in (*TRAINS, "walk-forward"):
            config["logger"] = False  # there is no curve to draw
        elif config["logger"] in (None, True):
            config["logger"] = TensorBoardLogger(str(directory), name="", version="", default_hp_metric=False)
        if config["logger"] is not False:
            config["callbacks"].append(ConfigurationText(self.text))
        try:
            return pl.Trainer(**config)
        except (MisconfigurationException, TypeError) as error:  # Lightning raises either for impossible devices
            asked = ", ".join(f"trainer.{key} {config[key]!r}" for key in ("accelerator", "devices", "strategy"))
            gpus = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no GPU"
            raise UsageError(f"The trainer cannot be made: {error} It was asked for {asked}; here is {gpus}") from error


def run_on_one_fold(cli: LitPPOCLI) -> None:
    """`lit-ppo fit | validate | test | predict` on the fold `data.fold`, and `lit-ppo pretrain`."""
    cli.set_threads()
    if cli.command in TRAINS:
        with cli.place(cli.directory) as directory:
            _fit(cli, directory)
        return
    module, trainer, checkpoint = cli.make_module(), cli.make_trainer(cli.directory), cli.checkpoint()
    bound: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": checkpoint}
    if cli.command == "validate":
        trainer.validate(module, **bound)
    elif cli.command == "test":
        trainer.test(module, **bound)
    else:
        (decisions,) = trainer.predict(module, **bound) or []
        _write_predictions(cli.directory / "predictions.csv", decisions)  # type: ignore[arg-type]


def _fit(cli: LitPPOCLI, directory: Path) -> None:
    module, trainer, checkpoint = cli.make_module(), cli.make_trainer(directory), cli.checkpoint()
    if checkpoint is None and getattr(rank_zero_only, "rank", 0) == 0:
        make_room(directory, cli.config["overwrite"], "--ckpt_path last")
    try:
        trainer.fit(module, datamodule=cli.datamodule, ckpt_path=checkpoint)
    except Exception as error:
        if not isinstance(error, Interrupted):
            _end_other_ranks(trainer)
        raise
    trainer.save_checkpoint(directory / SELECTED, weights_only=True)
    if cli.command == "pretrain" and trainer.is_global_zero:
        _write_prior(cli, module, directory)
    timesteps, score = module.notes.selection.get("timesteps", module.timesteps), module.notes.selection.get("score")
    why = f" ({module.notes.stop_reason})" if module.notes.stop_reason else ""
    chosen = "" if score is None else f", validation score {score:+.4f},"
    place = "" if cli.dev_run else f"; the weights after {timesteps:,}{chosen} are in {directory / SELECTED}"
    module.print(f"{module.timesteps:,} timesteps done{why}{place}")


def _write_prior(cli: LitPPOCLI, module: LitPPO, directory: Path) -> None:
    """The weights as others may start from them, with a card of where they come from."""
    assert isinstance(module.policy, MarketPolicy)
    marks = mark(module.policy, cli.datamodule.exam())
    card = {
        "made_by": "lit-ppo pretrain",
        "real_bars_seen": 0,
        "seed": module.seed,
        "timesteps": module.timesteps,
        "settings": module.recipe.to_dict(),
        "data": cli.datamodule.state_dict(),
        "code": code_state(),
        "exam": marks.metrics,
    }
    settings = module.recipe.to_dict()
    shape = {name: settings[name] for name in (*NETWORK, "positions") if settings[name] is not None}
    path = directory / "prior.safetensors"
    features = tuple(cli.datamodule.stream.feature_names)
    PriorWeights(module.policy.state_dict(), features, shape, card).write(path)
    shares = [f"{name.removeprefix('share_')} {100 * x:.0f} %" for name, x in marks.metrics.items() if "share" in name]
    print("share of the informed trader's result on held-out markets: " + ", ".join(shares))
    print(f"weights for `model.start: {path}`")


def _end_other_ranks(trainer: pl.Trainer) -> None:
    """Leave no process behind: one that hangs answers to nothing else, and has nothing that the next start needs."""
    launcher = trainer.strategy.launcher
    if launcher is not None and hasattr(launcher, "kill"):
        launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))


def _write_predictions(path: Path, decisions: Mapping[str, Tensor]) -> None:
    times, positions = utc_cells(decisions["time"].numpy()), decisions["position"].tolist()
    rows = [f"{time},{position!r}" for time, position in zip(times, positions, strict=True)]
    atomic_write(path, "\n".join(["time,position", *rows]) + "\n")
    print(f"{len(rows):,} decisions are in {path}")
