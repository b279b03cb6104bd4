"""Where a backup, or a store that is restored, is made before it takes its name: beside it.

`<place>.partial` is a directory with a lock of ours in it, which says two things. What is beside
the lock is what a killed process has left, and can go: what is there without one is another's, and
stays. And whoever makes the same place now holds it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final

from .errors import LockedError, StorageError, UsageError
from .storage import PosixStorage
from .storage_copy import remove_tree

PARTIAL_SUFFIX: Final = ".partial"
_LOCK: Final = "millstream.lock"
_NEW: Final = "new"


@contextlib.contextmanager
def made_beside(place: str, require_free: Callable[[str], None]) -> Iterator[str]:
    """Where to make a file or directory that is renamed to `place` when the block ends.

    If it raises, nothing is left.

    Args:
        place: An absolute path.
        require_free: Raises if something is there that must stay.

    Raises:
        UsageError: Something is there where it would be made.
        LockedError: Another process is making it.
        StorageError: The operating system refused.
    """
    require_free(place)
    partial = place + PARTIAL_SUFFIX
    if os.path.lexists(partial) and not _is_ours(partial):
        raise UsageError(
            f"{partial} is there, where {place} would be made first: move it away, or choose"
            " another name"
        )
    parent, work = PosixStorage(os.path.dirname(place)), PosixStorage(partial)
    lock = work.lock(_LOCK)
    try:
        if not lock.try_acquire():
            raise LockedError("another process is making this backup, or restores it", path=place)
        require_free(place)
        _clear(work)
        try:
            yield f"{partial}/{_NEW}"
            name = os.path.basename(place)
            parent.rename(f"{name}{PARTIAL_SUFFIX}/{_NEW}", name)
            parent.sync_directory("")
        finally:
            # What went wrong before is the news; what cannot be removed now, the next one removes.
            with contextlib.suppress(StorageError):
                _clear(work)
                remove_tree(parent, os.path.basename(partial))
    finally:
        lock.close()


def _clear(work: PosixStorage) -> None:
    """Remove all but the lock: the last to go, because it says whose the rest is."""
    for left in work.list(""):
        if left != _LOCK:
            remove_tree(work, left)


def _is_ours(partial: str) -> bool:
    """Whether a directory is one of these; an empty one is what a process left that was killed."""
    if os.path.islink(partial) or not os.path.isdir(partial):
        return False
    names = os.listdir(partial)
    return not names or _LOCK in names
