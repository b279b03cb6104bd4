"""How far each partition has been compacted, in the catalog. Nothing here touches a segment.

A lost or lower value costs a compaction that looks at more than it needs to.
"""

from __future__ import annotations

from .catalog import Catalog
from .sql_values import as_int


class CompactionCatalog:
    """The clean offsets of one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._database = catalog.database

    def clean_offset(self, topic_id: int, partition: int, purpose: str) -> int:
        """Below it all has been compacted for this very purpose; 0 if nothing has."""
        rows = self._database.query(
            "SELECT clean_offset FROM compactions"
            " WHERE topic_id = ? AND partition = ? AND purpose = ?",
            (topic_id, partition, purpose),
        )
        return as_int(rows[0][0]) if rows else 0

    def set_clean_offset(self, topic_id: int, partition: int, purpose: str, offset: int) -> None:
        """Remember it. Nothing happens if the topic was deleted."""
        with self._database.transaction("remember a compaction"):
            self._database.query(
                "INSERT INTO compactions (topic_id, partition, purpose, clean_offset)"
                " SELECT id, ?2, ?3, ?4 FROM topics WHERE id = ?1"
                " ON CONFLICT (topic_id, partition)"
                " DO UPDATE SET purpose = excluded.purpose, clean_offset = excluded.clean_offset",
                (topic_id, partition, purpose, offset),
            )
