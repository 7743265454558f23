"""`lit-ppo predict --ckpt RUN --data FILE`: the decisions of a trained policy on new bars, appended to a CSV."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_ppo.class_paths import take_allowed_modules
from lit_ppo.commands.reader_flags import add_reader_flags, given
from lit_ppo.market.costs import DEFAULT_HURDLE
from lit_ppo.signals.checkpoint_choice import ChosenCheckpoint, choose_policy
from lit_ppo.signals.decisions import DecisionStep
from lit_ppo.signals.follow import (
    LEAST_ROWS,
    LineError,
    bar_window,
    check_line,
    columns_of,
    json_lines,
    lines_of,
    whole_lines,
)
from lit_ppo.signals.live import (
    BarFeed,
    MakeFeed,
    SignalState,
    append_rows,
    decide,
    missing_bytes,
    seen_in_training,
    too_few_bars,
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


def _spread(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def parser() -> argparse.ArgumentParser:
    """Options of `lit-ppo predict --ckpt`."""
    parser = argparse.ArgumentParser(
        prog="lit-ppo predict",
        description="Append the decisions of a trained policy on new bars to a CSV, bar by bar. Sends no orders.",
        epilog="With --config it is Lightning's command instead: the test decisions of one fold, predictions.csv.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt", required=True, help="run folder (results/<seed>), fold folder, checkpoint; or prior")
    parser.add_argument("--data", required=True, help="bar file: with the last bar decided on, or right after it; or -")
    parser.add_argument("--follow", action="store_true", help="wait for new bars of the file; one JSON line a decision")
    parser.add_argument("--fold", type=int, help="of a run; default: the newest finished one")
    parser.add_argument("--hurdle", type=float, help=f"of the prior trader (docs/prior.md); default: {DEFAULT_HURDLE}")
    parser.add_argument("--spread", type=_spread, help="of the prior trader: file, 0.2 or 1.5bp; default: file")
    parser.add_argument("--output", help=f"CSV of decisions; default: {OUTPUT} in the run's folder")
    parser.add_argument("--state", help=f"what is carried from call to call; default: OUTPUT{STATE_SUFFIX}")
    parser.add_argument("--allow-module", metavar="NAME", help="a module that features may be imported from")
    reader = parser.add_argument_group("how to read the file; default: as the run did")
    add_reader_flags(reader)
    return parser


class Signals:
    """A policy, what it has decided so far, and the two files of it.

    Raises:
        ValueError: the state is of another checkpoint; or the CSV is not of this state.
    """

    def __init__(self, files: SignalFiles, chosen: ChosenCheckpoint, feed: BarFeed) -> None:
        self.files, self.feed = files, feed
        self.step, self.account_features = load_step(chosen)
        self.positions = self.step.policy.positions.numpy()
        self.origin = origin_of(chosen)
        self.settled = bool(feed.bar_seconds)
        self._stamp: tuple[int, int, int] | None = None  # of the state file as we left it
        with alone_in(files.state.parent):
            self.state = self._stored()
            missing_bytes(files.output, self.rows)  # a foreign file is refused before anything is decided

    def _stored(self) -> SignalState:
        path = self.files.state
        if not path.exists():
            return SignalState.begin(self.origin, self.step)
        state = SignalState.read(path)
        self._stamp = _stamp(path)
        bars = state.origin.get("bars")  # what the prior trader was settled on
        if self.origin | ({"bars": bars} if bars else {}) != state.origin:
            raise ValueError(
                f"--state {shown_path(path)} was made with {_named(state.origin)}, and --ckpt means "
                f"{_named(self.origin)}: a memory does not fit another policy. Name that one (--fold), or begin anew "
                "with another --state and --output"
            )
        if bars:
            self.feed, self.settled = self.feed.like(**bars), True
        return state

    @property
    def rows(self) -> list[str]:
        """All lines of the CSV but the header."""
        return self.state.rows(self.positions, self.feed.seen_until)

    def take(self, path: Path, source: str, keep_last: bool = False) -> list[str]:
        """Decide at the bars of a file that are new; both files are then up to date.

        Args:
            path: bars.
            source: its name, for messages.
            keep_last: see `SignalState.with_bars`.

        Returns:
            The CSV's rows that were missing in it: the new decisions, after a kill perhaps one more.

        Raises:
            ValueError: the bars do not fit; nothing was written.
        """
        if not self.settled:
            self.feed, self.settled = self.feed.settled(path), True
            about = {"bar_seconds": self.feed.bar_seconds, "point": self.feed.point}
            self.state = replace(self.state, origin={**self.origin, "bars": about})
        columns = self.feed.read(path)
        with alone_in(self.files.state.parent):
            if self._stamp != _stamp(self.files.state):
                raise StateTakenError(
                    f"--state {shown_path(self.files.state)} was changed by another predict meanwhile: only one may "
                    "decide from it. End the other one, or name another --state and --output"
                )
            before = self.state
            state = before.with_bars(columns, source, self.feed.bar_seconds, keep_last)
            if len(state.bars["time"]) > len(before.bars["time"]):
                state = decide(state, len(before.bars["time"]), self.step, self.feed, self.account_features)
            if len(state.bars["time"]) > len(before.bars["time"]) or state.rewritten != before.rewritten:
                write_state(self.files.state, state)
                self._stamp = _stamp(self.files.state)
            self.state = state
        return self.missing()

    def missing(self) -> list[str]:
        """The rows of the state that the CSV lacks."""
        rows, path = self.rows, self.files.output
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        return rows[max(0, lines - 1) :]

    def append(self) -> None:
        """Bring the CSV up to date."""
        with alone_in(self.files.state.parent):
            append_rows(self.files.output, self.rows)

    def warnings(self, chosen: ChosenCheckpoint, decided: int) -> None:
        """Say on standard error what is wrong with the decisions from number `decided` on."""
        for warning in (chosen.not_trained, seen_in_training(self.state.times[decided:], self.feed.seen_until)):
            if warning:
                _say(f"warning: {warning}")


class StateTakenError(OSError):
    """Another process decides from the same state file."""


def _stamp(path: Path) -> tuple[int, int, int] | None:
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _say(text: str) -> None:
    print(f"lit-ppo predict: {text}", file=sys.stderr, flush=True)


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
    data, follow = options.pop("data"), options.pop("follow")
    chosen = choose_policy(*(options.pop(name) for name in ("ckpt", "fold", "hurdle", "spread")))
    files = SignalFiles.of(data, options.pop("output"), options.pop("state"), chosen.folder)
    del options["allow_module"]  # taken above: it may be given more than once
    lines = data == "-"
    if lines and (flags := [name for name in given(options) if name != "point"]):
        raise ValueError(f"--data - reads lines of one form (docs/signals.md): leave --{flags[0]} out")
    settings = {"features": chosen.settings.get("features")} if lines else chosen.settings  # no options of a file
    feed = make_feed(chosen.data, settings, options, modules)
    warn_of_other_code(feed)
    torch.set_num_threads(1)  # a step of one bar: threads would only wait for each other
    signals = Signals(files, chosen, feed)
    seen, decided = len(signals.state.bars["time"]), len(signals.state.actions)
    if lines or follow:
        return _follow(signals, chosen, lines)
    signals.take(files.data, shown_path(files.data))
    signals.append()
    signals.warnings(chosen, decided)
    print(_summary(signals.state, seen, decided, files.output, signals.feed, signals.positions))
    return 0


def _follow(signals: Signals, chosen: ChosenCheckpoint, lines: bool) -> int:
    """Decide at every bar as it comes, until standard input ends or a signal comes."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)  # every file is whole or absent at any moment

    before = signal.signal(signal.SIGTERM, leave) if threading.current_thread() is threading.main_thread() else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            _emit(signals, signals.missing())  # of a call that was killed
            decided = len(signals.state.actions)
            copies = _windows(signals, Path(folder)) if lines else whole_lines(signals.files.data, Path(folder))
            told, started = "", lines or len(signals.state.bars["time"]) > 0
            for copy, count in copies:
                if not started and count <= LEAST_ROWS:
                    continue  # a file that begins: no bars yet
                known = signals.state
                try:
                    rows = signals.take(copy, shown_path(signals.files.data), keep_last=True)
                except ValueError as error:
                    if not started:
                        raise
                    if str(error) != told:
                        _say(f"{'left out' if lines else 'waiting'}: {error}")
                    told = str(error)
                    continue
                told, started = "", True
                _say_what_is_odd(known, signals)
                _emit(signals, rows)
                if decided == len(known.actions):
                    signals.warnings(chosen, decided)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


