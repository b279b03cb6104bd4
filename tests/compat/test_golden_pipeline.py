"""What pipelines of every version have written is read the same, for ever, and written the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typed_state import ROWS, WRITTEN, typed_pipeline, write_typed_state

import millstream
from millstream.processor.checkpoint import decode_checkpoint, encode_checkpoint
from millstream.processor.holding import StatePlace
from millstream.processor.state import decode_content, encode_content
from millstream.processor.ticks import decode_journal, encode_entry

DIRECTORY = Path(__file__).parent / "golden"
GOLDEN: dict[str, Any] = json.loads((DIRECTORY / "pipeline.json").read_text())


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("checkpoint")])
def test_golden_checkpoints_read_the_same(name: str) -> None:
    data = bytes.fromhex(GOLDEN[name]["hex"])
    checkpoint = decode_checkpoint(data)
    assert GOLDEN[name]["content"] == json.loads(msgspec.json.encode(checkpoint))
    # Without the fields that came later it is read, not written.
    assert (encode_checkpoint(checkpoint) == data) == (name == "checkpoint")


def test_golden_state_and_journal_read_the_same() -> None:
    for data, content in GOLDEN["state"].items():
        assert content == decode_content(bytes.fromhex(data))
        assert data == encode_content(content).hex()
    entry = decode_journal(bytes.fromhex(GOLDEN["journal"]["hex"]))
    assert GOLDEN["journal"]["content"] == json.loads(msgspec.json.encode(entry))
    assert GOLDEN["journal"]["hex"] == encode_entry(entry).hex()


@pytest.mark.parametrize("state", ["memory", "sqlite"])
def test_golden_state_of_declared_types_goes_on(tmp_path: Path, state: StatePlace) -> None:
    shutil.copytree(DIRECTORY / "v1-typed-state", tmp_path / "store")
    pipeline = typed_pipeline(state)
    with millstream.open(tmp_path / "store") as store:
        store.append_many("in", [json.dumps(row).encode() for row in ROWS[WRITTEN:]])
        metrics = pipeline.run(store, until="end", on_end="flush")
        found = {
            topic: [json.loads(record.value or b"") for record in store.read(topic)]
            for topic in ("windows", "sessions", "running", "reduced")
        }
    assert metrics.records_in == len(ROWS) - WRITTEN
    assert typed_pipeline().test({"in": ROWS}) == found


def test_state_of_declared_types_is_written_as_the_golden_one(tmp_path: Path) -> None:
    def written(store: millstream.Store) -> dict[str, list[tuple[bytes | None, bytes | None]]]:
        return {
            info.name: sorted((each.key or b"", each.value) for each in store.read(info.name))
            for info in store.topics(internal=True)
            if info.name.startswith("@state/")
        }

    shutil.copytree(DIRECTORY / "v1-typed-state", tmp_path / "store")
    with millstream.open(tmp_path / "store") as golden, millstream.open() as store:
        write_typed_state(store)
        assert len(written(golden)) == 4
        assert written(golden) == written(store)
