"""What is wrong with a bar file, said so that its owner can repair it: what, where, evidence, remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NAMED_LINES = 5  # line numbers told of one problem; a broken column would otherwise fill the screen


def shown(text: object) -> str:
    """Return foreign text safe for a terminal: names with control characters appear as Python writes them."""
    plain = str(text)
    return plain if plain.isprintable() else repr(plain)


@dataclass(frozen=True)
class Problem:
    """One kind of defect and every place it was found.

    Attributes:
        what: the evidence of the first place, for example `high 1.0912 < close 1.0921`.
        remedy: what the owner of the file can do.
        lines: the first few line numbers of the file (1 is the first line, headers count), in file order.
        count: number of places in all; 0 for a defect of the file as a whole.
    """

    what: str
    remedy: str
    lines: tuple[int, ...] = ()
    count: int = 0

    def __str__(self) -> str:
        where = f"line {self.lines[0]}: " if self.lines else ""
        more = ""
        if self.count > 1:
            listed = ", ".join(str(line) for line in self.lines)
            more = f" ({self.count} such rows: {listed}{', ...' if self.count > len(self.lines) else ''})"
        return f"{where}{self.what}{more}. {self.remedy}"


class BarFileError(ValueError):
    """A bar file that cannot be used, or options that do not fit it. The command line exits with 2.

    Attributes:
        path: the file.
        problems: everything that is wrong, in the order in which the checks ran.
    """

    def __init__(self, path: str | Path, problems: list[Problem]) -> None:
        self.path = Path(path)
        self.problems = list(problems)
        super().__init__("\n".join(f"{shown(self.path)}: {problem}" for problem in self.problems))


class ProblemBook:
    """Collects problems row by row, so that all of them are told and not only the first.

    `cut_line` is the line number of a last line without line end, or None: a program may have been writing it, so what
    is wrong there is not an error of the file; the row is left out and `cut_row_left_out` says so.
    """

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}
        self.cut_line: int | None = None
        self.cut_row_left_out = False

    def add(self, kind: str, lines: np.ndarray, what: Callable[[int], str], remedy: str) -> None:
        """Add the rows at `lines` (line numbers, in file order) under `kind`; `what(i)` words row i of `lines`."""
        places = np.asarray(lines)
        if self.cut_line is not None and (places == self.cut_line).any():
            self.cut_row_left_out = True
            keep = np.flatnonzero(places != self.cut_line)
        else:
            keep = np.arange(len(places))
        if len(keep) == 0:
            return
        earlier = self._found.get(kind)
        named = tuple(int(places[i]) for i in keep[:NAMED_LINES])
        if earlier is None:
            self._found[kind] = Problem(what(int(keep[0])), remedy, named, len(keep))
        else:
            merged = (*earlier.lines, *named)[:NAMED_LINES]
            self._found[kind] = Problem(earlier.what, remedy, merged, earlier.count + len(keep))

    def add_file(self, kind: str, what: str, remedy: str) -> None:
        """Add a problem of the file as a whole."""
        self._found[kind] = Problem(what, remedy)

    @property
    def problems(self) -> list[Problem]:
        return list(self._found.values())
