"""The catalog: everything about a store that is not records, in one SQLite database.

Topics, partitions, log checkpoints, transactions and pipeline checkpoints are read and written
here; consumer groups in `group_catalog.py`, on the same connection; the tables are in `schema.py`.
Records, indexes and log ends are not here: their truth is in the segments and the tail words.

Every write is one durable transaction (`database.py`): a method that returns has made its change
durable, and one that raises has changed nothing (but see `decide`). Thread-safe.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from .clock import Clock
from .config import PARTITIONS_MAX, TopicConfig, TopicInfo, check_group_name, check_partition_count
from .database import Database
from .errors import (
    FencedError,
    MillstreamError,
    TopicExistsError,
    UnknownTopicError,
    UsageError,
    unknown_topic,
)
from .schema import prepare
from .sql_values import Row, SQLValue, as_bytes, as_count, as_int, as_number, as_text


class LogCheckpoint(NamedTuple):
    """A verified place in a partition's active segment, from which recovery may start."""

    segment_base: int
    segment_uid: int
    position: int
    """Byte position in the segment file where the next batch starts."""
    next_offset: int
    previous_hash: int
    max_timestamp_ms: int
    sequence: int


class PartitionRow(NamedTuple):
    """What the catalog knows of one partition."""

    topic_id: int
    partition: int
    slot: int
    """Its slot in the tail words, never reused."""
    uid: int
    """Random, 1 to 2**63 - 1: batches of another partition, or of a deleted topic of the same
    name, are recognised as foreign."""
    start_offset: int
    """Records below were removed by retention or trim."""
    checkpoint: LogCheckpoint | None


class OwnerState(NamedTuple):
    """What readers need to judge the transactions of one owner."""

    id: int
    decided: int
    """Transactions up to this number are committed, except those in `aborted`; later ones open."""
    aborted: frozenset[int]
    lock_path: str
    """Held as long as it lives. Empty: it is closed and never begins another."""
    epoch: int
    pid: int

    @property
    def last_possible(self) -> int:
        """The highest number the log may hold: it begins one when the one before is decided."""
        return self.decided + bool(self.lock_path)


class GroupOffset(NamedTuple):
    """The next offset group `group` will read from one partition."""

    group: str
    topic_id: int
    partition: int
    offset: int
    member_id: str | None = None
    """Commit only if this member owns the partition; None: whoever owns it."""
    generation: int = 0
    """The generation in which it owns it; with `member_id` only."""
    lock_path: str | None = None
    """Without `member_id`: commit only if no member that lives by another lock owns it."""


