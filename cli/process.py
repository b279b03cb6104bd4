"""`millstream process`: import a pipeline and run it over the store. No semantics of its own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click
import msgspec

from millstream import RecordError, parse_duration_ms
from millstream.processor import ChangedPlanError, Metrics, Pipeline, dry_run as dry_run_over

from .command import Command, examples
from .envelope import to_text
from .format_string import rfc3339
from .loading import load_pipeline, print_user_frames
from .output import Mode, Row, print_document, print_rows
from .progress import CatchUp, StatusLine
from .settings import settings
from .signals import StopSignals

_OPERATOR_COLUMNS: Final = (
    "label",
    "records_in",
    "records_out",
    "busy_s",
    "late",
    "skipped",
    "state_records",
    "watermark_ms",
    "watermark_lag_ms",
)


@click.command(
    cls=Command,
    short_help="Run a pipeline, exactly once.",
    epilog=examples(
        "millstream process app:pipeline                 run until stopped",
        "millstream process app:pipeline --until end     stop when caught up",
        "millstream process app:pipeline --explain       show the plan, run nothing",
        "millstream process app:pipeline --dry-run --from @-1h   print, write nothing",
    ),
)
@click.argument("target", metavar="MODULE:PIPELINE")
@click.option("--until", type=click.Choice(["end"]), help="Stop when all input has been read.")
@click.option(
    "--on-end",
    type=click.Choice(["hold", "flush"]),
    default="hold",
    show_default=True,
    help="With --until end: keep open windows for the next run, or close them all.",
)
@click.option("--batch-records", type=click.IntRange(min=1), help="Most records per step.")
@click.option(
    "--keep-every", metavar="DURATION", help="Keep a checkpoint so often, to go back to: 1h, 1d."
)
@click.option(
    "--keep",
    "keep_count",
    metavar="COUNT",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="With --keep-every: as many are kept; the oldest goes first.",
)
@click.option("--epoch", metavar="DURATION", help="Commit about so often. [default: 100ms]")
@click.option(
    "--from",
    "start",
    metavar="POSITION",
    help="With --dry-run: where to begin, earliest by default: an offset, @TIME, -10.",
)
@click.option(
    "--dry-run", is_flag=True, help="Write nothing: print what would be written as JSON lines."
)
@click.option("--metrics", is_flag=True, help="At the end, list what each operator has done.")
@click.option("--explain", is_flag=True, help="Print the plan and exit.")
@click.option("--progress/--no-progress", default=None, help="A status line on stderr.")
def process(
    target: str,
    explain: bool,
    progress: bool | None,
    dry_run: bool,
    metrics: bool,
    **options: str | int | None,
) -> int:
    """Run the pipeline named PIPELINE in the Python module MODULE, exactly once.

    The module is looked for in the current directory first. PIPELINE is a `Pipeline`, or a
    function without arguments that returns one. The run goes on where the last one stopped,
    however it did; only one process can run a pipeline at a time (exit code 3 otherwise).

    Ctrl-C or SIGTERM finishes the running epoch and exits; a second one exits at once, and the
    next run does again what was not committed.

    With --output json what was done is printed at the end, that of each operator included.
    """
    current = settings()
    pipeline = load_pipeline(target)
    if explain:
        _print_plan(pipeline, current.mode)
        return 0
    if dry_run:
        _print_dry_run(pipeline, str(options["start"] or "earliest"))
        return 0
    if options["start"] is not None:
        raise click.UsageError("--from goes with --dry-run: a pipeline goes on where it stopped")
    catching_up = CatchUp()
    status = StatusLine(False if current.quiet else progress)

    def show(done: Metrics) -> None:
        if status.due():
            status.show(_summary(done, catching_up.text(done.records_in, done.lag)))

    epoch = options["epoch"]
    # Input that comes from outside needs no store to be there before.
    create = all(source.source is not None for source in pipeline.plan.sources())
    with StopSignals() as stop, current.open(create=create) as store:
        try:
            with status:
                result = pipeline.run(
                    store,
                    until="end" if options["until"] else None,
                    on_end="flush" if options["on_end"] == "flush" else "hold",
                    batch_records=_int_or_none(options["batch_records"]),
                    epoch_ms=100 if epoch is None else parse_duration_ms(str(epoch)),
                    keep_every=options["keep_every"],
                    keep_count=int(options["keep_count"] or 0),
                    stop=stop,
                    on_progress=show,
                )
        except ChangedPlanError as error:
            raise error.told_for(target) from None
        except RecordError as error:
            if error.__cause__ is not None:
                # The message says which record; the author of the function needs the line, too.
                print_user_frames(error.__cause__)
            raise
        current.say(f"{pipeline.name}: {_summary(result)}")
        _print_result(pipeline, result, current.mode, operators=metrics)
        return stop.exit_code


def _print_result(pipeline: Pipeline, result: Metrics, mode: Mode, *, operators: bool) -> None:
    if mode in {"json", "jsonl"}:
        print_document({"pipeline": pipeline.name, **asdict(result)}, mode)
    elif operators:
        rows: list[Row] = [
            {**asdict(one), "busy_s": round(one.busy_s, 3)} for one in result.operators
        ]
        print_rows("operators", rows, _OPERATOR_COLUMNS, mode)


def _print_plan(pipeline: Pipeline, mode: Mode) -> None:
    if mode in {"json", "jsonl"}:
        print_document({"pipeline": pipeline.name, "text": pipeline.explain()}, mode)
    else:
        click.echo(pipeline.explain())


def _print_dry_run(pipeline: Pipeline, start: str) -> None:
    with settings().open(read_only=True) as store:
        for place, batch in dry_run_over(pipeline.plan, store, start):
            for timestamp_ms, key, value, _ in batch.rows():
                line = {
                    "topic": place.topic,
                    "partition": place.partition,
                    "timestamp": timestamp_ms,
                    "key": to_text(key),
                    "value": to_text(value),
                }
                click.echo(msgspec.json.encode(line).decode())


def _int_or_none(value: str | int | None) -> int | None:
    return None if value is None else int(value)


def _summary(metrics: Metrics, rate: str | None = None) -> str:
    """What was done; with a rate, what is to be done before it: narrow terminals cut the end."""
    counts = [
        f"{metrics.records_in} records in, {metrics.records_out} out, {metrics.late} late, "
        f"{metrics.dead_letters} dead letters, {metrics.epochs} epochs"
    ]
    lags = [f"lag {metrics.lag}"]
    lags += [
        f"source {name} {size} bytes behind"
        for name, size in metrics.source_lag_bytes.items()
        if size
    ]
    if rate is None:
        parts = [*counts, *lags]
    else:
        commit = f"commit {metrics.epoch_s * 1000:.0f} ms"
        parts = [*lags, *filter(None, [rate]), *counts, commit]
    parts += [f"sink {name} lag {behind}" for name, behind in metrics.sink_lag.items()]
    if metrics.watermark_ms is not None:
        parts.append(f"watermark {rfc3339(metrics.watermark_ms)}")
    return ", ".join(parts)
