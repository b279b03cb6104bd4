"""Is this batch's transaction committed, aborted or still open? What every reader asks.

A transaction id is owner << 32 | number. An owner decides its transactions in order, so the
catalog keeps one row per owner (the last decided number) and the few aborted ones, and committing
an epoch costs one SQLite commit. Decided states never change, so they are cached; the word
`transactions_version` says when it is worth asking again about an open one.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from .catalog import Catalog, OwnerState
from .clock import Clock
from .errors import DataError
from .liveness import Liveness
from .tail import Tail

TransactionState: TypeAlias = Literal["committed", "aborted", "open"]

NUMBER_BITS: Final = 32
LIVENESS_INTERVAL_SECONDS: Final = 0.2
"""How often a reader that waits for an open transaction asks whether its owner still lives."""


def transaction_id(owner_id: int, number: int) -> int:
    """The id written into batches.

    >>> transaction_id(3, 7) == 3 << 32 | 7
    True
    """
    return owner_id << NUMBER_BITS | number


class TransactionStates:
    """Answers with one dictionary lookup in the common case. Thread-safe."""

    def __init__(self, catalog: Catalog, tail: Tail, liveness: Liveness, clock: Clock) -> None:
        self._catalog = catalog
        self._read_only = catalog.database.read_only
        self._tail = tail
        self._liveness = liveness
        self._clock = clock
        self._owners: dict[int, tuple[int, OwnerState]] = {}
        self._checked: dict[int, float] = {}

    def state(self, transaction: int) -> TransactionState:
        """State of a transaction id found in a batch (not 0).

        Raises:
            DataError: The catalog knows nothing of its owner: it is older than the log.
        """
        owner_id, number = transaction >> NUMBER_BITS, transaction & 0xFFFF_FFFF
        cached = self._owners.get(owner_id)
        if cached is None or number > cached[1].decided:
            version = self._tail.get("transactions_version")
            if cached is None or cached[0] != version:
                state = self._catalog.owner(owner_id)
                if state is None:
                    raise DataError(
                        f"the log holds transaction {number} of owner {owner_id}, which the"
                        " catalog does not know: catalog.db is older than the log. Restore both"
                        " from the same backup",
                        path="catalog.db",
                    )
                cached = (version, state)
                self._owners[owner_id] = cached
            if number > cached[1].decided:
                return "open"
        return "aborted" if number in cached[1].aborted else "committed"

    def abort_if_dead(self, transaction: int) -> bool:
        """Abort an open transaction whose owner died; asks at most every 200 ms.

        True if the transaction is decided now, by this call or by an owner that died, or will,
        between deciding and saying so. A read-only store only looks.
        """
        owner_id, number = transaction >> NUMBER_BITS, transaction & 0xFFFF_FFFF
        now = self._clock.monotonic()
        if now < self._checked.get(owner_id, 0.0):
            return False
        self._checked[owner_id] = now + LIVENESS_INTERVAL_SECONDS
        owner = self._catalog.owner(owner_id)
        if owner is not None and owner.decided >= number:
            self._owners.pop(owner_id, None)
            return True
        if owner is None or self._read_only or self._liveness.is_alive(owner.lock_path):
            return False
        self._catalog.abort_dead_owner(owner_id, number)
        self._liveness.bury(owner.lock_path)
        self._tail.bump("transactions_version")
        return True
