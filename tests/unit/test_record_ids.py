"""Records with an id are written once within the window of their topic, whoever appends them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from random import Random

import pytest
from simulated_stores import START_MS, abandon, kill, log_of, open_quietly

import millstream
from millstream import (
    ConflictError,
    DuplicateMetadata,
    Record,
    RecordMetadata,
    Store,
    UsageError,
    aio,
)
from millstream.format import BATCH_HEADER_BYTES
from millstream.record_ids import ID_BYTES_MAX, IdWindow, record_id
from millstream.testing import ManualClock, MemoryStorage

WINDOW_MS = 10_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage, clock: ManualClock) -> Iterator[Store]:
    with open_quietly(storage, clock) as store:
        store.create_topic("t", dedup=WINDOW_MS)
        yield store


def named(*ids: int) -> list[list[tuple[str, bytes]]]:
    return [[("record-id", b"%d" % each)] for each in ids]


def put(store: Store, number: int, value: bytes = b"", **more: bytes | int) -> RecordMetadata:
    return store.append("t", value or b"%d" % number, headers=named(number)[0], **more)  # type: ignore[arg-type]


def values(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t")]


def test_a_record_is_written_once_and_the_first_is_told(store: Store, clock: ManualClock) -> None:
    first = put(store, 1)
    clock.advance(WINDOW_MS - 1)
    again = put(store, 1, b"other")

    assert (False, True) == (first.duplicate, again.duplicate)
    assert ("t", 0, 0, first.timestamp_ms) == again
    assert isinstance(again, DuplicateMetadata)
    assert [b"1"] == values(store)


def test_behind_the_window_an_id_is_new(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    clock.advance(WINDOW_MS)
    assert 1 == put(store, 1).offset
    clock.advance(WINDOW_MS - 1)
    assert 1 == put(store, 1).offset
    assert [b"1", b"1"] == values(store)


def test_a_clock_set_back_forgets_nothing(store: Store, clock: ManualClock) -> None:
    put(store, 1)
    clock.jump(-5 * WINDOW_MS)
    assert put(store, 1).duplicate


def test_without_the_option_or_the_header_nothing_is_looked_at(store: Store) -> None:
    store.create_topic("plain")
    for _ in range(2):
        store.append("plain", b"x", headers=named(1)[0])
        store.append("t", b"x")
        store.append("t", b"y", headers=[("record-id", None), ("other", b"1")])
    assert 2 == len(list(store.read("plain")))
    assert [b"x", b"y"] * 2 == values(store)


def test_the_option_may_come_later_and_go(store: Store, storage: MemoryStorage) -> None:
    store.create_topic("later")
    other = open_quietly(storage, store.clock)
    assert 0 == other.append("later", b"1", headers=named(1)[0]).offset
    store.configure_topic("later", dedup="1h")
    assert 0 == other.append("later", b"1", headers=named(1)[0]).offset
    store.configure_topic("later", dedup=None)
    assert 1 == other.append("later", b"1", headers=named(1)[0]).offset
    other.close()


def test_of_many_only_the_new_are_written(store: Store) -> None:
    put(store, 1)
    (written,) = store.append_many(
        "t", [b"0", b"1", b"2", b"2"], [b"k"] * 4, [5, 6, 7, 8], headers=named(0, 1, 2, 2)
    )
    assert (1, 2) == (written.base_offset, written.record_count)
    assert [] == store.append_many("t", [b"0", b"1"], headers=named(0, 1))
    found = [(r.value, r.key, r.timestamp_ms) for r in store.read("t", 1)]
    assert [(b"0", b"k", 5), (b"2", b"k", 7)] == found


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_what_is_left_of_a_batch_is_as_it_was_given(store: Store, compression: str) -> None:
    store.create_topic("u", dedup="1h", compression=compression)
    store.append("u", b"", headers=[("record-id", b"3")])
    rows = [(None if n % 5 == 0 else b"v%d " % n * 40, None if n % 7 else b"k") for n in range(50)]
    headers = [[("record-id", b"%d" % n), ("h", None)] if n % 2 else [] for n in range(50)]
    store.append_many("u", [v for v, _ in rows], [k for _, k in rows], headers=headers, partition=0)
    found: list[Record] = list(store.read("u", 1))
    expected = [
        (value, key, tuple(tuple(each) for each in headers[n]))
        for n, (value, key) in enumerate(rows)
        if n != 3
    ]
    assert expected == [(r.value, r.key, tuple(map(tuple, r.headers))) for r in found]


def test_the_id_chooses_the_partition_of_a_record_without_a_key(store: Store) -> None:
    store.create_topic("u", partitions=8, dedup="1h")
    count = 40
    for attempt in range(2):
        for number in range(0, count, 2):
            metadata = store.append("u", b"%d" % number, headers=named(number)[0])
            assert bool(attempt) == metadata.duplicate
        store.append_many("u", [b"%d" % n for n in range(count)], headers=named(*range(count)))
        with store.producer() as producer:
            for number in range(count):
                producer.send("u", b"%d" % number, headers=named(number)[0])
    assert sorted(b"%d" % n for n in range(count)) == sorted(
        record.value or b"" for record in store.read("u")
    )
    assert 4 < len({record.partition for record in store.read("u")})


def test_producers_tell_of_each_record_what_became_of_it(store: Store) -> None:
    put(store, 1)
    with store.producer(linger_ms=60_000) as producer:
        numbers = [0, 1, 2, 0, 3, 2]
        futures = [producer.send("t", b"%d" % n, headers=named(n)[0]) for n in numbers]
        places = [future.result() for future in futures]
    assert [1, 0, 2, 1, 3, 2] == [place.offset for place in places]
    assert [False, True, False, True, False, True] == [place.duplicate for place in places]
    assert [b"1", b"0", b"2", b"3"] == values(store)


def test_batches_of_one_round_are_told_apart(store: Store) -> None:
    with store.producer(linger_ms=60_000, batch_bytes=400) as producer:
        numbers = [n % 7 for n in range(60)]
        futures = [producer.send("t", b"%d" % n * 50, headers=named(n)[0]) for n in numbers]
        places = [future.result() for future in futures]
    assert numbers == [place.offset for place in places]
    assert 7 == len(values(store))


def test_named_producers_go_by_their_numbers_and_others_see_their_ids(store: Store) -> None:
    put(store, 1)
    with store.producer(name="p") as producer:
        assert 1 == producer.send("t", b"1", headers=named(1)[0], sequence=0).result().offset
        assert 2 == producer.send("t", b"2", headers=named(2)[0], sequence=1).result().offset
    assert 2 == put(store, 2).offset
    assert 1 == put(store, 1).offset


def test_awaited_sends_are_told(store: Store) -> None:
    async def main() -> None:
        async with aio.producer(store) as producer:
            for attempt in range(2):
                place = await producer.send("t", b"1", headers=named(1)[0])
                assert (0, bool(attempt)) == (place.offset, place.duplicate)

    asyncio.run(main())


def test_an_aborted_transaction_frees_its_ids(store: Store) -> None:
    aborted = pytest.raises(ZeroDivisionError)
    with aborted, store.transaction() as transaction:
        transaction.append("t", b"1", headers=named(1)[0])
        raise ZeroDivisionError
    assert not put(store, 1).duplicate
    assert put(store, 1).duplicate


def test_a_transaction_knows_its_own_ids_and_others_after_the_commit(store: Store) -> None:
    put(store, 1)
    with store.transaction() as transaction:
        assert transaction.append("t", b"1", headers=named(1)[0]).duplicate
        assert not transaction.append("t", b"2", headers=named(2)[0]).duplicate
        assert transaction.append("t", b"2", headers=named(2)[0]).duplicate
        assert [] == transaction.append_many("t", [b"2"], headers=named(2))
        with pytest.raises(ConflictError, match="open has written"):
            put(store, 2)
        put(store, 3)
    assert put(store, 2).duplicate
    assert [b"1", b"2", b"3"] == values(store)


def test_the_ids_of_a_dead_process_in_a_transaction_are_free(
    store: Store, storage: MemoryStorage
) -> None:
    dying = open_quietly(storage, store.clock)
    transaction = millstream.Transaction(dying._engine, dying._owners.take())
    transaction.append("t", b"never", headers=named(1)[0])
    kill(dying)
    assert 1 == put(store, 1).offset
    assert [b"1"] == values(store)


def test_another_process_and_a_restart_know_the_ids(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    for number in range(0, 20, 2):
        put(store, number)
        if number % 6 == 0:
            store.roll("t", 0)
    with open_quietly(storage, clock) as other:
        for number in range(20):
            assert (number % 2 == 0) == put(other, number).duplicate
        for number in range(20):
            assert put(store, number).duplicate
    store.close()
    clock.advance(WINDOW_MS - 1)
    with open_quietly(storage, clock) as again:
        for number in range(20):
            assert put(again, number).duplicate
        clock.advance(1)
        assert not put(again, 0).duplicate


def test_what_a_power_failure_took_is_accepted_again(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    put(store, 1)
    put(store, 2, durability="os")  # type: ignore[arg-type]
    abandon(store)
    with open_quietly(storage.crash(keep="none"), clock) as again:
        assert put(again, 1).duplicate
        assert not put(again, 2).duplicate


def test_a_duplicate_is_as_durable_as_it_was_asked_for(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    put(store, 1, durability="os")  # type: ignore[arg-type]
    assert put(store, 1).duplicate
    abandon(store)
    with open_quietly(storage.crash(keep="none"), clock) as again:
        assert [b"1"] == values(again)


def test_compaction_keeps_the_records_of_the_window(store: Store, clock: ManualClock) -> None:
    store.create_topic("c", dedup=WINDOW_MS, compact=True, tombstone_retention=0)
    for number in range(4):
        store.append("c", b"%d" % number, key=b"k", headers=named(number)[0])
    store.roll("c", 0)
    store.compact("c")
    assert 4 == len(list(store.read("c")))
    assert store.append("c", b"0", key=b"k", headers=named(0)[0]).duplicate
    clock.advance(2 * WINDOW_MS)
    store.append("c", b"new", key=b"k", headers=named(9)[0])
    store.compact("c")
    assert [b"3", b"new"] == [record.value for record in store.read("c")]


def test_what_retention_removed_is_accepted_again(store: Store) -> None:
    put(store, 1)
    put(store, 2)
    store.trim("t", {0: 1})
    assert not put(store, 1).duplicate
    assert put(store, 2).duplicate


def test_damage_in_the_window_is_an_error_and_no_new_record(
    store: Store, storage: MemoryStorage, clock: ManualClock
) -> None:
    put(store, 1)
    log = log_of(store)
    file, _, position = log.files.open_at(0)
    path = file.path
    store.close()
    raw = storage.open(path, "rw")
    at = position + BATCH_HEADER_BYTES + 8
    raw.write([bytes([raw.read(1, at)[0] ^ 1])], at)
    with open_quietly(storage, clock) as again, pytest.raises(millstream.DataError):
        put(again, 1)


def test_ids_have_a_limit(store: Store) -> None:
    put_long = [("record-id", b"x" * (ID_BYTES_MAX + 1))]
    with pytest.raises(UsageError, match="at most 512"):
        store.append("t", b"", headers=put_long)
    store.append("t", b"", headers=[("record-id", b"x" * ID_BYTES_MAX)])


def test_of_threads_that_append_the_same_one_gets_through(storage: MemoryStorage) -> None:
    with millstream.open(storage=storage) as store:
        store.create_topic("t", dedup="1h")
        places: list[RecordMetadata] = []

        def work() -> None:
            places.extend(put(store, number) for number in range(50))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 50 == len(values(store)) == sum(not place.duplicate for place in places)


# --- the window alone --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_window_answers_as_a_list_of_all_appends_does(seed: int) -> None:
    random = Random(seed)
    window = IdWindow(1000)
    appended: list[tuple[bytes, int, int]] = []
    now_ms = 0
    for offset in range(3000):
        now_ms += random.choice((0, 0, 1, 7, 130, 600 if random.random() < 0.02 else 0))
        each = b"%d" % random.randrange(200)
        recent = [
            (where, ms) for name, where, ms in appended if name == each and now_ms - ms < 1000
        ]
        assert (recent[-1] if recent else None) == window.find(each, now_ms)
        if not recent:
            window.add(each, offset, now_ms)
            appended.append((each, offset, now_ms))
    assert len(window) < 600, "what is out of the window is forgotten"


def test_the_window_is_bounded() -> None:
    window = IdWindow(1 << 40, ids_max=800)
    for number in range(10_000):
        window.add(b"%d" % number, number, number)
        assert len(window) <= 800
    assert window.forgotten
    assert all(window.find(b"%d" % number, 10_000) for number in range(9_300, 10_000))


def test_the_first_header_of_the_name_is_the_id() -> None:
    assert b"1" == record_id([("a", b"0"), ("record-id", b"1"), ("record-id", b"2")])
    assert None is record_id([("record-id", b"")])
