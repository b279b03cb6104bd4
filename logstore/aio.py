"""Producers, consumers and queues for asyncio: the same handles, awaited.

Asyncio is used here and in the `async_` modules this makes things from, nowhere else.

    import millstream
    from millstream import aio

    async with aio.producer(store) as producer:
        metadata = await producer.send("orders", b"...", key=b"u1")
    async with aio.consumer(store, "orders", group="billing") as consumer:
        async for record in consumer:
            ...
        await consumer.commit()
    async with aio.queue(store, "jobs") as queue:
        async for job in queue:
            await queue.ack(job)

Whatever may block runs in one worker thread per handle; sending does not leave the event loop,
because it only adds to a batch in memory. A handle belongs to the event loop that uses it first.
Semantics are those of `Producer` and `Consumer`; what cancellation does is said at each method.
Producers are in `async_producer.py`.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, Self, TypeVar, overload

from .async_producer import (
    SLICE_SECONDS,
    AsyncNamedProducer,
    AsyncProducer,
)
from .async_queue import AsyncQueue, queue
from .async_worker import AsyncWorker
from .config import Durability, Isolation, check_timeout
from .consumer import Consumer
from .errors import StoreClosedError
from .handle import Handle
from .positions import Position
from .record import Record, TopicPartition
from .store import Store

__all__ = [
    "AsyncConsumer",
    "AsyncNamedProducer",
    "AsyncProducer",
    "AsyncQueue",
    "consumer",
    "producer",
    "queue",
]


CHUNK_RECORDS: Final = 500

T = TypeVar("T")


@overload
def producer(
    store: Store,
    *,
    name: None = None,
    linger_ms: float = 5,
    batch_bytes: int = 1 << 20,
    buffer_bytes: int = 64 << 20,
    durability: Durability | None = None,
) -> AsyncProducer: ...
@overload
def producer(
    store: Store,
    *,
    name: str,
    gaps: bool = False,
    linger_ms: float = 5,
    batch_bytes: int = 1 << 20,
    buffer_bytes: int = 64 << 20,
    durability: Durability | None = None,
) -> AsyncNamedProducer: ...
def producer(  # noqa: PLR0913 - as of Store.producer
    store: Store,
    *,
    name: str | None = None,
    gaps: bool = False,
    linger_ms: float = 5,
    batch_bytes: int = 1 << 20,
    buffer_bytes: int = 64 << 20,
    durability: Durability | None = None,
) -> AsyncProducer:
    """A producer to await; arguments as of `Store.producer`.

    With a name it has to be opened, which takes a commit of the catalog: some milliseconds in which
    the event loop stands still.
    """
    if name is not None:
        return AsyncNamedProducer(
            store.producer(
                name=name,
                gaps=gaps,
                linger_ms=linger_ms,
                batch_bytes=batch_bytes,
                buffer_bytes=buffer_bytes,
                durability=durability,
            )
        )
    return AsyncProducer(
        store.producer(
            linger_ms=linger_ms,
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
            durability=durability,
        )
    )


def consumer(
    store: Store,
    topics: str | Sequence[str],
    *,
    group: str | None = None,
    start: int | str | datetime | Position = "earliest",
    follow: bool = False,
    isolation: Isolation = "committed",
) -> AsyncConsumer:
    """A consumer to await; arguments as of `Store.consumer`, errors at its first use.

    >>> import asyncio, millstream
    >>> async def values(store: Store) -> list[bytes | None]:
    ...     async with consumer(store, "orders") as orders:
    ...         return [record.value async for record in orders]
    >>> with millstream.open(":memory:") as store:
    ...     info = store.create_topic("orders")
    ...     appended = store.append_many("orders", [b"a", b"b"])
    ...     asyncio.run(values(store))
    [b'a', b'b']
    """
    make = partial(
        store.consumer, topics, group=group, start=start, follow=follow, isolation=isolation
    )
    names = topics if isinstance(topics, str) else ", ".join(topics)
    asked = f"{names} group {group!r}" if group else names
    return AsyncConsumer(make, asked, follow=follow)


class AsyncConsumer(Handle):
    """A `Consumer` for one event loop: `async for record in consumer`, or `poll`.

    Use it with `async with`. Tasks that share one take turns. A cancelled call loses no record:
    what was being fetched is delivered by the next call, and is not part of a commit before.

    With `follow`, iteration hands partitions over to new members whenever it fetches (every
    500 records), so commit about as often.
    """

    def __init__(self, make: Callable[[], Consumer], asked: str, *, follow: bool) -> None:
        self._make = make
        self._asked = asked
        self._follow = follow
        self._inner: Consumer | None = None
        self._worker = AsyncWorker("consumer")
        self._turn = asyncio.Lock()
        self._fetching: asyncio.Future[list[Record] | None] | None = None
        self._pending: deque[Record] = deque()
        """Fetched and not delivered; the inner consumer counts them as delivered."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncConsumer {self._asked}{' closed' if self._closed else ''}>"

    async def poll(
        self, timeout: float | None = 0.0, max_records: int = CHUNK_RECORDS
    ) -> list[Record]:
        """The next records; [] if none came within `timeout` seconds (None: no limit).

        Raises:
            DataError, OffsetOutOfRangeError, UsageError: As `Consumer.poll`.
        """
        loop = asyncio.get_running_loop()
        seconds = check_timeout(timeout)
        deadline = None if seconds is None else loop.time() + seconds
        async with self._turn:
            while True:
                if not self._pending:
                    remaining = SLICE_SECONDS if deadline is None else deadline - loop.time()
                    await self._fetch(
                        partial(self._poll, min(max(remaining, 0.0), SLICE_SECONDS), max_records)
                    )
                if self._pending or (deadline is not None and loop.time() >= deadline):
                    count = min(max_records, len(self._pending))
                    return [self._pending.popleft() for _ in range(count)]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        """The next record; ends at the log end unless the consumer follows."""
        async with self._turn:
            while not self._pending:
                more = self._follow_on if self._follow else self._read_on
                if not await self._fetch(more):
                    raise StopAsyncIteration
            return self._pending.popleft()

    async def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        """Commit, durably, the next offset of each partition: all delivered, or as given.

        Raises:
            FencedError, OffsetOutOfRangeError, UsageError: As `Consumer.commit`.
        """
        async with self._turn:
            await self._settle()
            await self._call(partial(self._commit, offsets, self._undelivered()))

    async def position(self) -> dict[TopicPartition, int]:
        """Next offset of each assigned partition: all before was delivered."""
        async with self._turn:
            await self._settle()
            return await self._call(self._position)

    async def seek(
        self,
        partition: TopicPartition | tuple[str, int],
        position: int | str | datetime | Position,
    ) -> None:
        """Continue an assigned partition somewhere else; as `Consumer.seek`.

        Cancelled, it may take place all the same, and then with all that belongs to it.
        """
        place = TopicPartition(*partition)

        def forget(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and done.exception() is None:
                self._pending = deque(
                    record for record in self._pending if (record.topic, record.partition) != place
                )

        async with self._turn:
            await self._settle()
            seeking = self._worker.call(lambda: self._consumer().seek(partition, position))
            seeking.add_done_callback(forget)
            await asyncio.shield(seeking)

    async def lag(self) -> dict[TopicPartition, int]:
        """How many offsets each assigned partition is behind its visible end."""
        async with self._turn:
            await self._settle()
            return await self._call(self._lag)

    async def assignment(self) -> tuple[TopicPartition, ...]:
        """The partitions this consumer reads, as of its last fetch."""
        async with self._turn:
            return await self._call(lambda: self._consumer().assignment)

    async def close(self) -> None:
        """Leave the group, without a commit, and close. Idempotent; cancelled, it closes, too."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._worker.call(self._close)
        finally:
            self._worker.close()

    async def __aenter__(self) -> Self:
        await self._call(self._consumer)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    # --- in the event loop ---------------------------------------------------------------

    async def _call(self, function: Callable[[], T]) -> T:
        if self._closed:
            raise StoreClosedError("the consumer is closed")
        return await self._worker.call(function)

    async def _fetch(self, function: Callable[[], list[Record] | None]) -> bool:
        """Add what `function` gives to the pending records; False if it gave None.

        Cancelled, it leaves the call running, and the next fetch takes its result.
        """
        if self._closed:
            raise StoreClosedError("the consumer is closed")
        if self._fetching is None:
            self._fetching = self._worker.call(function)
        try:
            records = await asyncio.shield(self._fetching)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._fetching = None
            raise
        self._fetching = None
        self._pending.extend(records or ())
        return records is not None

    async def _settle(self) -> None:
        """Take the result of a fetch that was cancelled, so that the positions are known."""
        if self._fetching is not None:
            await self._fetch(list)

    # --- in the worker thread ------------------------------------------------------------

    def _consumer(self) -> Consumer:
        if self._inner is None:
            self._inner = self._make()
        return self._inner

    def _poll(self, timeout: float, max_records: int) -> list[Record]:
        return self._consumer().poll(timeout, max_records)

    def _follow_on(self) -> list[Record]:
        return self._consumer().poll(SLICE_SECONDS, CHUNK_RECORDS)

    def _read_on(self) -> list[Record] | None:
        batch = next(self._consumer().batches(), None)
        return None if batch is None else batch.records()

    def _undelivered(self) -> dict[TopicPartition, int]:
        """First undelivered offset of each partition that has records pending."""
        return {
            TopicPartition(record.topic, record.partition): record.offset
            for record in reversed(self._pending)
        }

    def _position(self) -> dict[TopicPartition, int]:
        return self._consumer().position() | self._undelivered()

    def _commit(
        self,
        offsets: Mapping[TopicPartition, int] | None,
        undelivered: dict[TopicPartition, int],
    ) -> None:
        # As it was at the call: cancelled, it goes on, while other calls deliver more.
        if offsets is None and undelivered:
            offsets = self._consumer().position() | undelivered
        self._consumer().commit(offsets)

    def _lag(self) -> dict[TopicPartition, int]:
        inner = self._consumer()
        ahead = inner.position()
        behind = self._undelivered()
        return {
            place: lag + ahead[place] - behind.get(place, ahead[place])
            for place, lag in inner.lag().items()
        }

    def _close(self) -> None:
        if self._inner is not None:
            self._inner.close()
