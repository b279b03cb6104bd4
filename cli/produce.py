"""`millstream produce`: lines, whole files or JSON records into a topic. Parses, then appends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import click

from millstream import MillstreamError, NamedProducer, Store, UnknownTopicError

from .chunks import Chunk, by_partition, take
from .command import Command, examples, users_topic
from .complete import complete_topic
from .envelope import RECORD_ID, LineError, is_written, parse_lines
from .format_string import unescape
from .input import DelimitedInput
from .output import RecordOutput, print_document
from .partitions import require_partitions
from .progress import Progress
from .settings import Settings, settings
from .signals import StopSignals

_STDIN: Final = "-"

Parse = Callable[[list[bytes], int], Chunk]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceOptions:
    """What the command line asked for."""

    topic: str
    files: Sequence[str]
    key: str | None
    key_delimiter: str | None
    headers: Sequence[str]
    delimiter: str
    lines: bool
    as_json: bool
    null_empty: bool
    partition: int | None
    num: int | None
    tee: bool
    compression: str | None
    durability: Literal["sync", "interval", "os"]
    expected_offset: int | None
    producer: str | None
    id_header: str | None
    progress: bool | None

    def __post_init__(self) -> None:
        excluded = (self.key, self.key_delimiter, *self.headers, self.null_empty or None)
        if self.as_json and any(option is not None for option in excluded):
            raise click.UsageError("-J reads keys and headers from the JSON: no -k, -K, -H, -Z")
        if self.key is not None and self.key_delimiter is not None:
            raise click.UsageError(
                "-k gives every record a key, -K reads it from the line: not both"
            )
        if self.expected_offset is not None and self.producer is not None:
            raise click.UsageError("--expected-offset and --producer: give one of them")
        if self.key_delimiter == "" or not self.delimiter:
            raise click.UsageError("-D and -K: the delimiter is empty")


@click.command(
    cls=Command,
    short_help="Append lines, files or JSON records to a topic.",
    epilog=examples(
        r"printf 'a\nb\n' | millstream produce letters",
        "millstream produce pages -K: < pages.txt          key:value lines",
        "millstream produce docs *.pdf                     one record per file",
        "millstream consume a -J -e | millstream produce b -J",
        "millstream produce log -l app.log --producer app   again after a failure: each line once",
    ),
)
@click.argument("topic", callback=users_topic, shell_complete=complete_topic)
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("-K", "key_delimiter", metavar="DELIM", help="Split each line at DELIM: key, value.")
@click.option("-k", "--key", metavar="KEY", help="Give every record this key.")
@click.option(
    "-H", "--header", "headers", metavar="NAME=VALUE", multiple=True, help="Add a header."
)
@click.option(
    "-D", "delimiter", metavar="DELIM", default="\\n", help=r"Ends a record; \n, \t, \xNN."
)
@click.option(
    "-l", "lines", is_flag=True, help="Each line of the files is a record, not each file."
)
@click.option("-J", "as_json", is_flag=True, help="Lines are JSON as `consume -J` writes them.")
@click.option("-Z", "null_empty", is_flag=True, help="Empty values and keys are null.")
@click.option("-p", "--partition", type=click.IntRange(min=0), help="Into this partition.")
@click.option("-n", "--num", "-c", type=click.IntRange(min=0), help="Stop after so many records.")
@click.option("-T", "--tee", is_flag=True, help="Repeat the records on stdout.")
@click.option(
    "-z",
    "--compression",
    type=click.Choice(["none", "lz4", "zstd"]),
    help="Compression, if the topic is created.",
)
@click.option(
    "--durability",
    type=click.Choice(["sync", "interval", "os"]),
    default="sync",
    show_default=True,
    help="When a record is acknowledged. All are on disk when the command ends.",
)
@click.option(
    "--expected-offset",
    type=click.IntRange(min=0),
    metavar="OFFSET",
    help="Only if the first record gets this offset and no other comes in between.",
)
@click.option(
    "--producer",
    metavar="NAME",
    help="Number the records; run again on the same input, what is there is not written again.",
)
@click.option(
    "--id-header",
    metavar="NAME",
    help="This header of the input is the id of its record (record-id), as in Nats-Msg-Id.",
)
@click.option("--progress/--no-progress", default=None, help="Counts on stderr.")
def produce(**options: object) -> int:
    """Append lines of stdin, or FILES, to TOPIC, which is created if it is missing.

    Without -l each FILE becomes one record; "-" is stdin, read by line. Input is appended in
    blocks, each durable before the next is read, and a line typed by hand at once. Ctrl-C stops
    after the last whole line.

    With -J the partition of a record is kept if TOPIC has it, and chosen by key otherwise; -p
    overrules it. A record without timestamp gets the time at which it was read. A bad line stops
    the command with exit code 1; all lines before it are in the topic.

    With --producer the records are numbered in the order of the input. The same command with the
    same input, after whatever stopped it, appends what is missing and nothing twice; and so does
    one with a longer input, such as a file that has grown. Another process that has the name is
    fenced.

    If TOPIC has the option dedup, a record whose header record-id (with -J also the field "id") was
    appended before, within that time, is left out.

    With --expected-offset the exit code is 6 if somebody else was faster, and what was appended
    before that stays.
    """
    return run(settings(), ProduceOptions(**options))  # type: ignore[arg-type]  # click's checks


def run(current: Settings, options: ProduceOptions) -> int:
    """Produce as `options` say and return the exit code."""
    parse = _parser(options)
    with (
        StopSignals() as stop,
        current.open(create=True, durability=options.durability) as store,
    ):
        _ensure_topic(current, store, options)
        interactive = sys.stdin.isatty() and not options.files
        with Progress(False if interactive or current.quiet else options.progress) as progress:
            with _sink(store, options, progress) as sink:
                for chunk in _chunks(options, parse, stop, current):
                    sink.append(chunk)
                    if sink.is_full:
                        break
                store.sync()
            progress.end()
        if current.mode in {"json", "jsonl"} and not options.tee:
            counts = {"records": sink.record_count, "duplicates": sink.duplicates}
            print_document({"topic": options.topic, **counts}, current.mode)
        if sink.duplicates:
            verb = "was" if sink.duplicates == 1 else "were"
            current.say(f"{_records(sink.duplicates)} {verb} there already")
        if sink.error is not None:
            before = f"{_records(sink.record_count)} before it"
            verb = "is" if sink.record_count == 1 else "are"
            raise click.ClickException(f"{sink.error}; the {before} {verb} in {options.topic!r}")
        return stop.exit_code


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _ensure_topic(current: Settings, store: Store, options: ProduceOptions) -> None:
    try:
        found = store.topic(options.topic)
    except UnknownTopicError:
        if options.partition:
            raise click.UsageError(
                f"there is no topic {options.topic!r}, and -p needs more partitions than the one it"
                f" would get: `millstream topics create {options.topic} -p N` first"
            ) from None
        compression = options.compression or "none"
        store.create_topic(options.topic, exist_ok=True, compression=compression)
        current.say(f"created topic {options.topic!r} with 1 partition in {current.directory}")
        return
    require_partitions(options.topic, found.partitions, {options.partition or 0})
    if options.compression not in {None, found.config.compression}:
        raise click.UsageError(
            f"{options.topic!r} exists with compression {found.config.compression}; "
            f"`millstream topics set {options.topic} compression={options.compression}` changes it"
        )


def _chunks(
    options: ProduceOptions, parse: Parse, stop: StopSignals, current: Settings
) -> Iterator[Chunk]:
    for path in options.files or [_STDIN]:
        if path == _STDIN:
            yield from _delimited(sys.stdin.fileno(), options, parse, stop, current)
        elif options.lines or options.as_json:
            with open(path, "rb") as file:
                for chunk in _delimited(file.fileno(), options, parse, stop, current):
                    error = chunk.error and chunk.error._replace(path=path)
                    yield chunk._replace(error=error)
        elif not stop.is_set():
            with open(path, "rb") as file:
                yield parse([file.read()], 1)


def _delimited(
    descriptor: int, options: ProduceOptions, parse: Parse, stop: StopSignals, current: Settings
) -> Iterator[Chunk]:
    delimiter = b"\n" if options.as_json else unescape(options.delimiter)
    source = DelimitedInput(descriptor, delimiter, stop)
    line = 1
    for block in source.blocks():
        if line == 1 and not options.as_json and is_written(block[0]):
            current.say("these look like lines of `consume -J`: -J makes the same records of them")
        yield parse(block, line)
        line += len(block)
    if source.bytes_discarded:
        current.say(f"the last {source.bytes_discarded} bytes were no whole record: left out")


def _parser(options: ProduceOptions) -> Parse:
    if options.id_header is not None:
        return _with_ids(_parse_records(options), options.id_header)
    return _parse_records(options)


def _with_ids(parse: Parse, name: str) -> Parse:
    """Take the header `name` for the id of a record."""

    def renamed(block: list[bytes], first_line: int) -> Chunk:
        chunk = parse(block, first_line)
        if chunk.headers is None:
            return chunk
        rows = [[(RECORD_ID if n == name else n, v) for n, v in row] for row in chunk.headers]
        return chunk._replace(headers=rows)

    return renamed


def _parse_records(options: ProduceOptions) -> Parse:
    if options.as_json:
        return _parse_json
    headers = [_parse_header(text) for text in options.headers]
    fixed_key = None if options.key is None else os.fsencode(options.key)
    key_delimiter = unescape(options.key_delimiter) if options.key_delimiter is not None else None
    null_empty = options.null_empty

    def parse(block: list[bytes], first_line: int) -> Chunk:
        del first_line
        values: list[bytes | None] = [*block]
        keys: list[bytes | None] | None = None
        if key_delimiter is not None:
            keys, values = _split_keys(block, key_delimiter)
        elif fixed_key is not None:
            keys = [fixed_key] * len(block)
        if null_empty:
            values = [value or None for value in values]
            keys = None if keys is None else [key or None for key in keys]
        return Chunk(values, keys, headers=[headers] * len(values) if headers else None)

    return parse


def _split_keys(
    block: list[bytes], delimiter: bytes
) -> tuple[list[bytes | None], list[bytes | None]]:
    """Key and value of each line; a line without delimiter is a value without key."""
    parts = [line.partition(delimiter) for line in block]
    keys = [key if found else None for key, found, _ in parts]
    return keys, [value if found else line for line, found, value in parts]


def _parse_header(text: str) -> tuple[str, bytes | None]:
    name, equals, value = text.partition("=")
    return name, os.fsencode(value) if equals else None


def _parse_json(block: list[bytes], first_line: int) -> Chunk:
    parsed = parse_lines(block, first_line)
    now_ms = time.time_ns() // 1_000_000
    timestamps_ms = [now_ms if ts is None else ts for ts in parsed.timestamps_ms]
    partitions, headers = parsed.partitions, parsed.headers
    return Chunk(
        parsed.values,
        parsed.keys,
        timestamps_ms,
        partitions if partitions.count(None) < len(partitions) else None,
        headers if any(headers) else None,
        parsed.error,
    )


class _Sink:
    """Appends chunks to the topic and counts."""

    def __init__(self, store: Store, options: ProduceOptions, progress: Progress) -> None:
        self._store = store
        self._topic = options.topic
        self._partition = options.partition
        self._partition_count = store.topic(options.topic).partitions
        self._expected = options.expected_offset
        self._limit = options.num
        self._progress = progress
        self._tee = RecordOutput() if options.tee else None
        self._delimiter = unescape(options.delimiter)
        self.record_count = 0
        self.duplicates = 0
        """Records that were in the topic already."""
        self.error: LineError | None = None

    @property
    def is_full(self) -> bool:
        """Whether nothing more can come: a bad line, or as many records as wanted."""
        return self.error is not None or (
            self._limit is not None and self.record_count >= self._limit
        )

    def append(self, chunk: Chunk) -> None:
        """Append what may still be appended of `chunk`."""
        count = len(chunk.values)
        room = count if self._limit is None else self._limit - self.record_count
        if room < count:
            chunk = take(chunk, range(room))._replace(error=None)
        for partition, part in self._by_partition(chunk):
            self._write(partition, part)
            self.record_count += len(part.values)
            self._progress.add(len(part.values), sum(map(len, filter(None, part.values))))
        self.error = chunk.error
        if self._tee is not None:
            self._tee.write((value or b"") + self._delimiter for value in chunk.values)

    def _write(self, partition: int | None, part: Chunk) -> None:
        written = self._store.append_many(
            self._topic,
            part.values,
            part.keys,
            part.timestamps_ms,
            partition,
            headers=part.headers,
            expected_offset=self._expected,
        )
        new = sum(each.record_count for each in written)
        self.duplicates += len(part.values) - new
        if self._expected is not None:
            self._expected += new

    def _by_partition(self, chunk: Chunk) -> Iterator[tuple[int | None, Chunk]]:
        return by_partition(chunk, self._partition, self._partition_count)


class _NumberedSink(_Sink):
    """Sends the records under a name, numbered in the order of the input."""

    def __init__(
        self, store: Store, options: ProduceOptions, progress: Progress, producer: NamedProducer
    ) -> None:
        super().__init__(store, options, progress)
        self._producer = producer
        self._number = 0

    def _by_partition(self, chunk: Chunk) -> Iterator[tuple[int | None, Chunk]]:
        if chunk.values:
            yield self._partition, chunk  # in the order of their numbers

    def _write(self, partition: int | None, part: Chunk) -> None:
        futures = []
        for row, value in enumerate(part.values):
            number = part.partitions[row] if partition is None and part.partitions else partition
            if number is not None and number >= self._partition_count:
                number = None
            future = self._producer.send(
                self._topic,
                value,
                key=part.keys[row] if part.keys else None,
                timestamp_ms=part.timestamps_ms[row] if part.timestamps_ms else None,
                headers=part.headers[row] if part.headers else (),
                partition=number,
                sequence=self._number,
            )
            self._number += 1
            futures.append(future)
        self._producer.flush()
        self.duplicates += sum(future.result().duplicate for future in futures)


@contextmanager
def _sink(store: Store, options: ProduceOptions, progress: Progress) -> Iterator[_Sink]:
    """What the records go to; an error says how much was appended before it."""
    with ExitStack() as opened:
        if options.producer is None:
            sink = _Sink(store, options, progress)
        else:
            producer = opened.enter_context(store.producer(name=options.producer))
            sink = _NumberedSink(store, options, progress, producer)
        try:
            yield sink
        except MillstreamError as error:
            error.add_note(f"{_records(sink.record_count)} before this are in {options.topic!r}")
            raise
