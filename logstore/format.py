"""The bytes on disk: magics, limits, flags, and the segment and batch headers. Pure.

The twin of docs/log-format.md, which is the specification; where they differ, this file is wrong.
Not here: what lies inside a batch body (columns.py), how a batch is built and read (batch.py,
record_batch.py), and the index file (index.py). All integers are little-endian.

Errors raised here know no place; the caller adds path, position and offset with `error.at(...)`.
"""

from __future__ import annotations

import struct
import sys
from typing import Final, NamedTuple, TypeAlias

from xxhash import xxh3_64_intdigest

from .errors import CorruptBatchError, CorruptSegmentError, FormatVersionError

if sys.byteorder != "little":
    # Columns move between disk and `array` without swapping; a big-endian host would misread them.
    raise ImportError("millstream needs a little-endian machine")

Buffer: TypeAlias = bytes | bytearray | memoryview

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
NO_TIMESTAMP: Final = INT64_MIN
"""Stands for "no record yet" in running maxima and in batches without records."""

ALIGNMENT_BYTES: Final = 64
"""Batches start at multiples of this, so a scan for the magic after damage is a stride."""
BATCH_BODY_BYTES_MAX: Final = 128 << 20
SECTION_RAW_BYTES_MAX: Final = 128 << 20
"""Bounds one allocation while decompressing, and keeps int32 column offsets far from overflow."""
RECORD_COUNT_MAX: Final = 16 << 20
OFFSET_MAX: Final = INT64_MAX - 1
"""Of a record. The offset behind the last one is published in a signed 64-bit word."""

# Codecs. The numbers are part of the format; never change them.
CODEC_NONE: Final = 0
CODEC_LZ4: Final = 1
CODEC_ZSTD: Final = 2
CODEC_BY_NAME: Final = {"none": CODEC_NONE, "lz4": CODEC_LZ4, "zstd": CODEC_ZSTD}

# Batch flags. The numbers are part of the format; never change them.
UNIFORM_TIMESTAMP: Final = 1
HAS_KEYS: Final = 2
NULL_KEYS: Final = 4
NULL_VALUES: Final = 8
HAS_HEADERS: Final = 16
OFFSET_DELTAS: Final = 32
CONTROL: Final = 64
APPEND_TIME: Final = 128
CLEANED: Final = 256
COLUMNS: Final = 512
BOUNDS: Final = 1024
TOMBSTONES: Final = 2048
KNOWN_FLAGS: Final = 4095

# --- segment header ------------------------------------------------------------------------------

SEGMENT_MAGIC: Final = b"\x93MSG\r\n\x1a\n"
SEGMENT_HEADER_BYTES: Final = 128
SEGMENT_MAJOR: Final = 1
SEGMENT_MINOR: Final = 0
REWRITTEN: Final = 1
"""Feature bit: a rewrite header follows the segment header."""
KNOWN_INCOMPATIBLE: Final = REWRITTEN
KNOWN_READ_ONLY_COMPATIBLE: Final = 0
REWRITTEN_DATA_START: Final = 256
"""Where the first batch of a rewritten segment starts: behind both of its headers."""

_SEGMENT_FIELDS: Final = struct.Struct("<8sHHIII16sQQQqQQQq16s")
_U64: Final = struct.Struct("<Q")
_SEGMENT_RESERVED: Final = bytes(16)
_REWRITE_FIELDS: Final = struct.Struct("<QQQQQQqqQ48s")
_REWRITE_RESERVED: Final = bytes(48)


class Rewrite(NamedTuple):
    """Bytes 128 to 256 of a segment that compaction wrote: what it stands for."""

    end_offset: int
    """One past the last offset it covers."""
    data_bytes: int
    """Size of the file."""
    last_hash: int
    """`header_hash` of its last batch."""
    last_sequence: int
    """Sequence of its last batch."""
    replaced_uid: int
    """The segment behind it names this as `previous_segment_uid`."""
    replaced_hash: int
    """And this as `previous_hash`."""
    rewritten_ms: int
    cleaned_ms: int
    """Lowest `cleaned_ms` of its batches, 0 if none has one."""
    record_count: int


