"""A store that several processes work on, while backups of it are taken; and what must be in them.

Run as `python backed_up.py ROLE STORE`. Each role goes on until a byte, or the end, of its standard
input tells it to stop; it then closes its store in order. What a copy of the store must show at any
moment is in `check_copy`.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import millstream
from millstream import Store, TopicPartition
from millstream.processor import Pipeline, agg, tumbling
from millstream.testing import ManualClock

GROUP = "g"
WINDOW_MS = 100


def totals() -> Pipeline:
    """What the processor role runs."""
    pipeline = Pipeline("totals")
    rows = pipeline.source("in", time="t")
    windows = rows.key_by("k").window(tumbling(WINDOW_MS))
    windows.agg(n=agg.count(), total=agg.sum("x")).to("out")
    return pipeline


def line(number: int) -> bytes:
    return b'{"k":"k%d","t":%d,"x":%d}' % (number % 3, number, number)


def create(path: Path) -> None:
    with millstream.open(path) as store:
        store.create_topic("in", segment_bytes="8KiB")
        store.create_topic("first", segment_bytes="4KiB")
        store.create_topic("second", segment_bytes="16KiB", partitions=2)
        store.create_topic("churn", segment_bytes="4KiB", retention_bytes="16KiB")
        store.create_topic("latest", segment_bytes="4KiB", compact=True)
        store.append("in", line(0))


def told() -> bool:
    """Whether the parent wants this process to end."""
    return bool(select.select([0], [], [], 0)[0])


def transactions(store: Store) -> None:
    """Write the same numbers to two topics, with an offset and a checkpoint, all or nothing."""
    random, number, turn = Random(1), 0, 0
    while not told():
        turn += 1
        with store.transaction() as transaction:
            values = [b"%d" % (number + each) for each in range(random.randrange(1, 4))]
            for value in values:
                transaction.append("first", value)
                transaction.append("second", value, partition=turn % 2)
            if random.random() < 0.3:
                transaction.abort()
                continue
            number += len(values)
            transaction.commit_offsets(GROUP, {TopicPartition("in", 0): 1})
            transaction.put_checkpoint("number", b"%d" % number)


def produce(store: Store) -> None:
    """Feed the pipeline."""
    number = 1
    while not told():
        store.append_many("in", [line(each) for each in range(number, number + 20)])
        number += 20


def churn(store: Store) -> None:
    """Roll, remove and compact as much as possible."""
    random = Random(2)
    while not told():
        store.append_many("churn", [random.randbytes(200) for _ in range(8)], durability="os")
        keys = [b"%d" % random.randrange(9) for _ in range(8)]
        store.append_many("latest", [random.randbytes(200) for _ in keys], keys, durability="os")
        if random.random() < 0.1:
            store.apply_retention()
        if random.random() < 0.05:
            store.compact("latest")


def process(store: Store) -> None:
    """Run the pipeline, again and again."""
    while not told():
        totals().run(store, until="end", epoch_ms=0)


@contextlib.contextmanager
def at_work(path: Path, *roles: str) -> Iterator[None]:
    """The processes of these roles; at the end they stop in order, and must have ended well."""
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, role, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for role in roles
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert b"r" == child.stdout.read(1), child.stderr and child.stderr.read().decode()
        yield
        for role, child in zip(roles, children, strict=True):
            _, errors = child.communicate(b".", timeout=60)
            assert 0 == child.returncode, f"{role}: {errors.decode()}"
    finally:
        for child in children:
            child.kill()
            child.communicate()


def check_copy(path: Path) -> int:
    """A restored copy is one moment: everything in it fits; how many transactions it holds."""
    with millstream.open(path, clock=ManualClock(1_900_000_000_000)) as store:
        report = store.verify(deep=True)
        assert [] == report.findings
        first = [int(record.value or b"") for record in store.read("first")]
        second = sorted(int(record.value or b"") for record in store.read("second"))
        count = int(store.checkpoint("number") or b"0")
        assert list(range(count)) == first == second
        for group in store.groups():
            for lag in store.group_lag(group):
                assert (lag.committed or 0) <= lag.log_end
        rows = [record.value or b"" for record in store.read("in")]
        assert [line(number) for number in range(len(rows))] == rows
        totals().run(store, until="end", epoch_ms=0)
        output = [(record.key, record.value) for record in store.read("out")]
        expected = totals().test({"in": rows}, on_end="hold").records("out")
        assert [(record.key, record.value) for record in expected] == output
        with store.transaction() as transaction:
            transaction.append("first", b"%d" % count)
        assert [*first, count] == [int(record.value or b"") for record in store.read("first")]
    return count


ROLES = {each.__name__: each for each in (transactions, produce, churn, process)}

if __name__ == "__main__":
    with millstream.open(sys.argv[2]) as opened:
        sys.stdout.write("r")
        sys.stdout.flush()
        ROLES[sys.argv[1]](opened)
