"""Append records whose ids were not appended within the window of their topic, and no others.

The ids are looked up with the append lock held, so of several who append one id, in whatever
process, one gets through. Which ids there are is `id_log.py`. Every append of the store passes
`guarded`; who can tell users about single records calls `append_once`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from .batch import BatchPlacement, EncodedBatch, body_buffers, decode_batch, seal
from .clock import Clock
from .column_batch import encode_values
from .errors import ConflictError, UnavailableError, UsageError
from .format import APPEND_TIME, HAS_HEADERS, HAS_KEYS, NO_TIMESTAMP, parse_header
from .id_log import Undecided
from .log import Log
from .record import DuplicateMetadata, RecordMetadata
from .record_batch import RecordBatch
from .record_ids import ID_BYTES_MAX, Place, record_id
from .transaction_states import TransactionStates

WAIT_SECONDS: Final = 0.3
"""For a transaction that has written the id: if its owner is dead, it takes time to see that."""
_PAUSE_SECONDS: Final = 0.02


class AppendGuard(Protocol):
    """A condition of an append, with the append lock held."""

    def check_locked(self) -> None:
        """Raise if the batches must not be appended."""
        ...

    def appended_locked(self, offsets: Sequence[int], now_ms: int) -> None:
        """All were, at these base offsets; not called if one failed."""
        ...


class Appending(Protocol):
    """What is needed of an `Engine`."""

    clock: Clock
    transactions: TransactionStates

    def append(
        self,
        batches: Sequence[tuple[Log, EncodedBatch]],
        *,
        transaction_id: int = 0,
        guard: AppendGuard | None = None,
    ) -> tuple[list[int], int]:
        """See `Engine.append`."""
        ...


class Same(NamedTuple):
    """A record of the same call that has the id."""

    batch: int
    row: int


class DuplicateIdsError(UnavailableError):
    """Some records are there already; nothing was appended.

    `found` has for each batch, by row, the place of the record with the same id.
    """

    def __init__(self, found: list[dict[int, Place | Same]]) -> None:
        super().__init__("records with the same ids were appended before: append again")
        self.found = found


class _OpenTransactionError(UnavailableError):
    def __init__(self, undecided: Undecided, log: Log) -> None:
        super().__init__("an open transaction has written the id")
        self.undecided = undecided
        self.log = log


class IdGuard:
    """Guards one append to topics of which some look at ids; see `AppendGuard`."""

    def __init__(
        self,
        engine: Appending,
        batches: Sequence[tuple[Log, EncodedBatch]],
        transaction_id: int,
        inner: AppendGuard | None,
        *,
        numbered: bool,
    ) -> None:
        self._engine = engine
        self._batches = batches
        self._transaction = transaction_id
        self._inner = inner
        self._numbered = numbered
        self._ids = [self._ids_of(log, encoded) for log, encoded in batches]

    def _ids_of(self, log: Log, encoded: EncodedBatch) -> list[bytes | None] | None:
        """The ids of the records; None: the topic does not look at them."""
        if log.config.dedup_ms is None:
            return None
        log.ensure_there()
        log.ids.prepare()
        if not encoded.flags & HAS_HEADERS:
            return [None] * encoded.record_count
        ids = [record_id(headers) for headers in _opened(log, encoded).headers]
        if any(each is not None and len(each) > ID_BYTES_MAX for each in ids):
            raise UsageError(f"a record-id has at most {ID_BYTES_MAX} bytes", topic=log.topic)
        return ids

    def check_locked(self) -> None:
        """See `AppendGuard.check_locked`. If any record is there already, nothing is written."""
        if not self._numbered:
            self._check_ids()
        if self._inner is not None:
            self._inner.check_locked()

    def _check_ids(self) -> None:
        now_ms = self._engine.clock.now_ms()
        states = self._engine.transactions
        found: list[dict[int, Place | Same]] = []
        seen: dict[tuple[int, bytes], Same] = {}
        for number, (log, _) in enumerate(self._batches):
            duplicates: dict[int, Place | Same] = {}
            log.prepare_locked()
            for row, each in enumerate(self._ids[number] or ()):
                if each is None:
                    continue
                same = seen.get((log.slot_number, each))
                place = log.ids.find_locked(each, now_ms, self._transaction, states)
                if isinstance(place, Undecided):
                    raise _OpenTransactionError(place, log)
                if place is not None:
                    duplicates[row] = place
                elif same is not None:
                    duplicates[row] = same
                else:
                    seen[log.slot_number, each] = Same(number, row)
            found.append(duplicates)
        if any(found):
            raise DuplicateIdsError(found)

    def appended_locked(self, offsets: Sequence[int], now_ms: int) -> None:
        """See `AppendGuard.appended_locked`."""
        for (log, encoded), ids, base in zip(self._batches, self._ids, offsets, strict=True):
            if ids is not None and encoded.record_count:
                covered = range(base, base + encoded.record_count)
                log.ids.appended_locked(ids, covered, now_ms, self._transaction)
        if self._inner is not None:
            self._inner.appended_locked(offsets, now_ms)


def guarded(
    engine: Appending,
    batches: Sequence[tuple[Log, EncodedBatch]],
    transaction_id: int,
    guard: AppendGuard | None,
    *,
    numbered: bool,
) -> AppendGuard | None:
    """The guard of an append: `guard` itself, if no topic of the batches looks at ids."""
    if _looks_at_ids(batches):
        return IdGuard(engine, batches, transaction_id, guard, numbered=numbered)
    return guard


def _looks_at_ids(batches: Sequence[tuple[Log, EncodedBatch]]) -> bool:
    for log, _ in batches:  # noqa: SIM110 - any() takes three times as long
        if log.config.dedup_ms is not None:
            return True
    return False


class RowPlace(NamedTuple):
    """Where one record of an append is."""

    offset: int
    append_ms: int
    duplicate: bool


class Placed(NamedTuple):
    """Where the records of one batch are."""

    log: Log
    base_offset: int
    """Of what was written; -1 if all were there already."""
    written: EncodedBatch | None
    """What was."""
    rows: Sequence[RowPlace] | None
    """None: the whole batch was written, from base_offset on."""

    @property
    def end(self) -> int:
        """One past the last offset of its records."""
        if self.rows is not None:
            return max(place.offset for place in self.rows) + 1
        assert self.written is not None
        return self.base_offset + self.written.last_offset_delta + 1


def metadata_of(placed: Placed, timestamp_ms: int) -> RecordMetadata:
    """What to tell of a batch of one record, given at `timestamp_ms`."""
    log = placed.log
    if placed.rows is None:
        return RecordMetadata(log.topic, log.partition, placed.base_offset, timestamp_ms)
    (place,) = placed.rows
    return DuplicateMetadata(log.topic, log.partition, place.offset, place.append_ms)


def stamp_of(encoded: EncodedBatch, now_ms: int) -> int:
    """The timestamp of the record of a batch of one, appended at `now_ms`."""
    return now_ms if encoded.flags & APPEND_TIME else encoded.min_timestamp_ms


class _Part:
    """A batch, and what of it is still to be written."""

    def __init__(self, log: Log, encoded: EncodedBatch) -> None:
        self.log = log
        self.encoded: EncodedBatch | None = encoded
        self.whole = encoded
        self.rows: Sequence[int] = range(encoded.record_count)
        self.known: dict[int, Place | Same] = {}

    def leave_out(self, found: dict[int, Place | Same]) -> None:
        """Encode again without the rows found, which are counted as they are now."""
        self.known |= {self.rows[row]: place for row, place in found.items()}
        self.rows = [each for row, each in enumerate(self.rows) if row not in found]
        self.encoded = _with_rows(self.log, self.whole, self.rows) if self.rows else None


def append_once(
    engine: Appending,
    batches: Sequence[tuple[Log, EncodedBatch]],
    *,
    transaction_id: int = 0,
    guard: AppendGuard | None = None,
) -> tuple[list[Placed], int]:
    """As `Engine.append`, without the records whose ids are there already; where all are.

    What is told of a duplicate is neither durable nor visible before `Engine.acknowledge`.

    Raises:
        ConflictError: A transaction that is open has written a record with one of the ids.
        UsageError: An id is too long.
    """
    if not _looks_at_ids(batches):
        try:
            offsets, now_ms = engine.append(batches, transaction_id=transaction_id, guard=guard)
        except (DuplicateIdsError, _OpenTransactionError):
            pass  # the topic was configured to do so just now
        else:
            pairs = zip(batches, offsets, strict=True)
            return [Placed(log, base, encoded, None) for (log, encoded), base in pairs], now_ms
    return _append_new(engine, batches, transaction_id, guard)


def _append_new(
    engine: Appending,
    batches: Sequence[tuple[Log, EncodedBatch]],
    transaction_id: int,
    guard: AppendGuard | None,
) -> tuple[list[Placed], int]:
    parts = [_Part(log, encoded) for log, encoded in batches]
    deadline = engine.clock.monotonic() + WAIT_SECONDS
    while True:
        rest = [part for part in parts if part.encoded is not None]
        pairs = [(part.log, part.encoded) for part in rest if part.encoded is not None]
        if not pairs:
            return _placed(parts, {}, 0), engine.clock.now_ms()
        try:
            offsets, now_ms = engine.append(pairs, transaction_id=transaction_id, guard=guard)
        except DuplicateIdsError as error:
            _leave_out(parts, rest, error.found)
        except _OpenTransactionError as error:
            _wait_for(engine, error, deadline)
        else:
            bases = {id(part): base for part, base in zip(rest, offsets, strict=True)}
            return _placed(parts, bases, now_ms), now_ms


def _leave_out(
    parts: Sequence[_Part], rest: Sequence[_Part], found: Sequence[dict[int, Place | Same]]
) -> None:
    numbers = [number for number, part in enumerate(parts) if part in rest]
    before = [part.rows for part in rest]
    for part, duplicates in zip(rest, found, strict=True):
        part.leave_out(
            {
                row: Same(numbers[place.batch], before[place.batch][place.row])
                if isinstance(place, Same)
                else place
                for row, place in duplicates.items()
            }
        )


def _wait_for(engine: Appending, error: _OpenTransactionError, deadline: float) -> None:
    """Until the transaction that has written an id is decided, or for a moment."""
    transaction, place = error.undecided
    states = engine.transactions
    while states.state(transaction) == "open":
        if states.abort_if_lost(transaction, place.append_ms):
            return
        if engine.clock.monotonic() >= deadline:
            raise ConflictError(
                "a transaction that is open has written a record with this record-id: try again"
                " when it has ended",
                topic=error.log.topic,
                partition=error.log.partition,
                offset=place.offset,
            )
        engine.clock.sleep(_PAUSE_SECONDS)


def _placed(parts: Sequence[_Part], bases: dict[int, int], now_ms: int) -> list[Placed]:
    """The outcome of each batch."""
    places: list[dict[int, RowPlace]] = []
    for part in parts:
        base = bases.get(id(part), -1)
        rows = part.rows if part.encoded is not None and part.known else ()
        written = {row: RowPlace(base + index, now_ms, False) for index, row in enumerate(rows)}
        places.append(written)

    def place_of(known: Place | Same) -> RowPlace:
        if isinstance(known, Place):
            return RowPlace(known.offset, known.append_ms, True)
        first = parts[known.batch]
        other = places[known.batch].get(known.row)
        if other is None and known.row in first.known:
            return place_of(first.known[known.row])
        if other is None:  # of a batch that was written as a whole
            other = RowPlace(bases[id(first)] + known.row, now_ms, False)
        return other._replace(duplicate=True)

    outcome = []
    for part, written in zip(parts, places, strict=True):
        base = bases.get(id(part), -1)
        if not part.known:
            outcome.append(Placed(part.log, base, part.encoded, None))
            continue
        count = part.whole.record_count
        all_rows = [written.get(row) or place_of(part.known[row]) for row in range(count)]
        outcome.append(Placed(part.log, base, part.encoded, all_rows))
    return outcome


# --- batches that have no place yet ---------------------------------------------------------------

_NOWHERE: Final = BatchPlacement(1, 1, 0, 0, 0, 0, 1, 0, NO_TIMESTAMP)


def _opened(log: Log, encoded: EncodedBatch) -> RecordBatch:
    header, _ = seal(encoded, _NOWHERE)
    body = b"".join(body_buffers(encoded))
    parsed = parse_header(header, 0, _NOWHERE.segment_uid)
    return decode_batch(log.topic, log.partition, parsed, body, verified=True)


def _with_rows(log: Log, encoded: EncodedBatch, rows: Iterable[int]) -> EncodedBatch:
    """Encode some rows of a batch."""
    batch, chosen = _opened(log, encoded), list(rows)
    keys = batch.keys if encoded.flags & HAS_KEYS else None
    stamps = None if encoded.flags & APPEND_TIME else batch.timestamps_ms
    headers, values = batch.headers, batch.values
    return encode_values(
        log.config,
        [values[row] for row in chosen],
        None if keys is None else [keys[row] for row in chosen],
        None if stamps is None else [stamps[row] for row in chosen],
        [headers[row] for row in chosen],
    )