class SegmentHeader(NamedTuple):
    """The first 128 bytes of a segment file."""

    store_uid: bytes
    """16 bytes; the same in every segment of a store."""
    segment_uid: int
    """Random, not zero. Seeds the hashes of the batches, so another file's bytes never parse."""
    partition_uid: int
    base_offset: int
    created_ms: int
    previous_segment_uid: int = 0
    """0: no previous segment."""
    previous_hash: int = 0
    """`header_hash` of the last batch of the previous segment (of its header, if it had none)."""
    previous_bytes: int = 0
    """Size of the previous segment when it was sealed."""
    prior_max_timestamp_ms: int = NO_TIMESTAMP
    """Running maximum timestamp of the partition before this segment."""
    major: int = SEGMENT_MAJOR
    minor: int = SEGMENT_MINOR
    incompatible: int = 0
    read_only_compatible: int = 0
    compatible: int = 0
    header_hash: int = 0
    """Filled in by `parse_segment_header`; ignored by `encode_segment_header`."""
    rewrite: Rewrite | None = None
    """Filled in by `parse_segment_header` if it is REWRITTEN."""

    @property
    def data_start(self) -> int:
        """Position of the first batch."""
        return REWRITTEN_DATA_START if self.incompatible & REWRITTEN else SEGMENT_HEADER_BYTES

    @property
    def link_uid(self) -> int:
        """What the segment behind it names as `previous_segment_uid`."""
        return self.rewrite.replaced_uid if self.rewrite else self.segment_uid


def encode_segment_header(header: SegmentHeader) -> tuple[bytes, int]:
    """The 128 bytes of `header` and their hash, which the first batch of the segment links to."""
    assert len(header.store_uid) == 16
    assert header.segment_uid != 0
    fields = _SEGMENT_FIELDS.pack(
        SEGMENT_MAGIC,
        header.major,
        header.minor,
        header.incompatible,
        header.read_only_compatible,
        header.compatible,
        header.store_uid,
        header.segment_uid,
        header.partition_uid,
        header.base_offset,
        header.created_ms,
        header.previous_segment_uid,
        header.previous_hash,
        header.previous_bytes,
        header.prior_max_timestamp_ms,
        _SEGMENT_RESERVED,
    )
    header_hash = xxh3_64_intdigest(fields)
    return fields + _U64.pack(header_hash), header_hash


def encode_rewrite(rewrite: Rewrite, segment_uid: int) -> bytes:
    """The 128 bytes that follow the header of a rewritten segment."""
    fields = _REWRITE_FIELDS.pack(*rewrite, _REWRITE_RESERVED)
    return fields + _U64.pack(xxh3_64_intdigest(fields, segment_uid))


def parse_segment_header(buffer: Buffer) -> SegmentHeader:
    """Check and decode the first bytes of a segment file.

    Args:
        buffer: At least 128 bytes, or 256 if the segment is rewritten; what follows is ignored.

    Raises:
        CorruptSegmentError: Too short, not a segment, or damaged.
        FormatVersionError: Intact, but written by a version or feature this one does not know.
    """
    if len(buffer) < SEGMENT_HEADER_BYTES:
        raise CorruptSegmentError(f"segment header cut at {len(buffer)} of 128 bytes")
    fields = _SEGMENT_FIELDS.unpack_from(buffer)
    if fields[0] != SEGMENT_MAGIC:
        raise CorruptSegmentError("not a segment file: wrong magic")
    header_hash = _U64.unpack_from(buffer, 120)[0]
    # The hash comes before the version: a flipped version bit is damage, not a newer format.
    if xxh3_64_intdigest(buffer[:120]) != header_hash:
        raise CorruptSegmentError("segment header fails its checksum")
    major, minor, incompatible = fields[1:4]
    if major != SEGMENT_MAJOR:
        raise FormatVersionError(f"segment format {major}.{minor} is unknown; 1.x is supported")
    unknown = incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        raise FormatVersionError(f"segment uses unknown features 0x{unknown:x}")
    if fields[15] != _SEGMENT_RESERVED or fields[7] == 0 or fields[9] > OFFSET_MAX + 1:
        raise CorruptSegmentError("segment header holds impossible values")
    rewrite = _parse_rewrite(buffer, fields[7], fields[9]) if incompatible & REWRITTEN else None
    return SegmentHeader._make((*fields[6:15], *fields[1:6], header_hash, rewrite))


