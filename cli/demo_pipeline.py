"""The demo's pipeline: departures, mean and maximum delay per origin and scheduled hour.

What a user's own module looks like: a record type, a function or two, a `Pipeline` value. It runs
under `millstream process millstream.cli.demo_pipeline:pipeline` as any other.

Run as a program it is the child process which the demo kills (`demo.py`): small epochs, one line
per committed epoch on standard output, and one byte from standard input before the next.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime

import msgspec

import millstream
from millstream.processor import Pipeline, agg, tumbling

BATCH_RECORDS = 100
"""Micro-batch of the child: small, so that there are many epochs to be killed in."""


class Flight(msgspec.Struct):
    """One line of the excerpt, as far as the pipeline looks at it."""

    scheduled: datetime
    departed: datetime | None
    origin: str
    delay: int | None
    """Minutes; None: the flight was cancelled."""


def has_departed(flight: Flight) -> bool:
    """Cancelled flights have no delay; they still move the watermark."""
    return flight.delay is not None


def hourly_delays(name: str = "hourly") -> Pipeline:
    """The pipeline: topic `flights` to topics `<name>` and `<name>.late`.

    Event time is the schedule, the order of the rows is the order of departure: the delays
    themselves are the disorder. A flight more than four hours behind the newest schedule seen
    may find its hour closed and then goes to the late stream.
    """
    pipeline = Pipeline(name)
    flights = pipeline.source("flights", type=Flight, time="scheduled", disorder="4h")
    hours = (
        flights.filter(has_departed)
        .key_by("origin")
        .window(tumbling("1h"))
        .agg(departures=agg.count(), mean_delay=agg.mean("delay"), max_delay=agg.max("delay"))
    )
    hours.to(name)
    hours.late.to(f"{name}.late")
    return pipeline


pipeline = hourly_delays()


def _run_as_child(directory: str, name: str) -> None:
    def report(_metrics: object) -> None:
        sys.stdout.write("epoch\n")
        sys.stdout.flush()
        # The parent grants epochs in advance, a few at a time, so that however slow it is, this
        # process cannot have finished before the signal arrives. End of file: nobody watches.
        os.read(0, 1)

    with millstream.open(directory) as store:
        hourly_delays(name).run(
            store, until="end", batch_records=BATCH_RECORDS, epoch_ms=0, on_progress=report
        )


if __name__ == "__main__":
    _run_as_child(sys.argv[1], sys.argv[2])
