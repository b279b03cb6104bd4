"""A partition of very many small segments, written as files, without a store's syncs.

What is written is what a store would have written that rolled behind each record. The store that
is opened next finds no checkpoint, walks all of it once, and saves one when it is closed.
"""

from __future__ import annotations

from pathlib import Path

import millstream
from millstream.batch import BatchPlacement, buffers, encode_one, seal
from millstream.format import (
    NO_TIMESTAMP,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    encode_segment_header,
)
from millstream.segment import segment_path
from millstream.topics import partitions

STEP_MS = 1000


def value_of(offset: int) -> bytes:
    """The value of the record at that offset, which is alone in its segment."""
    return b"%d" % offset * 10


def write_segments(root: Path, count: int, newest_ms: int) -> None:
    """A store at `root` with topic `t`, one partition, of so many segments of one record each.

    Args:
        root: Does not exist yet.
        count: Number of segments.
        newest_ms: Append time of the last record; each one before is a second older.
    """
    with millstream.open(root, durability="os") as store:
        store.create_topic("t")
        engine = store._engine
        (partition,) = partitions(engine, "t", None)
        row = engine.catalog.partition(engine.topic("t").id, partition.partition)
        store_uid = engine.components.store_uid
    directory = "topics/t/0"
    (root / directory).mkdir(parents=True, exist_ok=True)
    previous_uid = link = previous_bytes = 0
    newest = NO_TIMESTAMP
    for offset in range(count):
        now_ms = newest_ms - STEP_MS * (count - 1 - offset)
        uid = offset + 1
        header, header_hash = encode_segment_header(
            SegmentHeader(
                store_uid, uid, row.uid, offset, now_ms, previous_uid, link, previous_bytes, newest
            )
        )
        encoded = encode_one(value_of(offset))
        batch, link = seal(
            encoded,
            BatchPlacement(
                uid, row.uid, offset, now_ms, header_hash, offset, offset + 1, 0, newest
            ),
        )
        content = b"".join([header, *buffers(encoded, batch)])
        (root / segment_path(directory, offset)).write_bytes(content)
        previous_uid, previous_bytes, newest = uid, len(content), now_ms
    assert previous_bytes > SEGMENT_HEADER_BYTES