def _windows(signals: Signals, folder: Path) -> Iterator[tuple[Path, int]]:
    """Standard input as small bar files."""
    names, waiting, path = list[str](), list[str](), folder / "standard_input.csv"
    for rows in lines_of(sys.stdin.fileno()):
        if not names:
            names = columns_of(rows.pop(0))
        waiting += [row for row in rows if _may_be_a_bar(names, row)]
        if not waiting or (len(waiting) < LEAST_ROWS and not len(signals.state.bars["time"])):
            continue
        before = signals.state
        bar_window(names, waiting, before.bars, path)
        yield path, len(waiting) + LEAST_ROWS
        if len(waiting) > 1 and signals.state is before and len(before.bars["time"]):
            for row in waiting:  # refused together: what is wrong with one of them is not wrong with the others
                bar_window(names, [row], signals.state.bars, path)
                yield path, 1 + LEAST_ROWS
        waiting.clear()


def _may_be_a_bar(names: Sequence[str], row: str) -> bool:
    try:
        check_line(names, row)
    except LineError as error:
        _say(str(error))
        return False
    return True


def _say_what_is_odd(known: SignalState, signals: Signals) -> None:
    """Tell of a rewritten bar, and of steps longer than a bar."""
    state = signals.state
    for at in state.rewritten[len(known.rewritten) :]:
        _say(
            f"bar {utc_cells(np.array([at]))[0]} was rewritten after it was decided on; the decision stands, and the "
            "bar counts as it was"
        )
    seen = len(known.bars["time"])
    if not seen:
        return
    time = state.bars["time"][seen - 1 :]
    for row in np.flatnonzero(np.diff(time) != round(signals.feed.bar_seconds * 1e9)):
        first, last = utc_cells(time[row : row + 2])
        _say(f"no bars between {first} and {last}: a break of the session, or a gap; one step, as in training")


