"""What a simulated power failure may leave of files, names, words and the catalog, and what not."""

from __future__ import annotations

import contextlib
import errno
import itertools
import threading
from collections.abc import Iterator
from random import Random

import apsw
import pytest
from interrupted_calls import InterruptAt, ends

from millstream.errors import StorageError, UsageError
from millstream.testing import FaultPlan, MemoryStorage, SimulatedCrash

PAGE = 4096
SECTOR = 512
URI_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI


def put(storage: MemoryStorage, path: str, content: bytes, *, sync: bool = True) -> None:
    """Create or overwrite a file; if `sync`, durably, its name included."""
    with contextlib.closing(storage.open(path, "rw" if storage.exists(path) else "x")) as file:
        file.write([content], 0)
        if sync:
            file.sync()
            storage.sync_directory(path.rpartition("/")[0])


def get(storage: MemoryStorage, path: str) -> bytes | None:
    """Content of a file; None if there is none."""
    if not storage.exists(path):
        return None
    with contextlib.closing(storage.open(path, "r")) as file:
        return file.read(1 << 24, 0)


def outcomes(storage: MemoryStorage, seeds: int = 200) -> Iterator[MemoryStorage]:
    for seed in range(seeds):
        yield storage.crash(seed, "random")


def contents_after_crash(storage: MemoryStorage, *paths: str) -> set[tuple[bytes | None, ...]]:
    return {tuple(get(image, path) for path in paths) for image in outcomes(storage)}


# Content


def test_what_was_synced_survives_every_crash() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"synced" * 2000)
    assert contents_after_crash(storage, "f") == {(b"synced" * 2000,)}
    for keep in ("none", "all"):
        assert get(storage.crash(keep=keep), "f") == b"synced" * 2000


def test_none_keeps_only_what_was_synced_and_all_keeps_everything() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"0123456789")
    with contextlib.closing(storage.open("f", "rw")) as file:
        file.write([b"XX"], 3)
        file.write([b"YY"], 12)
        file.truncate(13)
    assert get(storage.crash(keep="none"), "f") == b"0123456789"
    assert get(storage.crash(keep="all"), "f") == b"012XX56789\0\0Y"


def test_a_sync_covers_only_its_own_file() -> None:
    storage = MemoryStorage()
    put(storage, "a", b"old")
    put(storage, "b", b"old")
    put(storage, "a", b"new", sync=False)
    put(storage, "b", b"new", sync=False)
    with contextlib.closing(storage.open("b", "rw")) as file:
        file.sync()
    image = storage.crash(keep="none")
    assert (get(image, "a"), get(image, "b")) == (b"old", b"new")


def test_unsynced_pages_survive_in_any_combination() -> None:
    """Not only a prefix: the disk may write the second page and lose the first."""
    storage = MemoryStorage()
    put(storage, "f", b"a" * PAGE * 2)
    put(storage, "f", b"b" * PAGE * 2, sync=False)
    images = {content for (content,) in contents_after_crash(storage, "f")}
    a, b = b"a" * PAGE, b"b" * PAGE
    assert {a + a, a + b, b + a, b + b} <= images


def test_files_lose_their_pages_independently() -> None:
    storage = MemoryStorage()
    for path in ("a", "b"):
        put(storage, path, b"old")
        put(storage, path, b"new", sync=False)
    assert contents_after_crash(storage, "a", "b") == {
        (first, second) for first in (b"old", b"new") for second in (b"old", b"new")
    }


def test_a_page_tears_at_sectors_and_nowhere_else() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"a" * PAGE)
    put(storage, "f", b"b" * PAGE, sync=False)
    torn = 0
    for (content,) in contents_after_crash(storage, "f"):
        assert content is not None
        sectors = [content[start : start + SECTOR] for start in range(0, PAGE, SECTOR)]
        assert all(sector in (b"a" * SECTOR, b"b" * SECTOR) for sector in sectors)
        torn += len(set(sectors)) == 2
    assert torn


def test_a_page_may_survive_as_it_was_between_two_writes() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"one")
    put(storage, "f", b"two", sync=False)
    put(storage, "f", b"six", sync=False)
    assert contents_after_crash(storage, "f") == {(b"one",), (b"two",), (b"six",)}


def test_size_and_content_survive_independently_of_each_other() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"")
    put(storage, "f", b"x" * 10, sync=False)
    assert contents_after_crash(storage, "f") == {(b"",), (b"\0" * 10,), (b"x" * 10,)}


def test_a_truncation_happens_or_not_but_never_destroys_what_it_left() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"x" * 3 * PAGE)
    with contextlib.closing(storage.open("f", "rw")) as file:
        file.truncate(100)
    assert contents_after_crash(storage, "f") == {(b"x" * 100,), (b"x" * 3 * PAGE,)}


