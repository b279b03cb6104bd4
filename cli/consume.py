"""`millstream consume` and `millstream tail`: records of topics to stdout, as they come.

Reading and committing is the store's; here is when to stop, and what a record looks like.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import click

from millstream import (
    Position,
    Record,
    Store,
    TopicPartition,
    parse_duration_ms,
    parse_range,
)

from .command import Command, examples
from .complete import complete_group, complete_topic
from .envelope import encode_records
from .format_string import Formatter, compile_format, rfc3339, unescape
from .output import RecordOutput, wants_color
from .partitions import parse_partitions, require_partitions
from .progress import Progress
from .settings import Settings, settings
from .signals import StopSignals
from .sources import Commit, GroupSource, RangeSource, Source
from .where import Where

EXIT_TIMEOUT: Final = 124

_POLL_SECONDS: Final = 0.2
"""How long one wait lasts: what a signal, or the end of the reader of our output, may take."""
_RECORDS_MAX: Final = 10_000
_FOR_EVER: Final = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeOptions:
    """What the command line asked for."""

    topics: Sequence[str]
    group: str | None
    offset: str | None
    exit_eof: bool
    num: int | None
    timeout: str | None
    where: str | None
    format_text: str | None
    as_json: bool
    key_delimiter: str | None
    delimiter: str
    partitions: str | None
    print_null: bool
    commit: Commit
    isolation: Literal["committed", "uncommitted"]
    progress: bool | None
    unbuffered: bool

    def __post_init__(self) -> None:
        if self.as_json and self.format_text is not None:
            raise click.UsageError("-f and -J: give one of them")
        if self.group is not None and self.partitions is not None:
            raise click.UsageError("-g gives partitions to the members of the group: no -p")
        if self.group is None and self.offset is not None and "stored" in self.offset:
            raise click.UsageError("-o stored is where a group stands: name it with -g")


@click.command(
    cls=Command,
    short_help="Print the records of topics, and follow.",
    epilog=examples(
        "millstream consume orders -e                   all records, then exit",
        "millstream consume orders -o -10               the last ten, then follow",
        "millstream consume orders -o @-1h:end -J       the last hour as JSON lines",
        r"millstream consume orders -f '%p:%o %k=%s\n'",
        "millstream consume orders -e --where 'amount > 50 and user == \"u1\"'",
        "millstream consume orders -g billing           go on where the group stands",
    ),
)
@click.argument("topics", nargs=-1, required=True, shell_complete=complete_topic)
@click.option(
    "-g", "-G", "--group", shell_complete=complete_group, help="Read as a member of this group."
)
@click.option(
    "-o",
    "--offset",
    metavar="POSITION",
    help="beginning, end, stored, N, +N, -N, @TIME or START:STOP. [default: beginning]",
)
@click.option("-e", "--exit-eof", is_flag=True, help="Exit at the end instead of following.")
@click.option("-n", "--num", "-c", type=click.IntRange(min=1), help="Exit after so many records.")
@click.option("--timeout", metavar="DURATION", help="Exit when no record came for so long: 5s.")
@click.option("-w", "--where", metavar="EXPRESSION", help="Only records it is true for; see above.")
@click.option("-f", "--format", "format_text", metavar="FORMAT", help="Print by format; see above.")
@click.option("-J", "as_json", is_flag=True, help="Print JSON lines that `produce -J` reads.")
@click.option("-K", "key_delimiter", metavar="DELIM", help="Print the key and DELIM first.")
@click.option("-D", "delimiter", metavar="DELIM", default="\\n", help=r"Ends a record: \n \t \xNN.")
@click.option("-p", "--partition", "partitions", metavar="LIST", help="Only these: 0,2 or 0-3.")
@click.option("-Z", "print_null", is_flag=True, help="Print null keys and values as NULL.")
@click.option("-u", "unbuffered", is_flag=True, hidden=True, help="Always so; for kcat's habit.")
@click.option(
    "--commit",
    type=click.Choice(["auto", "batch", "never"]),
    default="auto",
    show_default=True,
    help="With -g: commit when caught up and twice a second; after each batch; or not at all.",
)
@click.option(
    "--isolation",
    type=click.Choice(["committed", "uncommitted"]),
    default="committed",
    show_default=True,
    help="Whether to wait for open transactions and skip aborted ones.",
)
@click.option("--progress/--no-progress", default=None, help="Counts on stderr.")
def consume(**options: object) -> int:
    """Print the records of TOPICS in the order they were appended, and follow.

    Values are printed as they are, one per line. Several topics and partitions come merged in
    append order. Without -g reading starts at -o and changes nothing; with -g it starts where the
    group stands (-o says where, if it stands nowhere yet) and commits what was printed.

    \b
    FORMAT:
      %s %v value    %k key    %S %K their lengths   %h headers   %H how many
      %t topic       %p partition     %o offset      %T timestamp, UTC ms
      %s{hex} %k{base64} %S{big32} %d{strftime[%F %T]} %h{%k=%v }   \\n \\t \\xNN %%

    \b
    EXPRESSION: fields of a JSON value, and _key _timestamp _offset _partition _topic _headers
    _value _text of any record:
      amount > 50 and user == "u1"     lower(name) in ("ann", "bob")
      status is null or retries >= 3   _timestamp >= parse_time("2013-01-31T12:00:00Z")

    Exit code 124 after --timeout if fewer records than -n came, or none. 130 after Ctrl-C; what
    was printed is committed.
    """
    return run(settings(), ConsumeOptions(**options))  # type: ignore[arg-type]  # click's checks


def run(current: Settings, options: ConsumeOptions) -> int:
    """Consume as `options` say and return the exit code."""
    formatter = _formatter(current, options)
    where = None if options.where is None else Where(options.where)
    timeout_seconds = _FOR_EVER
    if options.timeout is not None:
        timeout_seconds = parse_duration_ms(options.timeout) / 1000
    now_ms = time.time_ns() // 1_000_000
    start, stop_position = parse_range(options.offset or "", now_ms)
    with (
        StopSignals() as stop,
        current.open(read_only=options.group is None) as store,
        _source(store, options, start, stop_position, where) as source,
    ):
        pump = _Pump(source, formatter, limit=options.num, timeout_seconds=timeout_seconds)
        pump.where = where
        with Progress(_progress_wanted(current, options.progress)) as pump.progress:
            code = pump.run(stop)
        printed = pump.progress.record_count
        if where is not None and where.unseen and not printed and not current.quiet:
            names = ", ".join(sorted(where.unseen))
            click.echo(f"millstream: --where: no record had a field {names}", err=True)
        return code


def _source(
    store: Store,
    options: ConsumeOptions,
    start: Position,
    stop: Position | None,
    where: Where | None,
) -> Source:
    may_hold = None if where is None else where.may_hold
    if options.group is not None:
        if stop not in {None, Position("latest")}:
            raise click.UsageError("-o with -g says where a new group starts; it cannot stop there")
        return GroupSource(
            store.consumer(
                options.topics,
                group=options.group,
                start="earliest" if start.kind == "stored" else start,
                isolation=options.isolation,
                may_hold=may_hold,
            ),
            commit=options.commit,
            follow=stop is None and not options.exit_eof,
        )
    ends = _ends(store, options)
    starts = {partition: store.offset_at(*partition, start) for partition in ends}
    stops = None if stop is None else {tp: _stop_offset(store, tp, stop) for tp in ends}
    if options.exit_eof:
        stops = {tp: min(end, stops[tp]) if stops else end for tp, end in ends.items()}
    waits = stop is not None and stop.kind == "offset" and not options.exit_eof
    reader = store.reader(starts, isolation=options.isolation, may_hold=may_hold)
    return RangeSource(reader, stops, waits_for_stops=waits)


def _ends(store: Store, options: ConsumeOptions) -> dict[TopicPartition, int]:
    """The wanted partitions with their log ends."""
    wanted = None if options.partitions is None else set(parse_partitions(options.partitions))
    ends: dict[TopicPartition, int] = {}
    for topic in dict.fromkeys(options.topics):
        ranges = store.offsets(topic)
        require_partitions(topic, len(ranges), wanted or ())
        ends |= {
            TopicPartition(topic, partition): each.end
            for partition, each in ranges.items()
            if wanted is None or partition in wanted
        }
    return ends


def _stop_offset(store: Store, partition: TopicPartition, stop: Position) -> int:
    # An offset may lie ahead of the log end: then we wait for it.
    return stop.value if stop.kind == "offset" else store.offset_at(*partition, stop)


def _progress_wanted(current: Settings, requested: bool | None) -> bool | None:
    if current.quiet:
        return False
    # On one terminal the counts would run through the records.
    return False if requested is None and sys.stdout.isatty() else requested


def _formatter(current: Settings, options: ConsumeOptions) -> Formatter:
    if options.as_json or (options.format_text is None and _as_json(current)):
        return encode_records
    null = b"NULL" if options.print_null else b""
    if options.format_text is not None:
        return compile_format(options.format_text, null=null)
    key = "" if options.key_delimiter is None else "%k" + _quoted(options.key_delimiter)
    return compile_format(f"{key}%s{_quoted(options.delimiter)}", null=null)


def _as_json(current: Settings) -> bool:
    """Whether --output asks for records as JSON: lines, as there may be no end of them."""
    if current.output not in {"auto", "json", "jsonl"}:
        raise click.UsageError(f"records are not printed as {current.output}; use -f or -J")
    return current.output != "auto"


def _quoted(delimiter: str) -> str:
    unescape(delimiter)  # refuses a bad escape by the delimiter's own text
    return delimiter.replace("%", "%%")


class _Pump:
    """Moves records from a source to stdout until there is a reason to stop."""

    def __init__(
        self, source: Source, formatter: Formatter, *, limit: int | None, timeout_seconds: float
    ) -> None:
        self._source = source
        self._formatter = formatter
        self._limit = limit
        self._timeout_seconds = timeout_seconds
        self._output = RecordOutput()
        self.progress = Progress(enabled=False)
        self.where: Where | None = None

    def run(self, stop: StopSignals) -> int:
        """Pump and return the exit code."""
        source, output, progress = self._source, self._output, self.progress
        quiet_since = time.monotonic()
        while not (source.finished or stop.is_set() or self._has_all()):
            wait_seconds = quiet_since + self._timeout_seconds - time.monotonic()
            if wait_seconds <= 0:
                break
            polled = source.poll(self._poll_size(), min(_POLL_SECONDS, wait_seconds))
            records = polled if self.where is None else self._select(self.where, polled)
            if not records:
                output.check_reader()
                if polled:
                    source.written()
                continue
            before = output.bytes_written
            output.write(self._formatter(records))
            source.written()
            progress.add(len(records), output.bytes_written - before)
            quiet_since = time.monotonic()
        else:
            progress.end()
            return stop.exit_code
        progress.end()
        wanted = self._limit if self._limit is not None else 1
        return EXIT_TIMEOUT if progress.record_count < wanted else 0

    def _select(self, where: Where, polled: Sequence[Record]) -> list[Record]:
        """Those to print. If one is in error, those before it are printed here."""
        records, error = where.select(polled)
        if self._limit is not None and len(records) >= self._room():
            return records[: self._room()]
        if error is None:
            return records
        self._output.write(self._formatter(records))
        raise error

    def _has_all(self) -> bool:
        return self._limit is not None and self.progress.record_count >= self._limit

    def _room(self) -> int:
        if self._limit is None:
            return _RECORDS_MAX
        return min(_RECORDS_MAX, self._limit - self.progress.record_count)

    def _poll_size(self) -> int:
        # A group must not be given more than is printed: the rest would be committed with it.
        grouped = isinstance(self._source, GroupSource)
        return self._room() if self.where is None or grouped else _RECORDS_MAX


@click.command(
    cls=Command,
    short_help="Show the last records of a topic, and follow.",
    epilog=examples("millstream tail orders", "millstream tail orders -n 100 --no-follow"),
)
@click.argument("topic", shell_complete=complete_topic)
@click.option(
    "-n",
    "--num",
    type=click.IntRange(0, sys.maxsize),
    default=10,
    show_default=True,
    help="How many.",
)
@click.option("-f", "--follow/--no-follow", default=True, help="Go on, or stop. [default: go on]")
@click.option("-J", "as_json", is_flag=True, help="Print JSON lines instead.")
def tail(topic: str, num: int, follow: bool, as_json: bool) -> int:
    """Show the last records of TOPIC with their places, and follow it.

    Each line has time, partition:offset, key and value; what is not text is escaped.

    Several partitions are merged in append order, so these are the last records of the topic and
    not of each partition. For raw values use `consume -o -10`.
    """
    current = settings()
    color = sys.stdout.isatty() and wants_color()
    as_json = _as_json(current) or as_json
    formatter = encode_records if as_json else partial(_pretty, color)
    with StopSignals() as stop, current.open(read_only=True) as store:
        ends = {TopicPartition(topic, p): each.end for p, each in store.offsets(topic).items()}
        starts = {tp: store.offset_at(*tp, Position("tail", num)) for tp in ends}
        with RangeSource(store.reader(starts), ends, waits_for_stops=False) as source:
            last: deque[Record] = deque(maxlen=num)
            while not (source.finished or stop.is_set()):
                last.extend(source.poll(_RECORDS_MAX, _POLL_SECONDS))
        RecordOutput().write(formatter(last))
        if follow and not stop.is_set():
            with RangeSource(store.reader(ends), None, waits_for_stops=True) as source:
                return _Pump(source, formatter, limit=None, timeout_seconds=_FOR_EVER).run(stop)
    return stop.exit_code


def _pretty(color: bool, records: Iterable[Record]) -> Iterator[bytes]:
    """`time  partition:offset  key  value`, one line per record whatever the bytes are."""
    dim, key_on, off = ("\x1b[2m", "\x1b[36m", "\x1b[0m") if color else ("", "", "")
    for record in records:
        place = f"{rfc3339(record.timestamp_ms)}  {record.partition}:{record.offset}"
        key = "-" if record.key is None else _one_line(record.key)
        value = f"{dim}null{off}" if record.value is None else _one_line(record.value)
        yield f"{dim}{place}{off}  {key_on}{key}{off}  {value}\n".encode()


def _one_line(data: bytes) -> str:
    """Text without line ends and control characters; they would move the cursor."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
