"""The table of bars of docs/oracles.md: what share of the attainable the default recipe captures, every seed shown.

    python -m benchmarks.oracles                 # all rows, 10 seeds: two hours on one core; goes on where it stopped
    python -m benchmarks.oracles --seeds 3       # first look
    python -m benchmarks.oracles --rows o1 o3    # some rows
    python -m benchmarks.oracles --fresh         # forget what is there, after a change of the code

One recipe, untouched, for every row: the defaults of `lit_ppo.recipe.Recipe`. Each seed has its own train bars; all are
measured on the same 1,000,000 fresh bars of another seed with the weights at the end of training. Results are kept per
row and seed in benchmarks/results/oracles.json, with the commit each was made at.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.common import RESULTS, provenance, read, write
from datamodules.oracle_bars import fresh_bars, train_fold
from datamodules.synthetic import SyntheticMarket
from lit_ppo.commands.oracle import MarketMaker, OracleTask, rule_controls, summarise
from lit_ppo.oracles import optima
from lit_ppo.recipe import Recipe
from lit_ppo.store.provenance import code_state

PATH = RESULTS / "oracles.json"
ROOT = Path(__file__).parents[1]
MAKE = MarketMaker(SyntheticMarket, train_fold, fresh_bars)
TEST_BARS = 1_000_000
MANY_BARS = 500_000  # "as many as it likes": more than a training visits
UNSEEN_DRAWS = 20
WORTH_LEARNING = 0.01  # units per bar: below, the optimum is flat or nearly so, and no share of it can be measured


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: for the reader.
        market: keywords of `SyntheticMarket`.
        train_bars: bars to learn from.
        timesteps: bars visited.
        seconds: budget of a seed.
        bar: least interquartile mean; None where another condition is the bar (random walk, control).
        bar_text: the bar in words.
        encoder: of the recipe; "memoryless" is the control.
        config: recipe file; "" is the defaults.
        test_bars: fresh bars to measure on; an account at the encoder is traded bar by bar, about 500 a second.
        most_seeds: no more than these, whatever is asked for.
    """

    title: str
    market: dict[str, Any]
    train_bars: int
    timesteps: int
    seconds: float
    bar: float | None
    bar_text: str
    encoder: str = "lstm"
    config: str = ""
    test_bars: int = TEST_BARS
    most_seeds: int = 1000

    @property
    def control(self) -> Row:
        """The same trainer without memory, in three seeds: what the row's memory is worth."""
        title = f"{self.title}, without memory"
        return replace(
            self, title=title, bar=None, bar_text="control", encoder="memoryless", most_seeds=min(3, self.most_seeds)
        )


def _nuisance(kind: str, train_bars: int, bar: float, seconds: float) -> Row:
    name = {"iid": "iid normal", "random_walk": "random walks", "lagged": "lagged copies", "noisy": "noisy copies"}
    title = f"O3 main + 30 nuisance features ({name.get(kind, kind)}), from {train_bars:,} bars"
    market = {"kind": "regime", "nuisances": 30, "nuisance_kind": kind}
    text = f">= {100 * bar:.0f} %" + (", no seed below 0" if train_bars < 5000 else "")
    return Row(title, market, train_bars, 1_000_000, seconds, bar, text)


