"""Every command of the README runs, with a short budget, in an empty directory."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo import fabric_trainer
from lit_ppo.cli import main

REPOSITORY = Path(__file__).parents[1]
TRAINING = ("walk-forward", "fit", "validate", "test", "predict")
SHORT = ["--model.total_timesteps", "4096", "--data.cache", "false"]


def commands() -> list[str]:
    """Lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """One directory for all commands: the later ones use what the earlier ones wrote."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "configs").symlink_to(REPOSITORY / "configs")
    (directory / "lit_ppo").symlink_to(REPOSITORY / "lit_ppo")
    SyntheticMarket(num_bars=4200, seed=2).write(directory / "bars.csv")
    return directory


def run(words: list[str]) -> int:
    if words[0] == "make":
        # What make would do; the commands it runs are in this file or in test_configs.
        return subprocess.run(
            ["make", "-C", str(REPOSITORY), "-n", *words[1:]], capture_output=True, check=False
        ).returncode
    if words[:2] == ["python", "lit_ppo/fabric_trainer.py"]:
        one_process = ["--devices", "1", "--strategy", "auto", "--accelerator", "cpu"]  # two: tests/integration
        return fabric_trainer.main(WalkForwardDataModule, [*words[2:], *one_process, *SHORT])
    if words[0] == "python" and words[1].startswith("train_ppo"):
        script = [sys.executable, str(REPOSITORY / words[1]), *words[2:], "--total_timesteps", "4096"]
        return subprocess.run([*script, "--min_timesteps", "4096"], capture_output=True, check=False).returncode
    assert words[0] == "lit-ppo", f"the README has a command that this test cannot run: {words}"
    arguments = words[1:]
    if arguments[0] == "oracle":
        arguments += ["--train_bars", "3000", "--test_bars", "5000", "--timesteps", "4096", "--seeds", "1"]
    if arguments[0] == "audit":
        arguments += ["--points", "3", "--timesteps", "4096", "--null_seeds", "0"]
    if arguments[0] in TRAINING:
        arguments += SHORT
    if arguments[0] == "walk-forward":
        arguments += ["--data.fold_limit", "2"]
    return main(arguments)


@pytest.mark.xdist_group("readme")
def test_every_command_of_the_readme_runs(here, monkeypatch):
    monkeypatch.chdir(here)
    lines = commands()
    assert len(lines) >= 10
    for line in lines:
        if line.startswith(("git clone", "cd ")):
            continue
        assert run(shlex.split(line)) == 0, line


def test_the_readme_names_no_command_that_does_not_exist():
    from lit_ppo.cli import COMMANDS

    named = set(re.findall(r"`lit-ppo ([a-z-]+)", (REPOSITORY / "README.md").read_text(encoding="utf-8")))
    assert named <= set(COMMANDS)


def test_the_files_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
