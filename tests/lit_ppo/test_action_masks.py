"""Masked actions of a recurrent policy: never taken, no gradient, and the same mask in rollout, loss and decision."""

from __future__ import annotations

import io
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from datamodules.gymnasium_data import GymnasiumDataModule
from lit_ppo.envs.gymnasium_vector import GymnasiumVectorEnv, environment_of
from lit_ppo.nets.policy import ObservationPolicy, SampledOutputs
from lit_ppo.ppo.losses import ppo_loss
from lit_ppo.ppo.rollout import SampledRollout, StepwiseCollector
from lit_ppo.scoring.episode_evaluation import evaluate_episodes
from lit_ppo.seeding import make_generator

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


@pytest.fixture
def doors(monkeypatch) -> GymnasiumDataModule:
    """The documented task, whose environment refuses what its mask forbids."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    wrapper = {"class_path": "masked_task.Stretched", "init_args": {"factor": 2.0}}
    options = {"training_wrappers": [wrapper], "normalise_observations": False, "test_episodes": 40}
    return GymnasiumDataModule("masked_task.Doors", **options, allow_modules=["masked_task"])


def policy_of(env: GymnasiumVectorEnv, **options) -> ObservationPolicy:
    sizes = (env.observation_size, env.num_actions, env.action_size)
    return ObservationPolicy(*sizes, hidden_size=8, generator=make_generator(3), **options)


def collector_of(data: GymnasiumDataModule, **options) -> StepwiseCollector:
    env = environment_of(data.task, 6, seed=0)
    return StepwiseCollector(env, policy_of(env, **options))


@pytest.mark.parametrize("shared_encoder", [True, False])
def test_a_masked_action_is_never_taken_and_every_ratio_is_one(doors, shared_encoder):
    collector = collector_of(doors, shared_encoder=shared_encoder)
    # What the policy likes best is forbidden most of the time: unmasked it would be taken nearly always.
    with torch.no_grad():
        collector.policy.policy_head[-1].bias.copy_(torch.tensor([0.0, 9, 9, 9, 9]))
    for _ in range(2):
        rollout = collector.collect(40, 0.99, 0.95, make_generator(1))
        mask = rollout.seen.action_mask
        assert mask.shape == (40, 6, 5)
        assert mask.gather(-1, rollout.actions.unsqueeze(-1)).all()
        assert (mask.sum(-1) == torch.where(mask[..., 0], 1, 2)).all()
        assert (~mask[..., 0]).any()
        outputs = rollout.evaluate(collector.policy)
        torch.testing.assert_close(outputs.log_probs, rollout.log_probs, rtol=0, atol=2e-6)
        two = rollout.select(torch.tensor([1, 4])).evaluate(collector.policy)
        torch.testing.assert_close(two.log_probs, rollout.log_probs[:, [1, 4]], rtol=0, atol=2e-6)


def test_greedy_episodes_take_no_masked_action_and_count_the_tasks_own_reward(doors):
    (task,) = doors.test_dataloader()
    policy = policy_of(environment_of(task, 1, seed=0))
    with torch.no_grad():
        policy.policy_head[-1].bias.copy_(torch.tensor([0.0, 9, 9, 9, 9]))
    result = evaluate_episodes(policy, task, seed=0)  # Doors raises at a forbidden action
    assert set(result.total_rewards.tolist()) == {0.0, 1.0}  # 2.0 is the shaped reward of training
    assert result.lengths.tolist() == [6] * 40


def test_a_masked_action_has_no_gradient_and_no_entropy(doors):
    collector = collector_of(doors)
    rollout = collector.collect(40, 0.99, 0.95, make_generator(1))
    waiting = rollout.seen.action_mask[..., 0]
    assert rollout.evaluate(collector.policy).entropies[waiting].abs().max() == 0  # one action only: nothing to choose
    hidden = torch.randn(7, 8, generator=make_generator(4))
    mask = torch.tensor([False, True, True, False, True]).expand(7, 5)
    policy = collector.policy
    parameters = policy.action_parameters(hidden, torch.zeros(7, 8), mask)
    actions = torch.tensor([1, 2, 4, 1, 2, 4, 1])
    log_probs, entropies = policy.log_probs(parameters, actions)
    free = torch.distributions.Categorical(logits=policy.policy_head(hidden)[:, [1, 2, 4]])
    torch.testing.assert_close(entropies, free.entropy())
    torch.testing.assert_close(log_probs, free.log_prob(torch.tensor([0, 1, 2, 0, 1, 2, 0])))
    advantages, values = torch.randn(7, generator=make_generator(5)), torch.zeros(7)
    loss = ppo_loss(
        SampledOutputs(log_probs, entropies, values),
        SampledRollout(rollout.seen, actions, log_probs.detach(), advantages, values, values),
        clip_coef=0.2,
        vf_coef=0.5,
        ent_coef=0.1,
    )
    loss.total.backward()
    gradient = policy.policy_head[-1].weight.grad
    assert torch.equal(gradient[[0, 3]], torch.zeros(2, gradient.shape[1]))
    assert torch.equal(policy.policy_head[-1].bias.grad[[0, 3]], torch.zeros(2))
    assert gradient[[1, 2, 4]].abs().min() > 0
    assert torch.isfinite(loss.total)


def test_a_resumed_collector_has_the_mask_of_the_decision_that_comes_next(doors):
    one, other = collector_of(doors), collector_of(doors)
    generator = make_generator(1)
    one.collect(5, 0.99, 0.95, generator)  # the next decision is at the doors
    assert not one.env.action_mask[:, 0].any()
    file = io.BytesIO()
    torch.save({"collector": one.state_dict(), "generator": generator.get_state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["collector"])
    again = make_generator(9)
    again.set_state(saved["generator"])
    for _ in range(2):
        expected, found = one.collect(20, 0.99, 0.95, generator), other.collect(20, 0.99, 0.95, again)
        for name in ("actions", "log_probs", "advantages"):
            assert torch.equal(getattr(expected, name), getattr(found, name)), name
        for name in ("action_mask", "observations"):
            assert torch.equal(getattr(expected.seen, name), getattr(found.seen, name)), name


class Said(gymnasium.Env):
    """Says as its masks, one after the other, what it is given."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, masks, action_space=None) -> None:
        self.action_space, self.masks = action_space or gymnasium.spaces.Discrete(2), list(masks)

    def _info(self):
        mask = self.masks.pop(0)
        return {} if mask is None else {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), self._info()

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, self._info()