def _emit(signals: Signals, rows: Sequence[str]) -> None:
    """Print, then append: a kill between the two prints a line twice, and loses none."""
    if not rows:
        return
    closes = signals.state.bars["close"][-len(rows) :].tolist()
    for line in json_lines(rows, closes):
        print(line)
    sys.stdout.flush()
    signals.append()


def _summary(
    state: SignalState, seen: int, decided: int, output: Path, feed: BarFeed, positions: NDArray[np.float64]
) -> str:
    time, actions = state.bars["time"], state.actions
    text = f"{len(time) - seen:,} new bars, {len(actions) - decided:,} new decisions in {output}"
    if too_few := too_few_bars(state, feed):
        return f"{text}; {too_few}"
    last, before = positions[actions[-1]], positions[actions[-2]] if len(actions) > 1 else 0.0
    step = "as before" if last == before else f"was {before:+g}"
    return f"{text}; at the close of bar {utc_cells(time[-1:])[0]}: position {last:+g} ({step})"


def load_step(chosen: ChosenCheckpoint) -> tuple[DecisionStep, Sequence[str]]:
    """Rebuild the policy as a step, with the account features that it sees."""
    policy, recipe = chosen.load_policy()
    return DecisionStep(policy), recipe.account_features


def origin_of(chosen: ChosenCheckpoint) -> dict[str, Any]:
    """Which checkpoint it is, as a state file remembers it."""
    return chosen.asked | {"checkpoint": f"{chosen.path.parent.name}/{chosen.path.name}", "sha256": chosen.sha256}


def _named(origin: Mapping[str, Any]) -> str:
    asked = "".join(f", {name} {origin[name]}" for name in ("hurdle", "spread") if name in origin)
    return f"{origin['checkpoint']} ({origin['sha256'][:12]}{asked})"