def _parse_rewrite(buffer: Buffer, segment_uid: int, base_offset: int) -> Rewrite:
    if len(buffer) < REWRITTEN_DATA_START:
        raise CorruptSegmentError(f"rewrite header cut at {len(buffer)} of 256 bytes")
    *fields, reserved = _REWRITE_FIELDS.unpack_from(buffer, SEGMENT_HEADER_BYTES)
    stored = _U64.unpack_from(buffer, REWRITTEN_DATA_START - 8)[0]
    hashed = buffer[SEGMENT_HEADER_BYTES : REWRITTEN_DATA_START - 8]
    if xxh3_64_intdigest(hashed, segment_uid) != stored:
        raise CorruptSegmentError("rewrite header fails its checksum")
    rewrite = Rewrite._make(fields)
    # It covers at least one offset, so it holds at least one batch.
    if (
        reserved != _REWRITE_RESERVED
        or not base_offset < rewrite.end_offset <= OFFSET_MAX + 1
        or rewrite.data_bytes < REWRITTEN_DATA_START + BATCH_HEADER_BYTES
        or rewrite.data_bytes % ALIGNMENT_BYTES
        or rewrite.replaced_uid == 0
    ):
        raise CorruptSegmentError("rewrite header holds impossible values")
    return rewrite


# --- batch header --------------------------------------------------------------------------------

BATCH_MAGIC: Final = 0x9C42534D
"""On disk `4D 53 42 9C`. Never zero, so a hole or a preallocated tail never looks like a batch."""
BATCH_MAGIC_BYTES: Final = BATCH_MAGIC.to_bytes(4, "little")
BATCH_VERSION: Final = 1
BATCH_HEADER_BYTES: Final = 192
BATCH_HEADER_BYTES_MAX: Final = 4096

BATCH_FIELDS: Final = struct.Struct("<IBBHQQIIIIqqqQIIIIQQQQqIIQIIQIIQq")
"""Bytes 0 to 184 of the header; the hash over them follows."""
_BATCH_HEADER: Final = struct.Struct(BATCH_FIELDS.format + "Q")


class Section(NamedTuple):
    """One of the three independently compressed and hashed parts of a batch body."""

    stored_bytes: int
    raw_bytes: int
    """Equal to `stored_bytes`: stored raw. Greater: compressed with the batch's codec."""
    hash: int
    """xxh3_64 of the stored bytes."""


