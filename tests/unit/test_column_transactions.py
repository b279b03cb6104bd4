"""Columns appended inside of a transaction: seen with all the rest of it, or never."""

from __future__ import annotations

import msgspec
import pyarrow as pa
import pytest

import millstream
from millstream import Store, UsageError


@pytest.fixture
def store() -> Store:
    with millstream.open() as store:
        yield store


def test_columns_of_a_transaction_are_seen_with_all_the_rest_of_it(store: Store) -> None:
    store.create_topic("t", schema=pa.schema([("n", pa.int64())]))
    store.create_topic("rows")

    with store.transaction() as transaction:
        (written,) = transaction.append_arrow("t", pa.table({"n": [1, 2]}), keys=[b"a", b"b"])
        transaction.append("rows", b"x")
        assert 2 == written.record_count
        assert [] == list(store.read("t"))

    assert [(b"a", b'{"n":1}'), (b"b", b'{"n":2}')] == [
        (each.key, each.value) for each in store.read("t")
    ]


@pytest.mark.parametrize("partition", [None, 2])
def test_columns_by_name_in_a_transaction_are_what_they_are_beside_it(
    store: Store, partition: int | None
) -> None:
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False), ("t", pa.string())])
    for topic in ("beside", "inside"):
        store.create_topic(topic, schema=schema, partitions=3, key="n", time="n")
    columns = {"n": range(20), "t": ["x", None] * 10}

    beside = store.append_columns("beside", columns, partition=partition)
    with store.transaction() as transaction:
        inside = transaction.append_columns("inside", columns, partition=partition)
        assert [] == list(store.read("inside"))

    assert [each[1:] for each in beside] == [each[1:] for each in inside]
    inside_rows = [msgspec.structs.replace(each, topic="beside") for each in store.read("inside")]
    assert list(store.read("beside")) == inside_rows
    assert 20 == len(inside_rows)


def test_columns_that_do_not_fit_leave_a_transaction_as_it_was(store: Store) -> None:
    store.create_topic("t", schema=pa.schema([pa.field("n", pa.int64(), nullable=False)]))
    store.create_topic("plain")
    wrong = [
        ("t", {"m": [1]}, r"no column 'm'.*\(topic t\)"),
        ("t", {"n": ["x"]}, "column 'n' does not fit its type int64"),
        ("t", {"n": [None]}, "does not fit the schema"),
        ("t", [1], "columns is a list"),
        ("plain", {"n": [1]}, "has no schema"),
    ]

    with store.transaction() as transaction:
        for topic, columns, message in wrong:
            with pytest.raises(UsageError, match=message):
                transaction.append_columns(topic, columns)  # type: ignore[arg-type]
        transaction.append_columns("t", {"n": [1]})

    assert [b'{"n":1}'] == [each.value for each in store.read("t")]
    with pytest.raises(UsageError, match="transaction is committed"):
        transaction.append_columns("t", {"m": [1]})


def test_columns_of_a_transaction_that_aborts_are_never_seen(store: Store) -> None:
    store.create_topic("t", schema=pa.schema([("n", pa.int64())]))

    with store.transaction() as transaction:
        transaction.append_arrow("t", pa.table({"n": [1, 2]}))
        transaction.abort()

    store.append_arrow("t", pa.table({"n": [3]}))
    assert [b'{"n":3}'] == [each.value for each in store.read("t")]
