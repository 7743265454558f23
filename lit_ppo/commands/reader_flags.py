"""How to read a bar file, as flags: one list for every command that reads one. No torch."""

from __future__ import annotations

import argparse


def add_reader_flags(parser: argparse._ActionsContainer) -> None:
    """Add the options of `datamodules.bars.read.read_bars` that say what is in the file; None where not given."""
    parser.add_argument("--point", type=float, help="size of a point in price units")
    parser.add_argument("--timezone", help="time zone of naive times")
    parser.add_argument("--date_format", help="strptime format where dates are ambiguous")
    parser.add_argument("--separator", help="between columns")
    parser.add_argument("--decimal", help="decimal mark")
    parser.add_argument("--thousands", help="mark that groups thousands")
