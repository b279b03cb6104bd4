"""`millstream topics`: list, create, describe, configure and cut topics."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

import millstream
from millstream import (
    MissingExtraError,
    OffsetOutOfRangeError,
    OffsetRange,
    Store,
    TopicInfo,
)

from .command import YES, Group, examples, users_topic
from .complete import complete_topic
from .format_string import rfc3339
from .output import Cell, Row, print_document, print_object, print_rows
from .partitions import parse_partitions, require_partitions
from .schema_file import read_schema, schema_fields
from .settings import Settings, settings

_LIST_COLUMNS = (
    "topic",
    "partitions",
    "offsets",
    "bytes",
    "retention_ms",
    "retention_bytes",
    "compact",
    "compression",
    "created",
)
_PARTITION_COLUMNS = ("partition", "start_offset", "end_offset", "offsets", "segments", "bytes")
_TRIM_COLUMNS = ("topic", "partition", "start_offset", "new_start_offset", "removed")


@click.group(
    cls=Group,
    epilog=examples(
        "millstream topics create orders -p 4 --retention 7d",
        "millstream topics ls",
        "millstream topics trim orders --before @-30d --yes",
    ),
)
def topics() -> None:
    """List, create, describe, configure and cut topics."""


@topics.command(
    short_help="List the topics.",
    epilog=examples("millstream topics ls", "millstream topics ls --output json"),
)
@click.option("--internal", is_flag=True, help="Also topics Millstream keeps for itself.")
def ls(internal: bool) -> None:
    """List the topics.

    OFFSETS is how long the log is. Fewer records can be read where some were compacted away, or
    belong to transactions that were aborted: they have offsets, too.
    """
    current = settings()
    with current.open(read_only=True) as store:
        rows = [_list_row(store, topic) for topic in store.topics(internal=internal)]
    if current.mode == "table":
        rows = [{**row, "created": _time(row["created"])} for row in rows]
    print_rows("topics", rows, _LIST_COLUMNS, current.mode)


def _list_row(store: Store, topic: TopicInfo) -> dict[str, Cell]:
    partitions = _partition_rows(store, topic)
    return {
        "topic": topic.name,
        "partitions": topic.partitions,
        "offsets": sum(int(row["offsets"] or 0) for row in partitions),
        "bytes": sum(int(row["bytes"] or 0) for row in partitions),
        "retention_ms": topic.config.retention_ms,
        "retention_bytes": topic.config.retention_bytes,
        "compact": topic.config.compact,
        "compression": topic.config.compression,
        "created": topic.created_ms,
    }


def _partition_rows(store: Store, topic: TopicInfo) -> list[Row]:
    rows: list[Row] = []
    for partition, offsets in sorted(store.offsets(topic.name).items()):
        segments = store.segments(topic.name, partition)
        rows.append(
            {
                "partition": partition,
                "start_offset": offsets.start,
                "end_offset": offsets.end,
                "offsets": offsets.end - offsets.start,
                "segments": len(segments),
                "bytes": sum(segment.size_bytes for segment in segments),
            }
        )
    return rows


@topics.command(
    epilog=examples(
        "millstream topics create orders -p 4",
        "millstream topics create clicks --retention 7d --max-bytes 10GB -z lz4",
        "millstream topics create users --compact tombstone_retention=48h",
        "millstream topics create small segment_bytes=1MiB",
        "millstream topics create bids --schema bid.json --key auction --time ts",
    )
)
@click.argument("name", callback=users_topic)
@click.argument("config", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-p", "--partitions", type=int, default=1, show_default=True, help="How many.")
@click.option("--retention", metavar="DURATION", help="Remove what is older: 12h, 7d.")
@click.option("--max-bytes", metavar="SIZE", help="Keep about so much per partition: 10GB.")
@click.option(
    "-z", "--compression", type=click.Choice(["none", "lz4", "zstd"]), help="Codec of batches."
)
@click.option("--compact", is_flag=True, help="Keep the last record of each key.")
@click.option("--exist-ok", is_flag=True, help="No error if it exists with as many partitions.")
@click.option(
    "--schema",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help='Fields as JSON: {"id": "int64", "name": "string?"}. Needs the extra `arrow`.',
)
@click.option("--key", metavar="FIELD", help="With --schema: the field that is the key.")
@click.option("--time", metavar="FIELD", help="With --schema: the field that is the timestamp.")
@click.option(
    "--values",
    "form",
    type=click.Choice(["columns", "json"]),
    help="With --schema: how values are stored.  [default: columns]",
)
def create(name: str, config: Sequence[str], partitions: int, **options: str | bool | None) -> None:
    """Create topic NAME. The number of partitions is final: keys are spread over them.

    With --schema its values are checked, and stored as Arrow columns: pip install
    'millstream[arrow]'. Field names and Arrow's types; a ? behind a type lets it be null.
    """
    current = settings()
    values = _parse_config(config)
    for option, field in (
        ("retention", "retention"),
        ("max_bytes", "retention_bytes"),
        ("compression", "compression"),
    ):
        if options[option] is not None:
            values[field] = options[option]
    if options["compact"]:
        values["compact"] = True
    values |= _declared(options)
    with millstream.open(":memory:") as trial:
        trial.create_topic(name, partitions=partitions, **values)  # a bad one leaves no directory
    with current.open(create=True) as store:
        exist_ok = bool(options["exist_ok"])
        # KEY=VALUE may hold any option; the store checks names and values.
        topic = store.create_topic(name, partitions=partitions, exist_ok=exist_ok, **values)
    current.done(
        f"topic {topic.name!r} has {_count(topic.partitions, 'partition')}",
        topic=topic.name,
        partitions=topic.partitions,
    )


def _declared(options: dict[str, str | bool | None]) -> dict[str, Any]:
    """What the options say of a schema."""
    path = options["schema"]
    given: dict[str, Any] = {
        name: options[name] for name in ("key", "time") if options[name] is not None
    }
    if options["form"] is not None:
        given["values"] = options["form"]
    if path is None:
        if given:
            raise click.UsageError("--key, --time and --values describe a schema: give --schema")
        return {}
    return {"schema": read_schema(str(path)), **given}


def _parse_config(pairs: Sequence[str]) -> dict[str, Any]:
    """Options from KEY=VALUE; "none" clears a retention."""
    config: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{pair!r} is not KEY=VALUE")
        if key in {"partitions", "exist_ok", "name", "schema", "key", "time", "values"}:
            raise click.UsageError(f"{key} is no topic option")
        config[key] = None if value == "none" and key.startswith("retention") else value
    return config


@topics.command(
    epilog=examples(
        "millstream topics describe orders", "millstream topics describe orders --output json"
    )
)
@click.argument("name", shell_complete=complete_topic)
def describe(name: str) -> None:
    """Show partitions, configuration and schema of topic NAME."""
    current = settings()
    with current.open(read_only=True) as store:
        topic = store.topic(name)
        partitions = _partition_rows(store, topic)
    schema = _schema(current, topic)
    fields: dict[str, Cell] = {
        "topic": topic.name,
        "created": topic.created_ms,
        "retention_ms": topic.config.retention_ms,
        "retention_bytes": topic.config.retention_bytes,
        "retention_groups": ",".join(topic.config.retention_groups) or None,
        "retention_limit_bytes": topic.config.retention_limit_bytes,
        "compact": topic.config.compact,
        "tombstone_retention_ms": topic.config.tombstone_retention_ms,
        "dedup_ms": topic.config.dedup_ms,
        "recompress": topic.config.recompress,
        "compression": topic.config.compression,
        "segment_bytes": topic.config.segment_bytes,
        "segment_ms": topic.config.segment_ms,
    }
    if topic.config.schema is not None:
        fields |= {
            "values": topic.config.values,
            "key": topic.config.key_column,
            "time": topic.config.time_column,
        }
    if current.mode in {"json", "jsonl"}:
        shown = {} if topic.config.schema is None else {"fields": schema}
        print_document({**fields, **shown, "partitions": partitions}, current.mode)
        return
    if current.mode == "table":
        print_object({**fields, "created": _time(topic.created_ms)}, "table")
        sys.stdout.write("\n")
        if schema is not None:
            columns = [{"field": field, "type": _shown(kind)} for field, kind in schema.items()]
            print_rows("fields", columns, ("field", "type"), "table")
            sys.stdout.write("\n")
    print_rows("partitions", partitions, _PARTITION_COLUMNS, current.mode)


def _schema(current: Settings, topic: TopicInfo) -> dict[str, object] | None:
    """The fields of a topic, as --schema takes them; None if there are none, or cannot be read."""
    try:
        return None if topic.schema is None else schema_fields(topic.schema)
    except MissingExtraError as error:
        current.say(f"the schema is not shown: {error}")
        return None


def _shown(kind: object) -> str:
    return kind if isinstance(kind, str) else json.dumps(kind, ensure_ascii=False)


@topics.command(
    "set",
    short_help="Change the configuration of a topic.",
    epilog=examples(
        "millstream topics set orders retention=7d compression=zstd",
        "millstream topics set orders retention=none",
    ),
)
@click.argument("name", shell_complete=complete_topic)
@click.argument("config", nargs=-1, required=True, metavar="KEY=VALUE...")
def set_config(name: str, config: Sequence[str]) -> None:
    """Change the configuration of topic NAME; holds from the next append on."""
    current = settings()
    values = _parse_config(config)
    with current.open() as store:
        store.configure_topic(name, **values)
    current.done(f"topic {name!r}: {', '.join(config)}", topic=name, config=values)


@topics.command(
    short_help="Delete a topic with its records and group offsets.",
    epilog=examples("millstream topics rm orders --yes"),
)
@click.argument("name", shell_complete=complete_topic)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(name: str, yes: bool) -> None:
    """Delete topic NAME with all its records and group offsets, for good."""
    current = settings()
    with current.open() as store:
        topic = store.topic(name)
        held = sum(offsets.end - offsets.start for offsets in store.offsets(name).values())
        held_in = f"{_count(held, 'offset')} in {_count(topic.partitions, 'partition')}"
        question = f"delete {name!r} with {held_in}"
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"would {question}; --yes does it")
            click.confirm(f"{question}?", abort=True, err=True)
        store.delete_topic(name)
    current.done(f"deleted {name!r}", topic=name, partitions=topic.partitions, removed_offsets=held)


@topics.command(
    short_help="Delete records before a position; shows the plan first.",
    epilog=examples(
        "millstream topics trim orders --before @-30d          shows what would go",
        "millstream topics trim orders --before 1000 -p 0 --yes",
    ),
)
@click.argument("name", shell_complete=complete_topic)
@click.option(
    "--before", metavar="POSITION", required=True, help="Offset, -N or @TIME to keep from."
)
@click.option("-p", "--partition", "partition_list", metavar="LIST", help="Only these: 0,2 or 0-3.")
@YES
def trim(name: str, before: str, partition_list: str | None, yes: bool) -> None:
    """Delete the records of topic NAME before a position; shows the plan unless --yes.

    Offsets are not reused: reading below the new start is an error. Files go when nothing in them
    is left.
    """
    current = settings()
    with current.open(read_only=not yes) as store:
        ranges = _chosen(store, name, partition_list)
        starts = {number: store.offset_at(name, number, before) for number in ranges}
        plan = [_trim_row(name, number, ranges[number], starts[number]) for number in ranges]
        if yes:
            store.trim(
                name, {number: max(starts[number], ranges[number].start) for number in ranges}
            )
    print_rows("plan", plan, _TRIM_COLUMNS, current.mode)
    if not yes:
        current.say("nothing was deleted: this is the plan, --yes does it")


def _trim_row(
    topic: str, partition: int, offsets: OffsetRange, wanted: int
) -> dict[str, str | int]:
    if wanted > offsets.end:
        raise OffsetOutOfRangeError(
            f"offset {wanted} is past the log end {offsets.end}", topic=topic, partition=partition
        )
    start = max(wanted, offsets.start)
    return {
        "topic": topic,
        "partition": partition,
        "start_offset": offsets.start,
        "new_start_offset": start,
        "removed": start - offsets.start,
    }


def _chosen(store: Store, name: str, partition_list: str | None) -> dict[int, OffsetRange]:
    """The partitions of a list with their offsets; all without a list."""
    ranges = dict(sorted(store.offsets(name).items()))
    if partition_list is None:
        return ranges
    wanted = parse_partitions(partition_list)
    require_partitions(name, len(ranges), wanted)
    return {partition: ranges[partition] for partition in wanted}


@topics.command(
    short_help="Start a new segment in each partition.",
    epilog=examples("millstream topics roll orders"),
)
@click.argument("name", shell_complete=complete_topic)
@click.option("-p", "--partition", "partition_list", metavar="LIST", help="Only these: 0,2 or 0-3.")
def roll(name: str, partition_list: str | None) -> None:
    """Seal the active segment of each partition of topic NAME and start a new one.

    Only sealed segments are removed by retention, and may be copied away.
    """
    current = settings()
    with current.open() as store:
        partitions = _chosen(store, name, partition_list)
        for partition in partitions:
            store.roll(name, partition)
    current.done(
        f"rolled {_count(len(partitions), 'partition')} of {name!r}",
        topic=name,
        partitions=list(partitions),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _time(timestamp_ms: Cell) -> str:
    assert isinstance(timestamp_ms, int)
    return rfc3339(timestamp_ms)
