"""Every file that the product writes is opened in `lit_ppo/store/atomic.py`, and no writer follows a symbolic link."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lit_ppo.cli import main
from lit_ppo.folds.engine import write_files
from lit_ppo.folds.optimisation_summary import write_summary
from lit_ppo.market.books import trades
from lit_ppo.report.build import write_report
from lit_ppo.report.portfolio import write_portfolio
from lit_ppo.scoring.fills import read_fills, write_fills
from lit_ppo.scoring.pooling import pool
from lit_ppo.scoring.replay import replay
from lit_ppo.signals.live import append_rows
from lit_ppo.store.atomic import own_folder
from lit_ppo.store.checkpoints import CheckpointStore
from lit_ppo.store.looks import note_look
from lit_ppo.store.results import FoldRecord, RunFolder
from lit_ppo.store.run_lock import RunLock, RunLockedError
from tests.lit_ppo.test_report import demo

ROOT = Path(__file__).parents[2]
OPENER = "lit_ppo/store/atomic.py"
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for part in ("lit_ppo", "datamodules", "callbacks")
    for path in [*(ROOT / part).rglob("*.py"), *ROOT.glob("*.py")]
)
# Methods and functions that write to the path they are given, whatever their arguments.
WRITES = {
    *("write_text", "write_bytes", "touch", "tofile", "savefig", "write_html", "write_image", "save_file"),
    *("to_parquet", "to_pickle", "to_excel", "to_hdf", "to_feather", "savetxt", "imsave"),
    *("copy2", "copyfile", "copytree", "copymode", "symlink_to", "hardlink_to", "symlink", "link", "rename", "renames"),
    *("NamedTemporaryFile", "mkstemp", "FileHandler", "CSVLogger", "extractall", "urlretrieve"),
}
# ... and those that write to a path only if it stands at this place (or has this name); a buffer may stand there.
TO_PATH = {
    "save": (1, "f"),  # of torch; that of numpy has its file first, and CheckpointStore's writes with `atomic_write`
    "to_csv": (0, "path_or_buf"),
    "to_json": (0, "path_or_buf"),
    "dump": (1, "stream"),
    "safe_dump": (1, "stream"),
    "savez": (0, "file"),
    "savez_compressed": (0, "file"),
    "export": (2, "f"),
}
EVENTS = {"SummaryWriter", "TensorBoardLogger"}  # a file of a new name each time: time, host, process and number
# What else there is, and why it may.
KNOWN = {
    ("lit_ppo/commands/walk_forward.py", "open"): "the null device, for --quiet",
    ("lit_ppo/fabric_trainer.py", "TensorBoardLogger"): "events",
    ("lit_ppo/commands/lightning_cli.py", "TensorBoardLogger"): "events; hparams.yaml is looked at by LitPPO",
    ("lit_ppo/lab/oracle_training.py", "TensorBoardLogger"): "events; hparams.yaml is looked at by LitPPO",
    ("lit_ppo/tensorboard.py", "SummaryWriter"): "events",
    ("lit_ppo/folds/monitor.py", "SummaryWriter"): "events",
}


def writing_calls(text: str) -> Iterator[str]:
    """Names of the calls in a module that could open a file to write."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        texts = [
            part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if (
            name in WRITES | EVENTS
            or (owner == "os" and name in ("replace", "mkfifo", "truncate"))
            or (owner == "shutil" and name in ("copy", "move", "make_archive"))
        ):
            yield name
        elif owner == "os" and name == "open":
            flags = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            if flags - {"open", "O_RDONLY"} or any(isinstance(part, ast.Name) for part in node.args[1:]):
                yield "os.open"
        elif name in ("open", "FileIO", "ZipFile", "GzipFile", "TarFile", "BZ2File", "LZMAFile"):
            # A mode is a short word of these letters; Path.open has it first, the others second.
            modes = [text for text in texts if text and set(text) <= set("rwaxbtU+") and len(text) < 4]
            mode = given.get("mode") or next(iter(node.args[0 if owner and owner not in MODULES else 1 :]), None)
            if any(set(text) & set("wax+") for text in modes) or (mode is not None and not modes):
                yield name
        elif name in TO_PATH and (name != "save" or owner in ("torch", "np", "numpy")):
            place, keyword = TO_PATH[name]
            place = 0 if owner in ("np", "numpy") else place
            target = given.get(keyword) or next(iter(node.args[place : place + 1]), None)
            if target is not None and getattr(target, "id", "") != "buffer":
                yield name


MODULES = {"io", "os", "gzip", "zipfile", "tarfile", "bz2", "lzma", "codecs", "builtins"}


@pytest.mark.parametrize(
    "line",
    [
        *(
            "open(p, 'w')",
            "open(p, mode='ab')",
            "open(p, 'r+b')",
            "p.open('x')",
            "io.open(p, mode)",
            "gzip.open(p, 'wt')",
        ),
        *("os.open(p, os.O_RDWR)", "os.open(p, flags)", "FileIO(p, 'r+')", "ZipFile(p, 'a')", "p.write_text('')"),
        *("frame.to_csv(p)", "frame.to_csv(path_or_buf=p, index=False)", "torch.save(x, p)", "np.save(p, x)"),
        *("np.savez_compressed(p, a=1)", "json.dump(x, file)", "yaml.safe_dump(x, file)", "os.replace(a, b)"),
        *("shutil.copyfile(a, b)", "shutil.move(a, b)", "SummaryWriter(p)", "torch.onnx.export(m, x, p)", "p.touch()"),
    ],
)
def test_the_list_of_writers_below_would_find(line):
    assert list(writing_calls(line))