MAIN: dict[str, Any] = {"kind": "regime"}
ROWS: dict[str, Row] = {
    "o1": Row("O1 main: visible predictor", {"kind": "predictor"}, MANY_BARS, 500_000, 20, 0.98, ">= 98 %"),
    "o3": Row("O3 main: hidden regime", MAIN, MANY_BARS, 1_000_000, 30, 0.98, ">= 98 %, probe R2 >= 0.9"),
    "o3_memoryless": Row(
        "the same trainer without memory (control)", MAIN, MANY_BARS, 1_000_000, 30, None, "<= 60 %", "memoryless"
    ),
    "o3_short": Row("O3 main, a fold's budget", MAIN, MANY_BARS, 100_000, 3, 0.9, ">= 90 %"),
    "o3_original": Row(
        "the same with the first user's recipe (configs/original.yaml), 20,000 test bars",
        MAIN,
        MANY_BARS,
        100_000,
        3600,
        None,
        "for comparison",
        config="configs/original.yaml",
        test_bars=20_000,
        most_seeds=1,
    ),
    "o3_window": Row("O3 main, from 2,500 bars", MAIN, 2500, 1_000_000, 30, 0.94, ">= 94 %"),
    "o3_hard": Row("O3 hard, from 50,000 bars", {"kind": "regime", "mu": 0.1}, 50_000, 3_000_000, 60, 0.94, ">= 94 %"),
    "nuisance_20k": _nuisance("iid", 20_000, 0.95, 30),
    "nuisance_2k": _nuisance("iid", 2500, 0.75, 60),
    "o4": Row(
        "O4: random walk, nothing to learn",
        {"kind": "random_walk"},
        MANY_BARS,
        500_000,
        20,
        None,
        "trades on < 1 % of bars, J within 2 SE of 0",
    ),
    "nuisance_20k_random_walk": _nuisance("random_walk", 20_000, 0.95, 30),
    "nuisance_20k_lagged": _nuisance("lagged", 20_000, 0.95, 30),
    "nuisance_20k_noisy": _nuisance("noisy", 20_000, 0.95, 30),
    "nuisance_2k_mixed": _nuisance("mixed", 2500, 0.75, 60),
}
CONTROL_SUFFIX = "_memoryless"  # of a row's control; that of `o3` is a row of its own, with a bar
CONTROLS = {
    f"{name}{CONTROL_SUFFIX}": row.control
    for name, row in ROWS.items()
    if not row.config and row.market["kind"] != "random_walk" and name not in ("o3", "o3_memoryless")
}
ALL_ROWS = ROWS | CONTROLS


@dataclass(frozen=True)
class Job:
    """One training: a row (or a draw of the unseen-parameter test) and a seed."""

    group: str
    seed: int
    market: dict[str, Any] = field(hash=False)
    train_bars: int
    timesteps: int
    encoder: str = "lstm"
    config: str = ""
    test_bars: int = TEST_BARS
    changes: dict[str, Any] = field(default_factory=dict, hash=False)  # of the recipe


def unseen_draws() -> list[Job]:
    """Markets nobody tuned for: q, mu, cost, noise shape and train size at random, from a fixed stream."""
    numbers, jobs = np.random.default_rng(20_250_901), []
    while len(jobs) < UNSEEN_DRAWS:
        market: dict[str, Any] = {
            "kind": "regime",
            "q": round(float(np.exp(numbers.uniform(math.log(0.003), math.log(0.05)))), 4),
            "mu": round(float(numbers.uniform(0.08, 0.5)), 3),
            "cost": round(float(numbers.uniform(0.02, 0.4)), 3),
        }
        if numbers.random() < 0.5:
            market |= {"noise": "student_t", "dof": round(float(numbers.uniform(2.5, 10)), 1)}
        train_bars = round(float(np.exp(numbers.uniform(math.log(2500), math.log(50_000)))), -2)
        parameters = SyntheticMarket(**market).parameters
        if optima.solve("regime", **parameters).value >= WORTH_LEARNING:
            jobs.append(Job("unseen", len(jobs), market, int(train_bars), 500_000))
    return jobs


def run_job(job: Job) -> dict[str, Any]:
    """Train and score one seed."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for boring in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", boring)
    task = OracleTask(job.market, job.train_bars, job.test_bars)
    recipe: dict[str, Any] = {}
    if job.config:
        recipe = yaml.safe_load((ROOT / job.config).read_text(encoding="utf-8"))["model"]
    recipe["total_timesteps"] = job.timesteps
    recipe["encoder"] = job.encoder
    recipe |= job.changes
    curve = 0 if job.config or job.changes else 50_000
    result = task.train(MAKE, job.seed, recipe, curve_decisions=curve).to_dict()
    return {**result, "commit": code_state()}


def jobs_of(rows: list[str], seeds: int) -> list[Job]:
    """Every training of the rows asked for, row by row."""
    jobs = []
    for name in rows:
        if name == "unseen":
            jobs += unseen_draws()
            continue
        row = ALL_ROWS[name]
        for seed in range(min(seeds, row.most_seeds)):
            settings = (row.market, row.train_bars, row.timesteps, row.encoder, row.config, row.test_bars)
            jobs.append(Job(name, seed, *settings))
    return jobs


def store(path: Path, record: dict[str, Any], job: Job, result: dict[str, Any]) -> None:
    """Add one result, bring the row's summary up to date, and write all of it."""
    group = record["rows"].setdefault(job.group, {"seeds": []})
    if job.group == "unseen":
        result |= {"market": job.market, "train_bars": job.train_bars}
        group["title"] = f"{UNSEEN_DRAWS} markets of unseen parameters, 500,000 timesteps"
    else:
        row = ALL_ROWS[job.group]
        parameters = SyntheticMarket(**row.market).parameters
        optimum = optima.solve(row.market["kind"], **parameters).value
        group |= {**asdict(row), "optimum_per_bar": optimum}
        group["rules"] = rule_controls(parameters, row.market["kind"])
    group["seeds"] = sorted([*group["seeds"], result], key=lambda seed: seed["seed"])
    group["summary"] = summarise(group["seeds"])
    if job.group in ALL_ROWS:
        group["passed"] = passed(ALL_ROWS[job.group], group)
    record.update(provenance())
    write(path, record)


