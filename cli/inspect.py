"""`millstream dump` and `verify` look at what is on disk and change nothing; `repair` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import click
import msgspec

from millstream import (
    BatchDump,
    DataError,
    Record,
    SegmentDump,
    VerifyFinding,
    VerifyReport,
    dump_segment,
    plan_repair,
    repair as do_repair,
)

from .command import YES, Command, examples
from .complete import complete_topic
from .envelope import to_text
from .format_string import rfc3339
from .output import Cell, print_document, print_rows
from .repair_plan import explain_plan, plan_document
from .replay import verify_pipeline
from .settings import Settings, settings

EXIT_CORRUPT = 4

_CODECS = {0: "none", 1: "lz4", 2: "zstd"}
_FINDING_COLUMNS = ("kind", "topic", "partition", "path", "position", "offset", "problem")


@click.command(
    cls=Command,
    short_help="Show the batches of segment files.",
    epilog=examples(
        "millstream dump millstream-data/topics/orders/0/*.segment",
        "millstream dump --print 00000000000000000000.segment",
    ),
)
@click.argument("segments", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--deep", is_flag=True, help="Also list the records.")
@click.option("--print", "with_data", is_flag=True, help="Also print keys and values.")
def dump(segments: Sequence[str], deep: bool, with_data: bool) -> int:
    """Show the batches of SEGMENT files, each with its checks. They need not be in a store.

    Exit code 4 if bytes are found that are no whole batch. In the active segment of a store these
    can be a write that was under way; opening the store repairs it. With --output jsonl each
    segment is a line.
    """
    mode = settings().mode
    documents = []
    problems = 0
    for path in segments:
        segment = dump_segment(path, records=deep or with_data)
        problems += segment.problem is not None
        if mode in {"json", "jsonl"}:
            batches = [_batch_document(each, with_data=with_data) for each in segment.batches]
            problems += sum(each["problem"] is not None for each in batches)
            documents.append({**_segment_document(path, segment), "batches": batches})
            if mode == "jsonl":
                print_document(documents.pop(), mode)
            continue
        click.echo(_segment_line(path, segment))
        for batch in segment.batches:
            problems += batch.problem is not None
            for line in _batch_lines(batch, with_data=with_data):
                click.echo(line)
    if mode == "json":
        print_document({"segments": documents}, mode)
    sys.stdout.flush()
    if problems:
        click.echo(f"millstream: problems found: {problems}", err=True)
    return EXIT_CORRUPT if problems else 0


def _segment_line(path: str, segment: SegmentDump) -> str:
    header = segment.header
    if header is None:
        return f"{path}: {segment.file_bytes} bytes, INVALID: {segment.problem}"
    return (
        f"{path}: {segment.file_bytes} bytes, base offset {header.base_offset}, "
        f"created {rfc3339(header.created_ms)}, segment uid {header.segment_uid:016x}"
    )


def _batch_lines(batch: BatchDump, *, with_data: bool) -> Iterator[str]:
    header = batch.header
    if header is None:
        yield f"position {batch.position}: {batch.size_bytes} INVALID bytes: {batch.problem}"
        return
    valid = "valid" if batch.problem is None else f"INVALID: {batch.problem}"
    transaction = f" transaction {header.transaction_id}" if header.transaction_id else ""
    yield (
        f"position {batch.position}: offsets {header.base_offset} to {header.last_offset} "
        f"count {header.record_count} bytes {batch.size_bytes} "
        f"codec {_CODECS.get(header.codec, header.codec)} "
        f"time {rfc3339(header.min_timestamp_ms)} to {rfc3339(header.max_timestamp_ms)} "
        f"sequence {header.sequence}{transaction} {valid}"
    )
    for record in batch.records:
        line = (
            f"| offset {record.offset} time {rfc3339(record.timestamp_ms)} "
            f"key {_length(record.key)} value {_length(record.value)} "
            f"headers {len(record.headers)}"
        )
        yield f"{line} {record.key!r}: {record.value!r}" if with_data else line


def _length(data: bytes | None) -> str:
    return "null" if data is None else str(len(data))


def _segment_document(path: str, segment: SegmentDump) -> dict[str, object]:
    header = segment.header
    return {
        "path": path,
        "size_bytes": segment.file_bytes,
        "base_offset": header and header.base_offset,
        "created": header and header.created_ms,
        "segment_uid": header and f"{header.segment_uid:016x}",
        "problem": segment.problem,
    }


def _batch_document(batch: BatchDump, *, with_data: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "position": batch.position,
        "size_bytes": batch.size_bytes,
        "problem": batch.problem,
    }
    header = batch.header
    if header is not None:
        document |= {
            "base_offset": header.base_offset,
            "last_offset": header.last_offset,
            "record_count": header.record_count,
            "codec": _CODECS.get(header.codec, str(header.codec)),
            "flags": header.flags,
            "min_timestamp": header.min_timestamp_ms,
            "max_timestamp": header.max_timestamp_ms,
            "append_timestamp": header.append_timestamp_ms,
            "sequence": header.sequence,
            "transaction_id": header.transaction_id,
        }
    if batch.records:
        document["records"] = [_record_document(record, with_data) for record in batch.records]
    return document


def _record_document(record: Record, with_data: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "offset": record.offset,
        "timestamp": record.timestamp_ms,
        "key_bytes": None if record.key is None else len(record.key),
        "value_bytes": None if record.value is None else len(record.value),
        "headers": len(record.headers),
    }
    if with_data:
        document["key"] = msgspec.to_builtins(to_text(record.key))
        document["value"] = msgspec.to_builtins(to_text(record.value))
    return document


@click.command(
    cls=Command,
    short_help="Check the store, a topic, or what a pipeline has written.",
    epilog=examples(
        "millstream verify",
        "millstream verify app:pipeline             replay it and compare, writing nothing",
        "millstream verify app:pipeline --since 42  from a checkpoint that was kept on",
        "millstream verify app:pipeline --from @-1h the results of the last hour alone",
        "millstream verify orders --deep --json",
        "millstream verify --deep --explain",
    ),
)
@click.argument(
    "topic", metavar="[TOPIC|MODULE:PIPELINE]", required=False, shell_complete=complete_topic
)
@click.option(
    "--since",
    metavar="EPOCH|NAME",
    help="Replay a pipeline from a checkpoint that was kept, or from a fork of it, on.",
)
@click.option(
    "--from",
    "start",
    metavar="POSITION",
    help="Compare what comes of the input from here on: an offset, @TIME, -10.",
)
@click.option("--deep", is_flag=True, help="Check every byte, and that every record decodes.")
@click.option("--explain", is_flag=True, help="Also say what is lost and what `repair` would do.")
def verify(
    topic: str | None,
    since: str | None,
    start: str | None,
    deep: bool,
    explain: bool,
) -> int:
    """Check TOPIC, or the whole store and its catalog: headers, links, offsets, sizes, indexes.

    Findings go to stdout with topic, partition, file, position and offset. With --deep, none means
    that every record can be read. Torn tails and indexes that have to be built again are notes:
    they cost no record and go away by themselves. Nothing is repaired. Exit code 4 if there are
    findings. --explain needs the store to be closed by all who write, and reads all of it.

    MODULE:PIPELINE is replayed over what it has read, ticks of the clock included, and compared
    record by record with what it has written; nothing is written. It starts at the beginning of the
    input, or with the state of a checkpoint (`millstream checkpoints` lists those that are kept).
    --from starts at the last one before a position, and passes over what was written up to there.
    Exit code 1 if something differs; the first difference of each partition is printed.
    """
    if topic is not None and ":" in topic:
        if deep or explain:
            raise click.UsageError("--deep and --explain go with topics, not with a pipeline")
        return verify_pipeline(topic, since, start)
    if since is not None or start is not None:
        raise click.UsageError("--since and --from go with MODULE:PIPELINE")
    current = settings()
    try:
        with current.open(read_only=True) as store:
            report = store.verify(topic, deep=deep)
    except DataError as error:
        if not explain:
            raise
        # The catalog: nothing can be looked up in it, but what repair would do can be said.
        report = VerifyReport(deep)
        place = (error.topic, error.partition, error.path, error.position, error.offset)
        report.add(VerifyFinding(*place, error.message, "catalog"))
    mode = current.mode
    findings: list[dict[str, Cell]] = [finding._asdict() for finding in report.findings]
    notes: list[dict[str, Cell]] = [note._asdict() for note in report.notes]
    if mode == "json":
        lists: dict[str, object] = {"findings": findings, "notes": notes}
        if explain:
            lists["repair"] = plan_document(plan_repair(current.directory))
        print_document({"ok": report.ok, "deep": deep, **_counts(report), **lists}, mode)
    elif findings or notes or mode != "table":
        print_rows("findings", [*findings, *notes], _FINDING_COLUMNS, mode)
    counts = ", ".join(
        f"{value} {name.replace('_', ' ')}" for name, value in _counts(report).items()
    )
    current.say(f"{counts}: {len(findings) or 'no'} problem{'s' * (len(findings) != 1)} found")
    if explain and mode != "json":
        explain_plan(plan_repair(current.directory), mode)
    return 0 if report.ok else EXIT_CORRUPT


@click.command(
    cls=Command,
    short_help="Save what can be saved of a damaged store; shows the plan first.",
    epilog=examples(
        "millstream repair                     shows what would be done and what is lost",
        "millstream repair --yes",
    ),
)
@YES
@click.option(
    "--undecided",
    type=click.Choice(["hide", "show"]),
    default="hide",
    show_default=True,
    help="Transactions of whose end a lost catalog knows nothing: abort or commit them.",
)
@click.option(
    "--lost-database",
    metavar="PATH",
    help="Abort transactions that wait for this database of yours, which is lost for good.",
)
def repair(yes: bool, undecided: str, lost_database: str | None) -> int:
    """Make a damaged store whole: what can be read stays, at its offsets; what is lost is a gap.

    Nothing is deleted: damaged files go to a directory `quarantine` beside them. Every process must
    have closed the store. Exit code 4 if there is something to repair, or that cannot be repaired.
    """
    current = settings()
    current.require_store()
    if lost_database is not None:
        return _give_up(current, lost_database, yes=yes)
    if yes:
        plan = do_repair(current.directory, show_undecided=undecided == "show")
    else:
        plan = plan_repair(current.directory)
    mode = current.mode
    if mode == "json":
        print_document(plan_document(plan), mode)
    else:
        explain_plan(plan, mode)
    if not yes and not plan.empty:
        current.say("nothing was changed: this is the plan, --yes does it")
    if plan.report_path:
        current.say(f"the report is in {current.directory}/{plan.report_path}")
    return EXIT_CORRUPT if plan.refused or (plan.actions and not yes) else 0


def _give_up(current: Settings, path: str, *, yes: bool) -> int:
    """Abort what hangs on a database that is lost."""
    if os.path.exists(path):
        raise click.UsageError(f"{path} is there: open the store, and it is asked")
    if not yes:
        said = f"transactions that wait for {path} would be aborted: --yes does it"
        current.done(said, path=path, done=False)
        return EXIT_CORRUPT
    with current.open() as store:
        count = store.abandon_database(path)
    said = f"{count} transaction{'s' * (count != 1)} aborted"
    current.done(said, path=path, done=True, transactions=count)
    return 0


def _counts(report: VerifyReport) -> dict[str, int]:
    return {
        "partitions": report.partitions,
        "segments": report.segments,
        "batches": report.batches,
        "records": report.records,
        "data_bytes": report.data_bytes,
    }
