"""The metrics of an open store: what it holds, how far everybody is, what this handle has done.

Gathered when asked for, by reading: nothing is registered and no thread runs. What is sealed is
remembered between calls, so that asking every few seconds costs little however large the log is.
What cannot be read is named and left out, for a monitor must hear of the rest. How metrics are told
to Prometheus is in `prometheus.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

from . import groups, queues
from .counters import HandleMetrics
from .engine import Engine
from .errors import DataError, StorageError, UnknownGroupError, UnknownTopicError
from .groups import GroupMember, PartitionLag
from .log import Log
from .open_transactions import OpenTransaction, OpenTransactions
from .owner_catalog import OwnerCatalog
from .posix_facts import space_at
from .queue_catalog import QueueCatalog
from .queues import QueueInfo
from .storage import PosixStorage
from .tail import POISONED_BY_SYNC, Slot
from .topics import listing


class PartitionMetrics(NamedTuple):
    """One partition, as it is now."""

    topic: str
    partition: int
    start_offset: int
    end_offset: int
    """One past the last acknowledged record."""
    records: int
    """Offsets from start to end, so what was compacted or aborted counts too."""
    data_bytes: int
    """Of all segments, without the zeros an active one is filled with ahead of the writer."""
    segments: int
    last_append_ms: int | None
    """UTC milliseconds; None if nothing was ever appended."""
    poisoned: bool
    """Whether a sync failed here: nothing is accepted until all handles are closed."""


class GroupMetrics(NamedTuple):
    """One consumer group or pipeline."""

    group: str
    members: tuple[GroupMember, ...]
    lags: tuple[PartitionLag, ...]

    @property
    def lag(self) -> int:
        """Offsets behind, over all partitions it has committed."""
        return sum(each.lag or 0 for each in self.lags)

    @property
    def lag_ms(self) -> int:
        """For how long the oldest unread record of any partition has been in the log."""
        return max((each.lag_ms or 0 for each in self.lags), default=0)


class UnreadablePart(NamedTuple):
    """What the metrics leave out, and why."""

    what: str
    """partition, group or queues."""
    topic: str | None
    partition: int | None
    group: str | None
    error: str


class StoreMetrics(NamedTuple):
    """What `Store.metrics` saw."""

    taken_ms: int
    """When, UTC milliseconds."""
    partitions: tuple[PartitionMetrics, ...]
    groups: tuple[GroupMetrics, ...]
    queues: tuple[QueueInfo, ...]
    open_transactions: tuple[OpenTransaction, ...]
    """As far as they are in the newest segments; see `OpenTransaction`."""
    unreadable: tuple[UnreadablePart, ...]
    free_bytes: int | None
    """Room on the file system for this process; None in memory."""
    total_bytes: int | None
    handle: HandleMetrics

    def __repr__(self) -> str:
        """What there is; all of it is a page, and in the fields."""
        counts = {
            "partitions": len(self.partitions),
            "records": sum(each.records for each in self.partitions),
            "data_bytes": sum(each.data_bytes for each in self.partitions),
            "groups": len(self.groups),
            "queues": len(self.queues),
            "open_transactions": len(self.open_transactions),
            "unreadable": len(self.unreadable),
        }
        return f"<StoreMetrics {', '.join(f'{word} {count}' for word, count in counts.items())}>"


class _Sealed(NamedTuple):
    """What the sealed segments of a partition were at one version of their list."""

    version: int
    segments: int
    size_bytes: int


class Gauge:
    """Reads the metrics of one open store. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._sealed: dict[Log, _Sealed] = {}
        self._transactions = OpenTransactions(OwnerCatalog(engine.catalog), engine.transactions)

    def read(self, *, internal: bool) -> StoreMetrics:
        """See `Store.metrics`."""
        engine = self._engine
        engine.ensure_open()
        with self._guard:
            unreadable: list[UnreadablePart] = []
            partitions, transactions = self._partitions(internal, unreadable)
            space = None
            if isinstance(engine.storage, PosixStorage):
                space = space_at(engine.storage.root)
            return StoreMetrics(
                engine.clock.now_ms(),
                tuple(partitions),
                tuple(self._groups(unreadable)),
                tuple(self._queues(unreadable)),
                tuple(transactions),
                tuple(unreadable),
                space.free_bytes if space else None,
                space.total_bytes if space else None,
                engine.components.counters.read(),
            )

    def _partitions(
        self, internal: bool, unreadable: list[UnreadablePart]
    ) -> tuple[list[PartitionMetrics], list[OpenTransaction]]:
        engine = self._engine
        partitions: list[PartitionMetrics] = []
        transactions: list[OpenTransaction] = []
        logs: set[Log] = set()
        for info in listing(engine, internal=internal):
            for number in range(info.partitions):
                try:
                    log = engine.log(info.name, number)
                    if engine.read_only:
                        log.refresh_read_only()
                    partitions.append(self._partition(log))
                    logs.add(log)
                    transactions += self._transactions.find(log)
                except UnknownTopicError:
                    continue  # deleted just now
                except (DataError, StorageError) as error:
                    part = UnreadablePart("partition", info.name, number, None, str(error))
                    unreadable.append(part)
        self._sealed = {log: sealed for log, sealed in self._sealed.items() if log in logs}
        self._transactions.forget(logs)
        return partitions, transactions

    def _partition(self, log: Log) -> PartitionMetrics:
        log.ensure_there()
        start, end = log.start_offset, log.visible_offset
        sealed = self._sealed_segments(log)
        active = log.files.active_info()
        empty = active is None or log.slot[Slot.LOG_END] == 0
        return PartitionMetrics(
            log.topic,
            log.partition,
            start,
            end,
            end - start,
            sealed.size_bytes + (active.size_bytes if active else 0),
            sealed.segments + (1 if active else 0),
            None if empty or active is None else active.max_timestamp_ms,
            log.slot[Slot.POISONED] == POISONED_BY_SYNC and log.words_fit(),
        )

    def _sealed_segments(self, log: Log) -> _Sealed:
        version = log.slot[Slot.SEGMENTS_VERSION]
        known = self._sealed.get(log)
        if known is None or known.version != version:
            infos = log.files.infos()[:-1]
            known = _Sealed(version, len(infos), sum(each.size_bytes for each in infos))
            self._sealed[log] = known
        return known

    def _groups(self, unreadable: list[UnreadablePart]) -> Iterator[GroupMetrics]:
        engine = self._engine
        for name in groups.names(engine):
            try:
                members = groups.describe(engine, name).members
                yield GroupMetrics(name, members, tuple(groups.lag(engine, name)))
            except (UnknownGroupError, UnknownTopicError):
                continue  # deleted just now
            except (DataError, StorageError) as error:
                part = UnreadablePart("group", error.topic, error.partition, name, str(error))
                unreadable.append(part)

    def _queues(self, unreadable: list[UnreadablePart]) -> Iterator[QueueInfo]:
        engine = self._engine
        for topic in dict.fromkeys(row.topic for row in QueueCatalog(engine.catalog).listing()):
            try:
                yield from queues.listing(engine, topic)
            except UnknownTopicError:
                continue  # deleted just now
            except (DataError, StorageError) as error:
                part = UnreadablePart("queues", topic, error.partition, None, str(error))
                unreadable.append(part)
