"""What a restart has read of groups and the file of state has not, until it is written.

Only the newest value of each path is kept, by the path as the file has it. Once all is read, the
file gets groups as they leave memory: see spilled_groups.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from .key_groups import Path, Places
from .spill_tables import GroupTable
from .state import StateRecords, decode_paths
from .stored_keys import PLAIN_TYPES, stored_key, stored_keys


class GroupBacklog:
    """What is to be written about the groups of one operator. Not thread-safe.

    Args:
        table: Gets it.
        placed: To what paths of state belong; see `GroupedOperator.placed`.
    """

    def __init__(self, table: GroupTable, placed: Callable[[Sequence[Path]], Places]) -> None:
        self._table = table
        self._placed = placed
        self._values: dict[bytes, bytes | None] = {}
        """By path, as the file has it; None: it is gone."""
        self._keys: dict[bytes, object] = {}
        """The group that each of these belongs to."""
        self._buckets: dict[bytes, bytes] = {}
        """The buckets of those that have one."""
        self._of_bucket: dict[bytes, dict[bytes, None]] = {}
        """The same by bucket."""
        self._shown: dict[bytes, bytes] = {}
        """Those of the paths that state has with other bytes."""
        self._anew: set[bytes] = set()
        """Those that were gone and came back: the file must not go on with the former bytes."""
        self._plain = True
        """Whether equal paths have had equal bytes so far."""
        self._ended: dict[bytes, None] = {}
        """Buckets that are over, but not gone from the file."""

    def __len__(self) -> int:
        return len(self._values)

    def add(self, records: StateRecords) -> None:
        """Take what state was given."""
        paths, stored = decode_paths(records.keys), records.keys
        self._plain &= PLAIN_TYPES.issuperset(map(type, chain.from_iterable(paths)))
        if self._plain:
            self._values.update(zip(stored, records.values, strict=True))
        else:
            stored = list(map(stored_key, paths))
            self._add_shown(stored, records)
        keys, buckets = self._placed(paths)
        self._keys.update(zip(stored, keys, strict=True))
        if buckets is not None:
            self._add_buckets(stored, buckets)

    def _add_shown(self, paths: Sequence[bytes], records: StateRecords) -> None:
        values = self._values
        for stored, shown, value in zip(paths, records.keys, records.values, strict=True):
            # As long as a path is there it is shown as it was first.
            if values.get(stored) is None:
                self._shown.pop(stored, None)
                if stored != shown:
                    self._shown[stored] = shown
                if stored in values:
                    self._anew.add(stored)
            values[stored] = value

    def _add_buckets(self, paths: Sequence[bytes], buckets: Sequence[Path | None]) -> None:
        names = {each: stored_key(each) for each in set(buckets) if each is not None}
        for path, bucket in zip(paths, buckets, strict=True):
            if bucket is not None:
                self._buckets[path] = names[bucket]
                self._of_bucket.setdefault(names[bucket], {})[path] = None

    def end(self, bucket: bytes) -> None:
        """A bucket is over, with all that was added to it."""
        self._ended[bucket] = None
        for path in self._of_bucket.pop(bucket, ()):
            del self._values[path], self._keys[path], self._buckets[path]
            self._shown.pop(path, None)
            self._anew.discard(path)

    def write(self) -> None:
        """Give it to the file, in a transaction. All of it is committed."""
        keys = stored_keys(list(map(self._keys.__getitem__, self._values)))
        rows, gone = [], []
        for key, (path, value) in zip(keys, self._values.items(), strict=True):
            if value is None or path in self._anew:
                gone.append((key, path))
            if value is not None:
                rows.append((key, path, self._shown.get(path), self._buckets.get(path), value))
        rows.sort()
        self._table.write(list(self._ended), sorted(gone), rows)
        self._values, self._keys, self._shown = {}, {}, {}
        self._buckets, self._of_bucket = {}, {}
        self._ended, self._anew = {}, set()
