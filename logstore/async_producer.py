"""Producers for asyncio; see `aio.py`, which makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self

from .async_worker import AsyncWorker
from .clock import SystemClock
from .errors import BackpressureTimeoutError
from .handle import Handle
from .named_producer import NamedProducer
from .outgoing import Batch, SendFuture
from .producer import Producer
from .record import Headers, RecordMetadata

SLICE_SECONDS: Final = 0.1
"""The worker never blocks longer for data or room: so long may a cancelled call occupy it."""

_clock: Final = SystemClock()
"""As in sender.py: threads wait in real time, whatever the store's clock."""


class AsyncProducer(Handle):
    """A `Producer` for one event loop. Use it with `async with`; leaving flushes and closes."""

    def __init__(self, inner: Producer) -> None:
        self._producer = inner
        self._timeout = inner.timeout
        # In the event loop nothing may block: a full buffer raises at once, and we wait aside.
        inner.timeout = 0
        self._worker = AsyncWorker("producer")
        self._waiting: dict[Batch, list[tuple[asyncio.Future[RecordMetadata], SendFuture]]] = {}
        self._turn = asyncio.Lock()
        self._hurrying = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._producer!r}>"

    def send_nowait(
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        """Queue a record; the future completes when it is acknowledged.

        Cancelling the future does not take the record back.

        Raises:
            BackpressureTimeoutError: The buffer is full just now; `send` would wait.
            UnknownTopicError, UsageError, StoreClosedError: As `Producer.send`.
        """
        future = self._producer.send(
            topic,
            value,
            key=key,
            timestamp_ms=timestamp_ms,
            headers=headers,
            partition=partition,
        )
        waiter: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        self._complete_later(waiter, future)
        return waiter

    def _complete_later(self, waiter: asyncio.Future[RecordMetadata], future: SendFuture) -> None:
        """Have `waiter` completed with the batch of a record."""
        if future.done():  # also a duplicate: its batch is of its own
            _settle(waiter, future)
            return
        waiting = self._waiting.get(future.batch)
        if waiting is None:
            # One call into the loop per batch, not one per record.
            self._waiting[future.batch] = waiting = []
            future.add_done_callback(partial(self._batch_done, waiter.get_loop()))
        waiting.append((waiter, future))

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> RecordMetadata:
        """Send one record and wait until it is acknowledged; waits for room first if need be.

        Like `SendFuture.result`, awaiting ends the linger: records sent by other tasks meanwhile
        still share the batch. Cancelled while it waits for room, nothing was sent; later, the
        record may be written.

        Raises:
            BackpressureTimeoutError: No room within the producer's timeout.
            MillstreamError: As `Producer.send` and `SendFuture.result`.
        """
        record = partial(
            self.send_nowait,
            topic,
            value,
            key=key,
            timestamp_ms=timestamp_ms,
            headers=headers,
            partition=partition,
        )
        return await self._send(record)

    async def _send(self, record: Callable[[], asyncio.Future[RecordMetadata]]) -> RecordMetadata:
        # Tasks that wait for room get it in the order in which they came.
        async with self._turn:
            try:
                waiter = record()
            except BackpressureTimeoutError:
                waiter = await self._send_with_room(record)
        self._hurry_soon()
        return await waiter

    async def flush(self) -> None:
        """Wait until everything sent is acknowledged; raises what failed since the last flush.

        Cancelling does not take records back.
        """
        await self._worker.call(self._producer.flush)

    async def close(self) -> None:
        """Flush and stop; raises as `flush`, closed all the same. Idempotent.

        Cancelled, it goes on without you.
        """
        if self._worker.closed:
            return
        try:
            await self._worker.call(self._producer.close)
        finally:
            self._worker.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._worker.closed:
            return
        try:
            # The sync handle knows what to do with an error on top of the caller's.
            leave = partial(self._producer.__exit__, kind, error, traceback)
            await self._worker.call(leave)
        finally:
            self._worker.close()

    async def _send_with_room(
        self, record: Callable[[], asyncio.Future[RecordMetadata]]
    ) -> asyncio.Future[RecordMetadata]:
        loop = asyncio.get_running_loop()
        deadline = None if self._timeout is None else loop.time() + self._timeout
        while True:
            await self._worker.call(partial(self._producer.wait_for_room, SLICE_SECONDS))
            try:
                return record()
            except BackpressureTimeoutError:
                if deadline is not None and loop.time() >= deadline:
                    raise

    def _hurry_soon(self) -> None:
        if not self._hurrying:
            self._hurrying = True
            asyncio.get_running_loop().call_soon(self._hurry)

    def _hurry(self) -> None:
        self._hurrying = False
        self._producer.hurry()

    def _batch_done(self, loop: asyncio.AbstractEventLoop, future: SendFuture) -> None:
        """In the producer's thread. A loop that is closed has nobody waiting any more."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._complete, future.batch)

    def _complete(self, batch: Batch) -> None:
        for waiter, future in self._waiting.pop(batch):
            _settle(waiter, future)


class AsyncNamedProducer(AsyncProducer):
    """A `NamedProducer` for one event loop: what is sent again is not written again.

    What may have to look into the log or to wait for the queue, the first record with a sequence
    and any that repeats one, is sent by the worker thread; the rest does not leave the loop.
    """

    def __init__(self, inner: NamedProducer) -> None:
        super().__init__(inner)
        self._named = inner
        self._highest: dict[str, int] = {}
        """By topic: the last sequence given; records above it need no look into the log."""
        self._aside = 0
        """Records that the worker is to send; later ones must not overtake them."""

    @property
    def name(self) -> str:
        """Its name."""
        return self._named.name

    @property
    def epoch(self) -> int:
        """How often the name has been opened."""
        return self._named.epoch

    def send_nowait(  # noqa: PLR0913 - a record has that many parts
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
        sequence: int | None = None,
    ) -> asyncio.Future[RecordMetadata]:
        """As `AsyncProducer.send_nowait`; `sequence` and errors as of `NamedProducer.send`.

        What the worker thread sends raises its errors from the future, not here.
        """
        send = partial(
            self._named.send,
            topic,
            value,
            key=key,
            timestamp_ms=timestamp_ms,
            headers=headers,
            partition=partition,
            sequence=sequence,
        )
        waiter: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        if not isinstance(sequence, int) or self._named.closed:
            self._complete_later(waiter, send())
            return waiter
        highest = self._highest.get(topic)
        if not self._aside and highest is not None and sequence > highest:
            self._complete_later(waiter, send())
            self._highest[topic] = sequence
            return waiter
        self._highest[topic] = max(sequence, -1 if highest is None else highest)
        self._aside += 1
        sent = self._worker.call(partial(self._send_aside, send))
        sent.add_done_callback(partial(self._sent_aside, waiter))
        return waiter

    async def send(  # noqa: PLR0913 - a record has that many parts
        self,
        topic: str,
        value: bytes | None = None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
        partition: int | None = None,
        sequence: int | None = None,
    ) -> RecordMetadata:
        """As `AsyncProducer.send`; `sequence` and errors as of `NamedProducer.send`."""
        return await self._send(
            partial(
                self.send_nowait,
                topic,
                value,
                key=key,
                timestamp_ms=timestamp_ms,
                headers=headers,
                partition=partition,
                sequence=sequence,
            )
        )

    async def last_sequence(self, topic: str, partition: int = 0) -> int:
        """As `NamedProducer.last_sequence`."""
        return await self._worker.call(partial(self._named.last_sequence, topic, partition))

    async def resume_from(self, topic: str) -> int:
        """As `NamedProducer.resume_from`."""
        return await self._worker.call(partial(self._named.resume_from, topic))

    def _send_aside(self, send: Callable[[], SendFuture]) -> SendFuture:
        """In the worker thread: send, and wait for room as long as the producer's timeout."""
        deadline = None if self._timeout is None else _clock.monotonic() + self._timeout
        while True:
            try:
                return send()
            except BackpressureTimeoutError:
                if deadline is not None and _clock.monotonic() >= deadline:
                    raise
            self._named.wait_for_room(SLICE_SECONDS)

    def _sent_aside(
        self, waiter: asyncio.Future[RecordMetadata], sent: asyncio.Future[SendFuture]
    ) -> None:
        self._aside -= 1
        if waiter.done():
            return
        error = sent.exception()
        if error is not None:
            waiter.set_exception(error)
            return
        self._complete_later(waiter, sent.result())
        self._hurry_soon()


def _settle(waiter: asyncio.Future[RecordMetadata], future: SendFuture) -> None:
    """Pass on what became of a record."""
    if waiter.done():
        return
    error = future.batch.error
    if error is None:
        waiter.set_result(future.result())
    else:
        waiter.set_exception(error)
