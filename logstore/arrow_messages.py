"""What an Arrow record batch message says of itself where pyarrow does not tell.

Compression of the buffers inside of a message is forbidden by docs/log-format.md: a chunk has a
codec of its own, and the sizes inside would bypass the bounds of the directory. Arrow would undo
it silently. The metadata is a flatbuffer; this reads the one field and no more, see
https://arrow.apache.org/docs/format/Columnar.html and Message.fbs there.
"""

from __future__ import annotations

from struct import Struct, error as StructError  # noqa: N812 - it is a class
from typing import Final

from .errors import CorruptBatchError
from .format import Buffer

_INT: Final = Struct("<i")
_UINT: Final = Struct("<I")
_USHORT: Final = Struct("<H")
_MESSAGE_HEADER: Final = 2
_BATCH_COMPRESSION: Final = 3


def is_compressed(metadata: Buffer) -> bool:
    """Whether the metadata of a record batch message declare compression of its buffers.

    Raises:
        CorruptBatchError: The metadata are no such flatbuffer.
    """
    try:
        place = _field(metadata, _at(_UINT, metadata, 0), _MESSAGE_HEADER)
        if place is None:
            raise CorruptBatchError("an Arrow message has no header")
        batch = place + _at(_UINT, metadata, place)
        return _field(metadata, batch, _BATCH_COMPRESSION) is not None
    except StructError:
        raise CorruptBatchError("the metadata of an Arrow message are cut") from None


def _field(metadata: Buffer, table: int, number: int) -> int | None:
    """Where the field of a table is; None if it is absent."""
    fields = table - _at(_INT, metadata, table)
    slot = 4 + 2 * number
    if slot + 2 > _at(_USHORT, metadata, fields):
        return None
    distance = _at(_USHORT, metadata, fields + slot)
    return table + distance if distance else None


def _at(kind: Struct, metadata: Buffer, position: int) -> int:
    # A negative position would count from the end.
    if position < 0:
        raise CorruptBatchError("the metadata of an Arrow message point outside")
    number: int = kind.unpack_from(metadata, position)[0]
    return number
