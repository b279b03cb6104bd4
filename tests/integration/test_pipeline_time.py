"""Event time that stands still, is missing or wrong: idle partitions, the wall clock, ticks.

The store has a clock that only the test turns, so a tick happens exactly when it should.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import millstream
from millstream import RecordError, Store, UsageError
from millstream.processor import Context, Metrics, Pipeline, Row, agg, tumbling
from millstream.processor.ticks import Tick, decode_journal, journal_topic
from millstream.processor.topology import Topology
from millstream.processor.watermark import IDLE, Progress, least
from millstream.testing import ManualClock

START_MS = 1_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    with millstream.open(":memory:", clock=clock) as opened:
        opened.create_topic("in", partitions=2)
        yield opened


def counts(name: str = "counts", **options: object) -> Pipeline:
    pipeline = Pipeline(name)
    source = pipeline.source("in", time="t", **options)  # type: ignore[call-overload]  # some are bad
    results = source.key_by("k").window(tumbling(10)).agg(n=agg.count())
    results.to("out")
    results.late.to("late")
    return pipeline


def add(store: Store, partition: int, *times: int, topic: str = "in") -> None:
    values = [b'{"k":"a","t":%d}' % time for time in times]
    store.append_many(topic, values, partition=partition)


def starts(store: Store) -> list[int]:
    """Starts of the windows that have closed."""
    if "out" not in {topic.name for topic in store.topics()}:
        return []
    return [record.timestamp_ms - 9 for record in store.read("out")]


def run(pipeline: Pipeline, store: Store) -> Metrics:
    return pipeline.run(store, until="end", tick_ms=1)


def test_e4_w_never_falls_whatever_becomes_of_a_partition(store: Store, clock: ManualClock) -> None:
    levels: list[int | None] = []

    def look(partition: int | None = None, *times: int) -> None:
        """Add rows, and let a run begin, read them and end."""
        if partition is not None:
            add(store, partition, *times)
        levels.append(run(counts(idle=500), store).watermark_ms)

    look(0, 30)  # the other partition is empty
    look()
    look(1, 10)  # it begins, with an old row
    look()
    clock.advance(600)
    look(0, 50)  # the other one is idle
    look(1, 11)  # it wakes, with an old row
    look(1, 60)
    store.delete_topic("in")
    store.create_topic("in", partitions=3)
    counts(idle=500).migrate(store, same=["in"])
    look(0, 20)  # two partitions are empty, of which one is new
    look(2, 40)
    look(1, 70)
    assert [30, 30, 30, 30, 50, 50, 50, 50, 50, 50] == levels
    look(0, 55)
    look(2, 56)
    assert [50, 55] == levels[-2:], "it is the least of all three"
    assert [30] == starts(store)


def test_e6_an_idle_partition_lets_the_others_close_windows(
    store: Store, clock: ManualClock
) -> None:
    pipeline = counts(idle=500)
    add(store, 1, 2)
    add(store, 0, 1, 25)
    run(pipeline, store)
    assert [] == starts(store)
    clock.advance(400)
    add(store, 0, 26)
    clock.advance(200)
    run(pipeline, store)
    assert [0] == starts(store)
    (entry,) = [decode_journal(record.value) for record in store.read(journal_topic("counts"))][-1:]
    assert {"in": [1]} == entry.tick.idle
    assert [("in", 0, 3), ("in", 1, 1)] == entry.positions


def test_e7_an_idle_partition_that_wakes_with_old_rows_is_judged_by_the_operators_time(
    store: Store, clock: ManualClock
) -> None:
    pipeline = counts(idle=500)
    add(store, 1, 2)
    add(store, 0, 1, 25)
    clock.advance(600)
    add(store, 0, 26)
    run(pipeline, store)
    assert [0] == starts(store)
    add(store, 1, 3, 24)
    add(store, 0, 45)
    run(pipeline, store)
    assert [b'{"k":"a","t":3}'] == [record.value for record in store.read("late")]
    assert [0] == starts(store), "the partition holds W back again"


def test_e7_the_first_to_wake_of_all_that_were_idle_is_held_back_by_none(
    store: Store, clock: ManualClock
) -> None:
    pipeline = counts(idle=500)
    add(store, 1, 2)
    add(store, 0, 1, 28)
    clock.advance(600)
    assert 2 == run(pipeline, store).watermark_ms
    add(store, 0, 21, 19)
    assert 28 == run(pipeline, store).watermark_ms
    assert [0] == starts(store)
    assert [b'{"k":"a","t":19}'] == [record.value for record in store.read("late")]


def test_e8_with_all_partitions_idle_w_holds(store: Store, clock: ManualClock) -> None:
    pipeline = counts(idle=500)
    add(store, 1, 2)
    add(store, 0, 1, 28)
    clock.advance(9000)
    assert 2 == run(pipeline, store).watermark_ms
    assert [] == starts(store)
    assert 2 == run(pipeline, store).watermark_ms


def test_e8_with_the_wall_clock_windows_close_without_rows(
    store: Store, clock: ManualClock
) -> None:
    pipeline = counts(clock="wall", disorder=100)
    add(store, 0, START_MS)
    run(pipeline, store)
    assert [] == starts(store)
    clock.advance(200)
    run(pipeline, store)
    assert [START_MS] == starts(store)
    add(store, 0, START_MS + 1)
    run(pipeline, store)
    assert 1 == len(list(store.read("late")))


def test_e9_a_partition_with_unread_records_is_not_idle(store: Store, clock: ManualClock) -> None:
    """It is read one record at a time: as long as it is not at its end, it holds W back."""
    pipeline = counts(idle=500)
    add(store, 1, 2)
    add(store, 0, 1, 25, 26)
    add(store, 1, 3)
    clock.advance(9000)
    pipeline.run(store, until="end", batch_records=1, epoch_ms=0, tick_ms=1)
    (entry,) = [decode_journal(record.value) for record in store.read(journal_topic("counts"))]
    assert [("in", 0, 3), ("in", 1, 2)] == entry.positions
    assert [] == starts(store), "both became idle at once, so W holds at 3"


def test_e9_a_partition_whose_rows_are_all_filtered_is_not_idle(
    store: Store, clock: ManualClock
) -> None:
    def filtered() -> Pipeline:
        pipeline = Pipeline("filtered")
        rows = pipeline.source("in", time="t", idle=500).filter(lambda row: row["t"] % 2 == 0)
        rows.key_by("k").window(tumbling(10)).agg(n=agg.count()).to("out")
        return pipeline

    add(store, 1, 3)
    add(store, 0, 2, 28)
    clock.advance(600)
    add(store, 1, 5)
    assert 5 == run(filtered(), store).watermark_ms
    assert [] == starts(store), "the partition got a row, though nothing came of it"
    clock.advance(600)
    run(filtered(), store)
    assert [] == starts(store), "both are idle now, and W holds"
    add(store, 0, 30)
    run(filtered(), store)
    assert [0, 20] == starts(store)


@pytest.mark.parametrize(("elapsed_ms", "closed"), [(499, []), (500, [0])])
def test_e10_idleness_counts_from_the_last_append(
    store: Store, clock: ManualClock, elapsed_ms: int, closed: list[int]
) -> None:
    pipeline = counts(idle=500)
    add(store, 1, 2)
    clock.advance(elapsed_ms)
    add(store, 0, 1, 25)
    run(pipeline, store)
    assert closed == starts(store)


def test_e10_idleness_is_remembered_over_a_restart(store: Store, clock: ManualClock) -> None:
    add(store, 1, 2)
    add(store, 0, 1)
    clock.advance(600)
    run(counts(idle=500), store)
    add(store, 0, 25)
    run(counts(idle=500), store)
    assert [0] == starts(store)


def test_e11_a_row_from_the_future_does_not_move_w(store: Store) -> None:
    pipeline = counts(max_ahead=1000)
    add(store, 0, START_MS + 1)
    add(store, 0, START_MS + 2000)
    with pytest.raises(RecordError, match="2000 ms ahead of the append; max_ahead is 1000 ms"):
        run(pipeline, store)
    pipeline = Pipeline("counts")
    source = pipeline.source("in", time="t", max_ahead="1s")
    source.key_by("k").window(tumbling(10)).agg(n=agg.count()).to("out")
    source.dead_letters.to("dead")
    assert START_MS + 1 == run(pipeline, store).watermark_ms
    assert [b'{"k":"a","t":%d}' % (START_MS + 2000)] == [
        record.value for record in store.read("dead")
    ]


def test_e11_the_limit_belongs_to_each_append_whatever_the_batch() -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t", max_ahead=10)
    source.to("out")
    source.dead_letters.to("dead")
    rows = [Row({"t": 11}, append_ms=0), Row({"t": 11}, append_ms=1), Row({"t": 12})]
    for size in (1, 2, 3):
        out = pipeline.test({"in": rows}, batch_records=size)
        assert ([{"t": 11}, {"t": 12}], [{"t": 11}]) == (out["out"], out["dead"])


def test_e14_a_missing_time_can_be_that_of_the_append(store: Store) -> None:
    pipeline = counts(missing_time="append_time")
    store.append_many("in", [b'{"k":"a"}', b'{"k":"a","t":null}'], partition=0)
    add(store, 0, START_MS + 10)
    run(pipeline, store)
    (record,) = store.read("out")
    assert b'{"key":"a","window_start":1000000,"window_end":1000010,"n":2}' == record.value


def test_an_idle_source_lets_those_it_meets_go_on(store: Store, clock: ManualClock) -> None:
    store.create_topic("other")
    pipeline = Pipeline("both")
    left = pipeline.source("in", time="t")
    right = pipeline.source("other", time="t", idle=500)
    windows = left.merge(right).key_by("k").window(tumbling(10))
    windows.agg(n=agg.count()).to("out")
    add(store, 0, 1, 25)
    run(pipeline, store)
    assert [] == starts(store), "a source that had no row yet holds W back"
    clock.advance(600)
    run(pipeline, store)
    assert [0] == starts(store)
    add(store, 0, 7, topic="other")
    add(store, 0, 47)
    run(pipeline, store)
    assert [0] == starts(store), "awake again, and behind"
    clock.advance(600)
    run(pipeline, store)
    assert [0, 20] == starts(store)


def test_a_pipeline_without_need_makes_no_ticks(store: Store, clock: ManualClock) -> None:
    add(store, 0, 1)
    run(counts(), store)
    assert journal_topic("counts") not in {topic.name for topic in store.topics(internal=True)}
    pipeline = counts("idle", idle=500)
    run(pipeline, store)
    clock.advance(5000)
    assert 1 == run(pipeline, store).epochs, "the partitions are idle now"
    assert 0 == run(pipeline, store).epochs
    assert 1 == len(list(store.read(journal_topic("idle"))))


def test_w_never_falls_where_sources_come_and_go() -> None:
    awake = Progress(IDLE, [1, 5], [4, 20])
    assert Progress(9, [5], [12]) == least([awake, Progress(9, [3], [12])], 9)
    assert Progress(7, [], []) == least([Progress(IDLE, [], [])] * 2, 7)


def test_the_clock_of_ticks_never_goes_back() -> None:
    topology = Topology(counts(clock="wall").plan)
    topology.tick(Tick(50, caught_up=True))
    topology.tick(Tick(40, caught_up=True))
    assert (50, 50) == (topology.now_ms, topology.level)


def test_bytes_that_are_no_journal_are_refused() -> None:
    for data in (None, b"", b"\x02", b"\x01{", b"\x01\x80"):
        with pytest.raises(millstream.DataError):
            decode_journal(data)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"clock": "sun"}, "clock='sun'"),
        ({"missing_time": "now"}, "missing_time='now'"),
        ({"idel": "3s"}, "unknown options"),
        ({"idle": -3}, "-3"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        counts(**options)


def test_a_tick_takes_time(store: Store) -> None:
    with pytest.raises(UsageError, match="tick_ms"):
        counts().run(store, tick_ms=0)


def test_no_row_sees_the_clock_of_a_former_run(store: Store, clock: ManualClock) -> None:
    """Nor that of 1970, at the first one: timers set by it would be called at once."""

    def tell(context: Context[str, None], row: dict[str, object]) -> list[int]:
        return [context.now_ms]

    pipeline = Pipeline("clocks")
    pipeline.source("in", time="t").key_by("k").process(tell, wall_clock=True).to("out")
    for pause_ms in (0, 90_000):
        clock.advance(pause_ms)
        add(store, 0, 1, 2)
        pipeline.run(store, until="end")
    seen = [int(record.value or b"") for record in store.read("out")]
    assert [START_MS] * 2 + [START_MS + 90_000] * 2 == seen
    assert pipeline.verify(store).ok
