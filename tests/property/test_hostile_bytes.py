"""Scenario 82: any bytes, given to each parser of what is on disk.

Where a hash guards the bytes, whatever differs from what was written is refused; and what a mad
writer gave the right hash is refused or read, in bounded memory, never met by another error.
Batches and columns have more of this in `test_batch.py` and `test_column_checks.py`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pyarrow.compute import field
from xxhash import xxh3_64_digest, xxh3_64_intdigest

import millstream
from millstream import DataError
from millstream.arrow_batch import section_columns
from millstream.arrow_columns import encode_columns
from millstream.backup_manifest import Manifest, ManifestFile
from millstream.batch import (
    BatchPlacement,
    EncodedBatch,
    buffers,
    decode_batch,
    encode_batch,
    encode_columns_batch,
    seal,
)
from millstream.batch_facts import BatchFacts
from millstream.batch_filter import BatchFilter
from millstream.catalog import GroupOffset
from millstream.chain_file import chain_path, known_segments, write_chain
from millstream.column_section import check_section, open_directory
from millstream.config import TopicConfig
from millstream.decisions import decode_outcome, encode_outcome
from millstream.format import (
    REWRITTEN,
    BatchHeader,
    Rewrite,
    SegmentHeader,
    encode_rewrite,
    encode_segment_header,
    parse_header,
    parse_segment_header,
)
from millstream.index import SparseIndex
from millstream.key_file import KeyFile, encode_key_file, sorted_run
from millstream.owner_catalog import Outcome
from millstream.processor.checkpoint import (
    Checkpoint,
    OperatorState,
    SourceState,
    decode_checkpoint,
    encode_checkpoint,
)
from millstream.processor.deliver import _FORM as SINK_POSITIONS, _Stored as SinkPosition
from millstream.processor.fork_diff import ForkPoint, decode_fork_point, encode_fork_point
from millstream.processor.ingest import _FORM as SOURCE_POSITIONS, _Stored as SourcePosition
from millstream.processor.kept import Kept, decode_kept, encode_kept
from millstream.processor.line_files import FilePosition, to_position
from millstream.processor.row_codec import RowCodec
from millstream.processor.serde import encode_state
from millstream.processor.state import STATE_VERSION, decode_content, decode_entry, encode_entries
from millstream.processor.ticks import JournalEntry, Tick, decode_journal, encode_entry
from millstream.producer_states import ProducedBatch, ProducerState, ProducerStates
from millstream.queue_ranges import Lease, Range
from millstream.retention import SegmentInfo
from millstream.segment import create_segment
from millstream.testing import MemoryStorage
from millstream.topic_schema import stored_form, stored_schema

EXAMPLES = int(os.environ.get("MILLSTREAM_FUZZ_EXAMPLES", "50"))
UID = 0x1122_3344_5566_7788
Reseal = Callable[[bytearray], None]


@dataclass(frozen=True)
class Parser:
    """What reads some bytes, and what it should read."""

    name: str
    content: bytes
    parse: Callable[[bytes], object]
    reseal: Reseal | None = None
    """Makes the hash right again. None: there is none, the record around it has one."""
    peak_bytes: int = 4 << 20
    """What it may take for some hundred bytes that promise more."""

    def __str__(self) -> str:
        return self.name


# --- the parsers -------------------------------------------------------------------------------


def at(position: int, stop: int, seed: int = 0) -> Reseal:
    """A hash behind bytes [position, stop)."""

    def reseal(content: bytearray) -> None:
        digest = xxh3_64_intdigest(bytes(content[position:stop]), seed)
        content[stop : stop + 8] = struct.pack("<Q", digest)

    return reseal


def at_end(seed: int = 0) -> Reseal:
    """A hash over all, in the last 8 bytes."""

    def reseal(content: bytearray) -> None:
        at(0, max(len(content) - 8, 0), seed)(content)

    return reseal


def segment_header(*, rewritten: bool) -> Parser:
    rewrite = Rewrite(9, 1024, 3, 4, 5, 6, 7, 8, 2)
    header = SegmentHeader(
        bytes(range(16)), UID, 7, 5, 1_700, 6, 7, 8, incompatible=REWRITTEN if rewritten else 0
    )
    content = encode_segment_header(header)[0]
    if not rewritten:
        return Parser("segment header", content, parse_segment_header, at(0, 120))

    def reseal(content: bytearray) -> None:
        at(0, 120)(content)
        at(128, 248, int.from_bytes(content[40:48], "little"))(content)

    content += encode_rewrite(rewrite, UID)
    return Parser("rewritten segment header", content, parse_segment_header, reseal)


def batch_of_rows() -> Parser:
    values = [b"a" * 40, None, b""]
    headers = [(), (("h", b"x"),), ()]
    return batch("batch", encode_batch(values, [b"k", None, b"l"], [3, 1, 2], headers, codec=1))


def batch_of_columns(*, keys: bool) -> Parser:
    rows = pa.record_batch({"n": [1, 2], "t": ["a", None]})
    names = [b"k", None, b"l"] if keys else None
    section = encode_columns(rows, 1)
    encoded = encode_columns_batch(section, b"\1\0\1", names, [3, 1, 2], None, codec=1)
    return batch(f"batch of columns, {keys=}", encoded)


def batch(name: str, encoded: EncodedBatch) -> Parser:
    header, _ = seal(encoded, BatchPlacement(UID, 7, 5, 1_700, 1, 2, 3, 4, 5))

    def parse(content: bytes) -> object:
        header = parse_header(content, 0, UID)
        batch = decode_batch("t", 0, header, content[192 : header.total_bytes])
        if header.total_bytes != len(content):
            raise DataError("not all of it")
        columns = batch.arrow(["_offset", "_key"]).num_rows if batch.columnar else 0
        return batch.records(), batch.tombstones(), columns

    def reseal(content: bytearray) -> None:
        """Of the header and of what it says the sections are."""
        start = 192
        header = content.ljust(192, b"\0")
        for place in (128, 144, 160):
            (stored,) = hashed = struct.unpack_from("<I", header, place)
            if place == 144 and header[37] & 2:  # COLUMNS: of the directory
                hashed = struct.unpack("<I", content[start : start + 4].ljust(4, b"\0"))
            digest = xxh3_64_intdigest(bytes(content[start : start + hashed[0]]))
            content[place + 8 : place + 16] = struct.pack("<Q", digest)
            start += stored
        at(0, 184, UID)(content)

    # A section may say that it unfolds to 128 MiB, and the buffer for that is made.
    return Parser(name, b"".join(buffers(encoded, header)), parse, reseal, 130 << 20)


def directory() -> Parser:
    """A section of columns, behind the hash that its batch has of its directory."""
    rows = pa.record_batch({"t": ["a" * 70, None] * 150, "u": pa.array([1 << 63] * 300, "u8")})
    section = encode_columns(rows, 1)
    assert section.flags

    def parse(content: bytes) -> object:
        stored = content[8:]
        directory_hash = int.from_bytes(content[:8], "little")
        check_section(stored, directory_hash)
        found = open_directory(stored, directory_hash)
        columns = section_columns(stored, directory_hash, 300)
        values = [columns.column(field).to_pylist() for field in columns.schema]
        header = BatchHeader._make([300] * len(BatchHeader._fields))
        facts = BatchFacts("t", 0, header, None, found)
        asked = [
            BatchFilter(field("t") == "a", rows.schema).may_hold(facts),
            BatchFilter(field("u") == 7, rows.schema).may_hold(facts),
        ]
        return values, asked

    def reseal(content: bytearray) -> None:
        (length,) = struct.unpack_from("<I", content.ljust(12, b"\0"), 8)
        digest = xxh3_64_intdigest(bytes(content[8 : 8 + length]))
        content[:8] = struct.pack("<Q", digest)

    whole = struct.pack("<Q", section.hash) + section.stored
    return Parser("directory of columns", whole, parse, reseal)


def index() -> Parser:
    made = SparseIndex()
    for number in range(4):
        made.append(number * 10, 128 + number * 8192, 1_000 + number)

    def parse(content: bytes) -> object:
        found = SparseIndex.decode(content, UID)
        return [found.find_offset(offset) for offset in range(0, 50, 5)]

    return Parser("index", made.encode(UID, 40_000), parse, at_end(UID))


KEYS = {b"key %d" % number: number for number in range(300)}


def key_file() -> Parser:
    half = dict(list(KEYS.items())[:9])
    content = b"".join(encode_key_file([sorted_run(KEYS), sorted_run(half)], UID, 999_936))

    def parse(content: bytes) -> object:
        storage = MemoryStorage(crashable=False)
        file = storage.open("keys", "x")
        with contextlib.closing(file):
            file.write([content], 0)
            keys = KeyFile(file, UID, 999_936)
            return [keys.find(xxh3_64_digest(key)) for key in [*list(KEYS)[::20], b"none"]]

    def reseal(content: bytearray) -> None:
        at(0, 64 + 2 * 8, UID)(content)
        for number in range(len(content) // 4096 - 1):
            start = 4096 * (number + 1)
            at(start, start + 4088, UID + number)(content)

    return Parser("key file", content, parse, reseal)


def producers() -> Parser:
    states = ProducerStates(40, 0, 0)
    kept = tuple(ProducedBatch(number, number * 3, 2, True, 1_700) for number in range(5))
    states.producers[3] = ProducerState(2, 14, kept)
    states.producers[9] = ProducerState(0, 2, kept[:1])

    def parse(content: bytes) -> object:
        return ProducerStates.decode(content, UID, 40).producers

    return Parser("snapshot of producers", states.encode(UID), parse, at_end(UID))


def outcome() -> Parser:
    offsets = [(GroupOffset("g", 1, 0, 7), None), (GroupOffset("h", 2, 1, 9), 3)]
    made = Outcome(offsets, {"c": b"x"}, [Lease(1, 2, Range(0, 3, 5, 1))])

    def reseal(content: bytearray) -> None:
        content[-8:] = xxh3_64_digest(bytes(content[:-8]))

    return Parser(
        "decision", encode_outcome(made), lambda data: decode_outcome(data, "app.db"), reseal
    )


def checkpoint() -> Parser:
    made = Checkpoint(
        4,
        [("in", 0, 7)],
        {"in": SourceState([(0, 5)], 3, [1], False, [(0, 9)])},
        {"window-1": OperatorState("identity", 1, 2, 3, 4)},
        {"in": 1},
        outputs=[("out", 0, 3)],
    )
    return Parser("checkpoint", encode_checkpoint(made), decode_checkpoint)


def entry() -> Parser:
    path = ("key", 5, b"x", (1.5, None))
    records = encode_entries("op", [path], [(1, "text", [2, {"a": b"b"}], True)])
    value = records.values[0]
    assert value is not None
    length = len(records.keys[0])

    def parse(content: bytes) -> object:
        return decode_entry(content[:length], content[length:])

    return Parser("state entry", records.keys[0] + value, parse)


def journal() -> Parser:
    made = JournalEntry([("in", 0, 7), ("in", 1, 9)], Tick(1_700, True, {"in": [1]}, ["in"]))
    return Parser("tick", encode_entry(made), decode_journal)


def manifest() -> Parser:
    files = [ManifestFile(f"topics/t/0/{number:020d}.segment", 128) for number in range(2)]
    made = Manifest(bytes(16), 1_700, files, {"t/0": 5})
    return Parser("manifest", made.to_json(), Manifest.from_json)


def config() -> Parser:
    text = TopicConfig(retention_ms=5, retention_groups=("a", "b"), compression="lz4").to_json()

    def parse(content: bytes) -> object:
        return TopicConfig.from_json(content.decode("utf-8", "surrogateescape"))

    return Parser("configuration", text.encode(), parse)


def chain() -> Parser:
    """Of many segments, the last of which is there to be compared."""
    storage = MemoryStorage(crashable=False)
    bases = [10 * number for number in range(30)]
    storage.make_directory("p")
    create_segment(storage, "p", SegmentHeader(bytes(16), UID, 7, bases[-2], 1_700, 6, 7, 8))
    infos = [SegmentInfo(base, base + 10, 128, 1_700, 1_700, sealed=True) for base in bases[:-1]]
    write_chain(storage, "p", 7, infos)

    def parse(content: bytes) -> object:
        file = storage.open(chain_path("p"), "rw")
        with contextlib.closing(file):
            file.write([content], 0)
            file.truncate(len(content))
        if not (found := known_segments(storage, "p", bases)):
            raise DataError("derived: all headers are read instead")
        return found

    file = storage.open(chain_path("p"), "r")
    with contextlib.closing(file):
        content = file.read(file.size(), 0)
    return Parser("chain file", content, parse, at_end())


def kept() -> Parser:
    made = encode_kept([Kept(1_700, by_hand=True, data=checkpoint().content)])

    def parse(content: bytes) -> object:
        return [(each, each.checkpoint) for each in decode_kept(content, "p")]

    return Parser("kept checkpoints", made, parse)


def fork() -> Parser:
    made = encode_fork_point(ForkPoint("p", [("out", 0, 7), ("out", 1, 9)]))
    return Parser("place of a fork", made, lambda content: decode_fork_point(content, "f"))


def source_position() -> Parser:
    made = FilePosition(5, 2, b"head", b"tail", beside=[(3, b"x")])
    plain = {name: getattr(made, name) for name in FilePosition.__struct_fields__}

    def parse(content: bytes) -> object:
        return to_position(SOURCE_POSITIONS.decode(content, "the position").position)

    return Parser("position of a source", SOURCE_POSITIONS.encode(SourcePosition(3, plain)), parse)


def sink_position() -> Parser:
    made = SINK_POSITIONS.encode(SinkPosition(3, 7, 9, [7, 8]))
    return Parser("position of a sink", made, lambda data: SINK_POSITIONS.decode(data, "it"))


def row_of_state() -> Parser:
    codec = RowCodec(tuple[int, str, dict[str, list[float]]], "rows")
    made = STATE_VERSION + encode_state(codec.pack([(1, "a", {"b": [0.5]})]))
    return Parser("row of state", made, lambda data: list(map(codec.unpack, decode_content(data))))


def schema() -> Parser:
    fields = pa.schema({"n": "i8", "t": "string", "l": pa.list_(pa.struct({"x": pa.int64()}))})

    def parse(content: bytes) -> object:
        return stored_schema(content.decode("utf-8", "replace"))

    return Parser("stored schema", stored_form(fields).encode(), parse)


PARSERS = [
    segment_header(rewritten=False),
    segment_header(rewritten=True),
    batch_of_rows(),
    batch_of_columns(keys=True),
    batch_of_columns(keys=False),
    directory(),
    index(),
    key_file(),
    producers(),
    outcome(),
    checkpoint(),
    entry(),
    journal(),
    manifest(),
    config(),
    chain(),
    kept(),
    fork(),
    source_position(),
    sink_position(),
    row_of_state(),
    schema(),
]

# --- what is done to the bytes -----------------------------------------------------------------

WORDS = [0, 1, 2, 7, 127, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
LONG = [(1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
PIECES = [
    *(struct.pack("B", word & 255) for word in WORDS),
    *(struct.pack("<I", word) for word in WORDS),
    *(struct.pack("<Q", word) for word in LONG),
    *(struct.pack(">I", word) for word in WORDS),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xa1\xff"),
    *(b"\x91" * 3000, b"[" * 3000, b'"', b"null", b"1e999", b"-1", b"\xff"),
]
positions = st.one_of(st.integers(0, 300), st.integers(0, 1 << 14))
edits = st.tuples(
    st.sampled_from(["overwrite", "overwrite", "insert", "delete", "cut", "repeat", "random"]),
    positions,
    st.integers(1, 40),
    st.sampled_from(PIECES),
    st.binary(min_size=1, max_size=16),
)


def edited(content: bytes, changes: Iterable[tuple[str, int, int, bytes, bytes]]) -> bytearray:
    """`content` with these edits, one after the other."""
    result = bytearray(content)
    for kind, where, length, piece, random in changes:
        start = where % (len(result) + 1)
        if kind == "overwrite":
            result[start : start + len(piece)] = piece[: max(len(result) - start, 1)]
        elif kind == "insert":
            result[start:start] = piece
        elif kind == "delete":
            del result[start : start + length]
        elif kind == "cut":
            del result[start:]
        elif kind == "repeat":
            result[start:start] = result[max(0, start - length) : start]
        else:
            result[start : start + len(random)] = random
    return result


def refused(parser: Parser, content: bytes) -> object:
    """What is read, or None where it is refused with a typed error; never much memory."""
    tracemalloc.start()
    try:
        return parser.parse(content)
    except DataError:
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < parser.peak_bytes


bounded = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_what_was_written_is_read(parser: Parser) -> None:
    content = bytearray(parser.content)
    assert parser.parse(parser.content) is not None
    if parser.reseal:
        parser.reseal(content)
        assert parser.content == content


@pytest.mark.parametrize("parser", PARSERS, ids=str)
@bounded
@given(changes=st.lists(edits, min_size=1, max_size=4))
def test_scenario_82_changed_bytes_are_refused(
    parser: Parser, changes: list[tuple[str, int, int, bytes, bytes]]
) -> None:
    content = bytes(edited(parser.content, changes))
    found = refused(parser, content)
    if parser.reseal and found is not None:
        # Padding that nothing reads may differ.
        assert parser.parse(parser.content) == found


@pytest.mark.parametrize("parser", [each for each in PARSERS if each.reseal], ids=str)
@bounded
@given(changes=st.lists(edits, min_size=1, max_size=3))
def test_scenario_82_a_mad_writer_meets_typed_errors_only(
    parser: Parser, changes: list[tuple[str, int, int, bytes, bytes]]
) -> None:
    assert parser.reseal
    content = edited(parser.content, changes)
    parser.reseal(content)
    refused(parser, bytes(content))


@pytest.mark.parametrize("nested", [b"\x91", b"\x81\xa1x", b"[", b'{"x":'])
@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_scenario_82_values_nested_too_deeply_are_refused(parser: Parser, nested: bytes) -> None:
    content = bytearray(parser.content[:1] + nested * 20_000)
    assert refused(parser, bytes(content)) is None
    content = bytearray(nested * 20_000)
    if parser.reseal:
        parser.reseal(content)
    assert refused(parser, bytes(content)) is None


@bounded
@given(content=st.binary(max_size=400))
def test_scenario_82_random_bytes_meet_typed_errors_only(content: bytes) -> None:
    for parser in PARSERS:
        refused(parser, content)


# --- an archive --------------------------------------------------------------------------------


VALUES = [b"%d" % number for number in range(50)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("archive")
    with millstream.open(directory / "store") as store:
        store.create_topic("t")
        store.append_many("t", VALUES)
        store.backup(directory / "backup.tar.zst")
    return (directory / "backup.tar.zst").read_bytes()


@settings(bounded, max_examples=max(EXAMPLES // 4, 1))
@given(changes=st.lists(edits, min_size=1, max_size=3))
def test_scenario_82_a_changed_archive_is_refused_or_the_same(
    archive: bytes, changes: list[tuple[str, int, int, bytes, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "backup.tar.zst").write_bytes(edited(archive, changes))
        try:
            millstream.restore(place / "backup.tar.zst", place / "store")
        except DataError:
            return
        with millstream.open(place / "store", read_only=True) as store:
            assert VALUES == [record.value for record in store.read("t")]
