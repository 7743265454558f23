"""Where the time of one PPO iteration goes: the settings of `benchmarks.vs_peers`, or the default recipe on a market.

    python -m benchmarks.profile --setting C --peers ../shared/peers
    python -m benchmarks.profile --setting market

CPU seconds of this process, so that a busy machine does not blur them (one thread); every part is also set against the
time its matrix products alone would take at the rate of one large sgemm.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import sgemm_gflops
from benchmarks.lit_ppo_peer import SETTINGS, reference_market, weights_multiplied
from datamodules.oracle_bars import train_fold
from datamodules.synthetic import SyntheticMarket
from lit_ppo.nets.policy import ObservationPolicy
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, experience, policy_inputs


def cpu(run: Callable[[], object], times: int = 1) -> float:
    """CPU milliseconds of one call."""
    started = time.process_time()
    for _ in range(times):
        run()
    return 1e3 * (time.process_time() - started) / times


def make_learner(setting: str, peers: Path) -> Learner:
    """The learner of one setting, past its first iteration (compiled, warm)."""
    if setting == "market":
        recipe = Recipe(total_timesteps=10**9)
        source = experience(recipe, train_fold(SyntheticMarket(kind="regime", seed=1), 20_000).fold_data(0).train, 0)
    else:
        recipe = Recipe(**SETTINGS[setting], total_timesteps=10**9)
        source = reference_market(peers, recipe.num_envs)  # type: ignore[assignment]
    policy = build_policy(recipe, policy_inputs(source), seed=0)
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)  # type: ignore[arg-type]
    learner.attach(source)
    learner.iterate()
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=[*SETTINGS, "market"], default="market")
    parser.add_argument("--peers", type=Path, default=Path("../shared/peers"))
    parser.add_argument("--trace", type=Path, help="write a trace of one iteration for chrome://tracing here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    learner = make_learner(arguments.setting, arguments.peers)
    recipe, policy = learner.config, learner.policy
    rollouts: list = []
    parts = {"rollout": cpu(lambda: rollouts.append(learner.collect()))}
    rollout = learner.normalise(rollouts[0])
    minibatch = next(learner.minibatches(rollout))
    count = recipe.update_epochs * recipe.num_minibatches

    def backward() -> None:
        learner.optimizer.zero_grad(set_to_none=True)
        learner.loss(minibatch).total.backward()

    forward = cpu(lambda: learner.loss(minibatch), 3)
    parts["minibatches: select"] = count * cpu(lambda: next(learner.minibatches(rollout)), 3)
    parts["minibatches: forward and loss"] = count * forward
    parts["minibatches: backward"] = count * (cpu(backward, 3) - forward)
    parts["minibatches: clip"] = count * cpu(learner.prepare_gradients, 3)
    parts["minibatches: optimizer"] = count * cpu(learner.optimizer.step, 3)
    if isinstance(policy, ObservationPolicy):
        state, observations = policy.initial_state(recipe.num_envs), rollout.seen.observations[0]
        with torch.no_grad():
            parts["(of the rollout: policy)"] = recipe.num_steps * cpu(
                lambda: policy.act(observations, state, learner.rollout_generator), 20
            )
    total = parts["rollout"] + sum(value for name, value in parts.items() if name.startswith("minibatches"))
    peak, weights = sgemm_gflops(), weights_multiplied(policy)
    products = recipe.steps_per_iteration * weights * 2e3 / peak / 1e9  # ms of one forward pass over the rollout
    for name, value in parts.items():
        print(f"{name:32s} {value:9.1f} ms  {100 * value / total:5.1f} %")
    print(f"{'one iteration':32s} {total:9.1f} ms  {recipe.steps_per_iteration / total * 1e3:,.0f} steps/s of one core")
    print(f"its products at sgemm's {peak:.0f} GFLOP/s: {products * (1 + 3 * recipe.update_epochs):.1f} ms")
    if arguments.trace:
        with torch.profiler.profile() as profiler:
            learner.iterate()
        profiler.export_chrome_trace(str(arguments.trace))
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