def test_what_was_cut_does_not_come_back_when_the_file_grows_again() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"x" * 2 * PAGE)
    with contextlib.closing(storage.open("f", "rw")) as file:
        file.truncate(10)
        file.truncate(2 * PAGE)
    for (content,) in contents_after_crash(storage, "f"):
        assert content in (b"x" * 2 * PAGE, b"x" * 10, (b"x" * 10).ljust(2 * PAGE, b"\0"))


def _random_history(storage: MemoryStorage, random: Random) -> list[bytes]:
    """Change the file "f" at random; return each content it had from the last sync on."""
    put(storage, "f", random.randbytes(random.randrange(3 * PAGE)))
    versions = [get(storage, "f") or b""]
    with contextlib.closing(storage.open("f", "rw")) as file:
        for _ in range(random.randrange(12)):
            kind = random.choice(("write", "write", "append", "zeros", "truncate", "sync"))
            length = random.choice((1, 100, SECTOR, PAGE, 2 * PAGE))
            if kind == "write":
                file.write([random.randbytes(length)], random.randrange(4 * PAGE))
            elif kind == "append":
                file.write([random.randbytes(length)], file.size())
            elif kind == "zeros":
                file.write([bytes(length)], file.size())
            elif kind == "truncate":
                file.truncate(random.randrange(4 * PAGE))
            else:
                file.sync()
                versions.clear()
            versions.append(get(storage, "f") or b"")
    return versions


@pytest.mark.parametrize("seed", range(60))
def test_a_crash_leaves_no_sector_and_no_size_that_never_was(seed: int) -> None:
    """Against a model that keeps whole copies: each sector, and the size, from some version."""
    storage = MemoryStorage()
    versions = _random_history(storage, Random(seed))
    assert get(storage.crash(keep="none"), "f") == versions[0]
    assert get(storage.crash(keep="all"), "f") == versions[-1]
    longest = max(map(len, versions))
    padded = [version.ljust(longest, b"\0") for version in versions]
    for image in outcomes(storage, seeds=15):
        content = get(image, "f")
        assert content is not None
        assert len(content) in map(len, versions), f"seed {seed}"
        for start in range(0, len(content), SECTOR):
            stop = min(start + SECTOR, len(content))
            assert content[start:stop] in [version[start:stop] for version in padded], (
                f"seed {seed}, sector {start // SECTOR}"
            )


# A sync that fails


def test_a_failed_sync_loses_pages_that_a_second_sync_does_not_bring_back() -> None:
    """The reason to poison a partition: after EIO, success of a later sync means nothing."""
    storage = MemoryStorage(FaultPlan(fail={("sync", 1): errno.EIO}))
    put(storage, "f", b"old")
    with contextlib.closing(storage.open("f", "rw")) as file:
        file.write([b"new"], 0)
        with pytest.raises(StorageError) as caught:
            file.sync()
        assert (caught.value.errno, caught.value.path) == (errno.EIO, "f")
        file.sync()
        assert file.read(3, 0) == b"new"
        file.write([b"x" * PAGE], PAGE)
        file.sync()
    image = storage.crash(keep="none")
    assert get(image, "f") == b"old".ljust(PAGE, b"\0") + b"x" * PAGE
    assert contents_after_crash(storage, "f") == {
        (content.ljust(PAGE, b"\0") + b"x" * PAGE,) for content in (b"old", b"new")
    }
    assert (get(storage.crash(keep="all"), "f") or b"")[:3] == b"new"


def test_a_page_written_again_after_a_failed_sync_is_saved_by_the_next() -> None:
    storage = MemoryStorage(FaultPlan(fail={("sync", 0): errno.EIO}))
    with contextlib.closing(storage.open("f", "x")) as file:
        storage.sync_directory("")
        file.write([b"abc"], 0)
        with pytest.raises(StorageError):
            file.sync()
        file.write([b"d"], 3)
        file.sync()
    assert get(storage.crash(keep="none"), "f") == b"abcd"


# Names


def test_a_name_survives_only_once_its_directory_was_synced() -> None:
    storage = MemoryStorage()
    with contextlib.closing(storage.open("f", "x")) as file:
        file.write([b"abc"], 0)
        file.sync()
    assert get(storage.crash(keep="none"), "f") is None
    assert contents_after_crash(storage, "f") == {(None,), (b"abc",)}
    assert get(storage.crash(keep="all"), "f") == b"abc"


def test_an_unsynced_removal_may_be_undone() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"abc")
    storage.remove("f")
    assert get(storage.crash(keep="none"), "f") == b"abc"
    assert get(storage.crash(keep="all"), "f") is None
    assert contents_after_crash(storage, "f") == {(None,), (b"abc",)}


