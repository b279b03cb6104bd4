"""Decide what compaction keeps and which segments it rewrites. Pure: no file is touched here.

A record stays if no later record in the cleaned range has its key. A tombstone stays until its
horizon: long enough after the first cleaning for slow readers to see it. What is decided here is
carried out by `rewrite.py` and `compactor.py`; what it looks like on disk is in docs/log-format.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

KEY_BYTES_MAX: Final = 64
"""Longer keys are remembered by a digest of 32 bytes: no accident or attacker makes two alike."""
MAP_BYTES: Final = 128 << 20
"""Memory for the keys of one round; what does not fit is for the next one."""
ENTRY_BYTES: Final = 150
"""What a key and an offset take beside the key's bytes: two objects, a place in a hash table."""
LATER_ENTRY_BYTES: Final = 75
"""The same without an offset."""
_SAMPLE: Final = 64
"""Keys of a batch whose sizes stand for the others."""
_INVERTED: Final = bytes.maketrans(b"\x00\x01", b"\x01\x00")
GROUP_MAX: Final = 256
"""Segments that become one: what is done with all of them at once takes milliseconds."""

Identity: TypeAlias = bytes | int | None

ALL: Final = None
"""As a mask: every record of the batch stays."""
NONE: Final = b""
"""As a mask: no record of the batch stays."""


def _identity(key: bytes | None) -> Identity:
    if key is None or len(key) <= KEY_BYTES_MAX:
        return key
    # A number is never equal to a key of bytes.
    return int.from_bytes(blake2b(key, digest_size=32).digest(), "big")


def _identities(keys: Sequence[bytes | None]) -> Sequence[Identity]:
    try:
        if max(map(len, keys), default=0) <= KEY_BYTES_MAX:  # type: ignore[arg-type] # None: TypeError
            return keys
    except TypeError:
        pass  # a null key among them
    return [_identity(key) for key in keys]


class LaterKeys:
    r"""The keys of a stretch of the log that is walked backwards. Bounded by who walks.

    Null keys are not remembered: no record replaces one without a key.

    >>> later = LaterKeys()
    >>> later.take([b"a", b"b", b"a"]), later.take([b"b", b"c"])
    (b'\x00\x01\x01', b'\x00\x01')
    >>> later.mask([b"a", b"d"])
    b'\x00\x01'
    """

    def __init__(self) -> None:
        self._keys: set[Identity] = set()
        self._key_bytes = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def size_bytes(self) -> int:
        """What they take in memory, about."""
        return len(self._keys) * LATER_ENTRY_BYTES + self._key_bytes

    def take(self, keys: Sequence[bytes | None]) -> bytes | None:
        """The mask of a batch that lies before all that were taken: its keys are met from now on.

        Of a key that is in it twice the last record stays. Loops in C but for a step per record
        that stays, because of a record few others in a batch are replaced in it alone.
        """
        identities = _identities(keys)
        count = len(identities)
        last = dict(zip(identities, range(count), strict=True))
        new = last.keys() - self._keys
        self._keys |= new
        if new:
            self._key_bytes += sum(_sampled(new)) * len(new) // min(len(new), _SAMPLE)
        if None in new:
            self._keys.discard(None)
        if len(new) == count:
            return ALL
        kept = bytearray(count)
        for row in map(last.__getitem__, new):
            kept[row] = 1
        if None in last:
            for row, identity in enumerate(identities):
                if identity is None:
                    kept[row] = 1
        return compact_mask(bytes(kept))

    def mask(self, keys: Sequence[bytes | None]) -> bytes | None:
        """The mask of a batch that lies before all that were taken, and has no key twice."""
        met = bytes(map(self._keys.__contains__, _identities(keys)))
        return compact_mask(met.translate(_INVERTED))


def _sampled(identities: Iterable[Identity]) -> Iterator[int]:
    """The sizes of some of the keys."""
    for identity in islice(identities, _SAMPLE):
        yield len(identity) if isinstance(identity, bytes) else 32


def kept_records(record_count: int, mask: bytes | None) -> int:
    """How many records of a batch stay."""
    return record_count if mask is ALL else mask.count(1)


class LatestOffsets:
    """The last offset of each key in a range of the log. Bounded; not thread-safe.

    Null keys are not remembered.

    >>> latest = LatestOffsets()
    >>> latest.add([b"a", b"b", b"a"], [0, 1, 2])
    >>> latest.take([b"a", b"b", b"a"], [0, 1, 2]), latest.remaining()
    ([1, 2], [])
    """

    def __init__(self, max_bytes: int = MAP_BYTES) -> None:
        self._offsets: dict[bytes | None, int] = {}
        self._max_bytes = max_bytes
        self._key_bytes = 0

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def full(self) -> bool:
        """Whether the keys take more than they may."""
        return len(self._offsets) * ENTRY_BYTES + self._key_bytes > self._max_bytes

    def add(self, keys: Sequence[bytes | None], offsets: Sequence[int]) -> None:
        """Note a batch; later ones have later offsets."""
        known = len(self._offsets)
        self._offsets.update(zip(keys, offsets, strict=True))
        self._offsets.pop(None, None)
        added = len(self._offsets) - known
        if added > 0:
            self._key_bytes += added * sum(_sampled(keys)) // min(len(keys), _SAMPLE)

    def take(self, keys: Sequence[bytes | None], offsets: Sequence[int]) -> list[int]:
        """The rows of a batch that are the last of their key, which are forgotten with that."""
        last = map(self._offsets.get, keys)
        rows = [
            row for row, pair in enumerate(zip(last, offsets, strict=True)) if pair[0] == pair[1]
        ]
        for row in rows:
            del self._offsets[keys[row]]
        return rows

    def remaining(self) -> list[bytes]:
        """The keys of which no record was taken."""
        return [key for key in self._offsets if key is not None]


