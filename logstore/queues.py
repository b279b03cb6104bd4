"""Queues from outside: open one, describe, skip jobs, give dead letters back.

What a worker does is `job_queue.py`; the stored state is `queue_catalog.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

from . import topics
from .claiming import remove_dead_workers
from .config import (
    Durability,
    TopicConfig,
    check_durability,
    check_group_name,
    check_topic_name,
    whole_number,
)
from .engine import Engine
from .errors import OffsetOutOfRangeError, UnknownGroupError, UnknownTopicError, UsageError
from .job import DEAD_LETTER_HEADERS, Duration, Job
from .job_queue import Queue, QueueOptions
from .positions import Position, parse_duration_ms
from .queue_catalog import QueueCatalog
from .queue_rows import QueueRow
from .record import Headers, TopicPartition
from .topics import resolve
from .transaction import Transaction

Begin: TypeAlias = Callable[[], AbstractContextManager[Transaction]]
"""Starts a transaction of the store."""

REDRIVE_GROUP: Final = "redrive"
"""The group that has given dead letters back."""
_REDRIVEN_AT_ONCE: Final = 500


class QueueWorker(NamedTuple):
    """One open handle of a queue."""

    worker_id: int
    host: str
    pid: int
    client: str


class QueuePartition(NamedTuple):
    """How far a queue is in one partition, in offsets; those without a record count, too."""

    partition: int
    next_offset: int
    """Nothing from here on has been handed out yet."""
    log_end: int
    ready: int
    """To be handed out now."""
    leased: int
    delayed: int
    """To be handed out later, after a nack with a delay."""

    @property
    def depth(self) -> int:
        """All that is not done."""
        return self.ready + self.leased + self.delayed


class QueueInfo(NamedTuple):
    """A queue: its settings, as the worker that came last gave them, its workers, its jobs."""

    topic: str
    group: str
    visibility_ms: int
    max_deliveries: int | None
    dead_letter: str | None
    dead_letters: int | None
    """Offsets in the dead-letter topic, of all queues, that were not given back: as many as there
    are letters, and some more where a worker died as it wrote one."""
    workers: tuple[QueueWorker, ...]
    partitions: tuple[QueuePartition, ...]

    @property
    def depth(self) -> int:
        """Jobs that are not done, in all partitions."""
        return sum(each.depth for each in self.partitions)


class Redriven(NamedTuple):
    """What became of dead letters."""

    given_back: int
    """To their queue, as the records they were."""
    copied: int
    """Appended to their topic again, because the record or the queue is gone."""
    left: int
    """Not dead letters of a queue: they stay where they are."""


def open_queue(  # noqa: PLR0913 - what there is to say about a queue
    engine: Engine,
    begin: Begin,
    topic: str,
    *,
    group: str,
    visibility: Duration,
    max_deliveries: int | None,
    dead_letter: str | None,
    start: int | str | datetime | Position,
    follow: bool,
    durability: Durability | None,
) -> Queue:
    """See `Store.queue`."""
    engine.ensure_writable()
    check_durability(durability or engine.durability)
    visibility_ms = parse_duration_ms(visibility)
    if visibility_ms < 1:
        raise UsageError("visibility is 0: give the time a worker may take for a job")
    if max_deliveries is not None:
        if whole_number(max_deliveries, "max_deliveries") < 1:
            raise UsageError(f"max_deliveries is {max_deliveries}; give 1 or more")
        if dead_letter is None:
            raise UsageError("max_deliveries needs dead_letter: a topic for what fails so often")
    info = engine.topic(topic)
    if dead_letter is not None:
        _create_dead_letter_topic(engine, topic, dead_letter)
    queues = QueueCatalog(engine.catalog)
    starts = {}
    if queues.find(check_group_name(group), info.id) is None:
        for number in range(info.partitions):
            offset = resolve(engine, TopicPartition(topic, number), start)
            starts[number] = offset
        topics.check_starts(
            engine, {TopicPartition(topic, number): offset for number, offset in starts.items()}
        )
    wanted = QueueRow(0, group, info.id, topic, visibility_ms, max_deliveries, dead_letter)
    row = queues.create(wanted, starts)
    _refuse_lost_jobs(engine, row)
    remove_dead_workers(engine, row)
    options = QueueOptions(durability=durability or engine.durability, follow=follow)
    return Queue(engine, row, options, begin)


def _create_dead_letter_topic(engine: Engine, topic: str, dead_letter: str) -> None:
    check_topic_name(dead_letter)
    if dead_letter == topic:
        raise UsageError(f"{topic!r} cannot be its own dead-letter topic", topic=topic)
    if all(info.name != dead_letter for info in engine.topics()):
        topics.create(engine, dead_letter, partitions=1, exist_ok=True, config=TopicConfig())


def _refuse_lost_jobs(engine: Engine, row: QueueRow) -> None:
    for partition, offset in QueueCatalog(engine.catalog).look(row).next_offsets.items():
        end = engine.log(row.topic, partition).visible_offset
        if offset > end:
            raise OffsetOutOfRangeError(
                f"the queue of group {row.group!r} has handed out offsets up to {offset}, but the"
                f" log ends at {end}: it was restored from an older copy. Delete the group",
                topic=row.topic,
                partition=partition,
                offset=offset,
            )


def listing(engine: Engine, topic: str | None = None) -> list[QueueInfo]:
    """All queues, or those of a topic, by topic and group.

    Workers that are dead are removed first, unless the store is read-only.

    Raises:
        UnknownTopicError: There is no such topic.
    """
    engine.ensure_open()
    queues = QueueCatalog(engine.catalog)
    rows = queues.listing() if topic is None else queues.of_topic(engine.topic(topic).id)
    return [_info(engine, row) for row in rows]


def _info(engine: Engine, row: QueueRow) -> QueueInfo:
    remove_dead_workers(engine, row)
    queues = QueueCatalog(engine.catalog)
    workers = tuple(
        QueueWorker(each.id, each.host, each.pid, each.client) for each in queues.workers(row)
    )
    return QueueInfo(
        row.topic,
        row.group,
        *row[4:],
        None if row.dead_letter is None else _dead_letters(engine, row.dead_letter),
        workers,
        _partitions(engine, row),
    )


def _partitions(engine: Engine, row: QueueRow) -> tuple[QueuePartition, ...]:
    partitions = []
    for counts in QueueCatalog(engine.catalog).counts(row, engine.clock.now_ms()):
        end = engine.log(row.topic, counts.partition).visible_offset
        ready = counts.waiting + max(0, end - counts.next_offset)
        partitions.append(
            QueuePartition(
                counts.partition, counts.next_offset, end, ready, counts.leased, counts.delayed
            )
        )
    return tuple(partitions)


def _dead_letters(engine: Engine, topic: str) -> int:
    try:
        info = engine.topic(topic)
    except UnknownTopicError:
        return 0  # it was deleted; the next dead letter says so
    row = QueueCatalog(engine.catalog).find(REDRIVE_GROUP, info.id)
    if row is not None:
        return sum(each.depth for each in _partitions(engine, row))
    return sum(end - start for start, end in topics.offset_ranges(engine, topic).values())


def skip(
    engine: Engine,
    topic: str,
    group: str,
    before: int | str | datetime | Position,
    *,
    partition: int | None,
    dry_run: bool,
) -> int:
    """Count all jobs before a position as done; how many offsets that were. See `Store.skip_jobs`.

    Raises:
        UnknownTopicError, UnknownGroupError: No such topic, or no such queue of it.
    """
    engine.ensure_writable()
    queues = QueueCatalog(engine.catalog)
    row = queues.find(check_group_name(group), engine.topic(topic).id)
    if row is None:
        raise UnknownGroupError(f"group {group!r} has no queue over the topic", topic=topic)
    skipped = 0
    for place in topics.partitions(engine, topic, partition):
        end = engine.log(*place).visible_offset
        offset = min(resolve(engine, place, before), end)
        forget = queues.count_below if dry_run else queues.forget_below
        skipped += forget(row, place.partition, offset)
    return skipped


# Dead letters


def redrive(engine: Engine, begin: Begin, dead_letter: str, limit: int | None) -> Redriven:
    """Give dead letters back; see `Store.redrive`."""
    engine.ensure_writable()
    if limit is not None and whole_number(limit, "limit") < 1:
        raise UsageError(f"limit is {limit}; give 1 or more")
    given_back = copied = left = 0
    with open_queue(
        engine,
        begin,
        dead_letter,
        group=REDRIVE_GROUP,
        visibility="5m",
        max_deliveries=None,
        dead_letter=None,
        start="earliest",
        follow=False,
        durability="sync",
    ) as queue:
        while limit is None or limit > given_back + copied:
            wanted = _REDRIVEN_AT_ONCE
            if limit is not None:
                wanted = min(wanted, limit - given_back - copied)
            jobs = queue.get_many(wanted, timeout=0)
            if not jobs:
                break
            letters = [(job, origin) for job in jobs if (origin := _origin(job)) is not None]
            left += len(jobs) - len(letters)  # given back when the queue is closed
            copies = _redrive(engine, begin, letters)
            copied += copies
            given_back += len(letters) - copies
        engine.tail.bump("queues_version")
    return Redriven(given_back, copied, left)


class _Origin(NamedTuple):
    """Where a dead letter comes from."""

    topic: str
    partition: int
    offset: int
    group: str
    headers: Headers
    """Those of the record."""


def _origin(job: Job) -> _Origin | None:
    count = len(DEAD_LETTER_HEADERS)
    added = job.headers[-count:]
    if tuple(name for name, _ in added) != DEAD_LETTER_HEADERS:
        return None
    try:
        topic, partition, offset, group, *_ = ((value or b"").decode() for _, value in added)
        return _Origin(topic, int(partition), int(offset), group, job.headers[:-count])
    except ValueError:
        return None


def _redrive(engine: Engine, begin: Begin, letters: Sequence[tuple[Job, _Origin]]) -> int:
    """Give letters back in one commit; how many of them as copies."""
    copies = 0
    queues = QueueCatalog(engine.catalog)
    with begin() as transaction:
        for job, origin in letters:
            info = engine.topic(origin.topic)
            row = queues.find(origin.group, info.id)
            partition = min(origin.partition, info.partitions - 1)
            if row is not None and engine.log(info.name, partition).start_offset <= origin.offset:
                transaction.also(_again(queues, row, origin))
            else:
                copies += 1
                transaction.append(
                    info.name,
                    job.value,
                    key=job.key,
                    timestamp_ms=job.timestamp_ms,
                    headers=origin.headers,
                    partition=partition,
                )
        transaction.ack(*(job for job, _ in letters))
    return copies


def _again(queues: QueueCatalog, row: QueueRow, origin: _Origin) -> Callable[[], None]:
    def write() -> None:
        queues.write_again(row, origin.partition, origin.offset)

    return write
