"""The Python front door: the same runs as the command line, DataFrames in and out."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping

import callbacks
import lit_ppo
from callbacks import ProgressiveHyperparameters, ValidationSelection
from datamodules.features.compute import load_features
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.api import _cost_keys, _csv, _feature_entries, _with_callbacks
from lit_ppo.argument_types import as_flag
from lit_ppo.cli import main
from lit_ppo.commands.lightning_cli import LitPPOCLI
from lit_ppo.market.costs import CostModel, Costs

SMALL = {"total_timesteps": 1_024, "num_envs": 8, "num_steps": 32, "burn_in": 8, "num_networks": 1}
SIZES = {"train_size": 400, "validation_size": 100, "test_size": 100, "step_size": 100, "fold_limit": 2}
SIZES |= {"warmup_bars": 50, "cache": False}
FILES = ("out_of_sample.csv", "trades.csv")


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return SyntheticMarket(kind="regime", num_bars=1_200, seed=3).bars().frame


@pytest.fixture(scope="module")
def run(bars, tmp_path_factory) -> lit_ppo.Run:
    return lit_ppo.walk_forward(
        bars,
        config="scratch",
        model=SMALL,
        costs={"spread": 0.01},
        results=tmp_path_factory.mktemp("python"),
        seed=7,
        **SIZES,
    )


def test_importing_the_package_loads_neither_torch_nor_pandas():
    code = "import sys, lit_ppo; print({'torch', 'lightning', 'pandas'} & set(sys.modules), lit_ppo.Recipe.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() Recipe"


def test_the_package_offers_every_callback_and_nothing_that_is_not_there():
    assert set(callbacks.__all__) < set(lit_ppo.__all__)
    for name in lit_ppo.__all__:
        assert getattr(lit_ppo, name) is not None
    assert lit_ppo.ValidationSelection is callbacks.ValidationSelection


def test_the_module_shows_the_arguments_of_its_recipe():
    own, recipe = (inspect.signature(kind).parameters for kind in (lit_ppo.LitPPO, lit_ppo.Recipe))
    assert list(own) == ["seed", *recipe]
    assert all(own[name].default == recipe[name].default for name in recipe)


def test_lightning_is_as_quiet_in_python_as_on_the_command_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [caplog.handler])
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        cli = LitPPOCLI("walk-forward", ["--config", "quickstart"], WalkForwardDataModule)
        cli.make_trainer(tmp_path)
    assert not caplog.records  # no devices, no tip about cloud loggers


def test_a_run_from_python_and_one_from_the_command_line_are_the_same_bytes(run, tmp_path):
    (path,) = (run.path.parent / "bars").glob("*.csv")
    flags = [f"--model.{name}={value}" for name, value in SMALL.items()]
    flags += [f"--data.{name}={value}" for name, value in SIZES.items()]
    flags += ["--seed=7", f"--data.path={path}", "--data.costs.spread=0.01", f"--results={tmp_path}"]
    assert main(["walk-forward", "--config", "scratch", *flags]) == 0
    for name in FILES:
        assert (tmp_path / "7" / name).read_bytes() == (run.path / name).read_bytes()


def test_a_run_has_its_decisions_trades_folds_and_verdict(run):
    decisions = run.decisions
    names = ["time", "fold", "position", "probability", "price", "gross_return", "cost", "net_return", "equity"]
    assert list(decisions) == names
    last = decisions["fold"] != decisions["fold"].shift(-1)  # goes flat, whatever the policy would have done
    assert (decisions["probability"][~last] >= 1 / 3).all()  # the most probable of three
    assert decisions["probability"].between(0, 1).all()
    assert len(decisions) == 200
    assert set(decisions["fold"]) == {0, 1}
    np.testing.assert_allclose(decisions["equity"], (1 + decisions["net_return"]).cumprod(), rtol=1e-12)
    assert run.folds["status"].tolist() == ["done", "done"]
    assert run.verdict.text
    assert run.report().is_file()
    assert lit_ppo.load_run(run.path).decisions.equals(decisions)


@pytest.mark.filterwarnings("ignore:.*new decisions.*are on bars no later")
def test_a_policy_decides_on_a_frame_and_a_file_alike_and_never_on_later_bars(run, bars, tmp_path):
    policy = lit_ppo.load_policy(run)
    whole = policy.decide(bars)
    assert set(whole["position"]) <= {-1.0, 0.0, 1.0}
    assert len(whole) > 1_000
    bars.to_csv(tmp_path / "bars.csv", index=False)
    pd.testing.assert_frame_equal(policy.decide(tmp_path / "bars.csv"), whole)
    pd.testing.assert_frame_equal(policy.decide(bars[:600]), whole[: len(whole) - len(bars) + 600])


@dataclass(frozen=True)
class Toll(CostModel):
    rate: float = 1e-4

    def turnover_cost(self, frame, price, point):
        return 0 * price + self.rate


def test_a_cost_model_given_as_an_object_becomes_a_key_that_a_recipe_can_hold():
    entry = {"class_path": f"{__name__}.Toll", "init_args": {"rate": 2e-4}}
    modules: list[str] = []
    assert _cost_keys(Toll(2e-4), modules) == {"model": entry}
    assert _cost_keys({"spread": "1bp", "model": Toll(2e-4)}, modules) == {"spread": "1bp", "model": entry}
    assert modules == [__name__] * 2
    keys = _cost_keys(Costs(spread="1bp"), modules := [])
    assert (keys["spread"], keys["model"], modules) == ("1bp", None, [])
    assert _cost_keys(None, []) == {}


def swing(bars: pd.DataFrame) -> pd.Series:
    return np.log(bars["close"]).rolling(20).mean().diff()


def tomorrow(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].pct_change().shift(-1).fillna(0.0)


class Witness(Callback):
    """Notes what it was made with, where the fold's files are."""

    def __init__(self, text: str = "seen") -> None:
        self.text = text

    def on_fit_end(self, trainer, pl_module) -> None:
        (Path(trainer.default_root_dir) / "witness").write_text(self.text)


