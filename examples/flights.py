"""Which airline keeps its schedule? Daily delays per carrier, by event time.

The flights come in the order in which they left; the day a delay belongs to is the day it was
scheduled for. Run it again with another `batch_records`: the results stay the same.
"""

import gzip
from datetime import datetime
from importlib import resources

import msgspec

import millstream
from millstream.processor import Pipeline, agg, tumbling


class Flight(msgspec.Struct):
    """The fields this pipeline needs; a record may have more."""

    scheduled: datetime
    carrier: str
    delay: int | None


def departed(flight: Flight) -> bool:
    """Cancelled flights have no delay."""
    return flight.delay is not None


pipeline = Pipeline("punctuality")
flights = pipeline.source("flights", type=Flight, time="scheduled", disorder="12h")
days = (
    flights.filter(departed)
    .key_by("carrier")
    .window(tumbling("1d", offset="5h"))  # a day in New York begins at 05:00 UTC
    .agg(flights=agg.count(), mean=agg.mean("delay"), worst=agg.max("delay"))
)
days.to("punctuality")

with millstream.open(":memory:") as store:
    excerpt = resources.files("millstream.cli") / "data" / "flights-2013-01.jsonl.gz"
    store.create_topic("flights")
    store.append_many("flights", gzip.decompress(excerpt.read_bytes()).splitlines())
    pipeline.run(store, until="end", batch_records=1000)

    results = [msgspec.json.decode(record.value or b"") for record in store.read("punctuality")]
    last_day = max(result["window_start"] for result in results)
    for result in sorted(results, key=lambda result: result["mean"]):
        if result["window_start"] == last_day:
            print(
                "{key}  {flights:4} flights, mean {mean:6.1f} min, worst {worst}".format(**result)
            )
