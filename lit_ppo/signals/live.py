"""Decisions for new bars, bar by bar, with everything carried in one state file.

    new bars -> compared with the bars seen before, and appended to them
             -> features of all of them (causal: those of an old bar never change) -> scaler of the checkpoint
             -> one step of the policy for each new bar, from the memory and position of the last one
             -> state file (replaced whole), then the CSV (appended)

The state holds every bar since the first one: features then come out bit for bit as from one whole file, whatever the
pieces in which the bars came. The CSV is a function of the state, so a run that was killed between the two is mended
by the next one.

Decision t is made at the close of bar t, from bars up to t. No order is sent anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from lit_ppo.envs.account import Account
from lit_ppo.market.costs import FillArrays
from lit_ppo.nets.encoder import EncoderState, state_like
from lit_ppo.signals.decisions import DecisionStep
from lit_ppo.signals.known_equity import KnownEquity
from lit_ppo.store.atomic import (
    TEMPORARY_SUFFIX,
    atomic_write,
    failpoint,
    open_own,
    refuse_link,
    room_for,
    sync_directory,
    write_all,
)
from lit_ppo.store.files import shown_path, utc_cells

SCHEMA = 1
HEADER = "time,position,change,probability,seen_in_training"
_KEY = "lit_ppo"  # of the state file's metadata; one entry only, so that equal states are equal bytes

_DECISIONS = ("actions", "probabilities")
_OTHERS = (*_DECISIONS, "bars_held")  # of the state file's tensors, neither bars nor the encoder's memory

Columns = dict[str, NDArray[Any]]


class BarFeed(Protocol):
    """What signals ask of the way from bars to inputs: `datamodules.features.feed.Feed`."""

    @property
    def bar_seconds(self) -> float:
        """Length of one bar."""
        ...

    @property
    def point(self) -> float:
        """Price units per point."""
        ...

    @property
    def memory_bars(self) -> int:
        """Bars that warm the memory up before the first decision."""
        ...

    @property
    def other_code(self) -> bool:
        """The features were computed by another release of something in training."""
        ...

    @property
    def warmup(self) -> int:
        """Bars before the first one that has every feature."""
        ...

    @property
    def reward_scale(self) -> float:
        """Standard deviation of a price return on the train bars."""
        ...

    @property
    def seen_until(self) -> int:
        """Open time of the last bar that training or the choice of the weights read, nanoseconds since 1970 UTC."""
        ...

    def settled(self, path: str | Path) -> BarFeed:
        """For bars like those of this file, where the policy trades any; else itself."""
        ...

    def like(self, bar_seconds: float, point: float) -> BarFeed:
        """For bars of this length and point."""
        ...

    def read(self, path: str | Path) -> Columns:
        """Bars of a file: time [N] int64 and further columns [N] float64."""
        ...

    def features(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """[N, F] of those bars, not scaled."""
        ...

    def scale(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, F] scaled as in training."""
        ...

    def fills(self, columns: Mapping[str, NDArray[Any]]) -> FillArrays:
        """Fill prices and costs as in training, of every bar; NaN where they lie beyond the bars."""
        ...

    def describe(self) -> dict[str, Any]:
        """Features, scaler and kind of bars, as plain JSON."""
        ...


