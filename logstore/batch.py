"""Build, seal, verify and open batches: the unit of append, checksum, compression and I/O. Pure.

Writing has two steps. `encode_batch` does the work that needs no knowledge of the log (columns,
compression, hashes) and runs outside every lock. `seal` adds what only the log knows (offsets,
order, chain) and costs microseconds under the append lock, whatever the size of the batch.

Reading has two as well. `parse_header` (format.py) and `verify_body` decide whether bytes are a
batch; `decode_batch` hands out a RecordBatch (record_batch.py) whose columns are decoded lazily.
The layout is in docs/log-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from struct import Struct, error as StructError, pack  # noqa: N812 - it is a class
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .column_section import ColumnSection, check_section
from .columns import encode_binary, encode_bitmap
from .compression import compress
from .errors import CorruptBatchError, UsageError
from .format import (
    ALIGNMENT_BYTES,
    APPEND_TIME,
    BATCH_BODY_BYTES_MAX,
    BATCH_FIELDS,
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    BATCH_VERSION,
    CODEC_NONE,
    COLUMNS,
    CONTROL,
    HAS_HEADERS,
    HAS_KEYS,
    INT64_MAX,
    NO_TIMESTAMP,
    NULL_KEYS,
    NULL_VALUES,
    OFFSET_MAX,
    RECORD_COUNT_MAX,
    SECTION_RAW_BYTES_MAX,
    TOMBSTONES,
    UNIFORM_TIMESTAMP,
    BatchHeader,
    Buffer,
    parse_header,
)
from .gathered import JoinedBytes, JoinedTimes, wrong_timestamp
from .record import Headers
from .record_batch import RecordBatch, open_columns

__all__ = [
    "BatchHeader",
    "BatchPlacement",
    "EncodedBatch",
    "RecordBatch",
    "body_buffers",
    "buffers",
    "decode_batch",
    "encode_batch",
    "encode_columns_batch",
    "encode_gap",
    "encode_one",
    "encode_sections",
    "encode_timestamps",
    "parse_header",
    "seal",
    "verify_body",
]

BATCH_RAW_BYTES_MAX: Final = min(BATCH_BODY_BYTES_MAX, SECTION_RAW_BYTES_MAX)
"""What one batch may take before compression: buffers of all its columns together."""

NO_PRODUCER: Final = (0, 0, 0, 0)

PADDING: Final = tuple(bytes(length) for length in range(ALIGNMENT_BYTES))
_ALIGNMENT_MASK: Final = ALIGNMENT_BYTES - 1
NO_SECTION: Final = (0, 0, xxh3_64_intdigest(b""))
ONE_ENTRY: Final = Struct("<ii")
"""The offsets of a column with one entry."""
COLUMN_PAD: Final = tuple(bytes(-length % 8) for length in range(8))


class EncodedBatch:
    """A batch before it has a place in a log. Immutable; may be sealed again after a failed write.

    Attributes:
        record_count: Number of records; 0 for a gap.
        last_offset_delta: Offsets covered, less one.
        codec: Codec of the sections stored compressed; 0 when none is.
        flags: Flags of format.py.
        min_timestamp_ms: Lowest timestamp. With APPEND_TIME, `seal` replaces it.
        max_timestamp_ms: Highest timestamp. With APPEND_TIME, `seal` replaces it.
        sections: Stored bytes of sections A, B and C; B is empty where it holds columns.
        columns: Stored bytes of a section B that holds columns, in pieces; else none.
        section_meta: Stored size, raw size and hash of each.
        body_bytes: Size of the sections padded to 64.
        total_bytes: Header and body: what the batch takes in the segment.
        producer: Id, epoch, and number of the last record in two halves, of the named producer
            that writes it. Set before the batch gets its place.
    """

    __slots__ = (
        "body_bytes",
        "codec",
        "columns",
        "flags",
        "last_offset_delta",
        "max_timestamp_ms",
        "min_timestamp_ms",
        "producer",
        "record_count",
        "section_meta",
        "sections",
        "total_bytes",
    )

    def __init__(
        self,
        counts: tuple[int, int],
        flags: int,
        timestamps_ms: tuple[int, int],
        raw: tuple[bytes, bytes, bytes],
        codec: int,
        columns: ColumnSection | None = None,
    ) -> None:
        """Compress and hash `raw`; `counts` are record_count and last_offset_delta.

        With `columns` these are section B, whatever `raw` says of it.
        """
        self.record_count, self.last_offset_delta = counts
        self.flags = flags if columns is None else flags | columns.flags
        self.producer = NO_PRODUCER
        self.min_timestamp_ms, self.max_timestamp_ms = timestamps_ms
        a, b, c = raw
        a_bytes = a_raw = len(a)
        b_bytes = b_raw = len(b) if columns is None else columns.raw_bytes
        c_bytes = c_raw = len(c)
        stored = a_raw + b_raw + c_raw
        # One bound for the sum holds for each section and for the stored body, whatever the codec.
        if stored > BATCH_RAW_BYTES_MAX:
            raise UsageError(f"records of one batch exceed {BATCH_RAW_BYTES_MAX} bytes")
        self.codec = CODEC_NONE
        if codec or columns is not None:
            a, c = compress(codec, a), compress(codec, c)
            b = compress(codec, b) if columns is None else b""
            b_bytes = len(b) if columns is None else columns.stored_bytes
            a_bytes, c_bytes = len(a), len(c)
            if stored != a_bytes + b_bytes + c_bytes:  # none ever grows
                stored = a_bytes + b_bytes + c_bytes
                self.codec = codec
        self.sections = (a, b, c)
        self.columns: tuple[Buffer, ...] = () if columns is None else columns.parts
        self.section_meta = (
            (a_bytes, a_raw, xxh3_64_intdigest(a)),
            (b_bytes, b_raw, xxh3_64_intdigest(b) if columns is None else columns.hash),
            (c_bytes, c_raw, xxh3_64_intdigest(c)) if c else NO_SECTION,
        )
        self.body_bytes = body_bytes = stored + (-stored & _ALIGNMENT_MASK)
        self.total_bytes = BATCH_HEADER_BYTES + body_bytes


class BatchPlacement(NamedTuple):
    """What only the log knows about a batch; see BatchHeader for the meaning of the fields."""

    segment_uid: int
    partition_uid: int
    base_offset: int
    append_timestamp_ms: int
    previous_hash: int
    durable_offset: int
    sequence: int
    transaction_id: int
    prior_max_timestamp_ms: int
    schema_id: int = 0


def encode_batch(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    timestamps_ms: Sequence[int] | None = None,
    headers: Sequence[Headers] | None = None,
    *,
    codec: int = CODEC_NONE,
) -> EncodedBatch:
    """Encode records, given as columns of equal length, into one batch.

    Args:
        values: Bytes-like; None is a tombstone.
        keys: Bytes-like or None each; None: no record has a key.
        timestamps_ms: UTC milliseconds; None: the time of the append, stamped by `seal`.
        headers: (name, value) pairs of each record; None: no record has headers.
        codec: Number of the codec; sections that do not shrink are stored raw all the same.

    Raises:
        UsageError: Wrong types (the message names the index), columns of different lengths, no
            records, or more than one batch can hold.

    >>> encoded = encode_batch([b"a", None], keys=[b"k", b"k"], timestamps_ms=[5, 3])
    >>> encoded.record_count, encoded.min_timestamp_ms, encoded.total_bytes
    (2, 3, 320)
    """
    count = _count(values, keys, timestamps_ms, headers)
    flags, extremes, lead = _encode_times(timestamps_ms)
    more, sections = encode_sections(lead, keys, values, headers)
    return EncodedBatch((count, count - 1), flags | more, extremes, sections, codec)


def encode_columns_batch(
    columns: ColumnSection,
    present: bytes,
    keys: Sequence[bytes | None] | None,
    timestamps_ms: Sequence[int] | None,
    headers: Sequence[Headers] | None,
    *,
    codec: int,
) -> EncodedBatch:
    """As `encode_batch`, for records whose values are columns.

    `present` has a byte for each record: 1 for those with a row, 0 for tombstones.
    """
    count = _count(present, keys, timestamps_ms, headers)
    flags, extremes, lead = _encode_times(timestamps_ms)
    encoded = encode_sections(lead, keys, None, headers)
    more, sections = encoded if all(present) else with_tombstones(encoded, present)
    return EncodedBatch((count, count - 1), flags | more, extremes, sections, codec, columns)


def encode_one(
    value: bytes | None,
    key: bytes | None = None,
    timestamp_ms: int | None = None,
    headers: Headers = (),
    *,
    codec: int = CODEC_NONE,
) -> EncodedBatch:
    """The batch of one record, byte for byte as `encode_batch` makes it, in a third of the time.

    Raises:
        UsageError: As `encode_batch`; the index is 0.

    >>> encode_one(b"a", b"k").sections == encode_batch([b"a"], [b"k"]).sections
    True
    """
    if (
        type(value) is not bytes
        or len(value) > BATCH_RAW_BYTES_MAX
        or (key is not None and (type(key) is not bytes or len(key) > BATCH_RAW_BYTES_MAX))
        or (timestamp_ms is not None and type(timestamp_ms) is not int)
        or headers
    ):
        return encode_batch(
            (value,),
            None if key is None else (key,),
            None if timestamp_ms is None else (timestamp_ms,),
            (headers,) if headers else None,
            codec=codec,
        )
    flags = UNIFORM_TIMESTAMP | APPEND_TIME
    extremes = (0, 0)
    if timestamp_ms is not None:
        if not NO_TIMESTAMP < timestamp_ms <= INT64_MAX:
            raise wrong_timestamp((timestamp_ms,))
        flags = UNIFORM_TIMESTAMP
        extremes = (timestamp_ms, timestamp_ms)
    section_a = b""
    if key is not None:
        flags |= HAS_KEYS
        length = len(key)
        section_a = b"".join((ONE_ENTRY.pack(0, length), key, COLUMN_PAD[length & 7]))
    length = len(value)
    section_b = b"".join((ONE_ENTRY.pack(0, length), value, COLUMN_PAD[length & 7]))
    return EncodedBatch((1, 0), flags, extremes, (section_a, section_b, b""), codec)


def encode_gap(count: int) -> EncodedBatch:
    """A control batch that covers `count` offsets (1 to 2**32) without records.

    Written where offsets must not be given out again: what they held is lost, but was seen.
    """
    if not 1 <= count <= 1 << 32:
        raise UsageError(f"a gap covers 1 to 2**32 offsets, not {count}")
    nothing = (NO_TIMESTAMP, NO_TIMESTAMP)
    return EncodedBatch((0, count - 1), CONTROL, nothing, (b"", b"", b""), CODEC_NONE)


def seal(encoded: EncodedBatch, placement: BatchPlacement) -> tuple[bytes, int]:
    """The header of `encoded` at its place in the log, and the header's hash."""
    # Unpacked at once: looking each field up by its name takes twice as long.
    (
        segment_uid,
        partition_uid,
        base_offset,
        append_timestamp_ms,
        previous_hash,
        durable_offset,
        sequence,
        transaction_id,
        prior_max_timestamp_ms,
        schema_id,
    ) = placement
    producer_id, producer_epoch, sequence_low, sequence_high = encoded.producer
    flags = encoded.flags
    if flags & APPEND_TIME:
        minimum = maximum = append_timestamp_ms
    else:
        minimum, maximum = encoded.min_timestamp_ms, encoded.max_timestamp_ms
    assert base_offset + encoded.last_offset_delta <= OFFSET_MAX
    (a_bytes, a_raw, a_hash), (b_bytes, b_raw, b_hash), (c_bytes, c_raw, c_hash) = (
        encoded.section_meta
    )
    fields = BATCH_FIELDS.pack(
        BATCH_MAGIC,
        BATCH_VERSION,
        encoded.codec,
        BATCH_HEADER_BYTES,
        partition_uid,
        base_offset,
        encoded.last_offset_delta,
        encoded.record_count,
        encoded.body_bytes,
        flags,
        minimum,
        maximum,
        append_timestamp_ms,
        producer_id,
        producer_epoch,
        sequence_low,
        schema_id,
        sequence_high,
        previous_hash,
        durable_offset,
        sequence,
        transaction_id,
        prior_max_timestamp_ms,
        a_bytes,
        a_raw,
        a_hash,
        b_bytes,
        b_raw,
        b_hash,
        c_bytes,
        c_raw,
        c_hash,
        0,
    )
    header_hash = xxh3_64_intdigest(fields, segment_uid)
    return fields + header_hash.to_bytes(8, "little"), header_hash


