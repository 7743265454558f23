"""`lit-ppo walk-forward --from results/42/run.json`: run somebody's run again, and say what differs.

The run's config.yaml is the configuration; flags after it overlay it, as always. Before training it is told what
differs in versions, code, machine and data; afterwards, whether the test decisions came out the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lit_ppo.store.files import shown_path
from lit_ppo.store.results import Run, load_run, run_record

COMPARED = ("versions", "commit", "dirty", "machine", "data")
SUFFIX = "_again"
PER_CALL = ("resume", "overwrite", "allow_mismatch", "seeds", "workers", "cluster", "quiet", "json")  # not of the run
OF_ONE_CALL = ("config", "results", *PER_CALL)


def take_original(arguments: Sequence[str]) -> tuple[list[str], Run | None]:
    """Take `--from RUN` out of a command's arguments, and put the run's configuration in its place.

    The rerun goes to a directory next to the original's, RESULTS_again, unless `--results` names another: a run is
    never written over.

    Args:
        arguments: what follows `walk-forward`.

    Returns:
        The other arguments, and the run; None where `--from` was not given.

    Raises:
        ValueError: `--from` without a run, or twice.
        FileNotFoundError: no run there, or one without config.yaml.
    """
    rest: list[str] = []
    named: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag != "--from":
            rest.append(argument)
        else:
            named.append(value if equals else next(waiting, ""))
    if not named:
        return rest, None
    if len(named) > 1 or not named[0] or named[0].startswith("-"):
        raise ValueError("--from names one run, by its folder or its run.json: --from results/42/run.json")
    path = Path(named[0])
    folder = path.parent if path.name == "run.json" else path
    run = load_run(folder)
    if not run.config:
        raise FileNotFoundError(f"{shown_path(folder)} has no config.yaml, so its run cannot be repeated")
    again = folder.resolve().parent
    again = again.with_name(f"{again.name}{SUFFIX}")
    return ["--config", str(folder / "config.yaml"), "--results", str(again), *rest], run


def differences_now(original: Run, data: Any, config: str) -> list[str]:
    """Name what is not as it was when the original was made: "versions.torch was '2.13.0' and is '2.12.0'".

    Args:
        original: the run that is repeated.
        data: the datamodule of the rerun, set up.
        config: merged configuration of the rerun, YAML.
    """
    record = run_record(seed=0, data=data.fingerprint(), command=[])
    settings = [
        {key: value for key, value in found.items() if key not in OF_ONE_CALL}
        for found in (original.settings, yaml.safe_load(config))
    ]
    then, now = ({key: source.get(key) for key in COMPARED} for source in (original.record, record))
    return [*_differences(settings[0], settings[1], "config"), *_differences(then, now)]


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """Entries of `now` that `then` has otherwise, at any depth; `then` may hold more (a path, a hash of the file)."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted(now):
            yield from _differences(then.get(key), now[key], f"{name}.{key}" if name else key)
    elif then != (list(now) if isinstance(now, tuple) else now):
        yield f"{name} was {then!r} and is {now!r}"


@dataclass(frozen=True)
class Outcome:
    """How a rerun came out.

    Attributes:
        same_bytes: out_of_sample.csv is the same, byte for byte.
        decisions: test decisions of both, and how many of them differ.
        largest: the largest difference of two net returns, fraction of notional; nan where the bars are not the same.
    """

    same_bytes: bool
    decisions: tuple[int, int, int]
    largest: float

    def __str__(self) -> str:
        then, now, changed = self.decisions
        if self.same_bytes:
            return f"out_of_sample.csv equals the original's, byte for byte ({now:,} decisions)"
        if np.isnan(self.largest):
            return f"out_of_sample.csv has {now:,} decisions, the original {then:,}, on other bars"
        return (
            f"out_of_sample.csv differs from the original's: {changed:,} of {now:,} decisions, net returns by at most "
            f"{self.largest:.3g}"
        )


def compare_outcome(original: Run, again: Run) -> Outcome:
    """Compare the test decisions of two finished runs."""
    files = [run.path / "out_of_sample.csv" for run in (original, again)]
    then, now = original.out_of_sample, again.out_of_sample
    same_bytes = all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes()
    if len(then) != len(now) or not (then["time"] == now["time"]).all():
        return Outcome(same_bytes, (len(then), len(now), 0), float("nan"))
    changed = int((then["position"] != now["position"]).sum())
    largest = float(np.abs(then["net_return"] - now["net_return"]).max()) if len(now) else 0.0
    return Outcome(same_bytes, (len(then), len(now), changed), largest)


def say_differences(original: Run, data: Any, config: str) -> None:
    """Print what differs from the original before its rerun starts."""
    data.setup("fit")
    found = differences_now(original, data, config)
    print(f"again: {shown_path(original.path)}; " + ("what differs:" if found else "nothing differs"))
    for line in found:
        print(f"  {line}")


def say_outcome(original: Run, folder: Path) -> None:
    """Print how the rerun in `folder` came out."""
    print(f"again: {compare_outcome(original, load_run(folder))}")
