"""Run a pipeline over lists, without a store: for tests, and as the meaning of a run.

The input goes through the same bytes, operators and outputs as in a run over a store; only the log
and the commit are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import accumulate, groupby
from operator import attrgetter
from types import FunctionType
from typing import Any, Final, Literal

import msgspec

from millstream import Headers, Record, TopicPartition, UsageError

from .aggregate import Aggregate
from .columns import InputBatch
from .connectors import RefusedRecords
from .deliver import refusal
from .nodes import AggregatingNode
from .outputs import Outputs
from .plan import Plan
from .serde import UNDECODABLE, Json, encode_state, encode_value
from .table_nodes import RunningNode
from .topology import Topology
from .value_aggregates import Fold, Reduce

_place: Final = attrgetter("topic", "partition")
_columns: Final = attrgetter("offset", "timestamp_ms", "key", "value", "headers")


@dataclass(frozen=True, slots=True)
class Row:
    """One input record of a test, where a value and a timestamp are not enough.

    >>> Row({"user": "u1"}, timestamp_ms=5, partition=1).partition
    1
    """

    value: object
    """Bytes are taken as they are, None is a tombstone, anything else becomes JSON; but text that
    a source of type `str` reads is UTF-8, as it reads it."""
    timestamp_ms: int = 0
    key: bytes | None = None
    partition: int = 0
    headers: Headers = ()
    append_ms: int | None = None
    """When the log got it, for sources that ask: `max_ahead`, `missing_time`."""


class TestOutput(dict[str, list[Json]]):
    """The values written to each topic or sink, in order: decoded JSON, bytes where it is none."""

    __test__ = False  # pytest takes a class of this name for tests

    def __init__(self, outputs: Outputs, topics: Mapping[str, str]) -> None:
        super().__init__()
        names = {topic: name for name, topic in topics.items()}
        self._records: dict[str, list[Record]] = {name: [] for name in topics}
        ends = Counter[TopicPartition]()
        for place, batch in outputs.batches():
            for row in batch.rows():
                name = names[place.topic]
                record = Record(name, place.partition, ends[place], *row)
                self._records[name].append(record)
                ends[place] += 1
        for topic, records in self._records.items():
            self[topic] = [decoded(record.value) for record in records]

    def __missing__(self, topic: str) -> list[Json]:
        raise KeyError(f"the pipeline writes nothing called {topic!r}; it writes {list(self)}")

    def records(self, topic: str) -> list[Record]:
        """The records written to a topic or sink, with keys, timestamps and headers."""
        return self._records[topic] if topic in self._records else self.__missing__(topic)


def decoded(value: bytes | None) -> Json:
    """The value of a record as a test compares it: decoded JSON, bytes where it is none."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value)
    except UNDECODABLE:
        return value


@dataclass(frozen=True, slots=True)
class _ListBatch:
    """Rows of a test as a batch."""

    topic: str
    partition: int
    append_timestamp_ms: int | None
    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]

    @property
    def record_count(self) -> int:
        """Number of rows."""
        return len(self.offsets)

    @property
    def has_keys(self) -> bool:
        """Whether a row may have a key."""
        return True

    @property
    def joined_values(self) -> tuple[bytes, Sequence[int]] | None:
        """As a batch of a log has them, so that a test goes the same way."""
        values = [value for value in self.values if value]
        if len(values) < len(self.values):
            return None
        return b"".join(values), list(accumulate(map(len, values), initial=0))


def as_row(topic: str, item: object, *, text: bool = False) -> tuple[Record, int | None]:
    """One item of a test's input as a record, and when it was appended; its offset comes later.

    With `text`, a string is its UTF-8, without the quotes of JSON.
    """
    if isinstance(item, Record):
        return msgspec.structs.replace(item, topic=topic), None
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], int):
        item = Row(item[0], item[1])
    if not isinstance(item, Row):
        item = Row(item)
    value = item.value
    data = value.encode() if text and isinstance(value, str) else encode_value(value)
    record = Record(topic, item.partition, 0, item.timestamp_ms, item.key, data, item.headers)
    return record, item.append_ms


