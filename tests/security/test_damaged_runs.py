"""A run's folder that is damaged, or a stranger's: exit code 2 with the file's name, never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_ppo.cli import main
from lit_ppo.folds.autotune import stored_choice
from lit_ppo.folds.candidates import Trained, validation_returns
from lit_ppo.folds.optimisation_summary import SUMMARY, Summary
from lit_ppo.scoring.pooling import pool
from lit_ppo.store.results import RunFolder, load_run
from lit_ppo.store.schema import mismatch, read_json
from tests.lit_ppo.test_candidates import trained
from tests.lit_ppo.test_report import demo

BOMB = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}' if level else '1'] * 9)}]" for level in range(12))
JSON = ("run.json", "folds.json", "../pooled.json")
LINES = ("fold_000/metrics.jsonl", "fold_001/timing.jsonl")
TABLES = ("out_of_sample.csv", "trades.csv", "baselines.csv")
BINARY = bytes(range(256))
DAMAGES: dict[str, Any] = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "binary": lambda data: BINARY,
    "of another encoding": lambda data: data.decode().encode("utf-16"),
    "a list": lambda data: b'["x"]',
    "null": lambda data: b"null",
    "not a number": lambda data: b'{"a": NaN}',
    "infinite": lambda data: b'{"a": 1e999}',
    "of endless digits": lambda data: b'{"a": ' + b"9" * 5000 + b"}",
    "too deep for Python": lambda data: b'{"a": ' + b"[" * 100_000,
    "too deep": lambda data: b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}",
    "half a letter": lambda data: b'{"a": "\\ud800"}',
}
WRONG: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("run.json", ("data",), [], "data must be an object"),
    ("run.json", ("data", "bars_per_year"), "many", "data.bars_per_year must be a finite number"),
    ("run.json", ("data", "bars_per_year"), 0, "data.bars_per_year must be a finite number from"),
    ("run.json", ("data", "bars_per_year"), None, "data.bars_per_year"),
    ("run.json", ("seed",), 2**62, "seed must be a whole number from 0"),
    ("run.json", ("seeds",), "42", "seeds must be a list"),
    ("run.json", ("machine",), 3, "machine must be an object"),
    ("run.json", ("versions", "numpy"), ["2"], "versions.numpy"),
    ("run.json", ("started",), 5, "started must be text"),
    ("run.json", ("command",), "lit-ppo", "command must be a list"),
    ("run.json", ("candidates",), {"number": 2}, "candidates.backtest_overfitting_probability is missing"),
    ("run.json", ("oracle",), {"kind": "regime", "optimum_per_bar": "much", "scale": 1}, "oracle.optimum_per_bar"),
    ("run.json", ("money",), {"lot_step": -1}, "money.lot_step"),
    ("run.json", ("money",), {"min_lots": 5, "max_lots": 1}, "min_lots <= max_lots"),
    ("run.json", ("changed_at_resume",), [3], "changed_at_resume[0] must be an object"),
    ("folds.json", ("folds",), {}, "folds must be a list"),
    ("folds.json", ("folds", 1), 7, "folds[1] must be an object"),
    ("folds.json", ("folds", 0, "index"), None, "folds[0].index must be a whole number"),
    ("folds.json", ("folds", 0, "status"), "finished", "'running' or 'done' or 'failed'"),
    ("folds.json", ("folds", 0, "bars", "test"), [1], "folds[0].bars.test must be a list of 2"),
    ("folds.json", ("folds", 0, "seconds", "fit"), "long", "folds[0].seconds.fit"),
    ("folds.json", ("folds", 0, "scores", "validation/score"), {}, "folds[0].scores.validation/score"),
    ("folds.json", ("folds", 0, "timesteps"), 1.5, "folds[0].timesteps"),
    ("folds.json", ("folds", 0, "details", "screen", "score"), 1, "folds[0].details.screen.score"),
    ("folds.json", ("folds", 0, "details", "screen", "threshold"), {}, "threshold"),
    ("folds.json", ("folds", 0, "details", "times", "train"), ["2024-01-01", 3], "details.times.train[1]"),
    ("folds.json", ("folds", 0, "colour"), "red", "colour"),
    ("../pooled.json", ("by_seed",), {}, "by_seed must be a list"),
    ("../pooled.json", ("by_seed", 0, "return_pct"), "+3", "by_seed[0].return_pct"),
    ("../pooled.json", ("interquartile_mean", "sharpe_annual"), None, "interquartile_mean.sharpe_annual"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = demo.make_run(tmp_path_factory.mktemp("damage") / "results", folds=2, test_bars=30)
    owner = RunFolder(made.parent, 42)
    pool(made.parent, [42], {})
    shutil.copy(made / "fold_001" / "metrics.jsonl", made / "fold_001" / "timing.jsonl")
    rows = load_run(made).out_of_sample
    for fold in (0, 1):
        own = rows[rows["fold"] == fold]
        owner.append_baselines(fold, own["time"].astype("int64").to_numpy(), own["net_return"].to_numpy())
    return made


@pytest.fixture
def refused(folder, capsys):
    """Put something in a file's place, try every command that reads it, and put the file back."""

    def call(name: str, data: bytes, *words: str, commands=("report", "compare")) -> None:
        path = folder / name
        kept = path.read_bytes()
        path.write_bytes(data)
        try:
            for command in commands:
                runs = [str(folder)] * (2 if command == "compare" else 1)
                assert main([command, *runs]) == 2, (command, name)
                error = capsys.readouterr().err
                assert "Traceback" not in error
                for word in (path.name, *words):
                    assert word in error
        finally:
            path.write_bytes(kept)

    return call


