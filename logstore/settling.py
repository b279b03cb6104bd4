"""Threads that settle jobs at once share one commit of the catalog.

A thread that comes while another commits joins the round that is open; the first of a round commits
for all of it as soon as the commit before is over. The others wait at the round's door, a lock
passed on from one to the next: whoever has it and finds the round not done commits it, so one that
is interrupted leaves nobody behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .errors import UnavailableError
from .queue_ranges import Range, Settlement


class _Round:
    """Settlements that are committed together, and what became of them."""

    __slots__ = ("begun", "done", "door", "error", "lost", "settlements")

    def __init__(self) -> None:
        self.settlements: list[Settlement] = []
        self.door = threading.Lock()
        self.begun = False
        self.done = False
        self.lost: Sequence[Range] = ()
        self.error: Exception | None = None
        """What all of them failed with."""


class Settling:
    """Gathers settlements of one worker. Thread-safe.

    Args:
        commit: Commits settlements; returns the ranges whose lease was lost.
    """

    def __init__(self, commit: Callable[[Sequence[Settlement]], Sequence[Range]]) -> None:
        self._commit = commit
        self.turn = threading.Lock()
        """Held by the one who commits."""
        self._guard = threading.Lock()
        """Guards `_open` and its settlements."""
        self._open = _Round()

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Range]:
        """Return when they are committed: the ranges of them, and of others, that were lost.

        Raises:
            StorageError, LockedError, UnknownTopicError: None of the round is settled.
            UnavailableError: The thread that committed was interrupted.
        """
        with self._guard:
            entry = self._open
            entry.settlements += settlements
        with entry.door:
            if not entry.done:
                with self.turn:
                    self._close(entry)
                    self._serve(entry)
        if entry.error is not None:
            raise entry.error
        return entry.lost

    def _close(self, entry: _Round) -> None:
        with self._guard:
            if self._open is entry:
                self._open = _Round()

    def _serve(self, entry: _Round) -> None:
        if entry.begun:
            entry.error = UnavailableError(
                "the thread that committed was interrupted: these jobs are settled, or they are"
                " delivered again"
            )
            entry.done = True
            return
        entry.begun = True
        try:
            entry.lost = self._commit(entry.settlements)
        except Exception as error:  # everybody in the round raises it
            entry.error = error
        entry.done = True
