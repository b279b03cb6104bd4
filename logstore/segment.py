"""One segment file: its name, its creation and walking its batch headers.

A segment is named by its base offset, begins with a 128-byte header and holds batches back to
back, each on a 64-byte boundary. The data ends where the magic stops, never at the file size: the
active segment may be zero-filled ahead of the writer. Bytes are specified in docs/log-format.md.

What is wrong with a damaged segment, and what to do about it, is decided in `recovery.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import CorruptBatchError, CorruptSegmentError, FormatVersionError
from .format import (
    BATCH_HEADER_BYTES,
    KNOWN_READ_ONLY_COMPATIBLE,
    REWRITTEN_DATA_START,
    BatchHeader,
    SegmentHeader,
    encode_segment_header,
    parse_header,
    parse_segment_header,
)
from .storage import File, Storage

SEGMENT_SUFFIX = ".segment"
INDEX_SUFFIX = ".index"
KEYS_SUFFIX = ".keys"
TEMPORARY_SUFFIX = ".tmp"
REWRITE_SUFFIX = ".rewrite.tmp"
"""Of a segment being rewritten; a recovery sweeps it as it does every temporary file."""
QUARANTINE = "quarantine"
OFFSET_DIGITS = 20
SCAN_BYTES = 64 * 1024


def segment_path(directory: str, base_offset: int) -> str:
    """Path of the segment which starts at `base_offset`.

    >>> segment_path("topics/t/0", 7)
    'topics/t/0/00000000000000000007.segment'
    """
    return f"{directory}/{base_offset:0{OFFSET_DIGITS}d}{SEGMENT_SUFFIX}"


def index_path(directory: str, base_offset: int) -> str:
    """Path of the index derived from that segment."""
    return f"{directory}/{base_offset:0{OFFSET_DIGITS}d}{INDEX_SUFFIX}"


def keys_path(directory: str, base_offset: int) -> str:
    """Path of the key file derived from that segment."""
    return f"{directory}/{base_offset:0{OFFSET_DIGITS}d}{KEYS_SUFFIX}"


def derived_paths(directory: str, base_offset: int) -> list[str]:
    """What may lie beside that segment and goes with it."""
    return [index_path(directory, base_offset), keys_path(directory, base_offset)]


def rewrite_path(directory: str, base_offset: int, segment_uid: int) -> str:
    """Path of what is being written to replace that segment; no other writer has the same."""
    return f"{directory}/{base_offset:0{OFFSET_DIGITS}d}.{segment_uid:016x}{REWRITE_SUFFIX}"


def base_offset_of(name: str) -> int | None:
    """Base offset a segment file name stands for, or None for anything else in the directory.

    >>> base_offset_of("00000000000000000007.segment"), base_offset_of(".nfs0001")
    (7, None)
    """
    digits = name.removesuffix(SEGMENT_SUFFIX)
    if digits == name or len(digits) != OFFSET_DIGITS:
        return None
    return int(digits) if digits.isascii() and digits.isdigit() else None


def create_segment(storage: Storage, directory: str, header: SegmentHeader) -> int:
    """Create a segment durably (file, name and directory) and return the hash of its header."""
    encoded, header_hash = encode_segment_header(header)
    path = segment_path(directory, header.base_offset)
    temporary = path + TEMPORARY_SUFFIX
    storage.remove(temporary)
    file = storage.open(temporary, "x")
    try:
        file.write([encoded], 0)
        file.sync()
    finally:
        file.close()
    storage.rename(temporary, path)
    storage.sync_directory(directory)
    return header_hash


def read_segment_header(storage: Storage, directory: str, base_offset: int) -> SegmentHeader:
    """Read and check the header of a segment; errors as `read_header`."""
    file = storage.open(segment_path(directory, base_offset), "r")
    try:
        return read_header(file, base_offset)
    finally:
        file.close()


def read_header(file: File, base_offset: int) -> SegmentHeader:
    """Read and check the header of an open segment.

    Raises:
        CorruptSegmentError: damaged, or its base offset is not the one in its name.
        FormatVersionError: written by a newer version.
    """
    try:
        header = parse_segment_header(file.read(REWRITTEN_DATA_START, 0))
    except (CorruptSegmentError, FormatVersionError) as error:
        raise error.at(path=file.path, position=0, offset=base_offset) from None
    if header.base_offset != base_offset:
        raise CorruptSegmentError(
            f"segment header says base offset {header.base_offset}", path=file.path, position=0
        )
    return header


def check_writable(
    header: SegmentHeader, path: str, topic: str | None = None, partition: int | None = None
) -> None:
    """Refuse to append to a segment, cut it or write it again, if only newer versions may.

    Raises:
        FormatVersionError: It has features that readers may ignore, and writers may not.
    """
    unknown = header.read_only_compatible & ~KNOWN_READ_ONLY_COMPATIBLE
    if unknown:
        raise FormatVersionError(
            f"segment uses features 0x{unknown:x}, which only newer versions may write: use such a"
            " version, or open the store read-only",
            topic=topic,
            partition=partition,
            path=path,
            position=0,
            offset=header.base_offset,
        )


def scan_headers(
    file: File, start: int, stop: int, segment_uid: int
) -> Iterator[tuple[int, BatchHeader]]:
    """Yield (position, header) of the batches in [start, stop), reading headers only.

    Ends where the header bytes are missing or all zero. A body may be cut: the caller compares
    with the file size.

    Raises:
        CorruptBatchError: bytes at a batch boundary which are neither zero nor a valid header.
        FormatVersionError: a valid header with features this version does not know.
    """
    window = b""
    window_start = position = start
    while position < stop:
        at = position - window_start
        if at + BATCH_HEADER_BYTES > len(window):
            window = file.read(min(SCAN_BYTES, max(stop - position, BATCH_HEADER_BYTES)), position)
            window_start, at = position, 0
            if len(window) < BATCH_HEADER_BYTES:
                if any(window):
                    raise CorruptBatchError(
                        "batch header is cut", path=file.path, position=position
                    )
                return
        if not any(window[at : at + 8]) and not any(window[at : at + BATCH_HEADER_BYTES]):
            return
        try:
            header = parse_header(window, at, segment_uid)
        except (CorruptBatchError, FormatVersionError) as error:
            raise error.at(path=file.path, position=position) from None
        yield position, header
        position += BATCH_HEADER_BYTES + header.body_bytes
