"""`millstream demo`: two weeks of real flights through the whole house, and a kill -9.

Produces the shipped excerpt, runs `demo_pipeline.py` over it, prints one day of the results, then
runs the same pipeline again in a child process which is killed with SIGKILL again and again, and
compares what the two runs wrote record by record. No decisions of its own: it calls the public API
and prints.
"""

from __future__ import annotations

import gzip
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from importlib import resources
from pathlib import Path

import click
import msgspec

import millstream

from . import demo_pipeline
from .command import Command, examples
from .demo_pipeline import Flight, hourly_delays
from .settings import settings

ORIGINS = ("EWR", "JFK", "LGA")
EPOCHS_BETWEEN_KILLS = 40
EPOCHS_AHEAD = 8
"""How many epochs the child may commit before we have read about the first of them."""
KILLS = 2
NEW_YORK = timezone(timedelta(hours=-5))
"""In January. A fixed offset, because not every system has a time zone database."""


class HourlyDelays(msgspec.Struct):
    """One record of the pipeline's output topic."""

    key: str
    window_start: int
    departures: int
    mean_delay: float
    max_delay: int


@click.command(
    cls=Command,
    short_help="Process real flights, with a kill -9 on the way.",
    epilog=examples("millstream demo", "millstream demo --dir flights-demo"),
)
def demo() -> None:
    """Run real flights through a log and a pipeline, and kill the pipeline on the way.

    The store is temporary unless --dir names a new directory to put it in and to look around in
    afterwards.
    """
    if settings().mode in {"json", "jsonl"}:
        raise click.UsageError("the demo tells a story: there is no JSON of it")
    if settings().origin("dir") != "option":
        # Not the default store: the demo leaves nothing behind that nobody asked for.
        with tempfile.TemporaryDirectory(prefix="millstream-demo-") as temporary:
            _run(Path(temporary))
        _say_what_next("flights-demo", kept=False)
        return
    directory = Path(settings().directory)
    if directory.exists() and any(directory.iterdir()):
        raise click.UsageError(f"{directory} is not empty; name a new directory for the demo")
    _run(directory)
    _say_what_next(str(directory), kept=True)


def _run(directory: Path) -> None:
    click.echo("Millstream demo: departures from New York City, 1 to 14 January 2013\n")
    with millstream.open(directory) as store:
        _produce(store)
        _process(store)
    killed = _process_with_kills(directory)
    with millstream.open(directory, read_only=True) as store:
        _compare(store, killed)


@contextmanager
def _timed(title: str) -> Iterator[Callable[[str], None]]:
    """Print `title`, then each line given, then the seconds it took."""
    click.secho(title, bold=True)
    start = time.perf_counter()
    yield lambda line: click.echo(f"   {line}")
    click.secho(f"   {time.perf_counter() - start:.2f} s\n", dim=True)


def flight_lines() -> list[bytes]:
    """The excerpt: one JSON object per flight, in order of actual departure."""
    packed = resources.files("millstream.cli") / "data" / "flights-2013-01.jsonl.gz"
    return gzip.decompress(packed.read_bytes()).splitlines()


def _produce(store: millstream.Store) -> None:
    with _timed("1. Produce") as say:
        lines = flight_lines()
        flights = msgspec.json.Decoder(list[Flight]).decode(b"[" + b",".join(lines) + b"]")
        store.create_topic("flights")
        store.append_many(
            "flights",
            lines,
            keys=[flight.origin.encode() for flight in flights],
            timestamps_ms=[_epoch_ms(flight.departed or flight.scheduled) for flight in flights],
        )
        cancelled = sum(flight.departed is None for flight in flights)
        say(f"{len(lines):,} flights into the topic 'flights', in the order in which they left;")
        say(f"{cancelled} of them never did. {_overtaken(flights):,} left after a flight that was")
        say("scheduled later: this is the disorder event time has to cope with.")


def _epoch_ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


def _overtaken(flights: Sequence[Flight]) -> int:
    """How many flights come after one that was scheduled later."""
    count = 0
    newest = flights[0].scheduled
    for flight in flights:
        count += flight.scheduled < newest
        newest = max(newest, flight.scheduled)
    return count


def _process(store: millstream.Store) -> None:
    with _timed("2. Process") as say:
        hourly_delays().run(store, until="end")
        results = [
            msgspec.json.decode(record.value, type=HourlyDelays)
            for record in store.read("hourly")
            if record.value is not None
        ]
        late = sum(1 for _ in store.read("hourly.late"))
        say(f"{len(results):,} hours of three airports into 'hourly': departures, mean and maximum")
        say(
            f"delay by scheduled hour. {late} flights left so late that their hour was closed: they"
        )
        say("are in 'hourly.late'. The last hours stay open for flights to come.")
        day = _worst_day(results)
        say("")
        say(f"{day:%A, %d %B %Y}, New York time; delays in minutes, bars show the mean:")
        for line in _table([result for result in results if _local(result).date() == day]):
            say(line)


def _local(result: HourlyDelays) -> datetime:
    return datetime.fromtimestamp(result.window_start / 1000, tz=UTC).astimezone(NEW_YORK)