@pytest.mark.filterwarnings("ignore:.*new decisions.*are on bars no later")
def test_functions_and_objects_give_the_run_of_a_recipe_that_names_them(bars, tmp_path):
    given = {"features": [swing, "log_return"], "callbacks": [Witness("mine"), ValidationSelection(min_progress=0.1)]}
    options = {"config": "scratch", "model": SMALL, "costs": {"spread": 0.01}, "seed": 7}
    run = lit_ppo.walk_forward(bars, **given, **options, results=tmp_path / "python", **SIZES)
    (path,) = (tmp_path / "python" / "bars").glob("*.csv")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{features: [{{class_path: {__name__}.swing}}, {{name: log_return}}]}}\n"
        "trainer:\n  callbacks:\n"
        "  - {class_path: callbacks.ValidationSelection, init_args: {min_progress: 0.1}}\n"
        "  - callbacks.RunProgress\n  - callbacks.TrainingCheckpoint\n  - callbacks.MetricsLog\n"
        f"  - {{class_path: {__name__}.Witness, init_args: {{text: mine}}}}\n"
    )
    flags = [f"--model.{name}={value}" for name, value in SMALL.items()]
    flags += [f"--data.{name}={value}" for name, value in SIZES.items()]
    flags += ["--seed=7", f"--data.path={path}", "--data.costs.spread=0.01", f"--results={tmp_path / 'command'}"]
    recipes = ["--config", "scratch", "--config", str(tmp_path / "recipe.yaml"), "--allow-module", __name__]
    assert main(["walk-forward", *recipes, *flags]) == 0
    for name in (*FILES, "fold_001/witness", "fold_001/metrics.jsonl"):
        assert (tmp_path / "command" / "7" / name).read_bytes() == (run.path / name).read_bytes()
    assert (run.path / "fold_000" / "witness").read_text() == "mine"
    few = bars[:400]
    decided = lit_ppo.load_policy(run).decide(few)
    assert len(decided) == len(few) - 20 - SIZES["warmup_bars"]  # 19 means of 20 bars, and one difference, are missing
    with pytest.raises(ValueError, match=rf"--allow-module {__name__} \(load_policy: allow_modules=\['{__name__}'\]\)"):
        lit_ppo.load_policy(run.path).decide(few)
    again = lit_ppo.load_policy(run.path, allow_modules=[__name__]).decide(few)
    pd.testing.assert_frame_equal(decided, again)


def test_a_function_that_looks_ahead_is_refused_before_any_training_with_the_bar(bars, tmp_path):
    with pytest.raises(ValueError, match=r"Feature tomorrow looks ahead: its value at bar \d+ \(\d{4}-.* is "):
        lit_ppo.walk_forward(bars, features=[tomorrow], config="scratch", model=SMALL, results=tmp_path, **SIZES)
    assert not any(tmp_path.glob("*/run.json"))


