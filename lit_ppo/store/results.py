"""A run's folder, `results/<seed>/`: every file a walk-forward writes, and the way back for report and compare.

    config.yaml, run.json       what ran
    folds.json                  the ledger of folds: what a resume trusts
    fold_000/ ...               checkpoints, metrics.jsonl, TensorBoard events
    monitor/                    TensorBoard events of the run as a whole
    out_of_sample.csv           one row per test decision, in time order
    trades.csv                  one row per round trip
    baselines.csv               one row per test decision: equity of what only the walk-forward can trade

No torch import: `lit-ppo report` starts in a second.
"""

from __future__ import annotations

import io
import operator
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_ppo.market.books import Ledger, Trades
from lit_ppo.store.atomic import atomic_write, own_folder, refuse_link, remove_temporaries
from lit_ppo.store.files import FoldCsv, check_name, json_bytes, make_writable, shown_path, utc_cells
from lit_ppo.store.provenance import code_state, machine, package_versions
from lit_ppo.store.schema import (
    LARGEST,
    REMEDY,
    Fold,
    LedgerOfFolds,
    RunRecord,
    parse_json,
    read_configuration,
    read_json,
    read_json_lines,
)

SCHEMA = 1  # of run.json and folds.json
OUT_OF_SAMPLE_COLUMNS = ("time", "fold", "position", "gross_return", "cost", "net_return", "equity")
# Of a policy's decisions; earlier releases did not keep the probability, nor has what no policy decided any.
DECISION_COLUMNS = (*OUT_OF_SAMPLE_COLUMNS[:3], "probability", *OUT_OF_SAMPLE_COLUMNS[3:])
TRADE_COLUMNS = (
    *("fold", "entry_time", "exit_time", "side", "size", "entry_price", "exit_price"),
    *("result", "cost", "bars_held", "closed"),
)
BASELINE_COLUMNS = ("time", "fold", "previous_fold")
_TIMES = {"time", "entry_time", "exit_time"}
_NOT_FLOAT = _TIMES | {"fold", "side", "bars_held", "closed"}
# What `--overwrite` removes besides fold_000/ ...; anything else in the folder is the user's.
_RUN_FILES = (
    *("config.yaml", "run.json", "folds.json", "out_of_sample.csv", "trades.csv", "baselines.csv"),
    *("money.csv", "optimization_summary.json", "training_state.json", "report.html", "autotune.json"),
)

NOT_TRAINED = "not trained: no feature passed the screen"  # a fold's `stop_reason`
PRIOR_DECIDES = "not trained: the weights it starts from decide"


@dataclass
class FoldRecord:
    """One fold of the ledger.

    Attributes:
        index: number of the fold.
        status: "running", "done" or "failed". Rows of out_of_sample.csv count once their fold is "done".
        bars: [start, stop) rows of the bar file by role: "train", "validation", "test".
        timesteps: bars visited by training, see DESIGN "Words".
        seconds: wall time by stage ("data", "rollout", "update", "validation", "test", ...).
        scores: by name, e.g. "validation/score", "test/sharpe_annual".
        stop_reason: why training ended ("budget", "early stopping: ...").
        trials: configurations whose validation score was looked at (no trials of the deflated Sharpe ratio).
        details: anything else worth keeping (warm start, best checkpoint).
    """

    index: int
    status: str = "running"
    bars: dict[str, list[int]] = field(default_factory=dict)
    timesteps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    stop_reason: str = ""
    trials: int = 1
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in {"running", "done", "failed"}:
            raise ValueError(f"The status of fold {self.index} must be running, done or failed, got {self.status!r}")


