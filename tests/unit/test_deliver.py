"""Delivery from an outbox to a sink: whole epochs, retries, dead letters, and where it stands."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from outside_world import values_of

import millstream
from millstream import (
    ConnectorError,
    DataError,
    FencedError,
    FormatVersionError,
    LockedError,
    OffsetOutOfRangeError,
    Record,
    RecordError,
    StorageError,
    Store,
    UnknownTopicError,
    UsageError,
)
from millstream.processor import deliver
from millstream.processor.connectors import RefusedRecords, Sink
from millstream.processor.deliver import Deliverer, Retry, sink_lag, sink_position
from millstream.processor.sinks import to_callable
from millstream.testing import ManualClock, MemoryStorage

TOPIC = "@sink/p/spy"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    with millstream.open(storage=MemoryStorage(), clock=clock) as store:
        store.create_topic(TOPIC, segment_bytes=4096)
        yield store


class Spy(Sink):
    """Notes what it is given; does what it is told first."""

    name = "spy"

    def __init__(self, delivery: Any = "idempotent", *failures: Exception) -> None:
        self.delivery = delivery
        self.failures = list(failures)
        self.calls: list[tuple[list[bytes | None], int, int]] = []
        self.stands: int | None = None
        self.outboxes: list[str] = []
        self.closed = 0

    def open(self, outbox: str) -> Spy:
        self.outboxes.append(outbox)
        return self

    def position(self) -> int | None:
        return self.stands

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        self.calls.append(([record.value for record in records], first, following))
        if self.failures:
            raise self.failures.pop(0)
        self.stands = following

    def close(self) -> None:
        self.closed += 1


def epoch(store: Store, *parts: Sequence[bytes]) -> None:
    """Append what an epoch of a pipeline would, part by part."""
    with store.transaction() as transaction:
        for values in parts:
            transaction.append_many(TOPIC, values)


def drain(store: Store, sink: Sink, **options: Any) -> int:
    with Deliverer(store, "p", sink, **options) as deliverer:
        return deliverer.drain()


# --- deliveries --------------------------------------------------------------------------------


def test_records_are_delivered_once_over_runs(store: Store) -> None:
    sink = Spy()
    epoch(store, [b"1", b"2"])
    assert 2 == drain(store, sink)
    epoch(store, [b"3"])
    assert (2, 1) == (sink_position(store, "p", "spy"), sink_lag(store, "p", "spy"))
    assert 1 == drain(store, sink)
    assert 0 == drain(store, sink)

    assert [([b"1", b"2"], 0, 2), ([b"3"], 2, 3)] == sink.calls
    assert (3, 0) == (sink_position(store, "p", "spy"), sink_lag(store, "p", "spy"))
    assert 3 == sink.closed


def test_an_outbox_is_named_for_ever(store: Store) -> None:
    sink = Spy()
    drain(store, sink)
    drain(store, sink)
    with Deliverer(store, "q", sink):
        pass
    with millstream.open(":memory:") as other:
        drain(other, sink)

    assert sink.outboxes[0] == sink.outboxes[1]
    assert 3 == len(set(sink.outboxes))


def test_a_delivery_ends_with_an_epoch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "DELIVERY_BYTES", 1)
    sink = Spy()
    for number in range(3):
        epoch(store, [b"%d" % number], [b"x"] * 3, [b"y" * 5000])
    drain(store, sink)

    assert [(0, 5), (5, 10), (10, 15)] == [(first, end) for _, first, end in sink.calls]


def test_small_epochs_are_delivered_together(store: Store) -> None:
    sink = Spy()
    for number in range(30):
        epoch(store, [b"%d" % number])
    drain(store, sink)

    assert [(0, 30)] == [(first, end) for _, first, end in sink.calls]


def test_records_of_aborted_epochs_are_passed_over(store: Store) -> None:
    sink = Spy()
    epoch(store, [b"1"])
    with store.transaction() as transaction:
        transaction.append_many(TOPIC, [b"lost"])
        transaction.abort()
    epoch(store, [b"2"])
    drain(store, sink)

    assert [b"1", b"2"] == [value for values, _, _ in sink.calls for value in values]


def test_nothing_is_seen_of_an_epoch_before_it_commits(store: Store) -> None:
    sink = Spy()
    with Deliverer(store, "p", sink) as deliverer, store.transaction() as transaction:
        transaction.append_many(TOPIC, [b"1"])
        assert not deliverer.pump()
    assert [] == sink.calls


def test_what_was_delivered_is_trimmed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "TRIM_BYTES", 20_000)
    with Deliverer(store, "p", Spy()) as deliverer:
        for _ in range(40):
            epoch(store, [b"x" * 1000])
            deliverer.drain()
        assert store.offsets(TOPIC)[0].start > 15
        assert len(store.segments(TOPIC, 0)) < 30
    assert 40 == store.offsets(TOPIC)[0].start


@pytest.mark.parametrize("delivery", ["idempotent", "at_least_once"])
def test_what_was_delivered_and_could_not_be_noted_is_not_trimmed(
    store: Store, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    sink = Spy(delivery)

    def full(*_: object, **__: object) -> Any:
        raise StorageError("the disk is full", errno=errno.ENOSPC, path="catalog.db")

    epoch(store, [b"1"])
    assert 1 == drain(store, sink)
    epoch(store, [b"2"])
    write = sink.write
    with Deliverer(store, "p", sink) as deliverer, monkeypatch.context() as patch:

        def write_and_fill(records: Sequence[Record], first: int, following: int) -> None:
            write(records, first, following)
            patch.setattr(Store, "transaction", full)

        patch.setattr(sink, "write", write_and_fill)
        with pytest.raises(StorageError, match="full"):
            deliverer.drain()
    assert 1 == drain(store, sink)
    assert ([b"2"], 1, 2) == sink.calls[-1]


def test_an_outbox_is_made_with_the_first_deliverer(store: Store) -> None:
    with pytest.raises(UnknownTopicError):
        sink_lag(store, "q", "spy")
    with Deliverer(store, "q", Spy()) as deliverer:
        assert "@sink/q/spy" == deliverer.topic
    assert 0 == sink_lag(store, "q", "spy")


# --- failures ----------------------------------------------------------------------------------


def test_a_delivery_that_fails_is_tried_again_after_pauses(
    store: Store, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Spy("idempotent", OSError("down"), TimeoutError(), ValueError("still"))
    epoch(store, [b"1"])
    with Deliverer(store, "p", sink, retry=Retry(pause_ms=100, pause_max_ms=300)) as deliverer:
        pauses = []
        for _ in range(3):
            assert deliverer.pump()
            pauses.append(round(deliverer.pause_s, 3))
            assert not deliverer.pump()
            clock.advance(round(deliverer.pause_s * 1000))
            epoch(store, [b"later"])
        assert deliverer.pump()
        assert 1 == deliverer.position

    assert [0.1, 0.2, 0.3] == pauses
    assert [([b"1"], 0, 1)] * 4 == sink.calls
    assert 3 == len(caplog.records)
    assert "failed at offset 0, trying again in 100 ms: OSError: down" in caplog.text


def test_a_drain_waits_through_the_pauses(store: Store, clock: ManualClock) -> None:
    epoch(store, [b"1"])

    assert 1 == drain(store, Spy("idempotent", OSError(), OSError()))
    assert 300 == round(clock.monotonic() * 1000)


def test_after_the_last_attempt_the_error_says_where(store: Store) -> None:
    epoch(store, [b"1"])
    drain(store, Spy())
    epoch(store, [b"2"])
    sink = Spy("idempotent", *[OSError("down")] * 5)
    with Deliverer(store, "p", sink, retry=Retry(attempts=3)) as deliverer:
        with pytest.raises(ConnectorError, match="sink 'spy' of pipeline 'p' failed 3 times") as it:
            deliverer.drain()
        assert ("spy", TOPIC, 0, 1) == (
            it.value.connector, it.value.topic, it.value.partition, it.value.offset,
        )  # fmt: skip
        assert isinstance(it.value.__cause__, OSError)
        assert 1 == deliverer.lag
        assert 1 == deliverer.drain()  # three attempts more

    assert 6 == len(sink.calls)


@pytest.mark.parametrize("error", [UsageError("wrong"), DataError("damaged"), FencedError("new")])
def test_what_cannot_be_helped_is_not_tried_again(store: Store, error: Any) -> None:
    epoch(store, [b"1"])
    sink = Spy("idempotent", error)
    with pytest.raises(type(error)) as caught:
        drain(store, sink, dead_letters="p.spy.dead")

    assert (TOPIC, 0, 0) == (caught.value.topic, caught.value.partition, caught.value.offset)
    assert 1 == len(sink.calls)


def test_a_sink_that_cannot_be_opened_is_named(store: Store) -> None:
    class Shut(Spy):
        def open(self, outbox: str) -> Spy:
            raise OSError("shut")

    with pytest.raises(ConnectorError, match="sink 'spy' of pipeline 'p' cannot be opened"):
        drain(store, Shut())
    drain(store, Spy())  # its lock is free


def test_retries_are_checked() -> None:
    for options in ({"attempts": 0}, {"pause_ms": -1}, {"pause_max_ms": -1}):
        with pytest.raises(UsageError, match="retry"):
            Retry(**options)


# --- refused records ---------------------------------------------------------------------------


def test_a_refused_record_stops_and_is_named(store: Store) -> None:
    epoch(store, [b"1", b"2", b"3"])
    with pytest.raises(RecordError, match="cannot take the record: bad") as caught:
        drain(store, Spy("idempotent", RefusedRecords({2: "worse", 1: "bad"})))

    assert (TOPIC, 0, 1) == (caught.value.topic, caught.value.partition, caught.value.offset)


def test_refused_records_become_dead_letters_and_the_rest_is_delivered(store: Store) -> None:
    with store.transaction() as transaction:
        headers = [(("h", b"v"),)] * 4
        transaction.append_many(TOPIC, [b"1", b"2", b"3", None], [b"a", b"b", b"c", b"d"],
                                [1, 2, 3, 4], headers=headers)  # fmt: skip
    sink = Spy("idempotent", RefusedRecords({1: "bad"}), RefusedRecords({3: "gone"}))
    with Deliverer(store, "p", sink, dead_letters="p.spy.dead") as deliverer:
        assert 2 == deliverer.drain()
        assert (2, 2, 0) == (deliverer.delivered, deliverer.refused, deliverer.lag)

    assert [b"1", b"3"] == sink.calls[-1][0]
    dead = list(store.read("p.spy.dead"))
    assert [(b"2", b"b", 2), (None, b"d", 4)] == [(r.value, r.key, r.timestamp_ms) for r in dead]
    assert (("h", b"v"), ("error", b"bad"), ("sink", b"spy")) == dead[0].headers


def test_a_record_that_may_succeed_is_refused_only_after_all_attempts(store: Store) -> None:
    def refuse() -> RefusedRecords:
        return RefusedRecords({1: "busy"}, retry=True)

    epoch(store, [b"1", b"2"])
    retry = Retry(attempts=3)
    with pytest.raises(ConnectorError) as caught:
        drain(store, Spy("idempotent", *[refuse() for _ in range(3)]), retry=retry)
    assert 1 == caught.value.offset
    sink = Spy("idempotent", *[refuse() for _ in range(3)])
    assert 1 == drain(store, sink, retry=retry, dead_letters="p.spy.dead")

    assert [2, 2, 2, 1] == [len(values) for values, _, _ in sink.calls]
    assert [b"2"] == values_of(store, "p.spy.dead")


@pytest.mark.parametrize("dead_letters", [None, "p.list.dead"])
def test_each_record_of_a_delivery_is_tried_as_often_as_any(
    store: Store, dead_letters: str | None
) -> None:
    got: list[bytes | None] = []
    failed: list[bytes | None] = []

    def fail_twice(record: Record) -> None:
        if failed.count(record.value) < 2:
            failed.append(record.value)
            raise OSError("not now")
        got.append(record.value)

    values = [b"%d" % number for number in range(5)]
    store.create_topic("@sink/p/list")
    store.append_many("@sink/p/list", values)
    sink = to_callable(fail_twice, name="list")
    options: dict[str, Any] = {"dead_letters": dead_letters, "retry": Retry(attempts=3)}
    with Deliverer(store, "p", sink, **options) as deliverer:
        deliverer.drain()
        assert (values, 0, 0) == (got, deliverer.refused, deliverer.lag)


def test_the_last_attempt_says_why_the_record_was_refused(store: Store) -> None:
    store.append(TOPIC, b"0")
    sink = Spy("idempotent", RefusedRecords({0: "busy"}, retry=True))
    with (
        pytest.raises(ConnectorError, match=r"'p' failed 1 times: busy \(topic"),
        Deliverer(store, "p", sink, retry=Retry(attempts=1)) as deliverer,
    ):
        deliverer.pump()


def test_a_sink_that_refuses_what_it_was_not_given_is_told_so(store: Store) -> None:
    epoch(store, [b"1"])
    for reasons in ({}, {7: "?"}):
        with pytest.raises(UsageError, match="refused what it was not given"):
            drain(store, Spy("idempotent", RefusedRecords(reasons)), dead_letters="p.spy.dead")


def test_a_run_that_died_after_making_dead_letters_makes_no_more(store: Store) -> None:
    epoch(store, [b"1", b"2"])
    sink = Spy("transactional", RefusedRecords({0: "bad"}))
    with Deliverer(store, "p", sink, dead_letters="p.spy.dead") as deliverer:
        deliverer.pump()  # the dead letter is made, the rest is not delivered
    epoch(store, [b"3"])
    again = Spy("transactional")
    drain(store, again, dead_letters="p.spy.dead")

    assert [([b"2"], 0, 2), ([b"3"], 2, 3)] == again.calls
    assert [b"1"] == values_of(store, "p.spy.dead")


# --- where it stands ---------------------------------------------------------------------------


def test_an_idempotent_delivery_done_again_ends_where_it_ended(store: Store) -> None:
    epoch(store, [b"1"])
    sink = Spy("idempotent", OSError())
    with Deliverer(store, "p", sink) as deliverer:
        deliverer.pump()
    epoch(store, [b"2"])
    drain(store, sink)

    assert [(0, 1), (0, 1), (1, 2)] == [(first, end) for _, first, end in sink.calls]


def test_a_transactional_sink_says_where_it_stands(store: Store) -> None:
    epoch(store, [b"1"])
    epoch(store, [b"2"])
    sink = Spy("transactional")
    sink.stands = 1
    drain(store, sink)
    assert [([b"2"], 1, 2)] == sink.calls

    sink.stands = 0  # a copy that is older, of which the outbox still has all
    epoch(store, [b"3"])
    store_start = store.offsets(TOPIC)[0].start
    assert 2 == store_start
    with pytest.raises(OffsetOutOfRangeError, match="stands at offset 0 of its outbox"):
        drain(store, sink)
    sink.stands = 9
    with pytest.raises(OffsetOutOfRangeError, match="the sink or the store is an older copy"):
        drain(store, sink)


def test_only_one_delivers(store: Store) -> None:
    with Deliverer(store, "p", Spy()), pytest.raises(LockedError):
        Deliverer(store, "p", Spy())


def test_one_that_was_replaced_is_fenced(store: Store) -> None:
    epoch(store, [b"1"])
    with Deliverer(store, "p", Spy()) as stalled:
        stalled._ownership.close()  # its lock is lost while it sleeps
        with Deliverer(store, "p", Spy()) as other:
            other.drain()
            with pytest.raises(FencedError):
                stalled.pump()


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", FormatVersionError), (b"\x02", FormatVersionError), (b"\x01\xc1", DataError)],
)
def test_a_damaged_position_is_an_error(store: Store, data: bytes, error: type[Exception]) -> None:
    with store.transaction() as transaction:
        transaction.put_checkpoint("sink/p/spy", data)
    with pytest.raises(error, match="position"):
        drain(store, Spy())


def test_an_outbox_made_anew_begins_anew(store: Store) -> None:
    sink = Spy()
    epoch(store, [b"1"])
    drain(store, sink)
    store.delete_topic(TOPIC)
    store.create_topic(TOPIC)
    epoch(store, [b"2"])
    drain(store, sink)

    assert [([b"1"], 0, 1), ([b"2"], 0, 1)] == sink.calls


def test_at_least_once_says_so_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "millstream")
    epoch(store, [b"1"])
    got: list[Record] = []
    with Deliverer(store, "p", to_callable(got.append, name="spy")) as deliverer:
        deliverer.drain()
    drain(store, Spy())

    assert ["gets its records at least once"] == [
        text for text in ("gets its records at least once",) if caplog.text.count(text) == 1
    ]
    assert 1 == len(caplog.records)
