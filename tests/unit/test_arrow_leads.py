"""Section A out of Arrow arrays: the same bytes as out of lists."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from millstream.arrow_leads import encode_keys, encode_times
from millstream.batch import encode_sections, encode_timestamps
from millstream.format import UNIFORM_TIMESTAMP


def random_keys(seed: int, nulls: float) -> list[bytes | None]:
    rng = random.Random(seed)
    return [
        None if rng.random() < nulls else rng.randbytes(rng.choice((0, 1, 7, 8, 30)))
        for _ in range(rng.randrange(1, 70))
    ]


@pytest.mark.parametrize("nulls", [0, 0.3, 1])
@pytest.mark.parametrize("seed", range(20))
def test_keys_take_the_bytes_they_take_as_a_list(seed: int, nulls: float) -> None:
    keys = random_keys(seed, nulls)
    whole = pa.array(keys, pa.binary())

    for start in range(len(keys)):
        rest = keys[start:]
        flags, (section, _, _) = encode_sections(b"", rest, [b""] * len(rest), None)
        assert encode_keys(whole.slice(start)) == (flags, section)


def test_a_null_key_takes_no_bytes_though_it_has_some_in_memory() -> None:
    there = pa.array([b"a", b"hidden", b"c"], pa.binary())
    _, places, data = there.buffers()
    masked = pa.Array.from_buffers(pa.binary(), 3, [pa.py_buffer(b"\x05"), places, data])
    assert masked.to_pylist() == [b"a", None, b"c"]

    assert encode_keys(masked) == encode_keys(pa.array([b"a", None, b"c"], pa.binary()))
    assert b"hidden" not in encode_keys(masked)[1]


@pytest.mark.parametrize("stamps", [[5], [7, 7, 7], [3, -9, 2**62], [-(2**63) + 1, 2**63 - 1]])
def test_times_take_the_bytes_they_take_as_a_list(stamps: list[int]) -> None:
    array = pa.array([0, *stamps], pa.int64()).slice(1)
    flags, extremes, column = encode_times(array)

    assert (extremes, column) == encode_timestamps(stamps)
    assert flags == (0 if column else UNIFORM_TIMESTAMP)