def body_buffers(encoded: EncodedBatch) -> list[Buffer]:
    """The body: sections and padding."""
    return [part for part in buffers(encoded, b"") if part]


def buffers(encoded: EncodedBatch, header: bytes) -> list[Buffer]:
    """What one vectored write puts into the segment: header, sections, padding."""
    a, b, c = encoded.sections
    if encoded.columns:
        stored_bytes = sum(meta[0] for meta in encoded.section_meta)
        padding = PADDING[encoded.body_bytes - stored_bytes]
        return [part for part in (header, a, *encoded.columns, c, padding) if part]
    padding = PADDING[encoded.body_bytes - len(a) - len(b) - len(c)]
    if a and padding and not c:
        return [header, a, b, padding]
    return [part for part in (header, a, b, c, padding) if part]


def verify_body(header: BatchHeader, body: Buffer) -> None:
    """Check that `body` is exactly what was written behind `header`.

    Raises:
        CorruptBatchError: Cut short, or a section or the padding is damaged.
    """
    if len(body) != header.body_bytes:
        raise CorruptBatchError(f"batch body cut at {len(body)} of {header.body_bytes} bytes")
    view = memoryview(body)
    start = 0
    for name, (stored_bytes, _, section_hash) in zip("ABC", header.sections, strict=True):
        end = start + stored_bytes
        if name == "B" and header.flags & COLUMNS:
            check_section(view[start:end], section_hash)
        elif xxh3_64_intdigest(view[start:end]) != section_hash:
            raise CorruptBatchError(f"section {name} of the batch fails its checksum")
        start = end
    if bytes(view[start:]) != PADDING[header.body_bytes - start]:
        raise CorruptBatchError("padding of the batch is not zero")


