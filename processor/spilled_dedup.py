"""Deduplication that keeps in memory what is in use, and the rest in the SQLite file of state.

The operator is that of dedup.py; what passed of the identities of a step is fetched before their
rows are looked at. Of an identity memory has all or nothing. When there is too much in memory,
every identity goes that the file has as it is; what the file has, and when, is as in
spilled_windowing.py, with buckets for windows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from millstream import DataError

from .columns import Chunk, MicroBatch
from .dedup import DedupOperator, Identity
from .keyed_state import States
from .nodes import DedupNode
from .serde import encode_state
from .source import Rejects
from .spill_room import RESTORE_BYTES, EntrySizes, Room
from .spill_tables import BucketTable, WindowRow
from .spilled_states import SpilledStates
from .state import StateEntry, StateRecords, decode_contents, encode_content, encode_removed
from .stateful import SWEEP_RECORDS
from .stored_keys import encoded_keys, stored_keys


class SpilledDedupOperator(DedupOperator):
    """Lets the first of its kind pass, with more state than memory. Not thread-safe.

    Args:
        node: See `DedupOperator`, as the next two.
        delay_ms: W - delay_ms is what rows are judged against.
        rejects: Takes rows without an identity.
        table: Has what memory has no room for.
        room: How much may be kept in memory, with other states.
    """

    def __init__(
        self,
        node: DedupNode,
        delay_ms: int,
        rejects: Rejects | None,
        *,
        table: BucketTable,
        room: Room,
    ) -> None:
        super().__init__(node, delay_ms, rejects)
        self.table = table
        self._room = room
        self._pending: dict[int, dict[Identity, bytes]] = {}
        """By bucket: identities with what state has of them and the file has not."""
        self._ended: list[bytes] = []
        """Buckets that are over, but not gone from the file."""
        self._away: dict[int, int] = {}
        """By bucket: how many identities memory does not have."""
        self._sizes = EntrySizes()

    @property
    def live_count(self) -> int:
        """Number of rows remembered, about."""
        return super().live_count + sum(self._away.get(end, 0) for end in self._buckets)

    @property
    def held_count(self) -> int:
        """Number of identities in memory."""
        return len(self._passed)

    # --- what memory holds ---------------------------------------------------------------------

    @property
    def young_bytes(self) -> int:
        """Memory that what is in it takes, about."""
        return len(self._passed) * self._sizes.held_bytes

    @property
    def dirty_bytes(self) -> int:
        """Memory that must not be forgotten, because the file does not have it, about."""
        count = sum(len(bucket.changed) for bucket in self._buckets.values())
        return (count + sum(map(len, self._pending.values()))) * self._sizes.held_bytes

    def turn(self) -> None:
        """Forget what the file has."""
        kept: set[Identity] = set().union(*self._pending.values())
        kept.update(*(bucket.changed for bucket in self._buckets.values()))
        held = list(filter(kept.__contains__, self._passed)) if kept else []
        self._passed = dict(zip(held, map(self._passed.__getitem__, held), strict=True))
        for end, bucket in self._buckets.items():
            before = len(bucket.identities)
            held = list(filter(kept.__contains__, bucket.identities)) if kept else []
            bucket.identities = dict.fromkeys(held)
            if gone := before - len(bucket.identities):
                self._away[end] = self._away.get(end, 0) + gone

    def _identified(self, chunk: Chunk, batch: MicroBatch) -> tuple[Chunk, Sequence[Identity]]:
        """See `DedupOperator`. Fetches what the file has of the identities."""
        chunk, identities = super()._identified(chunk, batch)
        if self._away:
            self._hold(stored_keys(set(identities).difference(self._passed)))
        return chunk, identities

    def _hold(self, missing: Iterable[bytes]) -> None:
        ends, identities, values = self.table.anywhere(sorted(missing))
        for end, identity, found in zip(ends, identities, decode_contents(values), strict=True):
            bucket = self._buckets.get(end)
            # What is over goes from the file a little later.
            if bucket is not None:
                bucket.identities[identity] = None
                self._away[end] -= 1
                known = self._passed.get(identity)
                if known is not None:
                    found[:0] = [known] if isinstance(known, int) else known
                self._passed[identity] = found[0] if len(found) == 1 else found

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """See `DedupOperator.changes`. The file gets them when they are committed: see `write`."""
        records = encode_removed((end,) for end in self._forgotten)
        for end in self._forgotten:
            self._ended.append(encode_state(end))
            self._pending.pop(end, None)
            self._away.pop(end, None)
        self._forgotten = []
        for end, bucket in sorted(self._buckets.items()):
            if bucket.changed:
                changed, bucket.changed, bucket.persisted = list(bucket.changed), {}, True
                entries = self._entries(end, changed)
                written = [value for value in entries.values if value is not None]
                self._pending.setdefault(end, {}).update(zip(changed, written, strict=True))
                size = sum(map(len, written)) + sum(map(len, entries.keys))
                self._sizes.note(len(changed), size)
                records.extend(entries)
        return records

    def write(self) -> None:
        """Give the file what `changes` has given, in a transaction. All of it is committed."""
        rows: list[WindowRow] = []
        for end, identities in self._pending.items():
            name, keys = encode_state(end), encoded_keys(identities)
            rows += [
                (name, *key, value) for key, value in zip(keys, identities.values(), strict=True)
            ]
        rows.sort()
        self.table.write(self._ended, (), rows)
        self._pending, self._ended = {}, []

    def sweep(self) -> Iterator[StateRecords]:
        """See `DedupOperator.sweep`. What changes meanwhile has records of its own already."""
        for end, bucket in sorted(self._buckets.items()):
            identities, known = list(bucket.identities), set[Identity]()
            for start in range(0, len(identities), SWEEP_RECORDS):
                # What memory has forgotten since is in the file, which comes afterwards.
                piece = identities[start : start + SWEEP_RECORDS]
                piece = [identity for identity in piece if identity in bucket.identities]
                if end in self._buckets:
                    known.update(piece)
                    yield self._entries(end, piece)
            for names, values in self.table.all_of(encode_state(end)):
                if end not in self._buckets:
                    break
                rows = zip(names, values, strict=True)
                rest = [(identity, value) for identity, value in rows if identity not in known]
                held = [identity for identity, _ in rest if identity in bucket.identities]
                records = self._entries(end, held)
                # What memory does not hold, the file has as it is.
                for identity, value in rest:
                    if identity not in bucket.identities:
                        records.keys.append(encode_state(self._path(end, identity)))
                        records.values.append(value)
                yield records

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """See `DedupOperator.restore`. The file gets all of it."""
        width = 3 if self._node.keyed else 2
        size = 0
        for path, times in entries:
            end = path[0]
            if times is None and len(path) == 1:
                self._pending.pop(end, None)
                if self._buckets.pop(end, None) is not None:
                    self._ended.append(encode_state(end))
            elif (
                type(end) is not int
                or len(path) != width
                or times is None
                or not self._are_times(end, times)
            ):
                raise DataError(f"not the state of {self.name!r}: {path!r} {times!r}")
            else:
                identity = path[1:] if self._node.keyed else path[1]
                self._bucket(end).persisted = True
                value = encode_content(times)
                size += len(encode_state(identity)) + len(value)
                self._pending.setdefault(end, {})[identity] = value
            if size >= RESTORE_BYTES:
                self._room.write()
                size = 0
        self._room.write()
        self._away = {end: self.table.count(encode_state(end)) for end in self._buckets}
        self._ends = list(self._buckets)
        heapq.heapify(self._ends)


def dedup_operator(
    node: DedupNode, delay_ms: int, rejects: Rejects | None, states: States
) -> DedupOperator:
    """The operator for a deduplication, with its state where the states are."""
    if not isinstance(states, SpilledStates):
        return DedupOperator(node, delay_ms, rejects)
    table = BucketTable(*states.place(node.name, ("buckets",)))
    operator = SpilledDedupOperator(node, delay_ms, rejects, table=table, room=states)
    states.add(operator)
    return operator
