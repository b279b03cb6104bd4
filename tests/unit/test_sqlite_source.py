"""Rows of a table as a source: each once, in order, and none missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from outside_world import SimulatedOutside, batches, last_position, rows

from millstream import UsageError
from millstream.processor import Source, sqlite_rows


@pytest.fixture
def outside() -> SimulatedOutside:
    return SimulatedOutside()


def table(outside: SimulatedOutside, *statements: str, **options: Any) -> Source:
    for statement in statements:
        outside.simulated.query(statement)
    return replace(sqlite_rows("app.db", "t", **options), outside=outside)


def test_rows_of_a_table_come_in_order_and_only_once(outside: SimulatedOutside) -> None:
    source = table(
        outside,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, x REAL, data BLOB)",
        "INSERT INTO t VALUES (5, 'b', 0.5, x'00ff'), (2, 'a', NULL, NULL)",
    )
    assert [
        {"id": 2, "name": "a", "x": None, "data": None},
        {"id": 5, "name": "b", "x": 0.5, "data": "AP8="},
    ] == rows(source)
    position = last_position(source, "t")
    outside.simulated.query("INSERT INTO t (name) VALUES ('c'), ('d')")

    assert ["c", "d"] == [row["name"] for row in rows(source, position=position)]


def test_many_rows_come_in_batches_of_bounded_size(outside: SimulatedOutside) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
    source = table(
        outside,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
        f"INSERT INTO t {numbers} SELECT i, CASE WHEN i % 500 THEN '' ELSE zeroblob(600000) END"
        " FROM n",
    )
    found = batches(source, "t")

    assert 5000 == sum(len(batch.values) for batch in found)
    assert max(sum(map(len, filter(None, batch.values))) for batch in found) < 4 << 20
    assert 1024 >= max(len(batch.values) for batch in found) > 100


def test_a_followed_table_is_asked_again(outside: SimulatedOutside) -> None:
    source = table(outside, "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)", follow=True)
    reading = source.open("t", None)
    assert [b'{"a":1}'] == next(reading).values  # type: ignore[union-attr]
    assert None is next(reading)
    outside.simulated.query("INSERT INTO t VALUES (2)")

    assert [b'{"a":2}'] == next(reading).values  # type: ignore[union-attr]


def test_a_column_that_grows_may_be_a_text(outside: SimulatedOutside) -> None:
    source = table(
        outside,
        "CREATE TABLE t (at TEXT NOT NULL UNIQUE, x)",
        "INSERT INTO t VALUES ('2026-02-01', 2), ('2026-01-01', 1)",
        by="at",
        columns=["x"],
    )

    assert [{"x": 1}, {"x": 2}] == rows(source)
    assert [{"x": 2}] == rows(source, position="2026-01-01")


@pytest.mark.parametrize(
    ("declaration", "options", "message"),
    [
        ("CREATE TABLE other (a)", {}, "there is no table 't'"),
        ("CREATE TABLE t (a)", {"by": "b"}, "has no columns ['b']; it has ['a']"),
        ("CREATE TABLE t (a)", {"columns": ["b"]}, "has no columns ['b']; it has ['a']"),
        ("CREATE TABLE t (a NOT NULL)", {"by": "a"}, "may hold equal values"),
        ("CREATE TABLE t (a UNIQUE)", {"by": "a"}, "may be null"),
        ("CREATE TABLE t (a PRIMARY KEY)", {"by": "a"}, "may be null"),
        ("CREATE TABLE t (a, b, PRIMARY KEY (a, b))", {"by": "a"}, "may hold equal values"),
        ("CREATE TABLE t (a PRIMARY KEY) WITHOUT ROWID", {}, "no such column: rowid"),
        ("CREATE VIEW t AS SELECT 1 AS a", {}, "no such column: rowid"),
    ],
)
def test_a_table_whose_rows_could_be_missed_is_refused(
    outside: SimulatedOutside, declaration: str, options: Any, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        rows(table(outside, declaration, **options))
    assert message in caught.value.message


def test_a_number_json_does_not_have_is_rejected(outside: SimulatedOutside) -> None:
    source = table(outside, "CREATE TABLE t (a)", "INSERT INTO t VALUES (1), (9e999), (3)")
    (batch,) = batches(source, "t")

    assert [b'{"a":1}', b'{"a":3}'] == batch.values
    assert ["row with rowid 2: JSON has no infinite numbers"] == [
        each.reason for each in batch.rejected
    ]


def test_a_database_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no database here"):
        rows(sqlite_rows(f"{tmp_path}/app.db", "t"))


def test_any_name_of_a_column_is_kept(outside: SimulatedOutside) -> None:
    source = table(
        outside,
        'CREATE TABLE t ("a ""b""" , "c\\d", "select", "\u00e9")',
        "INSERT INTO t VALUES (1, 2, 3, 4)",
    )

    assert [{'a "b"': 1, "c\\d": 2, "select": 3, "\u00e9": 4}] == rows(source)
