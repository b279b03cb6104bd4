"""Encode anew what compaction keeps of batches: records that have their offsets already. Pure.

Which records stay is `compaction.py`, which batches become one is `merge.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import NamedTuple

from .arrow_columns import encode_columns
from .batch import (
    EncodedBatch,
    encode_gap,
    encode_sections,
    encode_timestamps,
    with_tombstones,
)
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
    columns, values, present = _values_of(batch, indexes, codec)
    stamps, offsets = batch.timestamps_ms, batch.offsets
    keys = batch.keys if header.flags & HAS_KEYS else None
    headers = batch.headers if header.flags & HAS_HEADERS else None
    rows = Rows(
        [offsets[index] for index in indexes],
        [stamps[index] for index in indexes],
        None if keys is None else [keys[index] for index in indexes],
        values,
        None if headers is None else [headers[index] for index in indexes],
        columns,
        present,
    )
    covered = (header.base_offset, header.last_offset_delta)
    return encode_rows(covered, rows, flags=header.flags & APPEND_TIME, codec=codec)


def _values_of(
    batch: RecordBatch, indexes: Sequence[int], codec: int
) -> tuple[ColumnSection | None, Sequence[Buffer | None], bytes | None]:
    """What stays of the values: columns, or values, and which records have one."""
    header = batch.header
    if not header.flags & COLUMNS:
        return None, batch.values_at(indexes), None
    present = kept_present(batch, indexes)
    if present is not None and not any(present):
        return None, [None] * len(indexes), None
    if len(indexes) == header.record_count:
        return recompress(*batch.stored_section(), codec), (), present
    return encode_columns(batch.stored_columns(indexes), codec), (), present


def kept_present(batch: RecordBatch, indexes: Sequence[int] | None) -> bytes | None:
    """A byte per record that stays: 1 where there is a value; None: everywhere."""
    present = batch.present
    if present is None:
        return None
    kept = present if indexes is None else bytes(present[index] for index in indexes)
    return None if all(kept) else kept


class Rows(NamedTuple):
    """Records with their offsets, as columns of equal length."""

    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None] | None
    values: Sequence[Buffer | None]
    headers: Sequence[Headers] | None
    columns: ColumnSection | None = None
    """In the place of `values`."""
    present: bytes | None = None
    """With `columns` a byte per record: 1 for those that have a row in them. None: all."""


def encode_rows(
    covered: tuple[int, int],
    rows: Rows,
    *,
    flags: int,
    codec: int,
) -> EncodedBatch:
    """Encode records that have offsets already, for compaction.

    Args:
        covered: Base offset of the batch, and the offsets it covers, less one.
        rows: At least one; their offsets rise within what is covered.
        flags: APPEND_TIME or 0.
        codec: Number of the codec.
    """
    base_offset, last_offset_delta = covered
    extremes, lead = encode_timestamps(rows.timestamps_ms)
    if not lead:
        flags |= UNIFORM_TIMESTAMP
    deltas = [offset - base_offset for offset in rows.offsets]
    if len(deltas) != last_offset_delta + 1:
        flags |= OFFSET_DELTAS
        lead += pack(f"<{len(deltas)}I{-4 * len(deltas) & 7}x", *deltas)
    values = None if rows.columns is not None else rows.values
    encoded = encode_sections(lead, rows.keys, values, rows.headers)
    if rows.present is not None:
        encoded = with_tombstones(encoded, rows.present)
    more, sections = encoded
    counts = (len(deltas), last_offset_delta)
    return EncodedBatch(counts, flags | more, extremes, sections, codec, rows.columns)


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
