"""Named producers and the snapshots of what they have written, in the catalog.

A helper of catalog.py: speaks SQL, over the same `Database`. What a snapshot holds is
`producer_states.py`; it is written in the same commit as the checkpoint of its log.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

from .catalog import Catalog, LogCheckpoint
from .database import as_bytes, as_int, as_number


class ProducerRow(NamedTuple):
    """A named producer that has just been opened."""

    id: int
    epoch: int
    created_ms: int
    """When the name was first used."""


class ProducerCatalog:
    """The producers in one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._database = catalog.database

    def open(self, name: str, pid: int) -> ProducerRow:
        """Raise the epoch of a producer, which fences whoever has it open, or enter a new one."""
        with self._database.transaction(f"open producer {name}"):
            rows = self._database.query(
                "UPDATE producers SET epoch = epoch + 1, pid = ? WHERE name = ?"
                " RETURNING id, epoch, created_ms",
                (pid, name),
            )
            if not rows:
                # Not counted: the batches of a catalog that was lost must never look like ours.
                rows = self._database.query(
                    "INSERT INTO producers (id, name, epoch, pid, created_ms)"
                    " VALUES (?, ?, 1, ?, ?) RETURNING id, epoch, created_ms",
                    (secrets.randbelow(2**63 - 1) + 1, name, pid, self._catalog.now_ms()),
                )
        number, epoch, created_ms = rows[0]
        return ProducerRow(
            as_number(number, 1 << 63), as_number(epoch, 1 << 32), as_int(created_ms)
        )

    def epoch(self, producer_id: int) -> tuple[int, int]:
        """Epoch of a producer and the process that opened it last; zeros if it was forgotten."""
        rows = self._database.query("SELECT epoch, pid FROM producers WHERE id = ?", (producer_id,))
        return (as_int(rows[0][0]), as_int(rows[0][1])) if rows else (0, 0)

    def forget(self, name: str) -> bool:
        """Remove a producer; whether there was one."""
        with self._database.transaction(f"forget producer {name}"):
            return bool(
                self._database.query("DELETE FROM producers WHERE name = ? RETURNING id", (name,))
            )

    def ids(self) -> set[int]:
        """Of all producers."""
        return {as_int(row[0]) for row in self._database.query("SELECT id FROM producers")}

    def snapshot(self, topic_id: int, partition: int) -> bytes | None:
        """The snapshot of a partition."""
        rows = self._database.query(
            "SELECT data FROM producer_states WHERE topic_id = ? AND partition = ?",
            (topic_id, partition),
        )
        return as_bytes(rows[0][0]) if rows else None

    def save_checkpoint(
        self, topic_id: int, partition: int, checkpoint: LogCheckpoint, snapshot: bytes
    ) -> None:
        """As `Catalog.save_checkpoint`, with the snapshot of the partition."""
        with self._database.transaction("save a log checkpoint"):
            self._catalog.write_checkpoint(topic_id, partition, checkpoint)
            self._database.query(
                "INSERT INTO producer_states (topic_id, partition, data)"
                " SELECT topic_id, partition, ? FROM partitions"
                " WHERE topic_id = ? AND partition = ?"
                " ON CONFLICT (topic_id, partition) DO UPDATE SET data = excluded.data",
                (snapshot, topic_id, partition),
            )
