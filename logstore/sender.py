"""The queue between `Producer.send` and the log, and the thread that empties it. Opens no file.

A record waits in an open batch of its partition until the batch is full, has waited its linger, or
somebody waits for it; then the batch is sealed and the thread takes what is sealed as one round:
encode each batch, append to each partition, make all durable together, complete their futures,
run callbacks. What a batch is on disk is in docs/log-format.md.

One lock guards everything here except the one thing done per record: `Producer.send` adds to the
open batch without it, because taking a lock costs a fifth of a send. That is sound because
CPython's global lock makes `list += tuple` one step, and because of this protocol:

- `sealed` is set before the entries are counted, and they are counted (`take`) under the lock.
- A sender looks at `sealed` after it has added. Not set: its record will be counted. Set: it asks
  `Batch.includes` under the lock, and adds again if the record came too late to be counted.
- Where a record lies in its batch is the length of the list right after adding. Threads switch at
  calls and jumps only, of which there is none between the two.

Nobody waits in that protocol, so a sender interrupted anywhere (Ctrl-C, a signal handler or a
finalizer that sends too) leaves nothing locked and nothing half done. Interrupts also come at calls
and jumps only. So under the lock what belongs together is written without a call in between, and
what a sender may have left out after it (closing the lane, waking the thread) is made up for by
whoever comes next.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .batch import EncodedBatch
from .clock import SystemClock
from .config import MIB, Durability, TopicConfig, TopicInfo
from .engine import Engine
from .errors import BackpressureTimeoutError, StoreClosedError, UsageError
from .format import APPEND_TIME
from .log import Log
from .once_append import append_once
from .outgoing import Batch, Extras, Lane, PendingCall, SendFuture, call_back_all

RECORD_BYTES_MAX: Final = 96 * MIB
"""A record and its columns must fit one batch body (128 MiB) with room to spare."""

GRANT_BYTES: Final = 64 * 1024
"""Open batches take their share of `buffer_bytes` in such steps, not once per record."""

ROUND_BYTES: Final = 16 * MIB
"""At most this much is appended in one go: the store-wide append lock is held meanwhile."""

_logger = logging.getLogger("millstream")

_clock: Final = SystemClock()
"""For how long `send` waits at the bound: threads wait in real time, whatever the store's clock."""


class SendLimits(NamedTuple):
    """When a batch is full and how much may wait; see `Producer` for their meaning."""

    linger_ms: float
    batch_bytes: int
    buffer_bytes: int


