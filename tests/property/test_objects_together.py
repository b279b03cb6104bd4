"""Values that are decoded in one call are what each is by itself, however hostile they are.

A parser that takes one object after the other does not see where a value ends: what one lacks
another could make good. So random values of a few characters, and good ones cut and joined in wrong
places, are held against a decoder that is given each alone.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

import millstream
from millstream.processor import Pipeline
from millstream.processor.serde import objects_decoder


class Event(msgspec.Struct):
    a: int = 0
    b: str = ""


class Tagged(msgspec.Struct, tag=True):
    a: int = 0


class Listed(msgspec.Struct, array_like=True):
    a: int = 0


def test_values_that_are_objects_are_decoded_together() -> None:
    decode = objects_decoder(Event)
    assert decode is not None

    assert [Event(1), Event(2)] == decode(b'x{"a":1}{"a":2} \n{"a":3}', [1, 8, 17])


@pytest.mark.parametrize("value_type", [int, str, bytes, Any, list, dict[str, int] | None])
def test_values_that_may_be_no_objects_are_taken_one_by_one(value_type: object) -> None:
    assert objects_decoder(value_type) is None


pieces = st.sampled_from(
    [*'{}[]":, \n\\a1', '{"a":1}', '{"b":"}', '{","a":1}', '{"b":"{"}', "{}", '{"a":', "2}", "5"]
)
values = st.lists(pieces, max_size=5).map("".join)
whole = st.sampled_from(['{"a":1}', '{"b":"x"}', "{}", ' {"a":2}', '{"a":3} ', '{"a":4}\n'])
rows = st.lists(st.one_of(values, whole), min_size=2, max_size=5)


def _shifted(rows: list[str], places: list[int]) -> list[str]:
    """The same text, cut elsewhere."""
    text = "".join(rows)
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


cut_wrong = st.builds(
    _shifted,
    st.lists(whole, min_size=2, max_size=5),
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
)


@settings(max_examples=500)
@given(
    st.one_of(rows, cut_wrong), st.sampled_from([Event, Tagged, Listed, dict]), st.integers(0, 2)
)
def test_a_value_is_what_it_is_alone(texts: list[str], value_type: type, skipped: int) -> None:
    decode_all = objects_decoder(value_type)
    assert decode_all is not None
    encoded = [text.encode() for text in texts]
    bounds = list(accumulate(map(len, encoded), initial=0))
    if len(set(bounds)) < len(bounds):
        return  # a batch with an empty value has no such bounds
    found = decode_all(b"".join(encoded), bounds[skipped:])
    if found is not None:
        decode = msgspec.json.Decoder(value_type).decode
        assert found == [decode(each) for each in encoded[skipped:]]


def test_a_bad_record_among_good_ones_is_named() -> None:
    good = [b'{"t":%d}' % time for time in range(20)]
    pipeline = Pipeline("p")
    source = pipeline.source("in", time="t")
    source.to("out")
    source.dead_letters.to("bad")
    # A value without its end, one that has it, and two in one to make good for them.
    hostile = [b'{"t":50,"x":"', b'{"}', b'{"t":51} {"t":52}', b"", b'{"t":{"n":1}}']
    with millstream.open(":memory:") as store:
        store.create_topic("in")
        store.append_many("in", good[:10] + hostile + good[10:])
        pipeline.run(store, until="end")
        assert good == [record.value for record in store.read("out")]
        assert hostile == [record.value for record in store.read("bad")]
