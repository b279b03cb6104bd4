"""Gathered columns are what lists of the same entries are, in every place that takes either."""

from __future__ import annotations

from struct import pack

import pytest

import millstream
from millstream import JoinedBytes, JoinedTimes, UsageError
from millstream.batch import encode_batch
from millstream.columns import encode_binary


@pytest.mark.parametrize("values", [[], [b""], [b"a", b"", b"bcd"], [b"wide"] * 40, [b""] * 40])
@pytest.mark.parametrize("bitmap", [False, True])
def test_joined_bytes_are_encoded_as_a_list_of_them_is(values: list[bytes], bitmap: bool) -> None:
    half = len(values) // 2
    joined = JoinedBytes(values[:half])
    joined.extend(values[half:])

    expected = encode_binary(values, "values", b"8 before", bitmap=bitmap)
    assert expected == encode_binary(joined, "values", b"8 before", bitmap=bitmap)
    assert values == list(joined)


def test_joined_bytes_can_be_indexed_in_any_order_and_cut() -> None:
    values = [b"a", b"", b"bcd", b"ef"]
    joined = JoinedBytes(values)

    assert values[::-1] == [joined[index] for index in (3, 2, 1, 0)]
    assert values[-1] == joined[-1]
    with pytest.raises(IndexError):
        joined[4]
    for start in range(5):
        for stop in range(5):
            part = joined[start:stop]
            assert values[start:stop] == list(part)
            assert sum(map(len, values[start:stop])) == part.size_bytes
    assert values[::2] == list(joined[::2])


def test_joined_bytes_know_what_is_in_them() -> None:
    joined = JoinedBytes([b"a", b"bc"])

    assert b"bc" in joined
    assert b"ab" not in joined
    assert None not in joined


@pytest.mark.parametrize("wrong", [None, "text", 7, memoryview(pack("<2i", 1, 2)).cast("i")])
def test_joined_bytes_refuse_all_of_what_is_no_bytes_in_part(wrong: object) -> None:
    joined = JoinedBytes([b"a"])

    with pytest.raises(TypeError):
        joined.extend([b"b", wrong])  # type: ignore[list-item]

    assert (1, [b"a"], 1) == (len(joined), list(joined), joined.size_bytes)


def test_joined_bytes_may_be_told_what_the_entries_are_together() -> None:
    joined = JoinedBytes([b"a"])
    joined.extend([b"bc", b"d"], b"bcd")

    assert [b"a", b"bc", b"d"] == list(joined)
    with pytest.raises(TypeError):
        joined.extend([b"e"], b"ef")
    assert (3, 4) == (len(joined), joined.size_bytes)


@pytest.mark.parametrize("times", [[7], [7, 7], [5, -3, 2**63 - 1], [-(2**63) + 1, 0]])
def test_joined_times_are_encoded_as_a_list_of_them_is(times: list[int]) -> None:
    joined = JoinedTimes(times[:1])
    joined.extend(times[1:])
    values = [b"v"] * len(times)

    expected = encode_batch(values, None, times)
    found = encode_batch(JoinedBytes(values), None, joined)
    assert expected.sections == found.sections
    assert (expected.flags, expected.min_timestamp_ms, expected.max_timestamp_ms) == (
        found.flags,
        found.min_timestamp_ms,
        found.max_timestamp_ms,
    )
    assert times == list(joined) == [joined[index] for index in range(len(times))]
    assert times[1:] == list(joined[1:])


@pytest.mark.parametrize("wrong", [None, "5", 1.5, 2**63, -(2**63)])
def test_joined_times_refuse_all_of_what_is_no_time_in_part(wrong: object) -> None:
    joined = JoinedTimes([5])

    with pytest.raises(UsageError, match=r"timestamps_ms\[1\]"):
        joined.extend([6, wrong])  # type: ignore[list-item]

    assert ([5], 5, 5) == (list(joined), joined.minimum, joined.maximum)


def test_gathered_columns_can_be_appended_to_partitions_by_key() -> None:
    values, keys, times = [b"a", b"b", b"c"], [b"k1", b"k2", b"k3"], [3, 1, 2]
    found = []
    for columns in (
        (values, keys, times),
        (JoinedBytes(values), JoinedBytes(keys), JoinedTimes(times)),
    ):
        with millstream.open(":memory:") as store:
            store.create_topic("t", partitions=3)
            store.append_many("t", *columns)
            records = store.read("t")
            found.append([(one.partition, one.timestamp_ms, one.key, one.value) for one in records])
    assert found[0] == found[1]


def test_joined_keys_are_appended_without_taking_them_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = JoinedBytes([b"k%d" % number for number in range(100)])
    values = JoinedBytes([b"v"] * 100)
    expected = encode_batch(list(values), list(keys))

    def never(*_: object) -> None:
        raise AssertionError("taken apart")

    for name in ("__iter__", "__getitem__", "__contains__"):
        monkeypatch.setattr(JoinedBytes, name, never)
    assert expected.sections == encode_batch(values, keys).sections


def test_a_time_is_repeated_as_if_it_were_given_so_often() -> None:
    times = JoinedTimes([7])
    times.extend_same(5, 3)
    times.extend([6])
    assert [7, 5, 5, 5, 6] == list(times)
    assert (5, 5, 7) == (len(times), times.minimum, times.maximum)
    for wrong in (-(1 << 63), 1 << 63, "5"):
        with pytest.raises(UsageError, match="timestamps_ms"):
            times.extend_same(wrong, 2)  # type: ignore[arg-type]
    assert 5 == len(times)
