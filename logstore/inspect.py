"""Take one segment file apart, wherever it lies. Changes nothing.

After damage it looks for the next whole batch and goes on, so one bad spot does not hide another.
A whole store is checked by `verify.py`; what recovery makes of damage is `recovery.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from .batch import decode_batch
from .config import path_text
from .errors import CorruptSegmentError, FormatVersionError
from .format import (
    BATCH_HEADER_BYTES,
    CONTROL,
    REWRITTEN_DATA_START,
    BatchHeader,
    SegmentHeader,
    parse_segment_header,
)
from .record import Record
from .segment_walk import HEADERS_BYTES, Window, body_problem, walk
from .storage import File, PosixStorage


class BatchDump(NamedTuple):
    """One batch of a segment file, or a stretch of bytes that is none."""

    position: int
    """Byte position in the file."""
    size_bytes: int
    header: BatchHeader | None
    """None: these bytes are not a whole batch."""
    problem: str | None
    """What is wrong, None if the batch is whole."""
    records: list[Record]
    """Its records if they were asked for and can be decoded."""


class SegmentDump(NamedTuple):
    """A segment file taken apart."""

    path: str
    header: SegmentHeader | None
    problem: str | None
    """What is wrong with the segment header; nothing behind it can be read then."""
    batches: Iterator[BatchDump]
    """Lazy; read to its end, which closes the file."""
    file_bytes: int


def dump_segment(path: str | os.PathLike[str], *, records: bool = False) -> SegmentDump:
    """Take a segment file apart, wherever it lies; it need not belong to a store.

    Args:
        path: The file.
        records: Decode the records too.

    Raises:
        StorageError: It cannot be read.
    """
    directory, name = os.path.split(os.path.abspath(path_text(path)))
    storage = PosixStorage(directory, read_only=True)
    file = storage.open(name, "r")
    try:
        size = file.size()
        header = parse_segment_header(file.read(REWRITTEN_DATA_START, 0))
    except (CorruptSegmentError, FormatVersionError) as error:
        file.close()
        return SegmentDump(name, None, error.message, iter(()), size)
    except BaseException:
        file.close()
        raise
    return SegmentDump(name, header, None, _dump_batches(file, header, size, records), size)


def _dump_batches(
    file: File, segment: SegmentHeader, size: int, with_records: bool
) -> Iterator[BatchDump]:
    window = Window(file, HEADERS_BYTES)
    try:
        for stretch in walk(window, segment.segment_uid, segment.data_start, size):
            header, problem = stretch.header, stretch.problem
            records: list[Record] = []
            if header is not None and problem is None:
                body = window.view(stretch.position + BATCH_HEADER_BYTES, header.body_bytes)
                problem = body_problem(header, body)
                if with_records and problem is None and not header.flags & CONTROL:
                    records = decode_batch("", 0, header, body, verified=True).records()
            yield BatchDump(stretch.position, stretch.size_bytes, header, problem, records)
    finally:
        file.close()
