"""Advantages against slow sums, and the two estimators against each other."""

import pytest
import torch

from lit_ppo.ppo.advantages import counterfactual_advantage, generalized_advantage

T, S, P = 12, 4, 3


def random_rollout(seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ended = torch.rand(T, S, generator=generator)
    return {
        "rewards": normal(T, S),
        "values": normal(T, S),
        "next_values": normal(T, S),
        "terminated": ended < 0.1,
        "truncated": (ended >= 0.1) & (ended < 0.2),
    }


def advantage_oracle(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """A_t as the explicit O(T^2) sum of discounted one-step errors."""
    advantages = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            future = 0.0 if terminated[k] else gamma * next_values[k]
            total += weight * (rewards[k] + future - values[k])
            if terminated[k] or truncated[k]:
                break
            weight *= gamma * gae_lambda
        advantages.append(total)
    return advantages


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_advantage_matches_the_explicit_sum(gae_lambda):
    rollout = random_rollout(seed=0)
    advantages, targets = generalized_advantage(**rollout, gamma=0.9, gae_lambda=gae_lambda)
    for s in range(S):
        column = {name: x[:, s].tolist() for name, x in rollout.items()}
        expected = torch.tensor(advantage_oracle(**column, gamma=0.9, gae_lambda=gae_lambda), dtype=torch.float64)
        torch.testing.assert_close(advantages[:, s], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(targets, advantages + rollout["values"])


def test_nothing_after_an_episodes_end_reaches_back_over_it():
    rollout = random_rollout(seed=1)
    rollout["terminated"][5], rollout["truncated"][5] = False, True
    before, _ = generalized_advantage(**rollout, gamma=0.9, gae_lambda=0.95)
    rollout["rewards"][6:] += 100.0
    after, _ = generalized_advantage(**rollout, gamma=0.9, gae_lambda=0.95)
    torch.testing.assert_close(before[:6], after[:6], rtol=0, atol=0)
    assert not torch.equal(before[6:], after[6:])


def test_a_ruined_account_has_no_future_and_a_cut_one_keeps_its_value():
    one = torch.ones(1, 1)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    ruined, _ = generalized_advantage(one, 0 * one, 10 * one, yes, no, gamma=0.5, gae_lambda=0.9)
    cut, _ = generalized_advantage(one, 0 * one, 10 * one, no, yes, gamma=0.5, gae_lambda=0.9)
    assert ruined.item() == 1.0
    assert cut.item() == 6.0


def test_shapes_that_differ_are_refused():
    rollout = random_rollout(seed=2)
    rollout["values"] = rollout["values"][1:]
    with pytest.raises(ValueError, match=r"one \[T, S\] shape"):
        generalized_advantage(**rollout, gamma=0.9, gae_lambda=0.95)
    with pytest.raises(ValueError, match="counterfactual_advantage needs"):
        counterfactual_advantage(
            torch.zeros(T, S, P, P), torch.zeros(T, S, P, P), torch.zeros(T, S, P), torch.ones(S, P) / P, 0.9, 0.9
        )


def random_transitions(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(T, 1, P, P, generator=generator)
    probs = torch.randn(T, 1, P, P, generator=generator).softmax(-1)
    values = torch.randn(T + 1, 1, P, generator=generator)
    return rewards, probs, values


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_the_mean_of_many_sampled_advantages_is_the_counterfactual_one(gae_lambda):
    rewards, probs, values = random_transitions(seed=3)
    first = torch.tensor([[0.2, 0.5, 0.3]])
    exact = counterfactual_advantage(rewards, probs, values, first, 0.9, gae_lambda)
    generator = torch.Generator().manual_seed(4)
    accounts = 200_000
    held = torch.multinomial(first.expand(accounts, P), 1, generator=generator).squeeze(-1)
    columns = {name: [] for name in ("held", "actions", "rewards", "values", "next_values")}
    for t in range(T):
        actions = torch.multinomial(probs[t, 0][held], 1, generator=generator).squeeze(-1)
        columns["held"].append(held)
        columns["actions"].append(actions)
        columns["rewards"].append(rewards[t, 0][held, actions])
        columns["values"].append(values[t, 0][held])
        columns["next_values"].append(values[t + 1, 0][actions])
        held = actions
    path = {name: torch.stack(column) for name, column in columns.items()}
    ended = torch.zeros(T, accounts, dtype=torch.bool)
    sampled, _ = generalized_advantage(
        path["rewards"], path["values"], path["next_values"], ended, ended, 0.9, gae_lambda
    )
    for t in range(T):
        share = torch.bincount(path["held"][t], minlength=P) / accounts
        torch.testing.assert_close(share, exact.occupancy[t, 0], rtol=0, atol=0.006)
        for p in range(P):
            for a in range(P):
                chosen = (path["held"][t] == p) & (path["actions"][t] == a)
                # GAE measures from V(h, p), the counterfactual from q(p): the same up to V - q
                offset = exact.value_targets[t, 0, p] - values[t, 0, p]
                values_seen = sampled[t][chosen]
                error = 4 * values_seen.std() / len(values_seen) ** 0.5 + 1e-5
                assert abs(values_seen.mean() - (exact.advantages[t, 0, p, a] + offset)) < error, (t, p, a)


def test_counterfactual_advantages_average_to_zero_under_the_policy():
    rewards, probs, values = random_transitions(seed=5)
    exact = counterfactual_advantage(rewards, probs, values, torch.full((1, P), 1 / P), 0.99, 0.97)
    torch.testing.assert_close((probs * exact.advantages).sum(-1), torch.zeros(T, 1, P), rtol=0, atol=1e-5)
    torch.testing.assert_close(exact.occupancy.sum(-1), torch.ones(T, 1))


def test_with_lambda_one_the_value_targets_are_the_returns_of_a_brute_force_tree():
    rewards, probs, values = random_transitions(seed=6)
    exact = counterfactual_advantage(rewards, probs, values, torch.full((1, P), 1 / P), 0.9, 1.0)

    def value(t, p):
        if t == T:
            return values[T, 0, p].item()
        return sum(probs[t, 0, p, a].item() * (rewards[t, 0, p, a].item() + 0.9 * value(t + 1, a)) for a in range(P))

    for p in range(P):
        assert exact.value_targets[T - 5, 0, p].item() == pytest.approx(value(T - 5, p), abs=1e-5)
