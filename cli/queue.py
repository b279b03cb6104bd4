"""`millstream queue`: queues over topics, dead letters, and running a command for each job."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence

import click

from millstream import QueueInfo, UnknownGroupError

from .command import YES, Group, examples
from .complete import complete_group, complete_topic
from .output import Cell, print_rows
from .settings import settings
from .signals import StopSignals
from .work import Work, WorkOptions, parse_delay

_LIST_COLUMNS = (
    "topic",
    "group",
    "workers",
    "ready",
    "leased",
    "delayed",
    "dead_letters",
    "dead_letter_topic",
)
_PARTITION_COLUMNS = (
    "topic",
    "group",
    "partition",
    "next_offset",
    "log_end_offset",
    "ready",
    "leased",
    "delayed",
)
_WORKER_COLUMNS = ("topic", "group", "worker_id", "host", "pid", "client")


@click.group(
    cls=Group,
    epilog=examples(
        "millstream queue work jobs -- ./resize {}",
        "millstream queue ls",
        "millstream queue redrive jobs.dead",
    ),
)
def queue() -> None:
    """Work through topics job by job, and look after what failed."""


@queue.command(
    short_help="List the queues and how their jobs stand.",
    epilog=examples("millstream queue ls", "millstream queue ls --output json"),
)
def ls() -> None:
    """List the queues: workers, jobs ready, leased and delayed, dead letters not given back."""
    current = settings()
    with current.open(read_only=True) as store:
        rows = [_list_row(info) for info in store.queues()]
    print_rows("queues", rows, _LIST_COLUMNS, current.mode)


def _list_row(info: QueueInfo) -> dict[str, Cell]:
    return {
        "topic": info.topic,
        "group": info.group,
        "workers": len(info.workers),
        "ready": sum(each.ready for each in info.partitions),
        "leased": sum(each.leased for each in info.partitions),
        "delayed": sum(each.delayed for each in info.partitions),
        "dead_letters": info.dead_letters,
        "dead_letter_topic": info.dead_letter,
    }


@queue.command(
    short_help="Show the partitions of a queue, or its workers.",
    epilog=examples("millstream queue describe jobs", "millstream queue describe jobs --workers"),
)
@click.argument("topic", shell_complete=complete_topic)
@click.option("-g", "--group", shell_complete=complete_group, help="This queue of TOPIC only.")
@click.option("--workers", "show_workers", is_flag=True, help="Show who works, instead.")
def describe(topic: str, group: str | None, show_workers: bool) -> None:
    """Show how far the queues of TOPIC are in each partition."""
    current = settings()
    with current.open(read_only=True) as store:
        infos = [info for info in store.queues(topic) if group in {None, info.group}]
    if group is not None and not infos:
        raise UnknownGroupError(f"group {group!r} has no queue over the topic", topic=topic)
    if show_workers:
        print_rows("workers", _worker_rows(infos), _WORKER_COLUMNS, current.mode)
    else:
        print_rows("partitions", _partition_rows(infos), _PARTITION_COLUMNS, current.mode)


def _partition_rows(infos: Sequence[QueueInfo]) -> list[dict[str, Cell]]:
    return [
        {
            "topic": info.topic,
            "group": info.group,
            "partition": each.partition,
            "next_offset": each.next_offset,
            "log_end_offset": each.log_end,
            "ready": each.ready,
            "leased": each.leased,
            "delayed": each.delayed,
        }
        for info in infos
        for each in info.partitions
    ]


def _worker_rows(infos: Sequence[QueueInfo]) -> list[dict[str, Cell]]:
    return [
        {
            "topic": info.topic,
            "group": info.group,
            "worker_id": each.worker_id,
            "host": each.host,
            "pid": each.pid,
            "client": each.client,
        }
        for info in infos
        for each in info.workers
    ]


@queue.command(
    short_help="Give dead letters back to their queues.",
    epilog=examples("millstream queue redrive jobs.dead", "millstream queue redrive dead -n 1"),
)
@click.argument("topic", shell_complete=complete_topic)
@click.option("-n", "--num", "-c", type=click.IntRange(min=1), help="At most so many.")
def redrive(topic: str, num: int | None) -> None:
    """Give the dead letters of TOPIC back to the queues they come from, each once.

    They are delivered as the records they were. Where the record is not in its topic any more, or
    the queue is gone, a copy is appended.
    """
    current = settings()
    with current.open() as store:
        done = store.redrive(topic, limit=num)
    current.done(
        f"{done.given_back} given back, {done.copied} appended again, {done.left} left: no dead"
        " letters of a queue",
        topic=topic,
        **done._asdict(),
    )


@queue.command(
    short_help="Count jobs as done without doing them; shows the plan first.",
    epilog=examples(
        "millstream queue skip jobs --before latest          shows the plan",
        "millstream queue skip jobs --before latest --yes    does it",
    ),
)
@click.argument("topic", shell_complete=complete_topic)
@click.option(
    "-g",
    "--group",
    default="workers",
    show_default=True,
    shell_complete=complete_group,
    help="The queue.",
)
@click.option("--before", metavar="POSITION", required=True, help="Offset, time, or latest.")
@click.option("-p", "--partition", type=click.IntRange(min=0), help="This partition only.")
@YES
def skip(topic: str, group: str, before: str, partition: int | None, yes: bool) -> None:
    """Count all jobs of TOPIC before a position as done, leased ones too.

    Shows only how many there are unless --yes is given.
    """
    current = settings()
    with current.open() as store:
        count = store.skip_jobs(topic, group, before, partition=partition, dry_run=not yes)
    said = f"{count} skipped" if yes else f"{count} would be skipped; --yes does it"
    current.done(said, topic=topic, group=group, skipped=count, done=yes)


@queue.command(
    short_help="Run a command for each job; its exit code says whether it is done.",
    epilog=examples(
        "millstream queue work jobs -- ./resize {}",
        "millstream queue work mails -j 4 --retry 1m -- sendmail -t           on its input",
        "millstream queue work jobs --max-deliveries 5 --dead-letter jobs.dead -- curl -f {}",
        "millstream queue work jobs -e -- true                                until there is none",
    ),
)
@click.argument("topic", shell_complete=complete_topic)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-g",
    "--group",
    default="workers",
    show_default=True,
    shell_complete=complete_group,
    help="The queue.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 1024), default=1, help="So many at a time. [default: 1]"
)
@click.option("-n", "--num", "-c", type=click.IntRange(min=1), help="Exit after so many jobs.")
@click.option("-e", "--exit-eof", is_flag=True, help="Exit when there is no job.")
@click.option(
    "--visibility",
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="Lease of a job; renewed while the command runs.",
)
@click.option(
    "--retry", metavar="DURATION", default="0", help="Wait before a failed job comes again. [0]"
)
@click.option("--max-deliveries", type=click.IntRange(min=1), help="Then it is a dead letter.")
@click.option("--dead-letter", metavar="TOPIC", help="Where dead letters go.")
@click.option(
    "-o",
    "--offset",
    metavar="POSITION",
    default="beginning",
    help="Where a new queue begins. [beginning]",
)
def work(topic: str, command: Sequence[str], **options: str | int | bool | None) -> int:
    """Run COMMAND for each job of TOPIC. Exit code 0 acks the job; any other gives it back.

    {} in COMMAND stands for the value of the record, {key} for its key. Without {} the value comes
    on standard input. The environment has MILLSTREAM_TOPIC, _PARTITION, _OFFSET, _KEY,
    _TIMESTAMP_MS and _DELIVERIES.

    Ctrl-C or SIGTERM lets running commands finish and exits. With -e or -n the exit code is 1 if a
    job failed.
    """
    current = settings()
    if "{" not in command[0] and shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}")
    chosen = WorkOptions(
        command=tuple(command),
        parallel=int(options["jobs"] or 1),
        count=None if options["num"] is None else int(options["num"]),
        at_end=bool(options["exit_eof"]),
        retry_ms=parse_delay(str(options["retry"])),
    )
    most = options["max_deliveries"]
    with (
        StopSignals() as stop,
        current.open() as store,
        store.queue(
            topic,
            group=str(options["group"]),
            visibility=str(options["visibility"]),
            max_deliveries=None if most is None else int(most),
            dead_letter=None if options["dead_letter"] is None else str(options["dead_letter"]),
            start=str(options["offset"]),
        ) as source,
    ):
        done = Work(source, chosen, say=current.say).run(stop)
    current.done(
        f"{shlex.join(command)}: {done.acked} acked, {done.failed} failed",
        topic=topic,
        group=options["group"],
        acked=done.acked,
        failed=done.failed,
    )
    if done.failed and (chosen.at_end or chosen.count is not None):
        return 1
    return stop.exit_code