def test_what_no_configuration_could_name_is_refused_in_words(bars, tmp_path, monkeypatch):
    def local(bars):
        return bars["close"]

    for function, kind in ((lambda bars: bars["close"], "a lambda"), (local, "defined inside a function")):
        with pytest.raises(ValueError, match=rf"features\[1\]: .* is {kind}.*neither resumed nor repeated"):
            lit_ppo.walk_forward(bars, features=["log_return", function], results=tmp_path)
    with pytest.raises(ValueError, match=r"features\[0\] is a name, an entry .* got 3"):
        lit_ppo.walk_forward(bars, features=[3], results=tmp_path)
    stopping = EarlyStopping("validation/score", min_delta=0.1, mode="min")  # keeps its threshold with the sign changed
    with pytest.raises(ValueError, match=r"callbacks\[0\]: what EarlyStopping was made with cannot be read from it"):
        lit_ppo.walk_forward(bars, callbacks=[stopping], results=tmp_path)
    monkeypatch.setattr(swing, "__module__", "__main__")
    with pytest.raises(ValueError, match="no worker can import from there"):
        lit_ppo.walk_forward(bars, features=[swing], workers=2, results=tmp_path)
    assert not any(tmp_path.glob("*/run.json"))


def test_callbacks_go_behind_those_of_the_recipe_or_in_their_place():
    modules: list[str] = []
    found = _with_callbacks([ProgressiveHyperparameters(), "callbacks.RunProgress"], {}, "walk_forward", modules)
    assert [entry["class_path"].rpartition(".")[2] for entry in found] == ["RunProgress", "ProgressiveHyperparameters"]
    assert [phase.name for phase in found[1]["init_args"]["phases"]] == ["explore", "balance", "fine-tune"]
    assert modules == []
    alone = _with_callbacks([Witness()], {"callbacks": []}, "walk_forward", modules)
    assert alone == [{"class_path": f"{__name__}.Witness", "init_args": {"text": "seen"}}]
    assert modules == [__name__]


def test_a_function_says_its_warmup_and_parity_itself_or_in_its_entry(monkeypatch):
    monkeypatch.setattr(swing, "parity", -1, raising=False)
    (entry,) = _feature_entries([swing], [])
    (spec,) = load_features([entry], [__name__])
    assert (spec.label, spec.parity) == ("swing", -1)
    (spec,) = load_features([{**entry, "warmup": 30, "parity": 0}], [__name__])
    assert (spec.label, spec.parity, spec.warmup) == ("swing", 0, 30)
    with pytest.raises(ValueError, match=r"does not take a table of bars and \{.window.: 3\}"):
        load_features([{**entry, "window": 3}], [__name__])


def test_a_frame_without_prices_or_a_setting_that_no_recipe_can_hold_is_refused_before_any_work(bars, tmp_path):
    with pytest.raises(ValueError, match="close not found"):
        lit_ppo.walk_forward(bars.drop(columns="close"), results=tmp_path)
    with pytest.raises(ValueError, match=r"model\.learning_rate must be made of numbers"):
        lit_ppo.walk_forward(bars, model={"learning_rate": object()}, results=tmp_path)
    with pytest.raises(TypeError, match="got list"):
        lit_ppo.walk_forward([1, 2, 3], results=tmp_path)  # type: ignore[arg-type]
    assert not any(tmp_path.glob("*/run.json"))


