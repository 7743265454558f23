"""W1-W6: a worker, its node or the driver dies, a fold raises, a signal comes, Ray's store is full: the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.harness import CONFIG, REPOSITORY, SEED, assert_same_run, clean_environment, command

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(3600)  # Ray alone took four minutes to start beside twenty other programs
LIMIT = 900.0  # seconds that anything may take on such a machine

# A callback of the user's, which every worker imports: it takes its orders from files.
INTERFERING = """
import time
from pathlib import Path

import lightning.pytorch as pl

from lit_ppo import interrupts

ORDERS = Path(__file__).parent


class Interfering(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (ORDERS / "raise").exists() and pl_module.fold[0] == 1:
            raise RuntimeError(f"broken on purpose in {trainer.default_root_dir}")
        while (ORDERS / "wait").exists() and pl_module.iteration == 2 and not interrupts.requested():
            (ORDERS / f"arrived_{pl_module.fold[0]}").touch()
            time.sleep(0.01)
"""
ADDED = ("--allow-module", "interfering", "--trainer.callbacks+=interfering.Interfering")


class Walk:
    """A `lit-ppo walk-forward` with workers, a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.folder = directory, directory / "results" / str(SEED)
        (directory / "config.yaml").write_text(CONFIG)
        (directory / "interfering.py").write_text(INTERFERING)
        self.process: subprocess.Popen | None = None
        self.family: list[psutil.Process] = []

    def order(self, name: str, given: bool = True) -> None:
        path = self.directory / name
        path.touch() if given else path.unlink()

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.output = self.directory / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lit_ppo", *command(*ADDED, *arguments)],
                cwd=self.directory,
                env=clean_environment(PYTHONPATH=f"{REPOSITORY}:{self.directory}", **(environment or {})),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], object], seconds: float = LIMIT) -> None:
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.05)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def arrived(self) -> int:
        """Folds that are in their third iteration, and wait there."""
        return len(list(self.directory.glob("arrived_*")))

    def at_work(self) -> list[psutil.Process]:
        """The workers that are training."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if "Worker.train" in " ".join(process.cmdline())]

    def end(self) -> tuple[int, str]:
        assert self.process is not None
        return self.process.wait(timeout=LIMIT), self.output.read_text()

    def left_over(self, seconds: float = LIMIT) -> list[str]:
        """Processes of the run that outlive it for so long."""
        _, alive = psutil.wait_procs(self.family, timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive]

    def statuses(self) -> list[str]:
        return [fold["status"] for fold in json.loads((self.folder / "folds.json").read_text())["folds"]]


@pytest.fixture
def walk(tmp_path) -> Iterator[Walk]:
    walk = Walk(tmp_path)
    yield walk
    if walk.process is not None and walk.process.poll() is None:
        walk.process.kill()


def test_a_worker_killed_in_a_fold_costs_that_fold_again_and_no_byte(walk, whole):
    walk.order("wait")
    walk.start("--workers", "2")
    walk.until(lambda: walk.arrived() == 2)
    walk.at_work()[0].kill()
    walk.order("wait", False)
    code, output = walk.end()
    assert code == 0, output
    assert "it is done again" in output
    assert_same_run(whole, walk.folder)
    assert walk.left_over() == []


def test_a_driver_killed_leaves_nobody_and_resumes_with_another_number_of_workers(walk, whole):
    walk.order("wait")
    walk.start("--workers", "2")
    walk.until(lambda: walk.arrived() == 2)
    walk.process.kill()
    walk.end()
    assert walk.left_over() == []
    walk.order("wait", False)
    walk.start("--workers", "1", "--resume")
    code, output = walk.end()
    assert code == 0, output
    assert_same_run(whole, walk.folder)


def test_a_fold_that_raises_ends_the_run_with_its_error_and_the_rest_is_kept(walk, whole):
    walk.order("raise")
    walk.start("--workers", "2")
    code, output = walk.end()
    assert code == 1, output
    assert f"lit-ppo walk-forward: broken on purpose in {walk.folder / 'fold_001'}" in output
    assert "Traceback" not in output
    assert walk.statuses()[:2] == ["done", "running"]
    walk.order("raise", False)
    walk.start("--workers", "2", "--resume")
    code, output = walk.end()
    assert code == 0, output
    assert_same_run(whole, walk.folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_what_workers_have_ends_them_and_the_resume_equals_uninterrupted(walk, whole, number, code):
    walk.order("wait")
    walk.start("--workers", "2")
    walk.until(lambda: walk.arrived() == 2)
    if number == signal.SIGINT:
        os.killpg(walk.process.pid, number)  # as a terminal does
    else:
        walk.process.send_signal(number)
    ended, output = walk.end()
    assert ended == code, output
    assert "everything is saved; --resume goes on from here" in output
    assert "Traceback" not in output
    assert walk.left_over() == []
    assert len(list(walk.folder.glob("fold_*/checkpoint-*.ckpt"))) >= 2  # they brought theirs
    walk.order("wait", False)
    walk.start("--resume")  # in process: what workers wrote, it can read
    ended, output = walk.end()
    assert ended == 0, output
    assert_same_run(whole, walk.folder)


class Cluster:
    """Ray nodes on loopback, each a process of its own, behind a token."""

    address = "127.0.0.1:26379"

    def __init__(self, directory: Path) -> None:
        self.directory, self.nodes = directory, []
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = clean_environment(PYTHONPATH=f"{REPOSITORY}:{directory}", **self.token)

    def process(self, arguments: list[str], until: str, seconds: float = LIMIT) -> subprocess.Popen:
        """Start one with the cluster's environment; returns once its output has `until`."""
        log = self.directory / f"process{len(self.nodes)}.txt"
        with log.open("w") as output:
            self.nodes.append(
                subprocess.Popen(
                    arguments,
                    env=self.environment,
                    cwd=self.directory,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + seconds
        while until not in log.read_text():
            if self.nodes[-1].poll() is not None:  # Ray gives itself 30 s to start
                assert "timed out during startup" in log.read_text(), log.read_text()
                return self.process(arguments, until, deadline - time.monotonic())
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return self.nodes[-1]

    def node(self, *arguments: str) -> subprocess.Popen:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
        return self.process([*ray, "--disable-usage-stats", "--block", *arguments], "Ray runtime started")

    def head(self, *arguments: str) -> subprocess.Popen:
        return self.node("--head", "--port=26379", "--include-dashboard=false", *arguments)

    def end(self, process: subprocess.Popen) -> None:
        if psutil.pid_exists(process.pid):
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for process in reversed(cluster.nodes):
        cluster.end(process)


def test_a_node_that_is_gone_costs_its_folds_again_and_no_byte(walk, whole, cluster):
    """Two nodes on loopback; the one that the driver is not on loses all its processes."""
    cluster.head()
    other = cluster.node(f"--address={cluster.address}")
    walk.order("wait")
    walk.start("--cluster", cluster.address, environment=cluster.token)
    walk.until(lambda: walk.arrived() == 2)
    cluster.end(other)
    walk.order("wait", False)
    code, output = walk.end()
    assert code == 0, output
    assert "it is done again" in output
    assert_same_run(whole, walk.folder)


# Another user of the cluster, who puts 10 MB after 10 MB and lets go of nothing.
HOARDER = """
import sys, time
import numpy as np
import ray

ray.init(address=sys.argv[1], logging_level="ERROR")
held = []
try:
    while len(held) < int(sys.argv[2]):
        held.append(ray.put(np.random.default_rng(len(held)).random(1_250_000)))
    print("done with", len(held), flush=True)
except ray.exceptions.RayError as error:
    print("done with", len(held), type(error).__name__, flush=True)
time.sleep(3600)
"""


def test_a_full_object_store_spills_and_costs_no_byte(walk, whole, cluster):
    """A store of 80 MB, of which another user holds 200 MB: Ray moves objects to disk."""
    spilled = walk.directory / "spilled"
    cluster.head("--object-store-memory=80000000", f"--object-spilling-directory={spilled}")
    cluster.process([sys.executable, "-c", HOARDER, cluster.address, "20"], "done with 20")
    assert sum(path.stat().st_size for path in spilled.rglob("*") if path.is_file()) > 80e6
    walk.start("--cluster", cluster.address, environment=cluster.token)
    code, output = walk.end()
    assert code == 0, output
    assert_same_run(whole, walk.folder)


def test_a_full_object_store_on_a_full_disk_ends_the_run_with_rays_words_and_it_goes_on(walk, whole, cluster):
    spilled = walk.directory / "spilled"
    spilled.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30M", "tmpfs", str(spilled)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        cluster.head("--object-store-memory=80000000", f"--object-spilling-directory={spilled}")
        hoarder = cluster.process([sys.executable, "-c", HOARDER, cluster.address, "50"], "done with")
        walk.start("--cluster", cluster.address, environment=cluster.token)
        code, output = walk.end()
        assert code == 1, output
        assert "\nlit-ppo walk-forward: Ray failed (" in output  # behind the lines of Ray's own processes
        cluster.end(hoarder)
        walk.start("--cluster", cluster.address, "--resume", environment=cluster.token)
        code, output = walk.end()
        assert code == 0, output
        assert_same_run(whole, walk.folder)
    finally:
        for process in cluster.nodes:
            cluster.end(process)
        subprocess.run(["umount", "--lazy", str(spilled)], check=True)
