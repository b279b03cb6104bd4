"""The quarantine of a partition: what is taken out of the log is moved there, never deleted.

Names are those of the files they come from, with a number behind. Nothing here is ever read again
or removed, except with the topic.
"""

from __future__ import annotations

import errno
from typing import Final

from .errors import StorageError
from .segment import QUARANTINE
from .storage import Storage

COPY_BYTES: Final = 1 << 20
_ONE_NAME_ONLY: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV}
)


def free_name(storage: Storage, directory: str, name: str) -> str:
    """A path in the quarantine of `directory` that is not taken; the directory is made."""
    folder = f"{directory}/{QUARANTINE}" if directory else QUARANTINE
    storage.make_directory(folder)
    taken = set(storage.list(folder))
    number = next(n for n in range(len(taken) + 1) if f"{name}.{n}" not in taken)
    return f"{folder}/{name}.{number}"


def set_aside(storage: Storage, directory: str, name: str) -> str:
    """Move a file into quarantine, durably; where it is now.

    Args:
        storage: The store.
        directory: Where the file is and whose quarantine takes it; "" is the root.
        name: Its name.
    """
    source = f"{directory}/{name}" if directory else name
    target = free_name(storage, directory, name)
    storage.rename(source, target)
    _settle(storage, directory, target)
    return target


def keep_another_name(storage: Storage, directory: str, name: str) -> str:
    """Give a file that is about to be replaced a second name in quarantine, durably.

    So there is no moment at which the file is not in its place. Where files can have only one
    name, it is copied.
    """
    source = f"{directory}/{name}"
    target = free_name(storage, directory, name)
    try:
        storage.link(source, target)
    except StorageError as error:
        if error.errno not in _ONE_NAME_ONLY:
            raise
        copy_file(storage, source, target)
    _settle(storage, directory, target)
    return target


def copy_file(storage: Storage, source: str, target: str) -> None:
    """Copy a file within a store and sync the copy, but not its name."""
    original = storage.open(source, "r")
    try:
        copy = storage.open(target, "x")
        try:
            position = 0
            while chunk := original.read(COPY_BYTES, position):
                copy.write([chunk], position)
                position += len(chunk)
            copy.sync()
        finally:
            copy.close()
    finally:
        original.close()


def _settle(storage: Storage, directory: str, target: str) -> None:
    storage.sync_directory(target.rpartition("/")[0])
    storage.sync_directory(directory)