def test_the_run_that_is_damaged_below_is_whole(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert main(["compare", str(folder), str(folder)]) == 0
    assert "42" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", JSON)
def test_a_damaged_json_file_is_named(refused, folder, name, damage):
    commands = ("report", "compare") if name in JSON[:2] else ("report",)
    refused(name, DAMAGES[damage]((folder / name).read_bytes()), commands=commands)


@pytest.mark.parametrize(("name", "keys", "value", "words"), WRONG, ids=lambda x: str(x)[:30])
def test_a_value_of_another_type_is_named_with_its_key(refused, folder, name, keys, value, words):
    content = json.loads((folder / name).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    refused(name, json.dumps(content).encode(), words, commands=("report",))


@pytest.mark.parametrize("damage", ["binary", "a list", "not a number", "infinite", "of endless digits", "too deep"])
@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_of_a_curve_is_named(folder, tmp_path, name, damage):
    copy, path = shutil.copytree(folder, tmp_path / "42") / name, Path(name)
    data = copy.read_bytes()
    copy.write_bytes(data + DAMAGES[damage](data).replace(b"\n", b" ") + b"\n")
    with pytest.raises(ValueError, match=rf"{path.name}, line \d+, is"):
        load_run(tmp_path / "42").metrics(int(name[7]), path.name)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_summary_of_the_optimisations_is_named(folder, tmp_path, damage):
    path = tmp_path / SUMMARY
    path.write_bytes(DAMAGES[damage]((folder / SUMMARY).read_bytes()))
    with pytest.raises(ValueError, match=SUMMARY):
        read_json(path, Summary)


@pytest.mark.parametrize("name", [SUMMARY, *LINES])
def test_a_file_that_only_the_page_reads_is_named_by_the_command(refused, name):
    refused(name, b"[]\n", commands=("report",))


@pytest.mark.parametrize("damage", ["binary", "of another encoding", "a list"])
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_named(refused, folder, name, damage):
    refused(name, DAMAGES[damage]((folder / name).read_bytes()) + b"\n")


@pytest.mark.parametrize("left", [0, 20, 45])  # of 60 rows in two folds
def test_a_table_that_lost_rows_is_named(refused, folder, left):
    lines = (folder / "out_of_sample.csv").read_bytes().splitlines(keepends=True)
    refused("out_of_sample.csv", b"".join(lines[: left + 1]), f"{left % 30} rows of fold {left // 30}, of which")
    lines = (folder / "trades.csv").read_bytes().splitlines(keepends=True)
    refused("trades.csv", lines[0], "0 rows of fold 1, where", commands=("report",))


@pytest.mark.parametrize("name", [*JSON[:2], *TABLES, "config.yaml"])
def test_a_folder_in_the_place_of_a_file_is_named(folder, tmp_path, capsys, name):
    copy = shutil.copytree(folder, tmp_path / "42")
    (copy / name).unlink()
    (copy / name).mkdir()
    assert main(["report", str(copy)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "column", "cell"),
    [
        ("out_of_sample.csv", "time", "yesterday"),
        ("out_of_sample.csv", "time", ""),
        ("out_of_sample.csv", "time", "9999-01-01T00:00:00Z"),
        ("out_of_sample.csv", "fold", "first"),
        ("out_of_sample.csv", "fold", "0.5"),
        ("out_of_sample.csv", "fold", "-1"),
        ("out_of_sample.csv", "position", "nan"),
        ("out_of_sample.csv", "net_return", "1e308"),
        ("out_of_sample.csv", "net_return", ""),
        ("out_of_sample.csv", "equity", "nan"),
        ("out_of_sample.csv", "cost", "0,0"),
        ("trades.csv", "side", "up"),
        ("trades.csv", "bars_held", "few"),
        ("trades.csv", "closed", "maybe"),
        ("trades.csv", "result", "inf"),
        ("baselines.csv", "previous_fold", "x"),
    ],
)
def test_a_cell_that_a_table_cannot_hold_is_named(refused, folder, name, column, cell):
    header, first, *rest = (folder / name).read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index(column)] = cell
    refused(name, "\n".join([header, ",".join(cells), *rest, ""]).encode(), commands=("compare",))


@pytest.mark.parametrize(
    "text",
    [b"[1]", b"data: 3", b"a: {", BINARY, BOMB.encode(), b"a: " + b"[" * 800, b"a: !!timestamp x", b"a: &a [*a]"],
)
def test_a_damaged_configuration_is_named(refused, text):
    refused("config.yaml", text)


@pytest.mark.parametrize("damage", ["emptied", "cut", "binary", "a list", "short of some bytes"])
def test_damaged_fills_are_named(refused, folder, damage):
    name = "fold_001/test_bars.npz"
    shorter = {"short of some bytes": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 9 :]}
    refused(name, (DAMAGES | shorter)[damage]((folder / name).read_bytes()), commands=("report",))


