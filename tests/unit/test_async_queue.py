"""The awaited queue: nothing blocks the loop, acks share commits, cancelling loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator

import pytest
from jobs import put

import millstream
from millstream import FencedError, Store, StoreClosedError, UnknownTopicError, UsageError, aio
from millstream.testing import MemoryStorage


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with millstream.open(storage=storage) as store:
        store.create_topic("jobs")
        yield store


def run(main: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(main())


def test_jobs_are_iterated_and_acked(store: Store) -> None:
    put(store, 20)
    seen = []

    async def main() -> None:
        async with aio.queue(store, "jobs", follow=False) as queue:
            async for job in queue:
                seen.append(job.value)
                await queue.ack(job)
                assert "acked" == job.state

    run(main)
    assert [b"%d" % number for number in range(20)] == seen
    assert 0 == store.queues()[0].depth


def test_tasks_that_ack_at_once_share_commits(store: Store, storage: MemoryStorage) -> None:
    put(store, 200)

    async def main() -> None:
        async with aio.queue(store, "jobs") as queue:
            jobs = await queue.get_many(200)
            before = len(storage.trace)
            await asyncio.gather(*(queue.ack(job) for job in jobs))
            commits = [kind for kind, _ in storage.trace[before:]].count("catalog.commit")
            assert commits < 20
            assert await queue.get(timeout=0) is None

    run(main)
    assert 0 == store.queues()[0].depth


def test_jobs_are_settled_in_every_way(store: Store) -> None:
    put(store, 4)

    async def main() -> None:
        async with aio.queue(store, "jobs", dead_letter="dead") as queue:
            first, second, third, fourth = await queue.get_many(4)
            await queue.nack(first, second)
            await queue.extend(third, visibility="1h")
            await queue.reject(fourth, "no")
            again = await queue.get_many(4, timeout=0)
            assert [2, 2] == [job.deliveries for job in again]
            with pytest.raises(UsageError, match="rejected already"):
                await queue.ack(fourth)
            with pytest.raises(UsageError, match="nacked already"):
                await queue.ack(first)
            await asyncio.gather(queue.ack(third, *again), queue.ack(third))
            with pytest.raises(UsageError, match="acked already"):
                await queue.ack(third)

    run(main)
    assert 0 == store.queues("jobs")[0].depth
    assert [b"3"] == [record.value for record in store.read("dead")]


def test_a_lost_job_fails_its_own_ack_and_no_other(store: Store) -> None:
    put(store, 2)

    async def main() -> None:
        async with (
            aio.queue(store, "jobs", visibility=1) as slow,
            aio.queue(store, "jobs", visibility="1h") as quick,
        ):
            (late,) = await slow.get_many(1)
            taken = await quick.get_many(2)
            while late.value not in [job.value for job in taken]:
                taken += await quick.get_many(2)
            with pytest.raises(FencedError):
                await slow.ack(late)
            results = await asyncio.gather(*(quick.ack(job) for job in taken))
            assert [None] * len(taken) == results

    run(main)
    assert 0 == store.queues()[0].depth


def test_waiting_leaves_the_loop_free_and_is_woken(store: Store) -> None:
    async def main() -> None:
        async with aio.queue(store, "jobs") as queue:
            assert await queue.get(timeout=0) is None
            waiting = asyncio.ensure_future(queue.get())
            await asyncio.sleep(0)
            assert not waiting.done()
            await asyncio.get_running_loop().run_in_executor(None, store.append, "jobs", b"x")
            job = await waiting
            assert job is not None
            assert b"x" == job.value

    run(main)


def test_a_cancelled_get_loses_no_job(store: Store) -> None:
    async def main() -> None:
        async with aio.queue(store, "jobs") as queue:
            waiting = asyncio.ensure_future(queue.get())
            while queue._fetching is None:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.get_running_loop().run_in_executor(None, put, store, 2)
            values = {job.value for job in [await queue.get(), await queue.get()] if job}
            assert {b"0", b"1"} == values

    run(main)


def test_a_cancelled_ack_acks_all_the_same(store: Store) -> None:
    put(store, 1)

    async def main() -> None:
        async with aio.queue(store, "jobs") as queue:
            job = await queue.get()
            assert job is not None
            acking = asyncio.ensure_future(queue.ack(job))
            await asyncio.sleep(0)
            acking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acking

    run(main)
    assert 0 == store.queues()[0].depth


def test_a_close_that_is_cancelled_closes_and_leaves_no_ack_waiting(store: Store) -> None:
    put(store, 2)

    async def main() -> None:
        queue = aio.queue(store, "jobs")
        jobs = await queue.get_many(2)
        acking = asyncio.ensure_future(queue.ack(jobs[0]))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(queue.close())
        await asyncio.sleep(0)
        closing.cancel()
        assert not (await asyncio.wait([acking, closing], timeout=20))[1]
        assert closing.cancelled()
        async with aio.queue(store, "jobs") as other:
            assert jobs[1].value in {job.value for job in await other.get_many(2)}
        with pytest.raises(StoreClosedError):
            await queue.get()

    run(main)


def test_errors_come_at_the_first_use_and_closing_is_final(store: Store) -> None:
    async def main() -> None:
        with pytest.raises(UnknownTopicError):
            await aio.queue(store, "nothing").get()
        queue = aio.queue(store, "jobs")
        assert await queue.get(timeout=0) is None
        await queue.close()
        await queue.close()
        for refused in (queue.get, queue.ack, queue.nack, queue.__aenter__):
            with pytest.raises(StoreClosedError, match="the queue is closed"):
                await refused()

    run(main)
