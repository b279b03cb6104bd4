"""`millstream compact`: what the background does by itself, done now or only shown."""

from __future__ import annotations

import click

from millstream import CompactionResult

from .command import Command, examples
from .complete import complete_topic
from .output import Row, print_rows
from .partitions import parse_partitions, require_partitions
from .settings import settings

_COMPACT_COLUMNS = (
    "topic",
    "partition",
    "removed_records",
    "segments_before",
    "segments_after",
    "bytes_before",
    "bytes_after",
    "end_offset",
)


@click.command(
    cls=Command,
    short_help="Remove records that later ones of the same key replace.",
    epilog=examples(
        "millstream compact users --dry-run",
        "millstream compact users -p 0,2",
    ),
)
@click.argument("topic", shell_complete=complete_topic)
@click.option("-p", "--partition", "partition_list", metavar="LIST", help="Only these: 0,2 or 0-3.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def compact(topic: str, partition_list: str | None, dry_run: bool) -> None:
    """Compact TOPIC, which was created with --compact; others may write and read meanwhile.

    Seals the active segments first. Segment and byte counts are those of sealed segments; a dry
    run looks at those that are sealed already.
    """
    current = settings()
    wanted: list[int | None] = [None]
    with current.open(read_only=dry_run) as store:
        if partition_list is not None:
            numbers = parse_partitions(partition_list)
            require_partitions(topic, store.topic(topic).partitions, numbers)
            wanted = [*numbers]
        results = [
            result
            for partition in wanted
            for result in store.compact(topic, partition, dry_run=dry_run)
        ]
    print_rows("compaction", [_row(result) for result in results], _COMPACT_COLUMNS, current.mode)
    if dry_run:
        current.say("nothing was removed: this is what would be")


def _row(result: CompactionResult) -> Row:
    return {column: getattr(result, column) for column in _COMPACT_COLUMNS}