def test_what_a_killed_writer_leaves_is_no_damage(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "42")
    for name in (*TABLES, *LINES):
        with (copy / name).open("ab") as file:
            file.write(b'2024-01-02T00:00:00Z,"\xff')
    assert load_run(copy).out_of_sample.equals(load_run(folder).out_of_sample)
    assert load_run(copy).metrics(0) == load_run(folder).metrics(0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_candidate_and_probe_are_named(tmp_path, damage):
    directory = tmp_path / "fold_000" / "candidate_0"
    directory.mkdir(parents=True)
    trained(0, 1.0).write(directory)
    path = directory / "candidate.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"candidate\.json"):
        Trained.read(directory)
    (tmp_path / "autotune.json").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"autotune\.json"):
        stored_choice(tmp_path)


def test_candidates_of_other_bars_are_not_put_side_by_side(tmp_path):
    for number, time in enumerate(([1, 2], [1, 3])):
        directory = tmp_path / "fold_000" / f"candidate_{number}"
        directory.mkdir(parents=True)
        trained(number, 1.0, time).write(directory)
    (tmp_path / "fold_000" / "candidate_of_mine").mkdir()
    with pytest.raises(ValueError, match=r"candidate_1.candidate\.json has other validation bars"):
        validation_returns(tmp_path)


def test_one_damaged_run_does_not_silence_the_others(folder, tmp_path, capsys):
    for number in ("1", "2", "3"):
        shutil.copytree(folder, tmp_path / "runs" / number)
    for damaged, data in (("2", b"{"), ("3", b'{"seed": "x"}')):
        (tmp_path / "runs" / damaged / "run.json").write_bytes(data)
    for _ in range(2):  # the second time from the index
        assert main(["compare", "--all", "--results", str(tmp_path / "runs"), "--html", str(tmp_path / "page")]) == 0
        table, *left_out = capsys.readouterr().out.split("\nLeft out: ")
        assert {line[0] for line in table.splitlines() if line[:1].isdigit()} == {"1"}
        assert ["2/run.json is not JSON" in left_out[0], "3/run.json is damaged: seed" in left_out[1]] == [True, True]
    assert "because a file is damaged: 2, 3." in (tmp_path / "page").read_text()


@pytest.mark.parametrize(
    ("value", "kind", "wrong"),
    [
        ({"a": [1]}, dict[str, list[int]], ""),
        ({"a": [True]}, dict[str, list[int]], "a[0] must be a whole number, found True"),
        ({1: 2}, dict[str, int], "it must be an object (keys and values), found {1: 2}"),
        (None, int | None, ""),
        ("x", int | str, ""),
        ([], int | str, "it must be a whole number or text, found []"),
        (3, float, ""),
        (1e300, float, "it must be a finite number, found 1e+300"),
    ],
)
def test_a_type_is_said_in_words(value, kind, wrong):
    assert mismatch(value, kind) == wrong
