"""`millstream backup` and `millstream restore`: a copy of the whole store, and the way back."""

from __future__ import annotations

from typing import Final

import click

from millstream import restore as restore_store

from .command import Command, examples
from .settings import settings

_MIB: Final = 1 << 20


@click.command(
    cls=Command,
    short_help="Copy the store as it is now, while others write.",
    epilog=examples(
        "millstream backup /backups/monday               a directory that shares sealed segments",
        "millstream backup /backups/monday.tar.zst       one compressed file",
    ),
)
@click.argument("destination", type=click.Path())
def backup(destination: str) -> None:
    """Copy the store to DESTINATION: a new directory, or a new file that ends in .tar.zst or .tzst.

    All topics, groups, transactions and checkpoints are those of one moment. In a directory on the
    same file system sealed segments take no space of their own.
    """
    current = settings()
    with current.open() as store:
        report = store.backup(destination)
    current.done(
        f"{report.segments} segments of {report.partitions} partitions,"
        f" {report.data_bytes / _MIB:.1f} MiB ({report.shared_bytes / _MIB:.1f} shared),"
        f" in {report.path}",
        **report._asdict(),
    )


@click.command(
    cls=Command,
    short_help="Make a store from a backup.",
    epilog=examples("millstream restore /backups/monday.tar.zst --dir /data/restored"),
)
@click.argument("source", type=click.Path())
@click.option("--shallow", is_flag=True, help="Check headers and the catalog, not every byte.")
def restore(source: str, shallow: bool) -> None:
    """Make a store in --dir from the backup SOURCE; --dir must not be there, or be empty.

    The copy is checked first, log against catalog; a damaged or incomplete backup is refused.
    """
    current = settings()
    report = restore_store(source, current.directory, deep=not shallow)
    current.done(
        f"restored {report.records} records of {report.partitions} partitions to"
        f" {current.directory}",
        path=current.directory,
        partitions=report.partitions,
        segments=report.segments,
        records=report.records,
        data_bytes=report.data_bytes,
    )
