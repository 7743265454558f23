"""`lit-ppo predict --ckpt`: equal to the evaluation of the whole file, in any pieces, and safe to run again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import lit_ppo
from datamodules.bars.read import read_bars
from datamodules.features.compute import compute_features
from datamodules.features.feed import Feed
from datamodules.fresh import fresh_segment
from datamodules.synthetic import SyntheticMarket
from datamodules.walk_forward import WalkForwardDataModule
from lit_ppo.cli import main
from lit_ppo.commands import signals as signals_command
from lit_ppo.lab.audit import lively
from lit_ppo.market.costs import Costs
from lit_ppo.scoring.evaluation import evaluate
from lit_ppo.signals.checkpoint_choice import DATA_STATE, choose_checkpoint
from lit_ppo.signals.known_equity import KnownEquity
from lit_ppo.signals.live import SignalState, seen_in_training
from lit_ppo.store.checkpoints import CheckpointStore
from tests.signals.conftest import LIVELY

WARMUP = 24 + 30  # bars: the longest feature window, and the LSTM's


def predict(run_folder: Path, data: Path, home: Path, *more: str) -> int:
    """Run the command, with its files in `home`."""
    files = ["--output", str(home / "signals.csv"), "--state", str(home / "signals.state")]
    return main(["predict", "--ckpt", str(run_folder), "--data", str(data), *files, *more])


def part(data: Path, start: int, stop: int, home: Path) -> Path:
    """Bars [start, stop) of a file as a file of their own."""
    header, *rows = data.read_text().splitlines(keepends=True)
    path = home / f"bars_{start}_{stop}.csv"
    path.write_text("".join([header, *rows[start:stop]]))
    return path


def written(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.glob("signals.*")}


def decisions(home: Path) -> tuple[list[str], list[float]]:
    header, *rows = (home / "signals.csv").read_text().splitlines()
    assert header == "time,position,change,probability,seen_in_training"
    return [row.split(",")[0] for row in rows], [float(row.split(",")[1]) for row in rows]


@pytest.fixture(scope="module")
def whole(run_folder, new_bars, tmp_path_factory) -> dict[str, bytes]:
    """The files after one call with all new bars."""
    home = tmp_path_factory.mktemp("whole")
    assert predict(run_folder, new_bars, home) == 0
    return written(home)


def test_a_checkpoint_whose_feature_is_another_class_of_ours_is_refused_before_it_is_made(
    run_folder, new_bars, tmp_path, capsys
):
    content = CheckpointStore(run_folder / "fold_001").load("selected.ckpt")
    (tmp_path / "theirs").mkdir()
    content[DATA_STATE]["features"] = [
        {"class_path": "datamodules.cache.FeatureCache", "directory": str(tmp_path / "theirs")}
    ]
    torch.save(content, tmp_path / "stranger.ckpt")
    assert predict(tmp_path / "stranger.ckpt", new_bars, tmp_path) == 2
    assert not any((tmp_path / "theirs").iterdir())  # where its constructor makes the cache's own folder
    assert "datamodules.cache.FeatureCache is no shipped feature" in capsys.readouterr().err


def test_decisions_equal_an_evaluation_of_the_whole_file(run_folder, new_bars, whole, tmp_path):
    (tmp_path / "signals.csv").write_bytes(whole["signals.csv"])
    times, positions = decisions(tmp_path)
    policy, recipe = choose_checkpoint(str(run_folder)).load_policy()
    data = WalkForwardDataModule(
        path=str(run_folder.parents[1] / "bars.csv"),
        train_size=800,
        validation_size=100,
        test_size=100,
        step_size=100,
        warmup_bars=30,
        cache=False,
    )
    market = fresh_segment(data, 1, read_bars(new_bars))  # the newest fold's own scaler, from the training's own code
    expected = evaluate(policy, market, recipe.account_features)
    assert np.abs(np.diff(expected.positions)).sum() > 10, "the policy must trade for this test to mean anything"
    assert len(positions) == 450 - WARMUP
    # An evaluation ends where the last bars have no fill yet; signals go on to the last bar.
    assert len(expected.positions) == len(positions) - 2
    assert positions[:-2] == expected.positions.tolist()
    assert times[-1] == read_bars(new_bars).frame["time"].iloc[-1].strftime("%Y-%m-%dT%H:%M:%SZ")


def test_decisions_on_bars_of_the_training_and_before_it_are_marked_and_warned_of(run_folder, tmp_path, capsys):
    bars = run_folder.parents[1] / "bars.csv"
    times = json.loads((run_folder / "folds.json").read_text())["folds"][1]["details"]["times"]
    assert predict(run_folder, bars, tmp_path) == 0
    _, *rows = (tmp_path / "signals.csv").read_text().splitlines()
    marks = {row.split(",")[0]: row.rpartition(",")[2] for row in rows}
    assert min(marks) < times["train"][0]  # bars before the fold's own are no test of it either
    seen = [time for time, mark in marks.items() if mark == "true"]
    # Its last reward is known two bars after the last decision of the validation.
    assert len(seen) == sum(time <= times["validation"][1] for time in marks) + 2
    assert seen == sorted(marks)[: len(seen)]
    assert {mark for time, mark in marks.items() if time >= times["test"][0]} == {"false"}
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"{len(seen):,} of {len(marks):,} new decisions, {seen[0]} to {seen[-1]}, are on bars no later" in warning
    assert predict(run_folder, bars, tmp_path) == 0  # nothing new: nothing to warn of
    assert "warning" not in capsys.readouterr().err
    with pytest.warns(UserWarning, match=f"{len(seen):,} of {len(marks):,} new decisions"):
        decided = lit_ppo.load_policy(run_folder).decide(bars)
    assert decided["seen_in_training"].tolist() == [mark == "true" for mark in marks.values()]


def test_bars_after_the_training_are_not_marked_and_an_older_checkpoint_counts_its_whole_file(run_folder):
    chosen = choose_checkpoint(str(run_folder))
    last = np.datetime64(chosen.data["fingerprint"]["last_time"][:19], "ns").astype(np.int64)
    feed = Feed.of(chosen.data, chosen.settings, {})
    assert feed.seen_until < last
    assert seen_in_training(np.array([feed.seen_until + 1]), feed.seen_until) == ""
    older = Feed.of({key: x for key, x in chosen.data.items() if key != "seen_until"}, chosen.settings, {})
    assert older.seen_until == last


def test_the_file_growing_by_one_seven_and_many_bars_gives_the_same_bytes(run_folder, new_bars, whole, tmp_path):
    for stop in (3, 40, WARMUP + 10, WARMUP + 11, WARMUP + 18, 450):
        assert predict(run_folder, part(new_bars, 0, stop, tmp_path), tmp_path) == 0
        assert len(decisions(tmp_path)[0]) == max(stop - WARMUP, 0)
    assert written(tmp_path) == whole


def test_files_of_new_bars_only_and_rolling_windows_give_the_same_bytes(run_folder, new_bars, whole, tmp_path):
    for start, stop in ((0, 100), (100, 103), (90, 110), (109, 300), (250, 450)):
        assert predict(run_folder, part(new_bars, start, stop, tmp_path), tmp_path) == 0
    assert written(tmp_path) == whole


def test_the_same_or_older_bars_again_change_nothing(run_folder, new_bars, whole, tmp_path, capsys):
    assert predict(run_folder, new_bars, tmp_path) == 0
    for data in (new_bars, part(new_bars, 50, 400, tmp_path)):
        assert predict(run_folder, data, tmp_path) == 0
        assert written(tmp_path) == whole
    assert "0 new bars, 0 new decisions" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["write_state", "append_rows"])
def test_a_run_stopped_between_its_two_files_is_mended_by_the_next(
    run_folder, new_bars, whole, tmp_path, monkeypatch, stage
):
    assert predict(run_folder, part(new_bars, 0, 300, tmp_path), tmp_path) == 0
    with monkeypatch.context() as patch:
        patch.setattr(signals_command, stage, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert predict(run_folder, new_bars, tmp_path) == 130
    (tmp_path / ".signals.state.0123.lit-ppo-tmp").write_bytes(b"half")  # of a call killed in the middle of the state
    assert predict(run_folder, new_bars, tmp_path) == 0
    assert written(tmp_path) == whole
    # After append_rows failed the state was complete: it is not written again, and nothing is swept.
    assert len(list(tmp_path.glob(".*tmp"))) == (stage == "append_rows")


def test_a_csv_cut_in_the_middle_of_a_row_or_lost_is_completed_from_the_state(run_folder, new_bars, whole, tmp_path):
    assert predict(run_folder, new_bars, tmp_path) == 0
    (tmp_path / "signals.csv").write_bytes(whole["signals.csv"][:-11])
    assert predict(run_folder, new_bars, tmp_path) == 0
    assert written(tmp_path) == whole
    (tmp_path / "signals.csv").unlink()
    assert predict(run_folder, new_bars, tmp_path) == 0
    assert written(tmp_path) == whole


def changed(path: Path, row: int, column: str, value: str) -> Path:
    header, *rows = path.read_text().splitlines()
    cells = rows[row].split(",")
    cells[header.split(",").index(column)] = value
    rows[row] = ",".join(cells)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def without_row(path: Path, row: int) -> Path:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: row + 1] + lines[row + 2 :]))
    return path


def without_volume(path: Path) -> Path:
    header, *rows = path.read_text().splitlines()
    gone = header.split(",").index("volume")
    kept = [",".join(c for i, c in enumerate(line.split(",")) if i != gone) for line in [header, *rows]]
    path.write_text("\n".join(kept).replace("spread", "sentiment") + "\n")
    return path


def of_half_an_hour(path: Path) -> Path:
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *rows[::2]]))
    return path


def of_two_digits(path: Path) -> Path:
    header, *rows = path.read_text().splitlines()
    lines = [",".join(f"{float(c):.2f}" if "." in c else c for c in row.split(",")) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


REFUSED = {
    "a gap": ((301, 400), lambda path: path, "bars may be missing between them"),
    "a seen bar that changed": ((200, 400), lambda path: changed(path, 20, "volume", "31999"), "volume is 31999.0"),
    "a seen bar that is gone": ((200, 400), lambda path: without_row(path, 30), "time is"),
    "other columns": ((200, 400), without_volume, "has the columns"),
    "another spacing": ((300, 400), of_half_an_hour, "bars of 900 seconds"),
    "another point": ((300, 400), of_two_digits, "point of 1e-06"),
}


@pytest.mark.parametrize(("rows", "change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_another_feed_is_refused_and_nothing_is_written(run_folder, new_bars, tmp_path, capsys, rows, change, message):
    assert predict(run_folder, part(new_bars, 0, 300, tmp_path), tmp_path) == 0
    before = written(tmp_path)
    assert predict(run_folder, change(part(new_bars, *rows, tmp_path)), tmp_path) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert written(tmp_path) == before


def test_bars_before_the_first_one_seen_are_refused(run_folder, new_bars, tmp_path, capsys):
    assert predict(run_folder, part(new_bars, 100, 300, tmp_path), tmp_path) == 0
    assert predict(run_folder, part(new_bars, 0, 400, tmp_path), tmp_path) == 2
    assert "before the first bar seen" in capsys.readouterr().err


def test_a_state_belongs_to_its_checkpoint(run_folder, new_bars, tmp_path, capsys):
    assert predict(run_folder, part(new_bars, 0, 100, tmp_path), tmp_path, "--fold", "0") == 0
    before = written(tmp_path)
    assert predict(run_folder, new_bars, tmp_path) == 2
    assert "was made with fold_000/selected.ckpt" in capsys.readouterr().err
    assert written(tmp_path) == before
    assert predict(run_folder / "fold_000", new_bars, tmp_path) == 0
    assert predict(run_folder / "fold_000" / "selected.ckpt", new_bars, tmp_path) == 0


@pytest.mark.parametrize(
    ("ckpt", "more", "message"),
    [
        ("nowhere", (), "there is nothing of that name"),
        (".", (), "there is no run.json and no selected.ckpt"),
        ("RUN", ("--fold", "9"), "folds 0, 1 are finished"),
        ("RUN/fold_001", ("--fold", "1"), "belongs to a run's folder"),
        ("https://host/x.ckpt", (), "local files"),
    ],
)
def test_an_unknown_checkpoint_ends_with_exit_code_2(run_folder, new_bars, tmp_path, capsys, ckpt, more, message):
    ckpt = ckpt.replace("RUN", str(run_folder)) if "://" in ckpt or "RUN" in ckpt else tmp_path / ckpt
    assert predict(ckpt, new_bars, tmp_path, *more) == 2
    assert message in capsys.readouterr().err
    assert not written(tmp_path)


def test_a_foreign_or_damaged_file_is_refused_and_left_alone(run_folder, new_bars, tmp_path, capsys):
    (tmp_path / "signals.csv").write_text("my,own,notes\n")
    assert predict(run_folder, new_bars, tmp_path) == 2
    assert "something else" in capsys.readouterr().err
    assert written(tmp_path) == {"signals.csv": b"my,own,notes\n"}
    (tmp_path / "signals.csv").unlink()
    assert predict(run_folder, new_bars, tmp_path) == 0
    state = bytearray((tmp_path / "signals.state").read_bytes())
    state[-3] ^= 1
    (tmp_path / "signals.state").write_bytes(state)
    assert predict(run_folder, new_bars, tmp_path) == 2
    assert "is damaged" in capsys.readouterr().err
    (tmp_path / "signals.state").write_bytes(b"not a state")
    assert predict(run_folder, new_bars, tmp_path) == 2
    assert "is no state of lit-ppo predict" in capsys.readouterr().err
    assert main(["predict", "--ckpt", str(run_folder), "--data", str(new_bars), "--output", str(new_bars)]) == 2
    assert "three different ones" in capsys.readouterr().err


def test_a_damaged_checkpoint_ends_with_a_message(run_folder, new_bars, tmp_path, capsys):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    weights = copy / "fold_001" / "selected.ckpt"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert predict(copy, new_bars, tmp_path) == 2
    assert "cannot be loaded" in capsys.readouterr().err


def edited(run_folder: Path, home: Path, change) -> Path:
    """A fold's folder of its own, whose checkpoint is another one."""
    content = CheckpointStore(run_folder / "fold_001").load("selected.ckpt")
    change(content)
    CheckpointStore(home / "edited").save(content, "selected.ckpt")
    return home / "edited"


