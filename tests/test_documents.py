"""The documents do as they say: their Python runs, their command lines are ones that the product takes.

Each document has a folder of its own with bars and a finished run, and its blocks go through Sybil in order. Python is
executed. Of the command lines the light ones are executed; those that train stop where the product's own parser has
taken them, and are run whole, with a short budget, by the slow test. A block that does neither says why in the
document: `<!-- skip: next "the reason" -->`.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonargparse
import pandas as pd
import pytest
import torch
import yaml
from lightning.fabric.cli import _main as fabric
from lightning.pytorch.cli import LightningArgumentParser
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import lit_ppo
from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import COMMANDS, main
from lit_ppo.commands.lightning_cli import LitPPOCLI

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(REPOSITORY) for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
)
LIGHT = ("data", "cache", "report", "compare", "init", "export", "predict --ckpt")
SHORT = ("--model.total_timesteps", "4096")  # below the least budget of every profile, which gives way
SEEING = ("--model.screen_features", "false")  # on bars this short nothing may pass
ONE_DEVICE = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto")  # 2: integration
BUDGET = {  # what makes a command of a document short enough to be run by a test
    "walk-forward": (*SHORT, "--data.fold_limit", "2"),
    **dict.fromkeys(("fit", "validate", "test", "predict"), (*SHORT, *ONE_DEVICE)),
    "oracle": ("--train_bars", "3000", "--test_bars", "5000", "--timesteps", "4096", "--seeds", "1"),
    "audit": ("--points", "3", "--timesteps", "4096", "--null_seeds", "0"),
    "benchmark": (  # a row has the budget of what it is compared with; passes bound it
        *("--model.max_passes", "2", "--data.train_size", "1000", "--data.fold_limit", "1", "--seeds", "1"),
        *("--original_timesteps", "0", *SEEING),
    ),
    "doctor": ("--timesteps", "0"),
    "power": ("--quick", "--kinds", "[drift]", "--sharpes", "[10]", "--overwrite"),
    "search": (
        *("--model.total_timesteps", "4096", "--trials", "1", "--data.train_size", "400"),
        *("--data.validation_size", "200", "--data.test_size", "400", "--data.step_size", "400"),
    ),
    "pretrain": (
        *("--model.total_timesteps", "512", "--model.num_envs", "8", "--model.num_steps", "16", "--overwrite"),
        *("--data.ring", "4", "--data.fresh", "1", "--data.prior.bars", "[400, 500]"),
    ),
    "train_ppo.py": ("--total_timesteps", "4096", "--iterations", "1"),
    "train_ppo_optimized.py": ("--total_timesteps", "4096", "--iterations", "1"),
    "fabric_trainer.py": ("--devices", "1", "--strategy", "auto", "--accelerator", "cpu", *SHORT),
}

FEW_BARS = ("--data.train_size", "1500", "--data.validation_size", "300", "--data.test_size", "300")
BEGINS = (
    "walk-forward",
    "search",
    "fit",
    "train_ppo.py",
    "train_ppo_optimized.py",
    "fabric_trainer.py",
)  # over a run that is there


class Taken(BaseException):
    """A command line that the product's parser has taken; what would come next is the work."""


@contextmanager
def only_parsed() -> Iterator[None]:
    """Let a command go as far as its parser, and LightningCLI as far as its datamodule."""

    def then_stop(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            result = method(self, *args, **options)
            if isinstance(self, LightningArgumentParser):
                return result
            raise Taken

        return wrapped

    with (
        patch.object(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args)),
        patch.object(jsonargparse.ArgumentParser, "parse_args", then_stop(jsonargparse.ArgumentParser.parse_args)),
        patch.object(LitPPOCLI, "instantiate_classes", then_stop(LitPPOCLI.instantiate_classes)),
    ):
        yield


def run_script(path: str, arguments: list[str]) -> int:
    with patch.object(sys, "argv", [path, *arguments]), pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / path), run_name="__main__")
    return end.value.code or 0


def command(words: list[str]) -> tuple[str, Callable[[list[str]], int], list[str]]:
    """A command line's name, the function behind it, and its arguments."""
    if words[0] == "lit-ppo" and words[1] == "run":
        script = fabric.commands["run"].make_context("run", words[2:]).params
        return command(["python", str(script["script"]), *script["script_args"]])
    if words[0] == "lit-ppo":
        return words[1], lambda rest: main([words[1], *rest]), words[2:]
    if words[0] == "python":
        return Path(words[1]).name, lambda rest: run_script(words[1], rest), words[2:]
    if words[0] == "make":  # what it would do is in this file, in pyproject.toml or in test_configs
        dry = ["make", "-C", str(REPOSITORY), "-n"]
        return (
            "make",
            lambda rest: subprocess.run([*dry, *rest], capture_output=True, check=False).returncode,
            words[1:],
        )
    raise AssertionError(f"a document has a command that this test cannot check: {shlex.join(words)}")


