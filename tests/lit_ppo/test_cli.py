"""The command line: light commands stay light, mistakes end with exit code 2 and a message."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from datamodules.bars.options import ReaderOptions
from datamodules.prior_data import PriorDataModule
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo import __version__
from lit_ppo.cli import COMMANDS, main
from lit_ppo.commands.lightning_cli import EXAMPLES, LitPPOCLI, usage
from lit_ppo.commands.reader_flags import add_reader_flags

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--model.num_envs", "4", "--model.num_steps", "16", "--model.total_timesteps", "128"]
SMALL += ["--model.screen_features", "false"]
SMALL += ["--data.train_size", "300", "--data.validation_size", "100", "--data.test_size", "100"]
SMALL += [
    "--data.step_size",
    "100",
    "--data.warmup_bars",
    "20",
    "--data.cache",
    "false",
    "--trainer.accelerator",
    "cpu",
]
SYNTHETIC = ["--data.synthetic.kind", "regime", "--data.synthetic.num_bars", "760"]


@pytest.fixture
def bar_csv(tmp_path, bar_frame) -> Path:
    path = tmp_path / "bars.csv"
    bar_frame(700).to_csv(path, index=False)
    return path


def light(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh interpreter that fails if torch or Lightning gets imported."""
    code = (
        "import sys\nfrom lit_ppo.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'torch was imported'\nsys.exit(code)"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_version_and_help_start_without_torch():
    version, overview = light("--version"), light("--help")
    assert (version.returncode, version.stdout) == (0, f"lit-ppo {__version__}\n")
    assert overview.returncode == 0
    assert all(name in overview.stdout for name in COMMANDS)


def test_the_help_of_a_command_begins_with_three_examples_instead_of_a_hundred_lines_of_usage(capsys):
    assert main(["walk-forward", "--help"]) == 0
    first, empty, *examples = capsys.readouterr().out.splitlines()[:5]
    assert first == "usage: lit-ppo walk-forward [--config RECIPE] [--KEY VALUE] ..."
    assert empty == ""
    assert all(line.startswith("  lit-ppo walk-forward --config") for line in examples)
    shown = [line for command in EXAMPLES for line in usage(command).splitlines()]
    assert max(map(len, shown)) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in EXAMPLES if name != "power"])  # --from there reads a run
def test_the_examples_of_a_help_are_taken_as_they_stand(command):
    data = PriorDataModule if command == "pretrain" else WalkForwardDataModule
    for example in EXAMPLES[command]:
        with patch.object(LitPPOCLI, "instantiate_classes", lambda cli: None):
            LitPPOCLI(command, shlex.split(example, comments=True), data)


def test_every_option_of_the_reader_is_a_flag():
    parser = argparse.ArgumentParser()
    add_reader_flags(parser)
    assert set(vars(parser.parse_args([]))) == {option.name for option in dataclasses.fields(ReaderOptions)}


def test_data_prints_the_card_without_torch(bar_csv):
    done = light("data", str(bar_csv))
    assert done.returncode == 0, done.stderr
    assert "700" in done.stdout


def test_data_refuses_a_bad_file_with_exit_code_2_and_its_line(bar_csv):
    lines = bar_csv.read_text().splitlines()
    lines[5] = lines[5].replace(lines[5].split(",")[2], "-1", 1)
    bar_csv.write_text("\n".join(lines) + "\n")
    done = light("data", str(bar_csv))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "line 6" in done.stderr


