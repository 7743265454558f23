"""What is installed is pinned, and known-bad versions cannot be."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PINNED = {
    name.lower().replace("_", "-"): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ALLOWED = {Requirement(text).name.lower(): Requirement(text) for text in PROJECT["dependencies"]}

# Package, versions that must not be installable, and why.
KNOWN_BAD = [
    ("lightning", ("2.6.2", "2.6.3"), "malicious uploads, GHSA-w37p-236h-pfx3"),
    ("lightning", ("2.6.5",), "imports a name from the checkpoint, pytorch-lightning #21822"),
    ("torch", ("2.5.1",), "code execution despite weights_only, CVE-2025-32434"),
    ("torch", ("2.9.1",), "memory corruption in the weights_only unpickler, CVE-2026-24747"),
    ("jinja2", ("3.1.5",), "sandbox breakout, CVE-2025-27516"),
]


def test_every_line_of_the_constraints_is_an_exact_version():
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert len(PINNED) == len(lines)


@pytest.mark.parametrize(("name", "versions", "reason"), KNOWN_BAD)
def test_known_bad_versions_are_neither_pinned_nor_allowed(name, versions, reason):
    for version in versions:
        assert PINNED[name] != Version(version), reason
        assert not ALLOWED[name].specifier.contains(version), reason


def test_every_dependency_is_pinned_to_a_version_it_allows():
    for name, requirement in ALLOWED.items():
        pinned = PINNED[name.replace("_", "-")]
        assert requirement.specifier.contains(str(pinned)), f"{name} {pinned}"


def test_the_class_path_rule_is_in_every_allowed_jsonargparse():
    """`import_path_allowlist` is what keeps a configuration from importing; an older version has no such rule."""
    assert not ALLOWED["jsonargparse"].specifier.contains("4.52.0")


def test_libraries_that_unpickle_files_are_not_used():
    assert not {"diskcache", "joblib", "dill"} & set(ALLOWED)
    assert not {"diskcache", "joblib", "dill"} & set(PINNED)
