"""Sessions of many keys at once, in arrays: which rows form which. What one is says sessions.py.

The rows of a step are sorted by key. Nearly every row goes on with the newest session of its key,
or begins one behind it: where that is so for all rows of a key, array operations find it. Keys that
have a row of another kind, which joins an older session or begins one before the newest, are left
to `OpenSessions`, row by row.

A row is late when it would begin a session that is past: so it is judged by W before it, and not by
what was closed by then. Here sessions are closed at the end of a step; a session that W has passed
within the step takes no rows after that.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from .frame_errors import NotInColumnsError
from .frame_keys import Numbers, run_heads, sorted_by_key
from .frames import Ints, Mask
from .sessions import OpenSessions

_HIGH: Final = 1 << 62
_LOW: Final = -_HIGH


class Merge(NamedTuple):
    """Two sessions that a row has made one, by their index in a plan."""

    left: int
    right: int
    """The later one, which is no more."""
    row: int
    """Index of the row."""


@dataclass(slots=True)
class SessionPlan:
    """What the rows of a step do to the sessions they are about. Nothing is done yet.

    Sessions are named by their index here. Rows are added and sessions merged in phases: of phase
    0 the rows, then the merges, then the rows of phase 1.
    """

    of_row: Ints
    """The session of each row; -1 for a late one."""
    slots: Ints
    """Where each session is; -1 if it begins."""
    keys: Ints
    """Number of the key of each."""
    first: Ints
    """Time of the first row of each, in the end."""
    last: Ints
    newest_of: Ints
    """Sessions that are the newest of their keys now; each key that changes is there once."""
    older: Ints
    """The last time of the session before each of those."""
    phases: Ints | None = None
    """Of each row; None: there is one phase alone."""
    merges: Sequence[Sequence[Merge]] = ()
    """By phase. A session takes part in one of a phase."""

    @property
    def merging(self) -> Ints:
        """Those that take part in merges, each once, as far as they were there before."""
        found = {each for phase in self.merges for one in phase for each in (one.left, one.right)}
        slots = self.slots[np.array(sorted(found), np.int64)]
        return slots[slots >= 0]


class SessionSlots:
    """Open sessions in arrays, one slot each; keys are numbers. Not thread-safe.

    Args:
        gap_ms: See `OpenSessions`.
        grace_ms: See `OpenSessions`.
    """

    def __init__(self, gap_ms: int, grace_ms: int) -> None:
        self._gap_ms = gap_ms
        self._grace_ms = grace_ms
        self.hold_ms = gap_ms + grace_ms
        self.first = np.zeros(0, np.int64)
        """By slot; without meaning where none is open."""
        self.last = np.zeros(0, np.int64)
        """By slot; beyond all times where none is open."""
        self.keys = np.zeros(0, np.int32)
        """Number of the key by slot."""
        self._newest = np.zeros(0, np.int32)
        """By key: the slot of its newest session, -1 for none."""
        self._older = np.zeros(0, np.int64)
        """By key: when the session before the newest had its last row; it may have closed."""
        self._free = np.zeros(0, np.int64)
        self.count = 0
        """Number of open sessions."""
        self._next_deadline = _HIGH
        """No session closes before W reaches this."""

    @property
    def open_slots(self) -> Ints:
        """Where sessions are."""
        return np.flatnonzero(self.last < _HIGH)

    @property
    def last_deadline(self) -> int | None:
        """The W that closes every session; None when there is none."""
        return int(self.last[self.open_slots].max()) + self.hold_ms if self.count else None

    # --- rows ----------------------------------------------------------------------------------

    def plan(self, numbers: Numbers, times: Ints, closed: Ints) -> SessionPlan:
        """What rows do.

        Args:
            numbers: Of their keys.
            times: Their event times.
            closed: For each the W it is judged against, less gap and grace: a session whose last
                row is not after that is past.

        Raises:
            NotInColumnsError: Their times are too far apart.
        """
        self._know(int(numbers.max()) + 1)
        order, keys = sorted_by_key(numbers)
        times, closed = times[order], closed[order]
        heads = run_heads(keys)
        # Which of the keys each row is of.
        group = np.zeros(len(keys), np.int64)
        group[heads[1:]] = 1
        np.cumsum(group, out=group)
        newest, known_first, known_last = self._newest_of(keys[heads])
        # The time of the last row of its key before each: a row that is a gap behind it begins a
        # session, and so does one whose session would be past. If it is past itself, it is late.
        before = _running_max_before(times, group, heads, known_last)
        begins = (times >= before + self._gap_ms) | (before <= closed)
        late = begins & (times <= closed)
        fresh = begins & ~late
        index, newest_of = _numbered(fresh, late, group, heads)
        at = np.flatnonzero(fresh)
        session_keys = np.concatenate([keys[heads], keys[at]])
        first = np.concatenate([known_first, times[at]])
        last = np.concatenate([known_last, times[at]])
        older = np.concatenate([self._older[keys[heads]], before[at]])
        odd = self._extend(first, last, index, times, closed, older)
        slots = np.concatenate([newest, _all(at, -1)])
        plan = SessionPlan(index, slots, session_keys, first, last, newest_of, older[newest_of])
        if odd.any():
            self._plan_odd(plan, np.unique(group[odd]), group, times, closed, order)
        return _in_row_order(plan, order)

    def _newest_of(self, keys: Numbers | Ints) -> tuple[Ints, Ints, Ints]:
        """Of each key the slot of the newest session, -1 for none, and its first and last time."""
        slots = self._newest[keys].astype(np.int64)
        known = slots >= 0
        if not known.any():
            none = _all(known, _LOW)
            return slots, none, none
        first = np.where(known, self.first[slots], _HIGH)
        return slots, first, np.where(known, self.last[slots], _LOW)

    def _extend(
        self, first: Ints, last: Ints, index: Ints, times: Ints, closed: Ints, older: Ints
    ) -> Mask:
        """Let sessions include their rows, which are sorted by session.

        Args:
            first: Of each session without its rows, or with the row that began it.
            last: The same.
            index: Of the session of each row; -1 for none.
            times: Of the rows.
            closed: See `plan`.
            older: When the session before each had its last row.

        Returns:
            The rows that do not just extend the session.
        """
        odd = np.zeros(len(index), np.bool_)
        kept = np.flatnonzero(index >= 0)
        if not len(kept):
            return odd
        index, times = index[kept], times[kept]
        heads = run_heads(index)
        sessions = index[heads]
        began = first[sessions]
        least = np.minimum(np.minimum.reduceat(times, heads), began)
        if (least < began).any():
            # Some rows come before the first of their session.
            group = np.repeat(np.arange(len(heads)), np.diff(np.append(heads, len(index))))
            before = -_running_max_before(-times, group, heads, -began)
            reach = np.maximum(times - self._gap_ms, closed[kept])
            front = times < before
            odd[kept] = front & ((times <= before - self._gap_ms) | (older[index] > reach))
        first[sessions] = least
        last[sessions] = np.maximum(np.maximum.reduceat(times, heads), last[sessions])
        return odd

    def _plan_odd(
        self,
        plan: SessionPlan,
        groups: Ints,
        group: Ints,
        times: Ints,
        closed: Ints,
        order: Ints,
    ) -> None:
        """Plan keys row by row, by `groups` of sorted rows, in the place of what a plan says."""
        ours = np.isin(group, groups)
        keys = plan.keys[groups]
        drafts = _Drafts(self._gap_ms, self._grace_ms, len(plan.slots))
        of_keys = self.open_slots
        of_keys = of_keys[np.isin(self.keys[of_keys], keys)]
        for slot in of_keys[np.argsort(self.first[of_keys], kind="stable")].tolist():
            drafts.restore(int(self.keys[slot]), int(self.first[slot]), int(self.last[slot]), slot)
        rows = np.flatnonzero(ours)
        columns = (plan.keys[group[rows]], times[rows], closed[rows], order[rows])
        plan.of_row[rows] = drafts.take(*(column.tolist() for column in columns))
        phases = np.zeros(len(order), np.int64)
        phases[rows] = drafts.phases
        plan.phases, plan.merges = phases, drafts.merges
        # What was planned for these keys is of no session of theirs any more.
        of_others = ~np.isin(plan.keys[plan.newest_of], keys)
        made = drafts.arrays()
        newest, older = drafts.newest()
        plan.newest_of = np.concatenate([plan.newest_of[of_others], newest])
        plan.older = np.concatenate([plan.older[of_others], older])
        plan.slots = np.concatenate([plan.slots, made[0]])
        plan.keys = np.concatenate([plan.keys, made[1]])
        plan.first = np.concatenate([plan.first, made[2]])
        plan.last = np.concatenate([plan.last, made[3]])

    def apply(self, plan: SessionPlan) -> Ints:
        """Do what a plan says to the sessions; those that are merged into others stay for now.

        Returns:
            The slot of each session of the plan.
        """
        slots = plan.slots.copy()
        new = np.flatnonzero(slots < 0)
        slots[new] = self._take_slots(len(new))
        self.count += len(new)
        self.first[slots], self.last[slots] = plan.first, plan.last
        self.keys[slots] = plan.keys
        self._newest[plan.keys[plan.newest_of]] = slots[plan.newest_of]
        self._older[plan.keys[plan.newest_of]] = plan.older
        if len(slots):
            self._next_deadline = min(self._next_deadline, int(plan.last.min()) + self.hold_ms)
        return slots

    def restore(self, numbers: Numbers, first: Ints, last: Ints) -> None:
        """Put sessions into the first slots, of which none is taken, sorted by time."""
        slots = self._take_slots(len(numbers))
        self.count = len(slots)
        self.keys[slots], self.first[slots], self.last[slots] = numbers, first, last
        self._find_newest()
        if len(slots):
            self._next_deadline = int(last.min()) + self.hold_ms

    def renumber(self, numbers: Numbers) -> None:
        """Take other numbers for the keys of `open_slots`."""
        self.keys[self.open_slots] = numbers
        self._find_newest()

    def _find_newest(self) -> None:
        slots = self.open_slots
        slots = slots[np.argsort(self.first[slots], kind="stable")]
        self._newest, self._older = np.zeros(0, np.int32), np.zeros(0, np.int64)
        keys = self.keys[slots]
        self._know(int(keys.max(initial=-1)) + 1)
        self._newest[keys] = slots  # of one key, the last stays
        others = slots != self._newest[keys]
        self._older[keys[others]] = self.last[slots[others]]

    # --- closing -------------------------------------------------------------------------------

    def due(self, level: int) -> Ints:
        """The slots of the sessions that are complete when W is `level`."""
        if level < self._next_deadline:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.last <= level - self.hold_ms)

    def release(self, slots: Ints) -> None:
        """Take out sessions, each once."""
        if not len(slots):
            return
        keys = self.keys[slots]
        gone = self._newest[keys] == slots
        self._newest[keys[gone]] = -1
        self.last[slots] = _HIGH
        self._free = np.concatenate([self._free, slots])
        self.count -= len(slots)
        least = int(self.last.min()) if self.count else _HIGH - self.hold_ms
        self._next_deadline = least + self.hold_ms

    def _take_slots(self, count: int) -> Ints:
        missing = count - len(self._free)
        if missing > 0:
            known = len(self.last)
            more = max(missing, known)
            self.first = np.concatenate([self.first, np.zeros(more, np.int64)])
            self.last = np.concatenate([self.last, np.full(more, _HIGH, np.int64)])
            self.keys = np.concatenate([self.keys, np.zeros(more, np.int32)])
            self._free = np.concatenate([np.arange(known + more - 1, known - 1, -1), self._free])
        taken, self._free = self._free[len(self._free) - count :], self._free[: -count or None]
        return taken[::-1]

    def _know(self, key_count: int) -> None:
        """Have an entry for each key."""
        missing = key_count - len(self._newest)
        if missing > 0:
            more = max(missing, len(self._newest) // 4)
            self._newest = np.concatenate([self._newest, np.full(more, -1, np.int32)])
            self._older = np.concatenate([self._older, np.full(more, _LOW, np.int64)])


class _Drafts:
    """Sessions of a few keys, row by row.

    Args:
        gap_ms: See `OpenSessions`.
        grace_ms: See `OpenSessions`.
        first_index: Of the first session made here, in the plan.
    """

    def __init__(self, gap_ms: int, grace_ms: int, first_index: int) -> None:
        self._hold_ms = gap_ms + grace_ms
        self._sessions = OpenSessions[int](gap_ms, grace_ms)
        self._index = first_index
        self._made: list[list[int]] = []
        """Slot, key, first and last time of each."""
        self.phases: list[int] = []
        """Of each row."""
        self.merges: list[list[Merge]] = []

    def restore(self, key: int, first: int, last: int, slot: int) -> None:
        """Take a session that is there; those of a key by time."""
        self._sessions.restore(key, first, last, self._draft(slot, key, first, last))

    def take(
        self, keys: list[int], times: list[int], closed: list[int], rows: list[int]
    ) -> list[int]:
        """Put rows into sessions, those of a key in their order; returns the session of each."""
        phase_of = dict.fromkeys(keys, 0)
        found = []
        for key, time, past, row in zip(keys, times, closed, rows, strict=True):
            taken = self._sessions.take(key, time, past + self._hold_ms)
            if taken is None:
                found.append(-1)
            else:
                session = taken.session
                if taken.before is None:
                    session.content = self._draft(-1, key, time, time)
                for other in taken.absorbed:
                    self._merge(Merge(session.content, other.content, row), phase_of[key])
                    phase_of[key] += 1
                found.append(session.content)
            self.phases.append(phase_of[key])
        for session in self._sessions:
            self._made[session.content - self._index][2:] = session.first_ms, session.last_ms
        return found

    def arrays(self) -> tuple[Ints, ...]:
        """Slot, key, first and last time of each session, also of those that were merged."""
        return tuple(np.array(self._made, np.int64).reshape(-1, 4).T.copy())

    def newest(self) -> tuple[Ints, Ints]:
        """Of each key the newest session, and the last time of the one before it."""
        of_key: dict[int, list[tuple[int, int]]] = {}
        for each in self._sessions:
            of_key.setdefault(each.key, []).append((each.content, each.last_ms))
        newest = [sessions[-1][0] for sessions in of_key.values()]
        older = [one[-2][1] if len(one) > 1 else _LOW for one in of_key.values()]
        return np.array(newest, np.int64), np.array(older, np.int64)

    def _draft(self, slot: int, key: int, first: int, last: int) -> int:
        self._made.append([slot, key, first, last])
        return self._index + len(self._made) - 1

    def _merge(self, merge: Merge, phase: int) -> None:
        while len(self.merges) <= phase:
            self.merges.append([])
        self.merges[phase].append(merge)


def _numbered(fresh: Mask, late: Mask, group: Ints, heads: Ints) -> tuple[Ints, Ints]:
    """Number sessions: first the newest of each key as it was, then those that begin, as they do.

    Args:
        fresh: The rows, sorted by key, that begin a session.
        late: Those that are in none.
        group: Of which key each is.
        heads: The first row of each key.

    Returns:
        The session of each row, -1 for none; and of each key in which one begins, the last of them.
    """
    begun = np.cumsum(fresh)
    begun_before: Ints = begun[heads] - fresh[heads]  # in the keys before
    index = np.where(begun > begun_before[group], len(heads) + begun - 1, group)
    index[late] = -1
    begun_of = np.diff(np.append(begun_before, begun[-1]))
    changed = np.flatnonzero(begun_of)
    return index, len(heads) + (begun_before + begun_of)[changed] - 1


def _running_max_before(values: Ints, group: Ints, heads: Ints, known: Ints) -> Ints:
    """The greatest of a group before each value; before its first one, what is `known`.

    Raises:
        NotInColumnsError: Values are too far apart.
    """
    tops = values.copy()
    tops[heads] = np.maximum(values[heads], known)
    least = int(tops.min())
    span = int(tops.max()) - least + 1
    if span * len(heads) >= _HIGH:
        raise NotInColumnsError("times far apart")
    # Each group is lifted above the one before it, so that one pass does for all.
    tops -= least
    lift = group * span
    tops += lift
    np.maximum.accumulate(tops, out=tops)
    tops -= lift
    tops += least
    before = np.empty_like(tops)
    before[1:] = tops[:-1]
    before[heads] = known
    return before


def _in_row_order(plan: SessionPlan, order: Ints) -> SessionPlan:
    """A plan of sorted rows as one of rows, without sessions that nothing happens to."""
    used = np.zeros(len(plan.slots) + 1, np.bool_)
    used[plan.of_row] = True
    used[-1] = False  # of late rows
    used[plan.newest_of] = True
    for phase in plan.merges:
        for merge in phase:
            used[[merge.left, merge.right]] = True
    kept = np.flatnonzero(used)
    place = np.full(len(used), -1, np.int64)
    place[kept] = np.arange(len(kept))
    of_row = np.empty_like(plan.of_row)
    of_row[order] = place[plan.of_row]
    phases = None
    if plan.phases is not None:
        phases = np.empty_like(plan.phases)
        phases[order] = plan.phases
    merges = [
        [Merge(int(place[one.left]), int(place[one.right]), one.row) for one in phase]
        for phase in plan.merges
    ]
    return SessionPlan(
        of_row,
        plan.slots[kept],
        plan.keys[kept],
        plan.first[kept],
        plan.last[kept],
        place[plan.newest_of],
        plan.older,
        phases,
        merges,
    )


def _all(like: Ints | Mask, value: int) -> Ints:
    return np.full(len(like), value, np.int64)
