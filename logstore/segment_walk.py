"""Walk a segment file past its damage: whole batch headers, and stretches of bytes that are none.

`segment.scan_headers` ends at the first damage, which is right for readers; this goes on at the
next header that can follow, for those who look at damage or repair it. Whoever wants bodies checked
too takes them from the same window of the file and asks `body_problem`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from .batch import verify_body
from .column_checks import check_columns
from .errors import CorruptBatchError, DataError, FormatVersionError
from .format import (
    ALIGNMENT_BYTES,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC_BYTES,
    BatchHeader,
    parse_header,
)

HEADERS_BYTES: Final = 64 * 1024
"""What a window reads at once for somebody who looks at headers only."""
BODIES_BYTES: Final = 256 * 1024
"""The same for somebody who looks at bodies too. Short, so that what was read is still in the
processor's cache when it is hashed."""
PROBE_BYTES: Final = 1 << 20


class Readable(Protocol):
    """What is read of a `File`."""

    def read(self, length: int, position: int) -> bytes:
        """See `File.read`."""
        ...


class Window:
    """Reads a file in large pieces. Used by one thread."""

    def __init__(self, file: Readable, chunk_bytes: int) -> None:
        self.file = file
        self._chunk_bytes = chunk_bytes
        self._chunk = memoryview(b"")
        self._start = 0

    def view(self, position: int, length: int) -> memoryview:
        """`length` bytes from `position`; fewer only where the file ends.

        Raises:
            StorageError: The operating system refused.
        """
        at = position - self._start
        if at < 0 or at + length > len(self._chunk):
            wanted = length + BATCH_HEADER_BYTES  # of a large body no more than the next header
            if length <= self._chunk_bytes // 2:
                wanted = max(wanted, self._chunk_bytes)
            # Freed first, so that the next one lies in the same, warm memory.
            self._chunk = memoryview(b"")
            self._chunk = memoryview(self.file.read(wanted, position))
            self._start, at = position, 0
        return self._chunk[at : at + length]


class Stretch(NamedTuple):
    """A batch, or bytes which are none."""

    position: int
    size_bytes: int
    header: BatchHeader | None
    """None: no whole batch header is here."""
    problem: str | None
    """What is wrong; with a header: its body runs past the end."""
    newer: bool = False
    """Not damage: written by a version of Millstream that knows more."""


def walk(window: Window, segment_uid: int, start: int, stop: int) -> Iterator[Stretch]:
    """The stretches of [start, stop) of a segment, one after another.

    Zeros at the end are none. After damage goes on at a header whose offsets and sequence are
    above those before: a value may hold a copy of older batches of its own segment.
    """
    position, least = start, (-1, -1)
    while position < stop:
        header, error = _parse(window, position, stop, segment_uid)
        if header is not None:
            cut = position + header.total_bytes > stop
            problem = "the batch is cut" if cut else None
            yield Stretch(position, min(header.total_bytes, stop - position), header, problem)
            position += header.total_bytes
            least = (header.next_offset, header.sequence + 1)
            continue
        following = find_header(window, segment_uid, position + 1, stop, least)
        if following is None:
            following = stop
            if _all_zero(window, position, stop):
                return
        problem = error.message if error else "zeros, then other bytes"
        newer = isinstance(error, FormatVersionError)
        yield Stretch(position, following - position, None, problem, newer)
        position = following


def _parse(
    window: Window, position: int, stop: int, segment_uid: int
) -> tuple[BatchHeader | None, DataError | None]:
    """The header at `position`, or why there is none; neither for zeros."""
    raw = window.view(position, min(BATCH_HEADER_BYTES, stop - position))
    if not any(raw):
        return None, None
    try:
        return parse_header(raw, 0, segment_uid), None
    except (CorruptBatchError, FormatVersionError) as error:
        return None, error


def find_header(
    window: Window, segment_uid: int, start: int, stop: int, least: tuple[int, int] = (-1, -1)
) -> int | None:
    """Position of the next whole batch header in [start, stop), or None.

    Args:
        window: The file.
        segment_uid: Of the segment.
        start: Where to begin.
        stop: Where to end.
        least: Lowest base offset and sequence it may have.
    """
    position = -(-start // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    while position < stop:
        chunk = window.file.read(PROBE_BYTES + BATCH_HEADER_BYTES, position)
        at = chunk.find(BATCH_MAGIC_BYTES)
        while 0 <= at < min(PROBE_BYTES, stop - position):
            if (position + at) % ALIGNMENT_BYTES == 0 and _follows(chunk, at, segment_uid, least):
                return position + at
            at = chunk.find(BATCH_MAGIC_BYTES, at + 1)
        position += PROBE_BYTES
    return None


def _follows(chunk: bytes, at: int, segment_uid: int, least: tuple[int, int]) -> bool:
    try:
        header = parse_header(chunk, at, segment_uid)
    except CorruptBatchError:
        return False  # bytes of a record, or another damaged header
    except FormatVersionError:
        return True
    return header.base_offset >= least[0] and header.sequence >= least[1]


def _all_zero(window: Window, start: int, stop: int) -> bool:
    for position in range(start, stop, PROBE_BYTES):
        chunk = window.file.read(min(PROBE_BYTES, stop - position), position)
        if chunk.count(0) != len(chunk):
            return False
    return True


def body_problem(header: BatchHeader, body: memoryview) -> str | None:
    """Why the records of a batch cannot be read, or None. Checks every hash and every length."""
    try:
        verify_body(header, body)
        check_columns(header, body)
    except DataError as error:
        return error.message
    return None
