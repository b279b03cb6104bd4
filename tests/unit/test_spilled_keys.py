"""Keys of spilled state, encoded together as each is alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from millstream.processor.serde import encode_state
from millstream.processor.stored_keys import encoded_keys, stored_key, stored_keys

parts = st.sampled_from([1, 1.0, True, 0, 0.0, False, 2.5, "1", "", b"1", 2**53, 2.0**53])
keys = st.recursive(parts, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
plain = st.text() | st.binary() | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(keys) | st.lists(plain) | st.lists(st.tuples(plain, plain)))
def test_keys_together_are_what_each_is_alone(keys: Sequence[object]) -> None:
    assert list(map(stored_key, keys)) == stored_keys(keys)
    encoded = list(encoded_keys(keys))
    assert stored_keys(keys) == [stored for stored, _ in encoded]
    assert list(map(encode_state, keys)) == [shown or stored for stored, shown in encoded]
    assert all(stored != shown for stored, shown in encoded)


@pytest.mark.parametrize("other", [1.0, True], ids=repr)
def test_equal_keys_are_the_same_in_the_file(other: object) -> None:
    for one, same in [(1, other), (("k", 1), ("k", other)), ((("k", 1),), (("k", other),))]:
        ((stored, shown),) = encoded_keys([same])
        assert (stored_keys([one]), encode_state(same)) == ([stored], shown)