def decode_batch(
    topic: str,
    partition: int,
    header: BatchHeader,
    body: Buffer,
    *,
    verified: bool = False,
    schema: str | None = None,
) -> RecordBatch:
    """Open a batch for reading. `body` must not change afterwards.

    Args:
        topic: For the records.
        partition: For the records.
        header: As parsed.
        body: The `header.body_bytes` bytes behind it.
        verified: `verify_body` has passed these very bytes already; do not pay for it again.
        schema: Stored form of the schema its topic has now.

    Raises:
        CorruptBatchError: The body is damaged. Columns that do not make sense although their hash
            is right raise it later, when they are decoded.
    """
    if not verified:
        verify_body(header, body)
    return open_columns(topic, partition, header, body, schema)


# --- columns of a batch --------------------------------------------------------------------------


def encode_sections(
    lead: bytes,
    keys: Sequence[bytes | None] | None,
    values: Sequence[Buffer | None] | None,
    headers: Sequence[Headers] | None,
) -> tuple[int, tuple[bytes, bytes, bytes]]:
    """The flags that describe the sections, and the sections; `lead` goes before the keys.

    Without `values` they are columns, and section B is for who has them.
    """
    flags = 0
    section_a = lead
    section_c = b""
    if keys is not None and not _all_none(keys):
        section_a, nulls = encode_binary(keys, "keys", lead)
        flags = HAS_KEYS | NULL_KEYS if nulls else HAS_KEYS
    section_b, nulls = b"", False
    if values is None:
        flags |= COLUMNS
    else:
        section_b, nulls = encode_binary(values, "values")
    if nulls:
        flags |= NULL_VALUES
    if headers is not None and any(headers):
        section_c = _encode_headers(headers)
        flags |= HAS_HEADERS
    return flags, (section_a, section_b, section_c)


