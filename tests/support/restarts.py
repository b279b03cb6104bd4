"""Restart after a crash, once or twice: what must be there, and that the store works on.

The first restart checks what the crash left, then writes to every partition. A second one follows
another power failure that keeps nothing unsynced, and checks the same plus what was written since:
appending behind a tail that was not repaired well would lose it here.
"""

from __future__ import annotations

import contextlib
import copy
import errno
from collections.abc import Iterator
from random import Random

from interrupted_process import Killed, ProcessStorage
from log_model import Model, Reach, Row
from simulated_stores import START_MS, abandon, log_of, make_visible, open_quietly
from workload import Driver, Workload, fresh_model

from millstream import StorageError, Store
from millstream.chain_file import CHAIN_NAME
from millstream.testing import (
    FaultPlan,
    Keep,
    ManualClock,
    MemoryStorage,
    SimulatedCrash,
    crash_cases,
)

LATER_MS = START_MS + 3_600_000


def crash_everywhere(
    workload: Workload, *, seeds: tuple[int, ...], every: int = 1, restarts: int = 2
) -> int:
    """Crash a workload before each of its operations, in every manner; how many cases that was."""
    model = fresh_model()

    def work(storage: MemoryStorage) -> None:
        nonlocal model
        model = fresh_model()
        workload.run(storage, model)

    count = 0
    for case in crash_cases(work, seeds=seeds, every=every):
        with explained(f"{workload}: {case}"):
            seed = case.seed + case.index
            left = copy.deepcopy(model)
            restart(case.storage, workload, left, case.keep, seed, restarts=restarts)
        count += 1
    return count


