"""Tables: running aggregates, topics read as tables, tombstones, time to live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

import millstream
from millstream import RecordError, UsageError
from millstream.processor import Aggregate, KeyedStream, Pipeline, Row, Table, agg, tumbling


class Order(msgspec.Struct):
    user: str
    amount: float
    note: str | None = None


def keyed(pipeline: Pipeline, disorder: int = 0) -> KeyedStream[str, Any]:
    return pipeline.source("in", time="t", disorder=disorder).key_by(lambda row: str(row["k"]))


def rows(*items: tuple[str, int] | tuple[str, int, object]) -> list[object]:
    return [dict(zip("ktx", item, strict=False)) for item in items]


def updates(table: Table[Any, Any], pipeline: Pipeline, inputs: Iterable[object]) -> list[object]:
    """(key, value) of what the table writes, the same for any cut of the input."""
    table.to("out")
    given = list(inputs)
    whole = pipeline.test({"in": given}).records("out")
    for size in (1, 2, 3):
        assert whole == pipeline.test({"in": given}, batch_records=size).records("out")
    return [
        (record.key.decode(), None if record.value is None else msgspec.json.decode(record.value))
        for record in whole
        if record.key is not None
    ]


def test_a_count_says_itself_with_every_row() -> None:
    pipeline = Pipeline("p")
    found = updates(keyed(pipeline).count(), pipeline, rows(("a", 5), ("b", 3), ("a", 9), ("a", 1)))
    assert [("a", 1), ("b", 1), ("a", 2), ("a", 3)] == found


def test_updates_have_the_event_time_of_their_row() -> None:
    pipeline = Pipeline("p")
    keyed(pipeline).count().to("out")
    records = pipeline.test({"in": rows(("a", 5), ("a", 3))}).records("out")
    assert [5, 3] == [record.timestamp_ms for record in records]


def test_reduce_begins_with_the_first_row() -> None:
    pipeline = Pipeline("p")
    amounts = keyed(pipeline).map(lambda row: row["x"])
    found = updates(
        amounts.reduce(max), pipeline, rows(("a", 1, 3), ("a", 2, 7), ("b", 3, 5), ("a", 4, 6))
    )
    assert [("a", 3), ("a", 7), ("b", 5), ("a", 7)] == found


def test_reduce_passes_over_none() -> None:
    pipeline = Pipeline("p")
    amounts = keyed(pipeline).map(lambda row: row["x"])
    found = updates(
        amounts.reduce(max), pipeline, rows(("a", 1, None), ("a", 2, 7), ("a", 3, None))
    )
    assert [("a", None), ("a", 7), ("a", 7)] == found


def test_a_fold_may_change_what_it_is_given() -> None:
    def append(seen: list[int], row: dict[str, Any]) -> list[int]:
        seen.append(row["x"])
        return seen

    pipeline = Pipeline("p")
    found = updates(
        keyed(pipeline).fold(list, append), pipeline, rows(("a", 1, 3), ("b", 2, 7), ("a", 3, 5))
    )
    assert [("a", [3]), ("b", [7]), ("a", [3, 5])] == found


def test_e26_a_fold_that_returns_none_deletes_its_key() -> None:
    pipeline = Pipeline("p")
    table = keyed(pipeline).fold(
        lambda: 0, lambda total, row: None if row["x"] is None else total + row["x"]
    )
    found = updates(table, pipeline, rows(("a", 1, 3), ("a", 2, None), ("a", 3, 5)))
    assert [("a", 3), ("a", None), ("a", 5)] == found, "and the next row begins anew"


def test_e26_a_row_whose_value_is_none_counts_like_any_other() -> None:
    pipeline = Pipeline("p")
    nothing = keyed(pipeline).map(lambda row: row["x"])
    found = updates(nothing.count(), pipeline, rows(("a", 1, None), ("a", 2, 1)))
    assert [("a", 1), ("a", 2)] == found


def test_named_aggregates_are_a_row_with_the_key() -> None:
    pipeline = Pipeline("p")
    table = keyed(pipeline).agg(
        n=agg.count(), total=agg.sum("x"), all=agg.collect("x", limit=5), last=agg.last("x")
    )
    found = updates(table, pipeline, rows(("a", 1, 3), ("b", 2, None), ("a", 3, 5)))
    assert [
        ("a", {"key": "a", "n": 1, "total": 3, "all": [3], "last": 3}),
        ("b", {"key": "b", "n": 1, "total": 0, "all": [], "last": None}),
        ("a", {"key": "a", "n": 2, "total": 8, "all": [3, 5], "last": 5}),
    ] == found


def test_the_state_of_any_aggregate_comes_back_after_a_crash() -> None:
    given = rows(*(("a", time, time % 7 - 2.5) for time in range(40)))

    def table() -> Pipeline:
        pipeline = Pipeline("p")
        results = keyed(pipeline).agg(
            whole=agg.distinct(lambda row: row["t"] % 9),
            pairs=agg.distinct(lambda row: (row["x"], str(row["t"] % 5))),
            middle=agg.quantile(0.5, "x"),
            top=agg.top_k(3, "x"),
            last=agg.last("x"),
            spread=agg.variance("x"),
        )
        results.to("out")
        return pipeline

    whole = table().test({"in": given}).records("out")
    with table().driver() as driver:
        for start in range(0, len(given), 7):
            driver.send_all("in", given[start : start + 3])
            driver.run()
            driver.send_all("in", given[start + 3 : start + 7])
            driver.crash()
            driver.restore()
        assert whole == driver.records("out")


def test_aggregates_are_read_by_name_behind_updates() -> None:
    pipeline = Pipeline("p")
    table = keyed(pipeline).agg(n=agg.count())
    table.updates().filter(lambda row: row["n"] > 1).map(lambda row: row.key).to("out")
    assert ["b"] == pipeline.test({"in": rows(("a", 1), ("b", 2), ("b", 3))})["out"]
    second = Pipeline("q")
    keyed(second).agg(n=agg.count()).updates().map(lambda row: row["key"]).to("out")
    with pytest.raises(RecordError, match="KeyError"):
        second.test({"in": rows(("a", 1))})


def test_one_input_row_may_be_several_rows_of_a_key() -> None:
    pipeline = Pipeline("p")
    words = pipeline.source("in", type=str).flat_map(str.split).key_by(str.lower)
    assert [("to", 1), ("be", 1), ("to", 2), ("be", 2)] == updates(
        words.count(), pipeline, [b"to be to", b"be"]
    )


def test_ttl_a_key_without_rows_is_forgotten_by_event_time() -> None:
    pipeline = Pipeline("p")
    table = keyed(pipeline).count(ttl=10)
    found = updates(
        table, pipeline, rows(("a", 0), ("a", 9), ("b", 18), ("a", 18), ("b", 40), ("a", 27))
    )
    # a lives until 9 + 10, then until 18 + 10, which W has passed when its last row comes.
    assert [("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 1), ("a", 1)] == found


def test_ttl_a_key_is_over_for_its_own_next_row_exactly_ttl_later() -> None:
    pipeline = Pipeline("p")
    found = updates(
        keyed(pipeline).count(ttl=10), pipeline, rows(("a", 0), ("a", 9), ("a", 19), ("a", 10))
    )
    assert [("a", 1), ("a", 2), ("a", 1), ("a", 2)] == found


@pytest.mark.parametrize("ttl", [10, "10ms"])
def test_ttl_holds_for_all_kinds_of_tables(ttl: int | str) -> None:
    inputs = rows(("a", 0, 1), ("b", 50, 2), ("a", 50, 4), ("a", 51, None))
    pipeline = Pipeline("p")
    fold = keyed(pipeline).fold(list, lambda seen, row: [*seen, row["x"]], ttl=ttl)
    assert [("a", [1]), ("b", [2]), ("a", [4]), ("a", [4, None])] == updates(fold, pipeline, inputs)
    pipeline = Pipeline("p")
    reduced = keyed(pipeline).map(lambda row: row["x"]).reduce(max, ttl=ttl)
    assert [("a", 1), ("b", 2), ("a", 4), ("a", 4)] == updates(reduced, pipeline, inputs)
    pipeline = Pipeline("p")
    named = keyed(pipeline).agg(ttl=ttl, total=agg.sum("x"))
    assert [1, 2, 4, 4] == [row["total"] for _, row in updates(named, pipeline, inputs)]  # type: ignore[misc]


def test_ttl_grace_and_disorder_hold_w_back() -> None:
    pipeline = Pipeline("p")
    found = updates(
        keyed(pipeline, disorder=5).count(ttl=10), pipeline, rows(("a", 0), ("b", 14), ("a", 1))
    )
    assert [("a", 1), ("b", 1), ("a", 2)] == found


@pytest.mark.parametrize("ttl", [0, -1, "0s"])
def test_ttl_of_no_time_at_all_is_refused(ttl: int | str) -> None:
    with pytest.raises(UsageError, match=r"ttl|duration"):
        keyed(Pipeline("p")).count(ttl=ttl)


def test_a_reduced_row_comes_back_as_what_it_was() -> None:
    """After a restart the function gets a Struct again, and not a dict."""
    pipeline = Pipeline("p")
    orders = pipeline.source("in", type=Order).key_by("user")
    orders.reduce(lambda left, right: Order(left.user, left.amount + right.amount)).to("out")
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        for amount in (1.5, 2.5, 4.0):
            store.append("in", msgspec.json.encode(Order("u", amount)))
            pipeline.run(store, until="end")
        values = [
            msgspec.json.decode(record.value or b"")["amount"] for record in store.read("out")
        ]
    assert [1.5, 4.0, 8.0] == values


def test_state_that_would_not_come_back_stops_the_run() -> None:
    pipeline = Pipeline("p")
    keyed(pipeline).fold(lambda: None, lambda _, row: (row["x"],)).to("out")
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append("in", b'{"k": "a", "t": 1, "x": 2}')
        with pytest.raises(UsageError, match=r"fold.*\(2,\) cannot be kept in state.*type="):
            pipeline.run(store, until="end")
        assert [] == list(store.read("out"))


def test_the_function_that_raises_is_named_with_the_record() -> None:
    pipeline = Pipeline("p")
    keyed(pipeline).map(lambda row: row["x"]).reduce(max).to("out")
    with pytest.raises(RecordError, match=r"reduce.*TypeError") as raised:
        pipeline.test({"in": rows(("a", 1, 1), ("b", 2, "x"), ("a", 3, "y"))})
    assert ("in", 0, 2) == (raised.value.topic, raised.value.partition, raised.value.offset)


def test_aggregates_that_cannot_be_declared_are_refused() -> None:
    stream = Pipeline("p").source("in", type=Order).key_by("user")
    with pytest.raises(UsageError, match="at least one aggregate"):
        stream.agg()
    with pytest.raises(UsageError, match="no field 'price'"):
        stream.agg(total=agg.sum("price"))
    with pytest.raises(UsageError, match="cannot be called 'name'"):
        stream.agg(name=agg.last("user"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be called 'key'"):
        stream.agg(key=agg.last("user"))
    with pytest.raises(UsageError, match="reduce"):
        stream.reduce(3)  # type: ignore[arg-type]


def test_a_state_type_that_never_comes_back_is_refused_when_declared() -> None:
    class Foreign:
        pass

    stream = Pipeline("p").source("in", type=Order).key_by("user")
    with pytest.raises(UsageError, match=r"fold: rows of .*Foreign cannot be kept"):
        stream.fold(Foreign, lambda seen, _: seen)


# --- topics as tables ----------------------------------------------------------------------------


def test_a_topic_is_a_table_by_record_key() -> None:
    pipeline = Pipeline("p")
    table = pipeline.table("in")
    inputs = [Row({"x": 1}, 5, b"a"), Row({"x": 2}, 6, b"b"), Row(None, 7, b"a")]
    assert [("a", {"x": 1}), ("b", {"x": 2}), ("a", None)] == updates(table, pipeline, inputs)


def test_e26_a_tombstone_deletes_and_a_null_payload_is_no_value() -> None:
    pipeline = Pipeline("p")
    table = pipeline.table("in", type=object)
    table.to("out")
    table.dead_letters.to("bad")
    output = pipeline.test({"in": [Row(1, 5, b"a"), Row(b"null", 6, b"a"), Row(None, 7, b"a")]})
    assert [1, None] == output["out"]
    (bad,) = output.records("bad")
    assert b"null" == bad.value
    assert "null is no value" in dict(bad.headers)["error"].decode()


def test_the_time_of_a_tombstone_is_that_of_its_record() -> None:
    pipeline = Pipeline("p")
    pipeline.table("in", time="t").to("out")
    records = pipeline.test({"in": [Row({"t": 50}, 5, b"a"), Row(None, 7, b"a")]}).records("out")
    assert [50, 7] == [record.timestamp_ms for record in records]


def test_a_table_may_be_keyed_by_its_values() -> None:
    pipeline = Pipeline("p")
    table = pipeline.table("in", type=dict, key="k", key_type=int)
    inputs = [Row({"k": 1}, 5, b"other"), Row({"k": 2}, 5, None), Row(None, 6, b"1")]
    assert [("1", {"k": 1}), ("2", {"k": 2}), ("1", None)] == updates(table, pipeline, inputs)


def test_e27_a_record_without_a_key_is_a_dead_letter() -> None:
    pipeline = Pipeline("p")
    table = pipeline.table("in", key="k", type=dict)
    table.to("out")
    table.dead_letters.to("bad")
    inputs = [
        Row({"k": None}),
        Row({"k": 7}),
        Row({"x": 1}),
        Row(None),
        Row(None, 0, b"\xff"),
        Row({"k": "a"}),
    ]
    output = pipeline.test({"in": inputs})
    assert [{"k": "a"}] == output["out"]
    errors = [dict(record.headers)["error"].decode() for record in output.records("bad")]
    expected = ["key is None", "give key_type=", "KeyError: 'k'", "key is None", "can't decode"]
    assert len(expected) == len(errors)
    for part, error in zip(expected, errors, strict=True):
        assert part in error


def test_tables_written_and_read_again_are_the_same() -> None:
    """`Table.to` and `Pipeline.table` fit together for every kind of key."""
    keys: list[tuple[Any, Any]] = [
        (str, "\u00e9"),
        (bytes, b"\xff"),
        (int, -7),
        (float, 0.5),
        (bool, True),
        (tuple[str, int], ("a", 1)),
    ]
    for key_type, key in keys:
        writer, reader = Pipeline("w"), Pipeline("r")
        writer.source("in", type=int).key_by(lambda _, key=key: key).count().to("t")
        seen: list[object] = []
        table = reader.table("t", type=int, key_type=key_type)
        table.updates().map(lambda n: n).key_by(lambda n: n).to("out")
        table.updates(deletions=True).peek(seen.append).to("other")
        reader.test({"t": writer.test({"in": [5]}).records("t")})
        assert [1] == seen
        again = Pipeline("a")
        again.table("t", type=int, key_type=key_type).to("t2")
        written = writer.test({"in": [5]}).records("t")
        assert written[0].key == again.test({"t": written}).records("t2")[0].key


def test_map_and_filter_of_a_table_delete_what_is_not_in_it() -> None:
    pipeline = Pipeline("p")
    table = pipeline.table("in", type=int).filter(lambda n: n > 1).map(lambda n: n * 10)
    inputs = [Row(1, 0, b"a"), Row(2, 0, b"a"), Row(0, 0, b"a"), Row(None, 0, b"a")]
    assert [("a", None), ("a", 20), ("a", None), ("a", None)] == updates(table, pipeline, inputs)


def test_updates_leave_deletions_out_unless_asked_for() -> None:
    pipeline = Pipeline("p")
    table = pipeline.table("in", type=int)
    table.updates().to("values")
    table.updates(deletions=True).to("all")
    output = pipeline.test({"in": [Row(1, 0, b"a"), Row(None, 0, b"a")]})
    assert {"values": [1], "all": [1, None]} == output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_type": dict}, "key_type="),
        ({"key_type": list[int]}, "key_type="),
        ({"key": 5}, "field name or a function"),
        ({"ttl": 0}, "ttl"),
        ({"versioned": True, "graze": 1}, "unknown options"),
        ({"type": Order, "key": "nobody"}, "no field 'nobody'"),
    ],
)
def test_tables_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline("p").table("in", **options)


def test_a_topic_is_read_once() -> None:
    pipeline = Pipeline("p")
    pipeline.source("in")
    with pytest.raises(UsageError, match="reads 'in' already"):
        pipeline.table("in")


def test_a_plan_that_counts_something_else_is_refused() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append("in", b'{"k": "a", "t": 1, "x": 2}')
        first = Pipeline("p")
        keyed(first).count(name="n").to("out")
        first.run(store, until="end")
        second = Pipeline("p")
        keyed(second).count(name="n", ttl="1h").to("out")
        with pytest.raises(UsageError, match=r"running count\(\)\n.*running count\(\), ttl 1h"):
            second.run(store, until="end")


def test_what_makes_the_state_is_said() -> None:
    pipeline = Pipeline("p")
    keyed(pipeline).agg(n=agg.count(), ttl="1h").to("out")
    assert "agg n=count(), ttl 1h  [state in.agg]" in pipeline.explain()


class Noisy(Aggregate[Any, int, int]):
    def init(self) -> int:
        return 0

    def add(self, accumulator: int, value: Any) -> int:
        return accumulator + 1

    def result(self, accumulator: int) -> int:
        return accumulator * 10


def test_an_aggregate_of_ones_own_works_without_windows() -> None:
    pipeline = Pipeline("p")
    found = updates(keyed(pipeline).agg(n=Noisy()), pipeline, rows(("a", 1), ("a", 2)))
    assert [("a", {"key": "a", "n": 10}), ("a", {"key": "a", "n": 20})] == found


def test_windows_take_the_updates_of_a_table_as_rows() -> None:
    pipeline = Pipeline("p")
    changes = keyed(pipeline).count().updates()
    changes.window(tumbling(10)).agg(most=agg.max()).to("out")
    output = pipeline.test({"in": rows(("a", 1), ("a", 2), ("a", 11))})
    assert [2, 3] == [row["most"] for row in output["out"]]


# --- tables of tables ----------------------------------------------------------------------------


def test_a_group_follows_the_rows_of_the_table() -> None:
    pipeline = Pipeline("p")
    people = pipeline.table("in")
    cities = people.group_by("city").agg(n=agg.count(), age=agg.sum("age"), mean=agg.mean("age"))
    inputs = [
        Row({"city": "Rome", "age": 10}, 0, b"ann"),
        Row({"city": "Rome", "age": 20}, 1, b"bob"),
        Row({"city": "Rome", "age": 30}, 2, b"ann"),
        Row({"city": "Oslo", "age": 30}, 3, b"ann"),
        Row(None, 4, b"bob"),
        Row(None, 5, b"bob"),
    ]
    assert [
        ("Rome", {"key": "Rome", "n": 1, "age": 10, "mean": 10.0}),
        ("Rome", {"key": "Rome", "n": 2, "age": 30, "mean": 15.0}),
        ("Rome", {"key": "Rome", "n": 2, "age": 50, "mean": 25.0}),
        ("Rome", {"key": "Rome", "n": 1, "age": 20, "mean": 20.0}),
        ("Oslo", {"key": "Oslo", "n": 1, "age": 30, "mean": 30.0}),
        ("Rome", None),
    ] == updates(cities, pipeline, inputs)


def test_e40_aggregates_that_take_nothing_back_are_refused_over_a_table() -> None:
    people = Pipeline("p").table("in")
    with pytest.raises(UsageError, match=r"max\('age'\) has no remove\(\)"):
        people.group_by("city").agg(n=agg.count(), oldest=agg.max("age"))
    with pytest.raises(UsageError, match=r"fold\(\) has no remove\(\)|has no remove"):
        people.group_by("city").agg(all=agg.fold(list, lambda seen, row: [*seen, row]))


def test_e40_a_window_over_a_table_is_refused_and_over_its_updates_is_not() -> None:
    pipeline = Pipeline("p")
    counts = keyed(pipeline).count()
    with pytest.raises(UsageError, match=r"a table has no windows.*updates\(\)\.window"):
        counts.window(tumbling(10))
    counts.updates().window(tumbling(10)).agg(n=agg.count()).to("out")
    assert [2] == [row["n"] for row in pipeline.test({"in": rows(("a", 1), ("a", 2))})["out"]]


def test_e40_a_float_cannot_be_taken_back() -> None:
    pipeline = Pipeline("p")
    pipeline.table("in").group_by("city").agg(total=agg.sum("age")).to("out")
    inputs = [Row({"city": "Rome", "age": 0.1 * n}, 0, b"%d" % n) for n in range(3)]
    with pytest.raises(
        RecordError, match=r"group_by 'city'.*taking back total: .*only ints can"
    ) as raised:
        pipeline.test({"in": [*inputs, Row(None, 1, b"1")]})
    assert 3 == raised.value.offset


def test_a_table_that_forgets_cannot_be_grouped() -> None:
    with pytest.raises(UsageError, match="time to live"):
        keyed(Pipeline("p")).agg(n=agg.count(), ttl="1h").group_by("n")


@pytest.mark.parametrize("city", [None, ["x"]])
def test_a_row_without_a_group_stops_the_run(city: object) -> None:
    pipeline = Pipeline("p")
    pipeline.table("in").group_by("city").agg(n=agg.count()).to("out")
    with pytest.raises(RecordError, match=r"group_by 'city', .*(None|list)"):
        pipeline.test({"in": [Row({"city": city}, 0, b"ann")]})


class Total(msgspec.Struct):
    n: int = 0
    seen: list[int] = []


def test_a_fold_may_change_a_struct_in_place() -> None:
    """What was put out before stays as it was, however many rows are in a step."""

    def step(held: Total, row: Any) -> Total:
        held.n += 1
        held.seen.append(row["x"])
        return held

    pipeline = Pipeline("p")
    keyed(pipeline).fold(Total, step).to("out")
    inputs = rows(("a", 1, 5), ("a", 2, 6))
    expected = [{"n": 1, "seen": [5]}, {"n": 2, "seen": [5, 6]}]
    assert pipeline.test({"in": inputs})["out"] == expected
    assert pipeline.test({"in": inputs}, batch_records=1)["out"] == expected
