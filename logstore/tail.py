"""The `tail` word file: what the processes of one store tell each other without talking.

A memory-mapped file of 64-bit words. A header of 64 words holds the store-wide append sequence and
version counters which followers watch; then each partition has a slot of 32 words with its log
end, its durable and its visible end. A word is read and written by one aligned 8-byte access.

All of it is derived data: missing, foreign or garbage words cost a recovery scan and nothing else
(`recovery.py`). The truth is in the segments and the catalog. Writers change a slot only under the
store-wide append lock; the one exception is the durable and visible end, which only ever rise.
"""

from __future__ import annotations

import threading

import xxhash

from .clock import Clock
from .errors import StorageError, StoreClosedError
from .storage import Storage, Words
from .wakeup import WAKE_WORD, Wakeup

MAGIC = 0x4D53_5441_494C_3031
HEADER_WORDS = 64
SLOT_WORDS = 32
GROW_SLOTS = 256
POISONED_BY_SYNC = 1
"""A sync failed: no append is accepted before the store is opened anew."""
POISONED_BY_WRITE = 2
"""What a failed write left could not be cut off: the next append tries that again first."""

DELETED = 3
"""In the same word: the topic was deleted, and its files may be those of another one by now."""

COUNTER_BITS = 40
"""A sequence is generation << 40 | counter: a new generation starts above all that went before."""

_WORDS = {
    "magic": 0,
    "inode": 1,
    "generation": 2,
    "sequence": 3,
    "in_progress": 4,
    "owner_pid": 5,
    "wake_version": WAKE_WORD,
    "topics_version": 7,
    "groups_version": 8,
    "transactions_version": 9,
}


def to_signed(value: int) -> int:
    """The int64 with the same bits as the u64 `value`."""
    return value - (1 << 64) if value >= 1 << 63 else value


def to_unsigned(value: int) -> int:
    """The u64 with the same bits as the int64 `value`."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def durable_check(partition_uid: int, durable_offset: int) -> int:
    """A word which proves that `durable_offset` was written by us for this partition."""
    return to_signed(
        xxhash.xxh3_64_intdigest(durable_offset.to_bytes(8, "little"), seed=partition_uid)
    )


class PrivateWords:
    """Words of this process alone: what a reader found out where no writer's words can help."""

    def __init__(self, count: int) -> None:
        self.inode = 0
        self.view = memoryview(bytearray(8 * count)).cast("q")

    def grow(self, count: int) -> None:
        """Make room for `count` words."""
        grown = memoryview(bytearray(8 * count)).cast("q")
        grown[: len(self.view)] = self.view
        self.view = grown

    def close(self) -> None:
        """Nothing is open."""


def private_slot() -> Slot:
    """A slot nobody else sees."""
    return Slot(PrivateWords(HEADER_WORDS + SLOT_WORDS), 0)


class Slot:
    """The 32 words of one partition, by name. Not a lock: see the module docstring for who writes.

    Invariant: start_offset <= durable_offset <= log_end and visible_offset <= log_end.
    """

    __slots__ = ("_base", "_words")

    GENERATION = 0
    LOG_END = 1
    END_POSITION = 2
    ACTIVE_BASE = 3
    PREVIOUS_HASH = 4
    MAX_TIMESTAMP = 5
    SEQUENCE = 6
    DURABLE_OFFSET = 7
    DURABLE_CHECK = 8
    VISIBLE_OFFSET = 9
    VISIBLE_SEQUENCE = 10
    ZERO_FILLED = 11
    """Bytes of the active segment which exist on disk; beyond END_POSITION they are zero."""
    POISONED = 12
    SEGMENTS_VERSION = 13
    """Bumped when the list of segments changes: roll, retention, recovery."""
    START_OFFSET = 14
    ACTIVE_UID = 15

    def __init__(self, words: Words, index: int) -> None:
        self._words = words
        self._base = HEADER_WORDS + index * SLOT_WORDS

    def __getitem__(self, word: int) -> int:
        try:
            value: int = self._words.view[self._base + word]
        except IndexError:
            raise _closed() from None
        return value

    def __setitem__(self, word: int, value: int) -> None:
        try:
            self._words.view[self._base + word] = value
        except IndexError:
            raise _closed() from None


def _closed() -> StoreClosedError:
    """For words that are unmapped: another thread closed the store."""
    return StoreClosedError("the store is closed: open it again")


class Tail:
    """The word file of an open store. Thread-safe; shared between processes.

    Followers wait by `wakeup.py`, without a daemon and with next to no processor time.
    """

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._words = _open_words(storage)
        self._slots = GROW_SLOTS
        self._grow_lock = threading.Lock()
        self._wakeup = Wakeup(storage, clock, self._words)

    def get(self, name: str) -> int:
        """The header word `name`."""
        try:
            value: int = self._words.view[_WORDS[name]]
        except IndexError:
            raise _closed() from None
        return value

    def set(self, name: str, value: int) -> None:
        """Store the header word `name`."""
        try:
            self._words.view[_WORDS[name]] = value
        except IndexError:
            raise _closed() from None

    @property
    def usable(self) -> bool:
        """Whether the words were written by Millstream into this very file."""
        return self.get("magic") == MAGIC and self.get("inode") == self._words.inode

    def reset(self, generation: int) -> None:
        """Start over under a new generation: every slot counts as unknown, whatever it says.

        It may hold the number of this very generation, if the catalog was restored from a backup.
        """
        self.set("magic", 0)
        generations = self._words.view[HEADER_WORDS + Slot.GENERATION :: SLOT_WORDS]
        generations[:] = memoryview(bytes(8 * len(generations))).cast("q")
        self.set("generation", generation)
        self.set("sequence", generation << COUNTER_BITS)
        self.set("in_progress", 0)
        self.set("inode", self._words.inode)
        self.set("magic", MAGIC)

    def slot(self, index: int) -> Slot:
        """The slot with that number; the file grows as needed."""
        with self._grow_lock:
            if index >= self._slots:
                slots = (index // GROW_SLOTS + 1) * GROW_SLOTS
                self._words.grow(HEADER_WORDS + slots * SLOT_WORDS)
                self._slots = slots
        return Slot(self._words, index)

    def bump(self, name: str) -> None:
        """Change the version word `name` and wake every follower."""
        self.set(name, self.stamp())
        self.wake()

    def stamp(self) -> int:
        """A value no version word has held before."""
        return self._wakeup.stamp()

    def wake(self) -> None:
        """Tell followers, in this process and others, that something became visible."""
        self._wakeup.wake()

    def wait(self, seen: int, timeout: float | None) -> int:
        """Block until `wake_version` differs from `seen` or `timeout` seconds passed; return it."""
        return self._wakeup.wait(seen, timeout)

    def close(self) -> None:
        """Stop listening and unmap the file. Whoever uses the words after that is refused."""
        self._wakeup.close()
        self._words.close()

    def abandon(self) -> None:
        """As `close`, in the child of a fork, where nobody else is."""
        self._wakeup.abandon()
        self._words.close()


def _open_words(storage: Storage) -> Words:
    count = HEADER_WORDS + GROW_SLOTS * SLOT_WORDS
    try:
        return storage.words("tail", count)
    except StorageError:
        if not storage.read_only:
            raise
        return PrivateWords(count)  # no writer has opened the store yet, or the file is gone
