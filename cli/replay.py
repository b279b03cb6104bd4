"""What `millstream verify` does with a pipeline: replay it, and compare."""

from __future__ import annotations

import click

from millstream import Store
from millstream.processor import SinkComparison, list_pipelines

from .loading import load_pipeline
from .output import print_document
from .settings import settings

EXIT_DIFFERS = 1


def verify_pipeline(target: str, since: str | None, start: str | None) -> int:
    """Replay a pipeline and compare; prints what differs and returns the exit code."""
    current = settings()
    pipeline = load_pipeline(target)
    with current.open(read_only=True) as store:
        found = pipeline.verify(store, since=_checkpoint(store, since), start=start)
    if current.mode in {"json", "jsonl"}:
        document = {
            "ok": found.ok,
            "started_at": found.started_at,
            "records_in": found.records_in,
            "records_compared": found.records_compared,
            "differences": [
                {
                    "topic": difference.topic,
                    "partition": difference.partition,
                    "offset": difference.offset,
                    "problem": str(difference),
                }
                for difference in found.differences
            ],
            "skipped": [f"{place.topic}/{place.partition}" for place in found.skipped],
            "sinks": [_sink_document(each) for each in found.sinks],
            "hint": found.hint,
        }
        print_document(document, current.mode)
    else:
        for difference in found.differences:
            click.echo(str(difference))
        for sink in found.sinks:
            if sink.difference is not None:
                click.echo(f"sink {sink.sink}: {sink.difference}")
    for place in found.skipped:
        current.say(f"{place.topic}/{place.partition}: not compared, its first records are gone")
    for sink in found.sinks:
        if sink.skipped is not None:
            current.say(f"sink {sink.sink}: not compared, {sink.skipped}")
        else:
            current.say(f"sink {sink.sink}: {sink.records_compared} records compared")
    count = len(found.differences) + sum(each.difference is not None for each in found.sinks)
    what = "partition or sink" if found.sinks else "partition"
    plural = "partitions or sinks" if found.sinks else "partitions"
    current.say(
        f"{pipeline.name}: {found.records_in} records replayed from {found.started_at},"
        f" {found.records_compared} results compared:"
        f" {count or 'no'} {what if count == 1 else plural} differ{'s' * (count == 1)}"
    )
    if found.hint:
        current.say(f"hint: {found.hint}")
    return 0 if found.ok else EXIT_DIFFERS


def _sink_document(sink: SinkComparison) -> dict[str, object]:
    difference = sink.difference
    return {
        "sink": sink.sink,
        "records_compared": sink.records_compared,
        "difference": None if difference is None else difference._asdict(),
        "skipped": sink.skipped,
    }


def _checkpoint(store: Store, since: str | None) -> str | int | None:
    """A number is an epoch, unless a pipeline is called so."""
    if since is None or not since.isdecimal():
        return since
    return since if any(each.name == since for each in list_pipelines(store)) else int(since)
