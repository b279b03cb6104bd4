"""What a worker of a queue fetches next: looks, reads, claims, and knows when to look again.

What it fetches ahead it claims as one range; how far ahead follows from how fast its jobs are, so a
slow worker holds nothing back from others. Leases that ran out are taken back, and so are those of
processes that died: that is noticed by their locks (`liveness.py`), by any worker with nothing else
to do. Records are read (`queue_window.py`) before they are claimed (`queue_catalog.py`).

Handing out and settling is `job_queue.py`.
"""

from __future__ import annotations

import logging
import math
from typing import Final, NamedTuple

from .engine import Engine
from .job import Job, Settler
from .queue_catalog import QueueCatalog
from .queue_ranges import NOBODY, Fate, Range, Settlement
from .queue_rows import Look, QueueRow
from .queue_window import Piece, QueueWindow
from .record import TopicPartition

LIVENESS_INTERVAL_SECONDS: Final = 0.2
"""How often a worker asks for the locks of others, while they hold leases."""
HELD_BACK_SECONDS: Final = 0.2
"""How often it looks again at records behind an open transaction."""
AHEAD_MAX: Final = 1024
"""Most jobs fetched at once for one that is asked for."""
AHEAD_SECONDS: Final = 0.2
"""How long leases last longer, if jobs are fetched ahead: they are handed out within that time."""
PROMPT_SECONDS: Final = 0.05
"""Jobs are handed out within that time if none are fetched ahead."""

_logger = logging.getLogger("millstream")


class Fetched(NamedTuple):
    """What a look for jobs has found."""

    jobs: list[Job]
    """Leased to this worker, to be handed out."""
    exhausted: list[Job]
    """Leased too, but delivered as often as the queue allows: to become dead letters."""
    fresh_until: float
    """Monotonic time until which they may be handed out as they are."""
    again: bool
    """Whether to look again at once: there is more, or others were faster."""
    pause: float | None
    """Seconds after which to look again if nobody announces anything; None: for ever."""


