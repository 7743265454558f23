"""How a walk-forward gets on: live on a terminal, one plain line a fold elsewhere, and as TensorBoard scalars.

An *iteration* is one fold, as in the old script. Two figures are told apart, both against a named baseline:

    did less       the baseline's timesteps for the folds that were trained / ours
    did it faster  the baseline's seconds per timestep / ours
    speed-up       their product: the baseline's seconds for the folds that were trained / ours
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_ppo.folds.machine_load import MachineLoad
from lit_ppo.folds.optimisation_summary import pace_in_words, summarise, times, work_in_words
from lit_ppo.store.results import NOT_TRAINED, FoldRecord
from lit_ppo.words import plural


class Baseline(NamedTuple):
    """What one fold costs without lit-ppo.

    Attributes:
        name: what it is, and on which machine it was taken.
        seconds, timesteps: of one fold, evaluation included.
    """

    name: str
    seconds: float
    timesteps: int


RECORDED = Baseline("the old script as its user reported it (45 min a fold, on another machine)", 2700.0, 100_000)


WIDTH = 100  # columns of a fold's line
SAVERS = ("early_stop", "cache_hit")  # what a fold's line and the display count
OLD_SCRIPT = "old_script"  # what the drop-in scripts give as `--baseline`


def read_baseline(path: str | Path | None) -> Baseline | None:
    """Return what speed-ups are against.

    Args:
        path: JSON file of `lit-ppo benchmark`; "old_script": its recorded figure; None: no speed-up is spoken of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    if path is None:
        return None
    if path == OLD_SCRIPT:
        return RECORDED
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))["baseline"]
        baseline = Baseline(str(found["name"]), float(found["seconds"]), int(found["timesteps"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--baseline: there is no file {path}; `lit-ppo benchmark` writes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--baseline: {path} is not a file of `lit-ppo benchmark` ({error!r})") from error
    if not (baseline.seconds > 0 and baseline.timesteps > 0):
        raise ValueError(f"--baseline: {path} holds {baseline.seconds} s for {baseline.timesteps} timesteps")
    return baseline


def progress_figures(
    folds: Sequence[FoldRecord],
    num_folds: int,
    baseline: Baseline | None,
    cache: Mapping[str, Any],
    mean_seconds: float,
) -> dict[str, float]:
    """Everything the monitor shows, from the ledger.

    Args:
        folds: the ledger.
        num_folds: of the run.
        baseline: what speed-ups are against; None: there are none.
        cache: `get_optimization_info()` of the datamodule.
        mean_seconds: wall time of one fold of this call, for the time that is left; nan before the first.
    """
    summary = summarise(folds, num_folds, cache)
    measured = summary["measured"]
    done, seconds, visited = measured["folds"], measured["seconds"], sum(fold.timesteps for fold in folds)
    speed = {}
    trained = [fold for fold in folds if fold.status == "done" and fold.timesteps]  # no other has done the same work
    if baseline is not None and (taken := sum(sum(fold.seconds.values()) for fold in trained)):
        times = len(trained) * baseline.seconds / taken
        less = len(trained) * baseline.timesteps / sum(fold.timesteps for fold in trained)
        speed = {"speedup": times, "did_less": less, "did_it_faster": times / less}
    return {
        "iterations": float(done),
        "iterations_planned": float(num_folds),
        "time_left_s": (num_folds - done) * mean_seconds,
        "iteration_mean_s": seconds / done if done else math.nan,
        **speed,
        "not_trained": float(sum(fold.stop_reason == NOT_TRAINED for fold in folds)),
        "timesteps_planned": float(measured["timesteps_planned"]),
        "timesteps": float(visited),
        "timesteps_saved": float(summary["total_timesteps_saved"]),
        "early_stops": float(summary["early_stops"]),
        "warm_starts": float(summary["warm_starts"]),
        "cache_hits": float(cache.get("hits", 0)),
    }


def fold_lines(head: str, figures: Mapping[str, float]) -> list[str]:
    """A finished fold as lines of at most `WIDTH` columns: what it came to, then the figures that are not zero.

    What does not fit goes on, indented, in the next line; the machine's load is on the live display and in TensorBoard.
    """
    words = [f"{figures['iteration_mean_s']:.1f} s/fold", f"{_duration(figures['time_left_s'])} left"]
    if "speedup" in figures:
        work, pace = work_in_words(figures["did_less"]), pace_in_words(figures["did_it_faster"])
        words.append(f"speed-up {times(figures['speedup'])} ({work}, done {pace})")
    if figures["not_trained"]:
        words.append(f"{figures['not_trained']:,.0f} not trained so far")
    if figures["timesteps_saved"]:
        words.append(f"{plural(figures['timesteps_saved'], 'timestep')} saved")
    words += [plural(figures[f"{name}s"], name.replace("_", " ")) for name in SAVERS if figures[f"{name}s"]]
    lines, gap = [head], "  "
    for word in words:
        if len(lines[-1]) + len(gap) + len(word) > WIDTH:
            lines.append(" " * 9 + word)
        else:
            lines[-1] += gap + word
        gap = ", "
    return lines


def _machine_words(figures: Mapping[str, float]) -> list[str]:
    words = [f"{figures['memory_mb']:,.0f} MB", f"CPU {figures['cpu_pct']:.0f} %"]
    if "gpu_memory_mb" in figures:
        share = f" {figures['gpu_pct']:.0f} %" if "gpu_pct" in figures else ""
        words.append(f"GPU{share} {figures['gpu_memory_mb']:,.0f} MB")
    return words


def _duration(seconds: float) -> str:
    return "n/a" if not math.isfinite(seconds) else str(timedelta(seconds=round(seconds)))


class Monitor:
    """Shows a run; a context manager.

    Args:
        num_folds: of the run.
        baseline: what speed-ups are against; None: none is shown.
        tensorboard: directory of the event file; None: there is none.
        console: default is the standard output.
    """

    def __init__(
        self,
        num_folds: int,
        baseline: Baseline | None = None,
        tensorboard: Path | None = None,
        console: Console | None = None,
    ) -> None:
        self.num_folds, self.baseline, self.tensorboard = num_folds, baseline, tensorboard
        self.console = console or Console()
        self.load = MachineLoad()
        self.figures: dict[str, float] = {}
        self._now = "starting"
        self._live: Live | None = None
        self._writer: Any = None
        self._seconds = 0.0
        self._folds = 0
        self._untrained = 0  # folds in a row, up to the last one

    def __enter__(self) -> Monitor:
        if self.console.is_terminal:
            self._live = Live(self._table(), console=self.console, transient=True, refresh_per_second=4)
            self._live.start()
        if self.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.tensorboard))
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._writer is not None:
            self._writer.close()

    @property
    def live(self) -> bool:
        """Whether there is a display that `show` changes."""
        return self._live is not None

    def show(self, text: str) -> None:
        """What the fold that is being trained says of itself."""
        self._now = text
        if self._live is not None:
            self._live.update(self._table())

    def fold_done(self, line: str, seconds: float, folds: Sequence[FoldRecord], cache: Mapping[str, Any]) -> None:
        """Show a finished fold.

        Of many folds in a row that were not trained the 1st, 2nd, 5th, 10th, 20th and so on are shown, with their
        count, and the run's last: a hundred lines that say the same hide what they say.

        Args:
            line: what it came to.
            seconds: wall time it took.
            folds: the ledger, with it.
            cache: `get_optimization_info()` of the datamodule.
        """
        self._seconds, self._folds = self._seconds + seconds, self._folds + 1
        progress = progress_figures(folds, self.num_folds, self.baseline, cache, self._seconds / self._folds)
        trained = progress["not_trained"] == self.figures.get("not_trained", 0.0)
        self._untrained = 0 if trained else self._untrained + 1
        if self.baseline is not None and "speedup" in progress and "speedup" not in self.figures:
            self._print(f"Speed-ups are against {self.baseline.name}")
        self.figures = progress | self.load.read()
        done = f"{progress['iterations']:.0f}/{self.num_folds}"
        if progress["iterations"] == self.num_folds or str(self._untrained).rstrip("0") in ("", "1", "2", "5"):
            for text in fold_lines(f"{done:>7}  {line}", self.figures):
                self._print(text)
        self.show("")
        if self._writer is not None:
            for name, value in self.figures.items():
                self._writer.add_scalar(f"monitor/{name}", value, folds[-1].index)
            self._writer.flush()

    def _print(self, line: str) -> None:
        # As it is: no markup, no wrapping where a line is cut into columns by a reader.
        self.console.print(Text(line), soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        f = self.figures
        if f:
            done, steps = f"{f['iterations']:.0f}/{self.num_folds}", f"{f['timesteps']:,.0f}"
            rows = [
                ("folds", f"{done}, {f['iteration_mean_s']:.1f} s each, {_duration(f['time_left_s'])} left"),
                ("timesteps", f"{steps} of {f['timesteps_planned']:,.0f} planned, {f['timesteps_saved']:,.0f} saved"),
                ("saved by", ", ".join(plural(f[f"{name}s"], name.replace("_", " ")) for name in SAVERS)),
                ("machine", ", ".join(_machine_words(f))),
            ]
            if self.baseline is not None and "speedup" in f:
                work = f"{work_in_words(f['did_less'])}, done {pace_in_words(f['did_it_faster'])}"
                rows.append(("speed-up", f"{times(f['speedup'])} against {self.baseline.name}: {work}"))
            for name, text in rows:
                table.add_row(Text(name, style="bold"), Text(text))
        table.add_row(Text("now", style="bold"), Text(self._now))
        return table
