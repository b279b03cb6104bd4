"""Transactions: records of several partitions, group offsets and checkpoints, all or nothing.

Batches are written at once, marked with the transaction's id, and readers stop before them. To
commit, every touched partition is synced, and one SQLite commit decides the transaction together
with the offsets and checkpoints; if it is a single batch, while that is synced. Nothing outside
that commit ever happened: a process that dies before it leaves an open transaction, which whoever
notices aborts (`transaction_states.py`). Who may commit is `owners.py`. With rows in a database of
the user's, that database decides: its commit comes inside the one of the catalog, right before it
(`decisions.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from .append import Appender
from .batch import EncodedBatch
from .catalog import GroupOffset
from .column_append import ColumnAppender
from .conditional_append import Condition, Match, condition_on
from .config import check_checkpoint_name, check_group_name
from .decisions import encode_outcome
from .engine import Engine
from .errors import ConflictError, FencedError, MillstreamError, UsageError
from .handle import Handle
from .job import Job, Settler
from .latest import LatestValues
from .log import Log
from .membership import check_committable, checked_offsets, remove_dead_members
from .once_append import Placed, append_once, metadata_of, stamp_of
from .owner_catalog import Outcome, OwnerCatalog
from .owners import Ownership
from .queue_catalog import refuse_queue
from .queue_ranges import Lease
from .record import AppendMetadata, Headers, RecordMetadata, TopicPartition
from .sql_values import Row as SQLRow, SQLValue
from .transaction_states import transaction_id
from .user_transaction import UserTransaction

ABORTING: Final = (Exception, KeyboardInterrupt, SystemExit, GeneratorExit)
"""All there is, except what stands for the death of a process or machine in a test."""


class UnbegunTransaction(AbstractContextManager["Transaction"]):
    """What `Store.transaction` returns; the transaction begins with the block, by `with`."""

    def __init__(self, block: AbstractContextManager[Transaction]) -> None:
        self._block = block

    def __repr__(self) -> str:
        return "<Transaction not begun>"

    def __enter__(self) -> Transaction:
        return self._block.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._block.__exit__(kind, error, traceback)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """AttributeError: without the block nothing would be committed."""
            raise AttributeError(
                f"there is no {name!r} before the transaction begins: "
                "`with store.transaction() as txn:`",
                name=name,
                obj=self,
            )


class Transaction(Handle):
    """One transaction; a context manager that commits on success and aborts on an exception.

    Made by `Store.transaction`. Used by one thread. Its records are encoded and written by
    `append_many` right away, one batch per call and partition.
    """

    def __init__(
        self,
        engine: Engine,
        ownership: Ownership,
        latest: LatestValues | None = None,
        rows: UserTransaction | None = None,
    ) -> None:
        self._engine = engine
        self._latest = latest or LatestValues(engine)
        self._appender = Appender(engine)
        self._columns = ColumnAppender(engine)
        self._ownership = ownership
        self._number = ownership.decided + 1
        self._ends: dict[Log, int] = {}
        self._offsets: dict[tuple[str, int, int], GroupOffset] = {}
        self._checkpoints: dict[str, bytes] = {}
        self._jobs: list[Job] = []
        self._leases: list[Lease] = []
        self._also: list[Callable[[], None]] = []
        self._rows = rows
        self._state: Literal["open", "committed", "aborted", "unknown"] = "open"
        self._pieces = 0
        """Batches of it; one counts twice that leaves out what an earlier batch holds."""
        self._written = False
        """Whether the log may hold a batch of it."""
        self._failed = False
        """Whether an append failed, which may have written some of its batches."""

    def __repr__(self) -> str:
        return f"<Transaction {self.state}>"

    @property
    def state(self) -> str:
        """open, committed, aborted, or unknown after a commit that failed half-way.

        Aborted also if somebody else did that: who owns the name now, or had to wait for too long.
        """
        return self._state

    def append(  # noqa: PLR0913 - a record has that many parts
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
        expected_offset: int | None = None,
        match: Match | None = None,
    ) -> RecordMetadata:
        """As `Store.append`; visible when the transaction commits.

        A condition is checked now: after a ConflictError the transaction is as before the call.
        Records that an open transaction has written, this one too, do not `match`.
        """
        self._ensure_open()
        record = self._appender.encode_one(
            topic, value, key=key, timestamp_ms=timestamp_ms, headers=headers, partition=partition
        )
        condition = None
        if expected_offset is not None or match is not None:
            condition = condition_on(
                self._latest,
                (record,),
                partition,
                expected_offset=expected_offset,
                key=key,
                match=match,
            )
        (placed,), now_ms = self._write([record], condition)
        return metadata_of(placed, stamp_of(record[1], now_ms))

    def append_many(  # noqa: PLR0913 - a record has that many parts
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        timestamps_ms: Sequence[int] | None = None,
        partition: int | None = None,
        *,
        headers: Sequence[Headers] | None = None,
        expected_offset: int | None = None,
    ) -> list[AppendMetadata]:
        """As `Store.append_many`; visible when the transaction commits."""
        self._ensure_open()
        batches = self._appender.encode_many(
            topic, values, keys, timestamps_ms, partition, headers=headers
        )
        condition = None
        if expected_offset is not None:
            condition = condition_on(
                self._latest, batches, partition, expected_offset=expected_offset
            )
        return [
            AppendMetadata(topic, each.log.partition, each.base_offset, each.written.record_count)
            for each in self._write(batches, condition)[0]
            if each.written is not None
        ]

    def append_arrow(
        self,
        topic: str,
        data: object,
        *,
        keys: object = None,
        timestamps_ms: object = None,
        partition: int | None = None,
    ) -> list[AppendMetadata]:
        """As `Store.append_arrow`; all of it visible when the transaction commits, or nothing."""
        self._ensure_open()
        pieces = self._columns.encode(topic, data, partition, keys, timestamps_ms)
        batches = [batch for piece in pieces for batch in piece]
        return [
            AppendMetadata(topic, each.log.partition, each.base_offset, each.written.record_count)
            for each in self._write(batches)[0]
            if each.written is not None
        ]

    def append_columns(
        self,
        topic: str,
        columns: Mapping[str, Sequence[object]],
        *,
        partition: int | None = None,
    ) -> list[AppendMetadata]:
        """As `Store.append_columns`; all of it visible when the transaction commits, or nothing."""
        self._ensure_open()
        return self.append_arrow(topic, self._columns.table_of(topic, columns), partition=partition)

    def _write(
        self, batches: Sequence[tuple[Log, EncodedBatch]], condition: Condition | None = None
    ) -> tuple[list[Placed], int]:
        mark = transaction_id(self._ownership.owner_id, self._number)
        self._written = True
        try:
            placed, now_ms = append_once(
                self._engine, batches, transaction_id=mark, guard=condition
            )
        except ConflictError:
            raise  # before anything was written
        except BaseException:
            self._failed = True
            raise
        for each in placed:
            # What a duplicate repeats has to be durable too.
            self._ends[each.log] = max(each.end, self._ends.get(each.log, 0))
            self._pieces += 1 if each.rows is None else 2
        return placed, now_ms

    def commit_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these next offsets of a group together with the transaction.

        If meanwhile a member of another process has got one of the partitions, `commit` raises
        FencedError, and nothing of the transaction is ever visible.

        Raises:
            UnknownTopicError: No such topic or partition.
            OffsetOutOfRangeError: An offset is past the log end.
        """
        self._ensure_open()
        refuse_queue(self._engine.catalog, check_group_name(group))
        remove_dead_members(self._engine, group)
        for place, offset in checked_offsets(offsets).items():
            topic_id = self._engine.topic(place.topic).id
            check_committable(self._engine, place, offset)
            self._offsets[group, topic_id, place.partition] = GroupOffset(
                group, topic_id, place.partition, offset, lock_path=self._engine.liveness.path
            )

    def put_checkpoint(self, name: str, data: bytes) -> None:
        """Store `data` under `name` together with the transaction; see `Store.checkpoint`.

        Raises:
            UsageError: `name` is not 1 to 1000 printable characters, or `data` no bytes.
        """
        self._ensure_open()
        check_checkpoint_name(name)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise UsageError(f"a checkpoint is bytes, not {type(data).__name__}")
        self._checkpoints[name] = bytes(data)

    def execute(self, sql: str, bindings: Sequence[SQLValue] = ()) -> list[SQLRow]:
        """Run one statement in the database given to `Store.transaction`, and return its rows.

        The first one locks the database for writing, until the transaction ends.

        Raises:
            LockedError: Another process wrote to the database for 10 s.
            RecordError: A row does not keep to a constraint. Nothing else is undone.
            UsageError: The statement is wrong, or begins, ends or attaches something.
            StorageError, DataError: The database cannot be written, or is damaged.
        """
        return self._database().execute(sql, bindings)

    def execute_many(self, sql: str, rows: Sequence[Sequence[SQLValue]]) -> None:
        """Run one statement for each of `rows`; errors as `execute`."""
        self._database().execute_many(sql, rows)

    def _database(self) -> UserTransaction:
        self._ensure_open()
        if self._rows is None:
            raise UsageError("the transaction has no database: store.transaction(database=PATH)")
        return self._rows

    def ack(self, *jobs: Job) -> None:
        """Ack jobs of queues together with the transaction: exactly once.

        If a job's lease has passed and another worker got it, `commit` raises FencedError, and
        nothing of the transaction is ever visible, rows in its database included. If it aborts, the
        jobs are still leased.

        Raises:
            UsageError: A job is settled already, is in this transaction already, or is not of this
                open store.
            FencedError: It is lost.
        """
        self._ensure_open()
        for job in jobs:
            if not isinstance(job, Job):
                raise UsageError(f"only jobs of a queue can be acked, not {job!r:.60}")
        if len({*self._jobs, *jobs}) < len(self._jobs) + len(jobs):
            raise UsageError("a job is acked twice in the transaction")
        queues: dict[Settler, list[Job]] = {}
        for job in jobs:
            queues.setdefault(job.settler, []).append(job)
        acks = [queue.acks(self._engine, each) for queue, each in queues.items()]
        self._jobs += jobs
        for leases, write in acks:
            self._leases += leases
            self._also.append(write)

    def also(self, write: Callable[[], None]) -> None:
        """Have `write` called inside the commit, for what is kept in the catalog.

        Not in a transaction with rows in a database: whoever finishes one does not know of it.
        """
        assert self._rows is None
        self._also.append(write)

    def commit(self) -> None:
        """Make everything durable, then visible, in one step.

        A commit that fails aborts, so that no reader waits for it. Only where that fails too is
        the `state` unknown, until the owner is acquired again or its process ends; and where one
        batch alone could not be synced, which is then there as a whole or not at all.

        Raises:
            FencedError: Somebody newer owns the name, a partition whose offset is committed, or a
                job; nothing of it will ever be visible.
            UnknownTopicError: An offset is of a topic that was deleted.
            UsageError: An append of the transaction failed, or its database has rolled back.
            RecordError: The rows do not keep to a constraint that is checked at the end.
            StorageError, PoisonedError, LockedError: See `state`. While it is unknown the rows may
                be committed; the records are seen when that is decided, and no other transaction
                begins in this process before.
        """
        self._ensure_open()
        if self._failed:
            self.abort()
            raise UsageError("an append of the transaction failed, so it is aborted: start anew")
        self._state = "unknown"
        try:
            wait = self._sync_beside()
            if wait is None:
                # Outputs have to be durable before the decision is, in whatever mode the store is.
                self._engine.acknowledge(list(self._ends.items()), "sync")
            if self._rows is not None and self._rows.begun:
                if self._leases:
                    # What says whose the jobs are is not synced when they are handed out.
                    self._engine.catalog.sync()
                self._rows.flush()
            self._decide(committed=True)
            if wait is not None:
                wait()
        except ABORTING as error:
            self._written = True  # the decision may have been taken: let the catalog tell
            with contextlib.suppress(MillstreamError):
                self._abort()
            if self._state == "unknown" and self._rows is not None:
                self._leave_jobs_in_doubt()
            if self.state != "committed" or not isinstance(error, Exception):
                raise
        self._state = "committed"
        for job in self._jobs:
            job.state = "acked"

    def _sync_beside(self) -> Callable[[], None] | None:
        """Begin the sync, if the decision need not wait for it; returns what waits.

        One batch is there as a whole or not at all. If that is all there is, a decision about a
        batch that was lost commits nothing.
        """
        if self._pieces != 1 or self._offsets or self._checkpoints or self._also:
            return None
        if self._rows is not None and self._rows.begun:
            return None
        ((log, end),) = self._ends.items()
        return self._engine.sync_beside(log, end)

    def _leave_jobs_in_doubt(self) -> None:
        """Nobody may settle the jobs otherwise: they may be acked."""
        for job in self._jobs:
            job.state = "undecided"
            job.settler.leave_in_doubt()

    def abort(self) -> None:
        """Make sure nothing of it is ever seen."""
        self._ensure_open()
        self._state = "unknown"
        self._abort()

    def _abort(self) -> None:
        if self._rows is not None:
            self._rows.roll_back()
        if self._rows is not None and self._rows.attempted:
            ownership = self._ownership
            state = self._engine.decisions.settle(ownership.owner_id, self._number, fence=False)
            ownership.decided = self._number
            if state == "committed":
                self._state = state
                return
        elif self._written:
            try:
                self._decide(committed=False)
            except FencedError:
                if not self._aborted_by_another():
                    raise
            finally:
                # Also if it has been decided before, by a commit that was interrupted then.
                self._engine.tail.bump("transactions_version")
        self._state = "aborted"
        # Readers of several partitions wait for records which are neither seen nor passed. It is
        # aborted all the same: whoever acknowledges next in these partitions lets them go on.
        with contextlib.suppress(MillstreamError):
            self._engine.acknowledge(list(self._ends.items()), "os")

    def _aborted_by_another(self) -> bool:
        """Whether whoever fenced the owner has aborted the transaction: then that is known."""
        owner = self._engine.catalog.owner(self._ownership.owner_id)
        if owner is None or self._number not in owner.aborted:
            return False
        self._ownership.fenced = True
        return True

    def _decide(self, *, committed: bool) -> None:
        ownership = self._ownership
        offsets, also = list(self._offsets.values()), self._also
        if committed and self._rows is not None and self._rows.begun:
            # The jobs first: if one is lost, the rows must not be committed.
            offsets, also = [], [*self._also, self._commit_rows]
        self._engine.catalog.decide(
            ownership.owner_id,
            ownership.epoch,
            self._number,
            committed,
            offsets,
            self._checkpoints,
            also=also,
        )
        ownership.decided = self._number
        self._engine.tail.bump("transactions_version")

    def _commit_rows(self) -> None:
        """Commit in the user's database, with the catalog locked and all but committed."""
        owners = OwnerCatalog(self._engine.catalog)
        database = owners.database(self._ownership.owner_id)
        assert self._rows is not None
        assert database is not None
        before = owners.write(list(self._offsets.values()))
        data = encode_outcome(Outcome(before, self._checkpoints, self._leases))
        self._rows.commit(database.mark, self._number, data)

    def _ensure_open(self) -> None:
        self._engine.ensure_writable()
        if self._state != "open":
            raise UsageError(f"the transaction is {self._state}: start a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._state != "open":
            return
        if kind is None:
            self.commit()
        elif issubclass(kind, ABORTING) and not self._engine.inherited:
            self.abort()
