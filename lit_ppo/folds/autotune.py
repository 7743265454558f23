"""`--autotune`: a short probe of what suits this machine, said aloud and written down.

    threads                  how many of torch's threads; does not change what is learnt (but may change last bits)
    num_envs, num_minibatches  sequences side by side; DOES change what is learnt, and is therefore told apart

Minibatches keep their size: twice the sequences are cut into twice the minibatches, so that a timestep buys as many
gradient steps as before. A setting is changed only where it is faster than what was configured by `LEAST_GAIN`.
The choice is stored in the run's config.yaml and, with every measurement, in autotune.json; a resume takes it there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import torch

from lit_ppo.folds.machine_load import usable_cores
from lit_ppo.market.tensors import MarketTensors
from lit_ppo.ppo.learner import Learner
from lit_ppo.recipe import Recipe, build_optimizer, build_policy, experience, policy_inputs
from lit_ppo.store.atomic import atomic_write
from lit_ppo.store.schema import Within, read_json

SECONDS = 20.0  # of the whole probe
LEAST_GAIN = 0.10  # share of the speed
LEAST_ITERATIONS = 8  # PPO iterations that a fold must still have
FILE = "autotune.json"
Size = Annotated[int, Within(1, 10**6)]
CHANGES_RESULTS = ("num_envs", "num_minibatches")


@dataclass(frozen=True)
class Setting:
    """One thing that was tried."""

    threads: Size
    num_envs: Size
    num_minibatches: Size


class Probe(TypedDict):
    """What autotune.json must hold."""

    chosen: Setting


@dataclass(frozen=True)
class Choice:
    """What the probe found.

    Attributes:
        configured, chosen: settings before and after.
        steps_per_s: of every setting that was tried, in order.
    """

    configured: Setting
    chosen: Setting
    steps_per_s: list[tuple[Setting, float]]

    @property
    def changes(self) -> dict[str, int]:
        """Names and values that differ from what was configured."""
        before = asdict(self.configured)
        return {name: value for name, value in asdict(self.chosen).items() if value != before[name]}

    def lines(self) -> list[str]:
        """What the user is told."""
        speeds = dict(self.steps_per_s)
        then, now = speeds[self.configured], speeds[self.chosen]
        if not self.changes:
            return [f"autotune: nothing tried is {LEAST_GAIN:.0%} faster than the configuration ({then:,.0f} steps/s)"]
        before = asdict(self.configured)
        words = [f"{name} {before[name]} -> {value}" for name, value in self.changes.items()]
        lines = [f"autotune: {', '.join(words)}: {then:,.0f} -> {now:,.0f} steps/s; stored in config.yaml"]
        if named := [name for name in self.changes if name in CHANGES_RESULTS]:
            lines.append(
                f"autotune: {' and '.join(named)} CHANGE RESULTS: this run is not comparable, bar for bar, with one at "
                f"{' and '.join(f'{name} {before[name]}' for name in named)}"
            )
        return lines

    def write(self, directory: Path) -> None:
        """Keep what was tried and chosen in the run's folder."""
        tried = [{**asdict(setting), "steps_per_s": speed} for setting, speed in self.steps_per_s]
        record = {"configured": asdict(self.configured), "chosen": asdict(self.chosen), "tried": tried}
        atomic_write(directory / FILE, json.dumps(record, indent=1) + "\n")


def stored_choice(directory: Path) -> dict[str, int] | None:
    """What an earlier probe of this run chose; None if there was none."""
    path = directory / FILE
    return read_json(path, Probe, "Delete it")["chosen"] if path.is_file() else None


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... up to the number of cores, which is always among them."""
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == cores else [*counts, cores]


def batches(recipe: Recipe) -> list[tuple[int, int]]:
    """(num_envs, num_minibatches) to try: the configured one, and twice and four times as many of both."""
    found = [(recipe.num_envs, recipe.num_minibatches)]
    for factor in (2, 4):
        steps = factor * recipe.steps_per_iteration
        if recipe.total_timesteps >= LEAST_ITERATIONS * steps:
            found.append((factor * recipe.num_envs, factor * recipe.num_minibatches))
    return found


def autotune(
    recipe: Recipe,
    market: MarketTensors,
    threads: int | None = None,
    seconds: float = SECONDS,
    measure: Callable[[Recipe, MarketTensors, float], float] | None = None,
) -> Choice:
    """Try threads first, then batches with the threads that were best; restores the number of threads.

    Args:
        recipe: as configured.
        market: a fold's train bars; what is learnt on them here is thrown away.
        threads: as configured; None: torch's own choice.
        seconds: of the whole probe.
        measure: timesteps per second of a recipe; default: `steps_per_second`.
    """
    measure = measure or steps_per_second
    before = torch.get_num_threads()
    own = Setting(threads or before, recipe.num_envs, recipe.num_minibatches)
    tried: dict[Setting, float] = {}

    def speed(setting: Setting, share: float) -> float:
        if setting not in tried:
            torch.set_num_threads(setting.threads)
            changed = Recipe.from_dict(
                {
                    **recipe.to_dict(),
                    "num_envs": setting.num_envs,
                    "num_minibatches": setting.num_minibatches,
                }
            )
            tried[setting] = measure(changed, market, share)
        return tried[setting]

    counts, sizes = sorted({own.threads, *thread_counts(usable_cores())}), batches(recipe)
    share = seconds / (len(counts) + len(sizes) - 1)
    try:
        chosen = own
        for count in counts:
            chosen = _better(chosen, Setting(count, own.num_envs, own.num_minibatches), own, speed, share)
        start = chosen
        for num_envs, num_minibatches in sizes:
            chosen = _better(chosen, Setting(chosen.threads, num_envs, num_minibatches), start, speed, share)
    finally:
        torch.set_num_threads(before)
    return Choice(own, chosen, list(tried.items()))


def _better(
    best: Setting, other: Setting, configured: Setting, speed: Callable[[Setting, float], float], share: float
) -> Setting:
    """The faster of two; a change must beat what it replaces by `LEAST_GAIN`."""
    least = 1 + LEAST_GAIN if best == configured else 1.0
    return other if speed(other, share) > least * speed(best, share) else best


def steps_per_second(recipe: Recipe, market: MarketTensors, seconds: float) -> float:
    """Timesteps per second of training, the median over the PPO iterations of about `seconds`, the first left out."""
    inputs = policy_inputs(experience(recipe, market, 0))
    policy = build_policy(recipe, inputs, 0)
    learner = Learner(policy, build_optimizer(policy, recipe), recipe, seed=0)
    learner.attach(experience(recipe, market, 0))
    end = time.perf_counter() + seconds
    taken: list[float] = []
    learner.iterate()  # compiles and warms
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        learner.iterate()
        taken.append(time.perf_counter() - start)
    return recipe.steps_per_iteration / sorted(taken)[len(taken) // 2]


def overrides(chosen: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    """Configuration keys and values of a choice."""
    return [
        ("threads", chosen["threads"]),
        ("model.num_envs", chosen["num_envs"]),
        ("model.num_minibatches", chosen["num_minibatches"]),
    ]
