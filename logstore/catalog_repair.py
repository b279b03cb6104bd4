"""Change what the catalog says so that it fits what is left of the logs.

For `store_repair.py` alone. A helper of catalog.py: speaks SQL, over the same `Database`. Every
function is one durable transaction, and doing it twice is the same as doing it once.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Mapping

from .catalog import REFUSED
from .database import Database
from .errors import DataError
from .found_topics import FoundTopic
from .sql_values import Row, as_int, as_text


def forget_checkpoint(database: Database, topic_id: int, partition: int) -> None:
    """Let the next recovery of a partition start at its first segment."""
    with database.transaction("forget a log checkpoint"):
        database.query(
            "UPDATE partitions SET segment_base = NULL, segment_uid = NULL, position = NULL,"
            " next_offset = NULL, previous_hash = NULL, max_timestamp_ms = NULL, sequence = NULL"
            " WHERE topic_id = ? AND partition = ?",
            (topic_id, partition),
        )


def raise_generation(database: Database, generation: int) -> None:
    """Make the generation at least this, so that new sequences are above those in the logs.

    Partitions that were refused for that are not refused any more.
    """
    with database.transaction("raise the generation"):
        database.query("UPDATE store SET generation = max(generation, ?)", (generation,))
        database.query(
            "DELETE FROM checkpoints WHERE substr(name, 1, ?) = ?", (len(REFUSED), REFUSED)
        )


def adopt_topic(database: Database, topic: FoundTopic) -> None:
    """Enter a topic whose files were found, or what is missing of one that is there."""
    with database.transaction(f"adopt topic {topic.name}"):
        count = len(topic.partitions)
        row = (topic.name, count, topic.config, topic.created_ms, count)
        ((topic_id, entered),) = database.query(
            "INSERT INTO topics (name, partitions, config, created_ms) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET partitions = max(partitions, ?)"
            " RETURNING id, partitions",
            row,
        )
        for number, each in enumerate(topic.partitions):
            _adopt_partition(database, as_int(topic_id), number, each.uid, each.start_offset)
        for number in range(count, as_int(entered)):
            _adopt_partition(database, as_int(topic_id), number, secrets.randbits(62) + 1, 0)


def partition_owners(database: Database) -> dict[int, str]:
    """By the uid of each partition, the name of its topic."""
    rows = database.query("SELECT uid, name FROM partitions JOIN topics ON id = topic_id")
    return {as_int(uid): as_text(name) for uid, name in rows}


def _adopt_partition(
    database: Database, topic_id: int, partition: int, uid: int, start_offset: int
) -> None:
    known = database.query(
        "SELECT 1 FROM partitions WHERE topic_id = ? AND partition = ?", (topic_id, partition)
    )
    if known:
        # What the segments say of themselves has a hash, the row has not.
        database.query(
            "UPDATE partitions SET uid = ? WHERE topic_id = ? AND partition = ?",
            (uid, topic_id, partition),
        )
        return
    database.query(
        "INSERT INTO partitions (topic_id, partition, slot, uid, start_offset)"
        " SELECT ?, ?, slots, ?, ? FROM store",
        (topic_id, partition, uid, start_offset),
    )
    database.query("UPDATE store SET slots = slots + 1")


def decide_unknown(
    database: Database, transactions: Mapping[int, Iterable[int]], *, show: bool
) -> None:
    """Decide transactions that the logs hold and of whose end the catalog knows nothing.

    Args:
        database: The catalog.
        transactions: Their numbers by owner.
        show: Commit them; else they are aborted and stay hidden.
    """
    with database.transaction("decide forgotten transactions"):
        for owner_id, numbers in transactions.items():
            highest = max(numbers)
            database.query(
                "INSERT INTO owners (id, name, epoch, decided, lock_path, pid)"
                " VALUES (?, ?, 1, 0, '', 0) ON CONFLICT DO NOTHING",
                (owner_id, f"forgotten/{owner_id}"),
            )
            if not show:
                for number in numbers:
                    database.query(
                        "INSERT INTO aborted (owner_id, number) SELECT ?, ?"
                        " FROM owners WHERE id = ? AND decided < ? ON CONFLICT DO NOTHING",
                        (owner_id, number, owner_id, number),
                    )
            database.query(
                "UPDATE owners SET decided = max(decided, ?), epoch = epoch + 1, lock_path = ''"
                " WHERE id = ?",
                (highest, owner_id),
            )


# --- making a catalog anew -----------------------------------------------------------------------


def copy_rows(database: Database, old: Mapping[str, tuple[list[str], list[Row]]]) -> None:
    """Enter the rows that could be read of a damaged catalog, as far as they fit the tables."""
    tables = database.query(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
    with database.transaction("copy what can be read"):
        database.query("PRAGMA defer_foreign_keys = ON")
        for table in (as_text(row[0]) for row in tables):
            columns, rows = old.get(table, ([], []))
            known = {as_text(row[1]) for row in database.query(f"PRAGMA table_info({table})")}
            if not columns or not known >= set(columns):
                continue
            other = "REPLACE" if table == "store" else "IGNORE"
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            insert = f"INSERT OR {other} INTO {table} ({names}) VALUES ({marks})"  # noqa: S608
            for row in rows:
                with contextlib.suppress(DataError):  # a value that no column of ours takes
                    database.query(insert, row)
        _remove_orphans(database)


def _remove_orphans(database: Database) -> None:
    """Remove rows that refer to others which are missing; what refers to them goes too."""
    while broken := database.query("PRAGMA foreign_key_check"):
        for table in {as_text(row[0]) for row in broken}:
            references: dict[int, list[tuple[str, str, str | None]]] = {}
            for key in database.query(f"PRAGMA foreign_key_list({table})"):
                target = None if key[4] is None else as_text(key[4])
                reference = as_text(key[2]), as_text(key[3]), target
                references.setdefault(as_int(key[0]), []).append(reference)
            for pairs in references.values():
                _remove_orphans_of(database, table, pairs)


def _remove_orphans_of(
    database: Database, table: str, pairs: list[tuple[str, str, str | None]]
) -> None:
    parent = pairs[0][0]
    columns_of_parent = database.query(f"PRAGMA table_info({parent})")
    key = {as_int(row[5]): as_text(row[1]) for row in columns_of_parent}
    terms = [
        f"parent.{target or key[number]} = {table}.{column}"
        for number, (_, column, target) in enumerate(pairs, 1)
    ]
    columns = " AND ".join(f"{column} IS NOT NULL" for _, column, _ in pairs)
    database.query(
        f"DELETE FROM {table} WHERE {columns} AND NOT EXISTS"  # noqa: S608 - names of ours
        f" (SELECT 1 FROM {parent} AS parent WHERE {' AND '.join(terms)})"
    )


def set_store(database: Database, store_uid: bytes | None) -> None:
    """Make the row of the store fit: its uid as the segments know it, slots beyond those used."""
    with database.transaction("identify the store"):
        database.query("UPDATE store SET uid = coalesce(?, uid)", (store_uid,))
        database.query(
            "UPDATE store SET slots ="
            " max(slots, (SELECT coalesce(max(slot) + 1, 0) FROM partitions))"
        )
