"""Deduplication held against a model that remembers everything."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, strategies as st
from pipeline_runs import run_in_pieces

from millstream.processor import Pipeline, Row

Event = tuple[int, int, str, str]
"""Partition, time, key, id."""
NEVER = -(10**30)

events = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(-10, 25), st.sampled_from("xy"), st.sampled_from("abc")
    ),
    max_size=40,
).map(lambda rows: [(p, time + 2 * place, k, i) for place, (p, time, k, i) in enumerate(rows)])
cuts = st.tuples(st.integers(1, 6), st.integers(0, 3))


def model(
    rows: Sequence[Event], within: int, disorder: int, *, keyed: bool
) -> tuple[list[int], list[int]]:
    """Numbers of the rows that pass, and of the late ones."""
    maxima: dict[int, int] = {}
    level = NEVER
    passed: dict[tuple[str, ...], list[int]] = {}
    first, late = [], []
    for number, (partition, time, key, identity) in enumerate(rows):
        seen = passed.setdefault((key, identity) if keyed else (identity,), [])
        if time + within <= level:
            late.append(number)
        elif all(abs(time - other) >= within for other in seen):
            seen.append(time)
            first.append(number)
        maxima[partition] = max(maxima.get(partition, NEVER), time)
        level = max(level, min(maxima.values()) - disorder)
    return first, late


@given(events, st.integers(1, 20), st.integers(0, 12), st.booleans(), cuts)
def test_what_passes_is_the_first_of_its_kind(
    rows: list[Event], within: int, disorder: int, keyed: bool, cut: tuple[int, int]
) -> None:
    pipeline = Pipeline("p")
    source = pipeline.source("in", type=dict, time="t", disorder=disorder)
    stream = source.key_by("k") if keyed else source
    once = stream.dedup("id", within=within)
    once.map(lambda row: row["n"]).to("out")
    once.late.map(lambda row: row["n"]).to("late")
    inputs = [
        Row({"t": t, "k": k, "id": i, "n": n}, partition=p) for n, (p, t, k, i) in enumerate(rows)
    ]
    out = run_in_pieces(pipeline, {"in": inputs}, batch_records=cut[0], crash_every=cut[1])
    found = tuple([int(record.value or b"") for record in out[topic]] for topic in ("out", "late"))
    assert model(rows, within, disorder, keyed=keyed) == found
