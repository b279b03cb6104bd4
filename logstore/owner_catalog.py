"""What others have to know about the transactions of an owner, in the catalog.

A helper of catalog.py: speaks SQL, over the same `Database`. Owners themselves, and what they have
decided, are in catalog.py. What is asked of a database of the user's is `decisions.py`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from .catalog import Catalog, GroupOffset
from .database import Row, as_int, as_text

_logger = logging.getLogger("millstream")


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


class OwnerCatalog:
    """The terms of owners in one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._database = catalog.database

    def any(self) -> bool:
        """Whether anybody has ever begun a transaction."""
        return bool(self._database.query("SELECT 1 FROM owners LIMIT 1"))

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
        """Enter what became of the next transaction; `fence` the owner, or let it go on."""
        self._database.query(
            "UPDATE owners SET decided = ?, epoch = epoch + ? WHERE id = ?",
            (number, int(fence), owner_id),
        )
        if not committed:
            self._database.query(
                "INSERT INTO aborted (owner_id, number) VALUES (?, ?)", (owner_id, number)
            )

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
