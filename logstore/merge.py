"""Join what stays of small batches into larger ones, and compress anew where it was asked for.

Batches become one only where nobody can tell: they follow each other in the order of the store
without a batch of another partition in between, and a record in the middle finds the same running
maximum of timestamps before it. A producer's batch stays its own, and columns are joined only with
columns of the same schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

from .arrow_columns import encode_columns, join_rows
from .batch import body_buffers
from .errors import UsageError
from .format import (
    APPEND_TIME,
    CLEANED,
    CODEC_NONE,
    COLUMNS,
    HAS_HEADERS,
    HAS_KEYS,
    RECORD_COUNT_MAX,
    BatchHeader,
    Buffer,
)
from .record_batch import RecordBatch
from .retained_batch import (
    Rows,
    encode_retained,
    encode_rows,
    kept_present,
    retained_header,
)
from .rewrite import SegmentRewriter
from .topic_schema import arrow_is_there

SMALL_BYTES: Final = 4096
"""Batches up to this size are joined in any case: a header and padding take a good part of them."""
SMALL_MERGED_BYTES: Final = 64 * 1024
MERGED_BYTES: Final = 1 << 20
"""Size of a batch that is compressed anew, before that: what a reader takes at once."""
COLUMNS_SMALL_BYTES: Final = 256 * 1024
"""Batches of columns up to this size are joined: each chunk costs a reader a call or two."""
COLUMNS_MERGED_BYTES: Final = 4 << 20
COLUMNS_MERGED_ROWS: Final = 1 << 17
"""As many as an append puts into one batch."""
SAVING_MIN_PERCENT: Final = 12
"""A batch is compressed anew only if that saves so much; else it is copied as it is stored."""
_OFFSETS_MAX: Final = 1 << 32
_ANY_BYTES: Final = 1 << 32


class Piece(NamedTuple):
    """What stays of one batch."""

    header: BatchHeader
    """As it was; `cleaned_ms` is as it shall be."""
    batch: RecordBatch
    body: Buffer
    indexes: Sequence[int] | None
    """The records that stay; None: all."""

    @property
    def mark(self) -> int:
        """Pieces of different marks do not mix, but with those that have none (0)."""
        header = self.header
        return header.cleaned_ms or (-1 if header.has_tombstones else 0)

    @property
    def newest_ms(self) -> int:
        """Highest timestamp of what stays."""
        if self.indexes is None:
            return self.header.max_timestamp_ms
        column = self.batch.timestamps_ms
        return max([column[index] for index in self.indexes])

    @property
    def raw_bytes(self) -> int:
        """Its size uncompressed, before records were taken out."""
        return sum(section.raw_bytes for section in self.header.sections)

    @property
    def columnar(self) -> bool:
        """Whether its values are columns."""
        return bool(self.header.flags & COLUMNS)

    @property
    def present(self) -> bytes | None:
        """A byte per record that stays: 1 where it has a value. None: everywhere."""
        return kept_present(self.batch, self.indexes)

    @property
    def empty(self) -> bool:
        """Whether tombstones are all that stays."""
        return self.header.has_tombstones and not any(self.present or b"\x01")


class Merger:
    """Gives batches to a rewriter, joined where possible. Used by one thread.

    Args:
        writer: Takes them.
        codec: Compress with this one; None keeps the codec a batch has.
        declared_codec: That of the topic, for columns that become one batch: where each was too
            small to be compressed, all of them need not be.
    """

    def __init__(
        self, writer: SegmentRewriter, codec: int | None, declared_codec: int = CODEC_NONE
    ) -> None:
        self._writer = writer
        self._codec = codec
        self._columns_codec = declared_codec if codec is None else codec
        self._columns: Piece | None = None
        """The first of the pieces whose values are columns."""
        self._limit = SMALL_MERGED_BYTES if codec is None else MERGED_BYTES
        self._pieces: list[Piece] = []
        self._dropped: list[BatchHeader] = []
        """Batches without records behind the last piece."""
        self._raw_bytes = 0
        self._newest_ms = 0
        self._mark = 0
        self._removed = 0

    def keep(self, piece: Piece) -> None:
        """Take what stays of the next batch."""
        if self._pieces and not self._joins(piece):
            self.flush()
        header = piece.header
        if header.producer_id or header.total_bytes > self._small_bytes(piece):
            self.flush()
            self._write(piece)
            return
        if not self._pieces:
            self._newest_ms = header.prior_max_timestamp_ms
        for dropped in self._dropped:
            self._removed += dropped.record_count
        self._dropped = []
        self._pieces.append(piece)
        if piece.columnar and self._columns is None:
            self._columns = piece
        self._raw_bytes += piece.raw_bytes
        self._newest_ms = max(self._newest_ms, piece.newest_ms)
        self._mark = self._mark or piece.mark
        if self._raw_bytes >= self._most_bytes(piece):
            self.flush()

    def _small_bytes(self, piece: Piece) -> int:
        """Batches that are larger stay by themselves."""
        if piece.columnar:
            return COLUMNS_SMALL_BYTES if arrow_is_there() else 0
        return SMALL_BYTES if self._codec is None else _ANY_BYTES

    def _most_bytes(self, piece: Piece) -> int:
        """Size of the batch that pieces up to this one may become."""
        columns = piece.columnar or self._columns is not None
        return COLUMNS_MERGED_BYTES if columns else self._limit

    def drop(self, header: BatchHeader) -> None:
        """Take a batch of which nothing stays."""
        if self._pieces and header.sequence == self._last.sequence + 1 and not header.producer_id:
            self._dropped.append(header)
            return
        self.flush()
        self._writer.drop(header)

    @property
    def _last(self) -> BatchHeader:
        return self._dropped[-1] if self._dropped else self._pieces[-1].header

    def _joins(self, piece: Piece) -> bool:
        first, header = self._pieces[0].header, piece.header
        count = sum(each.header.record_count for each in self._pieces) + header.record_count
        columns = piece.columnar or self._columns is not None
        return (
            header.sequence == self._last.sequence + 1
            and header.prior_max_timestamp_ms == self._newest_ms
            and header.schema_id == first.schema_id
            and not (header.flags ^ first.flags) & APPEND_TIME
            and (not self._mark or not piece.mark or piece.mark == self._mark)
            and (columns or self._codec is not None or header.codec == first.codec)
            and header.next_offset - first.base_offset <= _OFFSETS_MAX
            and self._raw_bytes + piece.raw_bytes <= self._most_bytes(piece)
            and count <= (COLUMNS_MERGED_ROWS if columns else RECORD_COUNT_MAX)
            and (not columns or self._same_columns(piece))
        )

    def _same_columns(self, piece: Piece) -> bool:
        """Whether a piece can become one with those before it where some hold columns."""
        if not piece.columnar:
            return piece.empty
        if self._columns is None:
            return all(each.empty for each in self._pieces)
        return bool(self._columns.batch.stored_schema.equals(piece.batch.stored_schema))

    def flush(self) -> None:
        """Write what was taken so far."""
        pieces, dropped, mark = self._pieces, self._dropped, self._mark
        removed = self._removed
        self._pieces, self._dropped, self._columns = [], [], None
        self._raw_bytes = self._mark = self._removed = 0
        if len(pieces) == 1:
            self._write(pieces[0])
        elif pieces:
            self._write_merged(pieces, mark, removed)
        for header in dropped:
            self._writer.drop(header)

    def _write(self, piece: Piece) -> None:
        """Write one batch: as it is stored if all of it stays, else what stays of it."""
        header, parts = piece.header, [piece.body]
        indexes, codec = piece.indexes, header.codec if self._codec is None else self._codec
        if indexes is not None or codec != header.codec:
            wanted = range(header.record_count) if indexes is None else indexes
            try:
                encoded = encode_retained(piece.batch, wanted, codec=codec)
            except UsageError:
                # A batch of 128 MiB has no room for the column of offsets: it stays whole.
                encoded = None
            limit = header.total_bytes * (100 - SAVING_MIN_PERCENT)
            if encoded and (indexes is not None or encoded.total_bytes * 100 <= limit):
                header, parts = retained_header(header, encoded), [*body_buffers(encoded)]
        removed = piece.header.record_count - header.record_count
        self._writer.keep(_cleaned(header, piece.header.cleaned_ms), parts, removed=removed)

    def _write_merged(self, pieces: list[Piece], mark: int, removed: int) -> None:
        first, last = pieces[0].header, pieces[-1].header
        columnar = any(piece.columnar for piece in pieces)
        codec = first.codec if self._codec is None else self._codec
        rows = _rows(pieces)
        encoded = encode_rows(
            (first.base_offset, last.last_offset - first.base_offset),
            _as_columns(pieces, rows, self._columns_codec) if columnar else rows,
            flags=first.flags & APPEND_TIME,
            codec=self._columns_codec if columnar else codec,
        )
        header = retained_header(last, encoded)._replace(
            base_offset=first.base_offset,
            durable_offset=first.durable_offset,
            prior_max_timestamp_ms=first.prior_max_timestamp_ms,
        )
        removed += sum(piece.header.record_count for piece in pieces) - header.record_count
        self._writer.keep(_cleaned(header, max(mark, 0)), body_buffers(encoded), removed=removed)


def _as_columns(pieces: Sequence[Piece], rows: Rows, codec: int) -> Rows:
    """The records of pieces some of which hold columns, and the others tombstones alone."""
    present = bytearray()
    tables = []
    for piece in pieces:
        there = piece.present
        count = piece.header.record_count if piece.indexes is None else len(piece.indexes)
        present += b"\x01" * count if there is None else there
        if piece.columnar:
            tables.append(piece.batch.stored_columns(piece.indexes))
    columns = join_rows(tables)
    if not columns.num_rows:
        return rows._replace(values=[None] * len(present))
    return rows._replace(
        columns=encode_columns(columns, codec), present=None if all(present) else bytes(present)
    )


def _cleaned(header: BatchHeader, cleaned_ms: int) -> BatchHeader:
    flags = header.flags & ~CLEANED | (CLEANED if cleaned_ms else 0)
    return header._replace(flags=flags, cleaned_ms=cleaned_ms, transaction_id=0)


def _rows(pieces: list[Piece]) -> Rows:
    """The records of all pieces, as columns."""

    def taken(piece: Piece, column: Sequence[object]) -> Sequence[object]:
        indexes = piece.indexes
        return column if indexes is None else [column[index] for index in indexes]

    def joined(columns: Sequence[Sequence[object]]) -> list[object]:
        return list(chain.from_iterable(map(taken, pieces, columns)))

    flags = 0
    for piece in pieces:
        flags |= piece.header.flags
    batches = [piece.batch for piece in pieces]
    values: list[Buffer | None] = []
    if not any(piece.columnar for piece in pieces):
        for piece in pieces:
            found = piece.batch
            values += found.values if piece.indexes is None else found.values_at(piece.indexes)
    return Rows(
        joined([batch.offsets for batch in batches]),  # type: ignore[arg-type] # columns of ints
        joined([batch.timestamps_ms for batch in batches]),  # type: ignore[arg-type]
        joined([batch.keys for batch in batches]) if flags & HAS_KEYS else None,  # type: ignore[arg-type]
        values,
        joined([batch.headers for batch in batches]) if flags & HAS_HEADERS else None,  # type: ignore[arg-type]
    )