def kill_everywhere(workload: Workload, *, every: int = 1, restarts: int = 1) -> int:
    """Kill a process before and after each of its operations, while another goes on; how often."""
    index, finished = 0, False
    while not finished:
        for after in (False, True):
            with explained(f"{workload}: kill at operation {index}, {after=}"):
                finished = _kill(workload, index, after=after, restarts=restarts)
        index += every
    return 2 * -(-index // every)


def _kill(workload: Workload, index: int, *, after: bool, restarts: int) -> bool:
    """One kill and what comes of it; whether the workload was done before."""
    storage, model = MemoryStorage(), fresh_model()
    survivor = open_quietly(storage, ManualClock(LATER_MS))
    workload.create_topics(survivor)
    if index % 2:  # it has used the partitions before, or it will be the first
        for partition in model.partitions:
            log_of(survivor, *partition)
    process = ProcessStorage(storage)
    process.interrupt(Killed(), at=index, after=after)
    with contextlib.suppress(Killed):
        workload.run(process, model)
    for partition in model.partitions:
        make_visible(survivor, *partition)
    model.check(survivor, "acknowledged")
    write_everywhere(survivor, model)
    newcomer = open_quietly(storage, ManualClock(LATER_MS))
    write_everywhere(newcomer, model)
    model.check(newcomer, "acknowledged")
    model.check(survivor, "acknowledged")
    abandon(survivor)
    abandon(newcomer)
    for _ in range(restarts):
        storage = storage.crash(keep="none")
        with reopened(storage, workload) as store:
            model.check(store, "durable")
            write_everywhere(store, model)
    return process.operations <= index


def fill_the_disk_everywhere(workload: Workload, *, restarts: int = 1) -> int:
    """Let the disk fill up at each operation that needs space, then free some; how often."""
    storage, model = MemoryStorage(), fresh_model()
    workload.run(storage, model)
    needy = ("create", "make_directory", "write", "catalog.commit")
    places = [index for index, (kind, _) in enumerate(storage.trace) if kind in needy]
    for index in places:
        for partial in (False, True):
            with explained(f"{workload}: full disk at operation {index}, {partial=}"):
                _fill_the_disk(workload, index, partial=partial, restarts=restarts)
    return 2 * len(places)


def _fill_the_disk(workload: Workload, index: int, *, partial: bool, restarts: int) -> None:
    faults = FaultPlan(fail={index: errno.ENOSPC}, partial_writes=partial, seed=index)
    storage, model = MemoryStorage(faults), fresh_model()
    clock = ManualClock(START_MS)
    try:
        store = open_quietly(storage, clock)
    except StorageError:
        faults.clear()
        store = open_quietly(storage, clock)
    try:
        workload.create_topics(store)
    except StorageError:
        faults.clear()
        workload.create_topics(store)
    driver = Driver(store, model, clock, workload)
    for _ in range(workload.steps):
        try:
            driver.step()
        except StorageError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - any step may fail, or none
            faults.clear()
            store._owners.settle()  # as the background thread would
            for partition in model.partitions:
                make_visible(store, *partition)
            model.check(store, "acknowledged")
    faults.clear()  # an index that could not be written is no error
    write_everywhere(store, model, clock.now_ms())
    model.check(store, "acknowledged")
    abandon(store)
    for _ in range(restarts):
        storage = storage.crash(keep="none")
        with reopened(storage, workload) as store:
            model.check(store, "durable")
            write_everywhere(store, model)


def restart(
    storage: MemoryStorage,
    workload: Workload,
    model: Model,
    keep: Keep,
    seed: int = 0,
    *,
    restarts: int = 2,
) -> None:
    """Open what a crash has left, check and write; crash again, as often as said."""
    reach: Reach = "acknowledged" if keep == "all" else "durable"
    if seed % 3 == 0:
        storage = crash_during_recovery(storage, workload, model, seed)
    for number in range(1, restarts + 1):
        with reopened(storage, workload) as store:
            model.check(store, reach if number == 1 else "durable")
            write_everywhere(store, model)
            if number == restarts:
                store.close()
                assert [] == unexpected_files(storage), "something was left lying about"
            elif seed % 2:
                store.close()
        storage = storage.crash(keep="none")


def crash_during_recovery(
    storage: MemoryStorage, workload: Workload, model: Model, seed: int
) -> MemoryStorage:
    """Lose power again at some operation of the repair, or after it, before the first append."""
    choice = Random(seed)
    storage.faults = FaultPlan(crash_at=len(storage.trace) + choice.randrange(12))
    with contextlib.suppress(SimulatedCrash), reopened(storage, workload) as store:
        for topic, partition in model.partitions:
            log_of(store, topic, partition)
    return storage.crash(seed, choice.choice(("none", "random", "all")))


def write_everywhere(store: Store, model: Model, now_ms: int = LATER_MS) -> None:
    """One durable record to every partition, one transaction over all of them."""
    row = Row(now_ms, b"after", b'{"text":"the crash"}', ())  # fits columns, too
    for partition in model.partitions:
        batch = model.writing(partition, [row])
        where = store.append(partition.topic, row.value, key=row.key, partition=partition.partition)
        assert batch.base == where.offset
        model.acknowledged(partition, durable=True)
    state = model.begin()
    with store.transaction() as transaction:
        for partition in model.partitions:
            model.writing(partition, [row], state)
            transaction.append(partition.topic, row.value, key=row.key, partition=partition[1])
        state.offsets = dict(model.committed.offsets) if model.committed else {}
        transaction.put_checkpoint("state", state.checkpoint)
    model.decided(state, committed=True)


@contextlib.contextmanager
def reopened(storage: MemoryStorage, workload: Workload) -> Iterator[Store]:
    """A store on this storage with all topics; left behind, not closed, at the end."""
    store = open_quietly(storage, ManualClock(LATER_MS))
    try:
        workload.create_topics(store)
        yield store
    finally:
        if not store.closed:
            abandon(store)


def unexpected_files(storage: MemoryStorage) -> list[str]:
    """Files that no restart should leave, below the directories of the partitions."""
    left = []
    for topic in storage.list("topics"):
        for partition in storage.list(f"topics/{topic}"):
            directory = f"topics/{topic}/{partition}"
            left += [
                f"{directory}/{name}"
                for name in storage.list(directory)
                if not name.endswith((".segment", ".index", ".keys"))
                and name not in {"quarantine", CHAIN_NAME}
            ]
    return left


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say in a failure which case it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(what)
        raise
