"""Keys, values, state records and checkpoints as bytes."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given, strategies as st

from millstream import DataError, FormatVersionError, UsageError
from millstream.processor.checkpoint import (
    EMPTY,
    Checkpoint,
    OperatorState,
    SourceState,
    decode_checkpoint,
    encode_checkpoint,
)
from millstream.processor.serde import (
    all_plain_keys,
    encode_key,
    encode_keys,
    encode_value,
    key_problem,
    ordered_keys,
    value_decoder,
)
from millstream.processor.state import decode_entry, encode_entries, encode_filed, encode_removed

plain_keys = st.one_of(
    st.text(),
    st.binary(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
keys = st.recursive(plain_keys, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
plain = st.recursive(
    st.one_of(st.none(), plain_keys),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.integers(-(2**63), 2**63 + 10**9), st.lists(st.tuples(keys, st.lists(plain))))
def test_state_comes_back_as_it_was(end: int, entries: list[tuple[object, list[object]]]) -> None:
    paths = [(end, key) for key, _ in entries]
    records = encode_entries("op", paths, [tuple(state) for _, state in entries])
    decoded = [decode_entry(*record) for record in zip(*records, strict=True)]
    assert [((end, key), state) for key, state in entries] == decoded
    values = [tuple(state) for _, state in entries]
    assert records == encode_filed("op", (end,), [key for key, _ in entries], values)


def test_what_would_come_back_as_another_type_is_refused_under_its_key() -> None:
    with pytest.raises(UsageError, match=r"for key 'k' .*Decimal"):
        encode_filed("op", (1,), ["j", "k"], [(1, "a"), (1, Decimal(2))])
    with pytest.raises(UsageError, match="for key 'k'"):
        encode_filed("op", (1,), ["j", "k"], [(1, [1]), (1, (1, 2))])


def test_what_is_gone_is_one_record() -> None:
    (key,), (value,) = encode_removed([(60_000,)])
    assert value is None
    assert decode_entry(key, value) == ((60_000,), None)


def test_nan_is_kept_in_state() -> None:
    records = encode_entries("op", [(5, "a")], [(math.nan,)])
    entry = decode_entry(records.keys[0], records.values[0])
    assert entry.value is not None
    assert math.isnan(entry.value[0])


@pytest.mark.parametrize("value", [Decimal("1.5"), (1, 2), {"a": {3, 4}}, object()])
def test_state_that_would_change_or_cannot_be_written_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="state of 'op' cannot be kept: for key 'a'"):
        encode_entries("op", [(5, "b"), (5, "a"), (5, "c")], [(1,), (value,), (2,)])


@given(st.binary(max_size=30), st.none() | st.binary(max_size=30))
def test_foreign_bytes_are_never_taken_for_state(key: bytes, value: bytes | None) -> None:
    try:
        decode_entry(key, value)
    except DataError:
        return


def test_state_of_a_newer_version_is_refused() -> None:
    records = encode_entries("op", [(5, "a")], [(1,)])
    with pytest.raises(FormatVersionError, match="version 03"):
        decode_entry(records.keys[0], b"\x03" + (records.values[0] or b"")[1:])


@given(st.lists(keys))
def test_keys_are_ordered_by_their_bytes(names: list[object]) -> None:
    ordered = ordered_keys(names)
    assert [encode_key(key) for key in ordered] == sorted(encode_key(key) for key in names)


@given(st.lists(st.text()))
def test_the_shortcuts_for_text_keys_change_nothing(names: list[str]) -> None:
    assert encode_keys(names) == [encode_key(key) for key in names]
    if all_plain_keys(names):
        assert all(key_problem(key) is None for key in names)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (["a"], "a key cannot be a list"),
        ({"a": 1}, "a key cannot be a dict"),
        (math.nan, "NaN"),
        (("a", -math.inf), "the key is -inf"),
        (2**63, "64 bits"),
        ("\ud800", "not valid Unicode"),
        (("a", (1, None)), "a key cannot be a NoneType"),
    ],
)
def test_keys_that_would_not_come_back_are_named(key: object, problem: str) -> None:
    assert problem in (key_problem(key) or "")


def test_values_are_json_but_bytes_and_none() -> None:
    assert encode_value({"a": [1, None]}) == b'{"a":[1,null]}'
    assert encode_value(b"\x00raw") == b"\x00raw"
    assert encode_value(None) is None


def test_bytes_and_text_sources_are_not_json() -> None:
    assert value_decoder(bytes)(b"\xff") == b"\xff"
    assert value_decoder(str)("\u00e9".encode()) == "\u00e9"
    with pytest.raises(UsageError, match="cannot be decoded"):
        value_decoder(int | type(object()))


CHECKPOINT = Checkpoint(
    7,
    [("orders", 0, 12)],
    {"orders": SourceState([(0, 99)], 89)},
    {"orders.window": OperatorState("key_by 'user'; tumbling", 4, 3, 2)},
    {"orders": 3, "@state/revenue/orders.window": 4},
)


def test_a_checkpoint_comes_back_as_it_was() -> None:
    assert decode_checkpoint(encode_checkpoint(CHECKPOINT)) == CHECKPOINT
    assert decode_checkpoint(None) == EMPTY


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01", b"\x01\x80", b"\x01{}"])
def test_other_bytes_are_no_checkpoint(data: bytes) -> None:
    with pytest.raises(DataError):
        decode_checkpoint(data)
