"""The tables of the catalog, and their version. `catalog.py` and `group_catalog.py` use them.

A change of the tables raises SCHEMA_VERSION and adds the upgrade from the version before. A store
with a newer version is refused rather than misread.
"""

from __future__ import annotations

import secrets
from typing import Final

from .database import Database, as_int
from .errors import DataError, FormatVersionError

SCHEMA_VERSION: Final = 1

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
    name TEXT NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    decided INTEGER NOT NULL,           -- transactions 1..decided are committed unless aborted
    lock_path TEXT NOT NULL,            -- its holder lives while this lock is held
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
    database.query(SCHEMA)
    database.query(
        "INSERT INTO store (id, uid, generation, slots) VALUES (1, ?, 0, 0)",
        (secrets.token_bytes(16),),
    )
    database.query(f"PRAGMA user_version = {SCHEMA_VERSION}")
