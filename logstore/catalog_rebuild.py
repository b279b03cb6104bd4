"""Make a catalog anew: what can still be read of the old one, and what the files of topics tell.

The new one is complete before the old one is moved to quarantine, and a rebuild that was cut off
in between is finished by the next. For `store_repair.py` alone, while nobody has the store open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from . import catalog_repair
from .catalog import Catalog
from .catalog_checks import problems
from .clock import Clock
from .database_copy import readable_rows
from .errors import DataError
from .found_topics import FoundTopic, original_of
from .quarantine import set_aside
from .storage import CATALOG_NAME, Storage

BUILDING: Final = "catalog.db.building"
REBUILT: Final = "catalog.db.rebuilt"
_COMPANIONS: Final = ("", "-wal", "-shm", "-journal")


BLANK: Final = "catalog.db was missing, and an empty one has been made"
FOREIGN: Final = "the catalog is that of another store"


def catalog_problem(storage: Storage, clock: Clock, topics: Sequence[FoundTopic]) -> str | None:
    """Why the catalog has to be made anew; None if it is fine.

    Args:
        storage: The store.
        clock: For the catalog.
        topics: What is there as files.

    Raises:
        FormatVersionError: It is of a newer version.
        StorageError, LockedError: It cannot be read at all.
    """
    filename = storage.catalog_filename()
    if not filename.startswith("file:"):
        if not storage.exists(CATALOG_NAME):
            return "catalog.db is missing"
        if storage.size(CATALOG_NAME) == 0:
            return "catalog.db is empty"
    try:
        catalog = Catalog(filename, clock=clock, read_only=True)
        try:
            return _content_problem(catalog, topics)
        finally:
            catalog.close()
    except DataError as error:
        if type(error) is not DataError:
            raise
        return error.message


def _content_problem(catalog: Catalog, topics: Sequence[FoundTopic]) -> str | None:
    store_uid = _store_uid(topics)
    if topics and catalog.generation == 0:
        return BLANK
    if store_uid is not None and store_uid != catalog.store_uid:
        return FOREIGN
    found = problems(catalog.database, deep=True)
    return found[0] if found else None


def _store_uid(topics: Sequence[FoundTopic]) -> bytes | None:
    """What most partitions say of the store they belong to."""
    uids = Counter(part.store_uid for topic in topics for part in topic.partitions)
    uids.pop(None, None)
    return uids.most_common(1)[0][0] if uids else None


def rebuild_catalog(
    storage: Storage, clock: Clock, topics: Sequence[FoundTopic], problem: str
) -> None:
    """Put a new catalog into the place of the old one.

    Args:
        storage: The store.
        clock: For the catalog.
        topics: What is there as files.
        problem: As `catalog_problem` says.

    Raises:
        StorageError: Refused; the old one is still in place, or the new one complete.
    """
    gone = not storage.exists(CATALOG_NAME) or problem == BLANK
    if not (gone and storage.exists(REBUILT)):
        _build(storage, clock, topics, copy=not gone and problem != FOREIGN)
    for companion in _COMPANIONS:
        if storage.exists(CATALOG_NAME + companion):
            set_aside(storage, "", CATALOG_NAME + companion)
    # Its slots were those of the old one.
    if storage.exists("tail"):
        set_aside(storage, "", "tail")
    storage.rename(REBUILT, CATALOG_NAME)
    storage.sync_directory("")


def _build(storage: Storage, clock: Clock, topics: Sequence[FoundTopic], *, copy: bool) -> None:
    filename = storage.catalog_filename()
    for name in (REBUILT, BUILDING):
        for companion in _COMPANIONS:
            storage.remove(name + companion)
    old = readable_rows(filename) if copy else {}
    catalog = Catalog(filename.removesuffix(CATALOG_NAME) + BUILDING, clock=clock)
    try:
        database = catalog.database
        catalog_repair.copy_rows(database, old)
        catalog_repair.set_store(database, _store_uid(topics))
        owners = catalog_repair.partition_owners(database)
        names = set(owners.values())
        for topic in sorted(topics, key=lambda topic: topic.name not in names):
            if original_of(topic, owners) is None:
                catalog_repair.adopt_topic(database, topic)
                owners.update((each.uid, topic.name) for each in topic.partitions)
    finally:
        catalog.close()
    storage.sync_directory("")
    storage.rename(BUILDING, REBUILT)
    storage.sync_directory("")
