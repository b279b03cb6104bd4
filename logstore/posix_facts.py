"""What the operating system says about a place for files: file system, space, rights, limits.

For `doctor.py`, and for files that must not outlive a restart of the machine. Only asks; what the
answers mean is decided there.
"""

from __future__ import annotations

import os
import resource
from typing import Final, NamedTuple

MOUNTS: Final = "/proc/self/mountinfo"
_READ_BYTES: Final = 1 << 16


class Mount(NamedTuple):
    """A mounted file system."""

    path: str
    type: str
    options: frozenset[str]


class Space(NamedTuple):
    """Room on a file system, for this process."""

    free_bytes: int
    total_bytes: int
    free_files: int
    total_files: int
    """0: the file system does not count them."""


class Limits(NamedTuple):
    """What this process may use; None: no limit."""

    open_files: int | None
    file_bytes: int | None


def mount_of(path: str, mounts: str | None = None) -> Mount | None:
    """The file system a path lies on; None where the system does not tell.

    Args:
        path: An absolute path.
        mounts: Content of the table of mounts, for tests.

    >>> mount_of("/data/store", "1 0 0:1 / /data rw - ext4 dev rw").type
    'ext4'
    """
    table = _read(MOUNTS) if mounts is None else mounts
    best: Mount | None = None
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        point = fields[4].replace(r"\040", " ").replace(r"\134", "\\")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Later mounts hide earlier ones at the same place.
        if inside and (best is None or len(point) >= len(best.path)):
            options = frozenset(fields[5].split(",")) | frozenset(rest[2].split(","))
            best = Mount(point, rest[0], options)
    return best


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        chunks = []
        while chunk := os.read(descriptor, _READ_BYTES):
            chunks.append(chunk)
        return b"".join(chunks).decode("utf-8", "surrogateescape")
    finally:
        os.close(descriptor)


def space_at(path: str) -> Space:
    """Room where `path` lies; OSError if it is not there."""
    status = os.statvfs(path)
    unit = status.f_frsize
    return Space(status.f_bavail * unit, status.f_blocks * unit, status.f_favail, status.f_files)


def limits() -> Limits:
    """The limits of this process."""
    files, size = (
        resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
    )
    infinite = resource.RLIM_INFINITY
    return Limits(None if files == infinite else files, None if size == infinite else size)


def refused(path: str) -> list[str]:
    """Which of "read", "write" and, for a directory, "enter" this process may not do."""
    wanted = {"read": os.R_OK, "write": os.W_OK}
    if os.path.isdir(path):
        wanted["enter"] = os.X_OK
    return [name for name, mode in wanted.items() if not os.access(path, mode)]


def boot_identity() -> int:
    """A number that changes when the machine restarts; 0 on systems that do not tell."""
    try:
        descriptor = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(os.read(descriptor, 36).replace(b"-", b"") or b"0", 16) >> 72
    finally:
        os.close(descriptor)


def file_identity(path: str) -> int:
    """A number that no other file has since the machine started, 63 bits; 0 if that is unknown.

    Raises:
        OSError: It is not there.
    """
    boot = boot_identity()
    return (os.stat(path).st_ino ^ boot) & 0x7FFF_FFFF_FFFF_FFFF if boot else 0


def owner_of(path: str) -> int:
    """User id of a file's owner; OSError if it is not there."""
    return os.stat(path).st_uid