@dataclass(frozen=True)
class SignalState:
    """Where the decisions stand after the last bar seen.

    Attributes:
        origin: which checkpoint decides, as plain JSON; a state goes on with that one only.
        bars: every bar seen, oldest first, by column; `time` in nanoseconds since 1970 UTC.
        memory: the state of the policy's encoder after the last bar, [L, S, H] float32 by name.
        bars_held: bars since the held position was taken.
        actions: [D] int64 index of the position decided at each of the last D bars; earlier ones were warm-up.
        probabilities: [D] float32 of those decisions.
        rewritten: open times of bars that the feed changed right after they were decided on; the state keeps them as
            they were then (`with_bars`).
    """

    origin: dict[str, Any]
    bars: Columns
    memory: Columns
    bars_held: float
    actions: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    rewritten: tuple[int, ...] = ()

    @classmethod
    def begin(cls, origin: dict[str, Any], step: DecisionStep) -> SignalState:
        """Nothing seen, nothing decided, nothing remembered."""
        nothing = np.zeros(0, dtype=np.int64)
        memory = _arrays(step.initial_state())
        return cls(origin, {"time": nothing}, memory, 0.0, nothing, nothing.astype(np.float32))

    def to_bytes(self) -> bytes:
        """As a safetensors file: no pickle, equal states give equal bytes."""
        tensors = {f"bar.{name}": values for name, values in self.bars.items()}
        tensors |= {**self.memory, **{name: getattr(self, name) for name in _DECISIONS}}
        tensors["bars_held"] = np.array([self.bars_held])
        tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        about = {"schema": SCHEMA, "origin": self.origin, "columns": list(self.bars), "sha256": _digest(tensors)}
        about |= {"rewritten": list(self.rewritten)} if self.rewritten else {}
        return to_safetensors(tensors, {_KEY: json.dumps(about, sort_keys=True)})

    @classmethod
    def read(cls, path: Path) -> SignalState:
        """Read a state file.

        Raises:
            ValueError: it is none, is damaged, or is of a newer release.
        """
        remedy = "Restore it from a backup, or begin anew with another --state and --output"
        try:
            with safe_open(str(path), framework="numpy") as file:
                about = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"--state {shown_path(path)} is no state of lit-ppo predict ({error}). {remedy}"
            ) from error
        if about["schema"] > SCHEMA:
            raise ValueError(
                f"--state {shown_path(path)} has schema {about['schema']}, and this lit-ppo reads up to {SCHEMA}: use "
                "the newer lit-ppo that wrote it"
            )
        if _digest(tensors) != about["sha256"]:
            raise ValueError(f"--state {shown_path(path)} is damaged: its hash differs from the recorded one. {remedy}")
        return cls(
            origin=about["origin"],
            bars={name: tensors[f"bar.{name}"] for name in about["columns"]},
            memory={name: x for name, x in tensors.items() if not name.startswith("bar.") and name not in _OTHERS},
            bars_held=float(tensors["bars_held"][0]),
            rewritten=tuple(about.get("rewritten", ())),
            **{name: tensors[name] for name in _DECISIONS},
        )

    def with_bars(self, new: Columns, source: str, bar_seconds: float, keep_last: bool = False) -> SignalState:
        """Append the bars of a file that were not seen before.

        Args:
            new: the bars of the file: it holds the last bar seen, or begins one bar after it.
            source: its name, for messages.
            bar_seconds: length of one bar.
            keep_last: where the last bar decided on has other numbers now, keep it as it was (`rewritten` says so)
                instead of refusing the file.

        Raises:
            ValueError: a gap between the bars seen and the file, or bars seen that are not the same in the file.
        """
        time, seen = new["time"], self.bars["time"]
        if not len(seen):
            return replace(self, bars=dict(new))
        if list(new) != list(self.bars):
            raise ValueError(
                f"{source} has the columns {', '.join(new)}, and the bars decided on so far had "
                f"{', '.join(self.bars)}. {_OTHER_FEED}"
            )
        if time[0] < seen[0]:
            raise ValueError(
                f"{source} begins at {_moment(time[0])}, before the first bar seen so far ({_moment(seen[0])}): with "
                f"other bars in front, features and memory would be others. Leave them out, or {_ANEW}"
            )
        if time[0] > seen[-1]:
            if time[0] - seen[-1] != round(bar_seconds * 1e9):
                raise ValueError(
                    f"{source} begins at {_moment(time[0])}, and the last bar decided on is {_moment(seen[-1])}: bars "
                    f"may be missing between them. Give a file that holds the bar of {_moment(seen[-1])} as well"
                )
            return replace(self, bars={name: np.concatenate([self.bars[name], new[name]]) for name in new})
        first = int(np.searchsorted(seen, time[0]))
        common = min(len(seen) - first, len(time))
        rewritten = self.rewritten
        for name in new:  # time first: a missing bar shows there
            then, now = self.bars[name][first : first + common], new[name][:common]
            same = (then == now) | (np.isnan(then) & np.isnan(now)) if name != "time" else then == now
            if name != "time":
                if keep_last and not same[-1] and first + common == len(seen) and int(seen[-1]) not in rewritten:
                    rewritten = (*rewritten, int(seen[-1]))
                same |= np.isin(time[:common], rewritten)
            if not same.all():
                row = int(np.argmin(same))
                was, found = (_moment(then[row]), _moment(now[row])) if name == "time" else (then[row], now[row])
                raise ValueError(
                    f"{source}, bar {_moment(time[row])}: {name} is {found}, and was {was} when it was decided on. "
                    f"{_OTHER_FEED}"
                )
        bars = {name: np.concatenate([self.bars[name], new[name][common:]]) for name in new}
        return replace(self, bars=bars, rewritten=rewritten)

    @property
    def times(self) -> NDArray[np.int64]:
        """[D] open times of the bars decided on."""
        return self.bars["time"][len(self.bars["time"]) - len(self.actions) :]

    def rows(self, positions: NDArray[np.float64], seen_until: int) -> list[str]:
        """Lines of the CSV, one a decision; see `BarFeed.seen_until`."""
        decided = positions[self.actions]
        change = np.diff(decided, prepend=0.0)  # an account starts flat
        seen = np.where(self.times <= seen_until, "true", "false")
        columns = (decided.tolist(), change.tolist(), self.probabilities.tolist(), seen)
        rows = zip(utc_cells(self.times), *columns, strict=True)
        return [f"{at},{held!r},{step!r},{chance:.6f},{known}" for at, held, step, chance, known in rows]


_ANEW = "begin anew with another --state and --output"
_OTHER_FEED = f"Bars that were decided on do not change: give the same feed as before, or {_ANEW}"


