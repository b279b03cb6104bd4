"""Walk the whole batches of a sealed segment: all of each, or no more than its keys.

Where a batch should be and is none, that is damage: a walk that may meet the end of the data, or
must go on behind damage, is `segment.scan_headers` or `inspect.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xxhash import xxh3_64_intdigest

from .batch import verify_body
from .errors import CorruptBatchError, FormatVersionError
from .format import BATCH_HEADER_BYTES, BatchHeader, Buffer, parse_header
from .storage import File

KEYS_READ_BYTES: Final = 64 * 1024
"""Read at once for keys: what lies behind a large batch is mostly not wanted."""
BODIES_READ_BYTES: Final = 1 << 20


def scan_keys(
    file: File, start: int, stop: int, segment_uid: int
) -> Iterator[tuple[BatchHeader, Buffer]]:
    """Yield (header, verified section A) of the batches in [start, stop).

    `record_batch.open_columns` takes the section for a body as long as nobody asks for values.

    Raises:
        CorruptBatchError: Anything that is not a whole batch with an intact section A.
        FormatVersionError: A valid header with features this version does not know.
    """
    window = b""
    window_start = position = start
    while position < stop:
        at = position - window_start
        if at + BATCH_HEADER_BYTES > len(window):
            window = file.read(min(KEYS_READ_BYTES, stop - position), position)
            window_start, at = position, 0
        header = _header(file, window, at, position, segment_uid)
        stored_bytes, _, section_hash = header.sections[0]
        begin = at + BATCH_HEADER_BYTES
        section: Buffer = memoryview(window)[begin : begin + stored_bytes]
        if len(section) < stored_bytes:
            section = file.read(stored_bytes, position + BATCH_HEADER_BYTES)
        if len(section) < stored_bytes or xxh3_64_intdigest(section) != section_hash:
            raise CorruptBatchError(
                "section A of the batch is cut or fails its checksum",
                path=file.path,
                position=position,
                offset=header.base_offset,
            )
        yield header, section
        position += header.total_bytes


def scan_bodies(
    file: File, start: int, stop: int, segment_uid: int
) -> Iterator[tuple[BatchHeader, Buffer]]:
    """Yield (header, verified body) of the batches in [start, stop); errors as `scan_keys`."""
    window = b""
    window_start = position = start
    while position < stop:
        at = position - window_start
        if at + BATCH_HEADER_BYTES > len(window):
            window = file.read(min(BODIES_READ_BYTES, stop - position), position)
            window_start, at = position, 0
        header = _header(file, window, at, position, segment_uid)
        begin = at + BATCH_HEADER_BYTES
        if begin + header.body_bytes > len(window):
            length = max(min(BODIES_READ_BYTES, stop - position), header.total_bytes)
            window = file.read(length, position)
            window_start, begin = position, BATCH_HEADER_BYTES
        body = memoryview(window)[begin : begin + header.body_bytes]
        try:
            verify_body(header, body)
        except CorruptBatchError as error:
            raise error.at(path=file.path, position=position, offset=header.base_offset) from None
        yield header, body
        position += header.total_bytes


def _header(file: File, window: bytes, at: int, position: int, segment_uid: int) -> BatchHeader:
    try:
        return parse_header(window, at, segment_uid)
    except (CorruptBatchError, FormatVersionError) as error:
        raise error.at(path=file.path, position=position) from None
