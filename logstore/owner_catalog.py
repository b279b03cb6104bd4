"""What others have to know about the transactions of an owner, in the catalog.

A helper of catalog.py: speaks SQL, over the same `Database`. Owners themselves, and what they have
decided, are in catalog.py.
"""

from __future__ import annotations

from .catalog import Catalog
from .database import as_int


class OwnerCatalog:
    """The terms of owners in one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._database = catalog.database

    def any(self) -> bool:
        """Whether anybody has ever begun a transaction."""
        return bool(self._database.query("SELECT 1 FROM owners LIMIT 1"))

    def set_terms(self, owner_id: int, timeout_ms: int | None) -> None:
        """Say how long its transactions may be open; nothing is written if it is said already."""
        if self.timeout_ms(owner_id) == timeout_ms:
            return
        with self._database.transaction("set the terms of an owner"):
            self._database.query(
                "INSERT INTO owner_terms (owner_id, timeout_ms) VALUES (?, ?)"
                " ON CONFLICT (owner_id) DO UPDATE SET timeout_ms = excluded.timeout_ms",
                (owner_id, timeout_ms),
            )

    def timeout_ms(self, owner_id: int) -> int | None:
        """How long its transactions may be open; None: as long as it lives."""
        rows = self._database.query(
            "SELECT timeout_ms FROM owner_terms WHERE owner_id = ?", (owner_id,)
        )
        return as_int(rows[0][0]) if rows and rows[0][0] is not None else None
