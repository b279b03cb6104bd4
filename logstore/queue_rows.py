"""What the catalog says of queues, their workers and their partitions. Pure.

How it is kept is `queue_catalog.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class QueueRow(NamedTuple):
    """One queue: a group and a topic."""

    id: int
    group: str
    topic_id: int
    topic: str
    visibility_ms: int
    max_deliveries: int | None
    dead_letter: str | None


class WorkerRow(NamedTuple):
    """One open handle of a queue."""

    id: int
    lock_path: str
    """It lives as long as somebody holds this lock."""
    host: str
    pid: int
    client: str


class Look(NamedTuple):
    """A queue at one moment."""

    next_offsets: dict[int, int]
    """First offset never claimed, per partition."""
    waiting_ms: int | None
    """UTC time from which the first waiting range may be claimed."""
    lease_end_ms: int | None
    """When the first lease ends, by the monotonic clock."""
    others: bool
    """Whether other workers hold leases."""


class Counts(NamedTuple):
    """Offsets of one partition below the next one to claim that are not done."""

    partition: int
    next_offset: int
    leased: int
    waiting: int
    delayed: int
