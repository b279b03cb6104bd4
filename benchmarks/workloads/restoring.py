"""R1, a restart: the state of a count of 1,000,000 keys, until the pipeline is ready to go on.

The limit reads the same keys and values, as bytes, from one file, and decodes each with msgspec
into a dict. Ours is a whole run that finds no new input: it reads the state topic, checks what it
reads, and makes the state. The third keeps the state in a file that it finds whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import msgspec

import millstream
from benchmarks.harness import Context, Sample, Stopwatch, Target, Workload
from millstream.processor import Pipeline

_TOPIC = "@state/visits/visits.count"


def _visits(state: Literal["memory", "sqlite"]) -> Pipeline:
    pipeline = Pipeline("visits", state=state)
    pipeline.source("visits", type=str).key_by(str.lower).count().to("counts")
    return pipeline


def prepare(context: Context) -> None:
    """Two stores with the state, one with its file, and the bytes of the state for the limit."""
    home = Path(context.prepared, "memory")
    with millstream.open(home, durability="os") as store:
        store.create_topic("visits")
        for start in range(0, context.records, 10_000):
            stop = min(start + 10_000, context.records)
            store.append_many(
                "visits", [f"user {number}".encode() for number in range(start, stop)]
            )
        _visits("memory").run(store, until="end")
        records = [
            part
            for batch in store.read(_TOPIC).batches()
            for pair in zip(batch.keys, batch.values, strict=True)
            for part in pair
        ]
    Path(context.prepared, "state.bytes").write_bytes(msgspec.msgpack.encode(records))
    shutil.copytree(home, Path(context.prepared, "sqlite"))
    with millstream.open(Path(context.prepared, "sqlite"), durability="os") as store:
        _visits("sqlite").run(store, until="end")


def plain_loop(context: Context) -> Sample:
    """The loop by hand."""
    path = Path(context.prepared, "state.bytes")
    decode = msgspec.msgpack.Decoder().decode
    counts: dict[str, int] = {}
    with Stopwatch() as watch:
        parts = msgspec.msgpack.decode(path.read_bytes(), type=list[bytes])
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            # A path of one part; a version, and a list of one value.
            counts[decode(key)[0]] = decode(value[1:])[0]
    assert len(counts) == context.records
    return watch.sample(context.records)


def memory(context: Context) -> Sample:
    """Ours, from the state topic."""
    return _restart(context, "memory")


def spilled(context: Context) -> Sample:
    """Ours, from the file of a run before."""
    return _restart(context, "sqlite")


def _restart(context: Context, state: Literal["memory", "sqlite"]) -> Sample:
    with millstream.open(Path(context.prepared, state), durability="os") as store:
        with Stopwatch() as watch:
            metrics = _visits(state).run(store, until="end")
        (found,) = [each for each in metrics.operators if each.state_records]
        assert found.state_records == context.records
    return watch.sample(context.records)


WORKLOAD = Workload(
    name="R1",
    title="restart of a count of 1,000,000 keys",
    durability="none, it reads",
    contestants={"plain loop": plain_loop, "memory": memory, "spilled": spilled},
    targets=(Target("memory", "rate", 0.5, "plain loop"),),
    prepare=prepare,
)
