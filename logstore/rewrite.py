"""Write a segment that stands for others: batches copied, cut down or left out as gaps.

The caller says of each batch, in order, what stays of it (`compaction.py`); here it gets its place
in the new chain. Nothing of this is part of the log before `swap.py` puts it there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from .errors import CorruptBatchError
from .format import (
    REWRITTEN,
    REWRITTEN_DATA_START,
    BatchHeader,
    Buffer,
    Rewrite,
    SegmentHeader,
    encode_header,
    encode_rewrite,
    encode_segment_header,
    gap_of,
)
from .index import SparseIndex
from .segment import rewrite_path
from .storage import Storage

WRITE_BYTES: Final = 1 << 20
"""Written at once."""
SYNC_BYTES: Final = 32 << 20
"""Synced at once, so that no sync of somebody else has to wait for a whole segment. Most of it has
been written to the disk by then."""
_GAP_MAX: Final = 1 << 32
"""Offsets one gap covers."""


class SegmentRewriter:
    """Builds one rewritten segment in a temporary file. Used by one thread.

    Args:
        storage: Where the partition is.
        directory: Its directory.
        first: Header of the first segment it stands for.
    """

    def __init__(self, storage: Storage, directory: str, first: SegmentHeader) -> None:
        self._storage = storage
        uid = (int.from_bytes(os.urandom(8), "little") >> 1) or 1
        self.header = first._replace(
            segment_uid=uid,
            incompatible=first.incompatible | REWRITTEN,
            header_hash=0,
            rewrite=None,
        )
        self._encoded, self._previous_hash = encode_segment_header(self.header)
        self.path = rewrite_path(directory, first.base_offset, uid)
        self.index = SparseIndex()
        self.record_count = 0
        self.removed = 0
        """Records left out."""
        self._file = storage.open(self.path, "x")
        self._position = self._synced = REWRITTEN_DATA_START
        self._buffers: list[Buffer] = []
        self._buffered = 0
        self._gap: BatchHeader | None = None
        self._next_offset = first.base_offset
        self._sequence = 0
        self._cleaned_ms = 0

    @property
    def data_bytes(self) -> int:
        """Bytes of the segment so far."""
        return self._position + self._buffered

    def keep(self, header: BatchHeader, body: Sequence[Buffer], *, removed: int = 0) -> None:
        """Append a batch: its header as it shall be but for the links, and its padded body.

        `removed` records of it were left out.
        """
        self._expect(header)
        self._write_gap()
        self._append(header, body)
        self.removed += removed

    def drop(self, header: BatchHeader) -> None:
        """Leave a gap in the place of a batch."""
        self._expect(header)
        self.removed += header.record_count
        gap, before = gap_of(header), self._gap
        if (
            before is not None
            and before.producer_id == gap.producer_id
            and before.producer_epoch == gap.producer_epoch
            and gap.next_offset - before.base_offset <= _GAP_MAX
        ):
            gap = gap._replace(
                base_offset=before.base_offset,
                last_offset_delta=gap.last_offset - before.base_offset,
                durable_offset=before.durable_offset,
                prior_max_timestamp_ms=before.prior_max_timestamp_ms,
            )
        else:
            self._write_gap()
        self._gap = gap

    def _expect(self, header: BatchHeader) -> None:
        if header.base_offset != self._next_offset:
            raise CorruptBatchError(
                f"found offset {header.base_offset} where {self._next_offset} was expected"
            )
        self._next_offset = header.next_offset

    def _write_gap(self) -> None:
        gap, self._gap = self._gap, None
        if gap is not None:
            self._append(gap, ())

    def _append(self, header: BatchHeader, body: Sequence[Buffer]) -> None:
        position = self.data_bytes
        header = header._replace(previous_hash=self._previous_hash)
        encoded, self._previous_hash = encode_header(header, self.header.segment_uid)
        self.index.append(header.base_offset, position, header.running_max_timestamp_ms)
        self._sequence = header.sequence
        self.record_count += header.record_count
        if header.cleaned_ms:
            known = self._cleaned_ms
            self._cleaned_ms = min(known, header.cleaned_ms) if known else header.cleaned_ms
        self._buffers += (encoded, *body)
        self._buffered += header.total_bytes
        if self._buffered >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._buffers, self._position)
        self._file.start_sync(self._buffered, self._position)
        self._position += self._buffered
        self._buffers, self._buffered = [], 0
        if self._position - self._synced >= SYNC_BYTES:
            self._file.sync()
            self._synced = self._position

    def finish(self, following: SegmentHeader, now_ms: int) -> SegmentHeader:
        """Write what is left and both headers, and sync; the header as a reader will see it.

        Args:
            following: Header of the segment behind the last one this stands for.
            now_ms: Wall clock.

        Raises:
            CorruptBatchError: The batches do not reach up to that segment.
        """
        if self._next_offset != following.base_offset:
            raise CorruptBatchError(
                f"the segments end at offset {self._next_offset} but the next one starts at"
                f" {following.base_offset}",
                offset=self._next_offset,
            )
        self._write_gap()
        if self._buffers:
            self._flush()
        rewrite = Rewrite(
            end_offset=self._next_offset,
            data_bytes=self._position,
            last_hash=self._previous_hash,
            last_sequence=self._sequence,
            replaced_uid=following.previous_segment_uid,
            replaced_hash=following.previous_hash,
            rewritten_ms=now_ms,
            cleaned_ms=self._cleaned_ms,
            record_count=self.record_count,
        )
        self._file.write([self._encoded, encode_rewrite(rewrite, self.header.segment_uid)], 0)
        self._file.sync()
        self._file.close()
        return self.header._replace(
            header_hash=int.from_bytes(self._encoded[-8:], "little"), rewrite=rewrite
        )

    def discard(self) -> None:
        """Remove the temporary file, if it is still there under its own name."""
        self._file.close()
        self._storage.remove(self.path)
