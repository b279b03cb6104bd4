"""Arrow's JSON parser held against the strict one: the same columns, or it says nothing.

Objects of a schema, damaged in the ways that tell parsers apart: numbers at their limits, tokens
that only some know, texts that are not UTF-8, values that hold no object, two, or half of one.
"""

from __future__ import annotations

import os
import random
import struct
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from millstream.arrow_columns import from_json
from millstream.columns import padded
from millstream.json_columns import parse_objects
from millstream.topic_schema import stored_form
from millstream.uniform_json import parse_uniform

CASES = 10 * int(os.environ.get("MILLSTREAM_FUZZ_EXAMPLES", "300"))
SCHEMA = pa.schema(
    [
        pa.field("user", pa.string(), nullable=False),
        pa.field("amount", pa.float64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("ok", pa.bool_(), nullable=False),
        pa.field("note", pa.string()),
        pa.field("weight", pa.float64()),
        pa.field("small", pa.int16()),
    ]
)
PIECES = [
    *(b'"', b",", b":", b"{", b"}", b"[", b"]", b"null", b"true", b"1", b"-0", b"-0.0", b"1.0"),
    *(b"1e2", b"01", b"+1", b".5", b"1.", b"\\u0041", b"\\ud800", b"\\ud83d\\ude00", b"\xff"),
    *(b"\x00", b"\n", b"\t", b" ", b"NaN", b"Infinity", b"-Inf", b"1e400", b"1e-400", b"5e-324"),
    *(b"9223372036854775807", b"9223372036854775808", b"32768", b"123456789012345678901234567890"),
    *(b"9007199254740993", b"1e23", b"0.1", b"2.2250738585072011e-308", b"/*c*/", b"'a'"),
    *(b'"user":"b"', b'"us\\u0065r":"b"', b'"amount":7', b'"x":1', b'"x":NaN', b"\xef\xbb\xbf"),
    *(b'}{"user":"c"', b"}\n{", b'"x":{"a":[1,2]}', b'"note":[1]', b'"weight":"1"'),
]


def section(values: list[bytes]) -> bytes:
    """Section B of a batch of these values."""
    data, places = b"".join(values), [0]
    for value in values:
        places.append(places[-1] + len(value))
    offsets = struct.pack(f"<{len(places)}i", *places)
    return b"".join(part + bytes(padded(len(part)) - len(part)) for part in (offsets, data))


def cut(rng: random.Random, values: list[bytes]) -> list[tuple[bytes, int]]:
    """The values as batches."""
    place = rng.randrange(len(values))
    parts = [values[:place], values[place:]] if place else [values]
    return [(section(part), len(part)) for part in parts]


def good(rng: random.Random) -> bytearray:
    row: dict[str, Any] = {
        "user": rng.choice(["a", "\u00e9", "\u65e5\u672c", 'q"', "}{", "\n"]),
        "amount": rng.choice([1.5, 2, 0, 0.0, -0.0, 1e300, 0.1]),
        "n": rng.choice([0, 5, -7, 2**53 + 1, 2**63 - 1, -(2**63)]),
        "ok": rng.random() < 0.5,
        "note": rng.choice([None, "x", "-0"]),
        "weight": rng.choice([None, 0.25, 3]),
        "small": rng.choice([None, 3, -32768]),
    }
    fields = [each for each in row.items() if each[1] is not None or rng.random() < 0.5]
    if rng.random() < 0.3:
        rng.shuffle(fields)
    return bytearray(msgspec.json.encode(dict(fields)))


def damage(rng: random.Random, value: bytearray) -> None:
    way, piece = rng.random(), rng.choice(PIECES)
    place = rng.randrange(len(value) + 1)
    if way < 0.4:
        value[place:place] = piece
    elif way < 0.6:
        del value[place : place + rng.randrange(1, 4)]
    elif way < 0.8:
        commas = [at for at, byte in enumerate(value) if byte == ord(",")]
        place = rng.choice(commas) if commas else 0
        value[place:place] = b"," + piece
    else:
        colons = [at for at, byte in enumerate(value) if byte == ord(":")]
        start = rng.choice(colons) + 1 if colons else 0
        end = min([value.find(sign, start) % (len(value) + 1) for sign in (b",", b"}")])
        value[start:end] = piece


def refuse(index: int, reason: str) -> Exception:
    return ValueError(f"{index}: {reason}")


def test_arrow_says_what_the_strict_way_says_or_nothing() -> None:
    rng = random.Random(int(os.environ.get("MILLSTREAM_SEED", "0")))
    declared, taken, whole = stored_form(SCHEMA), 0, 0
    for _ in range(CASES):
        values = [good(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        sound = rng.random() < 0.3
        for _ in range(0 if sound else rng.choice((1, 1, 2))):
            damage(rng, rng.choice(values))
        data = [bytes(value) for value in values]
        found = parse_objects(cut(rng, data), SCHEMA)
        whole += sound
        if found is not None:
            taken += sound
            expected = from_json(data, declared, refuse)  # which refuses nothing
            assert repr(expected.to_pylist()) == repr(found.to_pylist()), data
            assert expected.schema.equals(found.schema)
    assert taken > whole / 2, "most sound values are taken; -0.0 is left to the strict way"


def uniform(rng: random.Random, count: int) -> list[bytearray]:
    """Objects that are written alike, of values that need no second look."""
    space, after = rng.choice(["", " "]), rng.choice(["", "", " ", "  "])
    kinds: dict[str, list[str]] = {
        "user": ['"a"', '""', '"\u00e9 b"', '"\u65e5\u672c"', '"x:y}{"'],
        "amount": ["1.5", "2", "0", "0.0", "-0.125", "123456789.25", "9007199254740993"],
        "n": ["0", "5", "-7", "9223372036854775807", "-9223372036854775808"],
        "ok": ["true", "false"],
        "note": ['"x"', '"-0"', '"true"'],
        "weight": ["0.25", "3", "0.1"],
        "small": ["3", "-32768", "0"],
    }
    names = list(kinds)
    if rng.random() < 0.5:
        rng.shuffle(names)
    rows = []
    for _ in range(count):
        fields = [f'"{name}"{after}:{space}{rng.choice(kinds[name])}' for name in names]
        rows.append(bytearray((f"{{{after}" + f",{space}".join(fields) + f"{after}}}").encode()))
    return rows


def are_uniform(values: list[bytes]) -> bool:
    offsets = np.array([0, *accumulate(map(len, values))], np.int32)
    data = np.frombuffer(b"".join(values), np.uint8)
    return parse_uniform(data, offsets, SCHEMA) is not None


def test_objects_written_alike_are_what_the_strict_way_says_or_nothing() -> None:
    rng = random.Random(int(os.environ.get("MILLSTREAM_SEED", "0")))
    declared, mended = stored_form(SCHEMA), 0
    for _ in range(CASES):
        values = uniform(rng, rng.choice((1, 2, 3, 10)))
        sound = rng.random() < 0.3
        for _ in range(0 if sound else rng.choice((1, 1, 2))):
            damage(rng, rng.choice(values))
        data = [bytes(value) for value in values]
        if not are_uniform(data):
            assert not sound, data
            continue
        found = parse_objects(cut(rng, data), SCHEMA)
        expected = from_json(data, declared, refuse)  # which refuses nothing
        if found is None:
            assert not sound
            assert "-0.0" in repr(expected.to_pylist()) or any(b":-0" in each for each in data)
            continue
        mended += not sound
        found.validate(full=True)
        assert repr(expected.to_pylist()) == repr(found.to_pylist()), data
        assert expected.schema.equals(found.schema)
    assert mended > CASES / 100, "some damage makes another sound object"


def test_many_batches_are_read_side_by_side() -> None:
    rng = random.Random(7)
    values = [bytes(value) for value in uniform(rng, 30_000)]
    parts = [values[start : start + 1000] for start in range(0, len(values), 1000)]

    found = parse_objects([(section(part), len(part)) for part in parts], SCHEMA)
    parts[-1][-1] = b"{}"
    broken = parse_objects([(section(part), len(part)) for part in parts], SCHEMA)

    assert found is not None
    assert found.equals(from_json(values, stored_form(SCHEMA), refuse))
    assert broken is None


def test_a_border_between_records_is_no_place_to_hide() -> None:
    one = b'{"user":"a","amount":1.5,"n":0,"ok":true}'
    split = [one + one, b'{"user":"x","amount":1.5,"n":0,', b'"ok":true}']
    text = [one + one, b'{"user":"}', b'{","amount":1.5,"n":0,"ok":true}']

    assert parse_objects([(section([one, one]), 2)], SCHEMA) is not None
    assert parse_objects([(section(split), 3)], SCHEMA) is None
    assert parse_objects([(section(text), 3)], SCHEMA) is None
    assert parse_objects([(section([b"{}" * 2, b"{", b"}"]), 3)], SCHEMA) is None


def test_a_value_may_be_longer_than_a_block() -> None:
    long = b'{"user":"%b","amount":1.5,"n":0,"ok":true}' % (b"x" * 300_000)

    found = parse_objects([(section([long, long]), 2)], SCHEMA)

    assert found is not None
    assert [300_000] * 2 == [len(row["user"]) for row in found.to_pylist()]
