"""Threads that settle jobs at once share one commit of the catalog.

How they gather is `rounds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .clock import Clock
from .errors import UnavailableError
from .queue_ranges import Range, Settlement
from .rounds import Round, Rounds


class _Round(Round[Sequence[Settlement]]):
    """Settlements that are committed together, and what became of them."""

    __slots__ = ("lost",)

    def __init__(self) -> None:
        super().__init__()
        self.lost: Sequence[Range] = ()


class Settling:
    """Gathers settlements of one worker. Thread-safe.

    Args:
        clock: Measures how long a commit takes.
        commit: Commits settlements; returns the ranges whose lease was lost.
        synced: Whether commits wait for a sync: it pays to wait for others first.
    """

    def __init__(
        self,
        clock: Clock,
        commit: Callable[[Sequence[Settlement]], Sequence[Range]],
        *,
        synced: bool,
    ) -> None:
        self._commit = commit
        self._rounds: Rounds[Sequence[Settlement], _Round] = Rounds(
            clock, _Round, self._serve, patient=synced
        )
        self.turn = self._rounds.turn
        """Held by the one who commits."""

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Range]:
        """Return when they are committed: the ranges of them, and of others, that were lost.

        Raises:
            StorageError, LockedError, UnknownTopicError: None of the round is settled.
            UnavailableError: The thread that committed was interrupted.
        """
        rounds = self._rounds
        if rounds.alone:
            with rounds.turn:
                lost = self._commit(settlements)
                rounds.left()
                return lost
        return rounds.join(settlements)[0].lost

    def _serve(self, entry: _Round) -> None:
        if entry.begun:
            raise UnavailableError(
                "the thread that committed was interrupted: these jobs are settled, or they are"
                " delivered again"
            )
        entry.begun = True
        entry.lost = self._commit([each for brought in entry.items for each in brought])