class Claimer:
    """Fetches jobs for one worker. For one thread at a time.

    Args:
        engine: The open store.
        queue: The queue.
        worker_id: The worker.
        settler: What the jobs are settled by.
    """

    def __init__(self, engine: Engine, queue: QueueRow, worker_id: int, settler: Settler) -> None:
        self._engine = engine
        self._clock = engine.clock
        self._queue = queue
        self._queues = QueueCatalog(engine.catalog)
        self._worker_id = worker_id
        self._settler = settler
        self._count_ahead = 1
        self._claimed_at = -math.inf
        self._turn = 0
        self._new: dict[int, QueueWindow] = {}
        self._again: dict[int, QueueWindow] = {}
        self._log_starts: dict[int, int] = {}
        self._nothing: tuple[int, Look] | None = None
        """What it was like, and at which version of the queues, when there was nothing."""
        self._probe_at = 0.0
        self._take_back_at = 0.0
        """Not before: some of what could be taken back may be acked."""

    def fetch(self, count: int, *, ahead: bool) -> Fetched:
        """Claim jobs.

        Args:
            count: At most so many, all of which are handed out at once.
            ahead: Claim more, as long as they are handed out in a moment.

        Raises:
            DataError, UnknownTopicError: See `Queue.get`.
        """
        now = self._clock.monotonic()
        pause = self._pause_left(now)
        if pause is None or pause > 0:
            return _nothing_for(pause)
        self._nothing = None
        version = self._engine.tail.get("queues_version")
        look = self._up_to_date(now)
        slack = 0.0
        if ahead:
            count = self._adapted_count(now)
            slack = min(AHEAD_SECONDS, self._queue.visibility_ms / 4000) if count > 1 else 0.0
        end_ms = math.ceil((now + slack) * 1000) + self._queue.visibility_ms
        jobs, raced = self._claim(look, count, end_ms, ahead=ahead)
        most = self._queue.max_deliveries
        exhausted = [job for job in jobs if most is not None and job.deliveries > most]
        if jobs:
            self._claimed_at = now
            alive = [job for job in jobs if most is None or job.deliveries <= most]
            return Fetched(alive, exhausted, now + (slack or PROMPT_SECONDS), again=True, pause=0)
        if raced:
            return _nothing_for(0)
        self._nothing = version, look
        return _nothing_for(self._pause(look, now))

    def be_careful(self) -> None:
        """Fetch one job at a time for now: those fetched ahead were not handed out soon."""
        self._count_ahead = 1

    def _adapted_count(self, now: float) -> int:
        """How many to claim for one that is asked for: about as many as are done in a moment."""
        elapsed = now - self._claimed_at
        if self._queue.max_deliveries == 1:
            return 1  # if the worker dies, that counts as a delivery for all it has fetched
        if elapsed < AHEAD_SECONDS / 4:
            self._count_ahead = min(self._count_ahead * 2, AHEAD_MAX)
        elif elapsed > AHEAD_SECONDS:
            self._count_ahead = max(self._count_ahead // 2, 1)
        return self._count_ahead

    # When to look

    def _pause_left(self, now: float) -> float | None:
        """As `Fetched.pause`, if all is as it was when there was nothing; else 0."""
        if self._nothing is None:
            return 0.0
        version, look = self._nothing
        if version != self._engine.tail.get("queues_version") or self._behind(look):
            return 0.0
        return self._pause(look, now)

    def _behind(self, look: Look) -> bool:
        """Whether some partition has records that nobody has claimed."""
        return any(
            self._engine.log(self._queue.topic, partition).visible_offset > offset
            for partition, offset in look.next_offsets.items()
        )

    def _pause(self, look: Look, now: float) -> float | None:
        pauses = []
        if look.waiting_ms is not None:
            pauses.append((look.waiting_ms - self._clock.now_ms()) / 1000)
        if look.lease_end_ms is not None:
            pauses.append(max(look.lease_end_ms / 1000, self._take_back_at) - now)
        if look.others:
            pauses.append(self._probe_at - now)
        if self._behind(look):
            pauses.append(HELD_BACK_SECONDS)
        return max(0.0, min(pauses)) if pauses else None

    # Looking

    def _up_to_date(self, now: float) -> Look:
        """What there is, once leases of the dead and the late are taken back."""
        look = self._queues.look(self._queue, self._worker_id)
        taken = look.others and self.remove_dead(now)
        ended = look.lease_end_ms is not None and look.lease_end_ms <= now * 1000
        if ended and now >= self._take_back_at:
            taken |= self._take_back(now)
        if taken:
            self._engine.tail.bump("queues_version")
            look = self._queues.look(self._queue, self._worker_id)
        self._follow_retention(look)
        return look

    def _take_back(self, now: float) -> bool:
        """Take back leases that ran out, unless the database of a transaction may have acked it."""
        decisions, queues, queue = self._engine.decisions, self._queues, self._queue
        decisions.settle_dead(living=True)

        def spared() -> list[int]:
            # Asked again with the catalog locked, when nobody can commit any more.
            doubtful = decisions.in_doubt()
            if doubtful:
                self._take_back_at = now + LIVENESS_INTERVAL_SECONDS
            return [each.id for each in queues.workers(queue) if each.lock_path in doubtful]

        return queues.take_back(queue, int(now * 1000), self._clock.now_ms(), spared)

    def remove_dead(self, now: float) -> bool:
        """Remove workers whose processes are dead, if it is time to; True if there were any."""
        if now < self._probe_at:
            return False
        self._probe_at = now + LIVENESS_INTERVAL_SECONDS
        return remove_dead_workers(self._engine, self._queue)

    def _follow_retention(self, look: Look) -> None:
        """What retention has removed is not a job any more."""
        topic = self._queue.topic
        for partition, next_offset in list(look.next_offsets.items()):
            start = self._engine.log(topic, partition).start_offset
            if start == self._log_starts.get(partition):
                continue
            self._log_starts[partition] = start
            skipped = self._queues.forget_below(self._queue, partition, start)
            if skipped:
                _logger.warning(
                    "%s/%d: retention removed %d offsets before the queue of group %r was done"
                    " with them",
                    *(topic, partition, skipped, self._queue.group),
                )
            look.next_offsets[partition] = max(next_offset, start)

    # Claiming

    def _claim(self, look: Look, count: int, end_ms: int, *, ahead: bool) -> tuple[list[Job], bool]:
        """Jobs to hand out, and whether others were faster with some."""
        jobs: list[Job] = []
        raced = False
        if look.waiting_ms is not None and look.waiting_ms <= self._clock.now_ms():
            jobs, raced = self._claim_again(count, end_ms, ahead=ahead)
        partitions = sorted(look.next_offsets)
        self._turn += 1
        for step in range(len(partitions)):
            if len(jobs) >= count or (ahead and jobs):
                break
            partition = partitions[(self._turn + step) % len(partitions)]
            offset = look.next_offsets[partition]
            claimed = self._claim_new(partition, offset, count - len(jobs), end_ms)
            if claimed is None:
                raced = True
            else:
                jobs += claimed
        return jobs, raced

    def _claim_new(self, partition: int, offset: int, count: int, end_ms: int) -> list[Job] | None:
        """Records nobody has had; None if others were faster, or to look again."""
        if self._engine.log(self._queue.topic, partition).visible_offset <= offset:
            return []
        window = self._window(self._new, partition)
        window.fill(offset, count)
        end = window.end
        if end == offset:
            return []  # held back by an open transaction
        if not window.has_records(offset):
            passed = Fate(NOBODY, 0, 0)
            self._queues.claim_new(self._queue, partition, lambda at: max(at, end), passed)
            return None
        fate = Fate(self._worker_id, end_ms, 1)
        claimed = self._queues.claim_new(
            self._queue, partition, lambda at: window.stop_after(at, count), fate
        )
        if claimed is None:
            return None
        return self._jobs(claimed, window.pieces(claimed.start, claimed.stop))

    def _claim_again(self, count: int, end_ms: int, *, ahead: bool) -> tuple[list[Job], bool]:
        """Records that wait to be delivered again, and whether others were faster with some.

        A job that was delivered before is fetched alone, not ahead: it may be what kills its
        worker, and that counts as a delivery for all the worker has fetched.
        """
        found: list[tuple[Range, int]] = []
        read: dict[tuple[int, int], list[Piece]] = {}
        for waiting in self._queues.waiting(self._queue, self._clock.now_ms(), count):
            alone = ahead and waiting.deliveries > 0
            if count <= 0 or (alone and found):
                break
            window = self._window(self._again, waiting.partition)
            wanted = 1 if alone else min(count, waiting.stop - waiting.start)
            window.fill(waiting.start, wanted)
            until = window.stop_after(waiting.start, wanted)
            if until == waiting.start:
                until = window.end  # no record is left there
            until = min(until, waiting.stop)
            pieces = window.pieces(waiting.start, until)
            read[waiting.partition, waiting.start] = pieces
            found.append((waiting, until))
            count = 0 if alone else count - len(pieces)
        claimed = self._queues.claim_again(self._queue, found, self._worker_id, end_ms)
        jobs: list[Job] = []
        for each in claimed:
            jobs += self._jobs(each, read[each.partition, each.start])
        return jobs, bool(found)

    def _jobs(self, claimed: Range, pieces: list[Piece]) -> list[Job]:
        if not pieces:
            # Its records are gone, by compaction: there is nothing to do.
            settlements = [Settlement(claimed, None)]
            self._queues.settle(self._queue, self._worker_id, settlements, durable=False)
        settler, partition, deliveries = self._settler, claimed.partition, claimed.deliveries
        return [
            Job(settler, record, Range(partition, start, stop, deliveries))
            for record, start, stop in pieces
        ]

    def _window(self, windows: dict[int, QueueWindow], partition: int) -> QueueWindow:
        window = windows.get(partition)
        if window is None:
            place = TopicPartition(self._queue.topic, partition)
            window = windows[partition] = QueueWindow(self._engine, place)
        return window

    def close(self) -> None:
        """Close the files."""
        for window in (*self._new.values(), *self._again.values()):
            window.close()


def _nothing_for(pause: float | None) -> Fetched:
    return Fetched([], [], 0.0, again=pause == 0, pause=pause)


def remove_dead_workers(engine: Engine, queue: QueueRow) -> bool:
    """Let what dead processes lease be claimed by others; True if there were any."""
    if engine.read_only:
        return False
    queues = QueueCatalog(engine.catalog)
    liveness = engine.liveness
    workers = queues.workers(queue)
    locks = {each.lock_path for each in workers} - {liveness.path}
    free = {path for path in locks if not liveness.is_alive(path)}
    # What their transactions have committed in a database of the user's is acked first.
    left = engine.decisions.settle_dead() if free else set()
    dead = [each.id for each in workers if each.lock_path in free - left]
    removed = bool(dead) and queues.remove_workers(queue, dead)
    for path in free:
        liveness.bury(path)
    return removed
