"""What `verify` finds, what it calls it, and that it goes on behind it."""

from __future__ import annotations

import contextlib
import errno
import threading
from random import Random

import pytest
from damaged_log import DIRECTORY, DamagedLog, image, prepare, using
from simulated_stores import abandon, kill, log_of, open_quietly
from xxhash import xxh3_64_intdigest

from millstream import Store, StoreClosedError, VerifyFinding, VerifyReport
from millstream.clock import SystemClock
from millstream.segment import index_path
from millstream.testing import MemoryStorage


@pytest.fixture
def log() -> DamagedLog:
    """Two sealed segments of two batches of four records, an active one of two; closed."""
    log = prepare(sealed=2, durable=2, unsynced=0)
    with open_quietly(log.storage) as store:
        log_of(store)
    log.storage = log.storage.crash(keep="none")
    return log


def look(log: DamagedLog, *, deep: bool = False) -> VerifyReport:
    """Verify without being able to change anything."""
    before = image(log.storage)
    store = open_quietly(log.storage.read_only_view(), read_only=True)
    report = store.verify(deep=deep)
    abandon(store)
    assert before == image(log.storage)
    return report


def only(report: VerifyReport) -> VerifyFinding:
    (finding,) = report.findings
    return finding


def flip(log: DamagedLog, path: str, position: int) -> None:
    log.overwrite(path, position, bytes([log.read(path)[position] ^ 16]))


@pytest.mark.parametrize("deep", [True, False])
def test_a_whole_store_has_no_findings(log: DamagedLog, deep: bool) -> None:
    report = look(log, deep=deep)

    assert ([], []) == (report.findings, report.notes)
    assert report.ok
    assert (1, 3, 6, 24) == (report.partitions, report.segments, report.batches, report.records)
    assert sum(place.header.total_bytes for place in log.places) == report.data_bytes


@pytest.mark.parametrize("number", [1, 4])
def test_a_rotten_body_is_found_by_the_deep_check(log: DamagedLog, number: int) -> None:
    place = log.places[number]
    flip(log, place.path, place.body + 300)

    assert look(log).ok
    finding = only(look(log, deep=True))

    assert ("rotten", place.path, place.position) == (finding.kind, finding.path, finding.position)
    assert (place.header.base_offset, place.header.next_offset) == (
        finding.offset,
        finding.next_offset,
    )
    assert place.header.total_bytes == finding.size_bytes
    assert "section B" in finding.problem


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_a_rotten_header_hides_nothing_behind_it(log: DamagedLog, number: int) -> None:
    place = log.places[number]
    flip(log, place.path, place.position + 100)

    report = look(log)
    finding = only(report)

    assert ("rotten", place.path, place.position) == (finding.kind, finding.path, finding.position)
    assert (place.header.base_offset, place.header.next_offset) == (
        finding.offset,
        finding.next_offset,
    )
    assert 5 == report.batches


def test_two_bad_places_are_two_findings(log: DamagedLog) -> None:
    for number in (0, 3):
        flip(log, log.places[number].path, log.places[number].position)

    assert [0, 12] == [finding.offset for finding in look(log).findings]


def test_a_copy_of_its_own_segment_in_a_value_is_no_batch() -> None:
    """The header of the batch that holds the copy is damaged, so the copy is searched."""
    log = prepare(durable=2, unsynced=0)
    copy = log.read(log.active)[: log.places[-1].end]
    with open_quietly(log.storage) as store:
        position = log_of(store).end_locked().position
        store.append("t", copy)
        store.append("t", b"after")
    log.storage = log.storage.crash(keep="none")
    flip(log, log.active, position + 20)

    finding = only(look(log, deep=True))

    assert (position, 8, 9) == (finding.position, finding.offset, finding.next_offset)


def test_a_header_of_a_segment_names_what_cannot_be_read(log: DamagedLog) -> None:
    flip(log, log.places[2].path, 30)

    finding = only(look(log))

    assert ("header", log.places[2].path, 0) == (finding.kind, finding.path, finding.position)
    assert (8, 16) == (finding.offset, finding.next_offset)


