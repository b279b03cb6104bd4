"""What may be wrong with the machine under a store: file system, space, rights, syncs, limits.

Each check says what it found, whether that is fine, and if not what to do. `doctor.py` puts them
together with those of the store itself.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

from .clock import Clock
from .database import sqlite_version
from .errors import StorageError
from .posix_facts import Limits, Mount, Space, owner_of, refused
from .segment import TEMPORARY_SUFFIX
from .storage import PosixStorage

Level: TypeAlias = Literal["ok", "info", "warning", "error"]

SYNCS: Final = 24
SLOW_SYNC_MS: Final = 50.0
FAST_SYNC_MS: Final = 0.01
FREE_BYTES_MIN: Final = 256 << 20
FREE_SHARE_MIN: Final = 0.05
SPARE_FILES: Final = 64

_NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs"),
        *("gfs2", "ocfs2", "glusterfs", "vboxsf", "prl_fs", "virtiofs"),
    }
)
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_NO_BARRIER: Final = frozenset({"nobarrier", "barrier=0"})


class Diagnosis(NamedTuple):
    """One thing that was looked at."""

    check: str
    level: Level
    message: str
    remedy: str = ""
    """What to do about it."""
    path: str | None = None


def versions() -> Iterator[Diagnosis]:
    """What is running."""
    names = ("millstream", "apsw", "lz4", "xxhash", "zstandard", "msgspec")
    found = [f"{name} {_version(name)}" for name in names]
    found += [f"SQLite {sqlite_version()}", f"Python {platform.python_version()}"]
    yield Diagnosis("versions", "ok", ", ".join(found))
    if not sys.platform.startswith(("linux", "darwin")):
        yield Diagnosis("versions", "warning", f"on {sys.platform}", "use Linux or macOS")


def _version(package: str) -> str:
    from importlib import metadata  # noqa: PLC0415 - a fifth of the import, for the doctor alone

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def file_system(mount: Mount | None) -> Diagnosis:
    """Whether locks, shared memory and syncs do on it what Millstream needs."""
    check = "file system"
    if mount is None:
        return Diagnosis(check, "info", "this system does not tell which one it is")
    level: Level = "error"
    text = f"{mount.type} at {mount.path}"
    remedy = "move the store to a local disk"
    if mount.type in _NETWORK or mount.type.startswith("fuse."):
        text += ": locks and shared memory may not hold between machines, nor syncs"
    elif mount.type in _MEMORY:
        level = "warning"
        text += ": everything is gone when the machine restarts"
    elif mount.type == "overlay":
        level, remedy = "warning", "put the store on a volume"
        text += ": what is written here goes with the container"
    elif "ro" in mount.options:
        remedy = "mount it for writing, or open read-only"
        text += " is mounted read-only"
    elif _NO_BARRIER & mount.options:
        remedy = "mount it with barriers"
        text += " is mounted without barriers: a sync need not reach the disk"
    else:
        level, remedy = "ok", ""
    return Diagnosis(check, level, text, remedy)


def free_space(space: Space) -> Iterator[Diagnosis]:
    """Whether there is room to write."""
    check, remedy = "free space", "free some, set a retention, or move the store"
    text = f"{space.free_bytes >> 20} of {space.total_bytes >> 20} MiB are free"
    if space.free_bytes < FREE_BYTES_MIN:
        yield Diagnosis(check, "error", text, remedy)
    elif space.free_bytes < space.total_bytes * FREE_SHARE_MIN:
        yield Diagnosis(check, "warning", text, remedy)
    else:
        yield Diagnosis(check, "ok", text)
    if space.total_files and space.free_files < space.total_files * FREE_SHARE_MIN:
        message = f"{space.free_files} of {space.total_files} files (inodes) are free"
        yield Diagnosis(check, "warning", message, "remove small files")


def rights(root: str, places: Iterable[str]) -> Iterator[Diagnosis]:
    """Whether this user may do what it takes to write, and owns what others will write too.

    Args:
        root: Directory of the store.
        places: Paths below it, "" for itself.
    """
    owner, whole = owner_of(root), True
    for place in places:
        full = os.path.join(root, place)
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            missing = refused(full)
            if missing and not os.path.lexists(full):
                continue  # a partition to which nobody has written yet
            if not missing and owner_of(full) == owner:
                continue
            whole = False
            level: Level = "error" if "read" in missing else "warning"
            message = f"may not {' or '.join(missing)}" if missing else "has another owner"
            remedy = "give all files to the user who writes: chown -R"
            yield Diagnosis("rights", level, message, remedy, place or ".")
    if whole:
        yield Diagnosis("rights", "ok", "this user may read and write everything")


def sync_time(storage: PosixStorage, clock: Clock) -> Diagnosis:
    """How long a durable append has to wait; writes, syncs and removes a small file."""
    check = "sync"
    if refused(storage.root):
        return Diagnosis(check, "info", "not measured: the directory may not be written")
    try:
        times_ms = _time_syncs(PosixStorage(storage.root), clock)
    except StorageError as error:
        return Diagnosis(check, "error", error.message, "see the message")
    median, worst = sorted(times_ms)[len(times_ms) // 2], max(times_ms)
    return judge_sync(median, worst)


def judge_sync(median_ms: float, worst_ms: float) -> Diagnosis:
    """Whether these times are those of a disk that syncs.

    >>> judge_sync(0.4, 2).level, judge_sync(0.001, 0.1).level, judge_sync(80, 900).level
    ('ok', 'warning', 'warning')
    """
    check = "sync"
    text = f"fdatasync takes {median_ms:.2f} ms in the median, {worst_ms:.2f} ms at most"
    if median_ms < FAST_SYNC_MS:
        text += ": faster than any disk"
        return Diagnosis(check, "warning", text, "see whether syncs are switched off")
    if median_ms > SLOW_SYNC_MS:
        return Diagnosis(check, "warning", text, "append in batches, or take a faster disk")
    return Diagnosis(check, "ok", text)


def _time_syncs(storage: PosixStorage, clock: Clock) -> list[float]:
    name = f"doctor-{os.getpid()}{TEMPORARY_SUFFIX}"
    storage.remove(name)
    file = storage.open(name, "x")
    try:
        block, times_ms = bytes(4096), []
        for _ in range(SYNCS):
            began = clock.monotonic()
            file.write([block], 0)
            file.sync()
            times_ms.append((clock.monotonic() - began) * 1000)
        return times_ms
    finally:
        file.close()
        storage.remove(name)


def process_limits(found: Limits, partitions: int) -> Iterator[Diagnosis]:
    """Whether this process may open and write files as large and as many as it takes."""
    needed = partitions * 2 + SPARE_FILES
    if found.open_files is None:
        yield Diagnosis("limits", "ok", "any number of open files")
    elif found.open_files < needed:
        message = f"{found.open_files} open files; {partitions} partitions may need {needed}"
        yield Diagnosis("limits", "warning", message, f"ulimit -n {needed}")
    else:
        yield Diagnosis("limits", "ok", f"{found.open_files} open files")
    if found.file_bytes is not None:
        message = f"files may not be larger than {found.file_bytes >> 20} MiB"
        yield Diagnosis("limits", "warning", message, "ulimit -f unlimited")
