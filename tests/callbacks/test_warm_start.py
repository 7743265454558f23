"""Which fold's weights are taken, what is refused, what else comes along; through the walk-forward."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from callbacks import WarmStart
from lit_ppo.cli import main
from lit_ppo.folds import loop as walk_forward
from lit_ppo.market.tensors import BarRange, Fold, TrainedFold
from lit_ppo.module import LitPPO
from lit_ppo.store.checkpoints import CheckpointStore, load_checkpoint
from lit_ppo.store.results import load_run
from tests.integration.shells import SMALL, small_data

CONFIG = """
seed_everything: 7
strict: true
model: # the tiny window's screen would leave no feature, and scaling nothing would change nothing
  {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, total_timesteps: 128, hold_bias: 0.0, screen_features: false}
data:
  synthetic: {kind: regime, num_bars: 860, seed: 3}
  train_size: 300
  validation_size: 100
  test_size: 100
  step_size: 100
  warmup_bars: 20
  cache: false
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    - callbacks.ValidationSelection
    - {class_path: callbacks.TrainingCheckpoint, init_args: {every_n_iterations: 1}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs four folds with `WarmStart(**arguments)`, or without it, into `results`."""
    monkeypatch.chdir(tmp_path)

    def call(results: str, warm_start: dict[str, Any] | None, *more: str) -> Path:
        config = yaml.safe_load(CONFIG)
        if warm_start is not None:
            config["trainer"]["callbacks"].append({"class_path": "callbacks.WarmStart", "init_args": warm_start})
        (tmp_path / f"{results}.yaml").write_text(yaml.safe_dump(config))
        assert main(["walk-forward", "--config", f"{results}.yaml", "--results", results, *more]) == 0
        return tmp_path / results / "7"

    return call


@pytest.fixture(scope="module")
def runs_made() -> dict[str, Path]:
    """By the arguments of `WarmStart`: a run, which tests only read."""
    return {}


@pytest.fixture
def finished(run, runs_made, tmp_path_factory):
    """Return a function like `run`, for runs that nothing interferes with: each is made once."""

    def call(warm_start: dict[str, Any] | None) -> Path:
        if (made := repr(warm_start)) not in runs_made:
            runs_made[made] = tmp_path_factory.mktemp("made") / "7"
            shutil.copytree(run("finished", warm_start), runs_made[made])
        return runs_made[made]

    return call


def chosen(folder: Path, fold: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / f"fold_{fold:03d}/selected.ckpt")["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(index: int, seen: tuple[int, int], score: float | None) -> TrainedFold:
    return TrainedFold(index, f"fold {index}", BarRange(*seen), score, {})


def choice(callback: WarmStart, earlier: list[TrainedFold], validation=(600, 700), test=(702, 800)) -> int | None:
    """Number of the fold that `callback` would take its weights from."""
    own = Fold(len(earlier), BarRange(0, 598), BarRange(*validation), BarRange(*test))
    trainer = SimpleNamespace(datamodule=SimpleNamespace(folds={own.index: own}))
    found, _ = callback._choose(trainer, SimpleNamespace(earlier_folds=earlier), own.index)
    return None if found is None else found.index


def test_the_best_earlier_fold_by_validation_is_taken():
    earlier = [trained(0, (0, 400), 0.1), trained(1, (100, 500), 0.3), trained(2, (200, 600), 0.2)]
    assert choice(WarmStart(), earlier) == 1
    assert choice(WarmStart(source=2), earlier) == 2
    assert choice(WarmStart(), [*earlier, trained(3, (250, 600), 0.3)]) == 3  # of equals the later one
    assert choice(WarmStart(), [trained(0, (0, 400), None), trained(1, (0, 500), -1.0)]) == 1
    assert choice(WarmStart(), []) is None


@pytest.mark.parametrize("seen", [(0, 601), (650, 660), (0, 900), (750, 760)])
def test_a_source_that_has_seen_validation_or_test_bars_is_refused(seen):
    earlier = [trained(0, (0, 400), 0.1), trained(1, seen, 0.9)]
    assert choice(WarmStart(), earlier) == 0
    assert choice(WarmStart(), earlier[1:]) is None
    with pytest.raises(ValueError, match=r"WarmStart.source 1: fold 1 has read bars"):
        choice(WarmStart(source=1), earlier)


def test_a_source_that_is_not_done_is_refused():
    with pytest.raises(ValueError, match="not among the folds that are done"):
        choice(WarmStart(source=1), [trained(0, (0, 400), 0.1), trained(2, (0, 500), 0.1)])
    with pytest.raises(ValueError, match="source >= 0"):
        WarmStart(source=-1)


def test_the_prices_of_the_last_reward_count_as_seen_and_test_bars_do_not(finished):
    folder = finished({})
    folds = load_run(folder).folds
    for record in folds:
        assert record.details["seen"] == [max(record.bars["train"][0] - 20, 24), record.bars["validation"][1] + 2]
    # Fold k - 1 has read two bars of fold k's validation, so the newest that may serve is k - 2.
    sources = [record.details["optimisations"]["warm_start"].get("fold") for record in folds]
    assert sources[:3] == [None, None, 0]
    assert sources[3] == max((0, 1), key=lambda k: (folds[k].scores["validation/score"], k))
    assert [record.details.get("warm_start") for record in folds] == [
        None if source is None else {"fold": source} for source in sources
    ]


def test_training_begins_with_the_chosen_weights_and_deleting_the_entry_begins_anew(run, finished, monkeypatch):
    warm = finished({})
    begun: list[dict[str, torch.Tensor]] = []
    original = LitPPO.on_train_start

    def spy(self):
        begun.append({f"policy.{name}": value.clone() for name, value in self.policy.state_dict().items()})
        original(self)

    monkeypatch.setattr(LitPPO, "on_train_start", spy)
    cold = run("cold", None, "--data.fold_limit", "3")
    again = run("warm", {}, "--data.fold_limit", "3")
    assert not equal(begun[2], chosen(cold, 0))
    assert equal(begun[3 + 2], chosen(warm, 0))
    for fold in (0, 1):
        assert equal(chosen(warm, fold), chosen(cold, fold))
    assert equal(chosen(warm, 2), chosen(again, 2))
    assert not equal(chosen(warm, 2), chosen(cold, 2))
    assert "warm_start" not in load_run(cold).folds[2].details


@pytest.mark.slow
def test_optimizer_and_normaliser_come_along_by_choice(run, finished):
    plain = finished({})
    moments, scaled = run("moments", {"optimizer": True}), run("scaled", {"normaliser": True})
    assert not (plain / "fold_000/warm_start.ckpt").exists()
    assert CheckpointStore(moments / "fold_000").load("warm_start.ckpt")["optimizer"]["state"]
    for fold in (0, 1):
        assert equal(chosen(plain, fold), chosen(moments, fold))
        assert equal(chosen(plain, fold), chosen(scaled, fold))
    assert not equal(chosen(plain, 2), chosen(moments, 2))
    assert not equal(chosen(plain, 2), chosen(scaled, 2))

    def scaler(folder: Path, fold: int) -> dict[str, list[float]]:
        return load_checkpoint(folder / f"fold_{fold:03d}/selected.ckpt")["WalkForwardDataModule"]["scaler"]

    assert scaler(scaled, 2) == scaler(scaled, 0)
    assert scaler(plain, 2) != scaler(plain, 0)
    for name in ("input_gain", "mirror_sign"):
        assert torch.equal(chosen(scaled, 2)[f"policy.{name}"], chosen(scaled, 0)[f"policy.{name}"])


@pytest.mark.parametrize("where", ["training", "before test"])
def test_killed_and_resumed_equals_uninterrupted(run, finished, monkeypatch, where):
    arguments = {"optimizer": True, "normaliser": True}
    whole = finished(arguments)
    owner, name = (LitPPO, "training_step") if where == "training" else (walk_forward.WalkForward, "_write_test")
    original = getattr(owner, name)

    class Killed(BaseException):
        pass

    def die(self, *rest):
        fold, late = (self.fold[0], self.iteration == 1) if where == "training" else (rest[0], True)
        if fold == 2 and late:
            raise Killed
        return original(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(Killed):
            run("cut", arguments)
    cut = run("cut", arguments, "--resume")
    for fold in range(4):
        assert equal(chosen(whole, fold), chosen(cut, fold))
    assert (whole / "out_of_sample.csv").read_bytes() == (cut / "out_of_sample.csv").read_bytes()
    one, other = (
        [fold.details["optimisations"]["warm_start"]["did"] for fold in load_run(x).folds] for x in (whole, cut)
    )
    assert one == other


def test_weights_of_another_shape_are_refused_before_anything_is_changed(tmp_path):
    data = small_data()
    source, module = LitPPO(**{**SMALL, "hidden_size": 5}), LitPPO(**SMALL)
    for each in (source, module):
        each.build(data.fold_data(2).train)
    state = {f"policy.{name}": value for name, value in source.policy.state_dict().items()}
    CheckpointStore(tmp_path).save({"state_dict": state}, "selected.ckpt")
    module.fold = (2, 3)
    module.earlier_folds = [TrainedFold(0, str(tmp_path), BarRange(0, 10), 0.1, {})]
    before = {name: value.clone() for name, value in module.policy.state_dict().items()}
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True)
    with pytest.raises(ValueError, match=r"the weights of fold 0 do not fit: networks.*\[20, .*for \[16"):
        WarmStart().setup(trainer, module, "fit")
    assert equal(before, module.policy.state_dict())
