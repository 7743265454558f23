"""A mistake in a configuration: exit code 2, what was found and what to do; no traceback, and nothing written."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.command_line_only import check_asked_by_flag, check_environment
from lit_ppo.commands.config_check import check_files
from lit_ppo.fabric_trainer import main as fabric_main
from lit_ppo.store.files import check_expansion

REPOSITORY = Path(__file__).parents[2]
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
MARKET += ["--model.num_envs", "4", "--model.num_steps", "16", "--model.total_timesteps", "64"]

MISTAKES = {
    "unknown flag": (["--model.hiden_size", "3"], "did you mean model.hidden_size?"),
    "unknown nested flag": (["--data.costs.spred", "1"], "did you mean data.costs.spread?"),
    "unknown feature": (["--data.features", "[{name: rsii}]"], "did you mean rsi?"),
    "unknown feature parameter": (["--data.features", "[{name: rsi, length: 3}]"], "it has period"),
    "unknown feature set": (["--data.features", "defualt"], "default, full"),
    "word for a number": (["--data.train_size", "many"], "data.train_size"),
    "fraction for a count": (["--data.train_size", "0.5"], "data.train_size"),
    "unknown choice": (["--model.estimator", "magic"], "'counterfactual', 'sampled'"),
    "unknown fill": (["--data.fill", "best"], "next_open, next_close, same_close"),
    "unknown market": (["--data.synthetic.kind", "bull"], "'regime', 'predictor', 'random_walk'"),
    "size that fits no fold": (
        ["--data.train_size", "3000"],
        "train_size 3000 + purged_size 2 + validation_size 100 + embargo_size 2 + test_size 100 = 3204 bars, but the "
        "synthetic regime market has 734 after 24 warm-up bars",
    ),
    "fold beyond the last": (["--data.fold", "99"], "has folds 0 to 2"),
    "overlapping tests": (["--data.step_size", "50"], "would share 50 bars"),
    "purge below the fill": (["--data.purged_size", "1"], "must be >= 2"),
    "gamma above 1": (["--model.gamma", "2"], "gamma"),
    "negative budget": (["--model.total_timesteps", "-5"], "total_timesteps=-5"),
    "no LSTM": (["--model.hidden_size", "0"], "hidden_size >= 1"),
    "positions without flat": (["--model.positions", "[1, 2]"], "contain 0 (flat)"),
    "ragged minibatches": (["--model.num_minibatches", "3"], "num_minibatches 3"),
    "a learning rate that is no number": (["--model.learning_rate", "nan"], "model.learning_rate"),
    "negative seed": (["--seed", "-1"], "lit-ppo fit: seed_everything (--seed) must be a whole number"),
    "seed that is a word": (["--seed", "lucky"], "seed_everything"),
    "unknown accelerator": (["--trainer.accelerator", "abacus"], "accelerator='abacus'"),
    "no devices": (["--trainer.devices", "0"], "trainer.devices '0'"),
    "a list of CPUs": (["--trainer.devices", "[3]"], "trainer.devices [3]"),
    "unknown strategy": (["--trainer.strategy", "luck"], "strategy='luck'"),
    "unknown precision": (["--trainer.precision", "three"], "trainer.precision"),
    "double precision": (
        ["--trainer.precision", "64-true"],
        "trainer.precision is one of 32-true, bf16-mixed, 16-mixed, got 64-true",
    ),
    "a precision of a package that is absent": (
        ["--trainer.precision", "transformer-engine"],
        "got transformer-engine",
    ),
    "what manual optimisation cannot": (["--trainer.gradient_clip_val", "0.5"], "gradient_clip_val=0.5"),
    "a class that is not there": (["--trainer.callbacks", "callbacks.Nothing"], "callbacks.Nothing"),
    "a file that is not there": (["--config", "absent.yaml"], "absent.yaml"),
    "two sources of bars": (["--data.path", "bars.csv"], "one of them"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_exit_code_2_its_name_and_a_way_out(capsys, mistake):
    arguments, message = MISTAKES[mistake]
    assert main(["fit", *MARKET, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("lit-ppo fit: ")
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_where_there_is_none_is_refused_with_what_there_is(capsys, accelerator):
    assert main(["walk-forward", *MARKET, "--trainer.accelerator", accelerator, "--trainer.devices", "1"]) == 2
    assert "here is no GPU" in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.hiden_size", 3, "did you mean model.hidden_size?"),
        ("data.costs", {"spred": 1}, "did you mean data.costs.spread?"),
        ("trainer.calbacks", [], "did you mean trainer.callbacks?"),
        ("modl", {}, "did you mean model?"),
        ("data.synthetic", {"kind": "regime", "num_bar": 3}, "did you mean data.synthetic.num_bars?"),
        ("data.train_size", "many", "data.train_size"),
        ("model", 3, "model is a group of keys"),
        ("model.hidden_size", {"a": 1}, "model.hidden_size"),
    ],
)
def test_a_file_is_read_as_strictly_as_flags(capsys, path, value, message):
    config: dict = {}
    *parents, last = path.split(".")
    inner = config
    for part in parents:
        inner = inner.setdefault(part, {})
    inner[last] = value
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", *MARKET, "--config", "config.yaml"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("text", ["model: {", "[1, 2]", "just words", "\x00\x01", "model: *nowhere", "a: &a [*a]"])
def test_a_file_that_is_no_configuration_is_refused(capsys, text):
    Path("config.yaml").write_text(text)
    assert main(["fit", *MARKET, "--config", "config.yaml"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("mistake", ["size that fits no fold", "no LSTM", "ragged minibatches", "unknown strategy"])
def test_a_walk_forward_that_cannot_start_writes_nothing(mistake):
    assert main(["walk-forward", *MARKET, *MISTAKES[mistake][0]]) == 2
    assert not list(Path().iterdir())


def test_from_the_shell_there_is_no_traceback_either():
    command = [sys.executable, "-m", "lit_ppo", "fit", *MARKET, "--trainer.callbacks", "os.system"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "", "HOME": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("lit-ppo fit: The configuration names os.system")
    assert "Traceback" not in done.stderr


def test_an_overlay_may_go_on_with_a_list(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer:\n  callbacks+: []\n  callback+: []\n")
    with pytest.raises(ValueError, match=r"there is no trainer\.callback; did you mean trainer\.callbacks"):
        check_files([overlay], {"trainer.callbacks", "trainer.max_epochs"})
    overlay.write_text("trainer:\n  callbacks+: []\n")
    check_files([overlay], {"trainer.callbacks", "trainer.max_epochs"})


@pytest.mark.parametrize(
    ("key", "flag"), [("overwrite", "--overwrite"), ("resume", "--resume"), ("allow_mismatch", "--allow-mismatch")]
)
def test_what_deletes_or_mixes_runs_is_asked_for_by_a_flag_only(tmp_path, capsys, key, flag):
    run = tmp_path / "results" / "0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(f"{key}: true\n")
    assert main(["walk-forward", *MARKET, "--config", "config.yaml"]) == 2
    message = capsys.readouterr().err
    assert f"says {key}: true" in message
    assert f"add {flag}" in message
    (run / "config.yaml").write_text(f"{key}: true\n")
    assert main(["walk-forward", "--from", "results/0"]) == 2
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "run.json"]


def test_a_fit_is_overwritten_by_a_flag_only(tmp_path, capsys):
    (tmp_path / "results" / "fit").mkdir(parents=True)
    (tmp_path / "results" / "fit" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config.yaml").write_text("overwrite: true\n")
    assert main(["fit", *MARKET, "--config", "config.yaml"]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "results" / "fit" / "metrics.jsonl").read_text() == "{}\n"
    check_asked_by_flag({"overwrite": True, "resume": False}, ["--overwrite"])


def test_a_fabric_training_is_overwritten_by_a_flag_only(tmp_path, capsys):
    (tmp_path / "results" / "fabric").mkdir(parents=True)
    (tmp_path / "results" / "fabric" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config.yaml").write_text("overwrite: true\n")
    assert fabric_main(WalkForwardDataModule, ["--config", "config.yaml", "--data.path", "absent.csv"]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "results" / "fabric" / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("name", ["LIT_PPO_MODEL__HIDDEN_SIZE", "LIT_PPO_OVERWRITE", "PL_FIT__MODEL__HIDDEN_SIZE"])
def test_a_setting_in_the_environment_is_refused_and_not_ignored(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "8")
    assert main(["fit", *MARKET]) == 2
    assert fabric_main(WalkForwardDataModule, ["--data.path", "absent.csv"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [name in line and "not read from the environment" in line for line in told] == [True, True]
    assert not list(tmp_path.iterdir())


def test_the_environment_of_other_programs_is_nobodys_setting():
    check_environment({"PL_GLOBAL_SEED": "1", "LIT_PPO_TRACEBACK": "1", "PYTHONPATH": "x", "MODEL__HIDDEN_SIZE": "8"})


BOMB = [[f"&a{level} [{', '.join([f'*a{level - 1}'] * 9 if level else ['1'] * 9)}]"] for level in range(12)]
BOMB_YAML = "[" + ", ".join(line for (line,) in BOMB) + "]"  # 9^12 values in 600 bytes


@pytest.mark.parametrize("where", ["candidates", "data.features", "a value"])
def test_a_bomb_of_yaml_aliases_is_refused_in_a_moment(tmp_path, capsys, where):
    flags = ["--config", "config.yaml"]
    if where == "candidates":
        (tmp_path / "config.yaml").write_text(f"candidates: [{{hidden_size: {BOMB_YAML}}}]\n")
    elif where == "data.features":
        (tmp_path / "features.yaml").write_text(f"- {{name: {BOMB_YAML}}}\n")
        flags = ["--data.features", "features.yaml"]
    else:
        flags = [f"--candidates=[{{hidden_size: {BOMB_YAML}}}]"]
    start = time.perf_counter()
    assert main(["walk-forward", *MARKET, *flags]) == 2
    assert time.perf_counter() - start < 10
    assert "more than 100,000 values once its YAML aliases" in capsys.readouterr().err


def test_shared_parts_of_an_honest_configuration_are_no_bomb():
    part = {"hidden_size": 8}
    check_expansion({"candidates": [part] * 100}, "config.yaml")
    itself: list = []
    itself.append(itself)
    with pytest.raises(ValueError, match="or holds itself"):
        check_expansion(itself, "config.yaml")
