"""chain_file.py: an opening reads few headers, and decides as if it had read all of them."""

from __future__ import annotations

import pytest
from simulated_stores import abandon, log_of, open_quietly

from millstream import segment_list
from millstream.chain_file import CHAIN_NAME, chain_path, forget_chain, known_segments
from millstream.errors import CorruptSegmentError, DataError
from millstream.retention import SegmentInfo
from millstream.segment import segment_path
from millstream.storage import Storage
from millstream.testing import MemoryStorage

DIRECTORY = "topics/t/0"
SEGMENTS = 20


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written for a few segments already."""
    monkeypatch.setattr(segment_list, "UNSAVED_MIN", 1)


def filled() -> MemoryStorage:
    storage = MemoryStorage()
    with open_quietly(storage) as store:
        store.create_topic("t", compact=True)
        for number in range(SEGMENTS):
            store.append("t", b"%d" % number, key=b"%d" % (number % 7))
            store.roll("t", 0)
    return storage


def names(storage: MemoryStorage) -> list[str]:
    return storage.list(DIRECTORY)


def infos(storage: MemoryStorage, *, read_only: bool = False) -> list[SegmentInfo]:
    with open_quietly(storage, read_only=read_only) as store:
        return store.segments("t", 0)


def bases(storage: MemoryStorage) -> list[int]:
    with open_quietly(storage, read_only=True) as store:
        return log_of(store).files.bases()


def headers_say(storage: MemoryStorage) -> list[SegmentInfo]:
    """What is known of the segments without a chain file, which is back afterwards."""
    storage.rename(chain_path(DIRECTORY), "aside")
    found = infos(storage, read_only=True)
    storage.rename("aside", chain_path(DIRECTORY))
    return found


def damage(storage: MemoryStorage, path: str, position: int) -> None:
    file = storage.open(path, "rw")
    try:
        (byte,) = file.read(1, position)
        file.write([bytes([byte ^ 1])], position)
    finally:
        file.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_headers_it_vouches_for_are_not_read(read_only: bool) -> None:
    storage = filled()
    expected = headers_say(storage)
    for base in range(3):  # what nobody looks at may as well be unreadable
        damage(storage, segment_path(DIRECTORY, base), 10)
    assert expected == infos(storage, read_only=read_only)
    with open_quietly(storage, read_only=True) as store:
        with pytest.raises(DataError):
            list(store.read("t", start=0))
        assert not store.verify().ok


def test_a_segment_that_is_missing_is_found_by_its_name() -> None:
    storage = filled()
    storage.remove(segment_path(DIRECTORY, 3))
    with open_quietly(storage) as store, pytest.raises(CorruptSegmentError) as caught:
        store.offsets("t")
    assert caught.value.topic == "t"


def test_any_flipped_bit_or_cut_makes_it_useless_and_nothing_else() -> None:
    storage = filled()
    path, expected, all_bases = chain_path(DIRECTORY), headers_say(storage), bases(storage)
    known = known_segments(storage, DIRECTORY, all_bases)
    assert known == expected[: len(known)]
    assert len(known) > SEGMENTS // 2
    for position in range(storage.size(path)):
        damage(storage, path, position)
        assert [] == known_segments(storage, DIRECTORY, all_bases)
        damage(storage, path, position)
    assert known == known_segments(storage, DIRECTORY, all_bases)
    damage(storage, path, 70)
    assert expected == infos(storage, read_only=True)
    for size in reversed(range(storage.size(path))):
        file = storage.open(path, "rw")
        file.truncate(size)
        file.close()
        assert [] == known_segments(storage, DIRECTORY, all_bases)
    assert expected == infos(storage)


def test_of_another_partition_it_says_nothing() -> None:
    storage, other = filled(), filled()
    file = other.open(chain_path(DIRECTORY), "r")
    content = file.read(1 << 20, 0)
    file.close()
    file = storage.open(chain_path(DIRECTORY), "rw")
    file.write([content], 0)
    file.close()
    assert [] == known_segments(storage, DIRECTORY, bases(storage))
    assert headers_say(storage) == infos(storage)


def test_compaction_removes_it_for_good_before_a_segment_becomes_another() -> None:
    storage = filled()
    store = open_quietly(storage)
    begin = len(storage.trace)
    (result,) = store.compact("t")
    assert result.removed_records
    steps = storage.trace[begin:]
    removed = steps.index(("remove", chain_path(DIRECTORY)))
    synced = steps.index(("sync_directory", DIRECTORY), removed)
    renamed = next(
        number
        for number, (kind, path) in enumerate(steps)
        if (kind, "rewrite" in path) == ("rename", True)
    )
    assert removed < synced < renamed
    abandon(store)


def test_one_that_another_process_writes_meanwhile_is_removed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = filled()
    file = storage.open(chain_path(DIRECTORY), "r")
    content = file.read(file.size(), 0)
    file.close()
    left = [content]

    def forget_and_be_late(storage: Storage, directory: str) -> None:
        forget_chain(storage, directory)
        if left:  # who saves it had looked before, and gets the lock first
            file = storage.open(chain_path(directory), "x")
            file.write([left.pop()], 0)
            file.close()

    monkeypatch.setattr("millstream.swap.forget_chain", forget_and_be_late)
    store = open_quietly(storage)
    (result,) = store.compact("t")
    assert result.removed_records
    expected = store.segments("t", 0)
    abandon(store)

    assert not left
    assert CHAIN_NAME not in names(storage)
    assert expected == infos(storage, read_only=True)


def test_retention_leaves_it_in_use() -> None:
    storage = filled()
    with open_quietly(storage) as store:
        store.trim("t", {0: 8})
    assert CHAIN_NAME in names(storage)
    expected = headers_say(storage)
    assert 8 == expected[0].base_offset
    damage(storage, segment_path(DIRECTORY, 9), 10)
    assert expected == infos(storage)


def test_it_goes_with_its_topic_and_is_no_orphan() -> None:
    storage = filled()
    assert CHAIN_NAME in names(storage)
    with open_quietly(storage) as store:
        store.delete_topic("t")
    assert [] == names(storage)
