"""What expressions say of bounds alone: a batch that is left out has no row they are true of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

import millstream
from millstream import BatchFacts, FieldFacts, TopicPartition
from millstream.batch_facts import ROWS_MIN
from millstream.cli.where import Where
from millstream.processor import Expression, col, lit, parse_expression, when

INTS = st.one_of(st.integers(-3, 3), st.sampled_from([-(1 << 63), (1 << 63) - 1, (1 << 53) + 1]))
FLOATS = st.sampled_from(
    [0.0, -0.0, 1.5, -2.0, math.nan, math.inf, -math.inf, float(1 << 53), 1e308, 5e-324]
)
TEXTS = st.sampled_from(["", "a", "ab", "b", "\u00e9", "\U0001f600", "a" * 70, "a" * 80, "true"])
TIMES = st.integers(-2_000_000, 2_000_000).map(
    lambda n: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=n * 700_001)
)
FIELDS = {
    "n": (pa.int64(), INTS),
    "small": (pa.int16(), st.integers(-3, 3)),
    "x": (pa.float64(), FLOATS),
    "half": (pa.float32(), st.sampled_from([0.1, -0.0, 2.5, math.nan])),
    "text": (pa.string(), TEXTS),
    "good": (pa.bool_(), st.booleans()),
    "at": (pa.timestamp("us", "UTC"), TIMES),
    "naive": (pa.timestamp("s"), TIMES.map(lambda at: at.replace(tzinfo=None, microsecond=0))),
    "day": (pa.date32(), TIMES.map(lambda at: at.date())),
    "list": (pa.list_(pa.int64()), st.lists(INTS, max_size=2)),
}
NAMES = [*FIELDS, "added", "nowhere", "_offset", "_partition", "_timestamp", "_key"]
LITERALS = st.one_of(
    INTS,
    FLOATS,
    TEXTS,
    st.booleans(),
    TIMES.map(lambda at: at.isoformat()),
    TIMES.map(lambda at: at.date().isoformat()),
    st.none(),
).map(lit)


def deeper(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    comparisons: list[Callable[[Any, Any], Any]] = [
        lambda a, b: a == b,
        lambda a, b: a != b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a & b,
        lambda a, b: a | b,
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a // b,
        lambda a, b: a.fill_null(b),
        lambda a, b: a.starts_with(b),
        lambda a, b: when(a.is_null()).then(b).otherwise(a),
        lambda a, b: when(a).then(b).otherwise(lit(False)),
    ]
    ones: list[Callable[[Any], Any]] = [
        lambda a: ~a,
        lambda a: -a,
        lambda a: a.is_null(),
        lambda a: a.is_not_null(),
        lambda a: a.is_in([1, "a", 2.5, True]),
        lambda a: a.parse_time(),
        lambda a: a.parse_time().truncate("1h"),
        lambda a: a.year(),
        lambda a: a.date(),
        lambda a: a.abs(),
        lambda a: a.cast("float"),
        lambda a: a.field("name"),
    ]
    two = st.tuples(st.sampled_from(comparisons), inner, inner)
    one = st.tuples(st.sampled_from(ones), inner)
    return st.one_of(two.map(lambda it: built(it[0], *it[1:])), one.map(lambda it: it[0](it[1])))


def built(make: Callable[[Any, Any], Any], one: Expression, other: Expression) -> Any:
    try:
        return make(one, other)
    except millstream.UsageError:  # comparing with the constant null
        return one


EXPRESSIONS = st.recursive(
    st.one_of(st.sampled_from(NAMES).map(col), LITERALS), deeper, max_leaves=6
)


@pytest.mark.parametrize("values", ["columns", "json"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_batch_is_left_out_only_where_no_record_is_found_or_is_in_error(
    values: str, data: st.DataObject
) -> None:
    columns = {
        name: pa.array(
            repeated(data.draw(st.lists(st.one_of(st.none(), kind), min_size=1, max_size=3))),
            arrow_type,
        )
        for name, (arrow_type, kind) in FIELDS.items()
    }
    rows = pa.table(columns)
    with millstream.open(":memory:") as store:
        store.create_topic("t", schema=rows.schema, values=values)
        store.append_arrow("t", rows, timestamps_ms=[n * 1000 for n in range(ROWS_MIN)])
        widened = [
            pa.field("small", pa.int64()) if each.name == "small" else each for each in rows.schema
        ]
        store.configure_topic("t", schema=pa.schema([*widened, pa.field("added", pa.string())]))
        if data.draw(st.booleans()):
            store.append("t", None, key=b"k", timestamp_ms=0)
        seen: list[BatchFacts] = []
        reader = store.reader({TopicPartition("t", 0): 0}, may_hold=lambda it: not seen.append(it))
        records = [record for batch in reader.poll() for record in batch.records()]
        for _ in range(20):
            where = Where(str(data.draw(EXPRESSIONS)))
            if not all(map(where.may_hold, seen)):
                selection = where.select(records[:ROWS_MIN])
                assert selection.error is None
                assert selection.records == []


def repeated(few: Sequence[Any]) -> list[Any]:
    return [few[n % len(few)] for n in range(ROWS_MIN)]


KNOWN = {
    "n": FieldFacts("number", 10, 20),
    "x": FieldFacts("number", -1.5, 2.5, nulls=True),
    "any": FieldFacts("number"),
    "text": FieldFacts("text", "ba", "bz"),
    "good": FieldFacts("bool"),
    "gone": FieldFacts("nothing", nulls=True),
    "at": FieldFacts(
        "text", "1970-01-01T01:00:00", "1970-01-01T02:00:00Z", False, (3_600_000, 7_200_000)
    ),
    "list": FieldFacts("other"),
}


@pytest.mark.parametrize(
    "condition",
    [
        "n < 10",
        "n == 9 or n > 20",
        "not (n >= 10)",
        "n in (1, 2, 21)",
        "n + 5 > 25",
        "n * -1 > -10",
        "-n > -10",
        "n / 2 < 5",
        "n - x > 22",
        "x is not null and x > 2.5",
        "n is null",
        "gone == 1",
        "gone is not null",
        "fill_null(gone, n) > 20",
        'text < "b" or text > "c"',
        'starts_with(text, "c")',
        'text == "a"',
        'n == "10"',
        "good and n > 20",
        "false and 1 / 0 == 1",
        "when(n < 10, list.name, false)",
        'at > "1971"',
        'parse_time(at) < parse_time("1970-01-01T00:59:59.999Z")',
        'truncate(at, "1h") > 7200000',
        "year(at) == 1971",
        'date(at) == "1969-12-31"',
        "n > 20 and list > 3",
    ],
)
def test_conditions_that_bounds_decide(condition: str) -> None:
    assert not parse_expression(condition).may_be_true(KNOWN.__getitem__)


@pytest.mark.parametrize(
    "condition",
    [
        "n == 10",
        "n / 0 == 1",
        "text > 5",
        "text and n > 20",
        "list > 3 and n > 20",
        "any > 1e300",
        "x is null",
        "not good",
        "good",
        'starts_with(text, "b")',
        'starts_with(text, "bab")',
        "gone is null",
        "abs(n) > 100",
        "parse_time(text) > 0 and n > 20",
        'at <= "1970-01-01T01:00:00"',
    ],
)
def test_conditions_that_may_be_true_or_in_error(condition: str) -> None:
    assert parse_expression(condition).may_be_true(KNOWN.__getitem__)
