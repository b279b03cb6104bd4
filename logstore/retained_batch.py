"""Encode anew what compaction keeps of batches: records that have their offsets already. Pure.

Which records stay is `compaction.py`, which batches become one is `merge.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import NamedTuple

from .arrow_columns import encode_columns
from .batch import EncodedBatch, encode_gap, encode_sections, encode_timestamps
from .column_section import ColumnSection, recompress
from .format import (
    APPEND_TIME,
    CODEC_NONE,
    COLUMNS,
    HAS_HEADERS,
    HAS_KEYS,
    OFFSET_DELTAS,
    UNIFORM_TIMESTAMP,
    BatchHeader,
    Buffer,
    Section,
)
from .record import Headers
from .record_batch import RecordBatch


def encode_retained(
    batch: RecordBatch, indexes: Sequence[int], *, codec: int = CODEC_NONE
) -> EncodedBatch:
    """Encode again the records of `batch` at `indexes` (rising), for compaction.

    Records keep their offsets and timestamps, and the batch keeps covering all of its offsets; with
    no index it becomes a gap. Seal it with the base offset and append time of the original, or
    take its header from `retained_header`.

    Args:
        batch: A whole batch, not a slice.
        indexes: Which records to keep.
        codec: Number of the codec.
    """
    header = batch.header
    assert batch.record_count == header.record_count
    if not indexes:
        return encode_gap(header.last_offset_delta + 1)
    columns = None
    if header.flags & COLUMNS:
        if len(indexes) == header.record_count:
            columns = recompress(*batch.stored_section(), codec)
        else:
            columns = encode_columns(batch.stored_columns(indexes), codec)
    stamps, offsets = batch.timestamps_ms, batch.offsets
    keys = batch.keys if header.flags & HAS_KEYS else None
    headers = batch.headers if header.flags & HAS_HEADERS else None
    rows = Rows(
        [offsets[index] for index in indexes],
        [stamps[index] for index in indexes],
        None if keys is None else [keys[index] for index in indexes],
        () if columns is not None else batch.values_at(indexes),
        None if headers is None else [headers[index] for index in indexes],
    )
    covered = (header.base_offset, header.last_offset_delta)
    flags = header.flags & APPEND_TIME
    return encode_rows(covered, rows, flags=flags, codec=codec, columns=columns)


class Rows(NamedTuple):
    """Records with their offsets, as columns of equal length."""

    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None] | None
    values: Sequence[Buffer | None]
    headers: Sequence[Headers] | None


def encode_rows(
    covered: tuple[int, int],
    rows: Rows,
    *,
    flags: int,
    codec: int,
    columns: ColumnSection | None = None,
) -> EncodedBatch:
    """Encode records that have offsets already, for compaction.

    Args:
        covered: Base offset of the batch, and the offsets it covers, less one.
        rows: At least one; their offsets rise within what is covered.
        flags: APPEND_TIME or 0.
        codec: Number of the codec.
        columns: The values, in the place of those of `rows`.
    """
    base_offset, last_offset_delta = covered
    extremes, lead = encode_timestamps(rows.timestamps_ms)
    if not lead:
        flags |= UNIFORM_TIMESTAMP
    deltas = [offset - base_offset for offset in rows.offsets]
    if len(deltas) != last_offset_delta + 1:
        flags |= OFFSET_DELTAS
        lead += pack(f"<{len(deltas)}I{-4 * len(deltas) & 7}x", *deltas)
    values = None if columns is not None else rows.values
    more, sections = encode_sections(lead, rows.keys, values, rows.headers)
    counts = (len(deltas), last_offset_delta)
    return EncodedBatch(counts, flags | more, extremes, sections, codec, columns)


def retained_header(original: BatchHeader, encoded: EncodedBatch) -> BatchHeader:
    """The header of what `encode_retained` made of a batch; links and cleaning are not its task."""
    a, b, c = encoded.section_meta
    return original._replace(
        codec=encoded.codec,
        last_offset_delta=encoded.last_offset_delta,
        record_count=encoded.record_count,
        body_bytes=encoded.body_bytes,
        flags=encoded.flags,
        min_timestamp_ms=encoded.min_timestamp_ms,
        max_timestamp_ms=encoded.max_timestamp_ms,
        sections=(Section(*a), Section(*b), Section(*c)),
        cleaned_ms=0,
    )
