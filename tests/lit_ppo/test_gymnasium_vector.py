"""gymnasium environments as the collector's vector environment: actions, ends, normalisation, resume."""

from __future__ import annotations

import io
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo.envs.gymnasium_state import decode, encode
from lit_ppo.envs.gymnasium_vector import GymnasiumVectorEnv, make_environments
from lit_ppo.envs.running_moments import RewardNormaliser, RunningMoments


def make(env_id: str = "CartPole-v1", num_envs: int = 3, **options: Any) -> GymnasiumVectorEnv:
    return GymnasiumVectorEnv(make_environments(env_id, num_envs), **{"seed": 0, **options})


def random_actions(env: GymnasiumVectorEnv, generator: torch.Generator) -> torch.Tensor:
    if env.num_actions is not None:
        return torch.randint(env.num_actions, (env.num_envs,), generator=generator)
    return torch.randn(env.num_envs, env.action_size, generator=generator)


class Recorder(gymnasium.Env):
    """Rewards its action and keeps it; ends after three steps as told. Observations count the steps."""

    observation_space = gymnasium.spaces.Box(-100, 100, (2, 2), np.float32)

    def __init__(self, action_space: gymnasium.Space, end: str = "truncated") -> None:
        self.action_space, self.end, self.steps, self.last_action = action_space, end, 0, None

    def _observe(self) -> np.ndarray:
        return np.array([[self.steps, 10], [20, 30]], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps, self.last_action = self.steps + 1, action
        ended = self.steps == 3
        return self._observe(), 5.0, ended and self.end != "truncated", ended and self.end != "terminated", {}


def recorder(action_space: gymnasium.Space, end: str = "truncated", num_envs: int = 2, **options: Any):
    envs = SyncVectorEnv([lambda: Recorder(action_space, end)] * num_envs, autoreset_mode="SameStep")
    plain = {"seed": 0, "normalise_observations": False, "normalise_rewards": False}
    return GymnasiumVectorEnv(envs, **{**plain, **options})


needs_popgym = pytest.mark.skipif(find_spec("popgym") is None, reason='needs pip install "lit-ppo[popgym]"')
POPGYM = [
    pytest.param(f"popgym:popgym-{name}-v0", marks=needs_popgym)
    for name in ("RepeatFirstMedium", "CountRecallEasy", "NoisyPositionOnlyCartPoleMedium")
]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", *POPGYM])
@pytest.mark.parametrize("training", [True, False])
def test_a_resumed_environment_equals_the_uninterrupted_one_bit_for_bit(env_id, training):
    env, generator = make(env_id), torch.Generator().manual_seed(1)
    env.reset()
    env.training = training
    for _ in range(150):
        env.step(random_actions(env, generator))
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    resumed = make(env_id, seed=77)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    ends = 0
    for _ in range(250 if "popgym" not in env_id else 700):  # an episode of RepeatFirstMedium has 415 steps
        actions = random_actions(env, generator)
        one, other = env.step(actions), resumed.step(actions)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        ends += int((one.terminated | one.truncated).sum())
    assert ends >= 3
    assert env.take_episodes() == resumed.take_episodes()


def test_the_saved_state_does_not_change_while_the_environment_goes_on():
    env, generator = make("Pendulum-v1"), torch.Generator().manual_seed(1)
    env.reset()
    states = []
    for _ in range(2):
        state = env.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        states.append((state, file.getvalue()))
        env.step(random_actions(env, generator))
    file = io.BytesIO()
    torch.save(states[0][0], file)
    assert file.getvalue() == states[0][1]
    assert states[0][1] != states[1][1]


@pytest.mark.parametrize(
    ("end", "terminated", "truncated"),
    [("terminated", True, False), ("truncated", False, True), ("both", True, False)],
)
def test_an_ended_episode_shows_its_true_last_observation(end, terminated, truncated):
    env = recorder(gymnasium.spaces.Discrete(2), end)
    assert env.reset()[:, 0].tolist() == [0, 0]
    for steps in (1, 2):
        step = env.step(torch.tensor([0, 1]))
        assert step.observations[:, 0].tolist() == step.final_observations[:, 0].tolist() == [steps, steps]
        assert not (step.terminated | step.truncated).any()
    step = env.step(torch.tensor([0, 1]))
    assert step.final_observations[:, 0].tolist() == [3, 3]
    assert step.observations[:, 0].tolist() == [0, 0]
    assert step.terminated.tolist() == [terminated] * 2
    assert step.truncated.tolist() == [truncated] * 2
    assert env.take_episodes() == [(15.0, 3), (15.0, 3)]
    assert env.take_episodes() == []


def test_the_time_limit_truncates_and_a_fallen_pole_terminates():
    pendulum, cartpole = make("Pendulum-v1", 2), make("CartPole-v1", 2)
    pendulum.reset(), cartpole.reset()
    for _ in range(200):
        assert not (step := pendulum.step(torch.zeros(2, 1))).terminated.any()
    assert step.truncated.all()
    while not (step := cartpole.step(torch.zeros(2, dtype=torch.int64))).terminated.any():
        assert not step.truncated.any()


@pytest.mark.parametrize(
    ("rescale", "actions", "expected"),
    [(True, [-1.0, 0.5], [-3.0, 3.0]), (True, [7.0, -7.0], [5.0, -3.0]), (False, [4.0, -9.0], [4.0, -3.0])],
)
def test_continuous_actions_are_rescaled_and_clipped(rescale, actions, expected):
    env = recorder(gymnasium.spaces.Box(-3, 5, (1,), np.float32), rescale_actions=rescale)
    assert (env.num_actions, env.action_size) == (None, 1)
    env.reset()
    env.step(torch.tensor(actions).unsqueeze(1))
    assert [inner.last_action.tolist() for inner in env.envs.envs] == [[value] for value in expected]
    assert env.envs.envs[0].last_action.dtype == np.float32


def test_discrete_actions_count_from_the_first_of_the_space():
    env = recorder(gymnasium.spaces.Discrete(3, start=-1))
    assert (env.num_actions, env.action_size) == (3, 0)
    env.reset()
    env.step(torch.tensor([0, 2]))
    assert [int(inner.last_action) for inner in env.envs.envs] == [-1, 1]


def test_masked_observations_are_gone():
    env = recorder(gymnasium.spaces.Discrete(2), mask_observations=[1, 3])
    assert env.observation_size == 2
    assert env.reset().tolist() == [[0, 20], [0, 20]]
    with pytest.raises(ValueError, match="columns 0 to 3"):
        recorder(gymnasium.spaces.Discrete(2), mask_observations=[4])
    pair = make(mask_observations=[1, 3], normalise_observations=False), make(normalise_observations=False)
    masked, full = (env.reset() for env in pair)
    assert torch.equal(masked, full[:, [0, 2]])


class Drawer(gymnasium.Env):
    """Observes a random member of its space; ends after two steps."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, space: gymnasium.Space) -> None:
        self.observation_space, self.drawn = space, []

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self._draw(), {}

    def _draw(self):
        self.drawn.append(self.observation_space.sample())
        return self.drawn[-1]

    def step(self, action):
        self.steps += 1
        return self._draw(), 0.0, self.steps == 2, False, {}


def drawer(space: gymnasium.Space, **options: Any) -> GymnasiumVectorEnv:
    space.seed(0)
    envs = SyncVectorEnv([lambda: Drawer(space)] * 2, autoreset_mode="SameStep")
    plain = {"seed": 0, "normalise_observations": False, "normalise_rewards": False}
    return GymnasiumVectorEnv(envs, **{**plain, **options})


BOX = gymnasium.spaces.Box(-1, 1, (2, 2), np.float32)


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        gymnasium.spaces.Discrete(4, start=3),
        gymnasium.spaces.MultiDiscrete([2, 5, 3]),
        gymnasium.spaces.MultiDiscrete([[2, 5], [3, 2]], start=[[1, -1], [0, 4]]),
        gymnasium.spaces.MultiBinary(3),
        gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(3), BOX, gymnasium.spaces.MultiDiscrete([2, 2])]),
        gymnasium.spaces.Dict({"late": BOX, "early": gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)])}),
    ],
    ids=str,
)
def test_any_observation_becomes_the_columns_of_gymnasiums_flatten(space):
    env = drawer(space)
    inner = env.envs.envs
    assert env.observation_size == gymnasium.spaces.flatdim(space)
    assert env.reset().tolist() == [gymnasium.spaces.flatten(space, one.drawn[-1]).tolist() for one in inner]
    for ends in (False, True, False):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        assert step.terminated.all() == ends
        after = [gymnasium.spaces.flatten(space, one.drawn[-1]).tolist() for one in inner]
        final = [gymnasium.spaces.flatten(space, one.drawn[-2 if ends else -1]).tolist() for one in inner]
        assert step.observations.tolist() == after
        assert step.final_observations.tolist() == final


def test_columns_of_a_choice_can_be_masked():
    env = drawer(gymnasium.spaces.Discrete(3), mask_observations=[0])
    assert env.reset().tolist() == [[float(one.drawn[-1] == k) for k in (1, 2)] for one in env.envs.envs]


def test_observations_are_normalised_by_everything_seen_so_far():
    env, raw = make(num_envs=4), make(num_envs=4, normalise_observations=False)
    generator = torch.Generator().manual_seed(0)
    normalised, seen = env.reset(), [raw.reset()]
    for _ in range(60):
        every = torch.cat(seen).double()
        expected = (seen[-1].double() - every.mean(0)) / (every.var(0, correction=0) + 1e-8).sqrt()
        torch.testing.assert_close(normalised, expected.clamp(-10, 10).float(), rtol=1e-5, atol=1e-5)
        actions = random_actions(env, generator)
        step, raw_step = env.step(actions), raw.step(actions)
        normalised = step.observations
        seen.append(raw_step.observations)
        every = torch.cat(seen).double()
        final = (raw_step.final_observations.double() - every.mean(0)) / (every.var(0, correction=0) + 1e-8).sqrt()
        torch.testing.assert_close(step.final_observations, final.clamp(-10, 10).float(), rtol=1e-5, atol=1e-5)


def test_evaluation_changes_no_statistic_and_reports_raw_rewards():
    env, generator = make("Pendulum-v1"), torch.Generator().manual_seed(0)
    env.reset()
    for _ in range(30):
        env.step(random_actions(env, generator))
    frozen = make("Pendulum-v1", 5, seed=9)
    frozen.freeze(*env.observation_statistics)
    before = {name: encode_bytes(frozen.state_dict()[name]) for name in ("observations", "rewards")}
    assert all(
        torch.equal(*both) for both in zip(frozen.observation_statistics, env.observation_statistics, strict=True)
    )
    frozen.reset()
    total = 0.0
    for _ in range(200):
        total += frozen.step(random_actions(frozen, generator)).rewards[0].item()
    assert {name: encode_bytes(frozen.state_dict()[name]) for name in before} == before
    assert frozen.take_episodes()[0].total_reward == pytest.approx(total, rel=1e-4)
    env.training = False
    statistics = encode_bytes(env.state_dict()["observations"]) + encode_bytes(env.state_dict()["rewards"])
    env.step(random_actions(env, generator))
    assert encode_bytes(env.state_dict()["observations"]) + encode_bytes(env.state_dict()["rewards"]) == statistics


def encode_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_ranks_and_seeds_see_different_episodes():
    first = [make(seed=seed, rank=rank).reset() for seed, rank in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert torch.equal(first[0], make(seed=0, rank=0).reset())
    env = make(normalise_observations=False)
    assert not torch.equal(env.reset(), env.reset())  # later resets go on with the generators


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=8), seed=st.integers(0, 999), offset=st.floats(-1e3, 1e3))
def test_running_moments_equal_those_of_all_rows_together(sizes, seed, offset):
    rows = np.random.default_rng(seed).normal(offset, 2, (sum(sizes), 3))
    moments = RunningMoments(3)
    for batch in np.split(rows, np.cumsum(sizes)[:-1]):
        moments.update(batch)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-8, atol=1e-8)


def test_ranks_that_share_have_the_moments_of_all_their_rows():
    generator = np.random.default_rng(3)
    rows = 5 + 2 * generator.normal(size=(2, 3, 4, 7, 3))  # ranks, rollouts, steps, environments, columns
    ranks = [RunningMoments(3) for _ in range(2)]

    def share() -> None:
        given: list[torch.Tensor] = []
        for moments in deepcopy(ranks):
            moments.share(lambda own: given.append(own) or own[None])
        for moments in ranks:
            moments.share(lambda own: torch.stack(given))

    for rollout in range(3):
        for rank, moments in enumerate(ranks):
            for step in rows[rank, rollout]:
                moments.update(step)
        share()
        seen = rows[:, : rollout + 1].reshape(-1, 3)
        for moments in ranks:
            assert moments.count == len(seen)
            np.testing.assert_allclose(moments.mean, seen.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(moments.variance, seen.var(axis=0), rtol=1e-11)
        assert np.array_equal(ranks[0].squares, ranks[1].squares)
    share()  # nothing new: nothing changes
    assert ranks[0].count == len(seen)
    np.testing.assert_allclose(ranks[0].variance, seen.var(axis=0), rtol=1e-11)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    rng = np.random.default_rng(0)
    rewards, ended = rng.normal(3, 2, (50, 2)), rng.random((50, 2)) < 0.1
    normaliser = RewardNormaliser(2, gamma=0.9, clip=1.5)
    seen, running = [], [0.0, 0.0]
    for t in range(50):
        for b in range(2):
            running[b] = 0.9 * running[b] + rewards[t, b]
            seen.append(running[b])
        expected = np.clip(rewards[t] / np.sqrt(np.var(seen) + 1e-8), -1.5, 1.5)
        np.testing.assert_allclose(normaliser(rewards[t], ended[t]), expected, rtol=1e-9)
        running = [0.0 if ended[t, b] else running[b] for b in range(2)]


def test_environments_that_cannot_be_adapted_are_refused():
    with pytest.raises(ValueError, match="SAME_STEP"):
        GymnasiumVectorEnv(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"), seed=0)
    with pytest.raises(ValueError, match="SyncVectorEnv"):
        GymnasiumVectorEnv(gymnasium.make_vec("CartPole-v1", 2), seed=0)
    with pytest.raises(ValueError, match="Discrete or a Box"):
        recorder(gymnasium.spaces.MultiDiscrete([2, 2]))
    with pytest.raises(ValueError, match=r"a Tuple or Dict of them, got Text\("):
        drawer(gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2), gymnasium.spaces.Text(3)]))
    with pytest.raises(ValueError, match="bounded"):
        recorder(gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32))
    with pytest.raises(RuntimeError, match="before"):
        make().step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_envs"):
        make(num_envs=2).load_state_dict(make(num_envs=3).state_dict())


class Cards:
    """What an environment may keep: a plain object, here with another inside and the environment's generator."""

    def __init__(self, depth: int = 1) -> None:
        self.names, self.dealt = np.array(["ace", "ten"]), [3]
        self.inner = Cards(0) if depth else None


def test_a_plain_object_of_an_environment_is_saved_with_all_that_is_in_it():
    envs = [recorder(gymnasium.spaces.Discrete(2), num_envs=1) for _ in range(2)]
    for env in envs:
        env.envs.envs[0].cards = Cards()
        env.reset()
    used, fresh = (env.envs.envs[0] for env in envs)
    used.cards.inner.dealt.append(7)
    used.cards.names[1], used.cards.inner.shuffler = "two", used.np_random
    used.np_random.random(5)
    file = io.BytesIO()
    torch.save(envs[0].state_dict(), file)
    file.seek(0)
    envs[1].load_state_dict(torch.load(file, weights_only=True))
    assert fresh.cards.names.tolist() == ["ace", "two"]
    assert (fresh.cards.dealt, fresh.cards.inner.dealt) == ([3], [3, 7])
    assert fresh.cards.inner.shuffler is fresh.np_random
    assert fresh.cards.inner.shuffler.random() == used.np_random.random()


def circle(env: gymnasium.Env) -> Any:
    cards = Cards()
    cards.table = env
    return cards


@pytest.mark.parametrize(
    ("keeps", "message"),
    [
        (lambda env: {"deep": [object()]}, r"Recorder\.memory\['deep'\] is a object"),
        (lambda env: np.random.default_rng(0), r"Recorder\.memory is a Generator"),  # not the environment's own
        (circle, r"Recorder\.memory\.table is a Recorder"),
    ],
)
def test_a_state_that_a_checkpoint_cannot_hold_is_refused_by_name(keeps, message):
    env = recorder(gymnasium.spaces.Discrete(2))
    env.reset()
    env.envs.envs[1].memory = keeps(env.envs.envs[1])
    with pytest.raises(TypeError, match=message):
        env.state_dict()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**127 + 1,
        -0.1,
        "text",
        np.float32(0.1),
        np.float64(0.1),
        np.int64(7),
        np.bool_(True),
        np.arange(6, dtype=np.float64).reshape(2, 3),
        [1, (2.5, "x")],
        {"a": {"array": np.zeros(2, np.int32)}},
    ],
)
def test_saved_values_come_back_with_their_type(value):
    back = decode(encode(value, "value"))
    assert type(back) is type(value)
    np.testing.assert_equal(back, value)
