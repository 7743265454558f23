"""`lit-ppo power`: planted returns, shares over seeds, words, and the command on small bars."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

import lit_ppo
from datamodules.planted import KINDS, Edge, plant
from datamodules.planted_data import plant_in, planted_data
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.lab.power import Battery, Sizes, Subject, measure, row_of, run_battery, spread_folds
from lit_ppo.market.books import account
from lit_ppo.market.costs import FILLS, Costs, fill_arrays
from lit_ppo.report.power_page import power_page
from lit_ppo.scoring.power import (
    half_found,
    nothing_below,
    power_of,
    read_power,
    remedies,
    sentence,
    settings_of,
    share_over_seeds,
)
from lit_ppo.store.results import FoldRecord

SIZES = {"train_size": 400, "validation_size": 100, "test_size": 200, "step_size": 200, "warmup_bars": 50}
SPLIT = {"train_size": 2000, "validation_size": 500, "test_size": 500, "expand_train": False}


def market(**changes) -> SyntheticMarket:
    settings = {"kind": "random_walk", "num_bars": 3000, "seed": 3, "noise": "student_t", "dof": 4, "scale": 1e-3}
    return SyntheticMarket(**{**settings, "cost": 0.05, **changes})


@pytest.fixture(scope="module")
def data() -> WalkForwardDataModule:
    found = WalkForwardDataModule(synthetic=market(), cache=False, **SIZES)
    found.setup()
    return found


def subject(data, loop=None) -> Subject:
    return Subject(data, plant_in, planted_data, loop)


def record(shares: dict[str, list[float]], **more) -> dict:
    sizes = (1.5, 3.0, 6.0, 10.0)
    rows = [
        {"kind": kind, "sharpe": size, "share": share, "low": share, "high": share, "m": 0.1, "runs": [], **COUNTS}
        for kind, found in shares.items()
        for size, share in zip(sizes, found, strict=True)
    ]
    null = {"kind": "null", "sharpe": 0.0, "m": 0.0, "share": None, "low": None, "high": None, "runs": [], **COUNTS}
    return {"data": {"path": "bars.csv", "split": {**SPLIT, **more}}, "rows": rows, "null": null}


COUNTS = {"trainings": 6, "trained": 1, "traded": 0, "exposure": 0.0, "cost_in_sharpe": 0.0}


@pytest.mark.parametrize("fill", FILLS)
def test_the_planted_return_is_the_price_return_without_its_noise(fill):
    """Over many noises of one planted drift the mean price return of a bar is its planted one."""
    bars = market(num_bars=1500).bars()
    subject = Subject(SimpleNamespace(fill=fill), plant_in, planted_data, None)
    differences, planted_returns = [], []
    for seed in range(40):
        planted = plant(bars, Edge("season", 0.5), np.random.default_rng(seed))
        real = fill_arrays(planted.bars.frame, Costs(spread=0.0), fill, bars.point).price_return
        expected = subject.planted_return(planted)
        differences.append((real - expected)[500:-2])
        planted_returns.append(expected[500:-2])
    noise, signal = np.array(differences), np.array(planted_returns)
    slope = (noise * signal).sum() / (signal**2).sum()
    error = noise.std() / math.sqrt((signal**2).sum())
    assert abs(slope) < 4 * error


@pytest.mark.parametrize("fill", FILLS)
def test_the_planted_return_belongs_to_the_bar_between_the_two_fills(fill):
    bars = market(num_bars=1500).bars()
    edge = plant(bars, Edge("regime", 0.9), np.random.default_rng(1))
    still = plant(bars, Edge("regime", 0.0), np.random.default_rng(1))  # the same noise
    moved, plain = (fill_arrays(x.bars.frame, Costs(spread=0.0), fill, bars.point).price_return for x in (edge, still))
    expected = Subject(SimpleNamespace(fill=fill), plant_in, planted_data, None).planted_return(edge)
    rows = slice(600, -3)
    np.testing.assert_allclose((1 + moved[rows]) / (1 + plain[rows]) - 1, expected[rows], atol=3e-5)


def test_sizes_are_those_of_the_wanted_sharpe_ratio_and_rise_with_it(data):
    sizes = Sizes(subject(data), 0)
    found = [sizes.of("momentum", sharpe) for sharpe in (3.0, 10.0)]
    usable = slice(data.usable.start, data.usable.stop)
    for size, sharpe in zip(found, (3.0, 10.0), strict=True):
        planted = plant_in(data, "momentum", size, 0)
        assert subject(data).informed(planted, usable)[1] == pytest.approx(sharpe, rel=0.03)
    assert 0 < found[0] < found[1]
    assert sizes.of("null", 0.0) == 0.0
    with pytest.raises(ValueError, match="below the wanted 1000"):
        sizes.of("season", 1000.0)


@pytest.mark.parametrize("delay", [0, 5])
def test_who_trades_as_the_informed_trader_finds_all_of_it_and_who_trades_late_less(data, delay):
    """The rows, fills and costs of an agent's decisions are those of the informed trader."""

    def loop(made, folder, seed):
        def run():
            for fold in made.folds:
                segment = made.test_segment(fold.index)
                planted = plant_in(data, "momentum", 0.3, seed)
                positions = subject(data).informed(planted, slice(*fold.test))[0].positions
                positions = np.append(np.zeros(delay), positions)[: len(positions)]
                names = ("time", "price_return", "turnover_cost", "carry_long", "carry_short")
                books = account(positions, **{name: segment.decisions(name).numpy() for name in names})
                folder.append_out_of_sample(fold.index, books)
                folder.record_fold(FoldRecord(fold.index, status="done"))
            return folder.folds()

        return SimpleNamespace(run=run)

    found = measure(subject(data, loop), "momentum", 0.3, 4, [2])
    assert found["test_bars"] == SIZES["test_size"]
    if delay:
        assert 0 < found["share"] < 0.99
    else:
        assert found["share"] == pytest.approx(1.0, abs=1e-6)
        assert found["share_realised"] == pytest.approx(1.0, abs=1e-6)
        assert found["agent"] == pytest.approx(found["informed"])
        assert found["exposure"] == pytest.approx(found["informed_exposure"])
    assert (found["trained"], found["traded"]) == (1, 1)


