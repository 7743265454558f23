"""`lit-ppo search`: the space, the bars, trials that are drawn alike after a kill, and test bars that are read once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import lit_ppo
from benchmarks.null_searches import run, summary
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.commands import search as command
from lit_ppo.commands.search import History, _folded, _order
from lit_ppo.commands.search_space import Plan, Range, plan_of
from lit_ppo.folds import engine
from lit_ppo.folds.engine import FoldWork
from lit_ppo.folds.trial import Trial, first_unseen, fitting_folds, searched_folds
from lit_ppo.market.tensors import BarRange, Fold
from lit_ppo.report.search_page import search_page
from lit_ppo.store.looks import looks
from lit_ppo.store.results import FoldRecord, RunFolder, load_run
from tests.lit_ppo.test_engine import PretendedRay

pytest.importorskip("optuna")
optuna = command.import_optuna()
KNOWN = {"model.learning_rate", "model.hidden_size", "model.gamma", "model.seed", "data.features", "data.train_size"}
KNOWN |= {"data.costs.spread", "data.test_size"}
SIZES = {"train_size": 300, "validation_size": 100, "test_size": 200, "step_size": 200, "warmup_bars": 20}
SPACE = {"model.learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "model.hidden_size": [2, 4, None]}


def plan(space=SPACE, **settings) -> Plan:
    return plan_of({"space": space, **settings}, "space.yaml", KNOWN)


# The space


def test_a_space_is_lists_and_ranges_and_knows_lists_by_their_text():
    entries = [{"name": "log_return"}]
    found = plan({**SPACE, "data.features": ["default", entries], "data.train_size": {"low": 200, "high": 400}})
    assert found.space["model.learning_rate"] == Range(0.001, 0.1, log=True)
    assert found.space["data.train_size"].whole
    names = {
        "model.learning_rate": 0.01,
        "model.hidden_size": None,
        "data.features": json.dumps(entries),
        "data.train_size": 300,
    }
    assert found.settings(names)["data.features"] == entries
    assert found.names_of(found.settings(names)) == names
    assert found.names_of({"model.learning_rate": 0.5, "model.hidden_size": 3}) == {}  # the recipe lies outside
    assert found.largest("data.train_size", 300) == 400
    assert plan_of(found.to_dict(), "again", KNOWN) == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "needs `space`"),
        ({"space": SPACE, "trails": 3}, "there is no trails; did you mean trials?"),
        ({"space": SPACE, "trials": 0}, "numbers >= 1"),
        ({"space": SPACE, "objective": "luck"}, "objective must be one of 'sharpe_annual'"),
        ({"space": SPACE, "p_threshold": 1.5}, r"p_threshold is in \[0, 1\)"),
        ({"space": {"model.learing_rate": [1]}}, "did you mean model.learning_rate?"),
        ({"space": {"model.seed": [1, 2]}}, "no recipe has the key model.seed"),
        ({"space": {"data.costs.spread": [0.0, 1.0]}}, "data.costs.spread cannot be searched"),
        ({"space": {"data.test_size": [100, 200]}}, "trials are paired on the same validation bars"),
        ({"space": {"model.gamma": ["high"]}}, "model.gamma must be a number"),
        ({"space": {"model.gamma": []}}, "is a list of values"),
        ({"space": {"model.gamma": [0.9, 0.9]}}, "lists a value twice"),
        ({"space": {"model.gamma": {"low": 0.9}}}, "is a list of values"),
        ({"space": {"model.gamma": {"low": 0.9, "high": 0.5}}}, "low < high"),
        ({"space": {"model.learning_rate": {"low": 0.0, "high": 0.5, "log": True}}}, "log wants low > 0"),
        ({"space": {"model.hidden_size": {"low": 2, "high": 8, "step": 0.5}}}, "its step must be one"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused_with_its_key(content, message):
    with pytest.raises(ValueError, match=message):
        plan_of(content, "space.yaml", KNOWN)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs/search").glob("*.yaml")))
def test_shipped_searches_can_be_read_and_hold_the_own_setting_of_the_recipe_their_first_line_names(path):
    text = path.read_text()
    content = yaml.safe_load(text)
    named = re.match(rf"#.*lit-ppo search --config (\w+) --space {path.stem} ", text)
    assert named, "the first line is a comment that ends with the command"
    found = plan_of(content, str(path), set(content["space"]))
    recipe = yaml.safe_load((path.parents[1] / f"{named[1]}.yaml").read_text())
    own = {f"model.{name}": value for name, value in lit_ppo.Recipe(**recipe["model"]).to_dict().items()}
    own |= {"model.hidden_size": recipe["model"].get("hidden_size"), "model.num_networks": 3}
    own |= {f"data.{name}": value for name, value in recipe["data"].items()}
    assert set(found.names_of({"data.features": "default", **own})) == set(found.space)


# The bars


@pytest.fixture(scope="module")
def data() -> WalkForwardDataModule:
    found = WalkForwardDataModule(synthetic=market(), cache=False, **SIZES)
    found.setup()
    return found


def market() -> SyntheticMarket:
    return SyntheticMarket(kind="random_walk", num_bars=1500, seed=1)


def test_every_setting_is_judged_on_the_same_validation_bars_and_has_no_test_bars(data):
    fitting = fitting_folds(data, 400, data.split.purged_size, data.usable.start)
    assert fitting[0].index == 1  # 400 train bars do not fit before the validation of fold 0
    shorter = WalkForwardDataModule(synthetic=market(), cache=False, **{**SIZES, "train_size": 150})
    longer = WalkForwardDataModule(synthetic=market(), cache=False, **{**SIZES, "train_size": 400})
    expanding = WalkForwardDataModule(synthetic=market(), cache=False, expand_train=True, **SIZES)
    for other in (data, shorter, longer, expanding):
        other.setup()
        found = searched_folds(other, fitting[:2])
        assert [fold.index for fold in found] == [0, 1]
        assert [fold.validation for fold in found] == [fold.validation for fold in fitting[:2]]
        assert all(len(fold.test) == 0 for fold in found)
        for fold in found:
            assert other.usable.start <= fold.train.start
            assert fold.train.stop + other.split.purged_size == fold.validation.start
            assert expanding is other or len(fold.train) == other.split.train_size
        seen = fitting[1].validation.stop
        first = first_unseen(other, seen)
        assert other.folds[first].test.start >= seen + other.split.embargo_size
        assert other.folds[first - 1].test.start < seen + other.split.embargo_size
    with pytest.raises(ValueError, match="do not fit between the first usable bar"):
        searched_folds(longer, [data.folds[0]])
    assert first_unseen(data, len(data.bars.frame)) is None


def test_folds_that_are_left_out_are_the_first_ones_and_the_others_count_from_0(data):
    later = WalkForwardDataModule(synthetic=market(), cache=False, fold_start=2, fold_limit=1, **SIZES)
    later.setup()
    assert later.folds == [replace(data.folds[2], index=0)]
    with pytest.raises(ValueError, match="fold_start 99 leaves out all of the"):
        WalkForwardDataModule(synthetic=market(), cache=False, fold_start=99, **SIZES).setup()
    with pytest.raises(ValueError, match="fold_start is a number of folds >= 0, got -1"):
        WalkForwardDataModule(synthetic=market(), fold_start=-1)


# The trials


def luck(settings, fold: int) -> float:
    """A figure of a fold: small learning rates are good, and folds differ."""
    return fold / 10 - abs(np.log(settings["model.learning_rate"] / 0.005)) + (settings["model.hidden_size"] == 4)


def go_on(folder: Path, trials: int, until: int | None = None, **settings) -> History:
    """Run the trials that are missing, each over five folds; the trial `until` is left in its middle."""
    history = History(optuna, folder, plan(trials=trials, **settings), 7)
    while history.number < trials:
        trial = history.ask({"model.learning_rate": 0.01, "model.hidden_size": None})
        found = history.plan.settings(trial.params)
        state, values = "COMPLETE", []
        for fold in np.random.default_rng(trial.number).permutation(5).tolist():
            values.append(luck(found, fold))
            trial.report(values[-1], fold)
            if trial.should_prune():
                state = "PRUNED"
                break
        if trial.number == until:
            return history
        history.tell(trial, state, float(np.mean(values)) if state == "COMPLETE" else None)
    return history


def told(history: History) -> list:
    return [(one.number, one.state.name, one.params, one.intermediate_values) for one in history.study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_is_killed_at_any_trial_goes_on_as_if_it_had_not_been(tmp_path, sampler):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = go_on(tmp_path / "whole", 16, sampler=sampler)
    states = [state for _, state, _, _ in told(whole)]
    assert states.count("PRUNED") >= 2
    assert states.count("COMPLETE") >= 2
    assert whole.study.trials[0].params == {"model.learning_rate": 0.01, "model.hidden_size": None}  # the recipe's own
    for until in (0, 1, 11):
        go_on(tmp_path / "killed", 16, until, sampler=sampler)
        with (tmp_path / "killed" / command.JOURNAL).open("ab") as journal:
            journal.write(b'{"op_code":4,"worker_id":"ki')  # half a line
        (tmp_path / "killed" / f"{command.JOURNAL}.lock").symlink_to("nobody")
    again = go_on(tmp_path / "killed", 16, sampler=sampler)
    assert told(again) == told(whole)
    assert again.best().number == whole.best().number
    assert go_on(tmp_path / "killed", 18, sampler=sampler).number == 18  # more trials can be asked for


def test_a_trial_that_loses_on_the_same_folds_is_stopped_early_and_never_the_best(tmp_path):
    history = go_on(tmp_path, 16)
    stopped = [one for one in history.study.trials if one.state.name == "PRUNED"]
    best = history.best()
    assert stopped
    assert all(len(one.intermediate_values) < 5 for one in stopped)
    for one in stopped:
        assert all(best.intermediate_values[fold] > value for fold, value in one.intermediate_values.items())
    (tmp_path / "none").mkdir()
    assert all(one.state.name == "COMPLETE" for one in go_on(tmp_path / "none", 16, p_threshold=0.0).study.trials)


def test_a_search_without_a_finished_trial_says_why(tmp_path):
    history = History(optuna, tmp_path, plan(trials=1), 7)
    trial = history.ask({})
    trial.set_user_attr("error", "ValueError: num_minibatches 3")
    history.tell(trial, "FAIL", None)
    with pytest.raises(RuntimeError, match="None of the 1 trials could be finished; the first: ValueError: num_mini"):
        history.best()


class Backwards:
    """An engine that has trained all folds before it gives the first."""

    def results(self, loop, folds):
        yield from [loop.work(fold) for fold in reversed(folds)][::-1]


class Scored(Trial):
    """A trial whose folds are worth their number."""

    def work(self, fold):
        record = FoldRecord(fold.index, scores={"validation/sharpe_annual": float(fold.index)})
        return FoldWork(record, None, None, None)


def test_folds_come_in_the_order_that_was_asked_for_and_go_on_after_a_kill(tmp_path):
    ranges = (BarRange(0, 1), BarRange(1, 2), BarRange(2, 2))
    bars = SimpleNamespace(folds=[Fold(index, *ranges) for index in range(5)])
    loop = Scored(bars, None, None, RunFolder(tmp_path, 3), 3, engine=Backwards())
    order = _order(loop, 3, 4)
    assert sorted(order) == list(range(5))
    assert order == _order(loop, 3, 4) != _order(loop, 3, 5)
    assert _order(replace(loop, chained=True), 3, 4) == list(range(5))
    first = loop.records(order)
    assert [next(first).index for _ in range(2)] == order[:2]
    first.close()
    again = Scored(bars, None, None, RunFolder(tmp_path, 3), 3, engine=Backwards())
    assert [record.index for record in again.records(order)] == order
    assert not [path.name for path in loop.folder.path.iterdir() if "out_of_sample" in path.name]


# The page


def test_the_page_has_a_chart_a_setting_and_says_how_many_trials_read_what(tmp_path):
    history = go_on(tmp_path, 12)
    text = search_page(
        optuna, history.study, history.plan.to_dict(), {"folds": 5, "validation": [300, 1501]}, "No edge <seen>."
    )
    assert "12 trials" in text
    assert "bar 1,500 and no test bar" in text
    assert "No edge &lt;seen&gt;." in text
    for chart in ("history", "importance", *(f"setting-{place}" for place in range(len(history.plan.space)))):
        assert f'id="chart-{chart}"' in text
    best = history.best().number + 1  # counted from 1, as on the terminal
    assert f"Trial {best} has the highest mean validation" in text
    assert "None" not in text.partition('id="figures"')[0]
    assert "://" not in text.partition('id="figures"')[0]
    flat = optuna.create_study(direction="maximize")
    trial = flat.ask({"model.hidden_size": optuna.distributions.CategoricalDistribution((2, 4, None))})
    flat.tell(trial, 0.0)
    one = plan({"model.hidden_size": [2, 4, None]})
    assert 'id="chart-importance"' not in search_page(optuna, flat, one.to_dict(), {"folds": 1, "validation": [0, 9]})


def test_a_trials_line_has_100_columns_and_its_values_are_those_of_yaml():
    settings = {f"model.setting_{number}": None for number in range(12)}
    lines = _folded("trial   1/2  sharpe_annual +0.0000", settings).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 100
    assert "model.setting_11 null" in " ".join(lines)


# The whole


RECIPE = {
    "seed_everything": 3,
    "model": {
        "total_timesteps": 256,
        "num_envs": 2,
        "num_steps": 32,
        "burn_in": 4,
        "num_networks": 1,
        "hold_bias": 0.0,
        "screen_features": False,
        "hidden_size": 4,
        "update_epochs": 1,
    },
    "data": {"cache": False, **SIZES},
    "trainer": {"accelerator": "cpu", "devices": 1, "logger": False, "callbacks": []},
}


def test_test_bars_are_read_once_by_the_best_setting_and_lie_behind_all_that_the_trials_saw(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    read, tests = [], []
    access, segment = WalkForwardDataModule._access, WalkForwardDataModule.test_segment

    def watched(self, fold, role, rows):
        read.append((Path("results/search/recipe.yaml").exists(), role, rows.start, rows.stop))
        return access(self, fold, role, rows)

    def once(self, index):
        assert Path("results/search/recipe.yaml").exists(), "a trial has asked for test bars"
        tests.append(self.folds[index].test)
        return segment(self, index)

    monkeypatch.setattr(WalkForwardDataModule, "_access", watched)
    monkeypatch.setattr(WalkForwardDataModule, "test_segment", once)
    market().write(Path("bars.csv"))
    space = {"space": {"model.learning_rate": [0.01, 0.1], "data.train_size": [200, 300]}, "folds": 2}
    found = lit_ppo.search("bars.csv", space=space, trials=2, config="recipe.yaml")
    trials = [stop for tested, _, _, stop in read if not tested]
    assert trials
    assert {role for tested, role, *_ in read if not tested} == {
        *("train", "train_fills", "validation", "validation_fills", "scaler", "scaler_fills")
    }
    assert max(trials) <= min(test.start for test in tests)  # the fills of the last validated decisions included
    assert len(tests) == len(set(tests)) == len(found.run.folds)
    assert found.trials["number"].tolist() == [0, 1]
    assert found.trials["model.learning_rate"][0] == 0.01  # the recipe's own
    assert found.trials["data.train_size"][0] == 300
    record = load_run(found.run.path).record
    assert record["search"] == {"trials": 2, "objective": "sharpe_annual", "folds": 2, **record["search"]}
    assert "lit-ppo search: the best of 2 trials" in (found.run.path / "report.html").read_text()
    assert len(looks(Path("results"))) == 1
    assert yaml.safe_load(found.recipe.read_text())["data"]["fold_start"] > 0
    assert not list(found.path.glob("trial_*"))
    capsys.readouterr()
    tests.clear()
    (kept,) = Path("results/spaces").glob("*.yaml")
    again = ["search", "--config=recipe.yaml", "--data.path=bars.csv", f"--space={kept}", "--trials=2"]
    assert main([*again, "--resume"]) == 0
    assert "is finished, nothing was changed" in capsys.readouterr().out
    assert not tests
    assert main(again) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*again, "--resume", "--model.gamma=0.5"]) == 2
    assert "model.gamma was 0.995 and is 0.5" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("real", [False, True])
def test_two_workers_give_the_trials_and_the_test_of_this_process(real, tmp_path, monkeypatch, capfd):
    pytest.importorskip("ray")
    if not real:  # the fold that was asked for last comes first
        monkeypatch.setattr(engine, "_import_ray", PretendedRay)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    market().write(Path("bars.csv"))
    space = {"space": {"model.learning_rate": {"low": 0.001, "high": 0.1}}, "folds": 4, "p_threshold": 0.5}
    here, there = (
        lit_ppo.search("bars.csv", space=space, trials=4, config="recipe.yaml", results=f"results_{n}", workers=n)
        for n in (0, 2)
    )
    assert here.trials.equals(there.trials)
    assert (here.run.path / "out_of_sample.csv").read_bytes() == (there.run.path / "out_of_sample.csv").read_bytes()
    assert capfd.readouterr().out.count("Ray: workers ready") == 1  # the test has those of the trials


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_searches_on_markets_without_an_edge_do_not_end_with_one():
    """A small part of `python -m benchmarks.null_searches`: were the true share 5 %, two of six would be 1 in 30."""
    rows = [run(seed, trials=5) for seed in range(6)]
    found = summary(rows)
    assert found["above_0.95"] <= 1
    assert found["called_an_edge"] == 0
    assert found["judged"] >= 4  # who never trades passes any such test
    assert {row["counted_trials"] for row in rows} == {1}
