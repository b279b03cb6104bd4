"""`millstream compact` and `retention`: what the background does, done now or only shown."""

from __future__ import annotations

import click

from millstream import CompactionResult, RetentionReport

from .command import Command, examples
from .complete import complete_topic
from .format_string import rfc3339
from .output import Mode, Row, print_document, print_rows
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


_REMOVED_COLUMNS = ("topic", "partition", "base_offset", "end_offset", "bytes", "newest")
_BLOCKER_COLUMNS = ("topic", "partition", "group", "offset", "held_bytes")


@click.command(
    cls=Command,
    short_help="Remove what topics no longer keep; show who holds back what.",
    epilog=examples(
        "millstream retention --dry-run",
        "millstream retention orders",
    ),
)
@click.argument("topic", required=False, shell_complete=complete_topic)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
def retention(topic: str | None, dry_run: bool) -> None:
    """Remove the segments of TOPIC, or of all topics, which their configuration no longer keeps.

    Then lists the groups that hold back others: what they have not done begins at OFFSET.
    """
    current = settings()
    with current.open(read_only=dry_run) as store:
        report = store.apply_retention(topic, dry_run=dry_run)
    _print_report(report, current.mode)
    if dry_run:
        current.say("nothing was removed: this is what would be")


def _print_report(report: RetentionReport, mode: Mode) -> None:
    removed: list[Row] = [
        {
            "topic": place.topic,
            "partition": place.partition,
            "base_offset": segment.base_offset,
            "end_offset": segment.end_offset,
            "bytes": segment.size_bytes,
            "newest": rfc3339(segment.max_timestamp_ms)
            if mode == "table"
            else segment.max_timestamp_ms,
        }
        for place, segment in report.removed
    ]
    blockers: list[Row] = [blocker._asdict() for blocker in report.blockers]
    if mode in {"json", "jsonl"}:
        print_document({"removed": removed, "blockers": blockers}, mode)
        return
    print_rows("removed", removed, _REMOVED_COLUMNS, mode)
    if blockers:
        print_rows("blockers", blockers, _BLOCKER_COLUMNS, mode)
