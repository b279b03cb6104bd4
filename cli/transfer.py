"""`millstream export` and `import`: records of a topic to a file, and from a file into a topic.

The formats are in `envelope.py` (JSON lines), `csv_records.py` and `arrow_records.py`. An export is
a whole file or none, an import one transaction.
"""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

import click

from millstream import (
    LogReader,
    Position,
    Record,
    Store,
    TopicPartition,
    Transaction,
    UnknownTopicError,
    parse_range,
)

from .arrow_records import ArrowWriter, read_arrow
from .atomic_file import AtomicFile
from .chunks import Chunk, by_partition
from .command import Command, examples, users_topic
from .complete import complete_topic
from .csv_records import encode_rows, header_line, parse_rows
from .envelope import encode_records, parse_lines
from .input import DelimitedInput
from .output import RecordOutput
from .partitions import parse_partitions, require_partitions
from .progress import Progress
from .settings import Settings, settings
from .signals import StopSignals
from .sources import RangeSource

FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")
_Format: TypeAlias = Literal["jsonl", "csv", "parquet", "arrow"]
_BY_SUFFIX: Final[dict[str, _Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_STDOUT_FORMATS: Final = {"json": "jsonl", "jsonl": "jsonl", "csv": "csv"}
"""What --output asks for where the records go to standard output."""
_RECORDS_MAX: Final = 10_000
_POLL_SECONDS: Final = 0.2
_TIMEOUT: Final = "24h"
"""How long an import may keep the readers of its topic waiting while its process lives."""
_STDOUT: Final = 1


class _Writer(Protocol):
    def write(self, records: Sequence[Record]) -> None: ...

    def close(self) -> None: ...


class _TextWriter:
    """Writes lines to a descriptor."""

    def __init__(
        self, descriptor: int, encode: Callable[[Sequence[Record]], Iterable[bytes]], first: bytes
    ) -> None:
        self._output = RecordOutput(descriptor)
        self._encode = encode
        self._output.write([first])

    def write(self, records: Sequence[Record]) -> None:
        self._output.write(self._encode(records))

    def close(self) -> None:
        """Nothing is held back."""


def _format_of(given: str | None, path: str | None) -> _Format:
    for name in FORMATS:
        if name == given:
            return name
    if path is None:
        return "jsonl"
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _BY_SUFFIX:
        raise click.UsageError(f"{path!r} does not say its format: give --format")
    return _BY_SUFFIX[suffix]


@click.command(
    cls=Command,
    short_help="Write the records of a topic to a file.",
    epilog=examples(
        "millstream export orders orders.parquet",
        "millstream export orders today.csv -o @-24h:end",
        "millstream export orders | gzip > orders.jsonl.gz",
    ),
)
@click.argument("topic", shell_complete=complete_topic)
@click.argument("path", metavar="[FILE]", required=False, type=click.Path())
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="[default: by FILE's name, else jsonl]"
)
@click.option(
    "-o",
    "--offset",
    "positions",
    metavar="START:STOP",
    default="",
    help="As of `consume -o`. [default: all]",
)
@click.option("-p", "--partition", "partitions", metavar="LIST", help="Only these: 0,2 or 0-3.")
@click.option("--progress/--no-progress", default=None, help="Counts on stderr.")
def export(
    topic: str,
    path: str | None,
    form: str | None,
    positions: str,
    partitions: str | None,
    progress: bool | None,
) -> int:
    """Write the records of TOPIC, as of now, to FILE or to standard output.

    Keys, values, headers and timestamps are all there. FILE appears when it is complete and on
    disk; until then, and if the command fails or is interrupted, what was there stays. `millstream
    import` gets every byte back, from jsonl and csv as well: what is not UTF-8 is written as
    base64.

    parquet and arrow need a FILE and the extra `arrow`: pip install 'millstream[arrow]'.
    """
    current = settings()
    path = None if path == "-" else path
    if path is None and form is None:
        form = _STDOUT_FORMATS.get(current.output)
    chosen = _format_of(form, path)
    if path is None and chosen in {"parquet", "arrow"}:
        raise click.UsageError(f"{chosen} cannot be written to standard output: name a FILE")
    if current.quiet or (path is None and progress is None and sys.stdout.isatty()):
        progress = False
    start, stop_position = parse_range(positions, time.time_ns() // 1_000_000)
    with StopSignals() as stop, current.open(read_only=True) as store:
        starts, stops = _ends(store, topic, partitions, start, stop_position)
        file: AbstractContextManager[AtomicFile | None] = nullcontext()
        if path is not None:
            file = AtomicFile(path)
        with Progress(progress) as counts:
            with store.reader(starts) as reader, file as target:
                writer = _writer(chosen, target.descriptor if target else _STDOUT)
                _pump(reader, stops, writer, counts, stop)
                if stop.is_set() and target is not None:
                    target.discard()
                elif not stop.is_set():
                    writer.close()
                behind = sum(stops[tp] - position for tp, position in reader.positions.items())
            counts.end()
    if stop.is_set():
        return stop.exit_code
    if behind:
        current.say(f"{behind} offsets are behind an open transaction: left out")
    if path is not None:
        said, count = f"{_records(counts.record_count)} in {path}", counts.record_count
        current.done(said, topic=topic, path=path, records=count, offsets_left_out=behind)
    return 0


def _ends(
    store: Store, topic: str, partitions: str | None, start: Position, stop: Position | None
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Where to start and to stop in each of the wanted partitions."""
    ranges = store.offsets(topic)
    wanted = list(ranges) if partitions is None else parse_partitions(partitions)
    require_partitions(topic, len(ranges), wanted)
    places = [TopicPartition(topic, number) for number in wanted]
    starts = {place: store.offset_at(*place, start) for place in places}
    ends = {place: ranges[place.partition].end for place in places}
    if stop is not None:
        ends = {place: min(end, store.offset_at(*place, stop)) for place, end in ends.items()}
    return starts, ends


def _writer(form: _Format, descriptor: int) -> _Writer:
    if form == "jsonl":
        return _TextWriter(descriptor, encode_records, b"")
    if form == "csv":
        return _TextWriter(descriptor, encode_rows, header_line())
    return ArrowWriter(descriptor, form)


def _pump(
    reader: LogReader,
    stops: dict[TopicPartition, int],
    writer: _Writer,
    counts: Progress,
    stop: StopSignals,
) -> None:
    source = RangeSource(reader, stops, waits_for_stops=False)
    while not (source.finished or stop.is_set()):
        records = source.poll(_RECORDS_MAX, _POLL_SECONDS)
        if records:
            writer.write(records)
            counts.add(len(records), sum(len(record.value or b"") for record in records))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImportOptions:
    """What the command line asked for."""

    topic: str
    path: str | None
    form: str | None
    partition: int | None
    partitions: int
    progress: bool | None


@click.command(
    "import",
    cls=Command,
    short_help="Append the records of a file to a topic, all or none.",
    epilog=examples(
        "millstream import orders orders.parquet",
        "zcat orders.jsonl.gz | millstream import orders",
        "millstream import orders orders.csv --partitions 4",
    ),
)
@click.argument("topic", callback=users_topic, shell_complete=complete_topic)
@click.argument("path", metavar="[FILE]", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="[default: by FILE's name, else jsonl]"
)
@click.option("-p", "--partition", type=click.IntRange(min=0), help="All into this partition.")
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="If TOPIC is created: how many.",
)
@click.option("--progress/--no-progress", default=None, help="Counts on stderr.")
def import_records(**options: object) -> int:
    """Append the records of FILE, or of standard input, to TOPIC: all of them or none.

    FILE is what `export` writes, or has at least a `value` per record; see the reference. Keys,
    values, headers and timestamps are kept; so is the partition if TOPIC has it, else the key
    decides. TOPIC is created if it is missing.

    It is one transaction: readers of TOPIC see the records when all are there. A record that cannot
    be read is named by its line, and nothing is imported; the same if the command is interrupted.
    """
    return _run_import(settings(), _ImportOptions(**options))  # type: ignore[arg-type]  # click's checks


def _run_import(current: Settings, options: _ImportOptions) -> int:
    path = None if options.path in {None, "-"} else options.path
    form = _format_of(options.form, path)
    if path is None and form in {"parquet", "arrow"}:
        raise click.UsageError(f"{form} cannot be read from standard input: name a FILE")
    if path is not None and not os.path.exists(path):
        raise click.UsageError(f"there is no file {path!r}")
    if path is not None and form in {"parquet", "arrow"} and not os.path.isfile(path):
        raise click.UsageError(f"{form} cannot be read from {path!r}, which is no regular file")
    wanted = False if current.quiet else options.progress
    with StopSignals() as stop, current.open(create=True) as store, Progress(wanted) as counts:
        chunks = _chunks(path, form, stop)
        first = next(chunks, Chunk([]))
        _refuse(first, path)
        partition_count = _ensure_topic(current, store, options)
        try:
            with store.transaction(timeout=_TIMEOUT) as txn:
                _append(txn, options, partition_count, first, counts)
                for chunk in chunks:
                    _refuse(chunk, path)
                    _append(txn, options, partition_count, chunk, counts)
                if stop.is_set():
                    txn.abort()
        except (click.ClickException, Exception) as error:
            if not isinstance(error, click.ClickException):
                error.add_note("nothing was imported")
            raise
        counts.end()
    if stop.is_set():
        current.say("interrupted: nothing was imported")
        return stop.exit_code
    said = f"{_records(counts.record_count)} in {options.topic!r}"
    current.done(said, topic=options.topic, records=counts.record_count)
    return 0


def _refuse(chunk: Chunk, path: str | None) -> None:
    if chunk.error is not None:
        raise click.ClickException(f"{chunk.error._replace(path=path)}; nothing was imported")


def _append(
    txn: Transaction, options: _ImportOptions, partition_count: int, chunk: Chunk, counts: Progress
) -> None:
    for partition, part in by_partition(chunk, options.partition, partition_count):
        txn.append_many(
            options.topic,
            part.values,
            part.keys,
            part.timestamps_ms,
            partition,
            headers=part.headers,
        )
        counts.add(len(part.values), part.value_bytes)


def _ensure_topic(current: Settings, store: Store, options: _ImportOptions) -> int:
    """Number of partitions of the topic, which is there afterwards."""
    try:
        count = store.topic(options.topic).partitions
    except UnknownTopicError:
        count = options.partitions
        require_partitions(options.topic, count, {options.partition or 0})
        store.create_topic(options.topic, partitions=count, exist_ok=True)
        current.say(f"created topic {options.topic!r}, partitions: {count}")
    require_partitions(options.topic, count, {options.partition or 0})
    return count


def _chunks(path: str | None, form: _Format, stop: StopSignals) -> Iterator[Chunk]:
    now_ms = time.time_ns() // 1_000_000
    if form in {"parquet", "arrow"}:
        assert path is not None
        for chunk in read_arrow(path, "parquet" if form == "parquet" else "arrow", now_ms):
            if stop.is_set():
                return
            yield chunk
        return
    try:
        descriptor = sys.stdin.fileno() if path is None else os.open(path, os.O_RDONLY)
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from None
    try:
        source = DelimitedInput(descriptor, b"\n", stop)
        if form == "csv":
            yield from parse_rows(_text_lines(source), now_ms)
        else:
            yield from _json_chunks(source, now_ms)
    finally:
        if path is not None:
            os.close(descriptor)


def _text_lines(source: DelimitedInput) -> Iterator[str]:
    encoding = "utf-8-sig"  # only the first line may begin with a byte order mark
    for block in source.blocks():
        for line in block:
            yield (line + b"\n").decode(encoding)
            encoding = "utf-8"


def _json_chunks(source: DelimitedInput, now_ms: int) -> Iterator[Chunk]:
    line = 1
    for block in source.blocks():
        if line == 1 and block:
            block[0] = block[0].removeprefix(codecs.BOM_UTF8)
        parsed = parse_lines(block, line)
        yield Chunk(
            parsed.values,
            parsed.keys,
            [now_ms if each is None else each for each in parsed.timestamps_ms],
            parsed.partitions,
            parsed.headers if any(parsed.headers) else None,
            parsed.error,
        )
        line += len(block)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
