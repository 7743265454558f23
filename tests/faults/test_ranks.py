"""C16: two processes train one policy, and one of them dies or hangs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.harness import CONFIG, new_process

TIMEOUT = 20  # seconds that a rank waits for another
DDP = ("--trainer.devices=2", "--trainer.strategy.class_path=lightning.pytorch.strategies.DDPStrategy")
DDP += (
    f"--trainer.strategy.init_args.timeout=0:00:{TIMEOUT}",
    "--trainer.strategy.init_args.process_group_backend=gloo",
)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the ranks")
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_rank_dies_or_hangs_every_process_ends_within_the_timeout(tmp_path, fault, victim, record_property):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("total_timesteps: 256", "total_timesteps: 10000000"))
    first = new_process(tmp_path, "fit", "--config", "config.yaml", *DDP)
    ranks = [first.pid]
    try:
        deadline = time.monotonic() + 400
        while not list((tmp_path / "results" / "fit").glob("checkpoint-*.ckpt")):
            if first.poll() is not None:
                pytest.fail(f"ended with {first.returncode}: {first.communicate()[0]}")
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ranks += children(first.pid)
        assert len(ranks) == 2
        os.kill(ranks[victim], fault)
        started = time.monotonic()
        survivor = ranks[1 - victim]
        while alive(survivor):
            assert time.monotonic() - started < TIMEOUT + 100, "the other rank still waits"
            time.sleep(0.1)
        if victim == 1:
            assert first.wait(timeout=60) not in (0, None)
            assert not alive(ranks[1]), "the hanging rank is left behind"
        record_property("ranks lost", 1)
    finally:
        for pid in ranks:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        first.wait()
