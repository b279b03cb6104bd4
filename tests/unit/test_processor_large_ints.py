"""Ints beyond 64 bits: exact in any lane, in memory, spilled, and wherever epochs end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st
from pipeline_runs import run_in_pieces

import millstream
from millstream import DataError, UsageError
from millstream.processor import Pipeline, agg, counting, hopping, session, tumbling
from millstream.processor.large_ints import decode_large, encode_large
from millstream.processor.state import decode_content, encode_content, encode_filed

LARGE = 2**62
SIZES = [LARGE] * 5 + [-LARGE] * 10 + [7]
ROWS = [{"k": "a", "ts": ts, "n": n} for ts, n in enumerate(SIZES)] + [{"k": "a", "ts": 90, "n": 1}]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)
plain = st.recursive(
    scalars | st.integers(-(2**200), 2**200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.lists(plain, max_size=4))
def test_ints_of_any_size_come_back(content: list[Any]) -> None:
    assert repr(content) == repr(decode_large(encode_large(content)))
    assert repr(content) == repr(decode_content(encode_content(content)))
    assert encode_filed("op", (1,), ["k"], [tuple(content)]).values == [encode_content(content)]


def test_what_is_not_kept_beside_a_large_int_is_named() -> None:
    with pytest.raises(UsageError, match=r"for key 'k'.*would come back as"):
        encode_filed("op", (1,), ["j", "k"], [(2**64,), ((1, -(2**63) - 1),)])
    with pytest.raises(UsageError, match=r"for key 'k'.*object"):
        encode_filed("op", (1,), ["j", "k"], [(2**64,), (object(),)])


@pytest.mark.parametrize("damaged", ["0201", "0291c70107ff", "0291c70302ff0102", "0291c7020291c0"])
def test_other_extensions_are_no_state(damaged: str) -> None:
    with pytest.raises(DataError, match="not a state record"):
        decode_content(bytes.fromhex(damaged))


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_sums_are_the_same_wherever_epochs_end(state: Any) -> None:
    pipeline = Pipeline("p", state=state)
    keyed = pipeline.source("in", type=dict, time="ts").key_by("k")
    sums = {"total": agg.sum("n"), "mean": agg.mean("n")}
    for name, windows in {
        "tumbling": tumbling(50),
        "hopping": hopping(50, 25),
        "session": session(10),
        "counting": counting(5),
    }.items():
        keyed.window(windows, name=name).agg(**sums).to(name)
    keyed.agg(**sums, name="running").to("running")

    at_once = run_in_pieces(pipeline, {"in": ROWS})
    found = {
        topic: [msgspec.json.decode(each.value) for each in at_once[topic]] for topic in at_once
    }
    assert [7 - 5 * LARGE, 1] == [each["total"] for each in found["tumbling"]]
    assert [5 * LARGE, -5 * LARGE, -5 * LARGE] == [each["total"] for each in found["counting"]]
    assert [sum(SIZES[: n + 1]) for n in range(16)] == [
        each["total"] for each in found["running"][:16]
    ]
    assert at_once == run_in_pieces(pipeline, {"in": ROWS}, batch_records=1, crash_every=2)


class Row(msgspec.Struct):
    k: str
    n: int
    ts: int


def test_rows_that_have_them_wait_in_a_join() -> None:
    """As rows of a type, whose bytes state has otherwise."""
    pipeline = Pipeline("p")
    left = pipeline.source("left", type=Row, time="ts").map(_times_eight).key_by("k")
    right = pipeline.source("right", type=Row, time="ts").key_by("k")
    left.join(right, within="1s", into=lambda a, b: a.n + b.n).to("out")
    inputs = {
        "left": [Row("a", LARGE, 1), Row("b", 1, 2)],
        "right": [Row("a", 5, 3), Row("a", 6, 4)],
    }
    at_once = run_in_pieces(pipeline, inputs)
    assert [8 * LARGE + 5, 8 * LARGE + 6] == [msgspec.json.decode(o.value) for o in at_once["out"]]
    assert at_once == run_in_pieces(pipeline, inputs, batch_records=1, crash_every=1)


def _times_eight(row: Row) -> Row:
    return Row(row.k, 8 * row.n, row.ts)


def test_columns_leave_them_to_rows_over_a_restart() -> None:
    with millstream.open(":memory:") as store:
        store.create_topic("in", schema=Row)
        job = Pipeline("job")
        keyed = job.source("in", type=Row, time="ts").key_by("k")
        keyed.window(tumbling(50)).agg(total=agg.sum("n")).to("out")
        for begin in range(0, len(ROWS), 4):
            rows = ROWS[begin : begin + 4]
            store.append_columns("in", {name: [row[name] for row in rows] for name in ROWS[0]})
            job.run(store, until="end", on_end="flush" if begin + 4 > len(ROWS) else "hold")
        totals = [msgspec.json.decode(each.value)["total"] for each in store.read("out")]
    assert [7 - 5 * LARGE, 1] == totals


def test_a_window_that_ends_beyond_64_bits_is_named() -> None:
    pipeline = Pipeline("p")
    keyed = pipeline.source("in", type=dict, time="ts").key_by("k")
    keyed.window(tumbling("1s"), grace=2**63 - 1, name="late").agg(n=agg.count()).to("out")
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append("in", b'{"k":"a","ts":%d}' % (2**63 - 10))
        pipeline.run(store, until="end")
        with pytest.raises(UsageError, match=r"'late' ends at W = 1844.* beyond 64 bits.*hold"):
            pipeline.run(store, until="end", on_end="flush")
