"""Owners of transactions in the catalog: who they are, and what others have to know about them.

A helper of catalog.py: speaks SQL, over the same `Database`. What owners have decided is in
catalog.py. What is asked of a database of the user's is `decisions.py`.

Whoever acquires a name is a new owner, with a random id. So its transactions never have the id of
others, even if the catalog has lost those who had the name or the number before; what the log
holds of them is known to be of nobody. See docs/decisions/0024.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

from .catalog import Catalog, GroupOffset
from .queue_ranges import Lease
from .sql_values import Row, as_int, as_text

NUMBER_BITS: Final = 32
NUMBERS_MAX: Final = (1 << NUMBER_BITS) - 1
"""Of ids of owners, and of transactions of one."""

_logger = logging.getLogger("millstream")


class OwnerRow(NamedTuple):
    """A transaction owner just acquired: its next transaction is number `decided + 1`."""

    id: int
    epoch: int
    decided: int


class DatabasePlace(NamedTuple):
    """A database that transactions of an owner write rows to."""

    path: str
    """Absolute."""
    uid: str
    """Identity that is in the file."""
    process_path: str
    """Lock file of the process that writes."""


class OwnerDatabase(NamedTuple):
    """A database that tells what became of the transactions of an owner."""

    owner_id: int
    decided: int
    lock_path: str
    """Lock file of the owner."""
    place: DatabasePlace
    mark: str
    """What the owner is called in that file."""


class Outcome(NamedTuple):
    """What a transaction with rows in a database does in the catalog."""

    offsets: Sequence[tuple[GroupOffset, int | None]]
    """Each with what was committed before."""
    checkpoints: dict[str, bytes]
    jobs: Sequence[Lease] = ()
    """Of queues, which are acked."""


class OwnerCatalog:
    """The owners in one catalog, and their terms. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._database = catalog.database

    def any(self) -> bool:
        """Whether anybody has ever begun a transaction."""
        return bool(self._database.query("SELECT 1 FROM owners LIMIT 1"))

    # --- owners --------------------------------------------------------------------------------

    def acquire(self, name: str, lock_path: str, *, pid: int = 0) -> OwnerRow:
        """Become the owner `name`, fencing whoever was it before.

        On take-over the transaction the former owner may have left open is aborted. That the
        former owner is dead, or is to be fenced, is for the caller to know, who holds the lock.
        """
        with self._database.transaction(f"acquire owner {name}"):
            rows = self._database.query("SELECT id, epoch FROM owners WHERE name = ?", (name,))
            epoch = as_int(rows[0][1]) if rows else 0
            if rows:
                self._replace(as_int(rows[0][0]))
            owner = OwnerRow(self._unused_id(), epoch + 1, 0)
            self._database.query(
                "INSERT INTO owners (id, name, epoch, decided, lock_path, pid)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (owner.id, name, owner.epoch, owner.decided, lock_path, pid),
            )
        return owner

    def _replace(self, former: int) -> None:
        """Close a former owner, and give its name free."""
        closed = self._database.query(
            "UPDATE owners SET decided = decided + 1, lock_path = ''"
            " WHERE id = ? AND lock_path <> '' RETURNING decided",
            (former,),
        )
        if closed:
            self._catalog.mark_aborted(former, as_int(closed[0][0]))
        self._database.query(
            "UPDATE owners SET name = name || char(10) || id, epoch = epoch + 1 WHERE id = ?",
            (former,),
        )

    def _unused_id(self) -> int:
        while True:
            owner_id = secrets.randbelow(NUMBERS_MAX) + 1
            if not self._database.query("SELECT 1 FROM owners WHERE id = ?", (owner_id,)):
                return owner_id

    def abort_dead(self, owner_id: int, number: int) -> bool:
        """Abort open transaction `number` of an owner seen dead, and close it; a zombie is fenced.

        Returns False, changing nothing, if the transaction has been decided in the meantime.
        """
        with self._database.transaction("abort a dead owner's transaction"):
            changed = self._database.query(
                "UPDATE owners SET epoch = epoch + 1, decided = ?, lock_path = ''"
                " WHERE id = ? AND decided = ? AND lock_path <> '' RETURNING id",
                (number, owner_id, number - 1),
            )
            if changed:
                self._catalog.mark_aborted(owner_id, number)
        return bool(changed)

    # --- terms ---------------------------------------------------------------------------------

    def set_terms(
        self, owner_id: int, timeout_ms: int | None, place: DatabasePlace | None = None
    ) -> None:
        """Say what holds for its transactions; nothing is written if it is said already.

        Args:
            owner_id: Of which owner; no transaction of it is open.
            timeout_ms: How long they may be open; None: as long as it lives.
            place: The database they write rows to.
        """
        if self.timeout_ms(owner_id) != timeout_ms:
            with self._database.transaction("set the terms of an owner"):
                self._database.query(
                    "INSERT INTO owner_terms (owner_id, timeout_ms) VALUES (?, ?)"
                    " ON CONFLICT (owner_id) DO UPDATE SET timeout_ms = excluded.timeout_ms",
                    (owner_id, timeout_ms),
                )
        found = self.database(owner_id)
        if (found and found.place) == place:
            return
        with self._database.transaction("set the database of an owner"):
            self.forget_database(owner_id)
            if place is not None:
                self._database.query(
                    "INSERT INTO owner_databases (owner_id, path, uid, mark, process_path)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (owner_id, place.path, place.uid, secrets.token_hex(16), place.process_path),
                )

    def timeout_ms(self, owner_id: int) -> int | None:
        """How long its transactions may be open; None: as long as it lives."""
        rows = self._database.query(
            "SELECT timeout_ms FROM owner_terms WHERE owner_id = ?", (owner_id,)
        )
        return as_int(rows[0][0]) if rows and rows[0][0] is not None else None

    def database(self, owner_id: int) -> OwnerDatabase | None:
        """The database its transactions write rows to."""
        rows = self._databases("WHERE owner_id = ?", owner_id)
        return rows[0] if rows else None

    def databases(self) -> list[OwnerDatabase]:
        """Of all owners that have one."""
        return self._databases("ORDER BY owner_id")

    def _databases(self, which: str, *bindings: int) -> list[OwnerDatabase]:
        rows = self._database.query(
            "SELECT owner_id, decided, lock_path, path, uid, process_path, mark"  # noqa: S608 - ours
            f" FROM owner_databases JOIN owners ON owners.id = owner_id {which}",
            bindings,
        )
        return [_owner_database(row) for row in rows]

    # --- inside a transaction of the catalog ---------------------------------------------------

    def forget_database(self, owner_id: int) -> None:
        """Its transactions write rows nowhere any more."""
        self._database.query("DELETE FROM owner_databases WHERE owner_id = ?", (owner_id,))

    def is_next(self, owner_id: int, number: int) -> bool:
        """Whether a transaction is the next of its owner to be decided."""
        return bool(
            self._database.query(
                "SELECT 1 FROM owners WHERE id = ? AND decided = ?", (owner_id, number - 1)
            )
        )

    def decide(self, owner_id: int, number: int, *, committed: bool, fence: bool) -> None:
        """Enter what became of the next transaction; `fence` closes the owner, too."""
        self._database.query("UPDATE owners SET decided = ? WHERE id = ?", (number, owner_id))
        if fence:
            self._database.query(
                "UPDATE owners SET epoch = epoch + 1, lock_path = '' WHERE id = ?", (owner_id,)
            )
        if not committed:
            self._catalog.mark_aborted(owner_id, number)

    def write(self, offsets: Sequence[GroupOffset]) -> list[tuple[GroupOffset, int | None]]:
        """As `Catalog.write_group_offsets`; returns them, each with what was committed before."""
        before = [(offset, self._committed(offset)) for offset in offsets]
        self._catalog.write_group_offsets(offsets)
        return before

    def write_again(self, outcome: Outcome) -> None:
        """Do what a commit was about to do when its process died.

        An offset that somebody has committed since stays, and so does what was deleted.
        """
        for offset, before in outcome.offsets:
            known = self._database.query(
                "SELECT 1 FROM partitions WHERE topic_id = ? AND partition = ?",
                (offset.topic_id, offset.partition),
            )
            if not known or self._committed(offset) != before:
                _logger.warning(
                    "offset %d of group %r, of a transaction whose process died, is left out:"
                    " the topic was deleted, or another one committed since",
                    *(offset.offset, offset.group),
                )
                continue
            self._catalog.write_group_offsets([offset])
        for name, data in outcome.checkpoints.items():
            self._database.query(
                "INSERT INTO checkpoints (name, data) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET data = excluded.data",
                (name, data),
            )

    def _committed(self, offset: GroupOffset) -> int | None:
        rows = self._database.query(
            "SELECT committed_offset FROM group_partitions"
            " WHERE group_name = ? AND topic_id = ? AND partition = ?",
            (offset.group, offset.topic_id, offset.partition),
        )
        return as_int(rows[0][0]) if rows and rows[0][0] is not None else None


def _owner_database(row: Row) -> OwnerDatabase:
    owner_id, decided, lock_path, path, uid, process_path, mark = row
    place = DatabasePlace(as_text(path), as_text(uid), as_text(process_path))
    return OwnerDatabase(
        as_int(owner_id), as_int(decided), as_text(lock_path), place, as_text(mark)
    )
