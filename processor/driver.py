"""Drive a pipeline by hand in a test: rows in, results out, a clock to turn, and crashes.

The pipeline runs over a real store in memory, with the epochs, state and recovery of every run;
only the disk and the clock are not real. Everything sent is processed before anything is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Self

import msgspec

import millstream
from millstream import Headers, Record, Store, UsageError, parse_duration_ms
from millstream.testing import ManualClock, MemoryStorage, SimulatedCrash

from .epoch import Epochs
from .plan import Plan
from .runtime import Metrics, RunOptions, run_over_store
from .serde import UNDECODABLE, Json, encode_value, value_decoder
from .state_log import checkpoint_name
from .state_view import StateItem, read_state
from .testkit import Row, as_row, decoded
from .ticks import Tick


class Driver:
    """A pipeline in a test. A context manager; not thread-safe. Made by `Pipeline.driver`.

    >>> from millstream.processor import Pipeline, agg, tumbling
    >>> pipeline = Pipeline("counts")
    >>> words = pipeline.source("words", type=str).key_by(str.lower)
    >>> _ = words.window(tumbling("1m")).agg(n=agg.count()).to("counts")
    >>> with pipeline.driver() as driver:
    ...     driver.send("words", "a", timestamp_ms=0)
    ...     driver.send("words", "A", timestamp_ms=59_000)
    ...     driver.crash()
    ...     driver.restore()
    ...     driver.send("words", "b", timestamp_ms=60_000)
    ...     driver.rows("counts")
    [{'key': 'a', 'window_start': 0, 'window_end': 60000, 'n': 2}]
    """

    def __init__(self, plan: Plan, start_ms: int, partitions: int) -> None:
        plan.check()
        self._plan = plan
        self.clock = ManualClock(start_ms)
        """The wall clock of store and pipeline."""
        self._storage = MemoryStorage()
        self._store: Store | None = None
        self._read: dict[str, list[int]] = {}
        self.restore()
        for topic in plan.input_topics():
            self.store.create_topic(topic, partitions=partitions)

    def __repr__(self) -> str:
        crashed = " crashed" if self._store is None else ""
        return f"<Driver {self._plan.name}, wall clock {self.clock.now_ms()} ms{crashed}>"

    @property
    def store(self) -> Store:
        """The store the pipeline runs over.

        Raises:
            UsageError: It has crashed and was not restored.
        """
        if self._store is None:
            raise UsageError("the driver has crashed: call restore() first")
        return self._store

    def send(
        self,
        topic: str,
        value: object,
        *,
        timestamp_ms: int | None = None,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> None:
        """Append one record, durably. Bytes are taken as they are, None is a tombstone, else JSON.

        Several go through `send_all`.

        Args:
            topic: A source of the pipeline, by topic or name, or any topic of the store. A source
                outside the store is not opened here.
            value: Of the record: one. `send_all` takes several.
            timestamp_ms: Of the record; by default the time of `clock`.
            key: Of the record.
            headers: Of the record.
            partition: Where to; by default by key.

        Raises:
            UsageError: The value is several records, or cannot be written as JSON. Or there is no
                such source or topic.
        """
        data = self._encoded(topic, value)
        self.store.append(
            self._known(self._plan.input_names(), topic, "reads"),
            data,
            key=key,
            timestamp_ms=timestamp_ms,
            headers=headers,
            partition=partition,
        )

    def send_all(self, topic: str, values: Iterable[object]) -> None:
        """Append values, one after the other; also a `Row` or `Record`, to say more of one.

        Offset, topic and `append_ms` of these are not used: it is appended here and now.

        Raises:
            UsageError: One is several records, or cannot be written as JSON.
        """
        if isinstance(values, str | bytes | dict):
            raise UsageError(
                f"send_all({topic!r}, ...) takes a list of values, not one"
                f" {type(values).__name__}: send({topic!r}, value) appends one"
            )
        for value in values:
            if isinstance(value, Row | Record):
                record, _ = as_row(topic, value)
                self.send(
                    topic,
                    value.value,
                    timestamp_ms=record.timestamp_ms,
                    key=record.key,
                    headers=record.headers,
                    partition=record.partition,
                )
            else:
                self.send(topic, value)

    def _encoded(self, topic: str, value: object) -> bytes | None:
        """The bytes of a record. What cannot be one value of the topic is refused at the call."""
        if isinstance(value, str) and topic in self._plan.text_inputs():
            return value.encode()
        if isinstance(value, Row | Record | Iterator):
            raise UsageError(
                f"send({topic!r}, ...) takes the value of one record, not a"
                f" {type(value).__name__}: send_all({topic!r}, [...]) appends several, and takes"
                " Row and Record as well"
            )
        try:
            data = encode_value(value)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise UsageError(
                f"send({topic!r}, ...) cannot write a {type(value).__name__} as JSON: {error};"
                " give bytes, or what msgspec can encode"
            ) from error
        if isinstance(value, list | tuple):
            self._refuse_many(topic, data)
        return data

    def _refuse_many(self, topic: str, data: bytes | None) -> None:
        """Refuse a list or tuple that no source of the topic takes for one value."""
        for node in self._plan.sources():
            if topic not in {node.input_name, node.topic}:
                continue
            problem = "it takes text and bytes" if node.type in {str, bytes} else ""
            try:
                value_decoder(node.type)(data)
            except UNDECODABLE as error:
                problem = str(error)
            if problem:
                raise UsageError(
                    f"send({topic!r}, ...) takes the value of one record, which a list is not for"
                    f" this source ({problem}): send_all({topic!r}, [...]) appends several; give"
                    " bytes to append what cannot be decoded"
                )

    def advance(
        self, wall: str | int | timedelta | None = None, *, watermark: int | None = None
    ) -> None:
        """Let time pass.

        Args:
            wall: Turn the wall clock on by this, and let the pipeline look at it.
            watermark: Raise W of all sources to this, UTC ms, as if rows had done so.
        """
        self.run()
        if wall is not None:
            self.clock.advance(parse_duration_ms(wall))
            self.run()
        if watermark is not None:
            self._tick(Tick(self.clock.now_ms(), level=watermark))

    def run(self) -> Metrics:
        """Process and commit all that was sent. Everything that looks at results does so first."""
        options: RunOptions = {"until": "end", "tick_ms": 1}
        return run_over_store(self._plan, self.store, options, connect=False)

    def end(self) -> None:
        """The input has ended: close all windows, call all timers. Rows may still come, late."""
        options: RunOptions = {"until": "end", "tick_ms": 1, "on_end": "flush"}
        run_over_store(self._plan, self.store, options, connect=False)

    def rows(self, topic: str) -> list[Json]:
        """The values written to `topic` since the last call: decoded JSON, or bytes."""
        return [decoded(record.value) for record in self.records(topic)]

    def records(self, topic: str) -> list[Record]:
        """The same as records, with key, timestamp, headers and offset."""
        self.run()
        found: list[Record] = []
        topic = self._known(self._plan.output_names(), topic, "writes")
        ends = self.store.offsets(topic)
        starts = self._read.setdefault(topic, [0] * len(ends))
        for partition, held in ends.items():
            found += self.store.read(topic, starts[partition], held.end, partition=partition)
            starts[partition] = held.end
        return found

    def _known(self, names: Mapping[str, str], name: str, what: str) -> str:
        """The topic of a source or sink that is called so, or any topic of the store."""
        topic = names.get(name, name)
        if topic not in {info.name for info in self.store.topics(internal=True)}:
            raise UsageError(
                f"pipeline {self._plan.name!r} {what} no {name!r}; it {what} {', '.join(names)}"
            )
        return topic

    def state(self, operator: str, key: object = None) -> list[StateItem]:
        """What an operator keeps, for all keys or one; see `Pipeline.query`. At first, nothing."""
        self.run()
        known = self._plan.identities()
        if operator not in known:
            raise UsageError(
                f"pipeline {self._plan.name!r} has no state called {operator!r}; it has"
                f" {', '.join(known) or 'none'}"
            )
        if self.store.checkpoint(checkpoint_name(self._plan.name)) is None:
            return []
        return list(read_state(self.store, self._plan.name, operator, key))

    def crash(self) -> None:
        """The machine dies: after all that was sent has been processed, before it is committed."""
        store = self.store
        with (
            store.own(checkpoint_name(self._plan.name)) as ownership,
            Epochs(store, self._plan, ownership) as epochs,
        ):
            topology = epochs.topology()
            with store.reader(epochs.positions()) as reader:
                while batches := reader.poll():
                    topology.process(batches)
        self._storage = self._storage.crash()
        self._store = None
        with contextlib.suppress(SimulatedCrash):
            store.close()  # frees memory and threads; its disk is gone

    def restore(self) -> None:
        """The machine comes up again with what was on its disk."""
        if self._store is None:
            self._store = millstream.open(storage=self._storage, clock=self.clock)

    def _tick(self, tick: Tick) -> None:
        store = self.store
        with (
            store.own(checkpoint_name(self._plan.name)) as ownership,
            Epochs(store, self._plan, ownership) as epochs,
        ):
            positions = epochs.positions()
            topology = epochs.topology()
            epochs.note(tick, positions)
            topology.tick(tick)
            epochs.commit(topology, positions)

    def close(self) -> None:
        """Close the store. Idempotent."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
