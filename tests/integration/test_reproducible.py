"""The same seed gives the same bytes, whatever only watches; a run can be repeated from its folder."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.store.checkpoints import load_checkpoint
from lit_ppo.store.results import load_run

# Enough learning that the agent trades, so that equal files mean equal decisions. No selection: it needs validation.
CONFIG = """
seed_everything: 7
model: {num_envs: 8, num_steps: 32, burn_in: 4, hidden_size: 4, total_timesteps: 2048, hold_bias: 0.0, gamma: 0.9,
  update_epochs: 1, screen_features: false}
data:
  path: market.csv
  features: [{name: log_return}, {column: signal, parity: -1}]
  train_size: 300
  validation_size: 100
  test_size: 100
  step_size: 100
  fold_limit: 2
  warmup_bars: 20
  cache: false
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    - callbacks.MetricsLog
"""
THREAD_TOLERANCE = 1e-4  # of a weight, after a short training: sums of another order differ in the last bits of float32


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A directory with the configuration, its market and the reference run `plain`."""
    directory = tmp_path_factory.mktemp("reproducible")
    (directory / "config.yaml").write_text(CONFIG)
    SyntheticMarket(kind="predictor", num_bars=760, seed=3, cost=0.0).write(directory / "market.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(["walk-forward", "--config", "config.yaml", "--results", "plain"]) == 0
    return directory


@pytest.fixture
def run(here, monkeypatch):
    """Return a function that runs the walk-forward again with other flags; gives the run's folder."""
    monkeypatch.chdir(here)

    def call(name: str, *flags: str, seed: int = 7) -> Path:
        assert main(["walk-forward", "--config", "config.yaml", "--results", name, *flags]) == 0
        return here / name / str(seed)

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("fold_*/selected.ckpt")):
        state = load_checkpoint(path)["state_dict"]
        found |= {f"{path.parent.name} {name}": value for name, value in state.items()}
    assert found
    return found


def assert_same_bytes(folder: Path, reference: Path, metrics: bool = True) -> None:
    """Test decisions, trades, weights and, if asked, the metrics of both folders are equal, byte for byte."""
    files = ["out_of_sample.csv", "trades.csv"]
    files += [f"fold_{i:03d}/metrics.jsonl" for i in range(2)] if metrics else []
    for name in files:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    mine, other = weights(folder), weights(reference)
    assert mine.keys() == other.keys()
    assert len({name.split()[0] for name in mine}) == 2
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
    scores = [[record.scores for record in load_run(path).folds] for path in (folder, reference)]
    assert json.dumps(scores[0]) == json.dumps(scores[1])


def test_the_reference_trades(here):
    run = load_run(here / "plain" / "7")
    assert (run.out_of_sample["position"] != 0).mean() > 0.1
    assert len(run.trades) >= 4


WATCHERS = {
    "tensorboard": ("--trainer.logger", "true"),
    "bar": ("--trainer.enable_progress_bar", "true", "--trainer.enable_model_summary", "true"),
    "progress": ("--trainer.callbacks+=callbacks.RunProgress",),
    "checkpoints": ("--trainer.callbacks+=callbacks.TrainingCheckpoint",),
}


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(tuple(flag for flags in WATCHERS.values() for flag in flags), id="everything"),
        *(pytest.param(flags, id=name, marks=pytest.mark.slow) for name, flags in WATCHERS.items()),
    ],
)
def test_the_same_seed_gives_the_same_bytes_whatever_only_watches(run, here, flags, request):
    name = request.node.callspec.id
    assert_same_bytes(run(name, *flags), here / "plain" / "7")


def test_validation_changes_nothing_but_what_is_written_about_it(run, here):
    blind = run("blind", "--trainer.limit_val_batches", "0")
    assert_same_bytes(blind, here / "plain" / "7", metrics=False)
    lines = [(path / "fold_000" / "metrics.jsonl").read_text().splitlines() for path in (blind, here / "plain" / "7")]
    without, seen = ([json.loads(line) for line in part] for part in lines)
    assert any(name.startswith("validation/") for name in seen[0])
    assert without == [
        {name: value for name, value in line.items() if not name.startswith("validation/")} for line in seen
    ]


