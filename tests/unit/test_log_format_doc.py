"""docs/log-format.md is the specification: its tables and its example are held to the code."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec import NODEFAULT

from millstream import format as layout
from millstream.batch import (
    BatchPlacement,
    buffers,
    decode_batch,
    encode_batch,
    parse_header,
    seal,
)
from millstream.column_section import DIRECTORY_HEADER, ENTRY
from millstream.format import (
    BATCH_MAGIC_BYTES,
    NO_TIMESTAMP,
    BatchHeader,
    Rewrite,
    SegmentHeader,
    encode_segment_header,
    parse_segment_header,
)
from millstream.index import INDEX_MAGIC
from millstream.key_file import KEY_MAGIC
from millstream.processor.checkpoint import Checkpoint, OperatorState, SourceState

DOCUMENT = (Path(__file__).parents[2] / "docs" / "log-format.md").read_text("utf-8")
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(title: str) -> list[tuple[int, str, int]]:
    """(offset, field, size in bytes) of each row of the layout table under `title`."""
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (\d+ bytes|[ui]\d+) \|", section(title), re.MULTILINE)
    return [
        (int(offset), field, SIZES[kind] if kind in SIZES else int(kind.split()[0]))
        for offset, field, kind in rows
    ]


def example() -> bytes:
    rows = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", section("Example"), re.MULTILINE)
    result = b""
    for position, digits in rows:
        assert int(position, 16) == len(result)
        result += bytes.fromhex(digits)
    return result


def test_layout_tables_have_no_holes_and_the_declared_sizes() -> None:
    for title, size in (
        ("Segment header", 128),
        ("Batch header", 192),
        ("Index file", 64),
        ("Key file", 64),
    ):
        end = 0
        for offset, field, length in table(title):
            assert (title, field, offset) == (title, field, end)
            end = offset + length
        assert (title, end) == (title, size)


def test_batch_header_table_names_the_fields_of_the_code_in_order() -> None:
    fields = [field for _, field, _ in table("Batch header")]
    other = {"magic", "reserved", "producer_sequence_high"}
    plain = [field for field in fields if "." not in field and field not in other]
    coded = [field for field in BatchHeader._fields if field != "sections"]

    assert sorted(coded) == sorted(plain)
    assert plain == coded


def test_segment_header_table_names_the_fields_of_the_code() -> None:
    fields = {field for _, field, _ in table("Segment header")}

    assert fields - {"magic", "reserved"} == set(SegmentHeader._fields) - {"rewrite"}


def test_rewrite_header_table_names_the_fields_of_the_code_in_order() -> None:
    rows = table("Rewritten segments")
    fields = tuple(field for _, field, _ in rows if field not in {"reserved", "rewrite_hash"})

    assert fields == Rewrite._fields
    end = layout.SEGMENT_HEADER_BYTES
    for offset, field, length in rows:
        assert (field, offset) == (field, end)
        end = offset + length
    assert end == layout.REWRITTEN_DATA_START


def test_flag_table_lists_every_flag_with_its_number() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", section("Batch header"), re.MULTILINE)

    assert sum(int(number) for number, _ in rows) == layout.KNOWN_FLAGS
    for number, name in rows:
        assert getattr(layout, name) == int(number)


def test_magics_in_the_document_are_those_of_the_code() -> None:
    assert layout.SEGMENT_MAGIC.hex(" ").upper() in section("Segment header")
    assert BATCH_MAGIC_BYTES.hex(" ").upper() in section("Batch header")
    assert INDEX_MAGIC.hex(" ").upper() in section("Index file")
    assert KEY_MAGIC.hex(" ").upper() in section("Key file")


def test_hex_example_is_what_the_code_writes() -> None:
    segment = SegmentHeader(
        store_uid=bytes(range(16)),
        segment_uid=0x1122334455667788,
        partition_uid=42,
        base_offset=1000,
        created_ms=1_700_000_000_000,
    )
    segment_bytes, segment_hash = encode_segment_header(segment)
    encoded = encode_batch(
        [b"hello", None],
        keys=[b"u1", b"u2"],
        timestamps_ms=[1_700_000_000_000, 1_700_000_000_250],
        headers=[(), [("h", b"v")]],
    )
    placement = BatchPlacement(
        segment_uid=segment.segment_uid,
        partition_uid=42,
        base_offset=1000,
        append_timestamp_ms=1_700_000_000_300,
        previous_hash=segment_hash,
        durable_offset=1000,
        sequence=7,
        transaction_id=0,
        prior_max_timestamp_ms=NO_TIMESTAMP,
    )
    header, _ = seal(encoded, placement)

    assert example() == segment_bytes + b"".join(buffers(encoded, header))


def test_hex_example_decodes_to_what_the_document_says() -> None:
    content = example()
    segment = parse_segment_header(content)
    header = parse_header(content, 128, segment.segment_uid)

    batch = decode_batch("t", 0, header, content[320:])

    assert [(r.offset, r.timestamp_ms, r.key, r.value, r.headers) for r in batch.records()] == [
        (1000, 1_700_000_000_000, b"u1", b"hello", ()),
        (1001, 1_700_000_000_250, b"u2", None, (("h", b"v"),)),
    ]


def test_tables_of_column_batches_are_the_structs_of_the_code() -> None:
    text = section("Column batches")
    halves = text.split("Entry, 64 bytes:")
    for half, size in zip(halves, (DIRECTORY_HEADER.size, ENTRY.size), strict=True):
        end = 0
        for offset, _, kind in re.findall(
            r"^\| (\d+) \| (\S+) \| (\d+ bytes|[ui]\d+) \|", half, re.MULTILINE
        ):
            assert int(offset) == end
            end += SIZES[kind] if kind in SIZES else int(kind.split()[0])
        assert end == size


def test_the_fields_of_a_checkpoint_are_those_of_the_tables() -> None:
    fields = [
        (name, default is not NODEFAULT)
        for struct in (Checkpoint, SourceState, OperatorState)
        for name, default in (
            (each.name, each.default if each.default_factory is NODEFAULT else ())
            for each in msgspec.structs.fields(struct)
        )
    ]
    rows = re.findall(r"^\| `(\w+)`( \(\w+\))? \| ", section("Pipelines"), re.MULTILINE)
    assert fields == [(name, bool(default)) for name, default in rows]