def decide(
    state: SignalState, seen: int, step: DecisionStep, feed: BarFeed, account_features: Sequence[str]
) -> SignalState:
    """Decide at every bar from row `seen` on; the rows before are those that the state's memory has in it.

    Every bar is one step, however many there are: the same decisions, to the last bit, in pieces and at once.
    """
    policy = step.policy
    start = max(feed.warmup, seen)
    first_decision = feed.warmup + feed.memory_bars
    inputs = torch.from_numpy(feed.scale(feed.features(state.bars)[start:]))
    memory = step.initial_state()
    memory = state_like(memory, (torch.from_numpy(state.memory[name]) for name in memory._asdict()))
    held = torch.tensor([int(state.actions[-1]) if len(state.actions) else policy.flat_index])
    account = Account(held, policy.positions, policy.flat_index, feed.reward_scale)
    account.bars_held += state.bars_held
    equity = None
    if "unrealised" in account_features:
        equity = KnownEquity(feed.fills(state.bars), policy.positions.tolist(), policy.flat_index, first_decision)
    actions, probabilities = state.actions.tolist(), state.probabilities.tolist()
    with torch.no_grad():
        for row, features in enumerate(inputs, start):
            if equity is not None and actions:
                # Fill t - 1 is the last one known at the close of bar t. What `advance` below is told is never seen.
                last, entry = len(actions) - 1, len(actions) - int(account.bars_held)
                account.known_log_equity = torch.full_like(account.bars_held, equity.at_fill(last, actions))
                account.entry_log_equity = torch.full_like(account.bars_held, equity.at_fill(entry, actions))
            others = account.features(account_features)
            decision = step(features, account.held, others, *memory)
            memory = decision.memory
            if row >= first_decision:
                account.advance(decision.action, torch.zeros(1, dtype=torch.float64))
                actions.append(int(decision.action))
                probabilities.append(float(decision.probabilities[decision.action]))
    return replace(
        state,
        memory=_arrays(memory),
        bars_held=float(account.bars_held),
        actions=np.array(actions, dtype=np.int64),
        probabilities=np.array(probabilities, dtype=np.float32),
    )


def _arrays(memory: EncoderState) -> Columns:
    return {name: tensor.numpy() for name, tensor in memory._asdict().items()}


def write_state(path: Path, state: SignalState) -> None:
    """Replace the state file whole, and remove what a killed call left beside it. Only for the owner of the state."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.name.endswith(TEMPORARY_SUFFIX):
            left.unlink(missing_ok=True)
    atomic_write(path, state.to_bytes())


def missing_bytes(path: Path, rows: Sequence[str]) -> bytes:
    """What the CSV lacks of the state's rows: all of it, what a kill left out, or nothing.

    Raises:
        ValueError: the file does not begin as the rows do.
    """
    if path.is_symlink():
        raise ValueError(f"--output {shown_path(path)} is a symbolic link. Remove it, or name the file itself")
    whole = "".join(f"{line}\n" for line in [HEADER, *rows]).encode()
    there = refuse_link(path).read_bytes() if path.exists() else b""
    if not whole.startswith(there):
        raise ValueError(
            f"--output {shown_path(path)} holds something else than the {len(rows)} decisions that the state knows of; "
            "it was not touched. Move it away (they are written again), or name another --output"
        )
    return whole[len(there) :]


def append_rows(path: Path, rows: Sequence[str]) -> None:
    """Append to the CSV what it lacks of the state's rows, and sync it to the disk; see `missing_bytes`."""
    missing = missing_bytes(path, rows)
    if not missing:
        return
    with room_for(path, len(missing)), open_own(path) as file:
        file.seek(0, os.SEEK_END)
        half = len(missing) // 2
        write_all(file.fileno(), missing[:half])
        failpoint("mid_append", path.name)
        write_all(file.fileno(), missing[half:])
        os.fsync(file.fileno())
    sync_directory(path.parent)


def _digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _moment(time: np.integer[Any] | int) -> str:
    return utc_cells(np.array([time], dtype=np.int64))[0]


MakeFeed = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Sequence[str]], BarFeed]


def warn_of_other_code(feed: BarFeed) -> None:
    """Say so where the numbers might not be those of the training."""
    if feed.other_code:
        warnings.warn(
            "The features are computed by other code, or another TA-Lib, numpy or pandas, than in training: they may "
            "differ a little. Install the versions of the run's run.json to be sure",
            stacklevel=2,
        )


def too_few_bars(state: SignalState, feed: BarFeed) -> str:
    """What to say where no decision was made yet; "" where one was."""
    if len(state.actions):
        return ""
    needed = feed.warmup + feed.memory_bars + 1
    return f"the first decision needs {needed:,} bars, there are {len(state.bars['time']):,}"


def seen_in_training(times: NDArray[np.int64], seen_until: int) -> str:
    """What to warn of decisions on bars that training or the choice of the weights saw, or that lie before them.

    Args:
        times: open times of the bars decided on, nanoseconds since 1970 UTC.
        seen_until: see `BarFeed.seen_until`.

    Returns:
        "" where there are none.
    """
    seen = times[times <= seen_until]
    if not len(seen):
        return ""
    return (
        f"{len(seen):,} of {len(times):,} new decisions, {_moment(seen[0])} to {_moment(seen[-1])}, are on bars no "
        f"later than {_moment(seen_until)}, the last that training or the choice of these weights saw: they are not "
        "out of sample, and what they earn says nothing. The column seen_in_training marks them"
    )