def test_an_unsynced_rename_may_be_undone_but_not_halved() -> None:
    storage = MemoryStorage()
    put(storage, "new", b"new")
    put(storage, "old", b"old")
    storage.rename("new", "old")
    assert contents_after_crash(storage, "new", "old") == {(b"new", b"old"), (None, b"new")}
    image = storage.crash(keep="none")
    assert (get(image, "new"), get(image, "old")) == (b"new", b"old")


def test_a_rename_without_a_sync_of_the_file_may_leave_it_empty() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"old")
    put(storage, "f.new", b"new", sync=False)
    storage.rename("f.new", "f")
    storage.sync_directory("")
    assert get(storage.crash(keep="none"), "f") == b""


def test_names_survive_in_any_order_that_was_possible() -> None:
    storage = MemoryStorage()
    for path in ("a", "b"):
        put(storage, path, b"1", sync=False)
    storage.rename("a", "c")
    seen = {tuple(image.list("")) for image in outcomes(storage)}
    assert seen == {(), ("a",), ("b",), ("c",), ("a", "b"), ("b", "c")}


def test_syncing_one_directory_leaves_the_others_unsynced() -> None:
    storage = MemoryStorage()
    storage.make_directory("a")
    storage.make_directory("b")
    put(storage, "a/f", b"1", sync=False)
    put(storage, "b/f", b"1", sync=False)
    storage.sync_directory("a")
    image = storage.crash(keep="none")
    assert (image.list("a"), image.list("b")) == (["f"], [])


def test_a_file_moved_between_directories_is_durable_once_either_was_synced() -> None:
    for synced in ("a", "b"):
        storage = MemoryStorage()
        storage.make_directory("a")
        storage.make_directory("b")
        put(storage, "a/f", b"1")
        storage.rename("a/f", "b/f")
        storage.sync_directory(synced)
        image = storage.crash(keep="none")
        assert (image.list("a"), image.list("b")) == ([], ["f"])


def test_directories_are_durable_when_made_and_lose_what_is_not() -> None:
    storage = MemoryStorage()
    storage.make_directory("a/b")
    put(storage, "a/b/f", b"1", sync=False)
    image = storage.crash(keep="none")
    assert (image.list(""), image.list("a"), image.list("a/b")) == (["a"], ["b"], [])


@pytest.mark.parametrize(("remade", "expected"), [(False, {(), ("f",)}), (True, {()})])
def test_a_removed_and_remade_directory_does_not_bring_old_files_back(
    remade: bool, expected: set[tuple[str, ...]]
) -> None:
    storage = MemoryStorage()
    storage.make_directory("a")
    put(storage, "a/f", b"1")
    storage.remove("a/f")
    storage.remove_directory("a")
    if remade:
        storage.make_directory("a")
    assert {tuple(image.list("a")) for image in outcomes(storage)} == expected


def _renamed_directory() -> MemoryStorage:
    storage = MemoryStorage()
    storage.make_directory("a/d")
    put(storage, "a/d/f", b"1")
    put(storage, "a/d/g", b"2", sync=False)
    storage.rename("a", "b")
    put(storage, "b/d/h", b"3", sync=False)
    return storage


def test_a_renamed_directory_keeps_its_files_wherever_it_ends_up() -> None:
    seen = set()
    for image in outcomes(_renamed_directory()):
        (top,) = image.list("")
        assert get(image, f"{top}/d/f") == b"1"
        seen.add((top, *image.list(f"{top}/d")))
    possible_in_b = {("f",), ("f", "g"), ("f", "h"), ("f", "g", "h")}
    assert seen == {("a", "f"), ("a", "f", "g")} | {("b", *names) for names in possible_in_b}


@pytest.mark.parametrize("parent_first", [False, True])
def test_a_sync_covers_names_made_before_their_directory_was_renamed(parent_first: bool) -> None:
    storage = _renamed_directory()
    if parent_first:
        storage.sync_directory("")
    storage.sync_directory("b/d")
    assert storage.crash(keep="none").list("b/d") == ["f", "g", "h"]


def test_a_directory_built_aside_and_renamed_loses_names_that_were_not_synced() -> None:
    storage = _renamed_directory()
    storage.sync_directory("")
    assert storage.crash(keep="none").list("b/d") == ["f"]


def test_a_file_renamed_in_a_renamed_directory_is_one_file_still() -> None:
    seen = set()
    for seed in range(200):
        storage = _renamed_directory()
        storage.rename("b/d/g", "b/d/i")
        image = storage.crash(seed, "random")
        (top,) = image.list("")
        seen.add((top, *image.list(f"{top}/d")))
        assert {"g", "i"} > {"g", "i"}.intersection(image.list(f"{top}/d"))
    assert ("b", "f", "i") in seen


