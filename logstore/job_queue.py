"""Queues: many workers work through one topic, job by job, and acknowledge each when it is done.

A queue is a group like any other, kept in the catalog (`queue_catalog.py`), but its records are
handed out to whoever asks, not by partition, and not in order where several work. What there is to
hand out is found by `claiming.py`; acks of threads share commits (`settling.py`).

At least once: a job that was acked never comes again, one that was not does, however its worker
ended; and while its lease is held nobody else has it. A lease ends when the job is settled, when
its time is over, or with the process of its worker.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Self

from .claiming import PROMPT_SECONDS, Claimer
from .config import Durability, check_timeout, whole_number
from .engine import INTERVAL_SECONDS, Engine
from .errors import FencedError, StoreClosedError, UnknownTopicError, UsageError
from .format import INT64_MAX
from .handle import Handle
from .job import Acks, Duration, Job, JobState, dead_letter_headers
from .positions import parse_duration_ms
from .queue_catalog import QueueCatalog
from .queue_ranges import NOBODY, Fate, Lease, Range, Settlement
from .queue_rows import QueueRow, WorkerRow
from .settling import Settling
from .transaction import Transaction

DEFAULT_GROUP: Final = "workers"
DEFAULT_VISIBILITY: Final = "30s"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """How a handle of a queue works; see `Store.queue`. What is of the queue is in its row."""

    durability: Durability
    follow: bool


class Queue(Handle):
    """A worker of a queue: `for job in queue`, or `get`. Thread-safe; a context manager.

    Made by `Store.queue`. Each job is leased for the visibility time-out of the queue: `Job.ack`
    it, `nack`, `reject` or `extend` it. Threads may share a queue, or have one each.

    Leaving the block gives back what is not settled: others get it at once.

    Args:
        engine: The open store.
        row: The queue, as the catalog has it.
        options: How this handle works.
        transaction: Starts a transaction of the store, for dead letters.

    >>> import millstream
    >>> with millstream.open(":memory:") as store:
    ...     info = store.create_topic("mails")
    ...     appended = store.append("mails", b"to: ann")
    ...     with store.queue("mails", follow=False) as queue:
    ...         for job in queue:
    ...             with job:  # acks; or nacks, if the block raises
    ...                 print(job.value, job.deliveries)
    b'to: ann' 1
    """

    def __init__(
        self,
        engine: Engine,
        row: QueueRow,
        options: QueueOptions,
        transaction: Callable[[], AbstractContextManager[Transaction]],
    ) -> None:
        self.topic = row.topic
        self.group = row.group
        self._engine = engine
        self._row = row
        self._options = options
        self._transaction = transaction
        self._queues = QueueCatalog(engine.catalog)
        synced = options.durability == "sync"
        self._settling = Settling(engine.clock, self._commit, synced=synced)
        self._closed = False
        self._in_doubt = False
        """Whether a transaction may have acked some of its jobs."""
        self._ahead: deque[Job] = deque()
        """Leased and not handed out."""
        self._fresh_until = 0.0
        """Until then they may be handed out as they are."""
        self._claiming = threading.Lock()
        """Held by the thread that fetches more, and to close."""
        client = os.path.basename(sys.argv[0]) or "python"
        worker = WorkerRow(0, engine.liveness.path, platform.node(), os.getpid(), client)
        self._worker_id = self._queues.add_worker(row, worker)
        self._journal = engine.storage.catalog_journal()
        """None once the queue is closed, or if the catalog has none."""
        self._claimer = Claimer(engine, row, self._worker_id, self)

    def __repr__(self) -> str:
        return f"<Queue {self.topic} group {self.group!r}{' closed' if self._closed else ''}>"

    @property
    def worker_id(self) -> int:
        """Number of this worker, as `Store.queues` lists it."""
        return self._worker_id

    @property
    def visibility_ms(self) -> int:
        """How long jobs are leased."""
        return self._row.visibility_ms

    # Handing out

    def get(self, timeout: float | None = None) -> Job | None:
        """The next job; None if there was none within `timeout` seconds (None: wait for ever).

        Raises:
            DataError: Damage, with topic, partition, offset and file.
            UnknownTopicError: The topic was deleted.
            StoreClosedError: The queue, or its store, was closed.
        """
        jobs = self._next(1, timeout, ahead=True)
        return jobs[0] if jobs else None

    def get_many(self, count: int, timeout: float | None = None) -> list[Job]:
        """The next jobs: at least one, unless none came within `timeout` seconds; errors as `get`.

        Args:
            count: At most so many.
            timeout: Seconds; None waits as long as it takes.
        """
        if whole_number(count, "count") < 1:
            raise UsageError(f"count is {count}; give 1 or more")
        return self._next(min(count, INT64_MAX), timeout, ahead=False)

    def __iter__(self) -> Iterator[Job]:
        """One job after another: for ever, or, without `follow`, until there is none.

        Ends when another thread closes the queue.
        """
        timeout = None if self._options.follow else 0.0
        self._ensure_open()
        while True:
            try:
                job = self.get(timeout)
            except StoreClosedError:
                if self._engine.closed:
                    raise
                return
            if job is None:
                return
            yield job

    def _next(self, count: int, timeout: float | None, *, ahead: bool) -> list[Job]:
        clock = self._engine.clock
        seconds = check_timeout(timeout)
        deadline = None if seconds is None else clock.monotonic() + seconds
        while True:
            if jobs := self._take(count):
                return jobs
            seen = self._engine.tail.get("wake_version")
            with self._claiming:
                if jobs := self._take(count):
                    return jobs
                again, pause = self._fetch(count, ahead=ahead)
                if jobs := self._take(count):
                    return jobs
            if again:
                continue
            remaining = None if deadline is None else deadline - clock.monotonic()
            if remaining is not None and remaining <= 0:
                return []
            limits = [each for each in (remaining, pause) if each is not None]
            self._engine.wait(seen, min(limits, default=None))

    def _take(self, count: int) -> list[Job]:
        """Hand out what was fetched, while its leases are fresh."""
        self._ensure_open()
        jobs: list[Job] = []
        if self._ahead and self._engine.clock.monotonic() < self._fresh_until:
            # Other threads take, too; what they leave is less than `count`.
            while len(jobs) < count and (job := self._pop()) is not None:
                jobs.append(job)
        return jobs

    def _ensure_open(self) -> None:
        self._engine.ensure_open()
        if self._closed:
            raise StoreClosedError("the queue is closed")

    def _pop(self) -> Job | None:
        try:
            return self._ahead.popleft()
        except IndexError:
            return None

    def _fetch(self, count: int, *, ahead: bool) -> tuple[bool, float | None]:
        """Get more to hand out: whether to look again at once, and for how long to wait if not."""
        if self._ahead:
            self._renew(count)
            return True, 0
        fetched = self._claimer.fetch(count, ahead=ahead)
        self._fresh_until = fetched.fresh_until
        self._ahead.extend(fetched.jobs)
        for job in fetched.exhausted:
            most = job.deliveries - 1
            # Who has claimed it since, because this process stood still, buries it.
            with contextlib.suppress(FencedError):
                self._bury(job, f"delivered {most} times without an ack", most)
        return fetched.again, fetched.pause

    def _renew(self, count: int) -> None:
        """Of what was not handed out soon, give back all but `count`, leased anew."""
        now = self._engine.clock.monotonic()
        self._claimer.be_careful()
        stale: list[Job] = []
        while (job := self._pop()) is not None:
            stale.append(job)
        end_ms = math.ceil(now * 1000) + self._row.visibility_ms
        kept, unused = stale[:count], stale[count:]
        settlements = [
            Settlement(job.range, Fate(self._worker_id, end_ms, job.deliveries)) for job in kept
        ]
        lost = self._give_back(unused, settlements)
        self._fresh_until = now + PROMPT_SECONDS
        self._ahead.extend(job for job in kept if not _overlaps(job.range, lost))

    def _give_back(self, unused: Sequence[Job], others: Sequence[Settlement]) -> Sequence[Range]:
        """Let others claim what was not handed out, as if it had not been claimed."""
        settlements = [Settlement(job.range, Fate(NOBODY, 0, job.deliveries - 1)) for job in unused]
        lost = self._queues.settle(
            self._row, self._worker_id, [*settlements, *others], durable=False
        )
        if unused:
            self._announce()
        return lost

    # Settling

    def ack(self, *jobs: Job) -> None:
        """Ack jobs in one commit; see `Job.ack`.

        Raises:
            FencedError: Some were lost; the others are acked.
        """
        self._settle([(job, None) for job in jobs], "acked")

    def nack(self, *jobs: Job, delay: Duration = 0) -> None:
        """Give jobs back in one commit; see `Job.nack`. Dead letters have a commit each.

        Raises:
            FencedError: Some were lost; the others are given back, or dead letters.
        """
        delay_ms = parse_duration_ms(delay) if delay else 0
        due_ms = self._engine.clock.now_ms() + delay_ms if delay_ms else 0
        most = self._row.max_deliveries or math.inf
        self.ensure_leased(*jobs)
        fates: list[tuple[Job, Fate | None]] = [
            (job, Fate(NOBODY, due_ms, job.deliveries)) for job in jobs if job.deliveries < most
        ]
        lost: FencedError | None = None
        if fates:
            try:
                self._settle(fates, "nacked")
            except FencedError as error:
                lost = error
            self._announce()
        for job in jobs:
            if job.deliveries >= most:
                reason = f"delivered {job.deliveries} times without an ack"
                try:
                    self._bury(job, reason, job.deliveries)
                except FencedError as error:
                    lost = lost or error
        if lost is not None:
            raise lost

    def reject(self, job: Job, reason: str = "rejected") -> None:
        """Make a job a dead letter; see `Job.reject`."""
        self.ensure_leased(job)
        self._bury(job, reason, job.deliveries)

    def extend(self, *jobs: Job, visibility: Duration | None = None) -> None:
        """Renew the leases of jobs in one commit; see `Job.extend`. Errors as `ack`."""
        duration_ms = self._row.visibility_ms
        if visibility is not None:
            duration_ms = parse_duration_ms(visibility)
        end_ms = math.ceil(self._engine.clock.monotonic() * 1000) + duration_ms
        self.ensure_leased(*jobs)
        self._settle(
            [(job, Fate(self._worker_id, end_ms, job.deliveries)) for job in jobs], "leased"
        )

    def acks(self, engine: object, jobs: Sequence[Job]) -> Acks:
        """What a transaction has to do inside its commit, to ack jobs with it.

        Raises:
            FencedError, UsageError: One is lost, or settled already, or of another store.
        """
        if engine is not self._engine:
            raise UsageError("the job is not of this store: ack it with the store it came from")
        self.ensure_leased(*jobs)
        settlements = [Settlement(job.range, None) for job in jobs]

        def write() -> None:
            lost = self._queues.write_settlements(self._row, self._worker_id, settlements)
            for job in jobs:
                if lost and _overlaps(job.range, lost):
                    job.state = "lost"
                    raise self._lost(job)

        return Acks([Lease(self._row.id, self._worker_id, job.range) for job in jobs], write)

    def leave_in_doubt(self) -> None:
        """Have `close` ask what became of a transaction, before it gives jobs back."""
        self._in_doubt = True

    def _settle(self, fates: Sequence[tuple[Job, Fate | None]], state: JobState) -> None:
        self.ensure_leased(*[job for job, _ in fates])
        lost = self._settling.settle([Settlement(job.range, fate) for job, fate in fates])
        first: Job | None = None
        for job, _ in fates:
            job.state = state
            if lost and _overlaps(job.range, lost):
                job.state = "lost"
                first = first or job
        if first is not None:
            raise self._lost(first)

    def _commit(self, settlements: Sequence[Settlement]) -> Sequence[Range]:
        mode, engine = self._options.durability, self._engine
        # Only what keeps a lease may be forgotten: it ends with the machine anyway.
        durable = mode == "sync" and any(
            fate is None or fate.worker_id == NOBODY for _, fate in settlements
        )
        # Syncing after the commit lets others commit meanwhile, and share the sync: the catalog is
        # locked for microseconds only. That an ack is seen before it is durable harms nobody.
        journal = self._journal if durable else None
        lost = self._queues.settle(
            self._row, self._worker_id, settlements, durable=durable and journal is None
        )
        if journal is not None:
            journal.sync()
        if mode == "interval":
            engine.background.submit(
                (engine, "catalog"), engine.catalog.sync, delay_seconds=INTERVAL_SECONDS
            )
        return lost

    def ensure_leased(self, *jobs: Job) -> None:
        """Raise what settling them would, unless all are leased as far as is known."""
        if self._closed:
            raise StoreClosedError("the queue is closed: its jobs were given back")
        self._engine.ensure_writable()
        for job in jobs:
            if not isinstance(job, Job):
                raise UsageError(f"{job!r:.60} is not a job: give each by itself, queue.ack(*jobs)")
        if len(jobs) > 1 and len(set(jobs)) < len(jobs):
            raise UsageError("a job is given twice: settle it once", topic=self.topic)
        for job in jobs:
            if job.settler is not self:
                # Its offset may be leased here, too: for another job.
                raise UsageError(
                    "another queue, or another worker of this one, was given the job: settle it"
                    " there, as job.ack() and the like do",
                    topic=job.topic,
                    partition=job.partition,
                    offset=job.offset,
                )
            if job.state == "leased":
                continue
            if job.state == "lost":
                raise self._lost(job)
            problem = f"the job is {job.state} already"
            if job.state == "undecided":
                problem = (
                    "the job was acked in a transaction whose state is unknown: when that is known,"
                    " it is acked, or comes again"
                )
            raise UsageError(problem, topic=job.topic, partition=job.partition, offset=job.offset)

    def _lost(self, job: Job) -> FencedError:
        return FencedError(
            "the lease had passed, and the job is another worker's, or waits for one; extend()"
            " jobs that take long. It is not settled",
            topic=job.topic,
            partition=job.partition,
            offset=job.offset,
        )

    def _bury(self, job: Job, reason: str, deliveries: int) -> None:
        """Append a job to the dead-letter topic and be done with it here, in one commit."""
        topic = self._row.dead_letter
        if topic is None:
            raise UsageError("the queue has no dead-letter topic: open it with dead_letter=...")
        job.deliveries = deliveries
        headers = dead_letter_headers(job, self.group, reason)
        with self._transaction() as transaction:
            transaction.append(
                topic, job.value, key=job.key, timestamp_ms=job.timestamp_ms, headers=headers
            )
            transaction.ack(job)
        job.state = "rejected"

    def _announce(self) -> None:
        """Tell idle workers that there is something to claim."""
        self._engine.tail.bump("queues_version")

    # Closing

    def close(self) -> None:
        """Give back what is not settled, and leave. Idempotent; other threads are refused.

        In the child of a fork nothing happens: jobs and worker are the parent's.
        """
        if self._engine.inherited:
            self._closed = True  # and threads of the parent may have held what is locked here
            return
        with self._claiming:
            if self._closed:
                return
            self._closed = True
            self._claimer.close()
            with self._settling.turn:
                if self._journal is not None:
                    self._journal.close()
                    self._journal = None
            if self._engine.closed:
                return  # the workers of a closed store are dead, and others have noticed or will
            unused = []
            while (job := self._pop()) is not None:
                unused.append(job)
            if unused:
                with contextlib.suppress(UnknownTopicError):  # deleted, and its jobs with it
                    self._give_back(unused, ())
            if self._in_doubt and self._is_in_doubt():
                return  # others take the jobs when that is known, or this process is dead
            if self._queues.remove_workers(self._row, [self._worker_id]):
                self._announce()

    def _is_in_doubt(self) -> bool:
        """Whether some jobs are acked, or not, which only a database can tell."""
        engine = self._engine
        return engine.liveness.path in engine.decisions.settle_dead(living=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _overlaps(job: Range, lost: Iterable[Range]) -> bool:
    return any(
        (each.partition, each.deliveries) == (job.partition, job.deliveries)
        and each.start < job.stop
        and job.start < each.stop
        for each in lost
    )
