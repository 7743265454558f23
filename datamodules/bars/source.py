"""The bytes of a bar file as blocks of whole UTF-8 lines, whatever wrote them; refuses what is no text.

Nothing here knows about bars. A file of any size passes through in blocks of a few MiB.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from datamodules.bars.errors import BarFileError, Problem
from datamodules.bars.tables import csv_pieces, table_kind

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 1 << 16  # bytes; a row of a bar file has about 100
MOST_LINES = 20_000_000  # 38 years of 1-minute bars; they take about 2 GB of memory
MOST_BYTES = 4 << 30  # of text
# Bars shrink to a fifth or a tenth; a file that unpacks to more than this is made to fill a machine's memory.
MOST_RATIO = 100
SMALL_BYTES = 64 << 20  # up to here a file may shrink as it likes

_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (b"\xff\xfe\x00\x00", None),
    (b"\x00\x00\xfe\xff", None),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "Unpack it, or export the sheet as CSV."),
    (b"BZh", "a bzip2 file", "Unpack it."),
    (b"\xfd7zXZ\x00", "an xz file", "Unpack it."),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "Unpack it."),
    (b"7z\xbc\xaf", "a 7-zip archive", "Unpack it."),
    (b"FEA1", "a Feather file of the first version", "Write it again with a newer pandas."),
    (b"\x89HDF", "an HDF5 file", "Export it as CSV."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV."),
    (b"%PDF", "a PDF", "Export the bars as CSV."),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "Export the sheet as CSV."),
    (b"\x89PNG", "a picture", "Give the file of bars."),
)
_GZIP = b"\x1f\x8b"
_MARKUP = re.compile(rb"^\s*<(?:!doctype|!--|html|head|body|\?xml|script|div|table)\b", re.IGNORECASE)
_JSON = re.compile(rb"^\s*[\[{]")


class Block(NamedTuple):
    """Whole lines, each ended by LF; `first_line` is the line number of the first one, counted from 1."""

    data: bytes
    first_line: int


class BarSource:
    """One bar file on disk.

    Attributes (complete once `blocks()` is exhausted):
        encoding, compression: as found ("utf-8", "utf-8 with byte order mark", "utf-16-le", "Parquet", ...; "gzip" or
            "none").
        sha256: of the bytes on disk, compressed or not.
        cut_line: line number of the last line when no line end follows it, else None.
        last_line: that line's bytes.
    """

    def __init__(self, path: str | Path, block_bytes: int = BLOCK_BYTES) -> None:
        self.path = Path(path)
        self.block_bytes = block_bytes
        self.encoding = ""
        self.compression = "none"
        self.size = 0
        self.modified = 0.0  # seconds since 1970
        self.cut_line: int | None = None
        self.last_line = b""
        self._require_a_regular_file()
        self.sha256 = self._hash()

    def blocks(self) -> Iterator[Block]:
        """Yield the text in order. Raises BarFileError when it is no text or changed while it was read."""
        try:
            with self.path.open("rb") as raw:
                if (kind := table_kind(raw.read(8))) is not None:
                    yield from self._table(kind)
                else:
                    raw.seek(0)
                    stream = self._unpacked(raw)
                    start = stream.read(1 << 16)
                    self.encoding, skip = self._find_encoding(start)
                    yield from self._whole_lines(stream, start[skip:], raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self.refuse(f"the gzip stream is damaged ({error})", "Fetch or pack the file again.") from error
        except OSError as error:
            raise self._unreadable(error) from error
        if self._hash() != self.sha256:
            raise self.refuse("the file changed while it was read", "Wait until the program that writes it is done.")

    def refuse(self, what: str, remedy: str, line: int | None = None) -> BarFileError:
        """Return the error for a defect of the whole file, or of one line."""
        lines, count = ((line,), 1) if line is not None else ((), 0)
        return BarFileError(self.path, [Problem(what, remedy, lines, count)])

    def _require_a_regular_file(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            raise self.refuse("no such file", "Check the path; it is relative to the working directory.") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            raise self._unreadable(error) from error
        if not stat.S_ISREG(status.st_mode):
            kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
            kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
            raise self.refuse(f"this is {kind}, not a file", "Give the path of one bar file.")
        self.size, self.modified = status.st_size, status.st_mtime
        if self.size == 0:
            raise self.refuse("the file is empty (0 bytes)", "Export the bars again.")

    def _unreadable(self, error: Exception) -> BarFileError:
        reason = getattr(error, "strerror", None) or error
        return self.refuse(f"cannot be read ({reason})", "Check the path and the rights of the file.")

    def _hash(self) -> str:
        try:
            with self.path.open("rb") as raw:
                return hashlib.file_digest(raw, "sha256").hexdigest()
        except OSError as error:
            raise self._unreadable(error) from error

    def _unpacked(self, raw: IO[bytes]) -> IO[bytes]:
        start = raw.read(16)
        raw.seek(0)
        is_gzip, named_gzip = start.startswith(_GZIP), self.path.suffix.lower() == ".gz"
        if is_gzip and not named_gzip:
            raise self.refuse("the content is gzip, but the name does not end in .gz", "Rename it to NAME.csv.gz.")
        if named_gzip and not is_gzip:
            raise self.refuse("the name ends in .gz, but the content is not gzip", "Rename it to NAME.csv.")
        if not is_gzip:
            return raw
        self.compression = "gzip"
        return gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[return-value]

    def _table(self, kind: str) -> Iterator[Block]:
        self.encoding, read, line = kind, 0, 1
        for piece in csv_pieces(self.path, kind, MOST_LINES):
            read += len(piece)
            after = line + piece.count(b"\n")
            self._require_bounds(read, after - 1, self.size)
            if piece:
                yield Block(piece, line)
                line = after

    def _find_encoding(self, start: bytes) -> tuple[str, int]:
        """Return the encoding and the number of bytes of its mark. There is no latin-1 fallback: it never fails."""
        if not start.strip():
            raise self.refuse("the file is empty (no text in it)", "Export the bars again.")
        for signature, kind, remedy in _SIGNATURES:
            if start.startswith(signature):
                raise self.refuse(f"this looks like {kind}, not like text", remedy)
        for mark, encoding in _BYTE_ORDER_MARKS:
            if start.startswith(mark):
                if encoding is None:
                    raise self.refuse("the encoding is UTF-32", "Save it as UTF-8.")
                return encoding, len(mark)
        if _MARKUP.match(start):
            raise self.refuse("this looks like a web page (HTML), not like bars", "Download the data file itself.")
        if _JSON.match(start):
            raise self.refuse("this looks like JSON, not like a table", "Export the bars as CSV.")
        sample = start[: len(start) & ~1][:4096]
        if b"\x00" not in start:
            return "utf-8", 0
        # MetaTrader writes UTF-16 without a mark at times: then every other byte of ASCII text is NUL
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        half = len(sample) // 2
        if half and odd > 0.7 * half and even == 0:
            return "utf-16-le", 0
        if half and even > 0.7 * half and odd == 0:
            return "utf-16-be", 0
        raise self.refuse("this is binary data (it holds NUL bytes)", "Export the bars as CSV text.")

    def _whole_lines(self, stream: IO[bytes], start: bytes, raw_file: IO[bytes]) -> Iterator[Block]:
        """Decode, make every line end LF and cut between lines."""
        decoder = None if self.encoding == "utf-8" else codecs.getincrementaldecoder(self.encoding)("strict")
        pending, line, raw, last = b"", 1, start, False
        read = len(start)
        while not last:
            more = stream.read(self.block_bytes)
            read += len(more)
            last = not more
            text = raw if decoder is None else self._decoded(decoder, raw, last, line)
            raw = more
            text = pending + text
            held = b""
            if b"\r" in text:
                if text.endswith(b"\r") and not last:  # its LF may be the first byte of the next block
                    text, held = text[:-1], b"\r"
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if last and text and not text.endswith(b"\n"):
                self.cut_line = line + text.count(b"\n")
                self.last_line = text[text.rfind(b"\n") + 1 :]
                text += b"\n"
            end = text.rfind(b"\n") + 1
            whole, pending = text[:end], text[end:] + held
            if len(pending) > LONGEST_LINE:
                where = line + whole.count(b"\n")
                raise self.refuse(f"more than {LONGEST_LINE} bytes without a line end", "This is no bar file.", where)
            after = line + whole.count(b"\n")
            self._require_bounds(read, after - 1, raw_file.tell())
            if whole:
                self._require_text(whole, line)
                yield Block(whole, line)
                line = after

    def _require_bounds(self, read: int, lines: int, taken: int) -> None:
        """Refuse a file that would fill the memory, after what was read of it so far: bytes, lines, bytes on disk."""
        ratio = read / max(taken, 1)
        if read > SMALL_BYTES and ratio > MOST_RATIO:
            raise self.refuse(
                f"{taken:,} bytes of the gzip unpack to {read:,}, {ratio:.0f} times as many, and bars "
                f"are read up to {MOST_RATIO} times",
                "This is no bar file; if it is, unpack it first.",
            )
        if read > MOST_BYTES or lines > MOST_LINES:
            raise self.refuse(
                f"more than {read if read > MOST_BYTES else lines:,} {'bytes' if read > MOST_BYTES else 'lines'}, and "
                f"files are read up to {MOST_LINES:,} lines and {MOST_BYTES:,} bytes",
                "Cut it into parts, or take a longer bar.",
            )

    def _decoded(self, decoder: codecs.IncrementalDecoder, raw: bytes, last: bool, line: int) -> bytes:
        try:
            return decoder.decode(raw, last).encode()
        except UnicodeError as error:
            raise self.refuse(
                f"not valid {self.encoding.upper()} after line {line} ({error})", "Save the file as UTF-8."
            ) from error

    def _require_text(self, whole: bytes, first_line: int) -> None:
        if b"\x00" in whole:
            line = first_line + whole.count(b"\n", 0, whole.index(b"\x00"))
            raise self.refuse("a NUL byte: the file is damaged or binary", "Export the bars again.", line)
        if not whole.isascii():
            try:
                whole.decode()
            except UnicodeDecodeError as error:
                line = first_line + whole.count(b"\n", 0, error.start)
                byte = whole[error.start]
                raise self.refuse(
                    f"byte 0x{byte:02x} is not valid UTF-8", "Save the file as UTF-8 (or UTF-16).", line
                ) from error
