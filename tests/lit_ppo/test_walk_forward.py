"""The loop over the folds, through the command line: files, selection, resume."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.folds import loop as walk_forward
from lit_ppo.folds.loop import WalkForward
from lit_ppo.market.costs import Costs
from lit_ppo.module import LitPPO
from lit_ppo.recipe import load_policy
from lit_ppo.report.analysis import analyse
from lit_ppo.report.verdict import weigh
from lit_ppo.scoring.evaluation import evaluate_bar_by_bar
from lit_ppo.store.checkpoints import load_checkpoint
from lit_ppo.store.results import load_run

CONFIG = """
seed_everything: 7
model: {num_envs: 4, num_steps: 16, burn_in: 4, hidden_size: 4, total_timesteps: 256, hold_bias: 0.0,
  update_epochs: 1, screen_features: false}
data:
  synthetic: {kind: regime, num_bars: 760, seed: 3}
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
    - class_path: callbacks.TrainingCheckpoint
      init_args: {every_n_iterations: 1}
    - callbacks.MetricsLog
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the walk-forward in `tmp_path` and gives exit code and run folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)

    def call(*arguments: str, results: str = "results") -> tuple[int, Path]:
        code = main(["walk-forward", "--config", "config.yaml", "--results", results, *arguments])
        return code, tmp_path / results / "7"

    return call


@pytest.fixture(scope="module")
def runs_made() -> dict[tuple[str, ...], tuple[Path, str]]:
    """By arguments: the results of a run and what it printed."""
    return {}


