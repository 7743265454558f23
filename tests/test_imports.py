"""Who imports whom: the directions of docs/architecture.md, and what must start without torch."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
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
    "words",
    "trainee",
}
# The two command lines and the Python front door name the datamodule; nothing else of lit_ppo may.
COMMAND_LINES = {"lit_ppo/__init__.py", "lit_ppo/api.py", "lit_ppo/cli.py", "lit_ppo/fabric_trainer.py"}
# One order of all folders, top first: a file imports from its own room and from rooms on floors below, never from one
# above nor from a neighbour on the same floor. A room is a folder with files, or a file that lies flat in lit_ppo.
FLOORS = (
    ("lit_ppo.__main__", "lit_ppo.compat"),
    ("lit_ppo.cli", "lit_ppo.__init__"),
    ("lit_ppo.api",),
    ("lit_ppo.commands",),
    ("lit_ppo.report",),
    ("lit_ppo.lab",),
    ("lit_ppo.folds", "lit_ppo.signals"),
    ("lit_ppo.module", "lit_ppo.fabric_trainer", "callbacks"),
    ("lit_ppo.trainee",),
    ("lit_ppo.recipe", "lit_ppo.tensorboard"),
    ("lit_ppo.ppo",),
    ("lit_ppo.scoring",),
    ("lit_ppo.oracles", "lit_ppo.nets", "datamodules"),
    ("datamodules.features",),
    ("datamodules.bars",),
    ("lit_ppo.store", "lit_ppo.envs"),
    ("lit_ppo.market",),
    ("lit_ppo.interrupts", "lit_ppo.precision", "lit_ppo.class_paths", "lit_ppo.command_line_only"),
    (
        "lit_ppo.seeding",
        "lit_ppo.timing",
        "lit_ppo.argument_types",
        "lit_ppo.given",
        "lit_ppo.words",
        "lit_ppo.version",
    ),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ONE_ROOM = ("lit_ppo.nets",)  # with its kernels: two implementations of one layer, which choose between each other


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


def module_files() -> dict[str, Path]:
    """Every module of the three packages by its dotted name; a package's own file is NAME.__init__."""
    paths = [path for package in PACKAGES for path in files(package)]
    return {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in paths}


def arrows() -> set[tuple[str, str]]:
    """(importer, imported): every import of one of our modules by another, inside functions and for types too."""
    modules = module_files()

    def module_of(name: str) -> str | None:
        while name and name not in modules and f"{name}.__init__" not in modules:
            name = name.rpartition(".")[0]
        return name if name in modules else f"{name}.__init__" if name else None

    found = {(own, module_of(name)) for own, path in modules.items() for name in imports(path)}
    return {(own, other) for own, other in found if other is not None and other != own}


def room(module: str) -> str:
    package, *rest = module.split(".")
    if package == "lit_ppo":
        folder = module.rpartition(".")[0] if len(rest) > 1 else module
        return next((one for one in ONE_ROOM if folder.startswith(one)), folder)
    return module.rpartition(".")[0]


def test_the_order_of_floors_names_every_room():
    rooms = {room(module) for module in module_files()} - {"lit_ppo.weights"}  # a folder of data
    assert rooms == FLOOR.keys()


def test_every_import_goes_down_a_floor_or_stays_in_its_room():
    up = {
        (own, other) for own, other in arrows() if room(own) != room(other) and FLOOR[room(other)] <= FLOOR[room(own)]
    }
    assert up == set()


def test_no_module_imports_itself_in_a_circle():
    below: dict[str, set[str]] = {module: set() for module in module_files()}
    for own, other in arrows():
        below[own].add(other)
    TopologicalSorter(below).prepare()  # CycleError names the circle


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
