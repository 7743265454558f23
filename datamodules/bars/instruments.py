"""Which instruments `data.path` and `data.symbol` name: one, or several side by side."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datamodules.bars.errors import ProblemBook
from datamodules.bars.options import EVERY, ReaderOptions
from datamodules.bars.rows import read_rows
from datamodules.bars.source import BarSource
from lit_ppo.store.files import check_name

Paths = Sequence[str] | Mapping[str, str] | str
_MARKS = frozenset("*?[")


class Instrument(NamedTuple):
    """One instrument of several.

    Attributes:
        name: of its folder, RESULTS/<name>.
        path: bar file.
        symbol: in a file that holds several; None otherwise.
    """

    name: str
    path: str
    symbol: str | None


def names_several(path: Paths | None, symbol: Sequence[str] | str | None) -> bool:
    """Whether a list, a dict, a glob, or several symbols of one file are asked for."""
    if path is None:
        return False
    pattern = isinstance(path, str) and not _MARKS.isdisjoint(path) and not Path(path).exists()
    return pattern or not isinstance(path, str) or symbol == EVERY or (symbol is not None and not _is_one(symbol))


def find_instruments(path: Paths, reader: ReaderOptions) -> list[Instrument]:
    """Every instrument that is asked for, by name.

    Args:
        path: a glob, a list of files, or files by name; a file's own name without its endings is the name otherwise.
        reader: its `symbol` may be one name, a list of names, or "*" for all that a file holds.

    Raises:
        FileNotFoundError: no file matches, or one that is named is not there.
        ValueError: two instruments share a name, or a name is none for a folder.
        BarFileError: a file with symbols cannot be read.
    """
    found: list[Instrument] = []
    for name, file in _files(path):
        if not Path(file).is_file():
            raise FileNotFoundError(f"data.path names {file}, and there is no such file")
        symbols = reader.symbol
        if symbols == EVERY:
            symbols = symbols_in(file, reader)
        if symbols is None or _is_one(symbols):
            found.append(Instrument(name, file, symbols if isinstance(symbols, str) else None))
        else:
            found += [Instrument(_folder(symbol), file, symbol) for symbol in symbols]
    for instrument in found:
        check_name(instrument.name)
        same = [other for other in found if other.name.lower() == instrument.name.lower()]
        if len(same) > 1:
            files = " and ".join(dict.fromkeys(f"{x.path} {x.symbol or ''}".strip() for x in same))
            raise ValueError(
                f"{len(same)} instruments would have the folder {instrument.name}: {files}. Name them: "
                "--data.path '{first: a.csv, second: b.csv}'"
            )
    return sorted(found)


def symbols_in(path: str, reader: ReaderOptions) -> list[str]:
    """Names in a file's column of symbols, sorted.

    Raises:
        BarFileError: the file cannot be read, or has no such column.
    """
    source = BarSource(path)
    symbols = read_rows(source, ProblemBook(), replace(reader, symbol=EVERY)).symbols
    if not symbols:
        raise source.refuse("data.symbol '*' asks for every symbol, and no column holds symbols", "Leave it out.")
    return list(symbols)


def _files(path: Paths) -> list[tuple[str, str]]:
    """(name, file) of each file."""
    if isinstance(path, Mapping):
        files = [(str(name), str(file)) for name, file in path.items()]
    else:
        listed = [path] if isinstance(path, str) else [str(file) for file in path]
        if isinstance(path, str) and not Path(path).exists():
            listed = sorted(file for file in glob.glob(path, recursive=True) if Path(file).is_file())
        files = [(_folder(Path(file).name.split(".")[0]), file) for file in listed]
    if not files:
        raise FileNotFoundError(f"data.path is {path!r}, and no file matches. Give files, or a pattern in quotes")
    return files


def _folder(name: str) -> str:
    """A name of a symbol or a file as one of a folder: EUR/USD is EUR-USD."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)


def _is_one(symbol: Sequence[str] | str) -> bool:
    return isinstance(symbol, str) and symbol != EVERY
