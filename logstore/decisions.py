"""What became of a transaction whose owner did not say so: aborted, or as the user's database says.

Most open transactions of a dead owner are aborted. One that wrote rows to a database of the user's
is committed if that file says so (`user_transaction.py`): then what it does in the catalog is done
now, from what its process wrote beside the decision. The question is asked with the catalog locked.
An owner that lives commits its rows under the same lock, so the answer cannot change any more.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from xxhash import xxh3_64_digest

from .catalog import Catalog, GroupOffset
from .clock import Clock
from .database_errors import BUSY_TIMEOUT_SECONDS
from .database_file import exists
from .errors import DataError, LockedError, MillstreamError, UndecidedError
from .liveness import Liveness
from .owner_catalog import Outcome, OwnerCatalog, OwnerDatabase, OwnerRow
from .queue_catalog import QueueCatalog
from .queue_ranges import Lease, Range
from .tail import Tail
from .user_transaction import UserTransaction

Decided: TypeAlias = Literal["committed", "aborted"]

_HASH_BYTES: Final = 8
_RETRY_SECONDS: Final = 0.01

_logger = logging.getLogger("millstream")


class _Stored(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The data of a decision."""

    version: Literal[1, 2]
    offsets: list[tuple[str, int, int, int, int | None]]
    """Group, id of the topic, partition, next offset, and what was committed before."""
    checkpoints: dict[str, bytes]
    jobs: list[tuple[int, int, int, int, int, int]] = []
    """Queue, worker, partition, first offset, the one behind the last, deliveries. Version 2."""


_decode: Final = msgspec.msgpack.Decoder(_Stored).decode


def encode_outcome(outcome: Outcome) -> bytes:
    """The data of a decision; see docs/log-format.md."""
    offsets = [
        (offset.group, offset.topic_id, offset.partition, offset.offset, before)
        for offset, before in outcome.offsets
    ]
    stored: tuple[object, ...] = (1, offsets, outcome.checkpoints)
    if outcome.jobs:  # without them it can be read by whoever knows the first version only
        jobs = [(queue_id, worker_id, *span) for queue_id, worker_id, span in outcome.jobs]
        stored = (2, offsets, outcome.checkpoints, jobs)
    data = msgspec.msgpack.encode(stored)
    return data + xxh3_64_digest(data)


def decode_outcome(data: bytes, path: str) -> Outcome:
    """Read it again.

    Raises:
        DataError: It is damaged, or of a newer version.
    """
    content, digest = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
    if xxh3_64_digest(content) != digest:
        raise DataError("a decision in the database fails its checksum: restore it", path=path)
    try:
        stored = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"a decision in the database makes no sense: {error}", path=path) from None
    offsets = [(GroupOffset(*each[:4]), each[4]) for each in stored.offsets]
    jobs = [Lease(*each[:2], Range(*each[2:])) for each in stored.jobs]
    return Outcome(offsets, stored.checkpoints, jobs)