@pytest.mark.parametrize(("available", "folds", "seeds"), [(109, 2, 3), (109, 4, 1), (7, 3, 2), (2, 5, 3), (1, 2, 2)])
def test_folds_are_spread_over_the_file_each_once_for_a_seed(available, folds, seeds):
    every = [spread_folds(available, folds, seeds, number) for number in range(seeds)]
    for chosen in every:
        assert len(chosen) == min(folds, available) == len(set(chosen))
        assert chosen == sorted(chosen)
        assert 0 <= chosen[0] <= chosen[-1] < available
    if available >= folds * seeds:
        assert len({fold for chosen in every for fold in chosen}) == folds * seeds
        assert np.diff(sorted(fold for chosen in every for fold in chosen)).max() <= available / (folds * seeds) + 1


def test_the_share_over_seeds_is_of_the_sums_and_its_interval_holds_it():
    agent, informed = [[1.0, 0.0], [2.0, 1.0], [0.0, 0.0]], [[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]]
    share = share_over_seeds(agent, informed)
    assert share.estimate == pytest.approx(0.5)
    assert 0.0 <= share.low < 0.5 < share.high <= 1.0
    assert share_over_seeds(informed, informed)[:] == (1.0, 1.0, 1.0)
    assert math.isnan(share_over_seeds([[0.0]], [[0.0]]).estimate)


@pytest.mark.parametrize(
    ("shares", "half", "nothing"),
    [
        ([0.0, 0.0, 0.25, 0.75], 8.0, 3.0),
        ([0.0, 0.6, 0.4, 0.9], 6.8, 1.5),  # a lucky small edge is none: every larger one must be half found
        ([0.75, 0.8, 0.9, 1.0], 1.0, 0.0),
        ([0.0, 0.0, 0.0, 0.3], None, 6.0),
        ([0.0, 0.0, 0.0, 0.0], None, 10.0),
    ],
)
def test_half_found_and_nothing_below(shares, half, nothing):
    sizes = [1.5, 3.0, 6.0, 10.0]
    assert half_found(sizes, shares) == (None if half is None else pytest.approx(half))
    assert nothing_below(sizes, shares) == nothing


