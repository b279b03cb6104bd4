"""Pipelines that are cut off: by a power failure at any operation, and by kill -9 at any moment.

After restarts the output must hold the same records in the same order as an undisturbed run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from simulated_stores import abandon, open_quietly

import millstream
from millstream import FencedError, Record, Store
from millstream.processor import Pipeline, Row, agg, tumbling
from millstream.processor.epoch import Epochs
from millstream.processor.state_log import checkpoint_name
from millstream.testing import MemoryStorage, crash_cases

SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))


def counts() -> Pipeline:
    pipeline = Pipeline("counts")
    rows = pipeline.source("in", time="t", disorder=5)
    results = rows.key_by("k").window(tumbling(10)).agg(n=agg.count(), total=agg.sum("x"))
    results.to("out")
    results.late.to("late")
    return pipeline


def lines(count: int) -> list[bytes]:
    chance = random.Random(SEED)
    return [
        b'{"k":"k%d","t":%d,"x":%.2f}'
        % (chance.randrange(3), number + chance.randrange(-12, 3), chance.random())
        for number in range(count)
    ]


def read(store: Store) -> list[list[Record]]:
    return [list(store.read(topic)) for topic in ("out", "late")]


def plain(topics: list[list[Record]]) -> list[list[tuple[int, bytes | None, bytes | None]]]:
    return [[(r.timestamp_ms, r.key, r.value) for r in records] for records in topics]


def expected(rows: list[bytes]) -> list[list[tuple[int, bytes | None, bytes | None]]]:
    output = counts().test({"in": [Row(line) for line in rows]}, on_end="hold")
    return plain([output.records("out"), output.records("late")])


@pytest.mark.crash
def test_a_power_failure_at_any_operation_changes_nothing() -> None:
    rows = [*lines(60), b'{"k":"k0","t":0,"x":1.00}']  # the last one is late, whatever was drawn

    def start() -> MemoryStorage:
        storage = MemoryStorage()
        store = open_quietly(storage)
        store.create_topic("in", partitions=2)
        for number in range(0, len(rows), 5):
            store.append_many("in", rows[number : number + 5], partition=number // 5 % 2)
        store.close()
        return storage

    def work(storage: MemoryStorage) -> None:
        store = open_quietly(storage)
        try:
            counts().run(store, until="end", batch_records=13, epoch_ms=0)
        finally:
            abandon(store) if storage.is_dead else store.close()

    with open_quietly(start()) as store:
        counts().run(store, until="end")
        undisturbed = plain(read(store))
    assert undisturbed[0]
    assert undisturbed[1]

    cases = 0
    for case in crash_cases(work, start=start, seeds=(SEED,)):
        store = open_quietly(case.storage)
        counts().run(store, until="end", batch_records=7, epoch_ms=0)
        assert plain(read(store)) == undisturbed, case
        store.close()
        cases += 1
    assert cases > 100


def test_a_run_that_was_taken_over_is_fenced() -> None:
    """A process that stalls, loses its lock and comes back must not write a second truth."""
    storage = MemoryStorage()
    with open_quietly(storage) as stalled, open_quietly(storage) as other:
        stalled.create_topic("in")
        stalled.append_many("in", lines(40))
        ownership = stalled.own(checkpoint_name("counts"))
        epochs = Epochs(stalled, counts().plan, ownership)
        topology = epochs.topology()
        with stalled.reader(epochs.positions()) as reader:
            topology.process(reader.poll())
            ownership.close()
            counts().run(other, until="end")
            written = read(other)
            with pytest.raises(FencedError):
                epochs.commit(topology, reader.positions)
        counts().run(other, until="end")
        assert read(other) == written
        assert written[0]


CHILD = textwrap.dedent(
    """
    import sys
    import millstream
    from test_pipeline_crash import counts

    with millstream.open(sys.argv[1]) as store:
        def tell(metrics):
            # An epoch has ended; the next begins when the test says so.
            print(metrics.records_in, flush=True)
            sys.stdin.readline()

        counts().run(
            store, until="end", batch_records=int(sys.argv[2]), epoch_ms=0, on_progress=tell
        )
    """
)


def child(store: Path, batch_records: int) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "support")])
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store), str(batch_records)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=1,
        text=True,
        env=environment,
    )


@pytest.mark.crash
@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    rows = lines(30_000)
    path = tmp_path / "store"
    with millstream.open(path, durability="os") as store:
        store.create_topic("in")
        for number in range(0, len(rows), 500):
            store.append_many("in", rows[number : number + 500])

    chance = random.Random(SEED)
    kills = 0
    while True:
        # At most a fifth of the rows in one life.
        with child(path, chance.choice([50, 200, 500])) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 12)):
                if not process.stdout.readline():
                    break
                process.stdin.write("\n")
            # A moment inside the epoch, not only at its end.
            time.sleep(chance.random() * 0.004)
            process.send_signal(signal.SIGKILL)
            if process.wait(30) == 0:
                break
            kills += 1
        assert kills < 200
    with millstream.open(path) as store:
        assert plain(read(store)) == expected(rows)
    assert kills > 3


@pytest.mark.slow
def test_ctrl_c_finishes_the_epoch(tmp_path: Path) -> None:
    path = tmp_path / "store"
    rows = lines(2_000)
    with millstream.open(path, durability="os") as store:
        store.create_topic("in")
        store.append_many("in", rows)
    script = CHILD.replace('until="end", ', "")
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "support")])
    }
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path), "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "2000":
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    with millstream.open(path) as store:
        assert plain(read(store)) == expected(rows)