def compact_mask(kept: bytes) -> bytes | None:
    """`kept`, or ALL or NONE where that says the same."""
    count = kept.count(1)
    if count == len(kept):
        return ALL
    return kept if count else NONE


def without(mask: bytes | None, taken: bytes) -> bytes | None:
    r"""`mask` of a batch without the records that have a 1 in `taken`.

    >>> without(ALL, b"\x01\x00"), without(b"\x01\x00", b"\x01\x00")
    (b'\x00\x01', b'')
    """
    count = len(taken)
    kept = b"\x01" * count if mask is ALL else mask
    rest = int.from_bytes(kept, "big") & ~int.from_bytes(taken, "big")
    return compact_mask(rest.to_bytes(count, "big"))


class Measured(Protocol):
    """What the choice of segments needs to know of one."""

    @property
    def kept_bytes(self) -> int:
        """About how much of it stays."""
        ...

    @property
    def dirty(self) -> bool:
        """Whether rewriting it changes more than its size."""
        ...

    @property
    def created_ms(self) -> int:
        """When the segment was begun."""
        ...

    @property
    def sealed_ms(self) -> int:
        """When it was sealed: nothing in it is younger."""
        ...


S = TypeVar("S", bound=Measured)


class Grouping(Generic[S]):
    """Puts neighbouring segments together that become one; not thread-safe.

    A group is as large as a segment may be. Segments that need no rewriting join only while both
    sides are small: gluing a little to a large file would write the large one again each time.

    Args:
        segment_bytes: Size of a full segment.
        span_ms: Records of one segment lie no further apart, if they are to be removed by age: the
            whole segment goes when its youngest is old. None: any.
    """

    def __init__(self, segment_bytes: int, span_ms: int | None = None) -> None:
        self._limit = segment_bytes
        self._span_ms = span_ms
        self._group: list[S] = []
        self._bytes = 0
        self._dirty = False

    def add(self, segment: S) -> list[S]:
        """Take the next segment; the group before it if it is complete and worth rewriting."""
        done: list[S] = []
        if self._group and not self._joins(segment):
            done = self.close()
        self._group.append(segment)
        self._bytes += segment.kept_bytes
        self._dirty = self._dirty or segment.dirty
        return done

    def _joins(self, segment: S) -> bool:
        full = len(self._group) >= GROUP_MAX
        span_ms = segment.sealed_ms - self._group[0].created_ms
        if self._span_ms is not None and span_ms > self._span_ms:
            return False
        if full or self._bytes + segment.kept_bytes > self._limit:
            return False
        small = self._limit // 2
        group_moves = self._dirty or self._bytes <= small
        segment_moves = segment.dirty or segment.kept_bytes <= small
        return group_moves and segment_moves

    def close(self) -> list[S]:
        """The last group if it is worth rewriting, else nothing."""
        group, worth = self._group, self._dirty or len(self._group) > 1
        self._group, self._bytes, self._dirty = [], 0, False
        return group if worth else []


class Backlog(NamedTuple):
    """What there is to do in one partition, from its segment headers and the catalog."""

    clean_bytes: int
    """In sealed segments that have been cleaned."""
    dirty_bytes: int
    """In sealed segments that have not."""
    dirty_since_ms: int | None
    """When the first of them was sealed."""
    tombstones_since_ms: int | None
    """When the first tombstones still kept were first cleaned."""


def due(backlog: Backlog, *, now_ms: int, lag_ms: int, tombstone_ms: int) -> bool:
    """Whether the background should compact now.

    When at least half of the sealed bytes are dirty: then every byte is rewritten a few times at
    most, however often it is asked. When the first dirty segment was sealed `lag_ms` ago: so
    what was replaced or deleted is gone after a bounded time. When tombstones pass their horizon.

    >>> due(Backlog(10, 10, 0, None), now_ms=5, lag_ms=100, tombstone_ms=100)
    True
    >>> due(Backlog(10, 9, 0, None), now_ms=5, lag_ms=100, tombstone_ms=100)
    False
    """
    since, tombstones = backlog.dirty_since_ms, backlog.tombstones_since_ms
    return (
        (backlog.dirty_bytes > 0 and backlog.dirty_bytes >= backlog.clean_bytes)
        or (since is not None and now_ms - since >= lag_ms)
        or (tombstones is not None and now_ms - tombstones >= tombstone_ms)
    )
