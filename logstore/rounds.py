"""Threads that want the same kind of thing at once have it done for all of them, in rounds.

What is done with a round is given by `group_append.py` (one batch, one write, one sync) and
`settling.py` (one commit); this is about whose turn it is.

A thread that comes alone begins at once. Those that come while it works gather in a round, which
one of them, its host, begins when that is over. Big rounds beat many: a thread just served mostly
comes straight back, so the host waits for as many as there were, at most as long as a round takes.
The last one to come serves the round, which saves waking the host first.

The others wait at the round's door, a lock passed on from one to the next. Whoever has it and finds
the round not served is its host. So a thread that is interrupted (Ctrl-C) leaves nobody behind: it
passes the door on, and the next one takes over. Figures are in docs/decisions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from .clock import Clock

_SKIPPED_ROUNDS_MAX: Final = 256
_NOBODY: Final = -1
"""Awaited by a round that has waited in vain."""

Item = TypeVar("Item")


class Round(Generic[Item]):
    """What threads bring that are served together."""

    __slots__ = ("awaited", "begun", "claimed", "done", "door", "error", "finished", "items")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.door = threading.Lock()
        self.awaited = 0
        """The host waits for that many items; whoever brings the last of them serves the round."""
        self.claimed = False
        """Somebody other than the host serves it, and releases `finished` after that."""
        self.finished = threading.Lock()
        self.finished.acquire()
        self.begun = False
        """For who serves it: whether something was done that must not be done twice."""
        self.done = False
        self.error: Exception | None = None
        """What all of them failed with."""

    def wait(self, seconds: float) -> None:
        """Wait until who claimed it is done."""
        self.finished.acquire(timeout=seconds)


AnyRound = TypeVar("AnyRound", bound=Round[Any])


class Rounds(Generic[Item, AnyRound]):
    """Gathers threads. Thread-safe.

    Args:
        clock: For waiting, and to know how long a round takes.
        new: Makes an empty round.
        serve: Does what a closed round is for, again if it was interrupted. What it raises is the
            round's `error`.
        patient: Whether a round takes so long that it pays to wait for company.
    """

    def __init__(
        self,
        clock: Clock,
        new: Callable[[], AnyRound],
        serve: Callable[[AnyRound], None],
        *,
        patient: bool = True,
    ) -> None:
        self._clock = clock
        self._new = new
        self._act = serve
        self._patient = patient
        self.turn = threading.Lock()
        """Held by the one who serves a round, or works alone."""
        self._guard = threading.Lock()
        """Guards `open`, its items and who serves it."""
        self.open = new()
        """The round that is gathering."""
        self.expected = 1
        """How many threads were here when the last round ended."""
        self.round_seconds = 0.0
        """How long it took."""
        self._skip = 0
        self._skip_next = 1
        """So many rounds begin at once after one waited in vain; doubled each time."""

    @property
    def alone(self) -> bool:
        """Whether the calling thread need not gather: it takes the turn, and then `left`."""
        return self.expected == 1 and not self.turn.locked()

    def left(self) -> None:
        """Who worked alone is done, and has the turn still."""
        self.expected = 1 + len(self.open.items)

    def join(self, item: Item) -> tuple[AnyRound, int]:
        """Return when it is served: its round, and its number in it.

        Raises:
            What failed for all of the round.
        """
        claimed = False
        try:
            with self._guard:
                entry = self.open
                number = len(entry.items)
                entry.items.append(item)
                if number + 1 == entry.awaited:
                    self.open = self._new()
                    claimed = entry.claimed = True
            if claimed:
                self._skip_next = 1
                with self.turn:
                    self._serve(entry)
            else:
                with entry.door:
                    while not entry.done:
                        self._host(entry)
        except BaseException:
            # Items of interrupted threads go with this round or never, not with a later call.
            self._close(entry)
            raise
        finally:
            if claimed:
                entry.claimed = False
                entry.finished.release()
        if entry.error is not None:
            raise entry.error
        return entry, number

    def _host(self, entry: AnyRound) -> None:
        """Serve the round, or wait until somebody has. Its door is held."""
        if entry.claimed:
            entry.finished.acquire()
            return
        with self.turn:
            if self._begin(entry):
                self._serve(entry)
                return
        # Without the turn, because the last one to come takes it.
        self._clock.wait(entry.wait, self.round_seconds)
        with self._guard:
            if not entry.claimed and not entry.done:
                entry.awaited = _NOBODY
                self._skip = self._skip_next
                self._skip_next = min(2 * self._skip, _SKIPPED_ROUNDS_MAX)

    def _begin(self, entry: AnyRound) -> bool:
        """Close the round to others, unless it is worth waiting for them."""
        with self._guard:
            if self.open is entry:
                few = self._patient and len(entry.items) < self.expected
                if few and entry.awaited != _NOBODY:
                    if not self._skip:
                        entry.awaited = self.expected
                        return False
                    self._skip -= 1
                self.open = self._new()
        return True

    def _close(self, entry: AnyRound) -> None:
        with self._guard:
            if self.open is entry:
                self.open = self._new()

    def _serve(self, entry: AnyRound) -> None:
        """Do what all of a closed round came for. The turn is held."""
        started = self._clock.monotonic()
        try:
            self._act(entry)
        except Exception as error:  # everybody in the round raises it
            entry.error = error
        entry.done = True
        self.expected = len(entry.items) + len(self.open.items)
        self.round_seconds = self._clock.monotonic() - started
