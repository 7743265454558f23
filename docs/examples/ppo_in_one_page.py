"""Recurrent counterfactual PPO on one page, of the parts that lit-ppo itself is made of.

    python docs/examples/ppo_in_one_page.py [TIMESTEPS]

A market's drift flips between +0.2 and -0.2 noise units, once in 100 bars on average, and cannot be seen: prices only.
A position costs 0.1 units per unit changed. The best possible trader is known (dynamic programming on the belief), so
that the last line can say what share of its result the agent gets on bars it has never seen. docs/method.md has the
equations. Left out here: screen of the features, mirror, dropout, pull to the start, vote of three networks; see
`lit_ppo/ppo/sources.py`.
"""

import sys

import torch
from torch.nn.functional import log_softmax
from torch.nn.utils import clip_grad_norm_

from datamodules.oracle_bars import fresh_bars, train_fold
from datamodules.synthetic import SyntheticMarket
from lit_ppo.lab.oracle_score import FreshBars
from lit_ppo.market.rewards import transition_rewards
from lit_ppo.nets.networks import Seen
from lit_ppo.nets.policy import AllActionOutputs, MarketPolicy
from lit_ppo.oracles import optima
from lit_ppo.ppo.advantages import counterfactual_advantage
from lit_ppo.ppo.losses import ppo_loss
from lit_ppo.ppo.rollout import AllActionRollout
from lit_ppo.seeding import make_generator

SEED = 1
TRAIN_BARS, TEST_BARS = 50_000, 100_000
TOTAL_TIMESTEPS = 61_440  # bars visited
NUM_ENVS = 32  # S, stretches of bars side by side
NUM_STEPS = 128  # T, decisions a stretch
BURN_IN = 64  # bars before them that only fill the memory
UPDATE_EPOCHS, NUM_MINIBATCHES = 4, 2
LEARNING_RATE = 1e-2  # falls linearly to 0
GAMMA, GAE_LAMBDA = 0.995, 0.97
CLIP_COEF, VF_COEF, ENT_COEF, MAX_GRAD_NORM = 0.2, 0.1, 0.005, 0.5


def collect(policy, market, generator):
    """Try every held position p and every next position a on every bar of S random stretches: no action is sampled."""
    first = torch.randint(len(market) - BURN_IN - NUM_STEPS, (NUM_ENVS,), generator=generator)
    rows = first + torch.arange(BURN_IN + NUM_STEPS + 1).unsqueeze(1)  # [64 + T + 1, S]
    features = market.features[rows]  # [64 + T + 1, S, F]
    with torch.no_grad():
        _, state = policy.encode(features[:BURN_IN], policy.initial_state(NUM_ENVS))
        # The market does not react to us: one pass over the bars is the memory of every position that could be held.
        hidden, _ = policy.encode(features[BURN_IN:], state)
        log_probs = log_softmax(policy.logits(hidden.policy[:-1]), dim=-1)  # [T, S, P, P]: row = held, column = next
        values = policy.values(hidden.critic)  # [T + 1, S, P]; the last row is the bootstrap
    rewards = transition_rewards(market, rows[BURN_IN:-1], policy.positions)  # [T, S, P, P], net of costs
    num_positions = len(policy.positions)
    uniform = torch.full_like(values[0], 1 / num_positions)  # [S, P]: accounts start in any position
    estimate = counterfactual_advantage(rewards, log_probs.exp(), values, uniform, GAMMA, GAE_LAMBDA)
    # Half the weight is where the old policy would be, half is uniform: no held position is ever forgotten.
    held = 0.5 * estimate.occupancy + 0.5 / num_positions  # [T, S, P]
    weights = held.unsqueeze(-1) * log_probs.exp()  # [T, S, P, P]
    scale = (weights * estimate.advantages.square()).sum().div(weights.sum()).sqrt() + 1e-8
    return AllActionRollout(
        seen=Seen(features[BURN_IN:-1], state),  # the state as it was before the first decision
        log_probs=log_probs,
        advantages=estimate.advantages / scale,
        weights=weights,
        values=values[:-1],
        value_targets=estimate.value_targets,
        state_weights=held,
    )


def update(policy, optimizer, rollout, generator):
    """Ascend the clipped objective, on whole sequences: a shuffled step would meet another step's memory."""
    for _ in range(UPDATE_EPOCHS):
        for sequences in torch.randperm(NUM_ENVS, generator=generator).chunk(NUM_MINIBATCHES):
            batch = rollout.select(sequences)
            hidden, _ = policy.encode(batch.seen.observations, batch.seen.initial_state)
            outputs = AllActionOutputs(policy.logits(hidden.policy), policy.values(hidden.critic))
            loss = ppo_loss(outputs, batch, clip_coef=CLIP_COEF, vf_coef=VF_COEF, ent_coef=ENT_COEF)
            optimizer.zero_grad()
            loss.total.backward()
            clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
            optimizer.step()
    return loss


def main(total_timesteps=TOTAL_TIMESTEPS):
    """Train, then trade fresh bars greedily; returns the share of the optimum."""
    torch.set_num_threads(1)  # threads that share microseconds of work wait for each other
    data = train_fold(SyntheticMarket("regime", seed=SEED), TRAIN_BARS)
    market = data.fold_data(0).train  # features scaled on these bars; costs and returns between fills
    policy = MarketPolicy(num_features=1, positions=(-1, 0, 1), generator=make_generator(SEED, purpose="weights"))
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE, eps=1e-5)
    generator = make_generator(SEED, purpose="rollout")
    for timesteps in range(0, total_timesteps, NUM_ENVS * NUM_STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - timesteps / total_timesteps)
        rollout = collect(policy, market, generator)
        loss = update(policy, optimizer, rollout, generator)
        print(f"{timesteps:>7,} bars: entropy {loss.entropy:.3f}, KL {loss.approx_kl:.4f}, value loss {loss.value:.2f}")

    test = SyntheticMarket("regime", num_bars=TEST_BARS, seed=SEED + 1)  # the same market, other bars
    optimum = optima.solve(test.kind, **test.parameters)
    fresh = FreshBars.of(fresh_bars(data, test), optimum, test.scale, test.draw().returns, signal=None)
    score = fresh.score(policy)  # greedy; paired with the best trader on the same bars, so their luck cancels
    print(f"{score.reward:.4f} units a bar; the best possible trader earns {optimum.value:.4f} on average")
    print(f"{score.fraction:.1%} (+- {score.fraction_error:.1%}) of the optimum")
    return score.fraction


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
