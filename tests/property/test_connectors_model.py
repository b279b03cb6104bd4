"""Random lives of sources and sinks outside the store, compared with lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from outside_world import SimulatedOutside, content_of, extend, put, values_of
from simulated_stores import open_quietly

from millstream import Record, Store
from millstream.processor import deliver
from millstream.processor.connectors import RefusedRecords, Sink, SinkWriter
from millstream.processor.deliver import Deliverer
from millstream.processor.file_source import FileSource
from millstream.processor.ingest import Ingestor
from millstream.processor.line_formats import CsvRows
from millstream.processor.sinks import to_csv, to_jsonl, to_sqlite
from millstream.processor.sources import jsonl_files
from millstream.testing import ManualClock, MemoryStorage

# --- files that grow and rotate ----------------------------------------------------------------

pieces = st.lists(st.sampled_from([b"\n", b"1", b"22", b'"x"', b" ", b"\r\n"]), max_size=6)
file_step = st.one_of(
    st.tuples(st.just("grow"), st.sampled_from("abc"), pieces.map(b"".join)),
    st.tuples(st.just("rotate"), st.sampled_from("abc"), st.just(b"")),
    st.tuples(st.just("pump"), st.just(""), st.just(b"")),
    st.tuples(st.just("restart"), st.just(""), st.just(b"")),
)


class GrowingFiles:
    """Files that others write, and what has to come of them."""

    def __init__(self) -> None:
        self.outside = SimulatedOutside()
        self.written: dict[str, bytes] = {}
        """All that was ever written under a name."""
        self.count = 0

    def grow(self, name: str, content: bytes) -> None:
        extend(self.outside.storage, f"{name}.log", content)
        self.written[name] += content

    def create(self, name: str) -> None:
        """Make a file, still empty: from now on nothing of it may be missed."""
        put(self.outside.storage, f"{name}.log", b"")
        self.written[name] = b""

    def begin(self, name: str) -> None:
        """Write the first line of a file that takes the place of another; no two begin alike."""
        self.count += 1
        first = b"%d\n" % (1000 + self.count)
        put(self.outside.storage, f"{name}.log", first)
        before = self.written[name]
        # The last line of the file before ends with it.
        self.written[name] = before + b"\n" * (not before.endswith(b"\n")) + first

    def rotate(self, name: str) -> None:
        """Move a file away and begin another, as the writer does who opens it anew."""
        if name not in self.written:
            return
        storage = self.outside.storage
        for number in range(self.count, 0, -1):
            if storage.exists(f"{name}.log.{number}"):
                storage.rename(f"{name}.log.{number}", f"{name}.log.{number + 1}")
        storage.rename(f"{name}.log", f"{name}.log.1")
        self.begin(name)

    def lines(self) -> list[bytes]:
        """All whole lines, sorted."""
        found = []
        for content in self.written.values():
            lines = content.replace(b"\r\n", b"\n").split(b"\n")[:-1]
            found += [line for line in lines if line]
        return sorted(found)


@settings(max_examples=60, deadline=None)
@given(st.lists(file_step, max_size=25), st.integers(8, 64))
def test_files_that_grow_and_rotate_are_taken_in_once(
    steps: Sequence[tuple[str, str, bytes]], chunk_bytes: int
) -> None:
    files = GrowingFiles()
    source: FileSource = replace(
        jsonl_files("*.log", name="f", follow=True, rotated=True), outside=files.outside
    )
    with pytest.MonkeyPatch.context() as patch, open_quietly(MemoryStorage()) as store:
        patch.setattr("millstream.processor.file_source.CHUNK_BYTES", chunk_bytes)
        ingestor = Ingestor(store, "p", source)
        for kind, name, content in [*steps, ("pump", "", b"")]:
            if kind == "grow":
                if name not in files.written:
                    files.create(name)
                    ingestor.drain()
                files.grow(name, content)
            elif kind == "rotate":
                files.rotate(name)
            elif kind == "pump":
                ingestor.drain()
            else:
                ingestor.close()
                ingestor = Ingestor(store, "p", source)
        ingestor.close()
        taken = [value or b"" for value in values_of(store, "@source/p/f")]

        assert files.lines() == sorted(taken)


# --- deliveries that fail ----------------------------------------------------------------------

delivery_step = st.one_of(
    st.tuples(st.just("epoch"), st.integers(1, 4)),
    st.tuples(st.just("fail"), st.integers(1, 3)),
    st.tuples(st.just("pump"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
    st.tuples(st.just("lose the note"), st.just(0)),
)


class Failing(Sink):
    """Another sink, whose deliveries fail as planned, before they happen or after."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.name = sink.name
        self.delivery = sink.delivery
        self.before = 0
        self.after = False

    def open(self, outbox: str) -> FailingWriter:
        return FailingWriter(self, self.sink.open(outbox))


class FailingWriter:
    def __init__(self, plan: Failing, writer: SinkWriter) -> None:
        self.plan = plan
        self.writer = writer

    def position(self) -> int | None:
        return self.writer.position()

    def write(self, records: Sequence[Record], first: int, following: int) -> None:
        if self.plan.before:
            self.plan.before -= 1
            raise OSError("planned")
        bad = {r.offset: "bad" for r in records if json.loads(r.value or b"")["n"] % 7 == 3}
        if bad:
            raise RefusedRecords(bad)
        self.writer.write(records, first, following)
        if self.plan.after:
            self.plan.after = False
            raise KeyboardInterrupt  # the process ends here: nobody notes the delivery

    def close(self) -> None:
        self.writer.close()