def test_a_checkpoint_alone_knows_its_features(run_folder, new_bars, whole, tmp_path):
    alone = edited(run_folder, tmp_path, lambda content: None)  # no config.yaml anywhere near
    assert predict(alone, new_bars, tmp_path) == 0
    assert written(tmp_path)["signals.csv"] == whole["signals.csv"]


def test_an_older_checkpoint_takes_its_features_from_the_run(run_folder, new_bars, whole, tmp_path, capsys):
    alone = edited(run_folder, tmp_path, lambda content: content["WalkForwardDataModule"].pop("features"))
    assert predict(alone, new_bars, tmp_path) == 2
    assert "Give the run's folder" in capsys.readouterr().err
    shutil.copy(run_folder / "run.json", tmp_path)
    (tmp_path / "config.yaml").write_text("data: [")
    assert predict(alone, new_bars, tmp_path) == 2
    assert "config.yaml is not valid YAML" in capsys.readouterr().err
    shutil.copy(run_folder / "config.yaml", tmp_path)
    assert predict(alone, new_bars, tmp_path) == 0
    assert written(tmp_path)["signals.csv"] == whole["signals.csv"]


def test_another_library_version_is_said_and_not_hidden(run_folder, new_bars, tmp_path):
    def other(content):
        content["WalkForwardDataModule"]["fingerprint"]["features_sha256"] = "0" * 64

    with pytest.warns(UserWarning, match="another TA-Lib"):
        assert predict(edited(run_folder, tmp_path, other), new_bars, tmp_path) == 0


