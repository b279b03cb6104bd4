"""What `millstream verify` does with a pipeline: replay it, and compare."""

from __future__ import annotations

import click

from millstream import Store
from millstream.processor import list_pipelines

from .loading import load_pipeline
from .output import print_document
from .settings import settings

EXIT_DIFFERS = 1


def verify_pipeline(target: str, since: str | None, start: str | None, *, as_json: bool) -> int:
    """Replay a pipeline and compare; prints what differs and returns the exit code."""
    current = settings()
    pipeline = load_pipeline(target)
    with current.open(read_only=True) as store:
        found = pipeline.verify(store, since=_checkpoint(store, since), start=start)
    if as_json or current.mode in {"json", "jsonl"}:
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
        }
        print_document(document, "jsonl" if current.mode == "jsonl" else "json")
    else:
        for difference in found.differences:
            click.echo(str(difference))
    for place in found.skipped:
        current.say(f"{place.topic}/{place.partition}: not compared, its first records are gone")
    current.say(
        f"{pipeline.name}: {found.records_in} records replayed from {found.started_at},"
        f" {found.records_compared} results"
        f" compared: {len(found.differences) or 'no'} partition"
        f"{'s' * (len(found.differences) != 1)} differ{'s' * (len(found.differences) == 1)}"
    )
    return 0 if found.ok else EXIT_DIFFERS


def _checkpoint(store: Store, since: str | None) -> str | int | None:
    """A number is an epoch, unless a pipeline is called so."""
    if since is None or not since.isdecimal():
        return since
    return since if any(each.name == since for each in list_pipelines(store)) else int(since)