def test_a_frame_may_name_its_columns_as_a_file_may(bars):
    first = {"time": "2024-01-02T00:00:00Z", "open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0}
    frame = pd.DataFrame([first]).assign(time=lambda x: pd.to_datetime(x["time"]))
    expected = b"time,open,high,low,close\n2024-01-02T00:00:00Z,1.0,1.0,1.0,1.0\n"
    assert _csv(frame) == _csv(frame.set_index("time")) == _csv(frame.set_index("time").rename_axis("Date")) == expected
    capital = frame.set_index("time").rename(columns=str.capitalize)
    assert _csv(capital).startswith(b"time,Open,High,Low,Close\n2024-01-02T00:00:00Z,")
    assert _csv(frame.rename(columns=str.capitalize)).startswith(b"Time,Open,")
    assert _csv(frame.assign(time=1704153600)).endswith(b"\n1704153600,1.0,1.0,1.0,1.0\n")  # seconds since 1970


def test_the_file_of_a_datamodule_may_be_a_path(bars, tmp_path):
    bars.to_csv(tmp_path / "bars.csv", index=False)
    data = WalkForwardDataModule(path=tmp_path / "bars.csv", **SIZES)
    data.setup()
    assert (len(data.folds), data.source) == (2, "bars.csv")


def test_rows_without_times_are_refused_as_such(bars, tmp_path):
    with pytest.raises(ValueError, match="no column time"):
        lit_ppo.walk_forward(bars.drop(columns="time"), results=tmp_path)


def test_a_feature_of_ones_own_goes_behind_the_priors_own_and_alone_is_refused_with_both_ways_out(bars, tmp_path):
    data = WalkForwardDataModule(path="b.csv", features=_feature_entries(["core", "log_return"], []))
    core = load_features("core")
    assert [spec.label for spec in data.specs] == [*(spec.label for spec in core), "log_return"]
    with pytest.raises(ValueError, match=r"lacks core_return.*begins with \{name: core\}; or .* recipe `scratch`"):
        lit_ppo.walk_forward(bars, features=["log_return"], results=tmp_path, **SIZES)


@pytest.mark.filterwarnings("error")
def test_bars_that_are_too_few_for_a_decision_are_told(bars):
    with pytest.warns(UserWarning, match="the first decision needs 301 bars, there are 100"):
        assert lit_ppo.load_policy("prior").decide(bars[:100]).empty


def test_numbers_and_arrays_of_numpy_are_numbers_and_lists_of_a_recipe():
    assert as_flag("model.total_timesteps", np.int64(7)) == "7"
    assert as_flag("model.positions", np.array([-1.0, 0.0, 1.0])) == "[-1.0, 0.0, 1.0]"
    assert as_flag("model.x", {"a": [np.float64(0.5)]}) == '{"a": [0.5]}'


WRONG = [
    (lambda: lit_ppo.walk_forward("b.csv", config="scrach"), "no recipe of that name; did you mean scratch?"),
    (lambda: lit_ppo.walk_forward("b.csv", callbacks=[Witness]), "got the class: make one, Witness()"),
    (lambda: lit_ppo.LitPPO(hidden_size="x"), "model.hidden_size must be a whole number or None, got 'x'"),
    (lambda: lit_ppo.LitPPO(gamma="much"), "model.gamma must be a number, got 'much'"),
    (
        lambda: lit_ppo.LitPPO(estimator="magic"),
        "model.estimator must be one of 'counterfactual', 'sampled', got 'magic'",
    ),
    (lambda: lit_ppo.LitPPO(hiden_size=8), "'hiden_size' is no key of model.*; did you mean 'hidden_size'?"),
    (lambda: lit_ppo.LitPPO(seed=1.5), "seed must be a whole number, got 1.5"),
    (
        lambda: lit_ppo.Recipe(positions=(-1.0, "flat", 1.0)),
        "model.positions must be a list of numbers, got (-1.0, 'flat'",
    ),
    (
        lambda: lit_ppo.WalkForwardDataModule(path="b.csv", train_size=-1),
        "data.train_size is a number of bars >= 1, got -1",
    ),
    (
        lambda: lit_ppo.WalkForwardDataModule(path="b.csv", train_size=0.5),
        "data.train_size must be a whole number, got 0.5",
    ),
    (
        lambda: lit_ppo.WalkForwardDataModule(path="b.csv", costs={"spread": 1}),
        "data.costs must be a Costs, got {'spread",
    ),
    (lambda: lit_ppo.walk_forward("b.csv", model={"nope": 1}), "There is no model.nope"),
    (
        lambda: lit_ppo.walk_forward("b.csv", model={"hidden_size": "x"}),
        "model.hidden_size must be a whole number or None",
    ),
    (
        lambda: lit_ppo.walk_forward("b.csv", modle={}),
        "'modle' is no argument, and no key of data.*; did you mean 'model'?",
    ),
    (lambda: lit_ppo.walk_forward("b.csv", trian_size=3), "did you mean 'train_size'?"),
    (lambda: lit_ppo.walk_forward("b.csv", train_size="many"), "data.train_size must be a whole number, got many"),
    (lambda: lit_ppo.walk_forward("b.csv", model=3), "model must be a dict or None, got 3"),
    (lambda: lit_ppo.walk_forward("b.csv", results=3), "results must be a string or a Path, got 3"),
    (lambda: lit_ppo.walk_forward("b.csv", seed="x"), "seed must be a whole number or None, got 'x'"),
    (lambda: lit_ppo.walk_forward("b.csv", trainer={"precision": "64-true"}), "one of 32-true, bf16-mixed, 16-mixed"),
    (lambda: lit_ppo.walk_forward("b.csv", trainer={"fast_dev_run": True}), "trainer.fast_dev_run keeps no run"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_an_argument_that_cannot_be_meant_is_refused_in_plain_words(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    SyntheticMarket(num_bars=30, seed=1).write(tmp_path / "b.csv")
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        call()
    assert message in str(refused.value)
    assert "<class" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv"]
