"""Which bars these are, and how two descriptions of a run differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from datamodules.bars.read import Bars
from lit_ppo.market.costs import bar_times


def content_hash(bars: Bars) -> str:
    """SHA-256 of the bars as they were understood: another time zone or point makes other bars of the same file."""
    digest = hashlib.sha256(repr((float(bars.bar_seconds), float(bars.point))).encode())
    for name in sorted(bars.frame.columns):
        values = bar_times(bars.frame) if name == "time" else bars.frame[name].to_numpy(np.float64)
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(values).data.cast("B"))
    return digest.hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Name every entry that is not the same in both, at any depth: "costs.spread was 0.2 and is 0.3"."""
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key} was {before!r} and is {after!r}"
