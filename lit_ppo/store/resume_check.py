"""What has changed since a run began: a resume with other settings, data or code is neither the old run nor a new one.

Two kinds of change. What decides the numbers (settings, bars, our code, the versions of the packages) is refused, with
every difference named; `--allow-mismatch` goes on regardless and leaves a record in run.json. What may change the last
bits only (device, threads, processor) is allowed and labelled, in the output and in run.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What may differ between a run and its resume: where it is shown and stored, how far it goes, and where the bar file
# lies, whose content is compared by its hash.
FREE_KEYS: tuple[str, ...] = ("strict", "results", "data.fold", "data.fold_limit", "data.cache", "data.cache_dir")
FREE_KEYS += ("data.cache_max_bytes", "trainer.logger", "trainer.default_root_dir", "data.path")
FREE_KEYS += ("threads", "autotune", "baseline")  # torch's threads are compared as such
FREE_KEYS += ("candidate_processes",)  # of release 0.1.0
DEVICE_KEYS: tuple[str, ...] = ("trainer.accelerator", "trainer.devices")


@dataclass(frozen=True)
class Changes:
    """What differs between a run's beginning and now, each entry ready for a message.

    Attributes:
        refused: decides the numbers.
        inexact: the resumed run is not bit-identical to an uninterrupted one, and means the same.
    """

    refused: list[str]
    inexact: list[str]


def changes(
    config_then: Mapping[str, Any],
    config_now: Mapping[str, Any],
    record_then: Mapping[str, Any],
    record_now: Mapping[str, Any],
) -> Changes:
    """Compare two configurations and two `results.run_record`s.

    Only what both records name is compared beside the configuration: a run of a release that recorded less resumes.
    """
    then, now = flat(config_then), flat(config_now)
    refused = [
        _entry(key, then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in FREE_KEYS + DEVICE_KEYS
    ]
    inexact = [_entry(key, then[key], now[key]) for key in DEVICE_KEYS if key in then and then[key] != now.get(key)]
    for name in ("data", "versions"):
        refused += _changed(name, record_then, record_now, leave_out=("path",))
    weights_then, weights_now = ((record.get("start") or {}).get("sha256") for record in (record_then, record_now))
    if None not in (weights_then, weights_now) and weights_then != weights_now:
        refused.append(_entry("the sha256 of the weights at model.start", weights_then, weights_now))
    refused += _code(record_then, record_now)
    inexact += _changed("machine", record_then, record_now, leave_out=("ram_bytes", "cores"))
    if record_then.get("threads", record_now.get("threads")) != record_now.get("threads"):
        inexact.append(_entry("threads", record_then.get("threads"), record_now.get("threads")))
    return Changes(refused, inexact)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _changed(
    name: str, record_then: Mapping[str, Any], record_now: Mapping[str, Any], leave_out: tuple[str, ...]
) -> list[str]:
    then, now = (flat(record.get(name) or {}, name) for record in (record_then, record_now))
    ignored = {f"{name}.{key}" for key in leave_out}
    return [
        _entry(key, then[key], now[key])
        for key in sorted(then.keys() & now.keys() - ignored)
        if then[key] != now[key] and None not in (then[key], now[key])
    ]


def _code(record_then: Mapping[str, Any], record_now: Mapping[str, Any]) -> list[str]:
    """Our own code, by the hash of its files: a commit that touches only a document is no other code."""
    then, now = record_then.get("source_sha256"), record_now.get("source_sha256")
    if then is None or then == now:
        return []
    return [f"the code was {_commit(record_then)} and is {_commit(record_now)}"]


def _commit(record: Mapping[str, Any]) -> str:
    commit = str(record.get("commit") or "unknown commit")[:12]
    dirty = ", changed since" if record.get("dirty") else ""
    return f"{str(record.get('source_sha256'))[:12]} (commit {commit}{dirty})"


def _entry(key: str, then: Any, now: Any) -> str:
    return f"{key} was {then!r} and is {now!r}"
