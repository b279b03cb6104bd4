"""How far groups have got in a partition, whether they read it as consumers or work through it."""

from __future__ import annotations

from collections.abc import Sequence

from .catalog import Catalog
from .sql_values import SQLValue, as_int, as_text

_READ = """
SELECT group_name, committed_offset FROM group_partitions
    WHERE topic_id = ?1 AND partition = ?2 AND committed_offset IS NOT NULL
UNION ALL
SELECT group_name, min(next_offset, coalesce(
        (SELECT min(start_offset) FROM queue_ranges AS undone
            WHERE undone.queue_id = queues.id AND undone.partition = ?2), next_offset))
    FROM queues JOIN queue_partitions ON queue_id = id
    WHERE topic_id = ?1 AND queue_partitions.partition = ?2
"""


class ProgressCatalog:
    """The progress of groups by one catalog. Thread-safe; errors as in `Catalog`."""

    def __init__(self, catalog: Catalog) -> None:
        self._database = catalog.database

    def done_below(self, topic_id: int, partition: int, groups: Sequence[str]) -> dict[str, int]:
        """Below which offset each of these groups needs no record any more; 0: it has not begun.

        What a consumer has committed; in a queue, what is acked without an exception.
        """
        bindings: tuple[SQLValue, ...] = (topic_id, partition)
        found = dict.fromkeys(groups, 0)
        for name, offset in self._database.query(_READ, bindings):
            if as_text(name) in found:
                found[as_text(name)] = as_int(offset)
        return found
