"""The producer: what is sent arrives once, in order, and every failure reaches its sender."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest

import millstream
from millstream import (
    BackpressureTimeoutError,
    MillstreamError,
    PoisonedError,
    Producer,
    Record,
    RecordMetadata,
    StorageError,
    Store,
    StoreClosedError,
    UnknownTopicError,
    UsageError,
    partition_of,
)
from millstream.outgoing import SendFuture
from millstream.producer import RECORD_OVERHEAD_BYTES
from millstream.testing import FaultPlan, ManualClock, MemoryStorage, SimulatedCrash

FOR_EVER_MS = 1e9
SOON_SECONDS = 20.0


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:", clock=ManualClock(1_000)) as store:
        store.create_topic("t")
        store.create_topic("parts", partitions=4)
        yield store


class Gate:
    """Stops the thread of a producer that lingers for ever, in a callback, until opened."""

    def __init__(self, producer: Producer, topic: str = "t") -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        future = producer.send(topic, b"gate")
        future.add_done_callback(self._hold)
        future.exception(SOON_SECONDS)
        assert self.reached.wait(SOON_SECONDS)

    def _hold(self, _future: SendFuture) -> None:
        self.reached.set()
        assert self._opened.wait(SOON_SECONDS)

    def open(self) -> None:
        self._opened.set()


def read(store: Store, topic: str = "t") -> list[Record]:
    return list(store.read(topic))


def test_records_arrive_in_order_with_all_their_parts(store: Store) -> None:
    with store.producer() as producer:
        producer.send("t", b"plain")
        producer.send("t", b"keyed", key=b"k")
        producer.send("t", None, key=b"gone")
        producer.send("t", b"", key=b"", timestamp_ms=-5)
        producer.send("t", b"full", key=b"k", timestamp_ms=7, headers=[("h", b"1"), ("h", None)])

    assert [
        (0, 1_000, None, b"plain", ()),
        (1, 1_000, b"k", b"keyed", ()),
        (2, 1_000, b"gone", None, ()),
        (3, -5, b"", b"", ()),
        (4, 7, b"k", b"full", (("h", b"1"), ("h", None))),
    ] == [
        (each.offset, each.timestamp_ms, each.key, each.value, tuple(each.headers))
        for each in read(store)
    ]


def test_futures_say_where_their_records_are(store: Store) -> None:
    with store.producer(batch_bytes=4 * (RECORD_OVERHEAD_BYTES + 8)) as producer:
        futures = [
            producer.send("parts", b"%06d" % number, key=b"%02d" % (number % 10))
            for number in range(100)
        ]

    found = {record.value: record for record in read(store, "parts")}
    for number, future in enumerate(futures):
        record = found[b"%06d" % number]
        place = RecordMetadata("parts", record.partition, record.offset, record.timestamp_ms)
        assert place == future.result(0)


def test_append_time_in_the_future_is_the_one_on_disk(store: Store) -> None:
    with store.producer() as producer:
        stamped = producer.send("t", b"a", headers=[("only", b"headers")])
        producer.flush()
        mixed = [producer.send("t", b"b", timestamp_ms=7), producer.send("t", b"c")]

    expected = [record.timestamp_ms for record in read(store)]
    assert expected == [future.result().timestamp_ms for future in (stamped, *mixed)]


def test_keys_go_where_the_frozen_partitioning_says(store: Store) -> None:
    keys = [b"u%d" % number for number in range(50)]
    with store.producer() as producer:
        futures = [producer.send("parts", b"", key=key) for key in keys]

    assert [partition_of(key, 4) for key in keys] == [each.result().partition for each in futures]


def test_records_without_a_key_take_the_partitions_in_turn_by_batch(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        partitions = []
        for _ in range(5):
            pair = [producer.send("parts", b"a"), producer.send("parts", b"b")]
            producer.flush()
            partitions.append([future.result().partition for future in pair])

    assert [[0, 0], [1, 1], [2, 2], [3, 3], [0, 0]] == partitions


def test_a_given_partition_is_taken_or_refused(store: Store) -> None:
    with store.producer() as producer:
        assert producer.send("parts", b"a", key=b"u1", partition=3).result().partition == 3
        for wrong in (4, -1, "1", True):
            with pytest.raises(UsageError, match=r"partition must be (0 to 3|a whole number)"):
                producer.send("parts", b"a", partition=wrong)  # type: ignore[arg-type]


def test_linger_is_how_long_a_record_waits_for_company() -> None:
    clock = ManualClock()
    with millstream.open(":memory:", clock=clock) as store:
        store.create_topic("t")
        with store.producer(linger_ms=50) as producer:
            written = threading.Event()
            future = producer.send("t", b"a")
            future.add_done_callback(lambda _: written.set())
            clock.advance(49)
            assert not future.done()
            clock.advance(1)
            assert written.wait(SOON_SECONDS)


def test_waiting_for_a_result_ends_the_linger(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        assert producer.send("t", b"a").result(SOON_SECONDS).offset == 0


def test_a_full_batch_is_written_at_once(store: Store) -> None:
    size = RECORD_OVERHEAD_BYTES + 8
    with store.producer(linger_ms=FOR_EVER_MS, batch_bytes=4 * size) as producer:
        written = threading.Event()
        futures = [producer.send("t", b"12345678") for _ in range(4)]
        futures[0].add_done_callback(lambda _: written.set())
        if not written.is_set():
            producer.send("t", b"12345678")
        assert written.wait(SOON_SECONDS)
        assert [0, 1, 2, 3] == [future.result(0).offset for future in futures]


def test_a_record_larger_than_a_batch_is_a_batch(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS, batch_bytes=100) as producer:
        written = threading.Event()
        producer.send("t", b"before")
        producer.send("t", bytes(1000)).add_done_callback(lambda _: written.set())
        assert written.wait(SOON_SECONDS)
    assert [6, 1000] == [len(record.value or b"") for record in read(store)]


def test_send_waits_for_room_in_the_buffer(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS, batch_bytes=200, buffer_bytes=400) as producer:
        numbers = range(500)
        for number in numbers:
            producer.send("t", b"%050d" % number)
    assert [b"%050d" % number for number in numbers] == [record.value for record in read(store)]


def test_a_full_buffer_times_out_and_recovers(store: Store) -> None:
    producer = Producer(
        store._engine, linger_ms=FOR_EVER_MS, batch_bytes=200, buffer_bytes=400, timeout=0.01
    )
    with producer:
        gate = Gate(producer)
        accepted = 0
        with pytest.raises(BackpressureTimeoutError, match="wait to be written"):  # noqa: PT012 - which one is refused depends
            for _ in range(20):
                producer.send("t", b"x" * 50)
                accepted += 1
        assert 4 <= accepted <= 8
        assert not producer.wait_for_room(0.0)
        gate.open()
        assert producer.wait_for_room(SOON_SECONDS)
        producer.send("t", b"again")
    assert [b"gate", *[b"x" * 50] * accepted, b"again"] == [each.value for each in read(store)]


def test_a_record_that_never_fits_is_refused(store: Store) -> None:
    producer = store.producer(batch_bytes=100, buffer_bytes=100)
    with producer, pytest.raises(UsageError, match="exceeds the limit of 100"):
        producer.send("t", bytes(100))


def test_wrong_types_are_refused_and_harm_no_neighbour(store: Store) -> None:
    wrong: list[dict[str, object]] = [
        {"value": "text"},
        {"value": 5},
        {"value": b"", "key": "text"},
        {"value": b"", "timestamp_ms": "now"},
        {"value": b"", "timestamp_ms": 1 << 63},
        {"value": b"", "headers": [("name", "text")]},
        {"value": b"", "headers": [(b"name", b"")]},
        {"value": b"", "headers": [("\ud800", b"")]},
        {"value": b"", "headers": [5]},
    ]
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        for arguments in wrong:
            producer.send("t", b"good")
            with pytest.raises(UsageError, match="must be"):
                producer.send("t", **arguments)  # type: ignore[arg-type]
        with pytest.raises(UnknownTopicError):
            producer.send("nowhere", b"")
    assert [b"good"] * len(wrong) == [record.value for record in read(store)]


def test_a_buffer_that_changes_later_was_copied(store: Store) -> None:
    buffer = bytearray(b"before")
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        producer.send("t", buffer, key=memoryview(buffer))  # type: ignore[arg-type]
        buffer[:] = b"AFTER!"
    assert [(b"before", b"before")] == [(each.key, each.value) for each in read(store)]


def test_bounds_are_checked(store: Store) -> None:
    for wrong in (
        {"linger_ms": -1},
        {"batch_bytes": 0},
        {"batch_bytes": 1 << 30, "buffer_bytes": 1 << 31},
        {"batch_bytes": 2000, "buffer_bytes": 1000},
    ):
        with pytest.raises(UsageError):
            Producer(store._engine, **wrong)


# --- failures --------------------------------------------------------------------------------


def faulty_store(storage: MemoryStorage) -> Store:
    store = millstream.open(storage=storage)
    store.create_topic("t")
    store.create_topic("other")
    store.append("t", b"first")
    store.append("other", b"first")
    # Work in the background would meet the faults that are meant for others.
    done = threading.Event()
    store._engine.background.submit("done", done.set)
    assert done.wait(10)
    return store


def test_a_failed_write_reaches_futures_and_flush_once(caplog: pytest.LogCaptureFixture) -> None:
    storage = MemoryStorage()
    with faulty_store(storage) as store, store.producer(linger_ms=FOR_EVER_MS) as producer:
        futures = [producer.send("t", b"lost"), producer.send("t", b"lost")]
        storage.faults = FaultPlan(fail={"write": errno.EIO})
        with pytest.raises(StorageError) as caught:
            producer.flush()
        storage.faults = FaultPlan()
        assert caught.value.errno == errno.EIO
        assert ["2 records of this producer were not acknowledged"] == caught.value.__notes__
        assert "2 records to t/0 not acknowledged" in caplog.text
        for future in futures:
            with pytest.raises(StorageError):
                future.result()

        producer.flush()
        assert producer.send("t", b"kept").result().offset == 1
    assert "lost" not in caplog.text


def test_a_partition_that_cannot_sync_fails_no_other() -> None:
    storage = MemoryStorage()
    store = faulty_store(storage)
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        storage.faults = FaultPlan(fail={"sync": errno.EIO})
        with pytest.raises(PoisonedError):
            producer.send("t", b"lost").result()
        storage.faults = FaultPlan()
        lost, kept = producer.send("t", b"lost"), producer.send("other", b"kept")
        with pytest.raises(PoisonedError):
            producer.flush()
        assert isinstance(lost.exception(), PoisonedError)
        assert kept.result().offset == 1
    store.close()


def test_records_for_a_deleted_topic_fail_alone_and_a_new_one_is_found(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        lost, kept = producer.send("parts", b"lost", partition=3), producer.send("t", b"kept")
        store.delete_topic("parts")
        with pytest.raises(UnknownTopicError):
            producer.flush()
        assert isinstance(lost.exception(), UnknownTopicError)
        assert kept.result().offset == 0

        store.create_topic("parts", partitions=2)
        assert producer.send("parts", b"kept", partition=1).result().offset == 0
        with pytest.raises(UsageError):
            producer.send("parts", b"lost", partition=3)


def test_keys_sent_for_a_topic_made_anew_with_other_partitions_are_refused(store: Store) -> None:
    store.create_topic("again")
    producer = store.producer()
    producer.send("again", b"1", key=b"k0").result()
    store.delete_topic("again")
    store.create_topic("again", partitions=4)
    refused = producer.send("again", b"2", key=b"k0")
    with pytest.raises(UsageError, match="has 4 partitions now, not 1: send again"):
        refused.result()
    assert producer.send("again", b"3", key=b"k0").result().partition == partition_of(b"k0", 4)
    with pytest.raises(UsageError, match="has 4 partitions now"):
        producer.close()
    assert [record.value for record in store.read("again")] == [b"3"]


def test_a_crash_in_the_thread_reaches_everybody() -> None:
    storage = MemoryStorage()
    store = faulty_store(storage)
    producer = store.producer(linger_ms=FOR_EVER_MS)
    future = producer.send("t", b"a")
    storage.faults = FaultPlan(crash_at=len(storage.trace))
    with pytest.raises(SimulatedCrash):
        future.result(SOON_SECONDS)
    with pytest.raises(StoreClosedError, match="thread died"):
        producer.send("t", b"b")
    with pytest.raises(SimulatedCrash):
        producer.close()
    with pytest.raises(SimulatedCrash):
        store.close()


# --- closing ---------------------------------------------------------------------------------


def test_a_closed_producer_refuses_records(store: Store) -> None:
    producer = store.producer(linger_ms=FOR_EVER_MS)
    producer.send("t", b"kept")
    assert not producer.closed
    producer.close()
    producer.close()
    producer.flush()

    assert producer.closed
    with pytest.raises(StoreClosedError):
        producer.send("t", b"refused")
    assert [b"kept"] == [record.value for record in read(store)]


def test_leaving_the_block_by_an_exception_keeps_what_was_sent(store: Store) -> None:
    with pytest.raises(KeyError), store.producer(linger_ms=FOR_EVER_MS) as producer:  # noqa: PT012 - the block is the test
        producer.send("t", b"kept")
        raise KeyError
    assert [b"kept"] == [record.value for record in read(store)]


def test_a_failure_on_closing_does_not_hide_the_callers_exception() -> None:
    storage = MemoryStorage()
    with faulty_store(storage) as store:
        with pytest.raises(KeyError) as caught, store.producer() as producer:  # noqa: PT012 - the block is the test
            storage.faults = FaultPlan(fail={"write": errno.EIO})
            producer.send("t", b"lost")
            raise KeyError
        storage.faults = FaultPlan()
    assert "the producer also failed" in caught.value.__notes__[0]


def test_records_sent_after_the_store_was_closed_fail(store: Store) -> None:
    producer = store.producer(linger_ms=FOR_EVER_MS)
    future = producer.send("t", b"late")
    store.close()
    with pytest.raises(StoreClosedError):
        producer.close()
    with pytest.raises(StoreClosedError):
        future.result()


def test_a_forgotten_producer_warns_and_still_writes(store: Store) -> None:
    producer = store.producer(linger_ms=FOR_EVER_MS)
    future = producer.send("t", b"kept")
    with pytest.warns(ResourceWarning, match="unclosed <Producer :memory:>"):  # noqa: PT031 - either may end it
        del producer
        gc.collect()
    assert future.result(SOON_SECONDS).offset == 0


def test_an_interpreter_that_exits_writes_what_was_sent(tmp_path: object) -> None:
    script = (
        "import millstream, sys\n"
        "store = millstream.open(sys.argv[1], durability='os')\n"
        "store.create_topic('t')\n"
        "producer = store.producer(linger_ms=1e9)\n"
        "producer.send('t', b'kept')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    with millstream.open(str(tmp_path)) as store:
        assert [b"kept"] == [record.value for record in read(store)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_cannot_use_the_producer_and_the_parent_can(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        future = producer.send("t", b"a")
        child = os.fork()
        if child == 0:
            os._exit(_refusals(producer, future))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        producer.send("t", b"b")
    assert [b"a", b"b"] == [record.value for record in read(store)]


def _refusals(producer: Producer, future: SendFuture) -> int:
    count = 0
    for call in (lambda: producer.send("t", b"x"), lambda: future.result(1)):
        try:
            call()
        except StoreClosedError:
            count += 1
    producer.close()
    return count + producer.closed


# --- callbacks -------------------------------------------------------------------------------


def test_callbacks_have_run_when_flush_returns(store: Store) -> None:
    offsets: list[int] = []
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        for _ in range(10):
            future = producer.send("t", b"")
            future.add_done_callback(lambda done: offsets.append(done.result().offset))
        producer.flush()
        assert list(range(10)) == offsets
        future.add_done_callback(lambda done: offsets.append(done.result().offset))
    assert [*range(10), 9] == offsets


def test_a_callback_that_raises_is_logged(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with store.producer() as producer:
        future = producer.send("t", b"")
        future.add_done_callback(lambda _: {}[0])
        producer.flush()
        producer.send("t", b"").result()
    assert [("millstream", logging.ERROR)] == [each[:2] for each in caplog.record_tuples]


def test_a_callback_may_send_but_not_wait(store: Store) -> None:
    refused: list[BaseException] = []
    with store.producer(linger_ms=FOR_EVER_MS) as producer:

        def wait_inside(_future: SendFuture) -> None:
            inner = producer.send("t", b"from the callback")
            for wait in (producer.flush, producer.close, lambda: inner.result(1)):
                try:
                    wait()
                except UsageError as error:
                    refused.append(error)

        producer.send("t", b"a").add_done_callback(wait_inside)
        producer.flush()
    assert len(refused) == 3
    assert [b"a", b"from the callback"] == [record.value for record in read(store)]


def test_flush_gives_up_after_its_timeout(store: Store) -> None:
    with store.producer(linger_ms=FOR_EVER_MS) as producer:
        gate = Gate(producer)
        future = producer.send("t", b"a")
        with pytest.raises(TimeoutError):
            producer.flush(0.01)
        with pytest.raises(TimeoutError):
            future.result(0.01)
        gate.open()
        producer.flush()
        assert future.done()


# --- threads and interrupts ------------------------------------------------------------------


@pytest.fixture
def nervous_interpreter() -> Iterator[None]:
    """Threads switch as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("nervous_interpreter")
