"""Read some columns of a batch from its segment, and check no more than what was read.

Reads the directory, then the chunks that are wanted, neighbours at once. Whether the file has these
bytes is for the caller's `read`; a short answer is damage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from xxhash import xxh3_64_intdigest

from .arrow_batch import Projection
from .arrow_columns import directory_schema
from .column_section import (
    DIRECTORY_HEADER,
    ColumnEntry,
    Directory,
    check_chunk,
    directory_bytes,
    open_directory,
)
from .errors import CorruptBatchError
from .format import BatchHeader, Buffer

GAP_BYTES: Final = 4096
"""Chunks no further apart are read at once: that costs less than another call."""


class ChunkReader:
    """Reads parts of the body of one batch of columns.

    Args:
        read: Returns the bytes at (position, length) of the segment, fewer at its end.
        start: Where the body begins.
        header: Of the batch.
    """

    def __init__(self, read: Callable[[int, int], Buffer], start: int, header: BatchHeader) -> None:
        self._read = read
        self._start = start
        self._header = header

    def leading(self) -> Buffer:
        """Section A, verified.

        Raises:
            CorruptBatchError: It is cut or damaged.
        """
        stored_bytes, _, section_hash = self._header.sections[0]
        section = self._read(self._start, stored_bytes)
        if len(section) != stored_bytes or xxh3_64_intdigest(section) != section_hash:
            raise CorruptBatchError("section A of the batch is cut or fails its checksum")
        return section

    def project(self, directory: Directory, columns: Sequence[str]) -> Projection:
        """The chunks of these columns; names the directory does not have are passed over.

        Raises:
            CorruptBatchError: One of the chunks is cut or damaged.
            MissingExtraError: pyarrow is not installed.
        """
        names = directory_schema(directory).names
        wanted = sorted({names.index(name) for name in columns if name in names})
        chunks: dict[int, Buffer] = {}
        for run in _runs(wanted, directory.entries):
            entries = {number: directory.entries[number] for number in run}
            first, last = entries[run[0]], entries[run[-1]]
            data = memoryview(
                self._read(
                    self._section + first.position,
                    last.position + last.stored_bytes - first.position,
                )
            )
            for number, entry in entries.items():
                at = entry.position - first.position
                chunks[number] = data[at : at + entry.stored_bytes]
                check_chunk(entry, chunks[number])
        return Projection(directory, chunks)

    @property
    def _section(self) -> int:
        return self._start + self._header.sections[0].stored_bytes

    def directory(self) -> Directory:
        """The directory of the columns, verified.

        Raises:
            CorruptBatchError: It is cut or damaged.
        """
        stored_bytes, _, directory_hash = self._header.sections[1]
        lead = self._read(self._section, min(DIRECTORY_HEADER.size, stored_bytes))
        size_bytes = min(directory_bytes(lead), stored_bytes)
        content = self._read(self._section, size_bytes)
        return open_directory(content, directory_hash, section_bytes=stored_bytes)


def _runs(wanted: Sequence[int], entries: Sequence[ColumnEntry]) -> list[list[int]]:
    """Numbers of columns whose chunks are read at once."""
    runs = [[number] for number in wanted[:1]]
    for before, number in pairwise(wanted):
        end = entries[before].position + entries[before].stored_bytes
        if entries[number].position - end <= GAP_BYTES:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
