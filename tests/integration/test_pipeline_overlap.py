"""Commits that are written beside the next epoch: what is visible when, and what an error ends.

The disk of a simulated machine holds a commit back (held_commits.py) while the pipeline goes on;
then it comes through, fails, or the machine dies. Results must be those of a run that waits.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from held_commits import HeldStorage
from hypothesis import given, settings, strategies as st
from simulated_stores import abandon, open_quietly

from millstream import FencedError, PoisonedError, Record, RecordError, StorageError, Store
from millstream.processor import Metrics, Pipeline, Sink, agg, epoch, to_callable, tumbling
from millstream.processor.commit_thread import CommitThread
from millstream.processor.epoch import Epochs
from millstream.processor.runtime import RunOptions, run_over_store
from millstream.processor.state_log import checkpoint_name, read_checkpoint
from millstream.testing import ManualClock, MemoryStorage, crash_cases

STEP = 4
"""Rows of a step, and of an epoch."""

Row = dict[str, Any]


def counts(see: Callable[[Row], object] | None = None, sink: Sink | None = None) -> Pipeline:
    """A window and some of the rows themselves into one topic, late rows into another."""
    pipeline = Pipeline("counts")
    rows = pipeline.source("in", time="t", disorder=3)
    if see is not None:
        rows = rows.peek(see)
    windows = rows.key_by("k").window(tumbling(10)).agg(n=agg.count(), total=agg.sum("x"))
    windows.to("out")
    windows.late.to("late")
    if sink is not None:
        windows.to(sink)
    rows.filter(lambda row: row["x"] % 5 == 0).to("out")
    return pipeline


def lines(count: int, seed: int = 0) -> list[bytes]:
    """Rows out of order, some of them late. Fewer are the first of more."""
    choice = Random(seed)
    return [
        b'{"k":"%s","t":%d,"x":%d}'
        % (choice.choice((b"a", b"b", b"c")), 2 * number - choice.choice((0, 0, 0, 4, 30)), number)
        for number in range(count)
    ]


def filled(
    storage: MemoryStorage, count: int, seed: int = 0, clock: ManualClock | None = None
) -> Store:
    store = open_quietly(storage, clock)
    store.create_topic("in")
    store.append_many("in", lines(count, seed))
    return store


def run(pipeline: Pipeline, store: Store, *, overlap: bool = True, **more: Any) -> Metrics:
    """Run to the end, an epoch after each step."""
    options: RunOptions = {"until": "end", "batch_records": STEP, "epoch_ms": 0, **more}  # type: ignore[typeddict-item] # as given
    return run_over_store(pipeline.plan, store, options, overlap=overlap)


def plain(records: list[Record]) -> list[tuple[int, bytes | None, bytes | None]]:
    return [(record.timestamp_ms, record.key, record.value) for record in records]


def results(store: Store) -> list[list[tuple[int, bytes | None, bytes | None]]]:
    known = {topic.name for topic in store.topics()}
    return [plain(list(store.read(topic))) if topic in known else [] for topic in ("out", "late")]


def windows(
    written: list[list[tuple[int, bytes | None, bytes | None]]],
) -> list[tuple[int, bytes | None, bytes | None]]:
    return [entry for entry in written[0] if b"window_start" in (entry[2] or b"")]


def expected(count: int, seed: int = 0) -> list[list[tuple[int, bytes | None, bytes | None]]]:
    with filled(MemoryStorage(), count, seed) as store:
        run(counts(), store, overlap=False)
        return results(store)


# --- what goes on beside a commit ----------------------------------------------------------------


def test_rows_of_the_next_epoch_are_processed_while_a_commit_waits_for_the_disk() -> None:
    storage = HeldStorage()
    delivered: list[Record] = []
    beside: list[int] = []

    def see(row: Row) -> None:
        if row["x"] == 2 * STEP:  # the first epoch is done, the second has been begun
            storage.latch.await_commit()
            assert results(store) == first
            assert plain(delivered) == windows(first)
            beside.append(read_checkpoint(store, "counts").epoch)
        if 2 * STEP <= row["x"] < 3 * STEP:
            beside.append(row["x"])
        if row["x"] == 3 * STEP - 1:
            storage.latch.open()

    first: list[Any] = []
    finished: list[int] = []

    def told(metrics: Metrics) -> None:
        finished.append(metrics.records_in)
        if metrics.epochs == 1:
            first[:] = results(store)
            storage.latch.close()

    pipeline = counts(see, to_callable(delivered.append, name="list"))
    with filled(storage, 5 * STEP) as store:
        metrics = run(pipeline, store, on_progress=told)
        assert [1, *range(2 * STEP, 3 * STEP)] == beside
        assert expected(5 * STEP) == results(store)
        assert [STEP, 2 * STEP, 3 * STEP, 4 * STEP, 5 * STEP] == finished
        assert (5, 5 * STEP) == (metrics.epochs, metrics.records_in)
        assert plain(delivered) == windows(results(store))


def test_an_epoch_goes_on_while_the_disk_is_slow_but_not_for_long() -> None:
    """Each step takes 11 ms, an epoch is to be 10 ms long and may be 50."""
    storage, clock = HeldStorage(), ManualClock()
    told: list[int] = []

    def see(row: Row) -> None:
        if row["x"] % STEP == 0:
            clock.advance(11)
        if row["x"] == 6 * STEP - 1:
            threading.Timer(0, storage.latch.open).start()

    with filled(storage, 8 * STEP, clock=clock) as store:
        storage.latch.close()
        run(counts(see), store, epoch_ms=10, on_progress=lambda done: told.append(done.records_in))
        assert [STEP, 6 * STEP] == told[:2]
        assert expected(8 * STEP) == results(store)


def test_a_stop_waits_for_the_commit_that_is_being_written() -> None:
    storage, stop = HeldStorage(), threading.Event()

    def see(row: Row) -> None:
        if row["x"] == STEP:
            storage.latch.await_commit()
            stop.set()
            threading.Timer(0, storage.latch.open).start()

    with filled(storage, 5 * STEP) as store:
        storage.latch.close()
        metrics = run(counts(see), store, stop=stop)
        assert (2, 2 * STEP) == (metrics.epochs, metrics.records_in)
        assert 2 * STEP == store.group_lag("counts")[0].committed
        run(counts(), store)
        assert expected(5 * STEP) == results(store)


def test_progress_tells_of_a_commit_what_had_been_done_by_then() -> None:
    told: list[tuple[int, int, int]] = []
    with filled(MemoryStorage(), 5 * STEP) as store:

        def tell(metrics: Metrics) -> None:
            visible = sum(map(len, results(store)))
            told.append((metrics.epochs, metrics.records_in, metrics.lag))
            assert metrics.records_out == visible

        run(counts(), store, on_progress=tell)
    assert [(n, STEP * n, 5 * STEP - STEP * n) for n in range(1, 6)] == told


# --- what ends a run -----------------------------------------------------------------------------


def test_a_commit_that_fails_beside_ends_the_run_and_nothing_after_it_is_visible() -> None:
    storage = HeldStorage()

    def see(row: Row) -> None:
        if row["x"] == STEP:
            storage.latch.await_commit()
        if row["x"] == 2 * STEP - 1:
            storage.faults.fail_next("sync", errno.EIO)
            storage.latch.open()

    store = filled(storage, 5 * STEP)
    storage.latch.close()
    with pytest.raises(PoisonedError) as failure:
        run(counts(see), store)
    assert failure.value.topic in {"out", "late", "@state/counts/in.window"}
    assert [[], []] == results(store)
    assert 0 == read_checkpoint(store, "counts").epoch
    abandon(store)
    with open_quietly(storage.crash(keep="all")) as store:
        run(counts(), store)
        assert expected(5 * STEP) == results(store)


def test_the_last_commit_fails_in_the_run_and_not_behind_it() -> None:
    storage = HeldStorage()

    def see(row: Row) -> None:
        if row["x"] == STEP - 1:
            storage.faults.fail_next("sync", errno.EIO)

    store = filled(storage, STEP)
    with pytest.raises(StorageError):
        run(counts(see), store)
    abandon(store)


def test_a_row_that_fails_takes_nothing_from_the_commit_before_it() -> None:
    storage = HeldStorage()

    def see(row: Row) -> None:
        if row["x"] == STEP + 1:
            storage.latch.await_commit()
            threading.Timer(0, storage.latch.open).start()
            raise ValueError("this one")

    with filled(storage, 3 * STEP) as store:
        storage.latch.close()
        with pytest.raises(RecordError, match="this one"):
            run(counts(see), store)
        assert 1 == read_checkpoint(store, "counts").epoch
        assert results(store) == expected(STEP)
        run(counts(), store)
        assert expected(3 * STEP) == results(store)


def test_of_two_errors_the_one_of_the_commit_is_raised_as_it_came_first() -> None:
    storage = HeldStorage()

    def see(row: Row) -> None:
        if row["x"] == STEP + 1:
            storage.latch.await_commit()
            storage.faults.fail_next("sync", errno.EIO)
            threading.Timer(0, storage.latch.open).start()
            raise ValueError("this one")

    store = filled(storage, 3 * STEP)
    storage.latch.close()
    with pytest.raises(PoisonedError) as failure:
        run(counts(see), store)
    assert isinstance(failure.value.__context__, RecordError)
    abandon(store)


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the tests."""


