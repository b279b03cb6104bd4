"""Wake followers in other threads and processes, without a daemon and without busy waiting.

A waiting process listens at a bell (a named pipe) and arms its word; who makes records visible
rings the armed bells and nobody else's, so an append nobody waits for costs one look at a word.
A bell is only a hint. What counts is the version word, which a waiter also looks at by itself now
and then: a process that dies between writing the word and ringing delays others, no more.
"""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import nullcontext
from typing import Final

from .clock import Clock
from .errors import StorageError, StoreClosedError
from .storage_protocols import Bell, Lock, Storage, Words

WAKE_WORD: Final = 6
ANY_ARMED_WORD: Final = 31
ARMED_WORDS: Final = range(32, 64)
"""One per listening process; more processes than that look at the word by themselves."""

LOOK_SECONDS: Final = 0.05
"""How long a listener trusts its bell."""
POLL_SECONDS: Final = 0.003
"""How long a waiter without a bell sleeps between two looks."""
_DIRECTORY: Final = "wake"


class Wakeup:
    """Waiting for, and announcing, changes of one store. Thread-safe.

    One waiting thread of a process listens at the bell, the others wait for it.
    """

    def __init__(self, storage: Storage, clock: Clock, words: Words) -> None:
        self._storage = storage
        self._clock = clock
        self._words = words
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        # An interrupt cannot leave a lock of C held that `with` takes; a flag it can leave set.
        self._ear = threading.Lock()
        """Held by the thread that listens."""
        self._listener = 0
        """The last one that did."""
        self._closed = False
        self._bell: Bell | None = None
        self._bell_lock: Lock | None = None
        self._armed_word = 0
        self._has_no_bell = storage.read_only
        # Version words hold stamps no other process writes, not counters: a lost increment
        # between two processes could restore a value a follower has already seen.
        self._stamps = itertools.count(int.from_bytes(os.urandom(8), "little") >> 2)

    def stamp(self) -> int:
        """A value no version word has held before."""
        return next(self._stamps)

    def wake(self) -> None:
        """Announce that something became visible."""
        view = self._words.view
        try:
            view[WAKE_WORD] = next(self._stamps)
        except IndexError:  # the words are unmapped
            raise StoreClosedError("the store is closed: open it again") from None
        if view[ANY_ARMED_WORD]:
            self._ring_armed(view)

    def _ring_armed(self, view: memoryview) -> None:
        # Cleared before looking: who arms from now on sets it again and is not missed.
        view[ANY_ARMED_WORD] = 0
        for word in ARMED_WORDS:
            if view[word]:
                view[word] = 0
                self._storage.ring(f"{_DIRECTORY}/{word}")

    def wait(self, seen: int, timeout: float | None) -> int:
        """Block until the version word differs from `seen` or `timeout` seconds passed.

        Returns the word. None waits for ever.

        Raises:
            StoreClosedError: Another thread closed the store.
        """
        try:
            return self._wait(seen, timeout)
        except IndexError:  # the words are unmapped
            raise StoreClosedError("the store was closed while waiting") from None

    def _wait(self, seen: int, timeout: float | None) -> int:
        clock = self._clock
        deadline = None if timeout is None else clock.monotonic() + timeout
        while (now := self._words.view[WAKE_WORD]) == seen:
            pause = LOOK_SECONDS
            if deadline is not None:
                pause = min(pause, deadline - clock.monotonic())
                if pause <= 0:
                    break
            self._listen_or_wait(seen, pause)
        return int(now)

    def _listen_or_wait(self, seen: int, pause: float) -> None:
        with self._lock:
            if not self._closed and self._ear.locked():
                self._clock.wait(self._condition.wait, pause)
                return
        thread = threading.get_ident()
        with self._ear:
            self._listener = thread
            if self._closed:
                raise StoreClosedError("the store was closed while waiting")
            self._listen(seen, pause)
        with self._lock:
            self._condition.notify_all()

    def _listen(self, seen: int, pause: float) -> None:
        bell = self._bell or self._open_bell()
        if bell is None:
            self._clock.sleep(min(pause, POLL_SECONDS))
            return
        view = self._words.view
        view[self._armed_word] = 1
        view[ANY_ARMED_WORD] = 1
        # Armed first, then looked: a change in between rings, one before is seen here.
        if view[WAKE_WORD] == seen:
            self._clock.wait(bell.wait, pause)
        view[self._armed_word] = 0

    def _open_bell(self) -> Bell | None:
        """Take a free word and listen at its bell; None if there is none to be had."""
        if self._has_no_bell:
            return None
        try:
            self._storage.make_directory(_DIRECTORY)
            for word in ARMED_WORDS:
                lock = self._storage.lock(f"{_DIRECTORY}/{word}.lock")
                try:
                    if lock.try_acquire():
                        self._bell_lock, self._armed_word = lock, word
                        self._bell = self._storage.bell(f"{_DIRECTORY}/{word}")
                        break
                finally:
                    if lock is not self._bell_lock:
                        lock.close()
        except StorageError:
            pass  # out of descriptors, say: following goes on, a little later each time
        self._has_no_bell = self._bell is None
        return self._bell

    def close(self) -> None:
        """Stop listening; who waits gets StoreClosedError."""
        with self._lock:
            self._closed = True
            if self._bell is not None:
                self._storage.ring(f"{_DIRECTORY}/{self._armed_word}")
            self._condition.notify_all()
        # Who listens ends first, unless it is this very thread, whose signal handler closes: then
        # the bell closes when it has done with it.
        ours = self._ear.locked() and self._listener == threading.get_ident()
        if ours:
            self._bell = None
        with nullcontext() if ours else self._ear:
            self.abandon()

    def abandon(self) -> None:
        """In the child of a fork: close what is open here. Nobody waits, whatever it looks like."""
        if self._bell is not None:
            self._bell.close()
        if self._bell_lock is not None:
            self._bell_lock.close()
