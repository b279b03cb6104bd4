"""How a store is written to, as its users see it: appends, producers, transactions.

A thin facade. The append path is `engine.py`, producers are `producer.py` and `named_producer.py`,
several writes at once are `transaction.py`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import overload

from .append import Appender
from .batch import EncodedBatch
from .column_append import ColumnAppender
from .conditional_append import Match, condition_on
from .config import Durability, check_checkpoint_name, check_durability
from .engine import Engine
from .errors import UsageError
from .handle import Handle
from .job import Duration
from .latest import LatestValues
from .log import Log
from .named_producer import NamedProducer
from .numbered_append import OpenProducer, forget
from .once_append import append_once, metadata_of, stamp_of
from .owner_catalog import DatabasePlace
from .owners import TIMEOUT, AnonymousOwners, Ownership, Terms, own
from .positions import parse_duration_ms
from .producer import Producer
from .record import AppendMetadata, Headers, RecordMetadata
from .transaction import Transaction, UnbegunTransaction
from .user_transaction import UserTransaction, checked_place


def _terms(timeout: Duration | None) -> Terms:
    return Terms(None if timeout is None else parse_duration_ms(timeout))


class StoreWriting(Handle):
    """The part of `Store` that writes records. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._appender = Appender(engine)
        self._columns = ColumnAppender(engine)
        self._latest = LatestValues(engine)
        self._owners = AnonymousOwners(engine)

    # --- append --------------------------------------------------------------------------------

    def append(  # noqa: PLR0913 - a record has that many parts
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
        durability: Durability | None = None,
        expected_offset: int | None = None,
        match: Match | None = None,
    ) -> RecordMetadata:
        """Append one record and return when it is acknowledged.

        Args:
            topic: An existing topic.
            value: Bytes; None is a tombstone.
            key: Records of one key keep their order.
            timestamp_ms: UTC milliseconds; None takes the time of the append.
            headers: (name, bytes or None) pairs. One with the name "record-id" is the id of the
                record: if the topic has the option `dedup`, it is not written again.
            partition: None chooses by key, else by id, or takes turns.
            durability: Instead of the store's: "sync", "interval" or "os".
            expected_offset: Append only if the record gets this offset.
            match: Append only if the last record of the key is this one, that at this offset, or
                "absent" (none but a tombstone).

        Raises:
            ConflictError: Somebody else was faster; its `offset` says what is there.
            UnknownTopicError: Create the topic first.
            MissingKeyError: The topic is compacted.
            UsageError: Wrong types, a record over 128 MiB.
            StorageError: Not appended. PoisonedError: a sync failed, it may or may not be there.

        Threads appending at once share syncs (group commit). For many records use `append_many`
        or `producer`.

        >>> import millstream
        >>> with millstream.open() as store:
        ...     topic = store.create_topic("users")
        ...     first = store.append("users", b"{}", key=b"ann", match="absent")
        ...     store.append("users", b"[]", key=b"ann", match=first.offset).offset
        1
        """
        self._engine.ensure_writable()
        mode: Durability = durability or self._engine.durability
        check_durability(mode)
        conditional = expected_offset is not None or match is not None
        looked_up = conditional or (headers and self._appender.looks_at_ids(topic))
        if not looked_up:
            row = (value, key, timestamp_ms, headers)
            if appended := self._appender.append(topic, row, partition, mode):
                return appended
        record = self._appender.encode_one(
            topic, value, key=key, timestamp_ms=timestamp_ms, headers=headers, partition=partition
        )
        condition = None
        if conditional:
            condition = condition_on(
                self._latest,
                (record,),
                partition,
                expected_offset=expected_offset,
                key=key,
                match=match,
            )
        (placed,), now_ms = append_once(self._engine, (record,), guard=condition)
        self._engine.acknowledge(((placed.log, placed.end),), durability)
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
        durability: Durability | None = None,
        expected_offset: int | None = None,
    ) -> list[AppendMetadata]:
        """Append columns of records, one batch per partition, and return when all are durable.

        Sequences are of equal length. Without `partition`, keyed records go where their keys
        belong and an unkeyed call goes to one partition, in turn. Returns one entry per
        partition written; records that are not written again (topic option `dedup`) do not
        count. With `expected_offset` all must go to one partition, and the first
        record has to get that offset. Arguments and errors otherwise as `append`.

        >>> import millstream
        >>> with millstream.open() as store:
        ...     info = store.create_topic("t")
        ...     store.append_many("t", [b"a", b"b"])
        [AppendMetadata(topic='t', partition=0, base_offset=0, record_count=2)]
        """
        check_durability(durability or self._engine.durability)
        batches = self._appender.encode_many(
            topic, values, keys, timestamps_ms, partition, headers=headers
        )
        condition = None
        if expected_offset is not None:
            condition = condition_on(
                self._latest, batches, partition, expected_offset=expected_offset
            )
        placed, _ = append_once(self._engine, batches, guard=condition)
        self._engine.acknowledge([(each.log, each.end) for each in placed], durability)
        return [
            AppendMetadata(topic, each.log.partition, each.base_offset, each.written.record_count)
            for each in placed
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
        durability: Durability | None = None,
    ) -> list[AppendMetadata]:
        """Append Arrow data to a topic with a schema, and return when all of it is acknowledged.

        Columns are matched by name and cast where nothing is lost; a nullable one may be missing.
        Rows become batches of about 16 MiB. They are acknowledged together, but are not one
        transaction (`Transaction.append_arrow` is): batches of other writers may come in between.
        Rows with a key go to the partition it belongs to; else all go to one, in turn.

        Args:
            topic: An existing topic with a schema.
            data: A pyarrow Table or RecordBatch, or what speaks the Arrow C interface: a frame of
                Polars or pandas, a relation of DuckDB. It is written from where it is in memory:
                NumPy arrays below it must not change until the call returns.
            keys: Of the records, one per row, None for none: a binary or string array, or a list of
                bytes. Without them, and where one is None, the declared key.
            timestamps_ms: Of the records, UTC ms, one per row; without them the declared time.
            partition: All rows to this one.
            durability: Instead of the store's: "sync", "interval" or "os".

        Returns:
            One entry per batch.

        Raises:
            UsageError: The topic has no schema, or the data does not fit; nothing was appended.
            MissingExtraError: pyarrow is not installed.
            StorageError, PoisonedError: As `append`.
        """
        self._engine.ensure_writable()
        pieces = self._columns.encode(topic, data, partition, keys, timestamps_ms)
        return self._append_pieces(topic, pieces, durability)

    def append_columns(
        self,
        topic: str,
        columns: Mapping[str, Sequence[object]],
        *,
        partition: int | None = None,
        durability: Durability | None = None,
    ) -> list[AppendMetadata]:
        """Append columns by name: lists or NumPy arrays of equal length; see `append_arrow`."""
        self._engine.ensure_writable()
        table = self._columns.table_of(topic, columns)
        return self._append_pieces(topic, self._columns.encode(topic, table, partition), durability)

    def _append_pieces(
        self,
        topic: str,
        pieces: Generator[list[tuple[Log, EncodedBatch]], None, None],
        durability: Durability | None,
    ) -> list[AppendMetadata]:
        check_durability(durability or self._engine.durability)
        written: list[AppendMetadata] = []
        ends: dict[Log, int] = {}
        with closing(pieces):
            for piece in pieces:
                offsets, _ = self._engine.append(piece)
                for (log, encoded), base in zip(piece, offsets, strict=True):
                    count = encoded.record_count
                    written.append(AppendMetadata(topic, log.partition, base, count))
                    ends[log] = base + count
        self._engine.acknowledge(list(ends.items()), durability)
        return written

    @overload
    def producer(
        self,
        *,
        name: None = None,
        linger_ms: float = 5,
        batch_bytes: int = 1 << 20,
        buffer_bytes: int = 64 << 20,
        durability: Durability | None = None,
    ) -> Producer: ...
    @overload
    def producer(
        self,
        *,
        name: str,
        gaps: bool = False,
        linger_ms: float = 5,
        batch_bytes: int = 1 << 20,
        buffer_bytes: int = 64 << 20,
        durability: Durability | None = None,
    ) -> NamedProducer: ...
    def producer(
        self,
        *,
        name: str | None = None,
        gaps: bool = False,
        linger_ms: float = 5,
        batch_bytes: int = 1 << 20,
        buffer_bytes: int = 64 << 20,
        durability: Durability | None = None,
    ) -> Producer:
        """A producer that gathers records into batches; see `Producer`.

        Args:
            name: The same after each restart: then what is sent again is not written again; see
                `NamedProducer`. Whoever has the name open is fenced.
            gaps: With a name: sequences may leave numbers out.
            linger_ms: See `Producer`, as for the rest.
            batch_bytes: As there.
            buffer_bytes: As there.
            durability: As there.

        >>> import millstream
        >>> with millstream.open() as store:
        ...     topic = store.create_topic("lines")
        ...     for attempt in (1, 2):
        ...         with store.producer(name="import") as producer:
        ...             for number, line in enumerate([b"a", b"b"]):
        ...                 future = producer.send("lines", line, sequence=number)
        ...     [record.value for record in store.read("lines")]
        [b'a', b'b']
        """
        if name is not None:
            return NamedProducer(
                OpenProducer(self._engine, name, gaps=gaps),
                linger_ms=linger_ms,
                batch_bytes=batch_bytes,
                buffer_bytes=buffer_bytes,
                durability=durability,
            )
        return Producer(
            self._engine,
            linger_ms=linger_ms,
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
            durability=durability,
        )

    def forget_producer(self, name: str) -> bool:
        """Forget a named producer and what it has sent; whether there was one.

        Whoever has it open is fenced. The name begins anew, and what is sent again with it is
        written again.
        """
        return forget(self._engine, name)

    def transaction(
        self,
        *,
        owner: Ownership | None = None,
        timeout: Duration | None = None,
        database: str | os.PathLike[str] | None = None,
    ) -> AbstractContextManager[Transaction]:
        """Write several partitions, offsets, checkpoints and rows all or nothing.

        Commits when the block ends, aborts when it raises.

        Args:
            owner: From `own`, when a later run shall fence this one; it has one at a time.
            timeout: For how long it may keep readers waiting, "10m" if not given: whoever has to
                wait longer aborts it, though its process lives. With an owner see `own`.
            database: A SQLite database of yours, made if it is missing: `Transaction.execute`
                writes rows to it that are committed with the rest. It has to stay where it is.

        Raises:
            FencedError: At the commit: somebody newer owns the name, or it was open for too long.
            UsageError: The owner has one open, or nobody knows what became of its last one.
            UndecidedError: An earlier transaction hangs on a database that is gone.

        >>> import millstream
        >>> with millstream.open() as store:
        ...     info = store.create_topic("t")
        ...     with store.transaction() as txn:
        ...         metadata = txn.append("t", b"a")
        ...     [record.value for record in store.read("t")]
        [b'a']
        """
        return UnbegunTransaction(self._transaction(owner, timeout, database))

    @contextmanager
    def _transaction(
        self,
        owner: Ownership | None,
        timeout: Duration | None,
        database: str | os.PathLike[str] | None,
    ) -> Iterator[Transaction]:
        if owner is not None and timeout is not None:
            raise UsageError("the timeout of an owner's transactions is given to own()")
        if owner is not None and not isinstance(owner, Ownership):
            raise UsageError(f"owner must be what own() returns, not {owner!r}")
        with ExitStack() as ending:
            transaction = rows = place = None
            if database is not None:
                rows = ending.enter_context(closing(self._open_database(database)))
                place = DatabasePlace(rows.path, rows.identify(), self._engine.liveness.path)
            if owner is None:
                terms = _terms(TIMEOUT if timeout is None else timeout)._replace(place=place)
                ownership = self._owners.take(terms)
            else:
                ownership = owner
                ownership.begin()
                ending.callback(lambda: owner.end(transaction.state if transaction else "aborted"))
                ownership.hang_on(self._engine, place)
            transaction = Transaction(self._engine, ownership, self._latest, rows)
            if owner is None:
                ending.callback(lambda: self._owners.give_back(ownership, transaction.state))
            with transaction:
                yield transaction

    def _open_database(self, path: str | os.PathLike[str]) -> UserTransaction:
        engine = self._engine
        engine.ensure_writable()
        place = checked_place(path, engine.storage.catalog_filename())
        return UserTransaction(place, clock=engine.clock, on_commit=engine.storage.sync_point)

    def abandon_database(self, path: str | os.PathLike[str]) -> int:
        """Abort the transactions that hang on a database which is lost for good; how many.

        Only for those whose processes are dead. If they had committed their rows, the database and
        the store differ from then on.
        """
        self._engine.ensure_writable()
        place = checked_place(path, self._engine.storage.catalog_filename())
        return self._engine.decisions.abandon(place)

    def own(self, name: str, *, timeout: Duration | None = None) -> Ownership:
        """Acquire the exclusive right to `name`; see `Ownership`.

        Args:
            name: Up to 100 characters.
            timeout: For how long its transactions may keep readers waiting; None: as long as the
                process lives.

        Raises:
            LockedError: A live process has it; the message names its pid.
        """
        return own(self._engine, name, _terms(timeout))

    def checkpoint(self, name: str) -> bytes | None:
        """What the last committed transaction stored under `name`, or None."""
        self._engine.ensure_open()
        check_checkpoint_name(name)
        self._engine.decisions.settle_dead()
        return self._engine.catalog.checkpoint(name)

    def checkpoint_names(self, prefix: str = "") -> list[str]:
        """The names under which committed transactions have stored something, sorted.

        Args:
            prefix: What they begin with.
        """
        self._engine.ensure_open()
        self._engine.decisions.settle_dead()
        return self._engine.catalog.checkpoint_names(prefix)
