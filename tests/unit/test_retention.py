import pytest

from millstream.retention import Removal, RetentionRules, SegmentInfo, expired, removable

DAY = 86_400_000
NOW = 100 * DAY


def segments(*sealed: tuple[int, int], active_bytes: int = 10) -> list[SegmentInfo]:
    """Sealed segments of (size, newest append), and an active one."""
    infos = [
        SegmentInfo(10 * n, 10 * n + 10, size, newest, newest - 1, sealed=True)
        for n, (size, newest) in enumerate(sealed)
    ]
    start = 10 * len(infos)
    return [*infos, SegmentInfo(start, start + 1, active_bytes, NOW - 50 * DAY, 0, sealed=False)]


def test_without_limits_everything_stays() -> None:
    assert expired(segments((1, 0)), now_ms=NOW, retention_ms=None, retention_bytes=None) == 0
    assert expired([], now_ms=NOW, retention_ms=1, retention_bytes=1) == 0


@pytest.mark.parametrize(
    ("retention_ms", "count"),
    [(DAY, 3), (2 * DAY, 2), (2 * DAY - 1, 3), (9 * DAY, 1), (99 * DAY, 0)],
)
def test_age_removes_segments_whose_newest_record_is_older(retention_ms: int, count: int) -> None:
    logs = segments((1, NOW - 10 * DAY), (1, NOW - 5 * DAY), (1, NOW - 2 * DAY))

    assert expired(logs, now_ms=NOW, retention_ms=retention_ms, retention_bytes=None) == count


def test_age_makes_no_hole() -> None:
    logs = segments((1, NOW - 1), (1, 0))

    assert expired(logs, now_ms=NOW, retention_ms=DAY, retention_bytes=None) == 0


@pytest.mark.parametrize(
    ("retention_bytes", "count"), [(1, 3), (10, 3), (11, 2), (110, 2), (210, 1), (211, 0), (999, 0)]
)
def test_bytes_keep_at_least_the_limit(retention_bytes: int, count: int) -> None:
    logs = segments((100, 0), (100, 0), (100, 0), active_bytes=10)

    assert expired(logs, now_ms=NOW, retention_ms=None, retention_bytes=retention_bytes) == count


def test_the_active_segment_stays_however_old_and_large() -> None:
    logs = segments((100, 0), active_bytes=10**9)

    assert expired(logs, now_ms=NOW, retention_ms=1, retention_bytes=1) == 1


def test_either_limit_is_enough() -> None:
    logs = segments((100, 0), (100, NOW), (100, NOW))

    assert expired(logs, now_ms=NOW, retention_ms=DAY, retention_bytes=10**6) == 1
    assert expired(logs, now_ms=NOW, retention_ms=DAY, retention_bytes=110) == 2


def test_appends_from_the_future_stay_and_do_not_fail() -> None:
    logs = segments((1, NOW + 10 * DAY), (1, 0))

    assert expired(logs, now_ms=NOW, retention_ms=1, retention_bytes=None) == 0
    assert expired(logs, now_ms=NOW + 11 * DAY, retention_ms=1, retention_bytes=None) == 2


def test_a_clock_before_1970_does_not_fail() -> None:
    assert expired(segments((1, -5)), now_ms=-10, retention_ms=1, retention_bytes=None) == 0


# --- groups --------------------------------------------------------------------------------------

ANY = RetentionRules(None, None, None)


def test_without_groups_the_rules_of_age_and_bytes_decide() -> None:
    logs = segments((1, NOW - 10 * DAY), (1, NOW))

    assert Removal(1, {}) == removable(logs, ANY._replace(retention_ms=DAY), {}, now_ms=NOW)
    assert Removal(0, {}) == removable(logs, ANY, {}, now_ms=NOW)


def test_what_every_group_has_read_goes_and_the_rest_is_held() -> None:
    logs = segments((1, NOW), (2, NOW), (4, NOW))

    done = {"slow": 15, "quick": 20, "finished": 30}
    assert Removal(1, {"slow": 6, "quick": 4}) == removable(logs, ANY, done, now_ms=NOW)
    assert Removal(3, {}) == removable(logs, ANY, {"all": 31}, now_ms=NOW)
    assert Removal(0, {"new": 7}) == removable(logs, ANY, {"new": 0}, now_ms=NOW)


def test_with_an_age_both_have_to_agree() -> None:
    logs = segments((1, NOW - 10 * DAY), (2, NOW - 5 * DAY), (4, NOW))
    week = ANY._replace(retention_ms=7 * DAY)
    day = ANY._replace(retention_ms=DAY)

    assert Removal(1, {}) == removable(logs, week, {"g": 30}, now_ms=NOW)
    assert Removal(1, {"g": 2}) == removable(logs, day, {"g": 10}, now_ms=NOW)


@pytest.mark.parametrize(("limit", "count"), [(1, 3), (14, 2), (16, 1), (17, 0), (100, 0)])
def test_above_the_limit_the_oldest_go_whoever_has_not_read_them(limit: int, count: int) -> None:
    logs = segments((1, NOW), (2, NOW), (4, NOW))
    rules = ANY._replace(limit_bytes=limit)

    assert count == removable(logs, rules, {"g": 0}, now_ms=NOW).leading


def test_the_active_segment_is_never_removed() -> None:
    rules = ANY._replace(limit_bytes=1)

    assert 0 == removable(segments(), rules, {"g": 99}, now_ms=NOW).leading
