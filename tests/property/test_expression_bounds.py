"""What expressions say of bounds alone: a batch that is left out has no row they are true of.

Everything is tried that can be made of few values: bounds around any two of them, compared with
each other and with constants. The rows are all of those values within bounds, so a condition that
bounds can decide has to be decided by them, not only never wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import combinations_with_replacement, product
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

import millstream
from millstream import BatchFacts, FieldFacts, TopicPartition
from millstream.batch_facts import ROWS_MIN, Kind
from millstream.cli.where import Where
from millstream.processor import Expression, col, lit, parse_expression, when


class Known(NamedTuple):
    """A field of which bounds are known, and values within them."""

    facts: FieldFacts
    values: tuple[Any, ...]

    def or_null(self) -> Known:
        return Known(self.facts._replace(nulls=True), (*self.values, None))


def within(kind: Kind, ends: Sequence[Any], more: Sequence[Any] = ()) -> list[Known]:
    """Bounds around any two of some values in order, of which there are `more` between."""
    return [
        Known(
            FieldFacts(kind, low, high),
            (low, high, *(value for value in (*ends, *more) if low < value < high)),
        )
        for low, high in combinations_with_replacement(ends, 2)
    ]


INTS = [-(1 << 63), -1, 0, 2, (1 << 53) + 1, (1 << 63) - 1]
FLOATS = [-1e308, -0.5, -0.0, 2.0, float(1 << 53), 1e308]
NUMBERS = [*INTS, *FLOATS, 1]
TEXTS = ["", "a", "ab", "b", "\u00e9", "\U0010ffff"]
BOOL = Known(FieldFacts("bool"), (False, True))
NULL = Known(FieldFacts("nothing", nulls=True), (None,))
OTHERS = [BOOL, BOOL.or_null(), NULL]
A, B, C = col("a"), col("b"), col("c")
COMPARISONS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
]
ORDERS = [COMPARISONS[2], COMPARISONS[4]]
ARITHMETIC: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
]


def forms(condition: Expression) -> list[Expression]:
    """What is asked to see each of true, false and null."""
    return [condition, ~condition, condition.is_null()]


def judged(condition: Expression, fields: Iterable[Sequence[Known]], *, exact: bool) -> None:
    """Check what a condition says of bounds of a, b and so on, against rows within them."""
    for known in fields:
        said = condition.may_be_true(facts_of(known).__getitem__)
        if not said or exact:
            rows = product(*(each.values for each in known))
            found = any(true_or_error(condition, row) for row in rows)
            assert said == found, f"{condition} of {known}"


def facts_of(known: Sequence[Known]) -> dict[str, FieldFacts]:
    return {name: each.facts for name, each in zip("abc", known, strict=False)}


def true_or_error(condition: Expression, row: Sequence[Any]) -> bool:
    try:
        return condition(dict(zip("abc", row, strict=False))) is True
    except (TypeError, ValueError, ArithmeticError):
        return True


def few(*kinds: list[Known]) -> list[Known]:
    """Of several kinds, and some of each that may be null."""
    return [*(one for kind in kinds for one in (*kind, kind[1].or_null(), kind[0].or_null()))]


def test_comparisons_with_a_constant() -> None:
    numbers = [within("number", ends, NUMBERS) for ends in (INTS, FLOATS)]
    fields = [*few(*numbers, within("text", TEXTS)), *OTHERS]
    for compare, value in product(COMPARISONS, [*INTS, *FLOATS[1:5], *TEXTS[1:], True]):
        for condition in forms(compare(A, lit(value))):
            judged(condition, ((one,) for one in fields), exact=True)


def test_comparisons_of_two_fields() -> None:
    numbers = [within("number", ends, NUMBERS) for ends in (INTS[1::2], FLOATS[2:5])]
    fields = [*few(*numbers, within("text", TEXTS[::2])), *OTHERS]
    for compare in COMPARISONS:
        for condition in forms(compare(A, B)):
            judged(condition, product(fields, fields), exact=True)


def test_bounds_that_are_not_known() -> None:
    numbers, texts = (
        Known(FieldFacts("number"), (-1, 2)),
        Known(FieldFacts("text"), ("", "b", 2 * TEXTS[-1])),
    )
    for compare, value in product(COMPARISONS, [-(1 << 63), 0, 1e308, "", "a", "\U0010ffff"]):
        for condition in forms(compare(A, lit(value))):
            judged(condition, [(numbers,), (texts,), (texts.or_null(),)], exact=False)


def test_membership_and_beginnings_of_texts() -> None:
    texts = few(within("text", TEXTS))
    numbers = few(within("number", INTS, NUMBERS))
    for part in TEXTS:
        for number, condition in enumerate(forms(A.starts_with(part))):
            judged(condition, ((one,) for one in texts), exact=number == 0)
            judged(condition, ((one,) for one in (*numbers, *OTHERS)), exact=False)
    for one, other in [(0, "a"), (2, "b"), (-0.5, "\u00e9"), (True, ""), (1e308, "\U0010ffff")]:
        for number, condition in enumerate(forms(A.is_in([one, other]))):
            judged(condition, ((one,) for one in (*numbers, *texts, BOOL)), exact=number == 0)


def test_arithmetic() -> None:
    ints, floats = within("number", [-3, -1, 0, 2]), within("number", [-1.5, -0.0, 0.5])
    fields = [*ints, *floats, ints[1].or_null()]
    for compare, value in product(ORDERS, [-4.5, -1, 0, 0.25, 6]):
        judged(compare(-A, value), ((one,) for one in fields), exact=True)
        for compute in ARITHMETIC:
            judged(compare(compute(A, B), value), product(fields, fields), exact=True)


def test_arithmetic_at_the_ends_of_what_numbers_there_are() -> None:
    fields = [
        *within("number", INTS[::2] + INTS[-1:]),
        *within("number", FLOATS[::2] + FLOATS[-1:]),
    ]
    for compare, value in product(ORDERS, [-(1 << 54), 1e308]):
        for compute in ARITHMETIC:
            judged(compare(compute(A, B), value), product(fields, fields), exact=False)


def test_ints_beside_floats_are_not_added_by_their_largest() -> None:
    one, other = (Known(FieldFacts("number", n, n), (n,)) for n in (1 << 53, float(1 << 53)))
    for a, b in [(one, other), (other, one)]:
        judged(A.fill_null(B) + 3 > (1 << 53) + 3, [(a.or_null(), b)], exact=True)


def test_first_values_that_are_not_null() -> None:
    texts, numbers = within("text", TEXTS[:3]), within("number", INTS[1:4])
    fields = [*few(texts, numbers), *OTHERS]
    for compare, value in product(ORDERS, ["a", 0]):
        for condition in forms(compare(A.fill_null(B), value)):
            judged(condition, product(fields, fields), exact=True)


def always(value: object, kind: Kind) -> Known:
    return Known(FieldFacts(kind, value, value), (value,))  # type: ignore[arg-type]


ATOMS: list[tuple[Callable[[Expression], Expression], Known]] = [
    (lambda x: x, BOOL),
    (lambda x: x, BOOL.or_null()),
    (lambda x: x, NULL),
    (lambda x: x, always(1, "number")),
    (lambda x: x, always("a", "text").or_null()),
    (lambda x: x == 1, always(1, "number")),
    (lambda x: x == 1, always(2, "number")),
    (lambda x: x == 1, always(1, "number").or_null()),
    (lambda x: x == 1, always(2, "number").or_null()),
    (lambda x: x < 1, always("a", "text")),
]


def test_logic() -> None:
    """Of operands that may be each of true, false, null and an error, or some of them."""
    for atoms in product(ATOMS, repeat=3):
        a, b, c = (make(one) for (make, _), one in zip(atoms, (A, B, C), strict=True))
        known = [known for _, known in atoms]
        for condition in (a & b & c, a | b | c, when(a).then(b).otherwise(c)):
            for form in (condition, condition.is_null()):
                judged(form, [known], exact=True)
            judged(~condition, [known], exact=True)

    for (one, a), (other, b) in product(ATOMS, repeat=2):
        filled = one(A).fill_null(other(B))
        for form in (*forms(filled), ~filled.is_null(), lit(False) & filled, filled & (lit(1) / 0)):
            judged(form, [(a, b)], exact=True)


def known_times() -> list[Known]:
    """Of texts and numbers: UTC ms, and how a directory says them."""
    times = {
        "1969-12-31T23:59:59.500Z": -500,
        "1970-01-01T00:00:00Z": 0,
        "1970-01-01T01:30:00.001Z": 5_400_001,
        "1971-01-01T00:00:00Z": 31_536_000_000,
    }
    texts = within("text", list(times))
    for number, (_, values) in enumerate(texts):
        ends = times[values[0]], times[values[1]]
        low, high = values[0][:19], values[1][:19] + "Z"
        texts[number] = Known(FieldFacts("text", low, high, times_ms=ends), values)
    return few(texts, within("number", list(times.values())))


def test_times() -> None:
    computed = [
        (A.parse_time(), (-500, 0, 5_400_001, 1e13)),
        (A.truncate("1h"), (-3_600_000, 0, 3_600_000)),
        (A.year(), (1969, 1970, 1971)),
        (A.date(), ("1969-12-31", "1970-01-01", "1972")),
    ]
    for value, constants in computed:
        for compare, constant in product(ORDERS, constants):
            for condition in forms(compare(value, constant)):
                judged(condition, ((one,) for one in known_times()), exact=True)


def test_the_time_zone_of_a_year_is_not_that_of_bounds() -> None:
    for condition in (A.year("Asia/Tokyo") == 1970, A.date("Asia/Tokyo") == "1970-01-01"):
        judged(condition, ((one,) for one in known_times()), exact=False)


def test_dates_fall_where_a_clock_is_put_back_behind_midnight() -> None:
    """It was the 7th for a minute in St. John's, then the 6th again for an hour."""
    texts = ("2010-11-07T02:30:30Z", "2010-11-07T03:00:00Z", "2010-11-07T04:00:00Z")
    ends = (1_289_097_030_000, 1_289_102_400_000)
    known = Known(FieldFacts("text", texts[0][:19], texts[2], times_ms=ends), texts)
    day = A.date("America/St_Johns")
    assert [day({"a": text})[-2:] for text in texts] == ["07", "06", "07"]
    for compare, constant in product(ORDERS, ("2010-11-06", "2010-11-07")):
        for condition in forms(compare(day, constant)):
            judged(condition, [(known,)], exact=False)


