"""A source of text files: each file that a pattern covers is a partition, read row by row.

Positions and the recognition of files are line_files.py's, what a row is line_formats.py's. This
module follows a file: to its end, past its end as it grows, and, if asked to, on to the file that
takes its place.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from millstream import DataError, Storage, StorageError, UsageError

from .connectors import OUTSIDE, Outside, Position, Source, SourceBatch
from .line_files import (
    CHUNK_BYTES,
    FINGERPRINT_BYTES,
    ROW_BYTES_MAX,
    START,
    FilePosition,
    Pattern,
    Piece,
    begins_with_one,
    compressed_away,
    compressed_since,
    count_gone,
    first_bytes,
    has_compressed,
    held_by,
    is_counted,
    moved_away,
    moved_to,
    names_beside,
    newer_files,
    read_piece,
    to_position,
)
from .line_formats import RowFormat, RowReader, Rows


@dataclass(frozen=True)
class FileSource(Source):
    """The rows of all files that a pattern covers, file after file in the order of their names."""

    name: str
    pattern: Pattern
    format: RowFormat
    follow: bool
    """Wait at the end of the files for more."""
    rotated: bool
    """Go on with the file that takes the place of one that was moved away."""
    outside: Outside = field(default=OUTSIDE, repr=False, compare=False)
    blocking = False

    def partitions(self) -> Sequence[str]:
        """See `Source`: paths below the directory of the pattern.

        Raises:
            StorageError: The directory, or the one file that was named, is missing.
        """
        try:
            storage = self._storage()
        except StorageError as error:
            if self.follow and error.errno == errno.ENOENT:
                return []
            raise
        names = self.pattern.names(storage)
        if not names and not self.follow and self.pattern.is_one_file:
            storage.size("/".join(self.pattern.parts))  # says that it is missing
        return names

    def open(self, partition: str, position: Position) -> Iterator[SourceBatch | None]:
        """See `Source`.

        Raises:
            DataError: The file was cut, rewritten or replaced since it was read; it is no CSV
                that fits; a row is longer than a record may be.
            StorageError: It cannot be read.
        """
        storage = self._storage()
        reading = _Reading(self, storage, partition, to_position(position))
        while True:
            batch = reading.step()
            if batch is None and not self.follow:
                return
            yield batch

    def behind_bytes(self, partition: str, position: Position) -> int | None:
        """See `MeasuredSource`: those of files that took the place of this one are among them."""
        try:
            return _Reading(self, self._storage(), partition, to_position(position)).behind_bytes()
        except (DataError, StorageError, UsageError, _MovedMeanwhile):
            return None  # what is wrong with the file, reading it says

    def _storage(self) -> Storage:
        directory = self.pattern.directory
        try:
            return self.outside.directory(directory, read_only=True)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            # Opened like a store, it would be called one.
            message = f"the files of source {self.name!r}: it does not exist"
            raise StorageError(message, errno=error.errno, path=directory) from None


class _MovedMeanwhile(Exception):  # noqa: N818
    """Files were moved while they were looked at: look again."""


class _Reading:
    """One file of a source being read."""

    def __init__(
        self, source: FileSource, storage: Storage, name: str, position: FilePosition
    ) -> None:
        self._source = source
        self._storage = storage
        self._name = name
        self._position = position
        self._reader: RowReader | None = None
        """None until the start of the file has been seen."""
        self._seen = b""
        """What followed the position when it was last looked at, if it was no whole row."""
        self._unlike: list[str] | None = None
        """The files beside this one, if none is like it; see `_alike`."""
        self._noted = position.read_bytes > 0 or position.beside is not None
        """Whether what lies beside the file is known, and need not be told."""

    def step(self) -> SourceBatch | None:
        """The next rows; None if there are none now.

        Of a file that has no row yet, the first time, no rows and the position: what was moved
        away later, also while nobody looks, is known by it.
        """
        batch = self._step()
        if batch is not None or self._noted or self._position.beside is None:
            return batch
        self._noted = True
        return SourceBatch([], msgspec.structs.asdict(self._position))

    def behind_bytes(self) -> int:
        """Bytes that are still to be read; errors as `step`.

        Raises:
            _MovedMeanwhile: What was looked at is another file by now.
        """
        found = self._find(0)
        if found is None:
            return 0
        name, _, moved = found
        files = [name, *newer_files(self._storage, self._name, name)] if moved else [name]
        sizes = [self._storage.size(each) for each in files if self._storage.exists(each)]
        if sum(sizes) < self._position.read_bytes:
            raise _MovedMeanwhile
        return sum(sizes) - self._position.read_bytes

    def _step(self) -> SourceBatch | None:
        while True:
            position = self._position
            try:
                return self._look()
            except _MovedMeanwhile:
                # What the reader was shown may have been another file.
                self._position, self._reader, self._unlike = position, None, None

    def _look(self) -> SourceBatch | None:
        size_bytes = CHUNK_BYTES
        while True:
            found = self._find(size_bytes)
            if found is None:
                return None
            name, piece, moved = found
            final = not self._source.follow or (moved and self._is_finished(name))
            batch = self._rows(name, piece, final=final)
            if batch is not None:
                return batch
            if piece.at_end:
                self._seen = piece.data[:FINGERPRINT_BYTES]
                return self._successor(name) if moved and final else None
            size_bytes = self._larger(name, size_bytes)

    def _larger(self, name: str, size_bytes: int) -> int:
        if size_bytes > ROW_BYTES_MAX:
            raise self._error(name, f"a row is longer than {ROW_BYTES_MAX} bytes")
        return size_bytes * 4

    def _is_finished(self, moved: str) -> bool:
        """Whether a newer file has begun; who writes has opened that, and writes no more here."""
        return any(
            first_bytes(self._storage, each) is not None
            for each in newer_files(self._storage, self._name, moved)
        )

    def _successor(self, moved: str) -> SourceBatch | None:
        """The first rows of the file that came after the one which was moved away and is done.

        Raises:
            DataError: That one was compressed.
            _MovedMeanwhile: Files were moved on, so this may not have been its successor.
        """
        done = self._position
        batch = None
        compressed = compressed_since(self._storage, self._name, moved)
        if compressed is not None:
            raise self._error(
                compressed,
                "it came after what was read, and compressed files are not read: uncompress it"
                " there, and run again",
            )
        newer = newer_files(self._storage, self._name, moved)
        for name in newer:
            self._reader = None
            final = name != self._name and self._is_finished(name)
            batch = self._first_rows(name, final=final)
            if batch is not None:
                break
        self._reader = self._reader if batch is not None else None
        # A rotation moves the older first: this one may have its new name, and the next not yet.
        if (
            newer_files(self._storage, self._name, moved) != newer
            or self._piece(moved, done, 0) is None
        ):
            raise _MovedMeanwhile
        return batch

    def _piece(self, name: str, position: FilePosition, size_bytes: int) -> Piece | None:
        """As `read_piece`, of a file that was there a moment ago.

        Raises:
            _MovedMeanwhile: It is no longer there.
        """
        try:
            return read_piece(self._storage, name, position, size_bytes)
        except StorageError as error:
            if error.errno == errno.ENOENT:
                raise _MovedMeanwhile from None
            raise

    def _first_rows(self, name: str, *, final: bool) -> SourceBatch | None:
        """The rows at the beginning of a file."""
        self._unlike = None
        size_bytes = CHUNK_BYTES
        while True:
            try:
                piece = read_piece(self._storage, name, START, size_bytes)
            except StorageError as error:
                if error.errno == errno.ENOENT:
                    return None
                raise
            assert piece is not None  # nothing of it has been read
            batch = self._rows(name, piece, final=final)
            if batch is not None or piece.at_end:
                return batch
            size_bytes = self._larger(name, size_bytes)

    def _find(self, size_bytes: int) -> tuple[str, Piece, bool] | None:
        """Where the file is now, what follows in it, and whether it was moved; None if it is gone.

        Raises:
            DataError: It is not what was read, and was not moved to a place beside it.
        """
        position = self._position if self._position.read_bytes else START
        beside = self._beside()
        unread = self._unread(beside)
        alike = self._alike()
        if position.older is not None and position.older < len(alike):
            moved = alike[position.older]
            piece = self._piece(moved, position, size_bytes)
            if piece is None or self._alike() != alike:
                raise _MovedMeanwhile
            if piece.data.startswith(self._seen[:size_bytes]):
                return moved, piece, True
        try:
            piece = read_piece(self._storage, unread or self._name, position, size_bytes)
            if piece is not None and (unread or piece.data.startswith(self._seen[:size_bytes])):
                self._check_still(beside, unread)
                return unread or self._name, piece, unread is not None
        except StorageError as error:
            if error.errno != errno.ENOENT or not self._source.follow:
                raise
            self._check_still(beside, unread)
            if unread or not self._source.rotated or (position == START and not self._seen):
                return None
        moved = self._moved(alike)
        piece = self._piece(moved, position, size_bytes)
        if piece is None:
            raise _MovedMeanwhile
        return moved, piece, True

    def _beside(self) -> list[str]:
        """What was moved away, the oldest first, as long as nothing of the file has been read."""
        return [] if self._position.read_bytes else self._moved_away()

    def _moved_away(self) -> list[str]:
        """What was moved away, the oldest first."""
        if not self._source.rotated:
            return []
        return [
            path
            for path in moved_away(self._storage, self._name)
            if not self._source.pattern.matches(path)
        ]

    def _alike(self) -> list[str]:
        """Of these, the ones that hold all that was read of the file, if anything was.

        If there are none, there will be none as more is read, until one is moved away: there may
        be a file of each day, and they need not be opened each time.
        """
        if not self._position.read_bytes:
            return []
        if not self._source.rotated:
            return []
        names = names_beside(self._storage, self._name)
        if names == self._unlike:
            return []
        alike = held_by(self._storage, self._moved_away(), self._position)
        lasting = not alike and not any(is_counted(self._name, each) for each in names)
        self._unlike = names if lasting else None
        return alike

    def _check_still(self, beside: list[str], unread: str | None) -> None:
        """Raise if files were moved since they were listed: what was read may not be the oldest."""
        now = self._beside()
        if now != beside or self._unread(now) != unread:
            raise _MovedMeanwhile

    def _unread(self, beside: list[str]) -> str | None:
        """The oldest file that was moved away before anything of it was read; None if none was.

        It has no position by which it could be found. But what was moved away before it is known.
        """
        if not self._source.rotated or self._position.read_bytes:
            return None
        known = self._position.beside
        if known is None:
            compressed = compressed_away(self._storage, self._name)
            self._position = FilePosition(
                beside=self._first_bytes(beside), compressed=self._first_bytes(compressed)
            )
            return None
        self._refuse_compressed()
        return next(
            (path for path in beside if not begins_with_one(self._storage, path, known)), None
        )

    def _first_bytes(self, names: Sequence[str]) -> list[tuple[int, bytes]]:
        found = [first_bytes(self._storage, name) for name in names]
        return [each for each in found if each is not None]

    def _refuse_compressed(self) -> None:
        """Refuse to go on if a file was compressed before anything was read of it.

        As many as are gone of those that need not be read may be compressed since.

        Raises:
            DataError: It has to be uncompressed.
        """
        known, compressed = self._position.beside, self._position.compressed
        if known is None or compressed is None:
            return
        new = [
            path
            for path in compressed_away(self._storage, self._name)
            if not begins_with_one(self._storage, path, compressed)
        ]
        if new and len(new) > count_gone(self._storage, self._moved_away(), known):
            raise self._error(
                new[-1],
                "it was moved away before anything was read of it, and compressed files are not"
                " read: uncompress it there, and run again",
            )

    def _moved(self, alike: Sequence[str]) -> str:
        """Where the file was moved to: of several that are alike the newest, never one before.

        Raises:
            DataError: Nowhere beside it.
            UsageError: To where the pattern finds it.
        """
        if not self._source.rotated:
            raise self._changed()
        covered = None
        before = names_beside(self._storage, self._name)
        same = held_by(self._storage, reversed(alike), self._position, self._seen)
        if same:
            return same[0]
        for moved in moved_to(self._storage, self._name, self._position, self._seen):
            if not self._source.pattern.matches(moved):
                return moved
            covered = covered or moved
        if names_beside(self._storage, self._name) != before:
            raise _MovedMeanwhile
        if covered is None:
            raise self._changed()
        raise UsageError(
            f"{self._path(self._name)} was moved to {covered}, which the pattern covers too:"
            " its rows would be read twice. Use a pattern for the live files only"
        )

    def _rows(self, name: str, piece: Piece, *, final: bool) -> SourceBatch | None:
        """The whole rows of a piece, with the position behind them. None if there are none.

        Args:
            name: Of the file.
            piece: From the position on.
            final: If the piece ends with the file, so does its last row.
        """
        final = final and piece.at_end
        skipped, skipped_lines = self._line_end(name, piece), 0
        if self._reader is None:
            reader = self._source.format.reader()
            begun = self._begin(reader, name, piece, final=final)
            if begun is None:
                return None
            self._reader = reader
            if piece.position == START:
                skipped, skipped_lines = begun
        rows = self._reader.rows(piece.data[skipped:], final=final)
        used = skipped + rows.used_bytes
        if not used:
            return None
        if self._is_only_a_start(piece, rows, used):
            self._reader = None  # which is to be shown it again
            return None
        first = piece.position.lines + skipped_lines + 1
        self._position = piece.behind(used, skipped_lines + rows.line_count)
        self._position = msgspec.structs.replace(self._position, older=self._older(name))
        self._seen = b""
        lines = rows.lines
        return SourceBatch(
            rows.values,
            msgspec.structs.asdict(self._position),
            rejected=[each._replace(line=first + (each.line or 0)) for each in rows.rejected],
            path=self._path(name),
            lines=range(first + lines.start, first + lines.stop)
            if isinstance(lines, range)
            else [first + line for line in lines],
        )

    def _older(self, name: str) -> int | None:
        """How many files that were moved away before one of them hold what was read of it."""
        if not self._source.rotated:
            return None
        alike = self._alike()
        return alike.index(name) if name in alike else len(alike)

    def _is_only_a_start(self, piece: Piece, rows: Rows, used_bytes: int) -> bool:
        """Whether all there is, a byte order mark or a header say, other files begin with as well.

        Nothing is taken of it: a position behind it would be found in the next file, too.
        """
        return (
            self._source.rotated
            and piece.position == START
            and used_bytes <= FINGERPRINT_BYTES
            and not (rows.values or rows.rejected)
        )

    def _begin(
        self, reader: RowReader, name: str, piece: Piece, *, final: bool
    ) -> tuple[int, int] | None:
        """Show the reader the start of the file, which lies before the piece after a restart."""
        size_bytes = CHUNK_BYTES
        while piece.position != START:
            start = self._piece(name, START, max(size_bytes, len(piece.head)))
            if start is None or not start.data.startswith(piece.head):
                raise _MovedMeanwhile
            begun = self._begun(reader, name, start.data, final=start.at_end)
            if begun is not None:
                return begun
            size_bytes *= 4
        return self._begun(reader, name, piece.data, final=final)

    def _begun(
        self, reader: RowReader, name: str, data: bytes, *, final: bool
    ) -> tuple[int, int] | None:
        try:
            return reader.begin(data, final=final)
        except DataError as error:
            raise error.at(path=self._path(name)) from None

    def _line_end(self, name: str, piece: Piece) -> int:
        """Bytes to skip: the end of a line that had none when it was taken."""
        data = piece.data
        if not piece.position.unfinished or not data:
            return 0
        if data.startswith(b"\n") or data == b"\r":
            return 1
        if data.startswith(b"\r\n"):
            return 2
        raise self._error(
            name, "the last line, which had no newline when it was read, has been continued since"
        )

    def _changed(self) -> DataError:
        position = self._position
        reason = (
            f"the file is not what was read up to line {position.lines}: it was cut, rewritten or"
            " replaced"
        )
        if not self._source.rotated:
            reason += " (rotated=True goes on with the file that replaces one moved away)"
        elif has_compressed(self._storage, self._name):
            reason += (
                ", or moved away and compressed: then uncompress it there, with those after it, and"
                " run again"
            )
        return self._error(self._name, reason)

    def _error(self, name: str, message: str) -> DataError:
        return DataError(
            f"source {self._source.name!r}: {message}",
            path=self._path(name),
            position=self._position.read_bytes,
        )

    def _path(self, name: str) -> str:
        return self._source.pattern.path(name)
