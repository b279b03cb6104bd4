"""Topics of an open store: create, list, delete, positions to offsets, trim and retention."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from .config import (
    TopicConfig,
    TopicInfo,
    check_internal_name,
    check_partition_count,
    check_topic_name,
    is_internal,
)
from .engine import Engine
from .errors import CorruptSegmentError, TopicExistsError, UsageError
from .log import Log, partition_directory
from .positions import Position, parse_position
from .reader import LogReader
from .record import TopicPartition
from .retention import SegmentInfo
from .segment import base_offset_of, read_segment_header, segment_path


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
        return info
    engine.tail.bump("topics_version")
    return info


def _create(engine: Engine, name: str, partitions: int, config: TopicConfig) -> TopicInfo:
    # With the append lock, as `delete` has it: files found here are nobody's.
    with engine.append_lock:
        if all(info.name != name for info in engine.topics()):
            _remove_deleted(engine, name)
        return engine.catalog.create_topic(name, partitions, config, engine.clock.now_ms())


def _remove_deleted(engine: Engine, name: str) -> None:
    """Remove what a `delete` that was cut off has left of an earlier topic of this name.

    Raises:
        DataError: Files of another store, or of this one from before its catalog was lost.
    """
    storage = engine.storage
    parent = _topic_directory(name)
    directories = [f"{parent}/{each}" for each in storage.list(parent) if each.isdigit()]
    for directory in directories:
        for file in storage.list(directory):
            base = base_offset_of(file)
            if base is None:
                continue
            header = read_segment_header(storage, directory, base)
            if header.store_uid != engine.catalog.store_uid:
                raise CorruptSegmentError(
                    "there is a segment of another store where the topic would be created, or"
                    " catalog.db was lost: restore it, or move the directory away",
                    topic=name,
                    path=segment_path(directory, base),
                )
    for directory in directories:
        _remove_tree(engine, directory)


def _topic_directory(name: str) -> str:
    return partition_directory(name, 0).rsplit("/", 1)[0]


def delete(engine: Engine, name: str) -> None:
    """Delete a topic: first from the catalog, then its files.

    What a crash in between leaves is removed when a topic of that name is created again.
    """
    engine.ensure_writable()
    info = engine.topic(name)
    logs = [engine.log(name, number) for number in range(info.partitions)]
    with engine.append_lock:
        engine.catalog.delete_topic(name)
        engine.tail.bump("topics_version")
        engine.topics()  # drops the logs, so that nobody appends to them
        for log in logs:
            log.close()
            _remove_tree(engine, log.directory)
        storage = engine.storage
        parent = _topic_directory(name)
        if not storage.list(parent):
            storage.remove_directory(parent)


def _remove_tree(engine: Engine, directory: str) -> None:
    storage = engine.storage
    for folder in (f"{directory}/quarantine", directory):
        for name in storage.list(folder):
            if f"{folder}/{name}" != f"{directory}/quarantine":
                storage.remove(f"{folder}/{name}")
        if storage.exists(folder):
            # Or they could come back among the files of a new topic of this name.
            storage.sync_directory(folder)
        storage.remove_directory(folder)


def configure(engine: Engine, name: str, options: Mapping[str, object]) -> TopicInfo:
    """Change options of a topic; see `Store.configure_topic`."""
    engine.ensure_writable()
    config = engine.topic(name).config.with_options(**options)
    info = engine.catalog.set_topic_config(name, config)
    engine.tail.bump("topics_version")
    return info


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
    ranges = {}
    for _, number in partitions(engine, topic, None):
        log = engine.log(topic, number)
        ranges[number] = OffsetRange(log.start_offset, log.visible_offset)
    return ranges


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


def _offset_at_time(engine: Engine, log: Log, timestamp_ms: int) -> int:
    """Offset of the first record whose timestamp is not before `timestamp_ms`, else the end.

    The index holds running maxima, so the first batch that may hold it is found at once even
    where timestamps are out of order.
    """
    start, end = log.start_offset, log.visible_offset
    bases = [base for base in log.files.bases() if base < end]
    for number, base in enumerate(bases):
        following = bases[number + 1] if number + 1 < len(bases) else end
        if following <= start:
            continue
        position = log.files.index(base).find_timestamp(timestamp_ms)
        if position is None:
            continue
        first = max(start, log.files.offset_at(base, position))
        return _search(engine, log, first, timestamp_ms)
    return end


def _search(engine: Engine, log: Log, first: int, timestamp_ms: int) -> int:
    partition = TopicPartition(log.topic, log.partition)
    with LogReader(engine, {partition: first}, isolation="uncommitted") as reader:
        while batches := reader.poll():
            for batch in batches:
                if batch.header.max_timestamp_ms < timestamp_ms:
                    continue
                for offset, written_ms in zip(batch.offsets, batch.timestamps_ms, strict=True):
                    if written_ms >= timestamp_ms:
                        return offset
    return log.visible_offset


def trim(engine: Engine, topic: str, before: Mapping[int, int]) -> None:
    """Raise the start offset of partitions; see `Store.trim`."""
    engine.ensure_writable()
    for number, offset in before.items():
        log = engine.log(topic, number)
        with engine.append_lock, engine.changing_locked(log):
            log.trim_locked(offset)


def roll(engine: Engine, topic: str, partition: int) -> None:
    """Start a new segment."""
    engine.ensure_writable()
    log = engine.log(topic, partition)
    with engine.append_lock:
        log.prepare_locked()
        with engine.changing_locked(log):
            log.roll_locked()


def retain_all(engine: Engine, *, dry_run: bool) -> list[tuple[TopicPartition, SegmentInfo]]:
    """Apply retention to every topic that has any; what was, or would be, removed."""
    if not dry_run:
        engine.ensure_writable()
    removed = []
    for info in engine.topics():
        if info.config.retention_ms is None and info.config.retention_bytes is None:
            continue
        for partition in partitions(engine, info.name, None):
            log = engine.log(*partition)
            removed += [(partition, gone) for gone in engine.retain(log, dry_run=dry_run)]
    return removed
