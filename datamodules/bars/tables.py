"""Parquet and feather files as lines of CSV, so that one reader, with one set of checks, serves them too.

Needs pyarrow, which is an extra. Line 1 is the header; row n of the table is line n + 1.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from datamodules.bars.errors import BarFileError, Problem

SIGNATURES = {b"PAR1": "Parquet", b"ARROW1": "Feather"}
_FIRST_ROWS = 500  # of the first piece, from which columns and formats are found


def table_kind(start: bytes) -> str | None:
    """Name the kind of table that a file beginning with `start` is; None for text."""
    return next((kind for signature, kind in SIGNATURES.items() if start.startswith(signature)), None)


def csv_pieces(path: Path, kind: str, most_rows: int) -> Iterator[bytes]:
    """Yield the table as CSV text, header first, in pieces of whole lines.

    Args:
        path: the file.
        kind: what `table_kind` said.
        most_rows: the most that are read.

    Raises:
        BarFileError: pyarrow is not installed, the file is damaged, or it has more rows.
    """

    def refused(what: str, remedy: str) -> BarFileError:
        return BarFileError(path, [Problem(what, remedy)])

    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise refused(
            f"this is a {kind} file, and pyarrow, which reads it, is not installed",
            "Run pip install 'lit-ppo[parquet]' (or pip install pyarrow), or export the bars as CSV.",
        ) from error
    try:
        if kind == "Parquet":
            file = pyarrow.parquet.ParquetFile(path)
            if file.metadata.num_rows > most_rows:
                raise refused(f"{file.metadata.num_rows:,} rows, and {most_rows:,} are read", "Cut it into parts.")
            schema, batches = file.schema_arrow, file.iter_batches()
        else:
            reader = pyarrow.ipc.open_file(path)
            schema, batches = reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
        if len(set(schema.names)) < len(schema.names):
            raise refused("two columns have one name", "Rename or drop the one that is not meant.")
        # times first: pandas writes its index last
        order = sorted(schema.names, key=lambda name: not pyarrow.types.is_temporal(schema.field(name).type))
        header = _header(order)
        options = pyarrow.csv.WriteOptions(include_header=False)
        cuts = [0, _FIRST_ROWS]
        for batch in batches:
            rows = pyarrow.table({name: _plain_column(batch.column(name)) for name in order})
            for start, stop in pairwise([*cuts, rows.num_rows]):
                text = io.BytesIO()
                text.write(header)
                pyarrow.csv.write_csv(rows.slice(start, max(stop - start, 0)), text, options)
                yield text.getvalue()
                header = b""
            cuts = [0]
        if header:
            yield header
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise refused(f"the {kind} file cannot be read ({error})", "Write it again, or export it as CSV.") from error


def _plain_column(column: Any) -> Any:
    """A column that can be written as text: categories as their values, nested ones as a text that is left out."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if pyarrow.types.is_nested(column.type) or pyarrow.types.is_binary(column.type):
        return pyarrow.array(["nested"] * len(column))
    return column


def _header(names: Sequence[str]) -> bytes:
    """The names as the first line; pandas' two levels of names (yfinance's price and ticker) as the lines it writes."""
    names = ["" if name.startswith("__index_level_") else name for name in names]
    levels = [ast.literal_eval(name) if name.startswith("('") else name for name in names]
    pairs = [level for level in levels if isinstance(level, tuple) and len(level) == 2]
    if not pairs:
        return _line(names)
    if len(pairs) != len(names) - 1 or isinstance(levels[0], tuple):
        raise KeyError("columns of several levels of names, beside others of one")
    prices_first = "close" in {str(first).casefold() for first, _ in pairs}
    top, below = ("Price", "Ticker") if prices_first else ("Ticker", "Price")
    lines = [[top, *(str(pair[0]) for pair in pairs)], [below, *(str(pair[1]) for pair in pairs)]]
    return b"".join(_line(line) for line in [*lines, [names[0] or "Date", *("" for _ in pairs)]])


def _line(cells: Sequence[str]) -> bytes:
    quoted = ('"' + cell.replace('"', "'").replace("\n", " ").replace("\r", " ") + '"' for cell in cells)
    return (",".join(quoted) + "\n").encode()
