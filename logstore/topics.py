"""Topics of an open store: create, list, delete, roll, positions to offsets."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, Literal, NamedTuple

from .arrow_batch import chosen_fields
from .column_batch import check_declared
from .components import partition_directory, topic_directory
from .config import (
    TopicConfig,
    TopicInfo,
    check_internal_name,
    check_partition_count,
    check_topic_name,
    is_internal,
)
from .engine import Engine
from .errors import (
    CorruptSegmentError,
    DataError,
    TopicExistsError,
    UsageError,
    outside_log,
)
from .index import INDEX_INTERVAL_BYTES
from .log import Log
from .positions import Position, parse_position
from .reader import LogReader
from .record import TopicPartition
from .segment import base_offset_of
from .tail import DELETED, SLOTS_MAX, Slot
from .topic_schema import check_evolution, declared_schema, no_schema, stored_form, stored_schema

_DELETED: Final = "deleted"
"""A file with this name beside the partitions says that they are being deleted."""


class OffsetRange(NamedTuple):
    """The offsets [start, end) that can be read."""

    start: int
    end: int


def create(
    engine: Engine, name: str, *, partitions: int, exist_ok: bool, config: TopicConfig
) -> TopicInfo:
    """Create a topic durably; see `Store.create_topic`."""
    engine.ensure_writable()
    check_internal_name(name) if is_internal(name) else check_topic_name(name)
    check_partition_count(partitions)
    try:
        info = _create(engine, name, partitions, config)
    except TopicExistsError:
        info = engine.topic(name)
        if not exist_ok:
            raise
        if info.partitions != partitions:
            raise TopicExistsError(
                f"the topic exists with {info.partitions} partitions, not {partitions}", topic=name
            ) from None
        if info.config.schema != config.schema:
            raise TopicExistsError(
                "the topic exists with another schema: change it with configure_topic(schema=)",
                topic=name,
            ) from None
        _require_same_columns(info, config)
        return info
    engine.tail.bump("topics_version")
    return info


def _require_same_columns(info: TopicInfo, config: TopicConfig) -> None:
    """Refuse what a topic with a schema can never become.

    Raises:
        TopicExistsError: It has another declared key or time, or stores its values otherwise.
    """
    found, wanted = _declared(info.config), _declared(config)
    for what, one, other in zip(("key", "time", "values"), found, wanted, strict=True):
        if one != other:
            raise TopicExistsError(
                f"the topic exists with {what}={one!r}, not {other!r}, which cannot be changed:"
                " give what it has, or make another topic",
                topic=info.name,
            ) from None


def _declared(config: TopicConfig) -> tuple[str | None, str | None, str]:
    """Key, time and values, as `create_topic` takes them."""
    return config.key_column, config.time_column, "columns" if config.columnar else "json"


def _create(engine: Engine, name: str, partitions: int, config: TopicConfig) -> TopicInfo:
    # With the append lock, as `delete` has it: files found here are nobody's.
    with engine.append_lock.let_go_at_interrupt, engine.append_lock:
        if engine.catalog.topic(name) is None:
            _remove_deleted(engine, name)
        if engine.catalog.slots() + partitions > SLOTS_MAX:
            raise UsageError(f"a store has at most {SLOTS_MAX} partitions, deleted ones included")
        return engine.catalog.create_topic(name, partitions, config, engine.clock.now_ms())


def _remove_deleted(engine: Engine, name: str) -> None:
    """Finish a `delete` that was cut off, of an earlier topic of this name.

    Raises:
        CorruptSegmentError: There are segments, and nobody has deleted them.
    """
    storage = engine.storage
    parent = topic_directory(name)
    directories = [f"{parent}/{each}" for each in storage.list(parent) if each.isdigit()]
    if storage.exists(f"{parent}/{_DELETED}"):
        _remove_files(engine, parent, directories)
        return
    for directory in directories:
        for file in storage.list(directory):
            if base_offset_of(file) is not None:
                raise CorruptSegmentError(
                    "here are records of a topic which the catalog does not know: catalog.db is"
                    " older than the log. Restore both from the same backup, or move them away",
                    topic=name,
                    path=f"{directory}/{file}",
                )


def delete(engine: Engine, name: str) -> None:
    """Delete a topic: first from the catalog, then its files.

    If a crash comes in between, creating a topic of that name again removes the rest.
    """
    engine.ensure_writable()
    info = engine.topic(name)
    storage, parent = engine.storage, topic_directory(name)
    logs = _intact_logs(engine, info)
    with engine.append_lock.let_go_at_interrupt, engine.append_lock:
        # Proof for `create` that the files are to go, and not what the catalog has lost.
        storage.make_directory(parent)
        if not storage.exists(f"{parent}/{_DELETED}"):
            storage.open(f"{parent}/{_DELETED}", "x").close()
        storage.sync_directory(parent)
        slots = [engine.catalog.partition(info.id, n).slot for n in range(info.partitions)]
        engine.catalog.delete_topic(name)
        for slot in slots:
            engine.tail.slot(slot)[Slot.POISONED] = DELETED
        engine.tail.bump("topics_version")
        engine.topics()  # drops the logs, so that nobody appends to them
        for log in logs:
            log.close()
        numbers = range(info.partitions)
        _remove_files(engine, parent, [partition_directory(name, number) for number in numbers])
    engine.tail.wake()  # followers, to be told


def _intact_logs(engine: Engine, info: TopicInfo) -> list[Log]:
    logs = []
    for number in range(info.partitions):
        # A damaged partition cannot be opened, but it can be deleted.
        with contextlib.suppress(DataError):
            logs.append(engine.log(info.name, number))
    return logs


def _remove_files(engine: Engine, parent: str, directories: Sequence[str]) -> None:
    storage = engine.storage
    for directory in directories:
        _remove_tree(engine, directory)
    # Only when the others are gone for good: without it they would be taken for lost records.
    storage.sync_directory(parent)
    storage.remove(f"{parent}/{_DELETED}")
    if not storage.list(parent):
        storage.remove_directory(parent)


def _remove_tree(engine: Engine, directory: str) -> None:
    storage = engine.storage
    for folder in (f"{directory}/quarantine", directory):
        for name in storage.list(folder):
            if f"{folder}/{name}" != f"{directory}/quarantine":
                storage.remove(f"{folder}/{name}")
        storage.remove_directory(folder)


def configure(engine: Engine, name: str, options: Mapping[str, object]) -> TopicInfo:
    """Change options of a topic; see `Store.configure_topic`."""
    engine.ensure_writable()
    before = engine.topic(name).config
    changes = dict(options)
    declaration = changes.pop("schema", None)
    config = before.with_options(**changes)
    if declaration is not None:
        try:
            config = evolved(config, declaration)
        except UsageError as error:
            raise error.at(topic=name) from None
    info = engine.catalog.set_topic_config(name, config)
    engine.tail.bump("topics_version")
    return info


def with_schema(
    config: TopicConfig,
    declaration: object,
    *,
    key: str | None = None,
    time: str | None = None,
    values: Literal["columns", "json"] = "columns",
) -> TopicConfig:
    """The configuration of a new topic with a schema; see `Store.create_topic`."""
    if declaration is None:
        if key is not None or time is not None or values != "columns":
            raise UsageError("key, time and values need a schema: give schema= as well")
        return config
    schema = declared_schema(declaration)
    check_declared(schema, key, time)
    return replace(
        config,
        schema=stored_form(schema),
        values=values,
        key_column=key,
        time_column=time,
    )


def evolved(config: TopicConfig, declaration: object) -> TopicConfig:
    """A configuration under a later schema.

    Raises:
        UsageError: The topic has no schema, or it cannot change like this.
    """
    if config.schema is None:
        raise UsageError(
            "the topic was created without a schema, and cannot get one: copy it to one with it"
        )
    schema = declared_schema(declaration)
    check_evolution(stored_schema(config.schema), schema)
    check_declared(schema, config.key_column, config.time_column)
    return replace(config, schema=stored_form(schema))


def listing(engine: Engine, *, internal: bool) -> list[TopicInfo]:
    """Topics by name."""
    found = [info for info in engine.topics() if internal or not is_internal(info.name)]
    return sorted(found, key=lambda info: info.name)


def partitions(engine: Engine, topic: str, partition: int | None) -> list[TopicPartition]:
    """The partition asked for, or all of a topic."""
    info = engine.topic(topic)
    if partition is None:
        return [TopicPartition(topic, number) for number in range(info.partitions)]
    engine.log(topic, partition)  # UnknownTopicError if there is no such partition
    return [TopicPartition(topic, partition)]


def offset_ranges(engine: Engine, topic: str) -> dict[int, OffsetRange]:
    """What can be read of each partition."""
    return {
        number: offset_range(engine.log(topic, number))
        for _, number in partitions(engine, topic, None)
    }


def offset_range(log: Log) -> OffsetRange:
    """What can be read of one partition."""
    return OffsetRange(log.start_offset, log.visible_offset)


def resolve(
    engine: Engine, partition: TopicPartition, position: int | str | datetime | Position
) -> int:
    """The offset a position stands for in one partition.

    Relative positions and times are brought into the log; an offset is taken as it is, because
    reading from one that does not exist is an error the reader reports.
    """
    log = engine.log(*partition)
    kind, value = parse_position(position, engine.clock.now_ms())
    start, end = log.start_offset, log.visible_offset
    if kind == "earliest":
        return start
    if kind == "latest":
        return end
    if kind == "tail":
        return max(start, end - value)
    if kind == "after_start":
        return min(end, start + value)
    if kind == "timestamp":
        return _offset_at_time(engine, log, value)
    if kind == "stored":
        raise UsageError("stored offsets belong to a group: consume with a group name")
    return value


def check_columns(engine: Engine, topic: str, columns: Sequence[str]) -> None:
    """Refuse to read columns that are not there; UsageError."""
    schema = engine.topic(topic).schema
    if schema is None:
        raise no_schema(topic, "read columns")
    try:
        chosen_fields(schema, columns)
    except UsageError as error:
        raise error.at(topic=topic) from None


def check_starts(engine: Engine, starts: Mapping[TopicPartition, int]) -> None:
    """Refuse to read from where no record is or will be next.

    Raises:
        OffsetOutOfRangeError: Below the log start of a partition, or past the end of all of them.
    """
    ranges = {each: offset_range(engine.log(*each)) for each in starts}
    past_all = all(start > ranges[each].end for each, start in starts.items())
    for (topic, partition), offset in starts.items():
        start, end = ranges[TopicPartition(topic, partition)]
        if past_all or offset < start:
            raise outside_log(topic, partition, offset, start, end)


def _offset_at_time(engine: Engine, log: Log, timestamp_ms: int) -> int:
    """Offset of the first record whose timestamp is not before `timestamp_ms`, else the end.

    Raises:
        DataError: It may be behind damage.
    """
    start, end = log.start_offset, log.visible_offset
    try:
        first = log.files.offset_before_time(timestamp_ms, start, end)
    except DataError as error:
        raise error.at(topic=log.topic, partition=log.partition) from None
    return end if first is None else _search(engine, log, first, timestamp_ms)


def _search(engine: Engine, log: Log, first: int, timestamp_ms: int) -> int:
    partition = TopicPartition(log.topic, log.partition)
    with LogReader(engine, {partition: first}, isolation="uncommitted") as reader:
        while batches := reader.poll(max_bytes=INDEX_INTERVAL_BYTES):
            for batch in batches:
                if batch.header.max_timestamp_ms < timestamp_ms:
                    continue
                for offset, written_ms in zip(batch.offsets, batch.timestamps_ms, strict=True):
                    if written_ms >= timestamp_ms:
                        return offset
    return log.visible_offset


def roll(engine: Engine, topic: str, partition: int) -> None:
    """Start a new segment."""
    engine.ensure_writable()
    engine.roll(engine.log(topic, partition))
