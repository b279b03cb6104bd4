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
from struct import Struct, error as StructError  # noqa: N812 - it is a class
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .clock import Clock
from .errors import DataError, StorageError, StoreClosedError
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

GENERATIONS_MAX: Final = 1 << 63 - COUNTER_BITS
SLOTS_MAX: Final = 1 << 22
"""Partitions that a store may ever have had; the words of all of them take 1 GiB."""

GENERATION_WORD: Final = 2
SEQUENCE_WORD: Final = 3
IN_PROGRESS_WORD: Final = 4
OWNER_PID_WORD: Final = 5
TOPICS_VERSION_WORD: Final = 7
PRODUCERS_VERSION_WORD: Final = 10
LOCK_FILE_WORD: Final = 11
"""Changed by each process that opens the store, and so may have made `append.lock` anew."""
_WORDS = {
    "magic": 0,
    "inode": 1,
    "generation": GENERATION_WORD,
    "sequence": SEQUENCE_WORD,
    "in_progress": IN_PROGRESS_WORD,
    "owner_pid": OWNER_PID_WORD,
    "wake_version": WAKE_WORD,
    "topics_version": TOPICS_VERSION_WORD,
    "groups_version": 8,
    "transactions_version": 9,
    "producers_version": PRODUCERS_VERSION_WORD,
    "queues_version": 12,
    "lock_file_version": LOCK_FILE_WORD,
}


def to_signed(value: int) -> int:
    """The int64 with the same bits as the u64 `value`."""
    return value - (1 << 64) if value >= 1 << 63 else value


