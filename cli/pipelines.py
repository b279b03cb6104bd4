"""`millstream graph`, `checkpoints`, `fork` and `diff`: pipelines seen from outside."""

from __future__ import annotations

from collections.abc import Iterator

import click

from millstream import Store
from millstream.processor import (
    PipelineInfo,
    compare_fork,
    forget_checkpoints,
    fork as fork_pipeline,
    keep_checkpoint,
    list_checkpoints,
    list_pipelines,
)

from .command import Command, examples
from .format_string import rfc3339
from .loading import load_pipeline
from .output import Row, print_document, print_rows
from .replay import EXIT_DIFFERS
from .settings import NotFoundError, settings

_CHECKPOINT_COLUMNS = (
    "pipeline",
    "epoch",
    "topic",
    "partition",
    "offset",
    "lag",
    "watermark",
    "kept",
)


@click.command(
    cls=Command,
    short_help="Draw a pipeline as a Mermaid flowchart.",
    epilog=examples("millstream graph app:pipeline > pipeline.mmd"),
)
@click.argument("target", metavar="MODULE:PIPELINE")
@click.option("--text", is_flag=True, help="Print the indented tree instead.")
def graph(target: str, text: bool) -> None:
    """Draw the pipeline named PIPELINE in the Python module MODULE; runs nothing."""
    pipeline, mode = load_pipeline(target), settings().mode
    form, drawn = ("text", pipeline.explain()) if text else ("mermaid", pipeline.mermaid())
    if mode in {"json", "jsonl"}:
        print_document({"pipeline": pipeline.name, form: drawn}, mode)
    else:
        click.echo(drawn)


@click.command(
    cls=Command,
    short_help="Show where pipelines stand; keep checkpoints.",
    epilog=examples(
        "millstream checkpoints",
        "millstream checkpoints revenue --output json",
        "millstream checkpoints revenue --keep        to come back to it",
        "millstream checkpoints revenue --forget 42",
    ),
)
@click.argument("pipeline", required=False)
@click.option("--keep", is_flag=True, help="Keep the last checkpoint until it is forgotten.")
@click.option(
    "--forget", metavar="EPOCH", type=int, multiple=True, help="Keep a checkpoint no more."
)
def checkpoints(pipeline: str | None, keep: bool, forget: tuple[int, ...]) -> None:
    """Show the checkpoints of PIPELINE, or of all: epoch, next offsets, lag, event time.

    A run goes on from the last one. Those with a time under `kept` can be gone back to:
    `verify --since EPOCH`, `fork --at EPOCH`, `state get --at EPOCH`. `process --keep-every 1h`
    keeps some as it runs. To keep one is to keep the state that was written since, on disk; nothing
    is copied. --keep and --forget are for pipelines that do not run.
    """
    current = settings()
    if (keep or forget) and pipeline is None:
        raise click.UsageError("--keep and --forget go with PIPELINE")
    with current.open(read_only=not keep and not forget) as store:
        names = [one.name for one in list_pipelines(store) if pipeline in {None, one.name}]
        if pipeline is not None and not names:
            raise NotFoundError(f"no pipeline {pipeline!r} has run here")
        for name in names:
            if forget:
                forget_checkpoints(store, name, forget)
            if keep:
                keep_checkpoint(store, name)
        rows = [
            row
            for name in names
            for one in list_checkpoints(store, name)
            for row in _rows(one, store)
        ]
    print_rows("checkpoints", rows, _CHECKPOINT_COLUMNS, current.mode)


def _rows(checkpoint: PipelineInfo, store: Store) -> Iterator[Row]:
    """A row for each input partition."""
    kept_ms = checkpoint.kept_ms
    there = {info.name for info in store.topics(internal=True)}
    for (topic, partition), offset in sorted(checkpoint.positions.items()):
        level = checkpoint.watermarks_ms.get(topic)
        yield {
            "pipeline": checkpoint.name,
            "epoch": checkpoint.epoch,
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "lag": store.offsets(topic)[partition].end - offset if topic in there else None,
            "watermark": None if level is None else rfc3339(level),
            "kept": None if kept_ms is None else rfc3339(kept_ms),
        }


@click.command(
    cls=Command,
    short_help="Copy a pipeline's state and place under another name.",
    epilog=examples(
        "millstream fork revenue revenue-fix",
        "millstream fork revenue revenue-fix --at 42     as it was at a checkpoint that was kept",
    ),
)
@click.argument("pipeline")
@click.argument("name")
@click.option("--at", "epoch", metavar="EPOCH", type=int, help="Of a checkpoint that was kept.")
def fork(pipeline: str, name: str, epoch: int | None) -> None:
    """Copy state, offsets and event time of PIPELINE to a new pipeline NAME, all or nothing.

    Run new code as `Pipeline(NAME)` from there, with outputs of its own; or verify the original
    from there: `millstream verify MODULE:PIPELINE --since NAME`. `millstream diff` compares
    what the two have written.
    """
    current = settings()
    with current.open() as store:
        fork_pipeline(store, pipeline, name, epoch=epoch)
    stood = "stood" if epoch is None else f"stood at epoch {epoch}"
    said = f"{name} goes on where {pipeline} {stood}"
    current.done(said, pipeline=pipeline, name=name, epoch=epoch)


@click.command(
    cls=Command,
    short_help="Compare what a fork has written with its original.",
    epilog=examples("millstream diff revenue-fix totals=totals.fix late=late.fix"),
)
@click.argument("name")
@click.argument("topics", metavar="TOPIC=TOPIC...", nargs=-1, required=True)
def diff(name: str, topics: tuple[str, ...]) -> int:
    """Hold what the fork NAME has written against what the original has written since.

    Each TOPIC=TOPIC names a topic of the original and that of the fork. Run both to the same end
    of the input first. Prints the first difference of each partition; exit code 1 if there is one.
    """
    current = settings()
    pairs = _pairs(topics)
    with current.open(read_only=True) as store:
        found = compare_fork(store, name, pairs)
    if current.mode in {"json", "jsonl"}:
        document = {
            "ok": found.ok,
            "pipeline": found.pipeline,
            "records_compared": found.records_compared,
            "differences": list(map(str, found.differences)),
        }
        print_document(document, current.mode)
    else:
        for difference in found.differences:
            click.echo(str(difference))
    current.say(
        f"{name} and {found.pipeline}: {found.records_compared} records are the same,"
        f" {len(found.differences) or 'no'} partition{'s' * (len(found.differences) != 1)}"
        f" differ{'s' * (len(found.differences) == 1)}"
    )
    return 0 if found.ok else EXIT_DIFFERS


def _pairs(topics: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in topics:
        topic, equals, copy = each.partition("=")
        if not (topic and equals and copy) or topic in found:
            raise click.BadParameter(f"{each!r} is not TOPIC=TOPIC, or the first is there twice")
        found[topic] = copy
    return found
