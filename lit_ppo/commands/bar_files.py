"""`lit-ppo data FILE | FOLDER`: read and check bar files; the card of one, a table of many. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_ppo.commands.reader_flags import add_reader_flags, given
from lit_ppo.words import plural

WIDTH = 80  # columns
ENDINGS = (".csv", ".txt", ".tsv", ".prn", ".parquet", ".feather", ".arrow")


def data(arguments: Sequence[str], read_bars: Callable[..., Any]) -> int:
    """Print the card of a file, or a row for each file of a folder; returns 0, or 2 where a file cannot be used.

    Args:
        arguments: what follows `data`.
        read_bars: `datamodules.bars.read.read_bars`.

    Raises:
        BarFileError: the one file that is asked for cannot be used.
        FileNotFoundError: a folder without bar files.
    """
    parser = argparse.ArgumentParser(
        prog="lit-ppo data",
        description="Check a bar file and print its data card, or all bar files of a folder, a row each.",
        allow_abbrev=False,
    )
    parser.add_argument("file", help=f"a bar file, or a folder: of its files, those ending in {', '.join(ENDINGS)}")
    add_reader_flags(parser.add_argument_group("how to read the file; default: detected, UTC, no thousands"))
    options = given(vars(parser.parse_args(arguments)))
    path = Path(options.pop("file"))
    if not path.is_dir():
        print(read_bars(path, **options).card)
        return 0
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(_endings()))
    if not files:
        raise FileNotFoundError(f"{path} holds no file that ends in {', '.join(ENDINGS)} (or these with .gz)")
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("file", overflow="fold", max_width=26)
    for name in ("rows", "range", "bar", "spread"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("problems", no_wrap=True)
    told, refused = [], 0
    for file in files:
        name = file.name if file.name.isprintable() else repr(file.name)
        try:
            cells, warnings = _row(read_bars(file, **options))
            problems = plural(len(warnings), "warning") if warnings else "-"
        except ValueError as error:
            refused += 1
            cells, problems, warnings = [""] * 4, "refused", [str(each) for each in getattr(error, "problems", [error])]
        told += [f"{name}: {text if text.isprintable() else repr(text)}" for text in warnings]
        table.add_row(escape(name), *cells, problems)
    console = Console(width=WIDTH)
    console.print(table)
    for text in told:
        console.print(f"- {text}", markup=False, highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"{len(files) - refused:,} of {plural(len(files), 'file')} can be used", highlight=False)
    return 2 if refused else 0


def _endings() -> tuple[str, ...]:
    return (*ENDINGS, *(f"{ending}.gz" for ending in ENDINGS))


def _row(bars: Any) -> tuple[list[str], Sequence[str]]:
    """Return rows, first and last month, length of a bar and median spread in price units; and what is odd."""
    card = bars.card
    spread = f"{bars.frame['spread'].median() * bars.point:.4g}" if "spread" in bars.frame else "none"
    return [f"{len(bars):,}", f"{card.first[:7]}..{card.last[:7]}", card.bar, spread], card.warnings