def test_a_checkpoint_without_bars_is_refused(run_folder, new_bars, tmp_path, capsys):
    alone = edited(run_folder, tmp_path, lambda content: content.pop("WalkForwardDataModule"))
    assert predict(alone, new_bars, tmp_path) == 2
    assert "how bars become inputs" in capsys.readouterr().err


def test_what_a_bar_is_decided_from_does_not_change_with_later_bars(run_folder, new_bars):
    chosen = choose_checkpoint(str(run_folder))
    feed = Feed.of(chosen.data, chosen.settings, {})
    bars = feed.read(new_bars)
    whole = feed.features(bars)
    for stop in (60, 61, 399):
        assert np.array_equal(feed.features({k: v[:stop] for k, v in bars.items()}), whole[:stop], equal_nan=True)
    frame = read_bars(new_bars).frame
    assert np.array_equal(whole, compute_features(frame, feed.specs, 900), equal_nan=True)


def test_further_columns_with_holes_are_carried_and_compared():
    bars = {"time": np.arange(5) * 900 * 10**9, "close": np.arange(5.0), "mood": np.array([1, np.nan, 2, 3, np.nan])}
    state = SignalState({}, bars, {}, 0.0, np.zeros(0, np.int64), np.zeros(0))
    assert len(state.with_bars(bars, "bars.csv", 900).bars["time"]) == 5
    other = bars | {"mood": np.array([1, np.nan, 2, np.nan, np.nan])}
    with pytest.raises(ValueError, match=r"mood is nan, and was 3\.0"):
        state.with_bars(other, "bars.csv", 900)


