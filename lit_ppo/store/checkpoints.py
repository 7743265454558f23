"""Checkpoints that survive a kill: written whole, hashed, ordered by a manifest, the two newest kept.

    <directory>/
        manifest.json                       order, SHA-256 and facts of every checkpoint; replaced after each save
        checkpoint-000012-9f2c0c....ckpt    rolling: sequence number and hash in the name, so a lost manifest is rebuilt
        selected.ckpt                       named: never pruned

Order of a save: temporary file, fsync, rename, re-read and compare the hash, manifest, prune. Order of a load: newest
sequence number (never file time) whose hash matches; otherwise one warning and the one before it; if none is whole, an
error: a run never silently starts over.

Content is tensors, numbers, strings, lists and dicts; `torch.load(weights_only=True)` always reads it, and nothing else
is ever read. A hash protects from accidents, not from someone who can write to the directory.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_ppo.store.atomic import atomic_write, failpoint, remove_temporaries, sha256_file

SCHEMA = 1
FACTS = "lit_ppo"  # key of a checkpoint under which the facts for the manifest lie
MANIFEST = "manifest.json"
SELECTED = "selected.ckpt"  # the weights that validation chose
_ROLLING = re.compile(r"checkpoint-(\d{6,})-([0-9a-f]{32})\.ckpt")
_PLAIN = (bool, int, float, str, type(None))

MapLocation = Callable | torch.device | str | dict | None


class CheckpointError(RuntimeError):
    """No whole checkpoint where one was asked for."""


def refuse_objects(value: Any, where: str = "checkpoint") -> None:
    """Check that `value` is made of tensors, numbers, strings, lists and dicts only.

    Raises:
        TypeError: names the key of the first foreign object, before anything is written.
    """
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where} has a key of type {type(key).__name__}: keys are strings or integers")
            refuse_objects(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            refuse_objects(inner, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):  # numpy.float64 is a float, and a pickle
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds tensors, numbers, "
            "strings, lists and dicts only, so that `weights_only=True` can load it. Convert it in `state_dict`"
        )


def canonical(value: Any) -> Any:
    """Return equal content with every equal string one object, and no two containers one.

    A pickle writes an object once and refers to it afterwards. Which strings are one object differs between a state
    that was built and one that was loaded; without this, equal states would give different bytes and hashes.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) in (list, tuple):
        return type(value)(canonical(inner) for inner in value)
    if type(value) in (dict, OrderedDict):
        copy = type(value)((canonical(key), canonical(inner)) for key, inner in value.items())
        if hasattr(value, "_metadata"):  # versions of the modules in a `state_dict`
            copy._metadata = canonical(value._metadata)
        return copy
    return value


def local_path(path: str | Path) -> Path:
    """Return `path` as a local path.

    Raises:
        ValueError: a URL; nothing is ever fetched.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}", str(path)):
        raise ValueError(
            f"Checkpoints are read from and written to local files only, got {str(path)!r}. Copy it first."
        )
    return Path(path)


def _deserialise(data: bytes, map_location: MapLocation) -> dict[str, Any]:
    return torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's entry with its types checked; a rolling checkpoint's own name outranks the manifest."""
    entry = {**entry, "sequence": int(entry["sequence"]), "file": str(entry["file"]), "sha256": str(entry["sha256"])}
    if Path(entry["file"]).name != entry["file"]:
        raise ValueError(f"{entry['file']!r} lies outside the directory")
    match = _ROLLING.fullmatch(entry["file"])
    return {**entry, "sequence": int(match[1]), "sha256": match[2], "kind": "rolling"} if match else entry


