"""Names from outside stay names: on the terminal, in paths, in the cache."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from datamodules.synthetic import SyntheticMarket
from lit_ppo.cli import main
from lit_ppo.signals.live import append_rows
from lit_ppo.store.atomic import open_own
from lit_ppo.store.files import FoldCsv

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


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_linked_file_in_a_fold_is_not_written_through(tmp_path, capsys, name):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "results" / "0" / "fold_000").mkdir(parents=True)
    (tmp_path / "results" / "0" / "fold_000" / name).symlink_to("../../../victim")
    logging = ["--data.synthetic.num_bars", "560", "--trainer.callbacks+=callbacks.MetricsLog"]
    assert main(["walk-forward", *SIZES, *SMALL, *logging]) == 2
    assert victim.read_text() == "mine\n"
    assert f"{name} is a symbolic link (to ../../../victim)" in capsys.readouterr().err


def test_a_dangling_link_where_the_logger_writes_its_settings_makes_no_file_outside(tmp_path, capsys):
    # Lightning's logger writes hparams.yaml where there is no file of that name, and follows a link to none.
    fold = tmp_path / "results" / "0" / "fold_000"
    fold.mkdir(parents=True)
    (fold / "hparams.yaml").symlink_to(tmp_path / "outside.yaml")
    code = main(["walk-forward", *SIZES, *SMALL, "--data.synthetic.num_bars", "560", "--trainer.logger", "true"])
    assert not (tmp_path / "outside.yaml").exists()
    assert code == 2
    assert "hparams.yaml is a symbolic link" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fold_000", "fold_000/candidate_1", "monitor"])
def test_a_linked_folder_in_a_run_is_not_written_through(tmp_path, capsys, name):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "results" / "0" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    sizes = [*SIZES, *SMALL, "--data.synthetic.num_bars", "560", "--parallel_candidates", "2"]
    assert main(["walk-forward", *sizes]) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert f"{Path(name).name} is a symbolic link" in capsys.readouterr().err


def test_files_that_grow_are_opened_in_one_place_and_follow_no_link(tmp_path):
    (tmp_path / "victim").write_text("mine\n")
    for name in ("out_of_sample.csv", "signals.csv"):
        (tmp_path / name).symlink_to("victim")
    writers = [
        lambda: FoldCsv(tmp_path / "out_of_sample.csv", ["fold", "time"]).append(0, ["0,1"]),
        lambda: append_rows(tmp_path / "signals.csv", ["2024-01-01T00:00:00Z,1.0"]),
        lambda: open_own(tmp_path / "signals.csv"),
    ]
    for write in writers:
        with pytest.raises(ValueError, match="is a symbolic link"):
            write()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        open_own(tmp_path / "pipe")
    assert (tmp_path / "victim").read_text() == "mine\n"


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