COSTS = {"swap_long_rate": 1e-4, "swap_short_rate": -2e-5, "commission_rate": 1e-5}
SIZES = {"train_size": 300, "validation_size": 50, "test_size": 50, "step_size": 50, "warmup_bars": 10}


@pytest.mark.parametrize(
    ("account_at", "seen", "fill", "costs"),
    [
        ("encoder", ["position", "holding_time"], "next_open", {}),
        ("encoder", ["position", "unrealised"], "next_open", COSTS),
        ("heads", ["position", "unrealised", "holding_time"], "next_close", COSTS),
        ("encoder", ["position", "unrealised"], "same_close", {"spread": 2e-4}),
    ],
)
@pytest.mark.filterwarnings("ignore:data.fill same_close")
def test_a_policy_that_sees_its_account_goes_on_with_it(new_bars, tmp_path, monkeypatch, account_at, seen, fill, costs):
    """Pieces, the whole and the evaluation agree, and what the account earned matters to the decisions."""
    SyntheticMarket(num_bars=500, seed=3, **LIVELY).write(tmp_path / "train.csv")
    arguments = (
        f"fit --model.account_at {account_at} --model.estimator sampled --model.num_envs 4 --model.num_steps 32 "
        f"--model.account_features {json.dumps(seen, separators=(',', ':'))} --model.hidden_size 8 "
        "--model.num_networks 1 "
        f"--model.total_timesteps 128 --data.fill {fill} --data.cache false --trainer.accelerator cpu "
        f"--trainer.logger false --data.path {tmp_path / 'train.csv'} --trainer.default_root_dir {tmp_path / 'fit'}"
    ).split()
    arguments += [f"--data.{name}={value}" for name, value in SIZES.items()]
    arguments += [f"--data.costs.{name}={value}" for name, value in costs.items()]
    assert main(arguments) == 0
    policy, recipe = choose_checkpoint(str(tmp_path / "fit")).load_policy()
    assert recipe.account_features == seen
    source = str(tmp_path / "train.csv")
    data = WalkForwardDataModule(path=source, fill=fill, costs=Costs(**costs), cache=False, **SIZES)
    market = fresh_segment(data, 0, read_bars(new_bars))
    policy = lively(policy, market, seen, torch.Generator().manual_seed(3))  # an untrained policy hardly trades
    monkeypatch.setattr("lit_ppo.signals.checkpoint_choice.load_policy", lambda content: (policy, recipe))
    once, pieces, broke = (tmp_path / name for name in ("once", "pieces", "broke"))
    for home in (once, pieces, broke):
        home.mkdir()
    assert predict(tmp_path / "fit", new_bars, once) == 0
    for stop in (30, 36, 37, 38, 60, 61, 300, 450):
        assert predict(tmp_path / "fit", part(new_bars, 0, stop, pieces), pieces) == 0
    assert written(once) == written(pieces)
    expected = evaluate(policy, market, seen).positions.tolist()
    assert len(expected) > 400
    assert decisions(once)[1][: len(expected)] == expected
    if "unrealised" in seen:
        monkeypatch.setattr(KnownEquity, "at_fill", lambda *_: 0.0)
        assert predict(tmp_path / "fit", new_bars, broke) == 0
        assert decisions(broke) != decisions(once)


