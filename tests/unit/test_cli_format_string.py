"""Format strings: kcat's tokens, rpk's braces, and every mistake named."""

from __future__ import annotations

import pytest

from millstream import Record, UsageError
from millstream.cli.format_string import compile_format, rfc3339, unescape

RECORD = Record(
    "orders", 2, 7, 1_763_892_000_123, b"k1", b"v\xff", (("a", b"1"), ("b", None), ("a", b"2"))
)
NULLS = Record("orders", 0, 8, -1, None, None, ())


def printed(text: str, record: Record = RECORD, null: bytes = b"") -> bytes:
    (line,) = compile_format(text, null=null)([record])
    return line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%s", b"v\xff"),
        ("%v", b"v\xff"),
        ("%S", b"2"),
        ("%V", b"2"),
        ("%k", b"k1"),
        ("%K", b"2"),
        ("%t", b"orders"),
        ("%p", b"2"),
        ("%o", b"7"),
        ("%T", b"1763892000123"),
        ("%d", b"1763892000123"),
        ("%h", b"a=1,b=,a=2"),
        ("%H", b"3"),
        ("%R", b"\x00\x00\x00\x02"),
        ("%%", b"%"),
        ("100%%", b"100%"),
        ("", b""),
        ("plain", b"plain"),
        (r"\n\t\r\0\\\x41\xff", b"\n\t\r\0\\A\xff"),
        (r"%t [%p] at offset %o: key %k: %s\n", b"orders [2] at offset 7: key k1: v\xff\n"),
        ("%k{hex}:%s{base64}", b"6b31:dv8="),
        ("%t{hex}", b"6f7264657273"),
        ("%s{text}", b"v\xff"),
        ("%V{big8}", b"\x02"),
        ("%S{big16}", b"\x00\x02"),
        ("%o{little32}", b"\x07\x00\x00\x00"),
        ("%o{big64}", b"\x00\x00\x00\x00\x00\x00\x00\x07"),
        ("%o{hex}", b"0000000000000007"),
        ("%o{ascii}", b"7"),
        ("%d{strftime[%F %T]}", b"2025-11-23 10:00:00"),
        ("%d{strftime[%%]}", b"%"),
        ("%d{rfc3339}", b"2025-11-23T10:00:00.123Z"),
        ("%h{%k:%v;}", b"a:1;b:;a:2;"),
        (r"%h{%k{hex}=%v\n}", b"61=1\n62=\n61=2\n"),
        ("%h{%k%}}", b"a}b}a}"),
        ("%h{%%}", b"%%%"),
        ("%{x%}", b"{x}"),
        ("{x}", b"{x}"),
        ("\u00e9%p", "\u00e9".encode() + b"2"),
    ],
)
def test_format_prints(text: str, expected: bytes) -> None:
    assert printed(text) == expected


def test_nulls_print_as_nothing_or_as_the_given_text() -> None:
    assert printed("%k|%s|%K|%S|%h|%H", NULLS) == b"||-1|-1||0"
    assert printed("%k|%s", NULLS, null=b"NULL") == b"NULL|NULL"
    assert printed("%s{hex}", NULLS, null=b"NULL") == b"NULL"
    assert printed("%h", RECORD, null=b"NULL") == b"a=1,b=NULL,a=2"
    assert printed("%R", NULLS) == b"\xff\xff\xff\xff"
    assert printed("%S{little64}", NULLS) == b"\xff" * 8


def test_an_argument_that_is_not_utf8_is_printed_as_its_bytes() -> None:
    assert printed(b"\xff%p".decode("utf-8", "surrogateescape")) == b"\xff2"


def test_one_output_per_record_also_without_tokens() -> None:
    assert list(compile_format("x")([RECORD, NULLS])) == [b"x", b"x"]
    assert list(compile_format("%o")([])) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%", "unknown token % at character 1"),
        ("ab%z", "unknown token %z at character 3"),
        (r"\q", "unknown escape"),
        (r"\x4", "unknown escape"),
        ("\\", "unknown escape"),
        ("%s{hex", "never closed"),
        ("%s{zip}", "unknown modifier {zip}"),
        ("%p{big7}", "unknown modifier {big7}"),
        ("%p{zip}", "unknown modifier {zip}"),
        ("%d{zip}", "unknown modifier {zip}"),
        ("%h{%o}", "not %o"),
        ("%R{hex}", "%R takes no braces"),
        ("%t{zip}", "unknown modifier"),
        ("%h{%z}", "unknown token"),
    ],
)
def test_a_bad_format_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_format(text)
    assert message in str(caught.value)


def test_unescape_reads_delimiters() -> None:
    assert unescape(r"\x00\n:") == b"\x00\n:"
    assert unescape("") == b""


def test_times_outside_the_calendar_print_as_numbers() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999Z"
    assert rfc3339(2**62) == str(2**62)
    far = Record("orders", 0, 0, 2**62, None, None, ())
    assert printed("%d{strftime[%F]}", far) == str(2**62).encode()