class Shell:
    """Evaluates the `bash` blocks of a document, line by line.

    Args:
        trains: run what trains too, with a short budget, in place of parsing it.
    """

    def __init__(self, trains: bool) -> None:
        self.trains = trains

    def __call__(self, example: Example) -> None:
        for line in example.parsed.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                assert self.run(words) == 0, line

    def run(self, words: list[str]) -> int:
        name, execute, arguments = command(words)
        if name == "make" or shlex.join(words[1:]).startswith(LIGHT):
            return execute(arguments)
        if self.trains:
            begins = name in BEGINS and {"--resume", "--ckpt_path", "--from"}.isdisjoint(arguments)
            windows = FEW_BARS if "fine_tune" in arguments else ()  # windows of years
            return execute([*arguments, *BUDGET[name], *windows, *(["--overwrite"] if begins else [])])
        with only_parsed():
            try:
                return execute(arguments)
            except Taken:
                return 0


def parsed_yaml(example: Example) -> None:
    assert yaml.safe_load(example.parsed)


def parse(document: Path, trains: bool) -> Document:
    parsers = [PythonCodeBlockParser(), CodeBlockParser("bash", Shell(trains)), CodeBlockParser("yaml", parsed_yaml)]
    return Sybil([*parsers, SkipParser()]).parse(REPOSITORY / document)


def evaluate(document: Document) -> None:
    for example in document:
        try:
            example.evaluate()
        except unittest.SkipTest as skip:
            print(f"{document.path}:{example.line} is left out: {skip}")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """What the documents speak of: bars.csv, new_bars.csv, bars/ of two instruments, configs/, runs in results/."""
    home = tmp_path_factory.mktemp("documents")
    market = SyntheticMarket(num_bars=3200, seed=2)
    market.write(home / "bars.csv")
    SyntheticMarket(num_bars=600, seed=3).write(home / "new_bars.csv")
    (home / "bars").mkdir()
    days = pd.date_range("2010-01-01", periods=3200, freq="D")
    for seed, name in enumerate(("gold", "oil")):
        bars = SyntheticMarket(num_bars=3200, seed=seed).bars().frame
        bars.assign(time=days).to_csv(home / "bars" / f"{name}.csv", index=False)
    small = {"total_timesteps": 1024, "num_envs": 8, "num_steps": 32, "burn_in": 8, "num_networks": 1}
    sizes = {"train_size": 400, "validation_size": 100, "test_size": 100, "step_size": 100, "fold_limit": 2}
    lit_ppo.walk_forward(home / "bars.csv", model=small, **sizes, cache=False, seed=42, results=home / "results")
    for copy in ("results/43", "results/mine/42"):
        shutil.copytree(home / "results/42", home / copy)
    return home


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A copy of the world to work in; the user's cache is out of reach."""
    shutil.copytree(world, tmp_path / "here")
    for name in ("configs", "docs", "lit_ppo", "datamodules", "callbacks"):  # as a checkout: workers import from here
        (tmp_path / "here" / name).symlink_to(REPOSITORY / name)
    for name in ("masked_task.py", "masked_task.yaml"):
        shutil.copyfile(REPOSITORY / "docs/examples" / name, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "here"


def test_the_trainer_on_one_page_finds_the_hidden_regime(capsys):
    main_of_page = runpy.run_path(str(REPOSITORY / "docs/examples/ppo_in_one_page.py"))["main"]
    threads = torch.get_num_threads()
    try:
        assert main_of_page() > 0.9
    finally:
        torch.set_num_threads(threads)
    assert "% (+- " in capsys.readouterr().out.splitlines()[-1]


WITH_BLOCKS = [path for path in DOCUMENTS if any(True for _ in parse(path, trains=False))]

WITH_COMMANDS = [path for path in WITH_BLOCKS if "```bash" in (REPOSITORY / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("document", WITH_BLOCKS, ids=str)
def test_the_python_of_a_document_runs_and_its_commands_are_taken(document, here):
    evaluate(parse(document, trains=False))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", WITH_COMMANDS, ids=str)
def test_the_commands_of_a_document_run_to_their_end(document, here):
    evaluate(parse(document, trains=True))


@pytest.mark.parametrize(
    "line",
    [
        "lit-ppo walk-forward --config walk_forward --data.path bars.csv --data.train_sise 3",
        "lit-ppo walk-forward --config configs/absent.yaml",
        "lit-ppo oracle --timestep 4",
        "lit-ppo report results/41",
        "lit-ppo run lit_ppo/fabric_trainer.py --devices 2 -- --confg configs/fabric.yaml",
        "python train_ppo.py --data_path bars.csv --iteration 5",
        "make trian",
    ],
)
def test_a_mistake_in_a_command_line_is_found(line, here):
    assert Shell(trains=False).run(shlex.split(line)) == 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_no_block_of_a_document_is_out_of_the_tests_sight(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    fences = re.findall(r"^```(.*)\n(?:.*\n)*?```$", text, re.MULTILINE)
    assert set(fences) <= {"python", "bash", "yaml", "text"}
    outside = re.sub(r"^```.*\n(?:.*\n)*?```$", "", text, flags=re.MULTILINE)
    assert re.findall(r"^ {4,}(?:lit-ppo|python|make|pip|import|from) .*", outside, re.MULTILINE) == []
    assert set(re.findall(r"`lit-ppo ([a-z][a-z-]+)", text)) <= set(COMMANDS)


def test_the_readme_is_one_screen():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 65


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_the_files_a_document_links_to_exist(document):
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (REPOSITORY / document).parent.joinpath(link).exists()] == []
