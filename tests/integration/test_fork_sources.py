"""Forks of pipelines that take in files and tables: they go on where the original stood."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from simulated_stores import abandon, open_quietly

import millstream
from millstream import Store, UsageError
from millstream.processor import (
    Pipeline,
    SourceBatch,
    agg,
    compare_fork,
    fork,
    from_iterable,
    jsonl_files,
    sqlite_rows,
    tumbling,
)
from millstream.processor.ingest import Ingestor
from millstream.processor.state_log import read_checkpoint
from millstream.processor.state_view import state_as_of
from millstream.testing import MemoryStorage, crash_cases

Written = list[tuple[int, bytes | None, bytes | None]]


class World:
    """A directory of files and a database that grow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self._database()) as database:
            database.execute("CREATE TABLE payments (id INTEGER PRIMARY KEY, k TEXT, t INT, x INT)")

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path / "app.db", isolation_level=None)

    def grow(self, first: int, last: int) -> None:
        """Rows of these numbers: those in files, in the table, or neither."""
        with closing(self._database()) as database:
            for number in range(first, last):
                row = f"k{number % 3}", number * 10, number
                if number % 2:
                    database.execute("INSERT INTO payments (k, t, x) VALUES (?, ?, ?)", row)
                else:
                    with (self.path / f"in-{number // 20:03}.jsonl").open("a") as file:
                        file.write(json.dumps(dict(zip("ktx", row, strict=True))) + "\n")

    def pipeline(self, name: str, factor: int = 1) -> Pipeline:
        """Files and table merged, and a topic of the store beside them."""
        pipeline = Pipeline(name)
        files = pipeline.source(jsonl_files(f"{self.path}/in-*.jsonl", name="files"), time="t")
        table = pipeline.source(sqlite_rows(f"{self.path}/app.db", "payments", by="id"), time="t")
        topic = pipeline.source("orders", time="t")
        both = files.merge(table).map(lambda row: row | {"x": row["x"] * factor}).key_by("k")
        windows = both.window(tumbling(70)).agg(n=agg.count(), x=agg.sum("x"))
        windows.to(f"{name}.windows")
        every = both.merge(topic.key_by("k"))
        every.count().to(f"{name}.counts")
        return pipeline

    def ingest(self, store: Store, pipeline: Pipeline) -> int:
        """Take in what there is, as a run does that dies before it has processed it."""
        taken = 0
        for node in pipeline.plan.sources():
            if node.source is not None:
                with Ingestor(store, pipeline.name, node.source) as ingestor:
                    taken += ingestor.drain()
        return taken


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open(":memory:") as opened:
        opened.create_topic("orders")
        yield opened


def line(number: int) -> bytes:
    return b'{"k":"k","t":%d,"x":%d}' % (number, number)


def written(store: Store, topic: str, start: int = 0) -> Written:
    return [(each.timestamp_ms, each.key, each.value) for each in store.read(topic, start)]


def ends(store: Store) -> dict[str, int]:
    return {topic: store.offsets(topic)[0].end for topic in ("shop.windows", "shop.counts")}


def test_a_fork_goes_on_taking_in_where_the_original_stood(store: Store, world: World) -> None:
    store.append_many("orders", [b'{"k":"k1","t":5}', b'{"k":"k2","t":6}'])
    world.grow(0, 50)
    world.pipeline("shop").run(store, until="end", epoch_ms=0)
    fork(store, "shop", "trial")
    marks = ends(store)
    world.grow(50, 90)
    store.append("orders", b'{"k":"k1","t":900}')
    for name in ("shop", "trial"):
        world.pipeline(name).run(store, until="end", epoch_ms=0)

    for topic, mark in marks.items():
        new = written(store, topic, mark)
        assert len(new) >= 15
        assert new == written(store, topic.replace("shop", "trial"))
    assert 40 == sum(
        store.offsets(f"@source/trial/{each}")[0].end for each in ("files", "payments")
    )


