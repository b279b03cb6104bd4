"""What is said to who appends or reads columns in a wrong way: where, what, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from pyarrow.compute import field

import millstream
from millstream import MissingExtraError, RecordError, Store, UsageError

SCHEMA = pa.schema(
    [
        pa.field("a", pa.int64(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("day", pa.date32()),
        pa.field("nested", pa.list_(pa.struct([pa.field("at", pa.timestamp("ms"))]))),
    ]
)
GOOD = {"a": [1], "at": [datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]}
YEAR_10000_MS = 253_402_300_800_000
TOO_LATE = {
    "at": pa.array([1000 * YEAR_10000_MS], pa.int64()).cast(pa.timestamp("us", "UTC")),
    "day": pa.array([YEAR_10000_MS // 86_400_000], pa.int32()).cast(pa.date32()),
    "nested": pa.array(
        [[{"at": YEAR_10000_MS}]], pa.list_(pa.struct([pa.field("at", pa.int64())]))
    ).cast(SCHEMA.field("nested").type),
}


@pytest.fixture
def store() -> Iterator[Store]:
    """Topics that store columns ("bids"), JSON with a schema ("asks"), and neither ("plain")."""
    with millstream.open() as made:
        made.create_topic("bids", schema=SCHEMA)
        made.create_topic("asks", schema=SCHEMA, values="json")
        made.create_topic("plain")
        for topic in ("bids", "asks"):
            made.append_columns(topic, GOOD)
        made.append("plain", b"1")
        yield made


def columns_read(store: Store, topic: str, **options: Any) -> Any:
    return next(store.read(topic, **options).batches())


CALLS: dict[str, Callable[[Store, str], object]] = {
    "there is no column 'z'": lambda s, t: s.append_columns(t, GOOD | {"z": [object()]}),
    "columns is a list": lambda s, t: s.append_columns(t, [1]),  # type: ignore[arg-type]
    "data is a list": lambda s, t: s.append_arrow(t, [1]),
    "does not fit the schema:\n  ~ a: it is missing\nMend": lambda s, t: s.append_columns(t, {}),
    "keys has 2 entries": lambda s, t: s.append_arrow(t, pa.table(GOOD), keys=[b"a", b"b"]),
    "cannot change like this": lambda s, t: s.configure_topic(t, schema=SCHEMA.remove(0)),
    "there is no column 'y'": lambda s, t: s.read(t, columns=["y"]),
    "there is no column 'x'": lambda s, t: s.read(t).arrow(["x"]),
    "there is no column 'w'": lambda s, t: columns_read(s, t).arrow(["w"]),
    "columns is 'a'; give a list": lambda s, t: s.read(t).arrow("a"),
    "where is a str": lambda s, t: s.read(t).arrow(where="a > 1"),
    "has no value for a row": lambda s, t: (
        s.read(t).arrow(where=field("a") / (field("a") - 1) > 1).read_all()
    ),
    "key='nowhere'": lambda s, t: s.create_topic(t, schema=SCHEMA, key="nowhere"),
    "a scan that follows": lambda s, t: s.read(t, stop=None).arrow(),
}


@pytest.mark.parametrize("topic", ["bids", "asks"])
@pytest.mark.parametrize("said", CALLS)
def test_a_mistake_is_told_with_its_topic_once(store: Store, topic: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        CALLS[said](store, topic)
    assert said in str(caught.value)
    assert caught.value.topic == topic
    assert str(caught.value).count(topic) == 1


def test_a_column_that_was_not_read_is_named_with_the_topic(store: Store) -> None:
    batch = columns_read(store, "bids", columns=["a"])
    for call in (lambda: batch.arrow(["at"]), lambda: batch.values):
        with pytest.raises(UsageError, match=r"read.*columns=.*\(topic bids\)"):
            call()


NEEDS_SCHEMA: dict[str, Callable[[Store], object]] = {
    "append_arrow": lambda s: s.append_arrow("plain", [1]),
    "append_columns": lambda s: s.append_columns("plain", {"a": [1]}),
    "read": lambda s: s.read("plain", columns=["a"]),
    "scan": lambda s: s.read("plain").arrow(),
    "batch": lambda s: columns_read(s, "plain").arrow(),
    "schema": lambda s: columns_read(s, "plain").schema,
}


@pytest.mark.parametrize("package", ["pyarrow", "numpy"])
@pytest.mark.parametrize("door", NEEDS_SCHEMA)
def test_a_topic_without_a_schema_is_told_what_to_install_before_what_to_declare(
    store: Store, door: str, package: str
) -> None:
    with (
        mock.patch.dict(sys.modules, {package: None}),
        pytest.raises(MissingExtraError) as caught,
    ):
        NEEDS_SCHEMA[door](store)
    assert caught.value.message == (
        f"A schema or Arrow data needs the package {package}: pip install 'millstream[arrow]'"
    )
    with pytest.raises(UsageError, match=r"^the topic has no schema: .* \(topic plain\)$"):
        NEEDS_SCHEMA[door](store)


def behind_a_null(column: str) -> pa.Table:
    late = TOO_LATE[column]
    return pa.table({"a": [2, 3], column: pa.concat_arrays([pa.nulls(1, late.type), late])})


@pytest.mark.parametrize("topic", ["bids", "asks"])
@pytest.mark.parametrize("column", TOO_LATE)
def test_times_that_json_cannot_say_are_refused(store: Store, topic: str, column: str) -> None:
    """Python's dates end with the year 9999, Arrow's do not: its reader would fail at rows."""
    data = behind_a_null(column)
    with pytest.raises(UsageError, match=rf"~ {column}: a time outside of the years 1 to 9999"):
        store.append_arrow(topic, data)
    assert len(list(store.read(topic))) == 1


def test_times_that_are_stored_and_json_cannot_say_name_their_record(store: Store) -> None:
    """As versions before took them."""
    with mock.patch("millstream.column_batch.has_sayable_times", return_value=True):
        store.append_arrow("bids", behind_a_null("at"))
    with pytest.raises(
        RecordError, match=r"years 1 to 9999.*read the columns with arrow"
    ) as caught:
        list(store.read("bids"))
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == ("bids", 0, 2)
    assert store.read("bids").arrow().read_all().num_rows == 3