def _worst_day(results: Sequence[HourlyDelays]) -> date:
    """The day with the most minutes of delay."""
    minutes: dict[date, float] = {}
    for result in results:
        day = _local(result).date()
        minutes[day] = minutes.get(day, 0.0) + result.mean_delay * result.departures
    return max(minutes, key=lambda day: minutes[day])


def _table(results: Sequence[HourlyDelays], bar_width: int = 10) -> Iterator[str]:
    """One line per hour, per origin the departures, mean and maximum delay and a bar."""
    by_hour: dict[int, dict[str, HourlyDelays]] = {}
    for result in results:
        by_hour.setdefault(_local(result).hour, {})[result.key] = result
    longest = max(1.0, *(result.mean_delay for result in results))
    head = "".join(f"  {origin:<5}{'mean':>5}{'max':>5} {'':<{bar_width}}" for origin in ORIGINS)
    yield click.style(f"hour {head}".rstrip(), underline=True)
    for hour in sorted(by_hour):
        cells = (_cell(by_hour[hour].get(origin), longest, bar_width) for origin in ORIGINS)
        yield f"{hour:02}:00{''.join(cells)}".rstrip()


def _cell(result: HourlyDelays | None, longest: float, bar_width: int) -> str:
    if result is None:
        return f"  {'':<15} {'':<{bar_width}}"
    length = max(0, round(bar_width * result.mean_delay / longest))
    numbers = f"{result.departures:<5}{result.mean_delay:>5.0f}{result.max_delay:>5}"
    bar = click.style("#" * length, fg="yellow") if length else ""
    return f"  {numbers} {bar}{' ' * (bar_width - length)}"


def _process_with_kills(directory: Path) -> str:
    """Run the pipeline under a second name in child processes that die; the topic it wrote."""
    name = "hourly-killed"
    with _timed("3. Process again, in another process, with kill -9") as say:
        for attempt in range(1, KILLS + 1):
            if not _run_child(directory, name, kill_after=EPOCHS_BETWEEN_KILLS):
                raise click.ClickException("the child finished before it could be killed")
            done = _progress(directory, name)
            say(f"kill -9 number {attempt}: {done:,} flights were committed; started again")
        _run_child(directory, name, kill_after=None)
        say("the last one was left alone and finished")
    return name


def _run_child(directory: Path, name: str, *, kill_after: int | None) -> bool:
    """Start the pipeline and kill it after so many epochs; True when it died of that."""
    command = [sys.executable, "-m", demo_pipeline.__name__, str(directory), name]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        # A group of its own: Ctrl-C reaches us alone, and the child has nothing to say to it.
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        process_group=0,
    ) as child:
        try:
            _follow_child(child, kill_after)
        except BaseException:
            child.kill()
            child.wait()
            raise
    if kill_after is None and child.returncode != 0:
        raise click.ClickException(f"the pipeline failed with exit code {child.returncode}")
    return child.returncode < 0


def _follow_child(child: subprocess.Popen[bytes], kill_after: int | None) -> None:
    if child.stdin is None or child.stdout is None:
        raise AssertionError("both are pipes")
    if kill_after is None:
        child.stdin.close()
        child.stdout.read()
    else:
        child.stdin.write(b"." * EPOCHS_AHEAD)
        for _ in range(kill_after):
            child.stdout.readline()
            child.stdin.write(b".")
        child.kill()


def _progress(directory: Path, name: str) -> int:
    """How many flights the pipeline `name` has committed."""
    with millstream.open(directory, read_only=True) as store:
        return sum(partition.committed or 0 for partition in store.group_lag(name))


def _compare(store: millstream.Store, killed: str) -> None:
    click.secho("4. Compare", bold=True)
    for suffix in ("", ".late"):
        quiet = [_content(record) for record in store.read("hourly" + suffix)]
        shaken = [_content(record) for record in store.read(killed + suffix)]
        if quiet != shaken:
            raise click.ClickException(f"{killed}{suffix} differs from hourly{suffix}")
        click.echo(f"   {len(quiet):,} records of '{killed}{suffix}' equal 'hourly{suffix}'")
    click.secho("   Identical, record by record, in the same order: exactly once.\n", fg="green")


def _content(record: millstream.Record) -> tuple[object, ...]:
    """What must be the same: all but the topic, and the offset, which may have gaps."""
    return record.partition, record.key, record.value, tuple(record.headers), record.timestamp_ms


def _say_what_next(directory: str, *, kept: bool) -> None:
    click.secho("Try next", bold=True)
    program, directory = _program(sys.argv[0]), shlex.quote(directory)
    if not kept:
        click.echo(f"   {program} demo --dir {directory}      # the same, and keep the store")
    for line in ("topics ls", "consume hourly -o -5 -e", "groups lag hourly", "verify"):
        click.echo(f"   {program} --dir {directory} {line}")


def _program(called: str) -> str:
    """How to call this program again from a shell: `make demo` leaves it outside of PATH."""
    if Path(called).stem != "millstream":
        return f"{shlex.quote(sys.executable)} -m millstream"
    found = shutil.which("millstream")
    if found is not None and Path(found).samefile(called):
        return "millstream"
    return shlex.quote(called)
