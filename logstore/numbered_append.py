"""Append batches of a named producer: each record once, and nothing from a producer replaced.

The numbers are checked and the place is given under the append lock, so a batch that is sent again
by whatever process finds what the first one left. What is remembered is `producer_log.py`; who
assigns the numbers is `named_producer.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from .batch import EncodedBatch
from .config import check_printable_name
from .engine import Engine
from .errors import FencedError, UsageError
from .format import split_u64
from .log import Log
from .producer_catalog import ProducerCatalog, ProducerRow
from .producer_states import Numbering, ProducerState
from .tail import PRODUCERS_VERSION_WORD

_logger = logging.getLogger("millstream")


def check_producer_name(name: str) -> str:
    """Return `name` if a producer can have it, else raise UsageError.

    >>> check_producer_name("ingest-1")
    'ingest-1'
    """
    return check_printable_name(name, "a producer name")


class OpenProducer:
    """A name opened in this process; opening it again, here or elsewhere, fences this one.

    Thread-safe.

    Args:
        engine: The open store.
        name: 1 to 200 printable characters; the same after each restart.
        gaps: Whether sequences that are given may leave numbers out.
    """

    def __init__(self, engine: Engine, name: str, *, gaps: bool = False) -> None:
        engine.ensure_writable()
        self.name = check_producer_name(name)
        self.engine = engine
        self.gaps = gaps
        self._catalog = ProducerCatalog(engine.catalog)
        self.row: ProducerRow = self._catalog.open(name, engine.pid)
        # Under the lock: an append of the one replaced is over, or will be refused.
        with engine.append_lock.let_go_at_interrupt, engine.append_lock:
            engine.tail.bump("producers_version")
        self._version = 0

    def state(self, log: Log) -> ProducerState | None:
        """What is in a partition of this producer, by whichever of its epochs."""
        self.engine.ensure_writable()
        log.producers.prepare()
        with self.engine.append_lock.let_go_at_interrupt, self.engine.append_lock:
            log.prepare_locked()
            self.check_locked()
            return self.state_locked(log)

    def state_locked(self, log: Log) -> ProducerState | None:
        """As `state`, with the append lock held and checked that the name is still this one's.

        Nobody has opened it since. If the log has a later epoch all the same, the catalog has lost
        that it was opened; its processes are dead, or they would keep the catalog.
        """
        state = log.producers.state_locked(self.row)
        if state is not None and state.epoch > self.row.epoch:
            _logger.warning(
                "%s/%d: producer %r has written in epoch %d, the catalog knew of %d: catalog.db is"
                " older than the log. The producer goes on above",
                *(log.topic, log.partition, self.name, state.epoch, self.row.epoch),
            )
            self.row = self._catalog.raise_epoch(self.row, state.epoch)
            self.engine.tail.bump("producers_version")
            self.check_locked()
        return state

    def check_locked(self) -> None:
        """Raise FencedError if the name was opened again, or forgotten."""
        version = self.engine.tail.words[PRODUCERS_VERSION_WORD]
        if version == self._version:
            return
        epoch, pid = self._catalog.epoch(self.row.id)
        if epoch != self.row.epoch:
            what = f"was opened again by process {pid}" if epoch else "was forgotten"
            raise FencedError(f"producer {self.name!r} {what}: this one must not write any more")
        self._version = version


def forget(engine: Engine, name: str) -> bool:
    """See `Store.forget_producer`."""
    engine.ensure_writable()
    found = ProducerCatalog(engine.catalog).forget(check_producer_name(name))
    with engine.append_lock.let_go_at_interrupt, engine.append_lock:
        engine.tail.bump("producers_version")
    return found


class NumberedBatch(NamedTuple):
    """A batch with the numbers of its records, which rise from above `previous` to `last`."""

    encoded: EncodedBatch
    previous: int
    """Number of the producer's record before it in the partition; NOTHING if there is none."""
    last: int


class NumberedAppend:
    """Guards one append of batches of a producer to one partition; see `append_numbered`."""

    def __init__(self, producer: OpenProducer, log: Log, batches: Sequence[NumberedBatch]) -> None:
        self._producer = producer
        self._log = log
        self._batches = batches
        self.duplicates: list[tuple[int, int]] = []
        """Offset of the last record, and append time, of batches that are there already."""

    def check_locked(self) -> None:
        """See `AppendGuard.check_locked`. If any batch is there already, nothing is written."""
        log, producer = self._log, self._producer
        log.prepare_locked()
        producer.check_locked()
        producer.state_locked(log)
        previous = None
        for batch in self._batches:
            numbering = self._numbering(batch)
            if previous is None:
                count = batch.encoded.record_count
                if not log.producers.check_locked(producer.row, numbering, count):
                    self._find()
                    raise _DuplicateError
            elif batch.previous != previous:
                raise UsageError("the numbers of the batches do not follow each other")
            previous = batch.last
            epoch = producer.row.epoch
            batch.encoded.producer = (producer.row.id, epoch, *split_u64(batch.last))

    def _numbering(self, batch: NumberedBatch) -> Numbering:
        row = self._producer.row
        return Numbering(row.id, row.epoch, batch.previous, batch.last)

    def _find(self) -> None:
        state = self._producer.state_locked(self._log)
        assert state is not None
        for batch in self._batches:
            if batch.last <= state.last_sequence:
                self.duplicates.append(state.find(batch.last))

    def appended_locked(self, offsets: Sequence[int], now_ms: int) -> None:
        """See `AppendGuard.appended_locked`."""
        for batch, offset in zip(self._batches, offsets, strict=True):
            self._log.producers.appended_locked(
                self._numbering(batch), offset, batch.encoded.last_offset_delta, now_ms
            )


class _DuplicateError(Exception):
    """Ends an append whose batches are there already."""


class Appended(NamedTuple):
    """Where a numbered batch is."""

    last_offset: int
    """Offset of its last record; UNKNOWN_OFFSET of a duplicate that is not remembered."""
    append_ms: int
    duplicate: bool


def append_numbered(
    engine: Engine, producer: OpenProducer, log: Log, batches: Sequence[NumberedBatch]
) -> list[Appended]:
    """Append batches that follow each other, in one hold of the append lock, once.

    Those that are there already come first and are not written again. Not durable, nor visible,
    before `Engine.acknowledge`; that holds for a duplicate too.

    Raises:
        FencedError: The producer was opened again.
        SequenceGapError: Records before the first are missing; nothing was written.
        UsageError: A batch is there in part; nothing was written.
        DataError: What the producer may have written is not known any more.
        StorageError, PoisonedError: As `Engine.append`. Append all of them again.
    """
    rest = list(batches)
    done: list[Appended] = []
    while rest:
        guard = NumberedAppend(producer, log, rest)
        pairs = [(log, batch.encoded) for batch in rest]
        try:
            offsets, now_ms = engine.append(pairs, guard=guard, numbered=True)
        except _DuplicateError:
            done += [Appended(*found, duplicate=True) for found in guard.duplicates]
            rest = rest[len(guard.duplicates) :]
            continue
        for batch, offset in zip(rest, offsets, strict=True):
            done.append(Appended(offset + batch.encoded.last_offset_delta, now_ms, False))
        rest = []
    return done
