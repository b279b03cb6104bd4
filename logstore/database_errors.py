"""What SQLite raises, as an error of ours that says what to do.

Whose database it is decides what an error means: see `DatabaseUse`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import apsw

from .errors import (
    DataError,
    LockedError,
    MillstreamError,
    RecordError,
    StorageError,
    StoreClosedError,
    UsageError,
)

BUSY_TIMEOUT_SECONDS: Final = 10.0
"""A catalog transaction takes milliseconds; who waits longer waits for a stuck process."""


@dataclass(frozen=True, slots=True)
class DatabaseUse:
    """Whose database it is, which decides about its journal and about what an error means."""

    title: str
    """What messages call it."""
    absent: str
    """What to say where there is none to be read."""
    ours: bool
    """Its tables are of our making: its journal is set to WAL, and a statement that SQLite refuses
    means damage. Of another's database the journal stays, and the statement is at fault."""


CATALOG: Final = DatabaseUse("the catalog", "there is no store here", ours=True)


_ROOM: Final = "free space and try again"
_LITTLE: Final = "; one MiB lets `millstream retention` and `topics trim` free more"
"""What they change in the catalog has to be written before they may remove a file."""
_RIGHTS: Final = "check the path, who owns file and directory, and whether all is read-only here"
_ERRNO: Final[Mapping[type[apsw.Error], tuple[int, str, str]]] = {
    apsw.FullError: (errno.ENOSPC, "the disk is full", _ROOM),
    apsw.ReadOnlyError: (errno.EROFS, "{} cannot be written", _RIGHTS),
    apsw.PermissionsError: (errno.EACCES, "{} cannot be accessed", _RIGHTS),
    apsw.CantOpenError: (errno.ENOENT, "{} cannot be opened", _RIGHTS),
    apsw.IOError: (errno.EIO, "reading or writing {} failed", "check the disk and its log"),
    apsw.NoMemError: (errno.ENOMEM, "out of memory", "give the process more"),
}
"""The number, what is wrong, and what to do."""
_NO_ROOM: Final[Mapping[int, tuple[str, str]]] = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the quota is used up", _ROOM),
    errno.EFBIG: ("the file size limit (ulimit -f) is reached", "raise it and try again"),
}
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)
_REFUSED_DATA: Final = (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError)


def typed_error(
    error: apsw.Error, filename: str, system_errno: int, use: DatabaseUse
) -> MillstreamError:
    """The error of ours that tells the caller what to do about SQLite's."""
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return LockedError(
            f"another process kept {use.title} locked for {BUSY_TIMEOUT_SECONDS:.0f} s: try again",
            path=filename,
        )
    if isinstance(error, apsw.ConnectionClosedError):
        closed = "the store is closed" if use.ours else f"{use.title} is closed"
        return StoreClosedError(closed, path=filename)
    rotten = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA
    if type(error) in _ERRNO and not rotten:
        number, message, remedy = _ERRNO[type(error)]
        # The system's number may be left over from an earlier call; only these two errors set it.
        if system_errno and isinstance(error, (apsw.IOError, apsw.CantOpenError)):
            number = system_errno
            message, remedy = _NO_ROOM.get(number, (message, remedy))
        if number == errno.ENOSPC and use is CATALOG:
            remedy += _LITTLE
        words = "" if str(error) == "not an error" else f" ({error})"
        text = f"{message.format(use.title)}{words}: {remedy}"
        return StorageError(text, errno=number, path=filename)
    if use.ours or rotten or isinstance(error, _DAMAGE):
        damage = "a page fails its checksum" if rotten else error
        return DataError(f"{use.title} is damaged: {damage}", path=filename)
    if isinstance(error, _REFUSED_DATA):
        return RecordError(f"{use.title} refuses the row: {error}", path=filename)
    own = "inside a transaction commit, roll back and attach nothing, and change no decisions"
    what = own if isinstance(error, apsw.AuthError) else error
    return UsageError(f"{use.title} cannot do this: {what}", path=filename)


@contextlib.contextmanager
def typed(filename: str, use: DatabaseUse = CATALOG) -> Iterator[None]:
    """What SQLite raises, as an error of ours."""
    try:
        yield
    except apsw.Error as error:
        raise typed_error(error, filename, 0, use) from error
