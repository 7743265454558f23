"""Smaller budgets for later folds: the formula, the line, the maturity rule, resume, off-switch."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks import AdaptiveTimesteps, TrainingCheckpoint, WarmStart
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.commands.data_choice import RECIPES
from lit_ppo.commands.lightning_cli import LitPPOCLI
from lit_ppo.market.tensors import BarRange, TrainedFold
from lit_ppo.module import LitPPO
from tests.integration.shells import SMALL, fitted, small_data, small_trainer


def module_at(fold: int, earlier: list[dict[str, Any]] | None = None, **recipe: Any) -> LitPPO:
    """A module of fold `fold`; `earlier` are the records of AdaptiveTimesteps in the folds before."""
    module = LitPPO(seed=5, **{**SMALL, **recipe})
    module.fold = (fold, fold + 1)
    module.earlier_folds = [
        TrainedFold(index, "", BarRange(0, 1), 0.0, {"adaptive_timesteps": record})
        for index, record in enumerate(earlier or [])
    ]
    return module


def budget(callback: AdaptiveTimesteps, module: LitPPO) -> int:
    callback.setup(SimpleNamespace(is_global_zero=True, callbacks=[callback, WarmStart()]), module, "fit")
    return module.total_timesteps


def test_smaller_budgets_without_a_warm_start_are_warned_about():
    callback = AdaptiveTimesteps(1000)
    alone = SimpleNamespace(is_global_zero=True, callbacks=[callback])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.setup(alone, module_at(0, total_timesteps=10_000), "fit")  # the first fold has the whole budget
    with pytest.warns(UserWarning, match=r"without WarmStart.*Add callbacks\.WarmStart"):
        callback.setup(alone, module_at(1, total_timesteps=10_000), "fit")


@pytest.mark.parametrize("fold", range(30))
def test_the_budget_is_the_formula(fold):
    expected = 50_000 if fold == 0 else max(15_000, math.floor(50_000 * min(0.8, 0.95**fold)))
    assert budget(AdaptiveTimesteps(15_000), module_at(fold, total_timesteps=50_000)) == expected


def test_the_formulas_ends_are_the_base_the_first_cut_and_the_least():
    budgets = [AdaptiveTimesteps(25_000).budget(100_000, fold) for fold in (0, 1, 4, 5, 10, 100)]
    assert budgets == [100_000, 80_000, 80_000, 77_378, 59_873, 25_000]


def test_the_line_is_printed_with_thousands(capsys):
    budget(AdaptiveTimesteps(10_000), module_at(5, total_timesteps=50_000))
    assert capsys.readouterr().out == "Adaptive timesteps: 38,689 (saved 11,311)\n"


def test_the_maturity_rule_counts_earlier_folds_whose_training_gained_little():
    callback = AdaptiveTimesteps(10, rule="maturity", maturity_threshold=0.01)
    gains = [{"improvement": 0.5}, {"improvement": 0.01}, {}, {"improvement": -0.2}]
    assert budget(callback, module_at(4, gains, total_timesteps=1000)) == math.floor(1000 * min(0.8, 0.95**2))
    assert budget(callback, module_at(4, gains[:1], total_timesteps=1000)) == 1000


def test_the_maturity_rule_records_the_gain_over_the_score_before_training(tmp_path):
    callback = AdaptiveTimesteps(64, rule="maturity")
    module = fitted(tmp_path, [callback])
    start = LitPPO(seed=5, **SMALL)
    start.build(small_data().fold_data(0).train)
    record = module.notes.optimisations["adaptive_timesteps"]
    assert record["improvement"] == pytest.approx(callback.best_score - callback.first_score)
    assert callback.first_score is not None


def test_a_smaller_budget_ends_the_training_and_its_schedules_earlier(tmp_path):
    module = module_at(3, total_timesteps=640)
    small_trainer(tmp_path, [AdaptiveTimesteps(100)]).fit(module, datamodule=small_data())
    assert module.total_timesteps == 512
    assert module.timesteps == 512
    assert module.progress == 1.0
    assert module.notes.optimisations["adaptive_timesteps"]["timesteps_saved"] == 128


def test_without_the_callback_every_fold_has_the_whole_budget(tmp_path):
    module = module_at(3)
    small_trainer(tmp_path).fit(module, datamodule=small_data())
    assert module.timesteps == 256
    assert module.notes.optimisations == {}


@pytest.mark.parametrize("rule", ["fold", "maturity"])
def test_a_resumed_fold_keeps_its_budget_and_record(tmp_path, rule):
    def run(directory, stop: int | None = None) -> LitPPO:
        module = module_at(3, [{"improvement": 0.0}], total_timesteps=512)
        callbacks = [AdaptiveTimesteps(100, rule=rule), TrainingCheckpoint(None, 1)]
        settings = {} if stop is None else {"max_epochs": stop}
        trainer = small_trainer(directory, callbacks, **settings)
        trainer.fit(module, datamodule=small_data(), ckpt_path=directory if directory.exists() else None)
        return module

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=2)
    resumed = run(tmp_path / "cut")
    assert resumed.timesteps == whole.timesteps == 448
    assert resumed.notes.optimisations == whole.notes.optimisations


def test_values_out_of_range_are_refused():
    for wrong in ({"min_timesteps": 0}, {"rule": "other"}, {"maturity_threshold": -1.0}):
        with pytest.raises(ValueError, match="AdaptiveTimesteps needs"):
            AdaptiveTimesteps(**wrong)
    with pytest.raises(ValueError, match="is more than model"):
        budget(AdaptiveTimesteps(257), module_at(0))


@pytest.mark.parametrize("profile", sorted((RECIPES / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_least_budget_of_a_file_gives_way_to_a_smaller_budget_that_is_typed(capsys, profile):
    files = [f"--config={RECIPES / 'scratch.yaml'}", f"--config={profile}", "--data.path=bars.csv"]

    def least(*flags: str) -> int | None:
        config = LitPPOCLI("walk-forward", [*files, *flags], WalkForwardDataModule).config
        found = [entry for entry in config.trainer.callbacks if entry.class_path.endswith("AdaptiveTimesteps")]
        return found[0].init_args.min_timesteps if found else None

    own = least()
    assert least("--model.total_timesteps=1000000") == own
    assert capsys.readouterr().err == ""
    assert least("--model.total_timesteps=2048") == (own and 2048)
    assert ("is now 2,048" in capsys.readouterr().err) == bool(own)
    if own:
        typed = ["--model.total_timesteps=2048", "--trainer.callbacks.min_timesteps=4096"]
        assert least("--trainer.callbacks+=callbacks.AdaptiveTimesteps", *typed) == own  # both typed: left to the error