def to_unsigned(value: int) -> int:
    """The u64 with the same bits as the int64 `value`."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def durable_check(partition_uid: int, durable_offset: int) -> int:
    """A word which proves that `durable_offset` was written by us for this partition."""
    return to_signed(xxh3_64_intdigest(durable_offset.to_bytes(8, "little"), partition_uid))


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


class SlotWords(NamedTuple):
    """The words of a slot at one moment; what they mean is in `Slot`."""

    generation: int
    log_end: int
    end_position: int
    active_base: int
    previous_hash: int
    max_timestamp: int
    sequence: int
    durable_offset: int
    durable_check: int
    visible_offset: int
    visible_sequence: int
    zero_filled: int
    poisoned: int
    segments_version: int
    start_offset: int
    active_uid: int


# Hashes are unsigned. Each word is one aligned copy of 8 bytes, in rising order.
_ALL_WORDS: Final = Struct("4qQ10qQ")


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
    PRODUCER_OFFSET = 16
    """One past the base offset of the last batch that may name a producer; 0: there is none."""
    REWRITTEN_VERSION = 17
    """Bumped when a segment may have become another of the same name: compaction, recovery. Between
    two bumps segments only come at the end and go from the front."""
    COMMIT_END = 18
    """One past the last batch whose transaction is decided while it is synced: it must not be shown
    before it is durable. See docs/decisions/0031."""

    def __init__(self, words: Words, index: int) -> None:
        self._words = words
        self._base = HEADER_WORDS + index * SLOT_WORDS

    def read(self) -> SlotWords:
        """All words at once. They belong together only under the append lock."""
        try:
            words = _ALL_WORDS.unpack_from(self._words.view, self._base << 3)
        except StructError:
            raise _closed() from None
        return tuple.__new__(SlotWords, words)

    def read_end(self) -> tuple[int, SlotWords]:
        """A sequence and, read after it, all words: without the append lock.

        The sequence may belong to an earlier batch than their log end, never to a later one.
        """
        view, base = self._words.view, self._base
        try:
            sequence = view[base + _SEQUENCE]
            words = _ALL_WORDS.unpack_from(view, base << 3)
        except (IndexError, StructError):
            raise _closed() from None
        return sequence, tuple.__new__(SlotWords, words)

    def appended(
        self,
        before: SlotWords,
        end_position: int,
        link: tuple[int, int],
        log_end: int,
        sequence: int,
    ) -> None:
        """Store what an append changes. The append lock is held.

        Args:
            before: The words it was placed by.
            end_position: Where the next batch goes.
            link: Its header hash, and the running maximum timestamp.
            log_end: One past its last offset.
            sequence: Its sequence.
        """
        view, base = self._words.view, self._base
        # One by one: `Struct.pack_into` would fill all with zeros first, and followers in other
        # processes would find the end at 0.
        view[base + _END_POSITION] = end_position
        view[base + _PREVIOUS_HASH] = to_signed(link[0])
        view[base + _MAX_TIMESTAMP] = link[1]
        if end_position > before.zero_filled:
            view[base + _ZERO_FILLED] = end_position
        # Followers and group commit take this word for "written up to here". The sequence comes
        # after it, so that whoever reads it first never sees one from beyond the end.
        view[base + _LOG_END] = log_end
        view[base + _SEQUENCE] = sequence

    def synced(self, offset: int, check: int, sequence: int) -> None:
        """Store what a sync up to `offset` changes, if anything. The append lock is held."""
        view, base = self._words.view, self._base
        if offset <= view[base + _DURABLE_OFFSET]:
            return
        view[base + _DURABLE_CHECK] = check
        view[base + _DURABLE_OFFSET] = offset
        if offset > view[base + _VISIBLE_OFFSET]:
            # In this order: a reader takes the sequence first, and then finds all up to it.
            view[base + _VISIBLE_OFFSET] = offset
            view[base + _VISIBLE_SEQUENCE] = sequence

    def show(self) -> bool:
        """Make everything written visible, as `os` and `interval` acknowledge it.

        False, and nothing is done, while a transaction is committed here that is not synced yet.
        The append lock is held.
        """
        if self[Slot.COMMIT_END] > self[Slot.DURABLE_OFFSET]:
            return False
        self[Slot.VISIBLE_OFFSET] = self[Slot.LOG_END]
        self[Slot.VISIBLE_SEQUENCE] = self[Slot.SEQUENCE]
        return True

    def hide(self, end: int) -> bool:
        """Let nothing show the records below `end` before they are durable.

        False if they are shown already, or if nothing can be synced here. The append lock is held.
        """
        if self[Slot.VISIBLE_OFFSET] >= end or self[Slot.POISONED]:
            return False
        self[Slot.COMMIT_END] = max(end, self[Slot.COMMIT_END])
        return True

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


# Names of the words as globals: looking them up in the class would be a third of an append's cost.
_LOG_END: Final = Slot.LOG_END
_END_POSITION: Final = Slot.END_POSITION
_PREVIOUS_HASH: Final = Slot.PREVIOUS_HASH
_MAX_TIMESTAMP: Final = Slot.MAX_TIMESTAMP
_SEQUENCE: Final = Slot.SEQUENCE
_DURABLE_OFFSET: Final = Slot.DURABLE_OFFSET
_DURABLE_CHECK: Final = Slot.DURABLE_CHECK
_VISIBLE_OFFSET: Final = Slot.VISIBLE_OFFSET
_VISIBLE_SEQUENCE: Final = Slot.VISIBLE_SEQUENCE
_ZERO_FILLED: Final = Slot.ZERO_FILLED


class Tail:
    """The word file of an open store. Thread-safe; shared between processes.

    Followers wait by `wakeup.py`, without a daemon and with next to no processor time.
    """

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._read_only = storage.read_only
        self.shared = _open_words(storage)
        """`shared.view` is `words`, in one call less."""
        self._slots = GROW_SLOTS
        self._grow_lock = threading.Lock()
        self._wakeup = Wakeup(storage, clock, self.shared)

    @property
    def words(self) -> memoryview:
        """The mapped words; holders of the append lock, who keep them mapped, use them directly."""
        return self.shared.view

    def get(self, name: str) -> int:
        """The header word `name`."""
        try:
            value: int = self.shared.view[_WORDS[name]]
        except IndexError:
            raise _closed() from None
        return value

    def set(self, name: str, value: int) -> None:
        """Store the header word `name`."""
        try:
            self.shared.view[_WORDS[name]] = value
        except IndexError:
            raise _closed() from None

    @property
    def usable(self) -> bool:
        """Whether the words were written by Millstream into this very file, since the last boot."""
        return self.get("magic") == MAGIC and self.get("inode") == self.shared.inode

    def reset(self, generation: int) -> None:
        """Start over under a new generation: every slot counts as unknown, whatever it says.

        It may hold the number of this very generation, if the catalog was restored from a backup.

        Raises:
            DataError: No store was ever opened so often.
        """
        if not 0 < generation < GENERATIONS_MAX:
            raise DataError(f"the catalog says that this is generation {generation} of the store")
        self.set("magic", 0)
        generations = self.shared.view[HEADER_WORDS + Slot.GENERATION :: SLOT_WORDS]
        generations[:] = memoryview(bytes(8 * len(generations))).cast("q")
        self.set("generation", generation)
        self.set("sequence", generation << COUNTER_BITS)
        self.set("in_progress", 0)
        self.set("inode", self.shared.inode)
        self.set("magic", MAGIC)

    def slot(self, index: int) -> Slot:
        """The slot with that number; the file grows as needed.

        A read-only handle gets one of its own, all zero, while no writer has needed that slot yet.

        Raises:
            DataError: No store has so many.
        """
        if not 0 <= index < SLOTS_MAX:
            raise DataError(f"the catalog gives a partition slot {index} of at most {SLOTS_MAX}")
        with self._grow_lock:
            if index >= self._slots:
                slots = (index // GROW_SLOTS + 1) * GROW_SLOTS
                try:
                    self.shared.grow(HEADER_WORDS + slots * SLOT_WORDS)
                except StorageError:
                    if not self._read_only:
                        raise
                    return private_slot()
                self._slots = slots
        return Slot(self.shared, index)

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
        self.shared.close()

    def abandon(self) -> None:
        """As `close`, in the child of a fork, where nobody else is."""
        self._wakeup.abandon()
        self.shared.close()


def _open_words(storage: Storage) -> Words:
    count = HEADER_WORDS + GROW_SLOTS * SLOT_WORDS
    try:
        return storage.words("tail", count)
    except StorageError:
        if not storage.read_only:
            raise
        return PrivateWords(count)  # no writer has opened the store yet, or the file is gone