@pytest.mark.parametrize(("linger_ms", "batch_bytes"), [(0, 1 << 20), (1, 2_000), (5, 300)])
def test_many_threads_lose_and_double_nothing_and_keep_order(
    store: Store, linger_ms: float, batch_bytes: int
) -> None:
    count, threads = 2_000, 4
    sent: dict[int, list[SendFuture]] = {number: [] for number in range(threads)}
    with store.producer(linger_ms=linger_ms, batch_bytes=batch_bytes) as producer:

        def send(thread: int) -> None:
            for number in range(count):
                value = b"%d %d" % (thread, number)
                stamp = number if number % 5 == 0 else None
                sent[thread].append(producer.send("parts", value, key=value, timestamp_ms=stamp))

        workers = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    found: dict[tuple[int, int], bytes] = {}
    order: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for record in read(store, "parts"):
        assert record.value is not None
        thread, number = map(int, record.value.split())
        found[record.partition, record.offset] = record.value
        order[thread, record.partition].append(number)
    assert count * threads == len(found)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    for thread, futures in sent.items():
        for number, future in enumerate(futures):
            place = future.result(0)
            assert b"%d %d" % (thread, number) == found[place.partition, place.offset]


def test_errors_of_the_producer_are_millstream_errors(store: Store) -> None:
    with store.producer() as producer, pytest.raises(MillstreamError):
        producer.send("nowhere", b"")
