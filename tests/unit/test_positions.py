"""The position grammar: every form, every refusal, and no input that is silently misread."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st

from millstream.errors import UsageError
from millstream.positions import (
    Position,
    datetime_to_ms,
    parse_duration_ms,
    parse_position,
    parse_range,
    parse_size_bytes,
)

NOW_MS = 1_763_892_000_000  # 2025-11-23T10:00:00Z


def timestamp(value: int) -> Position:
    return Position("timestamp", value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("earliest", Position("earliest")),
        ("beginning", Position("earliest")),
        ("start", Position("earliest")),
        ("latest", Position("latest")),
        ("end", Position("latest")),
        ("stored", Position("stored")),
        ("0", Position("offset", 0)),
        ("42", Position("offset", 42)),
        (42, Position("offset", 42)),
        (-10, Position("tail", 10)),
        ("-10", Position("tail", 10)),
        ("+3", Position("after_start", 3)),
        ("@1763892000", timestamp(NOW_MS)),
        ("@1763892000123", timestamp(NOW_MS + 123)),
        ("s@1763892000123", timestamp(NOW_MS + 123)),
        ("e@1763892000123", timestamp(NOW_MS + 123)),
        ("@2025-11-23", timestamp(NOW_MS - 36_000_000)),
        ("@2025-11-23T10:00:00Z", timestamp(NOW_MS)),
        ("@2025-11-23T10:00Z", timestamp(NOW_MS)),
        ("@2025-11-23t10:00:00z", timestamp(NOW_MS)),
        ("@2025-11-23 12:00:00.250+02:00", timestamp(NOW_MS + 250)),
        ("@-15m", timestamp(NOW_MS - 900_000)),
        ("@-1h30m", timestamp(NOW_MS - 5_400_000)),
        ("@+PT1H", timestamp(NOW_MS + 3_600_000)),
        ("@now", timestamp(NOW_MS)),
        ("@end", Position("latest")),
        (datetime(2025, 11, 23, 10, tzinfo=UTC), timestamp(NOW_MS)),
        (datetime(2025, 11, 23, 12, tzinfo=timezone(timedelta(hours=2))), timestamp(NOW_MS)),
        (Position("tail", 4), Position("tail", 4)),
    ],
)
def test_position_is_parsed(text: str | int, expected: Position) -> None:
    assert parse_position(text, NOW_MS) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "Earliest", " 1", "1 ", "--1", "+-1", "1.5", "0x10", "\u0664\u0662", "5:6", "@",
        "@15", "@12345678901", "@15m", "@-15", "@-", "@2025-13-01", "@2025-11-23T25:00:00Z",
        "@2025-11-23T10:00:00", "@x", "x@1763892000", "9" * 19, "9" * 5000, True, 2.5, None, 2**63,
        datetime(2025, 11, 23, 10),  # noqa: DTZ001 - the naive datetime is what is refused
    ],
)  # fmt: skip
def test_what_is_not_a_position_is_refused(text: object) -> None:
    with pytest.raises(UsageError):
        parse_position(text, NOW_MS)  # type: ignore[arg-type]  # wrong types on purpose


def test_missing_zone_error_shows_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"write @2025-11-23T10:00:00Z for UTC"):
        parse_position("@2025-11-23T10:00:00", NOW_MS)


@given(st.sampled_from(["offset", "tail", "timestamp", "after_start"]), st.integers(0, 2**63 - 1))
def test_position_prints_in_its_own_grammar(kind: str, value: int) -> None:
    position = Position(kind, value)  # type: ignore[arg-type]  # sampled from the literals
    if kind == "timestamp":
        value = 10**12 + value % (9 * 10**12)  # 13 digits are what the grammar can spell
        position = timestamp(value)
    assert parse_position(str(position), 0) == position


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_usage_error(text: str) -> None:
    for parse in (
        lambda: parse_position(text, NOW_MS),
        lambda: parse_range(text, NOW_MS),
        lambda: parse_duration_ms(text),
        lambda: parse_size_bytes(text),
    ):
        with contextlib.suppress(UsageError):
            parse()


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("5:10", Position("offset", 5), Position("offset", 10)),
        ("5", Position("offset", 5), None),
        ("5:", Position("offset", 5), None),
        (":end", Position("earliest"), Position("latest")),
        (":10", Position("earliest"), Position("offset", 10)),
        (":", Position("earliest"), None),
        ("", Position("earliest"), None),
        ("-10", Position("tail", 10), None),
        ("-10:-2", Position("tail", 10), Position("tail", 2)),
        ("stored:end", Position("stored"), Position("latest")),
        ("@1763892000:1763892001", timestamp(NOW_MS), timestamp(NOW_MS + 1000)),
        ("@1763892000:@1763892001", timestamp(NOW_MS), timestamp(NOW_MS + 1000)),
        ("@-1h:-5m", timestamp(NOW_MS - 3_600_000), timestamp(NOW_MS - 300_000)),
        ("@-1h:end", timestamp(NOW_MS - 3_600_000), Position("latest")),
        ("@-1h:-5", timestamp(NOW_MS - 3_600_000), Position("tail", 5)),
        ("@-1h", timestamp(NOW_MS - 3_600_000), None),
        ("1:@-5m", Position("offset", 1), timestamp(NOW_MS - 300_000)),
        ("@2025-11-23:2025-11-24", timestamp(NOW_MS - 36_000_000), timestamp(NOW_MS + 50_400_000)),
        ("@2025-11-23T10:00:00Z:2025-11-23T10:00:01Z", timestamp(NOW_MS), timestamp(NOW_MS + 1000)),
        ("@2025-11-23T12:00:00+02:00:end", timestamp(NOW_MS), Position("latest")),
        ("s@1763892000123:e@1763892000124", timestamp(NOW_MS + 123), timestamp(NOW_MS + 124)),
        ("s@1763892000123", timestamp(NOW_MS + 123), None),
        ("e@1763892000123", Position("earliest"), timestamp(NOW_MS + 123)),
        (":@2025-11-23T10:00:00Z", Position("earliest"), timestamp(NOW_MS)),
    ],
)
def test_range_is_parsed(text: str, start: Position, stop: Position | None) -> None:
    assert parse_range(text, NOW_MS) == (start, stop)


@pytest.mark.parametrize("text", ["1:2:3", "a:b", "@-1h5", "@2025-11-23x:end", "0:stored", "@:x"])
def test_what_is_not_a_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_range(text, NOW_MS)


@pytest.mark.parametrize(
    ("value", "expected_ms"),
    [
        ("10s", 10_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("250ms", 250),
        ("1m5ms", 60_005),
        ("7d", 604_800_000),
        ("2w", 1_209_600_000),
        ("0", 0),
        ("0s", 0),
        ("PT1H", 3_600_000),
        ("P1DT2H3M4.5S", 93_784_500),
        ("P1W", 604_800_000),
        ("PT5M", 300_000),
        (timedelta(seconds=1.5), 1500),
        (1234, 1234),
    ],
)
def test_duration_is_parsed(value: str | int | timedelta, expected_ms: int) -> None:
    assert parse_duration_ms(value) == expected_ms


@pytest.mark.parametrize(
    "value",
    [
        "", "5", "-5s", "s", "5x", "5 s", "5S", "P", "PT", "P1M", "PT1D", "1.5ms", "1e3s", -1, True,
        2.5, None, timedelta(seconds=-1), timedelta(microseconds=1), "9" * 19 + "w", 2**63,
    ],
)  # fmt: skip
def test_what_is_not_a_duration_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        parse_duration_ms(value)  # type: ignore[arg-type]  # wrong types on purpose


@pytest.mark.parametrize(
    ("value", "expected_bytes"),
    [
        ("512", 512), ("512B", 512), ("10kB", 10_000), ("10KB", 10_000), ("10MB", 10_000_000),
        ("10M", 10_000_000), ("1KiB", 1024), ("64MiB", 67_108_864), ("1GiB", 1_073_741_824),
        ("1.5GB", 1_500_000_000), ("64 KiB", 65_536), ("1TB", 10**12), (7, 7), ("0", 0),
    ],
)  # fmt: skip
def test_size_is_parsed(value: str | int, expected_bytes: int) -> None:
    assert parse_size_bytes(value) == expected_bytes


@pytest.mark.parametrize(
    "value", ["", "MB", "-1", "10mb", "10XB", "1.0001kB", "1 0", -2, True, 2.5, None, "9" * 20]
)
def test_what_is_not_a_size_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        parse_size_bytes(value)  # type: ignore[arg-type]  # wrong types on purpose


def test_datetime_is_rounded_down_also_before_1970() -> None:
    assert datetime_to_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1
    assert datetime_to_ms(datetime(1970, 1, 1, 0, 0, 0, 999, tzinfo=UTC)) == 0
