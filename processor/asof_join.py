"""The as-of join: to each left row the right row of its key that is nearest in event time.

Also the join with a versioned table, whose updates are the versions. A left row waits until no
right row that would be nearer can come any more: looking backward until W has passed its time, in
the other directions until W has passed it by the greatest distance. So the result does not depend
on which side came first.

What happens at one input row, in this order: right rows, then left rows are judged against W as it
was before the row, late or taken in; then the row moves W; then the left rows that W lets go are
said, in the order of (event time, arrival), as rows caused by this input row.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from millstream import DataError

from .columns import Rows
from .join_nodes import AsofJoinNode
from .join_results import LateRows, Pairs
from .key_groups import Filed, GroupedOperator, Path, Wake
from .nodes import LATE
from .operators import merged
from .row_codec import RowCodec
from .serde import INT64_MAX, INT64_MIN
from .state import StateEntry, StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, Step
from .versions import VERSION, Versions

_PASSED_OVER: Final = 1_000
"""So many times may be in the heap for which nothing waits, and as many as something waits for."""

WAITING: Final = "waiting"
"""First part of the paths of left rows."""


class Waiting(NamedTuple):
    """A left row that waits for W."""

    number: int
    time: int
    key: object
    value: Any


class AsofJoinOperator(GroupedOperator):
    """Finds the match of each left row once that is settled. Not thread-safe.

    Its state is filed under ["waiting", due, key, number]: time and left row; and under
    ["version", key, time, number]: a right row.

    Args:
        node: Which rows belong together.
        delay_ms: W - delay_ms is what rows are judged against.
    """

    def __init__(self, node: AsofJoinNode, delay_ms: int) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        self._codec = RowCodec(node.left_type, f"{node.label}: left rows")
        self._versions = Versions(node)
        self._wait_ms = node.delay_ms + 1
        """A left row is settled when W is so far past it."""
        self._waiting: dict[int, list[Waiting]] = {}
        """By the W they wait for."""
        self._due: list[int] = []
        """A heap of the keys of `_waiting`; those that are not there any more are passed over."""
        self._dues_of: dict[object, set[int]] | None = None
        """What rows of each key wait for. None until keys leave: where none do, nobody asks."""
        self._waiting_count = 0
        """How many rows wait, once that is known as well."""
        self._numbers = 0
        self._fresh: dict[int, list[Waiting]] = {}
        """Those that came since the state was written."""
        self._persisted: set[int] = set()
        self._settled: list[int] = []

    @property
    def live_count(self) -> int:
        """Number of rows of both sides."""
        waiting = self._waiting_count
        if self._dues_of is None:
            waiting = sum(map(len, self._waiting.values()))
        return waiting + self._versions.count

    @property
    def required_level(self) -> int | None:
        """The W that settles every left row; None when none waits."""
        return max(self._waiting, default=None)

    def process(self, step: Step) -> dict[str, Rows]:
        """Take in rows of both sides.

        Returns:
            The results, and the late rows of both sides.

        Raises:
            RecordError: The function that makes results raised.
        """
        left, right = step.chunks
        assert left.keys is not None
        assert right.keys is not None
        lefts = zip(left.rows, left.times, left.keys, left.values, strict=True)
        rights = zip(right.rows, right.times, right.keys, right.values, strict=True)
        next_left, next_right = next(lefts, None), next(rights, None)
        pairs, late_left, late_right = Pairs(), LateRows(), LateRows()
        level = step.progress.start - self.delay_ms
        moves = zip(step.progress.rows, step.progress.levels, strict=True)
        for moved, reached in chain(moves, [(None, step.progress.end)]):
            while next_right is not None and (moved is None or next_right[0] <= moved):
                row, time, key, value = next_right
                if not self._versions.add(key, time, value, level):
                    late_right.add(row, time, key, value)
                next_right = next(rights, None)
            while next_left is not None and (moved is None or next_left[0] <= moved):
                row, time, key, value = next_left
                if time + self._wait_ms <= level:
                    late_left.add(row, time, key, value)
                else:
                    self._wait(time, key, value)
                next_left = next(lefts, None)
            level = reached - self.delay_ms
            if moved is not None:
                self._settle(level, moved, pairs)
        self._versions.prune(level)
        self.late_count += len(late_left.rows) + len(late_right.rows)
        return {
            MAIN: pairs.chunk(self._node.into, self._node.label, step.batch),
            LATE: merged([late_left.chunk(), late_right.chunk()], keyed=True),
        }

    def _wait(self, time: int, key: object, value: Any) -> None:
        due = time + self._wait_ms
        waiting = self._waiting.get(due)
        if waiting is None:
            waiting = self._waiting[due] = []
            heapq.heappush(self._due, due)
        self._numbers += 1
        row = Waiting(self._numbers, time, key, value)
        waiting.append(row)
        self._fresh.setdefault(due, []).append(row)
        if self._dues_of is not None:
            self._dues_of.setdefault(key, set()).add(due)
            self._waiting_count += 1

    def _settle(self, level: int, row: int, pairs: Pairs) -> None:
        find, inner = self._versions.find, self._node.how == "inner"
        while self._due and self._due[0] <= level:
            due = heapq.heappop(self._due)
            settled = self._waiting.pop(due, ())
            if self._dues_of is not None:
                self._let_go(due, settled)
            for each in settled:
                match = find(each.key, each.time)
                if match is not None or not inner:
                    pairs.add(row, each.time, each.key, (each.value, match))
            self._fresh.pop(due, None)
            if due in self._persisted:
                self._persisted.remove(due)
                self._settled.append(due)

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What changed since the last call.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        records = encode_removed((WAITING, due) for due in self._settled)
        records.extend(self._entries(self._fresh))
        self._persisted.update(self._fresh)
        self._settled, self._fresh = [], {}
        records.extend(self._versions.changes())
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All rows of both sides.

        Raises:
            UsageError: A row cannot be kept in state.
        """
        dues = sorted(self._waiting)
        for start in range(0, len(dues), SWEEP_RECORDS):
            piece = dues[start : start + SWEEP_RECORDS]
            yield self._entries({due: self._waiting[due] for due in piece if due in self._waiting})
        yield from self._versions.sweep()

    def _entries(self, rows: dict[int, list[Waiting]]) -> StateRecords:
        paths = [
            (WAITING, due, each.key, each.number) for due, many in rows.items() for each in many
        ]
        packed = self._codec.pack([each.value for many in rows.values() for each in many])
        values = [
            (each.time, value)
            for each, value in zip(chain.from_iterable(rows.values()), packed, strict=True)
        ]
        return encode_entries(self.name, paths, values, proven=True)

    # --- groups --------------------------------------------------------------------------------

    def ended(self) -> list[Path]:
        """See `GroupedOperator`."""
        return [(WAITING, due) for due in self._settled]

    def filed(self, path: Path) -> Filed:
        """See `GroupedOperator`."""
        match path:
            case (str(kind), int()) if kind == WAITING:
                return Filed(None, path)
            case (str(kind), int(), key, int()) if kind == WAITING:
                return Filed(key, path[:2])
            case (str(kind), key, int(), int()) if kind == VERSION:
                return Filed(key, None)
        raise DataError(f"not the state of {self.name!r}: {path!r}")

    def records(self, keys: Sequence[object]) -> StateRecords:
        """See `GroupedOperator`."""
        asked, dues_of = set(keys), self._by_key()
        dues = sorted(set(chain.from_iterable(dues_of.get(key, ()) for key in keys)))
        rows = {due: [row for row in self._waiting[due] if row.key in asked] for due in dues}
        records = self._entries(rows)
        records.extend(self._versions.records(keys))
        return records

    def take(self, entries: Sequence[StateEntry]) -> None:
        """See `GroupedOperator`."""
        came: dict[int, list[Waiting]] = {}
        for path, content in entries:
            if path[0] != WAITING:
                continue
            _, due, key, number = path
            match content:
                case [int(time), packed] if (
                    due == time + self._wait_ms and INT64_MIN <= time <= INT64_MAX
                ):
                    row = Waiting(number, time, key, self._codec.unpack(packed))
                    came.setdefault(due, []).append(row)
                case _:
                    raise DataError(f"not the state of {self.name!r}: {path!r} {content!r}")
            self._numbers = max(self._numbers, number)
        for due, rows in came.items():
            if due not in self._waiting:
                heapq.heappush(self._due, due)
            self._waiting[due] = sorted(self._waiting.get(due, []) + rows)
            self._persisted.add(due)
            if self._dues_of is not None:
                self._waiting_count += len(rows)
                for row in rows:
                    self._dues_of.setdefault(row.key, set()).add(due)
        self._versions.take(entry for entry in entries if entry.path[0] == VERSION)

    def wakes(self, keys: Sequence[object]) -> Iterator[Wake | None]:
        """See `GroupedOperator`: left rows wait for W, and versions to go."""
        goes = self._versions.due(set(keys))
        dues_of = self._by_key()
        for key in keys:
            waits = dues_of.get(key, ())
            dues = [*waits, goes[key]] if key in goes else waits
            yield Wake(min(dues), max(waits, default=None)) if dues else None

    def changed(self) -> set[object]:
        """See `GroupedOperator`."""
        waiting = {row.key for rows in self._fresh.values() for row in rows}
        return waiting | self._versions.changed()

    @property
    def changed_count(self) -> int:
        """See `GroupedOperator`."""
        return sum(map(len, self._fresh.values())) + self._versions.changed_count

    def forget(self, keys: Sequence[object]) -> None:
        """See `GroupedOperator`."""
        gone = set(keys)
        dues_of = self._by_key()
        for due in set(chain.from_iterable(dues_of.get(key, ()) for key in gone)):
            rows = self._waiting[due]
            self._let_go(due, [row for row in rows if row.key in gone])
            kept = [row for row in rows if row.key not in gone]
            if kept:
                self._waiting[due] = kept
            else:
                del self._waiting[due]
                self._persisted.discard(due)
        if len(self._due) > 2 * len(self._waiting) + _PASSED_OVER:
            self._due = list(self._waiting)
            heapq.heapify(self._due)
        self._versions.forget(gone)

    def _by_key(self) -> dict[object, set[int]]:
        """What rows of each key wait for. Looks at all rows the first time."""
        if self._dues_of is None:
            self._dues_of = {}
            for due, rows in self._waiting.items():
                self._waiting_count += len(rows)
                for row in rows:
                    self._dues_of.setdefault(row.key, set()).add(due)
        return self._dues_of

    def _let_go(self, due: int, rows: Sequence[Waiting]) -> None:
        """Rows wait no more: all that there are of their keys and this W."""
        assert self._dues_of is not None
        self._waiting_count -= len(rows)
        for key in {row.key for row in rows}:
            dues = self._dues_of[key]
            dues.remove(due)
            if not dues:
                del self._dues_of[key]
