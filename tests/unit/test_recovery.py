"""What recovery decides: how far it looks, what it writes again, what it moves away.

Damage in all its forms is in tests/crash.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import replace

import pytest
from damaged_log import DIRECTORY, DamagedLog, prepare, quarantined, read_all, segments, using
from simulated_stores import abandon, log_of, open_quietly

from millstream import StorageError, Store, torn_tail
from millstream.batch import BatchPlacement, buffers, encode_batch, seal
from millstream.catalog_age import check_generation
from millstream.errors import CorruptBatchError, CorruptSegmentError, DataError
from millstream.recovery import Examination, examine
from millstream.segment_chain import PartitionFacts
from millstream.tail import COUNTER_BITS
from millstream.testing import FaultPlan, Keep, MemoryStorage, SimulatedCrash
from millstream.torn_tail import carry_out, rewrite_unsynced


def facts_of(log: DamagedLog, **changes: object) -> PartitionFacts:
    """What the store knows of the partition, with `changes`."""
    with using(log.copy().storage) as store:
        return replace(log_of(store).facts(), checkpoint=None, **changes)  # type: ignore[arg-type]  # fields of it


def test_recovery_starts_at_the_checkpoint_however_long_the_log() -> None:
    log = prepare(sealed=3, durable=20, unsynced=0)
    with open_quietly(log.storage) as store:
        log_of(store)
    with using(log.storage) as store:
        facts = log_of(store).facts()
        found = examine(log.storage, facts)
    assert facts.checkpoint is not None
    assert (0, []) == (found.scanned_bytes, found.unsynced)
    assert facts.checkpoint == found.end


def test_only_what_may_be_unsynced_is_verified_and_written_again() -> None:
    log = prepare(sealed=1, durable=2, unsynced=3)
    facts = facts_of(log, durable_offset=16)
    found = examine(log.storage, facts)
    assert [(8, log.places[4].position)] == found.unsynced

    storage = log.storage
    before = len(storage.trace)
    rewrite_unsynced(storage, facts, found)
    kinds = [kind for kind, _ in storage.trace[before:]]
    assert ["write", "sync"] == kinds


def test_very_many_segments_are_synced_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log = prepare(sealed=9, durable=2, unsynced=3)
    facts = facts_of(log, durable_offset=0)
    found = examine(log.storage, facts)
    assert 10 == len(found.unsynced)
    monkeypatch.setattr(torn_tail, "UNSYNCED_SEGMENTS_MANY", 10)
    before = len(log.storage.trace)
    rewrite_unsynced(log.storage, facts, found)
    paths = [path for kind, path in log.storage.trace[before:] if kind == "sync"]
    assert sorted({place.path for place in log.places}) == sorted(paths)

    log.storage.faults.fail_next("sync", errno.EIO)
    with pytest.raises(StorageError) as caught:
        rewrite_unsynced(log.storage, facts, found)
    assert errno.EIO == caught.value.errno


def test_nothing_is_written_where_all_is_durable() -> None:
    log = prepare(durable=3, unsynced=0)
    facts = facts_of(log, durable_offset=12)
    found = examine(log.storage, facts)
    before = len(log.storage.trace)
    carry_out(log.storage, facts, found)
    rewrite_unsynced(log.storage, facts, found)

    assert before == len(log.storage.trace)


def test_the_watermark_of_later_headers_counts() -> None:
    whole = prepare(durable=2, unsynced=1)
    log = whole.copy()
    log.overwrite(log.places[1].path, log.places[1].position, b"x")

    facts = facts_of(whole, durable_offset=0)
    with pytest.raises(CorruptBatchError, match="records up to 8 were durable"):
        examine(log.storage, facts)


def test_the_very_last_record_below_the_watermark_counts() -> None:
    whole = prepare(durable=2, unsynced=1)
    log = whole.copy()
    log.overwrite(log.places[-1].path, log.places[-1].position, b"x")
    first = log.places[-1].header.base_offset

    with pytest.raises(CorruptBatchError, match=f"records up to {first + 1} were durable"):
        examine(log.storage, facts_of(whole, durable_offset=first + 1))
    assert examine(log.storage, facts_of(whole, durable_offset=first)).tear is not None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"previous_hash": 1}, "does not link"),
        ({"sequence": 0}, "sequence of the batch does not rise"),
        ({"partition_uid": 1}, "another partition"),
        ({"base_offset": 99}, "found offset 99"),
        ({}, None),
    ],
    ids=["link", "sequence", "partition", "offset", "nothing"],
)
def test_a_whole_batch_that_cannot_follow_is_no_part_of_the_log(
    wrong: dict[str, int], reason: str | None
) -> None:
    """As one of an earlier life of the file, which is found again behind a torn write."""
    log = prepare(durable=2, unsynced=0)
    last = log.places[-1]
    facts = facts_of(log, durable_offset=last.header.next_offset)
    uid = int.from_bytes(log.read(log.active)[40:48], "little")
    fits = BatchPlacement(
        segment_uid=uid,
        partition_uid=last.header.partition_uid,
        base_offset=last.header.next_offset,
        append_timestamp_ms=last.header.append_timestamp_ms,
        previous_hash=last.header.header_hash,
        durable_offset=last.header.next_offset,
        sequence=last.header.sequence + 1,
        transaction_id=0,
        prior_max_timestamp_ms=last.header.prior_max_timestamp_ms,
    )
    encoded = encode_batch([b"old"])
    header, _ = seal(encoded, fits._replace(**wrong))
    log.overwrite(log.active, last.end, b"".join(buffers(encoded, header)))

    found = examine(log.storage, facts)

    assert (reason is None) == (found.tear is None)
    if found.tear is None:
        assert last.header.next_offset + 1 == found.end.next_offset
    else:
        assert reason is not None
        assert reason in found.tear.reason
        assert last.header.next_offset == found.end.next_offset


def test_a_log_that_ends_whole_but_before_the_watermark_is_refused() -> None:
    log = prepare(durable=2, unsynced=0)
    end = log.places[-1].header.next_offset
    facts = facts_of(log, durable_offset=end + 1)
    with pytest.raises(CorruptBatchError, match=f"the log ends at offset {end} but records up to"):
        examine(log.storage, facts)


def test_an_examination_changes_nothing() -> None:
    log = prepare(sealed=1)
    log.overwrite(log.active, log.places[-1].end, b"torn")
    facts = facts_of(log)
    before = len(log.storage.trace)
    found = examine(log.storage, facts)

    assert found.tear is not None
    assert before == len(log.storage.trace)


def test_a_repair_may_be_repeated() -> None:
    log = prepare(sealed=1)
    facts = facts_of(log)
    log.overwrite(log.active, log.places[-1].end, b"torn")
    torn = examine(log.storage, facts)
    for _ in range(2):
        carry_out(log.storage, facts, examine(log.storage, facts))
        found = examine(log.storage, facts)
        assert (None, torn.end) == (found.tear, found.end)
    names = [path.rpartition("/")[2] for path in quarantined(log.storage.crash())]
    assert [f"{8:020d}-{log.places[-1].end}.torn.0"] == names


def test_the_cut_of_a_torn_tail_is_durable_and_so_is_its_copy() -> None:
    log = prepare(sealed=1)
    end = log.places[-1].end
    log.overwrite(log.active, end, b"torn")
    storage = log.storage.crash(keep="all")  # the torn bytes are on the disk
    facts = facts_of(log)
    carry_out(storage, facts, examine(storage, facts))

    left = storage.crash(keep="none")
    assert end == left.size(log.active)
    assert [b"torn"] == list(quarantined(left).values())


@pytest.mark.parametrize("size", [6000, 5376], ids=["inside a batch", "between two"])
def test_later_segments_behind_a_tear_are_moved_away(size: int) -> None:
    """The sealed segment lost its end: what was written after it cannot be reached any more."""
    storage = MemoryStorage()
    store = open_quietly(storage, durability="os")
    store.create_topic("t")
    for value in (b"a" * 5000, b"b" * 5000):
        store.append("t", value)
    store.roll("t", 0)
    store.append("t", b"c")
    abandon(store)
    log = DamagedLog(storage, [[b"a" * 5000], [b"b" * 5000], [b"c"]], 0).copy()
    log.forget_words()
    log.cut(f"{DIRECTORY}/{0:020d}.segment", size)

    with using(log.storage) as again:
        assert [b"a" * 5000] == read_all(again)
        assert 1 == again.append("t", b"next").offset
    saved = sorted(path.rpartition("/")[2] for path in quarantined(log.storage.crash()))
    torn = [f"{0:020d}-5376.torn.0"] * (size > 5376)
    assert [*torn, f"{2:020d}.segment.0"] == saved


@pytest.mark.parametrize("keep", ["none", "all"])
def test_power_fails_at_each_step_while_later_segments_are_moved_away(keep: Keep) -> None:
    """Never a hole among them: that would be refused, though nothing durable is missing."""
    storage = MemoryStorage()
    store = open_quietly(storage, durability="os")
    store.create_topic("t")
    for value in (b"a", b"b" * 5000, b"c", b"d", b"e"):
        store.append("t", value)
        if value != b"a":
            store.roll("t", 0)
    abandon(store)
    whole = DamagedLog(storage, [], 0).copy()
    whole.forget_words()
    whole.cut(f"{DIRECTORY}/{0:020d}.segment", 4000)
    assert 5 == len(segments(whole.storage))
    for step in range(100):
        broken = whole.storage.crash(keep="all")
        broken.faults = FaultPlan(crash_at=len(broken.trace) + step)
        with contextlib.suppress(SimulatedCrash), using(broken) as store:
            read_all(store)
        finished = not broken.is_dead
        with using(broken.crash(keep=keep)) as store:
            assert [b"a"] == read_all(store)
        if finished:
            break
    assert step > 15


def test_temporary_files_of_an_interrupted_roll_are_swept() -> None:
    log = prepare()
    name = f"{DIRECTORY}/{12:020d}.segment.tmp"
    log.storage.open(name, "x").close()
    with using(log.storage) as store:
        assert log.records(3) == read_all(store)
        assert not log.storage.exists(name)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_a_log_written_in_a_generation_the_catalog_has_not_counted_is_refused(ahead: int) -> None:
    log = prepare()
    written = 1
    facts = facts_of(log)
    with pytest.raises(DataError, match=r"catalog\.db is older") as caught:
        examine(log.storage, replace(facts, check_sequence=counted(written - ahead)))
    assert (DIRECTORY, 12) == (caught.value.path, caught.value.offset)

    found = examine(log.storage, replace(facts, check_sequence=counted(written + 1)))
    assert written == generation_of(found)


def counted(generation: int) -> Callable[[int], None]:
    """Checks a sequence for a catalog that has counted so many generations."""
    return lambda sequence: check_generation(sequence, generation)


def generation_of(found: Examination) -> int:
    """The generation in which the last batch was written."""
    return found.end.sequence >> COUNTER_BITS


def test_a_partition_that_never_was_needs_no_files() -> None:
    storage = MemoryStorage()
    facts = PartitionFacts(DIRECTORY, "t", 0, 1, bytes(16), 0, 0, None)

    found = examine(storage, facts)

    assert ([], 0, 0) == (found.segments, found.end.next_offset, found.file_bytes)
    with pytest.raises(CorruptSegmentError, match="all segments are missing"):
        examine(storage, replace(facts, durable_offset=1))


def test_a_recovered_store_has_nothing_to_recover_again() -> None:
    log = prepare()
    log.overwrite(log.active, log.places[-1].end, b"torn")
    with open_quietly(log.storage) as store:
        assert log.records(3) == read_all(store)
    before = len(log.storage.trace)
    with open_quietly(log.storage) as store:
        log_of(store)
        kinds = {kind for kind, _ in log.storage.trace[before:]}
    assert {"catalog.commit"} == kinds
    assert isinstance(store, Store)
