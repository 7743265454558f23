"""What the tables of measurements are written with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BEGIN, END = "<!-- measured:begin", "<!-- measured:end -->"
UNMEASURED = "unmeasured"
Row = Sequence[str]


def table(titles: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def verdict(passed: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[passed]


def replaced(text: str, part: str) -> str:
    """A page's text with `part` between its markers."""
    start, end = text.index(BEGIN), text.index(END)
    head = text[: text.index("\n", start) + 1]
    return f"{head}{part}\n{text[end:]}"