class Life:
    """A store with an outbox, and a deliverer that comes and goes."""

    def __init__(self, kind: str) -> None:
        self.clock = ManualClock(1_000_000)
        self.outside = SimulatedOutside(clock=self.clock)
        table = replace(to_sqlite("x.db", "t", name="s"), outside=self.outside)
        files = replace(to_jsonl("out", name="s"), outside=self.outside)
        self.sink = Failing(table if kind == "table" else files)
        self.store: Store = open_quietly(MemoryStorage(), self.clock)
        self.numbers: list[int] = []
        self.deliverer = self.open()

    def open(self) -> Deliverer:
        return Deliverer(self.store, "p", self.sink, dead_letters="dead")

    def epoch(self, count: int) -> None:
        with self.store.transaction() as transaction:
            for _ in range(count):
                self.numbers.append(len(self.numbers))
                value = json.dumps({"n": self.numbers[-1]}).encode()
                transaction.append_many("@sink/p/s", [value])

    def step(self, kind: str, number: int) -> None:
        if kind == "epoch":
            self.epoch(number)
        elif kind == "fail":
            self.sink.before = number
        elif kind == "lose the note":
            self.sink.after = True
        elif kind == "pump":
            self.pump()
        else:
            self.deliverer.close()
            self.deliverer = self.open()

    def pump(self) -> None:
        try:
            self.deliverer.pump()
        except KeyboardInterrupt:
            self.deliverer.close()
            self.deliverer = self.open()
        self.clock.advance(200)

    def delivered(self, kind: str) -> list[int]:
        if kind == "table":
            return [n for (n,) in self.outside.simulated.query("SELECT n FROM t ORDER BY rowid")]
        names = self.outside.storage.list("")
        content = b"".join(content_of(self.outside.storage, name) for name in names)
        return [json.loads(line)["n"] for line in content.splitlines()]


@settings(max_examples=40, deadline=None)
@given(st.lists(delivery_step, max_size=25), st.integers(1, 600))
@pytest.mark.parametrize("kind", ["table", "files"])
def test_deliveries_that_fail_and_are_repeated_change_nothing(
    kind: str, steps: Sequence[tuple[str, int]], delivery_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "DELIVERY_BYTES", delivery_bytes)
        life = Life(kind)
        life.epoch(1)
        for step in steps:
            life.step(*step)
        life.sink.before, life.sink.after = 0, False
        life.deliverer.drain()
        life.deliverer.close()

        assert [n for n in life.numbers if n % 7 != 3] == life.delivered(kind)
        dead = [json.loads(value or b"")["n"] for value in values_of(life.store, "dead")]
        assert [n for n in life.numbers if n % 7 == 3] == dead
        life.store.close()


# --- quick ways --------------------------------------------------------------------------------

fields = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
    st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip
objects = st.dictionaries(st.sampled_from(["a", "b", "c"]), fields, max_size=3)
alike = st.lists(st.tuples(st.integers(0, 9), st.text('ab\r\n,"', max_size=3)), max_size=6).map(
    lambda rows: [{"a": number, "b": text} for number, text in rows]
)


def outcome(sink: Sink, rows: Sequence[object], outside: SimulatedOutside) -> object:
    """What a sink makes of values: what is refused, and what there is then."""
    writer = sink.open("box")
    encoded = [msgspec.json.encode(row) for row in rows]
    found = [Record("t", 0, at, 0, None, value, ()) for at, value in enumerate(encoded)]
    try:
        writer.write(found, 0, len(found))
    except RefusedRecords as error:
        return error.reasons
    finally:
        writer.close()
    files = [content_of(outside.storage, name) for name in outside.storage.list("")]
    return files, outside.simulated.query("SELECT * FROM t")


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(objects, max_size=6), alike), st.sampled_from(["csv", "add", "upsert"]))
def test_rows_written_at_once_are_those_written_one_by_one(
    rows: Sequence[dict[str, object]], kind: str
) -> None:
    outcomes = []
    for quick in (True, False):
        outside = SimulatedOutside()
        outside.simulated.query("CREATE TABLE t (a UNIQUE, b)")
        sink: Sink = to_csv("out", ["a", "b"])
        if kind != "csv":
            sink = (
                to_sqlite("x.db", "t", mode="upsert", key=["a"])
                if kind == "upsert"
                else (to_sqlite("x.db", "t"))
            )
        with pytest.MonkeyPatch.context() as patch:
            if not quick:
                patch.setattr("millstream.processor.file_formats.objects_of", lambda _: None)
                patch.setattr("millstream.processor.sqlite_sink.objects_of", lambda _: None)
            outcomes.append(outcome(replace(sink, outside=outside), rows, outside))

    assert outcomes[0] == outcomes[1]


csv_lines = st.lists(
    st.lists(st.sampled_from(["1", "-2", "0.5", "1e999", "x", "", " 3", "4_0", "+", "\u0665"]),
             min_size=1, max_size=3).map(",".join),
    max_size=6,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(csv_lines, st.sampled_from([int, float, bool, str]))
def test_rows_read_column_by_column_are_those_read_one_by_one(
    lines: Sequence[str], kind: type
) -> None:
    form = CsvRows(("a", "b"), {"a": kind, "b": kind})
    data = "".join(f"{line}\n" for line in lines).encode()
    quick = form.reader().rows(data, final=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("millstream.processor.line_formats.encode_objects", None)
        slow = form.reader().rows(data, final=False)

    assert (list(quick.values), list(quick.lines)) == (list(slow.values), list(slow.lines))
    assert (quick.used_bytes, quick.line_count) == (slow.used_bytes, slow.line_count)
    assert list(quick.rejected) == list(slow.rejected)
