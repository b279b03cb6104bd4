"""Queues for asyncio: `aio.queue`, awaited. Semantics are those of `Queue`.

    async with aio.queue(store, "jobs") as queue:
        async for job in queue:
            ...
            await queue.ack(job)

Waiting for jobs and settling them each have a worker thread. Tasks that ack while a commit runs
share the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final, Self, TypeVar

from .async_worker import AsyncWorker
from .config import Durability, check_timeout
from .errors import MillstreamError, StoreClosedError
from .handle import Handle
from .job import Duration, Job
from .job_queue import DEFAULT_GROUP, DEFAULT_VISIBILITY, Queue
from .positions import Position
from .store import Store

SLICE_SECONDS: Final = 0.1
"""The worker never blocks longer for a job: so long may a cancelled call occupy it."""

T = TypeVar("T")


def queue(  # noqa: PLR0913 - as `Store.queue`
    store: Store,
    topic: str,
    *,
    group: str = DEFAULT_GROUP,
    visibility: Duration = DEFAULT_VISIBILITY,
    max_deliveries: int | None = None,
    dead_letter: str | None = None,
    start: int | str | datetime | Position = "earliest",
    follow: bool = True,
    durability: Durability | None = None,
) -> AsyncQueue:
    """A worker of a queue to await; arguments as of `Store.queue`, errors at its first use."""
    make = partial(
        store.queue,
        topic,
        group=group,
        visibility=visibility,
        max_deliveries=max_deliveries,
        dead_letter=dead_letter,
        start=start,
        follow=follow,
        durability=durability,
    )
    return AsyncQueue(make, f"{topic} group {group!r}", follow=follow)


class AsyncQueue(Handle):
    """A `Queue` for one event loop. Use it with `async with`; leaving gives back what is not done.

    Settle its jobs by its methods, not by theirs, which block. A cancelled `get` loses no job: what
    was being fetched is handed out by the next one. A cancelled `ack` acks all the same.
    """

    def __init__(self, make: Callable[[], Queue], asked: str, *, follow: bool) -> None:
        self._make = make
        self._asked = asked
        self._follow = follow
        self._inner: Queue | None = None
        self._getter = AsyncWorker("queue")
        self._settler = AsyncWorker("queue")
        self._turn = asyncio.Lock()
        self._fetching: asyncio.Future[list[Job]] | None = None
        self._pending: deque[Job] = deque()
        """Fetched and not handed out."""
        self._acks: list[tuple[Job, asyncio.Future[None]]] = []
        """Waiting for the next commit."""
        self._acking: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncQueue {self._asked}{' closed' if self._closed else ''}>"

    async def get(self, timeout: float | None = None) -> Job | None:
        """The next job; None if there was none within `timeout` seconds. Errors as `Queue.get`."""
        jobs = await self._next(1, timeout)
        return jobs[0] if jobs else None

    async def get_many(self, count: int, timeout: float | None = None) -> list[Job]:
        """The next jobs, as `Queue.get_many`."""
        return await self._next(count, timeout)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Job:
        """The next job; ends when there is none, unless the queue follows."""
        job = await self.get(None if self._follow else 0.0)
        if job is None:
            raise StopAsyncIteration
        return job

    async def ack(self, *jobs: Job) -> None:
        """Ack jobs; see `Queue.ack`.

        Raises:
            FencedError: Some were lost; the others are acked.
        """
        self._ensure_open()
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in jobs]
        self._acks += zip(jobs, futures, strict=True)
        if self._acking is None:
            self._acking = loop.create_task(self._ack_all())
        await asyncio.gather(*futures)

    async def nack(self, *jobs: Job, delay: Duration = 0) -> None:
        """Give jobs back; see `Queue.nack`."""
        await self._settle(lambda: self._queue().nack(*jobs, delay=delay))

    async def reject(self, job: Job, reason: str = "rejected") -> None:
        """Make a job a dead letter; see `Queue.reject`."""
        await self._settle(lambda: self._queue().reject(job, reason))

    async def extend(self, *jobs: Job, visibility: Duration | None = None) -> None:
        """Renew the leases of jobs; see `Queue.extend`."""
        await self._settle(lambda: self._queue().extend(*jobs, visibility=visibility))

    async def close(self) -> None:
        """Give back what is not settled, and leave. Idempotent; cancelled, it closes, too."""
        try:
            while self._acking is not None:
                await asyncio.shield(self._acking)  # others wait for it
        finally:
            if not self._closed:
                self._closed = True
                closed = self._getter.call(self._close)
                self._getter.close()
                self._settler.close()
                await closed

    async def __aenter__(self) -> Self:
        self._ensure_open()
        await self._getter.call(self._queue)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- in the event loop ---------------------------------------------------------------

    async def _next(self, count: int, timeout: float | None) -> list[Job]:
        loop = asyncio.get_running_loop()
        seconds = check_timeout(timeout)
        deadline = None if seconds is None else loop.time() + seconds
        async with self._turn:
            while True:
                if not self._pending:
                    left = SLICE_SECONDS if deadline is None else deadline - loop.time()
                    await self._fetch(count, min(max(left, 0.0), SLICE_SECONDS))
                if self._pending or (deadline is not None and loop.time() >= deadline):
                    number = min(count, len(self._pending))
                    return [self._pending.popleft() for _ in range(number)]

    async def _fetch(self, count: int, seconds: float) -> None:
        """Add to the pending jobs. Cancelled, it leaves the call running for the next one."""
        self._ensure_open()
        if self._fetching is None:
            self._fetching = self._getter.call(partial(self._get, count, seconds))
        try:
            jobs = await asyncio.shield(self._fetching)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._fetching = None
            raise
        self._fetching = None
        self._pending.extend(jobs)

    async def _ack_all(self) -> None:
        """Commit the acks that wait, again and again, until there are none."""
        while self._acks:
            acks, self._acks = self._acks, []
            ours = dict.fromkeys(job for job, _ in acks if job.settler is self._inner)
            leased = [job for job in ours if job.state == "leased"]
            error: Exception | None = None
            try:
                await self._settler.call(partial(self._ack, leased))
            except Exception as caught:
                error = caught
            settled = set(leased)
            for job, future in acks:
                if future.done():
                    continue  # nobody waits for it any more
                problem = error if job in settled else self._why_not(job)
                if problem is None or (job in settled and job.state == "acked"):
                    future.set_result(None)
                else:
                    future.set_exception(problem)
        self._acking = None

    def _why_not(self, job: Job) -> Exception | None:
        """What is wrong with acking a job that is not leased any more."""
        try:
            self._queue().ensure_leased(job)
        except MillstreamError as error:
            return error
        return None

    async def _settle(self, function: Callable[[], T]) -> T:
        self._ensure_open()
        return await self._settler.call(function)

    def _ensure_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the queue is closed")

    # --- in the worker threads -----------------------------------------------------------

    def _queue(self) -> Queue:
        if self._inner is None:
            self._inner = self._make()
        return self._inner

    def _get(self, count: int, seconds: float) -> list[Job]:
        if count != 1:
            return self._queue().get_many(count, seconds)
        job = self._queue().get(seconds)
        return [] if job is None else [job]

    def _ack(self, jobs: list[Job]) -> None:
        self._queue().ack(*jobs)

    def _close(self) -> None:
        if self._inner is not None:
            self._inner.close()
