"""Upkeep that is asked for: trim, retention and compaction, now or only to be shown."""

from __future__ import annotations

from collections.abc import Mapping

from . import topics, trimming
from .compactor import CompactionResult, Compactor
from .engine import Engine
from .errors import UsageError
from .format import SEGMENT_HEADER_BYTES
from .log import Log
from .record import TopicPartition
from .retention_schedule import RetentionReport
from .tail import Slot


def compact(
    engine: Engine, topic: str, partition: int | None, *, dry_run: bool
) -> list[CompactionResult]:
    """Compact some or all partitions of a topic; see `Store.compact`."""
    if not dry_run:
        engine.ensure_writable()
    if not engine.topic(topic).config.rewrites_segments:
        raise UsageError(
            "the topic is not compacted: configure `compact`, or `recompress` as zstd",
            topic=topic,
        )
    results = []
    for each in topics.partitions(engine, topic, partition):
        log = engine.log(*each)
        compactor = Compactor(engine.components, engine.transactions, log, dry_run=dry_run)
        if not dry_run:
            engine.compactions.stop(log)
            _seal(engine, log)
        for _ in compactor.run():
            engine.ensure_open()
        results.append(compactor.result)
    return results


def _seal(engine: Engine, log: Log) -> None:
    """Seal the active segment if it holds anything, and make it durable."""
    if log.slot[Slot.END_POSITION] > SEGMENT_HEADER_BYTES:
        engine.roll(log)
    log.wait_durable(log.slot[Slot.ACTIVE_BASE])


def trim(
    engine: Engine, topic: str, before: Mapping[int, int], *, dry_run: bool
) -> RetentionReport:
    """Raise the start offset of partitions; see `Store.trim`."""
    if not dry_run:
        engine.ensure_writable()
    if not isinstance(before, Mapping):
        raise UsageError(
            f"trim takes the offset of each partition, {{0: {before!r:.60}}} say", topic=topic
        )
    report = RetentionReport([], [])
    for number, offset in before.items():
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise UsageError(
                f"the offset to trim before is {offset!r}; give a whole number of at least 0",
                topic=topic,
                partition=number,
            )
    logs = {number: engine.log(topic, number) for number in before}
    for number, offset in before.items():
        log = logs[number]
        place = TopicPartition(topic, number)
        end = min(offset, log.visible_offset)
        segments = log.files.infos()
        gone = [each for each in segments if each.sealed and each.end_offset <= end]
        report.removed.extend((place, each) for each in gone)
        report.blockers.extend(engine.retention.passed(log, segments, end))
        if not dry_run:
            trimming.trim(engine.components, log, offset)
    return report


def retain_all(engine: Engine, topic: str | None, *, dry_run: bool) -> RetentionReport:
    """Apply retention to one topic or to every one that has any."""
    if not dry_run:
        engine.ensure_writable()
    report = RetentionReport([], [])
    for info in engine.topics() if topic is None else [engine.topic(topic)]:
        if not info.config.removes_segments:
            continue
        for place in topics.partitions(engine, info.name, None):
            found = engine.retention.retain(engine.log(*place), dry_run=dry_run)
            report.removed.extend(found.removed)
            report.blockers.extend(found.blockers)
    return report