class CheckpointStore:
    """The checkpoints of one directory.

    Args:
        directory: made at the first save.
        keep: rolling checkpoints kept, at least 2: the newest may be the one a kill tears.

    Raises:
        ValueError: `keep` below 2, or a URL.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"`keep` must be at least 2 (the newest may be damaged), got {keep}")
        self.directory, self.keep = local_path(directory), keep

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest's entries, oldest first; rebuilt from the files' names where it is lost or damaged."""
        manifest = self.directory / MANIFEST
        try:
            content = json.loads(manifest.read_bytes())
            if content["schema"] > SCHEMA:
                raise CheckpointError(
                    f"{manifest} has schema {content['schema']}, this lit-ppo reads up to {SCHEMA}: use a newer lit-ppo"
                )
            entries = [_checked(entry) for entry in content["entries"]]
        except FileNotFoundError:
            entries = []
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{manifest} is damaged ({error!r}); rebuilt from the checkpoints' names", stacklevel=2)
            entries = []
        known = {entry["file"] for entry in entries}
        # A kill between a rename and its manifest leaves a whole checkpoint that no manifest lists: its name carries
        # its hash, so it is as good as a listed one.
        for path in self.directory.glob("checkpoint-*.ckpt"):
            match = _ROLLING.fullmatch(path.name)
            if match and path.name not in known:
                entries.append({"sequence": int(match[1]), "file": path.name, "sha256": match[2], "kind": "rolling"})
        return sorted(entries, key=lambda entry: entry["sequence"])

    def save(self, state: dict[str, Any], name: str | None = None) -> Path:
        """Write a checkpoint; `name` gives a file that is never pruned, None the next rolling one.

        Raises:
            TypeError: the state holds something else than tensors, numbers, strings, lists and dicts.
            OSError: the disk is full or not writable, or returned other bytes than were written.
        """
        refuse_objects(state)
        buffer = io.BytesIO()
        torch.save(canonical(state), buffer)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        self.directory.mkdir(parents=True, exist_ok=True)
        # A named file that is written again takes its old place.
        entries = [self._with_facts(entry) for entry in self.entries() if entry["file"] != name]
        sequence = 1 + max((entry["sequence"] for entry in entries), default=0)
        kind = "rolling" if name is None else "named"
        target = self.directory / (name or f"checkpoint-{sequence:06d}-{digest[:32]}.ckpt")
        atomic_write(target, data)
        if sha256_file(target) != digest:
            raise OSError(f"{target} reads back different from what was written: check the disk. Older ones are kept.")
        entry = {"sequence": sequence, "file": target.name, "sha256": digest, "bytes": len(data), "kind": kind}
        entry |= state.get(FACTS, {})
        entries.append(entry)
        stale = self._surplus(entries)
        entries = [other for other in entries if other["file"] not in stale]
        manifest = json.dumps({"schema": SCHEMA, "entries": entries}, indent=1, sort_keys=True)
        atomic_write(self.directory / MANIFEST, manifest)
        for file in stale:
            failpoint("during_prune", file)
            (self.directory / file).unlink(missing_ok=True)
        return target

    def _with_facts(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Complete an entry that was rebuilt from a file's name: a kill before the manifest then leaves no trace."""
        if "bytes" in entry:
            return entry
        try:
            facts = self._read(entry, "cpu").get(FACTS, {})
        except (ValueError, OSError):
            return entry
        return {**entry, "bytes": (self.directory / entry["file"]).stat().st_size, **facts}

    def _read(self, entry: dict[str, Any], map_location: MapLocation) -> dict[str, Any]:
        """Read one listed checkpoint; raises ValueError or OSError if it is not what was written."""
        path = self.directory / entry["file"]
        if path.is_symlink():
            raise ValueError("it is a link: a checkpoint lies in its own directory")
        data = path.read_bytes()
        if not hashlib.sha256(data).hexdigest().startswith(entry["sha256"]):
            raise ValueError(f"its hash differs from the one recorded ({len(data)} bytes)")
        if not entry["sha256"]:  # torch writes the archive's checksums, and does not look at them
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if (bad := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of its part {bad} differs")
        return _deserialise(data, map_location)

    def load_newest(self, map_location: MapLocation = "cpu") -> tuple[dict[str, Any], Path] | None:
        """Return the newest whole rolling checkpoint and its file; None if the directory never held one.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole.
        """
        rolling = [entry for entry in self.entries() if entry["kind"] == "rolling"]
        damage = []
        for entry in reversed(rolling):
            try:
                state = self._read(entry, map_location)
            except (ValueError, OSError) as error:
                damage.append(f"{entry['file']}: {error}")
                continue
            if damage:
                warnings.warn(f"{self.directory}: stepped back to {entry['file']}; {'; '.join(damage)}", stacklevel=2)
            return state, self.directory / entry["file"]
        if not rolling:
            return None
        raise CheckpointError(
            f"None of the {len(rolling)} checkpoints in {self.directory} is whole ({'; '.join(damage)}). Restore one "
            "from a backup, or start again in another directory"
        )

    def load(self, name: str, map_location: MapLocation = "cpu") -> dict[str, Any]:
        """Return one checkpoint by file name.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: it is damaged.
        """
        path = self.directory / name
        if not path.is_file():
            found = sorted(other.name for other in self.directory.glob("*.ckpt")) if self.directory.is_dir() else []
            raise FileNotFoundError(
                f"There is no checkpoint {path}. "
                + (f"{self.directory} holds {', '.join(found)}: name one of them" if found else "Name another file")
            )
        unlisted = {"sequence": 0, "file": path.name, "sha256": ""}  # no manifest: the archive's own checksums remain
        entry = next((entry for entry in self.entries() if entry["file"] == path.name), unlisted)
        try:
            return self._read(entry, map_location)
        except Exception as error:  # torch raises many types on a damaged file
            # torch says how to load it all the same, and run what it holds
            why = "it holds more than tensors and plain values" if "weights_only" in str(error) else error
            raise CheckpointError(f"{path} cannot be loaded: {why}. Restore it, or name another one") from error

    def _surplus(self, entries: list[dict[str, Any]]) -> list[str]:
        """Files of the rolling checkpoints that are damaged or older than the `keep` newest whole ones."""
        rolling = [entry for entry in entries if entry["kind"] == "rolling"]
        whole = [entry["file"] for entry in rolling if self._is_whole(entry)]
        return [entry["file"] for entry in rolling if entry["file"] not in whole[-self.keep :]]

    def _is_whole(self, entry: dict[str, Any]) -> bool:
        path = self.directory / entry["file"]
        return path.is_file() and sha256_file(path).startswith(entry["sha256"])

    def clean(self) -> None:
        """Remove temporary, surplus and damaged files; after `load_newest`, by the one process that owns the run."""
        if self.directory.is_dir():
            remove_temporaries(self.directory)
            for file in self._surplus(self.entries()):
                (self.directory / file).unlink(missing_ok=True)


def load_checkpoint(path: str | Path, map_location: MapLocation = "cpu") -> dict[str, Any]:
    """Load a checkpoint file, or the newest whole one of a directory.

    Raises:
        ValueError: a URL. FileNotFoundError: nothing there. CheckpointError: nothing whole there.
    """
    target = local_path(path)
    if target.is_dir():
        newest = CheckpointStore(target).load_newest(map_location)
        if newest is None:
            raise FileNotFoundError(f"No checkpoint in {target}")
        return newest[0]
    return CheckpointStore(target.parent).load(target.name, map_location)