def test_the_sentence_says_what_no_edge_means():
    seen = {"momentum": [0.0, 0.0, 0.2, 0.6], "reversion": [0.0, 0.0, 0.3, 0.8]}
    text = sentence(record({**seen, "season": [0.0] * 4}))
    assert text.startswith(
        "In windows of 2,000 bars with these costs this recipe finds half of an edge of annual Sharpe"
    )
    assert "8.2 and nothing up to 3 (momentum and reversion)" in text
    assert "none above 8.2" in text
    assert text.endswith("It does not see season at any of these sizes.")
    assert "finds nothing of an edge up to annual Sharpe 10" in sentence(record({"season": [0.0] * 4}))
    assert "less than half of an edge of annual Sharpe 10" in sentence(record({"drift": [0.0, 0.0, 0.2, 0.4]}))
    assert sentence(record(seen, expand_train=True)).startswith("In expanding windows from 2,000 bars")


def test_what_would_raise_the_power_is_not_what_is_done_already():
    assert "data.expand_train" in remedies({}, SPLIT)
    assert "model.start: prior" in remedies({"start": "scratch"}, SPLIT)
    reading = remedies({"start": "prior", "total_timesteps": 0}, SPLIT)
    assert "bars before the first fold" in reading
    assert "train_size" not in reading
    done = remedies({"start": "prior"}, {**SPLIT, "expand_train": True})
    assert "expand_train" not in done
    assert "start" not in done


def test_the_page_draws_a_line_a_kind_and_names_what_cannot_be_planted():
    made = record({"momentum": [0.0, 0.1, 0.2, 0.6]})
    made["rows"].append({"kind": "drift", "sharpe": 10.0, "m": None, "share": None, "why": "<too much>", "runs": []})
    made |= {"sentence": "S", "remedies": "R", "seeds": [0, 1], "folds": 2, "folds_there": 9}
    text = power_page(made)
    figures = [gzip.decompress(base64.b64decode(part)).decode() for part in re.findall(r"[A-Za-z0-9+/=]{400,}", text)]
    assert any('"name":"momentum"' in figure for figure in figures)
    assert "drift 10: &lt;too much&gt;" in text
    assert "traded in 0 of 6 folds: no false trading" in text


TINY = {"total_timesteps": 256, "num_envs": 4, "num_steps": 16, "num_networks": 1, "hidden_size": 4, "burn_in": 4}
RECIPE = {"model": TINY, "config": "scratch", "seed": 5, "cache": False, **SIZES}
SMALL = {"kinds": ["momentum"], "sharpes": [12.0], "seeds": 2, "folds": 1}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    results = tmp_path_factory.mktemp("power")
    bars = market().bars().frame
    model = {**TINY, "screen_features": False}
    return bars, lit_ppo.power(bars, **{**RECIPE, "model": model}, **SMALL, costs={"spread": 1e-4}, results=results)


def test_the_battery_goes_through_the_recipes_own_walk_forward_and_is_written_down(measured):
    _, power = measured
    assert {path.name for path in power.path.parent.iterdir()} == {"power.json", "power.html", "bars"}
    rows = power.rows
    assert rows["kind"].tolist() == ["null", "momentum"]
    assert rows["trainings"].tolist() == [2, 2]
    assert rows["trained"].tolist() == [2, 2]
    row = power.record["rows"][0]
    assert row["low"] <= row["share"] <= row["high"]
    for run in row["runs"]:
        assert run["test_bars"] == SIZES["test_size"]
        assert run["share"] == pytest.approx(sum(run["agent"]) / sum(run["informed"]))
    assert [run["seed"] for run in row["runs"]] == [5, 6]
    assert power.sentence == power.record["sentence"]


def test_a_battery_that_is_there_is_not_replaced_unasked(measured):
    bars, power = measured
    with pytest.raises(FileExistsError, match="--overwrite"):
        lit_ppo.power(bars, **RECIPE, **SMALL, results=power.path.parent)


def test_the_report_of_the_same_bars_and_settings_says_what_it_could_have_found(measured, tmp_path):
    _, power = measured
    made = power.record
    config = {
        "model": {**made["settings"]["model"], "seed": 9},
        "trainer": {"callbacks": made["settings"]["callbacks"]},
    }
    config["trainer"]["precision"] = made["settings"]["precision"]
    config |= {name: made["settings"][name] for name in ("parallel_candidates", "candidates")}
    data = {**made["data"], "path": "else.csv", "sha256": "x", "bars_per_year": 1.0}
    run = SimpleNamespace(path=power.path.parent / "5", record={"data": data})
    found = power_of(run, config)
    assert found.known
    assert found.text == power.sentence
    other = power_of(SimpleNamespace(path=run.path, record={"data": {**data, "bars_sha256": "y"}}), config)
    assert not other.known
    assert "of another data.bars_sha256" in other.text
    config["model"] = {**config["model"], "hidden_size": 99}
    assert "of another model.hidden_size" in power_of(run, config).text
    nowhere = power_of(SimpleNamespace(path=tmp_path / "5", record={"data": data}), config)
    assert "unknown: run lit-ppo power --from" in nowhere.text
    (tmp_path / "power.json").write_text("{")
    assert "cannot be read" in power_of(SimpleNamespace(path=tmp_path / "5", record={"data": data}), config).text
    assert power_of(SimpleNamespace(path=run.path, record={"data": data, "oracle": {}}), config) is None


