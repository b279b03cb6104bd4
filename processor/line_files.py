"""Text files as a source reads them: whole lines from a position on, from files that grow.

A position says how far a file was read and what it looked like up to there, so that a file which
was cut, rewritten or replaced is noticed, whatever its name or inode. What a line means is the
business of file_source.py and csv_rows.py. Files are asked for through a `Storage`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import msgspec
import xxhash

from millstream import DataError, Storage, StorageError, UsageError

from .serde import UNDECODABLE

CHUNK_BYTES: Final = 1 << 19
"""Read at once."""

ROW_BYTES_MAX: Final = 64 << 20
"""Longest line, or row of several lines: as long as a record may be."""

FINGERPRINT_BYTES: Final = 4096
"""So much of the beginning, and of what lies right before the position, is compared."""

WILDCARDS: Final = frozenset("*?[")

_COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".Z", ".zip")


class FilePosition(msgspec.Struct, frozen=True):
    """How far a file has been read."""

    read_bytes: int = 0
    lines: int = 0
    """Lines in these bytes."""
    head: bytes = b""
    """Hash of the first bytes of them."""
    tail: bytes = b""
    """Hash of the last bytes of them."""
    unfinished: bool = False
    """The last line had no newline and was taken nevertheless."""
    beside: list[tuple[int, bytes]] | None = None
    """As long as nothing has been read: what had been moved away before it was first looked at, as
    the number of first bytes and their hash. What else was moved away since is still to be read."""
    compressed: list[tuple[int, bytes]] | None = None
    """The same of those that were compressed by then. None: not known, as below."""
    older: int | None = None
    """How many of the files moved away before it hold all that was read of it, too. By that it is
    told from others that say the same. None: not known, as early versions did not say."""


START: Final = FilePosition()


def to_position(data: object) -> FilePosition:
    """A position as the store kept it.

    Raises:
        DataError: It is not one.
    """
    if data is None:
        return START
    try:
        return msgspec.convert(data, FilePosition)
    except UNDECODABLE as error:
        raise DataError(f"not a position in a file: {error}") from error


@dataclass(frozen=True, slots=True)
class Pattern:
    """Where files are: a directory, and a pattern for the paths below it."""

    directory: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, pattern: str) -> Pattern:
        """Split a pattern where its wildcards begin.

        Raises:
            UsageError: It is empty or has a `**`.

        >>> Pattern.parse("data/in/2026-*/*.csv")
        Pattern(directory='data/in', parts=('2026-*', '*.csv'))
        >>> Pattern.parse("app.log")
        Pattern(directory='.', parts=('app.log',))
        """
        parts = [part for part in pattern.split("/") if part not in {"", "."}]
        if not parts or "**" in parts or pattern.endswith("/"):
            raise UsageError(
                f"{pattern!r} is not a pattern for files: use names with * ? [ ] joined by '/'"
            )
        first = next(
            (number for number, part in enumerate(parts) if WILDCARDS & set(part)), len(parts) - 1
        )
        first = min(first, len(parts) - 1)
        root = "/" if pattern.startswith("/") else ""
        return cls(root + "/".join(parts[:first]) or ".", tuple(parts[first:]))

    @property
    def is_one_file(self) -> bool:
        """Whether it has no wildcards."""
        return len(self.parts) == 1 and not WILDCARDS & set(self.parts[0])

    def path(self, name: str) -> str:
        """The path of a file below the directory, for messages."""
        return name if self.directory == "." else f"{self.directory.rstrip('/')}/{name}"

    def matches(self, name: str) -> bool:
        """Whether the pattern covers this path below the directory."""
        parts = name.split("/")
        return len(parts) == len(self.parts) and all(map(fnmatchcase, parts, self.parts))

    def names(self, storage: Storage) -> list[str]:
        """The files there are, in the order of their names."""
        found = [""]
        for depth, part in enumerate(self.parts):
            found = [
                f"{above}{name}"
                for above in found
                for name in _names_in(storage, above)
                if fnmatchcase(name, part)
            ]
            if depth + 1 < len(self.parts):
                found = [f"{name}/" for name in found]
        return found


def _names_in(storage: Storage, directory: str) -> list[str]:
    try:
        return storage.list(directory.rstrip("/"))
    except StorageError as error:
        if error.errno == errno.ENOTDIR:
            return []
        raise


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file from a position on, and the bytes by which it was recognised."""

    position: FilePosition
    data: bytes
    at_end: bool
    """Nothing follows, for now."""
    head: bytes
    tail: bytes

    def behind(self, used_bytes: int, lines: int) -> FilePosition:
        """The position behind the first bytes of `data`, which have so many lines."""
        data = self.data[:used_bytes]
        return FilePosition(
            self.position.read_bytes + used_bytes,
            self.position.lines + lines,
            _hash((self.head + data[:FINGERPRINT_BYTES])[:FINGERPRINT_BYTES]),
            _hash((self.tail + data[-FINGERPRINT_BYTES:])[-FINGERPRINT_BYTES:]),
            unfinished=lines > 0 and not data.endswith(b"\n"),
        )