@pytest.mark.parametrize("number", [0, 2])
def test_a_missing_segment_names_the_hole(log: DamagedLog, number: int) -> None:
    log.storage.remove(log.places[number].path)

    finding = only(look(log))

    assert ("missing", 4 * number) == (finding.kind, finding.offset)
    assert f"the records {4 * number} to {4 * number + 8} are missing" == finding.problem


def test_a_sealed_segment_that_was_cut_between_batches(log: DamagedLog) -> None:
    log.cut(log.places[0].path, log.places[0].end)

    finding = only(look(log))

    assert ("missing", 4) == (finding.kind, finding.offset)


def test_a_batch_that_was_never_written_there(log: DamagedLog) -> None:
    first, second = log.places[2:4]
    content = log.read(first.path)
    log.overwrite(
        first.path,
        first.position,
        content[second.position : second.end] + content[first.position : first.end],
    )

    kinds = {finding.kind for finding in look(log).findings}

    assert {"misplaced"} == kinds


def test_the_active_segment_is_shorter_than_what_was_durable(log: DamagedLog) -> None:
    log.cut(log.active, log.places[-1].position)

    finding = only(look(log))

    assert ("missing", 20, 24) == (finding.kind, finding.offset, finding.next_offset)


def test_all_segments_are_missing(log: DamagedLog) -> None:
    for path in {place.path for place in log.places}:
        log.storage.remove(path)

    assert "missing" == only(look(log)).kind


def test_a_damaged_index_is_a_note(log: DamagedLog) -> None:
    path = index_path(DIRECTORY, 0)
    with using(log.storage) as store:
        log_of(store).files.open_at(4)[0].close()
    flip(log, path, 70)

    report = look(log)

    assert report.ok
    assert [("index", path)] == [(note.kind, note.path) for note in report.notes]


def test_an_index_of_other_batches_is_damage(log: DamagedLog) -> None:
    """Its hash is right: it would be believed."""
    path = index_path(DIRECTORY, 0)
    with using(log.storage) as store:
        files = log_of(store).files
        file, segment = files.open(0)
        index = files._index(file, segment)
        file.close()
    index._positions[0] += 64
    log.cut(path, 0)
    log.overwrite(path, 0, index.encode(segment.segment_uid, log.places[1].end))

    assert ("misplaced", path) == (only(look(log)).kind, only(look(log)).path)


def test_a_torn_tail_is_a_note_for_those_who_may_only_look() -> None:
    log = prepare(durable=1, unsynced=1)
    log.cut(log.active, log.places[1].end - 100)

    report = look(log)

    assert report.ok
    (note,) = report.notes
    assert ("torn", log.active, log.places[1].position) == (note.kind, note.path, note.position)


def test_damage_that_recovery_refuses_is_looked_through() -> None:
    """The partition cannot be opened; everything in it is checked all the same."""
    log = prepare(sealed=1, durable=3, unsynced=1)
    flip(log, log.places[2].path, log.places[2].position + 20)
    flip(log, log.places[5].path, log.places[5].position + 20)

    report = look(log)

    assert (8, 12) == (only(report).offset, only(report).next_offset)
    assert [("torn", 20)] == [(note.kind, note.offset) for note in report.notes]
    assert 4 == report.batches


def test_a_newer_version_is_no_damage(log: DamagedLog) -> None:
    place = log.places[1]
    content = log.read(place.path)
    header = bytearray(content[place.position : place.body])
    header[4] = 2
    segment_uid = int.from_bytes(content[40:48], "little")
    header[184:] = xxh3_64_intdigest(header[:184], segment_uid).to_bytes(8, "little")
    log.overwrite(place.path, place.position, bytes(header))

    assert "newer" == only(look(log)).kind


def test_a_partition_that_cannot_be_read_does_not_end_it(log: DamagedLog) -> None:
    with contextlib.closing(open_quietly(log.storage)) as store:
        store.create_topic("u")
        store.append("u", b"fine")
        log_of(store)
        log.storage.faults.fail_next("read", errno.EIO)
        report = store.verify("t")
        assert ["unreadable"] == [finding.kind for finding in report.findings]
        assert store.verify("u").ok


# --- the catalog -------------------------------------------------------------------------------


