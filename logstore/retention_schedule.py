"""Carry retention out: in the background some seconds after an append, or when it is asked for.

What may go is decided in `retention.py`, how it goes in `trimming.py`. Deciding takes no lock: a
segment that may go now may go later too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .background import Background
from .components import Components
from .errors import UnknownTopicError
from .log import Log
from .progress_catalog import ProgressCatalog
from .record import TopicPartition
from .retention import RetentionBlocker, RetentionRules, SegmentInfo, removable
from .tail import Slot
from .trimming import trim

LOOK_SECONDS: Final = 5.0
WAIT_SECONDS_MAX: Final = 3600.0
"""A quiet topic is looked at again when something in it is due, at the latest after this."""


class RetentionReport(NamedTuple):
    """What retention removed, or with `dry_run` would, and what kept it from removing more."""

    removed: list[tuple[TopicPartition, SegmentInfo]]
    blockers: list[RetentionBlocker]
    """Groups which have not read what could go otherwise: by partition, the furthest behind first.
    """


class RetentionSchedule:
    """Removes what the configuration of a topic no longer keeps. Thread-safe.

    Args:
        components: Of the store.
        background: Where it is done.
        roll: Seals the active segment of a log.
    """

    def __init__(
        self, components: Components, background: Background, roll: Callable[[Log], None]
    ) -> None:
        self._c = components
        self._background = background
        self._roll = roll
        self._progress = ProgressCatalog(components.catalog)

    def appended(self, log: Log) -> None:
        """Look at the partition in a while."""
        self._background.submit(
            (log, "retention"), lambda: self._look(log), delay_seconds=LOOK_SECONDS
        )

    def _look(self, log: Log) -> None:
        try:
            self.retain(log)
        except UnknownTopicError:
            return
        age_ms = log.config.retention_ms
        if age_ms is None or log.gone or log.start_offset == log.slot[Slot.LOG_END]:
            return
        # Time alone makes the rest of a quiet topic old.
        oldest = log.files.infos()[0]
        rest_ms = oldest.max_timestamp_ms + age_ms - self._c.clock.now_ms()
        delay = min(max(rest_ms / 1000, LOOK_SECONDS), WAIT_SECONDS_MAX)
        self._background.submit(
            (log, "retention due"), lambda: self._look(log), delay_seconds=delay
        )

    def retain(self, log: Log, *, dry_run: bool = False) -> RetentionReport:
        """Remove the segments of a partition that its configuration no longer keeps."""
        config, now_ms = log.config, self._c.clock.now_ms()
        segments = [] if log.gone else log.files.infos()
        if not segments:
            return RetentionReport([], [])
        active = segments[-1]
        old = config.retention_ms is not None and (
            now_ms - active.max_timestamp_ms > config.retention_ms
        )
        if old and active.end_offset > active.base_offset:
            # Retention works on sealed segments; a quiet topic must not keep its last one.
            if not dry_run:
                self._roll(log)
            segments[-1] = active._replace(sealed=True)
        done_below = self._progress.done_below(log.topic_id, log.partition, config.retention_groups)
        rules = RetentionRules(
            config.retention_ms, config.retention_bytes, config.retention_limit_bytes
        )
        removal = removable(segments, rules, done_below, now_ms=now_ms)
        gone = segments[: removal.leading]
        if gone and not dry_run:
            removed = set(trim(self._c, log, gone[-1].end_offset))
            sizes = [each.size_bytes for each in gone if each.base_offset in removed]
            self._c.counters.retained(len(sizes), sum(sizes))
        place = TopicPartition(log.topic, log.partition)
        blockers = [
            RetentionBlocker(*place, group, max(done_below[group], log.start_offset), held_bytes)
            for group, held_bytes in removal.held_bytes.items()
        ]
        blockers.sort(key=lambda blocker: blocker.offset)
        return RetentionReport([(place, segment) for segment in gone], blockers)

    def passed(self, log: Log, segments: Sequence[SegmentInfo], end: int) -> list[RetentionBlocker]:
        """The groups of the configuration that still need records below `end`, with all of them."""
        done_below = self._progress.done_below(
            log.topic_id, log.partition, log.config.retention_groups
        )
        start = log.start_offset
        return [
            RetentionBlocker(
                log.topic,
                log.partition,
                group,
                max(offset, start),
                sum(
                    each.size_bytes
                    for each in segments
                    if each.end_offset > offset and each.base_offset < end
                ),
            )
            for group, offset in sorted(done_below.items(), key=lambda item: item[1])
            if max(offset, start) < end
        ]