class BatchHeader(NamedTuple):
    """The 192 bytes before a batch body. docs/log-format.md says what each field is for."""

    version: int
    codec: int
    header_bytes: int
    partition_uid: int
    base_offset: int
    last_offset_delta: int
    """The batch covers offsets [base_offset, base_offset + last_offset_delta]."""
    record_count: int
    """Less than the offsets covered after compaction; zero in control batches."""
    body_bytes: int
    """Stored sections and padding; a multiple of 64."""
    flags: int
    min_timestamp_ms: int
    max_timestamp_ms: int
    append_timestamp_ms: int
    producer_id: int
    """0: no named producer wrote it."""
    producer_epoch: int
    producer_sequence: int
    """The producer's number of the last record."""
    schema_id: int
    previous_hash: int
    """`header_hash` of the batch before; of the segment header for the first batch."""
    durable_offset: int
    """The log is known to be synced up to this offset (exclusive)."""
    sequence: int
    """Store-wide append order."""
    transaction_id: int
    """0: not in a transaction."""
    prior_max_timestamp_ms: int
    """Running maximum timestamp of the partition before this batch, or NO_TIMESTAMP."""
    sections: tuple[Section, Section, Section]
    """A: timestamps, offset deltas and keys. B: values. C: headers."""
    cleaned_ms: int
    """With CLEANED: since when tombstones here have nothing left to hide; else 0."""
    header_hash: int

    @property
    def last_offset(self) -> int:
        """The last offset the batch covers, whether or not a record of that offset is left."""
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """Where the log goes on after this batch."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def total_bytes(self) -> int:
        """Header and body."""
        return self.header_bytes + self.body_bytes

    @property
    def has_tombstones(self) -> bool:
        """Whether a record may be a tombstone."""
        return bool(self.flags & (NULL_VALUES | TOMBSTONES))

    @property
    def running_max_timestamp_ms(self) -> int:
        """The running maximum timestamp of the partition after this batch."""
        return max(self.prior_max_timestamp_ms, self.max_timestamp_ms)


def split_u64(value: int) -> tuple[int, int]:
    """The low and the high 32 bits."""
    return value & 0xFFFF_FFFF, value >> 32


EMPTY_SECTION: Final = Section(0, 0, xxh3_64_intdigest(b""))


def encode_header(header: BatchHeader, segment_uid: int) -> tuple[bytes, int]:
    """The 192 bytes of `header` in that segment, and their hash; `header_hash` is ignored."""
    a, b, c = header.sections
    low, high = split_u64(header.producer_sequence)
    fields = BATCH_FIELDS.pack(
        BATCH_MAGIC,
        *header[:14],
        low,
        header.schema_id,
        high,
        *header[16:21],
        *a,
        *b,
        *c,
        header.cleaned_ms,
    )
    header_hash = xxh3_64_intdigest(fields, segment_uid)
    return fields + _U64.pack(header_hash), header_hash


def gap_of(header: BatchHeader) -> BatchHeader:
    """The header of a gap in the place of that batch. Its producer stays named."""
    return header._replace(
        codec=CODEC_NONE,
        record_count=0,
        body_bytes=0,
        flags=CONTROL,
        min_timestamp_ms=NO_TIMESTAMP,
        max_timestamp_ms=NO_TIMESTAMP,
        schema_id=0,
        transaction_id=0,
        sections=(EMPTY_SECTION, EMPTY_SECTION, EMPTY_SECTION),
        cleaned_ms=0,
    )


def parse_header(buffer: Buffer, position: int, segment_uid: int) -> BatchHeader:
    """Check and decode the batch header at `position` of `buffer`.

    What this returns can be trusted: identity, sizes and flags have been checked against the hash
    and against each other, and no size exceeds its limit. The body has not been looked at.

    Raises:
        CorruptBatchError: Cut short, not a batch of this segment, or damaged.
        FormatVersionError: Intact, but of a version, codec or flag this version does not know.
    """
    if len(buffer) - position < BATCH_HEADER_BYTES:
        raise CorruptBatchError(f"batch header cut at {max(0, len(buffer) - position)} bytes")
    fields = _BATCH_HEADER.unpack_from(buffer, position)
    if fields[0] != BATCH_MAGIC:
        raise CorruptBatchError("no batch here: wrong magic")
    if fields[1] != BATCH_VERSION or fields[3] != BATCH_HEADER_BYTES:
        raise _other_version(buffer, position, segment_uid, version=fields[1], length=fields[3])
    if xxh3_64_intdigest(buffer[position : position + 184], segment_uid) != fields[33]:
        raise CorruptBatchError("batch header fails its checksum")
    if fields[2] > CODEC_ZSTD:
        raise FormatVersionError(f"batch codec {fields[2]} is unknown")
    if fields[9] & ~KNOWN_FLAGS:
        raise FormatVersionError(f"batch uses unknown flags 0x{fields[9] & ~KNOWN_FLAGS:x}")
    # As calling the classes would, without their Python code.
    new = tuple.__new__
    sections = (
        new(Section, fields[23:26]),
        new(Section, fields[26:29]),
        new(Section, fields[29:32]),
    )
    header = new(BatchHeader, (*fields[1:17], *fields[18:23], sections, *fields[32:]))
    if fields[17]:
        header = header._replace(producer_sequence=header.producer_sequence | fields[17] << 32)
    reason = (
        _producer_fault(header)
        or (
            "reserved bytes and the flag of a cleaning disagree"
            if bool(fields[9] & CLEANED) != bool(fields[32])
            else None
        )
        or _offsets_fault(header)
        or _sections_fault(header)
    )
    if reason is not None:
        raise CorruptBatchError(f"batch header holds impossible values: {reason}")
    return header


def _other_version(
    buffer: Buffer, position: int, segment_uid: int, *, version: int, length: int
) -> CorruptBatchError | FormatVersionError:
    """Tell a newer batch from a damaged one.

    Every version keeps magic, version and header length where they are and ends its header with
    the hash of what comes before it. Only an intact header may be called newer: a torn write that
    left a strange version byte must stay a torn write.
    """
    end = position + length
    if BATCH_HEADER_BYTES <= length <= BATCH_HEADER_BYTES_MAX and end <= len(buffer):
        stored = _U64.unpack_from(buffer, end - 8)[0]
        if xxh3_64_intdigest(buffer[position : end - 8], segment_uid) == stored:
            return FormatVersionError(f"batch version {version} is unknown; 1 is supported")
    return CorruptBatchError("batch header fails its checksum")


def _producer_fault(header: BatchHeader) -> str | None:
    """Why what is said about its producer cannot be true, or None."""
    sequence = header.producer_sequence
    if header.producer_id == 0:
        return "numbers of no producer" if sequence or header.producer_epoch else None
    if sequence > INT64_MAX or sequence < header.last_offset_delta:
        return "an impossible number of a producer"
    return None


def _offsets_fault(header: BatchHeader) -> str | None:  # noqa: PLR0911 - a list of rules
    """Why counts, offsets and timestamps cannot be true, or None."""
    count = header.record_count
    if count > RECORD_COUNT_MAX:
        return f"{count} records"
    if header.last_offset > OFFSET_MAX:
        return "offsets over 2**63 - 2"
    if header.flags & CONTROL:
        # A control batch covers offsets but holds no records, so it has no timestamps either.
        empty = count == 0 and header.flags == CONTROL
        timeless = header.min_timestamp_ms == header.max_timestamp_ms == NO_TIMESTAMP
        return None if empty and timeless else "records in a control batch"
    if count == 0:
        return "no records"
    if header.flags & OFFSET_DELTAS:
        if header.last_offset_delta < count - 1:
            return "more records than offsets"
    elif header.last_offset_delta != count - 1:
        return "record count and last offset disagree"
    if header.min_timestamp_ms > header.max_timestamp_ms:
        return "minimum timestamp over maximum"
    if header.flags & UNIFORM_TIMESTAMP and header.min_timestamp_ms != header.max_timestamp_ms:
        return "two timestamps where there is one"
    return None


def _sections_fault(header: BatchHeader) -> str | None:
    """Why the sizes of the sections cannot be true, or None."""
    stored_total = 0
    for stored, raw, _ in header.sections:
        if raw > SECTION_RAW_BYTES_MAX:
            return f"a section of {raw} bytes"
        if stored > raw or (stored < raw and header.codec == CODEC_NONE):
            return "stored and raw size of a section disagree"
        stored_total += stored
    if header.body_bytes != -(-stored_total // ALIGNMENT_BYTES) * ALIGNMENT_BYTES:
        return "sections and body size disagree"
    if header.body_bytes > BATCH_BODY_BYTES_MAX:
        return f"a body of {header.body_bytes} bytes"
    return _columns_fault(header)


def _columns_fault(header: BatchHeader) -> str | None:
    """Why what the flags say of the sections cannot be true, or None."""
    (_, keys, _), (_, values, _), (_, headers, _) = header.sections
    if header.flags & CONTROL:
        return "bytes in a control batch" if header.body_bytes else None
    if bool(headers) != bool(header.flags & HAS_HEADERS):
        return "headers flag and header bytes disagree"
    if header.flags & NULL_KEYS and not header.flags & HAS_KEYS:
        return "null keys without keys"
    if header.flags & (NULL_VALUES if header.flags & COLUMNS else BOUNDS | TOMBSTONES):
        return "flags of columns without them, or of values beside them"
    # A column of n entries takes at least 4 (n + 1) bytes: bounds what decoding allocates.
    minimum = 4 * (header.record_count + 1)
    if (values < minimum and not header.flags & COLUMNS) or (
        header.flags & HAS_KEYS and keys < minimum
    ):
        return "more records than bytes"
    return None
