"""One run per folder; a dead owner's lock is taken over, a living one's never."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lit_ppo.store.run_lock import LOCK_NAME, RunLock, RunLockedError

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys; from lit_ppo.store.run_lock import RunLock; lock = RunLock(sys.argv[1]); lock.acquire();"
    "print('held', flush=True); sys.stdin.read(); lock.release()"
)
# Every process races for the lock; the winner notes its entry and exit, which must not interleave.
RACE = """
import sys, time
from lit_ppo.store.run_lock import RunLock, RunLockedError
directory, rounds = sys.argv[1], int(sys.argv[2])
won = 0
while won < rounds:
    try:
        with RunLock(directory):
            with open(directory + "/log", "a") as log:
                log.write("in\\n"); log.flush(); time.sleep(0.001); log.write("out\\n")
            won += 1
    except RunLockedError:
        time.sleep(0.001)
"""


def start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def leave_lock(directory, **changes):
    """The file of an owner that is gone, or elsewhere."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2001-01-01T00:00:00+00:00"}
    (directory / LOCK_NAME).write_text(json.dumps(owner | changes))


def test_a_second_run_is_refused_with_the_owners_details(tmp_path):
    owner = start(HOLD, tmp_path)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError) as refusal:
        RunLock(tmp_path).acquire()
    message = str(refusal.value)
    since = json.loads((tmp_path / LOCK_NAME).read_text())["since"]
    for detail in (str(owner.pid), socket.gethostname(), since, str(tmp_path / LOCK_NAME)):
        assert detail in message
    owner.communicate("")
    assert owner.returncode == 0
    with RunLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    owner = start(HOLD, tmp_path)
    assert owner.stdout.readline() == "held\n"
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert (tmp_path / LOCK_NAME).exists()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see a zombie")
def test_a_killed_run_that_its_parent_has_not_looked_at_is_gone(tmp_path):
    owner = start(HOLD, tmp_path)
    assert owner.stdout.readline() == "held\n"
    owner.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and left as a zombie
    with RunLock(tmp_path):
        owner.communicate()


def test_the_lock_is_released_when_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_is_used_again_does_not_keep_the_lock(tmp_path):
    leave_lock(tmp_path)  # names this very process, which lives and holds nothing
    with RunLock(tmp_path) as lock:
        assert json.loads((tmp_path / LOCK_NAME).read_text())["since"] > "2020"
        with pytest.raises(RunLockedError, match="in use by process"):
            RunLock(tmp_path).acquire()
        assert lock.path.exists()


def test_an_owner_on_another_host_is_believed(tmp_path):
    leave_lock(tmp_path, host="elsewhere", pid=2**22 + 1)
    for _ in range(2):
        with pytest.raises(RunLockedError, match="on elsewhere"):
            RunLock(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_names_nobody_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(RunLockedError, match="symbolic link"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "victim").read_text() == "precious"


def test_two_locks_of_one_process_exclude_each_other(tmp_path):
    with RunLock(tmp_path), pytest.raises(RunLockedError, match=str(os.getpid())):
        RunLock(tmp_path).acquire()
    lock = RunLock(tmp_path)
    with lock, pytest.raises(RuntimeError, match="release it first"):
        lock.acquire()


def test_processes_that_race_for_a_stale_lock_enter_one_at_a_time(tmp_path):
    leave_lock(tmp_path)
    racers = [start(RACE, tmp_path, 10) for _ in range(4)]
    for racer in racers:
        racer.communicate(timeout=60)
        assert racer.returncode == 0
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 40
