from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from millstream.catalog import Catalog
from millstream.clock import SystemClock
from millstream.config import TopicConfig
from millstream.database import Database
from millstream.errors import LockedError, UnknownTopicError, UsageError
from millstream.queue_catalog import (
    Counts,
    QueueCatalog,
    QueueRow,
    WorkerRow,
    refuse_live_workers,
    refuse_queue,
)
from millstream.queue_ranges import NOBODY, Fate, Range, Settlement, coalesced
from millstream.schema import SCHEMA

CLOCK = SystemClock()


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    catalog = Catalog("file:/queue-catalog-test?vfs=memdb", clock=CLOCK)
    yield catalog
    catalog.close()


@pytest.fixture
def queues(catalog: Catalog) -> QueueCatalog:
    return QueueCatalog(catalog)


@pytest.fixture
def queue(catalog: Catalog, queues: QueueCatalog) -> QueueRow:
    info = catalog.create_topic("jobs", 2, TopicConfig(), 0)
    return queues.create(QueueRow(0, "g", info.id, "jobs", 30_000, None, None), {0: 0, 1: 5})


def worker(queues: QueueCatalog, queue: QueueRow, lock: str = "locks/a") -> int:
    return queues.add_worker(queue, WorkerRow(0, lock, "host", 7, "test"))


def claim(
    queues: QueueCatalog, queue: QueueRow, worker_id: int, stop: int, lease_end_ms: int = 100
) -> Range:
    claimed = queues.claim_new(queue, 0, lambda start: stop, Fate(worker_id, lease_end_ms, 1))
    assert claimed is not None
    return claimed


def floor(catalog: Catalog, partition: int = 0) -> object:
    return catalog.database.query(
        "SELECT committed_offset FROM group_partitions WHERE partition = ?", (partition,)
    )[0][0]


def done(start: int, stop: int, deliveries: int = 1) -> Settlement:
    return Settlement(Range(0, start, stop, deliveries), None)


def rows(catalog: Catalog) -> list[object]:
    return list(
        catalog.database.query(
            "SELECT start_offset, stop_offset, deliveries, worker_id FROM queue_ranges"
        )
    )