def test_an_interruption_stays_one_though_the_commit_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = HeldStorage()

    def see(row: Row) -> None:
        if row["x"] == STEP + 1:
            storage.latch.await_commit()
            storage.faults.fail_next("sync", errno.EIO)
            threading.Timer(0, storage.latch.open).start()
            raise Interrupted

    store = filled(storage, 3 * STEP)
    storage.latch.close()
    with pytest.raises(Interrupted):
        run(counts(see), store)
    assert "the last commit of pipeline 'counts' failed" in caplog.text
    abandon(store)


def test_a_run_taken_over_while_its_commit_waits_is_fenced_and_stays_so() -> None:
    storage = HeldStorage()
    with filled(storage, 5 * STEP) as stalled, open_quietly(storage) as other:
        ownership = stalled.own(checkpoint_name("counts"))
        with CommitThread() as beside:
            epochs = Epochs(stalled, counts().plan, ownership, beside)
            topology = epochs.topology()
            with stalled.reader(epochs.positions()) as reader:
                topology.process(reader.poll(STEP))
                storage.latch.close()
                epochs.commit(topology, reader.positions)
                storage.latch.await_commit()
                assert epochs.busy
                ownership.close()
                run(counts(), other, overlap=False)
                written = results(other)
                topology.process(reader.poll(STEP))
                storage.latch.open()
                for _ in range(2):
                    with pytest.raises(FencedError):
                        epochs.commit(topology, reader.positions)
                with pytest.raises(FencedError):
                    epochs.finish()
        assert expected(5 * STEP) == written == results(other) == results(stalled)


