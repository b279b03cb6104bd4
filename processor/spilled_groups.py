"""Any operator of groups with the groups in use in memory, and the others in the file of state.

The operator is the one that runs in memory. Around it, of each key memory has all or nothing.
Before a step come the groups of its rows and those that W, or the wall clock, wakes in it; what a
group waits for is written down when it leaves. When there is too much in memory, the groups go that
were not used lately; what changed since the last commit stays, as in spilled_state.py.

A group is written as it leaves, with all its records, unless the file has it as it is from the last
time. So what is used all the time costs the file nothing, and the file says nothing of groups that
are in memory: their rows are either right or never looked at.

Where many groups wake at once, the step is cut where W reaches them, so that they need not be in
memory together. An operator says whether that would change its results (`divisible`).

The file is filled from the state topic at each start, as that of windows is: groups come and go
with event time, and what they wait for is not among their records.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from operator import itemgetter
from typing import Final

from .columns import Rows, join_rows
from .group_backlog import GroupBacklog
from .key_groups import GroupedOperator, Path, Wake
from .keyed_state import States
from .serde import INT64_MAX, encode_state
from .spill_room import RESTORE_BYTES, EntrySizes
from .spill_tables import GroupColumns, GroupRow, GroupTable, as_int64
from .spilled_states import SpilledStates
from .state import (
    StateEntry,
    StateRecords,
    decode_paths,
    decode_piece,
    encode_content,
    encode_removed,
)
from .stateful import SWEEP_RECORDS, StatefulOperator, Step
from .stored_keys import shown_key, stored_key, stored_keys
from .watermark import Progress

_PAGE_BYTES: Final = 1 << 20
"""About how much of the file is looked through at a time."""

_WOKEN_GROUPS: Final = 1_000
"""About how many groups that wake are brought into memory together, where that is possible."""


class SpilledGroups(StatefulOperator):
    """An operator of groups that may be larger than memory together. Not thread-safe.

    Args:
        operator: What runs; with nothing in it.
        table: Has what memory has no room for.
        room: How much may be kept in memory, with other states.
    """

    def __init__(self, operator: GroupedOperator, table: GroupTable, room: SpilledStates) -> None:
        self.operator = operator
        self.name = operator.name
        self.delay_ms = operator.delay_ms
        self.late_count = self.skipped_count = 0
        self.table = table
        self._room = room
        self._young: dict[object, None] = {}
        """Groups in memory that were used since the last turn."""
        self._old: dict[object, None] = {}
        """The others."""
        self._known: set[object] = set()
        """Groups in memory of which the file has something."""
        self._exact: set[object] = set()
        """Those of them that it has as they are."""
        self._ended: set[Path] = set()
        """Buckets that ended since the last `changes`, which the file has no more."""
        self._backlog = GroupBacklog(table, operator.placed)
        self._away_count = 0
        """State records of groups that are away."""
        self._asleep = False
        """Whether some of them may wait for something."""
        self._spilled = False
        """Whether the file may have groups that memory has not."""
        self._last: int | None = None
        """The level that ends what those away wait for."""
        self._last_known = True
        self._sizes = EntrySizes()

    @property
    def live_count(self) -> int:
        """See `StatefulOperator`."""
        return self.operator.live_count + self._away_count

    @property
    def held_count(self) -> int:
        """Number of groups in memory."""
        return len(self._young) + len(self._old)

    @property
    def judges_rows(self) -> bool:
        """See `StatefulOperator`."""
        return self.operator.judges_rows

    @property
    def required_level(self) -> int | None:
        """See `StatefulOperator`."""
        away = self._last_away()
        here = self.operator.required_level
        return max((each for each in (away, here) if each is not None), default=None)

    def _last_away(self) -> int | None:
        if not self._asleep:
            return None
        if not self._last_known:
            self._last, self._last_known = self.table.last(), True
        if self._last == INT64_MAX:
            # It may be later: those in memory know.
            self._bring(map(shown_key, self.table.lasting(INT64_MAX)))
            self._last, self._last_known = self.table.last(), True
        return self._last

    @property
    def required_wall_ms(self) -> int | None:
        """See `StatefulOperator`."""
        away = self.table.first_wall() if self._asleep else None
        here = self.operator.required_wall_ms
        return min((each for each in (away, here) if each is not None), default=None)

    # --- rows ----------------------------------------------------------------------------------

    def process(self, step: Step) -> Mapping[str, Rows]:
        """See `StatefulOperator`."""
        found: list[Mapping[str, Rows]] = []
        for piece in self._pieces(step):
            for chunk in piece.chunks:
                self._bring(dict.fromkeys(chunk.keys or ()))
            level = piece.progress.end - self.delay_ms
            if self._asleep:
                woken = self.table.due(level)
                if step.ticked:
                    woken += self.table.due_by_wall(step.now_ms)
                self._bring(map(shown_key, woken))
            found.append(self.operator.process(piece))
            self._end([bucket for bucket in self.operator.ended() if bucket not in self._ended])
        self.late_count = self.operator.late_count
        self.skipped_count = self.operator.skipped_count
        if len(found) == 1:
            return found[0]
        return {port: join_rows([each[port] for each in found]) for port in found[0]}

    def _pieces(self, step: Step) -> Iterator[Step]:
        """The step, cut where W wakes too many groups to have them in memory together."""
        room = self._room.cache_bytes // 8 // self._sizes.held_bytes
        count = max(1, min(_WOKEN_GROUPS, room))
        while self._asleep and self.operator.divisible:
            start, _, levels = step.progress
            due = self.table.nth_due(count)
            if due is None:
                break
            level = max(due + self.delay_ms, start + 1)
            if level >= step.progress.end:
                break
            first, step = _cut(step, bisect_left(levels, level), level)
            yield first
            self._room.trim()
        yield step

    def _bring(self, keys: Iterable[object]) -> None:
        """Have groups in memory, as used."""
        young, old = self._young, self._old
        missing = [key for key in keys if key not in young]
        if not missing:
            return
        young.update(dict.fromkeys(missing))
        if old:
            missing = [key for key in missing if old.pop(key, self) is self]
        if missing and self._spilled:
            self._fetch(sorted(set(stored_keys(missing))))

    def _fetch(self, keys: Sequence[bytes]) -> None:
        """Take groups out of the file."""
        rows = self.table.find(keys)
        if rows:
            before = self.operator.live_count
            entries = _entries(rows)
            self.operator.take(entries)
            self._away_count -= self.operator.live_count - before
            found, _ = self.operator.placed([path for path, _ in entries])
            self._known.update(found)
            self._exact.update(found)
        if self._asleep:
            with self._room.writing():
                self.table.wake(keys)
            self._last_known = False

    # --- what memory holds ---------------------------------------------------------------------

    @property
    def young_bytes(self) -> int:
        """Memory that the groups used lately take, about."""
        groups = len(self._young)
        records = self.operator.live_count * groups // max(1, self.held_count)
        return max(groups, records) * self._sizes.held_bytes

    @property
    def dirty_bytes(self) -> int:
        """Memory that must not be forgotten, because the file does not have it, about."""
        count = self.operator.changed_count + len(self._backlog)
        return count * self._sizes.held_bytes

    def turn(self) -> None:
        """Let go of the groups that were not used lately, where the file has them."""
        busy = self.operator.changed() if self._old else set[object]()
        gone = [key for key in self._old if key not in busy]
        kept = [key for key in self._old if key in busy] if busy else []
        self._old, self._young = self._young, {}
        self._old.update(dict.fromkeys(kept))
        if gone:
            self._forget(gone)

    def _forget(self, keys: Sequence[object]) -> None:
        with self._room.writing():
            self._keep([key for key in keys if key not in self._exact])
            self._note_wakes(keys)
        before = self.operator.live_count
        self.operator.forget(keys)
        self._away_count += before - self.operator.live_count
        self._known.difference_update(keys)
        self._exact.difference_update(keys)
        self._spilled = True

    def _keep(self, keys: Sequence[object]) -> None:
        """Let the file have groups as they are, in a transaction."""
        former = stored_keys([key for key in keys if key in self._known])
        records = self.operator.records(keys)
        paths, shown = decode_paths(records.keys), records.keys
        stored = stored_keys(paths)
        groups, buckets = self.operator.placed(paths)
        names = [None if each is None else stored_key(each) for each in buckets or ()]
        rows = zip(
            stored_keys(groups),
            stored,
            [None if one == other else other for one, other in zip(stored, shown, strict=True)],
            names or repeat(None),
            records.values,
            strict=False,
        )
        self.table.replace(sorted(former), sorted(rows))  # type: ignore[arg-type]  # all have values

    def _note_wakes(self, keys: Sequence[object]) -> None:
        """Write down what groups wait for that go now, in a transaction."""
        noted = [
            (stored, *_clamped(wake))
            for stored, wake in zip(stored_keys(keys), self.operator.wakes(keys), strict=True)
            if wake is not None
        ]
        if noted:
            self.table.sleep(sorted(noted, key=itemgetter(0)))
            self._asleep, self._last_known = True, False

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """See `StatefulOperator`."""
        if self._exact:
            self._exact -= self.operator.changed()
        self._ended.clear()
        records = self.operator.changes()
        self._measure(records)
        return records

    def _end(self, buckets: Sequence[Path]) -> None:
        """Buckets are over."""
        self._ended.update(buckets)
        if not buckets or not self._spilled:
            return
        names = stored_keys(buckets)
        if not self.operator.ends_whole:
            for name in names:
                for key, count in self.table.of_bucket(name):
                    held = shown_key(key)
                    if held not in self._young and held not in self._old:
                        self._away_count -= count
        with self._room.writing():
            self.table.write(names, (), ())

    def write(self) -> None:
        """Give the file what a restart has read, in a transaction."""
        self._backlog.write()

    def sweep(self) -> Iterator[StateRecords]:
        """See `StatefulOperator`: of what is in memory, as it is there, then of what is away."""
        given = set[object]()
        held = [*self._young, *self._old]
        for start in range(0, len(held), SWEEP_RECORDS):
            # What has left memory since is in the file, which comes afterwards.
            piece = [key for key in held[start : start + SWEEP_RECORDS] if self._is_here(key)]
            given.update(piece)
            yield self.operator.records(piece)
        place = b"", b""
        while self._spilled and (rows := self.table.after(place, self._page_rows)):
            place = rows[-1][:2]
            groups = {key: shown_key(key) for key in dict.fromkeys(row.key for row in rows)}
            here = {key: group for key, group in groups.items() if self._is_here(group)}
            came = [group for group in here.values() if group not in given]
            given.update(came)
            records = self.operator.records(came)
            away = [row for row in rows if row.key not in here]
            records.keys.extend(row.shown or row.path for row in away)
            records.values.extend(row.value for row in away)
            yield records

    def _is_here(self, key: object) -> bool:
        return key in self._young or key in self._old

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """See `StatefulOperator`. The file gets all of it."""
        records, size = encode_removed(()), 0
        for path, content in entries:
            if self.operator.bucket_of(path, content) == path:
                self._backlog.add(records)
                self._backlog.end(stored_key(path))
                records = encode_removed(())
                continue
            value = None if content is None else encode_content(content)
            records.keys.append(encode_state(path))
            records.values.append(value)
            size += len(records.keys[-1]) + len(value or b"")
            if size >= RESTORE_BYTES:
                self._restored(records)
                records, size = encode_removed(()), 0
        self._restored(records)
        for groups in self._all_groups():
            keys = dict.fromkeys(self.operator.placed([path for path, _ in groups])[0])
            self.operator.take(groups)
            self._known.update(keys)
            self._exact.update(keys)
            # Some may have to stay.
            busy = self.operator.changed()
            self._young.update(dict.fromkeys(key for key in keys if key in busy))
            self._forget([key for key in keys if key not in busy])

    def _restored(self, records: StateRecords) -> None:
        """Let the file have some of what state has."""
        self._measure(records)
        self._backlog.add(records)
        self._room.write()

    def _measure(self, records: StateRecords) -> None:
        size = sum(map(len, records.keys)) + sum(map(len, filter(None, records.values)))
        self._sizes.note(len(records.keys), size)

    @property
    def _page_rows(self) -> int:
        """How many rows of the file to look through at a time."""
        return max(1, min(SWEEP_RECORDS, self._sizes.fitting(_PAGE_BYTES)))

    def _all_groups(self) -> Iterator[list[StateEntry]]:
        """What the file has, some whole groups at a time."""
        place = b"", b""
        held: list[GroupRow] = []
        while rows := self.table.after(place, self._page_rows):
            place = rows[-1][:2]
            # The last group may go on in what follows.
            held += rows
            whole = [row for row in held if row.key != place[0]]
            if whole:
                yield _entries(whole)
                held = held[len(whole) :]
        if held:
            yield _entries(held)


def _entries(rows: Sequence[GroupColumns]) -> list[StateEntry]:
    columns = decode_piece(
        [shown or path for _, path, shown, _, _ in rows], [value for *_, value in rows]
    )
    # As StateEntry(path, value) does it, in a third of the time.
    return list(map(partial(tuple.__new__, StateEntry), zip(*columns, strict=True)))


def _clamped(wake: Wake) -> tuple[int | None, int | None, int | None]:
    due, last, wall_ms = (None if each is None else as_int64(each) for each in wake)
    return due, last, wall_ms


def _cut(step: Step, move: int, level: int) -> tuple[Step, Step]:
    """A step in two: before and after W reaches a level, by its move of that number."""
    start, rows, levels = step.progress
    row = rows[move]
    begun = Progress(start, rows[: move + 1], [*levels[:move], level])
    rest = 0 if level < levels[move] else 1
    ended = Progress(level, rows[move + rest :], levels[move + rest :])
    stops = [bisect_right(chunk.rows, row) for chunk in step.chunks]
    cuts = list(zip(step.chunks, stops, strict=True))
    return (
        step._replace(chunks=[chunk.cut(0, stop) for chunk, stop in cuts], progress=begun),
        step._replace(
            chunks=[chunk.cut(stop, chunk.row_count) for chunk, stop in cuts], progress=ended
        ),
    )


def spilled(operator: StatefulOperator, states: States) -> StatefulOperator:
    """The operator, with its groups where the states are."""
    if operator.keyed_only or not isinstance(operator, GroupedOperator):
        return operator  # what it keeps spills by itself, or has no groups
    if not isinstance(states, SpilledStates):
        return operator
    database, number = states.place(operator.name, ("groups",))
    _, wakes_number = states.place(operator.name, ("wakes",))
    made = SpilledGroups(operator, GroupTable(database, number, wakes_number), states)
    states.add(made)
    return made