def with_tombstones(
    encoded: tuple[int, tuple[bytes, bytes, bytes]], present: bytes
) -> tuple[int, tuple[bytes, bytes, bytes]]:
    """What `encode_sections` made for columns, of which only some records have a row.

    Args:
        encoded: As returned there.
        present: A byte per record: 1 for those with a row.
    """
    flags, (a, b, c) = encoded
    bitmap = encode_bitmap(present)
    return flags | TOMBSTONES, (a + bitmap + bytes(-len(bitmap) % 8), b, c)


def _count(
    values: Sequence[object],
    keys: Sequence[bytes | None] | None,
    timestamps_ms: Sequence[int] | None,
    headers: Sequence[Headers] | None,
) -> int:
    """Number of records, after checking that all columns have that length."""
    try:
        count = len(values)
        if keys is not None and len(keys) != count:
            raise UsageError(f"{len(keys)} keys for {count} values")
        if timestamps_ms is not None and len(timestamps_ms) != count:
            raise UsageError(f"{len(timestamps_ms)} timestamps for {count} values")
        if headers is not None and len(headers) != count:
            raise UsageError(f"headers of {len(headers)} records for {count} values")
    except TypeError:
        raise UsageError("columns of a batch must be sequences, such as lists") from None
    if not 1 <= count <= RECORD_COUNT_MAX:
        raise UsageError(f"a batch holds 1 to {RECORD_COUNT_MAX} records, not {count}")
    return count


