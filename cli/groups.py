"""`millstream groups`: who reads what, how far behind, and moving offsets."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence

import click

from millstream import PartitionLag, ResetPlan, Store

from .command import Group, examples
from .complete import complete_group
from .output import Cell, print_rows
from .partitions import require_partitions
from .reset import Target, Topics, parse_target, parse_topics
from .settings import settings

_LIST_COLUMNS = ("group", "members", "partitions", "lag")
_LAG_COLUMNS = (
    "group",
    "topic",
    "partition",
    "current_offset",
    "log_end_offset",
    "lag",
    "lag_ms",
)
_DESCRIBE_COLUMNS = (*_LAG_COLUMNS, "consumer_id", "host", "client_id")
_RESET_COLUMNS = ("group", "topic", "partition", "current_offset", "new_offset")


@click.group(
    cls=Group,
    epilog=examples(
        "millstream groups ls",
        "millstream groups describe billing",
        "millstream groups reset billing --to-datetime 2026-11-23T10:00:00Z --yes",
    ),
)
def groups() -> None:
    """List and describe consumer groups, and move their offsets."""


@groups.command(
    short_help="List the groups with members and total lag.",
    epilog=examples("millstream groups ls", "millstream groups ls --output json"),
)
def ls() -> None:
    """List the groups with their members, committed partitions and total lag."""
    current = settings()
    with current.open(read_only=True) as store:
        rows = [_list_row(store, name) for name in store.groups()]
    print_rows("groups", rows, _LIST_COLUMNS, current.mode)


def _list_row(store: Store, name: str) -> dict[str, Cell]:
    lags = store.group_lag(name)
    return {
        "group": name,
        "members": len(store.group(name).members),
        "partitions": len(lags),
        "lag": sum(lag.lag or 0 for lag in lags),
    }


@groups.command(
    short_help="Show offsets, lag and members of a group.",
    epilog=examples("millstream groups describe billing"),
)
@click.argument("group", shell_complete=complete_group)
def describe(group: str) -> None:
    """Show offsets, lag and the member that reads, for each partition of GROUP.

    LAG-MS is how long the oldest unread record has been in the log. A partition that is read by
    nobody has no consumer.
    """
    _print_lag(group, _DESCRIBE_COLUMNS)


@groups.command(epilog=examples("millstream groups lag billing --output json"))
@click.argument("group", shell_complete=complete_group)
def lag(group: str) -> None:
    """Show how far GROUP is behind in each partition."""
    _print_lag(group, _LAG_COLUMNS)


def _print_lag(group: str, columns: Sequence[str]) -> None:
    current = settings()
    with current.open(read_only=True) as store:
        rows = [_lag_row(group, each) for each in store.group_lag(group)]
    print_rows("partitions", rows, columns, current.mode)


def _lag_row(group: str, each: PartitionLag) -> dict[str, Cell]:
    return {
        "group": group,
        "topic": each.topic,
        "partition": each.partition,
        "current_offset": each.committed,
        "log_end_offset": each.log_end,
        "lag": each.lag,
        "lag_ms": each.lag_ms,
        "consumer_id": each.member_id,
        "host": each.host,
        "client_id": each.client,
    }


@groups.command(
    short_help="Move the offsets of a group; shows the plan first.",
    epilog=examples(
        "millstream groups reset billing --to-earliest          shows the plan",
        "millstream groups reset billing --to-earliest --yes    does it",
        "millstream groups reset billing --shift-by -100 --topic orders:0,2 --yes",
        "millstream groups reset billing --by-duration PT1H --export > plan.csv",
        "millstream groups reset billing --from-file plan.csv --yes",
    ),
)
@click.argument("group", shell_complete=complete_group)
@click.option("--to-earliest", is_flag=True, help="To the first record kept.")
@click.option("--to-latest", is_flag=True, help="To the log end: skip everything.")
@click.option("--to-current", is_flag=True, help="To what is committed: for --export.")
@click.option("--to-offset", type=click.IntRange(min=0), help="To this offset.")
@click.option("--shift-by", type=int, metavar="N", help="N records on; back if negative.")
@click.option("--to-datetime", metavar="TIME", help="To the first record at or after TIME.")
@click.option("--by-duration", metavar="DURATION", help="To what came so long ago: PT1H, 15m.")
@click.option("--from-file", type=click.File("r"), help="Lines of topic,partition,offset.")
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="TOPIC[:0,1]",
    help="Only these; without, all partitions the group has committed.",
)
@click.option(
    "-y",
    "--yes",
    "--execute",
    is_flag=True,
    help="Do it; without, only the plan is shown. --execute as of Kafka's tool.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing. The default.")
@click.option("--export", is_flag=True, help="Print the plan as CSV for --from-file.")
def reset(group: str, topics: Sequence[str], **options: object) -> None:
    """Move the offsets of GROUP; shows the plan unless --yes is given.

    New offsets are brought into what the log holds. The group must have no live members: stop its
    consumers first (exit code 3 otherwise).
    """
    current = settings()
    yes = bool(options["yes"])
    if yes and options["dry_run"]:
        raise click.UsageError("--dry-run and --yes: give one of them")
    target = parse_target(options, time.time_ns() // 1_000_000)
    with current.open(read_only=not yes) as store:
        plan = _plan(store, group, target, parse_topics(topics))
        if yes:
            store.reset_group(plan)
    if options["export"]:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows((each.topic, each.partition, each.new) for each in plan.changes)
    else:
        rows = [
            {
                "group": group,
                "topic": each.topic,
                "partition": each.partition,
                "current_offset": each.current,
                "new_offset": each.new,
            }
            for each in plan.changes
        ]
        print_rows("plan", rows, _RESET_COLUMNS, current.mode)
    if not yes:
        current.say("nothing was changed: this is the plan, --yes does it")


def _plan(store: Store, group: str, target: Target, topics: Topics) -> ResetPlan:
    """Ask the store for a plan and keep the partitions that were named."""
    if target.offsets is not None:
        if topics:
            raise click.UsageError("--from-file names its partitions: no --topic")
        return store.plan_reset(group, target.offsets)
    plan = store.plan_reset(group, target.position, topics=list(topics), shift_by=target.shift_by)
    for topic, wanted in topics.items():
        require_partitions(topic, store.topic(topic).partitions, wanted or ())
    chosen = [
        each
        for each in plan.changes
        if (wanted := topics.get(each.topic)) is None or each.partition in wanted
    ]
    return plan._replace(changes=tuple(chosen))


@groups.command(epilog=examples("millstream groups rm billing --yes"))
@click.argument("group", shell_complete=complete_group)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(group: str, yes: bool) -> None:
    """Delete GROUP and the offsets it committed. Topics are not touched.

    The group must have no live members (exit code 3 otherwise).
    """
    current = settings()
    with current.open() as store:
        partitions = len(store.group(group).offsets)
        question = f"delete group {group!r} with its offsets in {partitions} partitions"
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"would {question}; --yes does it")
            click.confirm(f"{question}?", abort=True, err=True)
        store.delete_group(group)
    current.done(f"deleted group {group!r}", group=group, partitions=partitions)