def test_a_queue_begins_where_it_is_told_and_is_made_once(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    again = queues.create(queue._replace(id=0, max_deliveries=3, dead_letter="dead"), {0: 9, 1: 9})

    assert queue.id == again.id
    assert {0: 0, 1: 5} == queues.look(queue).next_offsets
    assert [again] == queues.listing() == queues.of_topic(queue.topic_id)
    assert (0, 5) == (floor(catalog, 0), floor(catalog, 1))


def test_one_row_is_kept_for_a_claim_however_it_is_settled_in_order(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    me = worker(queues, queue)
    assert Range(0, 0, 1000, 1) == claim(queues, queue, me, 1000)
    for start in range(0, 1000, 10):
        assert [(start, 1000, 1, me)] == rows(catalog)
        assert [] == queues.settle(queue, me, [done(start + n, start + n + 1) for n in range(10)])
    assert [] == rows(catalog)
    assert 1000 == floor(catalog)
    assert 1000 == catalog.committed_end(queue.topic_id, 0)


def test_what_is_settled_out_of_order_holds_the_floor_back(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    me = worker(queues, queue)
    claim(queues, queue, me, 10)

    assert [] == queues.settle(queue, me, [done(2, 4), done(6, 7)])
    assert [(0, 2, 1, me), (4, 6, 1, me), (7, 10, 1, me)] == rows(catalog)
    assert 0 == floor(catalog)
    assert [] == queues.settle(queue, me, [done(0, 2), done(4, 6)])
    assert 7 == floor(catalog)
    assert 10 == catalog.committed_end(queue.topic_id, 0), "claimed offsets are never given again"


def test_a_lease_that_is_lost_settles_nothing(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    slow, quick = worker(queues, queue), worker(queues, queue)
    claim(queues, queue, slow, 10)
    assert not queues.take_back(queue, 99, 5_000)
    assert queues.take_back(queue, 100, 5_000)
    waiting = queues.waiting(queue, 5_000, 10)
    assert [Range(0, 0, 10, 1)] == waiting
    assert [] == queues.waiting(queue, 4_999, 10)
    assert [Range(0, 0, 4, 2)] == queues.claim_again(queue, [(waiting[0], 4)], quick, 200)
    assert [] == queues.claim_again(queue, [(waiting[0], 4)], slow, 200), "it is not there any more"

    assert [Range(0, 0, 10, 1)] == queues.settle(queue, slow, [done(0, 10)])
    assert [Range(0, 0, 2, 1)] == queues.settle(queue, quick, [done(0, 2)]), "another delivery"
    assert [] == queues.settle(queue, quick, [done(0, 4, 2)])
    assert [(4, 10, 1, NOBODY)] == rows(catalog)
    assert 4 == floor(catalog)


def test_parts_of_what_is_settled_may_be_lost(
    queues: QueueCatalog, queue: QueueRow, catalog: Catalog
) -> None:
    me = worker(queues, queue)
    claim(queues, queue, me, 10)
    queues.settle(queue, me, [Settlement(Range(0, 3, 5, 1), Fate(NOBODY, 0, 1))])

    assert [Range(0, 3, 5, 1)] == queues.settle(queue, me, [done(0, 10)])
    assert [(3, 5, 1, NOBODY)] == rows(catalog)


def test_what_a_dead_worker_held_waits_at_once(queues: QueueCatalog, queue: QueueRow) -> None:
    dead, alive = worker(queues, queue, "locks/dead"), worker(queues, queue)
    claim(queues, queue, dead, 10)
    claim(queues, queue, alive, 20)

    assert queues.remove_workers(queue, [dead])
    assert not queues.remove_workers(queue, [dead])

    assert [Range(0, 0, 10, 1)] == queues.waiting(queue, 0, 10)
    assert [alive] == [each.id for each in queues.workers(queue)]
    assert [Counts(0, 20, 10, 10, 0), Counts(1, 5, 0, 0, 0)] == queues.counts(queue, 0)


def test_offsets_without_records_are_passed(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    claimed = queues.claim_new(queue, 0, lambda start: start + 7, Fate(NOBODY, 0, 0))

    assert Range(0, 0, 7, 0) == claimed
    assert [] == rows(catalog)
    assert 7 == floor(catalog)
    assert queues.claim_new(queue, 0, lambda start: start, Fate(1, 0, 1)) is None


def test_what_is_below_an_offset_is_skipped(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    me = worker(queues, queue)
    claim(queues, queue, me, 10)
    queues.settle(queue, me, [done(2, 4)])

    assert 4 == queues.forget_below(queue, 0, 6)
    assert (6, [(6, 10, 1, me)]) == (floor(catalog), rows(catalog))
    assert 9 == queues.forget_below(queue, 0, 15)
    assert (15, []) == (floor(catalog), rows(catalog))
    assert 0 == queues.forget_below(queue, 0, 15)


def test_what_is_done_can_be_delivered_again(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    me = worker(queues, queue)
    claim(queues, queue, me, 10)
    queues.settle(queue, me, [done(0, 8)])

    with catalog.database.transaction("test"):
        assert queues.write_again(queue, 0, 3)
        assert not queues.write_again(queue, 0, 3), "it waits"
        assert not queues.write_again(queue, 0, 9), "it is leased"
        assert not queues.write_again(queue, 0, 10), "it was never claimed"

    assert 3 == floor(catalog)
    assert [Range(0, 3, 4, 0)] == queues.waiting(queue, 0, 10)


def test_groups_of_consumers_and_of_queues_are_kept_apart(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    catalog.database.query("INSERT INTO groups (name) VALUES ('readers')")
    catalog.database.query(
        "INSERT INTO group_partitions (group_name, topic_id, partition) VALUES ('readers', 1, 0)"
    )
    with pytest.raises(UsageError, match="group of consumers"):
        queues.create(queue._replace(group="readers"), {0: 0})
    with pytest.raises(UsageError, match="group of a queue"):
        refuse_queue(catalog, "g")
    refuse_queue(catalog, "readers")
    refuse_live_workers(catalog, "g", "delete")
    worker(queues, queue)
    with pytest.raises(LockedError, match="'test' in process 7 on host"):
        refuse_live_workers(catalog, "g", "delete")


def test_a_queue_goes_with_its_topic(
    catalog: Catalog, queues: QueueCatalog, queue: QueueRow
) -> None:
    me = worker(queues, queue)
    claim(queues, queue, me, 10)
    catalog.delete_topic("jobs")

    assert [] == rows(catalog)
    for attempt in (
        lambda: queues.look(queue),
        lambda: queues.settle(queue, me, [done(0, 1)]),
        lambda: claim(queues, queue, me, 10),
        lambda: worker(queues, queue),
        lambda: queues.create(queue, {0: 0}),
    ):
        with pytest.raises(UnknownTopicError, match="deleted"):
            attempt()


def test_neighbours_are_joined_unless_they_differ() -> None:
    later, fate = Range(0, 2, 3, 1), Fate(NOBODY, 9, 1)
    settlements = [
        Settlement(later, None),
        done(0, 1),
        done(1, 2),
        done(3, 4, 2),
        Settlement(Range(0, 4, 5, 2), fate),
        Settlement(Range(0, 5, 6, 2), fate),
        Settlement(Range(1, 6, 7, 2), fate),
        done(8, 9),
    ]
    Random(1).shuffle(settlements)

    assert [
        done(0, 3),
        done(3, 4, 2),
        Settlement(Range(0, 4, 6, 2), fate),
        done(8, 9),
        Settlement(Range(1, 6, 7, 2), fate),
    ] == coalesced(settlements)


def test_a_catalog_of_the_first_version_gets_the_tables(tmp_path: Path) -> None:
    path = str(tmp_path / "catalog.db")
    old = Database(path, clock=CLOCK)
    old.query(SCHEMA)
    old.query("INSERT INTO store (id, uid, generation, slots) VALUES (1, x'00', 3, 0)")
    old.query("PRAGMA user_version = 1")

    reader = Catalog(path, clock=CLOCK, read_only=True)
    assert [] == QueueCatalog(reader).listing()
    assert 0 == reader.committed_end(1, 0)
    assert 1 == old.query("PRAGMA user_version")[0][0], "a reader changes nothing"
    upgraded = Catalog(path, clock=CLOCK)
    info = upgraded.create_topic("jobs", 1, TopicConfig(), 0)
    made = QueueCatalog(upgraded).create(QueueRow(0, "g", info.id, "jobs", 1, None, None), {0: 0})
    assert (3, [made]) == (upgraded.generation, QueueCatalog(upgraded).listing())
    for each in (old, reader, upgraded):
        each.close()
