"""What pipelines of every version have written is read the same, for ever, and written the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millstream.processor.checkpoint import decode_checkpoint, encode_checkpoint
from millstream.processor.state import decode_content, encode_content
from millstream.processor.ticks import decode_journal, encode_entry

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "golden" / "pipeline.json").read_text()
)


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
