"""`lit-ppo predict --ckpt RUN --data FILE`: the decisions of a trained policy on new bars, appended to a CSV."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_ppo.class_paths import take_allowed_modules
from lit_ppo.commands.reader_flags import add_reader_flags
from lit_ppo.signals.checkpoint_choice import ChosenCheckpoint, choose_checkpoint
from lit_ppo.signals.decisions import DecisionStep
from lit_ppo.signals.live import (
    BarFeed,
    MakeFeed,
    SignalState,
    append_rows,
    decide,
    missing_bytes,
    seen_in_training,
    warn_of_other_code,
    write_state,
)
from lit_ppo.store.files import shown_path, utc_cells
from lit_ppo.store.run_lock import alone_in

OUTPUT = "signals.csv"
STATE_SUFFIX = ".state"


def is_signals(arguments: Sequence[str]) -> bool:
    """Whether `predict` is about new bars; with a configuration it is Lightning's, on the test bars of one fold."""
    flags = {argument.partition("=")[0] for argument in arguments}
    return flags <= {"--help", "-h"} or (bool(flags & {"--ckpt", "--data"}) and not flags & {"--config", "-c"})


@dataclass(frozen=True)
class SignalFiles:
    """What a call reads and writes."""

    data: Path
    output: Path
    state: Path

    @classmethod
    def of(cls, data: str, output: str | None, state: str | None, folder: Path) -> SignalFiles:
        """Fill in the defaults: signals.csv in the run's folder, and its state beside it.

        Raises:
            ValueError: one file for two purposes.
            FileNotFoundError: a folder to write into that does not exist.
        """
        target = Path(output) if output else folder / OUTPUT
        carried = Path(state) if state else target.with_name(target.name + STATE_SUFFIX)
        given = {"--data": Path(data), "--output": target, "--state": carried}
        if len({path.resolve() for path in given.values()}) < 3:
            named = ", ".join(f"{flag} {shown_path(path)}" for flag, path in given.items())
            raise ValueError(f"predict reads one file and writes two others, got {named}. Give three different ones")
        for flag in ("--output", "--state"):
            if not given[flag].parent.is_dir():
                raise FileNotFoundError(f"{flag} {shown_path(given[flag])}: its folder does not exist. Make it first")
        return cls(Path(data), target, carried)


def parser() -> argparse.ArgumentParser:
    """Options of `lit-ppo predict --ckpt`."""
    parser = argparse.ArgumentParser(
        prog="lit-ppo predict",
        description="Append the decisions of a trained policy on new bars to a CSV, bar by bar. Sends no orders.",
        epilog="With --config it is Lightning's command instead: the test decisions of one fold, predictions.csv.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt", required=True, help="run folder (results/<seed>), fold folder or checkpoint file")
    parser.add_argument("--data", required=True, help="bar file: with the last bar decided on, or right after it")
    parser.add_argument("--fold", type=int, help="of a run; default: the newest finished one")
    parser.add_argument("--output", help=f"CSV of decisions; default: {OUTPUT} in the run's folder")
    parser.add_argument("--state", help=f"what is carried from call to call; default: OUTPUT{STATE_SUFFIX}")
    parser.add_argument("--allow-module", metavar="NAME", help="a module that features may be imported from")
    reader = parser.add_argument_group("how to read the file; default: as the run did")
    add_reader_flags(reader)
    return parser


def predict(arguments: Sequence[str], make_feed: MakeFeed) -> int:
    """Run the command; returns the exit code.

    Args:
        arguments: what follows `predict`.
        make_feed: `datamodules.features.feed.Feed.of`.

    Raises:
        ValueError, FileNotFoundError: the checkpoint, the bars or the state cannot be used; nothing was written.
        CheckpointError: the checkpoint is damaged.
    """
    rest, modules = take_allowed_modules(arguments)
    options = vars(parser().parse_args(rest))
    chosen = choose_checkpoint(options.pop("ckpt"), options.pop("fold"))
    files = SignalFiles.of(options.pop("data"), options.pop("output"), options.pop("state"), chosen.folder)
    del options["allow_module"]  # taken above: it may be given more than once
    step, account_features = load_step(chosen)
    feed = make_feed(chosen.data, chosen.settings, options, modules)
    warn_of_other_code(feed)
    torch.set_num_threads(1)  # a step of one bar: threads would only wait for each other
    with alone_in(files.state.parent):
        state = SignalState.read(files.state) if files.state.exists() else None
        origin = origin_of(chosen)
        if state is None:
            state = SignalState.begin(origin, step)
        elif state.origin != origin:
            raise ValueError(
                f"--state {shown_path(files.state)} was made with {_named(state.origin)}, and --ckpt means "
                f"{_named(origin)}: a memory does not fit another policy. Name that one (--fold), or begin anew with "
                "another --state and --output"
            )
        positions = step.policy.positions.numpy()
        missing_bytes(
            files.output, state.rows(positions, feed.seen_until)
        )  # a foreign file is refused before anything is decided
        seen, decided = len(state.bars["time"]), len(state.actions)
        state = state.with_bars(feed.read(files.data), shown_path(files.data), feed.bar_seconds)
        if len(state.bars["time"]) > seen:
            state = decide(state, seen, step, feed, account_features)
            write_state(files.state, state)
        append_rows(files.output, state.rows(positions, feed.seen_until))
    for warning in (chosen.not_trained, seen_in_training(state.times[decided:], feed.seen_until)):
        if warning:
            print(f"lit-ppo predict: warning: {warning}", file=sys.stderr)
    print(_summary(state, seen, decided, files.output, feed, positions))
    return 0


def _summary(
    state: SignalState, seen: int, decided: int, output: Path, feed: BarFeed, positions: NDArray[np.float64]
) -> str:
    time, actions = state.bars["time"], state.actions
    first = feed.warmup + feed.memory_bars
    text = f"{len(time) - seen:,} new bars, {len(actions) - decided:,} new decisions in {output}"
    if not len(actions):
        return f"{text}; the first decision needs {first + 1:,} bars, there are {len(time):,}"
    last, before = positions[actions[-1]], positions[actions[-2]] if len(actions) > 1 else 0.0
    step = "as before" if last == before else f"was {before:+g}"
    return f"{text}; at the close of bar {utc_cells(time[-1:])[0]}: position {last:+g} ({step})"


def load_step(chosen: ChosenCheckpoint) -> tuple[DecisionStep, Sequence[str]]:
    """Rebuild the policy as a step, with the account features that it sees."""
    policy, recipe = chosen.load_policy()
    return DecisionStep(policy), recipe.account_features


def origin_of(chosen: ChosenCheckpoint) -> dict[str, Any]:
    """Which checkpoint it is, as a state file remembers it."""
    return {"checkpoint": f"{chosen.path.parent.name}/{chosen.path.name}", "sha256": chosen.sha256}


def _named(origin: Mapping[str, Any]) -> str:
    return f"{origin['checkpoint']} ({origin['sha256'][:12]})"
