"""A machine that loses power at any operation, with a source and sinks outside the store.

Input files, a database and output files are on the machine that dies. Whenever it does, the rows of
the database and the lines of the files are, in the end, exactly those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import NamedTuple

import pytest
from outside_world import SimulatedDatabase, SimulatedOutside, content_of, extend, put
from simulated_stores import abandon, open_quietly

from millstream import Record
from millstream.processor import (
    Pipeline,
    from_iterable,
    jsonl_files,
    sqlite_rows,
    to_callable,
    to_jsonl,
    to_sqlite,
)
from millstream.testing import MemoryStorage, crash_cases

SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "11"))
"""Every operation takes a minute; one in eleven does for each run of the tests."""

pytestmark = pytest.mark.crash


class Ends(NamedTuple):
    """What there is in the end."""

    rows: list[tuple[int, int]]
    lines: list[dict[str, int]]
    called: list[int]


class Machine:
    """A store and what is around it, on one storage that can lose power."""

    def __init__(self, storage: MemoryStorage, content: bytes | None = None) -> None:
        self.storage = storage
        self.database = SimulatedDatabase(content)
        self.outside = SimulatedOutside(storage, self.database)
        self.called: list[int] = []
        if content is None:
            self.database.query("CREATE TABLE orders (id INTEGER PRIMARY KEY, n)")
            self.database.query("INSERT INTO orders (n) VALUES (100), (101), (102)")

    def work(self) -> None:
        """Run a pipeline over all that there is."""
        outside = self.outside
        pipeline = Pipeline("p")
        files = jsonl_files("in*.jsonl", name="files", follow=True)
        orders = sqlite_rows("app.db", "orders")
        items = from_iterable([{"n": n} for n in range(200, 203)])
        rows = pipeline.source(replace(files, outside=outside)).merge(
            pipeline.source(replace(orders, outside=outside)), pipeline.source(items)
        )
        twice = rows.map(lambda row: {"n": row["n"], "twice": 2 * row["n"]})
        twice.to(replace(to_sqlite("app.db", "seen", name="table"), outside=outside))
        twice.to(replace(to_jsonl("out", name="files"), outside=outside))
        twice.to(to_callable(self.call, name="call"))
        store = open_quietly(self.storage, outside.clock)
        try:
            pipeline.run(store, until="end", batch_records=3, epoch_ms=0)
        finally:
            abandon(store) if self.storage.is_dead else store.close()

    def call(self, record: Record) -> None:
        self.called.append(json.loads(record.value or b"")["n"])

    def ends(self) -> Ends:
        names = [name for name in self.storage.list("") if name.startswith("files-")]
        content = b"".join(content_of(self.storage, name) for name in names)
        return Ends(
            self.database.query("SELECT n, twice FROM seen"),
            [json.loads(line) for line in content.splitlines()],
            self.called,
        )


def prepared() -> MemoryStorage:
    storage = MemoryStorage()
    put(storage, "in-1.jsonl", b'{"n":0}\n{"n":1}\n{"n":2}\n')
    put(storage, "in-2.jsonl", b'{"n":3}\n{"n":4}\n{"n"')
    storage.sync_directory("")
    return storage


def grown(machine: Machine) -> Machine:
    """What others have written in the meantime."""
    extend(machine.storage, "in-2.jsonl", b':5}\n{"n":6}\n')
    machine.database.query("INSERT INTO orders (n) VALUES (103)")
    return machine


def test_power_may_fail_at_any_operation() -> None:
    undisturbed = Machine(prepared())
    undisturbed.work()
    grown(undisturbed).work()
    expected = undisturbed.ends()
    assert [*range(7), *range(100, 104), *range(200, 203)] == sorted(n for n, _ in expected.rows)
    assert (
        expected.called == [n for n, _ in expected.rows] == [line["n"] for line in expected.lines]
    )

    machines: list[Machine] = []

    def work(storage: MemoryStorage) -> None:
        machines.append(Machine(storage))
        machines[-1].work()

    cases = 0
    for case in crash_cases(work, start=prepared, seeds=(SEED,), every=EVERY):
        died = machines[-1]
        survivor = grown(Machine(case.storage, died.database.content()))
        survivor.work()
        ends = survivor.ends()
        assert sorted(ends.rows) == sorted(expected.rows), case
        assert sorted(line["n"] for line in ends.lines) == sorted(expected.called), case
        # Everything once and in order, but for what came again.
        assert [n for n, _ in ends.rows] == [line["n"] for line in ends.lines], case
        calls = died.called + ends.called
        assert list(dict.fromkeys(calls)) == [n for n, _ in ends.rows], case
        cases += 1
    assert cases > 300 / EVERY
    print(f"{cases} crashes")  # noqa: T201 - for the table of robustness, shown with -rP
