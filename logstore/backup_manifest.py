"""The manifest of a backup: which files it consists of. Pure.

It is the last file of a directory and the first of an archive, so that a backup cut short is
recognised. Bytes from a backup are hostile: paths and sizes are checked here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .errors import DataError, FormatVersionError, UsageError
from .storage_protocols import checked_path

MANIFEST: Final = "backup.json"
SCHEMA: Final = 1
MANIFEST_BYTES_MAX: Final = 256 << 20
"""A hundred thousand segments take some 10 MB."""


class ManifestFile(NamedTuple):
    """A segment in a backup."""

    path: str
    """Below the root, as in the store."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup consists of, beside its catalog."""

    store_uid: bytes
    created_ms: int
    files: list[ManifestFile]
    log_ends: dict[str, int] = field(default_factory=dict)
    """By "topic/partition"; for people."""

    def to_json(self) -> bytes:
        """The bytes of the file."""
        document = {
            "schema": SCHEMA,
            "store_uid": self.store_uid.hex(),
            "created_ms": self.created_ms,
            "log_ends": self.log_ends,
            "files": [[file.path, file.size_bytes] for file in self.files],
        }
        return json.dumps(document, indent=0).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Read it back.

        Raises:
            FormatVersionError: Made by a newer version.
            DataError: Not a manifest, or not one that a backup wrote.

        >>> manifest = Manifest(bytes(16), 5, [ManifestFile("topics/t/0/x.segment", 128)])
        >>> Manifest.from_json(manifest.to_json()) == manifest
        True
        """
        try:
            document = json.loads(content)
            if document["schema"] != SCHEMA:
                raise FormatVersionError(
                    f"the backup has schema {document['schema']!r}, this version knows {SCHEMA}",
                    path=MANIFEST,
                )
            files = [ManifestFile(_segment(path), _size(size)) for path, size in document["files"]]
            uid = bytes.fromhex(document["store_uid"])
            created_ms, log_ends = _size(document["created_ms"]), dict(document["log_ends"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"not the manifest of a backup: {error!r:.200}", path=MANIFEST
            ) from None
        if len({file.path for file in files}) != len(files) or len(uid) != 16:
            raise DataError("the manifest of the backup names a file twice", path=MANIFEST)
        return cls(uid, created_ms, files, log_ends)


def _segment(path: object) -> str:
    if not isinstance(path, str) or not path.endswith(".segment"):
        raise ValueError(path)
    try:
        return checked_path(path)
    except UsageError as error:
        raise ValueError(path) from error


def _size(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise ValueError(size)
    return size
