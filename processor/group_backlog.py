"""What state was given of groups and the file of state has not: from a commit to the next write.

Only the newest value of each path is kept, by the path as the file has it. What the file holds of
a path that is in here, or of a bucket that has ended, is of the past. What memory holds of groups
is in spilled_groups.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter

from .key_groups import Filed, Path
from .spill_tables import GroupRow, GroupTable
from .state import StateRecords, decode_paths, encode_removed
from .stateful import SWEEP_RECORDS
from .stored_keys import PLAIN_TYPES, stored_key, stored_keys


class GroupBacklog:
    """What is to be written about the groups of one operator. Not thread-safe.

    Args:
        table: Gets it.
        place: To what a path of state belongs; see `GroupedOperator.filed`.
    """

    def __init__(self, table: GroupTable, place: Callable[[Path], Filed]) -> None:
        self._table = table
        self._place = place
        self._values: dict[bytes, bytes | None] = {}
        """By path, as the file has it; None: it is gone."""
        self._filed: dict[bytes, Filed] = {}
        """To what each of these belongs."""
        self._shown: dict[bytes, bytes] = {}
        """Those of the paths that state has with other bytes."""
        self._anew: set[bytes] = set()
        """Those that were gone and came back: the file must not go on with the former bytes."""
        self._plain = True
        """Whether equal paths have had equal bytes so far."""
        self.ended: dict[bytes, None] = {}
        """Buckets that are over, but not gone from the file."""

    def __len__(self) -> int:
        return len(self._values)

    def groups(self) -> Iterable[object]:
        """The groups that some of it belongs to."""
        return (filed.key for filed in self._filed.values())

    def add(self, records: StateRecords) -> None:
        """Take what state was given."""
        paths, values, filed = decode_paths(records.keys), self._values, self._filed
        self._plain &= PLAIN_TYPES.issuperset(map(type, chain.from_iterable(paths)))
        if self._plain:
            values.update(zip(records.keys, records.values, strict=True))
            new = [pair for pair in zip(records.keys, paths, strict=True) if pair[0] not in filed]
            filed.update({stored: self._place(path) for stored, path in new})
            return
        for path, shown, value in zip(paths, records.keys, records.values, strict=True):
            stored = stored_key(path)
            # As long as a path is there it is shown as it was first.
            if values.get(stored) is None:
                self._shown.pop(stored, None)
                if stored != shown:
                    self._shown[stored] = shown
                if stored in values:
                    self._anew.add(stored)
            values[stored] = value
            filed[stored] = self._place(path)

    def end(self, bucket: bytes) -> bool:
        """A bucket is over; whether that is new."""
        if bucket in self.ended:
            return False
        self.ended[bucket] = None
        return True

    def write(self) -> None:
        """Give it to the file, in a transaction. All of it is committed."""
        rows: list[GroupRow] = []
        gone: list[tuple[bytes, bytes]] = []
        waiting = self._waiting()
        keys = stored_keys([filed.key for _, filed, _ in waiting])
        for key, (path, (_, bucket), value) in zip(keys, waiting, strict=True):
            if value is None or path in self._anew:
                gone.append((key, path))
            if value is not None:
                under = None if bucket is None else stored_key(bucket)
                rows.append(GroupRow(key, path, self._shown.get(path), under, value))
        rows.sort(key=itemgetter(0, 1))
        self._table.write(list(self.ended), sorted(gone), rows)
        self._values, self._filed, self._shown = {}, {}, {}
        self.ended, self._anew = {}, set()

    def sweep(self) -> Iterator[StateRecords]:
        """It as records, some at a time; what is written meanwhile the file gives."""
        waiting = [(path, filed.key) for path, filed, value in self._waiting() if value is not None]
        for start in range(0, len(waiting), SWEEP_RECORDS):
            records = encode_removed(())
            for path, key in waiting[start : start + SWEEP_RECORDS]:
                value = self._values.get(path)
                if value is not None:
                    records.keys.append(self._called(path, key))
                    records.values.append(value)
            yield records

    def is_current(self, row: GroupRow) -> bool:
        """Whether a row of the file is what was committed last."""
        return row.bucket not in self.ended and row.path not in self._values

    def _waiting(self) -> list[tuple[bytes, Filed, bytes | None]]:
        """What the file has to get, but for what is in buckets that are over."""
        filed, ended = self._filed, self.ended
        waiting = [(path, filed[path], value) for path, value in self._values.items()]
        if not ended:
            return waiting
        return [
            each
            for each in waiting
            if each[1].bucket is None or stored_key(each[1].bucket) not in ended
        ]

    def _called(self, path: bytes, key: object) -> bytes:
        """A path that the file has to get, as state calls it: by the first of equal keys."""
        known = None
        if not self._plain and path not in self._anew:
            known = self._table.called(stored_key(key), path)
        return known or self._shown.get(path, path)
