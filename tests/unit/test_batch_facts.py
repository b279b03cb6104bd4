"""What a batch says of its fields before its rows are read, kind by kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

import millstream
from millstream import BatchFacts, FieldFacts, Store, TopicPartition
from millstream.batch_facts import NOTHING, ROWS_MIN
from millstream.column_section import Chunk, encode_section, open_directory, pack
from millstream.format import BatchHeader
from millstream.topic_schema import stored_form

FIRST = datetime(1969, 12, 31, 23, 59, 59, 500_000, UTC)
LAST = datetime(2024, 2, 29, 12, 0, 0, 250_001, UTC)
FIRST_TEXT, LAST_TEXT = "1969-12-31T23:59:59", "2024-02-29T12:00:00Z"
LAST_MS = 1_709_208_000_250


@pytest.fixture
def store() -> Iterator[Store]:
    with millstream.open() as opened:
        yield opened


def facts_of(store: Store) -> list[BatchFacts]:
    """Those of the batches of `t` that are asked about."""
    seen: list[BatchFacts] = []
    with store.reader({TopicPartition("t", 0): 0}, may_hold=lambda it: not seen.append(it)) as it:
        while it.poll():
            pass
    return seen


def said(store: Store, kind: Any, few: list[Any]) -> FieldFacts:
    """What is said of a column of these values."""
    store.create_topic("t", schema=pa.schema([("x", kind)]))
    # Texts have bounds where they rise.
    column = [few[n * len(few) // ROWS_MIN] for n in range(ROWS_MIN)]
    store.append_columns("t", {"x": pa.array(column, kind)})
    (facts,) = facts_of(store)
    return facts.field("x")


LONG = "b" * 70
KINDS: list[tuple[Any, list[Any], FieldFacts]] = [
    (pa.bool_(), [True, False], FieldFacts("bool")),
    (pa.int16(), [-3, 7], FieldFacts("number", -3, 7)),
    (pa.uint64(), [5, (1 << 64) - 1], FieldFacts("number", 5, (1 << 64) - 1)),
    (pa.float64(), [-0.5, 1.5, None], FieldFacts("number", -0.5, 1.5, nulls=True)),
    # In rows these are null.
    (pa.float64(), [1.5, math.nan], FieldFacts("number", nulls=True)),
    (pa.float32(), [1.5, math.inf], FieldFacts("number", nulls=True)),
    (pa.float64(), [-math.inf, 1.5], FieldFacts("number", nulls=True)),
    (pa.string(), ["a", LONG], FieldFacts("text", "a", "b" * 59 + "c")),
    (pa.large_string(), ["a", None, "z"], FieldFacts("text", "a", "z", nulls=True)),
    (
        pa.timestamp("us", "UTC"),
        [FIRST, LAST],
        FieldFacts("text", FIRST_TEXT, LAST_TEXT, times_ms=(-500, LAST_MS + 1)),
    ),
    (
        pa.timestamp("ms", "UTC"),
        [FIRST, LAST.replace(microsecond=250_000)],
        FieldFacts("text", FIRST_TEXT, LAST_TEXT, times_ms=(-500, LAST_MS)),
    ),
    (
        pa.timestamp("s", "UTC"),
        [FIRST.replace(microsecond=0), LAST.replace(microsecond=0)],
        FieldFacts("text", FIRST_TEXT, LAST_TEXT, times_ms=(-1000, LAST_MS - 250)),
    ),
    (
        pa.timestamp("us"),
        [FIRST.replace(tzinfo=None), LAST.replace(tzinfo=None)],
        FieldFacts("text", FIRST_TEXT, LAST_TEXT),
    ),
    (
        pa.date32(),
        [date(1969, 12, 30), date(2024, 2, 29)],
        FieldFacts("text", "1969-12-30", "2024-02-29"),
    ),
    (pa.binary(), [b"a", b"b"], FieldFacts("other")),
    (pa.list_(pa.int64()), [[1], []], FieldFacts("other")),
    (pa.int64(), [None], NOTHING),
    (pa.bool_(), [None], NOTHING),
]


@pytest.mark.parametrize(
    ("kind", "few", "expected"), KINDS, ids=[str(n) for n in range(len(KINDS))]
)
def test_what_is_said_of_a_field(
    store: Store, kind: Any, few: list[Any], expected: FieldFacts
) -> None:
    assert expected == said(store, kind, few)


@pytest.mark.parametrize(
    ("kind", "limits", "expected"),
    [
        (pa.int64(), None, FieldFacts("number")),
        (pa.int64(), (b"a", b"b"), FieldFacts("number", -math.inf, math.inf)),
        (pa.float64(), None, FieldFacts("number", nulls=True)),
        (pa.string(), None, FieldFacts("text")),
        (pa.string(), (b"a", b"\xff"), FieldFacts("text")),
        (pa.date32(), None, FieldFacts("text")),
        (pa.date32(), (0, 1 << 30), FieldFacts("other")),
        (pa.timestamp("us"), None, FieldFacts("other")),
        (pa.timestamp("s", "UTC"), (-(1 << 60), 0), FieldFacts("other")),
    ],
)
def test_what_is_said_without_bounds_and_of_bounds_that_make_no_sense(
    kind: Any, limits: Any, expected: FieldFacts
) -> None:
    schema = pa.schema([("x", kind)])
    section = encode_section(bytes(schema.serialize()), [pack(Chunk((b"chunk",), 0, limits), 0)])
    blank = BatchHeader._make([0] * len(BatchHeader._fields))
    directory = open_directory(section.stored, section.hash)
    header = blank._replace(record_count=300)
    facts = BatchFacts("t", 0, header, stored_form(schema), directory)
    assert expected == facts.field("x")


def test_batches_of_256_records_and_more_are_asked_about(store: Store) -> None:
    store.create_topic("t")
    for count in (255, 256, 257):
        store.append_many("t", [b"{}"] * count, timestamps_ms=range(count))
    facts = facts_of(store)
    assert [(255, 510), (511, 767)] == [each.offsets for each in facts]
    assert [(0, 255), (0, 256)] == [each.timestamps_ms for each in facts]
    assert [None, None] == [each.names for each in facts]
    assert {("t", 0)} == {(each.topic, each.partition) for each in facts}


@pytest.mark.parametrize("values", ["columns", "json"])
def test_names_are_those_of_columns(store: Store, values: Any) -> None:
    store.create_topic("t", schema=pa.schema([("a", pa.int64())]), values=values)
    store.append_columns("t", {"a": [*range(ROWS_MIN - 1), None]})
    (facts,) = facts_of(store)
    assert facts.names == (("a",) if values == "columns" else None)
    if values == "columns":
        assert FieldFacts("number", 0, 254, nulls=True) == facts.field("a")  # of one null


def test_fields_that_came_later_are_null_in_what_was_before(store: Store) -> None:
    store.create_topic("t", schema=pa.schema([("n", pa.int32())]))
    store.append_columns("t", {"n": range(ROWS_MIN)})
    store.configure_topic("t", schema=pa.schema([("n", pa.int64()), ("late", pa.string())]))
    store.append_columns("t", {"n": [1 << 40] * ROWS_MIN, "late": ["a"] * ROWS_MIN})

    before, after = facts_of(store)

    assert ("n", "late") == before.names == after.names
    assert [NOTHING, FieldFacts("text", "a", "a")] == [
        each.field("late") for each in (before, after)
    ]
    assert [FieldFacts("number", 0, 255), FieldFacts("number", 1 << 40, 1 << 40)] == [
        each.field("n") for each in (before, after)
    ]
    assert NOTHING == before.field("nobody")


def test_beside_tombstones_a_field_may_be_null(store: Store) -> None:
    """How many records are rows is not known then."""
    schema = pa.schema([("n", pa.int64()), ("none", pa.int64())])
    store.create_topic("t", schema=schema, compact=True)
    values = [None, *([b'{"n":7}'] * ROWS_MIN)]
    store.append_many("t", values, [b"k%d" % n for n in range(len(values))])

    (facts,) = facts_of(store)

    assert facts.header.has_tombstones
    assert FieldFacts("number", 7, 7, nulls=True) == facts.field("n")
    assert facts.field("none").nulls
