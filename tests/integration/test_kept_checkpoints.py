"""Checkpoints that are kept: replays, forks and state as of then, and state topics that wait."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from shop_life import KINDS, OUTPUTS, live, shop, written

import millstream
from millstream import DataError, FormatVersionError, Store, UsageError
from millstream.processor import (
    Pipeline,
    agg,
    compare_fork,
    epoch as epoch_module,
    forget_checkpoints,
    fork,
    jsonl_files,
    keep_checkpoint,
    list_checkpoints,
    sqlite_rows,
    to_callable,
    tumbling,
)
from millstream.processor.kept import Kept, encode_kept, read_kept
from millstream.processor.state_log import checkpoint_name
from millstream.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def store(clock: ManualClock) -> Iterator[Store]:
    with millstream.open(":memory:", clock=clock) as opened:
        opened.create_topic("orders", partitions=2)
        opened.create_topic("refunds")
        for topic in OUTPUTS:
            opened.create_topic(topic, partitions=2)
        yield opened


def epochs_of(store: Store) -> list[int]:
    return [each.epoch for each in list_checkpoints(store, "shop") if each.kept_ms is not None]


@pytest.fixture
def small_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_module, "SNAPSHOT_RECORDS_MIN", 10)
    monkeypatch.setattr(epoch_module, "SWEEP_RECORDS", 2)


@pytest.mark.usefixtures("small_sweeps")
@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_a_replay_starts_at_every_checkpoint_that_is_kept(
    store: Store, clock: ManualClock, state: Literal["memory", "sqlite"]
) -> None:
    live(store, clock, 30, 1, keep_every=500, keep_count=8)
    epochs = epochs_of(store)
    assert len(epochs) == 8
    starts = {each.name: each.start for each in _state_topics(store)}
    compared = []
    for epoch in epochs:
        found = shop(state=state).verify(store, since=epoch)
        assert [] == found.differences
        assert f"the checkpoint of epoch {epoch}" == found.started_at
        compared.append(found.records_compared)
    assert sorted(set(compared), reverse=True) == compared
    assert compared[0] > 50
    assert starts == {each.name: each.start for each in _state_topics(store)}


@pytest.mark.usefixtures("small_sweeps")
def test_state_that_nobody_keeps_is_trimmed(store: Store, clock: ManualClock) -> None:
    """The same life with and without: what is kept stays, and goes when it is forgotten."""
    live(store, clock, 10, 1)
    epoch = keep_checkpoint(store, "shop")
    kept = {topic.name: topic.start for topic in _state_topics(store)}
    live(store, clock, 10, 2)
    assert kept == {topic.name: topic.start for topic in _state_topics(store)}
    assert shop().verify(store, since=epoch).ok
    before = shop().query(store, "orders.count", epoch=epoch)
    assert before != shop().query(store, "orders.count")
    with pytest.raises(UsageError, match=rf"epoch 1 is kept of pipeline 'shop'; kept are: {epoch}"):
        forget_checkpoints(store, "shop", [epoch, 1])
    forget_checkpoints(store, "shop", [epoch])
    assert [] == epochs_of(store)
    live(store, clock, 10, 3)
    after = {topic.name: topic.start for topic in _state_topics(store)}
    assert all(after[name] > start for name, start in kept.items())
    with pytest.raises(UsageError, match="kept are: none"):
        shop().verify(store, since=epoch)


class _Topic:
    def __init__(self, name: str, start: int) -> None:
        self.name, self.start = name, start


def _state_topics(store: Store) -> list[_Topic]:
    names = [info.name for info in store.topics(internal=True) if info.name.startswith("@state/")]
    return [_Topic(name, store.offsets(name)[0].start) for name in names]


def test_the_oldest_of_a_run_goes_and_that_of_a_hand_stays(
    store: Store, clock: ManualClock
) -> None:
    live(store, clock, 3, 1)
    by_hand = keep_checkpoint(store, "shop")
    assert by_hand == keep_checkpoint(store, "shop")
    live(store, clock, 10, 2, keep_every="100ms", keep_count=3)
    epochs = epochs_of(store)
    assert by_hand == epochs[0]
    assert len(epochs) == 4
    times = [each.at_ms for each in read_kept(store, "shop")]
    assert all(later - earlier >= 100 for earlier, later in pairwise(times[1:]))
    live(store, clock, 5, 3, keep_every="1d", keep_count=1)
    assert epochs == epochs_of(store)
    with pytest.raises(UsageError, match="keep_count must be at least 1"):
        shop().run(store, until="end", keep_every="1h", keep_count=0)


@pytest.mark.parametrize("kept", [False, True])
def test_a_replay_compares_from_any_position_on(
    store: Store, clock: ManualClock, kept: bool
) -> None:
    live(store, clock, 12, 1, **({"keep_every": 500} if kept else {}))
    every = written(store)
    counts, starts = [], set()
    for start in range(0, store.offsets("refunds")[0].end + 8, 4):
        found = shop().verify(store, start=start)
        assert [] == found.differences
        counts.append(found.records_compared)
        starts.add(found.started_at)
    assert every == counts[0]
    assert sorted(counts, reverse=True) == counts
    assert counts[-1] < every / 2
    assert (len(starts) > 3) is kept
    assert 0 < shop().verify(store, start="-3").records_compared < every
    with pytest.raises(UsageError):
        shop().verify(store, start="yesterday")


def test_what_differs_is_named_by_topic_partition_and_offset(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function looks at something besides its row, for a while."""
    live(store, clock, 8, 1, keep_every=300)
    mark = {place: held.end for place, held in store.offsets("totals").items()}
    at = [store.offsets("orders")[partition].end for partition in (0, 1)]
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "cents", 100)
        live(store, clock, 8, 2)
    end = max(held.end for name in ("orders", "refunds") for held in store.offsets(name).values())
    live(store, clock, 8, 3, keep_every=300)
    found = shop().verify(store)
    assert not found.ok
    assert {"totals"} == {each.topic for each in found.differences}
    for difference in found.differences:
        assert difference.offset is not None
        assert difference.offset >= mark[difference.partition]
        (record, *_) = store.read("totals", difference.offset, partition=difference.partition)
        assert record == difference.written
        assert f"totals/{difference.partition}: offset {difference.offset} holds key" in str(
            difference
        )
        assert difference.replayed is not None
        assert difference.replayed.value is not None
        assert difference.replayed.value.decode() in str(difference)
        first = next(
            record.offset
            for record in store.read("totals", partition=difference.partition)
            if json.loads(record.value or b"")["total"] >= 100
        )
        assert first == difference.offset
    assert shop().verify(store, since=epochs_of(store)[-1]).ok
    assert not shop().verify(store, start=min(at)).ok
    assert shop().verify(store, start=end + 5).ok