def test_cache_commands_start_without_torch(tmp_path):
    for action in ("info", "prune", "clear"):
        done = light("cache", action, "--cache_dir", str(tmp_path / "cache"))
        assert (done.returncode, "0 entries" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: lit-ppo COMMAND"),
        (["walkforward"], "did you mean walk-forward?"),
        (["data", "absent.csv"], "absent.csv"),
        (["report", "absent"], "absent"),
        (["cache", "burn"], "burn"),
        (["fit", "--model.hiden_size", "3"], "did you mean model.hidden_size?"),
        (["fit", "--data.trainsize", "3"], "did you mean data.train_size?"),
        (["fit", "--model.hidden_size", "many"], "model.hidden_size"),
        (["fit", "--config", "absent.yaml"], "absent.yaml"),
        (["fit"], "data.path"),
        (["fit", "--data.path", "absent.csv"], "absent.csv"),
        (["fit", *SYNTHETIC, *SMALL, "--model.gamma", "2"], "gamma=2"),
        (["fit", *SYNTHETIC, *SMALL, "--model.estimator", "exact"], "estimator"),
        (["fit", *SYNTHETIC, *SMALL, "--data.train_size", "5000"], "5000"),
        (["fit", *SYNTHETIC, *SMALL, "--seed", "-3"], "-3"),
        (["fit", *SYNTHETIC, *SMALL, "--trainer.accelerator", "abacus"], "abacus"),
        (["test", *SYNTHETIC, *SMALL, "--ckpt_path", "https://host/x.ckpt"], "local files"),
        (["walk-forward", *SYNTHETIC, *SMALL, "--trainer.devices", "2"], "one device"),
        (["walk-forward", *SYNTHETIC, *SMALL, "--resume", "--overwrite"], "give one of them"),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_a_message(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err + printed.out
    assert "Traceback" not in printed.err


def test_fit_last_without_a_checkpoint_is_refused_instead_of_starting_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SYNTHETIC, *SMALL, "--ckpt_path", "last"]) == 2
    assert "there is no checkpoint in results/fit" in capsys.readouterr().err


def test_fit_validate_test_predict_and_resume_one_fold(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ("TrainingCheckpoint", "ValidationSelection")
    callbacks = [f"--trainer.callbacks+=callbacks.{name}" for name in names]
    common = [*SYNTHETIC, *SMALL, *callbacks, "--data.fold", "1", "--seed", "7"]
    assert main(["fit", *common]) == 0
    assert "128 timesteps done" in capsys.readouterr().out
    assert main(["validate", *common]) == 0
    assert "validation/score" in capsys.readouterr().out
    assert main(["test", *common]) == 0
    assert "test/sharpe_annual" in capsys.readouterr().out
    assert main(["predict", *common]) == 0
    lines = Path("results/fit/predictions.csv").read_text().splitlines()
    assert lines[0] == "time,position"
    assert len(lines) == 101
    assert main(["fit", *common, "--ckpt_path", "last"]) == 0
    assert main(["validate", *common, "--data.fold", "2"]) == 2
    assert "fold was 1 and is 2" in capsys.readouterr().err


def test_a_flag_outranks_the_checkpoint_it_resumes_from(tmp_path, monkeypatch, capsys):
    """Lightning lets the hyper-parameters of --ckpt_path=FILE win over flags, in silence; here it is refused."""
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SYNTHETIC, *SMALL]) == 0
    assert main(["fit", *SYNTHETIC, *SMALL, "--model.gamma", "0.5", "--ckpt_path", "results/fit/selected.ckpt"]) == 2
    assert "model.gamma was 0.995 and is 0.5" in capsys.readouterr().err


def test_the_seed_flag_is_the_seed_of_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SYNTHETIC, *SMALL, "--seed=9", "--print_config"]) == 0
    assert "seed_everything: 9" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_precision_is_a_flag(tmp_path, monkeypatch, precision):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *SYNTHETIC, *SMALL, "--trainer.precision", precision]) == 0


RUN = ["walk-forward", *SYNTHETIC, *SMALL, "--trainer.logger", "false", "--data.fold_limit", "1"]


def test_a_flag_cut_short_is_no_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--model.learning_rat", "0.001"]) == 2
    assert "did you mean model.learning_rate?" in capsys.readouterr().err
    assert main(["fit", *SYNTHETIC, *SMALL, "--over"]) == 2
    assert main(["compare", "--al"]) == 2
    assert not list(tmp_path.iterdir())


