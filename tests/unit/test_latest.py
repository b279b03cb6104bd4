"""The latest value of a key, and of all keys: the same as reading everything into a dictionary."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from simulated_stores import START_MS, kill, log_of, open_quietly

import millstream
from millstream import CorruptBatchError, Record, Store, Transaction, UnknownTopicError, UsageError
from millstream.key_file import BLOCK_BYTES, KeyFile, encode_key_file, sorted_run
from millstream.latest import LatestValues
from millstream.segment import keys_path
from millstream.storage_protocols import Storage
from millstream.testing import ManualClock, MemoryStorage

DIRECTORY = "topics/t/0"


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> Iterator[Store]:
    with open_quietly(storage) as opened:
        opened.create_topic("t", segment_bytes=4096)
        yield opened


def table(store: Store, topic: str = "t") -> dict[bytes | None, Record]:
    return {record.key: record for record in store.read(topic) if record.key is not None}


def check(store: Store, topic: str = "t") -> None:
    """Lookups and scan against a dictionary."""
    expected = table(store, topic)
    for key, record in expected.items():
        assert key is not None
        assert record == store.latest(topic, key, tombstone=True)
        assert (record if record.value is not None else None) == store.latest(topic, key)
    found = list(store.latest_all(topic, tombstones=True))
    assert len(expected) == len(found)
    assert expected == {record.key: record for record in found}
    live = {key: record for key, record in expected.items() if record.value is not None}
    assert live == {record.key: record for record in store.latest_all(topic)}
    assert store.latest(topic, b"no such key") is None


def fill(store: Store, count: int, seed: int = 1, topic: str = "t") -> None:
    random = Random(seed)
    for _ in range(count):
        rows = random.randrange(1, 9)
        store.append_many(
            topic,
            [None if random.random() < 0.1 else random.randbytes(90) for _ in range(rows)],
            [None if random.random() < 0.1 else b"%d" % random.randrange(50) for _ in range(rows)],
            headers=[(("h", b"v"),)] * rows if random.random() < 0.2 else None,
        )


def test_lookups_equal_a_dictionary_while_the_log_grows(store: Store) -> None:
    check(store)
    for seed in range(6):
        fill(store, 30, seed)
        check(store)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_topics(store: Store, compression: str) -> None:
    store.create_topic("c", compression=compression, segment_bytes=4096)
    fill(store, 60, topic="c")
    check(store, "c")


def test_lookups_equal_a_dictionary_before_and_after_a_compaction(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", compact=True, segment_bytes=4096)
        for number in range(300):
            store.append("t", b"%d" % number * 20, key=b"%d" % (number % 41))
        check(store)
        store.compact("t")
        check(store)
        store.append("t", b"new", key=b"7")
        store.trim("t", {0: 290})
        check(store)
        assert store.latest("t", b"0") is None
        names = storage.list(DIRECTORY)
        bases = {info.base_offset for info in store.segments("t", 0)}
        assert {int(name[:20]) for name in names if name.endswith(".keys")} <= bases
    with open_quietly(storage) as store:
        check(store)
        assert store.verify(deep=True).ok


def test_a_trim_in_the_middle_of_a_batch_takes_its_first_records_away(store: Store) -> None:
    store.append_many("t", [b"1", b"2", b"3"], [b"a", b"b", b"c"])
    store.trim("t", {0: 1})

    assert store.latest("t", b"a") is None
    assert {b"b", b"c"} == {record.key for record in store.latest_all("t")}


def test_keys_find_their_partition(store: Store) -> None:
    store.create_topic("p", partitions=3)
    keys = [b"%d" % number for number in range(30)]
    store.append_many("p", keys, keys)
    elsewhere = (millstream.partition_of(b"odd", 3) + 1) % 3
    store.append("p", b"elsewhere", key=b"odd", partition=elsewhere)

    assert keys == [store.latest("p", key).value for key in keys]  # type: ignore[union-attr]
    assert 31 == len(list(store.latest_all("p")))
    found = {number: store.latest("p", b"odd", partition=number) is not None for number in range(3)}
    assert 1 == sum(found.values())
    with pytest.raises(UnknownTopicError):
        store.latest("p", b"k", partition=9)
    with pytest.raises(UnknownTopicError):
        store.latest("nope", b"k")
    with pytest.raises(UsageError):
        store.latest("p", "text")  # type: ignore[arg-type]


def test_the_active_segment_is_known_without_a_file(store: Store, storage: MemoryStorage) -> None:
    store.append("t", b"1", key=b"k")
    for number in range(5):
        store.append("t", b"%d" % number, key=b"k")
        assert number + 1 == store.latest("t", b"k").offset  # type: ignore[union-attr]
    assert not storage.exists(keys_path(DIRECTORY, 0))


# --- transactions and durability -----------------------------------------------------------------


def test_records_of_open_and_aborted_transactions_do_not_count(store: Store) -> None:
    store.append("t", b"first", key=b"k")
    with store.transaction() as transaction:
        transaction.append("t", b"open", key=b"k")
        assert b"first" == store.latest("t", b"k").value  # type: ignore[union-attr]
        store.append("t", b"other", key=b"o")
        assert b"other" == store.latest("t", b"o").value  # type: ignore[union-attr]
    assert b"open" == store.latest("t", b"k").value  # type: ignore[union-attr]
    store.append("t", b"later", key=b"k")
    with store.transaction() as transaction:
        transaction.append("t", b"never", key=b"k")
        transaction.append("t", b"never", key=b"only")
        transaction.abort()
    check(store)
    store.roll("t", 0)
    check(store)


def test_a_segment_sealed_with_an_open_transaction_gets_its_file_later(
    store: Store, storage: MemoryStorage
) -> None:
    store.append("t", b"first", key=b"k")
    with store.transaction() as transaction:
        transaction.append("t", b"second", key=b"k")
        store.append("t", b"third", key=b"other")
        store.roll("t", 0)
        store.append("t", b"fourth", key=b"fourth")
        assert b"first" == store.latest("t", b"k").value  # type: ignore[union-attr]
        assert not storage.exists(keys_path(DIRECTORY, 0))
    assert b"second" == store.latest("t", b"k").value  # type: ignore[union-attr]
    assert storage.exists(keys_path(DIRECTORY, 0))
    check(store)


def test_what_is_not_acknowledged_is_seen_by_the_holder_of_the_lock_alone(store: Store) -> None:
    from millstream.batch import encode_one  # noqa: PLC0415

    latest, log, engine = LatestValues(store._engine), log_of(store), store._engine
    store.append("t", b"acknowledged", key=b"k")
    engine.append([(log, encode_one(b"written", b"k"))])

    assert b"acknowledged" == latest.find("t", b"k").value  # type: ignore[union-attr]
    with engine.append_lock:
        record, transaction = latest.last_locked(log, b"k")
        assert b"written" == record.value  # type: ignore[union-attr]
        assert (None, 0) == latest.last_locked(log, b"nothing")
        assert 0 == transaction
    assert b"acknowledged" == latest.find("t", b"k").value  # type: ignore[union-attr]
    log.wait_durable(2)
    assert b"written" == latest.find("t", b"k").value  # type: ignore[union-attr]


# --- other processes -----------------------------------------------------------------------------


def test_other_processes_append_roll_compact_and_trim(storage: MemoryStorage) -> None:
    clock = ManualClock(START_MS)
    with open_quietly(storage, clock) as store, open_quietly(storage, clock) as other:
        store.create_topic("t", compact=True, segment_bytes=4096)
        random = Random(3)
        for number in range(200):
            writer = random.choice((store, other))
            writer.append("t", b"%d" % number * 20, key=b"%d" % random.randrange(20))
            if number % 40 == 39:
                random.choice((store, other)).compact("t")
            if number % 70 == 69:
                start = other.offsets("t")[0].start
                other.trim("t", {0: start + 20})
            if number % 10 == 0:
                for reader in (store, other):
                    check(reader)


def test_a_store_that_is_only_read_writes_nothing(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", segment_bytes=4096)
        fill(store, 100)
        before = len(storage.trace)
        with open_quietly(storage, read_only=True) as onlooker:
            check(onlooker)
            assert before == len(storage.trace)
            store.append("t", b"new", key=b"1")
            assert b"new" == onlooker.latest("t", b"1").value  # type: ignore[union-attr]


def test_a_scan_goes_on_while_what_it_reads_is_compacted_and_written_anew(
    storage: MemoryStorage,
) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", compact=True, segment_bytes=4096)
        for number in range(100):
            store.append("t", b"%d" % number * 50, key=b"%d" % number)
        scan = store.latest_all("t")
        found = [next(scan) for _ in range(10)]
        for number in range(0, 100, 3):
            store.append("t", b"newer", key=b"%d" % number)
        store.compact("t")

        found += scan
        assert {b"%d" % number for number in range(100)} == {record.key for record in found}
        assert 100 == len(found)


@pytest.mark.parametrize("map_bytes", [1, 3000, 1 << 20])
def test_more_keys_than_memory_are_read_in_several_passes(store: Store, map_bytes: int) -> None:
    fill(store, 40)
    latest = LatestValues(store._engine, map_bytes=map_bytes)

    found = list(latest.scan("t", None, tombstones=True))

    assert len(table(store)) == len(found)
    assert table(store) == {record.key: record for record in found}


def test_threads_look_up_while_others_append(storage: MemoryStorage) -> None:
    with open_quietly(storage, durability="os") as store:
        store.create_topic("t", segment_bytes=4096)
        store.append("t", b"0", key=b"k")
        failures: list[BaseException] = []

        def look() -> None:
            seen = -1
            try:
                for _ in range(100):
                    record = store.latest("t", b"k")
                    assert record is not None
                    assert seen <= record.offset
                    assert record.value == b"%d" % record.offset
                    seen = record.offset
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 200):
            store.append("t", b"%d" % number, key=b"k")
        for thread in threads:
            thread.join()
        assert [] == failures


def test_after_a_crash_of_the_machine_and_of_another_process(storage: MemoryStorage) -> None:
    with open_quietly(storage) as store:
        store.create_topic("t", segment_bytes=4096)
        fill(store, 60)
        check(store)
        dying = open_quietly(storage)
        Transaction(dying._engine, dying._owners.take()).append("t", b"never", key=b"1")
        kill(dying)
        check(store)
    for seed in range(4):
        with open_quietly(storage.crash(seed, "random")) as store:
            check(store)


# --- the key file --------------------------------------------------------------------------------


def _open(storage: Storage, content: bytes, uid: int = 7, end: int = 640) -> KeyFile:
    storage.remove("keys")
    file = storage.open("keys", "x")
    file.write([content], 0)
    return KeyFile(file, uid, end)


def _encoded(runs: list[dict[bytes, int]]) -> bytes:
    return b"".join(encode_key_file([sorted_run(run) for run in runs], 7, 640))


@pytest.mark.parametrize("count", [0, 1, 254, 255, 256, 3000])
def test_a_key_file_finds_what_was_put_in(storage: MemoryStorage, count: int) -> None:
    from xxhash import xxh3_64_digest  # noqa: PLC0415

    runs = [
        {b"%d" % number: number for number in range(count)},
        {b"%d" % number: number + 9000 for number in range(0, count, 7)},
        {},
    ]
    keys = _open(storage, _encoded(runs))

    for number in range(count):
        expected = [number] + ([number + 9000] if number % 7 == 0 else [])
        assert expected == keys.find(xxh3_64_digest(b"%d" % number))
    for absent in range(500):
        assert [] == keys.find(xxh3_64_digest(b"absent %d" % absent))
    for edge in (bytes(8), b"\xff" * 8):
        assert [] == keys.find(edge)
    keys.close()


def test_many_entries_of_one_hash_are_all_found(storage: MemoryStorage) -> None:
    digest = b"samehash"
    run = b"".join(
        sorted(
            [digest + number.to_bytes(8, "big") for number in range(700)]
            + [number.to_bytes(8, "big") + bytes(8) for number in range(0, 1 << 63, 1 << 56)]
        )
    )
    keys = _open(storage, b"".join(encode_key_file([run], 7, 640)))

    assert list(range(700)) == keys.find(digest)
    keys.close()


def test_a_key_file_that_is_cut_foreign_or_damaged_is_noticed(storage: MemoryStorage) -> None:
    from xxhash import xxh3_64_digest  # noqa: PLC0415

    content = _encoded([{b"%d" % number: number for number in range(300)}])
    wanted = xxh3_64_digest(b"1")
    for length in (0, 63, 64, 79, 80, BLOCK_BYTES, len(content) - 1):
        with pytest.raises(CorruptBatchError):
            _open(storage, content[:length])
    with pytest.raises(CorruptBatchError):
        _open(storage, content, uid=8)
    with pytest.raises(CorruptBatchError):
        _open(storage, content, end=704)
    with pytest.raises(CorruptBatchError):
        _open(storage, content + bytes(BLOCK_BYTES))
    for byte in (*range(0, 80, 3), *range(BLOCK_BYTES, len(content), 499)):
        broken = bytearray(content)
        broken[byte] ^= 4
        try:
            assert [1] == _open(storage, bytes(broken)).find(wanted)
        except CorruptBatchError:
            continue


def test_a_damaged_or_old_key_file_is_built_again(store: Store, storage: MemoryStorage) -> None:
    fill(store, 60)
    check(store)
    path = keys_path(DIRECTORY, 0)
    intact = storage.open(path, "r")
    content = intact.read(1 << 20, 0)
    for broken in (b"", b"garbage" * 99, content[:-1], bytes(len(content)), content[:4096]):
        storage.remove(path)
        file = storage.open(path, "x")
        file.write([broken], 0)
        file.close()
        store._latest = LatestValues(store._engine)
        check(store)
    assert content == storage.open(path, "r").read(1 << 20, 0)


def test_a_closed_store_leaves_no_key_file_open(tmp_path: Path) -> None:
    """An open file would warn when it is collected, and warnings are errors here."""
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("t")
        for number in range(3):
            store.append("t", b"%d" % number, key=b"k%d" % number)
            store.roll("t", 0)
        for _ in range(2):  # the first lookup writes the files, the second reads them
            assert [b"0", b"1", b"2"] == [
                found.value
                for number in range(3)
                if (found := store.latest("t", b"k%d" % number)) is not None
            ]
    del store
    gc.collect()
