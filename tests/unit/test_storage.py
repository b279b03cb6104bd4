"""The storage contract, on a directory and in memory."""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import apsw
import pytest

from millstream.errors import StorageError, StoreClosedError, UsageError
from millstream.storage import File, PosixStorage, Storage
from millstream.testing import MemoryStorage

URI_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI


@pytest.fixture(params=["directory", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage = (
        PosixStorage(tmp_path / "s") if request.param == "directory" else MemoryStorage()
    )
    with contextlib.closing(made):
        yield made


def read_only(storage: Storage) -> Storage:
    if isinstance(storage, MemoryStorage):
        return storage.read_only_view()
    return PosixStorage(storage.root, read_only=True)


def create(storage: Storage, path: str, content: bytes = b"") -> None:
    with contextlib.closing(storage.open(path, "x")) as file:
        file.write([content], 0)


def content_of(storage: Storage, path: str) -> bytes:
    with contextlib.closing(storage.open(path, "r")) as file:
        return file.read(1 << 20, 0)


@contextlib.contextmanager
def opened(storage: Storage, path: str) -> Iterator[File]:
    with contextlib.closing(storage.open(path, "x")) as file:
        yield file


# Files


def test_what_was_written_is_read_back_from_any_position(storage: Storage) -> None:
    with opened(storage, "f") as file:
        file.write([b"0123", b"456", b"789"], 0)
        file.write([b"XY"], 4)
        assert file.path == "f"
        assert file.read(10, 0) == b"0123XY6789"
        assert file.read(3, 5) == b"Y67"
        assert file.size() == storage.size("f") == 10


def test_a_read_is_short_only_at_the_end(storage: Storage) -> None:
    with opened(storage, "f") as file:
        file.write([b"0123456789"], 0)
        assert file.read(100, 8) == b"89"
        assert file.read(100, 10) == file.read(100, 1000) == file.read(0, 0) == b""


def test_a_gap_before_a_write_is_zeros(storage: Storage) -> None:
    with opened(storage, "f") as file:
        file.write([b"a"], 0)
        file.write([b"b"], 5)
        assert file.read(100, 0) == b"a\0\0\0\0b"


def test_more_buffers_than_one_system_call_takes_are_all_written(storage: Storage) -> None:
    buffers = [b"%d," % number for number in range(5000)]
    with opened(storage, "f") as file:
        file.write(buffers, 3)
        assert file.read(1 << 20, 3) == b"".join(buffers)


def test_buffers_of_other_types_are_written_by_their_bytes(storage: Storage) -> None:
    words = memoryview(bytearray(range(16))).cast("q")
    with opened(storage, "f") as file:
        file.write([bytearray(b"ab"), words, memoryview(b"cdef")[1:3]], 0)
        file.write([], 0)
        file.write([b"", b""], 100)
        assert file.read(100, 0) == b"ab" + bytes(range(16)) + b"de"


def test_truncate_cuts_and_extends_with_zeros(storage: Storage) -> None:
    with opened(storage, "f") as file:
        file.write([b"0123456789"], 0)
        file.truncate(4)
        assert file.read(100, 0) == b"0123"
        file.truncate(6)
        assert file.read(100, 0) == b"0123\0\0"
        file.sync()


@pytest.mark.parametrize(
    ("path", "mode", "expected"),
    [
        ("missing", "r", errno.ENOENT),
        ("missing", "rw", errno.ENOENT),
        ("present", "x", errno.EEXIST),
        ("directory", "x", errno.EEXIST),
        ("directory", "rw", errno.EISDIR),
        ("nowhere/f", "x", errno.ENOENT),
    ],
)
def test_open_refuses_with_the_errno_of_the_reason(
    storage: Storage, path: str, mode: str, expected: int
) -> None:
    create(storage, "present")
    storage.make_directory("directory")
    with pytest.raises(StorageError) as caught:
        storage.open(path, mode)  # type: ignore[arg-type]
    assert (caught.value.errno, caught.value.path) == (expected, path)
    assert storage.root in str(caught.value)


def test_a_file_opened_to_read_cannot_be_changed(storage: Storage) -> None:
    create(storage, "f", b"abc")
    with contextlib.closing(storage.open("f", "r")) as file:
        with pytest.raises(StorageError, match="cannot write") as caught:
            file.write([b"x"], 1)
        assert (caught.value.path, caught.value.position) == ("f", 1)
        with pytest.raises(StorageError, match="cannot truncate"):
            file.truncate(0)
    assert content_of(storage, "f") == b"abc"


def test_a_closed_file_refuses_and_closes_again(storage: Storage) -> None:
    file = storage.open("f", "x")
    file.close()
    file.close()
    calls: list[Callable[[], object]] = [
        lambda: file.read(1, 0),
        lambda: file.write([b"x"], 0),
        lambda: file.truncate(0),
        file.size,
        file.sync,
    ]
    for call in calls:
        with pytest.raises(StorageError, match="it is closed"):
            call()


def test_a_sync_can_be_started_early_and_changes_nothing_that_is_read(storage: Storage) -> None:
    content = Random(0).randbytes(3 << 20)
    with opened(storage, "f") as file:
        for start in range(0, len(content), 1 << 20):
            file.write([content[start : start + (1 << 20)]], start)
            file.start_sync(1 << 20, start)
        assert file.read(len(content), 0) == content
        file.sync()
    if isinstance(storage, MemoryStorage) or sys.platform == "linux":
        with pytest.raises(StorageError) as caught:
            file.start_sync(1 << 20, 0)
        assert caught.value.errno == errno.EBADF


def test_an_open_file_outlives_its_name(storage: Storage) -> None:
    with opened(storage, "f") as file:
        storage.rename("f", "g")
        file.write([b"abc"], 0)
        assert content_of(storage, "g") == b"abc"
        storage.remove("g")
        create(storage, "g", b"another")
        assert file.read(10, 0) == b"abc"


# Names


def test_list_is_sorted_and_empty_for_a_missing_directory(storage: Storage) -> None:
    assert storage.list("missing") == []
    storage.make_directory("d/e")
    for name in ("b", "a", "C"):
        create(storage, f"d/{name}")
    assert storage.list("d") == ["C", "a", "b", "e"]
    assert storage.list("") == ["d"]
    with pytest.raises(StorageError) as caught:
        storage.list("d/a")
    assert caught.value.errno == errno.ENOTDIR


def test_make_directory_makes_parents_and_does_not_mind_present_ones(storage: Storage) -> None:
    storage.make_directory("a/b/c")
    storage.make_directory("a/b/c")
    storage.make_directory("a/b/d")
    storage.make_directory("")
    assert storage.list("a/b") == ["c", "d"]
    assert storage.exists("a/b/c")
    assert not storage.exists("a/b/c/d")
    create(storage, "a/f")
    assert not storage.exists("a/f/g")
    with pytest.raises(StorageError) as caught:
        storage.make_directory("a/f")
    assert caught.value.errno == errno.EEXIST


def test_rename_replaces_a_file(storage: Storage) -> None:
    create(storage, "new", b"new")
    create(storage, "old", b"old")
    storage.rename("new", "old")
    assert storage.list("") == ["old"]
    assert content_of(storage, "old") == b"new"


def test_a_link_is_another_name_of_the_same_file(storage: Storage) -> None:
    create(storage, "a", b"1")
    storage.make_directory("d")
    storage.link("a", "d/b")
    storage.sync_directory("d")
    with contextlib.closing(storage.open("a", "rw")) as file:
        file.write([b"2"], 1)
    assert content_of(storage, "d/b") == b"12"
    storage.remove("a")
    assert content_of(storage, "d/b") == b"12"


def test_a_link_takes_no_name_that_is_there(storage: Storage) -> None:
    create(storage, "a", b"1")
    create(storage, "b", b"2")
    storage.make_directory("d")
    for source, target, number in (
        ("a", "b", errno.EEXIST),
        ("a", "d", errno.EEXIST),
        ("none", "c", errno.ENOENT),
        ("a", "nowhere/c", errno.ENOENT),
    ):
        with pytest.raises(StorageError) as caught:
            storage.link(source, target)
        assert number == caught.value.errno
    assert content_of(storage, "b") == b"2"


def test_rename_moves_a_directory_with_its_content(storage: Storage) -> None:
    storage.make_directory("a/b/c")
    storage.make_directory("x")
    create(storage, "a/b/c/f", b"1")
    storage.rename("a/b", "x/y")
    assert storage.list("a") == []
    assert content_of(storage, "x/y/c/f") == b"1"


def test_remove_does_not_mind_missing_names_but_full_directories(storage: Storage) -> None:
    storage.make_directory("d")
    create(storage, "d/f")
    with pytest.raises(StorageError) as caught:
        storage.remove_directory("d")
    assert caught.value.errno == errno.ENOTEMPTY
    storage.remove("d/f")
    storage.remove("d/f")
    storage.sync_directory("d")
    storage.remove_directory("d")
    storage.remove_directory("d")
    storage.sync_directory("")
    assert not storage.exists("d")
    with pytest.raises(StorageError, match="cannot sync a directory"):
        storage.sync_directory("d")


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", ""])
def test_no_path_leads_out_of_the_root(storage: Storage, path: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: storage.open(path, "x"),
        lambda: storage.size(path),
        lambda: storage.rename(path, "a"),
        lambda: storage.rename("a", path),
        lambda: storage.remove(path),
        lambda: storage.remove_directory(path),
        lambda: storage.lock(path),
        lambda: storage.words(path, 1),
    ]
    if path:  # the empty path is the root itself
        calls += [
            lambda: storage.exists(path),
            lambda: storage.list(path),
            lambda: storage.make_directory(path),
            lambda: storage.sync_directory(path),
        ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert storage.list("") == []


def test_the_catalog_lives_at_the_name_the_storage_gives(storage: Storage) -> None:
    for statement in ("CREATE TABLE t (x)", "INSERT INTO t VALUES (7)"):
        with contextlib.closing(
            apsw.Connection(storage.catalog_filename(), flags=URI_FLAGS)
        ) as connection:
            connection.execute(statement)
    with contextlib.closing(
        apsw.Connection(storage.catalog_filename(), flags=URI_FLAGS)
    ) as connection:
        assert connection.execute("SELECT x FROM t").fetchall() == [(7,)]
    storage.sync_point("catalog.commit")


def test_there_is_free_space(storage: Storage) -> None:
    assert storage.free_bytes() > 0


# Locks


def test_a_lock_has_one_holder_over_all_objects_and_threads(storage: Storage) -> None:
    first, second = storage.lock("l"), storage.lock("l")
    assert first.path == "l"
    assert first.try_acquire()
    assert not first.try_acquire()
    assert not second.try_acquire()
    assert not second.try_acquire(shared=True)
    second.release()
    assert not second.try_acquire()
    first.release()
    first.release()
    assert second.try_acquire()
    second.close()
    second.close()
    assert first.try_acquire()
    first.close()
    assert storage.exists("l")


def test_shared_holders_exclude_only_an_exclusive_one(storage: Storage) -> None:
    first, second, third = (storage.lock("l") for _ in range(3))
    assert first.try_acquire(shared=True)
    assert second.try_acquire(shared=True)
    assert not third.try_acquire()
    first.release()
    assert not third.try_acquire()
    second.release()
    assert third.try_acquire()
    for lock in (first, second, third):
        lock.close()


def test_acquire_waits_for_the_holder(storage: Storage) -> None:
    first, second = storage.lock("l"), storage.lock("l")
    assert first.try_acquire()
    order: list[str] = []

    def wait_and_take() -> None:
        second.acquire()
        order.append("second")
        second.release()

    waiter = threading.Thread(target=wait_and_take)
    waiter.start()
    order.append("first")
    first.release()
    waiter.join(10)
    assert order == ["first", "second"]
    first.acquire()
    first.close()
    second.close()


def test_a_lock_file_that_was_removed_locks_nothing(storage: Storage) -> None:
    """Whoever opened the lock before it was removed must meet those who opened it after."""
    before, remover = storage.lock("l"), storage.lock("l")
    assert remover.try_acquire()
    storage.remove("l")
    remover.close()
    assert before.try_acquire()
    after = storage.lock("l")
    assert not after.try_acquire()
    before.close()
    assert after.try_acquire()
    after.close()


def test_a_closed_lock_refuses(storage: Storage) -> None:
    lock = storage.lock("l")
    lock.close()
    lock.release()
    with pytest.raises(StoreClosedError, match="the lock is closed"):
        lock.try_acquire()
    with pytest.raises(StoreClosedError, match="the lock is closed"):
        lock.acquire()


# Words


def test_words_are_zero_when_new_and_common_to_all(storage: Storage) -> None:
    first, second = storage.words("w", 10), storage.words("w", 4)
    assert list(first.view) == [0] * 10
    assert len(second.view) >= 4
    assert first.inode == second.inode
    first.view[3] = -(2**63)
    second.view[0] = 2**63 - 1
    assert second.view[3] == -(2**63)
    assert first.view[0] == 2**63 - 1
    first.close()
    first.close()
    with pytest.raises(StoreClosedError):
        first.grow(1)
    third = storage.words("w", 1)
    assert third.view[3] == -(2**63)
    second.close()
    third.close()


def test_words_grow_while_others_use_them(storage: Storage) -> None:
    words, other = storage.words("w", 2), storage.words("w", 2)
    old_view = words.view
    words.view[1] = 7
    words.grow(20_000)
    words.grow(5)
    assert len(words.view) >= 20_000
    assert words.view[1] == 7
    words.view[0] = 8
    old_view[1] = 9
    assert (other.view[0], other.view[1], words.view[1]) == (8, 9, 9)
    words.view[19_999] = 1
    other.grow(20_000)
    assert other.view[19_999] == 1
    assert storage.size("w") >= 160_000
    old_view.release()
    words.close()
    other.close()


def test_words_of_a_replaced_file_have_another_inode(storage: Storage) -> None:
    words = storage.words("w", 1)
    storage.remove("w")
    again = storage.words("w", 1)
    words.view[0] = 1
    assert again.inode != words.inode
    assert again.view[0] == 0
    words.close()
    again.close()


# Read-only


def test_read_only_changes_nothing_and_says_so(storage: Storage) -> None:
    create(storage, "f", b"abc")
    storage.words("w", 4).close()
    storage.lock("l").close()
    viewer = read_only(storage)
    assert viewer.read_only
    assert not storage.read_only
    assert content_of(viewer, "f") == b"abc"
    calls: list[Callable[[], object]] = [
        lambda: viewer.open("f", "rw"),
        lambda: viewer.open("g", "x"),
        lambda: viewer.make_directory("d"),
        lambda: viewer.rename("f", "g"),
        lambda: viewer.remove("f"),
        lambda: viewer.remove_directory("d"),
        lambda: viewer.sync_directory(""),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="read_only=True") as caught:
            call()
        assert caught.value.errno == errno.EROFS
    for missing in (lambda: viewer.lock("m"), lambda: viewer.words("m", 1)):
        with pytest.raises(StorageError) as caught:
            missing()
        assert caught.value.errno == errno.ENOENT
    assert viewer.list("") == ["f", "l", "w"]


def test_a_read_only_user_sees_words_and_locks_of_writers(storage: Storage) -> None:
    words, lock = storage.words("w", 4), storage.lock("l")
    viewer = read_only(storage)
    seen, its_lock = viewer.words("w", 4), viewer.lock("l")
    words.view[2] = 5
    assert seen.view[2] == 5
    with pytest.raises(TypeError):
        seen.view[2] = 6
    with pytest.raises(StorageError) as caught:
        seen.grow(5)
    assert caught.value.errno == errno.EINVAL
    words.grow(5)
    seen.grow(5)
    words.view[4] = 6
    assert seen.view[4] == 6
    assert its_lock.try_acquire(shared=True)
    assert not lock.try_acquire()
    for handle in (words, seen, lock, its_lock):
        handle.close()


# Both storages say the same


def _names(storage: Storage, directory: str = "") -> list[str]:
    found = []
    for name in storage.list(directory):
        path = f"{directory}/{name}" if directory else name
        found.append(path)
        with contextlib.suppress(StorageError):
            found += _names(storage, path)
    return found


def _random_step(storage: Storage, random: Random) -> object:
    """One random call. Returns what can be seen of it, errors by their errno."""
    paths = [f"{'d/' * depth}{name}" for depth in range(3) for name in ("d", "e", "f")]
    path, target = random.choice(paths), random.choice(paths)
    mode = random.choice(("r", "rw", "x"))
    position, length = random.randrange(5000), random.randrange(5000)
    kind = random.choice(
        ("write", "write", "truncate", "read", "dir", "dir", "list", "rename", "remove", "rmdir")
    )
    try:
        if kind in {"write", "truncate", "read"}:
            content = random.randbytes(length)
            with contextlib.closing(storage.open(path, mode)) as file:
                if kind == "write" and mode != "r":
                    file.write([content], position)
                elif kind == "truncate" and mode != "r":
                    file.truncate(length)
                return file.read(length, position), file.size()
        elif kind == "dir":
            storage.make_directory(path)
        elif kind == "list":
            return storage.list(path)
        elif kind == "rename":
            storage.rename(path, target)
        elif kind == "remove":
            storage.remove(path)
        else:
            storage.remove_directory(path)
    except StorageError as error:
        return error.errno
    return None


@pytest.mark.parametrize("seed", range(4))
def test_both_storages_answer_alike_to_the_same_calls(seed: int, tmp_path: Path) -> None:
    """Memory must not be kinder than a directory, or tests on it would prove nothing."""
    if sys.platform != "linux":
        pytest.skip("errnos of refused calls differ between systems")
    directory, memory = PosixStorage(tmp_path), MemoryStorage()
    mine, theirs = Random(seed), Random(seed)
    for step in range(400):
        expected = _random_step(directory, mine)
        assert _random_step(memory, theirs) == expected, f"seed {seed}, step {step}"
    assert _names(memory) == _names(directory)