def said(*masks, **options) -> GymnasiumVectorEnv:
    envs = SyncVectorEnv([lambda: Said(masks, **options)] * 2, autoreset_mode="SameStep")
    return GymnasiumVectorEnv(envs, seed=0)


def test_a_mask_may_be_a_list_and_absent_masks_are_none():
    env = said([1, 0], np.array([True, True]))
    env.reset()
    assert env.action_mask.tolist() == [[True, False]] * 2
    env.step(torch.tensor([0, 0]))
    assert env.action_mask.all()
    free = said(None, None)
    free.reset()
    free.step(torch.tensor([0, 1]))
    assert free.action_mask is None


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        (([0, 0],), {}, "forbids every action"),
        (([1, 1, 1],), {}, "must be 2 numbers"),
        (([2, 1],), {}, "must be 2 numbers"),
        (([1, 1], None), {}, "every reset and every step"),
        ((None, [1, 1]), {}, "every reset and every step"),
        (([1],), {"action_space": gymnasium.spaces.Box(-1, 1, (1,), np.float32)}, "Discrete actions"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(masks, options, message):
    env = said(*masks, **options)

    def two_steps() -> None:
        env.reset()
        env.step(torch.tensor([1, 1]))

    with pytest.raises(ValueError, match=message):
        two_steps()
