"""Scenarios 26 to 35: whole files are missing, foreign, unreadable, or of another time.

On real directories where the operating system has a say. docs/robustness.md has the list.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import apsw
import pytest
from damaged_log import DIRECTORY, DamagedLog, assert_refused, image, prepare_cell, read_all, using
from simulated_stores import log_of, open_quietly

import millstream
from millstream import DataError, StorageError, Store, TopicPartition, repair
from millstream.errors import CorruptSegmentError
from millstream.testing import MemoryStorage

if TYPE_CHECKING:
    from matrix import Cell

T0 = TopicPartition("t", 0)


@pytest.fixture
def log(cell: Cell) -> DamagedLog:
    """A durable batch and one that is not, in one segment or behind two sealed ones."""
    return prepare_cell(cell, durable=1, unsynced=1)


@pytest.fixture
def store_path(tmp_path: Path, cell: Cell) -> Path:
    """A closed store with three times two records, in one segment or in three."""
    path = tmp_path / "store"
    with millstream.open(path) as store:
        store.create_topic("t", compression=cell.codec)
        for number in range(3):
            if number and cell.sealed:
                store.roll("t", 0)
            store.append_many("t", [b"%d" % number, b"x" * 5000])
    return path


def numbers(store: Store) -> list[bytes | None]:
    return [record.value for record in store.read("t") if record.value and len(record.value) < 9]


def content_of(path: Path) -> dict[str, bytes]:
    """Every segment, index and saved tail, by name."""
    files = (path / DIRECTORY).rglob("*.*")
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def segment(log: DamagedLog, number: int) -> str:
    return sorted({place.path for place in log.places})[number]


def remove(log: DamagedLog, path: str) -> None:
    log.storage.remove(path)
    log.storage.sync_directory(DIRECTORY)


# --- 26 to 29: the chain of segments -----------------------------------------------------------


@pytest.mark.cells(segments=3)
def test_scenario_26_a_segment_in_the_middle_is_missing(log: DamagedLog) -> None:
    remove(log, segment(log, 1))

    error = assert_refused(log, CorruptSegmentError, match="missing")

    assert (segment(log, 2), 8) == (error.path, 0 if error.offset is None else error.offset + 8)


@pytest.mark.cells(segments=3)
def test_scenario_27_the_first_segments_are_missing(log: DamagedLog) -> None:
    remove(log, segment(log, 0))

    error = assert_refused(log, CorruptSegmentError, match="no retention removed them")

    assert 0 == error.offset


@pytest.mark.cells(segments=3)
def test_scenario_27_retention_removed_the_first_segments(log: DamagedLog) -> None:
    with using(log.storage) as store:
        store.trim("t", {0: 8})
        assert segment(log, 0) not in image(log.storage)
    for _ in range(log.restarts):
        log.storage = log.storage.crash(keep="none")
        with using(log.storage) as store:
            assert log.records(6)[8:] == read_all(store)
            assert (8, 24) == store.offsets("t")[0]


@pytest.mark.cells(segments=3)
def test_scenario_27_a_segment_that_retention_removed_comes_back(log: DamagedLog) -> None:
    content = log.read(segment(log, 0))
    with using(log.storage) as store:
        store.trim("t", {0: 8})
    storage = log.storage.crash(keep="none")
    with contextlib.closing(storage.open(segment(log, 0), "x")) as file:
        file.write([content], 0)
    for _ in range(log.restarts):
        with using(storage) as store:
            assert log.records(6)[8:] == read_all(store)
        storage = storage.crash(keep="all")
        assert segment(log, 0) not in image(storage)


def test_scenario_27_all_segments_are_missing(log: DamagedLog) -> None:
    for path in sorted({place.path for place in log.places}):
        remove(log, path)

    assert_refused(log, CorruptSegmentError, match="all segments are missing")


@pytest.mark.cells(segments=3)
def test_scenario_28_segments_overlap(log: DamagedLog) -> None:
    with contextlib.closing(log.storage.open(segment(log, 1), "r")) as file:
        content = file.read(file.size(), 0)
    name = f"{DIRECTORY}/{4:020d}.segment"
    with contextlib.closing(log.storage.open(name, "x")) as file:
        file.write([content], 0)
        file.sync()
    log.storage.sync_directory(DIRECTORY)

    error = assert_refused(log, CorruptSegmentError)

    assert name == error.path


@pytest.mark.cells(segments=3)
@pytest.mark.parametrize("size", [0, 128])
@pytest.mark.parametrize("number", [0, 1])
def test_scenario_29_an_empty_segment_which_is_not_the_last(
    log: DamagedLog, size: int, number: int
) -> None:
    log.cut(segment(log, number), size)

    assert segment(log, number) == assert_refused(log, CorruptSegmentError).path


# --- 30: indexes -------------------------------------------------------------------------------

INDEXES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "not a stride": lambda content: content + b"1234567890",
    "header only": lambda content: content[:56],
    "garbage": lambda content: Random(1).randbytes(len(content)),
    "garbage of another size": lambda content: Random(1).randbytes(10_000),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.cells(segments=3)
@pytest.mark.parametrize("damage", INDEXES)
def test_scenario_30_an_index_is_damaged(store_path: Path, cell: Cell, damage: str) -> None:
    (path, _) = sorted((store_path / DIRECTORY).glob("*.index"))
    good = path.read_bytes()
    bad = INDEXES[damage](good)
    path.unlink() if bad is None else path.write_bytes(bad)

    for _ in range(cell.restarts):
        with millstream.open(store_path) as store:
            look_everywhere(store)
        assert good == path.read_bytes()


@pytest.mark.cells(segments=3)
@pytest.mark.parametrize("other", ["next", "foreign", "ahead"])
def test_scenario_30_an_index_of_something_else(
    store_path: Path, tmp_path: Path, cell: Cell, other: str
) -> None:
    path, following = sorted((store_path / DIRECTORY).glob("*.index"))
    good = path.read_bytes()
    if other == "next":
        shutil.copy(following, path)
    if other == "foreign":
        with millstream.open(tmp_path / "other") as store:
            store.create_topic("t", compression=cell.codec)
            store.append_many("t", [b"x"] * 2)
            store.roll("t", 0)
        shutil.copy(tmp_path / "other" / DIRECTORY / path.name, path)
    if other == "ahead":
        # An index that was written for more data than the segment holds now.
        with path.with_suffix(".segment").open("r+b") as file:
            file.truncate(path.with_suffix(".segment").stat().st_size - 64)
    for _ in range(cell.restarts):
        with millstream.open(store_path) as store:
            if other == "ahead":
                with pytest.raises(DataError):
                    list(store.read("t"))
            else:
                look_everywhere(store)
        assert good == path.read_bytes()


def look_everywhere(store: Store) -> None:
    """Seek to every offset, one after another with a new reader."""
    for offset in range(6):
        (record, *_) = store.read("t", start=offset)
        assert offset == record.offset
        assert offset % 2 or b"%d" % (offset // 2) == record.value


# --- 31 to 33: the directory -------------------------------------------------------------------

JUNK = (
    ".nfs000000000000123400000001",
    "00000000000000000007.segment~",
    "00000000000000000007.segment.swp",
    "0000000000000000000x.segment",
    "7.segment",
    "000000000000000000007.segment",
    "\u0660" * 20 + ".segment",
    "-0000000000000000007.segment",
    "copy of 00000000000000000000.segment",
    "notes.txt",
    "00000000000000000009.index",
)


def test_scenario_31_foreign_files_are_ignored(store_path: Path, cell: Cell) -> None:
    directory = store_path / DIRECTORY
    for name in JUNK:
        (directory / name).write_bytes(b"junk")
    (directory / "backup").mkdir()
    (directory / "backup" / f"{3:020d}.segment").write_bytes(b"junk")
    (store_path / "topics" / "not-a-topic").mkdir()
    (store_path / "topics" / "readme").write_bytes(b"junk")

    for restart in range(cell.restarts):
        with millstream.open(store_path) as store:
            assert [b"0", b"1", b"2", b"3"][: 3 + restart] == numbers(store)
            store.append("t", b"3")
            store.roll("t", 0)
            assert cell.segments + 1 + restart == len(store.segments("t", 0))
            assert ["t"] == [topic.name for topic in store.topics()]
    assert all((directory / name).read_bytes() == b"junk" for name in JUNK)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
@pytest.mark.parametrize("what", ["root", "partition", "active", "sealed"])
def test_scenario_32_no_permission(store_path: Path, what: str) -> None:
    paths = {
        "root": store_path,
        "partition": store_path / DIRECTORY,
        "active": max((store_path / DIRECTORY).glob("*.segment")),
        "sealed": store_path / DIRECTORY / f"{0:020d}.segment",
    }
    before = content_of(store_path)
    mode = paths[what].stat().st_mode
    paths[what].chmod(0o500 if paths[what].is_dir() else 0)
    try:
        with pytest.raises(StorageError) as caught:
            read_and_roll(store_path)
        assert caught.value.errno
        assert "permission" in str(caught.value).lower() or "denied" in str(caught.value)
    finally:
        paths[what].chmod(mode)
    assert before == content_of(store_path)
    with millstream.open(store_path) as store:
        assert [b"0", b"1", b"2"] == numbers(store)


def read_and_roll(path: Path) -> None:
    with millstream.open(path) as store:
        list(store.read("t"))
        store.roll("t", 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_scenario_32_a_segment_cannot_be_read(log: DamagedLog, cell: Cell, number: int) -> None:
    """As above, for those who may do everything: the device refuses."""
    before = image(log.storage)
    path = segment(log, number % cell.segments)
    for _ in range(cell.restarts):
        with using(Refusing(log.storage, path)) as store, pytest.raises(StorageError) as caught:
            read_all(store)
        assert path == caught.value.path
        assert before == image(log.storage)
        log.storage = log.storage.crash(keep="none")


class Refusing:
    """A storage that refuses to open one file."""

    def __init__(self, storage: MemoryStorage, path: str) -> None:
        self._storage = storage
        self._path = path

    def open(self, path: str, mode: str) -> object:
        if path == self._path:
            raise StorageError("permission denied", errno=13, path=path)
        return self._storage.open(path, mode)

    def __getattr__(self, name: str) -> object:
        return getattr(self._storage, name)


def test_scenario_33_the_root_is_a_link(store_path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(store_path)
    with millstream.open(link) as store, millstream.open(store_path) as direct:
        store.append("t", b"3")
        direct.append("t", b"4")
        assert [b"0", b"1", b"2", b"3", b"4"] == numbers(store) == numbers(direct)


def test_scenario_33_the_root_is_moved(store_path: Path, tmp_path: Path, cell: Cell) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    store_path.rename(moved)
    expected = [b"0", b"1", b"2"]
    for _ in range(cell.restarts):
        with millstream.open(moved) as store:
            store.append("t", b"3")
            expected.append(b"3")
            assert expected == numbers(store)


def test_scenario_33_a_store_and_its_copy_are_open_at_once(
    store_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store_path, copy)
    with millstream.open(store_path) as original, millstream.open(copy) as other:
        original.append("t", b"original")
        other.append("t", b"copy")
        assert [b"0", b"1", b"2", b"original"] == numbers(original)
        assert [b"0", b"1", b"2", b"copy"] == numbers(other)


def test_scenario_33_a_copy_of_a_store_in_use(store_path: Path, tmp_path: Path) -> None:
    """The words in the copy are those of the original; nothing in it is believed blindly."""
    copy = tmp_path / "copy"
    with millstream.open(store_path, durability="os") as original:
        original.append("t", b"3")
        shutil.copytree(store_path, copy)
        original.append("t", b"4")
        with millstream.open(copy) as other:
            other.append("t", b"copy")
            assert [b"0", b"1", b"2", b"3", b"copy"] == numbers(other)
        assert [b"0", b"1", b"2", b"3", b"4"] == numbers(original)


# --- 34: the catalog ---------------------------------------------------------------------------


def catalog_files(path: Path) -> list[Path]:
    return sorted(path.glob("catalog.db*"))


def test_scenario_34_the_catalog_is_missing(store_path: Path, cell: Cell) -> None:
    good = back_up(store_path)
    for file in catalog_files(store_path):
        file.unlink()
    before = content_of(store_path)

    for _ in range(cell.restarts):
        with pytest.raises(DataError, match=r"catalog\.db was missing") as caught:
            millstream.open(store_path)
        assert caught.value.path is not None

    assert before == content_of(store_path)
    restore(store_path, good)
    with millstream.open(store_path) as store:
        assert [b"0", b"1", b"2"] == numbers(store)


@pytest.mark.parametrize("damage", ["garbage", "cut", "header", "empty"])
def test_scenario_34_the_catalog_is_damaged(store_path: Path, cell: Cell, damage: str) -> None:
    catalog = store_path / "catalog.db"
    content = catalog.read_bytes()
    catalog.write_bytes(
        {
            "garbage": Random(1).randbytes(len(content)),
            "cut": content[: len(content) // 2],
            "header": b"x" * 100 + content[100:],
            "empty": b"",
        }[damage]
    )
    before = content_of(store_path)

    for _ in range(cell.restarts):
        with pytest.raises(DataError), millstream.open(store_path) as store:
            list(store.read("t"))

        assert before == content_of(store_path)


def back_up(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in catalog_files(path)}


def restore(path: Path, files: dict[str, bytes]) -> None:
    for file in catalog_files(path):
        file.unlink()
    for name, content in files.items():
        (path / name).write_bytes(content)


@pytest.mark.parametrize("lost_words", [False, True])
def test_scenario_34_the_catalog_is_older_than_the_log(
    store_path: Path, cell: Cell, lost_words: bool
) -> None:
    older = back_up(store_path)
    for value in (b"3", b"4"):
        with millstream.open(store_path) as store:
            store.append("t", value)
    restore(store_path, older)
    if lost_words:
        (store_path / "tail").unlink()
    before = content_of(store_path)

    # With each opening the catalog counts a generation, and so it comes to those it has lost.
    for _ in range(cell.restarts + 2):
        with (
            millstream.open(store_path) as store,
            pytest.raises(DataError, match=r"catalog\.db is older"),
        ):
            list(store.read("t"))

        assert before == content_of(store_path)
    with millstream.open(store_path, read_only=True) as store:
        assert "older than its log" in store.verify().findings[-1].problem
    repair(store_path)
    with millstream.open(store_path) as store:
        assert [b"0", b"1", b"2", b"3", b"4"] == numbers(store)
        assert store.verify().ok


def test_scenario_34_the_catalog_knows_nothing_of_a_topic_on_disk(store_path: Path) -> None:
    """It is from before the topic. What is there is not written over."""
    older = back_up(store_path)
    with millstream.open(store_path) as store:
        store.create_topic("u")
        store.append("u", b"old")
    restore(store_path, older)
    (records,) = (store_path / "topics/u").rglob("*.segment")
    before = records.read_bytes()

    with millstream.open(store_path) as store:
        with pytest.raises(DataError, match=r"catalog\.db is older"):
            store.create_topic("u")
        assert ["t"] == [topic.name for topic in store.topics()]

    assert before == records.read_bytes()


def test_scenario_34_a_crash_while_a_topic_is_deleted() -> None:
    """The catalog has forgotten it, the files are there: its name can be used again."""
    storage = MemoryStorage()
    store = open_quietly(storage)
    store.create_topic("t")
    store.append("t", b"old")
    storage.faults.fail_next("remove", errno.EIO)
    with pytest.raises(StorageError):
        store.delete_topic("t")
    assert storage.list("topics/t/0")
    store.close()

    with open_quietly(storage) as store:
        store.create_topic("t")
        store.append("t", b"new")
        assert [b"new"] == read_all(store)


def test_scenario_34_the_log_is_older_than_the_catalog(
    store_path: Path, tmp_path: Path, cell: Cell
) -> None:
    shutil.copytree(store_path / "topics", tmp_path / "topics")
    with millstream.open(store_path) as store:
        store.append("t", b"3")
    shutil.rmtree(store_path / "topics")
    shutil.copytree(tmp_path / "topics", store_path / "topics")
    before = content_of(store_path)

    for _ in range(cell.restarts):
        with millstream.open(store_path) as store, pytest.raises(DataError, match="durable"):
            list(store.read("t"))

        assert before == content_of(store_path)


# --- 35: the tail words ------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "short garbage", "ones"])
@pytest.mark.parametrize("closed", [True, False])
def test_scenario_35_the_tail_words_are_damaged(
    log: DamagedLog, tmp_path: Path, damage: str, closed: bool
) -> None:
    root = export(log, tmp_path / "store", closed=closed)
    tail = root / "tail"
    if damage == "missing":
        tail.unlink(missing_ok=True)
    else:
        size = 8 * (64 + 256 * 32)
        tail.write_bytes(
            {
                "empty": b"",
                "garbage": Random(1).randbytes(size),
                "short garbage": Random(1).randbytes(1001),
                "ones": b"\xff" * size,
            }[damage]
        )
    expected = log.records(len(log.places))
    for number in range(log.restarts):
        with millstream.open(root) as store:
            assert expected == read_all(store)
            assert len(expected) == store.append("t", b"%d" % number).offset
            expected.append(b"%d" % number)


@pytest.mark.parametrize("seed", range(3))
def test_scenario_35_words_that_say_almost_the_truth(
    log: DamagedLog, cell: Cell, seed: int
) -> None:
    """What a power failure may leave: some words of now, some of then, some of neither."""
    random = Random(f"{seed}/{cell}")
    with using(log.storage) as store:
        log_of(store)
        words = store._engine.tail.shared.view
        for index in range(len(words)):
            if words[index] and random.random() < 0.5:
                near = words[index] + random.choice((-1, 1, 64, 1 << 40))
                words[index] = random.choice((0, near % (1 << 62), random.getrandbits(62)))
    expected = log.records(len(log.places))
    for _ in range(log.restarts):
        log.storage = log.storage.crash(keep="all")
        with using(log.storage) as store:
            assert expected == read_all(store)
            assert len(expected) == store.append("t", b"next").offset
            expected.append(b"next")


def export(log: DamagedLog, root: Path, *, closed: bool) -> Path:
    """Write a simulated store to a real directory."""
    if closed:
        with open_quietly(log.storage) as store:
            log_of(store)
    with millstream.open(root) as store:
        store.create_topic("t")
    catalog = root / "catalog.db"
    for file in catalog_files(root):
        file.unlink()
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    source = apsw.Connection(log.storage.catalog_filename(), flags=flags)
    target = apsw.Connection(str(catalog))
    with target.backup("main", source, "main") as backup:
        backup.step()
    source.close()
    target.close()
    for path, content in image(log.storage).items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root
