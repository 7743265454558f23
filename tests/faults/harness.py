"""A tiny real walk-forward, ways to run and kill it, and what must not depend on either."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_ppo.ppo.diagnosis import FOLDER as DIAGNOSIS
from lit_ppo.store.atomic import TEMPORARY_SUFFIX
from lit_ppo.store.checkpoints import MANIFEST

REPOSITORY = Path(__file__).parents[2]
SEED = 7
FOLDS = 3
ITERATIONS = 4  # PPO iterations of each fold, a checkpoint after each

CONFIG = """
seed_everything: 7
model: {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, total_timesteps: 256, hold_bias: -3.0, vf_coef: 0.5,
  update_epochs: 1, screen_features: false}
data:
  synthetic: {kind: regime, num_bars: 760, seed: 3}
  train_size: 300
  validation_size: 100
  test_size: 100
  step_size: 100
  warmup_bars: 20
  cache: false
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    - callbacks.ValidationSelection
    - class_path: callbacks.ConvergenceEarlyStopping
      init_args: {patience: 50}
    - class_path: callbacks.TrainingCheckpoint
      init_args: {every_n_iterations: 1}
    - callbacks.MetricsLog
"""


@dataclass
class Ended:
    """A run that is over."""

    code: int  # minus the signal's number if it was killed
    output: str
    cpu_seconds: float


@dataclass
class Launcher:
    """Runs `lit-ppo` commands one after the other, each in a forked process, see `launcher.py`.

    Attributes:
        directory: where the runs work.
        whole_run_seconds: computing time of an uninterrupted run, once that is known.
    """

    directory: Path
    whole_run_seconds: float = 1.0
    _process: subprocess.Popen | None = field(default=None, init=False)
    _runs: bool = field(default=False, init=False)
    _pid: int = field(default=0, init=False)

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None, faults: Sequence[str] = ()) -> int:
        """Start a command; returns its process number. `end` must follow.

        Args:
            arguments: of `lit-ppo`.
            environment: variables to add.
            faults: "module:function" to call in the run's process before it begins.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("launcher.py"))],
                env=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        if self._runs:  # a test failed between `start` and `end`
            os.kill(self._pid, signal.SIGKILL)
            self.end()
        self._output = self.directory / "output.txt"
        self._output.write_text("")
        request = {"arguments": list(arguments), "directory": str(self.directory), "output": str(self._output)}
        request |= {"environment": dict(environment or {}), "faults": list(faults)}
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        self._runs, self._pid = True, self._answer()["pid"]
        return self._pid

    def end(self) -> Ended:
        """Wait for the command that `start` started."""
        assert self._process is not None
        print("end", file=self._process.stdin, flush=True)
        ended = self._answer()
        self._runs = False
        return Ended(ended["code"], self._output.read_text(), ended["cpu_seconds"])

    def __call__(self, *arguments: str, **options) -> Ended:
        """Run a command to its end."""
        self.start(*arguments, **options)
        return self.end()

    def killed(self, cpu_seconds: float, *arguments: str, **options) -> Ended:
        """Run a command and kill it (SIGKILL) once it has computed for so long, or a little later.

        Computing time, not wall time: a kill then falls on the same part of a run on a busy machine.
        """
        pid = self.start(*arguments, **options)
        while used_seconds(pid) < cpu_seconds:
            time.sleep(0.002)
        # The launcher keeps the number until `end`, even if the process is over by now.
        os.kill(pid, signal.SIGKILL)
        return self.end()

    def close(self) -> None:
        if self._process is not None:
            if self._runs:
                os.kill(self._pid, signal.SIGKILL)
                self.end()
            self._process.stdin.close()  # type: ignore[union-attr]
            self._process.wait(timeout=60)
            self._process = None

    def _answer(self) -> dict:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the launcher of test runs has died")
        return json.loads(line)


def used_seconds(pid: int) -> float:
    """Computing time of a process so far; infinite once it is over."""
    state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(map(int, numbers[10:12]))
    return math.inf if state in "ZX" else ticks / os.sysconf("SC_CLK_TCK")


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of a run: one thread, our packages, no failpoint."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIT_PPO_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def command(*arguments: str, results: str = "results", config: str = "config.yaml") -> list[str]:
    """Arguments of `lit-ppo walk-forward`."""
    return ["walk-forward", "--config", config, "--results", results, *arguments]


def new_process(directory: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """Start `python -m lit_ppo`, a process that shares nothing with another run."""
    return subprocess.Popen(
        [sys.executable, "-m", "lit_ppo", *arguments],
        cwd=directory,
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_bytes(folder: Path) -> dict[str, object]:
    """Everything of a run's folder that may not depend on interruptions, byte for byte.

    That is every file: weights, optimizer, generators and callbacks' state (all checkpoints and their manifests),
    metrics.jsonl, out_of_sample.csv, trades.csv, test bars. Left out is what tells the time: timing.jsonl, run.json,
    report.html, the old scripts' summaries, the ledger's `seconds` and `cost_seconds`; and config.yaml, which names the
    directory.
    """
    clocks = {"timing.jsonl", "run.json", "report.html", "config.yaml", "folds.json"}
    clocks |= {"optimization_summary.json", "training_state.json"}
    found: dict[str, object] = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in clocks
    }
    found = {name: content for name, content in found.items() if DIAGNOSIS not in name.split("/")}  # of a fault
    ledger = json.loads((folder / "folds.json").read_text())
    for fold in ledger["folds"]:
        fold.pop("seconds")
        for entry in fold["details"].get("optimisations", {}).values():
            entry.pop("cost_seconds", None)
    return {**found, "folds.json": ledger}


def without_numbers(files: dict[str, object]) -> dict[str, object]:
    """The same files, checkpoints named by their hash alone, without the manifests that number them."""
    plain = {re.sub(r"checkpoint-\d+-", "checkpoint-", name): content for name, content in files.items()}
    return {name: content for name, content in plain.items() if not name.endswith(MANIFEST)}


def assert_same_run(whole: Path, resumed: Path, numbers: bool = True) -> None:
    """Compare two runs' folders; says which files differ.

    Args:
        numbers: also the checkpoints' sequence numbers. A damaged one keeps its number, and the next gets another.
    """
    one, other = run_bytes(whole), run_bytes(resumed)
    if not numbers:
        one, other = without_numbers(one), without_numbers(other)
    assert (sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())) == ([], [])
    assert [name for name in one if one[name] != other[name]] == []
    assert json.loads((resumed / "run.json").read_text())["status"] == "done"
    assert leftovers(resumed) == []


def leftovers(folder: Path) -> list[str]:
    """Temporary files, probes and locks: nothing that begins with a dot belongs to a finished run."""
    found = list(folder.rglob(".*")) + list(folder.rglob(f"*{TEMPORARY_SUFFIX}"))
    return sorted({path.name for path in found})
