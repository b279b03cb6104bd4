"""Named producers awaited: each record once, in order, and the loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator

import pytest

import millstream
from millstream import (
    DuplicateMetadata,
    FencedError,
    SequenceGapError,
    Store,
    StoreClosedError,
    UsageError,
    aio,
)

SOON_SECONDS = 20.0


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as store:
        store.create_topic("t")
        yield store


def run(main: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), SOON_SECONDS))


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


def test_what_is_sent_again_is_not_written_again(store: Store) -> None:
    async def main() -> None:
        for attempt in range(2):
            async with aio.producer(store, name="import", linger_ms=1e9) as producer:
                assert ("import", attempt + 1) == (producer.name, producer.epoch)
                assert 100 * attempt == await producer.resume_from("t")
                sends = [producer.send("t", b"%d" % n, sequence=n) for n in range(100)]
                places = await asyncio.gather(*sends)
                assert [bool(attempt)] * 100 == [place.duplicate for place in places]
                # How sends gather in batches is up to the loop; offsets of old ones are forgotten.
                forgotten = {-1} if attempt else set()
                assert all(place.offset in {n, *forgotten} for n, place in enumerate(places))
                assert 99 == places[-1].offset
                assert 99 == await producer.last_sequence("t")

    run(main)
    assert [b"%d" % n for n in range(100)] == values(store)


def test_a_record_repeated_while_the_first_is_on_its_way_is_a_duplicate(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store, name="import", linger_ms=1e9) as producer:
            numbers = [0, 1, 1, 2, 1, 2, 3]
            futures = [producer.send_nowait("t", b"%d" % n, sequence=n) for n in numbers]
            await producer.flush()
            places = await asyncio.gather(*futures)
            assert numbers == [place.offset for place in places]
            duplicates = [isinstance(place, DuplicateMetadata) for place in places]
            assert [False, False, True, False, True, True, False] == duplicates

    run(main)
    assert [b"0", b"1", b"2", b"3"] == values(store)


def test_records_may_be_counted_instead(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store, name="import") as producer:
            await asyncio.gather(*(producer.send("t", b"x") for _ in range(10)))
            assert 9 == await producer.last_sequence("t")
            with pytest.raises(UsageError, match="with every record of a topic, or with none"):
                await producer.send("t", b"x", sequence=10)

    run(main)


def test_gaps_wrong_numbers_and_a_newer_producer_are_refused(store: Store) -> None:
    async def main() -> None:
        old = aio.producer(store, name="import")
        await old.send("t", b"0", sequence=0)
        with pytest.raises(SequenceGapError):
            await old.send("t", b"9", sequence=9)
        with pytest.raises(UsageError, match="sequence must be"):
            await old.send("t", b"x", sequence="one")  # type: ignore[arg-type]
        async with aio.producer(store, name="import", gaps=True) as new:
            await new.send("t", b"9", sequence=9)
        with pytest.raises(FencedError):
            await old.send("t", b"1", sequence=1)
        with pytest.raises(FencedError):
            await old.close()
        with pytest.raises(StoreClosedError):
            await old.send("t", b"1", sequence=1)

    run(main)
    assert [b"0", b"9"] == values(store)


def test_a_full_buffer_makes_the_sender_wait_not_the_loop(store: Store) -> None:
    async def main() -> None:
        producer = aio.producer(
            store, name="import", linger_ms=1e9, batch_bytes=1000, buffer_bytes=2000
        )
        async with producer:
            again = [number for number in range(60) for _ in range(2)]
            sends = [producer.send("t", b"%d" % n * 200, sequence=n) for n in again]
            places = await asyncio.gather(*sends)
            assert again == [place.offset for place in places]

    run(main)
    assert 60 == len(values(store))
