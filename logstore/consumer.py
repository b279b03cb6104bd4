"""Consumers: read topics from where a group, or this program, has stopped.

A consumer of a group shares the partitions with the other members (`membership.py`) and continues
each one at the offset the group committed. Without a group it reads all partitions and remembers
nothing. Fetching is `reader.py`; what was fetched and not yet seen by the user is `delivery.py`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final, Self, TypeVar

from .batch_facts import MayHold
from .config import Isolation, check_timeout, checked_place, topic_names, whole_number
from .delivery import Delivery
from .engine import Engine
from .errors import OffsetOutOfRangeError, StoreClosedError, UnknownTopicError, UsageError
from .handle import Handle
from .membership import (
    LIVENESS_INTERVAL_SECONDS,
    Membership,
    check_committable,
    checked_offsets,
)
from .positions import Position, parse_position
from .reader import LogReader
from .record import Record, TopicPartition
from .record_batch import RecordBatch
from .topics import resolve

HAND_OVER_GRACE_SECONDS: Final = 1.0
"""While iterating, how long a partition that shall go to another member waits for a commit."""
EXPECT_SECONDS: Final = 10.0
"""Without `follow`, how long the end waits for partitions another member shall hand over."""
_CHUNK_RECORDS_MAX: Final = 4096
_CHUNK_SECONDS_MIN: Final = 0.02
_CHUNK_SECONDS_MAX: Final = 0.2

T = TypeVar("T")

_logger = logging.getLogger("millstream")


class Consumer(Handle):
    """Reads records of some topics. Made by `Store.consumer`; a context manager.

    Iterating gives one record after another, `poll` lists, `batches` columns; they may be mixed.
    Without `follow` iteration ends when every partition has been read to its visible end; with it,
    it waits for more. Nothing is committed by itself: `commit` after processing, and no record is
    skipped whatever dies (some may come twice); or commit `position()` in a transaction with the
    results.

    A partition starts at the offset its group committed, else at `start`. A committed offset that
    retention has overtaken continues at the log start, with a warning in the log "millstream"; one
    behind the log end is an OffsetOutOfRangeError, because records the group has read are gone.

    Leave the block, or call `close`, and the others of the group take over at once. They also do
    when the process dies, and when a member has not asked for a record for five minutes.

    For one thread at a time: concurrent use is a UsageError.

    Args:
        engine: The open store.
        topics: One or several existing topics.
        group: Name of the group to join; None reads alone.
        start: Where a partition starts that the group has not committed: "earliest", "latest",
            "@<time>", "-10", an offset; see `positions.py`.
        follow: Wait for records at the end.
        isolation: "uncommitted" also shows records of open and aborted transactions.
        may_hold: Asked of each batch of at least 256 records before it is read; one it says no of
            is passed over, and counts as read. See `BatchFacts`.

    Raises:
        UnknownTopicError: A topic does not exist.
        OffsetOutOfRangeError: See above, or `start` is an offset outside a log.
        UsageError: Bad argument; a group and a store open read-only.

    >>> import millstream
    >>> with millstream.open(":memory:") as store:
    ...     info = store.create_topic("orders")
    ...     appended = store.append_many("orders", [b"a", b"b"])
    ...     with store.consumer("orders", group="billing") as consumer:
    ...         for record in consumer:
    ...             print(record.offset, record.value)
    ...         consumer.commit()
    ...     [each.lag for each in store.group_lag("billing")]
    0 b'a'
    1 b'b'
    [0]
    """

    def __init__(  # noqa: PLR0913 - as many as a reader of a group has to say
        self,
        engine: Engine,
        topics: str | Sequence[str],
        *,
        group: str | None = None,
        start: int | str | datetime | Position = "earliest",
        follow: bool = False,
        isolation: Isolation = "committed",
        may_hold: MayHold | None = None,
    ) -> None:
        names = _topic_names(engine, topics)
        self._engine = engine
        self._asked = f"{', '.join(names)}" + (f" group {group!r}" if group else "")
        self._follow = follow
        self._start = parse_position(start, engine.clock.now_ms())
        if self._start.kind == "stored":
            if group is None:
                raise UsageError("start='stored' is where a group stopped: give group='name'")
            self._start = Position("earliest")
        self._guard = threading.Lock()
        self._closed = False
        self._delivery = Delivery()
        self._stream: Iterator[Record] | None = None
        self._chunk_records = 64
        self._chunk_due = 0.0
        self._expect_until: float | None = None
        self._hand_over_at: float | None = None
        self._must_adopt = True
        self._reading: dict[TopicPartition, tuple[int, int]] = {}
        """What the reader reads, each with the topic id and generation it was given in."""
        self._committed: dict[TopicPartition, int] = {}
        self._reader = LogReader(engine, {}, isolation=isolation, may_hold=may_hold)
        self._membership: Membership | None = None
        try:
            if group is not None:
                self._membership = Membership(engine, group, frozenset(names))
            self._adopt(names)
        except BaseException:
            self.close()
            raise

    # Reading

    def __repr__(self) -> str:
        return f"<Consumer {self._asked}{' closed' if self._closed else ''}>"

    def poll(self, timeout: float | None = 0.0, max_records: int = 500) -> list[Record]:
        """The next records: at least one, unless none came within `timeout` seconds.

        Partitions that shall go to another member are handed over here, so commit before.

        Args:
            timeout: Seconds; None waits as long as it takes.
            max_records: At most that many.

        Raises:
            DataError: Damage, with topic, partition, offset and file; `seek` past it to go on.
            OffsetOutOfRangeError: A partition just assigned cannot start where it should.
        """
        if whole_number(max_records, "max_records") < 1:
            raise UsageError(f"max_records is {max_records}; give 1 or more")
        clock = self._engine.clock
        seconds = check_timeout(timeout)
        deadline = None if seconds is None else clock.monotonic() + seconds
        with self._exclusive():
            while True:
                self._look_after(hand_over=True)
                self._fetch()
                records = self._delivery.take(max_records)
                remaining = None if deadline is None else deadline - clock.monotonic()
                if records or (remaining is not None and remaining <= 0):
                    return records
                self._wait(remaining)

    def __iter__(self) -> Iterator[Record]:
        if self._stream is None:
            # chain walks the chunks' iterators in C: no Python code runs per record.
            self._stream = itertools.chain.from_iterable(self._pieces(self._next_chunk))
        return self._stream

    def __next__(self) -> Record:
        return next(iter(self))

    def batches(self) -> Iterator[RecordBatch]:
        """Iterate over batches of columns instead of records."""
        return self._pieces(self._delivery.take_batch)

    def _pieces(self, take: Callable[[], T | None]) -> Iterator[T]:
        try:
            while (piece := self._next_piece(take)) is not None:
                yield piece
        finally:
            self._stream = None

    def _next_piece(self, take: Callable[[], T | None]) -> T | None:
        """What `take` gives, fetching and waiting as needed; None at the end."""
        with self._exclusive():
            while True:
                self._look_after(hand_over=False)
                self._fetch()
                piece = take()
                if piece is not None:
                    return piece
                if self._at_end():
                    return None
                self._wait(None)

    def _next_chunk(self) -> Iterator[Record] | None:
        """Chunks are sized by the time the user takes, so that the group is looked after."""
        if self._membership is None:
            return self._delivery.chunk(_CHUNK_RECORDS_MAX)
        now = self._engine.clock.monotonic()
        elapsed, self._chunk_due = now - self._chunk_due, now
        if elapsed < _CHUNK_SECONDS_MIN:
            self._chunk_records = min(self._chunk_records * 2, _CHUNK_RECORDS_MAX)
        elif elapsed > _CHUNK_SECONDS_MAX:
            self._chunk_records = max(self._chunk_records // 2, 1)
        return self._delivery.chunk(self._chunk_records)

    def _fetch(self) -> None:
        if self._delivery:
            return
        try:
            self._delivery.extend(self._reader.poll())
        except OffsetOutOfRangeError:
            if not self._follow_retention():
                raise
            self._delivery.extend(self._reader.poll())
        except UnknownTopicError:
            if self._membership is None:
                raise
            # Deleted since the group was looked after; it goes on with the other topics.
            self._look_after(hand_over=False)

    def _follow_retention(self) -> bool:
        """Move partitions whose next records retention has removed to their start."""
        moved = False
        for partition, offset in self._reader.positions.items():
            start = self._engine.log(*partition).start_offset
            if offset < start:
                self._warn_removed(partition, offset, start)
                self._reader.seek(partition, start)
                moved = True
        return moved

    def _warn_removed(self, partition: TopicPartition, offset: int, start: int) -> None:
        _logger.warning(
            "%s/%d: retention removed offsets %d to %d before %s read them; continuing at %d",
            partition.topic,
            partition.partition,
            offset,
            start - 1,
            f"group {self._membership.group!r}" if self._membership else "the consumer",
            start,
        )

    def _at_end(self) -> bool:
        if self._follow or not self._reader.at_end():
            return False
        if self._membership is None or not self._membership.expecting:
            self._expect_until = None
            return True
        # What another member shall hand over has to be read too, but not waited for without end.
        now = self._engine.clock.monotonic()
        if self._expect_until is None:
            self._expect_until = now + EXPECT_SECONDS
        return now >= self._expect_until

    def _wait(self, timeout: float | None) -> None:
        if self._membership is not None:
            pause = LIVENESS_INTERVAL_SECONDS
            timeout = pause if timeout is None else min(timeout, pause)
        elif not self._follow and timeout is None:
            timeout = LIVENESS_INTERVAL_SECONDS
        self._reader.wait(timeout)

    # The group

    def _look_after(self, *, hand_over: bool) -> None:
        """Take part in the group; called before anything is delivered."""
        membership = self._membership
        if membership is None:
            return
        changed = membership.poll()
        if not membership.must_hand_over:
            self._hand_over_at = None
        elif hand_over or self._grace_is_over():
            self._hand_over_at = None
            changed = membership.hand_over() or changed
        # A partition that could not be taken up stays an error until it can.
        self._must_adopt |= changed
        if self._must_adopt:
            self._adopt(())

    def _grace_is_over(self) -> bool:
        now = self._engine.clock.monotonic()
        if self._hand_over_at is None:
            self._hand_over_at = now + HAND_OVER_GRACE_SECONDS
        return now >= self._hand_over_at

    def _adopt(self, topics: Sequence[str]) -> None:
        """Read what this consumer owns: its member's partitions, or all of `topics`."""
        if self._membership is None:
            for topic in topics:
                for number in range(self._engine.topic(topic).partitions):
                    self._add(TopicPartition(topic, number), None, (0, 0))
            return
        self._drop_lost()
        for partition, row in self._membership.owned.items():
            if partition not in self._reading:
                self._add(partition, row.committed_offset, (row.topic_id, row.generation))
        self._must_adopt = False

    def _drop_lost(self) -> None:
        """Stop reading partitions that are no longer this member's, or are so anew."""
        assert self._membership is not None
        owned = {
            partition: (row.topic_id, row.generation)
            for partition, row in self._membership.owned.items()
        }
        lost = [
            partition for partition, given in self._reading.items() if owned.get(partition) != given
        ]
        self._delivery.drop(lost)
        for partition in lost:
            self._reader.remove(partition)
            del self._reading[partition]
            self._committed.pop(partition, None)

    def _add(
        self, partition: TopicPartition, committed: int | None, given: tuple[int, int]
    ) -> None:
        if committed is None:
            offset = resolve(self._engine, partition, self._start)
        else:
            offset = self._resume(partition, committed)
            self._committed[partition] = committed
        self._reader.add(partition, offset)
        self._reading[partition] = given

    def _resume(self, partition: TopicPartition, committed: int) -> int:
        log = self._engine.log(*partition)
        start, end = log.start_offset, log.visible_offset
        if committed > end:
            assert self._membership is not None
            raise OffsetOutOfRangeError(
                f"group {self._membership.group!r} has read up to {committed}, but the log ends at"
                f" {end}: records were lost with a machine that died in a weaker durability mode,"
                " or by restoring an older copy. Reset the group",
                topic=partition.topic,
                partition=partition.partition,
                offset=committed,
            )
        if committed < start:
            self._warn_removed(partition, committed, start)
        return max(committed, start)

    # Offsets

    def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        """Commit the next offset of each partition, durably, all or none.

        Args:
            offsets: Next offset to read per partition; None takes `position()`, so that every
                record delivered counts as processed, the one of the current iteration included.

        Raises:
            FencedError: Another member owns a partition now; nothing was committed. The next
                record or poll continues with what this member owns.
            OffsetOutOfRangeError: An offset is past the log end.
            UsageError: The consumer has no group.
        """
        with self._exclusive():
            membership = self._member("commit")
            if offsets is None:
                offsets = {
                    partition: offset
                    for partition, offset in self._positions().items()
                    if self._committed.get(partition) != offset
                }
            else:
                offsets = checked_offsets(offsets)
                for place, offset in offsets.items():
                    if place in self._reading:  # of others: FencedError, with its reason
                        check_committable(self._engine, place, offset)
            if offsets:
                membership.commit(offsets)
                self._committed.update(offsets)
            if membership.must_hand_over and membership.hand_over():
                self._must_adopt = True
                self._drop_lost()

    def committed(self) -> dict[TopicPartition, int | None]:
        """What the group committed for each assigned partition; None if nothing yet."""
        with self._exclusive():
            stored = self._member("committed offsets").committed_offsets()
            return {partition: stored.get(partition) for partition in sorted(self._reading)}

    def position(self) -> dict[TopicPartition, int]:
        """Next offset of each assigned partition: all before was delivered."""
        with self._exclusive():
            return self._positions()

    def _positions(self) -> dict[TopicPartition, int]:
        return self._reader.positions | self._delivery.undelivered()

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets each assigned partition is behind its visible end."""
        with self._exclusive():
            return {
                partition: max(0, self._engine.log(*partition).visible_offset - offset)
                for partition, offset in self._positions().items()
            }

    def seek(
        self,
        partition: TopicPartition | tuple[str, int],
        position: int | str | datetime | Position,
    ) -> None:
        """Continue an assigned partition somewhere else: an offset, "earliest", "@<time>", ...

        "stored" is where the group stopped, or the log start if it has committed nothing.

        Raises:
            UsageError: The partition is not assigned to this consumer.
            OffsetOutOfRangeError: There is no such offset.
        """
        with self._exclusive():
            place = checked_place(partition)
            if place not in self._reading:
                raise UsageError(
                    "the partition is not assigned to this consumer",
                    topic=place.topic,
                    partition=place.partition,
                )
            where = parse_position(position, self._engine.clock.now_ms())
            if where.kind == "stored":
                stored = self._member("a stored offset").committed_offsets().get(place)
                where = Position("earliest") if stored is None else Position("offset", stored)
            self._reader.seek(place, resolve(self._engine, place, where))
            self._delivery.drop([place])

    @property
    def assignment(self) -> tuple[TopicPartition, ...]:
        """The partitions this consumer reads, as of its last poll."""
        return tuple(sorted(self._reading))

    @property
    def member_id(self) -> str | None:
        """Name of this member in its group; None without a group."""
        return None if self._membership is None else self._membership.member_id

    def _member(self, what: str) -> Membership:
        if self._membership is None:
            raise UsageError(f"{what}: only a group has that; make the consumer with group='name'")
        return self._membership

    # Closing

    def close(self) -> None:
        """Leave the group, without a commit, and close. Idempotent."""
        if self._closed:
            return
        with self._exclusive():
            self._closed = True
            self._delivery = Delivery()
            self._reading = {}
            try:
                if self._membership is not None:
                    self._engine.ensure_open()
                    self._membership.leave()
            except StoreClosedError:
                pass  # a closed store's members are dead, and others have noticed or will
            finally:
                self._reader.close()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Refuse a second thread, and use after closing."""
        if self._closed:
            raise StoreClosedError("the consumer is closed")
        if not self._guard.acquire(blocking=False):
            raise UsageError("a consumer is for one thread at a time: make one per thread")
        try:
            yield
        finally:
            self._guard.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _topic_names(engine: Engine, topics: str | Sequence[str]) -> tuple[str, ...]:
    engine.ensure_open()
    names = topic_names(topics)
    if not names:
        raise UsageError("a consumer needs at least one topic")
    for name in names:
        engine.topic(name)
    return names
