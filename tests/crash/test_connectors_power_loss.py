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

from millstream import Record, Store, TopicPartition
from millstream.processor.deliver import Deliverer
from millstream.processor.ingest import Ingestor
from millstream.processor.sinks import to_callable, to_jsonl, to_sqlite
from millstream.processor.sources import from_iterable, jsonl_files, sqlite_rows
from millstream.testing import MemoryStorage, crash_cases

SEED = int(os.environ.get("MILLSTREAM_SEED", "0"))
EVERY = int(os.environ.get("MILLSTREAM_EVERY", "7"))
"""Every operation takes a minute; one in seven does for each run of the tests."""

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
        """Take in all that there is, put every number through, deliver."""
        outside = self.outside
        files = jsonl_files("in*.jsonl", name="files", follow=True)
        sources = [
            replace(files, outside=outside),
            replace(sqlite_rows("app.db", "orders"), outside=outside),
            from_iterable([{"n": n} for n in range(200, 203)]),
        ]
        store = open_quietly(self.storage, outside.clock)
        try:
            for source in sources:
                with Ingestor(store, "p", source, keep_rejected=True) as ingestor:
                    ingestor.drain()
                    process(store, ingestor.topic)
            for sink in (
                replace(to_sqlite("app.db", "seen", name="table"), outside=outside),
                replace(to_jsonl("out", name="files"), outside=outside),
                to_callable(self.call, name="call"),
            ):
                with Deliverer(store, "p", sink, dead_letters="dead") as deliverer:
                    deliverer.drain()
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


def process(store: Store, topic: str) -> None:
    """What a pipeline does: read on, write to the outboxes, commit the offset with them."""
    for sink in ("table", "files", "call"):
        name = f"@sink/p/{sink}"
        store.create_topic(name, exist_ok=True)
    checkpoint = store.checkpoint(f"offset of {topic}")
    start = int(checkpoint or b"0")
    with store.own("process") as owner, store.reader({TopicPartition(topic, 0): start}) as reader:
        while batches := reader.poll(max_records=3):
            with store.transaction(owner=owner) as transaction:
                for record in [record for batch in batches for record in batch]:
                    number = json.loads(record.value or b"")["n"]
                    value = json.dumps({"n": number, "twice": 2 * number}).encode()
                    for sink in ("table", "files", "call"):
                        transaction.append_many(f"@sink/p/{sink}", [value], partition=0)
                (position,) = reader.positions.values()
                transaction.put_checkpoint(f"offset of {topic}", b"%d" % position)


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
