"""The engine of one open store: components wired together, topics to logs, the append path.

Straight line: `append` takes encoded batches, gives them their places under the store-wide append
lock and writes them; `acknowledge` makes them durable as asked and visible. Everything users call
(`store.py`, producers, consumers, transactions) stands on these two and on `log`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from .append_lock import AppendLock, NoLocks
from .background import Background
from .batch import EncodedBatch
from .catalog import Catalog
from .clock import Clock
from .compaction_schedule import CompactionSchedule
from .components import Components
from .config import Durability, TopicInfo, whole_number
from .counters import Counters
from .decisions import Decisions
from .errors import (
    DataError,
    MillstreamError,
    StoreClosedError,
    UnknownTopicError,
    UsageError,
    missing_key,
    unknown_topic,
)
from .format import CONTROL, HAS_KEYS, NULL_KEYS
from .helpers import Helpers
from .liveness import Liveness
from .log import Log
from .once_append import AppendGuard, guarded
from .retention_schedule import RetentionSchedule
from .storage import Storage
from .tail import TOPICS_VERSION_WORD, Slot, Tail
from .transaction_states import TransactionStates

INTERVAL_SECONDS: Final = 0.1
"""Durability `interval`: a machine that dies loses at most about this much."""
OPEN_LOCK: Final = "open.lock"
"""Held shared by every process that has the store open for writing."""

_logger = logging.getLogger("millstream")


def in_use(storage: Storage) -> bool:
    """Whether a process has the store open for writing, at this moment."""
    if not storage.exists(OPEN_LOCK):
        return False
    lock = storage.lock(OPEN_LOCK)
    try:
        return not lock.try_acquire()
    finally:
        lock.close()


class Engine:
    """One open store in one process. Thread-safe; refuses to work in a forked child.

    The first process to open a store starts a new generation: every partition is then recovered
    at its first use, from its last checkpoint on. Later processes join and trust the tail words.
    """

    def __init__(
        self, storage: Storage, clock: Clock, *, durability: Durability, read_only: bool
    ) -> None:
        self.storage = storage
        self.clock = clock
        self.durability: Durability = durability
        self.read_only = read_only
        self.closed = False
        self.pid = os.getpid()
        self._guard = threading.RLock()
        self._closing = threading.Lock()
        self._topics: dict[str, TopicInfo] = {}
        self.topics_version = -1
        self._logs: dict[tuple[str, int], Log] = {}
        # A reader takes no lock, and its store may be a copy without the lock files.
        locks = NoLocks() if read_only else storage
        with ExitStack() as opened:
            opened.callback(storage.close)
            self.catalog = self._open_catalog()
            opened.callback(self.catalog.close)
            self._refuse_topics_without_catalog()
            self.tail = Tail(storage, clock)
            opened.callback(self.tail.close)
            self.append_lock = AppendLock(locks.lock("append.lock"), self.tail, clock)
            opened.callback(self.append_lock.close, self._close_logs)
            self._open_lock = locks.lock(OPEN_LOCK)
            opened.callback(self._open_lock.close)
            self.liveness = Liveness(storage)
            opened.callback(self.liveness.close)
            self.background = Background(clock)
            self._helpers = Helpers()
            self.decisions = Decisions(self.catalog, self.tail, self.liveness, clock)
            self.transactions = TransactionStates(
                self.catalog, self.tail, self.liveness, self.decisions, clock
            )
            self.components = Components(
                storage,
                clock,
                self.catalog,
                self.tail,
                self.append_lock,
                self.catalog.store_uid,
                Counters(clock),
            )
            self.compactions = CompactionSchedule(
                self.components, self.transactions, self.background, self.roll
            )
            self.retention = RetentionSchedule(self.components, self.background, self.roll)
            self.append_lock.on_interrupted = self._recover_slot
            if not read_only:
                self._join()
                self.decisions.settle_dead()
            self._opened = opened.pop_all()

    def _open_catalog(self) -> Catalog:
        storage = self.storage
        try:
            return Catalog(
                storage.catalog_filename(),
                clock=self.clock,
                read_only=self.read_only,
                on_commit=storage.sync_point,
            )
        except UsageError:
            # Who writes has made an empty one; who reads has not, and there is none.
            if storage.list("topics"):
                raise _lost_catalog(storage.root) from None
            raise

    def _refuse_topics_without_catalog(self) -> None:
        # In this order: another process may be starting the store and creating the first topic.
        if self.storage.list("topics") and self.catalog.generation == 0:
            raise _lost_catalog(self.storage.root)

    def _join(self) -> None:
        """Start a new generation if no other process has the store open."""
        # Who has it open already will look whether `append.lock` is still the file they have open.
        self.tail.set("lock_file_version", self.tail.stamp())
        lock = self._open_lock
        if lock.try_acquire():
            # Every partition will be recovered at its first use; what somebody was doing when
            # the last generation ended matters no more, and may be what a crash left of it.
            self.tail.set("in_progress", 0)
            with self.append_lock.let_go_at_interrupt, self.append_lock:
                self.tail.reset(self.catalog.next_generation())
            lock.release()
        # Somebody may be starting a generation right now; that takes a commit, not longer.
        while not lock.try_acquire(shared=True):
            self.clock.sleep(0.001)
        if not self.tail.usable:
            with self.append_lock.let_go_at_interrupt, self.append_lock:
                if not self.tail.usable:
                    self.tail.reset(self.catalog.next_generation())

    # --- topics and logs -----------------------------------------------------------------------

    def ensure_open(self) -> None:
        """Raise StoreClosedError if the store was closed, or this is the child of a fork."""
        if self.closed:
            raise StoreClosedError("the store is closed: open it again", path=self.storage.root)
        if self.inherited:
            raise StoreClosedError(
                "the store was opened before a fork: open it again in the child",
                path=self.storage.root,
            )

    @property
    def inherited(self) -> bool:
        """Whether this is the child of a fork: what is open in the store is the parent's."""
        return os.getpid() != self.pid

    def ensure_writable(self) -> None:
        """Raise as `ensure_open`, and UsageError if the store is open read-only."""
        if self.closed or self.read_only or os.getpid() != self.pid:
            self.ensure_open()
            raise UsageError("the store is open read-only", path=self.storage.root)

    def topic(self, name: str) -> TopicInfo:
        """The topic of that name.

        Raises:
            UnknownTopicError: There is none; the message says how to create it.
        """
        if name.__class__ is not str:
            _require_name(name)
        self.ensure_open()
        if self.tail.get("topics_version") != self.topics_version:
            self._refresh_topics()
        info = self._topics.get(name)
        if info is None:
            # A read-only handle on a store no writer has touched since boot has no live words.
            self._refresh_topics()
            info = self._topics.get(name)
        if info is None:
            raise unknown_topic(name)
        return info

    def topics(self) -> list[TopicInfo]:
        """All topics, internal ones too."""
        self.ensure_open()
        self._refresh_topics()
        return list(self._topics.values())

    def _refresh_topics(self) -> None:
        with self._guard:
            version = self.tail.get("topics_version")
            topics = {info.name: info for info in self.catalog.topics()}
            for key, log in list(self._logs.items()):
                info = topics.get(log.topic)
                if info is None or info.id != log.topic_id:
                    log.deleted = True
                    del self._logs[key]
                else:
                    log.configure(info.config)
            self._topics, self.topics_version = topics, version

    def log(self, topic: str, partition: int) -> Log:
        """The log of one partition, recovered if this is its first use since a crash.

        Raises:
            UnknownTopicError: No such topic or partition.
            DataError: It is damaged below its durable watermark.
        """
        if partition.__class__ is not int:
            # True and 1.0 are equal to 1, and would be found, and become names of directories.
            partition = whole_number(partition, "a partition")
        if topic.__class__ is not str:
            _require_name(topic)
        log = self._logs.get((topic, partition))
        if log is None or log.deleted or self.tail.get("topics_version") != self.topics_version:
            info = self.topic(topic)
            if not 0 <= partition < info.partitions:
                raise UnknownTopicError(
                    f"topic {topic!r} has partitions 0 to {info.partitions - 1}",
                    topic=topic,
                    partition=partition,
                )
            log = self._logs.get((topic, partition)) or self._open_log(info, partition)
        return log

    def _open_log(self, info: TopicInfo, partition: int) -> Log:
        """Open and remember a log. The append lock comes before the guard.

        That is the order of an append that has to refresh the topics; in the other order each of
        two threads could hold what the other one waits for.
        """
        if self.read_only:
            return self._open_log_locked(info, partition)
        with self.append_lock.let_go_at_interrupt, self.append_lock:
            return self._open_log_locked(info, partition)

    def _open_log_locked(self, info: TopicInfo, partition: int) -> Log:
        with self._guard:
            log = self._logs.get((info.name, partition))
            if log is None:
                log = Log(self.components, info, partition)
                if self.read_only:
                    log.examine_read_only()
                else:
                    log.prepare_locked()
                self._logs[info.name, partition] = log
            return log

    def _recover_slot(self, slot_number: int) -> None:
        """The process that held the append lock died while it wrote to this slot's partition."""
        found = self.catalog.partition_of_slot(slot_number)
        if found is None:
            return  # its topic was deleted
        info, partition = found
        with self._guard:
            log = self._logs.get((info.name, partition))
            if log is None or log.deleted:
                log = Log(self.components, info, partition)
                self._logs[info.name, partition] = log
        try:
            log.recover_locked()
        except MillstreamError as error:
            # Whoever uses the partition next gets the error; the rest of the store goes on.
            _logger.warning("recovery is put off: %s", error)
            log.put_off_recovery_locked()
            self.tail.set("sequence", self.tail.get("sequence") + 1)

    @contextmanager
    def changing_locked(self, log: Log) -> Iterator[None]:
        """Mark the partition this process is changing, with the append lock held.

        If it dies inside, the next holder of the lock recovers the partition. An Exception means
        that the change has been undone; a KeyboardInterrupt may have come anywhere and leaves the
        mark.

        Raises:
            UnknownTopicError: The topic was deleted.
        """
        log.ensure_there()
        tail = self.tail
        tail.set("in_progress", log.slot_number + 1)
        try:
            yield
        except Exception:
            tail.set("in_progress", 0)
            raise
        tail.set("in_progress", 0)

    # --- append --------------------------------------------------------------------------------

    def append(
        self,
        batches: Sequence[tuple[Log, EncodedBatch]],
        *,
        transaction_id: int = 0,
        guard: AppendGuard | None = None,
        numbered: bool = False,
    ) -> tuple[list[int], int]:
        """Write batches in this order, in one hold of the append lock.

        Returns their base offsets and the append time, UTC milliseconds.

        They are neither durable nor visible before `acknowledge`. If one fails, those before it
        stay written, unacknowledged. A `guard` may refuse them before any is written. Ids of
        `numbered` records are not looked up: a named producer numbers them.

        Raises:
            DuplicateIdsError: Some are there already, by their ids; see `append_once`.
            UnknownTopicError: A topic was deleted.
            StorageError, PoisonedError: Not written.
        """
        self.ensure_writable()
        if self.tail.words[TOPICS_VERSION_WORD] != self.topics_version:
            self._refresh_topics()
        guard = guarded(self, batches, transaction_id, guard, numbered=numbered)
        try:
            with self.append_lock:
                if guard is None:
                    return self._append_locked(batches, transaction_id)
                guard.check_locked()
                offsets, now_ms = self._append_locked(batches, transaction_id)
                guard.appended_locked(offsets, now_ms)
                return offsets, now_ms
        except BaseException:
            self.append_lock.let_go()  # if it was interrupted on the way out
            raise

    def _append_locked(
        self, batches: Sequence[tuple[Log, EncodedBatch]], transaction_id: int
    ) -> tuple[list[int], int]:
        if self.tail.words[TOPICS_VERSION_WORD] != self.topics_version:
            self._refresh_topics()
        for log, encoded in batches:
            if log.config.compact:
                _require_keys(log, encoded)
        now_ms = self.clock.now_ms()
        offsets: list[int] = []
        for log, encoded in batches:
            if log.deleted:
                raise UnknownTopicError("the topic was deleted", topic=log.topic)
            offsets.append(log.append_locked(encoded, transaction_id, now_ms))
        return offsets, now_ms

    def acknowledge(
        self, ends: Sequence[tuple[Log, int]], durability: Durability | None = None
    ) -> None:
        """Make the records below each end durable as asked, then visible, and wake followers.

        Raises:
            PoisonedError: A sync failed: the records may be lost.
        """
        mode = durability or self.durability
        if mode == "sync":
            self._sync(ends)
            return
        self._show(ends)
        for log, _ in ends:
            self.shown(log, mode)

    def _sync(self, ends: Sequence[tuple[Log, int]]) -> None:
        """Sync all, each whatever becomes of the others; on a disk at the same time."""
        with ExitStack() as rest:
            for log, end in reversed(ends[1:]):
                rest.callback(self._begin_sync(log, end))
            for log, end in ends[:1]:
                self._sync_log(log, end)

    def sync_beside(self, log: Log, end: int) -> Callable[[], None] | None:
        """Sync a log while the caller decides the transaction that wrote to it.

        Nobody sees the records below `end` before they are durable, whatever is decided. Returns
        what waits for the sync, and raises its errors; None if they have to be synced first.
        """
        with self.append_lock.let_go_at_interrupt, self.append_lock:
            if not log.slot.hide(end):
                return None
        return self._begin_sync(log, end)

    def _begin_sync(self, log: Log, end: int) -> Callable[[], None]:
        """Begin to sync a log, and return what waits for it; in memory it is that which syncs."""
        sync = partial(self._sync_log, log, end)
        return sync if self.storage.in_memory else self._helpers.begin(sync).wait

    def _sync_log(self, log: Log, end: int) -> None:
        log.wait_durable(end)
        self.acknowledged(log)

    def acknowledged(self, log: Log) -> None:
        """Wake who follows a log that has just been synced, and have done what is due."""
        self.tail.wake()
        if log.sealed_unsynced is not None:
            self._sync_later(log, 0)
        if log.zeros_run_low:
            self.background.submit((log, "zero"), log.zero_fill)
        if log.needs_upkeep:
            self._keep_up(log)

    def shown(self, log: Log, mode: Durability) -> None:
        """As `acknowledged`, for a log that is synced later, or never if nobody asks for it."""
        self.tail.wake()
        if mode == "interval":
            self._sync_later(log, INTERVAL_SECONDS)
        elif log.sealed_unsynced is not None:
            self._sync_later(log, 0)
        if log.needs_upkeep:
            self._keep_up(log)

    def _keep_up(self, log: Log) -> None:
        if log.config.removes_segments:
            self.retention.appended(log)
        if log.config.rewrites_segments:
            self.compactions.appended(log)

    def _show(self, ends: Sequence[tuple[Log, int]]) -> None:
        try:
            with self.append_lock:
                hidden = [each for each in ends if not each[0].slot.show()]
        except BaseException:
            self.append_lock.let_go()  # if it was interrupted on the way out
            raise
        self._sync(hidden)

    def _sync_later(self, log: Log, delay_seconds: float) -> None:
        def sync() -> None:
            with contextlib.suppress(UnknownTopicError):  # nothing is left to sync
                log.wait_durable(log.slot[Slot.LOG_END])

        self.background.submit((log, "sync"), sync, delay_seconds=delay_seconds)

    def wait(self, seen: int, timeout: float | None) -> int:
        """Block until something became visible since `seen`, or the timeout; the new stamp."""
        return self.tail.wait(seen, timeout)

    def roll(self, log: Log) -> None:
        """Seal the active segment of a partition and start a new one."""
        with self.append_lock.let_go_at_interrupt, self.append_lock:
            log.prepare_locked()
            with self.changing_locked(log):
                log.roll_locked()

    # --- closing -------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything this process appended durable."""
        self.ensure_writable()
        for log in list(self._logs.values()):
            if log.dirty:
                log.wait_durable(log.slot[Slot.LOG_END])
        self.catalog.sync()
        self.tail.wake()

    def abandon(self) -> None:
        """Called when the store is garbage, or the process exits: warn if it was never closed."""
        if not self.closed and os.getpid() == self.pid:
            self.close()  # first: the warning may be an error
            warnings.warn(
                f"unclosed store {self.storage.root}", ResourceWarning, source=self, stacklevel=3
            )

    def close(self) -> None:
        """Sync, remember where each log ends, and let everything go. Idempotent.

        Calls of other threads end first or get StoreClosedError.

        Raises:
            PoisonedError, StorageError: A log could not be synced. The store is closed all the
                same.
        """
        if self.inherited:
            self._close_in_child()
            return
        with self._closing, ExitStack() as rest:
            if self.closed:
                return
            self.closed = True
            self.catalog.database.end_interrupted()
            # Whatever fails, all of these are done, the last one first.
            rest.callback(self._opened.close)
            rest.callback(self._helpers.close)
            rest.callback(self._stop_syncing)
            if not self.read_only:
                rest.callback(self.tail.wake)
                rest.callback(self.catalog.sync)
                rest.callback(self._checkpoint_logs)
            rest.callback(self.compactions.close)
            rest.callback(self.background.close)

    def _checkpoint_logs(self) -> None:
        if self.tail.get("topics_version") != self.topics_version:
            self._refresh_topics()  # logs of deleted topics have nothing to remember
        with ExitStack() as each:
            for log in list(self._logs.values()):
                each.callback(log.checkpoint)

    def _stop_syncing(self) -> None:
        for log in list(self._logs.values()):
            log.stop_syncing()

    def _close_logs(self) -> None:
        for log in list(self._logs.values()):
            log.close()

    def _close_in_child(self) -> None:
        """Close the descriptors a fork has copied; locks and threads are the parent's."""
        if not self.closed:
            self.closed = True
            self._close_logs()
            self.append_lock.abandon()
            self._open_lock.close()
            self.tail.abandon()


def _require_name(topic: object) -> None:
    """Refuse a list of topics, which cannot even be looked for, and the like."""
    if not isinstance(topic, str):
        raise UsageError(f"{topic!r:.60} is not the name of a topic: give a str, one topic")


def _lost_catalog(root: str) -> DataError:
    return DataError(
        "there are topics, but catalog.db was missing: restore it, with its files -wal and -shm"
        " removed, or see what `millstream repair` can make of the segments",
        path=root,
    )


def _require_keys(log: Log, encoded: EncodedBatch) -> None:
    keyed = encoded.flags & (HAS_KEYS | NULL_KEYS) == HAS_KEYS
    if not keyed and not encoded.flags & CONTROL:
        raise missing_key(log.topic, log.partition)
