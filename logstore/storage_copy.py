"""Files between two storages, and whole trees of one: what backups need and logs do not."""

from __future__ import annotations

import errno
import os
from typing import Final

from .errors import StorageError
from .storage import PosixStorage, Storage

COPY_BYTES: Final = 1 << 20


def copy_between(
    source: Storage, path: str, target: Storage, target_path: str, length: int
) -> None:
    """Copy the first `length` bytes of a file into a new one; neither file nor name is synced.

    Raises:
        StorageError: EIO if the file is shorter; what the system refuses else.
    """
    original = source.open(path, "r")
    try:
        copy = target.open(target_path, "x")
        try:
            position = 0
            while position < length:
                chunk = original.read(min(COPY_BYTES, length - position), position)
                if not chunk:
                    raise StorageError(
                        f"the file ends at {position} of {length} bytes",
                        errno=errno.EIO,
                        path=path,
                        position=position,
                    )
                copy.write([chunk], position)
                position += len(chunk)
        finally:
            copy.close()
    finally:
        original.close()


def take_over(source: Storage, path: str, target: Storage, target_path: str) -> bool:
    """Move a file from one storage to another in no time; False where that cannot be done.

    It can within one file system. The name is not synced.
    """
    if not isinstance(source, PosixStorage) or not isinstance(target, PosixStorage):
        return False
    try:
        os.rename(f"{source.root}/{path}", f"{target.root}/{target_path}")
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise StorageError(
            f"cannot move to {target.root}: {error.strerror}",
            errno=error.errno or errno.EIO,
            path=path,
        ) from error
    return True


def remove_tree(storage: Storage, path: str) -> None:
    """Remove a file, or a directory with all that is in it; a missing one is fine."""
    if not storage.exists(path):
        return
    try:
        names = storage.list(path)
    except StorageError as error:
        if error.errno != errno.ENOTDIR:
            raise
        storage.remove(path)
        return
    for name in names:
        remove_tree(storage, f"{path}/{name}")
    storage.remove_directory(path)


def overlaps(one: str, other: str) -> bool:
    """Whether two paths are the same, or one lies inside the other; links are followed."""
    paths = os.path.realpath(one), os.path.realpath(other)
    return os.path.commonpath(paths) in paths
