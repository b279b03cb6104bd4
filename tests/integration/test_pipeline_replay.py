"""Replays, forks and state seen from outside: a pipeline that can be checked against its log."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from shop_life import OUTPUTS, live, remind, reminded, shop, written

import millstream
from millstream import DataError, OffsetOutOfRangeError, Store, UsageError
from millstream.processor import (
    Pipeline,
    agg,
    dry_run,
    fork,
    keep_checkpoint,
    list_state,
    read_state,
    tumbling,
)
from millstream.processor.checkpoint import encode_checkpoint
from millstream.processor.fork_diff import encode_fork_point, fork_checkpoint, fork_point
from millstream.processor.state_log import checkpoint_name, read_checkpoint, state_entries
from millstream.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    with millstream.open(":memory:", clock=clock) as opened:
        opened.create_topic("orders", partitions=2)
        opened.create_topic("refunds")
        yield opened


@pytest.mark.parametrize("seed", range(4))
def test_a_replay_gives_what_was_written(store: Store, clock: ManualClock, seed: int) -> None:
    live(store, clock, 12, seed + 1)
    found = shop().verify(store)
    assert [] == found.differences
    assert found.ok
    assert found.records_in == sum(
        held.end for topic in ("orders", "refunds") for held in store.offsets(topic).values()
    )
    assert found.records_compared == written(store)
    assert found.records_compared > 100


def test_a_replay_from_a_fork_begins_with_its_state(store: Store, clock: ManualClock) -> None:
    live(store, clock, 10, 1)
    before = written(store)
    fork(store, "shop", "point")
    live(store, clock, 10, 2)
    store.trim("orders", {0: store.offsets("orders")[0].end // 3})
    with pytest.raises(OffsetOutOfRangeError, match="Start from a fork"):
        shop().verify(store)
    found = shop().verify(store, since="point")
    after = written(store)
    assert [] == found.differences
    assert after - before == found.records_compared > 50


def test_a_fork_is_verified_from_where_it_was_made_and_not_from_the_beginning(
    store: Store, clock: ManualClock
) -> None:
    live(store, clock, 10, 1)
    fork(store, "shop", "copy")
    epoch = keep_checkpoint(store, "copy")
    copy = shop("copy")
    live(store, clock, 10, 2, "copy")
    with pytest.raises(UsageError, match=f"'copy' is a fork.*there is epoch {epoch}"):
        copy.verify(store)
    with pytest.raises(UsageError, match="'copy' is a fork"):
        copy.verify(store, start=0)
    for options in ({"since": epoch}, {"start": "-1"}):
        found = copy.verify(store, **options)
        assert found.ok, found.differences
        assert f"the checkpoint of epoch {epoch}" == found.started_at
    assert copy.verify(store, since=epoch).records_compared > 50


@pytest.mark.parametrize("rounds", [1, 10])
def test_a_fork_of_an_early_version_is_verified_with_its_own_journal(
    store: Store, clock: ManualClock, rounds: int
) -> None:
    """Its checkpoints said where the journal of the original ended, until it had a tick itself."""
    live(store, clock, 3, 1)
    fork(store, "shop", "copy")
    end = read_checkpoint(store, "shop").journal_end
    assert end > 0
    made = msgspec.structs.replace(read_checkpoint(store, "copy"), journal_end=end)
    point = fork_point(store, "copy")
    assert point is not None
    early = msgspec.structs.replace(point, journal_end=None)
    with store.own(checkpoint_name("copy")) as owner, store.transaction(owner=owner) as early_fork:
        early_fork.put_checkpoint(checkpoint_name("copy"), encode_checkpoint(made))
        early_fork.put_checkpoint(fork_checkpoint("copy"), encode_fork_point(early))
    epochs = [keep_checkpoint(store, "copy")]
    copy = shop("copy")
    live(store, clock, rounds, 2, "copy")
    epochs.append(keep_checkpoint(store, "copy"))
    live(store, clock, rounds, 3, "copy")
    for epoch in epochs:
        found = copy.verify(store, since=epoch)
        assert found.ok, found.differences
    assert copy.verify(store, since=epochs[0]).records_compared >= 5 * rounds


def test_a_replay_names_the_first_difference(store: Store, clock: ManualClock) -> None:
    live(store, clock, 10, 3)
    store.append("totals", b"foreign", key=b"k1")
    live(store, clock, 10, 4)
    (difference,) = shop().verify(store).differences
    assert ("totals", 0) == (difference.topic, difference.partition)
    assert difference.written is not None
    assert b"foreign" == difference.written.value
    assert f"offset {difference.offset} holds" in str(difference)

    changed = Pipeline("shop")
    changed_orders = changed.source("orders", time="t", disorder=20, idle=500)
    refunds = changed.source("refunds", time="t", disorder=20, idle=500)
    both = changed_orders.merge(refunds).key_by("k")
    both.window(tumbling(50)).agg(n=agg.count()).to("totals")
    assert not changed.verify(store).ok


def test_a_fork_goes_on_where_the_original_stood(store: Store, clock: ManualClock) -> None:
    live(store, clock, 12, 5)
    fork(store, "shop", "shop-2")
    marks = {topic: store.offsets(topic)[0].end for topic in OUTPUTS}
    live(store, clock, 1, 6)
    shop("shop-2").run(store, until="end", tick_ms=1)
    for topic, mark in marks.items():
        original = [(one.key, one.value, one.timestamp_ms) for one in store.read(topic, mark)]
        forked = [(one.key, one.value, one.timestamp_ms) for one in store.read(f"{topic}.shop-2")]
        assert original == forked
    with pytest.raises(UsageError, match="there is a pipeline 'shop-2' already"):
        fork(store, "shop", "shop-2")
    with pytest.raises(UsageError, match="never run"):
        fork(store, "nothing", "copy")


def test_state_can_be_read_from_outside(store: Store) -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("orders", time="t").key_by("k")
    keyed.window(tumbling(50)).agg(n=agg.count(), total=agg.sum("x")).to("out")
    keyed.process(remind, state=dict, on_timer=reminded, wall_clock=True).to("out")
    rows = [b'{"k":"a","t":1,"x":5}', b'{"k":"b","t":2,"x":7}', b'{"k":"a","t":3,"x":6}']
    store.append_many("orders", rows, partition=0)
    pipeline.run(store, until="end")
    items = pipeline.query(store, "orders.window")
    assert {((50, "a"), (2, 11)), ((50, "b"), (1, 7))} == {
        (item.path, tuple(item.value)) for item in items
    }
    assert [((50, "b"), [1, 7])] == pipeline.query(store, "orders.window", "b")
    assert [{"n": 2}] == [
        item.value[0]
        for item in pipeline.query(store, "orders.process", "a")
        if len(item.path) == 2
    ]
    window, process = sorted(list_state(store), key=lambda info: info.operator, reverse=True)
    assert ("p", "orders.window", 2) == (window.pipeline, window.operator, window.live_count)
    assert "tumbling" in window.identity
    assert 2 + 3 == process.live_count
    with pytest.raises(UsageError, match=r"has no state called 'x'; it has orders\."):
        list(read_state(store, "p", "x"))


def test_e62_state_older_than_its_checkpoint_is_refused(store: Store) -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("orders", time="t").key_by("k")
    keyed.window(tumbling(50)).agg(n=agg.count()).to("out")
    store.append("orders", b'{"k":"a","t":1}')
    pipeline.run(store, until="end")
    known = read_checkpoint(store, "p").operators["orders.window"]
    assert known.end_offset == store.offsets("@state/p/orders.window")[0].end == 1
    later = msgspec.structs.replace(known, end_offset=9)
    with pytest.raises(DataError, match="the state ends at offset 1, its checkpoint was made at 9"):
        list(state_entries(store, "@state/p/orders.window", later))


def test_a_dry_run_writes_nothing(store: Store) -> None:
    pipeline = shop()
    store.append_many("orders", [b'{"k":"a","t":%d,"x":1}' % time for time in (1, 2, 60)])
    store.append("refunds", b'{"k":"a","t":3,"x":-1}')
    found: dict[str, list[bytes | None]] = {}
    for place, batch in dry_run(pipeline.plan, store, "earliest"):
        found.setdefault(place.topic, []).extend(batch.values)
    assert 2 == len(found["totals"])
    assert ["orders", "refunds"] == [topic.name for topic in store.topics(internal=True)]
