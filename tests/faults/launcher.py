"""Starts `lit-ppo` runs for the fault tests: imports everything once, then forks one process for each run.

Importing torch takes longer than a tiny run; a kill at a random time should hit the run, not the imports. Each run is
a process of its own with its own exit code, ended by real signals. `harness.Launcher` talks to it: one JSON object a
line on standard input, one on standard output for "started" and one for "ended".
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback

import torch

from lit_ppo.cli import main
from lit_ppo.nets.lstm import LSTM
from lit_ppo.store import atomic
from lit_ppo.store.provenance import source_sha256

# What a run imports on its way; forked runs then start at once.
OWN = ("commands.walk_forward", "commands.lightning_cli", "report.build", "report.summary", "nets.kernels.numba_layer")
OTHER = ("datamodules.walk_forward", "callbacks", "lightning.pytorch", "torch._dynamo")
for name in (*(f"lit_ppo.{name}" for name in OWN), *OTHER):
    importlib.import_module(name)


def run(request: dict) -> int:
    """In the forked process: become the run."""
    # A run respects what its parent ignores: SIGINT under a shell's `&`, SIGHUP under `nohup`. These are terminal runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    atomic._FAILPOINT = request["environment"].get("LIT_PPO_FAILPOINT")
    for fault in request["faults"]:
        module, _, function = fault.partition(":")
        getattr(importlib.import_module(module), function)()
    return main(request["arguments"])


def load_kernels() -> None:
    """Load the compiled LSTM kernels from their cache, as a first run would."""
    lstm = LSTM(2, 4)
    inputs = torch.zeros(3, 2, 2)
    lstm(inputs, lstm.initial_state(2))[0].sum().backward()
    with torch.no_grad():
        lstm(inputs, lstm.initial_state(2))


def serve() -> None:
    """Fork a run for each request; a run never comes back from here."""
    torch.set_num_threads(1)
    load_kernels()
    source_sha256()  # of the code that is loaded here, whatever happens to its files while the tests run
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                code = run(request)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(json.dumps({"pid": child}), flush=True)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        sys.stdin.readline()  # until "end" its number stays its own: a late kill hits nobody else
        _, status, used = os.wait4(child, 0)
        ended = {"code": os.waitstatus_to_exitcode(status), "cpu_seconds": used.ru_utime + used.ru_stime}
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    serve()
