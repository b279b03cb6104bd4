"""Deduplication: of rows that say the same, the first in the log passes, for some event time.

A row is a duplicate when a row of the same identity has passed whose event time is less than
`within` away, earlier or later: what comes first in the log wins, also over an older row. From
exactly `within` on it is another occurrence, and passes.

A row that is `within` or more behind W is late: it is not known any more what passed around it. A
row that passed is remembered until no row that is not late can be its duplicate, which is when W is
2 * within past it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

from millstream import DataError

from .columns import Chunk, MicroBatch, Rows
from .errors import REJECTED, convert, reason
from .fields import field_getter
from .nodes import LATE, DedupNode
from .operators import refuse_row
from .serde import INT64_MAX, INT64_MIN, all_plain_keys, key_problem, plain_key
from .source import Rejects
from .state import StateEntry, StateRecords, encode_entries, encode_removed
from .stateful import MAIN, SWEEP_RECORDS, StatefulOperator, Step
from .watermark import Progress

_BUCKETS: Final = 4
"""Buckets per `within`: what is forgotten is forgotten by whole buckets, in one record each."""

Identity: TypeAlias = Any
"""What makes rows duplicates: a value, or (key, value) in a keyed stream."""


class _Bucket:
    """What passed in some stretch of event time."""

    __slots__ = ("changed", "identities", "persisted")

    def __init__(self) -> None:
        self.identities: dict[Identity, None] = {}
        self.changed: dict[Identity, None] = {}
        """Since the state was written."""
        self.persisted = False


class DedupOperator(StatefulOperator):
    """Lets the first of its kind pass. Not thread-safe.

    Its state is filed under [end of bucket, identity], or [end of bucket, key, identity]: the event
    times of the rows that passed.

    Args:
        node: What makes duplicates, and for how long.
        delay_ms: W - delay_ms is what rows are judged against.
        rejects: Takes rows without an identity; None where rows are not input records.
    """

    def __init__(self, node: DedupNode, delay_ms: int, rejects: Rejects | None) -> None:
        super().__init__(node, delay_ms)
        self._node = node
        self._rejects = rejects
        self._bucket_ms = max(1, node.within_ms // _BUCKETS)
        self._passed: dict[Identity, int | list[int]] = {}
        """Event times of the rows that passed; a plain int as long as there is one."""
        self._buckets: dict[int, _Bucket] = {}
        """By their ends."""
        self._ends: list[int] = []
        """A heap of the ends."""
        self._forgotten: list[int] = []
        """Ends of buckets that are gone, but not from the state yet."""

    @property
    def live_count(self) -> int:
        """Number of rows remembered, about."""
        return sum(len(bucket.identities) for bucket in self._buckets.values())

    @property
    def required_level(self) -> int | None:
        """None: nothing waits for time."""
        return None

    def process(self, step: Step) -> dict[str, Rows]:
        """Let rows pass.

        Returns:
            The rows that are the first of their kind, and the late ones.

        Raises:
            RecordError: A row has no identity and dead letters go nowhere.
        """
        chunk, identities = self._identified(step.chunks[0], step.batch)
        passes, late = self._judge(identities, chunk.rows, chunk.times, step.progress)
        return {MAIN: chunk.kept(passes), LATE: chunk.kept(late)}

    def _judge(
        self,
        identities: Sequence[Identity],
        rows: Sequence[int],
        times: Sequence[int],
        progress: Progress,
    ) -> tuple[list[bool], list[bool]]:
        """Which rows pass, and which are late; what passes is remembered."""
        late = self._late(rows, times, progress)
        passes: list[bool] = []
        for identity, time, is_late in zip(identities, times, late, strict=True):
            passes.append(not is_late and self._is_first(identity, time))
        self._forget(progress.end - self.delay_ms)
        late_count = sum(late)
        self.late_count += late_count
        self.skipped_count += len(passes) - sum(passes) - late_count
        return passes, late

    def _identified(self, chunk: Chunk, batch: MicroBatch) -> tuple[Chunk, Sequence[Identity]]:
        """The rows that have an identity, and what it is."""
        node, bad = self._node, dict[int, Exception]()
        getter = field_getter(node.on, chunk.values, chunk.kind)
        found: Sequence[object] = chunk.values
        if getter is not None:
            found = convert(found, getter, bad.__setitem__)
        if not all_plain_keys(found):
            found = list(map(_identity, found))
            for index, each in enumerate(found):
                problem = "the identity is None" if each is None else key_problem(each)
                if problem is not None and each is not REJECTED:
                    bad[index] = ValueError(problem)
        for index, error in sorted(bad.items()):
            message = f"{node.label}: {reason(error)}"
            refuse_row(self._rejects, message, batch, chunk.rows[index], error)
        if bad:
            good = [index not in bad for index in range(len(found))]
            found = [each for each, is_good in zip(found, good, strict=True) if is_good]
            chunk = chunk.kept(good)
        if node.keyed:
            assert chunk.keys is not None
            return chunk, list(zip(chunk.keys, found, strict=True))
        return chunk, found

    def _late(self, rows: Sequence[int], times: Sequence[int], progress: Progress) -> list[bool]:
        hold_ms = self._node.within_ms + self.delay_ms
        if not times or min(times) + hold_ms > progress.end:
            return [False] * len(times)
        levels = progress.before(rows)
        return [time + hold_ms <= level for time, level in zip(times, levels, strict=True)]

    def _is_first(self, identity: Identity, time: int) -> bool:
        """Whether no row like it has passed around `time`; if so, this one does."""
        within_ms = self._node.within_ms
        known = self._passed.get(identity)
        if known is None:
            self._passed[identity] = time
        elif isinstance(known, int):
            if abs(time - known) < within_ms:
                return False
            self._passed[identity] = [known, time]
        else:
            for each in known:
                if abs(time - each) < within_ms:
                    return False
            known.append(time)
        bucket = self._bucket(time - time % self._bucket_ms + self._bucket_ms)
        bucket.identities[identity] = bucket.changed[identity] = None
        return True

    def _bucket(self, end: int) -> _Bucket:
        bucket = self._buckets.get(end)
        if bucket is None:
            bucket = self._buckets[end] = _Bucket()
            heapq.heappush(self._ends, end)
        return bucket

    def _forget(self, level: int) -> None:
        """Drop the buckets that no row can be a duplicate of any more."""
        hold_ms = 2 * self._node.within_ms
        while self._ends and self._ends[0] + hold_ms <= level:
            end = heapq.heappop(self._ends)
            bucket = self._buckets.pop(end)
            if bucket.persisted:
                self._forgotten.append(end)
            for identity in bucket.identities:
                known = self._passed[identity]
                later = [] if isinstance(known, int) else [each for each in known if each >= end]
                if len(later) > 1:
                    self._passed[identity] = later
                elif later:
                    self._passed[identity] = later[0]
                else:
                    del self._passed[identity]

    # --- state ---------------------------------------------------------------------------------

    def changes(self) -> StateRecords:
        """What passed since the last call, and what has been forgotten."""
        records = encode_removed((end,) for end in self._forgotten)
        self._forgotten = []
        for end, bucket in sorted(self._buckets.items()):
            if bucket.changed:
                records.extend(self._entries(end, list(bucket.changed)))
                bucket.changed = {}
                bucket.persisted = True
        return records

    def sweep(self) -> Iterator[StateRecords]:
        """All that is remembered."""
        for end, bucket in sorted(self._buckets.items()):
            identities = list(bucket.identities)
            for start in range(0, len(identities), SWEEP_RECORDS):
                if end in self._buckets:
                    yield self._entries(end, identities[start : start + SWEEP_RECORDS])

    def _path(self, end: int, identity: Identity) -> tuple[object, ...]:
        return (end, *identity) if self._node.keyed else (end, identity)

    def _entries(self, end: int, identities: Sequence[Identity]) -> StateRecords:
        paths = [self._path(end, identity) for identity in identities]
        start = end - self._bucket_ms
        values: list[tuple[int, ...]] = []
        for identity in identities:
            known = self._passed[identity]
            if isinstance(known, int):
                values.append((known,))  # in this bucket, or it would not be here
            else:
                values.append(tuple([time for time in known if start <= time < end]))
        return encode_entries(self.name, paths, values, proven=True)

    def restore(self, entries: Iterable[StateEntry]) -> None:
        """Take what passed from records.

        Raises:
            DataError: Not the state of a deduplication.
        """
        width = 3 if self._node.keyed else 2
        buckets: dict[int, dict[Identity, list[Any]]] = {}
        for path, times in entries:
            end = path[0]
            if times is None and len(path) == 1:
                buckets.pop(end, None)
            elif type(end) is not int or len(path) != width or not self._are_times(end, times):
                raise DataError(f"not the state of {self.name!r}: {path!r} {times!r}")
            else:
                identity = path[1:] if self._node.keyed else path[1]
                buckets.setdefault(end, {})[identity] = times or []
        for end, identities in sorted(buckets.items()):
            bucket = self._bucket(end)
            bucket.persisted = True
            bucket.identities = dict.fromkeys(identities)
            for identity, each in identities.items():
                known = self._passed.get(identity, [])
                whole = [*([known] if isinstance(known, int) else known), *each]
                self._passed[identity] = whole[0] if len(whole) == 1 else whole

    def _are_times(self, end: int, times: Sequence[Any] | None) -> bool:
        first, last = max(INT64_MIN, end - self._bucket_ms), min(INT64_MAX, end - 1)
        return bool(times) and all(
            type(time) is int and first <= time <= last for time in chain(times or ())
        )


def _identity(value: object) -> object:
    """What is compared, and never shown: of a NamedTuple its values."""
    return tuple(map(_identity, value)) if isinstance(value, tuple) else plain_key(value)
