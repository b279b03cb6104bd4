"""Look at a store and at the machine under it: what is wrong, what may go wrong, what to do.

`diagnose` works on stores that cannot be opened, too. It changes nothing, but for a file of 4 KiB
that it writes, syncs and removes to see how long a sync takes. It is quick whatever the size of the
store: the end of each log is looked at, the rest is for `verify.py`. What is asked of the machine
is in `machine_checks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from . import machine_checks, posix_facts
from .backup import STAGE
from .cache_database import CACHE_DIRECTORY
from .catalog import Catalog
from .catalog_rebuild import BUILDING, REBUILT, catalog_problem
from .catalog_repair import partition_owners
from .chain_file import CHAIN_NAME
from .clock import Clock, SystemClock
from .config import TopicInfo
from .database_copy import page_checksums
from .database_file import exists
from .engine import OPEN_LOCK, Engine, in_use
from .errors import DataError, FormatVersionError, LockedError, StorageError
from .found_topics import (
    FoundTopic,
    beyond_problem,
    find_topics,
    partitions_beyond,
    unknown_problem,
)
from .liveness import LOCKS_DIRECTORY
from .log import Log
from .machine_checks import Diagnosis
from .owner_catalog import OwnerCatalog
from .partition_verifier import torn_bytes
from .segment import (
    INDEX_SUFFIX,
    KEYS_SUFFIX,
    QUARANTINE,
    SEGMENT_SUFFIX,
    TEMPORARY_SUFFIX,
    base_offset_of,
)
from .storage import CATALOG_NAME, PosixStorage
from .tail import POISONED_BY_SYNC, Slot

WAL_BYTES_MAX: Final = 256 << 20
CLOCK_SLACK_MS: Final = 60_000
EARLIEST_MS: Final = 1_700_000_000_000
"""2023: a clock before that was never set."""
PARTITIONS_MAX: Final = 10_000
"""The ends of so many logs are looked at."""
_OURS: Final = frozenset(
    {
        "append.lock",
        "backup.lock",
        "backup.json",
        CACHE_DIRECTORY,
        OPEN_LOCK,
        "tail",
        LOCKS_DIRECTORY,
        "wake",
        "topics",
        "state",
        QUARANTINE,
    }
)
_REPAIR: Final = "see `millstream verify --explain`, then `millstream repair`"


def diagnose(path: str | os.PathLike[str], *, clock: Clock | None = None) -> list[Diagnosis]:
    """Look at everything; what is fine is in the list too.

    Args:
        path: Directory of the store.
        clock: Source of time, for tests.

    Raises:
        StorageError: There is no such directory.
    """
    return list(_Doctor(PosixStorage(path, read_only=True), clock or SystemClock()).run())


class _Doctor:
    def __init__(self, storage: PosixStorage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._found: list[FoundTopic] = []
        self._directories: list[str] = []
        self._owners: dict[int, str] = {}

    def run(self) -> Iterator[Diagnosis]:
        storage, root = self._storage, self._storage.root
        ours = [name for name in storage.list("") if _is_ours(name)]
        yield from machine_checks.versions()
        yield machine_checks.file_system(posix_facts.mount_of(os.path.realpath(root)))
        yield from machine_checks.free_space(posix_facts.space_at(root))
        unseen = self._find_topics()
        yield from machine_checks.rights(root, ["", *ours, *self._directories])
        yield from unseen
        yield machine_checks.sync_time(storage, self._clock)
        yield from self._open_by_others()
        yield from self._root_files()
        yield from self._quarantine()
        problem = self._catalog()
        yield problem
        known: list[TopicInfo] = []
        if problem.level != "error":
            catalog = Catalog(storage.catalog_filename(), clock=self._clock, read_only=True)
            known = catalog.topics()
            self._owners = partition_owners(catalog.database)
            lost = [
                each for each in OwnerCatalog(catalog).databases() if not exists(each.place.path)
            ]
            catalog.close()
            yield from map(_lost_database, sorted({each.place.path for each in lost}))
            yield from self._wal()
            if not unseen:
                yield from self._partition_files({info.name: info.partitions for info in known})
            yield from self._logs(known)
        partitions = sum(info.partitions for info in known) or len(self._directories)
        yield from machine_checks.process_limits(posix_facts.limits(), partitions)

    def _find_topics(self) -> list[Diagnosis]:
        """Look for the files of topics; what it says is why they cannot be seen."""
        try:
            self._found = find_topics(self._storage)
        except StorageError as error:
            remedy = "give all files to the user who reads: chown -R"
            return [Diagnosis("rights", "error", error.message, remedy, error.path)]
        self._directories = [part.directory for topic in self._found for part in topic.partitions]
        return []

    # --- files -----------------------------------------------------------------------------------

    def _open_by_others(self) -> Iterator[Diagnosis]:
        who = "a process has" if in_use(self._storage) else "no process has"
        yield Diagnosis("processes", "ok", f"{who} the store open for writing")

    def _root_files(self) -> Iterator[Diagnosis]:
        for name in self._storage.list(""):
            if name.startswith((BUILDING, REBUILT)):
                message = "left by a repair that was cut off"
                yield Diagnosis("files", "warning", message, "run `millstream repair` again", name)
            elif name == STAGE:
                message = "second names of segments that a backup needs, or has left"
                yield Diagnosis("files", "info", message, "the next backup removes them", name)
            elif not _is_ours(name):
                message = "nothing of Millstream's"
                yield Diagnosis("files", "info", message, "move it away if it is lost here", name)

    def _quarantine(self) -> Iterator[Diagnosis]:
        for place in ["", *self._directories]:
            folder = f"{place}/{QUARANTINE}" if place else QUARANTINE
            names = self._storage.list(folder)
            if names:
                total = sum(self._storage.size(f"{folder}/{name}") for name in names)
                message = f"{len(names)} files of {total >> 10} KiB were taken out of the log"
                remedy = "look at them with `millstream dump`, then remove them"
                yield Diagnosis("quarantine", "info", message, remedy, folder)

    def _partition_files(self, known: Mapping[str, int]) -> Iterator[Diagnosis]:
        whole = True
        for topic in self._found:
            if topic.name not in known:
                whole = False
                message = unknown_problem(topic, self._owners)
                yield Diagnosis("files", "error", message, _REPAIR, topic.path)
                continue
            count = known[topic.name]
            for number, path in partitions_beyond(self._storage, topic.path, count):
                whole = False
                message = beyond_problem(topic.name, number, count)
                yield Diagnosis("files", "error", message, "see the message", path)
            for part in topic.partitions:
                for finding in self._unexpected(part.directory):
                    whole = False
                    yield finding
        if whole:
            yield Diagnosis("files", "ok", "no orphans among the segments")

    def _unexpected(self, directory: str) -> Iterator[Diagnosis]:
        names = set(self._storage.list(directory))
        for name in sorted(names):
            stem = name.removesuffix(INDEX_SUFFIX).removesuffix(KEYS_SUFFIX)
            path, segment = f"{directory}/{name}", stem + SEGMENT_SUFFIX
            if name in {QUARANTINE, CHAIN_NAME} or base_offset_of(name) is not None:
                continue
            if name.endswith(TEMPORARY_SUFFIX):
                message = "left by a crash, or being written"
                remedy = "none is needed: the next recovery or compaction removes it"
            elif name.endswith((INDEX_SUFFIX, KEYS_SUFFIX)) and base_offset_of(segment) is not None:
                if segment in names:
                    continue
                message, remedy = "an index without its segment", "remove it"
            else:
                message, remedy = "nothing of Millstream's", "move it away if it is lost here"
            yield Diagnosis("files", "info", message, remedy, path)

    # --- catalog and logs ------------------------------------------------------------------------

    def _catalog(self) -> Diagnosis:
        try:
            problem = catalog_problem(self._storage, self._clock, self._found)
        except (FormatVersionError, StorageError, LockedError) as error:
            return Diagnosis("catalog", "error", error.message, "see the message", CATALOG_NAME)
        if problem is not None:
            return Diagnosis("catalog", "error", problem, _REPAIR, CATALOG_NAME)
        if not page_checksums(self._storage.catalog_filename()):
            message = "the pages of catalog.db have no checksums: an earlier version made it"
            remedy = "none is needed; a store restored from a backup has them"
            return Diagnosis("catalog", "info", message, remedy, CATALOG_NAME)
        return Diagnosis("catalog", "ok", "whole, and its pages have checksums")

    def _wal(self) -> Iterator[Diagnosis]:
        name = f"{CATALOG_NAME}-wal"
        size = self._storage.size(name) if self._storage.exists(name) else 0
        if size > WAL_BYTES_MAX:
            message = f"the write-ahead log of the catalog has {size >> 20} MiB"
            remedy = "a process reads the catalog all the time: restart it"
            yield Diagnosis("catalog", "warning", message, remedy, name)

    def _logs(self, known: list[TopicInfo]) -> Iterator[Diagnosis]:
        engine = Engine(self._storage, self._clock, durability="sync", read_only=True)
        try:
            newest_ms = max([info.created_ms for info in known], default=0)
            partitions = [(info, number) for info in known for number in range(info.partitions)]
            whole = True
            for info, number in partitions[:PARTITIONS_MAX]:
                try:
                    log = engine.log(info.name, number)
                    newest_ms = max(newest_ms, _newest_ms(log))
                except (DataError, StorageError) as error:
                    whole = False
                    yield Diagnosis("logs", "error", str(error), _REPAIR, error.path)
                    continue
                for finding in self._end(engine, log):
                    whole = False
                    yield finding
            if whole:
                count = min(len(partitions), PARTITIONS_MAX)
                yield Diagnosis("logs", "ok", f"the ends of {count} partitions are whole")
            yield self._time(newest_ms)
        finally:
            engine.close()

    def _end(self, engine: Engine, log: Log) -> Iterator[Diagnosis]:
        if log.slot[Slot.POISONED] == POISONED_BY_SYNC and log.words_fit():
            message, remedy = "a sync failed here", "check the disk; close all handles, open again"
            yield Diagnosis("logs", "error", message, remedy, log.directory)
        torn = torn_bytes(engine.storage, log)
        if torn:
            message = f"a torn tail of {torn} bytes, never acknowledged"
            remedy = "none is needed: the next writer saves a copy and cuts it"
            yield Diagnosis("logs", "info", message, remedy, log.directory)

    def _time(self, newest_ms: int) -> Diagnosis:
        now_ms = self._clock.now_ms()
        remedy = "set the clock; retention and windows by wall time depend on it"
        if now_ms < EARLIEST_MS:
            return Diagnosis("clock", "warning", "the clock was never set", remedy)
        if newest_ms > now_ms + CLOCK_SLACK_MS:
            behind = (newest_ms - now_ms) // 1000
            message = f"the clock is {behind} s behind the newest append"
            return Diagnosis("clock", "warning", message, remedy)
        return Diagnosis("clock", "ok", "after everything that was appended")


def _is_ours(name: str) -> bool:
    return name in _OURS or name.startswith(CATALOG_NAME)


def _lost_database(path: str) -> Diagnosis:
    message = f"transactions may hang on the database {path}, which is not there"
    remedy = "put it back; if it is lost for good, `millstream repair --lost-database`"
    return Diagnosis("transactions", "warning", message, remedy)


def _newest_ms(log: Log) -> int:
    """When the last batch was appended; of an empty log, when its segment was made."""
    infos = log.files.infos()
    return infos[-1].max_timestamp_ms if infos else 0
