"""The store: what `millstream.open` returns and everything users do starts from.

A thin facade. Writing is `store_writing.py`, reading is `reader.py` and `scan.py`, groups are
`consumer.py` and `membership.py`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal, Self

from . import groups, queues, topics
from .backup import BackupReport, back_up
from .batch_facts import MayHold
from .cache_database import CacheDatabase, open_cache, remove_cache
from .clock import Clock, SystemClock
from .config import Durability, Isolation, TopicConfig, TopicInfo, check_durability, path_text
from .consumer import Consumer
from .engine import Engine
from .errors import UsageError
from .groups import GroupInfo, PartitionLag, Place, ResetPlan
from .job import Duration
from .job_queue import DEFAULT_GROUP, DEFAULT_VISIBILITY, Queue
from .memory import MemoryStorage
from .metrics import Gauge, StoreMetrics
from .positions import Position
from .queues import QueueInfo, Redriven
from .reader import LogReader
from .record import Record, TopicPartition
from .scan import Scan
from .storage import PosixStorage, Storage
from .store_upkeep import StoreUpkeep
from .store_writing import StoreWriting
from .topics import OffsetRange
from .verify import verify
from .verify_report import VerifyReport

MEMORY = ":memory:"


def open_store(
    path: str | os.PathLike[str] = MEMORY,
    *,
    durability: Durability = "sync",
    read_only: bool = False,
    storage: Storage | None = None,
    clock: Clock | None = None,
) -> Store:
    """Open a store, creating it if need be. Exported as `millstream.open`.

    Any number of processes may have the same store open, to write and to read.

    Args:
        path: Directory of the store; ":memory:" for one that vanishes with the process.
        durability: When an append is acknowledged: "sync" after fdatasync (shared by all who
            wait), "interval" after the write with a sync about every 100 ms, "os" after the
            write. A process that dies loses nothing in any mode; the mode says what a machine
            that dies may lose. Every append may choose its own.
        read_only: Change nothing, not even to repair a torn tail.
        storage: Where to keep the files instead of `path`, for example a `MemoryStorage`.
        clock: Source of time, for tests.

    Raises:
        UsageError: Unknown durability, or nothing there to open read-only.
        StorageError: The directory cannot be created, read or written.
        DataError, FormatVersionError: The catalog is damaged or of a newer version.

    >>> with open_store(":memory:") as store:
    ...     info = store.create_topic("orders")
    ...     store.append("orders", b"{}", key=b"u1").offset
    0
    """
    check_durability(durability)
    _check_part("storage", storage, Storage, "a directory as path, or a MemoryStorage()")
    _check_part("clock", clock, Clock, "a ManualClock(), or nothing for the time of the system")
    if storage is None:
        place = path_text(path)
        if not place:
            raise UsageError("an empty path is none: the current directory is '.'")
        storage = (
            MemoryStorage(crashable=False)
            if place == MEMORY
            else PosixStorage(place, read_only=read_only)
        )
    elif storage.read_only and not read_only:
        raise UsageError("the storage is read-only: open the store with read_only=True")
    engine = Engine(storage, clock or SystemClock(), durability=durability, read_only=read_only)
    return Store(engine)


def _check_part(name: str, given: object, wanted: type, remedy: str) -> None:
    """Refuse what has not the methods of a part; also their class, which is a likely slip.

    Raises:
        UsageError: It is no such part.
    """
    parts = [part for part in vars(wanted) if not part.startswith("_")]
    if given is not None and (
        isinstance(given, type) or not all(hasattr(given, part) for part in parts)
    ):
        raise UsageError(f"{name}={given!r} is no {wanted.__name__}: give {remedy}")


class Store(StoreWriting, StoreUpkeep):
    """An open store. Thread-safe; a context manager. Not usable in the child of a fork.

    Made by `millstream.open`.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._gauge = Gauge(engine)
        # For a store that nobody closes. Not `__del__`: when an interpreter that exits comes to
        # that, it has stopped the threads that closing waits for, maybe with a lock in their hands.
        weakref.finalize(self, engine.abandon)

    def __repr__(self) -> str:
        state = "closed" if self.closed else self._engine.durability
        return f"<Store {self._engine.storage.root} {state}>"

    @property
    def uid(self) -> str:
        """Identity of the store, 32 hexadecimal digits; a copy of its files has the same."""
        return self._engine.catalog.store_uid.hex()

    # --- topics --------------------------------------------------------------------------------

    def create_topic(  # noqa: PLR0913 - what there is to say about a topic
        self,
        name: str,
        *,
        partitions: int = 1,
        exist_ok: bool = False,
        schema: object = None,
        key: str | None = None,
        time: str | None = None,
        values: Literal["columns", "json"] = "columns",
        **config: object,
    ) -> TopicInfo:
        """Create a topic.

        Args:
            name: 1 to 200 of A-Z a-z 0-9 . _ -
            partitions: Fixed for the topic's life. Order is kept within a partition, and records
                of one key share one.
            exist_ok: Return the existing topic if it has as many partitions and the same schema.
            schema: What values are: a msgspec Struct, a dataclass or a pyarrow.Schema. They are
                then stored as Arrow columns, whether they come as Arrow, as columns or as JSON.
                Needs the extra `arrow`.
            key: With a schema: the field that is the key of records appended without one.
            time: With a schema: the field that is their timestamp.
            values: With a schema: "json" stores values as they come, checked against it.
            **config: retention, retention_bytes, compact, compression, segment_bytes, segment_ms
                and more; see `TopicConfig`.

        Raises:
            TopicExistsError: It exists.
            UsageError: Bad name, partition count, schema or option.
            MissingExtraError: A schema, and pyarrow is not installed.
        """
        options = TopicConfig.from_options(**config)
        try:
            options = topics.with_schema(options, schema, key=key, time=time, values=values)
        except UsageError as error:
            raise error.at(topic=name) from None
        return topics.create(
            self._engine, name, partitions=partitions, exist_ok=exist_ok, config=options
        )

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its records, its group offsets and its files, for good."""
        topics.delete(self._engine, name)

    def configure_topic(self, name: str, **config: object) -> TopicInfo:
        """Change some options of a topic; see `create_topic`. Applies from the next append on.

        A `schema` may add nullable columns and widen types: what was written before is read under
        the new one. Any other difference is refused, and the error lists it.
        """
        return topics.configure(self._engine, name, config)

    def topics(self, *, internal: bool = False) -> list[TopicInfo]:
        """All topics by name; `internal` adds those Millstream keeps for itself."""
        return topics.listing(self._engine, internal=internal)

    def topic(self, name: str) -> TopicInfo:
        """One topic; UnknownTopicError if there is none."""
        return self._engine.topic(name)

    # --- read ----------------------------------------------------------------------------------

    def read(
        self,
        topic: str,
        start: int | str | datetime | Position = "earliest",
        stop: int | str | datetime | Position | None = "latest",
        partition: int | None = None,
        *,
        isolation: Isolation = "committed",
        columns: Sequence[str] | None = None,
    ) -> Scan:
        """The records between two positions: a lazy iterable; `.batches()` gives columns.

        Several partitions come merged in the order of their appends.

        Args:
            topic: An existing topic.
            start: "earliest", an offset, "-10" (the last ten per partition), "@<time>".
            stop: Where to stop, exclusive; "latest" is the end at the time of this call; None
                follows for ever.
            partition: One partition only; None reads all.
            isolation: "uncommitted" also shows records of open and aborted transactions.
            columns: Read these columns only, for `.arrow()`; of a topic with a schema.

        Raises:
            UnknownTopicError, OffsetOutOfRangeError, UsageError: At once.
            DataError: While iterating, naming topic, partition, offset, file and position.

        >>> with open_store(":memory:") as store:
        ...     info = store.create_topic("orders")
        ...     appended = store.append_many("orders", [b"a", b"b", b"c"])
        ...     [record.value for record in store.read("orders", start="-2")]
        [b'b', b'c']
        """
        partitions = topics.partitions(self._engine, topic, partition)
        starts = {each: topics.resolve(self._engine, each, start) for each in partitions}
        topics.check_starts(self._engine, starts)
        stops = None
        if stop is not None:
            stops = {each: topics.resolve(self._engine, each, stop) for each in partitions}
        if columns is not None:
            topics.check_columns(self._engine, topic, columns)
        return Scan(self._engine, starts, stops, isolation, columns)

    def reader(
        self,
        positions: Mapping[TopicPartition, int],
        *,
        isolation: Isolation = "committed",
        may_hold: MayHold | None = None,
    ) -> LogReader:
        """A reader of these partitions from these offsets; see `LogReader`."""
        if not isinstance(positions, Mapping):
            raise UsageError(
                "a reader takes the offset of each partition, {TopicPartition('t', 0): 0} say;"
                " `read` and `consumer` take topics"
            )
        return LogReader(self._engine, positions, isolation=isolation, may_hold=may_hold)

    def consumer(
        self,
        topics: str | Sequence[str],
        *,
        group: str | None = None,
        start: int | str | datetime | Position = "earliest",
        follow: bool = False,
        isolation: Isolation = "committed",
        may_hold: MayHold | None = None,
    ) -> Consumer:
        """A consumer of these topics, alone or as a member of a group; see `Consumer`."""
        return Consumer(
            self._engine,
            topics,
            group=group,
            start=start,
            follow=follow,
            isolation=isolation,
            may_hold=may_hold,
        )

    def queue(  # noqa: PLR0913 - what there is to say about a queue
        self,
        topic: str,
        *,
        group: str = DEFAULT_GROUP,
        visibility: Duration = DEFAULT_VISIBILITY,
        max_deliveries: int | None = None,
        dead_letter: str | None = None,
        start: int | str | datetime | Position = "earliest",
        follow: bool = True,
        durability: Durability | None = None,
    ) -> Queue:
        """A worker of a queue over a topic: records handed out one by one, to be acknowledged.

        Any number of workers, in threads and processes, share a queue. Order is kept only where
        one works alone and nothing fails; who needs it per key takes a `consumer` with a group.

        Args:
            topic: An existing topic; append to it as ever. Its other readers do not notice.
            group: Name of the queue; two groups each get every record.
            visibility: How long a worker may take for a job before others get it.
            max_deliveries: A job delivered so often without an ack becomes a dead letter; None:
                it is delivered again and again. Needs `dead_letter`.
            dead_letter: Topic for dead letters, made if there is none: the record as it was, with
                headers that say where it comes from and why.
            start: Where a queue that is new begins; see `read`.
            follow: Whether iterating waits for more at the end.
            durability: Of acks, instead of the store's. An ack that is lost with the machine means
                that the job comes again.

        Raises:
            UnknownTopicError: Create the topic first.
            UsageError: Bad argument; the group is one of consumers; the store is read-only.

        >>> with open_store() as store:
        ...     info = store.create_topic("jobs")
        ...     metadata = store.append("jobs", b"work")
        ...     with store.queue("jobs", visibility="1m") as queue:
        ...         job = queue.get()
        ...         print(job.value, job.deliveries)
        ...         job.ack()
        b'work' 1
        """
        return queues.open_queue(
            self._engine,
            self.transaction,
            topic,
            group=group,
            visibility=visibility,
            max_deliveries=max_deliveries,
            dead_letter=dead_letter,
            start=start,
            follow=follow,
            durability=durability,
        )

    def queues(self, topic: str | None = None) -> list[QueueInfo]:
        """The queues of all topics, or of one: settings, workers, and how many jobs there are."""
        return queues.listing(self._engine, topic)

    def redrive(self, dead_letter: str, *, limit: int | None = None) -> Redriven:
        """Give the dead letters of a topic back to the queues they come from, at most `limit`.

        They are delivered there as the records they were, with no deliveries counted, each
        exactly once. Where the record has been removed, or the queue, a copy without the added
        headers is appended to the topic, for all its readers.
        """
        return queues.redrive(self._engine, self.transaction, dead_letter, limit)

    def skip_jobs(
        self,
        topic: str,
        group: str,
        before: int | str | datetime | Position,
        *,
        partition: int | None = None,
        dry_run: bool = False,
    ) -> int:
        """Count all jobs before a position as done, leased ones too; how many offsets that were.

        "latest" empties the queue; an offset gets past damage.
        """
        return queues.skip(self._engine, topic, group, before, partition=partition, dry_run=dry_run)

    def latest(
        self, topic: str, key: bytes, *, partition: int | None = None, tombstone: bool = False
    ) -> Record | None:
        """The last acknowledged, committed record of a key; None if there is none, or a tombstone.

        From the same files, whether the topic is compacted or not. The first lookup of a key in a
        segment indexes all keys of it, beside the segment; later ones read a few blocks. Records
        of open transactions do not count before the commit.

        Args:
            topic: An existing topic.
            key: Of which key.
            partition: Where to look, if its records were not put where the key belongs.
            tombstone: Return a tombstone like any record.

        Raises:
            UnknownTopicError: There is no such topic or partition.
            DataError: Damage where it was looked for.

        >>> with open_store() as store:
        ...     info = store.create_topic("t")
        ...     for value in (b"old", b"new"):
        ...         metadata = store.append("t", value, key=b"k")
        ...     record = store.latest("t", b"k")
        ...     (record.offset, record.value), store.latest("t", b"other")
        ((1, b'new'), None)
        """
        record = self._latest.find(topic, key, partition)
        return None if record is None or (record.value is None and not tombstone) else record

    def latest_all(
        self, topic: str, *, partition: int | None = None, tombstones: bool = False
    ) -> Iterator[Record]:
        """The last record of every key: a table, in no particular order, each key once.

        At least as new as this call: of a key that is written meanwhile it may be a later one.
        Memory is bounded (64 MiB of keys): more keys are read in several passes.

        Args:
            topic: An existing topic. Records without a key are left out.
            partition: Only this one.
            tombstones: Also the keys that were deleted.

        Raises:
            UnknownTopicError: There is no such topic or partition.
            DataError: Damage, while iterating.
        """
        return self._latest.scan(topic, partition, tombstones=tombstones)

    def offsets(self, topic: str) -> dict[int, OffsetRange]:
        """First offset and visible end (exclusive) of each partition."""
        return topics.offset_ranges(self._engine, topic)

    def offset_at(
        self, topic: str, partition: int, position: int | str | datetime | Position
    ) -> int:
        """The offset a position stands for; see `read`."""
        return topics.resolve(self._engine, TopicPartition(topic, partition), position)

    # --- maintenance ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything appended through this handle is durable, whatever the mode."""
        self._engine.sync()

    def verify(self, topic: str | None = None, *, deep: bool = False) -> VerifyReport:
        """Check one topic, or all and the catalog; changes nothing, see `VerifyReport`.

        Checks the headers, links and sizes of all segments and batches and what is derived from
        them, and with `deep` every hash and length of every record. On a store open for writing
        a torn tail has been repaired before it can be seen; open it read-only to look at it as
        it is.
        """
        return verify(self._engine, topic, deep=deep)

    def backup(self, path: str | os.PathLike[str]) -> BackupReport:
        """Copy the whole store as it is at one moment, while others go on writing.

        Segments are shared with the copy where the file system can (`path` beside the store): it
        takes no space until retention or compaction removes them here. `restore` brings a
        backup back; a directory is a store itself and can be opened to look at.

        Args:
            path: A new directory, or a new file named *.tar.zst or *.tzst, not inside the store.

        Raises:
            UsageError: There is something at `path`, it is inside the store or has the name of
                another archive, or the store is open read-only.
            LockedError: Another backup of the store is under way.
            DataError: A partition is damaged below its durable watermark.
            StorageError: The operating system refused. Nothing is left at `path`.
        """
        return back_up(self._engine, path)

    def metrics(self, *, internal: bool = False) -> StoreMetrics:
        """What the store holds, how far behind everybody is, and what this handle has done.

        Reads the ends of the logs, not the records: made to be called every few seconds, on a
        store open read-only, too. What is damaged is named in `unreadable`, the rest is there.

        Args:
            internal: Also the partitions Millstream keeps for itself.

        Raises:
            DataError: The catalog is damaged.

        >>> with open_store() as store:
        ...     info = store.create_topic("t")
        ...     metadata = store.append_many("t", [b"a", b"b"])
        ...     metrics = store.metrics()
        ...     metrics.partitions[0].records, metrics.handle.appended_batches
        (2, 1)
        """
        return self._gauge.read(internal=internal)

    # --- groups --------------------------------------------------------------------------------

    def groups(self) -> list[str]:
        """Names of all consumer groups; pipelines are groups of their name."""
        return groups.names(self._engine)

    def group(self, name: str) -> GroupInfo:
        """Members and partitions of a group; UnknownGroupError if there is none."""
        return groups.describe(self._engine, name)

    def group_lag(self, name: str) -> list[PartitionLag]:
        """How far a group is behind, per partition, in records and in time."""
        return groups.lag(self._engine, name)

    def plan_reset(
        self,
        group: str,
        to: Place | Mapping[TopicPartition, Place] | None = None,
        *,
        topics: Sequence[str] = (),
        shift_by: int | None = None,
    ) -> ResetPlan:
        """What `reset_group` would change: every committed offset before and after.

        Args:
            group: Its name. A pipeline cannot be reset: its offsets belong to its state.
            to: A position for all partitions, or one for each.
            topics: These topics only.
            shift_by: Instead of `to`: so many records on, or back if negative.
        """
        return groups.plan_reset(self._engine, group, to, topics=topics, shift_by=shift_by)

    def reset_group(self, plan: ResetPlan) -> None:
        """Carry out a plan; LockedError while the group has live members."""
        groups.reset(self._engine, plan)

    def delete_group(self, name: str) -> None:
        """Forget a group and its offsets; LockedError while it has live members."""
        groups.delete(self._engine, name)

    # --- caches --------------------------------------------------------------------------------

    def cache_database(self, name: str) -> CacheDatabase:
        """A SQLite file beside the store for what can be made again from the log.

        It is never synced, and begins empty when it cannot be trusted; see `CacheDatabase`. Of a
        store in memory, or open read-only, it is temporary. One process at a time may use it.

        Args:
            name: 1 to 100 of A-Z a-z 0-9 . _ -
        """
        return open_cache(self._engine.storage, self.clock, name)

    def remove_cache(self, name: str) -> None:
        """Remove such a file, if there is one. Nobody may have it open."""
        remove_cache(self._engine.storage, name)

    # --- closing -------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """Where the store takes the time from."""
        return self._engine.clock

    @property
    def read_only(self) -> bool:
        """Whether it was opened to change nothing."""
        return self._engine.read_only

    @property
    def in_memory(self) -> bool:
        """Whether nothing of it is on a disk: it vanishes with the process."""
        return self._engine.storage.in_memory

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine.closed

    def close(self) -> None:
        """Make everything durable and let go. Idempotent."""
        if not self._engine.closed:
            self._owners.close()
        try:
            self._engine.close()
        finally:
            self._latest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