def test_a_policy_that_sees_what_it_earned_needs_prices_and_spreads(run_folder, new_bars):
    chosen = choose_checkpoint(str(run_folder))
    feed = Feed.of(chosen.data, chosen.settings, {})
    bars = feed.read(new_bars)
    with pytest.raises(ValueError, match="the new bars have no spread column"):
        feed.fills({name: values for name, values in bars.items() if name != "spread"})
    fills = feed.fills(bars)
    equity, actions = KnownEquity(fills, [-1.0, 0.0, 1.0], 1, first_row=440), [2] * 10
    assert equity.at_fill(0, actions) == 0.0
    entry = np.log1p(fills.price_return[440] - fills.turnover_cost[440])  # after that it costs nothing to hold
    assert equity.at_fill(8, actions) == pytest.approx(entry + np.log1p(fills.price_return[441:448]).sum(), rel=1e-9)
    with pytest.raises(ValueError, match="Bar 448 or one of the two after it lacks a price"):
        equity.at_fill(9, actions)


def test_the_state_file_is_plain_safetensors_and_names_its_checkpoint(run_folder, whole):
    size = int.from_bytes(whole["signals.state"][:8], "little")
    header = json.loads(whole["signals.state"][8 : 8 + size])
    about = json.loads(header["__metadata__"]["lit_ppo"])
    assert about["origin"]["checkpoint"] == "fold_001/selected.ckpt"
    assert about["columns"] == ["time", "open", "high", "low", "close", "volume", "spread"]
    assert {"hidden", "cell", "bars_held", "actions", "probabilities", "bar.close"} <= set(header)


def test_help_names_both_commands(capsys):
    assert main(["predict", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--ckpt" in said
    assert "With --config it is Lightning's command" in said
    assert main(["predict", "--data", "bars.csv"]) == 2
    assert "--ckpt" in capsys.readouterr().err
