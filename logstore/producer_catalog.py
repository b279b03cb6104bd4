"""Named producers and the snapshots of what they have written, in the catalog.

A helper of catalog.py: speaks SQL, over the same `Database`. What a snapshot holds is
`producer_states.py`; it is written in the same commit as the checkpoint of its log.

The id of a producer follows from its name, so that a catalog which has lost the name gives it the
same id again, and its records are found: the log remembers what was sent. A name that is forgotten
leaves its row, under another name, so that it begins anew with another id.
"""

from __future__ import annotations

from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from .catalog import Catalog, LogCheckpoint
from .sql_values import as_bytes, as_int, as_number


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
                rows = self._database.query(
                    "INSERT INTO producers (id, name, epoch, pid, created_ms)"
                    " VALUES (?, ?, 1, ?, ?) RETURNING id, epoch, created_ms",
                    (self._unused_id(name), name, pid, self._catalog.now_ms()),
                )
        number, epoch, created_ms = rows[0]
        return ProducerRow(
            as_number(number, 1 << 63), as_number(epoch, 1 << 32), as_int(created_ms)
        )

    def _unused_id(self, name: str) -> int:
        """The first id of the name that no producer has, nor had one that was forgotten."""
        seed, times = int.from_bytes(self._catalog.store_uid[:8], "little"), 0
        while True:
            text = f"{name}\n{times}".encode()
            producer_id = (xxh3_64_intdigest(text, seed) >> 1) or 1
            if not self._database.query("SELECT 1 FROM producers WHERE id = ?", (producer_id,)):
                return producer_id
            times += 1

    def raise_epoch(self, row: ProducerRow, above: int) -> ProducerRow:
        """Go on above an epoch that the log knows and this catalog has lost.

        Nothing happens if the producer has been opened again.
        """
        with self._database.transaction("raise the epoch of a producer"):
            rows = self._database.query(
                "UPDATE producers SET epoch = ? + 1 WHERE id = ? AND epoch = ? RETURNING epoch",
                (above, row.id, row.epoch),
            )
        return row._replace(epoch=as_number(rows[0][0], 1 << 32)) if rows else row

    def epoch(self, producer_id: int) -> tuple[int, int]:
        """Epoch of a producer and the process that opened it last; zeros if it was forgotten."""
        rows = self._database.query(
            "SELECT epoch, pid FROM producers WHERE id = ? AND NOT instr(name, char(10))",
            (producer_id,),
        )
        return (as_int(rows[0][0]), as_int(rows[0][1])) if rows else (0, 0)

    def forget(self, name: str) -> bool:
        """Let a name begin anew; whether there was one."""
        with self._database.transaction(f"forget producer {name}"):
            return bool(
                self._database.query(
                    "UPDATE producers SET name = name || char(10) || id, epoch = epoch + 1"
                    " WHERE name = ? RETURNING id",
                    (name,),
                )
            )

    def forgotten(self) -> set[int]:
        """The ids that names had before they were forgotten."""
        rows = self._database.query("SELECT id FROM producers WHERE instr(name, char(10))")
        return {as_int(row[0]) for row in rows}

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
