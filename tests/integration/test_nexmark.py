"""Each query of Nexmark says what DuckDB says of the same rows."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import msgspec
import polars
import pytest

import millstream
from millstream.processor import Row

FOLDER = Path(__file__).parents[2] / "examples" / "nexmark"
EVENTS = 5000
INTERVAL_MS = 10

IN_TIME = """select a.id, a.category, a.seller, a.expires, b.bidder, b.price, b.ts
    from auction a join bid b on b.auction = a.id and b.ts between a.ts and a.expires"""
HOPS = """select auction, w as window_end, count(*) as num from (
    select auction, unnest(range(ts // 2000 * 2000 + 2000, ts // 2000 * 2000 + 12000, 2000)) as w
    from bid) group by all"""
RANKS = "price < 10000", "price >= 10000 and price < 1000000", "price >= 1000000"
COUNTS = ", ".join(["count(*)", *(f"count(*) filter ({rank})" for rank in RANKS)])
DISTINCT = ", ".join(
    f"count(distinct {field}){condition}"
    for field in ("bidder", "auction")
    for condition in ("", *(f" filter ({rank})" for rank in RANKS))
)
SESSIONS = """select bidder, min(ts) as a, max(ts) + 10000, count(*) from (
    select *, sum(fresh) over (partition by bidder order by ts rows unbounded preceding) as s from (
    select *, (ts - lag(ts) over (partition by bidder order by ts) >= 10000)::int as fresh
    from bid)) group by bidder, coalesce(s, 0)"""
NUMBERED = """select auction, ts, case lower(channel) when 'apple' then '0' when 'google' then '1'
    when 'facebook' then '2' when 'baidu' then '3'
    else regexp_extract(url, '[?&]channel_id=([^&]*)', 1) end as n from bid"""

ROWS = {
    "q0": "from bid",
    "q1": "select auction, bidder, 0.908::double * price, ts from bid",
    "q2": "select auction, price from bid where auction % 123 = 0",
    "q3": """select name, city, state, a.id from auction a join person p on a.seller = p.id
        where category = 10 and state in ('OR', 'ID', 'CA')""",
    "q5": f"""select auction, num, window_end from ({HOPS})
        qualify num = max(num) over (partition by window_end)""",
    "q7": """select price, auction, bidder, ts from bid
        qualify price = max(price) over (partition by ts // 10000)""",
    "q8": """select distinct p.id, name, p.ts // 10000 * 10000 from person p join auction a
        on a.seller = p.id and a.ts // 10000 = p.ts // 10000""",
    "q10": """select *, strftime(make_timestamp(ts * 1000), '%Y-%m-%d'), ts // 3600000 % 24,
        ts // 60000 % 60 from bid""",
    "q11": SESSIONS,
    "q12": """select bidder, ts // 10000 * 10000, ts // 10000 * 10000 + 10000, count(*)
        from bid group by all""",
    "q13": "select auction, bidder, ts, 'side ' || auction % 10000 from bid where auction % 2 = 0",
    "q14": """select auction, 0.908::double * price as p, 'night', ts,
        length(extra) - length(replace(extra, 'c', '')) from bid
        where p > 1000000 and p < 50000000""",
    "q20": """select b.bidder, b.price, b.ts, item from bid b join auction a on b.auction = a.id
        where category = 10""",
    "q21": f"from ({NUMBERED}) where n <> ''",
    "q22": """select auction, ts, [split_part(url, '/', 4), split_part(url, '/', 5),
        split_part(url, '/', 6)] from bid""",
}
NEWEST = {
    "q4": f"""select category, avg(price) from (
        select id, category, max(price) as price from ({IN_TIME}) group by all) group by 1""",
    "q6": f"""select avg(price) from (select *, row_number() over (
        partition by seller order by expires desc, id::varchar desc) as place from (
        select id, seller, expires, max(price) as price from ({IN_TIME}) group by all))
        where place <= 10 group by seller""",
    "q9": f"""select id, bidder, price, ts from ({IN_TIME})
        qualify row_number() over (partition by id order by price desc, ts) = 1""",
    "q15": f"select ts // 86400000, {COUNTS}, {DISTINCT} from bid group by ts // 86400000",
    "q16": f"""select (ts // 86400000) || ' ' || channel, {COUNTS}, {DISTINCT} from bid
        group by ts // 86400000, channel""",
    "q17": f"""select (ts // 86400000) || ' ' || auction, {COUNTS}, min(price), max(price),
        avg(price), sum(price)::bigint from bid group by ts // 86400000, auction""",
    "q18": """select bidder || ' ' || auction, * from bid
        qualify row_number() over (partition by bidder, auction order by ts desc) = 1""",
    "q19": "select auction, (list(price order by price desc))[:10] from bid group by 1",
}


@pytest.fixture(scope="module")
def nexmark() -> Iterator[SimpleNamespace]:
    """The modules of the example, and the rows of its topics."""
    sys.path.insert(0, str(FOLDER))
    try:
        names = ("generator", "queries", "rows_of_bids")
        generator, queries, plain = map(importlib.import_module, names)
    finally:
        sys.path.remove(str(FOLDER))
    rows: dict[str, list[Any]] = {"person": [], "auction": [], "bid": []}
    for event in generator.events(7, EVENTS, interval_ms=INTERVAL_MS):
        rows[generator.topic_of(event)].append(event)
    yield SimpleNamespace(generator=generator, modules=(queries, plain), rows=rows)
    for name in names:
        del sys.modules[name]


def build(nexmark: SimpleNamespace, query: str) -> Any:
    (found,) = [getattr(each, query) for each in nexmark.modules if hasattr(each, query)]
    return found()


def inputs(nexmark: SimpleNamespace, query: str) -> dict[str, list[Row]]:
    pipeline = build(nexmark, query)
    given = {"side": [Row(b"side %d" % n, 0, key=b"%d" % n) for n in range(0, 10_000, 2)]}
    given |= {
        topic: [Row(msgspec.json.encode(each), each.ts) for each in rows]
        for topic, rows in nexmark.rows.items()
    }
    read = {source.topic for source in pipeline.plan.sources()}
    return {topic: rows for topic, rows in given.items() if topic in read}


def asked(nexmark: SimpleNamespace, text: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        for topic, rows in nexmark.rows.items():
            connection.register(topic, polars.DataFrame([msgspec.to_builtins(r) for r in rows]))
        return connection.execute(text).fetchall()


def plain(value: Any) -> Any:
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def test_an_event_is_a_function_of_the_seed_and_its_number(nexmark: SimpleNamespace) -> None:
    generator = nexmark.generator
    assert list(generator.events(7, 300))[200:] == list(generator.events(7, 300, 200))
    assert generator.event(7, 4) != generator.event(8, 4)
    rows = nexmark.rows
    assert list(map(len, rows.values())) == [100, 300, 4600]
    persons = {each.id: each.ts for each in rows["person"]}
    auctions = {each.id: each.ts for each in rows["auction"]}
    assert all(persons[each.seller] < each.ts for each in rows["auction"])
    assert all(auctions[each.auction] < each.ts for each in rows["bid"])
    assert all(persons[each.bidder] < each.ts for each in rows["bid"])


@pytest.mark.parametrize("query", ROWS)
def test_rows_are_those_of_duckdb(nexmark: SimpleNamespace, query: str) -> None:
    output = build(nexmark, query).test(inputs(nexmark, query))[query]
    expected = asked(nexmark, ROWS[query])
    assert Counter(plain(tuple(row.values())) for row in output) == Counter(map(plain, expected))
    assert expected


@pytest.mark.parametrize("query", NEWEST)
def test_newest_rows_are_those_of_duckdb(nexmark: SimpleNamespace, query: str) -> None:
    output = build(nexmark, query).test(inputs(nexmark, query)).records(query)
    newest = {record.key: msgspec.json.decode(record.value) for record in output}
    found = Counter(plain(tuple(row.values())) for row in newest.values())
    expected = asked(nexmark, NEWEST[query])
    assert found == Counter(map(plain, expected))
    assert expected


def test_files_have_the_bids_by_date_and_minute(nexmark: SimpleNamespace, tmp_path: Path) -> None:
    _, plain_bids = nexmark.modules
    folder = tmp_path / "bids"
    with millstream.open(tmp_path / "store") as store:
        store.create_topic("bid", schema=nexmark.generator.Bid)
        for start in range(0, len(nexmark.rows["bid"]), 700):
            some = nexmark.rows["bid"][start : start + 700]
            store.append_many("bid", list(map(msgspec.json.encode, some)))
            plain_bids.q10(str(folder)).run(store, until="end")
    minutes = {each.ts // 60_000 % 60 for each in nexmark.rows["bid"]}
    assert {f"date=2024-01-01/hour=0/minute={minute}" for minute in minutes} == {
        str(path.parent.relative_to(folder)) for path in folder.rglob("*.jsonl")
    }
    with duckdb.connect() as connection:
        found = connection.execute(
            f"select minute, count(*), sum(price)::bigint, bool_and(ts // 60000 % 60 = minute)"
            f" from read_json('{folder}/*/*/*/*.jsonl') group by 1"
        ).fetchall()
    expected = asked(
        nexmark, "select ts // 60000 % 60, count(*), sum(price)::bigint, true from bid group by 1"
    )
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("query", ["q5", "q7", "q11", "q15", "q16", "q17", "q18", "q19"])
def test_crashes_change_nothing(nexmark: SimpleNamespace, query: str, columns: bool) -> None:
    """The machine dies again and again, each time with 300 bids processed and not committed."""
    bids = nexmark.rows["bid"]
    with build(nexmark, query).driver() as driver:
        if columns:
            driver.store.delete_topic("bid")
            driver.store.create_topic("bid", schema=nexmark.generator.Bid)
            driver.crash()
            driver.restore()
        for start in range(0, len(bids), 300):
            some = bids[start : start + 300]
            values = list(map(msgspec.json.encode, some))
            driver.store.append_many("bid", values, None, [each.ts for each in some])
            if start % 900:
                driver.crash()
                driver.restore()
            else:
                driver.run()
        driver.end()
        found = [(r.key, r.value, r.timestamp_ms) for r in driver.store.read(query)]
    output = build(nexmark, query).test(inputs(nexmark, query)).records(query)
    assert found == [(r.key, r.value, r.timestamp_ms) for r in output]


def test_the_program_runs_a_query(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-W", "error", str(FOLDER / "run.py"), "q7", "q8", "2000"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["q7", "q8"]