def test_a_runs_own_recipe_is_measured_and_its_page_says_so(tmp_path, capsys):
    run = lit_ppo.walk_forward(
        market().bars().frame, **RECIPE, fold_limit=1, costs={"spread": 1e-4}, results=tmp_path / "runs"
    )
    assert (
        f"What could not have been found is unknown: run lit-ppo power --from {run.path}\n" in capsys.readouterr().out
    )
    assert "run lit-ppo power --from 5" in run.report().read_text(encoding="utf-8")
    small = ["--kinds=[season]", "--sharpes=[12]", "--seeds=1", "--folds=1"]
    assert main(["power", "--from", str(run.path), *small]) == 0
    assert "puts it on the page of that run" in " ".join(capsys.readouterr().out.split())
    text = run.report().read_text(encoding="utf-8")
    assert "In windows of 400 bars with these costs this recipe" in text
    assert "What would raise it: a longer window" in text


def test_settings_leave_the_seed_out():
    assert settings_of({"model": {"seed": 1, "gamma": 0.9}})["model"] == {"gamma": 0.9}


def test_a_kind_that_cannot_be_worth_so_much_is_a_row_and_not_an_end(data, monkeypatch):
    run = {"agent": [0.0], "informed": [1.0], "folds": [0], "trained": 1, "traded": 0, "exposure": 0.0, "seconds": 1.0}
    run |= {"cost_in_sharpe": 0.0, "informed_sharpe": 6.0}
    monkeypatch.setattr("lit_ppo.lab.power.measure", lambda *_: run)
    said: list[dict] = []
    found = run_battery(subject(data), Battery(("season",), (5.0, 1000.0), (0,), 1), said.append)
    assert said == [found["null"], *found["rows"]]
    assert [row["share"] for row in found["rows"]] == [0.0, None]
    assert "below the wanted 1000" in found["rows"][1]["why"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "power.json").write_text("{}")
    with pytest.raises(ValueError, match="is not what this version"):
        read_power(tmp_path / "power.json")
    with pytest.raises(FileNotFoundError, match="lit-ppo power"):
        read_power(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kinds=[nonsense]"], "--kinds are some of"),
        (['--kinds=["null"]'], "the null is always measured"),
        (["--sharpes=[-1]"], "above 0"),
        (["--seeds=0"], "--seeds must be >= 1"),
        (["--folds=-1"], "--folds must be >= 1"),
    ],
)
def test_a_flag_that_cannot_be_meant_ends_with_2(flags, message, capsys, tmp_path):
    arguments = ["power", "--data.synthetic.kind=random_walk", "--data.synthetic.num_bars=900", f"--results={tmp_path}"]
    assert main([*arguments, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_every_kind_gets_its_bars_and_a_column_its_feature(data):
    for kind in KINDS:
        planted = plant_in(data, kind, 0.0 if kind == "null" else 0.1, 0)
        made = planted_data(data, planted, [1, 3])
        assert [fold.index for fold in made.folds] == [0, 1]
        assert [fold.test for fold in made.folds] == [data.folds[1].test, data.folds[3].test]
        names = made.fold_data(1).train.feature_names
        assert ("planted_signal" in names) == (kind == "column")
        assert len(names) == len(data.specs) + (kind == "column")
        assert made.fingerprint()["bars_sha256"] != data.fingerprint()["bars_sha256"]


def test_a_row_pools_its_seeds():
    run = {"agent": [1.0], "informed": [2.0], "folds": [4], "trained": 1, "traded": 1, "exposure": 0.2}
    run |= {"cost_in_sharpe": 0.1, "informed_sharpe": 6.0, "seconds": 1.0}
    row = row_of(0.1, [run, {**run, "agent": [0.0], "traded": 0}])
    assert (row["share"], row["traded"], row["trainings"]) == (0.25, 1, 2)
    assert json.loads(json.dumps(row))["m"] == 0.1