@pytest.mark.parametrize(
    "line",
    [
        *(
            "open(p)",
            "open(p, 'rb')",
            "p.open('rb')",
            "p.open()",
            "gzip.open(p)",
            "os.open(p, os.O_RDONLY)",
            "ZipFile(p)",
        ),
        *(
            "frame.to_csv(index=False)",
            "torch.save(x, buffer)",
            "json.dumps(x)",
            "yaml.safe_dump(x)",
            "text.replace(a, b)",
        ),
    ],
)
def test_reading_and_writing_to_memory_are_no_writers(line):
    assert list(writing_calls(line)) == []


def test_all_writers_have_one_opener():
    found = {
        (source, name) for source in SOURCES for name in writing_calls((ROOT / source).read_text(encoding="utf-8"))
    }
    assert len(SOURCES) > 100
    assert {name for source, name in found if source == OPENER} == {"os.open", "replace", "FileIO"}
    assert {pair for pair in found if pair[0] != OPENER} == set(KNOWN)


# ---- every writer of a run's folder, and a link in the place of its file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.make_run(tmp_path_factory.mktemp("writers"), folds=2, test_bars=1200)


def _fills(run: Path) -> None:
    write_fills(run / "fold_000", read_fills(run.parent / "whole", [0]))


def _append(run: Path, name: str) -> None:
    fills = read_fills(run.parent / "whole", [1])
    books = replay(np.ones(len(fills)), fills)
    folder = RunFolder(run.parent, 42)
    if name == "out_of_sample.csv":
        folder.append_out_of_sample(1, books)
    elif name == "trades.csv":
        folder.append_trades(1, trades(books, fills.fill_price))
    else:
        folder.append_baselines(1, books.time, books.net_return)


def _look(run: Path) -> None:
    folder = RunFolder(run.parent / "whole_root", 42)
    note_look(run.parent, "42", "x", folder.read_run(), folder.folds())


def _lock(run: Path) -> None:
    with RunLock(run):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "config.yaml": lambda run: RunFolder(run.parent, 42).write_config("model: {}\n"),
    "run.json": lambda run: RunFolder(run.parent, 42).write_run({"status": "done"}),
    "folds.json": lambda run: RunFolder(run.parent, 42).record_fold(FoldRecord(0)),
    "out_of_sample.csv": lambda run: _append(run, "out_of_sample.csv"),
    "trades.csv": lambda run: _append(run, "trades.csv"),
    "baselines.csv": lambda run: _append(run, "baselines.csv"),
    "optimization_summary.json": lambda run: write_summary(RunFolder(run.parent, 42), 2, {}),
    "training_state.json": lambda run: write_summary(RunFolder(run.parent, 42), 2, {}),
    "report.html": write_report,
    ".lock": _lock,
    "fold_000/test_bars.npz": _fills,
    "fold_000/selected.ckpt": lambda run: CheckpointStore(run / "fold_000").save({"a": 1}, "selected.ckpt"),
    "fold_000/manifest.json": lambda run: CheckpointStore(run / "fold_000").save({"a": 1}),
    "fold_000/of_a_worker.json": lambda run: write_files(
        RunFolder(run.parent, 42), 0, {"fold_000/of_a_worker.json": b"{}"}
    ),
    "signals.csv": lambda run: append_rows(run / "signals.csv", ["2024-01-01T00:00:00Z,1.0"]),
    "../looks.jsonl": _look,
    "../pooled.json": lambda run: pool(run.parent, [42], {}),
    "../portfolio.json": lambda run: write_portfolio(run.parent, ["one", "two"], 42, {}),
    "../portfolio.html": lambda run: write_portfolio(run.parent, ["one", "two"], 42, {}),
}


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_follows_a_link(made, tmp_path, name, there):
    root = tmp_path / "results"
    run = root / "42"
    for copy in (run, root / "whole", root / "whole_root" / "42", root / "one" / "42", root / "two" / "42"):
        shutil.copytree(made, copy)
    victim = tmp_path / "victim"
    if there:
        # What would be read through the link is as it should be, so that nothing but the link can stop the writer.
        source = run / name
        shutil.copy(source, victim) if source.is_file() else victim.write_text("")
    before = victim.read_bytes() if there else None
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    told = "symbolic link"
    try:
        WRITERS[name](run)
    except (ValueError, RunLockedError) as refused:
        told = str(refused)
    else:
        assert not (run / name).is_symlink()  # replaced by what was written
    assert "symbolic link" in told
    assert (victim.read_bytes() if victim.exists() else None) == before


def test_an_instruments_folder_that_is_a_link_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bars = "time,open,high,low,close\n" + "".join(f"2024-01-{d:02d},1,1,1,1\n" for d in range(1, 29))
    for name in ("one", "two"):
        Path(f"{name}.csv").write_text(bars)
    Path("elsewhere").mkdir()
    Path("results").mkdir()
    Path("results/one").symlink_to(tmp_path / "elsewhere")
    assert main(["walk-forward", "--data.path", "[one.csv, two.csv]", "--results", "results"]) == 2
    assert "results/one is a symbolic link" in capsys.readouterr().err
    assert list(Path("elsewhere").iterdir()) == []


def test_a_folder_that_is_a_link_is_not_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        own_folder(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()
