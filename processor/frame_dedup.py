"""Dedup on columns: what dedup.py does, with identities from a column and the rows left in columns.

This module needs the extra `arrow`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from .columns import Rows
from .dedup import DedupOperator, Identity
from .frame_errors import NotInColumnsError
from .frame_fields import column_of
from .frames import Array, FrameChunk, to_list
from .nodes import LATE, DedupNode
from .source import Rejects
from .stateful import MAIN, Step

_IDENTITY_TYPES: Final = (pa.string(), pa.int64(), pa.bool_())


class FrameDedupOperator(DedupOperator):
    """Lets the first of rows that say the same pass. Not thread-safe."""

    def __init__(self, node: DedupNode, delay_ms: int, rejects: Rejects | None) -> None:
        super().__init__(node, delay_ms, rejects)
        self._read = column_of(node.on)
        self._keyed = node.keyed

    def process(self, step: Step) -> dict[str, Rows]:
        """Let rows pass; see `DedupOperator.process`."""
        (chunk,) = step.chunks
        if isinstance(chunk, FrameChunk) and chunk.row_count:
            try:
                identities = self._identities(chunk)
            except NotInColumnsError:
                pass  # rows find out which have none
            else:
                rows = chunk.rows if isinstance(chunk.rows, range) else chunk.rows.tolist()
                passes, late = self._judge(identities, rows, chunk.times.tolist(), step.progress)
                return {
                    MAIN: chunk.pick(np.array(passes, np.bool_)),
                    LATE: chunk.pick(np.array(late, np.bool_)),
                }
        return super().process(step._replace(chunks=[chunk.as_chunk()]))

    def _identities(self, chunk: FrameChunk) -> list[Identity]:
        """What makes rows the same, of each.

        Raises:
            NotInColumnsError: Some may have nothing that does.
        """
        found: Array = self._read(chunk.frame)
        if found.null_count or found.type not in _IDENTITY_TYPES:
            raise NotInColumnsError(f"identities of {found.type}")
        if not self._keyed:
            return to_list(found)
        assert chunk.keys is not None
        return list(zip(to_list(chunk.keys), to_list(found), strict=True))
