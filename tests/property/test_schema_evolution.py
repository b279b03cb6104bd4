"""Every pair of types: a change is refused, or old values are the same values of the new type."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyarrow.compute import field

import millstream
from millstream import Store, UsageError, sql
from millstream.processor import Pipeline, col

AT = datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC)
INTEGERS = {
    kind: [low, 0, high]
    for bits in (8, 16, 32, 64)
    for kind, low, high in (
        (f"int{bits}", -(1 << bits - 1), (1 << bits - 1) - 1),
        (f"uint{bits}", 0, (1 << bits) - 1),
    )
}
TYPES: dict[str, tuple[pa.DataType, list[Any]]] = {
    **{name: (getattr(pa, name)(), values) for name, values in INTEGERS.items()},
    "float32": (pa.float32(), [-0.5, 0.0, 2.0**100]),
    "float64": (pa.float64(), [-0.5, 1e-300, 1e300]),
    "bool": (pa.bool_(), [True, False]),
    "string": (pa.string(), ["", "a", "\u00e9"]),
    "large_string": (pa.large_string(), ["", "a"]),
    "binary": (pa.binary(), [b"", b"\xff"]),
    "large_binary": (pa.large_binary(), [b"", b"\xff"]),
    "date32": (pa.date32(), [date(1969, 12, 31), date(2024, 2, 29)]),
    **{
        f"timestamp[{unit}{',utc' if zone else ''}]": (
            pa.timestamp(unit, zone),
            [AT if zone else AT.replace(tzinfo=None)],
        )
        for unit in ("s", "ms", "us")
        for zone in (None, "UTC")
    },
    "list": (pa.list_(pa.int32()), [[], [1, None]]),
    "list64": (pa.list_(pa.int64()), [[], [1, None]]),
    "struct": (pa.struct([("x", pa.int32())]), [{"x": 1}, {"x": None}]),
    "struct more": (pa.struct([("x", pa.int32()), ("y", pa.int32())]), [{"x": 1, "y": 2}]),
}
WIDER = {
    *(
        (f"{u}int{a}", f"{u}int{b}")
        for u in ("", "u")
        for a, b in itertools.combinations((8, 16, 32, 64), 2)
    ),
    *((f"uint{a}", f"int{b}") for a, b in itertools.combinations((8, 16, 32, 64), 2)),
    *((f"{u}int{a}", "float64") for u in ("", "u") for a in (8, 16, 32)),
    ("float32", "float64"),
    ("string", "large_string"),
    ("binary", "large_binary"),
    *(
        (f"timestamp[{a}{zone}]", f"timestamp[{b}{zone}]")
        for a, b in itertools.combinations(("s", "ms", "us"), 2)
        for zone in ("", ",utc")
    ),
}


@pytest.fixture
def store() -> Store:
    with millstream.open() as store:
        yield store


@pytest.mark.parametrize("before", TYPES)
def test_a_change_of_type_keeps_every_value_or_is_refused(store: Store, before: str) -> None:
    old_type, values = TYPES[before]
    old = pa.schema([("x", old_type), pa.field("id", pa.int64(), nullable=False)])
    rows = pa.table({"x": [*values, None], "id": range(len(values) + 1)}, schema=old)
    for number, (after, (new_type, more)) in enumerate(TYPES.items()):
        topic = f"t{number}"
        store.create_topic(topic, schema=old)
        store.append_arrow(topic, rows)
        new = pa.schema([("x", new_type), pa.field("id", pa.int64(), nullable=False)])
        if before != after and (before, after) not in WIDER:
            with pytest.raises(UsageError, match=r"~ x: .* -> .* \(only to a wider type\)"):
                store.configure_topic(topic, schema=new)
            continue
        store.configure_topic(topic, schema=new)
        store.append_arrow(topic, pa.table({"x": more, "id": [9] * len(more)}, schema=new))
        _reads_as(store, topic, new, [*values, None, *more])


def _reads_as(store: Store, topic: str, schema: pa.Schema, expected: list[Any]) -> None:
    """As Arrow, as rows, by a condition, by SQL."""
    table = store.read(topic).arrow().read_all()
    assert table.schema.equals(schema)
    assert table["x"].to_pylist() == expected
    ids = table["id"].to_pylist()
    rows = [record.value for record in store.read(topic)]
    assert rows == [msgspec.json.encode(row) for row in table.to_pylist()]
    nulls = store.read(topic).arrow(["id"], where=field("x").is_null()).read_all()
    assert nulls["id"].to_pylist() == [
        number for number, value in zip(ids, expected, strict=True) if value is None
    ]
    with sql.query(store, f"select x from {topic}") as found:
        assert [value for (value,) in found.rows()] == expected
    again = f"{topic}-again"
    store.create_topic(again, schema=schema)
    store.append_many(again, rows)  # what rows say is taken as it is
    assert store.read(again).arrow().read_all().equals(table)


class Old(msgspec.Struct):
    a: int


class New(msgspec.Struct):
    a: float
    b: str | None = "default"


@pytest.mark.parametrize("values", ["columns", "json"])
@pytest.mark.parametrize("kind", [New, dict])
def test_pipelines_read_old_batches_under_the_new_schema_in_both_lanes(
    store: Store, values: str, kind: type
) -> None:
    before = pa.schema([pa.field("a", pa.int32(), nullable=False)])
    after = pa.schema([pa.field("a", pa.float64(), nullable=False), ("b", pa.string())])
    store.create_topic("in", schema=before, values=values)
    store.append_many("in", [b'{"a":%d}' % n for n in range(300)])
    store.configure_topic("in", schema=after)
    store.append_many("in", [b'{"a":0.5,"b":"x"}', b'{"a":7,"b":null}'])

    columns, rows = Pipeline("columns"), Pipeline("rows")
    columns.source("in", type=kind).filter(col("a") < 9).to("columns-out")
    rows.source("in", type=kind).map(lambda row: row, name="same").filter(col("a") < 9).to(
        "rows-out"
    )
    for pipeline in (columns, rows):
        pipeline.run(store, until="end", on_end="flush")

    found = [record.value for record in store.read("columns-out")]
    assert found == [record.value for record in store.read("rows-out")]
    assert len(found) == 11


def test_a_key_or_time_stays_one_that_can_be(store: Store) -> None:
    schema = pa.schema([pa.field("k", pa.int32(), nullable=False)])
    store.create_topic("t", schema=schema, key="k")
    store.configure_topic("t", schema=pa.schema([pa.field("k", pa.int64(), nullable=False)]))
    with pytest.raises(UsageError, match="k"):
        store.configure_topic("t", schema=pa.schema([pa.field("k", pa.float64(), nullable=False)]))
    store.create_topic("narrow", schema=schema, key="k")
    with pytest.raises(UsageError, match="key='k' is double"):
        store.configure_topic(
            "narrow", schema=pa.schema([pa.field("k", pa.float64(), nullable=False)])
        )
    seconds = pa.schema([pa.field("at", pa.timestamp("s"), nullable=False)])
    store.create_topic("timed", schema=seconds, time="at")
    finer = pa.schema([pa.field("at", pa.timestamp("us"), nullable=False)])
    store.configure_topic("timed", schema=finer)
    store.append("timed", b'{"at":"2024-01-01T00:00:00.001999"}')
    (record,) = store.read("timed")
    assert record.timestamp_ms == 1_704_067_200_001
    loose = pa.schema([pa.field("at", pa.timestamp("us"))])
    with pytest.raises(UsageError, match="time='at' is nullable"):
        store.configure_topic("timed", schema=loose)
