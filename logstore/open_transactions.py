"""Which transactions are open, as the log shows it: the batches of owners who have not decided.

The catalog knows what was decided; what has begun is only in the log. So headers are read: the
newest segments at first, later only what is new. An older transaction, whose records all lie
further back, is not found; readers that wait for one show as lag. Changes nothing and aborts
nothing: that is `transaction_states.py`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .errors import DataError, OffsetOutOfRangeError, StorageError
from .log import Log
from .owner_catalog import NUMBER_BITS, OwnerCatalog
from .segment import scan_headers
from .tail import Slot
from .transaction_states import TransactionStates

SEGMENTS_AT_FIRST: Final = 2


class OpenTransaction(NamedTuple):
    """A transaction that is neither committed nor aborted, where it begins in one partition.

    Readers of committed records wait there.
    """

    topic: str
    partition: int
    offset: int
    began_ms: int
    """When its first batch here was appended, UTC milliseconds."""
    owner_id: int


@dataclass(slots=True)
class _Seen:
    """What is known of one partition."""

    next_offset: int
    open: dict[int, OpenTransaction] = field(default_factory=dict)
    """By transaction id."""


class OpenTransactions:
    """Finds the open transactions of a store. Used by one thread at a time.

    Args:
        owners: Of the store's catalog.
        states: Says what was decided.
    """

    def __init__(self, owners: OwnerCatalog, states: TransactionStates) -> None:
        self._owners = owners
        self._states = states
        self._seen: dict[Log, _Seen] = {}

    def find(self, log: Log) -> list[OpenTransaction]:
        """Those that have records in a partition, by offset.

        Raises:
            DataError: Damage where it had to be looked, or the catalog is older than the log.
        """
        if not self._owners.any():
            return []
        try:
            return self._find(log)
        except DataError as error:
            raise error.at(topic=log.topic, partition=log.partition) from None

    def _find(self, log: Log) -> list[OpenTransaction]:
        end = log.slot[Slot.LOG_END]
        seen = self._seen.get(log)
        if seen is None or seen.next_offset > end:  # a recovery has cut what was seen
            seen = self._seen[log] = _Seen(_first_offset(log))
        for transaction in [each for each in seen.open if self._decided(each)]:
            del seen.open[transaction]
        while seen.next_offset < end:
            before = seen.next_offset
            self._scan_segment(log, seen)
            if seen.next_offset == before:
                break  # the rest is being written
        return sorted(seen.open.values(), key=lambda each: each.offset)

    def _decided(self, transaction: int) -> bool:
        return self._states.state(transaction) != "open"

    def _scan_segment(self, log: Log, seen: _Seen) -> None:
        """Go on to the end of the segment that holds the next offset."""
        seen.next_offset = max(seen.next_offset, log.start_offset)
        try:
            file, segment, position = log.files.open_at(seen.next_offset)
        except OffsetOutOfRangeError:
            return  # removed just now
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            return
        try:
            stop = log.files.active_end(segment.base_offset)
            if stop is None:
                stop = file.size()
            for _, header in scan_headers(file, position, stop, segment.segment_uid):
                if header.base_offset < seen.next_offset:
                    continue
                seen.next_offset = header.next_offset
                transaction = header.transaction_id
                if transaction and transaction not in seen.open and not self._decided(transaction):
                    seen.open[transaction] = OpenTransaction(
                        log.topic,
                        log.partition,
                        header.base_offset,
                        header.append_timestamp_ms,
                        transaction >> NUMBER_BITS,
                    )
            if segment.rewrite:
                seen.next_offset = max(seen.next_offset, segment.rewrite.end_offset)
        finally:
            file.close()

    def forget(self, logs: set[Log]) -> None:
        """Keep what is known of these logs only."""
        self._seen = {log: seen for log, seen in self._seen.items() if log in logs}


def _first_offset(log: Log) -> int:
    bases = log.files.bases()
    newest = bases[-SEGMENTS_AT_FIRST:]
    return max(newest[0] if newest else 0, log.start_offset)
