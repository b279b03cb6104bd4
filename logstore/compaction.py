"""Decide what compaction keeps and which segments it rewrites. Pure: no file is touched here.

A record stays if no later record in the cleaned range has its key. A tombstone stays until its
horizon: long enough after the first cleaning for slow readers to see it. What is decided here is
carried out by `rewrite.py` and `compactor.py`; what it looks like on disk is in docs/log-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from operator import ge
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

KEY_BYTES_MAX: Final = 64
"""Longer keys are remembered by a digest of 32 bytes: no accident or attacker makes two alike."""
MAP_BYTES: Final = 64 << 20
"""Memory for the last offset of each key in one round; what does not fit is for the next one."""
ENTRY_BYTES: Final = 200
"""What a key takes in memory beside its bytes: two objects and their place in a hash table."""
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


class LatestOffsets:
    r"""The last offset of each key in a range of the log. Bounded; not thread-safe.

    Null keys are not remembered: no record replaces one without a key.

    >>> latest = LatestOffsets()
    >>> latest.add([b"a", b"b", b"a"], [0, 1, 2])
    >>> latest.mask([b"a", b"b", b"a"], [0, 1, 2]), latest.mask([b"c"], [3])
    (b'\x00\x01\x01', None)
    """

    def __init__(self, max_bytes: int = MAP_BYTES, *, whole_keys: bool = False) -> None:
        self._offsets: dict[Identity, int] = {}
        self._whole_keys = whole_keys
        """Remember long keys too as they are, for `remaining`."""
        self._max_bytes = max_bytes
        self._key_bytes = 0

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def full(self) -> bool:
        """Whether no further batch should be added in this round."""
        return len(self._offsets) * ENTRY_BYTES + self._key_bytes > self._max_bytes

    def add(self, keys: Sequence[bytes | None], offsets: Sequence[int]) -> None:
        """Note a batch; later ones have later offsets."""
        known = len(self._offsets)
        identities = self._identities(keys)
        self._offsets.update(zip(identities, offsets, strict=True))
        if None in self._offsets:
            del self._offsets[None]
        added = len(self._offsets) - known
        if added > 0:
            sizes = [len(each) if isinstance(each, bytes) else 32 for each in identities[:64]]
            self._key_bytes += added * sum(sizes) // len(sizes)

    def _identities(self, keys: Sequence[bytes | None]) -> Sequence[Identity]:
        return keys if self._whole_keys else _identities(keys)

    def take(self, keys: Sequence[bytes | None], offsets: Sequence[int]) -> list[int]:
        """The rows of a batch that are the last of their key, which are forgotten with that."""
        last = self._offsets.get
        pairs = zip(self._identities(keys), offsets, strict=True)
        rows = [row for row, (key, offset) in enumerate(pairs) if last(key) == offset]
        for row in rows:
            del self._offsets[keys[row] if self._whole_keys else _identity(keys[row])]
        return rows

    def remaining(self) -> list[bytes]:
        """The keys of which no record was taken; only with `whole_keys`."""
        return [key for key in self._offsets if isinstance(key, bytes)]

    def mask(self, keys: Sequence[bytes | None], offsets: Sequence[int]) -> bytes | None:
        """A byte per record: 1 if no later one of its key is known; ALL or NONE if all agree.

        Loops in C: about 100 ns per record.
        """
        identities = self._identities(keys)
        last = map(self._offsets.get, identities, offsets)  # its own offset for an unknown key
        kept = bytes(map(ge, offsets, last))
        return compact_mask(kept)


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


S = TypeVar("S", bound=Measured)


class Grouping(Generic[S]):
    """Puts neighbouring segments together that become one; not thread-safe.

    A group is as large as a segment may be. Segments that need no rewriting join only while both
    sides are small: gluing a little to a large file would write the large one again each time.

    Args:
        segment_bytes: Size of a full segment.
    """

    def __init__(self, segment_bytes: int) -> None:
        self._limit = segment_bytes
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
