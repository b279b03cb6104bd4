"""Days of time zones, and windows of a number of rows."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from millstream import UsageError
from millstream.processor import CalendarWindows, CountWindows, counting, daily, tumbling

HOUR_MS = 3_600_000
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]


def ms(text: str, zone: str = "UTC") -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
    return int(local.timestamp() * 1000)


def hours(windows: CalendarWindows, time_ms: int) -> float:
    end = windows.next_end(time_ms)
    return (end - windows.start_of(end)) / HOUR_MS


def test_e23_the_day_the_clock_goes_forward_has_23_hours() -> None:
    windows = daily("Europe/Berlin")
    noon = ms("2024-03-31T12:00", "Europe/Berlin")
    assert [ms("2024-03-31T22:00")] == windows.ends(noon)
    assert ms("2024-03-30T23:00") == windows.start_of(windows.next_end(noon))
    assert 23 == hours(windows, noon)


def test_e23_the_day_the_clock_goes_back_has_25_hours() -> None:
    windows = daily(tz="America/New_York")
    assert 25 == hours(windows, ms("2024-11-03T12:00", "America/New_York"))
    assert 24 == hours(windows, ms("2024-11-04T12:00", "America/New_York"))


def test_e23_half_an_hour_of_daylight_saving() -> None:
    windows = daily(tz="Australia/Lord_Howe")
    assert 24.5 == hours(windows, ms("2024-04-07T12:00", "Australia/Lord_Howe"))
    assert 23.5 == hours(windows, ms("2024-10-06T12:00", "Australia/Lord_Howe"))


def test_e23_a_midnight_that_is_skipped_starts_the_day_later() -> None:
    # In 2018-11-04 the clocks of Sao Paulo went from 00:00 to 01:00.
    windows = daily(tz="America/Sao_Paulo")
    end = windows.next_end(ms("2018-11-04T12:00", "America/Sao_Paulo"))
    assert ms("2018-11-04T03:00") == windows.start_of(end)
    assert 23 == hours(windows, ms("2018-11-04T12:00", "America/Sao_Paulo"))


def test_e23_a_midnight_that_comes_twice_starts_the_day_once() -> None:
    # In 2023-11-05 the clocks of Havana went from 01:00 to 00:00.
    windows = daily(tz="America/Havana")
    assert ms("2023-11-05T04:00") == windows.start_of(windows.next_end(ms("2023-11-05T05:30")))
    assert 25 == hours(windows, ms("2023-11-05T12:00"))


def test_e23_a_day_that_was_left_out_is_no_window() -> None:
    # Samoa went from the 29th of December 2011 to the 31st.
    windows = daily(tz="Pacific/Apia")
    change = ms("2011-12-30T10:00")
    assert change == windows.next_end(change - 1)
    assert change == windows.closed_end(change)
    assert change + 24 * HOUR_MS == windows.next_end(change)


def test_the_offset_is_a_time_on_the_wall() -> None:
    windows = daily(tz="Europe/Berlin", offset="6h")
    end = windows.next_end(ms("2024-03-30T12:00", "Europe/Berlin"))
    assert ms("2024-03-31T04:00") == end, "06:00 in summer"
    assert ms("2024-03-30T05:00") == windows.start_of(end), "06:00 in winter"
    assert daily(tz="UTC", offset=-HOUR_MS).next_end(0) == 23 * HOUR_MS


@given(
    st.sampled_from(ZONES),
    st.integers(-4_000_000_000_000, 4_000_000_000_000),
    st.integers(-23, 23),
)
def test_a_row_lies_in_the_day_its_clock_shows(zone: str, time_ms: int, offset_h: int) -> None:
    windows = daily(tz=zone, offset=offset_h * HOUR_MS)
    end = windows.next_end(time_ms)
    start = windows.start_of(end)
    assert start <= time_ms < end
    assert windows.ends(time_ms) == [end]
    assert windows.closed_end(time_ms) == start
    assert windows.closed_end(end) == end
    # Both edges stand on the offset, unless the clock skipped it.
    for edge in (start, end):
        local = at(edge, zone)
        wall = local.replace(tzinfo=None) - timedelta(hours=offset_h)
        skipped = local.utcoffset() != at(edge - 1, zone).utcoffset()
        assert skipped or wall.time() == time()
    assert 22 * HOUR_MS < end - start < 26 * HOUR_MS


def at(time_ms: int, zone: str) -> datetime:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)).astimezone(
        ZoneInfo(zone)
    )


@given(st.integers(INT64_MIN, INT64_MAX), st.integers(-23 * HOUR_MS, 23 * HOUR_MS))
def test_days_of_utc_are_tumbling_days_at_any_time(time_ms: int, offset: int) -> None:
    days, fixed = daily(offset=offset), tumbling("1d", offset=offset)
    assert fixed.ends(time_ms) == days.ends(time_ms)
    assert fixed.closed_end(time_ms) == days.closed_end(time_ms)
    end = days.next_end(time_ms)
    assert fixed.start_of(end) == days.start_of(end)


@pytest.mark.parametrize("zone", ZONES)
@given(time_ms=st.integers(ms("2405-01-01"), ms("2790-01-01")), cycles=st.integers(0, 700_000))
def test_the_calendar_repeats_for_ever(zone: str, time_ms: int, cycles: int) -> None:
    windows = daily(tz=zone)
    later = cycles * 146_097 * 24 * HOUR_MS
    assert windows.next_end(time_ms) + later == windows.next_end(time_ms + later)


@pytest.mark.parametrize("zone", ZONES)
@given(time_ms=st.integers(ms("0450-01-01"), ms("0790-01-01")), cycles=st.integers(0, 700_000))
def test_the_calendar_is_endless_backwards(zone: str, time_ms: int, cycles: int) -> None:
    windows = daily(tz=zone)
    earlier = cycles * 146_097 * 24 * HOUR_MS
    assert windows.next_end(time_ms) - earlier == windows.next_end(time_ms - earlier)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../zone", "Europe", "UTC\0"])
def test_a_zone_that_is_not_known_is_refused(zone: str) -> None:
    with pytest.raises(UsageError, match="time zone"):
        daily(tz=zone)


def test_an_offset_of_a_day_is_refused() -> None:
    with pytest.raises(UsageError, match="less than 24 hours"):
        daily(tz="Europe/Berlin", offset="1d")


def test_a_daily_window_says_what_it_is() -> None:
    assert "daily Europe/Berlin" == str(daily(tz="Europe/Berlin"))
    assert "daily UTC offset 6h" == str(daily(offset="6h"))
    assert daily(tz="Europe/Berlin") == CalendarWindows("Europe/Berlin", 0)
    assert not daily().overlapping


@pytest.mark.parametrize("size", [0, -1, True, 1.5])
def test_e35_a_count_window_holds_at_least_one_row(size: int) -> None:
    with pytest.raises(UsageError, match="at least 1 row"):
        CountWindows(size)


def test_a_count_window_says_what_it_is() -> None:
    assert "every 5 rows" == str(counting(5))
