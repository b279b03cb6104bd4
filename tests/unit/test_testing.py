"""When a simulated machine crashes or fails, every crash of a piece of work, the manual clock."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from itertools import pairwise
from random import Random

import apsw
import pytest

from millstream.errors import StorageError, UsageError
from millstream.testing import (
    CrashCase,
    FaultPlan,
    Keep,
    ManualClock,
    MemoryStorage,
    SimulatedCrash,
    crash_cases,
)

PAGE = 4096
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


def query(storage: MemoryStorage, *statements: str) -> list[object]:
    with contextlib.closing(
        apsw.Connection(storage.catalog_filename(), flags=URI_FLAGS)
    ) as connection:
        rows: list[object] = []
        for statement in statements:
            rows = [row[0] for row in connection.execute(statement)]
        return rows


# When it crashes


def work(storage: MemoryStorage) -> None:
    """Fourteen operations, one of each kind and some more."""
    storage.make_directory("d/e")
    with contextlib.closing(storage.open("d/f", "x")) as file:
        file.write([b"abc"], 0)
        file.truncate(2)
        file.sync()
    storage.sync_directory("d")
    storage.rename("d/f", "d/g")
    storage.remove("d/g")
    storage.remove_directory("d/e")
    storage.lock("l").close()
    storage.words("w", 4).close()
    storage.sync_point("catalog.commit")


WORK_TRACE = [
    ("make_directory", "d"),
    ("make_directory", "d/e"),
    ("create", "d/f"),
    ("write", "d/f"),
    ("truncate", "d/f"),
    ("sync", "d/f"),
    ("sync_directory", "d"),
    ("rename", "d/f"),
    ("remove", "d/g"),
    ("remove_directory", "d/e"),
    ("create", "l"),
    ("create", "w"),
    ("truncate", "w"),
    ("catalog.commit", ""),
]


def _state(storage: MemoryStorage) -> tuple[object, ...]:
    image = storage.crash(keep="all")
    names = [(path, image.list(path)) for path in ("", "d")]
    contents = [get(image, path) for path in ("d/f", "d/g", "w")]
    return (*names, *contents)


def test_every_operation_is_traced_and_reads_are_not() -> None:
    storage = MemoryStorage()
    work(storage)
    assert storage.trace == WORK_TRACE
    assert get(storage, "w") == bytes(32)
    assert not storage.exists("x")
    storage.remove("x")
    storage.remove_directory("x")
    storage.make_directory("d")
    assert storage.trace == WORK_TRACE


@pytest.mark.parametrize("index", range(len(WORK_TRACE)))
def test_a_crash_comes_right_before_or_right_after_its_operation(index: int) -> None:
    before, after = (
        MemoryStorage(FaultPlan(crash_at=index)),
        MemoryStorage(FaultPlan(crash_after=index)),
    )
    for storage in (before, after):
        if WORK_TRACE[index][0] == "catalog.commit" and storage is after:
            work(storage)  # the step itself is still taken
        else:
            with pytest.raises(SimulatedCrash):
                work(storage)
        assert storage.is_dead
        assert storage.trace == WORK_TRACE[: index + 1]
    states = []
    for end in (index, index + 1):
        storage = MemoryStorage(FaultPlan(crash_at=end))
        with contextlib.suppress(SimulatedCrash):
            work(storage)
        states.append(_state(storage))
    assert [_state(before), _state(after)] == states


def test_a_dead_storage_refuses_everything_but_closing() -> None:
    storage = MemoryStorage()
    file, lock, words = storage.open("f", "x"), storage.lock("l"), storage.words("w", 1)
    assert lock.try_acquire()
    storage.faults.crash_at = len(storage.trace)
    with pytest.raises(SimulatedCrash):
        file.write([b"abc"], 0)
    storage.faults.clear()
    calls: list[Callable[[], object]] = [
        lambda: file.read(1, 0),
        lambda: file.write([b"x"], 0),
        lambda: file.truncate(0),
        file.size,
        file.sync,
        lock.try_acquire,
        lock.acquire,
        lambda: words.grow(2),
        lambda: storage.open("f", "r"),
        lambda: storage.exists("f"),
        lambda: storage.size("f"),
        lambda: storage.list(""),
        lambda: storage.make_directory("d"),
        lambda: storage.rename("f", "g"),
        lambda: storage.remove("f"),
        lambda: storage.remove_directory("d"),
        lambda: storage.sync_directory(""),
        lambda: storage.lock("l"),
        lambda: storage.words("w", 1),
        lambda: storage.sync_point("catalog.commit"),
        storage.catalog_filename,
        storage.free_bytes,
    ]
    for call in calls:
        with pytest.raises(SimulatedCrash):
            call()
    for handle in (file, lock, words, storage):
        handle.close()
    lock.release()
    assert get(storage.crash(keep="all"), "f") == b""


def test_no_handler_for_exceptions_survives_a_power_failure() -> None:
    assert not issubclass(SimulatedCrash, Exception)


def test_the_same_seed_gives_the_same_outcome() -> None:
    def image(seed: int) -> list[bytes | None]:
        storage = MemoryStorage()
        random = Random(1)
        for path in "abcdef":
            put(storage, path, random.randbytes(2 * PAGE), sync=random.random() < 0.5)
            put(storage, path, random.randbytes(PAGE), sync=False)
        after = storage.crash(seed)
        return [get(after, path) for path in "abcdef"]

    assert image(3) == image(3)
    assert len({tuple(image(seed)) for seed in range(10)}) > 5


def test_what_a_crash_left_can_crash_again_at_once() -> None:
    storage = MemoryStorage()
    put(storage, "f", b"abc")
    image = storage.crash(keep="all", faults=FaultPlan(crash_at=1))
    assert image.trace == []
    with pytest.raises(SimulatedCrash):
        put(image, "f", b"xyz")
    assert get(image.crash(keep="none"), "f") == b"abc"
    assert get(image.crash(keep="all"), "f") == b"xyz"


def test_a_storage_without_history_keeps_content_only() -> None:
    storage = MemoryStorage(crashable=False)
    storage.make_directory("d")
    put(storage, "d/f", b"abc")
    storage.rename("d/f", "d/g")
    assert get(storage, "d/g") == b"abc"
    assert storage.trace == []
    with pytest.raises(UsageError, match="crashable=True"):
        storage.crash()


@pytest.mark.parametrize(("when", "expected"), [("crash_at", []), ("crash_after", [1])])
def test_a_crash_comes_before_or_after_a_commit(when: str, expected: list[int]) -> None:
    storage = MemoryStorage()
    query(storage, "CREATE TABLE t (x)")
    setattr(storage.faults, when, 0)
    with (
        contextlib.suppress(SimulatedCrash),
        contextlib.closing(
            apsw.Connection(storage.catalog_filename(), flags=URI_FLAGS)
        ) as connection,
        connection,
    ):
        connection.execute("INSERT INTO t VALUES (1)")
        storage.sync_point("catalog.commit")
    assert storage.is_dead
    assert storage.trace == [("catalog.commit", "")]
    assert query(storage.crash(), "SELECT x FROM t") == expected


# Planned failures


def test_one_operation_fails_by_its_number() -> None:
    storage = MemoryStorage(FaultPlan(fail={2: errno.EIO}))
    storage.make_directory("d/e")
    with pytest.raises(StorageError) as caught:
        storage.open("d/f", "x")
    assert (caught.value.errno, caught.value.path) == (errno.EIO, "d/f")
    assert not storage.exists("d/f")
    storage.open("d/f", "x").close()
    assert storage.trace[2:] == [("create", "d/f")] * 2


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in WORK_TRACE}))
def test_every_kind_of_operation_can_fail_and_then_has_no_effect(kind: str) -> None:
    storage = MemoryStorage(FaultPlan(fail={kind: errno.EIO}))
    with pytest.raises(StorageError, match="the device failed") as caught:
        work(storage)
    assert caught.value.errno == errno.EIO
    index = [kind for kind, _ in WORK_TRACE].index(kind)
    assert storage.trace == WORK_TRACE[: index + 1]
    before = MemoryStorage(FaultPlan(crash_at=index))
    with contextlib.suppress(SimulatedCrash):
        work(before)
    assert _state(storage) == _state(before)


def test_the_next_operation_of_a_kind_fails_once() -> None:
    storage = MemoryStorage()
    with contextlib.closing(storage.open("f", "x")) as file:
        file.write([b"abc"], 0)
        storage.faults.fail_next("read", errno.ESTALE)
        storage.faults.fail_next("write", errno.EIO)
        with pytest.raises(StorageError, match="mount") as caught:
            file.read(1, 2)
        assert (caught.value.errno, caught.value.position) == (errno.ESTALE, 2)
        with pytest.raises(StorageError):
            file.write([b"x"], 0)
        file.write([b"y"], 0)
        assert file.read(3, 0) == b"ybc"


def test_reads_fail_by_their_own_count() -> None:
    storage = MemoryStorage(FaultPlan(fail={("read", 1): errno.EIO}))
    put(storage, "f", b"abc")
    with contextlib.closing(storage.open("f", "r")) as file:
        assert file.read(1, 0) == b"a"
        with pytest.raises(StorageError, match="cannot read"):
            file.read(1, 0)
        assert file.read(1, 0) == b"a"


def test_a_full_disk_stays_full_until_space_is_freed() -> None:
    storage = MemoryStorage(FaultPlan(fail={("write", 1): errno.ENOSPC}))
    with contextlib.closing(storage.open("f", "x")) as file:
        file.write([b"abc"], 0)
        assert storage.free_bytes() > 0
        calls: list[Callable[[], object]] = [
            lambda: file.write([b"x"], 3),
            lambda: file.write([b"x"], 3),
            lambda: storage.open("g", "x"),
            lambda: storage.make_directory("d"),
            lambda: storage.sync_point("catalog.commit"),
        ]
        for call in calls:
            with pytest.raises(StorageError, match="free space and try again") as caught:
                call()
            assert caught.value.errno == errno.ENOSPC
        assert storage.free_bytes() == 0
        file.sync()
        storage.rename("f", "g")
        storage.remove("g")
        assert file.read(9, 0) == b"abc"
        storage.faults.clear()
        file.write([b"x"], 3)
        assert file.read(9, 0) == b"abcx"
        assert storage.free_bytes() > 0


def test_a_write_to_a_full_disk_may_leave_a_beginning() -> None:
    lengths = set()
    for seed in range(50):
        storage = MemoryStorage(
            FaultPlan(seed, fail={("write", 0): errno.ENOSPC}, partial_writes=True)
        )
        with contextlib.closing(storage.open("f", "x")) as file:
            with pytest.raises(StorageError):
                file.write([b"abc", b"def"], 0)
            assert file.read(9, 0) == b"abcdef"[: file.size()]
            lengths.add(file.size())
    assert lengths == {0, 1, 2, 3, 4, 5}


def test_short_writes_are_operations_of_their_own_with_crashes_in_between() -> None:
    storage = MemoryStorage(FaultPlan(seed=4, short_writes=True))
    content = bytes(range(200))
    put(storage, "f", content)
    writes = storage.trace.count(("write", "f"))
    assert writes > 1
    assert get(storage, "f") == content
    found = []
    for index in range(writes):
        storage = MemoryStorage(FaultPlan(seed=4, short_writes=True, crash_after=1 + index))
        with contextlib.suppress(SimulatedCrash):
            put(storage, "f", content)
        found.append(get(storage.crash(keep="all"), "f") or b"")
    assert all(content.startswith(part) for part in found)
    assert all(len(shorter) < len(longer) for shorter, longer in pairwise(found))
    assert found[-1] == content


def test_a_misspelt_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown kind of operation 'fsync': use read, create"):
        FaultPlan(fail={("fsync", 1): errno.EIO})
    with pytest.raises(UsageError, match="unknown kind"):
        FaultPlan().fail_next("fsync", errno.EIO)


# Every crash of a piece of work


def safe_replace(storage: MemoryStorage) -> None:
    with contextlib.closing(storage.open("f.new", "x")) as file:
        file.write([b"new" * 2000], 0)
        file.sync()
    storage.rename("f.new", "f")
    storage.sync_directory("")


def unsynced_replace(storage: MemoryStorage) -> None:
    put(storage, "f.new", b"new" * 2000, sync=False)
    storage.rename("f.new", "f")
    storage.sync_directory("")


def forgetful_replace(storage: MemoryStorage) -> None:
    with contextlib.closing(storage.open("f.new", "x")) as file:
        file.write([b"new" * 2000], 0)
        file.sync()
    storage.rename("f.new", "f")


def start_with_old() -> MemoryStorage:
    storage = MemoryStorage()
    put(storage, "f", b"old")
    return storage


def broken_promises(replace: Callable[[MemoryStorage], None]) -> list[CrashCase]:
    """Outcomes in which the file is neither old nor new, or old after `replace` had returned."""
    return [
        case
        for case in crash_cases(replace, start=start_with_old, seeds=range(5))
        if get(case.storage, "f")
        not in ([b"new" * 2000] if case.finished else [b"old", b"new" * 2000])
    ]


def test_crash_cases_find_nothing_where_nothing_is_wrong() -> None:
    assert broken_promises(safe_replace) == []


def test_crash_cases_find_a_missing_sync_of_the_file() -> None:
    assert any(
        not case.finished or case.keep == "none" for case in broken_promises(unsynced_replace)
    )


def test_crash_cases_find_a_missing_sync_of_the_directory() -> None:
    cases = broken_promises(forgetful_replace)
    assert cases
    assert all(case.finished for case in cases)
    assert str(cases[0]) == "crash at operation 4 (the end), keep='none', seed=0"


def test_crash_cases_visit_each_operation_in_every_manner() -> None:
    cases = list(crash_cases(work, seeds=(7, 8)))
    points = [*WORK_TRACE, ("", "")]
    manners: list[tuple[Keep, int]] = [("none", 0), ("all", 0), ("random", 7), ("random", 8)]
    assert [(c.index, c.kind, c.path, c.keep, c.seed) for c in cases] == [
        (index, kind, path, keep, seed)
        for index, (kind, path) in enumerate(points)
        for keep, seed in manners
    ]
    assert [case.index for case in crash_cases(work, seeds=(), every=6)] == [
        0,
        0,
        6,
        6,
        12,
        12,
        18,
        18,
    ]


def test_an_error_of_the_work_is_not_a_crash() -> None:
    def fail(storage: MemoryStorage) -> None:
        storage.open("missing", "r")

    with pytest.raises(StorageError):
        list(crash_cases(fail))


# The clock


def test_the_clock_stands_still_until_told() -> None:
    clock = ManualClock(now_ms=1_000)
    assert (clock.now_ms(), clock.monotonic()) == (1_000, 0.0)
    clock.advance(250)
    clock.sleep(0.75)
    assert (clock.now_ms(), clock.monotonic()) == (2_000, 1.0)


def test_the_wall_clock_can_be_set_back_while_time_goes_on() -> None:
    clock = ManualClock(now_ms=10_000)
    clock.jump(-3_600_000)
    assert (clock.now_ms(), clock.monotonic()) == (-3_590_000, 0.0)
    with pytest.raises(UsageError, match="time does not go back"):
        clock.advance(-1)


def test_the_clock_loses_no_step_of_any_thread() -> None:
    clock = ManualClock()
    threads = [
        threading.Thread(target=lambda: [clock.advance(1) for _ in range(2_000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert clock.now_ms() == 8_000
