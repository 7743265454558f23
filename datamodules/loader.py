"""The data loader of every datamodule here: one thing, an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class OneBatch:
    """A data loader of one batch. (A plain list would be taken for a list of data loaders.)"""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        yield self.batch

    def __len__(self) -> int:
        return 1
