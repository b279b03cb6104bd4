"""`millstream check`: one line and an exit code, as monitors that run Nagios plugins read them.

What is looked at comes from `Store.metrics` and `Store.verify`; what it means from `thresholds.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import click

from millstream import DataError, GroupMetrics, MillstreamError, Store, StoreMetrics
from millstream.processor import list_pipelines

from .command import Command, examples
from .output import print_document
from .settings import Settings, settings
from .thresholds import (
    EXIT_CODES,
    Limit,
    Status,
    parse_duration_limit,
    parse_free_limit,
    parse_lag_limit,
    parse_named,
    worst,
)

MIN_FREE: Final = "5%:256MiB"
MAX_OPEN: Final = "10m:1h"
_EACH: Final = "*"


class Finding(NamedTuple):
    """What one check says."""

    status: Status
    check: str
    message: str


class Value(NamedTuple):
    """A number beside its limit, for the graphs of a monitor."""

    name: str
    value: float
    limit: Limit

    def __str__(self) -> str:
        name = self.name.replace("'", "").replace("=", "_")
        warning = "" if self.limit.warning is None else f"{self.limit.warning:.15g}"
        critical = f"{self.limit.critical:.15g}"
        return f"'{name}'={self.value:.15g}{self.limit.unit};{warning};{critical}"


class _UnknownError(click.ClickException):
    """Could not be checked at all; a monitor takes 3 for that, and 2 for the worst."""

    exit_code = EXIT_CODES["UNKNOWN"]


class _CheckCommand(Command):
    """A command whose wrong use is no alarm."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _UnknownError(error.format_message()) from None


class _Limits(NamedTuple):
    """What the command line allows."""

    lag: Mapping[str, Limit]
    age: Mapping[str, Limit]
    free: str
    open: Limit
    stall: Limit | None


@click.command(
    cls=_CheckCommand,
    short_help="Say OK, WARNING or CRITICAL, for monitors.",
    epilog=examples(
        "millstream check",
        "millstream check --max-lag billing=1000:5000 --max-lag audit=10m",
        "millstream check --max-age orders=5m:1h --min-free 10%:2GB",
        "millstream check --max-lag '*=1h' --json",
    ),
)
@click.option(
    "--max-lag",
    "lag",
    metavar="GROUP=[WARN:]CRIT",
    multiple=True,
    help="Records a group may be behind, or for how long: 1000, 5m. GROUP * is every other.",
)
@click.option(
    "--max-age",
    "age",
    metavar="TOPIC=[WARN:]CRIT",
    multiple=True,
    help="For how long nothing may be appended to a topic.",
)
@click.option(
    "--min-free",
    "free",
    metavar="[WARN:]CRIT",
    default=MIN_FREE,
    show_default=True,
    help="Room on the file system: a size or a percentage.",
)
@click.option(
    "--max-open",
    "max_open",
    metavar="[WARN:]CRIT",
    default=MAX_OPEN,
    show_default=True,
    help="For how long a transaction may keep readers waiting.",
)
@click.option(
    "--max-stall",
    "stall",
    metavar="[WARN:]CRIT",
    help="For how long input of a pipeline, of any, may stay unprocessed.",
)
@click.option(
    "--verify/--no-verify",
    "with_verify",
    default=True,
    show_default=True,
    help="Read the headers of all batches to find damage.",
)
def check(with_verify: bool, **options: str | Sequence[str] | None) -> int:
    """Look at the store and print one line: what is wrong, and numbers to draw.

    Exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN: it could not be checked, or a group or topic
    that is named is not there. Damage, and a partition that accepts nothing since a sync failed,
    are always critical. Nothing is changed.
    """
    current = settings()
    values: list[Value] = []
    try:
        found = _look(current, _limits(options), values, with_verify=with_verify)
    except DataError as error:
        found = [Finding("CRITICAL", "store", str(error))]
    except (MillstreamError, OSError) as error:
        found = [Finding("UNKNOWN", "store", str(error))]
    except click.ClickException as error:
        found = [Finding("UNKNOWN", "store", error.format_message())]
    status = worst([each.status for each in found])
    if current.mode in {"json", "jsonl"}:
        _print_json(status, found, values, current)
    else:
        click.echo(_line(status, found, values))
    return EXIT_CODES[status]


def _limits(options: Mapping[str, str | Sequence[str] | None]) -> _Limits:
    stall = options["stall"]
    return _Limits(
        dict(parse_named(text, parse_lag_limit) for text in options["lag"] or ()),
        dict(parse_named(text, parse_duration_limit) for text in options["age"] or ()),
        str(options["free"]),
        parse_duration_limit(str(options["max_open"])),
        None if stall is None else parse_duration_limit(str(stall)),
    )


def _look(
    current: Settings, limits: _Limits, values: list[Value], *, with_verify: bool
) -> list[Finding]:
    with current.open(read_only=True) as store:
        metrics = store.metrics(internal=True)
        found = [
            *_unreadable(metrics),
            *_lag(metrics, limits.lag, values),
            *_age(metrics, limits.age, values),
            *_free(metrics, limits.free, values),
            *_open(metrics, limits.open, values),
        ]
        if limits.stall is not None:
            pipelines = {each.name for each in list_pipelines(store)}
            found += _stall(metrics, pipelines, limits.stall, values)
        if with_verify:
            found += _damage(store)
    users = [each for each in metrics.partitions if not each.topic.startswith("@")]
    topics = {each.topic for each in users}
    offsets = sum(each.records for each in users)
    found.append(Finding("OK", "store", f"{len(topics)} topics with {offsets} offsets"))
    return found