def test_a_fork_is_made_from_a_checkpoint(store: Store, clock: ManualClock) -> None:
    live(store, clock, 10, 1, keep_every=100)
    epoch = epochs_of(store)[2]
    live(store, clock, 5, 2)
    fork(store, "shop", "trial", epoch=epoch)
    for topic in OUTPUTS:
        store.create_topic(f"{topic}.trial", partitions=2)
    wall = ("seen", "visits")  # they depend on the ticks of their own runs
    shop("trial").run(store, until="end", tick_ms=1)
    topics = {topic: f"{topic}.trial" for topic in OUTPUTS if topic not in wall}
    found = compare_fork(store, "trial", {"counts": topics["counts"]})
    assert found.ok
    assert found.records_compared > 20
    assert shop("trial").query(store, "orders.count") == shop().query(store, "orders.count")
    with pytest.raises(UsageError, match="no checkpoint of epoch 999 is kept"):
        fork(store, "shop", "other", epoch=999)


def test_a_migration_leaves_what_is_kept(store: Store) -> None:
    """The former code can still be verified; state topics nobody points to go."""

    def build(name: str, more: int = 0) -> Pipeline:
        pipeline = Pipeline("small")
        counts = pipeline.source("orders", time="t").key_by("k").count(name=name)
        counts.map(lambda count: count + more).to("counts")
        return pipeline

    store.append_many("orders", [b'{"k":"a","t":1}', b'{"k":"a","t":2}'], partition=0)
    build("old").run(store, until="end")
    epoch = keep_checkpoint(store, "small")
    build("new").migrate(store, rename={"old": "new"})
    store.append("orders", b'{"k":"a","t":3}', partition=0)
    build("new").run(store, until="end")
    assert build("old").verify(store, since=epoch).records_compared == 1
    assert build("new").verify(store).hint == "", "all is the same"
    store.append("orders", b'{"k":"a","t":4}', partition=0)
    build("new", more=10).run(store, until="end")
    found = build("new", more=10).verify(store)
    assert not found.ok
    hint = r"state was migrated in epoch 2: .*behind it \(since=\): there is none"
    assert re.match(hint, found.hint)
    after = keep_checkpoint(store, "small")
    assert f"there is epoch {after}" in build("new", more=10).verify(store).hint
    with pytest.raises(UsageError, match=r"the checkpoint of epoch 1 has state of another plan"):
        build("new").verify(store, since=epoch)
    forget_checkpoints(store, "small", [epoch, after])
    build("last").migrate(store, rename={"new": "last"})
    topics = [topic.name for topic in store.topics(internal=True) if "@state" in topic.name]
    assert ["@state/small/last"] == topics