def test_what_was_taken_in_and_not_processed_comes_to_the_fork(store: Store, world: World) -> None:
    shop = world.pipeline("shop")
    world.grow(0, 30)
    shop.run(store, until="end")
    world.grow(30, 60)
    assert 30 == world.ingest(store, shop)
    fork(store, "shop", "trial")
    marks = ends(store)
    world.grow(60, 80)
    for name in ("shop", "trial"):
        world.pipeline(name).run(store, until="end")

    for topic, mark in marks.items():
        new = written(store, topic, mark)
        assert new
        assert new == written(store, topic.replace("shop", "trial"))
    lag = {(each.topic, each.lag) for each in store.group_lag("trial")}
    assert {("@source/trial/files", 0), ("@source/trial/payments", 0), ("orders", 0)} == lag


def test_a_pipeline_that_never_pauses_can_be_forked(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state takes longer to read than its epochs take: some are committed meanwhile."""
    reads = 0

    def pipeline(name: str) -> Pipeline:
        made = Pipeline(name)
        files = made.source(jsonl_files(f"{world.path}/in-*.jsonl", name="files"), time="t")
        keyed = files.merge(made.source("orders", time="t")).key_by("x")
        keyed.agg(n=agg.count()).to(f"{name}.out")
        return made

    def go_on(*names: str) -> None:
        store.append_many("orders", [line(number) for number in range(300)])
        for name in names:
            pipeline(name).run(store, until="end", epoch_ms=0, batch_records=100)

    def read_slowly(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        assert reads < 5, "the state is read again and again"
        items = state_as_of(*arguments)
        go_on("shop")
        return items

    world.grow(0, 20)
    go_on("shop")
    before = read_checkpoint(store, "shop").epoch
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[fork.__module__], "state_as_of", read_slowly)
        fork(store, "shop", "trial")
    assert reads > 0
    assert before <= read_checkpoint(store, "trial").epoch < read_checkpoint(store, "shop").epoch
    go_on("shop", "trial")
    found = compare_fork(store, "trial", {"shop.out": "trial.out"})
    assert found.ok, found.differences
    assert found.records_compared > 0


def test_replays_start_from_the_fork_and_compare(store: Store, world: World) -> None:
    world.grow(0, 40)
    world.pipeline("shop").run(store, until="end")
    fork(store, "shop", "point")
    fork(store, "shop", "trial")
    fork(store, "trial", "trial-point")
    world.grow(40, 80)
    for name, factor in (("shop", 1), ("trial", 10)):
        world.pipeline(name, factor).run(store, until="end")

    original = world.pipeline("shop").verify(store, since="point")
    assert (True, 40) == (original.ok, original.records_in)
    trial = world.pipeline("trial", 10).verify(store, since="trial-point")
    assert (True, 40) == (trial.ok, trial.records_in)
    other = world.pipeline("trial").verify(store, since="trial-point")
    assert ["trial.windows"] == [each.topic for each in other.differences]
    assert world.pipeline("shop").verify(store).ok


def test_what_a_fork_writes_is_compared_with_the_original(store: Store, world: World) -> None:
    topics = {f"shop.{each}": f"trial.{each}" for each in ("windows", "counts")}
    world.grow(0, 40)
    world.pipeline("shop").run(store, until="end")
    fork(store, "shop", "trial")
    fork(store, "shop", "changed")
    world.grow(40, 80)
    for name, factor in (("shop", 1), ("trial", 1), ("changed", 10)):
        world.pipeline(name, factor).run(store, until="end")
    found = compare_fork(store, "trial", topics)
    assert (True, "shop") == (found.ok, found.pipeline)
    written = sum(store.offsets(topic)[0].end for topic in topics.values())
    assert written == found.records_compared > 40

    (difference,) = compare_fork(
        store, "changed", {topic: topic.replace("shop", "changed") for topic in topics}
    ).differences
    assert ("shop.windows", "changed.windows") == (difference.topic, difference.copy)
    assert "the original has Record(" in str(difference)

    store.append("trial.counts", b"more")
    world.grow(80, 100)
    world.pipeline("shop").run(store, until="end")
    first, second = map(str, compare_fork(store, "trial", topics).differences)
    assert "shop.windows/0: only the original has" in first
    assert "shop.counts/0: the original has" in second
    with pytest.raises(UsageError, match="there is no fork 'shop' here"):
        compare_fork(store, "shop", topics)
    store.create_topic("wide", partitions=2)
    with pytest.raises(UsageError, match=r"'shop\.counts' has 1 partitions, 'wide' 2"):
        compare_fork(store, "trial", {"shop.counts": "wide"})


def test_a_fork_of_a_fork_and_its_migration_know_no_strangers(store: Store, world: World) -> None:
    world.grow(0, 20)
    world.pipeline("shop").run(store, until="end")
    fork(store, "shop", "one")
    fork(store, "one", "two")
    assert {"@source/two/files", "@source/two/payments", "orders"} == {
        each.topic for each in store.group_lag("two")
    }
    assert () == world.pipeline("two").migrate(store, dry_run=True).left_inputs
    world.grow(20, 40)
    world.pipeline("two").run(store, until="end")
    assert 20 == sum(store.offsets(f"@source/two/{each}")[0].end for each in ("files", "payments"))


def test_sources_of_many_partitions_and_topics_left_by_others(store: Store) -> None:
    class Wide:
        name = "wide"
        topic_partitions = 2

        def __init__(self, count: int) -> None:
            self.count = count

        def partitions(self) -> list[str]:
            return ["left/a", "right/a"]

        def open(self, partition: str, position: Any) -> Iterator[SourceBatch]:
            for number in range(position or 0, self.count):
                value = b'{"p":"%s","n":%d}' % (partition.encode(), number)
                yield SourceBatch([value], number + 1)

    def pipeline(name: str, count: int) -> Pipeline:
        made = Pipeline(name)
        made.source(Wide(count), time="n").key_by("p").count().to(f"{name}.counts")
        return made

    pipeline("p", 3).run(store, until="end")
    store.create_topic("@source/q/wide")
    with pytest.raises(UsageError, match="is left of another pipeline and has 1 partitions"):
        fork(store, "p", "q")
    fork(store, "p", "r")
    for name in ("p", "r"):
        pipeline(name, 5).run(store, until="end")
    assert written(store, "p.counts", 6) == written(store, "r.counts")
    assert 4 == len(written(store, "r.counts"))


@pytest.mark.crash
def test_a_power_failure_in_a_fork_leaves_nothing_or_all_of_it() -> None:
    def pipeline(name: str, count: int) -> Pipeline:
        made = Pipeline(name)
        rows = [{"k": "ab"[number % 2], "n": number} for number in range(count)]
        made.source(from_iterable(rows, name="rows")).key_by("k").count().to(f"{name}.counts")
        return made

    before = MemoryStorage()
    with open_quietly(before) as store:
        pipeline("p", 4).run(store, until="end")
        (node,) = pipeline("p", 7).plan.sources()
        assert node.source is not None
        with Ingestor(store, "p", node.source) as ingestor:
            assert 3 == ingestor.drain()

    def start() -> MemoryStorage:
        return before.crash(keep="all")

    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            fork(store, "p", "q")
        finally:
            abandon(store) if storage.is_dead else store.close()

    seen = set()
    for case in crash_cases(work, start=start, seeds=(1,)):
        with open_quietly(case.storage) as store:
            there = store.checkpoint("pipeline/q") is not None
            seen.add(there)
            assert there == bool(store.checkpoint_names("source/q/")), case
            if not there:
                fork(store, "p", "q")
            for name in ("p", "q"):
                pipeline(name, 9).run(store, until="end")
            assert 5 == len(written(store, "q.counts")), case
            assert written(store, "p.counts", 4) == written(store, "q.counts"), case
    assert {True, False} == seen