def read_piece(
    storage: Storage, name: str, position: FilePosition, size_bytes: int
) -> Piece | None:
    """Up to `size_bytes` from the position on; None if the file is no longer what was read.

    Raises:
        StorageError: The file is missing (ENOENT), or cannot be read.
    """
    file = storage.open(name, "r")
    try:
        start = position.read_bytes
        count = min(start, FINGERPRINT_BYTES)
        head, tail = file.read(count, 0), file.read(count, start - count)
        if start and (_hash(head), _hash(tail)) != (position.head, position.tail):
            return None
        # One byte more than is wanted tells whether that is all.
        data = file.read(size_bytes + 1, start)
        return Piece(position, data[:size_bytes], len(data) <= size_bytes, head, tail)
    finally:
        file.close()


def moved_to(
    storage: Storage, name: str, position: FilePosition, seen: bytes = b""
) -> Iterator[str]:
    """The files beside `name` that begin with what was read of it: where it may have been moved.

    Those whose names begin like its own come first.

    Args:
        storage: Where they are.
        name: What the file was called.
        position: How far it was read.
        seen: What came after that, and was not taken yet.
    """
    directory, _, own = name.rpartition("/")
    stem = own.partition(".")[0]

    def likeness(other: str) -> tuple[bool, bool, str]:
        return not other.startswith(own), not other.startswith(stem), other

    for other in sorted(storage.list(directory), key=likeness):
        path = f"{directory}/{other}" if directory else other
        if other != own and _holds(storage, path, position, seen):
            yield path


def newer_files(storage: Storage, name: str, moved: str) -> list[str]:
    """What followed a file that was moved away: others that were, the oldest first, and `name`.

    Names with a counter, app.log.2, are the older the higher it is; of others, such as
    app.log-2026-11-23, the greater is the newer.

    Args:
        storage: Where they are.
        name: What the file was called when it was written.
        moved: What it is called now.
    """
    mark = _mark_of(moved, name)
    newer = [
        (each, path)
        for each, path in _marked(storage, name)
        if _is_newer(each, mark) and not path.endswith(_COMPRESSED)
    ]
    if _is_counter(mark):
        newer.sort(key=lambda each: -int(each[0]))
    else:
        newer.sort()
    return [*(path for _, path in newer), name]


def compressed_since(storage: Storage, name: str, moved: str) -> str | None:
    """One that followed a file that was moved away, and of which only a compressed form is left."""
    mark, marks = _mark_of(moved, name), _marked(storage, name)
    plain = {path for _, path in marks}
    for path in sorted(plain):
        for ending in _COMPRESSED:
            former = path.removesuffix(ending)
            if former != path and former not in plain and _is_newer(_mark_of(former, name), mark):
                return path
    return None


def has_compressed(storage: Storage, name: str) -> bool:
    """Whether files that were called `name` may be among those that were compressed."""
    return any(path.endswith(_COMPRESSED) for _, path in _marked(storage, name))