def _unreadable(metrics: StoreMetrics) -> Iterator[Finding]:
    for part in metrics.unreadable:
        yield Finding("CRITICAL", "damage", part.error)
    for each in metrics.partitions:
        if each.poisoned:
            text = f"a sync of {each.topic}/{each.partition} failed: nothing is accepted there"
            yield Finding("CRITICAL", "sync", text)


def _damage(store: Store) -> Iterator[Finding]:
    report = store.verify()
    if report.ok:
        yield Finding("OK", "damage", f"{report.batches} batches are whole")
    for each in report.findings[:3]:
        place = "" if each.topic is None else f"{each.topic}/{each.partition}: "
        yield Finding("CRITICAL", "damage", f"{place}{each.problem}")
    if len(report.findings) > 3:
        text = f"{len(report.findings)} findings: `millstream verify --explain`"
        yield Finding("CRITICAL", "damage", text)


def _behind(metrics: StoreMetrics, group: GroupMetrics) -> int:
    """Records the group has not read; of a partition without a commit all that are there."""
    held = {(each.topic, each.partition): each.records for each in metrics.partitions}
    return sum(
        held.get((lag.topic, lag.partition), 0) if lag.lag is None else lag.lag
        for lag in group.lags
    )


def _lag(
    metrics: StoreMetrics, limits: Mapping[str, Limit], values: list[Value]
) -> Iterator[Finding]:
    groups = {each.group: each for each in metrics.groups}
    for name in [name for name in limits if name != _EACH and name not in groups]:
        yield Finding("UNKNOWN", "lag", f"there is no group {name!r}")
    for name, group in groups.items():
        limit = limits.get(name, limits.get(_EACH))
        if limit is None:
            continue
        if limit.unit:
            value, text = group.lag_ms / 1000, f"{group.lag_ms / 1000:.0f} s"
        else:
            value = _behind(metrics, group)
            text = f"{value} records"
        values.append(Value(f"lag_{name}", value, limit))
        yield Finding(limit.above(value), "lag", f"group {name!r} is {text} behind")


def _stall(
    metrics: StoreMetrics, pipelines: set[str], limit: Limit, values: list[Value]
) -> Iterator[Finding]:
    for group in metrics.groups:
        if group.group in pipelines:
            seconds = group.lag_ms / 1000
            values.append(Value(f"stall_{group.group}", seconds, limit))
            text = f"pipeline {group.group!r} has left input unprocessed for {seconds:.0f} s"
            yield Finding(limit.above(seconds), "stall", text)


def _age(
    metrics: StoreMetrics, limits: Mapping[str, Limit], values: list[Value]
) -> Iterator[Finding]:
    for topic, limit in limits.items():
        partitions = [each for each in metrics.partitions if each.topic == topic]
        appended = [each.last_append_ms for each in partitions if each.last_append_ms is not None]
        if not partitions:
            yield Finding("UNKNOWN", "age", f"there is no topic {topic!r}")
        elif not appended:
            yield Finding("CRITICAL", "age", f"nothing was ever appended to {topic!r}")
        else:
            seconds = max(metrics.taken_ms - max(appended), 0) / 1000
            values.append(Value(f"age_{topic}", seconds, limit))
            text = f"the last append to {topic!r} was {seconds:.0f} s ago"
            yield Finding(limit.above(seconds), "age", text)


def _free(metrics: StoreMetrics, text: str, values: list[Value]) -> Iterator[Finding]:
    if metrics.free_bytes is None or metrics.total_bytes is None:
        return
    limit = parse_free_limit(text, metrics.total_bytes)
    values.append(Value("free", metrics.free_bytes, limit))
    message = f"{metrics.free_bytes >> 20} MiB are free"
    yield Finding(limit.below(metrics.free_bytes), "free", message)


def _open(metrics: StoreMetrics, limit: Limit, values: list[Value]) -> Iterator[Finding]:
    ages = [
        (max(metrics.taken_ms - each.began_ms, 0) / 1000, each)
        for each in metrics.open_transactions
    ]
    seconds, oldest = max(ages, default=(0.0, None), key=lambda each: each[0])
    values.append(Value("open_transaction", seconds, limit))
    if oldest is not None:
        place = f"{oldest.topic}/{oldest.partition} at offset {oldest.offset}"
        text = f"a transaction is open for {seconds:.0f} s, in {place}"
        yield Finding(limit.above(seconds), "transactions", text)


def _line(status: Status, found: Sequence[Finding], values: Sequence[Value]) -> str:
    """What is wrong, the worst first, or if nothing is, how much there is; then the numbers."""
    wrong = [each for each in found if each.status != "OK"]
    wrong.sort(key=lambda each: (each.status != status, each.status))
    said = wrong or [each for each in found if each.check == "store"]
    # Once each: metrics and verify may have met the same damage.
    messages = dict.fromkeys(" ".join(each.message.split()).replace("|", "/") for each in said)
    text = "; ".join(messages)
    numbers = " ".join(map(str, values))
    return f"MILLSTREAM {status} - {text}" + (f" | {numbers}" if numbers else "")


def _print_json(
    status: Status, found: Sequence[Finding], values: Sequence[Value], current: Settings
) -> None:
    document = {
        "status": status,
        "checks": [each._asdict() for each in found],
        "values": [
            {
                "name": each.name,
                "value": each.value,
                "unit": each.limit.unit,
                "warning": each.limit.warning,
                "critical": each.limit.critical,
            }
            for each in values
        ],
    }
    print_document(document, current.mode)
