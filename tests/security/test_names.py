"""Names from outside stay names: on the terminal, in paths, in the cache."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main

SIZES = ["--data.train_size", "300", "--data.validation_size", "100", "--data.test_size", "100"]
SIZES += ["--data.step_size", "100", "--data.warmup_bars", "20", "--trainer.accelerator", "cpu"]
SMALL = ["--model.num_envs", "4", "--model.num_steps", "16", "--model.total_timesteps", "64", "--data.fold_limit", "1"]
HOSTILE = "\x1b[2J\x1b]0;owned\x07<img src=x onerror=alert(1)>=cmd"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache_home"))


@pytest.mark.parametrize("command", [["data"], ["report"], ["fit", *SIZES, "--data.path"], ["walk-forward", "--from"]])
def test_a_message_shows_escape_sequences_instead_of_sending_them(capsys, command):
    assert main([*command, f"{HOSTILE}.csv"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\x07" not in error
    assert "\\x1b[2J" in error


def test_a_run_on_a_file_with_a_hostile_name_is_harmless_on_screen_and_in_the_report(tmp_path, capsys):
    name = f"{HOSTILE}.csv".replace("/", "_")
    SyntheticMarket(num_bars=560, seed=1).write(tmp_path / name)
    assert main(["walk-forward", *SIZES, *SMALL, "--data.path", name, "--trainer.logger", "false"]) == 0
    shown = capsys.readouterr()
    assert "\x1b]0;" not in shown.out + shown.err
    page = (tmp_path / "results" / "0" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page or "\\u003cimg src=x" in page


@pytest.mark.parametrize("seed", ["../evil", "1/../../evil", "1.5", "true", "-1", "\x00"])
def test_a_seed_is_a_number_and_cannot_lead_out_of_the_results(tmp_path, capsys, seed):
    assert main(["walk-forward", *SIZES, *SMALL, "--data.synthetic.num_bars", "560", f"--seed={seed}"]) == 2
    assert not [path for path in tmp_path.iterdir() if path.name not in ("cache_home",)]
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_folder_that_is_a_link_is_not_written_through(tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "0").symlink_to(tmp_path / "elsewhere")
    assert main(["walk-forward", *SIZES, *SMALL, "--data.synthetic.num_bars", "560"]) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_cache_of_a_run_is_private_and_in_the_users_cache_home(tmp_path, capsys):
    assert main(["fit", *SIZES, *SMALL, "--data.synthetic.num_bars", "560"]) == 0
    directory = tmp_path / "cache_home" / "lit-ppo" / "features"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.suffix for path in directory.iterdir()] == [".safetensors"]


def test_a_cache_that_is_a_link_is_refused(tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "features").symlink_to(tmp_path / "theirs")
    code = main(["fit", *SIZES, *SMALL, "--data.synthetic.num_bars", "560", "--data.cache_dir", "mine"])
    assert code in (1, 2)
    assert "link" in capsys.readouterr().err
    assert not list(Path("theirs").iterdir())


def test_every_promise_of_the_security_page_names_tests_that_exist():
    page = Path(__file__).parents[2] / "SECURITY.md"
    named = {word.strip("`,") for word in page.read_text().split() if word.startswith("`tests/")}
    assert len(named) >= 6
    assert [name for name in named if not (page.parent / name).is_file()] == []
