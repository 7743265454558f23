"""`lit-ppo doctor` and `lit-ppo init`: what a new user runs first."""

from __future__ import annotations

import pytest

from lit_ppo.cli import main
from lit_ppo.commands import doctor as module


def test_a_working_installation_is_told_so_line_by_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["doctor", "--results", str(tmp_path), "--timesteps", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[1] for line in lines[:-1] if not line.startswith(" ")]
    assert named == ["versions", "threads", "kernels", "device", "cache", "disk"]
    assert lines[-1] == "everything works"
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in lines)  # a long path is not broken


def test_kernels_that_compute_something_else_are_wrong_and_the_exit_code_says_so(monkeypatch, tmp_path, capsys):
    reference = module.reference_layer

    def off(*arguments):
        outputs, hidden, cell = reference(*arguments)
        return outputs + 1e-3, hidden, cell

    monkeypatch.setattr(module, "reference_layer", off)
    assert main(["doctor", "--results", str(tmp_path), "--timesteps", "0"]) == 1
    assert "WRONG kernels" in capsys.readouterr().out


def test_an_agent_that_does_not_learn_is_wrong(tmp_path, capsys):
    assert main(["doctor", "--results", str(tmp_path), "--timesteps", "1"]) == 1
    assert "expected 80 % or more" in capsys.readouterr().out


@pytest.mark.slow
def test_the_training_of_the_doctor_reaches_its_bar(tmp_path, capsys):
    assert main(["doctor", "--results", str(tmp_path)]) == 0
    assert "of a known optimum" in capsys.readouterr().out


def test_init_writes_recipes_that_can_be_edited_and_writes_over_nothing(tmp_path, capsys):
    target = tmp_path / "mine"
    assert main(["init", str(target)]) == 0
    assert (target / "walk_forward.yaml").is_file()
    assert (target / "profiles" / "original.yaml").is_file()
    assert {"onnx_signal.py", "paper_trading.py", "masked_task.yaml"} <= {x.name for x in target.glob("examples/*")}
    said = capsys.readouterr().out
    assert f"recipes are in {target}, 5 examples in {target / 'examples'}" in said
    (target / "quickstart.yaml").write_text("mine")
    assert main(["init", str(target)]) == 2
    assert (target / "quickstart.yaml").read_text() == "mine"
    assert "init writes over nothing" in capsys.readouterr().err
