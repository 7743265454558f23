"""Who imports whom: the directions of docs/architecture.md, and what must start without torch."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("lit_ppo", "datamodules", "callbacks")
SHARED = {
    "market",
    "store.atomic",
    "store.files",
    "store.checkpoints",
    "store.checkpoint_io",
    "ppo.schedules",
    "timing",
    "seeding",
    "argument_types",
    "trainee",
    "__version__",
}
# The two command lines and the Python front door name the datamodule; nothing else of lit_ppo may.
COMMAND_LINES = {"lit_ppo/__init__.py", "lit_ppo/api.py", "lit_ppo/cli.py", "lit_ppo/fabric_trainer.py"}
# The floors of lit_ppo, top first: a file imports from its own folder and from floors below it.
FLOORS = (
    ("compat", "__main__"),
    ("api",),
    ("cli",),
    ("commands",),
    ("report",),
    ("lab",),
    ("signals",),
    ("folds",),
    ("module", "fabric_trainer"),
    ("trainee",),
    ("recipe", "tensorboard", "interrupts", "precision", "class_paths", "command_line_only"),
    ("ppo",),
    ("scoring", "oracles"),
    ("store",),
    ("nets",),
    ("envs",),
    ("market",),
    ("seeding", "timing", "argument_types", "given", "words"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(package: str) -> list[Path]:
    found = sorted((REPOSITORY / package).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("package", ["datamodules", "callbacks"])
def test_datamodules_and_callbacks_import_only_the_small_shared_modules(package):
    other = {"datamodules": "callbacks", "callbacks": "datamodules"}[package]
    for path in files(package):
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] != other, f"{path.name} imports {name}"
            if parts[0] == "lit_ppo":
                assert {parts[1], ".".join(parts[1:3])} & SHARED, f"{path.name} imports {name}"


def test_lit_ppo_imports_neither_but_in_its_command_lines():
    breaking = {
        path.relative_to(REPOSITORY).as_posix()
        for path in files("lit_ppo")
        if any(name.split(".")[0] in ("datamodules", "callbacks") for name in imports(path))
    }
    assert breaking == COMMAND_LINES


def test_callbacks_do_not_know_each_other():
    for path in files("callbacks"):
        if path.name != "__init__.py":
            assert not any(name.startswith("callbacks") for name in imports(path)), path.name


def test_every_import_within_lit_ppo_goes_down_a_floor_or_stays_in_its_folder():
    found = set()
    for path in files("lit_ppo"):
        own = path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "lit_ppo" or own == "lit_ppo.__init__" or parts[1] in ("__version__", own.split(".")[1]):
                continue
            if FLOOR[parts[1]] < FLOOR[own.split(".")[1]]:
                found.add((own, ".".join(parts[:3])))
    assert found == set()


def test_no_module_of_lit_ppo_imports_itself_in_a_circle():
    graph = {
        path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", "."): imports(path)
        for path in files("lit_ppo")
    }
    edges = {
        name: {
            other for other in graph if other != name and any(i == other or i.startswith(f"{other}.") for i in found)
        }
        - {"lit_ppo.__init__"}
        for name, found in graph.items()
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in edges[name]:
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


LIGHT = ("bars.read", "bars.data_card", "cache")
LIGHT_OF_LIT_PPO = ("store.atomic", "store.provenance", "store.results", "store.run_lock", "scoring.performance", "cli")
LIGHT_OF_LIT_PPO += ("report.build",)


def test_light_modules_start_without_torch_and_lightning():
    names = [f"datamodules.{name}" for name in LIGHT] + [f"lit_ppo.{name}" for name in LIGHT_OF_LIT_PPO]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += "print([name for name in ('torch', 'lightning') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_deciding_on_new_bars_starts_without_what_is_slow_to_load():
    names = ["datamodules.features.feed", "lit_ppo.commands.signals"]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += "from lit_ppo.nets.policy import MarketPolicy\nMarketPolicy(3)\n"
    code += "slow = ('lightning', 'scipy.signal', 'sympy', 'gymnasium', 'jsonargparse')\n"
    code += "print([name for name in slow if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_installed_copy_holds_every_file_the_program_reads(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools, which builds the wheel, is not installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for package in (*PACKAGES, "configs"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    ours = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/**/*") if path.is_file()}
    code = "from setuptools.build_meta import build_wheel; build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("wheel/*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == ours
