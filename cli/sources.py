"""Where `consume` and `tail` take records from: a range of partitions, or a consumer group."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from millstream import Consumer, LogReader, Record, RecordBatch, TopicPartition

COMMIT_SECONDS: Final = 0.5
"""Less than the second for which a partition that another member shall get waits for a commit."""

Commit = Literal["auto", "batch", "never"]


class Source(Protocol):
    """Records in order, until `finished`."""

    finished: bool
    """No more records can come."""

    def poll(self, limit: int, seconds: float) -> list[Record]:
        """Up to `limit` records; waits at most `seconds` for the first."""
        ...

    def written(self) -> None:
        """Note that the records of the last poll have been printed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class RangeSource:
    """Partitions from given offsets on, merged in append order.

    Args:
        reader: Stands at the first offsets; closed with the source.
        stops: Offset per partition at which to stop, exclusive; None follows for ever.
        waits_for_stops: Whether to wait for records that are not there yet. If not, the end of
            what is visible is an end as well, for example an open transaction.
    """

    def __init__(
        self,
        reader: LogReader,
        stops: Mapping[TopicPartition, int] | None,
        *,
        waits_for_stops: bool,
    ) -> None:
        self._reader = reader
        self._stops = stops
        self._waits_for_stops = waits_for_stops
        self.finished = False
        self._drop_finished()

    def poll(self, limit: int, seconds: float) -> list[Record]:
        """Up to `limit` records; waits at most `seconds` for the first."""
        batches = self._reader.poll(limit)
        if not batches:
            self._drop_finished()
            self.finished |= (
                self._stops is not None and not self._waits_for_stops and self._reader.at_end()
            )
            if self.finished:
                return []
            self._reader.wait(seconds)
            batches = self._reader.poll(limit)
        records: list[Record] = []
        for batch in batches:
            wanted = batch
            if self._stops is not None:
                stop = self._stops[TopicPartition(batch.topic, batch.partition)]
                wanted = batch.slice(0, batch.index_of(stop))
            records.extend(wanted.records())
        self._drop_finished()
        return records

    def _drop_finished(self) -> None:
        if self._stops is None:
            return
        positions = self._reader.positions
        for partition, position in positions.items():
            if position >= self._stops[partition]:
                self._reader.remove(partition)
        self.finished = not self._reader.positions

    def written(self) -> None:
        """Nothing to note: there is no group."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


class GroupSource:
    """What a consumer group has not read yet; commits what was printed.

    Args:
        consumer: A member of the group, made without `follow`; closed with the source.
        commit: "auto" when caught up and twice a second, "batch" after each batch, or "never".
        follow: Whether to go on at the end.
    """

    def __init__(self, consumer: Consumer, *, commit: Commit, follow: bool) -> None:
        self._consumer = consumer
        self._commit = commit
        self._follow = follow
        self._batches = consumer.batches()
        self._rest: RecordBatch | None = None
        self._polled: dict[TopicPartition, int] = {}
        self._printed: dict[TopicPartition, int] = {}
        self._committed_at = time.monotonic()
        self.finished = False

    def poll(self, limit: int, seconds: float) -> list[Record]:
        """Up to `limit` records; waits at most `seconds` for the first.

        While there is something to read, batches are iterated: a partition that another member
        shall get then stays until it is committed. `poll` would hand it over at once.
        """
        batch = self._take_rest() or next(self._batches, None)
        if batch is not None:
            if batch.record_count > limit:
                self._rest, batch = batch.slice(limit), batch.slice(0, limit)
            place = TopicPartition(batch.topic, batch.partition)
            self._polled = {place: batch.last_offset + 1}
            return batch.records()
        self._batches = self._consumer.batches()
        if not self._follow:
            self._commit_passed()
            self.finished = True
            return []
        if self._commit == "auto":
            self._commit_printed()
        records = self._consumer.poll(seconds, limit)
        if not records:
            self._commit_passed()
        self._polled = {
            TopicPartition(record.topic, record.partition): record.offset + 1 for record in records
        }
        return records

    def _take_rest(self) -> RecordBatch | None:
        """What is left of a batch larger than the last limit, unless another member has it now."""
        rest, self._rest = self._rest, None
        if rest is None or (rest.topic, rest.partition) not in self._consumer.assignment:
            return None
        return rest

    def written(self) -> None:
        """The records of the last poll have been printed: they may be committed."""
        self._printed |= self._polled
        due = time.monotonic() - self._committed_at >= COMMIT_SECONDS
        if self._commit == "batch" or (self._commit == "auto" and due):
            self._commit_printed()

    def _commit_passed(self) -> None:
        """All there is has been printed or passed over, for no record of it was wanted."""
        if self._commit != "never":
            self._consumer.commit()
            self._printed = {}
            self._committed_at = time.monotonic()

    def _commit_printed(self) -> None:
        # After a long stall of our reader, a partition may have gone to another member, which
        # prints its records again; what was read of the others still counts.
        assigned = set(self._consumer.assignment)
        offsets = {tp: offset for tp, offset in self._printed.items() if tp in assigned}
        if offsets:
            self._consumer.commit(offsets)
        self._printed = {}
        self._committed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # Also after a closed pipe: what was written before it counts.
            if self._commit == "auto":
                self._commit_printed()
        finally:
            self._consumer.close()
