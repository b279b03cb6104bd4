"""A job: one record of a queue, handed to one worker, to be acknowledged. No I/O of its own.

Which job is leased to whom is in the catalog (`queue_catalog.py`); what settling does is
`job_queue.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self, TypeAlias

from .handle import Handle
from .queue_ranges import Lease, Range
from .record import Headers, Record

Duration: TypeAlias = str | int | timedelta
"""Text such as "10s" or "1h30m", a timedelta, or whole milliseconds."""

JobState: TypeAlias = Literal["leased", "acked", "nacked", "rejected", "lost", "undecided"]


class Acks(NamedTuple):
    """Jobs to be acked inside the commit of a transaction."""

    leases: Sequence[Lease]
    write: Callable[[], None]
    """Acks them in the catalog, inside a transaction of it."""


class Settler(Protocol):
    """What a job needs of the queue it came from."""

    def ack(self, *jobs: Job) -> None:
        """See `Job.ack`."""
        ...

    def nack(self, *jobs: Job, delay: Duration = 0) -> None:
        """See `Job.nack`."""
        ...

    def reject(self, job: Job, reason: str) -> None:
        """See `Job.reject`."""
        ...

    def extend(self, *jobs: Job, visibility: Duration | None = None) -> None:
        """See `Job.extend`."""
        ...

    def acks(self, engine: object, jobs: Sequence[Job]) -> Acks:
        """What a transaction of `engine` has to do inside its commit, to ack jobs with it."""
        ...

    def leave_in_doubt(self) -> None:
        """Whether some of its jobs are acked cannot be told yet."""
        ...


class Job(Handle):
    """One delivery of one record. Made by `Queue`; for one thread at a time.

    As a context manager it acks on success and nacks when the block raises, unless the block has
    settled it.

    Attributes:
        record: The record, as any reader sees it.
        deliveries: How often it was handed out, this time included: 1 for the first.
        state: "leased" until it is settled; "lost" once it turned out that the lease had passed and
            the job was given to another worker; "undecided" if it was acked in a transaction whose
            state is unknown.
        range: The offsets it stands for, as the catalog knows them.
    """

    __slots__ = ("_queue", "deliveries", "range", "record", "state")

    def __init__(self, queue: Settler, record: Record, offsets: Range) -> None:
        self.record = record
        self.deliveries = offsets.deliveries
        self.state: JobState = "leased"
        self.range = offsets
        self._queue = queue

    def __repr__(self) -> str:
        return (
            f"<Job {self.topic}/{self.partition} offset {self.offset}"
            f" delivery {self.deliveries} {self.state}>"
        )

    @property
    def topic(self) -> str:
        """Topic of the record."""
        return self.record.topic

    @property
    def partition(self) -> int:
        """Partition of the record."""
        return self.record.partition

    @property
    def offset(self) -> int:
        """Offset of the record."""
        return self.record.offset

    @property
    def timestamp_ms(self) -> int:
        """Timestamp of the record, UTC milliseconds."""
        return self.record.timestamp_ms

    @property
    def key(self) -> bytes | None:
        """Key of the record."""
        return self.record.key

    @property
    def value(self) -> bytes | None:
        """Value of the record."""
        return self.record.value

    @property
    def headers(self) -> Headers:
        """Headers of the record."""
        return self.record.headers

    def ack(self) -> None:
        """Done: never deliver it to this queue again. Returns when that is durable as the queue is.

        Raises:
            FencedError: The lease had passed, and the job was given to another worker.
            UsageError: It is settled already.
            LockedError: Not acked; try again, or it is delivered again.
            StorageError: The disk refused, so that is not durable: it may be delivered again.
        """
        self._queue.ack(self)

    def nack(self, delay: Duration = 0) -> None:
        """Not done: deliver it again, after `delay` at the earliest. Errors as `ack`.

        If it was delivered as often as the queue allows, it becomes a dead letter instead.
        """
        self._queue.nack(self, delay=delay)

    def reject(self, reason: str = "rejected") -> None:
        """Make it a dead letter now, whatever its deliveries; see `Store.queue`. Errors as `ack`.

        Raises:
            UsageError: The queue has no dead-letter topic.
        """
        self._queue.reject(self, reason)

    def extend(self, visibility: Duration | None = None) -> None:
        """Work goes on: let the lease end `visibility` from now, the queue's by default.

        Errors as `ack`.
        """
        self._queue.extend(self, visibility=visibility)

    @property
    def settler(self) -> Settler:
        """The queue it came from."""
        return self._queue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.state != "leased":
            return
        if kind is None:
            self.ack()
        else:
            self.nack()


DEAD_LETTER_HEADERS = (
    "dead-letter-topic",
    "dead-letter-partition",
    "dead-letter-offset",
    "dead-letter-group",
    "dead-letter-deliveries",
    "dead-letter-reason",
)
"""What a dead letter has in addition to the headers of the record it is, in this order."""


def dead_letter_headers(job: Job, group: str, reason: str) -> Sequence[tuple[str, bytes | None]]:
    """The headers of a job and, behind them, where it comes from and why it is dead."""
    origin = (
        job.topic,
        str(job.partition),
        str(job.offset),
        group,
        str(job.deliveries),
        reason,
    )
    values = (each.encode("utf-8", "replace") for each in origin)
    return (*job.headers, *zip(DEAD_LETTER_HEADERS, values, strict=True))
