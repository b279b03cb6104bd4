"""What an Arrow message says of itself: compression inside of a chunk is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from millstream.arrow_batch import section_columns
from millstream.arrow_messages import is_compressed
from millstream.column_section import Chunk, encode_section, pack
from millstream.errors import CorruptBatchError


def message(column: pa.Array, compression: str | None) -> bytes:
    batch = pa.RecordBatch.from_arrays([column], names=["a"])
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    reader.read_next_message()
    return bytes(reader.read_next_message().serialize())


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_message_compressed_inside_is_damage(compression: str | None) -> None:
    column = pa.array([1] * 1000)
    schema = pa.schema([("a", pa.int64())])
    raw = message(column, compression)
    section = encode_section(bytes(schema.serialize()), [pack(Chunk([raw], 0), 0)])
    columns = section_columns(section.stored, section.hash, 1000)

    if compression is None:
        assert columns.column(schema.field("a")).equals(column)
    else:
        with pytest.raises(CorruptBatchError, match="column 'a' is compressed inside"):
            columns.column(schema.field("a"))


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_hostile_metadata_are_damage(compression: str | None) -> None:
    metadata = bytes(pa.ipc.read_message(message(pa.array([1, 2]), compression)).metadata)
    assert is_compressed(metadata) == (compression is not None)

    for position in range(len(metadata)):
        for value in (0, 0x7F, 0xFF):
            damaged = bytearray(metadata)
            damaged[position] = value
            try:
                assert is_compressed(damaged) in {True, False}
            except CorruptBatchError:
                continue
    for size in range(8):
        with pytest.raises(CorruptBatchError):
            is_compressed(metadata[:size])