def test_settings_that_only_the_training_can_refuse_leave_no_run_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = [*RUN, "--model.positions", "[0, 1]", "--model.mirror", "true"]
    assert main(wrong) == 2
    assert "mirror" in capsys.readouterr().err
    assert main([*wrong, "--model.mirror", "false"]) == 0


def test_a_run_resumed_with_more_folds_is_repeated_with_as_many(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(RUN) == 0
    assert main([*RUN[:-1], "2", "--resume"]) == 0
    assert yaml.safe_load(Path("results/0/config.yaml").read_text())["data"]["fold_limit"] == 2
    capsys.readouterr()
    assert main(["walk-forward", "--from", "results/0/run.json"]) == 0
    assert "equals the original's, byte for byte (200 decisions)" in capsys.readouterr().out


def test_a_training_is_not_replaced_unless_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit = ["fit", *SYNTHETIC, *SMALL, "--trainer.callbacks+=callbacks.MetricsLog"]
    assert main(fit) == 0
    before = {path: path.read_bytes() for path in Path("results/fit").iterdir()}
    assert main([*fit, "--model.hidden_size", "8"]) == 2
    message = capsys.readouterr().err
    assert "--ckpt_path last" in message
    assert "--overwrite" in message
    assert {path: path.read_bytes() for path in Path("results/fit").iterdir()} == before
    assert main([*fit, "--model.hidden_size", "8", "--overwrite"]) == 0
    assert main(["test", *SYNTHETIC, *SMALL, "--model.hidden_size", "8", "--ckpt_path", "best"]) == 0
    assert len(list(Path("results/fit").glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("command", ["fit", "walk-forward"])
def test_a_dev_run_leaves_nothing_that_stands_in_the_way_of_the_real_one(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    callbacks = [f"--trainer.callbacks+=callbacks.{name}" for name in ("TrainingCheckpoint", "MetricsLog")]
    run = [command, *RUN[1:], *callbacks]
    assert main([*run, "--trainer.fast_dev_run", "true"]) == 0
    assert "nothing of it is kept" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(run) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*run, "--trainer.fast_dev_run", "true", "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_and_its_copy_are_no_two_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(RUN) == 0
    shutil.copytree("results/0", "copy/0")
    capsys.readouterr()
    assert main(["compare", "results/0", "copy/0"]) == 0
    told = capsys.readouterr().out
    assert "equal on every one of these bars" in told
    assert "seeds and all folds" not in told


def test_data_of_a_folder_is_a_table_of_80_columns_with_a_row_for_each_file(bar_csv, capsys):
    text = bar_csv.read_text()
    (bar_csv.parent / "a name that is longer than its column.txt").write_text(text)
    (bar_csv.parent / "broken.csv").write_text(text.replace("open", "opne", 1))
    (bar_csv.parent / "notes.md").write_text("no bars")
    assert main(["data", str(bar_csv.parent)]) == 2
    printed = capsys.readouterr().out
    table, told = printed.split("\n- ", 1)
    assert max(len(line) for line in table.splitlines()) <= 80
    rows = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert all(part in rows["bars.csv"] for part in (" 700 ", "2023-03..2023-03", "15 min", " 0."))
    assert "refused" in rows["broken.csv"]
    assert "notes.md" not in table
    assert "broken.csv: line 1: no column open" in told
    assert "2 of 3 files can be used" in told


def test_data_of_a_folder_without_bar_files_is_bad_input(tmp_path, capsys):
    assert main(["data", str(tmp_path)]) == 2
    assert "holds no file that ends in .csv" in capsys.readouterr().err


def test_data_takes_the_reader_s_options(tmp_path, capsys):
    rows = [f"2024-01-0{day},{name},{day}" for day in range(1, 6) for name in ("A", "B")]
    (tmp_path / "closes.csv").write_text("\n".join(["date,symbol,close", *rows]) + "\n")
    assert main(["data", str(tmp_path / "closes.csv"), "--close_only"]) == 2
    assert "2 symbols: A, B" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "closes.csv"), "--close_only", "--symbol", "A"]) == 0
    assert "note: closes alone: open is the close before" in capsys.readouterr().out
