"""Queues in the catalog: what was handed to whom, what waits, and what is done; never per record.

A queue is a group that works through a topic job by job. Per partition there is the next offset
that was never claimed, and below it a range for everything that is not done: leased by a worker, or
waiting to be claimed again. What lies in no range is done. A worker claims many records as one
range and settles many at once, so in steady state there are as many rows as workers.

The floor, below which all is done, is the committed offset of the group, up to date whenever a
range is done as a whole: lag and retention see a queue as they see any group.

Every method is one statement or one transaction. An ack counts only while its lease is held: range,
worker and number of deliveries must be as they were when the job was handed out. When and what to
claim is decided in `claiming.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from .catalog import Catalog
from .errors import DataError, LockedError, UnknownTopicError, UsageError
from .queue_ranges import NOBODY, Fate, Lease, Range, Settlement, coalesced
from .queue_rows import Counts, Look, QueueRow, WorkerRow
from .sql_values import SQLValue, as_int, as_number, as_text


class QueueCatalog:
    """The queues of one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._database = catalog.database

    # Queues

    def listing(self) -> list[QueueRow]:
        """All queues, by topic and group."""
        return self._rows("1 ORDER BY topics.name, group_name")

    def of_topic(self, topic_id: int) -> list[QueueRow]:
        """The queues of one topic, by group."""
        return self._rows("topic_id = ? ORDER BY group_name", topic_id)

    def find(self, group: str, topic_id: int) -> QueueRow | None:
        """The queue of a group over a topic, or None."""
        rows = self._rows("group_name = ? AND topic_id = ?", group, topic_id)
        return rows[0] if rows else None

    def create(self, queue: QueueRow, starts: Mapping[int, int]) -> QueueRow:
        """Create a queue, or bring the settings of an existing one up to date.

        Args:
            queue: Its id does not matter.
            starts: For a new one: the first offset of each partition.

        Raises:
            UsageError: The group is one of consumers.
            UnknownTopicError: The topic was deleted.
        """
        found = self.find(queue.group, queue.topic_id)
        if found is not None and found == queue._replace(id=found.id):
            return found
        with self._database.transaction(f"create queue {queue.topic} of group {queue.group}"):
            self._check_group(queue)
            queue_id = as_int(
                self._database.query(
                    "INSERT INTO queues (group_name, topic_id, visibility_ms, max_deliveries,"
                    " dead_letter) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (group_name, topic_id) DO UPDATE SET"
                    " visibility_ms = excluded.visibility_ms,"
                    " max_deliveries = excluded.max_deliveries,"
                    " dead_letter = excluded.dead_letter RETURNING id",
                    (queue.group, queue.topic_id, *queue[4:]),
                )[0][0]
            )
            created = queue._replace(id=queue_id)
            for partition, offset in starts.items():
                new = self._database.query(
                    "INSERT INTO queue_partitions (queue_id, partition, next_offset)"
                    " VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING partition",
                    (queue_id, partition, offset),
                )
                if new:
                    self._database.query(
                        "INSERT INTO group_partitions (group_name, topic_id, partition,"
                        " committed_offset, commit_ms) VALUES (?, ?, ?, ?, ?)",
                        (queue.group, queue.topic_id, partition, offset, self._catalog.now_ms()),
                    )
        return created

    def _check_group(self, queue: QueueRow) -> None:
        group = queue.group
        if not self._database.query("SELECT 1 FROM topics WHERE id = ?", (queue.topic_id,)):
            raise UnknownTopicError("the topic was deleted", topic=queue.topic)
        if not self._database.query("SELECT 1 FROM queues WHERE group_name = ?", (group,)):
            used = self._database.query(
                "SELECT 1 FROM group_members WHERE group_name = ? UNION"
                " SELECT 1 FROM group_partitions WHERE group_name = ?",
                (group, group),
            )
            if used or self._catalog.is_pipeline(group):
                raise UsageError(
                    f"{group!r} is a group of consumers, or a pipeline: choose another group for"
                    " the queue",
                    topic=queue.topic,
                )
        self._database.query(
            "INSERT INTO groups (name) VALUES (?) ON CONFLICT DO NOTHING", (group,)
        )

    # Workers

    def add_worker(self, queue: QueueRow, worker: WorkerRow) -> int:
        """Add a worker; its id, never used before."""
        with self._database.transaction("join a queue", durable=False):
            self._require(queue)
            return as_int(
                self._database.query(
                    "INSERT INTO queue_workers (queue_id, lock_path, host, pid, client)"
                    " VALUES (?, ?, ?, ?, ?) RETURNING id",
                    (queue.id, *worker[1:]),
                )[0][0]
            )

    def workers(self, queue: QueueRow) -> list[WorkerRow]:
        """Its workers by id, dead ones nobody has noticed yet included."""
        rows = self._database.query(
            "SELECT id, lock_path, host, pid, client FROM queue_workers WHERE queue_id = ?"
            " ORDER BY id",
            (queue.id,),
        )
        return [
            WorkerRow(
                as_int(row[0]), as_text(row[1]), as_text(row[2]), as_int(row[3]), as_text(row[4])
            )
            for row in rows
        ]

    def remove_workers(self, queue: QueueRow, ids: Collection[int]) -> bool:
        """Remove workers; what they lease may be claimed at once. False if there were none."""
        with self._database.transaction("leave a queue", durable=False):
            removed = False
            for worker_id in ids:
                removed |= bool(
                    self._database.query(
                        "DELETE FROM queue_workers WHERE queue_id = ? AND id = ? RETURNING id",
                        (queue.id, worker_id),
                    )
                )
                self._database.query(
                    "UPDATE queue_ranges SET worker_id = 0, due_ms = 0"
                    " WHERE queue_id = ? AND worker_id = ?",
                    (queue.id, worker_id),
                )
            return removed

    # Looking

    def look(self, queue: QueueRow, worker_id: int = NOBODY) -> Look:
        """What there may be to claim, and when there will be more.

        Raises:
            UnknownTopicError: The queue went with its topic or its group.
        """
        rows = self._database.query(
            "SELECT partition, next_offset FROM queue_partitions WHERE queue_id = ?", (queue.id,)
        )
        if not rows:
            self._require(queue)
        due = self._database.query(
            "SELECT (SELECT min(due_ms) FROM queue_ranges WHERE queue_id = ?1 AND worker_id = 0),"
            " (SELECT min(due_ms) FROM queue_ranges WHERE queue_id = ?1 AND worker_id > 0),"
            " EXISTS (SELECT 1 FROM queue_ranges"
            "  WHERE queue_id = ?1 AND worker_id > 0 AND worker_id <> ?2)",
            (queue.id, worker_id),
        )
        return Look(
            {as_int(partition): as_int(offset) for partition, offset in rows},
            None if due[0][0] is None else as_int(due[0][0]),
            None if due[0][1] is None else as_int(due[0][1]),
            bool(due[0][2]),
        )

    def waiting(self, queue: QueueRow, now_ms: int, limit: int) -> list[Range]:
        """Ranges that may be claimed again, the longest due first."""
        rows = self._database.query(
            "SELECT partition, start_offset, stop_offset, deliveries FROM queue_ranges"
            " WHERE queue_id = ? AND worker_id = 0 AND due_ms <= ?"
            " ORDER BY due_ms, partition, start_offset LIMIT ?",
            (queue.id, now_ms, limit),
        )
        return [Range(*(as_number(value) for value in row)) for row in rows]

    def counts(self, queue: QueueRow, now_ms: int) -> list[Counts]:
        """How many offsets are leased, wait, and are delayed, per partition."""
        rows = self._database.query(
            "SELECT p.partition, next_offset,"
            " coalesce(sum(stop_offset - start_offset) FILTER (WHERE worker_id > 0), 0),"
            " coalesce(sum(stop_offset - start_offset)"
            "  FILTER (WHERE worker_id = 0 AND due_ms <= ?2), 0),"
            " coalesce(sum(stop_offset - start_offset)"
            "  FILTER (WHERE worker_id = 0 AND due_ms > ?2), 0)"
            " FROM queue_partitions p LEFT JOIN queue_ranges r"
            " ON r.queue_id = p.queue_id AND r.partition = p.partition"
            " WHERE p.queue_id = ?1 GROUP BY p.partition ORDER BY p.partition",
            (queue.id, now_ms),
        )
        return [Counts(*(as_number(value) for value in row)) for row in rows]

    # Claiming

    def claim_new(
        self, queue: QueueRow, partition: int, choose: Callable[[int], int], fate: Fate
    ) -> Range | None:
        """Claim records nobody has claimed before.

        Args:
            queue: Which queue.
            partition: Where.
            choose: Gets the next offset, and returns where what is claimed ends; that offset
                itself to claim nothing.
            fate: The lease; without a worker the range is done, because it holds no record.
        """
        with self._database.transaction("claim jobs", durable=False):
            rows = self._database.query(
                "SELECT next_offset FROM queue_partitions WHERE queue_id = ? AND partition = ?",
                (queue.id, partition),
            )
            if not rows:
                self._require(queue)
                return None
            start = as_int(rows[0][0])
            stop = choose(start)
            if stop <= start:
                return None
            self._database.query(
                "UPDATE queue_partitions SET next_offset = ? WHERE queue_id = ? AND partition = ?",
                (stop, queue.id, partition),
            )
            if fate.worker_id == NOBODY:
                self._move_floor(queue, partition)
            else:
                self._insert(queue, partition, start, stop, fate)
            return Range(partition, start, stop, fate.deliveries)

    def claim_again(
        self, queue: QueueRow, found: Sequence[tuple[Range, int]], worker_id: int, lease_end_ms: int
    ) -> list[Range]:
        """Claim the beginnings of waiting ranges, each up to the offset given; those still there.

        Their deliveries are one more than before.
        """
        claimed = []
        with self._database.transaction("claim jobs", durable=False):
            self._require(queue)
            for (partition, start, stop, deliveries), until in found:
                taken = self._database.query(
                    "DELETE FROM queue_ranges WHERE queue_id = ? AND partition = ?"
                    " AND start_offset = ? AND stop_offset = ? AND deliveries = ?"
                    " AND worker_id = 0 RETURNING due_ms",
                    (queue.id, partition, start, stop, deliveries),
                )
                if not taken:
                    continue
                if until < stop:
                    rest = Fate(NOBODY, as_int(taken[0][0]), deliveries)
                    self._insert(queue, partition, until, stop, rest)
                fate = Fate(worker_id, lease_end_ms, deliveries + 1)
                self._insert(queue, partition, start, until, fate)
                claimed.append(Range(partition, start, until, deliveries + 1))
        return claimed

    def take_back(
        self,
        queue: QueueRow,
        monotonic_ms: int,
        now_ms: int,
        spared: Callable[[], Collection[int]] = tuple,
    ) -> bool:
        """Let what is leased longer than allowed be claimed again; False if there is none.

        Args:
            queue: Which queue.
            monotonic_ms: Leases that end later go on.
            now_ms: UTC time from which it may be claimed.
            spared: Gives the workers that keep what they have; called inside the transaction.
        """
        with self._database.transaction("take jobs back", durable=False):
            numbers = ", ".join(map(str, sorted(spared())))
            return bool(
                self._database.query(
                    "UPDATE queue_ranges SET worker_id = 0, due_ms = ?"  # noqa: S608 - numbers
                    " WHERE queue_id = ? AND worker_id > 0 AND due_ms <= ?"
                    f" AND worker_id NOT IN ({numbers}) RETURNING partition",
                    (now_ms, queue.id, monotonic_ms),
                )
            )

    # Settling

    def settle(
        self,
        queue: QueueRow,
        worker_id: int,
        settlements: Sequence[Settlement],
        *,
        durable: bool = True,
    ) -> list[Range]:
        """Settle leased ranges; returns those whose lease is lost, for which nothing changed."""
        if not durable:
            joined = settlements if len(settlements) == 1 else coalesced(settlements)
            if len(joined) == 1 and self._settle_first(queue, worker_id, *joined[0]):
                return []
        with self._database.transaction("settle jobs", durable=durable):
            return self.write_settlements(queue, worker_id, settlements)

    def _settle_first(
        self, queue: QueueRow, worker_id: int, offsets: Range, fate: Fate | None
    ) -> bool:
        """Ack what begins a leased range that goes on behind it; False if that is not the case.

        This is what most settlements are: those of one worker that acks in order.
        """
        if fate is not None:
            return False
        partition, start, stop, deliveries = offsets
        bindings = (stop, queue.id, partition, start, stop, worker_id, deliveries)
        return bool(self._database.change(_SETTLE_FIRST, bindings))

    def write_settlements(
        self, queue: QueueRow, worker_id: int, settlements: Sequence[Settlement]
    ) -> list[Range]:
        """As `settle`, inside a transaction of the database."""
        lost: list[Range] = []
        ended: set[int] = set()
        for settlement in coalesced(settlements):
            lost += self._settle(queue, worker_id, settlement, ended)
        if lost:
            self._require(queue)
        # Not for every job: the floor lags behind within a range that is being settled in order.
        for partition in sorted(ended):
            self._move_floor(queue, partition)
        return lost

    def settle_again(self, leases: Sequence[Lease]) -> None:
        """Inside a transaction: ack what was to be acked by a commit whose process died.

        What was deleted since stays so, and what was given up is the job of others.
        """
        held: dict[tuple[int, int], list[Settlement]] = {}
        for queue_id, worker_id, offsets in leases:
            held.setdefault((queue_id, worker_id), []).append(Settlement(offsets, None))
        for (queue_id, worker_id), settlements in held.items():
            for queue in self._rows("queues.id = ?", queue_id):
                self.write_settlements(queue, worker_id, settlements)

    def _settle(
        self, queue: QueueRow, worker_id: int, settlement: Settlement, ended: set[int]
    ) -> list[Range]:
        """Settle one range; adds its partition to `ended` if a row is gone."""
        (partition, first, end, deliveries), fate = settlement
        lost = []
        covered = first
        for start, stop, *holder in self._overlapping(queue, partition, first, end):
            if holder[:2] != [worker_id, deliveries]:
                continue
            cut = Range(partition, max(start, first), min(stop, end), deliveries)
            if covered < cut.start:
                lost.append(Range(partition, covered, cut.start, deliveries))
            covered = cut.stop
            row = Range(partition, start, stop, deliveries)
            if self._cut(queue, row, cut, holder):
                ended.add(partition)
            if fate is not None:
                self._insert(queue, partition, cut.start, cut.stop, fate)
        if covered < end:
            lost.append(Range(partition, covered, end, deliveries))
        return lost

    def _overlapping(
        self, queue: QueueRow, partition: int, first: int, end: int
    ) -> list[list[int]]:
        """Ranges that reach into [first, end): start, stop, worker, deliveries, due."""
        # Ranges do not overlap: at most one of those that start before `first` reaches into it,
        # and mostly it is the only one.
        rows = self._database.query(
            "SELECT start_offset, stop_offset, worker_id, deliveries, due_ms FROM queue_ranges"
            " WHERE queue_id = ? AND partition = ? AND start_offset <= ?"
            " ORDER BY start_offset DESC LIMIT 1",
            (queue.id, partition, first),
        )
        found = [[as_number(value) for value in row] for row in rows]
        if found and found[0][1] >= end:
            return found
        found = [row for row in found if row[1] > first]
        rows = self._database.query(
            "SELECT start_offset, stop_offset, worker_id, deliveries, due_ms FROM queue_ranges"
            " WHERE queue_id = ? AND partition = ? AND start_offset > ? AND start_offset < ?"
            " ORDER BY start_offset",
            (queue.id, partition, first, end),
        )
        return found + [[as_number(value) for value in row] for row in rows]

    def _cut(self, queue: QueueRow, row: Range, cut: Range, holder: Sequence[int]) -> bool:
        """Take `cut` out of a row; what is left and right of it stays as it is. True if nothing."""
        key = (queue.id, row.partition, row.start)
        where = "WHERE queue_id = ? AND partition = ? AND start_offset = ?"
        if row.start < cut.start:
            self._database.query(
                f"UPDATE queue_ranges SET stop_offset = ? {where}",  # noqa: S608 - ours
                (cut.start, *key),
            )
            if cut.stop < row.stop:
                fate = Fate(holder[0], holder[2], holder[1])
                self._insert(queue, row.partition, cut.stop, row.stop, fate)
        elif cut.stop < row.stop:
            self._database.query(
                f"UPDATE queue_ranges SET start_offset = ? {where}",  # noqa: S608 - ours
                (cut.stop, *key),
            )
        else:
            self._database.query(f"DELETE FROM queue_ranges {where}", key)  # noqa: S608 - ours
            return True
        return False

    # Removing and giving back

    def count_below(self, queue: QueueRow, partition: int, offset: int) -> int:
        """How many offsets below `offset` are not done."""
        undone = self._undone_below(queue, partition, offset)
        return sum(min(stop, offset) - start for start, stop, *_ in undone)

    def forget_below(self, queue: QueueRow, partition: int, offset: int) -> int:
        """Count everything below `offset` as done; how many offsets were not."""
        if not self._undone_below(queue, partition, offset):
            return 0
        with self._database.transaction("skip jobs"):
            self._require(queue)
            skipped = 0
            for start, stop, *holder in self._undone_below(queue, partition, offset):
                skipped += min(stop, offset) - start
                if holder:
                    cut = Range(partition, start, min(stop, offset), holder[1])
                    self._cut(queue, Range(partition, start, stop, holder[1]), cut, holder)
                else:
                    self._database.query(
                        "UPDATE queue_partitions SET next_offset = ?"
                        " WHERE queue_id = ? AND partition = ?",
                        (offset, queue.id, partition),
                    )
            self._move_floor(queue, partition)
            return skipped

    def _undone_below(self, queue: QueueRow, partition: int, end: int) -> list[list[int]]:
        """What is not done below `end`: start, stop and, if it was claimed, by whom; see `_cut`."""
        rows = self._database.query(
            "SELECT start_offset, stop_offset, worker_id, deliveries, due_ms FROM queue_ranges"
            " WHERE queue_id = ?1 AND partition = ?2 AND start_offset < ?3",
            (queue.id, partition, end),
        )
        rows += self._database.query(
            "SELECT next_offset, ?3 FROM queue_partitions"
            " WHERE queue_id = ?1 AND partition = ?2 AND next_offset < ?3",
            (queue.id, partition, end),
        )
        return [[as_number(value) for value in row] for row in rows]

    def write_again(self, queue: QueueRow, partition: int, offset: int) -> bool:
        """Let a record that is done be delivered again, inside a transaction of the database.

        False if it is not done.
        """
        self._require(queue)
        if self._overlapping(queue, partition, offset, offset + 1) or not self._database.query(
            "SELECT 1 FROM queue_partitions"
            " WHERE queue_id = ? AND partition = ? AND next_offset > ?",
            (queue.id, partition, offset),
        ):
            return False
        self._insert(queue, partition, offset, offset + 1, Fate(NOBODY, 0, 0))
        self._move_floor(queue, partition)
        return True

    # Inside a transaction

    def _require(self, queue: QueueRow) -> None:
        if not self._database.query("SELECT 1 FROM queues WHERE id = ?", (queue.id,)):
            raise UnknownTopicError(
                f"the queue of group {queue.group!r} was deleted, with its topic or its group",
                topic=queue.topic,
            )

    def _insert(self, queue: QueueRow, partition: int, start: int, stop: int, fate: Fate) -> None:
        self._database.query(
            "INSERT INTO queue_ranges (queue_id, partition, start_offset, stop_offset,"
            " worker_id, due_ms, deliveries) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (queue.id, partition, start, stop, *fate),
        )

    def _move_floor(self, queue: QueueRow, partition: int) -> None:
        """Commit for the group what is done as a whole."""
        rows = self._database.query(
            "SELECT coalesce((SELECT min(start_offset) FROM queue_ranges"
            " WHERE queue_id = ?1 AND partition = ?2), next_offset)"
            " FROM queue_partitions WHERE queue_id = ?1 AND partition = ?2",
            (queue.id, partition),
        )
        if not rows:
            raise DataError(
                f"the catalog has lost where the queue of group {queue.group!r} stands",
                topic=queue.topic,
                partition=partition,
            )
        floor = as_number(rows[0][0])
        self._database.query(
            "UPDATE group_partitions SET committed_offset = ?, commit_ms = ?"
            " WHERE group_name = ? AND topic_id = ? AND partition = ? AND committed_offset <> ?",
            (floor, self._catalog.now_ms(), queue.group, queue.topic_id, partition, floor),
        )

    def _rows(self, where: str, *bindings: SQLValue) -> list[QueueRow]:
        rows = self._database.query(
            "SELECT queues.id, group_name, topic_id, topics.name, visibility_ms, max_deliveries,"  # noqa: S608 - ours
            f" dead_letter FROM queues JOIN topics ON topics.id = topic_id WHERE {where}",
            bindings,
        )
        return [
            QueueRow(
                as_int(row[0]),
                as_text(row[1]),
                as_int(row[2]),
                as_text(row[3]),
                as_int(row[4]),
                None if row[5] is None else as_int(row[5]),
                None if row[6] is None else as_text(row[6]),
            )
            for row in rows
        ]


_SETTLE_FIRST: Final = (
    "UPDATE queue_ranges SET start_offset = ? WHERE queue_id = ? AND partition = ?"
    " AND start_offset = ? AND stop_offset > ? AND worker_id = ? AND deliveries = ?"
)
"""Takes the beginning of a row that goes on; changes nothing if it is another."""


def refuse_queue(catalog: Catalog, group: str) -> None:
    """Raise UsageError if `group` is that of a queue, whose offsets are its own."""
    if catalog.database.query("SELECT 1 FROM queues WHERE group_name = ?", (group,)):
        raise UsageError(f"{group!r} is the group of a queue: choose another group")


def refuse_live_workers(catalog: Catalog, group: str, what: str) -> None:
    """Raise LockedError if workers of a queue of `group` are at work, as far as is known."""
    rows = catalog.database.query(
        "SELECT client, pid, host FROM queue_workers JOIN queues ON queues.id = queue_id"
        " WHERE group_name = ?",
        (group,),
    )
    if rows:
        client, pid, host = rows[0]
        raise LockedError(
            f"cannot {what} group {group!r}: its queue has {len(rows)} live worker(s), one is"
            f" {as_text(client)!r} in process {as_int(pid)} on {as_text(host)}. Close them first"
        )