def test_a_directory_made_in_a_renamed_one_is_durable() -> None:
    storage = MemoryStorage()
    storage.make_directory("a")
    storage.rename("a", "b")
    storage.make_directory("b/c")
    assert storage.crash(keep="none").list("b") == ["c"]


# Words, locks, catalog


def test_words_after_a_crash_are_old_or_new_or_mixed() -> None:
    storage = MemoryStorage()
    with contextlib.closing(storage.words("w", 4)) as words:
        storage.sync_directory("")
        for index in range(4):
            words.view[index] = index + 1

    def after(image: MemoryStorage) -> tuple[int, ...]:
        with contextlib.closing(image.words("w", 4)) as found:
            return tuple(found.view)

    assert after(storage.crash(keep="none")) == (0, 0, 0, 0)
    second = storage.crash(keep="all")
    assert after(second) == (1, 2, 3, 4)
    seen = {after(image) for image in outcomes(storage)}
    assert {(0, 0, 0, 0), (1, 2, 3, 4)} <= seen
    assert len(seen) > 5
    assert all(words[index] in (0, index + 1) for words in seen for index in range(4))
    with contextlib.closing(second.words("w", 4)) as words:
        words.view[0] = 9
    assert after(second.crash(keep="none")) == (1, 2, 3, 4)


def test_words_are_a_file_that_others_cannot_write() -> None:
    storage = MemoryStorage()
    with contextlib.closing(storage.words("w", 2)) as words:
        words.view[1] = 1
        assert get(storage, "w") == bytes(8) + b"\1" + bytes(7)
        with contextlib.closing(storage.open("w", "rw")) as file:
            assert file.size() == 16
            for call in (lambda: file.write([b"x"], 0), lambda: file.truncate(0)):
                with pytest.raises(StorageError, match="shared words"):
                    call()
            file.sync()
        with pytest.raises(StorageError, match="extend shared words"):
            words.grow(1 << 40)
    storage.sync_directory("")
    assert get(storage.crash(keep="none"), "w") == bytes(8) + b"\1" + bytes(7)


def test_nobody_holds_a_lock_after_a_crash() -> None:
    storage = MemoryStorage()
    lock = storage.lock("l")
    assert lock.try_acquire()
    with contextlib.closing(storage.crash().lock("l")) as again:
        assert again.try_acquire()
    lock.release()
    lock.close()


def test_who_waits_for_a_lock_dies_with_the_machine() -> None:
    storage = MemoryStorage()
    holder, waiting = storage.lock("l"), storage.lock("l")
    assert holder.try_acquire()
    ended: list[str] = []

    def wait() -> None:
        try:
            waiting.acquire()
        except SimulatedCrash:
            ended.append("crashed")

    waiter = threading.Thread(target=wait)
    waiter.start()
    storage.crash()
    waiter.join(10)
    assert ended == ["crashed"]
    holder.close()
    waiting.close()


def query(storage: MemoryStorage, *statements: str) -> list[object]:
    with contextlib.closing(
        apsw.Connection(storage.catalog_filename(), flags=URI_FLAGS)
    ) as connection:
        rows: list[object] = []
        for statement in statements:
            rows = [row[0] for row in connection.execute(statement)]
        return rows


def test_the_catalog_survives_a_crash_as_of_its_last_commit() -> None:
    storage = MemoryStorage()
    query(storage, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    first = storage.crash(keep="none")
    assert query(first, "SELECT x FROM t") == [1]
    query(first, "INSERT INTO t VALUES (2)")
    second = first.crash(keep="none")
    assert query(second, "SELECT x FROM t ORDER BY x") == [1, 2]
    assert query(second.crash(), "SELECT count(*) FROM t") == [2]
    assert first.machine.catalog_filename != second.machine.catalog_filename


def test_a_transaction_left_open_on_the_catalog_is_named_as_the_obstacle() -> None:
    storage = MemoryStorage()
    query(storage, "CREATE TABLE t (x)")
    with contextlib.closing(
        apsw.Connection(storage.catalog_filename(), flags=URI_FLAGS)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
        with pytest.raises(UsageError, match="a transaction is open"):
            storage.crash()
        connection.execute("ROLLBACK")
        assert query(storage.crash(), "SELECT x FROM t") == []


def test_a_bell_can_be_rung_wherever_the_wait_for_it_was_interrupted() -> None:
    storage = MemoryStorage()
    bell = storage.bell("b")
    for call in itertools.count(1):
        interrupt = InterruptAt(call)
        with contextlib.suppress(RuntimeError):  # what locks of Python make of it
            interrupt.run(lambda: bell.wait(0.001))
        assert ends(lambda: storage.ring("b"))
        if interrupt.remaining > 0:
            break
    assert call > 1
