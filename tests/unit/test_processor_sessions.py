"""Sessions: which rows belong together, when they close, and who is late. Against plain lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, strategies as st

from millstream import UsageError
from millstream.processor import SessionWindows, session
from millstream.processor.sessions import NEVER, OpenSessions, Session, Taken

Bounds = tuple[int, int]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Feed:
    """Rows in, closed sessions and late rows out, as an operator does it."""

    def __init__(self, gap: int, grace: int = 0, disorder: int = 0) -> None:
        self.sessions = OpenSessions[str](gap, grace)
        self.disorder = disorder
        self.level = -NEVER
        self.closed: list[tuple[str, int, int, list[int]]] = []
        self.late: list[int] = []
        self.rows = 0

    def row(self, key: str, time: int) -> Taken[str] | None:
        number, self.rows = self.rows, self.rows + 1
        taken = self.sessions.take(key, time, self.level)
        if taken is None:
            self.late.append(number)
        else:
            content = taken.session.content or []
            for other in taken.absorbed:
                content += other.content
            taken.session.content = [*content, number]
        self.move(time - self.disorder)
        return taken

    def move(self, level: int) -> None:
        self.level = max(self.level, level)
        if self.level >= self.sessions.next_deadline:
            self.closed += [
                (one.key, one.first_ms, one.last_ms, one.content)
                for one in self.sessions.close(self.level)
            ]


def bounds(sessions: OpenSessions[str] | Sequence[Session[str]]) -> list[Bounds]:
    return [(one.first_ms, one.last_ms) for one in sessions]


def model(
    rows: Sequence[tuple[str, int]], gap: int, grace: int, disorder: int
) -> tuple[list[tuple[str, int, int, list[int]]], list[int]]:
    """Every session a plain list of (time, row number) pairs, searched from end to end."""
    level = -NEVER
    live: list[tuple[str, list[Bounds], list[int]]] = []
    closed: list[tuple[str, int, int, list[int]]] = []
    late: list[int] = []

    def close() -> None:
        due = [one for one in live if max(one[1])[0] + gap + grace <= level]
        for one in sorted(due, key=lambda one: (max(one[1])[0], min(one[1])[0], one[0].encode())):
            closed.append((one[0], min(one[1])[0], max(one[1])[0], one[2]))
            live.remove(one)

    for number, (key, time) in enumerate(rows):
        joined = [
            one
            for one in live
            if one[0] == key and any(abs(time - other) < gap for other, _ in one[1])
        ]
        members = [(time, number)] + [member for one in joined for member in one[1]]
        if max(members)[0] + gap + grace <= level:
            late.append(number)
        else:
            joined.sort(key=lambda one: min(one[1]))
            content = [entry for one in joined for entry in one[2]] + [number]
            live = [one for one in live if one not in joined]
            live.append((key, members, content))
        level = max(level, time - disorder)
        close()
    level = NEVER
    close()
    return closed, late


rows = st.lists(
    st.tuples(st.sampled_from(["a", "b", "\uffff", "\U0001f600"]), st.integers(-40, 40)),
    max_size=50,
)


@given(rows, st.integers(1, 12), st.integers(0, 15), st.integers(0, 40))
def test_sessions_equal_the_model(
    rows: list[tuple[str, int]], gap: int, grace: int, disorder: int
) -> None:
    feed = Feed(gap, grace, disorder)
    for key, time in rows:
        feed.row(key, time)
        assert feed.sessions.count == len(list(feed.sessions))
    feed.move(NEVER)

    assert model(rows, gap, grace, disorder) == (feed.closed, feed.late)
    assert (0, NEVER, None) == (
        feed.sessions.count,
        feed.sessions.next_deadline,
        feed.sessions.last_deadline,
    )


@given(st.permutations([0, 3, 4, 9, 14, 30, 31, 50, 59, 60, 69, 80]), st.integers(1, 12))
def test_the_order_rows_come_in_does_not_matter_while_all_is_open(
    times: list[int], gap: int
) -> None:
    feed = Feed(gap, disorder=1000)
    for time in times:
        feed.row("a", time)

    clusters: list[list[int]] = []
    for time in sorted(times):
        if clusters and time - clusters[-1][-1] < gap:
            clusters[-1].append(time)
        else:
            clusters.append([time])
    assert [(one[0], one[-1]) for one in clusters] == bounds(feed.sessions)


@given(rows, st.integers(1, 12), st.integers(0, 15), st.data())
def test_when_closed_sessions_are_taken_out_does_not_matter(
    rows: list[tuple[str, int]], gap: int, grace: int, data: st.DataObject
) -> None:
    eager, lazy = Feed(gap, grace), Feed(gap, grace)
    lazy.sessions.next_deadline = NEVER
    for key, time in rows:
        eager.row(key, time)
        number, lazy.rows = lazy.rows, lazy.rows + 1
        taken = lazy.sessions.take(key, time, lazy.level)
        if taken is None:
            lazy.late.append(number)
        else:
            parts = [taken.session.content or [], *(other.content for other in taken.absorbed)]
            taken.session.content = [*chain(*parts), number]
        lazy.level = max(lazy.level, time)
        if data.draw(st.booleans()):
            lazy.move(lazy.level)
    for feed in (eager, lazy):
        feed.move(NEVER)
    assert eager.late == lazy.late
    assert sorted(eager.closed) == sorted(lazy.closed)


@pytest.mark.parametrize("order", [(0, 10, 20), (20, 10, 0), (10, 0, 20)])
def test_e41_rows_exactly_the_gap_apart_are_sessions_of_their_own(
    order: tuple[int, int, int],
) -> None:
    feed = Feed(10, disorder=100)
    for time in order:
        feed.row("a", time)
    assert [(0, 0), (10, 10), (20, 20)] == bounds(feed.sessions)


def test_e41_whether_the_first_closes_before_the_second_comes_changes_nothing() -> None:
    early, late = Feed(10), Feed(10, disorder=100)
    for feed in (early, late):
        feed.row("a", 0)
        feed.row("a", 10)
        feed.move(NEVER)
    assert early.closed == late.closed == [("a", 0, 0, [0]), ("a", 10, 10, [1])]


def test_e41_a_row_whose_session_would_be_past_its_end_is_late() -> None:
    feed = Feed(3)
    feed.row("a", 1)
    feed.row("a", 7)
    assert feed.row("a", 4) is None, "its window ends at 7, where W is"
    assert [2] == feed.late


def test_e42_a_row_that_joins_two_sessions_merges_them_the_earlier_first() -> None:
    feed = Feed(10, disorder=100)
    feed.row("a", 15)
    feed.row("a", 0)
    taken = feed.row("a", 8)
    assert taken is not None
    assert (0, 0) == taken.before
    assert [(15, 15)] == bounds(taken.absorbed)
    assert [(0, 15)] == bounds(feed.sessions)
    feed.move(NEVER)
    assert [("a", 0, 15, [1, 0, 2])] == feed.closed, "contents in time order, then the row"


def test_e42_three_sessions_become_one_known_by_the_first_start() -> None:
    feed = Feed(10, disorder=100)
    for time in (0, 30, 15, 8, 22):
        feed.row("a", time)
    assert [(0, 30)] == bounds(feed.sessions)
    assert 1 == feed.sessions.count


def test_e43_a_row_older_than_w_may_join_an_open_session_but_not_begin_one() -> None:
    feed = Feed(10)
    feed.row("a", 100)
    feed.row("b", 108)
    assert feed.row("a", 95) is not None, "W is 108, and 95 alone would end at 105"
    assert feed.row("b", 95) is None
    assert [(95, 100)] == bounds([one for one in feed.sessions if one.key == "a"])


def test_e43_grace_keeps_a_session_open_to_the_millisecond() -> None:
    assert Feed(10, grace=5).sessions.take("a", 0, level=14) is not None
    assert Feed(10, grace=5).sessions.take("a", 0, level=15) is None


def test_e44_an_older_row_moves_the_start() -> None:
    feed = Feed(10, disorder=100)
    feed.row("a", 50)
    taken = feed.row("a", 41)
    assert taken is not None
    assert ((50, 50), ()) == (taken.before, taken.absorbed)
    assert [(41, 50)] == bounds(feed.sessions)


def test_e45_the_same_time_twice_is_one_session_with_two_rows() -> None:
    feed = Feed(1)
    feed.row("a", 7)
    feed.row("a", 7)
    feed.move(NEVER)
    assert [("a", 7, 7, [0, 1])] == feed.closed


@given(rows, st.integers(1, 12), st.integers(0, 15), st.integers(0, 40), st.integers(0, 50))
def test_e47_a_session_goes_on_behind_a_restart(
    rows: list[tuple[str, int]], gap: int, grace: int, disorder: int, cut: int
) -> None:
    feed = Feed(gap, grace, disorder)
    for key, time in rows[:cut]:
        feed.row(key, time)
    restarted = OpenSessions[str](gap, grace)
    for one in list(feed.sessions):
        restarted.restore(one.key, one.first_ms, one.last_ms, one.content)
    feed.sessions = restarted
    for key, time in rows[cut:]:
        feed.row(key, time)
    feed.move(NEVER)

    assert model(rows, gap, grace, disorder) == (feed.closed, feed.late)


def test_e48_a_gap_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="gap of at least 1 ms, not 0"):
        session(0)
    with pytest.raises(UsageError):
        session("-1s")


def test_e28_sessions_close_by_end_then_start_then_bytes_of_the_key() -> None:
    feed = Feed(10, disorder=1000)
    for key, time in [("b", 5), ("a", 5), ("c", 0), ("c", 5), ("d", 4)]:
        feed.row(key, time)
    feed.move(NEVER)
    assert ["d", "c", "a", "b"] == [one[0] for one in feed.closed]


def test_times_at_the_limits_of_int64() -> None:
    feed = Feed(INT64_MAX, grace=INT64_MAX)
    feed.row("a", INT64_MIN)
    feed.row("a", INT64_MAX)
    feed.move(NEVER)
    assert [("a", INT64_MIN, INT64_MIN, [0]), ("a", INT64_MAX, INT64_MAX, [1])] == feed.closed


def test_the_last_deadline_closes_everything() -> None:
    feed = Feed(10, grace=5, disorder=1000)
    for key, time in [("a", 5), ("b", 80), ("a", 50)]:
        feed.row(key, time)
    assert 95 == feed.sessions.last_deadline
    feed.move(94)
    assert 1 == feed.sessions.count
    feed.move(95)
    assert 0 == feed.sessions.count


def test_a_session_window_says_what_it_is() -> None:
    assert "session 30m" == str(session("30m"))
    assert SessionWindows(1500) == session(1500)
