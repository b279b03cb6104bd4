"""Hold the files of a sink against what a replay gives for it, row by row; nothing is written.

The name of a file says which offsets of the outbox it holds, and so its place in their order. It
does not say how many records: offsets of aborted epochs are missing, and of records that were
refused. So the number of its rows says how many records of the replay it should hold, and those it
must hold.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from itertools import chain, islice, zip_longest
from typing import Final, NamedTuple, TypeAlias

from millstream import Record, Storage, StorageError

from .connectors import NotComparable, RefusedRecords, Replayed, SinkDifference
from .file_formats import FileFormat, by_folder

FILE_BYTES_MAX: Final = 1 << 30
"""Files are compared up to this size: a delivery is some MiB, and the last epoch in it."""

_TEXT_LENGTH: Final = 200
"""Characters shown of a row."""

_Files: TypeAlias = Mapping[tuple[int, int], Sequence[str]]
"""The folders with a file of the offsets [first, following), each with a slash at its end."""


class _Delivery(NamedTuple):
    """The files of one delivery."""

    name: str
    rows: dict[str, list[bytes]]
    """By folder; the header is one of them."""
    records: int
    """So many are in them."""
    before: int
    """So many of the records are of before the replay begins."""
    goes_on: bool
    """Whether others in it are of behind its end."""


class SinkFiles:
    """The files of one sink.

    Args:
        storage: The directory; None if there is none.
        directory: Its path, for messages.
        stem: What the names of the files begin with.
        form: What is in them.
        folders: Fields by whose values records are put into folders.
    """

    def __init__(
        self,
        storage: Storage | None,
        directory: str,
        stem: str,
        form: FileFormat,
        folders: Sequence[str] = (),
    ) -> None:
        self._storage = storage
        self._directory = directory.rstrip("/")
        self._stem = stem
        self._form = form
        self._folders = folders
        self._name = re.compile(rf"{re.escape(stem)}-(\d{{20}})-(\d{{20}})\.{form.suffix}")

    def compare(self, replayed: Replayed) -> SinkDifference | None:
        """The first difference; see `ComparableSink.compare`."""
        files = self._files(replayed)
        before = self._rows_before(files, replayed)
        records = replayed.records()
        passed, reached = replayed.passed, replayed.start
        for first, following in sorted(files):
            goes_on = following > replayed.position
            delivery = self._read((first, following), files, before, goes_on=goes_on)
            if first < reached != replayed.start:
                path = self._path(files[first, following][0], delivery.name)
                return SinkDifference(path, None, f"offsets {first} to {following} once more")
            taken = list(islice(records, delivery.records - before))
            difference = self._differing(delivery, taken, passed)
            if difference is not None:
                missing = self._missing(reached, first, taken) if reached < first else None
                same = missing is not None and missing.expected == difference.expected
                return missing if same else difference
            passed, before, reached = max(passed - len(taken), 0), 0, following
        return self._missing(reached, replayed.position, list(islice(records, 1)))

    # --- files ---------------------------------------------------------------------------------

    def _files(self, replayed: Replayed) -> _Files:
        """All files that hold something of what is compared."""
        folders = [""]
        for field in self._folders:
            folders = [
                f"{above}{name}/"
                for above in folders
                for name in self._list(above)
                if name.startswith(f"{field}=")
            ]
        found: dict[tuple[int, int], list[str]] = {}
        for folder in folders:
            for match in filter(None, map(self._name.fullmatch, self._list(folder))):
                first, following = int(match[1]), int(match[2])
                if first < replayed.position and following > replayed.start:
                    found.setdefault((first, following), []).append(folder)
        return found

    def _list(self, folder: str) -> list[str]:
        try:
            return [] if self._storage is None else self._storage.list(folder.rstrip("/"))
        except StorageError as error:
            if error.errno == errno.ENOTDIR:
                return []
            raise

    def _read(
        self, offsets: tuple[int, int], files: _Files, before: int = 0, *, goes_on: bool = False
    ) -> _Delivery:
        first, following = offsets
        name = f"{self._stem}-{first:020d}-{following:020d}.{self._form.suffix}"
        rows = {
            folder: self._form.rows(self._content(self._path(folder, name), folder + name))
            for folder in files[offsets]
        }
        count = sum(max(0, len(each) - self._form.header_rows) for each in rows.values())
        return _Delivery(name, rows, count, before, goes_on)

    def _content(self, path: str, name: str) -> bytes:
        assert self._storage is not None
        file = self._storage.open(name, "r")
        try:
            size_bytes = file.size()
            if size_bytes > FILE_BYTES_MAX:
                raise NotComparable(
                    f"{path} has {size_bytes} bytes, and files are compared up to {FILE_BYTES_MAX}"
                )
            return file.read(size_bytes, 0)
        finally:
            file.close()

    def _path(self, folder: str, name: str) -> str:
        return f"{self._directory}/{folder}{name}"

    def _rows_before(self, files: _Files, replayed: Replayed) -> int:
        """How many rows of the first delivery are of before the replay begins."""
        start = replayed.start
        first, following = min(files, default=(start, start))
        if first >= start:
            return 0
        count, *others = [self._read(offsets, files).records for offsets in sorted(files)]
        if count == following - first and (not self._folders or following <= replayed.position):
            return start - first
        if max(end for _, end in files) > replayed.position:
            raise NotComparable(
                f"files of {self._directory} hold records of before the replay and behind it: stop"
                " the pipeline, or start at another checkpoint"
            )
        # Some of its offsets have no row, on one side of the start or the other: count the rest.
        before = count + sum(others) - sum(1 for _ in replayed.records())
        most = min(count, start - first)
        return min(max(before, count - (following - start), 0), most)

    # --- rows ----------------------------------------------------------------------------------

    def _differing(
        self, delivery: _Delivery, records: Sequence[Record], passed: int
    ) -> SinkDifference | None:
        """The first difference in the files of a delivery; the first records are passed over."""
        if records and passed >= len(records):
            return None
        begin = records[passed].offset if records else 0
        try:
            given = {
                f"{folder}/" if folder else "": (some, self._form.rows(self._form.content(some)))
                for folder, some in by_folder(records, self._folders).items()
            }
        except RefusedRecords as error:
            path = self._path("", delivery.name)
            return SinkDifference(path, f"what is no row ({error})", "rows")
        for folder in sorted({*delivery.rows, *given}):
            some, rows = given.get(folder, ([], []))
            found = delivery.rows.get(folder, [])
            path = self._path(folder, delivery.name)
            if not found:
                expected = _text(rows[self._form.header_rows]) if rows else None
                return SinkDifference(path, expected, None if rows else "an empty file")
            if delivery.goes_on:
                found = found[: len(rows) + delivery.before]
            before = len(found) - len(rows) if delivery.before else 0
            skipped = sum(record.offset < begin for record in some)
            difference = self._first_difference(path, rows, found, (before, skipped))
            if difference is not None:
                return difference
        return None

    def _first_difference(
        self, path: str, given: Sequence[bytes], found: Sequence[bytes], skips: tuple[int, int]
    ) -> SinkDifference | None:
        """The first row of a file that is another, behind so many before and so many passed."""
        counted = self._form.header_rows
        before, skipped = skips
        begin = counted + before + skipped
        rows = zip_longest(given[counted + skipped :], found[begin:])
        header = zip(given[:counted], found[:counted], strict=False)
        for number, (row, other) in chain(enumerate(header), enumerate(rows, begin)):
            if row != other:
                line = 1 + sum(each.count(b"\n") for each in found[:number])
                line += _begins_alike(row or b"", other or b"").count(b"\n")
                return SinkDifference(f"{path}, line {line}", *_texts(row, other))
        return None

    def _missing(
        self, reached: int, following: int, records: Sequence[Record]
    ) -> SinkDifference | None:
        """That records are left, and where they should be; None if there are none."""
        if not records:
            return None
        try:
            expected = _text(self._form.rows(self._form.content(records[:1]))[-1])
        except RefusedRecords as error:
            expected = f"what is no row ({error})"
        files = f"{self._directory}/{self._stem}-*.{self._form.suffix}"
        offsets = f"{reached} to {following}" if reached < following else f"{following}, the last"
        return SinkDifference(f"{files}, offsets {offsets}", expected, None)


def _texts(row: bytes | None, other: bytes | None) -> tuple[str | None, str | None]:
    """Two rows so that one sees how they differ."""
    texts = (None if row is None else _text(row), None if other is None else _text(other))
    return (repr(row), repr(other)) if texts[0] == texts[1] else texts


def _begins_alike(row: bytes, other: bytes) -> bytes:
    """What two rows begin with in common."""
    different = (at for at, (a, b) in enumerate(zip(row, other, strict=False)) if a != b)
    return row[: next(different, min(len(row), len(other)))]


def _text(row: bytes) -> str:
    text = row.decode(errors="backslashreplace").removesuffix("\n")
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH]}... ({len(row)} bytes)"