def moved_away(storage: Storage, name: str) -> list[str]:
    """Files that were called `name` before, by their numbers or dates, the oldest first.

    Not those that were compressed: they hold no lines.
    """
    marks = [(mark, path) for mark, path in _marked(storage, name) if mark[:1].isdecimal()]
    dated = sorted((mark, path) for mark, path in marks if not _is_counter(mark))
    counted = sorted(((int(mark), path) for mark, path in marks if _is_counter(mark)), reverse=True)
    found = [path for _, path in dated] + [path for _, path in counted]
    return [path for path in found if not path.endswith(_COMPRESSED)]


def is_counted(name: str, moved: str) -> bool:
    """Whether a file that was moved away is called by a counter: its name will be another's."""
    return _is_counter(_mark_of(moved, name))


def held_by(
    storage: Storage, names: Iterable[str], position: FilePosition, seen: bytes = b""
) -> list[str]:
    """Those of some files that begin with what was read up to a position, and seen behind it."""
    return [name for name in names if _holds(storage, name, position, seen)]


def compressed_away(storage: Storage, name: str) -> list[str]:
    """Files that were called `name` before, and of which only a compressed form is left."""
    marks = _marked(storage, name)
    plain = {path for _, path in marks}
    return sorted(
        path
        for mark, path in marks
        for ending in _COMPRESSED
        if path.endswith(ending) and mark[:1].isdecimal() and path.removesuffix(ending) not in plain
    )


def names_beside(storage: Storage, name: str) -> list[str]:
    """The files whose names begin like that of a file. They change while it is rotated."""
    return [path for _, path in _marked(storage, name)]


def first_bytes(storage: Storage, name: str) -> tuple[int, bytes] | None:
    """By what a file can be known that is not to be read; None if it is empty or gone."""
    data = _beginning(storage, name, FINGERPRINT_BYTES)
    return (len(data), _hash(data)) if data else None


def begins_with_one(storage: Storage, name: str, known: Iterable[tuple[int, bytes]]) -> bool:
    """Whether a file is one of those known by their first bytes; an empty or missing one is."""
    data = _beginning(storage, name, FINGERPRINT_BYTES)
    return not data or any(_hash(data[:count]) == hashed for count, hashed in known)


def count_gone(storage: Storage, names: Iterable[str], known: Iterable[tuple[int, bytes]]) -> int:
    """How many of those known by their first bytes are not among some files any more."""
    starts = [_beginning(storage, name, FINGERPRINT_BYTES) for name in names]
    return sum(
        all(len(start) < count or _hash(start[:count]) != hashed for start in starts)
        for count, hashed in known
    )


def _beginning(storage: Storage, name: str, size_bytes: int) -> bytes:
    try:
        piece = read_piece(storage, name, START, size_bytes)
    except StorageError as error:
        if error.errno in {errno.EISDIR, errno.ENOENT}:
            return b""
        raise
    return b"" if piece is None else piece.data


def _mark_of(path: str, name: str) -> str:
    return path[len(name) :].lstrip("._-")


def _marked(storage: Storage, name: str) -> list[tuple[str, str]]:
    """The files beside `name` whose names begin with its own: what follows that, and the path."""
    directory, _, own = name.rpartition("/")
    start = f"{directory}/" if directory else ""
    paths = [f"{start}{each}" for each in storage.list(directory) if each.startswith(own)]
    return [(_mark_of(path, name), path) for path in paths if path != name]


def _is_counter(mark: str) -> bool:
    # Longer ones are dates.
    return mark.isdecimal() and mark.isascii() and len(mark) <= 5


def _is_newer(mark: str, than: str) -> bool:
    if _is_counter(mark) and _is_counter(than):
        return int(mark) < int(than)
    dated = mark[:1].isdecimal() or not than[:1].isdecimal()
    return dated and mark > than and not _is_counter(mark) and not _is_counter(than)


def _holds(storage: Storage, name: str, position: FilePosition, seen: bytes) -> bool:
    try:
        piece = read_piece(storage, name, position, len(seen))
    except StorageError as error:
        # A directory, or a file that was removed since it was listed.
        if error.errno in {errno.EISDIR, errno.ENOENT}:
            return False
        raise
    return piece is not None and piece.data == seen


def _hash(data: bytes) -> bytes:
    return xxhash.xxh3_64_digest(data)