def test_the_catalog_and_the_log_disagree_about_transactions() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t")
        for number in range(4):
            with store.transaction() as transaction:
                transaction.append("t", b"%d" % number)
        assert store.verify().ok
        database = store._engine.catalog.database
        with database.transaction("go back in time"):
            database.query("UPDATE owners SET decided = 2")
        finding = only(store.verify())
        assert ("catalog", "catalog.db") == (finding.kind, finding.path)
        assert "begin none after 3" in finding.problem
        with database.transaction("go back further"):
            database.query("DELETE FROM owners")
        assert "does not know that owner" in only(store.verify()).problem


def test_a_transaction_that_is_open_is_no_finding() -> None:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t")
        with store.transaction() as transaction:
            transaction.append("t", b"x")
            assert store.verify().ok
        other = open_quietly(storage)
        with contextlib.suppress(StoreClosedError), other.transaction() as transaction:
            transaction.append("t", b"never decided")
            kill(other)
        assert store.verify().ok


def test_broken_references_and_values_in_the_catalog(log: DamagedLog) -> None:
    with using(log.storage) as store:
        database = store._engine.catalog.database
        database.query("PRAGMA foreign_keys = OFF")
        with database.transaction("break it"):
            database.query("UPDATE store SET slots = 0")
            database.query("INSERT INTO aborted (owner_id, number) VALUES (77, 1)")
            database.query("DELETE FROM partitions")
            database.query("INSERT INTO partitions VALUES (1,1,5,9,0,0,0,0,0,0,0,0)")
            database.query("INSERT INTO partitions VALUES (1,2,6,9,0,0,0,0,0,0,0,0)")
        problems = {finding.problem for finding in store.verify().findings if not finding.topic}
    assert {
        "a row of table aborted refers to a row of owners that is missing",
        "topic 't' does not have its 1 partitions",
        "slot 5 was never given out",
        "slot 6 was never given out",
        "two partitions have the uid 9",
    } <= problems


def test_a_checkpoint_that_is_not_at_a_batch(log: DamagedLog) -> None:
    store = open_quietly(log.storage)
    log_of(store)
    database = store._engine.catalog.database
    with database.transaction("move it"):
        database.query(
            "UPDATE partitions SET position = ?, next_offset = 22", (log.places[4].position + 64,)
        )
    finding = next(each for each in store.verify().findings if each.kind == "catalog")
    assert log.places[4].position + 64 == finding.position
    abandon(store)


def test_a_group_ahead_of_the_log_is_a_note() -> None:
    """Mode `os`, and the machine died: the next writer skips what was seen."""
    log = prepare(durable=1, unsynced=1)
    with using(log.storage) as store:
        database = store._engine.catalog.database
        with database.transaction("commit"):
            database.query("INSERT INTO groups VALUES ('g')")
            database.query(
                "INSERT INTO group_partitions (group_name, topic_id, partition, committed_offset)"
                " VALUES ('g', 1, 0, 11)"
            )
    log.storage = log.storage.crash(keep="all")

    report = look(log)

    assert report.ok
    (note,) = report.notes
    assert "group 'g' has committed offset 11, but the log ends at 8" in note.problem


# --- beside writers ----------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_found_while_others_append_roll_and_remove() -> None:
    storage = MemoryStorage(crashable=False)
    clock = SystemClock()
    closing = contextlib.closing(open_quietly(storage, clock))
    with open_quietly(storage, clock) as store, closing as other:
        store.create_topic("t", segment_bytes="4KiB", retention_bytes="16KiB")
        stop = threading.Event()
        writer = threading.Thread(target=write, args=(other, stop))
        writer.start()
        try:
            onlooker = open_quietly(storage.read_only_view(), read_only=True)
            for number in range(60):
                for each in (store, onlooker):
                    report = each.verify(deep=bool(number % 2))
                    assert [] == report.findings
                    assert [] == report.notes
        finally:
            stop.set()
            writer.join()
        abandon(onlooker)
        assert report.partitions == 1


def write(store: Store, stop: threading.Event) -> None:
    random = Random(1)
    while not stop.is_set():
        store.append_many("t", [random.randbytes(random.randrange(900)) for _ in range(3)])
        if random.random() < 0.1:
            store.apply_retention()
