"""The tables of the catalog, and their version. `catalog.py` and `group_catalog.py` use them.

A change of the tables raises SCHEMA_VERSION and adds the upgrade from the version before. A store
with a newer version is refused rather than misread.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from .database import Database
from .errors import DataError, FormatVersionError
from .sql_values import as_int

SCHEMA_VERSION: Final = 2

SCHEMA: Final = """
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    uid BLOB NOT NULL,
    generation INTEGER NOT NULL,
    slots INTEGER NOT NULL              -- tail slots ever allocated; never falls
) STRICT;
CREATE TABLE topics (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    config TEXT NOT NULL,               -- TopicConfig.to_json
    created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE partitions (
    topic_id INTEGER NOT NULL REFERENCES topics ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    slot INTEGER NOT NULL UNIQUE,
    uid INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    -- LogCheckpoint, all null or all set; 64-bit unsigned values are stored as signed
    segment_base INTEGER,
    segment_uid INTEGER,
    position INTEGER,
    next_offset INTEGER,
    previous_hash INTEGER,
    max_timestamp_ms INTEGER,
    sequence INTEGER,
    PRIMARY KEY (topic_id, partition)
) STRICT, WITHOUT ROWID;
CREATE TABLE owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,          -- of a former one with a line feed and its id behind
    epoch INTEGER NOT NULL,
    decided INTEGER NOT NULL,           -- transactions 1..decided are committed unless aborted
    lock_path TEXT NOT NULL,            -- its holder lives while this lock is held; empty: closed
    pid INTEGER NOT NULL                -- for messages only
) STRICT;
CREATE TABLE aborted (
    owner_id INTEGER NOT NULL REFERENCES owners ON DELETE CASCADE,
    number INTEGER NOT NULL,
    PRIMARY KEY (owner_id, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE checkpoints (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE groups (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TABLE group_members (
    group_name TEXT NOT NULL REFERENCES groups ON DELETE CASCADE,
    member_id TEXT NOT NULL,
    lock_path TEXT NOT NULL,            -- the member lives while this lock is held
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    client TEXT NOT NULL,
    topics TEXT NOT NULL,               -- JSON array of names
    lease_end_ms INTEGER NOT NULL,      -- monotonic clock of this machine
    PRIMARY KEY (group_name, member_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE group_partitions (
    group_name TEXT NOT NULL REFERENCES groups ON DELETE CASCADE,
    topic_id INTEGER NOT NULL REFERENCES topics ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    owner TEXT,                         -- member that may read and commit
    target TEXT,                        -- member that shall own it
    generation INTEGER NOT NULL DEFAULT 0,  -- rises whenever the owner changes
    committed_offset INTEGER,           -- next offset to read
    commit_ms INTEGER,
    PRIMARY KEY (group_name, topic_id, partition)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_partitions_topic ON group_partitions (topic_id);
"""
"""Version 1."""

QUEUES: Final = """
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    group_name TEXT NOT NULL REFERENCES groups ON DELETE CASCADE,
    topic_id INTEGER NOT NULL REFERENCES topics ON DELETE CASCADE,
    visibility_ms INTEGER NOT NULL,     -- this and the next two: as the last worker gave them
    max_deliveries INTEGER,
    dead_letter TEXT,
    UNIQUE (group_name, topic_id)
) STRICT;
CREATE INDEX queues_topic ON queues (topic_id);
CREATE TABLE queue_partitions (
    queue_id INTEGER NOT NULL REFERENCES queues ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,       -- from here on nothing has been claimed
    PRIMARY KEY (queue_id, partition)
) STRICT, WITHOUT ROWID;
CREATE TABLE queue_workers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused
    queue_id INTEGER NOT NULL REFERENCES queues ON DELETE CASCADE,
    lock_path TEXT NOT NULL,            -- the worker lives while this lock is held
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    client TEXT NOT NULL
) STRICT;
CREATE INDEX queue_workers_queue ON queue_workers (queue_id);
CREATE TABLE queue_ranges (             -- below next_offset: what is in none of these is done
    queue_id INTEGER NOT NULL REFERENCES queues ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    start_offset INTEGER NOT NULL,
    stop_offset INTEGER NOT NULL,       -- exclusive; ranges of a partition do not overlap
    deliveries INTEGER NOT NULL,        -- so far, the present lease included
    worker_id INTEGER NOT NULL,         -- who holds the lease; 0: waits to be claimed
    due_ms INTEGER NOT NULL,            -- end of the lease, by the monotonic clock of the machine;
                                        -- while it waits: UTC time from which it may be claimed
    PRIMARY KEY (queue_id, partition, start_offset)
) STRICT, WITHOUT ROWID;
CREATE INDEX queue_ranges_due ON queue_ranges (queue_id, worker_id, due_ms);
"""

PRODUCERS: Final = """
CREATE TABLE producers (
    id INTEGER PRIMARY KEY,             -- follows from the name, even if this file is lost
    name TEXT NOT NULL UNIQUE,          -- of a forgotten one with a line feed and its id behind
    epoch INTEGER NOT NULL,             -- rises whenever it is opened
    pid INTEGER NOT NULL,               -- for messages only
    created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE producer_states (
    topic_id INTEGER NOT NULL REFERENCES topics ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    data BLOB NOT NULL,                 -- a snapshot as in docs/log-format.md, "Producers"
    PRIMARY KEY (topic_id, partition)
) STRICT, WITHOUT ROWID;
"""

OWNER_TERMS: Final = """
CREATE TABLE owner_terms (
    owner_id INTEGER PRIMARY KEY REFERENCES owners ON DELETE CASCADE,
    timeout_ms INTEGER                  -- null: its transactions may be open for ever
) STRICT;
"""

OWNER_DATABASES: Final = """
CREATE TABLE owner_databases (          -- where to ask what became of an owner's transactions
    owner_id INTEGER PRIMARY KEY REFERENCES owners ON DELETE CASCADE,
    path TEXT NOT NULL,                 -- of a database of the user's, absolute
    uid TEXT NOT NULL,                  -- identity that is in that file
    mark TEXT NOT NULL,                 -- random: what the owner is called there
    process_path TEXT NOT NULL          -- lock file of its process
) STRICT;
"""

COMPACTIONS: Final = """
CREATE TABLE compactions (
    topic_id INTEGER NOT NULL REFERENCES topics ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    purpose TEXT NOT NULL,              -- what was done to the records below clean_offset
    clean_offset INTEGER NOT NULL,
    PRIMARY KEY (topic_id, partition)
) STRICT, WITHOUT ROWID;
"""

_ADDED: Final[Mapping[int, Sequence[str]]] = {
    2: (QUEUES, COMPACTIONS, PRODUCERS, OWNER_TERMS, OWNER_DATABASES)
}
"""The tables each later version added, made for new and for upgraded stores alike.

Only CREATE TABLE and CREATE INDEX, because a reader of an older store imagines them.
"""


def prepare(database: Database) -> None:
    """Create the tables in an empty database; check the version of an existing one.

    Raises:
        FormatVersionError: A newer version of Millstream made this store.
        DataError: The database is not a catalog.
    """
    version = _version(database)
    if version == 0 and database.read_only:
        raise DataError("the catalog is empty: not a store", path=database.filename)
    if version == 0:
        with database.transaction("create the catalog"):
            # Another process may have created it while this one waited for the lock.
            if _version(database) == 0:
                _create(database)
        version = _version(database)
    if 0 < version < SCHEMA_VERSION:
        version = _imagine(database, version) if database.read_only else _upgrade(database)
    if version != SCHEMA_VERSION:
        raise FormatVersionError(
            f"the catalog has schema version {version}, this version knows {SCHEMA_VERSION};"
            " open the store with a newer version",
            path=database.filename,
        )


def _version(database: Database) -> int:
    return as_int(database.query("PRAGMA user_version")[0][0])


def _create(database: Database) -> None:
    if database.query("SELECT 1 FROM sqlite_schema LIMIT 1"):
        raise DataError("this SQLite database is not a catalog", path=database.filename)
    for statements in (SCHEMA, *_added_since(1)):
        database.query(statements)
    database.query(
        "INSERT INTO store (id, uid, generation, slots) VALUES (1, ?, 0, 0)",
        (secrets.token_bytes(16),),
    )
    database.query(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _added_since(version: int) -> list[str]:
    return [each for number, added in _ADDED.items() if number > version for each in added]


def _upgrade(database: Database) -> int:
    """Bring the tables of an older version up to this one; the version after that."""
    with database.transaction("upgrade the catalog"):
        version = _version(database)
        # Another process may have done it while this one waited, or one of a newer version.
        if version < SCHEMA_VERSION:
            for statements in _added_since(version):
                database.query(statements)
            database.query(f"PRAGMA user_version = {SCHEMA_VERSION}")
            version = SCHEMA_VERSION
    return version


def _imagine(database: Database, version: int) -> int:
    """Give a connection that may not write empty tables in the place of those still to be added.

    They are the connection's own. If a writer upgrades the store later, this reader goes on not
    seeing what is in them.
    """
    for statements in _added_since(version):
        own = statements.replace("CREATE TABLE ", "CREATE TEMP TABLE ")
        database.query(own.replace("CREATE INDEX ", "CREATE INDEX temp."))
    return SCHEMA_VERSION
