"""When the background compacts: looks at each compacted partition now and then, and takes steps.

While others append, a step is followed by a pause of twenty times its length, so that it takes
less than a twentieth of the interpreter; in an idle store there is no pause. How it is done is in
`compactor.py`, when it is due in `compaction.py`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Final

from .background import Background
from .compaction import due
from .compaction_round import Steps
from .compactor import Compactor
from .components import Components
from .errors import LockedError, StorageError, UnknownTopicError
from .format import SEGMENT_HEADER_BYTES
from .log import Log
from .segment import read_segment_header
from .tail import Slot
from .transaction_states import TransactionStates

LOOK_SECONDS: Final = 15.0
"""After an append; most often there is nothing to do, which the segment headers tell."""
ROLL_SECONDS_MAX: Final = 3600.0
PAUSE_FACTOR: Final = 20.0
PAUSE_SECONDS_MIN: Final = 0.005
BUSY_SECONDS: Final = 1.0
"""A store counts as busy for so long after an append by anybody."""


class CompactionSchedule:
    """The background compactions of an open store. Thread-safe.

    Args:
        components: Of the store.
        transactions: Says which batches are committed.
        background: Where the steps run.
        roll: Seals the active segment of a log.
    """

    def __init__(
        self,
        components: Components,
        transactions: TransactionStates,
        background: Background,
        roll: Callable[[Log], None],
    ) -> None:
        self._c = components
        self._transactions = transactions
        self._background = background
        self._roll = roll
        self._guard = threading.Lock()
        self._running: dict[Log, Steps] = {}
        self._sequence = 0
        self._busy_until = 0.0

    def appended(self, log: Log) -> None:
        """Look at the partition in a while."""
        self._background.submit(
            (log, "compaction"), lambda: self._look(log), delay_seconds=LOOK_SECONDS
        )

    def _look(self, log: Log) -> None:
        if log.gone or log.deleted or not log.config.rewrites_segments:
            return
        self._roll_if_old(log)
        with self._guard:
            if log in self._running:
                return
        compactor = Compactor(self._c, self._transactions, log)
        config, backlog = log.config, compactor.backlog()
        # What is only compressed anew is written once, whenever that is.
        if (not config.compact and backlog.dirty_bytes) or due(
            backlog,
            now_ms=self._c.clock.now_ms(),
            lag_ms=config.segment_ms,
            tombstone_ms=config.tombstone_retention_ms,
        ):
            with self._guard:
                self._running[log] = compactor.run()
            self._step_later(log, 0)

    def _roll_if_old(self, log: Log) -> None:
        """Seal the active segment of a topic that is quiet, or what is in it is never compacted."""
        slot = log.slot
        base = slot[Slot.ACTIVE_BASE]
        if slot[Slot.END_POSITION] <= SEGMENT_HEADER_BYTES:
            return
        try:
            created_ms = read_segment_header(self._c.storage, log.directory, base).created_ms
        except StorageError as error:
            if error.errno == errno.ENOENT and slot[Slot.ACTIVE_BASE] != base:
                return  # somebody else has just sealed and compacted it
            raise
        rest_ms = created_ms + log.config.segment_ms - self._c.clock.now_ms()
        if rest_ms <= 0:
            self._roll(log)
            return
        delay = min(rest_ms / 1000, ROLL_SECONDS_MAX)
        self._background.submit(
            (log, "compaction roll"), lambda: self._look(log), delay_seconds=delay
        )

    def _step_later(self, log: Log, delay_seconds: float) -> None:
        self._background.submit(
            (log, "compaction step"), lambda: self._step(log), delay_seconds=delay_seconds
        )

    def _step(self, log: Log) -> None:
        began = self._c.clock.monotonic()
        with self._guard:
            steps = self._running.get(log)
            if steps is None:
                return
            try:
                next(steps)
            except (StopIteration, LockedError, UnknownTopicError):
                del self._running[log]
                return
            except BaseException:
                del self._running[log]
                raise
        self._step_later(log, self._pause(began))

    def _pause(self, began: float) -> float:
        """Seconds until the next step, after one that began then."""
        now, sequence = self._c.clock.monotonic(), self._c.tail.get("sequence")
        if sequence != self._sequence:
            self._sequence, self._busy_until = sequence, now + BUSY_SECONDS
        if now >= self._busy_until:
            return 0.0
        return max(PAUSE_FACTOR * (now - began), PAUSE_SECONDS_MIN)

    def stop(self, log: Log) -> None:
        """Give up what is under way in a partition; what was swapped stays."""
        with self._guard:
            steps = self._running.pop(log, None)
            if steps is not None:
                steps.close()

    def close(self) -> None:
        """Give up everything that is under way."""
        for log in list(self._running):
            self.stop(log)