# --- crashes, and the same results ---------------------------------------------------------------


@pytest.mark.crash
def test_a_machine_that_dies_at_any_operation_beside_the_next_epoch_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every commit is begun beside a step; state is written anew as often as it can be."""
    monkeypatch.setattr(epoch, "SNAPSHOT_RECORDS_MIN", 4)
    count = 4 * STEP

    def start() -> MemoryStorage:
        storage = MemoryStorage()
        filled(storage, count).close()
        return storage

    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            run(counts(), store)
        finally:
            abandon(store)

    right, cases = expected(count), 0
    for case in crash_cases(work, start=start):
        with open_quietly(case.storage) as store:
            for some, every in zip(results(store), right, strict=True):
                assert every[: len(some)] == some, case
            run(counts(), store)
            assert right == results(store), case
        cases += 1
    assert cases > 100


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    pieces=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=4),
    snapshot=st.sampled_from((2, 20, 10_000)),
)
def test_e60_a_store_holds_the_same_whether_commits_are_written_beside_or_not(
    seed: int, pieces: list[tuple[int, int]], snapshot: int
) -> None:
    """Record for record, in outputs, state and checkpoint, over several runs."""
    count = sum(rows for rows, _ in pieces)
    held = []
    for overlap in (False, True):
        with pytest.MonkeyPatch.context() as patch, open_quietly(MemoryStorage()) as store:
            patch.setattr(epoch, "SNAPSHOT_RECORDS_MIN", snapshot)
            store.create_topic("in", partitions=2)
            rows = iter(lines(count, seed))
            for number, (length, batch_records) in enumerate(pieces):
                some = [next(rows) for _ in range(length)]
                store.append_many("in", some, partition=number % 2)
                run(counts(), store, overlap=overlap, batch_records=batch_records)
            names = sorted(topic.name for topic in store.topics(internal=True))
            contents = [list(store.read(name)) for name in names]
            held.append((names, contents, read_checkpoint(store, "counts")))
    assert held[0] == held[1]
