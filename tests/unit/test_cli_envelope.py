"""JSON lines: what is written is read back bit for bit, and bad lines are named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from millstream import Record
from millstream.cli.envelope import Parsed, encode_records, parse_lines

DATA = st.none() | st.binary(max_size=20) | st.text(max_size=20).map(str.encode)
RECORDS = st.builds(
    Record,
    st.just("t"),
    st.integers(0, 3),
    st.integers(0, 2**63 - 1),
    st.integers(-(2**63) + 1, 2**63 - 1),  # the least int64 stands for "none" on disk
    DATA,
    DATA,
    st.lists(st.tuples(st.text(max_size=5), DATA), max_size=3).map(tuple),
)


@given(st.lists(RECORDS, max_size=5))
def test_records_survive_json_bit_for_bit(records: list[Record]) -> None:
    lines = b"".join(encode_records(records)).split(b"\n")

    parsed = parse_lines(lines, 1)

    assert parsed.error is None
    assert parsed.values == [record.value for record in records]
    assert parsed.keys == [record.key for record in records]
    assert parsed.timestamps_ms == [record.timestamp_ms for record in records]
    assert parsed.partitions == [record.partition for record in records]
    assert parsed.headers == [record.headers for record in records]


def test_a_line_is_plain_json_that_other_tools_read() -> None:
    record = Record("t", 1, 7, 5, b"\xff", "caf\u00e9".encode(), (("h", None),))

    (line,) = encode_records([record])

    assert json.loads(line) == {
        "topic": "t",
        "partition": 1,
        "offset": 7,
        "timestamp": 5,
        "key": {"$base64": True, "encoded": "/w=="},
        "value": "caf\u00e9",
        "headers": [["h", None]],
    }


def parse(line: str) -> Parsed:
    return parse_lines([line.encode()], 1)


def test_lines_of_kcat_and_rpk_are_read() -> None:
    kcat = parse(
        '{"topic":"t","partition":0,"offset":1,"tstype":"create","ts":9,"broker":0,'
        '"headers":["a","1","b",null],"key":"k","payload":"v"}'
    )
    assert (kcat.values, kcat.keys, kcat.timestamps_ms) == ([b"v"], [b"k"], [9])
    assert kcat.headers == [(("a", b"1"), ("b", None))]
    rpk = parse('{"topic":"t","value":"v","timestamp":9,"headers":[{"key":"a","value":"1"}]}')
    assert (rpk.values, rpk.headers) == ([b"v"], [(("a", b"1"),)])
    assert parse('{"value":null,"headers":{"a":"1"}}').headers == [(("a", b"1"),)]
    assert parse('{"value":"v","timestamp_ms":7}').timestamps_ms == [7]


def test_blank_lines_are_skipped_and_counted() -> None:
    parsed = parse_lines([b"", b'{"value":"a"}', b" \r", b"x"], 10)
    assert parsed.values == [b"a"]
    assert parsed.error is not None
    assert parsed.error.line == 13


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"value":"a","timestamp":-9223372036854775808}', "`int` >= -9223372036854775807"),
        ("x", "not JSON"),
        ('{"value":"a"} {"value":"b"}', "not JSON"),
        ('{"value":"\\ud800"}', "not JSON"),
        ("[1]", "Expected `object`"),
        ("{}", 'no "value"'),
        ('{"valeu":"a"}', 'no "value"'),
        ('{"value":1}', "$.value"),
        ('{"value":{"a":1}}', "$.value"),
        ('{"value":{"$base64":false,"encoded":"aa=="}}', '"$base64" must be true'),
        ('{"value":{"$base64":true,"encoded":"?"}}', "base64"),
        ('{"value":"a","timestamp":1.5}', "$.timestamp"),
        ('{"value":"a","timestamp":9223372036854775808}', "timestamp"),
        ('{"value":"a","headers":["a"]}', "name without a value"),
        ('{"value":"a","headers":[1]}', "not a [name, value] pair"),
        ('{"value":"a","headers":[[1,"a"]]}', "header name"),
        ('{"value":"a","headers":[["a",1]]}', "header value"),
    ],
)
def test_a_bad_line_is_named_and_those_before_it_are_kept(line: str, reason: str) -> None:
    parsed = parse_lines([b'{"value":"good"}', line.encode(), b'{"value":"after"}'], 1)
    assert parsed.values == [b"good"]
    assert len(parsed.keys) == len(parsed.headers) == len(parsed.partitions) == 1
    assert parsed.error is not None
    assert parsed.error.line == 2
    assert reason in parsed.error.reason


def test_deep_nesting_is_an_error_and_no_crash() -> None:
    parsed = parse('{"value":"a","headers":' + "[" * 100_000)
    assert parsed.values == []
    assert parsed.error is not None
    assert "nested too deeply" in parsed.error.reason
