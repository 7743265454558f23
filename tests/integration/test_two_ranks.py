"""Two CPU processes train one policy: different experience, equal weights, exact resume."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_ppo.store.checkpoints import load_checkpoint
from tests.integration.shells import fitted, same, weights

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[Path, list[dict]]:
    directory = tmp_path_factory.mktemp("two_ranks")
    own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    own |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, str(REPOSITORY / "tests/integration/two_ranks.py"), str(directory)]
    done = subprocess.run(
        command, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout
    return directory, [torch.load(directory / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("shell", ["whole", "fabric"])
def test_two_ranks_collect_different_data_and_end_with_equal_weights(ranks, shell):
    first, second = (rank[shell] for rank in ranks[1])
    assert len(first["collected"]) == 4
    for one, other in zip(first["collected"], second["collected"], strict=True):
        assert not torch.equal(one, other)
    assert same(first["weights"], second["weights"])


def test_lightning_and_fabric_agree_on_two_ranks(ranks):
    for rank in ranks[1]:
        assert same(rank["whole"]["weights"], rank["fabric"]["weights"])


def test_two_ranks_resume_to_what_an_uninterrupted_run_gives(ranks):
    for rank in ranks[1]:
        assert rank["resumed"]["timesteps"] == rank["whole"]["timesteps"] == 512
        assert len(rank["resumed"]["collected"]) == 2
        assert same(rank["whole"]["weights"], rank["resumed"]["weights"])


def test_the_checkpoint_holds_every_ranks_generators(ranks):
    states = load_checkpoint(ranks[0] / "whole")["learner"]["ranks"]
    assert len(states) == 2
    assert not torch.equal(states[0]["rollout_generator"], states[1]["rollout_generator"])


def test_two_ranks_in_environments_of_their_own_see_alike_choose_alike_and_stop_together(ranks):
    first, second = (rank["gymnasium"] for rank in ranks[1])
    assert same(first["weights"], second["weights"])  # among them the statistics that observations are normalised with
    assert not torch.equal(first["weights"]["observation_mean"], torch.zeros(2, dtype=torch.float64))
    assert first["iteration"] == second["iteration"] < 40
    assert first["chosen"] == second["chosen"]


def test_what_two_ranks_wrote_can_be_resumed_by_one_which_says_so(ranks, capsys):
    recipe = {"total_timesteps": 512, "target_kl": 1e-3}
    module = fitted(ranks[0] / "one", ckpt_path=ranks[0] / "cut", **recipe)
    assert "not bit-identical" in capsys.readouterr().out
    assert module.timesteps == 512
    assert all(value.isfinite().all() for value in weights(module).values())
