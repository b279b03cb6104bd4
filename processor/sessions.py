"""Session windows: which rows of a key belong together, and when they are complete. Pure.

A session is the rows of one key of which each is less than `gap` from the next in event time. Its
window is [first, last + gap): from its first row to `gap` after its last. Rows exactly `gap` apart
are two sessions. Windows are half-open, so the second row lies outside the first window; were they
merged, the result would depend on whether the first closed before the second row came.

A session closes when W >= last + gap + grace. A row is late when the session it would form, alone
or with the open ones it joins, is past that already. A row that is older than W but joins an open
session is therefore on time. What is past close takes no more rows, whether or not `close` has
been called yet.

A row can join two sessions into one: their contents are merged, the earlier one first. A session
is known by its key and its first time, which moves when an older row joins it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

import msgspec

from millstream import UsageError, parse_duration_ms

from .serde import ordered_keys
from .windows import duration_text

K = TypeVar("K")

NEVER: Final = 1 << 80
"""Above every time, gap and grace included."""

_FIRST: Final = attrgetter("first_ms")
_LAST: Final = attrgetter("last_ms")


@dataclass(frozen=True, slots=True)
class SessionWindows:
    """Windows that last as long as rows of a key come less than `gap_ms` apart.

    >>> str(SessionWindows(30_000))
    'session 30s'
    """

    gap_ms: int

    def __post_init__(self) -> None:
        if self.gap_ms < 1:
            raise UsageError(f"a session needs a gap of at least 1 ms, not {self.gap_ms}")

    def __str__(self) -> str:
        return f"session {duration_text(self.gap_ms)}"


def session(gap: str | int | timedelta) -> SessionWindows:
    """Windows of activity: a session ends where no row of its key comes for `gap`.

    Rows less than `gap` apart in event time are in one session, whatever order they come in. Rows
    exactly `gap` apart are in two.

    Args:
        gap: "30m", a timedelta, or milliseconds.

    >>> from millstream.processor import Pipeline
    >>> pipeline = Pipeline("visits")
    >>> hits = pipeline.source("hits", time="at").key_by("user")
    >>> _ = hits.window(session(30)).count().to("visits")
    >>> visits = pipeline.test({"hits": [{"user": "ann", "at": at} for at in (0, 29, 59)]})
    >>> [(row["window_start"], row["window_end"], row["count"]) for row in visits["visits"]]
    [(0, 59, 2), (59, 89, 1)]
    """
    return SessionWindows(parse_duration_ms(gap))


class Session(msgspec.Struct, Generic[K], eq=False):
    """One session of one key. Its window is [first_ms, last_ms + gap)."""

    key: K
    first_ms: int
    """Time of the first row; with the key it names the session."""
    last_ms: int
    """Time of the last row."""
    content: Any = None
    """What the owner keeps of the rows. None in a session that was just made."""
    open: bool = True
    """Whether it takes rows: not closed, not absorbed by another."""


class Taken(msgspec.Struct, Generic[K], frozen=True, eq=False, gc=False):
    """What a row did."""

    session: Session[K]
    """The session it is in now, its times including the row; what it holds does not yet."""
    before: tuple[int, int] | None
    """First and last time of `session` without the row; None when the row made it."""
    absorbed: tuple[Session[K], ...]
    """Later sessions that became part of it, in time order. Merge their contents into its."""


class OpenSessions(Generic[K]):
    """The sessions of all keys that have not closed. Not thread-safe.

    Args:
        gap_ms: Rows of a key this far apart are in different sessions.
        grace_ms: How long after the end of its window a session still takes rows.

    >>> sessions = OpenSessions[str](gap_ms=10, grace_ms=0)
    >>> sessions.take("a", 100, level=0).session
    Session(key='a', first_ms=100, last_ms=100, content=None, open=True)
    >>> sessions.take("a", 109, level=100).before
    (100, 100)
    >>> len(sessions.close(118)), len(sessions.close(119))
    (0, 1)
    """

    def __init__(self, gap_ms: int, grace_ms: int) -> None:
        self._gap_ms = gap_ms
        self._hold_ms = gap_ms + grace_ms
        self._of_key: dict[K, list[Session[K]]] = {}
        """By time. They are at least a gap apart, so first and last times both rise."""
        self._queue: list[tuple[int, int, Session[K]]] = []
        """A heap of (deadline, tie, session), one entry per session: the deadline it had when the
        entry was made. It may lie later by now, never earlier."""
        self._ties = 0
        self.next_deadline = NEVER
        """No session closes before W reaches this. `take` may bring it forward."""
        self.count = 0
        """Number of sessions."""

    def __iter__(self) -> Iterator[Session[K]]:
        """All sessions: keys in the order they came, sessions of a key by time."""
        for sessions in self._of_key.values():
            yield from sessions

    @property
    def last_deadline(self) -> int | None:
        """The W that closes every session; None when there is none. Looks at all keys."""
        lasts = [sessions[-1].last_ms for sessions in self._of_key.values()]
        return max(lasts) + self._hold_ms if lasts else None

    def extend(self, key: K, time_ms: int, level: int) -> Session[K] | None:
        """Put a row into its session if that is the newest of its key and keeps its start.

        Returns:
            The session, or None when it is not that simple: then nothing changed, and `take` knows.
        """
        sessions = self._of_key.get(key)
        if sessions is None:
            return None
        newest = sessions[-1]
        last = newest.last_ms
        if newest.first_ms <= time_ms < last + self._gap_ms and last > level - self._hold_ms:
            # Nearly every row: it can reach no other.
            if time_ms > last:
                newest.last_ms = time_ms
            return newest
        return None

    def take(self, key: K, time_ms: int, level: int) -> Taken[K] | None:
        """Put a row into its session.

        Args:
            key: Of the row.
            time_ms: Event time of the row.
            level: W before the row.

        Returns:
            What happened, or None when the row is late; then nothing changed.
        """
        closed_last = level - self._hold_ms
        sessions = self._of_key.get(key)
        if sessions is None:
            return self._begin(key, [], 0, time_ms) if time_ms > closed_last else None
        newest = sessions[-1]
        first, last = newest.first_ms, newest.last_ms
        if first <= time_ms < last + self._gap_ms and last > closed_last:
            # It goes on with the newest session and can reach no other; see `extend`.
            if time_ms > last:
                newest.last_ms = time_ms
            return Taken(newest, (first, last), ())
        reach = max(time_ms - self._gap_ms, closed_last)
        start = bisect_right(sessions, reach, key=_LAST)
        stop = bisect_left(sessions, time_ms + self._gap_ms, key=_FIRST)
        if start < stop:
            return self._join(sessions, start, stop, time_ms)
        return self._begin(key, sessions, start, time_ms) if time_ms > closed_last else None

    def _begin(self, key: K, sessions: list[Session[K]], place: int, time_ms: int) -> Taken[K]:
        made = Session(key, time_ms, time_ms)
        sessions.insert(place, made)
        self._of_key[key] = sessions
        self.count += 1
        self._enqueue(made)
        return Taken(made, None, ())

    def _join(self, sessions: list[Session[K]], start: int, stop: int, time_ms: int) -> Taken[K]:
        """Make one of the sessions [start, stop) and the row."""
        kept, *absorbed = sessions[start:stop]
        before = kept.first_ms, kept.last_ms
        kept.first_ms = min(kept.first_ms, time_ms)
        kept.last_ms = max(sessions[stop - 1].last_ms, time_ms)
        for other in absorbed:
            other.open = False
        del sessions[start + 1 : stop]
        self.count -= len(absorbed)
        return Taken(kept, before, tuple(absorbed))

    def close(self, level: int) -> list[Session[K]]:
        """Take out the sessions that are complete when W is `level`.

        Returns:
            They, in the order of (end of the window, start, bytes of the key).
        """
        due: list[Session[K]] = []
        queue = self._queue
        while queue and queue[0][0] <= level:
            _, _, oldest = heapq.heappop(queue)
            if not oldest.open:
                continue
            if oldest.last_ms + self._hold_ms > level:
                self._enqueue(oldest)
                continue
            oldest.open = False
            due.append(oldest)
            sessions = self._of_key[oldest.key]
            sessions.remove(oldest)
            if not sessions:
                del self._of_key[oldest.key]
        self.count -= len(due)
        self.next_deadline = queue[0][0] if queue else NEVER
        if len(due) > 1:
            keys = ordered_keys(list(dict.fromkeys(one.key for one in due)))
            rank = {key: number for number, key in enumerate(keys)}
            due.sort(key=lambda one: (one.last_ms, one.first_ms, rank[one.key]))
        return due

    def restore(self, key: K, first_ms: int, last_ms: int, content: Any) -> Session[K]:
        """Put in, and return, a session that state kept: a gap away from the others of its key."""
        sessions = self._of_key.setdefault(key, [])
        restored = Session(key, first_ms, last_ms, content)
        sessions.insert(bisect_left(sessions, first_ms, key=_FIRST), restored)
        self.count += 1
        self._enqueue(restored)
        return restored

    def of(self, key: K) -> Sequence[Session[K]]:
        """The sessions of a key, by time."""
        return self._of_key.get(key, ())

    def forget(self, keys: Iterable[K]) -> list[Session[K]]:
        """Let go of the sessions of keys, which take no more rows and do not close, and give them.

        Looks at all sessions.
        """
        gone: list[Session[K]] = []
        for key in keys:
            gone += self._of_key.pop(key, ())
        for one in gone:
            one.open = False
        self.count -= len(gone)
        self._queue = [each for each in self._queue if each[2].open]
        heapq.heapify(self._queue)
        return gone

    def _enqueue(self, one: Session[K]) -> None:
        deadline = one.last_ms + self._hold_ms
        self._ties += 1
        heapq.heappush(self._queue, (deadline, self._ties, one))
        self.next_deadline = min(self.next_deadline, deadline)