def passed(row: Row, group: dict[str, Any]) -> bool | None:
    """Whether the row meets its bar, in the figures (time apart: it depends on who else uses the machine)."""
    seeds, summary = group["seeds"], group["summary"]
    if row.config or row.bar_text == "control":
        return None
    if summary["looks_ahead"]:
        return False
    if row.market["kind"] == "random_walk":
        quiet = all(seed["trades_per_bar"] < 0.01 for seed in seeds)
        return quiet and all(abs(seed["reward"]) <= 2 * seed["standard_error"] for seed in seeds)
    if row.bar is None:
        return summary["interquartile_mean"] <= 0.6
    enough = summary["interquartile_mean"] >= row.bar
    enough = enough and summary["min"] >= 0.8 * row.bar * ("no seed below 0" not in row.bar_text)
    if "probe" in row.bar_text:
        enough = enough and all(seed["probe_r2"] >= 0.9 for seed in seeds)
    return enough


def line(job: Job, result: dict[str, Any]) -> str:
    if result["fraction"] is not None:
        figure = f"{100 * result['fraction']:7.2f} % +- {100 * result['fraction_error']:.2f}"
    else:
        figure = f"J {result['reward']:+.5f} +- {result['standard_error']:.5f}, trades {result['trades_per_bar']:.4f}"
    times = {level: point and round(point["seconds"], 1) for level, point in result["reached"].items()}
    probe = "" if result["probe_r2"] is None else f"  R2 {result['probe_r2']:.3f}"
    alarm = "  LOOKS AHEAD" if result["looks_ahead"] else ""
    return f"{job.group:26s} seed {job.seed:2d}  {figure}  {result['seconds']:6.1f} s  reached {times}{probe}{alarm}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[*ALL_ROWS, "unseen"], choices=[*ALL_ROWS, "unseen"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each (seconds suffer)")
    parser.add_argument("--fresh", action="store_true", help="run the rows again that are already in the results")
    parser.add_argument("--out", type=Path, default=PATH)
    arguments = parser.parse_args()
    record = read(arguments.out) or {"what": "share of the known optimum, default recipe, fresh bars", "rows": {}}
    recipe = Recipe().to_dict()
    if Recipe.from_dict(record.get("recipe", recipe)).to_dict() != recipe and not arguments.fresh:
        raise SystemExit(f"{arguments.out} was made with another default recipe; --fresh starts its rows again")
    record["recipe"] = recipe
    if arguments.fresh:
        for name in arguments.rows:
            record["rows"].pop(name, None)
    done = {(name, seed["seed"]) for name, row in record["rows"].items() for seed in row["seeds"]}
    todo = [job for job in jobs_of(arguments.rows, arguments.seeds) if (job.group, job.seed) not in done]
    print(f"{len(todo)} trainings to do, {len(done)} done")
    if arguments.jobs == 1:
        for job in todo:
            result = run_job(job)
            print(line(job, result), flush=True)
            store(arguments.out, record, job, result)
        return
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job): job for job in todo}
        for future in as_completed(futures):
            print(line(futures[future], future.result()), flush=True)
            store(arguments.out, record, futures[future], future.result())


if __name__ == "__main__":
    main()
