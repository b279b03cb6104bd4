"""Upkeep that is asked for: compact a topic now, wherever the background stands."""

from __future__ import annotations

from . import topics
from .compactor import CompactionResult, Compactor
from .engine import Engine
from .errors import UsageError
from .format import SEGMENT_HEADER_BYTES
from .log import Log
from .tail import Slot


def compact(
    engine: Engine, topic: str, partition: int | None, *, dry_run: bool
) -> list[CompactionResult]:
    """Compact some or all partitions of a topic; see `Store.compact`."""
    if not dry_run:
        engine.ensure_writable()
    if not engine.topic(topic).config.compact:
        raise UsageError("the topic is not compacted: configure it with compact=True", topic=topic)
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
