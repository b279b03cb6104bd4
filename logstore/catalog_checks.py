"""What can be wrong inside the catalog, and what it says about the logs. Changes nothing.

A helper of catalog.py: speaks SQL, over the same `Database`. Whether the logs agree with what the
catalog says of them is for `verify.py` to find out.
"""

from __future__ import annotations

from typing import NamedTuple

from .config import TopicConfig
from .database import Database
from .errors import MillstreamError
from .sql_values import as_int, as_text

PROBLEMS_MAX = 100


class CommittedOffset(NamedTuple):
    """What a group has committed for one partition."""

    group: str
    topic: str
    partition: int
    offset: int


def problems(database: Database, *, deep: bool) -> list[str]:
    """What is wrong with the database itself: pages, references, values.

    Args:
        database: An open catalog.
        deep: Compare indexes with tables too.

    Raises:
        DataError: It is damaged so that not even this can be asked.
    """
    pragma = "integrity_check" if deep else "quick_check"
    rows = database.query(f"PRAGMA {pragma}({PROBLEMS_MAX})")
    found = [as_text(row[0]) for row in rows if row[0] != "ok"]
    if found:
        return found
    found += [
        f"a row of table {as_text(table)} refers to a row of {as_text(parent)} that is missing"
        for table, _, parent, _ in database.query("PRAGMA foreign_key_check")
    ]
    return [*found, *_topic_problems(database), *_owner_problems(database)]


def _topic_problems(database: Database) -> list[str]:
    found = []
    for name, count, config in database.query("SELECT name, partitions, config FROM topics"):
        try:
            TopicConfig.from_json(as_text(config))
        except MillstreamError as error:
            found.append(f"topic {as_text(name)!r}: {error.message}")
        numbers = database.query(
            "SELECT partition FROM partitions JOIN topics ON id = topic_id WHERE name = ?"
            " ORDER BY partition",
            (name,),
        )
        if [as_int(row[0]) for row in numbers] != list(range(as_int(count))):
            found.append(f"topic {as_text(name)!r} does not have its {as_int(count)} partitions")
    (slots,) = database.query("SELECT slots FROM store")[0]
    for (slot,) in database.query("SELECT slot FROM partitions WHERE slot >= ?", (slots,)):
        found.append(f"slot {as_int(slot)} was never given out")
    twice = database.query("SELECT uid FROM partitions GROUP BY uid HAVING count(*) > 1")
    return [*found, *(f"two partitions have the uid {as_int(uid)}" for (uid,) in twice)]


def _owner_problems(database: Database) -> list[str]:
    rows = database.query(
        "SELECT name, number FROM aborted JOIN owners ON id = owner_id WHERE number > decided"
    )
    return [
        f"transaction {as_int(number)} of {as_text(name)!r} is aborted but not decided"
        for name, number in rows
    ]


def committed_offsets(database: Database) -> list[CommittedOffset]:
    """What every group has committed."""
    rows = database.query(
        "SELECT group_name, name, partition, committed_offset"
        " FROM group_partitions JOIN topics ON id = topic_id WHERE committed_offset IS NOT NULL"
        " ORDER BY group_name, name, partition"
    )
    return [
        CommittedOffset(as_text(group), as_text(topic), as_int(partition), as_int(offset))
        for group, topic, partition, offset in rows
    ]


def decided_transactions(database: Database) -> dict[int, int]:
    """The number of the last decided transaction of each owner, by its id."""
    rows = database.query("SELECT id, decided FROM owners")
    return {as_int(owner_id): as_int(decided) for owner_id, decided in rows}


def possible_transactions(database: Database) -> dict[int, int]:
    """As `OwnerState.last_possible`, of each owner by its id."""
    rows = database.query("SELECT id, decided + (lock_path <> '') FROM owners")
    return {as_int(owner_id): as_int(last) for owner_id, last in rows}