def _all_none(column: Sequence[bytes | None]) -> bool:
    if isinstance(column, JoinedBytes):
        return False  # to look at its first entry would be to unpack them all
    # The first entry settles it almost always; count() may compare entries, so only then.
    return column[0] is None and column.count(None) == len(column)


def _encode_times(timestamps_ms: Sequence[int] | None) -> tuple[int, tuple[int, int], bytes]:
    """Flags, extremes and column of the timestamps; None: the time of the append."""
    if timestamps_ms is None:
        return UNIFORM_TIMESTAMP | APPEND_TIME, (0, 0), b""
    extremes, lead = encode_timestamps(timestamps_ms)
    return (0 if lead else UNIFORM_TIMESTAMP), extremes, lead


def encode_timestamps(timestamps_ms: Sequence[int]) -> tuple[tuple[int, int], bytes]:
    """Lowest and highest timestamp, and the column; b"" when all are the same."""
    if isinstance(timestamps_ms, JoinedTimes):
        minimum, maximum = timestamps_ms.minimum, timestamps_ms.maximum
        return (minimum, maximum), b"" if minimum == maximum else b"".join(timestamps_ms.pieces)
    try:
        column = pack(f"<{len(timestamps_ms)}q", *timestamps_ms)
        minimum, maximum = int(min(timestamps_ms)), int(max(timestamps_ms))
    except (TypeError, StructError):
        raise wrong_timestamp(timestamps_ms) from None
    if minimum == NO_TIMESTAMP:
        raise wrong_timestamp(timestamps_ms)
    return (minimum, maximum), b"" if minimum == maximum else column


def _encode_headers(headers: Sequence[Headers]) -> bytes:
    try:
        lead = pack(f"<{len(headers) + 1}i", *accumulate(map(len, headers), initial=0))
        pairs = [(name, value) for name, value in chain.from_iterable(headers)]
        names = [name.encode() for name, _ in pairs]
    except (TypeError, ValueError, AttributeError, StructError):
        raise _wrong_headers(headers) from None
    section, _ = encode_binary(names, "header names", lead + bytes(-len(lead) & 7))
    section, _ = encode_binary([value for _, value in pairs], "header values", section, bitmap=True)
    return section


def _wrong_headers(headers: Sequence[Headers]) -> UsageError:
    for index, pairs in enumerate(headers):
        try:
            len(pairs)
            for name, _ in pairs:
                str.encode(name)
        except (TypeError, ValueError):
            return UsageError(f"headers[{index}] must be (name, value) pairs of str and bytes")
    return UsageError("headers must be a sequence of sequences of (name, value) pairs")
