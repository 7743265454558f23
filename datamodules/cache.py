"""A disk cache of feature matrices: the same bars and the same features are computed once.

An entry's name is the SHA-256 of everything its values depend on (bars, feature list, code, library versions), so an
entry never goes stale: what changed has another name. Entries are safetensors files (no pickle), memory-mapped, with
a SHA-256 of the payload that is checked at every load. That hash finds accidents (bit rot, truncation), not attackers,
who could replace it too: the directory is private to its owner (0700), and one that belongs to another user is refused.

Writers need no lock: each writes its own temporary file and renames it; the last of several racing ones wins, with
equal content. No torch: `lit-ppo cache` is a light command.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lit_ppo.store.atomic import TEMPORARY_SUFFIX, atomic_write

SCHEMA = "1"
SUFFIX = ".safetensors"
DEFAULT_MAX_BYTES = 2 * 2**30
_STALE_TEMPORARY_SECONDS = 3600.0


@dataclass
class CacheStatistics:
    """What the cache did in this process. `seconds_saved`: computing time of the hits less their loading time."""

    hits: int = 0
    misses: int = 0
    rebuilt: int = 0
    seconds_saved: float = 0.0


@dataclass(frozen=True)
class CacheInfo:
    """What lies on disk."""

    directory: str
    entries: int
    bytes: int


class CorruptEntryError(ValueError):
    """A cache entry is not what was written."""


def cache_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """The directory that holds the entries: `features` in the one given, else in the user's cache home (XDG)."""
    if directory is None:
        home = os.environ.get("XDG_CACHE_HOME")
        # The XDG standard: a relative path is to be ignored.
        directory = (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "lit-ppo"
    return Path(directory) / "features"


class FeatureCache:
    """Feature matrices on disk, least recently used ones removed first.

    Args:
        directory: where to keep the entries; default: the user's cache home.
        max_bytes: bound on the size of all entries together; a larger single entry is not stored.

    Raises:
        ValueError: the bound is not positive.
        PermissionError: the directory belongs to another user, or is a link.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 1:
            raise ValueError(
                f"data.cache_max_bytes must be >= 1, got {max_bytes}; data.cache false turns the cache off"
            )
        self.directory = cache_directory(directory)
        self.max_bytes = max_bytes
        self.statistics = CacheStatistics()
        self._writable = True
        self._prepare()

    def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the float32 matrix of `key`: memory-mapped from disk, or computed and stored.

        A corrupt entry is rebuilt with a warning; a directory that cannot be written is warned about once, and the
        work goes on uncached.
        """
        path = self._path(key)
        start = time.perf_counter()
        try:
            values, seconds = load_entry(path, key)
        except FileNotFoundError:
            pass
        except (CorruptEntryError, OSError) as error:
            warnings.warn(f"Cache entry {path.name[:16]} is computed anew: {error}", stacklevel=2)
            self.statistics.rebuilt += 1
        else:
            self.statistics.hits += 1
            self.statistics.seconds_saved += seconds - (time.perf_counter() - start)
            self._touch(path)
            return values
        self.statistics.misses += 1
        start = time.perf_counter()
        values = np.ascontiguousarray(compute(), dtype=np.float32)
        self._store(path, key, values, time.perf_counter() - start)
        return values

    def _prepare(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = os.lstat(self.directory)
        except OSError as error:
            self._give_up(error)
            return
        if not stat.S_ISDIR(found.st_mode):
            raise PermissionError(
                f"The cache directory {self.directory} is a link or a file; name another with --data.cache_dir"
            )
        if found.st_uid != os.geteuid():
            raise PermissionError(
                f"The cache directory {self.directory} belongs to user id {found.st_uid}, not to you ({os.geteuid()}): "
                f"its content cannot be trusted. Name another with --data.cache_dir, or use --data.cache false"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            try:
                os.chmod(self.directory, stat.S_IMODE(found.st_mode) & 0o700)
            except OSError as error:
                self._give_up(error)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

    def _store(self, path: Path, key: str, values: np.ndarray, seconds: float) -> None:
        if not self._writable:
            return
        data = encode_entry(key, values, seconds)
        if len(data) > self.max_bytes:
            warnings.warn(
                f"A feature matrix of {len(data)} bytes exceeds data.cache_max_bytes {self.max_bytes}: not cached",
                stacklevel=3,
            )
            return
        try:
            atomic_write(path, data)
            prune(self.directory, self.max_bytes)
        except OSError as error:
            self._give_up(error)

    def _touch(self, path: Path) -> None:
        """The modification time is the time of last use: access times are off on many systems."""
        if not self._writable:
            return
        try:
            os.utime(path)
        except FileNotFoundError:
            pass  # another process has cleared the cache; the mapped values stay valid
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writable = False
        warnings.warn(f"The cache in {self.directory} cannot be written ({error}); going on without it", stacklevel=3)


def encode_entry(key: str, values: np.ndarray, seconds: float) -> bytes:
    """The bytes of an entry: the matrix and, as metadata, its key, hash and the seconds it took to compute.

    The format is safetensors'; its own writer would hold two more copies of a matrix that may have 300 MB.
    """
    metadata = {"schema": SCHEMA, "key": key, "sha256": _payload_hash(values), "seconds": f"{seconds:.6e}"}
    array = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}
    header = json.dumps({"__metadata__": metadata, "features": array}).encode()
    header += b" " * (-len(header) % 8)  # the array starts at a multiple of 8, as the format demands
    return b"".join([len(header).to_bytes(8, "little"), header, _bytes_of(values)])


def load_entry(path: Path, key: str) -> tuple[np.ndarray, float]:
    """Map an entry into memory, read-only, and check it.

    The format is a length (8 bytes, little endian), a JSON header and the raw array; safetensors' own loader copies it.

    Returns:
        The matrix [N, F] float32 and the seconds it took to compute.

    Raises:
        FileNotFoundError: no such entry.
        CorruptEntryError: it is truncated, altered, or of another layout.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise CorruptEntryError(f"its header of {length} bytes does not fit into its {size} bytes")
        try:
            header = json.loads(file.read(length))
            metadata, array = header["__metadata__"], header["features"]
            shape = tuple(int(n) for n in array["shape"])
            begin, end = (int(offset) for offset in array["data_offsets"])
            seconds = float(metadata["seconds"])
            found = (metadata["schema"], metadata["key"], array["dtype"], len(shape), begin, end)
            expected = (SCHEMA, key, "F32", 2, 0, 4 * int(np.prod(shape)))
            digest = metadata["sha256"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptEntryError(f"its header is unreadable ({type(error).__name__})") from error
        if found != expected or size != 8 + length + end or min(shape) < 0:
            raise CorruptEntryError("its header does not describe this entry")
        if end == 0:
            return np.empty(shape, dtype=np.float32), seconds
        values = np.memmap(file, dtype="<f4", mode="r", offset=8 + length, shape=shape)
    if _payload_hash(values) != digest:
        raise CorruptEntryError("its content does not match its SHA-256")
    return values, seconds


def info(directory: str | os.PathLike[str] | None = None) -> CacheInfo:
    """Count the entries of a cache and their bytes; a cache that does not exist has none."""
    return _info(cache_directory(directory))


def clear(directory: str | os.PathLike[str] | None = None) -> CacheInfo:
    """Remove every entry; returns what was removed."""
    root = cache_directory(directory)
    before = _info(root)
    prune(root, 0)
    return before


def prune(root: Path, max_bytes: int) -> CacheInfo:
    """Remove the least recently used entries of `root` until at most `max_bytes` are left; returns what is left.

    Also removes temporary files that a killed writer left more than an hour ago. Safe beside other processes.

    Args:
        root: the directory that holds the entries, from `cache_directory`.
        max_bytes: bound on the size of all entries together.
    """
    now = time.time()
    for path in root.glob(f".*{TEMPORARY_SUFFIX}"):
        modified = _stat(path)
        if modified is not None and now - modified.st_mtime > _STALE_TEMPORARY_SECONDS:
            path.unlink(missing_ok=True)
    entries = sorted(_entries(root), key=lambda entry: entry[1].st_mtime_ns)
    total = sum(found.st_size for _, found in entries)
    for path, found in entries:
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= found.st_size
    return _info(root)


def statistics_dict(cache: FeatureCache | None) -> dict[str, float]:
    """Hits, misses, rebuilt entries and seconds saved, all 0 without a cache."""
    return asdict(cache.statistics if cache else CacheStatistics())


def _entries(root: Path) -> list[tuple[Path, os.stat_result]]:
    found = ((path, _stat(path)) for path in root.glob(f"*{SUFFIX}"))
    return [(path, status) for path, status in found if status is not None and stat.S_ISREG(status.st_mode)]


def _stat(path: Path) -> os.stat_result | None:
    """Status of a file, None if another process has just removed it."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _info(root: Path) -> CacheInfo:
    entries = _entries(root)
    return CacheInfo(str(root), len(entries), sum(found.st_size for _, found in entries))


def _payload_hash(values: np.ndarray) -> str:
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(_bytes_of(values))
    return digest.hexdigest()


def _bytes_of(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values, dtype="<f4").reshape(-1).data.cast("B")