def test_what_has_no_bounds() -> None:
    fields = [
        Known(FieldFacts("other", nulls=True), ([1], {"name": 1}, None)),
        Known(FieldFacts("number", -1.5, 1e308), (-1.5, 1e308)),
        Known(FieldFacts("text", "a", "b"), ("a", "b")),
    ]
    for value in (
        A,
        A % 2,
        A // 2,
        A.abs(),
        A.cast("float"),
        A.field("name"),
        A.year("Asia/Tokyo"),
    ):
        for condition in forms(value == 1):
            judged(condition, ((one,) for one in fields), exact=False)


# --- what batches say of their fields -----------------------------------------------------------

ANY_INT = st.one_of(st.integers(-3, 3), st.sampled_from([-(1 << 63), (1 << 63) - 1, (1 << 53) + 1]))
ANY_FLOAT = st.sampled_from(
    [0.0, -0.0, 1.5, -2.0, math.nan, math.inf, -math.inf, float(1 << 53), 1e308, 5e-324]
)
ANY_TEXT = st.sampled_from(["", "a", "ab", "b", "\u00e9", "\U0001f600", "a" * 70, "a" * 80, "true"])
ANY_TIME = st.integers(-2_000_000, 2_000_000).map(
    lambda n: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=n * 700_001)
)
FIELDS = {
    "n": (pa.int64(), ANY_INT),
    "small": (pa.int16(), st.integers(-3, 3)),
    "x": (pa.float64(), ANY_FLOAT),
    "half": (pa.float32(), st.sampled_from([0.1, -0.0, 2.5, math.nan])),
    "text": (pa.string(), ANY_TEXT),
    "good": (pa.bool_(), st.booleans()),
    "at": (pa.timestamp("us", "UTC"), ANY_TIME),
    "naive": (pa.timestamp("s"), ANY_TIME.map(lambda at: at.replace(tzinfo=None, microsecond=0))),
    "day": (pa.date32(), ANY_TIME.map(lambda at: at.date())),
    "list": (pa.list_(pa.int64()), st.lists(ANY_INT, max_size=2)),
}
NAMES = [*FIELDS, "added", "nowhere", "_offset", "_partition", "_timestamp", "_key"]
LITERALS = st.one_of(
    ANY_INT,
    ANY_FLOAT,
    ANY_TEXT,
    st.booleans(),
    ANY_TIME.map(lambda at: at.isoformat()),
    ANY_TIME.map(lambda at: at.date().isoformat()),
    st.none(),
).map(lit)


def deeper(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    twos: list[Callable[[Any, Any], Any]] = [
        *COMPARISONS,
        *ARITHMETIC,
        lambda a, b: a & b,
        lambda a, b: a | b,
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
    two = st.tuples(st.sampled_from(twos), inner, inner)
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
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_batches_are_left_out_for_deep_conditions_only_where_no_record_is_found(
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


# --- one by one ---------------------------------------------------------------------------------

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
