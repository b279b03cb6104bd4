"""The column lane: P1 and P2 over JSON with a schema, all else over a column topic.

The limits are batch engines over the same rows, on one thread: over a file of JSON lines where ours
reads JSON, else over an Arrow table in memory. They compute one result and are done; ours reads a
log, decides row by row what is late, commits an epoch every 100 ms, and writes its results durably.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import millstream
from benchmarks import arrow as pa, data
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from benchmarks.workloads import visiting
from benchmarks.workloads.pipeline import Event
from millstream.processor import Pipeline, agg, col, tumbling

MINUTE_MS = 60_000


class Totals(msgspec.Struct):
    """What the windows of P2 and P3 and the sessions are written as."""

    key: str
    window_start: int
    window_end: int
    n: int
    total: float


class Large(msgspec.Struct):
    """What P1 writes."""

    user: str
    cents: float
    ts: int


class Running(msgspec.Struct):
    """What totals of every row are written as."""

    key: str
    n: int
    total: float
    least: float
    most: float


class Different(msgspec.Struct):
    """What windows of different values are written as."""

    key: str
    window_start: int
    window_end: int
    users: int
    last: str
    middle: float


def prepare(context: Context) -> None:
    """The events as columns and as JSON, in a topic and in a file of each."""
    lines = data.events(context.records, context.seed)
    Path(context.prepared, "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with millstream.open() as store:
        store.create_topic("events", schema=Event)
        store.append_many("events", lines)
        rows = store.read("events").arrow().read_all().combine_chunks()
    with pa.ipc.new_file(str(Path(context.prepared, "events.arrow")), rows.schema) as writer:
        writer.write_table(rows)


def _table(context: Context) -> Any:
    with pa.OSFile(str(Path(context.prepared, "events.arrow"))) as file:
        return pa.ipc.open_file(file).read_all().combine_chunks()


def _polars() -> Any:
    os.environ["POLARS_MAX_THREADS"] = "1"
    import polars  # noqa: PLC0415 - after the environment is set

    return polars


def _duckdb() -> Any:
    import duckdb  # noqa: PLC0415 - where it is measured

    connection = duckdb.connect()
    connection.execute("set threads = 1")
    return connection


# --- P1: keep the large ones, make each into another row -----------------------------------------


def polars_convert(context: Context) -> Sample:
    """Polars, from a file of JSON lines to a frame."""
    polars = _polars()
    path = Path(context.prepared, "events.jsonl")
    schema = {"user": polars.String, "amount": polars.Float64, "ts": polars.Int64}
    large = polars.col("amount") > 50
    with Stopwatch() as watch:
        cents = polars.col("amount") * 100
        rows = polars.read_ndjson(path, schema=schema)
        kept = rows.lazy().filter(large).select("user", cents.alias("cents"), "ts").collect()
    return {**watch.sample(context.records), "kept": float(len(kept))}


def convert(context: Context) -> Sample:
    """Ours, from a JSON topic with a schema to a column topic."""
    job = Pipeline("large")
    source = job.source("events", type=Event, time="ts")
    large = source.filter(col("amount") > 50)
    large.select("user", "ts", cents=col("amount") * 100).to("large")
    return _run(context, job, "large", Large, values="json")


# --- P2 and P3: totals by user and minute --------------------------------------------------------


def polars_totals(context: Context) -> Sample:
    """Polars, from a frame to a frame."""
    polars = _polars()
    frame = polars.from_arrow(_table(context))
    with Stopwatch() as watch:
        minute = (polars.col("ts") // MINUTE_MS).alias("minute")
        wanted = polars.len(), polars.col("amount").sum()
        found = frame.lazy().group_by("user", minute).agg(*wanted).collect()
    return {**watch.sample(context.records), "kept": float(len(found))}


def _duckdb_totals(context: Context, rows: Callable[[], str]) -> Sample:
    connection, table = _duckdb(), _table(context)
    connection.register("events", table)
    query = (
        'select "user", ts // 60000 as minute, count(*) as n, sum(amount) as total'
        f" from {rows()} group by all"
    )
    with Stopwatch() as watch:
        found = connection.sql(query).to_arrow_table()
    return {**watch.sample(context.records), "kept": float(found.num_rows)}


def duckdb_totals(context: Context) -> Sample:
    """DuckDB, from a table to a table."""
    return _duckdb_totals(context, lambda: "events")


def duckdb_lines(context: Context) -> Sample:
    """DuckDB, from a file of JSON lines to a table."""
    path = Path(context.prepared, "events.jsonl")
    columns = "{user: 'VARCHAR', amount: 'DOUBLE', ts: 'BIGINT'}"
    rows = f"read_json('{path}', format = 'newline_delimited', columns = {columns})"
    return _duckdb_totals(context, lambda: rows)


def _totals() -> Pipeline:
    job = Pipeline("totals")
    keyed = job.source("events", type=Event, time="ts", disorder="10s").key_by("user")
    windows = keyed.window(tumbling("1m"))
    windows.agg(n=agg.count(), total=agg.sum("amount")).to("totals")
    return job


def totals(context: Context) -> Sample:
    """Ours, from a column topic to another."""
    return _run(context, _totals(), "totals", Totals)


def totals_of_json(context: Context) -> Sample:
    """Ours, from a JSON topic with a schema to a column topic."""
    return _run(context, _totals(), "totals", Totals, values="json")


# --- sessions: totals by user and visit ----------------------------------------------------------


def duckdb_visits(context: Context) -> Sample:
    """DuckDB, from a table to a table: sorted by user and time, cut where there is a gap."""
    connection, table = _duckdb(), _table(context)
    connection.register("events", table)
    query = f"""select "user", min(ts) as first, max(ts) as last, count(*) as n,
        sum(amount) as total
        from (select *, sum(begins) over (partition by "user" order by ts) as visit
        from (select *, coalesce(ts - lag(ts) over (partition by "user" order by ts)
        >= {visiting.GAP_MS}, true)::int as begins from events)) group by "user", visit"""
    with Stopwatch() as watch:
        found = connection.sql(query).to_arrow_table()
    return {**watch.sample(context.records), "kept": float(found.num_rows)}


def polars_visits(context: Context) -> Sample:
    """Polars, from a frame to a frame, in the same way."""
    polars = _polars()
    frame = polars.from_arrow(_table(context))
    with Stopwatch() as watch:
        ts = polars.col("ts")
        begins = (ts.diff() >= visiting.GAP_MS) | (polars.col("user") != polars.col("user").shift())
        visit = begins.fill_null(value=True).cum_sum().alias("visit")
        wanted = ts.min().alias("first"), ts.max().alias("last"), polars.len()
        cut = frame.lazy().sort("user", "ts").with_columns(visit)
        found = cut.group_by("user", "visit").agg(*wanted, polars.col("amount").sum()).collect()
    return {**watch.sample(context.records), "kept": float(len(found))}


def visits(context: Context) -> Sample:
    """Ours, from a column topic to another."""
    return _run(context, visiting.visits(), "visits", Totals)


def visits_of_rows(context: Context) -> Sample:
    """The same pipeline over a topic without a schema: on rows, from JSON to JSON."""
    return _run(context, visiting.visits(), "visits", None, values="json", schemas=False)


# --- running: totals by user after every row -----------------------------------------------------


def duckdb_running(context: Context) -> Sample:
    """DuckDB, from a table to a table, each row with those of its user before it."""
    connection, table = _duckdb(), _table(context)
    connection.register("events", table)
    query = """select "user", count(*) over w as n, sum(amount) over w as total,
        min(amount) over w as least, max(amount) over w as most
        from (select *, row_number() over () as place from events)
        window w as (partition by "user" order by place rows unbounded preceding)"""
    with Stopwatch() as watch:
        found = connection.sql(query).to_arrow_table()
    return {**watch.sample(context.records), "kept": float(found.num_rows)}


def polars_running(context: Context) -> Sample:
    """Polars, from a frame to a frame."""
    polars = _polars()
    frame = polars.from_arrow(_table(context))
    with Stopwatch() as watch:
        amount = polars.col("amount")
        wanted = {
            "n": amount.cum_count(),
            "total": amount.cum_sum(),
            "least": amount.cum_min(),
            "most": amount.cum_max(),
        }
        columns = [each.over("user").alias(name) for name, each in wanted.items()]
        found = frame.lazy().select("user", *columns).collect()
    return {**watch.sample(context.records), "kept": float(len(found))}


def _running() -> Pipeline:
    job = Pipeline("running")
    amount = {"least": agg.min("amount"), "most": agg.max("amount")}
    keyed = job.source("events", type=Event, time="ts").key_by("user")
    keyed.agg(n=agg.count(), total=agg.sum("amount"), **amount).to("running")
    return job


def running(context: Context) -> Sample:
    """Ours, from a column topic to another."""
    return _run(context, _running(), "running", Running)


def running_of_rows(context: Context) -> Sample:
    """The same pipeline over a topic without a schema: on rows, from JSON to JSON."""
    return _run(context, _running(), "running", None, values="json", schemas=False)


# --- different: who was there in a minute, who last, and the median amount -----------------------


def duckdb_different(context: Context) -> Sample:
    """DuckDB, from a table to a table; its quantile is an estimate, too."""
    connection, table = _duckdb(), _table(context)
    connection.register("events", table)
    query = """select "user"[:2] as key, ts // 60000 as minute, count(distinct "user") as users,
        last("user") as last, approx_quantile(amount, 0.5) as middle from events group by 1, 2"""
    with Stopwatch() as watch:
        found = connection.sql(query).to_arrow_table()
    return {**watch.sample(context.records), "kept": float(found.num_rows)}


def _different() -> Pipeline:
    job = Pipeline("different")
    source = job.source("events", type=Event, time="ts", disorder="10s")
    windows = source.key_by(col("user").slice(0, 2)).window(tumbling("1m"))
    middle = agg.quantile(0.5, "amount")
    windows.agg(users=agg.distinct("user"), last=agg.last("user"), middle=middle).to("different")
    return job


def different(context: Context) -> Sample:
    """Ours, from a column topic to another."""
    return _run(context, _different(), "different", Different)


def different_of_rows(context: Context) -> Sample:
    """The same pipeline over a topic without a schema: on rows, from JSON to JSON."""
    return _run(context, _different(), "different", None, values="json", schemas=False)


def _load() -> None:
    """Load what is loaded when it is needed: what the others load is not measured either."""
    for module in pkgutil.iter_modules(millstream.processor.__path__):
        if module.name.startswith("frame"):
            importlib.import_module(f"millstream.processor.{module.name}")
    importlib.import_module("millstream.json_columns")
    importlib.import_module("numpy.ma")  # pyarrow asks it about the first array it is given


def _run(
    context: Context,
    job: Pipeline,
    target: str,
    schema: Any,
    *,
    values: str = "columns",
    schemas: bool = True,
) -> Sample:
    with millstream.open(Path(context.directory, "store")) as store:
        if schemas:
            store.create_topic("events", schema=Event, values=values)
            store.create_topic(target, schema=schema)
        else:
            store.create_topic("events")
            store.create_topic(target)
        if values == "columns":
            store.append_arrow("events", _table(context))
        else:
            lines = Path(context.prepared, "events.jsonl").read_bytes().splitlines()
            for start in range(0, len(lines), 10_000):
                store.append_many("events", lines[start : start + 10_000])
    _load()
    with millstream.open(Path(context.directory, "store")) as store:
        with Stopwatch() as watch:
            metrics = job.run(store, until="end", on_end="flush")
        assert metrics.records_out == store.offsets(target)[0].end
    sample = watch.sample(context.records)
    return {**sample, "kept": float(metrics.records_out), "epochs": float(metrics.epochs)}


P1 = Workload(
    name="P1 columns",
    title="filter and select with expressions from JSON with a schema, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"polars": polars_convert, "columns": convert},
    targets=(Target("columns", "rate", 0.5, "polars"),),
    prepare=prepare,
)
P2 = Workload(
    name="P2 columns",
    title="totals by user and minute from JSON with a schema, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"duckdb": duckdb_lines, "columns": totals_of_json},
    targets=(Target("columns", "rate", 0.5, "duckdb"),),
    prepare=prepare,
)
SESSIONS = Workload(
    name="sessions columns",
    title="totals by user and visit from columns, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={
        "polars": polars_visits,
        "duckdb": duckdb_visits,
        "rows": visits_of_rows,
        "columns": visits,
    },
    targets=(
        Target("columns", "rate", 0.5, "duckdb"),
        Target("columns", "rate", 10.0, "rows"),
    ),
    prepare=prepare,
)
RUNNING = Workload(
    name="running columns",
    title="totals by user after every row from columns, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={
        "polars": polars_running,
        "duckdb": duckdb_running,
        "rows": running_of_rows,
        "columns": running,
    },
    targets=(
        Target("columns", "rate", 0.5, "duckdb"),
        Target("columns", "rate", 5.0, "rows"),
    ),
    prepare=prepare,
)
DIFFERENT = Workload(
    name="different columns",
    title="different users, the last one and the median by minute from columns, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={
        "duckdb": duckdb_different,
        "rows": different_of_rows,
        "columns": different,
    },
    targets=(
        Target("columns", "rate", 0.5, "duckdb"),
        Target("columns", "rate", 2.0, "rows"),
    ),
    prepare=prepare,
)
P3 = Workload(
    name="P3 columns",
    title="totals by user and minute from columns, exactly once",
    durability="sync, an epoch every 100 ms",
    contestants={"polars": polars_totals, "duckdb": duckdb_totals, "columns": totals},
    targets=(
        Target("columns", "rate", 0.5, "duckdb"),
        Target("columns", "rate", 0.5, "polars"),
    ),
    prepare=prepare,
)
