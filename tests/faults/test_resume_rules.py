"""C17, C18, C19: what a resume refuses, what it does not touch, and what it calls by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.synthetic import SyntheticMarket
from lit_ppo.report.build import write_report
from lit_ppo.store.provenance import source_sha256
from lit_ppo.store.resume_check import changes
from tests.faults.harness import CONFIG, SEED, assert_same_run, command

KILL = {"LIT_PPO_FAILPOINT": "after_replace@manifest.json:7"}  # in the second fold


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def cut(launch) -> Path:
    """Folder of a run that was killed in its second fold."""
    ended = launch(*command(), environment=KILL)
    assert ended.code == -9, ended.output
    return launch.directory / "results" / str(SEED)


def test_a_resume_with_other_settings_or_code_is_refused_and_every_difference_listed(launch, whole, cut):
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file() and path.name != ".lock"}
    for arguments, faults, expected in (
        (
            ["--model.gamma", "0.9", "--model.ent_coef", "0.1"],
            [],
            ["model.gamma was 0.995 and is 0.9", "model.ent_coef"],
        ),
        (["--data.train_size", "290"], [], ["data.train_size was 300 and is 290"]),
        ([], ["tests.faults.injected:other_code"], ["the code was ", "and is 0123456789ab"]),
    ):
        ended = launch(*command("--resume", *arguments), faults=faults)
        assert ended.code == 2, ended.output
        for text in (*expected, "--allow-mismatch", "Restore them"):
            assert text in ended.output
    assert before == {path: path.read_bytes() for path in before}  # a refusal changes nothing
    assert launch(*command("--resume")).code == 0
    assert_same_run(whole, cut)


def test_allow_mismatch_goes_on_and_leaves_a_record_in_run_and_report(launch, cut):
    arguments = ["--resume", "--allow-mismatch", "--model.gamma", "0.9"]
    ended = launch(*command(*arguments), faults=["tests.faults.injected:other_code"])
    assert ended.code == 0, ended.output
    assert "mixes two runs" in ended.output
    (note,) = record(cut)["changed_at_resume"]
    assert note["refused"][0] == "model.gamma was 0.995 and is 0.9"
    assert note["refused"][1].startswith("the code was ")
    assert "model.gamma was 0.995 and is 0.9" in write_report(cut).read_text()


def test_other_bars_are_refused(launch, tmp_path):
    bars = SyntheticMarket(num_bars=760, seed=3).write(tmp_path / "bars.csv")
    lines = CONFIG.replace("  synthetic: {kind: regime, num_bars: 760, seed: 3}\n", "  path: bars.csv\n")
    (tmp_path / "config.yaml").write_text(lines)
    ended = launch(*command(), environment=KILL)
    assert ended.code == -9, ended.output
    text = bars.read_text()
    head, _, rest = text.partition("\n")
    last = rest.rstrip("\n").rpartition("\n")[2]
    bars.write_text(text.replace(last + "\n", ""))
    ended = launch(*command("--resume"))
    assert ended.code == 2, ended.output
    assert "data.sha256 was " in ended.output
    assert head


def test_a_finished_run_resumes_to_nothing_and_no_file_is_rewritten(launch, whole):
    assert launch(*command()).code == 0
    folder = launch.directory / "results" / str(SEED)
    assert_same_run(whole, folder)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}
    ended = launch(*command("--resume"))
    assert ended.code == 0, ended.output
    assert "is finished, nothing was changed" in ended.output
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")} == before


def test_a_finished_run_that_had_stopped_early_resumes_to_nothing(launch):
    early = CONFIG.replace("{patience: 50}", "{patience: 1, convergence_threshold: 1000.0, wait_for_change: false}")
    (launch.directory / "config.yaml").write_text(early)
    assert launch(*command("--data.fold_limit", "1")).code == 0
    folder = launch.directory / "results" / str(SEED)
    (fold,) = json.loads((folder / "folds.json").read_text())["folds"]
    assert fold["stop_reason"].startswith("early stopping")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert launch(*command("--resume", "--data.fold_limit", "1")).code == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resume_on_another_machine_is_allowed_and_labelled_not_bit_identical(launch, cut):
    ended = launch(*command("--resume"), faults=["tests.faults.injected:other_machine"])
    assert ended.code == 0, ended.output
    change = f"machine.cpu was {record(cut)['machine']['cpu']!r} and is 'another processor'"
    assert f"is not bit-identical ({change})" in ended.output
    assert record(cut)["changed_at_resume"][0]["inexact"] == [change]


THEN = {"data": {"sha256": "a", "path": "x"}, "versions": {"torch": "2.13.0"}, "machine": {"cpu": "one"}, "threads": 1}


@pytest.mark.parametrize(
    ("config", "record_now", "refused", "inexact"),
    [
        ({"trainer": {"accelerator": "cuda"}}, {}, [], ["trainer.accelerator was 'cpu' and is 'cuda'"]),
        ({}, {"machine": {"cpu": "other"}}, [], ["machine.cpu was 'one' and is 'other'"]),
        ({}, {"versions": {"torch": "2.14.0"}}, ["versions.torch was '2.13.0' and is '2.14.0'"], []),
        ({}, {"data": {"sha256": "b", "path": "y"}}, ["data.sha256 was 'a' and is 'b'"], []),
        ({"results": "elsewhere", "data": {"fold_limit": 3, "path": "moved.csv"}}, {}, [], []),
        ({"model": {"gamma": 0.5}}, {}, ["model.gamma was None and is 0.5"], []),
    ],
)
def test_what_decides_the_numbers_is_refused_and_what_may_change_the_last_bits_is_labelled(
    config, record_now, refused, inexact
):
    found = changes(
        {"trainer": {"accelerator": "cpu"}}, {"trainer": {"accelerator": "cpu"}, **config}, THEN, THEN | record_now
    )
    assert (found.refused, found.inexact) == (refused, inexact)


def test_a_record_of_a_release_that_knew_less_can_be_resumed():
    assert changes({}, {}, {"data": {}}, THEN | {"source_sha256": "c"}).refused == []


def test_the_hash_of_the_code_sees_a_changed_byte_a_new_file_and_another_name(tmp_path):
    seen = []
    for step in (
        lambda: (tmp_path / "lit_ppo").mkdir(),
        lambda: (tmp_path / "lit_ppo" / "a.py").write_text("x = 1\n"),
        lambda: (tmp_path / "lit_ppo" / "a.py").write_text("x = 2\n"),
        lambda: (tmp_path / "lit_ppo" / "b.py").write_text(""),
        lambda: (tmp_path / "lit_ppo" / "a.py").rename(tmp_path / "lit_ppo" / "c.py"),
    ):
        step()
        source_sha256.cache_clear()
        seen.append(source_sha256(tmp_path))
    source_sha256.cache_clear()
    assert len(set(seen)) == len(seen)
