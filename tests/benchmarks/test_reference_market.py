"""The tensor twin of the peers' environment is that environment, number for number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.lit_ppo_peer import load_module, reference_market

PEERS = Path(__file__).parents[2] / ".." / "shared" / "peers"


@pytest.fixture(scope="module")
def reference():
    if not (PEERS / "reference_env.py").is_file():
        pytest.skip("the peers' reference environment is not in ../shared/peers")
    return load_module(PEERS / "reference_env.py")


def test_the_twin_steps_like_the_reference_environment(reference):
    env = reference_market(PEERS, num_envs=3, bars=2000, seed=4)
    prices = reference.synthetic_prices(2000, seed=0)
    cores = [reference.TradingCore(prices) for _ in range(3)]
    observations = env.reset()

    def follow(i: int) -> np.ndarray:
        """Put the reference at the start that the twin drew."""
        core = cores[i]
        core.reset()
        core.t, core.end = int(env.row[i]), int(env.end[i])
        core.entry = core._lp[core.t]
        return core._obs()

    np.testing.assert_allclose(observations.numpy(), np.stack([follow(i) for i in range(3)]), atol=1e-6)
    actions = np.random.default_rng(0).choice(4, p=[0.7, 0.1, 0.1, 0.1], size=(1400, 3))
    ends = 0
    for chosen in actions:
        transition = env.step(torch.from_numpy(chosen))
        for i, core in enumerate(cores):
            observation, reward, done = core.step(chosen[i])
            np.testing.assert_allclose(transition.final_observations[i].numpy(), observation, atol=2e-5)
            assert float(transition.rewards[i]) == pytest.approx(reward, abs=1e-5)
            assert bool(transition.truncated[i]) == done
            if done:
                ends += 1
                np.testing.assert_allclose(transition.observations[i].numpy(), follow(i), atol=1e-6)
    assert ends == 6


def test_the_twin_goes_on_from_its_state(reference):
    one, other = (reference_market(PEERS, num_envs=2, bars=2000, seed=seed) for seed in (1, 2))
    one.reset()
    other.reset()
    other.load_state_dict(one.state_dict())
    for action in (1, 0, 0, 2, 3):
        actions = torch.full((2,), action)
        assert torch.equal(one.step(actions).observations, other.step(actions).observations)