@pytest.mark.usefixtures("small_sweeps")
def test_state_of_an_operator_that_went_and_came_back_is_kept(store: Store) -> None:
    def build(*, counting: bool) -> Pipeline:
        pipeline = Pipeline("small")
        keyed = pipeline.source("orders", time="t").key_by("k")
        keyed.to("copies")
        if counting:
            keyed.count(name="n").to("counts")
        return pipeline

    def feed(first: int, last: int, *, counting: bool) -> None:
        rows = [b'{"k":"k%d","t":%d}' % (number % 3, number) for number in range(first, last)]
        store.append_many("orders", rows, partition=0)
        build(counting=counting).run(store, until="end", epoch_ms=0, batch_records=1)

    feed(0, 6, counting=True)
    epoch, before = keep_checkpoint(store, "small"), build(counting=True).query(store, "n")
    assert [2, 2, 2] == [item.value[0] for item in before]
    build(counting=False).migrate(store, drop=["n"])
    feed(6, 9, counting=False)
    feed(9, 60, counting=True)
    assert store.offsets("@state/small/n")[0].end > 60
    assert before == build(counting=True).query(store, "n", epoch=epoch)
    assert [17, 17, 17] == [item.value[0] for item in build(counting=True).query(store, "n")]


def test_state_that_was_deleted_is_said_to_be(store: Store) -> None:
    pipeline = Pipeline("small")
    pipeline.source("orders", time="t").key_by("k").count().to("counts")
    store.append("orders", b'{"k":"a","t":1}', partition=0)
    pipeline.run(store, until="end")
    epoch = keep_checkpoint(store, "small")
    store.delete_topic("@state/small/orders.count")
    with pytest.raises(DataError, match=r"the state of 'orders.count' as of epoch 1 was deleted"):
        pipeline.verify(store, since=epoch)


def test_without_the_beginning_a_checkpoint_says_where_to_start(
    store: Store, clock: ManualClock
) -> None:
    live(store, clock, 10, 1, keep_every=100, keep_count=2)
    live(store, clock, 5, 2)
    kept = list_checkpoints(store, "shop")[0]
    store.trim("refunds", {0: kept.positions[millstream.TopicPartition("refunds", 0)]})
    with pytest.raises(millstream.OffsetOutOfRangeError, match=rf"epoch {kept.epoch}"):
        shop().verify(store)
    assert shop().verify(store, since=kept.epoch).ok
    assert shop().verify(store, start="-1").ok


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_sources_and_sinks_outside_are_verified_from_a_checkpoint(
    tmp_path: Path, state: Literal["memory", "sqlite"]
) -> None:
    """What was taken in is in the log; what waits for a sink is there until it is delivered."""
    collected: list[object] = []
    failing = [False]

    def deliver(record: millstream.Record) -> None:
        if failing[0]:
            raise RuntimeError("not now")
        collected.append(record.value)

    def build() -> Pipeline:
        pipeline = Pipeline("outside", state=state)
        files = pipeline.source(jsonl_files(f"{tmp_path}/*.jsonl", name="files"), time="t")
        rows = pipeline.source(sqlite_rows(f"{tmp_path}/app.db", "sales", by="id"), time="t")
        both = files.merge(rows).key_by("k")
        both.window(tumbling(50)).agg(n=agg.count()).to("windows")
        both.count().to(to_callable(deliver, name="there"), retry=millstream.processor.Retry(1))
        return pipeline

    def grow(first: int, last: int) -> None:
        with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as database:
            database.execute("CREATE TABLE IF NOT EXISTS sales (id INTEGER PRIMARY KEY, k, t INT)")
            for number in range(first, last):
                database.execute("INSERT INTO sales (k, t) VALUES ('a', ?)", (number * 10,))
        lines = [json.dumps({"k": "b", "t": number * 10}) + "\n" for number in range(first, last)]
        (tmp_path / f"{first:03}.jsonl").write_text("".join(lines))

    with millstream.open(tmp_path / "data") as store:
        grow(0, 20)
        build().run(store, until="end", keep_every=0, epoch_ms=0, batch_records=5)
        grow(20, 40)
        failing[0] = True
        with pytest.raises(millstream.MillstreamError):
            build().run(store, until="end")
        whole = build().verify(store)
        assert whole.ok
        (there,) = whole.sinks
        assert "what it was given cannot be read back" == there.skipped
        assert 0 < there.records_compared < 80  # those that wait
        for each in list_checkpoints(store, "outside")[:-1]:
            found = build().verify(store, since=each.epoch)
            assert [] == found.differences
        assert [] == found.skipped
        failing[0] = False
        build().run(store, until="end")
    assert 80 == len(collected)


def test_a_kept_list_is_read_in_its_version_alone(store: Store) -> None:
    kept = [Kept(5, by_hand=True, data=b"abc")]
    stored = bytes.fromhex(
        "01 91 83 a5 61745f6d73 05 a7 62795f68616e64 c3 a4 64617461 c4 03 616263"
    )
    assert stored == encode_kept(kept)
    with store.own(checkpoint_name("p")) as owner, store.transaction(owner=owner) as txn:
        txn.put_checkpoint("kept/p", stored)
    assert kept == read_kept(store, "p")
    for broken, kind in ((b"\x02", FormatVersionError), (b"\x01\xc1", DataError)):
        with store.own(checkpoint_name("p")) as owner, store.transaction(owner=owner) as txn:
            txn.put_checkpoint("kept/p", broken)
        with pytest.raises(kind, match="kept checkpoints of 'p'"):
            read_kept(store, "p")
