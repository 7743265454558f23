"""Nothing that is read can run code: no pickle is ever loaded, and no file is fetched."""

from __future__ import annotations

import ast
import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_ppo.cli import main
from lit_ppo.scoring.fills import FILE_NAME, FillTable, read_fills
from lit_ppo.store.checkpoint_io import AtomicCheckpointIO
from lit_ppo.store.checkpoints import CheckpointError, load_checkpoint

REPOSITORY = Path(__file__).parents[2]
PRODUCT = [path for name in ("lit_ppo", "datamodules", "callbacks") for path in (REPOSITORY / name).rglob("*.py")]
PRODUCT += list(REPOSITORY.glob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "diskcache", "shelve", "marshal", "cloudpickle"}
SIZES = ["--data.train_size", "300", "--data.validation_size", "100", "--data.test_size", "100"]
SIZES += [
    "--data.step_size",
    "100",
    "--data.warmup_bars",
    "20",
    "--data.cache",
    "false",
    "--trainer.accelerator",
    "cpu",
]
MARKET = ["--data.synthetic.kind", "regime", "--data.synthetic.num_bars", "760", *SIZES]


class Payload:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Dotted name and keywords of every call in a file."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            found.append((ast.unparse(node.func), keywords))
    return found


def test_every_torch_load_says_weights_only():
    loads = [(path, words) for path in PRODUCT for name, words in calls(path) if name.endswith("torch.load")]
    assert loads
    for path, words in loads:
        assert ast.unparse(words["weights_only"]) == "True", path


def test_no_unsafe_loader_and_no_shell_is_used():
    assert len(PRODUCT) > 50
    for path in PRODUCT:
        for name, words in calls(path):
            last = name.rpartition(".")[2]
            assert last not in {"load_from_checkpoint", "unsafe_load", "full_load", "literal_exec"}, path
            assert name not in {"eval", "exec", "os.system", "os.popen", "yaml.load", "pd.read_pickle"}, (path, name)
            assert "shell" not in words, path
            if name in ("np.load", "numpy.load"):
                assert ast.unparse(words["allow_pickle"]) == "False", path


def test_no_module_that_unpickles_is_imported():
    for path in PRODUCT:
        for node in nodes(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not FORBIDDEN_MODULES & {name.partition(".")[0] for name in names}, path


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_a_checkpoint_that_runs_code_is_refused_by_every_command(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload(tmp_path / "marker")}, tmp_path / "evil.ckpt")
    assert main([command, *MARKET, "--ckpt_path", "evil.ckpt"]) in (1, 2)
    assert not (tmp_path / "marker").exists()
    message = capsys.readouterr().err
    assert "evil.ckpt" in message
    assert "Traceback" not in message


def test_the_payload_of_these_tests_works(tmp_path):
    torch.save(Payload(tmp_path / "marker"), tmp_path / "evil.ckpt")
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_checkpoint_that_names_a_class_in_its_settings_does_not_import_it(tmp_path):
    """Lightning once imported and called the string under `_instantiator` (pytorch-lightning #21822)."""
    state = {"hyper_parameters": {"_instantiator": "os.system", "seed": 0}, "state_dict": {}}
    torch.save(state, tmp_path / "named.ckpt")
    assert load_checkpoint(tmp_path / "named.ckpt")["hyper_parameters"]["_instantiator"] == "os.system"  # text, no more
    torch.save({"x": Payload(tmp_path / "marker")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="weights_only=True only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "named.ckpt", weights_only=False)


@pytest.mark.parametrize("url", ["http://localhost:1/x.ckpt", "s3://bucket/x.ckpt", "file:///x.ckpt"])
def test_a_url_is_no_checkpoint(tmp_path, monkeypatch, capsys, url):
    monkeypatch.chdir(tmp_path)
    assert main(["test", *MARKET, "--ckpt_path", url]) == 2
    assert "local files only" in capsys.readouterr().err


def test_a_pickled_array_in_a_run_folder_is_not_loaded(tmp_path):
    (tmp_path / "fold_000").mkdir()
    columns = {field.name: np.zeros(1) for field in dataclasses.fields(FillTable)}
    columns["fill_price"] = np.array([Payload(tmp_path / "marker")], dtype=object)
    np.savez(tmp_path / "fold_000" / FILE_NAME, **columns)
    with pytest.raises(ValueError, match="no array file, or a pickle"):
        read_fills(tmp_path, [0])
    assert not (tmp_path / "marker").exists()
