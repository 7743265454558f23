"""POPGym's scoreboard: what a training comes to, what a later call still has to do, and what the table says of it."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks import popgym, tables
from benchmarks.common import read


def points(*scores: float) -> list[dict[str, float]]:
    return [{"timesteps": 100 * (i + 1), "cpu_s": i + 0.5, "score": score} for i, score in enumerate(scores)]


def run(seed: int, *scores: float) -> dict:
    return popgym.judged(
        {"seed": seed, "timesteps": 100 * len(scores), "points": points(*scores)}, popgym.Goal(1.0, 1.0)
    )


def test_a_goal_is_reached_where_the_score_rounds_to_it_first():
    result = run(0, 0.2, 0.9994, 0.9996, 1.0, 0.7)
    assert result["reached"] == {"timesteps": 300, "cpu_s": 2.5}
    assert (result["timesteps"], result["cpu_s"], result["final"], result["best"]) == (500, 4.5, 0.7, 1.0)
    assert run(0, 0.2, 0.9994)["reached"] is None


def test_a_long_curve_is_thinned_and_keeps_its_last_point():
    curve = run(0, *[0.1] * 200)["curve"]
    assert len(curve) == popgym.CURVE_POINTS
    assert curve[-1]["timesteps"] == 20_000


def test_a_training_whose_last_episodes_ended_earlier_went_as_far_as_it_went():
    ended = popgym.judged({"seed": 0, "timesteps": 700, "points": points(0.5)}, popgym.Goal(1.0, 1.0))
    assert not popgym.missing({"RepeatFirstMedium": {"lit_ppo": [ended]}}, "RepeatFirstMedium", "lit_ppo", 0, 700)


def test_a_shorter_run_is_made_again_and_a_longer_one_kept(tmp_path):
    out = tmp_path / "popgym.json"
    for seed, scores in ((1, [0.1, 0.2]), (0, [0.3]), (1, [0.1, 0.2, 0.3]), (1, [0.9])):
        popgym.add(out, "CountRecallEasy", "lit_ppo", run(seed, *scores))
    runs = read(out)["runs"]
    assert [(one["seed"], one["timesteps"]) for one in runs["CountRecallEasy"]["lit_ppo"]] == [(0, 100), (1, 300)]
    assert popgym.missing(runs, "CountRecallEasy", "lit_ppo", 0, 300)
    assert not popgym.missing(runs, "CountRecallEasy", "lit_ppo", 1, 300)
    assert popgym.missing(runs, "CountRecallEasy", "memoryless", 1, 100)
    body = tables.popgym_table(read(out)).splitlines()[2:]
    assert len(body) == len(popgym.GOALS) + 1  # a row a task for who was not measured there, and the one who was
    assert sum(tables.UNMEASURED in line for line in body) == len(body) - 1
    measured = "lit-ppo | 2 | 100 to 300 | 0.300 (0.300 to 0.300) | 0.300 (0.300 to 0.300) | 0 of 2 | never | never |"
    assert any(line.endswith(measured) for line in body)


def test_agents_differ_from_the_recipe_in_what_they_are_called_by():
    base = popgym.recipe_of("lit_ppo")[0].to_dict()
    assert base["init"] == "chrono"
    assert base["encoder"] == "lstm"
    for agent, changes in popgym.OURS.items():
        assert popgym.recipe_of(agent)[0].to_dict() == {**base, **changes}


def test_sb3_contrib_needs_an_interpreter(capsys):
    with pytest.raises(SystemExit) as stopped:
        popgym.main(["--agents", "sb3_contrib"])
    assert stopped.value.code == 2
    assert "--peer-python" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("popgym") is None, reason='needs pip install "lit-ppo[popgym]"')
def test_a_training_that_is_cut_off_has_its_score(monkeypatch):
    small = {"num_envs": 4, "num_steps": 64, "num_minibatches": 1, "hidden_size": 8, "total_timesteps": 4096}
    monkeypatch.setitem(popgym.OURS, "lit_ppo", small)
    result = popgym.judged(popgym.train("CountRecallEasy", "lit_ppo", 0, 512), popgym.GOALS["CountRecallEasy"])
    assert result["timesteps"] == 512
    assert -1 <= result["final"] <= result["best"] < 0
    assert -1 <= result["greedy_test"] < 0