def run_record(
    *, seed: int, data: Mapping[str, Any], command: Sequence[str], seeds: Sequence[int] = (), **more: Any
) -> dict[str, Any]:
    """Return what run.json holds when a run starts, without a directory, user or host name.

    Args:
        seed: of this run.
        data: fingerprint of the bars: "path", "sha256", "rows", "range", "bars_per_year", ...
        command: the command line, one argument an entry.
        seeds: of all runs that are pooled with this one.
        more: further entries, e.g. `device`.
    """
    return {
        "schema": SCHEMA,
        "status": "running",
        "seed": seed,
        "seeds": list(seeds) or [seed],
        "command": [_without_directories(argument) for argument in command],
        "data": {key: shown_path(value) if key == "path" and value else value for key, value in data.items()},
        "versions": package_versions(),
        **code_state(),
        "machine": machine(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def fold_name(fold: int) -> str:
    """Name of the folder of a fold, `fold_000`."""
    return f"fold_{fold:03d}"


def _without_directories(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return flag + equals + (shown_path(value) if Path(value).is_absolute() else value)


class RunFolder:
    """The folder `root/<seed>/` of one run, made if absent.

    Files are replaced whole (`atomic_write`) or grow by whole folds (`FoldCsv`), and never through a symbolic link.

    Raises:
        ValueError: the seed is not a whole number >= 0, or the folder is a symbolic link or a file.
        OSError: the folder cannot be made or written to (found here, before any training).
    """

    def __init__(self, root: str | Path, seed: int) -> None:
        try:
            if isinstance(seed, bool) or (number := operator.index(seed)) < 0:
                raise TypeError
        except TypeError as error:
            raise ValueError(f"A run's folder is named by its seed, a whole number >= 0; got {seed!r}") from error
        self.seed = number
        self.path = Path(root).resolve() / str(number)
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise ValueError(f"{self.path} is a link or a file, but a run needs a folder there. Move it away")
        make_writable(self.path, "run", "--results")
        self._trades = FoldCsv(self.path / "trades.csv", TRADE_COLUMNS)
        self._baselines = FoldCsv(self.path / "baselines.csv", BASELINE_COLUMNS)
        self._ledger: dict[int, tuple[FoldRecord, bytes]] = {}  # each record, and its text as folds.json has it
        self._ledger_file: tuple[int, ...] | None = None  # which file that is; None: none, or not known

    def begin(self, *, resume: bool = False, overwrite: bool = False) -> bool:
        """Decide what happens to a run that is there already. Returns whether there is one to resume.

        Only for the owner of the folder (`RunLock`): what a killed run left half written is removed.

        Raises:
            ValueError: both were asked for.
            FileExistsError: there is a run and neither was asked for.
        """
        if resume and overwrite:
            raise ValueError("--resume continues the run that is there, --overwrite deletes it; give one of them")
        present = any((self.path / name).exists() for name in ("run.json", "folds.json", "out_of_sample.csv"))
        if present and not (resume or overwrite):
            raise FileExistsError(
                f"{self.path} holds a run already. Continue it with --resume, delete it with --overwrite, or choose "
                "another seed or results directory"
            )
        remove_temporaries(self.path)
        if present and overwrite:
            self.remove()
        return present and resume

    def remove(self) -> None:
        """Delete the run's own files; what else lies in the folder stays."""
        for name in _RUN_FILES:
            (self.path / name).unlink(missing_ok=True)
        for own in (*self.path.glob("fold_[0-9]*"), *self.path.glob("monitor")):
            own.unlink() if own.is_symlink() or own.is_file() else shutil.rmtree(own)

    def file(self, name: str) -> Path:
        """Path of a file of the run; the name is checked, a symbolic link refused."""
        return refuse_link(self.path / check_name(name))

    def fold_path(self, fold: int) -> Path:
        """Folder `fold_000` of a fold, made if absent."""
        return own_folder(self.file(fold_name(fold)))

    def write_config(self, text: str) -> None:
        """Keep the merged configuration (YAML)."""
        atomic_write(self.file("config.yaml"), text)

    def write_run(self, record: Mapping[str, Any]) -> None:
        """Write run.json, see `run_record`."""
        atomic_write(self.file("run.json"), json_bytes(record))

    def read_run(self) -> dict[str, Any]:
        """Return run.json."""
        return read_json(self.file("run.json"), RunRecord)

    def read_config(self) -> dict[str, Any]:
        """Return config.yaml."""
        return read_configuration(self.file("config.yaml"))

    def update_run(self, **changes: Any) -> None:
        """Change entries of run.json, e.g. `status="done"`."""
        self.write_run(self.read_run() | changes)

    def record_fold(self, record: FoldRecord) -> None:
        """Put a fold into the ledger, in place of what the ledger had of it."""
        path = self.file("folds.json")
        self.folds()  # what is on disk, if somebody else wrote it since
        entry = _entry(record)
        kept = FoldRecord(**parse_json(entry, Fold, f"the record of fold {record.index}"))  # as it will be read
        self._ledger[record.index] = (kept, entry)
        self._ledger = dict(sorted(self._ledger.items()))
        entries = b",\n  ".join(entry for _, entry in self._ledger.values())
        self._ledger_file = None
        atomic_write(path, b'{\n "schema": %d,\n "folds": [\n  %b\n ]\n}\n' % (SCHEMA, entries))
        self._ledger_file = _identity(path)

    def folds(self) -> list[FoldRecord]:
        """Return the ledger, by fold index; empty before the first fold. It is to be read, not to be changed.

        The file is read again only if it is not the one that was read or written last: a run has as many folds as the
        ledger has records, and each fold asks several times.
        """
        path = self.path / "folds.json"
        found = _identity(path)
        if found is None or found != self._ledger_file:
            entries = {fold.index: fold for fold in read_folds(self.path)}
            self._ledger = {index: (fold, _entry(fold)) for index, fold in sorted(entries.items())}
            self._ledger_file = found
        return [fold for fold, _ in self._ledger.values()]

    def is_done(self, fold: int) -> bool:
        """Whether the ledger says that a fold ended with its test result."""
        return any(record.index == fold and record.status == "done" for record in self.folds())

    def append_out_of_sample(self, fold: int, ledger: Ledger, probability: NDArray[np.float64] | None = None) -> float:
        """Append a fold's D test decisions; returns the equity after them.

        Equity goes on from the last row of the earlier folds (from 1 at the first), multiplied by 1 + net_return; it
        is what it is in the file, `ledger.equity` starts anew in each fold. A repeated append replaces the first.

        Args:
            fold: in order.
            ledger: its books.
            probability: [D] what the policy gave each position; None where no policy decided. A file that an earlier
                release began stays without.
        """
        path = self.path / "out_of_sample.csv"
        plain = probability is None or _begins(path, OUT_OF_SAMPLE_COLUMNS)
        file = FoldCsv(path, OUT_OF_SAMPLE_COLUMNS if plain else DECISION_COLUMNS)
        _, last = file.before(fold)
        equity = float(last[-1]) if last else 1.0
        columns = [ledger.position, ledger.gross_return, ledger.cost, ledger.net_return]
        if not plain and probability is not None:
            columns.insert(1, probability)
        rows = []
        for time, *numbers in zip(utc_cells(ledger.time), *(c.tolist() for c in columns), strict=True):
            equity *= max(1.0 + numbers[-1], 0.0)
            rows.append(",".join([time, str(fold), *map(repr, numbers), repr(equity)]))
        file.append(fold, rows)
        return equity

    def append_trades(self, fold: int, trades: Trades) -> None:
        """Append a fold's round trips. A repeated append replaces the first."""
        cells = [
            utc_cells(trades.entry_time),
            utc_cells(trades.exit_time),
            ["long" if side > 0 else "short" for side in trades.side.tolist()],
            *(map(repr, c.tolist()) for c in (trades.size, trades.entry_price, trades.exit_price)),
            *(map(repr, c.tolist()) for c in (trades.result, trades.cost, trades.bars_held)),
            ["true" if closed else "false" for closed in trades.closed.tolist()],
        ]
        self._trades.append(fold, [",".join([str(fold), *row]) for row in zip(*cells, strict=True)])

    def append_baselines(self, fold: int, time: NDArray[np.int64], previous_fold: NDArray[np.float64]) -> None:
        """Append what the previous fold's model made of a fold's D test bars. A repeated append replaces the first.

        Args:
            fold: whose test bars these are.
            time: [D] open times, nanoseconds since 1970 UTC.
            previous_fold: [D] its net returns; the file holds the equity, which goes on from fold to fold.
        """
        _, last = self._baselines.before(fold)
        equity = float(last[-1]) if last else 1.0
        rows = []
        for bar, net in zip(utc_cells(time), previous_fold.tolist(), strict=True):
            equity *= max(1.0 + net, 0.0)
            rows.append(f"{bar},{fold},{equity!r}")
        self._baselines.append(fold, rows)


def _entry(record: FoldRecord) -> bytes:
    """A record as `json_bytes` of the whole ledger writes it, two levels in; JSON has no line end inside a text."""
    return json_bytes(asdict(record)).rstrip(b"\n").replace(b"\n", b"\n  ")


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells one file from the next of the same name (each is a new one, moved there); None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk.

    Attributes:
        path: its folder.
        record: run.json.
        config: text of config.yaml; empty if the run was stopped before it was written.
        settings: the same as a dict.
        folds: the ledger.
        out_of_sample: columns of out_of_sample.csv, with or without `probability`, of the folds that are done; `time`
            as datetime64[ns, UTC].
        trades: columns of trades.csv of the folds that are done.
        baseline_equity: baselines.csv of the folds that are done, empty if absent.
        rows_left_out: rows of out_of_sample.csv that belong to folds that are not done.
    """

    path: Path
    record: dict[str, Any]
    config: str
    settings: dict[str, Any]
    folds: list[FoldRecord]
    out_of_sample: pd.DataFrame
    trades: pd.DataFrame
    baseline_equity: pd.DataFrame
    rows_left_out: int

    @property
    def bars_per_year(self) -> float:
        """Bars of a year of the file's own calendar.

        Raises:
            ValueError: run.json has none.
        """
        found = self.record.get("data", {}).get("bars_per_year")
        if found is None:
            raise ValueError(
                f"{self.path / 'run.json'} needs data.bars_per_year (bars of the file's calendar): annual figures "
                "cannot be computed without it"
            )
        return float(found)

    def metrics(self, fold: int, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Return the lines of a fold's metrics.jsonl (or timing.jsonl); a last line cut by a kill is left out."""
        path = self.path / fold_name(fold) / name
        return read_json_lines(path, dict[str, Any]) if path.is_file() else []


def run_records(root: Path) -> list[Path]:
    """Every run.json under a results folder: RESULTS/<seed>/ and RESULTS/<name>/<seed>/."""
    return sorted([*root.glob("*/run.json"), *root.glob("*/*/run.json")])


def load_run(path: str | Path) -> Run:
    """Read the folder of a run, finished or not.

    Raises:
        FileNotFoundError: there is no run.json.
        ValueError: a file is not what a run writes.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it has no run.json. Give results/<seed>, or restore the file"
        )
    folds = read_folds(folder)
    done = [fold.index for fold in folds if fold.status == "done"]
    decisions = folder / "out_of_sample.csv"
    plain = _begins(decisions, OUT_OF_SAMPLE_COLUMNS)
    rows = _read_csv(decisions, OUT_OF_SAMPLE_COLUMNS if plain else DECISION_COLUMNS)
    trades = _read_csv(folder / "trades.csv", TRADE_COLUMNS)
    counted = rows["fold"].isin(done)
    _check_rows(decisions, folds, rows)
    curves = _read_csv(folder / "baselines.csv", BASELINE_COLUMNS)
    config = folder / "config.yaml"
    settings = read_configuration(config) if config.exists() else {}
    return Run(
        path=folder,
        record=read_record(folder),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        settings=settings,
        folds=folds,
        out_of_sample=rows[counted].reset_index(drop=True),
        trades=trades[trades["fold"].isin(done)].reset_index(drop=True),
        baseline_equity=curves[curves["fold"].isin(done)].reset_index(drop=True),
        rows_left_out=int((~counted).sum()),
    )


def _check_rows(path: Path, folds: Sequence[FoldRecord], rows: pd.DataFrame) -> None:
    """A fold is called done once its rows are on disk: what lacks some has lost them since."""
    counts = rows["fold"].value_counts()
    for fold in folds:
        found = int(counts.get(fold.index, 0))
        start, stop = fold.bars.get("test", (0, found))
        if fold.status == "done" and found != stop - start:
            raise ValueError(
                f"{path} has {found:,} rows of fold {fold.index}, of which folds.json says that it is done, with "
                f"{stop - start:,} test bars. {REMEDY}"
            )


def read_record(folder: Path) -> dict[str, Any]:
    """Return run.json of a run's folder."""
    return read_json(folder / "run.json", RunRecord)


def read_folds(folder: Path) -> list[FoldRecord]:
    """Return the ledger of a run's folder, by fold index; empty before the first fold.

    Raises:
        ValueError: it is damaged, or of another release.
    """
    path = folder / "folds.json"
    if not path.exists():
        return []
    try:
        folds = [FoldRecord(**record) for record in read_json(path, LedgerOfFolds)["folds"]]
    except TypeError as error:
        raise ValueError(f"{path} is not a ledger of schema {SCHEMA}: {error}. It may be of another release") from error
    screens = {fold.index: screen for fold in folds if (screen := fold.details.get("screen"))}
    names = [screen[key].keys() for screen in screens.values() for key in ("score", "threshold")]
    blind = {fold.index for fold in folds if fold.stop_reason == NOT_TRAINED}
    if any(own != names[0] or not own for own in names) or blind - screens.keys():
        raise ValueError(
            f"{path} is damaged: not every details.screen has a score and a threshold of the same features. {REMEDY}"
        )
    return folds


def _begins(path: Path, columns: Sequence[str]) -> bool:
    """Whether the file is one with these columns."""
    header = (",".join(columns) + "\n").encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read one of the run's tables; half a last line, which a killed writer leaves, is left out."""
    text = path.read_bytes() if path.exists() else b""  # a folder there is refused
    text = text[: text.rfind(b"\n") + 1]
    header = (",".join(columns) + "\n").encode()
    if not text:
        text = header
    if not text.startswith(header):
        raise ValueError(f"{path} begins with {text[:80]!r}, expected the header {header!r}. {REMEDY}")
    # Python's float reads back what repr wrote to the last bit; pandas' own parser does so in some versions only.
    exact = {name: float for name in columns if name not in _NOT_FLOAT}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than the header
            frame = pd.read_csv(io.BytesIO(text), converters=exact, index_col=False, low_memory=False)
        for name in _TIMES.intersection(columns):
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601").dt.as_unit("ns")
    except (ValueError, TypeError, OverflowError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} is damaged ({error}). {REMEDY}") from error
    for name, column in frame.items():
        wrong = ~_fits(str(name), column) if len(frame) else column.isna()
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise ValueError(f"{path} is damaged: {name} is {column.iloc[row]!r} in line {row + 2}. {REMEDY}")
    return frame


def _fits(name: str, column: pd.Series) -> pd.Series:
    """[N] which cells hold what their column is for."""
    if name in _TIMES:
        return column.notna()
    if name == "side":
        return column.isin(("long", "short"))
    kinds = {"closed": "b", "fold": "i", "bars_held": "i"}
    if (kind := kinds.get(name)) is not None:
        whole = pd.Series(column.dtype.kind == kind, index=column.index)
        return whole & (column >= 0) if whole.all() else whole
    if name == "probability":
        return column.between(0.0, 1.0)
    # Products of many returns may leave the numbers' range; nothing else may.
    return column >= 0 if name in ("equity", "previous_fold") else column.abs() <= LARGEST
