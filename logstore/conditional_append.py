"""Append only if the log is as the caller believes: its end, or the last record of a key.

The condition is checked with the append lock held, so of several who append on the same condition
one gets through, over all processes. Everybody else gets a ConflictError that says how the log is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from .batch import EncodedBatch
from .errors import ConflictError, UsageError
from .format import HAS_KEYS
from .latest import LatestValues
from .log import Log
from .record import Record
from .tail import Slot

Match: TypeAlias = int | Record | Literal["absent"]
"""What the last record of a key must be: that at an offset, or none but a tombstone."""


class Condition:
    """Guards one append; see `AppendGuard`.

    Args:
        latest: Looks keys up; only for `match`.
        log: Where it goes.
        expected_offset: What the log end must be: the offset the first record will get.
        key: Of the record.
        match: What the last record of that key must be.
    """

    def __init__(
        self,
        latest: LatestValues,
        log: Log,
        *,
        expected_offset: int | None = None,
        key: bytes | None = None,
        match: Match | None = None,
    ) -> None:
        if expected_offset is not None and not _is_offset(expected_offset):
            raise UsageError(f"expected_offset must be an offset, not {expected_offset!r}")
        self._match = match.offset if isinstance(match, Record) else match
        if match is not None and match != "absent" and not _is_offset(self._match):
            raise UsageError(f"match must be an offset, a record or 'absent', not {match!r}")
        self._latest = latest
        self._log = log
        self._expected = expected_offset
        self._key = b"" if key is None else key
        if match is not None:
            if key is None:
                raise UsageError("match compares the last record of a key: give a key")
            # What is read now need not be read with the lock held.
            latest.find_in(log, key)

    def check_locked(self) -> None:
        """Raise ConflictError unless the log is as expected."""
        log = self._log
        log.prepare_locked()
        if self._expected is not None:
            end = log.slot[Slot.LOG_END]
            if end != self._expected:
                raise self._conflict(
                    f"expected the log to end at {self._expected}, but it ends at {end}", end
                )
        if self._match is not None:
            self._check_key()

    def _check_key(self) -> None:
        record, transaction = self._latest.last_locked(self._log, self._key)
        found = -1 if record is None else record.offset
        if transaction:
            raise self._conflict(
                f"an open transaction has written the key {self._key!r:.100} meanwhile", found
            )
        if self._match == "absent":
            right = record is None or record.value is None
        else:
            right = found == self._match
        if not right:
            last = "there is none" if record is None else f"it is at {found}"
            raise self._conflict(
                f"expected the last record of the key {self._key!r:.100} to be"
                f" {'absent' if self._match == 'absent' else f'at {self._match}'}, but {last}",
                found,
            )

    def _conflict(self, message: str, offset: int) -> ConflictError:
        log = self._log
        return ConflictError(message, topic=log.topic, partition=log.partition, offset=offset)

    def appended_locked(self, offsets: Sequence[int], now_ms: int) -> None:
        """Nothing has to be remembered."""


def condition_on(
    latest: LatestValues,
    batches: Sequence[tuple[Log, EncodedBatch]],
    partition: int | None,
    *,
    expected_offset: int | None,
    key: bytes | None = None,
    match: Match | None = None,
) -> Condition:
    """The condition on what batches are appended.

    Args:
        latest: Looks keys up.
        batches: As `Appender` has encoded them.
        partition: As the user has given it.
        expected_offset: As `Condition`, as for the rest.
        key: As there.
        match: As there.

    Raises:
        UsageError: They go to several partitions, to one in turn, or there is none.
    """
    log = _only_log(batches, partition)
    return Condition(latest, log, expected_offset=expected_offset, key=key, match=match)


def _only_log(batches: Sequence[tuple[Log, EncodedBatch]], partition: int | None) -> Log:
    if not batches:
        raise UsageError("a condition needs a record to append")
    log, encoded = batches[0]
    in_turn = partition is None and log.partitions > 1 and not encoded.flags & HAS_KEYS
    if len(batches) > 1 or in_turn:
        raise UsageError(
            "a condition is on one partition: give partition, or keys that belong to one",
            topic=log.topic,
        )
    return log


def _is_offset(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
