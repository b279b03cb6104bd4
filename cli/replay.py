"""What `millstream verify` does with a pipeline: replay it, and compare."""

from __future__ import annotations

import click

from .loading import load_pipeline
from .output import print_document
from .settings import settings

EXIT_DIFFERS = 1


def verify_pipeline(target: str, since: str | None, *, as_json: bool) -> int:
    """Replay a pipeline and compare; prints what differs and returns the exit code."""
    current = settings()
    pipeline = load_pipeline(target)
    with current.open(read_only=True) as store:
        found = pipeline.verify(store, since=since)
    if as_json or current.mode in {"json", "jsonl"}:
        document = {
            "ok": found.ok,
            "records_in": found.records_in,
            "records_compared": found.records_compared,
            "differences": list(map(str, found.differences)),
            "skipped": [f"{place.topic}/{place.partition}" for place in found.skipped],
        }
        print_document(document, "jsonl" if current.mode == "jsonl" else "json")
    else:
        for difference in found.differences:
            click.echo(str(difference))
    for place in found.skipped:
        current.say(f"{place.topic}/{place.partition}: not compared, its first records are gone")
    current.say(
        f"{pipeline.name}: {found.records_in} records replayed, {found.records_compared} results"
        f" compared: {len(found.differences) or 'no'} partition"
        f"{'s' * (len(found.differences) != 1)} differ{'s' * (len(found.differences) == 1)}"
    )
    return 0 if found.ok else EXIT_DIFFERS
