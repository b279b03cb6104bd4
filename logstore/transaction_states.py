"""Is this batch's transaction committed, aborted or still open? What every reader asks.

A transaction id is owner << 32 | number. An owner decides its transactions in order, so the
catalog keeps one row per owner (the last decided number) and the few aborted ones, and committing
an epoch costs one SQLite commit. Decided states never change, so they are cached; the word
`transactions_version` says when it is worth asking again about an open one.
"""

from __future__ import annotations

import logging
from typing import Final, Literal, TypeAlias

from .catalog import Catalog, OwnerState
from .catalog_age import check_transaction
from .clock import Clock
from .decisions import Decisions
from .errors import DataError, UnavailableError
from .liveness import Liveness
from .owner_catalog import NUMBER_BITS, NUMBERS_MAX, OwnerCatalog
from .tail import Tail

TransactionState: TypeAlias = Literal["committed", "aborted", "open"]

LIVENESS_INTERVAL_SECONDS: Final = 0.2
"""How often a reader that waits for an open transaction asks whether its owner still lives."""

CONFIRM_SECONDS: Final = 1.0
"""For how long a transaction is seen to be overdue before it is aborted."""
_OVERDUE_MAX: Final = 1000

_logger = logging.getLogger("millstream")


def transaction_id(owner_id: int, number: int) -> int:
    """The id written into batches.

    Raises:
        DataError: One of the numbers is not of 32 bits; ids would be those of others.

    >>> transaction_id(3, 7) == 3 << 32 | 7
    True
    """
    if not (0 <= owner_id <= NUMBERS_MAX and 0 <= number <= NUMBERS_MAX):
        raise DataError(
            f"owner {owner_id} cannot begin its transaction {number}: there are {NUMBERS_MAX}"
            " owners, with as many transactions each. Acquire its name again"
        )
    return owner_id << NUMBER_BITS | number


class TransactionStates:
    """Answers with one dictionary lookup in the common case. Thread-safe."""

    def __init__(
        self,
        catalog: Catalog,
        tail: Tail,
        liveness: Liveness,
        decisions: Decisions,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._decisions = decisions
        self._read_only = catalog.database.read_only
        self._tail = tail
        self._liveness = liveness
        self._clock = clock
        self._owners: dict[int, tuple[int, OwnerState]] = {}
        self._checked: dict[int, float] = {}
        self._terms = OwnerCatalog(catalog)
        self._overdue: dict[int, float] = {}
        """Since when transactions were seen to be open for too long."""

    def state(self, transaction: int) -> TransactionState:
        """State of a transaction id found in a batch (not 0).

        Raises:
            DataError: The catalog is older than the log: it does not know the owner, or not that
                it has decided what came before.
        """
        owner_id, number = transaction >> NUMBER_BITS, transaction & NUMBERS_MAX
        cached = self._owners.get(owner_id)
        if cached is None or number > cached[1].decided:
            version = self._tail.get("transactions_version")
            if cached is None or cached[0] != version or number > cached[1].last_possible:
                state = self._catalog.owner(owner_id)
                check_transaction(owner_id, number, state and state.last_possible)
                assert state is not None
                cached = (version, state)
                self._owners[owner_id] = cached
            if number > cached[1].decided:
                return "open"
        return "aborted" if number in cached[1].aborted else "committed"

    def abort_if_lost(self, transaction: int, began_ms: int) -> bool:
        """Abort an open transaction whose owner died or is stuck; asks at most every 200 ms.

        True if the transaction is decided now, by this call or by an owner that died, or will,
        between deciding and saying so. A read-only store only looks.

        Args:
            transaction: Its id.
            began_ms: When a batch of it was written, UTC milliseconds.
        """
        owner_id, number = transaction >> NUMBER_BITS, transaction & NUMBERS_MAX
        now = self._clock.monotonic()
        if now < self._checked.get(owner_id, 0.0):
            return False
        self._checked[owner_id] = now + LIVENESS_INTERVAL_SECONDS
        owner = self._catalog.owner(owner_id)
        if owner is not None and owner.decided >= number:
            self._owners.pop(owner_id, None)
            self._overdue.pop(transaction, None)
            return True
        if owner is None or self._read_only:
            return False
        alive = self._liveness.is_alive(owner.lock_path)
        if alive and not self._is_stuck(owner, transaction, began_ms):
            return False
        try:
            self._decisions.settle(owner_id, number)
        except UnavailableError as error:
            self._decisions.complain(owner_id, error)
            return False
        if not alive:
            self._liveness.bury(owner.lock_path)
        return True

    def _is_stuck(self, owner: OwnerState, transaction: int, began_ms: int) -> bool:
        """Whether a live owner has kept a transaction open for longer than it may."""
        timeout_ms = self._terms.timeout_ms(owner.id)
        open_ms = self._clock.now_ms() - began_ms
        if timeout_ms is None or open_ms <= timeout_ms:
            return False
        # The wall clock may have been set, or the machine have slept: then the owner gets a moment.
        now = self._clock.monotonic()
        if len(self._overdue) > _OVERDUE_MAX:
            self._overdue.clear()
        if now - self._overdue.setdefault(transaction, now) < CONFIRM_SECONDS:
            return False
        del self._overdue[transaction]
        _logger.warning(
            "aborted a transaction of process %d: it was open for %d s, its timeout is %g s",
            *(owner.pid, open_ms // 1000, timeout_ms / 1000),
        )
        return True
