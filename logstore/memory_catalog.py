"""The catalog of a `MemoryStorage`: a shared SQLite database in memory, copied when power fails.

Its commits are durable at once, but for those that were announced as unsynced: what they change is
kept by a `MemoryJournal`, or by the next commit that is synced.
"""

from __future__ import annotations

import apsw

from .errors import UsageError
from .simulated_machine import Machine


class MemoryJournal:
    """Makes a power failure keep what the catalog holds. See `Journal`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def sync(self) -> None:
        """See `Journal.sync`."""
        machine = self._machine
        before = machine.synced_catalog
        # Not with the machine's lock held: another thread may be about to commit.
        now = None if before is None else serialized_catalog(machine)
        with machine.operation("catalog.sync", "", "sync the catalog"):
            # Unless meanwhile another thread has synced more.
            if machine.synced_catalog is before:
                machine.synced_catalog = now

    def close(self) -> None:
        """See `Journal.close`."""


def keep_catalog(filename: str) -> apsw.Connection:
    """A connection to it; SQLite frees a shared database in memory with the last one."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    return apsw.Connection(filename, flags=flags)


def serialized_catalog(machine: Machine) -> bytes:
    """What the catalog holds now."""
    keeper = machine.catalog_keeper
    assert keeper is not None
    keeper.set_busy_timeout(10_000)
    return keeper.serialize("main")


def restore_catalog(content: bytes, alive: Machine) -> None:
    """Let the catalog hold what it held once."""
    target = alive.catalog_keeper
    assert target is not None
    source = apsw.Connection(":memory:")
    try:
        source.deserialize("main", content)
        with target.backup("main", source, "main") as backup:
            backup.step(-1)
    finally:
        source.close()


def copy_catalog(dead: Machine, alive: Machine) -> None:
    """Copy the last commit of the dead machine's catalog."""
    source, target = dead.catalog_keeper, alive.catalog_keeper
    assert source is not None
    assert target is not None
    # Long enough for a commit that another thread is just making.
    source.set_busy_timeout(500)
    try:
        with target.backup("main", source, "main") as backup:
            backup.step(-1)
    except apsw.BusyError:
        raise UsageError(
            "a transaction is open on the catalog: end it, or close its connection, before crash()"
        ) from None
