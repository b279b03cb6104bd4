"""A file that is there whole, or not at all: written beside its name, synced, then renamed.

A process that is killed leaves what it had written, `.NAME.PID.tmp`. The next one that writes the
same file removes it: nobody has to clean up by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from types import TracebackType
from typing import Self

import click


class AtomicFile:
    """A new file; a context manager that puts it in place on success and removes it otherwise.

    Args:
        path: Where it shall be; a file that is there is replaced in one step, and a link stays one.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._place = os.path.realpath(path)
        directory, name = os.path.split(self._place)
        self._directory = directory
        self._temporary = os.path.join(self._directory, f".{name}.{os.getpid()}.tmp")
        self.descriptor = -1
        """Open for writing inside the block."""
        self._kept = True

    def discard(self) -> None:
        """Leave what was there before, although the block ends without an error."""
        self._kept = False

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            if os.path.isdir(self._path):
                raise IsADirectoryError(0, "it is a directory")
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                # A device or a pipe, /dev/null say, would be gone for all who use it.
                raise FileExistsError(0, "it is no file that could be replaced")
            self.descriptor = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            raise click.ClickException(f"cannot write {self._path}: {error.strerror}") from None
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._remove_left_over()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._kept:
                self._put_in_place()
        finally:
            os.close(self.descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def _remove_left_over(self) -> None:
        """Remove what processes that were killed had written of the same file."""
        name = re.escape(os.path.basename(self._place))
        pattern = re.compile(rf"\.{name}\.(\d+)\.tmp")
        for entry in os.listdir(self._directory):
            found = pattern.fullmatch(entry)
            if found is not None and int(found[1]) != os.getpid():
                # Not in our way: what cannot be removed does not keep us from writing.
                with contextlib.suppress(OSError):
                    _remove_if_dead(os.path.join(self._directory, entry), int(found[1]))

    def _put_in_place(self) -> None:
        try:
            os.fsync(self.descriptor)
            os.replace(self._temporary, self._place)
            directory = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise click.ClickException(f"cannot write {self._path}: {error.strerror}") from None


def _remove_if_dead(path: str, process_id: int) -> None:
    """Remove the file of a process that has ended, here or on another machine.

    Raises:
        OSError: Its process lives: it holds the lock, or is about to take it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            os.unlink(path)
    finally:
        os.close(descriptor)