@pytest.fixture
def finished(run, runs_made, tmp_path, tmp_path_factory):
    """Return a function like `run`, for runs that nothing interferes with: each is made once, and copied since."""

    def call(*arguments: str, results: str = "results") -> tuple[int, Path]:
        made, folder = (*arguments, results), tmp_path / results
        if made not in runs_made:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                assert run(*arguments, results=results)[0] == 0
            kept = tmp_path_factory.mktemp("made") / results
            shutil.copytree(folder, kept)
            runs_made[made] = kept, printed.getvalue()
        else:
            shutil.copytree(runs_made[made][0], folder)
        print(runs_made[made][1])
        return 0, folder / "7"

    return call


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions."""
    names = [folder / "out_of_sample.csv", folder / "trades.csv", folder / "baselines.csv"]
    names = [*names, *sorted(folder.glob("fold_*/metrics.jsonl"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def final_weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_checkpoint(path)["state_dict"] for path in sorted(folder.glob("fold_*/selected.ckpt"))]


def test_a_run_writes_every_file_and_prints_its_table(finished, capsys):
    code, folder = finished()
    printed = capsys.readouterr().out
    assert code == 0
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.yaml", "run.json", "folds.json", "out_of_sample.csv", "trades.csv", "report.html"}
    assert not any(name.startswith(".") for name in names), names
    for text in ("fold   0", "optimum", "buy and hold", "300 test bars", "report: results/7/report.html"):
        assert text in printed
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["seed"]) == ("done", 7)
    assert record["oracle"]["optimum_per_bar"] == pytest.approx(0.11103, abs=1e-4)
    for fold in range(3):
        found = {path.name for path in (folder / f"fold_{fold:03d}").iterdir()}
        assert found >= {"selected.ckpt", "manifest.json", "metrics.jsonl", "timing.jsonl", "test_bars.npz"}


def test_the_table_and_the_page_agree_on_the_baselines(finished, capsys):
    _, folder = finished("--model.hold_bias", "-3", "--model.screen_features", "false")
    printed = capsys.readouterr().out
    contenders = {contender.key: contender for contender in analyse(folder).baselines}
    for key in ("buy_and_hold", "always_short", "sma_cross", "last_year", "trend"):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{key.replace('_', ' ')} ")]
        shown = re.split(" {2,}", line.strip())
        assert float(shown[1]) == pytest.approx(contenders[key].metrics["return_pct"], abs=0.005)
    (line,) = [line for line in printed.splitlines() if line.startswith("previous fold ")]
    shown = re.split(" {2,}", line.strip())
    assert float(shown[1]) == pytest.approx(contenders["previous_fold"].metrics["return_pct"], abs=0.005)


def test_the_previous_folds_model_trades_each_folds_test_bars_with_its_own_scaler(finished):
    trading = ("--model.hold_bias", "-3", "--model.screen_features", "false")
    code, folder = finished(*trading)
    assert code == 0
    written = pd.read_csv(folder / "baselines.csv")
    assert written["time"].tolist() == pd.read_csv(folder / "out_of_sample.csv")["time"].tolist()
    equity = written["previous_fold"].to_numpy()
    assert (equity[:100] == 1.0).all()  # fold 0 has none before it
    ledger = load_run(folder).folds
    assert ledger[0].details["previous_fold"] == {"flat": "there is no fold before"}
    data = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    data["synthetic"], data["costs"] = SyntheticMarket(**data["synthetic"]), Costs(**data["costs"])
    module = WalkForwardDataModule(**data)
    last = 1.0
    for fold in (1, 2):
        state = load_checkpoint(folder / f"fold_{fold - 1:03d}/selected.ckpt")
        policy, recipe = load_policy(state)
        market = module.test_segment(fold)
        scaler = state["WalkForwardDataModule"]["scaler"]
        raw = module.feature_matrix[market.first_bar : market.first_bar + len(market.features)]
        scaled = np.clip((raw - np.array(scaler["mean"])) / np.array(scaler["std"]), -10, 10)
        assert not np.allclose(scaled, market.features)  # the folds' own scalers differ
        market = dataclasses.replace(market, features=torch.from_numpy(scaled.astype(np.float32)))
        found = evaluate_bar_by_bar(policy, market, recipe.account_features, close_at_end=True)
        np.testing.assert_allclose(equity[fold * 100 : fold * 100 + 100], last * found.ledger.equity, rtol=1e-9)
        assert ledger[fold].details["previous_fold"]["trades"] == found.metrics["trades"] > 0
        last = equity[fold * 100 + 99]


def test_a_lost_model_of_the_fold_before_costs_the_baseline_and_not_the_run(run, monkeypatch):
    write = WalkForward._write_test

    def lose(self, fold, *rest):
        if fold == 2:
            (self.folder.fold_path(1) / "selected.ckpt").unlink()
        return write(self, fold, *rest)

    monkeypatch.setattr(WalkForward, "_write_test", lose)
    with pytest.warns(UserWarning, match="previous_fold` stays flat in fold 2"):
        code, folder = run()
    assert code == 0
    assert load_run(folder).folds[2].details["previous_fold"] == {"flat": "the weights of fold 1 cannot be read"}


def test_a_run_that_traded_prints_its_statistics(run, capsys):
    assert run("--model.hold_bias", "-3", "--model.screen_features", "false", "--data.fold_limit", "1")[0] == 0
    printed = capsys.readouterr().out
    for text in ("95 % interval", "Verdict: ", "of 1000 random traders"):
        assert text in printed


def test_the_out_of_sample_file_is_the_test_decisions_of_every_fold_in_time_order(finished):
    _, folder = finished()
    rows = pd.read_csv(folder / "out_of_sample.csv")
    assert list(rows.columns) == [
        "time",
        "fold",
        "position",
        "probability",
        "gross_return",
        "cost",
        "net_return",
        "equity",
    ]
    assert rows["fold"].tolist() == [0] * 100 + [1] * 100 + [2] * 100
    assert pd.to_datetime(rows["time"]).is_monotonic_increasing
    assert (pd.to_datetime(rows["time"]).diff().dropna() == pd.Timedelta("15min")).all()
    np.testing.assert_allclose(rows["net_return"], rows["gross_return"] - rows["cost"], atol=1e-15)
    np.testing.assert_allclose(rows["equity"], (1 + rows["net_return"]).cumprod(), rtol=1e-12)
    assert (rows["cost"] >= 0).all()
    assert rows.groupby("fold")["position"].last().tolist() == [0.0, 0.0, 0.0]  # the way to flat is paid for
    ledger = load_run(folder)
    assert [fold.status for fold in ledger.folds] == ["done"] * 3
    for fold in ledger.folds:
        times = fold.details["times"]
        assert times["test"] == rows.loc[rows["fold"] == fold.index, "time"].iloc[[0, -1]].tolist()
        assert times["train"] < times["validation"] < times["test"]
    assert [fold.timesteps for fold in ledger.folds] == [256] * 3


def test_the_chosen_weights_are_the_best_on_validation_and_give_the_recorded_score(finished):
    _, folder = finished()
    for record in load_run(folder).folds:
        lines = [json.loads(line) for line in (folder / f"fold_{record.index:03d}/metrics.jsonl").open()]
        scores = [line["validation/score"] for line in lines]
        assert len(scores) == 4
        assert record.scores["validation/score"] == max(scores)
        assert record.details["selected"]["timesteps"] == 64 * (4 - scores[::-1].index(max(scores)))


@pytest.mark.slow
def test_without_the_selection_callback_the_last_weights_are_used(run, tmp_path):
    _, chosen = run()
    config = yaml.safe_load(CONFIG)
    del config["trainer"]["callbacks"][0]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    _, last = run(results="last")
    for record in load_run(last).folds:
        assert record.details["selected"]["timesteps"] == 256
    assert bytes_of(chosen)["fold_000/metrics.jsonl"] == bytes_of(last)["fold_000/metrics.jsonl"]


def test_test_bars_are_asked_for_once_after_selection(run, monkeypatch):
    events: list[tuple[str, int]] = []
    fit, write = WalkForward._fit, WalkForward._write_test

    def spy_fit(self, module, directory):
        trainer = fit(self, module, directory)
        events.append(("chosen", self.datamodule.fold))
        segment = self.datamodule.test_segment

        def spy_segment(index):
            events.append(("test bars", index))
            return segment(index)

        monkeypatch.setattr(self.datamodule, "test_segment", spy_segment)
        assert "test" not in self.datamodule.row_accesses[self.datamodule.fold]
        return trainer

    def spy_write(self, fold, *rest):
        monkeypatch.undo()
        monkeypatch.setattr(WalkForward, "_fit", spy_fit)
        monkeypatch.setattr(WalkForward, "_write_test", spy_write)
        return write(self, fold, *rest)

    monkeypatch.setattr(WalkForward, "_fit", spy_fit)
    monkeypatch.setattr(WalkForward, "_write_test", spy_write)
    (code, _) = run(results=str(Path.cwd() / "results"))
    assert code == 0
    assert events == [(what, fold) for fold in range(3) for what in ("chosen", "test bars")]


class Killed(BaseException):
    """Stands for a kill: no handler of ours expects it."""


@pytest.mark.parametrize("where", ["before test", "after test", "before ledger", "iteration"])
def test_killed_and_resumed_equals_uninterrupted(run, finished, monkeypatch, where):
    _, whole = finished()

    def die(*arguments, **keywords):
        raise Killed

    spies = {
        "before test": (
            walk_forward.WalkForward,
            "_write_test",
            lambda old: lambda self, fold, *r: fire(fold, old, self, fold, *r),
        ),
        "after test": (
            walk_forward,
            "write_fills",
            lambda old: lambda path, fills: fire(fills.fold[0], old, path, fills),
        ),
        "before ledger": (walk_forward, "scores_of", lambda old: lambda stage, e: fire(counter(stage), old, stage, e)),
        "iteration": (
            LitPPO,
            "training_step",
            lambda old: lambda self, b, i: fire(self.fold[0] * (self.iteration == 2), old, self, b, i),
        ),
    }
    calls: list[str] = []

    def counter(stage: str) -> int:
        calls.append(stage)
        return calls.count("test") - (stage == "test")

    def fire(fold: int, function, *arguments):
        if fold == 1:
            die()
        return function(*arguments)

    owner, name, spy = spies[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, spy(getattr(owner, name)))
        with pytest.raises(Killed):
            run(results="cut")
    assert [fold.status for fold in load_run(Path("cut/7")).folds] == ["done", "running"]
    code, cut = run("--resume", results="cut")
    assert code == 0
    assert bytes_of(whole) == bytes_of(cut)
    for one, other in zip(final_weights(whole), final_weights(cut), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert [fold.scores for fold in load_run(whole).folds] == [fold.scores for fold in load_run(cut).folds]


def test_a_finished_run_resumes_to_nothing(run, finished):
    _, folder = finished()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".csv", ".ckpt", ".jsonl")}
    assert run("--resume")[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_that_is_there_is_neither_continued_nor_replaced_unasked(run, finished, capsys):
    _, folder = finished("--data.fold_limit", "1")
    first = bytes_of(folder)
    assert run()[0] == 2
    assert "--resume" in capsys.readouterr().err
    assert bytes_of(folder) == first
    assert run("--overwrite", "--data.fold_limit", "1")[0] == 0
    assert bytes_of(folder) == first


def test_a_resume_may_go_further_and_gives_what_one_run_gives(run, finished):
    _, whole = finished()
    finished("--data.fold_limit", "1", results="parts")
    code, parts = run("--resume", results="parts")
    assert code == 0
    assert bytes_of(whole) == bytes_of(parts)


@pytest.mark.parametrize(
    ("part", "key"), [("details", "seen"), ("details", "optimisations"), ("scores", "validation/score")]
)
def test_a_done_fold_of_which_the_ledger_says_too_little_is_named(run, finished, capsys, part, key):
    _, folder = finished("--data.fold_limit", "1")
    ledger = json.loads((folder / "folds.json").read_text())
    del ledger["folds"][0][part][key]
    (folder / "folds.json").write_text(json.dumps(ledger))
    capsys.readouterr()
    assert run("--resume")[0] == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"folds.json says that fold 0 is done, but its entry has no {part}['{key}']" in told
    assert "--overwrite" in told


def test_a_resume_does_not_go_on_from_a_table_that_lost_rows(run, capsys):
    _, folder = run("--data.fold_limit", "1")
    table = folder / "out_of_sample.csv"
    whole = table.read_bytes()
    for rows in (0, 60):  # the equity of the next fold would begin anew, or with that of another bar
        table.write_bytes(b"".join(whole.splitlines(keepends=True)[: rows + 1]))
        before = bytes_of(folder)
        assert run("--resume")[0] == 2
        assert f"out_of_sample.csv has {rows} rows of fold 0" in " ".join(capsys.readouterr().err.split())
        assert bytes_of(folder) == before
    table.write_bytes(whole)
    (folder / "config.yaml").unlink()
    assert run("--resume")[0] == 2
    assert "config.yaml'. Restore it" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--model.gamma", "0.9"], "model.gamma was 0.995 and is 0.9"),
        (["--data.train_size", "290"], "data.train_size was 300 and is 290"),
        (["--data.synthetic.seed", "4"], "data.synthetic.seed was 3 and is 4"),
        (["--trainer.callbacks+=callbacks.WarmStart"], "trainer.callbacks was"),
    ],
)
def test_a_resume_with_other_settings_is_refused_and_lists_them(run, finished, capsys, change, named):
    finished("--data.fold_limit", "1")
    assert run("--resume", *change)[0] == 2
    assert named in capsys.readouterr().err


def test_the_seed_decides_the_result(run, finished):
    _, one = finished()
    _, again = run(results="again")
    main(["walk-forward", "--config", "config.yaml", "--results", "other", "--seed", "8", "--data.fold_limit", "1"])
    assert bytes_of(one) == bytes_of(again)
    assert bytes_of(one)["fold_000/metrics.jsonl"] != Path("other/8/fold_000/metrics.jsonl").read_bytes()


def test_folds_draw_different_numbers(finished):
    _, folder = finished()
    starts = [load_checkpoint(path)["hyper_parameters"]["seed"] for path in sorted(folder.glob("fold_*/selected.ckpt"))]
    assert len(set(starts)) == 3


def test_a_rerun_from_the_stored_configuration_gives_the_same_bytes(run, finished):
    _, folder = finished()
    assert main(["walk-forward", "--config", str(folder / "config.yaml"), "--results", "again"]) == 0
    assert bytes_of(folder) == bytes_of(Path("again/7"))


def test_a_second_run_in_the_folder_of_a_running_one_is_refused(run, monkeypatch, capsys):
    seen: list[tuple[int, str]] = []
    original = WalkForward.run

    def run_another_inside(self):
        if not seen:
            seen.append((0, ""))
            code = main(["walk-forward", "--config", "config.yaml", "--results", "results", "--overwrite"])
            seen.append((code, capsys.readouterr().err))
        return original(self)

    monkeypatch.setattr(WalkForward, "run", run_another_inside)
    assert run()[0] == 0
    assert seen[1][0] == 2
    assert "is in use by process" in seen[1][1]


def test_the_end_of_a_run_says_the_verdict_of_the_page_and_nothing_of_a_speed_up(finished, capsys):
    code, folder = finished()
    assert code == 0
    told = " ".join(capsys.readouterr().out.split())
    analysis = analyse(folder)
    sentence = " ".join(analysis.verdict.text.split())
    assert sentence in told
    assert "before counting trials" not in told
    assert "peed-up" not in told.split("All test bars")[0]


def test_a_script_reads_one_object_and_a_quiet_run_says_two_lines(run, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lit_ppo.report.analysis.weigh", lambda *given, **more: calls.append(0) or weigh(*given, **more)
    )
    assert run("--json", "--data.fold_limit", "1")[0] == 0
    spoken = capsys.readouterr()
    found = json.loads(spoken.out)
    assert len(calls) == 1  # one analysis for table, page and object
    assert found["verdict"]["kind"] == "none"
    assert isinstance(found["metrics"]["trades"], int)  # a count, no 51.0
    assert all(Path(path).exists() for path in found["paths"].values())
    assert set(found["paths"]) >= {"report", "out_of_sample", "trades"}
    assert "fold   0" in spoken.err
    assert "json" not in (Path(found["paths"]["folder"]) / "config.yaml").read_text()
    assert run("--json", "--resume", "--data.fold_limit", "1")[0] == 0  # finished: the same answer
    assert json.loads(capsys.readouterr().out) == found
    assert run("--quiet", "--overwrite", "--data.fold_limit", "1")[0] == 0
    sentence, page = capsys.readouterr().out.splitlines()
    assert sentence == found["verdict"]["text"]
    assert page == "report: results/7/report.html"
    assert run("--json", "--seeds", "2")[0] == 2


def test_the_account_in_lots_of_a_run_reaches_its_page(run):
    code, folder = run("--money.initial_balance", "777", "--model.hold_bias", "-3")
    assert code == 0
    assert load_run(folder).record["money"]["initial_balance"] == 777.0
    analysis = analyse(folder)
    table = pd.read_csv(folder / "money.csv")
    assert analysis.money is not None
    np.testing.assert_allclose(analysis.money.balance, table["balance"], rtol=1e-12)
    assert "balance" in (folder / "report.html").read_text()