class Sender:
    """Apart from `Producer`, so that the thread keeps this alive but not the user's handle.

    Methods marked "lock held" are called with `lock` held, the others without.
    """

    def __init__(
        self,
        engine: Engine,
        limits: SendLimits,
        *,
        durability: Durability | None,
        timeout: float | None,
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.durability = durability
        self.timeout = timeout
        self.lanes: dict[str, Lane] = {}
        self.queued_bytes = 0
        self.closing = False
        self._open: deque[Batch] = deque()
        """In the order of opening, so that the first unsealed one has the earliest deadline."""
        self._sealed: deque[Batch] = deque()
        self._in_round: list[Batch] = []
        self._sealed_count = 0
        self._done_count = 0
        self._failed_records = 0
        self._error: BaseException | None = None
        self._broken: BaseException | None = None
        self._urgent = False
        self._idle = False
        self._thread: threading.Thread | None = None
        self._renew_lock()

    def _renew_lock(self) -> None:
        self.lock = threading.RLock()
        self._work = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self._progress = threading.Condition(self.lock)

    # --- sending -------------------------------------------------------------------------

    def add_lane(self, topic: str) -> Lane:
        """Look `topic` up: without the lock, because it may read the catalog."""
        self._ensure_open()
        info = self.engine.topic(topic)
        with self.lock:
            return self.lanes.setdefault(topic, self._make_lane(info))

    def _make_lane(self, info: TopicInfo) -> Lane:
        return Lane(
            info.name,
            info.partitions,
            needs_key=info.config.compact,
            by_id=info.config.dedup_ms is not None,
        )

    def _ensure_open(self) -> None:
        if self._broken is not None:
            raise StoreClosedError("the producer's thread died; make a new one") from self._broken
        if self.closing:
            raise StoreClosedError("the producer is closed, or was made before a fork")
        self.engine.ensure_open()

    def add(
        self, lane: Lane, number: int, size: int, value: bytes | None, slot: bytes | Extras | None
    ) -> SendFuture:
        """Add a record where no open batch has room for it: seal, wait, open, as it takes.

        `number` is the partition, -1 the one whose turn it is.
        """
        full: Batch | None = None
        try:
            with self.lock:
                batch, full = self._admit(lane, number, size)
                if full is not None:
                    full.claimed = True
                if isinstance(slot, Extras):
                    batch.has_extras = True
                batch.room -= size
                batch.entries += (value, slot)
                future = SendFuture(batch, len(batch.entries))
                if batch.granted - batch.room >= self.limits.batch_bytes:
                    self._hurry()
            if full is not None:
                # Here and not in the thread: the records are still in the processor's cache, and
                # the thread is free to write meanwhile.
                self._encode(full)
        except BaseException:
            if full is not None:
                full.claimed = False
                self._unclaim(full)
            raise
        return future

    def has(self, future: SendFuture, entries: list[object]) -> bool:
        """For a sender who finds its batch sealed: whether the record still got in."""
        with self.lock:
            return future.batch.includes(entries, future.end)

    def _admit(self, lane: Lane, number: int, size: int) -> tuple[Batch, Batch | None]:
        """An open batch with room, and one that was sealed on the way to be encoded. Lock held."""
        limit = min(self.limits.buffer_bytes, RECORD_BYTES_MAX)
        if size > limit:
            raise UsageError(f"a record of {size} bytes exceeds the limit of {limit}")
        deadline = None if self.timeout is None else _clock.monotonic() + self.timeout
        full: Batch | None = None
        while True:
            self._ensure_open()
            batch = lane.open[number]
            if batch is not None and batch.sealed:
                lane.sealed(batch)  # as whoever sealed it was interrupted before doing
                continue
            used = 0 if batch is None else batch.granted - batch.room
            if batch is not None and used and used + size > self.limits.batch_bytes:
                self._seal(batch)
                full = full or batch
                continue
            needed = size if batch is None else size - batch.room
            free = self.limits.buffer_bytes - self.queued_bytes
            if needed <= free:
                break
            full = None  # the thread has to encode it, since we wait for the thread
            self._wait_for_release(deadline)
        if self._thread is None:
            self._start()
        batch = batch or self._open_batch(lane, lane.turn if number < 0 else number)
        if needed > 0:
            grant = max(needed, min(GRANT_BYTES, self.limits.batch_bytes, free))
            batch.room += grant
            batch.granted += grant
            self.queued_bytes += grant
        return batch, full

    def _encode(self, batch: Batch) -> None:
        """Encode a sealed batch; the lock is held only to fetch its entries."""
        try:
            config = self._config(batch.lane)
            with self.lock:
                batch.take()
            if not batch.count:
                return  # opened by a sender who was interrupted before adding to it
            batch.encode(self.engine.clock.now_ms(), config, batch.lane.partitions)
        except UsageError as error:  # handed to the futures and to flush, as the next
            batch.error = error.at(topic=batch.lane.topic)
        except Exception as error:  # handed to the futures and to flush
            batch.error = error
        finally:
            self._unclaim(batch)

    def _config(self, lane: Lane) -> TopicConfig:
        """The configuration of the topic as it is now."""
        info = self.engine.topic(lane.topic)
        if info.partitions != lane.partitions:
            # Deleted and created again meanwhile: the keys belong to other partitions now.
            raise UsageError(
                f"the topic has {info.partitions} partitions now, not {lane.partitions}:"
                " send again",
                topic=lane.topic,
            )
        return info.config

    def _unclaim(self, batch: Batch) -> None:
        # Before waiting for the lock, where an interrupt is most likely.
        batch.claimed = False
        with self.lock:
            if self._idle:
                self._work.notify()

    def _open_batch(self, lane: Lane, number: int) -> Batch:
        deadline = self.engine.clock.monotonic() + self.limits.linger_ms / 1000
        batch = Batch(self, lane, number, deadline)
        lane.opened(batch)
        self._open.append(batch)
        if self._idle and (self._sealed or len(self._open) == 1):
            self._work.notify()
        return batch

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="millstream-producer", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except BaseException:
            # Interrupted; should it run all the same, it finds that it is not the one, and ends.
            self._thread = None
            raise

    def _wait_for_release(self, deadline: float | None) -> None:
        """Until some buffer space was given back. Lock held, let go of while waiting."""
        if threading.current_thread() is self._thread:
            raise BackpressureTimeoutError("the buffer is full, and a callback cannot wait for it")
        # All space may be held by batches that still wait for company: end their linger.
        self._hurry()
        remaining = None if deadline is None else deadline - _clock.monotonic()
        if remaining is not None and remaining <= 0:
            raise BackpressureTimeoutError(
                f"{self.queued_bytes} bytes wait to be written and the buffer is full;"
                " send again, or slower"
            )
        self._room.wait(remaining)

    def _hurry(self) -> None:
        """Have the thread seal and write all that is open. Lock held."""
        self._urgent = True
        if self._idle:
            self._work.notify()

    def _seal(self, batch: Batch) -> None:
        """Close `batch` for further records and queue it. Lock held."""
        room, batch.room = batch.room, 0
        batch.granted -= room
        self.queued_bytes -= room
        self._sealed_count += 1
        batch.sealed = True
        self._sealed.append(batch)
        batch.lane.sealed(batch)
        if self._idle:
            self._work.notify()

    def _seal_until(self, deadline: float) -> None:
        """Seal the batches whose linger ends by then. Lock held."""
        while self._open and (self._open[0].sealed or self._open[0].deadline <= deadline):
            if not self._open[0].sealed:
                self._seal(self._open[0])
            self._open.popleft()

    def _seal_all(self) -> None:
        self._seal_until(math.inf)

    # --- waiting -------------------------------------------------------------------------

    def wait_for(self, batch: Batch, timeout: float | None) -> None:
        """Until `batch` is done, else TimeoutError."""
        with self.lock:
            if not batch.sealed:
                self._hurry()
            self._work.notify()
            self._wait_until(lambda: batch.done, timeout)

    def hurry(self) -> None:
        """Have what is collected written now, without waiting for it."""
        with self.lock:
            if self._open:
                self._hurry()

    def wait_for_room(self, timeout: float | None) -> bool:
        """Until a `send` of usual size would find room; False after `timeout` seconds."""
        enough = min(self.limits.batch_bytes, GRANT_BYTES)

        def roomy() -> bool:
            return self.closing or self.queued_bytes + enough <= self.limits.buffer_bytes

        with self.lock:
            if not roomy():
                self._hurry()
            return self._room.wait_for(roomy, timeout)

    def flush(self, timeout: float | None) -> None:
        """Until all that was sent before is done; raise what failed since the last flush."""
        with self.lock:
            self._seal_all()
            self._work.notify()
            target = self._sealed_count
            self._wait_until(lambda: self._done_count >= target, timeout)
            error, self._error = self._error, None
            failed, self._failed_records = self._failed_records, 0
        if error is not None:
            error.add_note(f"{failed} records of this producer were not acknowledged")
            raise error

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> None:
        if condition():
            return
        if threading.current_thread() is self._thread:
            raise UsageError("a callback runs in the producer's thread and cannot wait for it")
        if not self._progress.wait_for(condition, timeout):
            raise TimeoutError(f"not acknowledged within {timeout} s")

    def stop(self) -> None:
        """Refuse further records and let the thread finish what is queued, without waiting."""
        with self.lock:
            self.closing = True
            self.lanes.clear()
            self._seal_all()
            self._work.notify()
            self._room.notify_all()

    def close(self) -> None:
        """Stop, wait for the thread, and raise what failed."""
        if threading.current_thread() is self._thread:
            raise UsageError("a callback runs in the producer's thread and cannot close it")
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self.flush(None)

    def abandon(self) -> None:
        """In a forked child: the thread is not here, and the parent writes what is queued.

        The old lock may be held by a thread that does not exist here, so it is replaced.
        """
        self._renew_lock()
        self.closing = True
        self._thread = None
        with self.lock:
            self.lanes.clear()
            self._fail_all(StoreClosedError("the producer belongs to the process before a fork"))
            self._error = None

    # --- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        """A round at a time, until closed and empty."""
        with self.lock:
            if threading.current_thread() is not self._thread:
                return
        try:
            while batches := self._next_round():
                self._deliver(batches)
                self._complete(batches)
        except BaseException as error:
            # Whatever killed the thread must reach everybody who waits for it, or will.
            with self.lock:
                self._broken = error
                self.lanes.clear()
                calls = self._fail_all(error)
            call_back_all(calls)

    def _next_round(self) -> list[Batch]:
        with self.lock:
            while True:
                self._seal_due()
                if self._sealed and not self._sealed[0].claimed:
                    break
                if self.closing and not self._sealed:
                    return []
                pause = None
                if self._open:
                    pause = max(0.0, self._open[0].deadline - self.engine.clock.monotonic())
                self._idle = True
                self._work.wait(pause)
                self._idle = False
            size = 0
            batches: list[Batch] = []
            while self._sealed and not self._sealed[0].claimed:
                if batches and size + self._sealed[0].granted > ROUND_BYTES:
                    break
                batch = self._sealed.popleft()
                size += batch.granted
                batches.append(batch)
            self._in_round = batches
            return batches

    def _seal_due(self) -> None:
        """Seal the batches whose linger is over, or all when somebody waits."""
        if self._urgent:
            self._urgent = False
            self._seal_all()
            return
        self._seal_until(self.engine.clock.monotonic())

    def _deliver(self, batches: list[Batch]) -> None:
        """Encode, append and acknowledge; note in each batch what became of it."""
        by_log: dict[Log, list[tuple[Batch, EncodedBatch]]] = {}
        for batch in batches:
            if batch.encoded is None and batch.error is None:
                self._encode(batch)
            if batch.encoded is None:
                continue
            try:
                log = self.engine.log(batch.lane.topic, batch.partition)
            except Exception as error:  # handed to the futures and to flush
                batch.error = error
            else:
                by_log.setdefault(log, []).append((batch, batch.encoded))
        ends: dict[Log, int] = {}
        for log, pairs in by_log.items():
            # One call per partition: a partition that cannot be written fails no other.
            try:
                ends[log] = self._append(log, pairs)
            except Exception as error:  # handed to the futures and to flush
                _fail(pairs, error)
        if ends:
            for log, failure in self._acknowledge(ends).items():
                _fail(by_log[log], failure)

    def _append(self, log: Log, pairs: list[tuple[Batch, EncodedBatch]]) -> int:
        """Write the batches of one partition; the offset behind them."""
        placed, now_ms = append_once(self.engine, [(log, encoded) for _, encoded in pairs])
        for (batch, encoded), each in zip(pairs, placed, strict=True):
            batch.base_offset = each.base_offset
            batch.places = each.rows
            if encoded.flags & APPEND_TIME:
                batch.timestamps_ms = now_ms
        return max(each.end for each in placed)

    def _acknowledge(self, ends: dict[Log, int]) -> dict[Log, BaseException]:
        """Make the round durable and visible; the error of each log that could not be."""
        try:
            self.engine.acknowledge(list(ends.items()), self.durability)
        except Exception as error:  # handed to the futures and to flush
            if len(ends) == 1:
                return dict.fromkeys(ends, error)
        else:
            return {}
        # One bad partition must not fail the others: asked alone, each answers for itself.
        failures: dict[Log, BaseException] = {}
        for log, end in ends.items():
            failures |= self._acknowledge({log: end})
        return failures

    def _complete(self, batches: list[Batch]) -> None:
        """Publish the outcome of a round, then run callbacks, then let `flush` pass."""
        with self.lock:
            self._in_round = []
            calls = self._finish(batches)
        call_back_all(calls)
        with self.lock:
            self._done_count += len(batches)
            self._progress.notify_all()

    def _finish(self, batches: Sequence[Batch]) -> list[PendingCall]:
        """Mark `batches` done and give their space back; returns their callbacks. Lock held."""
        calls: list[PendingCall] = []
        for batch in batches:
            batch.take()
            batch.done = True
            self.queued_bytes -= batch.granted
            if batch.error is not None:
                self._note_failure(batch, batch.error)
            batch.taken = []
            batch.encoded = None
            calls += batch.callbacks
            batch.callbacks = []
        self._room.notify_all()
        self._progress.notify_all()
        return calls

    def _note_failure(self, batch: Batch, error: BaseException) -> None:
        self._failed_records += batch.count
        self._error = self._error or error
        if isinstance(error, UsageError):
            # The topic may have been deleted or changed: look it up again at the next send.
            self._forget_lane(batch.lane)
        _logger.error(
            "%d records to %s/%d not acknowledged: %s",
            batch.count,
            batch.lane.topic,
            batch.partition,
            error,
        )

    def _forget_lane(self, lane: Lane) -> None:
        self.lanes.pop(lane.topic, None)

    def _fail_all(self, error: BaseException) -> list[PendingCall]:
        """Fail all that is queued or being written. Lock held."""
        self._seal_all()
        batches = [*self._in_round, *self._sealed]
        self._in_round = []
        self._sealed.clear()
        for batch in batches:
            batch.error = batch.error or error
        calls = self._finish(batches)
        self._done_count = self._sealed_count
        return calls


def _fail(pairs: Sequence[tuple[Batch, EncodedBatch]], error: BaseException) -> None:
    for batch, _ in pairs:
        batch.error = error