class Catalog:
    """The catalog of one open store; see the module docstring.

    Args:
        filename: What SQLite opens: `storage.catalog_filename()`.
        clock: Stamps commits.
        read_only: Open what exists, write nothing.
        on_commit: Called with what is about to be done; see `Database`.

    Raises:
        UsageError: `read_only` and there is no store.
        FormatVersionError: A newer version of Millstream made this store.
        DataError: The file is damaged or not a catalog.
        StorageError: The operating system refused.
        LockedError: Another process kept the catalog locked for 10 s.
    """

    def __init__(
        self,
        filename: str,
        *,
        clock: Clock,
        read_only: bool = False,
        on_commit: Callable[[str], None] | None = None,
    ) -> None:
        self.clock = clock
        self.database = Database(filename, clock=clock, read_only=read_only, on_commit=on_commit)
        try:
            prepare(self.database)
        except BaseException:
            self.database.close()
            raise

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.database.close()

    def now_ms(self) -> int:
        """The store's wall clock."""
        return self.clock.now_ms()

    def sync(self) -> None:
        """Make durable what this process wrote without syncing it."""
        if self.database.unsynced:
            with self.database.transaction("sync the catalog"):
                # Something has to change, or SQLite has nothing to sync.
                self.database.query("UPDATE store SET generation = generation")

    # Store

    @property
    def store_uid(self) -> bytes:
        """16 random bytes made with the store."""
        return as_bytes(self.database.query("SELECT uid FROM store")[0][0])

    @property
    def generation(self) -> int:
        """How often the tail words were made anew; see `next_generation`."""
        return as_int(self.database.query("SELECT generation FROM store")[0][0])

    def next_generation(self) -> int:
        """Durably increment the generation and return it."""
        with self.database.transaction("start a generation"):
            return as_int(
                self.database.query(
                    "UPDATE store SET generation = generation + 1 RETURNING generation"
                )[0][0]
            )

    def slots(self) -> int:
        """How many tail slots were ever allocated."""
        return as_int(self.database.query("SELECT slots FROM store")[0][0])

    # Topics

    def create_topic(
        self, name: str, partitions: int, config: TopicConfig, created_ms: int
    ) -> TopicInfo:
        """Create a topic with its partitions, which get new uids and slots.

        The caller has checked the name.

        Raises:
            TopicExistsError: The name is taken.
        """
        check_partition_count(partitions)
        with self.database.transaction(f"create topic {name}"):
            if self.database.query("SELECT 1 FROM topics WHERE name = ?", (name,)):
                raise TopicExistsError(
                    "the topic exists already: choose another name, or say that it may (exist_ok,"
                    " --exist-ok)",
                    topic=name,
                )
            topic_id = as_int(
                self.database.query(
                    "INSERT INTO topics (name, partitions, config, created_ms)"
                    " VALUES (?, ?, ?, ?) RETURNING id",
                    (name, partitions, config.to_json(), created_ms),
                )[0][0]
            )
            after = as_int(
                self.database.query(
                    "UPDATE store SET slots = slots + ? RETURNING slots", (partitions,)
                )[0][0]
            )
            for partition in range(partitions):
                self.database.query(
                    "INSERT INTO partitions (topic_id, partition, slot, uid, start_offset)"
                    " VALUES (?, ?, ?, ?, 0)",
                    (topic_id, partition, after - partitions + partition, _random_uid()),
                )
        return TopicInfo(
            id=topic_id, name=name, partitions=partitions, config=config, created_ms=created_ms
        )

    def delete_topic(self, name: str) -> TopicInfo:
        """Forget a topic, its partitions and what groups committed for it; return what it was.

        Raises:
            UnknownTopicError: There is none of that name.
        """
        with self.database.transaction(f"delete topic {name}"):
            topic = self._require(name)
            self.database.query("DELETE FROM topics WHERE id = ?", (topic.id,))
            for number in range(topic.partitions):
                name = _refused(topic.id, number)
                self.database.query("DELETE FROM checkpoints WHERE name = ?", (name,))
        return topic

    def topics(self) -> list[TopicInfo]:
        """All topics by name, internal ones included."""
        rows = self.database.query(
            "SELECT id, name, partitions, config, created_ms FROM topics ORDER BY name"
        )
        return [self._topic_info(row) for row in rows]

    def topic(self, name: str) -> TopicInfo | None:
        """The topic of that name, or None."""
        rows = self.database.query(
            "SELECT id, name, partitions, config, created_ms FROM topics WHERE name = ?", (name,)
        )
        return self._topic_info(rows[0]) if rows else None

    def set_topic_config(self, name: str, config: TopicConfig) -> TopicInfo:
        """Replace the configuration and return the topic as it is now.

        Raises:
            UnknownTopicError: There is none of that name.
        """
        with self.database.transaction(f"configure topic {name}"):
            self._require(name)
            self.database.query(
                "UPDATE topics SET config = ? WHERE name = ?", (config.to_json(), name)
            )
            return self._require(name)

    # Partitions

    def partition(self, topic_id: int, partition: int) -> PartitionRow:
        """One partition.

        Raises:
            UnknownTopicError: The topic was deleted or has no such partition.
        """
        rows = self.database.query(
            "SELECT topic_id, partition, slot, uid, start_offset, segment_base, segment_uid,"
            " position, next_offset, previous_hash, max_timestamp_ms, sequence"
            " FROM partitions WHERE topic_id = ? AND partition = ?",
            (topic_id, partition),
        )
        if not rows:
            raise UnknownTopicError(
                f"topic number {topic_id} was deleted or has no such partition",
                partition=partition,
            )
        return _partition_row(rows[0])

    def partition_of_slot(self, slot: int) -> tuple[TopicInfo, int] | None:
        """The topic and partition number a tail slot belongs to; None if it was deleted."""
        rows = self.database.query(
            "SELECT id, name, partitions, config, created_ms, partition"
            " FROM partitions JOIN topics ON id = topic_id WHERE slot = ?",
            (slot,),
        )
        return (self._topic_info(rows[0][:5]), as_int(rows[0][5])) if rows else None

    def save_checkpoint(self, topic_id: int, partition: int, checkpoint: LogCheckpoint) -> None:
        """Remember where recovery may start. Nothing happens if the topic was deleted."""
        with self.database.transaction("save a log checkpoint"):
            self.write_checkpoint(topic_id, partition, checkpoint)

    def write_checkpoint(self, topic_id: int, partition: int, checkpoint: LogCheckpoint) -> None:
        """As `save_checkpoint`, inside a transaction."""
        values = checkpoint._replace(
            segment_uid=_signed(checkpoint.segment_uid),
            previous_hash=_signed(checkpoint.previous_hash),
            sequence=_signed(checkpoint.sequence),
        )
        self.database.query(
            "UPDATE partitions SET segment_base = ?, segment_uid = ?, position = ?,"
            " next_offset = ?, previous_hash = ?, max_timestamp_ms = ?, sequence = ?"
            " WHERE topic_id = ? AND partition = ?",
            (*values, topic_id, partition),
        )

    def set_start_offset(self, topic_id: int, partition: int, offset: int) -> None:
        """Raise the start offset. It never falls; nothing happens if the topic was deleted."""
        with self.database.transaction("move a log start"):
            self.database.query(
                "UPDATE partitions SET start_offset = max(start_offset, ?)"
                " WHERE topic_id = ? AND partition = ?",
                (offset, topic_id, partition),
            )

    def committed_end(self, topic_id: int, partition: int) -> int:
        """The highest offset any group has committed, or any queue claimed: all below was seen."""
        rows = self.database.query(
            "SELECT max("
            " (SELECT coalesce(max(committed_offset), 0) FROM group_partitions"
            "  WHERE topic_id = ?1 AND partition = ?2),"
            " (SELECT coalesce(max(next_offset), 0) FROM queue_partitions"
            "  JOIN queues ON id = queue_id WHERE topic_id = ?1 AND partition = ?2))",
            (topic_id, partition),
        )
        return as_int(rows[0][0])

    # Transactions; whose they are is owner_catalog.py

    def decide(  # noqa: PLR0913 - all that is decided with it
        self,
        owner_id: int,
        epoch: int,
        number: int,
        committed: bool,
        offsets: Sequence[GroupOffset] = (),
        checkpoints: Mapping[str, bytes] | None = None,
        *,
        also: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Commit or abort transaction `number`, with its offsets and checkpoints, in one step.

        Each of `also` is called inside the step of a commit, to write what belongs to it.

        After a StorageError the outcome is unknown until the owner is acquired again, because
        the commit may have reached the disk before the failure.

        Raises:
            FencedError: Another process acquired the owner, or the number was decided already.
            UnknownTopicError: An offset is of a topic that was deleted.
        """
        what = "commit" if committed else "abort"
        with self.database.transaction(f"{what} a transaction"):
            rows = self.database.query(
                "SELECT epoch, decided, name FROM owners WHERE id = ?", (owner_id,)
            )
            if not rows or rows[0][0] != epoch:
                name = owner_name(as_text(rows[0][2])) if rows else owner_id
                raise FencedError(f"another process took over {name!r} or aborted it: no {what}")
            if rows[0][1] != number - 1:
                name = owner_name(as_text(rows[0][2]))
                raise FencedError(
                    f"transaction {number} of {name!r} is not the next to decide; transactions up"
                    f" to {as_int(rows[0][1])} are decided"
                )
            self.database.query("UPDATE owners SET decided = ? WHERE id = ?", (number, owner_id))
            if not committed:
                self.mark_aborted(owner_id, number)
                return
            self.write_group_offsets(offsets)
            for checkpoint_name, data in (checkpoints or {}).items():
                self.database.query(
                    "INSERT INTO checkpoints (name, data) VALUES (?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET data = excluded.data",
                    (checkpoint_name, data),
                )
            for write in also:
                write()

    def owner(self, owner_id: int) -> OwnerState | None:
        """The state of one owner's transactions, or None if there is no such owner."""
        return self._owner_state("id", owner_id)

    def last_possible_transaction(self, owner_id: int) -> int | None:
        """As `OwnerState.last_possible`; None if there is no such owner."""
        state = self.owner(owner_id)
        return state and state.last_possible

    def owner_named(self, name: str) -> OwnerState | None:
        """As `owner`, by name."""
        return self._owner_state("name", name)

    # Checkpoints of pipelines

    def checkpoint(self, name: str) -> bytes | None:
        """What the last committed transaction stored under `name`, or None."""
        rows = self.database.query("SELECT data FROM checkpoints WHERE name = ?", (name,))
        return as_bytes(rows[0][0]) if rows else None

    def checkpoint_names(self, prefix: str) -> list[str]:
        """The names that begin so, sorted."""
        rows = self.database.query("SELECT name FROM checkpoints ORDER BY name")
        return [name for (name,) in rows if isinstance(name, str) and name.startswith(prefix)]

    def is_pipeline(self, group: str) -> bool:
        """Whether the offsets of a group are those of a pipeline, which goes on by a checkpoint."""
        return self.checkpoint(f"pipeline/{group}") is not None

    # Partitions that were refused because this catalog is older than their log

    def refused_in(self, topic_id: int, partition: int) -> int | None:
        """The generation in which a partition was first refused; None if it is not."""
        data = self.checkpoint(_refused(topic_id, partition))
        return None if data is None else as_number(int(data) if data.isdigit() else None)

    def refuse(self, topic_id: int, partition: int, generation: int) -> None:
        """Remember that a partition was refused, so that it stays refused."""
        with self.database.transaction("refuse a partition"):
            self.database.query(
                "INSERT INTO checkpoints (name, data) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (_refused(topic_id, partition), b"%d" % generation),
            )

    # Inside a transaction

    def write_group_offsets(self, offsets: Sequence[GroupOffset]) -> None:
        """Set committed offsets and create the groups they name. Call inside `transaction`.

        Raises:
            UnknownTopicError: A topic was deleted.
            FencedError: The `member_id` of an offset does not own the partition any more.
        """
        now_ms = self.now_ms()
        for group in sorted({offset.group for offset in offsets}):
            self.database.query(
                "INSERT INTO groups (name) VALUES (?) ON CONFLICT DO NOTHING",
                (check_group_name(group),),
            )
        for offset in offsets:
            self._check_group_offset(offset)
            self.database.query(
                "INSERT INTO group_partitions"
                " (group_name, topic_id, partition, committed_offset, commit_ms)"
                " VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (group_name, topic_id, partition) DO UPDATE SET"
                " committed_offset = excluded.committed_offset, commit_ms = excluded.commit_ms",
                (offset.group, offset.topic_id, offset.partition, offset.offset, now_ms),
            )

    def _check_group_offset(self, offset: GroupOffset) -> None:
        topic = self._partition_topic(offset.topic_id, offset.partition)
        if offset.offset < 0:
            raise UsageError(
                f"group {offset.group!r} cannot commit the negative offset {offset.offset}",
                topic=topic,
                partition=offset.partition,
            )
        if offset.lock_path is not None:
            self._check_no_other_owner(offset, topic)
        if offset.member_id is None:
            return
        rows = self.database.query(
            "SELECT owner, generation FROM group_partitions"
            " WHERE group_name = ? AND topic_id = ? AND partition = ?",
            (offset.group, offset.topic_id, offset.partition),
        )
        if not rows or rows[0] != (offset.member_id, offset.generation):
            owner = rows[0][0] if rows else None
            now = f"{as_text(owner)} owns it now" if owner else "nobody owns it now"
            raise FencedError(
                f"member {offset.member_id} of group {offset.group!r} lost the partition; {now}."
                " Nothing was committed",
                topic=topic,
                partition=offset.partition,
            )

    def _check_no_other_owner(self, offset: GroupOffset, topic: str) -> None:
        rows = self.database.query(
            "SELECT member_id, pid FROM group_partitions JOIN group_members"
            " ON group_members.group_name = group_partitions.group_name AND member_id = owner"
            " WHERE group_partitions.group_name = ? AND topic_id = ? AND partition = ?"
            " AND lock_path <> ?",
            (offset.group, offset.topic_id, offset.partition, offset.lock_path),
        )
        if rows:
            raise FencedError(
                f"member {as_text(rows[0][0])} of group {offset.group!r}, in process"
                f" {as_int(rows[0][1])}, owns the partition now. Nothing was committed",
                topic=topic,
                partition=offset.partition,
            )

    def _partition_topic(self, topic_id: int, partition: int) -> str:
        rows = self.database.query(
            "SELECT name FROM partitions JOIN topics ON id = topic_id"
            " WHERE topic_id = ? AND partition = ?",
            (topic_id, partition),
        )
        if not rows:
            raise UnknownTopicError(
                f"topic number {topic_id} was deleted or has no such partition", partition=partition
            )
        return as_text(rows[0][0])

    def mark_aborted(self, owner_id: int, number: int) -> None:
        """Enter a transaction as aborted, inside a transaction that says it is decided."""
        self.database.query(
            "INSERT INTO aborted (owner_id, number) VALUES (?, ?)", (owner_id, number)
        )

    def _owner_state(self, column: str, value: SQLValue) -> OwnerState | None:
        # One statement, so that `decided` and `aborted` belong together.
        rows = self.database.query(
            "SELECT id, decided, lock_path, epoch, pid,"  # noqa: S608 - column is one of ours
            " (SELECT group_concat(number) FROM aborted WHERE owner_id = owners.id)"
            f" FROM owners WHERE {column} = ?",
            (value,),
        )
        if not rows:
            return None
        owner_id, decided, lock_path, epoch, pid, numbers = rows[0]
        aborted = frozenset(map(int, as_text(numbers).split(","))) if numbers else frozenset[int]()
        return OwnerState(
            as_int(owner_id),
            as_int(decided),
            aborted,
            as_text(lock_path),
            as_int(epoch),
            as_int(pid),
        )

    def _require(self, name: str) -> TopicInfo:
        topic = self.topic(name)
        if topic is None:
            raise unknown_topic(name)
        return topic

    def _topic_info(self, row: Row) -> TopicInfo:
        topic_id, name, partitions, config, created_ms = row
        try:
            return TopicInfo(
                id=as_int(topic_id),
                name=as_text(name),
                partitions=as_count(partitions, PARTITIONS_MAX),
                config=TopicConfig.from_json(as_text(config)),
                created_ms=as_int(created_ms),
            )
        except MillstreamError as error:
            raise error.at(topic=as_text(name), path=self.database.filename) from None


REFUSED: Final = "refused/"
"""Begins the names of checkpoints that are none of a pipeline, but of refused partitions."""


def _refused(topic_id: int, partition: int) -> str:
    return f"{REFUSED}{topic_id}/{partition}"


def owner_name(stored: str) -> str:
    """What an owner is called, or was called before another one got the name."""
    return stored.partition("\n")[0]


def _partition_row(row: Row) -> PartitionRow:
    topic_id, partition, slot, uid, start_offset, *saved = row
    checkpoint = None
    if saved[0] is not None:
        stored = LogCheckpoint(*(as_int(value) for value in saved))
        checkpoint = stored._replace(
            segment_uid=_unsigned(stored.segment_uid),
            previous_hash=_unsigned(stored.previous_hash),
            sequence=as_number(stored.sequence, 1 << 63),
        )
    return PartitionRow(
        as_int(topic_id),
        as_int(partition),
        as_int(slot),
        as_int(uid),
        as_number(start_offset, 1 << 63),
        checkpoint,
    )


def _random_uid() -> int:
    return secrets.randbelow(2**63 - 1) + 1


def _signed(value: int) -> int:
    """SQLite's integers are signed: the int64 with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _unsigned(value: int) -> int:
    return value & 0xFFFF_FFFF_FFFF_FFFF
