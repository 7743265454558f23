"""How to read a bar file, as flags: one list for every command that reads one. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any


def add_reader_flags(parser: argparse._ActionsContainer) -> None:
    """Add the fields of `datamodules.bars.options.ReaderOptions`; None where a flag is not given."""
    parser.add_argument("--point", type=float, help="size of a point in price units")
    parser.add_argument("--timezone", help="time zone of naive times")
    parser.add_argument("--date_format", help="strptime format where dates are ambiguous")
    parser.add_argument("--separator", help="between columns")
    parser.add_argument("--decimal", help="decimal mark")
    parser.add_argument("--thousands", help="mark that groups thousands")
    parser.add_argument("--symbol", help="which instrument of a file that holds several")
    parser.add_argument("--stamp", choices=("open", "close"), help="which end of its bar a time names")
    for name, meaning in (
        ("adjusted", "prices times adjusted close / close: no jumps of splits and dividends"),
        ("close_only", "the file holds closes and no other prices"),
        ("drop_bad_rows", "leave out a few defective rows"),
        ("sort", "sort an unordered file by time"),
    ):
        parser.add_argument(f"--{name}", action="store_true", default=None, help=meaning)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The reader's options that stand among a command's, less those that were not given."""
    return {name: value for name, value in options.items() if value is not None}