class Decisions:
    """Decides open transactions of others. Thread-safe."""

    def __init__(self, catalog: Catalog, tail: Tail, liveness: Liveness, clock: Clock) -> None:
        self._catalog = catalog
        self._owners = OwnerCatalog(catalog)
        self._queues = QueueCatalog(catalog)
        self._tail = tail
        self._liveness = liveness
        self._clock = clock
        self._complained: set[tuple[int, str]] = set()

    def settle(self, owner_id: int, number: int, *, fence: bool = True) -> Decided:
        """Decide a transaction, unless it is, and say what became of it.

        Args:
            owner_id: Its owner, which is dead or to be fenced.
            number: Its number.
            fence: Whether the owner must not go on.

        Raises:
            UndecidedError: The database that knows is not there. Nothing was changed.
            LockedError: It is locked just now.
            DataError, StorageError: It cannot be read.
        """
        asked = self._owners.database(owner_id)
        if asked is None:
            self._owners.abort_dead(owner_id, number)
        else:
            self._ask(asked, number, fence=fence, abort=True)
        self._tail.bump("transactions_version")
        owner = self._catalog.owner(owner_id)
        return "aborted" if owner is None or number in owner.aborted else "committed"

    def _ask(self, asked: OwnerDatabase, number: int, *, fence: bool, abort: bool) -> None:
        rows = self._open(asked)
        try:
            with self._catalog.database.transaction("decide a transaction as a database says"):
                if not self._owners.is_next(asked.owner_id, number):
                    return
                decision = rows.decision(asked.mark)
                committed = decision is not None and decision.number == number
                if not committed and not abort:
                    return
                if decision is not None and committed:
                    outcome = decode_outcome(decision.data, rows.path)
                    rows.make_durable(asked.mark)
                    self._owners.write_again(outcome)
                    self._queues.settle_again(outcome.jobs)
                self._owners.decide(asked.owner_id, number, committed=committed, fence=fence)
                if fence:
                    self._owners.forget_database(asked.owner_id)
            if fence and decision is not None:
                # Not needed any more; if it stays there, it does no harm.
                with contextlib.suppress(MillstreamError):
                    rows.forget(asked.mark, number)
        finally:
            rows.close()

    def _open(self, asked: OwnerDatabase) -> UserTransaction:
        path = asked.place.path
        if not exists(path):
            raise _undecided("is not there", path)
        rows = UserTransaction(path, clock=self._clock)
        try:
            rows.wait_for_nobody()
            # Here SQLite undoes what a crash has left half done, before the catalog is locked.
            uid = rows.uid()
        except BaseException:
            rows.close()
            raise
        if uid != asked.place.uid:
            rows.close()
            raise _undecided("is another one now", path)
        return rows

    def let_go(self, owner_id: int, decided: int) -> None:
        """Forget the database of an owner of which nothing is open, and what is there of it."""
        asked = self._owners.database(owner_id)
        if asked is None:
            return
        with self._catalog.database.transaction("let go of a database", durable=False):
            self._owners.forget_database(owner_id)
        with contextlib.closing(self._open(asked)) as rows:
            rows.forget(asked.mark, decided)

    def settle_dead(self, *, living: bool = False) -> set[str]:
        """Decide what owners with a database have left that are dead.

        Returns the lock files of the processes of those of which that was not possible; a message
        in the log says why.

        Args:
            living: Also do what the database says was committed by owners that live and could not
                do it. What they have not committed stays open.
        """
        left: set[str] = set()
        if self._catalog.database.read_only:
            return left
        for asked in self._owners.databases():
            alive = self._liveness.is_alive(asked.lock_path)
            if alive and not living:
                continue
            try:
                if alive:
                    self._ask(asked, asked.decided + 1, fence=False, abort=False)
                    self._tail.bump("transactions_version")
                else:
                    self.settle(asked.owner_id, asked.decided + 1)
            except MillstreamError as error:
                self.complain(asked.owner_id, error)
                left.add(asked.place.process_path)
        return left

    def in_doubt(self) -> set[str]:
        """Lock files of processes that may have committed rows, and not what goes with them.

        Inside a transaction of the catalog, so that nobody does while it lasts.
        """
        doubtful: set[str] = set()
        for asked in self._owners.databases():
            try:
                with contextlib.closing(self._open(asked)) as rows:
                    decision = rows.decision(asked.mark)
            except MillstreamError:
                doubtful.add(asked.place.process_path)
                continue
            if decision is not None and decision.number == asked.decided + 1:
                doubtful.add(asked.place.process_path)
        return doubtful

    def complain(self, owner_id: int, error: MillstreamError) -> None:
        """Say in the log, once, why a transaction of an owner stays open."""
        complaint = owner_id, type(error).__name__
        if complaint not in self._complained and not isinstance(error, LockedError):
            self._complained.add(complaint)
            _logger.warning("a transaction stays open: %s", error)

    def acquire(self, name: str, lock_path: str, pid: int) -> OwnerRow:
        """As `OwnerCatalog.acquire`; what the former owner left open is decided first.

        Raises:
            UndecidedError, LockedError, DataError, StorageError: As `settle`.
        """
        former = self._catalog.owner_named(name)
        if former is not None and self._owners.database(former.id) is not None:
            self._wait_and_settle(former.id, former.decided + 1)
        return self._owners.acquire(name, lock_path, pid=pid)

    def _wait_and_settle(self, owner_id: int, number: int) -> None:
        deadline = self._clock.monotonic() + BUSY_TIMEOUT_SECONDS
        while True:
            try:
                self.settle(owner_id, number)
            except LockedError:
                if self._clock.monotonic() >= deadline:
                    raise
                self._clock.sleep(_RETRY_SECONDS)
            else:
                return

    def abandon(self, path: str) -> int:
        """Abort the open transactions of dead owners that hang on a lost database; how many."""
        lost: Sequence[OwnerDatabase] = [
            asked
            for asked in self._owners.databases()
            if asked.place.path == path and not self._liveness.is_alive(asked.lock_path)
        ]
        count = 0
        for asked in lost:
            with self._catalog.database.transaction("give up a transaction"):
                number = asked.decided + 1
                if self._owners.is_next(asked.owner_id, number):
                    self._owners.decide(asked.owner_id, number, committed=False, fence=True)
                    self._owners.forget_database(asked.owner_id)
                    count += 1
        self._tail.bump("transactions_version")
        return count


def _undecided(what: str, path: str) -> UndecidedError:
    return UndecidedError(
        f"the database {what} that knows what became of a transaction: put it back where it was,"
        " or, if it is lost for good, give the transaction up with `millstream repair"
        " --lost-database`",
        path=path,
    )