def as_batches(
    inputs: Mapping[str, Iterable[object]],
    batch_records: int | None,
    texts: Collection[str] = (),
) -> Iterator[list[InputBatch]]:
    """The input as micro-batches of at most `batch_records` rows (None: all at once).

    The topics follow each other; rows of a topic stay in the order of the list, and each run of
    rows of one partition, appended at one time, is a batch. Of the topics in `texts` strings are
    values as they are.
    """
    rows: list[tuple[Record, int | None]] = []
    for topic, items in inputs.items():
        counts: dict[int, int] = {}
        for item in items:
            record, append_ms = as_row(topic, item, text=topic in texts)
            offset = counts.get(record.partition, 0)
            counts[record.partition] = offset + 1
            rows.append((msgspec.structs.replace(record, offset=offset), append_ms))
    return in_batches(rows, batch_records)


def in_batches(
    rows: Sequence[tuple[Record, int | None]], batch_records: int | None
) -> Iterator[list[InputBatch]]:
    """Records, of any topics and in one order, as micro-batches; with each when it was appended."""
    size = batch_records or max(1, len(rows))
    for start in range(0, len(rows), size):
        step = rows[start : start + size]
        yield [
            _ListBatch(*place, *map(list, zip(*(_columns(row[0]) for row in run), strict=True)))
            for place, run in groupby(step, key=lambda row: (*_place(row[0]), row[1]))
        ]


def _require_lists(inputs: object, names: Collection[str]) -> None:
    """Refuse rows of which nothing says whose they are, and one row in place of many.

    Raises:
        UsageError: With what to give instead.
    """
    if not isinstance(inputs, Mapping):
        example = next(iter(names), "topic")
        raise UsageError(
            f"test() takes the rows of each source by its name, such as {{{example!r}: [...]}}, not"
            f" {type(inputs).__name__}"
        )
    for name, items in inputs.items():
        if isinstance(items, Mapping | str | bytes) or not isinstance(items, Iterable):
            raise UsageError(f"test() takes a list of rows of {name!r}, not one: {items!r}")


def run_over_lists(
    plan: Plan,
    inputs: Mapping[str, Iterable[object]],
    *,
    batch_records: int | None = None,
    on_end: Literal["flush", "hold"] = "flush",
) -> TestOutput:
    """Run a plan over lists; see `Pipeline.test`."""
    names = plan.input_names()
    _require_lists(inputs, names)
    unknown = set(inputs) - set(names)
    if unknown:
        raise UsageError(f"{plan.name!r} does not read {sorted(unknown)}; it reads {list(names)}")
    if batch_records is not None and batch_records < 1:
        raise UsageError(f"batch_records must be at least 1, not {batch_records}")
    topology = Topology(_watching(plan))
    texts = {names[name] for name in plan.text_inputs()}
    rows = {names[name]: items for name, items in inputs.items()}
    for batches in as_batches(rows, batch_records, texts):
        topology.process(batches)
        # What no run could keep must not wait for the first run to be told.
        topology.commit_nowhere()
    if on_end == "flush":
        topology.flush()
    output = TestOutput(topology.outputs, plan.output_names())
    for node in plan.sinks():
        check = getattr(node.sink, "check", None)
        if node.sink is not None and check is not None and node.dead_letters is None:
            try:
                check(output.records(node.output_name))
            except RefusedRecords as error:
                raise refusal(plan.name, node.sink, error) from error
    return output


def _watching(plan: Plan) -> Plan:
    """The plan, with functions of reduce() and fold() that are found out where they change rows."""
    nodes = [
        replace(node, aggregates=tuple((name, _watched(each)) for name, each in node.aggregates))
        if isinstance(node, AggregatingNode | RunningNode)
        else node
        for node in plan.nodes
    ]
    return replace(plan, nodes=tuple(nodes))


def _watched(aggregate: Aggregate[Any, Any, Any]) -> Aggregate[Any, Any, Any]:
    return aggregate.with_step(_watch) if isinstance(aggregate, Reduce | Fold) else aggregate


def _watch(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if not isinstance(function, FunctionType):
        return function  # what it is for would be lost

    @wraps(function)
    def watch(so_far: Any, value: Any) -> Any:
        before = _look(value)
        made = function(so_far, value)
        if before != _look(value):
            raise TypeError(
                f"the function changed {value!r}, which other streams and windows read as well:"
                " change and return what there is so far, or make a new value"
            )
        return made

    return watch


def _look(value: object) -> bytes | None:
    """What can be seen of a value; None if that is nothing."""
    try:
        return encode_state(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
