"""The thread of a handle for asyncio: no Ctrl-C can stop it, and it ends with its handle."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading

import pytest
from interrupted_calls import InterruptAt, ends

from millstream.async_worker import AsyncWorker
from millstream.errors import StoreClosedError

TIMEOUT = 20


def test_an_interrupt_at_any_call_keeps_nobody_from_the_end() -> None:
    for call in itertools.count(1):
        interrupt = InterruptAt(call)
        worker = AsyncWorker("test")

        async def main(interrupt: InterruptAt = interrupt, worker: AsyncWorker = worker) -> None:
            interrupt.run(lambda: worker.call(int))
            assert "done" == await worker.call(lambda: "done")
            worker.close()

        assert ends(lambda main=main: asyncio.run(main())), call  # type: ignore[misc]
        if interrupt.remaining > 0:
            return


def test_what_was_given_to_it_is_done_though_nobody_waits_and_it_is_closed() -> None:
    done: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert go.wait(TIMEOUT)

    async def main() -> None:
        worker = AsyncWorker("test")
        calls = [worker.call(first), worker.call(lambda: done.append(1))]
        last = worker.call(lambda: done.append(2))
        for call in calls:
            call.cancel()
        worker.close()
        with pytest.raises(StoreClosedError, match="the test is closed"):
            worker.call(int)
        go.set()
        await last

    asyncio.run(main())
    assert [1, 2] == done


def test_its_thread_ends_with_a_handle_that_nobody_closed() -> None:
    threads: list[threading.Thread] = []

    async def main() -> None:
        threads.append(await AsyncWorker("test").call(threading.current_thread))

    asyncio.run(main())
    gc.collect()
    threads[0].join(TIMEOUT)
    assert not threads[0].is_alive()
