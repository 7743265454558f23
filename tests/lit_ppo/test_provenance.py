"""What a run says about its origin: complete enough to repeat it, and nothing private."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lit_ppo.store import provenance

ROOT = Path(__file__).parents[2]


def git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_are_those_that_are_installed():
    import numpy as np

    versions = provenance.package_versions()
    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == np.__version__
    assert {"lit-ppo", "torch", "lightning", "pandas"} <= set(versions)


def test_a_package_that_is_absent_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package-of-lit-ppo",))
    assert provenance.package_versions()["no-such-package-of-lit-ppo"] is None


def test_the_commit_and_whether_the_tree_differs_from_it(tmp_path):
    try:
        git(tmp_path, "init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert provenance.code_state(tmp_path) == {"commit": None, "dirty": None}  # no commit yet
    (tmp_path / "a.py").write_text("1\n")
    measured = tmp_path / "benchmarks" / "results" / "speed.json"
    measured.parent.mkdir(parents=True)
    measured.write_text("1\n")
    git(tmp_path, "add", "a.py", "benchmarks")
    git(tmp_path, "commit", "-qm", "a")
    clean = {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert provenance.code_state(tmp_path) == clean
    (tmp_path / "notes.txt").write_text("untracked\n")
    measured.write_text("2\n")
    assert provenance.code_state(tmp_path) == clean, "a measured result is no code"
    (tmp_path / "a.py").write_text("2\n")
    assert provenance.code_state(tmp_path) == clean | {"dirty": True}


def test_outside_a_checkout_or_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.code_state(tmp_path) == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.code_state() == {"commit": None, "dirty": None}


def test_the_machine_is_described_without_host_user_or_directory():
    machine = provenance.machine()
    assert machine["cores"] >= 1
    assert machine["ram_bytes"] is None or machine["ram_bytes"] > 2**20
    values = set(map(str, (machine | provenance.package_versions() | provenance.code_state()).values()))
    assert not values & {platform.node(), getpass.getuser(), str(Path.home()), str(ROOT), os.getcwd()}


def test_provenance_needs_no_torch():
    code = (
        "import sys, lit_ppo.store.provenance as p; p.machine(); p.package_versions(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
