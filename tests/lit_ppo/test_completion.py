"""The completion scripts, tried in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from lit_ppo.cli import COMMANDS, main
from lit_ppo.commands.completion import flags_in, script

DOES = {name: command.does for name, command in COMMANDS.items()}
FLAGS = {name: ["--help", "--data.path", "--data.point"] for name in COMMANDS}


def bash_offers(text: str, *words: str) -> list[str]:
    """What Tab offers after these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    tab = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _lit_ppo; printf "%s\\n" "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", f"{text}\n{tab}"], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_commands_flags_recipes_and_files(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").touch()
    (tmp_path / "bars.csv").touch()
    monkeypatch.chdir(tmp_path)
    text = script("bash", DOES, FLAGS)
    assert bash_offers(text, "lit-ppo", "wal") == ["walk-forward"]
    assert set(COMMANDS) <= set(bash_offers(text, "lit-ppo", ""))
    assert bash_offers(text, "lit-ppo", "walk-forward", "--data.p") == ["--data.path", "--data.point"]
    assert bash_offers(text, "lit-ppo", "fit", "--config", "qui") == ["quickstart"]
    assert "own.yaml" in bash_offers(text, "lit-ppo", "fit", "--config", "")
    assert "bars.csv" not in bash_offers(text, "lit-ppo", "fit", "--config", "")
    assert bash_offers(text, "lit-ppo", "data", "") == []  # the shell's own: files


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_takes_its_script():
    stubs = (
        "compdef() { :; }; compadd() { shift; print -l -- $@; }; _files() { :; }; _describe() { print -l $commands; }"
    )
    text = script("zsh", DOES, FLAGS)
    tab = "words=(lit-ppo {}); CURRENT={}; _lit_ppo"
    for words, position, expected in (("walk-forward --", 3, "--data.path"), ("''", 2, "data:"), ("x -c ''", 4, "fit")):
        asked = f"{stubs}\n{text}\n{tab.format(words, position)}"
        assert expected in subprocess.run(["zsh", "-fc", asked], capture_output=True, text=True, check=True).stdout


def test_flags_are_those_of_the_commands_own_help(capsys):
    assert flags_in("usage: [-h] [--config X]\n  --data.path P, see --config; up-to--date") == [
        "--config",
        "--data.path",
    ]
    assert main(["data", "--help"]) == 0
    assert {"--help", "--timezone", "--close_only"} <= set(flags_in(capsys.readouterr().out))


def test_help_keeps_each_shells_line_whole(capsys):
    assert main(["completion", "--help"]) == 0
    assert "lit-ppo completion bash > ~/.local/share/bash-completion/completions/lit-ppo\n" in capsys.readouterr().out


def test_another_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert "bash" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_knows_every_flag_of_every_command(capsys):
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    for command, flag in (("walk-forward", "--model.hidden_size"), ("predict", "--follow"), ("power", "--quick")):
        assert flag in bash_offers(text, "lit-ppo", command, flag)
    assert all(bash_offers(text, "lit-ppo", name, "--") for name in COMMANDS)