def test_the_cache_changes_nothing_filled_or_read(run, here):
    for name in ("filled", "read"):
        folder = run(name, "--data.cache", "true", "--data.cache_dir", str(here / "cache"))
        assert_same_bytes(folder, here / "plain" / "7")
    assert len(list((here / "cache" / "features").glob("*.safetensors"))) == 1


def test_there_are_no_data_workers_whose_number_could_matter():
    data = WalkForwardDataModule(synthetic=SyntheticMarket(num_bars=760), cache=False, train_size=300)
    assert not any("worker" in name for name in inspect.signature(type(data)).parameters)


def test_a_second_run_gives_the_same_bytes_and_global_generators_are_neither_used_nor_moved(run, here):
    np.random.seed(123)
    torch.manual_seed(456)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    folder = run("global")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert_same_bytes(folder, here / "plain" / "7")


@pytest.mark.slow
def test_another_number_of_threads_stays_within_the_tolerance(run, here):
    folder = run("threads", "--threads", "2")
    mine, other = weights(folder), weights(here / "plain" / "7")
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], rtol=THREAD_TOLERANCE, atol=THREAD_TOLERANCE)


def test_another_seed_gives_another_run(run, here):
    folder = run("other", "--seed", "8", "--data.fold_limit", "1", seed=8)
    mine, other = weights(folder), weights(here / "plain" / "7")
    assert any(not torch.equal(mine[name], other[name]) for name in mine)


def test_a_run_is_repeated_from_its_folder_and_told_to_be_equal(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert main(["walk-forward", "--from", "plain/7/run.json"]) == 0
    text = capsys.readouterr().out
    assert "again: plain/7" in text
    assert "config." not in text
    assert "out_of_sample.csv equals the original's, byte for byte (200 decisions)" in text
    assert_same_bytes(here / "plain_again" / "7", here / "plain" / "7")
    assert main(["walk-forward", "--from=plain/7"]) == 2  # the rerun is a run: it is not written over
    assert "holds a run already" in capsys.readouterr().err


def test_a_rerun_names_other_versions_code_data_and_settings(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    record = json.loads((here / "plain" / "7" / "run.json").read_text())
    record["versions"]["torch"], record["commit"] = "2.10.0", "0" * 40
    (here / "theirs" / "7").mkdir(parents=True)
    for name in ("config.yaml", "folds.json", "out_of_sample.csv", "trades.csv"):
        (here / "theirs" / "7" / name).write_bytes((here / "plain" / "7" / name).read_bytes())
    (here / "theirs" / "7" / "run.json").write_text(json.dumps(record))
    SyntheticMarket(kind="predictor", num_bars=760, seed=4, cost=0.0).write(here / "mine.csv")
    flags = ["--data.path", "mine.csv", "--model.gamma", "0.8", "--results", "ours", "--data.fold_limit", "1"]
    assert main(["walk-forward", "--from", "theirs/7", *flags]) == 0
    text = capsys.readouterr().out
    for piece in (
        "versions.torch was '2.10.0' and is",
        f"commit was '{'0' * 40}' and is",
        "data.bars_sha256 was",
        "config.model.gamma was 0.9 and is 0.8",
        "config.data.path was 'market.csv' and is 'mine.csv'",
        "config.data.fold_limit was 2 and is 1",
        "out_of_sample.csv has 100 decisions, the original 200, on other bars",
    ):
        assert piece in text, piece
    assert "config.results" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "nowhere/7"), "is not the folder of a run"),
        (("--from",), "--from names one run"),
        (("--from", "plain/7", "--from", "plain/7"), "--from names one run"),
    ],
)
def test_a_rerun_of_nothing_is_refused(here, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(here)
    assert main(["walk-forward", *arguments]) == 2
    assert message in capsys.readouterr().err
